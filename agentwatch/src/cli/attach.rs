//! `agentwatch attach` and `agentwatch detach`: sessions of cgroups that are there already.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Args;

use super::{control, output::escape};
use crate::wire::control::{Request, Response};

/// Hold an existing cgroup under a policy
#[derive(Args, Debug)]
pub struct AttachArgs {
    /// Path of the cgroup, absolute or below the mount of cgroup2
    #[arg(long, value_name = "PATH")]
    cgroup: PathBuf,
    /// Policy file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Name of the session
    #[arg(long)]
    name: Option<String>,
    /// Start although this kernel cannot enforce all of the policy
    #[arg(long)]
    accept_degraded: bool,
}

impl AttachArgs {
    /// Prints the session's id.
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let request = Request::Attach {
            cgroup: self.cgroup,
            policy: control::policy_text(Some(&self.policy))?,
            name: self.name,
            accept_degraded: self.accept_degraded,
        };
        if let Response::Ready {
            session, warnings, ..
        } = control::ask(&control::connect(runtime_dir)?, &request)?
        {
            for warning in warnings {
                eprintln!("agentwatch: {}", escape(&warning));
            }
            println!("{session}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// End a session; its processes go on, unwatched
#[derive(Args, Debug)]
pub struct DetachArgs {
    /// Id, a unique beginning of one, or name
    session: String,
}

impl DetachArgs {
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        control::end(runtime_dir, |now| Request::Detach {
            session: self.session.clone(),
            now,
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
