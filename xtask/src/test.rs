//! `cargo xtask test`: format, lints, unit tests, scenarios on this kernel and on stock kernels in QEMU, and one
//! closing line that says how many of all these passed.

use std::{collections::VecDeque, process::ExitCode, sync::Mutex};

use anyhow::Result;
use clap::Args;

use self::summary::{Status, Summary};
use crate::{
    agents,
    build::{self, Guest},
    initramfs::Image,
    kernels, paths, process, setup, vm,
};

mod stages;
mod summary;

#[derive(Args)]
pub struct Options {
    /// Where the scenarios run: kernel series in QEMU, and `native` for the running kernel.
    #[arg(long, value_delimiter = ',', default_values = ["native", "6.1", "6.12", "7.2"])]
    kernel: Vec<String>,
    /// Only unit tests, scenarios and conformance cases (`conformance/FAMILY/CASE`) whose name contains this; format and lints
    /// are then left out.
    #[arg(long)]
    only: Option<String>,
    /// In guests also try what waits for a person, work under presets, and daemons that are replaced; with `--only hold` or
    /// `--only preset` that is tried in any case. Each needs another boot, and half an hour on three kernels.
    #[arg(long)]
    full: bool,
    /// Also run real agents (Codex, Claude Code, Gemini CLI), offline: about a gigabyte is downloaded once.
    #[arg(long)]
    agents: bool,
}

/// What the names of the cases of actions that wait begin with.
const HOLDS: &str = "hold";

/// What the names of the scenarios begin with that do real work under a preset.
const PRESETS: &str = "preset_";

/// Guests at the same time. Each keeps about one processor busy.
const GUESTS: usize = 2;

/// Killing and replacing the daemon takes minutes in an emulated guest: without `--full` it is tried on one kernel.
const OUTLIVE: &str = "outlive";
/// Where LSM programs attach and are not asked.
const WITHOUT: &str = "without_bpf_lsm";
/// The kernel of what is tried on one only.
const MIDDLE: &str = "6.12";

/// Runs the stages in order; a stage that fails does not keep the next one from running.
pub fn run(options: &Options) -> Result<ExitCode> {
    for name in options.kernel.iter().filter(|name| *name != "native") {
        vm::series(name)?;
    }
    let mut summary = Summary::default();
    setup::for_building()?;
    setup::for_testing()?;
    if options.only.is_none() {
        summary.stage("format", |summary| {
            summary.check(
                "format",
                process::cargo(paths::repository()).args(["fmt", "--all", "--check"]),
            )
        });
        summary.stage("lints", |summary| {
            let mut command = process::cargo(paths::repository());
            command.args([
                "clippy",
                "--quiet",
                "--workspace",
                "--exclude",
                "agentwatch-ebpf",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]);
            summary.check("lints", &mut command)
        });
    }
    summary.stage("unit tests", |summary| {
        summary.unit_tests(options.only.as_deref())
    });

    let built = summary.stage("build", |_| {
        let agentwatch = build::agentwatch(true)?;
        let guest = Guest::build()?;
        Ok((agentwatch, guest))
    });
    if let Some((agentwatch, guest)) = built {
        let only = options.only.as_deref();
        if options.kernel.iter().any(|name| name == "native") {
            if !is_of_holds(only) {
                summary.stage("scenarios on native", |summary| {
                    summary.natively(&agentwatch, &guest, only)
                });
            }
            if tries_holds(only) {
                summary.stage("holds on native", |summary| {
                    summary.holds_natively(&agentwatch, &guest, only)
                });
            }
        }
        let series: Vec<&String> = options
            .kernel
            .iter()
            .filter(|name| *name != "native")
            .collect();
        if !series.is_empty()
            && let Some(image) = summary.stage("initramfs", |_| {
                for name in &series {
                    kernels::fetch(name)?;
                }
                Image::gather(&agentwatch, &guest, &[])
            })
        {
            side_by_side(&mut summary, in_guests(options, &series, &image));
        }
        if options.agents {
            summary.stage("agents", |summary| {
                for outcome in agents::run(&agentwatch)? {
                    let status = if outcome.problem.is_none() {
                        Status::Pass
                    } else {
                        Status::Fail
                    };
                    summary.record(
                        &format!("agent {}", outcome.agent),
                        "native",
                        status,
                        outcome.problem.as_deref().unwrap_or_default(),
                    );
                }
                Ok(())
            });
        }
    }
    Ok(summary.close())
}

/// A stage in a guest of its own, and its name.
type InGuest<'a> = (
    String,
    Box<dyn FnOnce(&mut Summary) -> Result<()> + Send + 'a>,
);

/// What is to be tried in guests, those that take longest first.
fn in_guests<'a>(
    options: &'a Options,
    series: &[&'a String],
    image: &'a Image,
) -> Vec<InGuest<'a>> {
    let only = options.only.as_deref();
    let mut stages: Vec<InGuest<'a>> = Vec::new();
    if !is_of_holds(only) && only != Some(OUTLIVE) && only != Some(WITHOUT) {
        for &name in series {
            stages.push((
                format!("scenarios on {name}"),
                Box::new(move |summary| summary.in_vm(name, image, only)),
            ));
        }
    }
    for &name in series {
        if only == Some(OUTLIVE) || (only.is_none() && (options.full || name == MIDDLE)) {
            stages.push((
                format!("daemons replaced on {name}"),
                Box::new(move |summary| summary.outlive_in_vm(name, image)),
            ));
        }
        if only == Some(WITHOUT) || (only.is_none() && name == MIDDLE) {
            stages.push((
                format!("scenarios on {name} without BPF LSM"),
                Box::new(move |summary| summary.without_bpf_lsm(name, image)),
            ));
        }
        if tries_presets(options.full, only) {
            stages.push((
                format!("presets on {name}"),
                Box::new(move |summary| summary.presets_in_vm(name, image, only)),
            ));
        }
        if is_of_holds(only) || (options.full && only.is_none()) {
            stages.push((
                format!("holds on {name}"),
                Box::new(move |summary| summary.holds_in_vm(name, image, only)),
            ));
        }
    }
    stages
}

/// Runs stages in guests, several at the same time.
fn side_by_side(summary: &mut Summary, stages: Vec<InGuest<'_>>) {
    let lanes = std::thread::available_parallelism().map_or(1, |many| many.get().min(GUESTS));
    let queue = Mutex::new(VecDeque::from(stages));
    let whole = Mutex::new(summary);
    let next = || queue.lock().ok()?.pop_front();
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some((name, work)) = next() {
                    let mut own = Summary::default();
                    own.stage(&name, work);
                    if let Ok(mut whole) = whole.lock() {
                        whole.add(own);
                    }
                }
            });
        }
    });
}

/// Whether a filter names cases of actions that wait, and nothing else.
fn is_of_holds(only: Option<&str>) -> bool {
    only.is_some_and(|filter| filter.starts_with(HOLDS))
}

/// Whether such cases are among what is to be tried.
fn tries_holds(only: Option<&str>) -> bool {
    only.is_none() || is_of_holds(only)
}

/// Whether scenarios of presets are among what is to be tried in guests.
fn tries_presets(full: bool, only: Option<&str>) -> bool {
    only.map_or(full, |filter| {
        filter.starts_with(PRESETS) || PRESETS.starts_with(filter)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_named_by_their_prefix() {
        assert!(tries_holds(None) && !is_of_holds(None));
        for only in ["hold", "hold_threads"] {
            assert!(tries_holds(Some(only)) && is_of_holds(Some(only)), "{only}");
        }
        assert!(!tries_holds(Some("conformance/file")));
    }
}
