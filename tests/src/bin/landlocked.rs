//! Runs a command under Landlock alone: what the benchmark compares agentwatch with. `landlocked --write DIR -- CMD…`
//! lets it read and execute everything and write below DIR.

use std::{os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use landlock::{
    ABI, Access, AccessFs, AccessNet, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};

/// Runs a command under Landlock.
#[derive(Parser)]
struct Options {
    /// Where writing is allowed.
    #[arg(long)]
    write: Vec<PathBuf>,
    /// TCP ports that may be connected to and bound.
    #[arg(long)]
    port: Vec<u16>,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let abi = ABI::V4;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .create()?
        .add_rule(PathBeneath::new(
            PathFd::new("/")?,
            AccessFs::from_read(abi),
        ))?;
    for dir in &options.write {
        rules = rules.add_rule(PathBeneath::new(PathFd::new(dir)?, AccessFs::from_all(abi)))?;
    }
    for port in &options.port {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::from_all(abi)))?;
    }
    let status = rules.restrict_self()?;
    ensure!(
        status.ruleset != RulesetStatus::NotEnforced,
        "this kernel has no Landlock"
    );
    let (program, arguments) = options.command.split_first().context("no command")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("run {program}"))
}
