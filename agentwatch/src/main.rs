//! The `agentwatch` command: parses, dispatches, and turns errors into exit codes.

use std::{path::PathBuf, process::ExitCode};

use agentwatch::{allocator, cli};
use anyhow::Result;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Holds AI coding agents inside the scope of their task, in the kernel, and turns what they did into evidence
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// Directory of the sockets: says which daemon is meant
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "AGENTWATCH_RUNTIME_DIR",
        default_value = "/run/agentwatch"
    )]
    runtime_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Daemon(cli::daemon::DaemonArgs),
    Run(cli::run::RunArgs),
    Attach(cli::attach::AttachArgs),
    Detach(cli::attach::DetachArgs),
    Reload(cli::reload::ReloadArgs),
    Release(cli::release::ReleaseArgs),
    Sessions(cli::sessions::SessionsArgs),
    Approvals(cli::approvals::ApprovalsArgs),
    Approve(cli::approvals::ApproveArgs),
    Reject(cli::approvals::RejectArgs),
    Grants(cli::approvals::GrantsArgs),
    Revoke(cli::approvals::RevokeArgs),
    Events(cli::events::EventsArgs),
    Timeline(cli::timeline::TimelineArgs),
    Report(cli::report::ReportArgs),
    Query(cli::query::QueryArgs),
    Verify(cli::verify::VerifyArgs),
    Export(cli::verify::ExportArgs),
    /// Check, explain and describe policies
    #[command(subcommand)]
    Policy(cli::policy::PolicyCommand),
    Doctor(cli::doctor::DoctorArgs),
    Status(cli::status::StatusArgs),
    Metrics(cli::metrics::MetricsArgs),
    Why(cli::why::WhyArgs),
    Collector(cli::collector::CollectorArgs),
    Canary(cli::canary::CanaryArgs),
    Webhook(cli::webhook::WebhookArgs),
}

fn main() -> ExitCode {
    let Arguments {
        runtime_dir,
        command,
    } = Arguments::parse();
    let dir = &runtime_dir;
    let result = match command {
        // Forks: no thread may exist.
        Command::Run(args) => return args.run(dir),
        Command::Attach(args) => args.run(dir),
        Command::Detach(args) => args.run(dir),
        Command::Reload(args) => args.run(dir),
        Command::Release(args) => args.run(dir),
        Command::Approvals(args) => args.run(dir),
        Command::Approve(args) => args.run(dir),
        Command::Reject(args) => args.run(dir),
        Command::Grants(args) => args.run(dir),
        Command::Revoke(args) => args.run(dir),
        Command::Why(args) => args.run(dir),
        Command::Policy(command) => command.run(dir),
        Command::Verify(args) => args.run(),
        Command::Canary(args) => args.run(),
        // What the allocator is told, it is told before there are threads, which would have arenas of their own.
        Command::Daemon(args) => {
            allocator::be_small();
            threaded(args.run(dir))
        }
        Command::Collector(args) => {
            allocator::share_arenas();
            threaded(args.run(dir))
        }
        Command::Doctor(args) => threaded(args.run()),
        Command::Sessions(args) => threaded(args.run(dir)),
        Command::Events(args) => threaded(args.run(dir)),
        Command::Timeline(args) => threaded(args.run(dir)),
        Command::Report(args) => threaded(args.run(dir)),
        Command::Query(args) => threaded(args.run(dir)),
        Command::Status(args) => threaded(args.run(dir)),
        Command::Metrics(args) => threaded(args.run(dir)),
        Command::Export(args) => threaded(args.run(dir)),
        Command::Webhook(args) => threaded(args.run()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("agentwatch: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs a command that waits for several things at once. Nothing of it happens before there are threads.
fn threaded(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            EnvFilter::try_from_env("AGENTWATCH_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(command)
}
