//! Events in the words of others: what a SIEM takes without being taught.
//!
//! Pure: an event in, JSON out. What a format has no field for goes where it has room for such, so that nothing is left out.

mod ecs;
mod ocsf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Event;

pub use ecs::VERSION as ECS_VERSION;
pub use ocsf::VERSION as OCSF_VERSION;

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Our own: docs/events.md.
    #[default]
    Native,
    /// Open Cybersecurity Schema Framework.
    Ocsf,
    /// Elastic Common Schema.
    Ecs,
}

impl Format {
    /// One event.
    #[must_use]
    pub fn value(self, event: &Event) -> Value {
        match self {
            Format::Native => plain(event),
            Format::Ocsf => ocsf::value(event),
            Format::Ecs => ecs::value(event),
        }
    }

    /// One event as JSON on one line, without its end.
    #[must_use]
    pub fn line(self, event: &Event) -> Vec<u8> {
        let line = match self {
            Format::Native => serde_json::to_vec(event),
            other => serde_json::to_vec(&other.value(event)),
        };
        line.expect("plain types always serialise")
    }

    /// JSON Lines.
    #[must_use]
    pub fn lines(self, events: &[Event]) -> Vec<u8> {
        let mut lines = Vec::with_capacity(events.len() * 1024);
        for event in events {
            lines.extend(self.line(event));
            lines.push(b'\n');
        }
        lines
    }

    /// Name in an event's type: `native`, `ocsf`, `ecs`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Format::Native => "native",
            Format::Ocsf => "ocsf",
            Format::Ecs => "ecs",
        }
    }
}

fn plain<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("plain types always serialise")
}

/// An object of what there is: fields without a value are left out.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.into_iter();
    Value::Object(
        fields
            .filter(|(_, value)| !is_nothing(value))
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<Map<_, _>>(),
    )
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// The name of an error number, `EACCES`.
fn errno(event: &Event) -> Option<String> {
    event
        .errno
        .map(|errno| format!("{:?}", nix::errno::Errno::from_raw(errno)))
}

/// The last part of a path, which for `/` is itself.
fn name(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit('/').next() {
        Some("") | None => path,
        Some(name) => name,
    }
}

/// The directory of a path; empty where it has none.
fn directory(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) => "/",
        Some(at) => path.get(..at).unwrap_or_default(),
        None => "",
    }
}

/// A command line as one text, quoted where a shell would need it.
fn command_line(argv: &[String]) -> String {
    shlex::try_join(argv.iter().map(String::as_str)).unwrap_or_else(|_| argv.join(" "))
}

/// What names a process for good.
fn process_id(event: &Event, pid: u32, start_ns: u64) -> String {
    format!("{}:{pid}:{start_ns}", event.boot_id)
}

#[cfg(test)]
mod tests;
