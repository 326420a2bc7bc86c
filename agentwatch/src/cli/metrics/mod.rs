//! `agentwatch metrics`: figures for Prometheus, once or over HTTP.
//!
//! It asks the daemon and the collector as `agentwatch status` does, each time anew, so that neither serves HTTP and figures are
//! never older than the question. The daemon starts it as the collector's user where `[metrics]` is configured.

mod figures;
mod serve;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Args;
use prometheus_client::{encoding::text, registry::Registry};
use tokio::net::UnixStream;

pub use serve::Listen;

use super::control;
use crate::wire::{
    Connection,
    collector::{Answer, QUERY_SOCKET, Question, StoreStatus},
    control::{Request, Response, Status},
};
use figures::{Figures, resident};

/// Print figures in the OpenMetrics text format
#[derive(Args, Debug)]
pub struct MetricsArgs {
    /// Serve them over HTTP at /metrics: a loopback address with its port, or unix:PATH
    #[arg(long, value_name = "ADDRESS", conflicts_with = "output")]
    listen: Option<Listen>,
    /// Write them to a file, for the textfile collector of node_exporter; the file is exchanged as a whole
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl MetricsArgs {
    /// Asks and prints, or serves until SIGTERM.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the file not be written. That nobody answers is a figure.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        if let Some(listen) = self.listen {
            serve::serve(&listen, runtime_dir).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let text = text(runtime_dir).await?;
        match self.output {
            Some(path) => {
                exchange(&path, &text).with_context(|| format!("write {}", path.display()))?
            }
            None => print!("{text}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Readers see the file of before or the new one, and never a part.
fn exchange(path: &Path, text: &str) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// All figures, as they are now.
async fn text(runtime_dir: &Path) -> Result<String> {
    let directory = runtime_dir.to_owned();
    let daemon = tokio::task::spawn_blocking(move || daemon(&directory).ok())
        .await
        .context("ask the daemon")?;
    let (history, collector) = match collector(runtime_dir).await {
        Ok((history, pid)) => (Some(history), pid),
        Err(_) => (None, None),
    };
    let memory = [
        ("daemon", daemon.as_ref().map(|status| status.pid)),
        ("collector", collector),
    ];
    let memory = memory
        .into_iter()
        .filter_map(|(process, pid)| Some((process, resident(pid?)?)))
        .collect();
    let mut registry = Registry::with_prefix("agentwatch");
    registry.register_collector(Box::new(Figures {
        daemon,
        history,
        memory,
    }));
    let mut text = String::new();
    text::encode(&mut text, &registry).context("encode the figures")?;
    Ok(text)
}

fn daemon(runtime_dir: &Path) -> Result<Status> {
    let stream = control::connect(runtime_dir)?;
    stream.set_read_timeout(Some(serve::PATIENCE))?;
    match control::ask(&stream, &Request::Status)? {
        Response::Status { status } => Ok(*status),
        other => Err(control::other_answer(&Request::Status, &other)),
    }
}

/// What the collector says of itself, and its process id.
async fn collector(runtime_dir: &Path) -> Result<(StoreStatus, Option<u32>)> {
    let path = runtime_dir.join("collector").join(QUERY_SOCKET);
    let asked = async {
        let mut connection = Connection::new(UnixStream::connect(&path).await?);
        let pid = connection.peer()?.pid();
        connection.send(&Question::Status).await?;
        match connection.receive_answer().await? {
            Some(Answer::Status { status }) => Ok((status, pid.map(i32::cast_unsigned))),
            _ => anyhow::bail!("the collector gave an answer to another question"),
        }
    };
    tokio::time::timeout(serve::PATIENCE, asked)
        .await
        .context("the collector does not answer")?
}
