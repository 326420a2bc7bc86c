//! `cargo xtask bench`: what agentwatch adds to an action, in instructions, how it fares in a storm of opens, how long
//! an approval takes, and how fast its history is.
//!
//! The first: one emulated processor with `-icount shift=0`: a nanosecond of guest time is one instruction, so the figures
//! repeat on any machine, however busy. They leave out what real processors add: cache misses, branches, TLBs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::{
    build, history,
    initramfs::{Job, PROGRAMS},
    kernels, paths, process, setup, table,
    vm::{self, Lines, Machine},
};

#[derive(Args)]
pub struct Options {
    /// Series of the kernel.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Only this part; the others stay in docs/bench.md as they are.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Repetitions in per cent of the usual.
    #[arg(long, default_value_t = 100)]
    effort: u64,
    /// Leave docs/bench.md as it is.
    #[arg(long)]
    print_only: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Instructions an action
    Cost,
    /// Storms of opens, processes and connects, on the running kernel
    Storm,
    /// The same in a guest, where BPF LSM holds files
    GuestStorm,
    /// How long an approval takes
    Approvals,
    /// The history: taking events in, and questions
    History,
}

const COST: &str = "Instructions an action";
const STORM: &str = "Storms";
const GUEST_STORM: &str = "Storms in a guest";
const APPROVALS: &str = "An approval";
const HISTORY: &str = "The history";
/// Events of the history that is measured, and sessions.
const EVENTS: u64 = 10_000_000;
const SESSIONS: u64 = 1000;

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
    trouble: String,
    seconds: f64,
    did: u64,
    denied: u64,
    resident_mib: u64,
    proportional_mib: u64,
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
    let mut sections: Vec<(&str, String)> = Vec::new();
    let wanted = |part| options.only.is_none_or(|only| only == part);
    if options.only != Some(Part::History) {
        setup::apt(&[("strace", "strace", "agentwatch is compared with it")])?;
        let strace = process::find("strace").context("strace was installed and is not on PATH")?;
        let kernel = kernels::fetch(&options.kernel)?;
        let image = vm::image(std::slice::from_ref(&strace), true)?;
        let agentwatch = build::agentwatch(true)?;
        if wanted(Part::Cost) {
            let size = fs::metadata(&agentwatch)?.len();
            let rows = cost(&kernel, &image, options.effort)?;
            sections.push((COST, cost_section(&kernel.version, size, &rows)));
        }
        if wanted(Part::Storm) {
            let rows = storm(&agentwatch)?;
            sections.push((STORM, storm_section(&running_kernel()?, &rows)));
        }
        if wanted(Part::GuestStorm) {
            let rows = guest_storm(&kernel, &image)?;
            let place = format!("{}, emulated", kernel.version);
            sections.push((GUEST_STORM, storm_section(&place, &rows)));
        }
        if wanted(Part::Approvals) {
            let rows = approvals(&kernel, &image, &agentwatch)?;
            sections.push((APPROVALS, approvals_section(&rows)));
        }
    }
    if wanted(Part::History) {
        let (events, sessions) = (EVENTS * options.effort / 100, SESSIONS);
        let rows = history::measure(events, sessions)?;
        sections.push((HISTORY, history::section(events, sessions, &rows)));
    }
    if !options.print_only {
        let file = write(&sections)?;
        println!("wrote {}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn cost(kernel: &kernels::Kernel, image: &crate::initramfs::Image, effort: u64) -> Result<Table> {
    println!(
        "measuring on {} with instructions counted; this takes some minutes",
        kernel.version
    );
    let mut costs: Vec<Cost> = Vec::new();
    let effort = effort.to_string();
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
    let code = each_line(kernel, image, &job, counting, "@cost ", &mut |json| {
        costs.push(serde_json::from_str(json)?);
        Ok(())
    });
    // What was measured before a failure is still worth seeing.
    let rows = cost_rows(&costs);
    println!("\n{}\n", table::render(&rows.0, &rows.1));
    ensure!(code? == 0, "the measurement failed");
    Ok(rows)
}

fn storm(agentwatch: &Path) -> Result<Table> {
    println!("storms on the running kernel; this takes some minutes");
    let guest = build::Guest::build()?;
    let output = process::output(
        process::as_root(&guest.program("cost").to_string_lossy())?
            .args(["storm", "--agentwatch"])
            .arg(agentwatch),
    )?;
    let storms: Vec<Storm> = output
        .lines()
        .filter_map(|line| line.strip_prefix("@storm "))
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let rows = storm_rows(&storms);
    println!("\n{}\n", table::render(&rows.0, &rows.1));
    Ok(rows)
}

fn guest_storm(kernel: &kernels::Kernel, image: &crate::initramfs::Image) -> Result<Table> {
    println!("storms on {}; this takes an hour", kernel.version);
    let mut storms: Vec<Storm> = Vec::new();
    let program = format!("{PROGRAMS}/cost");
    let job = Job::new(&[&program, "storm", "--agentwatch", "/usr/bin/agentwatch"]);
    let code = each_line(
        kernel,
        image,
        &job,
        Machine {
            memory_mib: 3072,
            timeout: Some(Duration::from_secs(3 * 3600)),
            ..Machine::default()
        },
        "@storm ",
        &mut |json| {
            println!("  {json}");
            storms.push(serde_json::from_str(json)?);
            Ok(())
        },
    );
    let rows = storm_rows(&storms);
    println!("\n{}\n", table::render(&rows.0, &rows.1));
    ensure!(code? == 0, "the storm failed");
    Ok(rows)
}

fn approvals(
    kernel: &kernels::Kernel,
    image: &crate::initramfs::Image,
    agentwatch: &Path,
) -> Result<Table> {
    println!("approvals on the running kernel, and on {}", kernel.version);
    let mut latencies: Vec<(String, Latency)> = Vec::new();
    let guest = build::Guest::build()?;
    let native = process::output(
        process::as_root(&guest.program("holds").to_string_lossy())?
            .args(["latency", "--agentwatch"])
            .arg(agentwatch),
    )?;
    let line = native
        .lines()
        .find_map(|line| line.strip_prefix("@latency "))
        .context("the measurement on the running kernel has no result")?;
    latencies.push((
        format!("{}, this machine", running_kernel()?),
        serde_json::from_str(line)?,
    ));
    let holds = format!("{PROGRAMS}/holds");
    let job = Job::new(&[&holds, "latency", "--agentwatch", "/usr/bin/agentwatch"]);
    let machine = Machine {
        timeout: Some(Duration::from_secs(1200)),
        ..Machine::default()
    };
    let code = each_line(kernel, image, &job, machine, "@latency ", &mut |json| {
        latencies.push((
            format!("{}, emulated", kernel.version),
            serde_json::from_str(json)?,
        ));
        Ok(())
    });
    let rows = latency_rows(&latencies);
    println!("\n{}\n", table::render(&rows.0, &rows.1));
    ensure!(code? == 0, "the measurement of approvals failed");
    Ok(rows)
}

fn running_kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim().to_owned())
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

pub(crate) type Table = (Vec<String>, Vec<Vec<String>>);

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
        "storm of",
        "meanwhile",
        "done",
        "seconds",
        "made",
        "delivered",
        "folded",
        "lost",
        "denied, all seen",
        "RSS",
        "PSS",
    ]
    .map(str::to_owned)
    .to_vec();
    let rows = storms
        .iter()
        .map(|storm| {
            let counts = &storm.counts;
            let mut row = vec![
                storm.name.clone(),
                storm.trouble.clone(),
                storm.did.to_string(),
                format!("{:.1}", storm.seconds),
            ];
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
            row.push(format!("{} MiB", storm.resident_mib));
            row.push(format!("{} MiB", storm.proportional_mib));
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

fn cost_section(kernel: &str, size: u64, costs: &Table) -> String {
    format!(
        "One emulated processor that counts instructions (QEMU, `-icount shift=0`), files on a tmpfs. The column *bare* is the action's \
         own cost; the others say what is added to it: first to the cheapest batch, which is the action's own path, and \
         in brackets to the mean, which also has what the daemon did meanwhile on the same processor. Cache misses \
         and other effects of real processors are not in these figures. Kernel: {kernel}. Binary: {:.1} MiB.\n\n{}",
        size as f64 / (1024.0 * 1024.0),
        table::markdown(&costs.0, &costs.1)
    )
}

fn storm_section(place: &str, storms: &Table) -> String {
    format!(
        "Each storm is one session on two processors, one after the other under the same daemon and collector; 100 denied opens are strewn among the opens. Checked for each: \
         made = delivered + folded + lost, the history has as many events, repetitions and losses as the account says, and the events \
         tell of as much as the storm did, less what was lost; whatever is lost is declared in `loss` events. RSS is what daemon and collector \
         have resident, added up, at the most: the code that they share counts twice there, and so do the rings, which are mapped twice; \
         PSS counts each page once. Where 8 192 events of one session have come together, or 131 072 of all, the collector seals a segment, \
         which takes most of it. Kernel: {place}.\n\n{}",
        table::markdown(&storms.0, &storms.1)
    )
}

fn approvals_section(latencies: &Table) -> String {
    format!(
        "From when the daemon takes up the control message of `agentwatch approve` to when the connect that waited has returned in the \
         program; one after the other (`holds latency`). On a machine with other work it is that work that is measured, too.\n\n{}",
        table::markdown(&latencies.0, &latencies.1)
    )
}

/// Puts what was measured into docs/bench.md; other sections stay as they are.
fn write(measured: &[(&str, String)]) -> Result<PathBuf> {
    let file = paths::repository().join("docs/bench.md");
    let old = fs::read_to_string(&file).unwrap_or_default();
    fs::write(&file, page(&old, measured))?;
    Ok(file)
}

fn page(old: &str, measured: &[(&str, String)]) -> String {
    let mut page =
        "# What agentwatch costs\n\nWritten by `cargo xtask bench`; do not edit.\n".to_owned();
    for title in [COST, STORM, GUEST_STORM, APPROVALS, HISTORY] {
        let new = measured.iter().find(|(measured, _)| *measured == title);
        let kept = || {
            old.split("\n## ")
                .find_map(|section| section.strip_prefix(title)?.strip_prefix('\n'))
        };
        if let Some(text) = new.map(|(_, text)| text.as_str()).or_else(kept) {
            page.push_str(&format!("\n## {title}\n\n{}\n", text.trim()));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_stays() {
        let first = page("", &[(COST, "a\n\nb".into()), (HISTORY, "c".into())]);
        let second = page(&first, &[(STORM, "d".into()), (HISTORY, "e".into())]);
        let expected = page(
            "",
            &[
                (COST, "a\n\nb".into()),
                (STORM, "d".into()),
                (HISTORY, "e".into()),
            ],
        );
        assert_eq!(second, expected);
    }

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
