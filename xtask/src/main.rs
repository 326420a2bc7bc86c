//! `cargo xtask`: everything that one does with this repository besides editing it.
//!
//! Each command installs what it lacks and says so in a line; none of them changes the machine's own apt sources or
//! default toolchain. What the product does belongs into `agentwatch`, not here.

mod agents;
mod apt;
mod bench;
mod build;
mod demo;
mod history;
mod initramfs;
mod kernels;
mod paths;
mod process;
mod setup;
mod table;
mod test;
mod tools;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Set-up, build, demo, tests, VMs, benchmarks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building needs (the pinned nightly, bpf-linker).
    Setup {
        /// Also what the tests need (QEMU, kernels).
        #[arg(long)]
        tests: bool,
    },
    /// Build agentwatch; the binary is target/release/agentwatch.
    Build {
        /// Build without optimisation; the binary is then target/debug/agentwatch.
        #[arg(long)]
        debug: bool,
    },
    /// Run everything: format, lints, unit tests, scenarios here and on stock kernels in QEMU.
    Test(test::Options),
    /// Run a command, or a shell, in a VM with agentwatch.
    Vm(vm::Options),
    /// Show a session from start to end under a policy: allowed and denied actions, the stream, the timeline.
    Demo {
        /// Your own command instead of the scripted agent.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Count the instructions that agentwatch adds to an action, and rewrite docs/bench.md.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    // Cargo sets it for this program; what is started from here would look for its libraries in the toolchain first.
    // SAFETY: no other thread exists yet.
    unsafe { std::env::remove_var("LD_LIBRARY_PATH") };
    let done: Result<ExitCode> = match Options::parse().command {
        Command::Setup { tests } => setup::all(tests).map(|()| ExitCode::SUCCESS),
        Command::Build { debug } => build::agentwatch(!debug).map(|binary| {
            println!("{}", binary.display());
            ExitCode::SUCCESS
        }),
        Command::Test(options) => test::run(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Demo { command } => demo::run(&command),
        Command::Bench(options) => bench::run(&options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
