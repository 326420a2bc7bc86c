//! `agentwatch status`: the daemon's state.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use super::control;
use crate::wire::control::{Request, Response};

/// Show the daemon's state
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl StatusArgs {
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let Response::Status { status } =
            control::ask(&control::connect(runtime_dir)?, &Request::Status)?
        else {
            anyhow::bail!("the daemon gave an answer to another question");
        };
        if self.json {
            println!(
                "{}",
                serde_json::to_string_pretty(&status).context("encode the status")?
            );
            return Ok(ExitCode::SUCCESS);
        }
        println!("daemon     {} (process {})", status.version, status.pid);
        println!("enforces   {}", status.backends.join(", "));
        println!("collector  {}", status.collector);
        println!("sessions   {}", status.sessions);
        println!(
            "events     {} delivered, {} folded, {} lost",
            status.events_delivered, status.events_folded, status.events_lost
        );
        println!(
            "waiting    {} in memory, {} on disk",
            status.queued, status.spooled
        );
        for (name, count) in status.kernel.iter().filter(|(_, count)| **count > 0) {
            println!("kernel     {name}: {count}");
        }
        Ok(ExitCode::SUCCESS)
    }
}
