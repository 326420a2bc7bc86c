//! Starts the collector, as a user of its own, and starts it again when it ends.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, Uid, User},
};
use serde::Serialize;
use tokio::{io::AsyncWriteExt as _, process::Child, sync::watch, time::sleep};

use super::{
    Paths,
    child::{self, End, Pauses},
    config::Config,
};
use crate::{sinks::SinkConfig, wire::collector::INGEST_SOCKET};

/// User that the collector runs as where the host has made one for it.
const USER: &str = "agentwatch";
/// And where it has not: a number that Debian assigns to nobody (policy 9.2.2).
const UNASSIGNED: u32 = 61_111;
/// File that says which collector a daemon has started.
const PID: &str = "collector.pid";
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Time for what it has in hand.
const LAST: Duration = Duration::from_secs(10);

/// What of the configuration the collector is told.
#[derive(Serialize)]
struct Handed<'a> {
    sink: &'a [SinkConfig],
}

pub struct Collector {
    start: bool,
    state: PathBuf,
    runtime: PathBuf,
    uid: u32,
    gid: u32,
    keep_days: u64,
    keep_bytes: u64,
    sinks: Vec<SinkConfig>,
}

impl Collector {
    /// Makes its directories and gives them to its user.
    pub fn new(config: &Config, paths: &Paths) -> Result<Self> {
        let named = config.collector.user.as_deref();
        let user =
            User::from_name(named.unwrap_or(USER)).context("look the collector's user up")?;
        let (mut uid, mut gid) = match (user, named) {
            (Some(user), _) => (user.uid.as_raw(), user.gid.as_raw()),
            (None, Some(name)) => anyhow::bail!(
                "there is no user {name} for the collector; hint: adduser --system {name}"
            ),
            (None, None) => (UNASSIGNED, UNASSIGNED),
        };
        for dir in [&paths.state, &paths.runtime] {
            if let Some(closed) = closed_to_others(dir) {
                tracing::warn!(
                    directory = %closed.display(),
                    "only its owner may enter it: the collector runs as root, sandboxed; hint: chmod o+x"
                );
                (uid, gid) = (0, 0);
            }
        }
        let collector = Self {
            start: config.collector.start,
            state: paths.state.join("collector"),
            runtime: paths.runtime.clone(),
            uid,
            gid,
            keep_days: config.collector.keep_days,
            keep_bytes: config.collector.keep_bytes,
            sinks: config.sink.clone(),
        };
        for (dir, mode) in [
            (collector.state.clone(), 0o700),
            (paths.runtime.join("collector"), 0o755),
        ] {
            fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode))
                .with_context(|| format!("set the mode of {}", dir.display()))?;
            give(&dir, uid, gid)?;
        }
        Ok(collector)
    }

    /// User and group that it runs as.
    pub fn user(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Keeps it running until told to stop, then ends it.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        while !*stopped.borrow() {
            let there =
                tokio::net::UnixStream::connect(self.runtime.join("collector").join(INGEST_SOCKET))
                    .await
                    .is_ok();
            if there || !self.start {
                tokio::select! {
                    () = sleep(LONGEST_PAUSE) => {}
                    _ = stopped.changed() => self.end_inherited().await,
                }
                continue;
            }
            pauses.start();
            match self.spawn().await {
                Ok(mut child) => {
                    tracing::info!(pid = child.id(), uid = self.uid, "collector started");
                    if let Some(pid) = child.id() {
                        let _ = fs::write(self.runtime.join(PID), pid.to_string());
                    }
                    match child::attend(&mut child, &mut stopped, LAST).await {
                        End::Itself(status) => {
                            tracing::warn!(status = ?status, "the collector ended; events wait on disk until it is back");
                        }
                        End::Told => return,
                        End::Killed => {
                            tracing::warn!("the collector did not stop: killed");
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the collector does not start")
                }
            }
            pauses.wait(&mut stopped).await;
        }
    }

    /// Ends the collector that a daemon before this one had started; one that somebody else started goes on.
    async fn end_inherited(&self) {
        let socket = self.runtime.join("collector").join(INGEST_SOCKET);
        let Ok(stream) = tokio::net::UnixStream::connect(socket).await else {
            return;
        };
        let started = fs::read_to_string(self.runtime.join(PID))
            .ok()
            .and_then(|text| text.parse::<i32>().ok());
        let answers = stream.peer_cred().ok().and_then(|peer| peer.pid());
        if let Some(pid) = answers
            && started == Some(pid)
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    async fn spawn(&self) -> Result<Child> {
        let mut command = child::command(self.uid, self.gid)?;
        command
            .arg("collector")
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--runtime-dir")
            .arg(&self.runtime)
            .arg(format!("--keep-days={}", self.keep_days))
            .arg(format!("--keep-bytes={}", self.keep_bytes))
            .args(["--config", "-"])
            .stdin(Stdio::piped());
        // What the service manager keeps of ours, it keeps of a sink there.
        command.stdout(if self.sinks.iter().any(|sink| sink.target.is_stdout()) {
            Stdio::inherit()
        } else {
            Stdio::null()
        });
        let mut child = command.spawn().context("start agentwatch collector")?;
        // Over a pipe: there are secrets in it, which no other process is to see in our arguments or in a file.
        let handed = toml::to_string(&Handed { sink: &self.sinks }).context("hand the sinks on")?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends at once says why itself.
            let _ = stdin.write_all(handed.as_bytes()).await;
        }
        Ok(child)
    }
}

/// The first directory on the way that other users may not enter.
fn closed_to_others(dir: &Path) -> Option<PathBuf> {
    dir.ancestors()
        .find(|dir| fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o001 == 0))
        .map(Path::to_owned)
}

/// Hands a directory and the files in it over; a host may have changed the collector's user.
fn give(dir: &Path, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let own = |path: &Path| {
        chown(path, Some(uid.as_raw()), Some(gid.as_raw()))
            .with_context(|| format!("give {} to the collector", path.display()))
    };
    own(dir)?;
    for entry in fs::read_dir(dir)
        .with_context(|| format!("list {}", dir.display()))?
        .flatten()
    {
        // Never through a link: the directory was another user's.
        match entry.file_type() {
            Ok(kind) if kind.is_file() => own(&entry.path())?,
            // The segments; the collector makes no deeper directories.
            Ok(kind) if kind.is_dir() => give(&entry.path(), uid.as_raw(), gid.as_raw())?,
            _ => {}
        }
    }
    Ok(())
}
