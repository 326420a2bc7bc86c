//! The `agentwatch` command: parses, dispatches, and turns errors into exit codes.

use std::{path::PathBuf, process::ExitCode};

use agentwatch::{allocator, cli};
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
    let result = match command {
        // Forks: no thread may exist.
        Command::Run(args) => return args.run(&runtime_dir),
        Command::Attach(args) => args.run(&runtime_dir),
        Command::Detach(args) => args.run(&runtime_dir),
        Command::Reload(args) => args.run(&runtime_dir),
        Command::Release(args) => args.run(&runtime_dir),
        Command::Approvals(args) => args.run(&runtime_dir),
        Command::Approve(args) => args.run(&runtime_dir),
        Command::Reject(args) => args.run(&runtime_dir),
        Command::Grants(args) => args.run(&runtime_dir),
        Command::Revoke(args) => args.run(&runtime_dir),
        Command::Why(args) => args.run(&runtime_dir),
        Command::Policy(command) => command.run(&runtime_dir),
        Command::Verify(args) => args.run(),
        Command::Canary(args) => args.run(),
        command => threaded(command, &runtime_dir),
    };
    result.unwrap_or_else(|error| {
        eprintln!("agentwatch: {error:#}");
        ExitCode::FAILURE
    })
}

/// Commands that wait for several things at once.
fn threaded(command: Command, runtime_dir: &std::path::Path) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            EnvFilter::try_from_env("AGENTWATCH_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .init();
    // Before there are threads, which would have arenas of their own.
    match &command {
        Command::Daemon(_) => allocator::be_small(),
        Command::Collector(_) => allocator::share_arenas(),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Daemon(args) => args.run(runtime_dir).await,
            Command::Doctor(args) => args.run().await,
            Command::Sessions(args) => args.run(runtime_dir).await,
            Command::Events(args) => args.run(runtime_dir).await,
            Command::Timeline(args) => args.run(runtime_dir).await,
            Command::Report(args) => args.run(runtime_dir).await,
            Command::Query(args) => args.run(runtime_dir).await,
            Command::Status(args) => args.run(runtime_dir).await,
            Command::Metrics(args) => args.run(runtime_dir).await,
            Command::Export(args) => args.run(runtime_dir).await,
            Command::Collector(args) => args.run(runtime_dir).await,
            Command::Webhook(args) => args.run().await,
            Command::Run(_)
            | Command::Attach(_)
            | Command::Detach(_)
            | Command::Reload(_)
            | Command::Release(_)
            | Command::Approvals(_)
            | Command::Approve(_)
            | Command::Reject(_)
            | Command::Grants(_)
            | Command::Revoke(_)
            | Command::Why(_)
            | Command::Verify(_)
            | Command::Policy(_)
            | Command::Canary(_) => {
                unreachable!("dispatched by main")
            }
        }
    })
}
