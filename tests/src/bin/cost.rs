//! Measures what agentwatch costs; `cargo xtask bench` runs it in a VM whose clock counts instructions.

use std::{
    io::{Read, Write},
    path::PathBuf,
};

use agentwatch_tests::cost::{bench, measure, storm};
use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures what agentwatch costs.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure every action here and now.
    Measure {
        #[arg(long)]
        config: String,
        #[arg(long, default_value_t = 100)]
        effort: u64,
    },
    /// Measure executions alone; `measure` runs it.
    Executions {
        #[arg(long)]
        config: String,
        #[arg(long)]
        effort: u64,
    },
    /// Measure under every configuration.
    Bench {
        #[arg(long)]
        agentwatch: PathBuf,
        #[arg(long)]
        strace: Option<PathBuf>,
        #[arg(long)]
        landlocked: PathBuf,
        #[arg(long, default_value_t = 100)]
        effort: u64,
    },
    /// Flood sessions and check their accounts.
    Storm {
        #[arg(long)]
        agentwatch: PathBuf,
    },
    /// Open files many times; what a storm runs.
    Opens {
        #[arg(long)]
        files: u64,
        #[arg(long)]
        count: u64,
    },
    /// Execute a program many times; what a storm runs.
    Processes {
        #[arg(long)]
        count: u64,
    },
    /// Connect many times; what a storm runs.
    Connects {
        #[arg(long)]
        count: u64,
    },
    /// Do nothing; the short process of a storm.
    Nothing,
    /// Say a word and wait until standard input ends.
    Idle,
}

fn main() -> Result<()> {
    match Options::parse().command {
        Command::Measure { config, effort } => measure::all(&config, effort),
        Command::Executions { config, effort } => measure::executions(&config, effort),
        Command::Bench {
            agentwatch,
            strace,
            landlocked,
            effort,
        } => bench::all(&bench::Tools {
            agentwatch,
            strace,
            landlocked,
            effort,
        }),
        Command::Storm { agentwatch } => storm::all(&agentwatch),
        Command::Opens { files, count } => storm::opens(files, count),
        Command::Processes { count } => storm::processes(count),
        Command::Connects { count } => storm::connects(count),
        Command::Nothing => Ok(()),
        Command::Idle => {
            println!("idle");
            std::io::stdout().flush()?;
            std::io::stdin().read_to_end(&mut Vec::new())?;
            Ok(())
        }
    }
}
