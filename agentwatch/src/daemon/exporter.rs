//! Starts what serves the metrics, as the collector's user, and starts it again when it ends: `agentwatch metrics` is a client of
//! daemon and collector like any other, so the privileged process serves no HTTP.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::{process::Child, sync::watch};

use super::child::{self, End, Pauses};
use crate::cli::metrics::Listen;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Time to end in order.
const LAST: Duration = Duration::from_secs(5);

pub struct Exporter {
    pub listen: Listen,
    pub runtime: PathBuf,
    /// Who it is: the collector's user.
    pub uid: u32,
    pub gid: u32,
}

impl Exporter {
    /// Keeps it running until told to stop, then ends it.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        while !*stopped.borrow() {
            pauses.start();
            match self.spawn() {
                Ok(mut child) => {
                    tracing::info!(pid = child.id(), listen = %self.listen, "metrics are served");
                    match child::attend(&mut child, &mut stopped, LAST).await {
                        End::Itself(status) => {
                            tracing::warn!(?status, "what serves the metrics ended");
                        }
                        End::Told | End::Killed => return,
                    }
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "metrics are not served");
                }
            }
            pauses.wait(&mut stopped).await;
        }
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = child::command(self.uid, self.gid)?;
        command
            .args(["metrics", "--listen", &self.listen.to_string()])
            .arg("--runtime-dir")
            .arg(&self.runtime)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        // SAFETY: a single system call, which is safe between fork and exec. Without a daemon there is nothing to serve.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(std::io::Error::from)
            });
        }
        command.spawn().context("start agentwatch metrics")
    }
}
