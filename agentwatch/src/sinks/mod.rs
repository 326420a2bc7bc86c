//! Where events go: a SIEM's collector, a file, standard output.
//!
//! A sink is fed from the history, in the order in which events were stored, from a position that is kept on disk and moves only when
//! the receiver has them; so it may be away for hours, and no queue grows for it. What is sent may come twice after a failure
//! (events have ids), and what could not be sent is declared, to the receiver itself, in a `loss` event.

pub mod config;
mod drive;
mod file;
mod http;
mod otlp;
mod position;
mod stdout;
mod syslog;
mod tls;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use config::{SinkConfig, Target};
pub(crate) use drive::start;

use crate::event::Event;

/// Delivers batches to one place.
pub(crate) trait Sink: Send {
    /// Delivers events, in their order, and returns when the receiver has them, as far as its protocol can say so, with the number
    /// of those that it will never take and does not name. After an error any part of them may have arrived.
    fn deliver(&mut self, events: &[Event]) -> impl Future<Output = Result<u64, Failure>> + Send;

    /// How many events a delivery has at the most.
    fn most_events(&self) -> usize {
        1000
    }

    /// For how long the receiver must go on being there until what it took is taken as delivered; zero where it acknowledges.
    fn settling(&self) -> Duration {
        Duration::ZERO
    }

    /// Looks whether the receiver is still there, while there is nothing to deliver.
    fn check(&mut self) -> impl Future<Output = Result<(), Failure>> + Send {
        async { Ok(()) }
    }
}

/// Why events were not delivered.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The receiver is away, slow, or does not let us in: it is tried again, not sooner than it asked for.
    Again {
        error: anyhow::Error,
        after: Option<Duration>,
    },
    /// It will never take this; a smaller part of it, perhaps.
    Refused(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Again { error, after: None }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

/// A sink's state, for `status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SinkStatus {
    pub name: String,
    /// What kind, and where: `syslog tls://siem:6514`.
    pub target: String,
    /// `starting`, `delivering`, `idle` (the receiver has everything), `retrying`.
    pub state: String,
    /// Events that the receiver has, since the sink was first configured.
    pub delivered: u64,
    /// Events that the receiver refused for good, and those that were gone from the history before they could be sent.
    pub refused: u64,
    pub lost: u64,
    /// Number of the last event that needs not be sent again, and how many have been stored since, whether it wants them or not.
    pub position: i64,
    pub behind: u64,
    /// When a delivery last succeeded.
    pub last: Option<Timestamp>,
    /// Why it is being retried, since when, and how often that was.
    pub error: Option<String>,
    pub failing_since: Option<Timestamp>,
    pub retries: u64,
}

/// What the collector's sandbox must let through for sinks.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    /// TCP ports that are connected to.
    pub(crate) ports: Vec<u16>,
    /// Whether names are looked up.
    pub(crate) names: bool,
    /// Directories that are written to.
    pub(crate) directories: Vec<PathBuf>,
}

/// Any of the sinks.
pub(crate) enum Any {
    File(file::File),
    Syslog(Box<syslog::Syslog>),
    Http(Box<http::Http>),
    Otlp(Box<otlp::Otlp>),
    Stdout(stdout::Stdout),
}

/// Makes a sink from its configuration: checks it, reads certificates, and connects to nothing.
pub(crate) fn make(config: &SinkConfig) -> Result<Any> {
    use anyhow::Context as _;
    let made = || -> Result<Any> {
        let format = config.format;
        Ok(match &config.target {
            Target::File(target) => Any::File(file::File::new(target, format)),
            Target::Syslog(target) => Any::Syslog(Box::new(syslog::Syslog::new(target, format)?)),
            Target::Http(target) => Any::Http(Box::new(http::Http::new(target, format)?)),
            Target::Otlp(target) => Any::Otlp(Box::new(otlp::Otlp::new(target, format)?)),
            Target::Stdout(config::StdoutTarget {}) => Any::Stdout(stdout::Stdout::new(format)),
        })
    };
    made().with_context(|| format!("sink {:?}", config.name))
}

macro_rules! each {
    ($any:expr, $sink:ident => $call:expr) => {
        match $any {
            Any::File($sink) => $call,
            Any::Syslog($sink) => $call,
            Any::Http($sink) => $call,
            Any::Otlp($sink) => $call,
            Any::Stdout($sink) => $call,
        }
    };
}

impl Any {
    /// What it needs from the sandbox.
    pub(crate) fn needs(&self, needs: &mut Needs) {
        match self {
            Any::File(file) => needs.directories.push(file.directory()),
            Any::Syslog(syslog) => syslog.needs(needs),
            Any::Http(http) => http.needs(needs),
            Any::Otlp(otlp) => otlp.needs(needs),
            Any::Stdout(_) => {}
        }
    }
}

impl Sink for Any {
    async fn deliver(&mut self, events: &[Event]) -> Result<u64, Failure> {
        each!(self, sink => sink.deliver(events).await)
    }

    fn most_events(&self) -> usize {
        each!(self, sink => sink.most_events())
    }

    fn settling(&self) -> Duration {
        each!(self, sink => sink.settling())
    }

    async fn check(&mut self) -> Result<(), Failure> {
        each!(self, sink => sink.check().await)
    }
}
