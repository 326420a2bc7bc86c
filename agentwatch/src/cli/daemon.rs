//! `agentwatch daemon`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Args;

use crate::daemon::{Paths, config::Config};

/// Load the programs and hold sessions
#[derive(Args, Debug)]
pub struct DaemonArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory that holds what outlives the daemon
    #[arg(
        long,
        value_name = "DIR",
        env = "AGENTWATCH_STATE_DIR",
        default_value = "/var/lib/agentwatch"
    )]
    state_dir: PathBuf,
}

impl DaemonArgs {
    /// Runs until SIGTERM or SIGINT.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let config = Config::load(self.config.as_deref())?;
        let paths = Paths {
            state: std::path::absolute(&self.state_dir)?,
            runtime: std::path::absolute(runtime_dir)?,
        };
        crate::daemon::run(config, paths).await?;
        Ok(ExitCode::SUCCESS)
    }
}
