//! `agentwatch collector`: runs the history store. The daemon starts it by itself.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Args;

use crate::collector;

/// Run the history store (the daemon starts it by itself)
#[derive(Args, Debug)]
pub struct CollectorArgs {
    /// Directory that holds the history
    #[arg(
        long,
        value_name = "DIR",
        env = "AGENTWATCH_STATE_DIR",
        default_value = "/var/lib/agentwatch"
    )]
    pub state_dir: PathBuf,
}

impl CollectorArgs {
    /// Runs until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When the collector cannot run.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let config = collector::Config {
            state_dir: self.state_dir,
            runtime_dir: runtime_dir.to_owned(),
        };
        collector::run(config).await?;
        Ok(ExitCode::SUCCESS)
    }
}
