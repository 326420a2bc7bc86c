//! Temporary wiring of the collector and what reads it.

use std::{path::PathBuf, process::ExitCode};

use agentwatch::cli;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[arg(
        long,
        global = true,
        env = "AGENTWATCH_RUNTIME_DIR",
        default_value = "/run/agentwatch"
    )]
    runtime_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Collector(cli::collector::CollectorArgs),
    Events(cli::events::EventsArgs),
    Timeline(cli::timeline::TimelineArgs),
    Sessions(cli::sessions::SessionsArgs),
    Query(cli::query::QueryArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let Arguments {
        runtime_dir,
        command,
    } = Arguments::parse();
    let result = match command {
        Command::Collector(args) => args.run(&runtime_dir).await,
        Command::Events(args) => args.run(&runtime_dir).await,
        Command::Timeline(args) => args.run(&runtime_dir).await,
        Command::Sessions(args) => args.run(&runtime_dir).await,
        Command::Query(args) => args.run(&runtime_dir).await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("agentwatch: {error:#}");
        ExitCode::FAILURE
    })
}
