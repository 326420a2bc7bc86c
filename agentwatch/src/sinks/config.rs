//! `[[sink]]` of daemon.toml: where events go, which, and in what form.
//!
//! The daemon, which may read them, puts the files that a sink names (keys, certificates, tokens) into the configuration before it hands
//! it to the collector, which may not.

mod read;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytesize::ByteSize;
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::event::{Kind, Verdict, format::Format};

/// The most sinks.
const MOST: usize = 16;
/// The largest file that a sink names.
const MOST_BYTES: u64 = 1 << 20;

/// A place that events are sent to.
#[derive(Clone, Debug, Serialize)]
pub struct SinkConfig {
    /// Names the sink in `status`, and its position on disk.
    pub name: String,
    pub format: Format,
    /// Kinds that are sent; empty is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<Kind>,
    /// Verdicts that are sent; empty is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verdicts: Vec<Verdict>,
    /// Globs for names or ids of sessions that are sent; empty is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<String>,
    /// Where a sink that is new begins.
    pub from: From,
    #[serde(flatten)]
    pub target: Target,
}

/// What events are sent to. Written as the table of its name.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    File(FileTarget),
    Syslog(SyslogTarget),
    Http(HttpTarget),
    Otlp(OtlpTarget),
    Stdout(StdoutTarget),
}

/// Where a sink begins that has no position yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// With the oldest event of the history.
    #[default]
    Start,
    /// With what comes.
    Now,
}

/// JSON Lines in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileTarget {
    /// The file, in a directory that the collector's user may write to.
    pub path: PathBuf,
    /// Begun anew when it is larger.
    #[serde(default = "FileTarget::rotate_bytes", serialize_with = "exactly")]
    pub rotate: ByteSize,
    /// And when it is older, in hours; 0 is never.
    #[serde(default = "FileTarget::rotate_hours")]
    pub rotate_hours: u32,
    /// Files that are kept beside the current one; the oldest go. What goes is in the history still.
    #[serde(default = "FileTarget::keep")]
    pub keep: u32,
    #[serde(default)]
    pub compress: Compression,
}

impl FileTarget {
    fn rotate_bytes() -> ByteSize {
        ByteSize::mib(256)
    }

    fn rotate_hours() -> u32 {
        24
    }

    fn keep() -> u32 {
        14
    }
}

/// What becomes of a file that is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    None,
    #[default]
    Zstd,
    Gzip,
}

/// RFC 5424.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyslogTarget {
    /// `tcp://HOST:PORT`, `tls://HOST:PORT`, `udp://HOST:PORT`, or `unix:PATH`.
    pub address: String,
    /// Facility, as in syslog.conf.
    #[serde(default = "SyslogTarget::facility")]
    pub facility: String,
    /// Id of the structured data, `NAME@NUMBER` with the number that IANA gave to an enterprise.
    #[serde(default = "SyslogTarget::sd_id")]
    pub sd_id: String,
    #[serde(default)]
    pub tls: Tls,
}

impl SyslogTarget {
    fn facility() -> String {
        "local0".to_owned()
    }

    /// 32473 is the number that IANA keeps for examples (RFC 5612): agentwatch has none of its own.
    fn sd_id() -> String {
        "agentwatch@32473".to_owned()
    }
}

/// Batches over HTTP.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpTarget {
    /// For `splunk` and `elasticsearch` the server's address is enough.
    pub url: String,
    #[serde(default)]
    pub shape: Shape,
    /// Index or data stream: `elasticsearch` needs one, `splunk` may have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// Whether `splunk` says when a batch is indexed, which its token must allow.
    #[serde(default)]
    pub indexer_acknowledgement: bool,
    #[serde(flatten)]
    pub access: Access,
}

/// What a batch looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// One JSON object a line.
    #[default]
    Jsonl,
    /// HTTP Event Collector.
    Splunk,
    /// The bulk interface, which OpenSearch has too.
    Elasticsearch,
}

/// OpenTelemetry's protocol, logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtlpTarget {
    /// `https://HOST:4318` for HTTP, whose path is `/v1/logs` unless it has one; `https://HOST:4317` for gRPC.
    pub url: String,
    #[serde(default)]
    pub protocol: OtlpProtocol,
    #[serde(flatten)]
    pub access: Access,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OtlpProtocol {
    #[default]
    Http,
    Grpc,
}

/// JSON Lines on the collector's standard output, which the daemon's service manager keeps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdoutTarget {}

/// How to get in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Access {
    /// What `Authorization` says, after `Splunk`, `ApiKey` or `Bearer` as the shape has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// File with the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// User and password, instead of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    pub tls: Tls,
}

/// Certificates, PEM. Where no authority is named, those of the host are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Our own certificate, where the receiver asks for one, and its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// What a person calls it.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::File(file) => write!(f, "file {}", file.path.display()),
            Target::Syslog(syslog) => write!(f, "syslog {}", syslog.address),
            Target::Http(http) => write!(f, "http {}", without_secrets(&http.url)),
            Target::Otlp(otlp) => write!(f, "otlp {}", without_secrets(&otlp.url)),
            Target::Stdout(StdoutTarget {}) => f.write_str("stdout"),
        }
    }
}

impl Target {
    /// Whether the collector's standard output has to lead somewhere.
    #[must_use]
    pub fn is_stdout(&self) -> bool {
        matches!(self, Target::Stdout(_))
    }

    fn tls(&mut self) -> Option<&mut Tls> {
        match self {
            Target::Syslog(syslog) => Some(&mut syslog.tls),
            Target::Http(http) => Some(&mut http.access.tls),
            Target::Otlp(otlp) => Some(&mut otlp.access.tls),
            Target::File(_) | Target::Stdout(_) => None,
        }
    }

    fn access(&mut self) -> Option<&mut Access> {
        match self {
            Target::Http(http) => Some(&mut http.access),
            Target::Otlp(otlp) => Some(&mut otlp.access),
            Target::File(_) | Target::Syslog(_) | Target::Stdout(_) => None,
        }
    }

    /// Checks what can be said without making it.
    fn check(&self, sink: &str) -> Result<()> {
        match self {
            Target::File(file) => {
                ensure!(
                    file.path.is_absolute() && file.path.file_name().is_some(),
                    "sink {sink:?}: file.path must be an absolute path of a file"
                );
                ensure!(
                    file.rotate.as_u64() >= 4096,
                    "sink {sink:?}: file.rotate must be 4 KiB or more"
                );
                Ok(())
            }
            // These are checked when they are made.
            Target::Syslog(_) | Target::Http(_) | Target::Otlp(_) | Target::Stdout(_) => Ok(()),
        }
    }
}

impl SinkConfig {
    /// Puts what is in the files that it names in their place.
    ///
    /// # Errors
    /// When one cannot be read, is too large or is not text.
    pub fn read_files(&mut self) -> Result<()> {
        let name = &self.name;
        if let Some(tls) = self.target.tls() {
            for (file, text) in [
                (&mut tls.ca_file, &mut tls.ca),
                (&mut tls.cert_file, &mut tls.cert),
                (&mut tls.key_file, &mut tls.key),
            ] {
                embed(name, file, text)?;
            }
        }
        if let Some(access) = self.target.access() {
            embed(name, &mut access.token_file, &mut access.token)?;
            embed(name, &mut access.password_file, &mut access.password)?;
            for secret in [&mut access.token, &mut access.password]
                .into_iter()
                .flatten()
            {
                *secret = secret.trim().to_owned();
            }
        }
        Ok(())
    }

    /// Globs of sessions, where there are any.
    ///
    /// # Errors
    /// When one is not a glob.
    pub fn session_globs(&self) -> Result<Option<GlobSet>> {
        if self.sessions.is_empty() {
            return Ok(None);
        }
        let mut globs = GlobSetBuilder::new();
        for glob in &self.sessions {
            globs.add(Glob::new(glob).with_context(|| format!("sink {:?}: sessions", self.name))?);
        }
        Ok(Some(globs.build()?))
    }

    fn check(&self) -> Result<()> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        ensure!(
            !self.name.is_empty() && self.name.len() <= 64 && self.name.bytes().all(fits),
            "sink: {:?} cannot be a name; hint: up to 64 letters, digits, `-` and `_`",
            self.name
        );
        self.session_globs()?;
        self.target.check(&self.name)
    }
}

/// Checks the sinks of a configuration: each for itself, and that no two have one name.
///
/// # Errors
/// With what is wrong with the first that is.
pub fn check(sinks: &[SinkConfig]) -> Result<()> {
    ensure!(
        sinks.len() <= MOST,
        "there are {} sinks and the most is {MOST}",
        sinks.len()
    );
    for (index, sink) in sinks.iter().enumerate() {
        sink.check()?;
        if sinks
            .iter()
            .take(index)
            .any(|other| other.name == sink.name)
        {
            bail!(
                "two sinks are named {:?}; hint: the name keeps a sink's position, so it must be its own",
                sink.name
            );
        }
        super::make(sink)?;
    }
    Ok(())
}

fn embed(sink: &str, file: &mut Option<PathBuf>, text: &mut Option<String>) -> Result<()> {
    let Some(path) = file.take() else {
        return Ok(());
    };
    ensure!(
        text.is_none(),
        "sink {sink:?}: {} is named and its content is given too",
        path.display()
    );
    *text = Some(read(&path).with_context(|| format!("sink {sink:?}: read {}", path.display()))?);
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let length = std::fs::metadata(path)?.len();
    ensure!(
        length <= MOST_BYTES,
        "it has {length} bytes and the most is {MOST_BYTES}"
    );
    Ok(std::fs::read_to_string(path)?)
}

/// As a number: as text a size would be rounded.
fn exactly<S: serde::Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(size.as_u64())
}

fn without_secrets(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!(
            "{}{}",
            url.get(..scheme + 3).unwrap_or_default(),
            url.get(at + 1..).unwrap_or_default()
        ),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct File {
        sink: Vec<SinkConfig>,
    }

    fn parsed(text: &str) -> Result<Vec<SinkConfig>> {
        let file: File = toml::from_str(text)?;
        check(&file.sink)?;
        Ok(file.sink)
    }

    #[test]
    fn what_is_wrong_is_said_with_the_sinks_name() {
        for (text, said) in [
            (
                "[[sink]]\nname = \"a b\"\n[sink.stdout]\n",
                "cannot be a name",
            ),
            (
                "[[sink]]\nname = \"a\"\n",
                "sink \"a\" needs one of the tables",
            ),
            (
                "[[sink]]\nname = \"a\"\n[sink.stdout]\n[sink.file]\npath = \"/x\"\n",
                "needs one of",
            ),
            (
                "[[sink]]\nname = \"a\"\n[sink.stdout]\n[[sink]]\nname = \"a\"\n[sink.stdout]\n",
                "two sinks are named",
            ),
            (
                "[[sink]]\nname = \"a\"\n[sink.file]\npath = \"x\"\n",
                "absolute",
            ),
            (
                "[[sink]]\nname = \"a\"\nkinds = [\"opened\"]\n[sink.stdout]\n",
                "opened",
            ),
            (
                "[[sink]]\nname = \"a\"\nsessions = [\"[\"]\n[sink.stdout]\n",
                "sessions",
            ),
            (
                "[[sink]]\nname = \"a\"\n[sink.syslog]\naddress = \"siem:514\"\n",
                "tcp://HOST:PORT",
            ),
            (
                "[[sink]]\nname = \"a\"\n[sink.syslog]\naddress = \"udp://siem:514\"\nsd_id = \"agentwatch\"\n",
                "NAME@NUMBER",
            ),
            (
                "[[sink]]\nname = \"a\"\n[sink.syslog]\naddress = \"udp://siem:514\"\nsd_id = \"a] b@1\"\n",
                "NAME@NUMBER",
            ),
            (
                "[[sink]]\nname = \"a\"\n[sink.http]\nurl = \"siem\"\n",
                "url",
            ),
            (
                "[[sink]]\nname = \"a\"\n[sink.http]\nurl = \"http://x\"\nshape = \"elasticsearch\"\n",
                "index",
            ),
        ] {
            let error = format!("{:#}", parsed(text).expect_err(text));
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_sink_without_its_one_target_is_pointed_at() {
        let one = "[[sink]]\nname = \"a\"\n[sink.stdout]\n";
        for wrong in ["", "[sink.stdout]\n[sink.otlp]\nurl = \"http://x\"\n"] {
            let text = format!("{one}[[sink]]\nname = \"b\"\n{wrong}");
            let error = format!("{:#}", parsed(&text).expect_err(&text));
            assert!(error.contains("line 4, column 1"), "{error}");
            assert!(error.contains("sink \"b\" needs one of"), "{error}");
        }
    }

    #[test]
    fn every_target_is_handed_on() {
        for (table, target) in [
            ("file]\npath = \"/x/y\"", "file /x/y"),
            (
                "syslog]\naddress = \"udp://siem:514\"",
                "syslog udp://siem:514",
            ),
            ("http]\nurl = \"http://x:8088\"", "http http://x:8088"),
            ("otlp]\nurl = \"http://x:4318\"", "otlp http://x:4318"),
            ("stdout]", "stdout"),
        ] {
            let sink = parsed(&format!("[[sink]]\nname = \"a\"\n[sink.{table}\n")).expect(table);
            let handed = toml::to_string(&File { sink }).expect("TOML");
            let again = parsed(&handed).expect(&handed);
            assert_eq!(again[0].target.to_string(), target, "{handed}");
        }
    }

    #[test]
    fn files_are_handed_on_as_what_is_in_them() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let token = directory.path().join("token");
        std::fs::write(&token, "s3cret\n").expect("written");
        let text = format!(
            "[[sink]]\nname = \"a\"\nformat = \"ocsf\"\nverdicts = [\"denied\"]\n[sink.http]\nurl = \"http://127.0.0.1:8088\"\nshape = \"splunk\"\ntoken_file = {token:?}\n"
        );
        let mut sinks = parsed(&text).expect("sinks");
        sinks[0].read_files().expect("read");
        let handed = toml::to_string(&serde_json::json!({"sink": sinks})).expect("TOML");
        let again = parsed(&handed).expect("the same");
        let Target::Http(target) = &again[0].target else {
            panic!("{:?}", again[0].target);
        };
        assert_eq!(target.access.token.as_deref(), Some("s3cret"));
        assert_eq!(again[0].verdicts, [Verdict::Denied]);
        assert_eq!(again[0].target.to_string(), "http http://127.0.0.1:8088");
        let mut missing = parsed("[[sink]]\nname = \"a\"\n[sink.otlp]\nurl = \"http://x:4318\"\ntoken_file = \"/nowhere\"\n").expect("a sink");
        let error = format!("{:#}", missing[0].read_files().expect_err("missing"));
        assert!(error.contains("/nowhere"), "{error}");
    }
}
