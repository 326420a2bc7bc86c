//! `agentwatch release`: ends all sessions and takes everything out of the kernel.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;

use super::control;
use crate::{
    daemon::{self, Paths},
    kernel::pin::Pins,
    wire::control::Request,
};

/// How long the daemon may take to write down what it has.
const PATIENCE: Duration = Duration::from_secs(60);

/// End all sessions, take everything out of the kernel, and stop the daemon
///
/// Their processes go on, held by Landlock at the most. Works without a daemon, too: a killed one leaves its sessions in force.
#[derive(Args, Debug)]
pub struct ReleaseArgs {
    /// Directory that holds what outlives the daemon
    #[arg(
        long,
        value_name = "DIR",
        env = "AGENTWATCH_STATE_DIR",
        default_value = "/var/lib/agentwatch"
    )]
    state_dir: PathBuf,
}

impl ReleaseArgs {
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let runtime = std::path::absolute(runtime_dir)?;
        if control::connect(&runtime).is_err() {
            if !nix::unistd::geteuid().is_root() {
                bail!("only root may end the sessions of all users; hint: sudo agentwatch release");
            }
            if !Pins::exist(&runtime) {
                eprintln!(
                    "agentwatch: nothing of {} is in the kernel",
                    runtime.display()
                );
                return Ok(ExitCode::SUCCESS);
            }
            let ended = daemon::release(&Paths {
                state: std::path::absolute(&self.state_dir)?,
                runtime,
            })?;
            eprintln!("agentwatch: {ended} sessions ended");
            return Ok(ExitCode::SUCCESS);
        }
        control::end(&runtime, |now| Request::Release { now })?;
        let since = Instant::now();
        while Pins::exist(&runtime) {
            if since.elapsed() > PATIENCE {
                bail!("the daemon ended the sessions and does not stop; hint: see its log");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(ExitCode::SUCCESS)
    }
}
