//! `agentwatch verify` and `agentwatch export`: whether the history is what it was, here or at somebody else's.
//!
//! Both read the files themselves and believe no process, so `verify` needs no daemon.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;

use super::{ask::ask, output::escape};
use crate::{
    collector::store::{
        StoreError,
        verify::{self, Expected, Report},
    },
    wire::collector::Question,
};

/// Check that nothing of the history was removed, reordered or changed
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// An export, or the directory of a history; where absent, this host's
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Directory that the daemon keeps its state in
    #[arg(
        long,
        value_name = "DIR",
        env = "AGENTWATCH_STATE_DIR",
        default_value = "/var/lib/agentwatch"
    )]
    state_dir: PathBuf,
    /// Public key that must have signed it, as `--print-key` shows it
    #[arg(long, value_name = "HEX", value_parser = hash)]
    key: Option<[u8; 32]>,
    /// A head that was noted earlier (SEGMENT:LINK) and must still be in the chain
    #[arg(long, value_name = "HEAD", value_parser = head)]
    head: Option<(i64, [u8; 32])>,
    /// Print the public key of this host's history, and nothing else
    #[arg(long)]
    print_key: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    /// Exits 0 where all is as it was, 1 where it is not.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn run(self) -> Result<ExitCode> {
        let directory = self
            .directory
            .unwrap_or_else(|| verify::of_daemon(&self.state_dir));
        if self.print_key {
            let key = verify::public_key(&directory).with_context(|| {
                format!(
                    "there is no public key in {}\nhint: it is made at the collector's first start, and only root may enter the directory",
                    directory.display()
                )
            })?;
            println!("{}", hex::encode(key));
            return Ok(ExitCode::SUCCESS);
        }
        let expected = Expected {
            key: self.key,
            head: self.head,
        };
        let report =
            verify::verify(&directory, &expected).map_err(|error| unreadable(&directory, error))?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            show(&directory, &report, self.key.is_some());
        }
        Ok(if report.findings.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn show(directory: &Path, report: &Report, key_given: bool) {
    println!("history   {}", escape(&directory.to_string_lossy()));
    println!(
        "sealed    {} events in {} segments agree with the chain; {} segments were let go of by retention",
        report.events, report.segments, report.retired
    );
    if report.unsealed > 0 {
        println!("unsealed  {} events agree with the chain", report.unsealed);
    }
    if let Some(key) = &report.key {
        let from = if key_given {
            "as asked for"
        } else {
            "taken from the directory itself: compare it with the one that was noted"
        };
        println!("key       {key} ({from})");
    }
    if let Some(head) = &report.head {
        println!("head      {head}");
    }
    for finding in &report.findings {
        println!(
            "{:<9} {}",
            finding.what.to_uppercase(),
            escape(&finding.detail)
        );
    }
    println!(
        "{}",
        match report.findings.len() {
            0 => "verified: nothing was removed, reordered or changed".to_owned(),
            1 => "NOT VERIFIED: one finding".to_owned(),
            count => format!("NOT VERIFIED: {count} findings"),
        }
    );
}

/// Copy the history to a directory where it can be checked and read by itself
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// New directory
    #[arg(value_name = "DIR")]
    to: PathBuf,
    /// Directory that the daemon keeps its state in
    #[arg(
        long,
        value_name = "DIR",
        env = "AGENTWATCH_STATE_DIR",
        default_value = "/var/lib/agentwatch"
    )]
    state_dir: PathBuf,
    /// Leave out what is not sealed yet, instead of asking the collector to seal it
    #[arg(long)]
    sealed_only: bool,
}

impl ExportArgs {
    /// Has everything sealed, and copies.
    ///
    /// # Errors
    /// When the collector does not seal, or something cannot be copied.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        if !self.sealed_only {
            ask(runtime_dir, &Question::Seal, |_| Ok(()))
                .await
                .context(
                    "have the newest events sealed; hint: --sealed-only exports without them",
                )?;
        }
        let from = verify::of_daemon(&self.state_dir);
        let segments = verify::export(&from, &self.to).map_err(|error| unreadable(&from, error))?;
        eprintln!(
            "{segments} segments in {}; check them with: agentwatch verify {}",
            self.to.display(),
            self.to.display()
        );
        Ok(ExitCode::SUCCESS)
    }
}

fn unreadable(directory: &Path, error: StoreError) -> anyhow::Error {
    match error {
        StoreError::Question(text) => anyhow!(text),
        other => anyhow!(
            "read {}: {other}\nhint: the history is the collector's and root's; sudo agentwatch …",
            directory.display()
        ),
    }
}

fn hash(text: &str) -> Result<[u8; 32]> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text.trim(), &mut hash).context("64 hexadecimal digits are expected")?;
    Ok(hash)
}

fn head(text: &str) -> Result<(i64, [u8; 32])> {
    let Some((segment, link)) = text.split_once(':') else {
        bail!("SEGMENT:LINK is expected, as `agentwatch verify` shows it");
    };
    Ok((segment.parse()?, hash(link)?))
}
