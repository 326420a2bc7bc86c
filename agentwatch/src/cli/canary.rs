//! `agentwatch canary`: what the daemon starts to prove that its programs refuse.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Args;

use crate::session::canary;

/// Try what a session may not do (the daemon starts it by itself)
#[derive(Args, Debug)]
#[command(hide = true)]
pub struct CanaryArgs {
    /// Directory with what is tried on
    directory: PathBuf,
    /// Also try what LSM programs refuse
    #[arg(long)]
    all: bool,
}

impl CanaryArgs {
    pub fn run(self) -> Result<ExitCode> {
        canary::sing(&self.directory, self.all)?;
        Ok(ExitCode::SUCCESS)
    }
}
