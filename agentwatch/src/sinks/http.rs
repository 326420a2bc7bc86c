//! Batches over HTTP: JSON Lines, Splunk's HTTP Event Collector, the bulk interface of Elasticsearch and OpenSearch.

use std::{io::Write as _, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Failure, Needs, Sink,
    config::{Access, HttpTarget, Shape, Tls},
};
use crate::event::{Event, format::Format};

const CONNECT: Duration = Duration::from_secs(10);
/// For one request.
const REQUEST: Duration = Duration::from_secs(45);
/// For a batch to be indexed, where that is waited for.
const INDEXED: Duration = Duration::from_secs(40);
/// Of an answer that is an error, so much is told.
const TOLD: usize = 300;
/// The longest answer that is read.
const ANSWER: usize = 16 << 20;

pub(crate) struct Http {
    client: Client,
    url: Url,
    shape: Shape,
    format: Format,
    index: Option<String>,
    /// Name of this channel, where indexing is waited for.
    channel: Option<String>,
}

impl Http {
    pub(super) fn new(target: &HttpTarget, format: Format) -> Result<Self> {
        let mut url = address("http.url", &target.url)?;
        if target.shape == Shape::Elasticsearch && target.index.is_none() {
            bail!("http.index is needed: which index or data stream of Elasticsearch");
        }
        if target.indexer_acknowledgement && target.shape != Shape::Splunk {
            bail!(
                "http.indexer_acknowledgement is Splunk's: the others acknowledge by their answer"
            );
        }
        match (target.shape, url.path()) {
            (Shape::Splunk, "" | "/") => url.set_path("/services/collector/event"),
            (Shape::Elasticsearch, path) if !path.ends_with("/_bulk") => {
                let path = format!("{}/_bulk", path.trim_end_matches('/'));
                url.set_path(&path);
            }
            _ => {}
        }
        let scheme = match target.shape {
            Shape::Jsonl => "Bearer",
            Shape::Splunk => "Splunk",
            Shape::Elasticsearch => "ApiKey",
        };
        let mut headers = HeaderMap::new();
        if let Some(authorization) = authorization(&target.access, scheme)? {
            headers.insert(AUTHORIZATION, authorization);
        }
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(match target.shape {
                Shape::Splunk => "application/json",
                Shape::Jsonl | Shape::Elasticsearch => "application/x-ndjson",
            }),
        );
        let channel = target
            .indexer_acknowledgement
            .then(|| uuid::Uuid::now_v7().to_string());
        if let Some(channel) = &channel {
            headers.insert("x-splunk-request-channel", HeaderValue::from_str(channel)?);
        }
        Ok(Self {
            client: client(&url, &target.access.tls, headers)?,
            url,
            shape: target.shape,
            format,
            index: target.index.clone(),
            channel,
        })
    }

    pub(super) fn needs(&self, needs: &mut Needs) {
        self::needs(&self.url, needs);
    }

    fn body(&self, events: &[Event]) -> Vec<u8> {
        match self.shape {
            Shape::Jsonl => self.format.lines(events),
            Shape::Splunk => {
                let mut body = Vec::new();
                for event in events {
                    let time = event.time.as_nanosecond();
                    let mut item = json!({
                        // As Splunk wants it: seconds, with a fraction, as text, which loses none of it.
                        "time": format!("{}.{:09}", time.div_euclid(1_000_000_000), time.rem_euclid(1_000_000_000)),
                        "host": event.host,
                        "source": "agentwatch",
                        "sourcetype": format!("agentwatch:{}", self.format.name()),
                        "event": self.format.value(event),
                        "fields": {"session": event.session.id, "kind": event.kind.name(), "verdict": event.verdict.name()},
                    });
                    if let Some(index) = &self.index {
                        item["index"] = json!(index);
                    }
                    line(&mut body, &item);
                }
                body
            }
            Shape::Elasticsearch => {
                let mut body = Vec::new();
                for event in events {
                    // With its own id, so that what comes twice is there once.
                    line(
                        &mut body,
                        &json!({"create": {"_index": self.index, "_id": event.id}}),
                    );
                    let mut document = self.format.value(event);
                    if let Value::Object(fields) = &mut document {
                        fields
                            .entry("@timestamp")
                            .or_insert_with(|| json!(event.time.to_string()));
                    }
                    line(&mut body, &document);
                }
                body
            }
        }
    }

    /// Waits until a batch is indexed.
    async fn indexed(&self, answer: &str, channel: &str) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Accepted {
            #[serde(rename = "ackId")]
            id: u64,
        }
        let Accepted { id } = serde_json::from_str(answer).map_err(|_| {
            anyhow!("Splunk gave no number to ask for: {}\nhint: allow indexer acknowledgement for its token, or leave indexer_acknowledgement out", told(answer))
        })?;
        let mut url = self.url.clone();
        url.set_path("/services/collector/ack");
        url.set_query(Some(&format!("channel={channel}")));
        let until = tokio::time::Instant::now() + INDEXED;
        while tokio::time::Instant::now() < until {
            let body = json!({"acks": [id]}).to_string();
            let response = self.client.post(url.clone()).body(body).send().await;
            let answer: Value = serde_json::from_str(&good(response).await?)
                .context("Splunk's word on what is indexed")?;
            if answer["acks"][id.to_string()] == json!(true) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Err(anyhow!(
            "Splunk has not indexed a batch in {} seconds",
            INDEXED.as_secs()
        )
        .into())
    }
}

impl Sink for Http {
    async fn deliver(&mut self, events: &[Event]) -> Result<u64, Failure> {
        let body = zipped(&self.body(events))?;
        let response = self
            .client
            .post(self.url.clone())
            .header(CONTENT_ENCODING, "gzip")
            .body(body)
            .send()
            .await;
        let answer = match (good(response).await, self.shape) {
            // Splunk answers 400 also to what is wrong with the index or the channel, and then nothing is wrong with the events.
            (Err(Failure::Refused(error)), Shape::Splunk) if !of_events(&error) => {
                return Err(error.into());
            }
            (answer, _) => answer?,
        };
        match (self.shape, &self.channel) {
            (Shape::Elasticsearch, _) => created(&answer, events.len())?,
            (Shape::Splunk, Some(channel)) => self.indexed(&answer, channel).await?,
            _ => {}
        }
        Ok(0)
    }
}

/// Whether Splunk's error is about the events: 6 (invalid data), 12, 13 (no event), 15 (fields). Or about their size.
fn of_events(error: &anyhow::Error) -> bool {
    let text = error.to_string();
    text.starts_with("413")
        || [6, 12, 13, 15]
            .iter()
            .any(|code| text.contains(&format!("\"code\":{code}")))
}

/// Looks whether every document was created. What was there already is.
fn created(answer: &str, events: usize) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Answer {
        errors: bool,
        items: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        create: Outcome,
    }
    #[derive(Deserialize)]
    struct Outcome {
        status: u16,
        #[serde(default)]
        error: Value,
    }
    let answer: Answer = serde_json::from_str(answer)
        .map_err(|error| anyhow!("what answers is not Elasticsearch: {error}"))?;
    if answer.items.len() != events {
        return Err(anyhow!(
            "{} of {events} events are in the answer",
            answer.items.len()
        )
        .into());
    }
    if !answer.errors {
        return Ok(());
    }
    let mut refused = None;
    for Item { create } in answer.items {
        match create.status {
            200..=299 | 409 => {}
            // The document will not be taken, whatever is done.
            400 | 413 => refused = Some(create.error),
            status => return Err(anyhow!("{status}: {}", told(&create.error.to_string())).into()),
        }
    }
    match refused {
        Some(error) => Err(Failure::Refused(anyhow!("{}", told(&error.to_string())))),
        None => Ok(()),
    }
}

fn line(body: &mut Vec<u8>, value: &Value) {
    body.extend_from_slice(value.to_string().as_bytes());
    body.push(b'\n');
}

/// A client for one receiver.
pub(super) fn client(url: &Url, tls: &Tls, headers: HeaderMap) -> Result<Client> {
    let builder = Client::builder()
        .default_headers(headers)
        .user_agent(concat!("agentwatch/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .timeout(REQUEST)
        .tcp_user_timeout(Duration::from_secs(30))
        // Elsewhere we are not known, and our token is none of its business.
        .redirect(redirect::Policy::none());
    let config = if url.scheme() == "https" {
        super::tls::client(tls, &["http/1.1"])?
    } else {
        // Never used, and nothing of the host needs to be read for it.
        super::tls::nobody()
    };
    builder
        .tls_backend_preconfigured((*config).clone())
        .build()
        .context("make an HTTP client")
}

/// `http://` or `https://`, with a host.
pub(super) fn address(what: &str, text: &str) -> Result<Url> {
    let url = Url::parse(text)
        .with_context(|| format!("{what}: {text:?} is no address; hint: https://HOST:PORT"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        bail!("{what}: {text:?} begins with neither http:// nor https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        bail!("{what}: a password in it would stand in logs; hint: user and password_file");
    }
    Ok(url)
}

pub(super) fn needs(url: &Url, needs: &mut Needs) {
    needs.ports.extend(url.port_or_known_default());
    needs.names |= url.domain().is_some();
}

/// What gets us in.
pub(super) fn authorization(access: &Access, scheme: &str) -> Result<Option<HeaderValue>> {
    use base64::Engine as _;
    let text = match (&access.token, &access.user) {
        (Some(_), Some(_)) => bail!("a token and a user are given; hint: one of them"),
        (Some(token), None) => format!("{scheme} {}", token.trim()),
        (None, Some(user)) => {
            let password = access.password.as_deref().unwrap_or_default();
            let both =
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            format!("Basic {both}")
        }
        (None, None) => return Ok(None),
    };
    let mut value =
        HeaderValue::from_str(&text).context("the token has characters that no header can have")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

pub(super) fn zipped(body: &[u8]) -> Result<Bytes, Failure> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body)?;
    Ok(encoder.finish()?.into())
}

/// The text of a good answer, or what a bad one means.
async fn good(response: reqwest::Result<Response>) -> Result<String, Failure> {
    let bytes = accepted(response).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The bytes of a good answer, or what a bad one means.
pub(super) async fn accepted(response: reqwest::Result<Response>) -> Result<Vec<u8>, Failure> {
    // The address is in the status already, and could hold what is not for logs.
    let mut response = response.map_err(|error| anyhow::Error::from(error.without_url()))?;
    let status = response.status();
    let after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok())
        .map(Duration::from_secs);
    let mut body = Vec::new();
    while let Some(part) = response
        .chunk()
        .await
        .map_err(|error| anyhow::Error::from(error.without_url()))?
    {
        if body.len() + part.len() > ANSWER {
            return Err(anyhow!("the answer is longer than {ANSWER} bytes").into());
        }
        body.extend_from_slice(&part);
    }
    if status.is_success() {
        return Ok(body);
    }
    let error = anyhow!("{status}: {}", told(&String::from_utf8_lossy(&body)));
    Err(match status {
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => Failure::Refused(error),
        _ => Failure::Again { error, after },
    })
}

/// What a receiver says, short and harmless.
fn told(text: &str) -> String {
    text.chars()
        .take(TOLD)
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_bulk_request_is_read_item_by_item() {
        let answer = |statuses: &[u16]| {
            let items: Vec<Value> = statuses
                .iter()
                .map(|status| json!({"create": {"status": status, "error": {"type": "x"}}}))
                .collect();
            json!({"errors": true, "items": items}).to_string()
        };
        assert!(created(&answer(&[201, 409]), 2).is_ok());
        assert!(matches!(
            created(&answer(&[201, 400]), 2),
            Err(Failure::Refused(_))
        ));
        // What may still be taken comes first: a refusal is final.
        assert!(matches!(
            created(&answer(&[400, 429]), 2),
            Err(Failure::Again { .. })
        ));
        assert!(matches!(
            created(&answer(&[201]), 2),
            Err(Failure::Again { .. })
        ));
        assert!(matches!(created("<html>", 2), Err(Failure::Again { .. })));
    }

    #[test]
    fn only_what_is_wrong_with_events_is_final_for_splunk() {
        let error = |text: &str| anyhow!("400 Bad Request: {text}");
        assert!(of_events(&error(
            "{\"text\":\"Invalid data format\",\"code\":6}"
        )));
        assert!(!of_events(&error(
            "{\"text\":\"Incorrect index\",\"code\":7}"
        )));
        assert!(!of_events(&error("<html>")));
    }
}
