//! `agentwatch reload`: another policy, or another mode, for a session that runs.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Args;

use super::{control, output::escape, run::ModeArg};
use crate::wire::control::{Request, Response};

/// Put another policy or mode in force for a session that runs
///
/// The exchange is atomic: every action is judged by the old policy or by the new one, whole.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("what").args(["policy", "mode"]).required(true).multiple(true)))]
pub struct ReloadArgs {
    /// Id, a unique beginning of one, or name
    session: String,
    /// Policy file; `-` is standard input. Without one, the policy stays and only the mode changes
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Enforce, or only record; without it, what the new policy says
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Put the policy in force although this kernel cannot enforce all of it
    #[arg(long)]
    accept_degraded: bool,
}

impl ReloadArgs {
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let policy = self
            .policy
            .as_deref()
            .map(|file| control::policy_text(Some(file)))
            .transpose()?;
        let request = Request::Reload {
            session: self.session,
            policy,
            mode: self.mode.map(ModeArg::mode),
            accept_degraded: self.accept_degraded,
        };
        if let Response::Ready { warnings, .. } =
            control::ask(&control::connect(runtime_dir)?, &request)?
        {
            for warning in warnings {
                eprintln!("agentwatch: {}", escape(&warning));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
