//! The collector: the history store, and the process around it that takes events in and answers questions.
//!
//! It parses everything foreign, so it has no privileges and a sandbox: it must never need more than its two
//! directories and what its sinks name, connect to nothing else, and never acknowledge what is not on disk.

pub mod chain;
mod ingest;
mod limits;
mod query;
mod sandbox;
mod serve;
pub mod store;
mod writer;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};

pub use limits::Limits;

use crate::sinks::SinkConfig;

/// Where the collector lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// Holds the history; private to the collector's user.
    pub state_dir: PathBuf,
    /// The sockets are made below its `collector` directory.
    pub runtime_dir: PathBuf,
    /// How much of the history is kept.
    pub retention: store::Retention,
    /// Events of a segment.
    pub segment_events: usize,
    /// Where events are sent, with what the files hold that they name.
    pub sinks: Vec<SinkConfig>,
}

/// Runs the collector until SIGTERM or SIGINT, or until the future is dropped.
///
/// # Errors
/// When the directories or the sockets cannot be used, when another collector uses them, or when the history is of a
/// newer version.
pub async fn run(config: Config) -> Result<()> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run_until(config, Limits::default(), stopped).await
}

/// As [`run`], with limits of the caller's and until `stopped` is done.
///
/// # Errors
/// As [`run`].
pub async fn run_until(
    config: Config,
    limits: Limits,
    stopped: impl Future<Output = ()>,
) -> Result<()> {
    // A thread of its own, because Landlock restricts a thread and those that it starts, and the caller's runtime has
    // its threads already. Dropping `stop` ends the collector too.
    let (stop, stopping) = watch::channel(false);
    let (done, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("collector".to_owned())
        .spawn(move || {
            let result = serve::serve(&config, limits, stopping);
            // Nobody waits any more when the caller dropped the future; the result is then of no interest.
            let _ = done.send(result);
        })
        .context("start the collector's thread")?;
    tokio::pin!(ended);
    tokio::select! {
        result = &mut ended => return result.context("the collector's thread ended without a result")?,
        () = stopped => {}
    }
    stop.send_replace(true);
    ended
        .await
        .context("the collector's thread ended without a result")?
}
