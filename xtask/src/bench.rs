//! `cargo xtask bench`: what agentwatch adds to an action, in instructions, and how it fares in a storm of opens.
//!
//! One emulated processor with `-icount shift=0`: a nanosecond of guest time is one instruction, so the figures
//! repeat on any machine, however busy. They leave out what real processors add: cache misses, branches, TLBs.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;

use crate::{
    build,
    initramfs::{Job, PROGRAMS},
    kernels, paths, process, setup, table,
    vm::{self, Lines, Machine},
};

#[derive(Args)]
pub struct Options {
    /// Series of the kernel.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Repetitions in per cent of the usual.
    #[arg(long, default_value_t = 100)]
    effort: u64,
    /// Leave docs/bench.md as it is.
    #[arg(long)]
    print_only: bool,
}

/// A line of `cost measure`.
#[derive(Clone, Debug, Deserialize)]
struct Cost {
    config: String,
    action: String,
    least: u64,
    mean: u64,
}

/// A line of `cost storm`.
#[derive(Clone, Debug, Deserialize)]
struct Storm {
    name: String,
    seconds: f64,
    denied: u64,
    counts: Counts,
}

/// The line of `holds latency`.
#[derive(Clone, Debug, Deserialize)]
struct Latency {
    rounds: u64,
    p50_us: u64,
    p99_us: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Counts {
    made: u64,
    delivered: u64,
    folded: u64,
    lost: u64,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    setup::apt(&[("strace", "strace", "agentwatch is compared with it")])?;
    let strace = process::find("strace").context("strace was installed and is not on PATH")?;
    let kernel = kernels::fetch(&options.kernel)?;
    let image = vm::image(std::slice::from_ref(&strace), true)?;
    let agentwatch = build::agentwatch(true)?;
    let size = fs::metadata(&agentwatch)?.len();

    println!(
        "measuring on {} with instructions counted; this takes some minutes",
        kernel.version
    );
    let mut costs: Vec<Cost> = Vec::new();
    let effort = options.effort.to_string();
    let (cost, landlocked) = (format!("{PROGRAMS}/cost"), format!("{PROGRAMS}/landlocked"));
    let job = Job::new(&[
        &cost,
        "bench",
        "--agentwatch",
        "/usr/bin/agentwatch",
        "--strace",
        "/usr/bin/strace",
        "--landlocked",
        &landlocked,
        "--effort",
        &effort,
    ]);
    let counting = Machine {
        cpus: 1,
        count_instructions: true,
        timeout: Some(Duration::from_secs(2400)),
        ..Machine::default()
    };
    let code = each_line(&kernel, &image, &job, counting, "@cost ", &mut |json| {
        costs.push(serde_json::from_str(json)?);
        Ok(())
    });
    // What was measured before a failure is still worth seeing.
    let rows = cost_rows(&costs);
    println!("\n{}\n", table::render(&rows.0, &rows.1));
    ensure!(code? == 0, "the measurement failed");

    println!("a storm of opens on {}", kernel.version);
    let mut storms: Vec<Storm> = Vec::new();
    let job = Job::new(&[&cost, "storm", "--agentwatch", "/usr/bin/agentwatch"]);
    let code = each_line(
        &kernel,
        &image,
        &job,
        Machine {
            memory_mib: 2048,
            timeout: Some(Duration::from_secs(1200)),
            ..Machine::default()
        },
        "@storm ",
        &mut |json| {
            storms.push(serde_json::from_str(json)?);
            Ok(())
        },
    );
    let storm_table = storm_rows(&storms);
    println!("\n{}\n", table::render(&storm_table.0, &storm_table.1));
    ensure!(code? == 0, "the storm failed");

    println!("approvals on the running kernel, and on {}", kernel.version);
    let mut latencies: Vec<(String, Latency)> = Vec::new();
    let guest = build::Guest::build()?;
    let native = process::output(
        process::as_root(&guest.program("holds").to_string_lossy())?
            .args(["latency", "--agentwatch"])
            .arg(&agentwatch),
    )?;
    let line = native
        .lines()
        .find_map(|line| line.strip_prefix("@latency "))
        .context("the measurement on the running kernel has no result")?;
    let running = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    latencies.push((
        format!("{}, this machine", running.trim()),
        serde_json::from_str(line)?,
    ));
    let holds = format!("{PROGRAMS}/holds");
    let job = Job::new(&[&holds, "latency", "--agentwatch", "/usr/bin/agentwatch"]);
    let machine = Machine {
        timeout: Some(Duration::from_secs(1200)),
        ..Machine::default()
    };
    let code = each_line(&kernel, &image, &job, machine, "@latency ", &mut |json| {
        latencies.push((
            format!("{}, emulated", kernel.version),
            serde_json::from_str(json)?,
        ));
        Ok(())
    });
    let latency_table = latency_rows(&latencies);
    println!("\n{}\n", table::render(&latency_table.0, &latency_table.1));
    ensure!(code? == 0, "the measurement of approvals failed");
    if !options.print_only {
        let file = write(&report(
            &kernel.version,
            size,
            &rows,
            &storm_table,
            &latency_table,
        ))?;
        println!("wrote {}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Boots and hands on what follows the mark in lines that bear it; other lines are printed.
fn each_line(
    kernel: &kernels::Kernel,
    image: &crate::initramfs::Image,
    job: &Job,
    machine: Machine,
    mark: &str,
    take: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<i32> {
    let mut lines = Lines::default();
    vm::boot(kernel, image, job, machine, None, &mut |bytes| {
        for line in lines.complete(bytes) {
            match line.strip_prefix(mark) {
                Some(json) => take(json).with_context(|| format!("result line {line:?}"))?,
                None => println!("  {line}"),
            }
        }
        Ok(())
    })
}

type Table = (Vec<String>, Vec<Vec<String>>);

/// A row an action, a column a configuration: the bare cost, then what each adds, and the mean where it differs much.
fn cost_rows(costs: &[Cost]) -> Table {
    let (mut configs, mut actions): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for cost in costs {
        if !configs.contains(&cost.config.as_str()) {
            configs.push(&cost.config);
        }
        if !actions.contains(&cost.action.as_str()) {
            actions.push(&cost.action);
        }
    }
    let find = |config: &str, action: &str| {
        costs
            .iter()
            .find(|cost| cost.config == config && cost.action == action)
    };
    let heads = std::iter::once("action")
        .chain(configs.iter().copied())
        .map(str::to_owned)
        .collect();
    let rows = actions
        .iter()
        .map(|action| {
            let bare = find("bare", action);
            let cells = configs
                .iter()
                .map(|config| match (find(config, action), bare) {
                    (None, _) => String::new(),
                    (Some(cost), _) if *config == "bare" => cost.least.to_string(),
                    (Some(cost), Some(bare)) => added(cost, bare),
                    (Some(cost), None) => cost.least.to_string(),
                });
            std::iter::once((*action).to_owned()).chain(cells).collect()
        })
        .collect();
    (heads, rows)
}

/// What a configuration adds to the bare cost; in brackets to its mean, which has the daemon's own work in it.
fn added(cost: &Cost, bare: &Cost) -> String {
    let difference = |with: u64, without: u64| with.cast_signed() - without.cast_signed();
    let (least, mean) = (
        difference(cost.least, bare.least),
        difference(cost.mean, bare.mean),
    );
    format!("{least:+} ({mean:+})")
}

fn storm_rows(storms: &[Storm]) -> Table {
    let heads = [
        "opens of",
        "seconds",
        "made",
        "delivered",
        "folded",
        "lost",
        "denied, all seen",
    ]
    .map(str::to_owned)
    .to_vec();
    let rows = storms
        .iter()
        .map(|storm| {
            let counts = &storm.counts;
            let mut row = vec![storm.name.clone(), format!("{:.1}", storm.seconds)];
            row.extend(
                [
                    counts.made,
                    counts.delivered,
                    counts.folded,
                    counts.lost,
                    storm.denied,
                ]
                .map(|number| number.to_string()),
            );
            row
        })
        .collect();
    (heads, rows)
}

fn latency_rows(latencies: &[(String, Latency)]) -> Table {
    let heads = ["kernel", "approvals", "median", "99 %"]
        .map(str::to_owned)
        .to_vec();
    let milliseconds = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
    let rows = latencies
        .iter()
        .map(|(place, latency)| {
            vec![
                place.clone(),
                latency.rounds.to_string(),
                milliseconds(latency.p50_us),
                milliseconds(latency.p99_us),
            ]
        })
        .collect();
    (heads, rows)
}

fn report(kernel: &str, size: u64, costs: &Table, storms: &Table, latencies: &Table) -> String {
    format!(
        "# What agentwatch costs\n\n\
         Written by `cargo xtask bench`; do not edit. Kernel: {kernel}. Binary: {:.1} MiB.\n\n\
         ## Instructions an action\n\n\
         One emulated processor that counts instructions (QEMU, `-icount shift=0`), files on a tmpfs. The column *bare* is the action's \
         own cost; the others say what is added to it: first to the cheapest batch, which is the action's own path, and \
         in brackets to the mean, which also has what the daemon did meanwhile on the same processor. Cache misses \
         and other effects of real processors are not in these figures.\n\n{}\n\n\
         ## A storm of opens\n\n\
         200 000 opens in one session, denied ones strewn among them, on two emulated processors without counting. \
         made = delivered + folded + lost; whatever is lost is declared in `loss` events.\n\n{}\n\n\
         ## An approval\n\n\
         From when the daemon takes up the control message of `agentwatch approve` to when the connect that waited has returned in the \
         program; one after the other (`holds latency`). On a machine with other work it is that work that is measured, too.\n\n{}\n",
        size as f64 / (1024.0 * 1024.0),
        table::markdown(&costs.0, &costs.1),
        table::markdown(&storms.0, &storms.1),
        table::markdown(&latencies.0, &latencies.1)
    )
}

fn write(text: &str) -> Result<PathBuf> {
    let file = paths::repository().join("docs/bench.md");
    fs::create_dir_all(file.parent().context("a file has a parent")?)?;
    fs::write(&file, text)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_compared_with_bare() {
        let cost = |config: &str, least, mean| Cost {
            config: config.into(),
            action: "open".into(),
            least,
            mean,
        };
        let (heads, rows) = cost_rows(&[cost("bare", 100, 110), cost("x", 150, 100)]);
        assert_eq!(heads, ["action", "bare", "x"]);
        assert_eq!(rows, [["open", "100", "+50 (-10)"]]);
    }
}
