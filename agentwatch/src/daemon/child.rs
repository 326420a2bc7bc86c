//! Programs of ours that run beside the daemon under another user: how they are started, started again after a pause that grows
//! while they do not last, and ended in order.

use std::{process::ExitStatus, time::Duration};

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

/// A command of our own executable, as a user; root needs no change.
///
/// # Errors
/// When the executable cannot be found.
pub fn command(uid: u32, gid: u32) -> Result<Command> {
    let program = std::env::current_exe().context("find our own executable")?;
    let mut command = Command::new(program);
    if uid != 0 {
        command.uid(uid).gid(gid);
    }
    Ok(command)
}

/// The pauses between starts: twice as long each time, and short again after one that lasted longer than the longest.
pub struct Pauses {
    first: Duration,
    longest: Duration,
    next: Duration,
    started: Instant,
}

impl Pauses {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
            started: Instant::now(),
        }
    }

    /// Says that it is started now.
    pub fn start(&mut self) {
        self.started = Instant::now();
    }

    /// Waits before the next start, unless told to stop.
    pub async fn wait(&mut self, stopped: &mut watch::Receiver<bool>) {
        if self.started.elapsed() > self.longest {
            self.next = self.first;
        }
        tokio::select! {
            () = sleep(self.next) => {}
            _ = stopped.changed() => {}
        }
        self.next = (self.next * 2).min(self.longest);
    }
}

/// How a child ended.
#[derive(Debug)]
pub enum End {
    /// Nobody told it to.
    Itself(std::io::Result<ExitStatus>),
    /// As it was told.
    Told,
    /// It was told and did not end in time.
    Killed,
}

/// Waits until it ends; when told to stop, ends it, with `time` for what it has in hand.
pub async fn attend(child: &mut Child, stopped: &mut watch::Receiver<bool>, time: Duration) -> End {
    tokio::select! {
        status = child.wait() => return End::Itself(status),
        _ = stopped.changed() => {}
    }
    // Without a number it has ended.
    let Some(pid) = child.id() else {
        return End::Told;
    };
    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
    if timeout(time, child.wait()).await.is_ok() {
        return End::Told;
    }
    let _ = child.kill().await;
    End::Killed
}
