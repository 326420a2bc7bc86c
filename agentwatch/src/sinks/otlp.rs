//! OpenTelemetry's protocol, logs, over HTTP and gRPC.
//!
//! There are no definitions yet for what happens to processes and files, so events have names of our own (`agentwatch.open`); attributes
//! are those of the semantic conventions where there are any. The body is the event in the sink's format.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse, logs_service_client::LogsServiceClient,
    },
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use prost::Message as _;
use reqwest::{
    Client, Url,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde_json::Value;
use tonic::{Code, codec::CompressionEncoding, metadata::MetadataValue, transport::Channel};

use super::{
    Failure, Needs, Sink,
    config::{OtlpProtocol, OtlpTarget},
    http,
    tls::Service,
};
use crate::event::{
    Event,
    format::Format,
    model::{Kind, Verdict},
};

const CONNECT: Duration = Duration::from_secs(10);
const REQUEST: Duration = Duration::from_secs(45);

pub(crate) struct Otlp {
    url: Url,
    format: Format,
    how: How,
}

enum How {
    Http(Client),
    Grpc {
        service: Box<Service>,
        client: Option<Box<LogsServiceClient<Channel>>>,
        authorization: Option<HeaderValue>,
    },
}

impl Otlp {
    pub(super) fn new(target: &OtlpTarget, format: Format) -> Result<Self> {
        let mut url = http::address("otlp.url", &target.url)?;
        let authorization = http::authorization(&target.access, "Bearer")?;
        let how = match target.protocol {
            OtlpProtocol::Http => {
                if matches!(url.path(), "" | "/") {
                    url.set_path("/v1/logs");
                }
                let mut headers = HeaderMap::new();
                headers.insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static("application/x-protobuf"),
                );
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                headers.extend(authorization.map(|value| (AUTHORIZATION, value)));
                How::Http(http::client(&url, &target.access.tls, headers)?)
            }
            OtlpProtocol::Grpc => How::Grpc {
                service: Box::new(Service::new(&url, &target.access.tls, CONNECT, REQUEST)?),
                client: None,
                authorization,
            },
        };
        Ok(Self { url, format, how })
    }

    pub(super) fn needs(&self, needs: &mut Needs) {
        http::needs(&self.url, needs);
    }
}

impl Sink for Otlp {
    async fn deliver(&mut self, events: &[Event]) -> Result<u64, Failure> {
        let request = request(events, self.format);
        let answer = match &mut self.how {
            How::Http(client) => {
                let body = http::zipped(&request.encode_to_vec())?;
                let response = client.post(self.url.clone()).body(body).send().await;
                let bytes = http::accepted(response).await?;
                ExportLogsServiceResponse::decode(bytes.as_slice())
                    .context("what answers is no OTLP receiver")?
            }
            How::Grpc {
                service,
                client,
                authorization,
            } => {
                let client = client.get_or_insert_with(|| {
                    let client = LogsServiceClient::new(service.channel());
                    Box::new(client.send_compressed(CompressionEncoding::Gzip))
                });
                let mut request = tonic::Request::new(request);
                if let Some(value) = authorization {
                    let value = MetadataValue::try_from(value.as_bytes())
                        .context("the token has characters that no metadata can have")?;
                    request.metadata_mut().insert("authorization", value);
                }
                client.export(request).await.map_err(failure)?.into_inner()
            }
        };
        // To be counted, and not to be sent again: which they were is not said.
        Ok(answer.partial_success.map_or(0, |partly| {
            partly.rejected_log_records.max(0).cast_unsigned()
        }))
    }

    fn most_events(&self) -> usize {
        512
    }
}

fn failure(status: tonic::Status) -> Failure {
    let error = anyhow!("{}: {}", status.code(), status.message().escape_debug());
    match status.code() {
        Code::InvalidArgument => Failure::Refused(error),
        // The receiver's own limit on messages.
        Code::OutOfRange | Code::ResourceExhausted
            if status.message().contains("larger than max") =>
        {
            Failure::Refused(error)
        }
        _ => error.into(),
    }
}

fn request(events: &[Event], format: Format) -> ExportLogsServiceRequest {
    let mut resource_logs: Vec<ResourceLogs> = Vec::new();
    for hosts in events.chunk_by(|one, other| one.host == other.host) {
        let host = hosts.first().map_or("", |event| event.host.as_str());
        resource_logs.push(ResourceLogs {
            resource: Some(Resource {
                attributes: vec![
                    text("service.name", "agentwatch"),
                    text("service.version", env!("CARGO_PKG_VERSION")),
                    text("host.name", host),
                    text("os.type", "linux"),
                ],
                ..Resource::default()
            }),
            scope_logs: vec![ScopeLogs {
                scope: Some(InstrumentationScope {
                    name: "agentwatch".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                log_records: hosts.iter().map(|event| record(event, format)).collect(),
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        });
    }
    ExportLogsServiceRequest { resource_logs }
}

fn record(event: &Event, format: Format) -> LogRecord {
    let time = u64::try_from(event.time.as_nanosecond()).unwrap_or(0);
    let severity = match (event.kind, event.verdict) {
        (Kind::Loss, _) => SeverityNumber::Error,
        (_, Verdict::Denied) => SeverityNumber::Warn,
        (_, Verdict::Held | Verdict::Audited) => SeverityNumber::Info2,
        _ => SeverityNumber::Info,
    };
    LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: u64::try_from(jiff::Timestamp::now().as_nanosecond())
            .unwrap_or(time),
        severity_number: severity.into(),
        severity_text: event.verdict.name().to_owned(),
        body: Some(any(format.value(event))),
        attributes: attributes(event),
        event_name: format!("agentwatch.{}", event.kind.name()),
        ..LogRecord::default()
    }
}

fn attributes(event: &Event) -> Vec<KeyValue> {
    let mut all = vec![
        text("log.record.uid", &event.id),
        text("session.id", &event.session.id),
        text("agentwatch.session.name", &event.session.name),
        text("agentwatch.verdict", event.verdict.name()),
        number("agentwatch.count", event.count),
    ];
    if let Some(rule) = &event.rule {
        all.extend([
            text("agentwatch.rule.id", &rule.id),
            text("agentwatch.rule.source", &rule.source),
        ]);
    }
    if let Some(errno) = event.errno {
        all.push(text(
            "error.type",
            &format!("{:?}", nix::errno::Errno::from_raw(errno)),
        ));
    }
    if let Some(process) = &event.process {
        all.extend([
            number("process.pid", process.pid.into()),
            number("process.parent_pid", process.ppid.into()),
            text("process.executable.path", &process.exe),
            text("process.working_directory", &process.cwd),
            text("user.id", &process.uid.to_string()),
            text("linux.cgroup.path", &process.cgroup),
        ]);
        if !process.argv.is_empty() {
            let values = process
                .argv
                .iter()
                .map(|argument| string(argument))
                .collect();
            all.push(KeyValue {
                key: "process.command_args".to_owned(),
                value: Some(AnyValue {
                    value: Some(any_value::Value::ArrayValue(ArrayValue { values })),
                }),
                ..KeyValue::default()
            });
        }
    }
    if let Some(exit) = &event.exit
        && let Some(code) = exit.code
    {
        all.push(number("process.exit.code", code.unsigned_abs().into()));
    }
    if let Some(file) = &event.file {
        all.push(text("file.path", &file.path));
    }
    if let Some(net) = &event.net {
        for (key, value) in [
            ("network.peer.address", &net.addr),
            ("server.address", &net.domain),
        ] {
            all.extend(value.as_deref().map(|value| text(key, value)));
        }
        all.extend(
            net.port
                .map(|port| number("network.peer.port", port.into())),
        );
    }
    // What is not known is left out.
    all.retain(|attribute| {
        !matches!(&attribute.value, Some(AnyValue { value: Some(any_value::Value::StringValue(text)) }) if text.is_empty())
    });
    all
}

fn string(text: &str) -> AnyValue {
    AnyValue {
        value: Some(any_value::Value::StringValue(text.to_owned())),
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(string(value)),
        ..KeyValue::default()
    }
}

fn number(key: &str, value: u64) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::IntValue(value.cast_signed())),
        }),
        ..KeyValue::default()
    }
}

/// JSON as the protocol's own values.
fn any(value: Value) -> AnyValue {
    use any_value::Value as Any;
    let value = match value {
        Value::Null => None,
        Value::Bool(value) => Some(Any::BoolValue(value)),
        // Above 2^63 the bits are kept, as in the history.
        Value::Number(number) => Some(match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => Any::IntValue(number),
            (None, Some(number), _) => Any::IntValue(number.cast_signed()),
            (None, None, float) => Any::DoubleValue(float.unwrap_or_default()),
        }),
        Value::String(text) => Some(Any::StringValue(text)),
        Value::Array(values) => Some(Any::ArrayValue(ArrayValue {
            values: values.into_iter().map(any).collect(),
        })),
        Value::Object(fields) => Some(Any::KvlistValue(KeyValueList {
            values: fields
                .into_iter()
                .map(|(key, value)| KeyValue {
                    key,
                    value: Some(any(value)),
                    ..KeyValue::default()
                })
                .collect(),
        })),
    };
    AnyValue { value }
}
