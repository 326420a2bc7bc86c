//! Starts what serves the metrics, as the collector's user, and starts it again when it ends: `agentwatch metrics` is a client of
//! daemon and collector like any other, so the privileged process serves no HTTP.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::cli::metrics::Listen;

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
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
        let mut delay = FIRST_DELAY;
        while !*stopped.borrow() {
            let started = Instant::now();
            match self.spawn() {
                Ok(mut child) => {
                    tracing::info!(pid = child.id(), listen = %self.listen, "metrics are served");
                    tokio::select! {
                        status = child.wait() => tracing::warn!(?status, "what serves the metrics ended"),
                        _ = stopped.changed() => return end(&mut child).await,
                    }
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "metrics are not served");
                }
            }
            if started.elapsed() > LONGEST_DELAY {
                delay = FIRST_DELAY;
            }
            tokio::select! {
                () = sleep(delay) => {}
                _ = stopped.changed() => {}
            }
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }

    fn spawn(&self) -> Result<Child> {
        let program = std::env::current_exe().context("find our own executable")?;
        let mut command = Command::new(&program);
        command
            .args(["metrics", "--listen", &self.listen.to_string()])
            .arg("--runtime-dir")
            .arg(&self.runtime)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        if self.uid != 0 {
            command.uid(self.uid).gid(self.gid);
        }
        // SAFETY: a single system call, which is safe between fork and exec. Without a daemon there is nothing to serve.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(std::io::Error::from)
            });
        }
        command
            .spawn()
            .with_context(|| format!("start {} metrics", program.display()))
    }
}

async fn end(child: &mut Child) {
    if let Some(pid) = child.id() {
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
    }
    if timeout(LAST, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
