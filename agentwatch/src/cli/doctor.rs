//! `agentwatch doctor`: what this kernel can enforce, and what to change.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;

use crate::kernel::{
    Kernel,
    probe::{Check, State},
};

/// Show what this kernel can enforce
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl DoctorArgs {
    /// Loads the programs for a moment, as the daemon would, and lets them go.
    pub async fn run(self) -> Result<ExitCode> {
        if !nix::unistd::geteuid().is_root() {
            anyhow::bail!(
                "doctor loads programs into the kernel to see whether it takes them: it must be root; hint: sudo agentwatch doctor"
            );
        }
        let (backends, checks, verified) = match Kernel::load(None, None) {
            Ok((kernel, _)) => (kernel.backends(), kernel.checks.clone(), kernel.verified()),
            Err(error) => {
                let check = Check::new("programs", State::Absent, format!("{error:#}"));
                (Vec::new(), vec![check], std::collections::BTreeMap::new())
            }
        };
        if self.json {
            let report = json!({
                "kernel": release(),
                "backends": backends,
                "checks": checks,
                "verified_instructions": verified,
            });
            println!(
                "{}",
                serde_json::to_string_pretty(&report).context("encode the report")?
            );
        } else {
            println!("kernel    {}", release());
            println!(
                "enforces  {}",
                if backends.is_empty() {
                    "nothing".to_owned()
                } else {
                    backends.join(", ")
                }
            );
            for check in &checks {
                let state = match check.state {
                    State::Active => "active",
                    State::Disabled => "not enabled",
                    State::Absent => "absent",
                };
                println!("{:<9} {state}: {}", check.name, check.detail);
                if !check.hint.is_empty() {
                    println!("          hint: {}", check.hint);
                }
            }
        }
        Ok(if backends.is_empty() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| String::new(), |text| text.trim().to_owned())
}
