//! `cargo xtask test`: format, lints, unit tests, scenarios on this kernel and on stock kernels in QEMU, and one
//! closing line that says how many of all these passed.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;

use crate::{
    agents,
    build::{self, Guest},
    initramfs::{CONFORMANCE, Image, Job, PROGRAMS, SCENARIOS},
    kernels::{self, Kernel},
    paths, process, setup, table, tools,
    vm::{self, Lines, Machine, StaleCode},
};

#[derive(Args)]
pub struct Options {
    /// Where the scenarios run: kernel series in QEMU, and `native` for the running kernel.
    #[arg(long, value_delimiter = ',', default_values = ["native", "6.1", "6.12", "7.2"])]
    kernel: Vec<String>,
    /// Only unit tests, scenarios and conformance cases (`conformance/FAMILY/CASE`) whose name contains this; format and lints
    /// are then left out.
    #[arg(long)]
    only: Option<String>,
    /// In guests also try what waits for a person, work under presets, and daemons that are replaced; with `--only hold` or `--only preset` that is tried in any
    /// case. Each needs another boot, and half an hour on three kernels.
    #[arg(long)]
    full: bool,
    /// Also run real agents (Codex, Claude Code, Gemini CLI), offline: about a gigabyte is downloaded once.
    #[arg(long)]
    agents: bool,
}

/// What the stock kernels have; a scenario that is skipped there for lack of one of these has failed.
const STOCK_CAPABILITIES: &str = "bpf-lsm,cgroup,landlock";

/// What the names of the cases of actions that wait begin with.
const HOLDS: &str = "hold";

/// What the names of the scenarios begin with that do real work under a preset.
const PRESETS: &str = "preset_";

/// How long what takes minutes may take in an emulated guest, beside another one on a slow machine.
const LONG: Duration = Duration::from_secs(2400);

/// Guests at the same time. Each keeps about one processor busy.
const GUESTS: usize = 2;

/// How often the repeated cases of actions that wait are repeated in an emulated guest: among everything else, and for those who ask
/// for them.
const ROUNDS: &str = "30";
const ROUNDS_ASKED_FOR: &str = "100";

/// How one check, test or scenario went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Pass,
    Fail,
    Skip,
}

/// A line of the scenario runner.
#[derive(Clone, Debug, Deserialize)]
struct ScenarioResult {
    name: String,
    status: Status,
    #[serde(default)]
    reason: String,
}

/// A line of the runner about a conformance case.
#[derive(Clone, Debug, Deserialize)]
struct CaseResult {
    family: String,
    case: String,
    user: String,
    status: Status,
    #[serde(default)]
    reason: String,
}

/// Killing and replacing the daemon takes minutes in an emulated guest: without `--full` it is tried on one kernel.
const OUTLIVE: &str = "outlive";
/// Where LSM programs attach and are not asked.
const WITHOUT: &str = "without_bpf_lsm";
/// The kernel of what is tried on one only.
const MIDDLE: &str = "6.12";

/// How many cases of a family went how, in one place.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    fn add(&mut self, status: Status) {
        match status {
            Status::Pass => self.passed += 1,
            Status::Fail => self.failed += 1,
            Status::Skip => self.skipped += 1,
        }
    }

    fn cell(&self) -> String {
        let tried = self.passed + self.failed;
        match (tried, self.skipped) {
            (0, 0) => "-".to_owned(),
            (0, skipped) => format!("{skipped} skipped"),
            (_, 0) => format!("{}/{tried}", self.passed),
            (_, skipped) => format!("{}/{tried}, {skipped} skipped", self.passed),
        }
    }
}

/// Everything that was tried, for the end.
#[derive(Clone, Default)]
struct Summary {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Name, outcome in words, seconds.
    stages: Vec<(String, String, Duration)>,
    /// Scenario → place → status.
    scenarios: BTreeMap<String, BTreeMap<String, Status>>,
    /// Family and user → place → counts.
    conformance: BTreeMap<(String, String), BTreeMap<String, Tally>>,
    /// Case → the places, with their users, where it failed, and the reason in the first of them.
    failed_cases: BTreeMap<String, (Vec<String>, String)>,
    failures: Vec<String>,
}

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
            summary.in_guests(in_guests(options, &series, &image));
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

impl Summary {
    /// Runs stages in guests, several at the same time.
    fn in_guests(&mut self, stages: Vec<InGuest<'_>>) {
        let lanes = std::thread::available_parallelism().map_or(1, |many| many.get().min(GUESTS));
        let queue = Mutex::new(VecDeque::from(stages));
        let whole = Mutex::new(self);
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

    /// Takes in what another has seen.
    fn add(&mut self, other: Summary) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.stages.extend(other.stages);
        self.failures.extend(other.failures);
        for (name, places) in other.scenarios {
            self.scenarios.entry(name).or_default().extend(places);
        }
        for (family, places) in other.conformance {
            self.conformance.entry(family).or_default().extend(places);
        }
        for (case, (places, reason)) in other.failed_cases {
            let known = self.failed_cases.entry(case);
            known
                .or_insert_with(|| (Vec::new(), reason))
                .0
                .extend(places);
        }
    }

    fn stage<T>(&mut self, name: &str, work: impl FnOnce(&mut Summary) -> Result<T>) -> Option<T> {
        println!("\n== {name}");
        let started = Instant::now();
        let failed = self.failed;
        let done = work(self);
        let word = match &done {
            Err(error) => {
                println!("FAIL {name}: {error:#}");
                self.failed += 1;
                self.failures
                    .push(format!("{name}: {}", first_line(&format!("{error:#}"))));
                "failed".to_owned()
            }
            Ok(_) if self.failed > failed => format!("{} failed", self.failed - failed),
            Ok(_) => "ok".to_owned(),
        };
        self.stages.push((name.to_owned(), word, started.elapsed()));
        done.ok()
    }

    /// A command that is one check.
    fn check(&mut self, name: &str, command: &mut Command) -> Result<()> {
        process::run(command)?;
        println!("PASS {name}");
        self.passed += 1;
        Ok(())
    }

    fn unit_tests(&mut self, only: Option<&str>) -> Result<()> {
        let mut command = process::cargo(paths::repository());
        command.args([
            "test",
            "--quiet",
            "--no-fail-fast",
            "--workspace",
            "--exclude",
            "agentwatch-ebpf",
        ]);
        command.args(only.map(|filter| ["--", filter]).into_iter().flatten());
        let output = command
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("run `{}`", process::line(&command)))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (passed, failed, ignored) = unit_test_counts(&text);
        self.passed += passed;
        self.failed += failed;
        self.skipped += ignored;
        println!("{passed} passed, {failed} failed, {ignored} ignored");
        if failed > 0 {
            println!("{}", text.trim());
            self.failures.push(format!("unit tests: {failed} failed"));
        } else if !output.status.success() {
            anyhow::bail!(
                "`{}` ended with {}: {}",
                process::line(&command),
                output.status,
                text.trim()
            );
        }
        Ok(())
    }

    /// Runs the scenarios on the running kernel.
    fn natively(&mut self, agentwatch: &Path, guest: &Guest, only: Option<&str>) -> Result<()> {
        let program = guest.program("scenarios");
        let mut command = process::as_root(&program.to_string_lossy())?;
        command
            .arg("--agentwatch")
            .arg(agentwatch)
            .arg("--act")
            .arg(guest.program("act"))
            .arg("--scenarios")
            .arg(paths::repository().join("tests/scenarios"))
            .arg("--conformance")
            .arg(paths::repository().join("tests/conformance"));
        command.args(only.map(|filter| ["--only", filter]).into_iter().flatten());
        self.lines_of(&mut command, "native")
    }

    /// Runs the cases of actions that wait on the running kernel.
    fn holds_natively(
        &mut self,
        agentwatch: &Path,
        guest: &Guest,
        only: Option<&str>,
    ) -> Result<()> {
        let mut command = process::as_root(&guest.program("holds").to_string_lossy())?;
        command.args(["all", "--agentwatch"]).arg(agentwatch);
        command.args(["--only", only.unwrap_or_default()]);
        self.lines_of(&mut command, "native")
    }

    /// The same on a stock kernel.
    fn holds_in_vm(&mut self, series: &str, image: &Image, only: Option<&str>) -> Result<()> {
        let kernel = kernels::fetch(series)?;
        println!("kernel {}", kernel.version);
        let holds = format!("{PROGRAMS}/holds");
        let words = [
            holds.as_str(),
            "all",
            "--agentwatch",
            "/usr/bin/agentwatch",
            "--only",
            only.unwrap_or_default(),
            "--rounds",
            if only.is_none() {
                ROUNDS
            } else {
                ROUNDS_ASKED_FOR
            },
        ];
        let machine = Machine {
            timeout: Some(LONG),
            ..Machine::default()
        };
        self.job_in(&kernel, image, &words, series, machine)
    }

    /// Runs a program whose lines are results.
    fn lines_of(&mut self, command: &mut Command, place: &str) -> Result<()> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let reader =
            std::io::BufReader::new(child.stdout.take().context("standard output is piped")?);
        let mut seen = 0;
        for line in std::io::BufRead::lines(reader) {
            seen += u64::from(self.scenario_line(&line?, place)?);
        }
        let status = child.wait()?;
        anyhow::ensure!(
            seen > 0,
            "{} ended with {status} and had no result",
            process::line(command)
        );
        Ok(())
    }

    /// Runs the scenarios on a stock kernel.
    fn in_vm(&mut self, series: &str, image: &Image, only: Option<&str>) -> Result<()> {
        let kernel = kernels::fetch(series)?;
        println!("kernel {}", kernel.version);
        let (runner, act) = guest_programs();
        let mut words = scenario_words(&runner, &act, STOCK_CAPABILITIES).to_vec();
        words.extend(["--conformance", CONFORMANCE]);
        words.extend(only.map(|filter| ["--only", filter]).into_iter().flatten());
        self.job_in_vm(&kernel, image, &words, series)
    }

    /// Runs the scenarios where LSM programs attach and are never asked, as on most hosts that nobody has set up for it.
    fn without_bpf_lsm(&mut self, series: &str, image: &Image) -> Result<()> {
        let kernel = kernels::fetch(series)?;
        let (runner, act) = guest_programs();
        let words = scenario_words(&runner, &act, "cgroup,landlock");
        let machine = Machine {
            timeout: Some(LONG),
            without_bpf_lsm: true,
            ..Machine::default()
        };
        let place = format!("{series}, {}", Self::LANDLOCK);
        self.job_in(&kernel, image, &words, &place, machine)
    }

    /// The place of what ran without BPF LSM.
    const LANDLOCK: &'static str = "Landlock";

    /// Kills and replaces the daemon under load on a stock kernel.
    fn outlive_in_vm(&mut self, series: &str, image: &Image) -> Result<()> {
        let kernel = kernels::fetch(series)?;
        let outlive = format!("{PROGRAMS}/outlive");
        let words = [
            outlive.as_str(),
            "all",
            "--agentwatch",
            "/usr/bin/agentwatch",
        ];
        self.job_in_vm(&kernel, image, &words, series)
    }

    /// Runs the scenarios of presets on a stock kernel, with tools on a disk. They are not below `/tmp`, which presets open.
    fn presets_in_vm(&mut self, series: &str, image: &Image, only: Option<&str>) -> Result<()> {
        let kernel = kernels::fetch(series)?;
        let (runner, act) = guest_programs();
        let required = format!("{STOCK_CAPABILITIES},programs");
        let only = only
            .filter(|only| only.contains(PRESETS))
            .unwrap_or(PRESETS);
        let mut words = scenario_words(&runner, &act, &required).to_vec();
        words.extend(["--root", "/srv", "--only", only]);
        let machine = Machine {
            disk: Some(tools::disk()?),
            timeout: Some(LONG),
            ..Machine::default()
        };
        self.job_in(&kernel, image, &words, series, machine)
    }

    fn job_in_vm(
        &mut self,
        kernel: &Kernel,
        image: &Image,
        words: &[&str],
        series: &str,
    ) -> Result<()> {
        let machine = Machine {
            timeout: Some(LONG),
            ..Machine::default()
        };
        self.job_in(kernel, image, words, series, machine)
    }

    /// Runs a job, and once more where the emulator failed and nothing else had.
    fn job_in(
        &mut self,
        kernel: &Kernel,
        image: &Image,
        words: &[&str],
        series: &str,
        machine: Machine,
    ) -> Result<()> {
        let attempt = |summary: &mut Self| {
            let mut lines = Lines::default();
            let mut seen = 0;
            let mut sink = |bytes: &[u8]| {
                for line in lines.complete(bytes) {
                    seen += u64::from(summary.scenario_line(&line, series)?);
                }
                Ok(())
            };
            let job = Job::new(words);
            let code = vm::boot(kernel, image, &job, machine.clone(), None, &mut sink)?;
            anyhow::ensure!(
                seen > 0,
                "{} ended with {code} and had no result",
                words.first().copied().unwrap_or_default()
            );
            Ok(())
        };
        let before = self.clone();
        match attempt(self) {
            Err(error) if error.is::<StaleCode>() && self.failed == before.failed => {
                println!("AGAIN, the emulator ran stale code: {error}");
                *self = before;
                attempt(self)
            }
            outcome => outcome,
        }
    }

    /// Takes a line of the runner in; whether it was a result. Others are for people.
    fn scenario_line(&mut self, line: &str, place: &str) -> Result<bool> {
        if let Some(json) = line.strip_prefix("@case ") {
            let result =
                serde_json::from_str(json).with_context(|| format!("case line {line:?}"))?;
            self.record_case(&result, place);
            return Ok(true);
        }
        let Some(json) = line.strip_prefix("@result ") else {
            println!("  {place}: {line}");
            return Ok(false);
        };
        let result: ScenarioResult =
            serde_json::from_str(json).with_context(|| format!("result line {line:?}"))?;
        self.record(&result.name, place, result.status, &result.reason);
        Ok(true)
    }

    fn record(&mut self, name: &str, place: &str, status: Status, reason: &str) {
        match status {
            Status::Pass => self.passed += 1,
            Status::Skip => self.skipped += 1,
            Status::Fail => {
                self.failed += 1;
                self.failures
                    .push(format!("{name} on {place}: {}", first_line(reason)));
            }
        }
        self.scenarios
            .entry(name.to_owned())
            .or_default()
            .insert(place.to_owned(), status);
    }

    fn record_case(&mut self, result: &CaseResult, place: &str) {
        match result.status {
            Status::Pass => self.passed += 1,
            Status::Skip => self.skipped += 1,
            Status::Fail => {
                self.failed += 1;
                let name = format!("{}/{}", result.family, result.case);
                let reason = first_line(&result.reason).to_owned();
                let (places, _) = self
                    .failed_cases
                    .entry(name)
                    .or_insert_with(|| (Vec::new(), reason));
                places.push(format!("{place} {}", result.user));
            }
        }
        self.conformance
            .entry((result.family.clone(), result.user.clone()))
            .or_default()
            .entry(place.to_owned())
            .or_default()
            .add(result.status);
    }

    /// Cases that pass, of those that were tried, by family, user and kernel; and each that failed.
    fn print_conformance(&self) {
        let mut places: Vec<&String> = Vec::new();
        for place in self.conformance.values().flat_map(BTreeMap::keys) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        if places.is_empty() {
            return;
        }
        let heads: Vec<String> = ["conformance", "user"]
            .map(str::to_owned)
            .into_iter()
            .chain(places.iter().map(|place| (*place).clone()))
            .collect();
        let mut totals: BTreeMap<&String, Tally> = BTreeMap::new();
        let mut rows: Vec<Vec<String>> = Vec::new();
        for ((family, user), by_place) in &self.conformance {
            let cells = places.iter().map(|place| {
                let tally = by_place.get(*place).copied().unwrap_or_default();
                let total = totals.entry(place).or_default();
                total.passed += tally.passed;
                total.failed += tally.failed;
                total.skipped += tally.skipped;
                tally.cell()
            });
            rows.push(
                [family.clone(), user.clone()]
                    .into_iter()
                    .chain(cells)
                    .collect(),
            );
        }
        let cells = places
            .iter()
            .map(|place| totals.get(place).copied().unwrap_or_default().cell());
        rows.push(
            ["total".to_owned(), String::new()]
                .into_iter()
                .chain(cells)
                .collect(),
        );
        println!("\n{}", table::render(&heads, &rows));
        // Cases of one family that failed alike are one line.
        let mut alike: BTreeMap<(&str, &Vec<String>, &String), Vec<&str>> = BTreeMap::new();
        for (name, (places, reason)) in &self.failed_cases {
            let (family, case) = name.split_once('/').unwrap_or((name, ""));
            alike
                .entry((family, places, reason))
                .or_default()
                .push(case);
        }
        for ((family, places, reason), cases) in alike {
            println!(
                "failed: {family}/{} on {}: {reason}",
                cases.join(", "),
                places.join(", ")
            );
        }
    }

    fn close(&self) -> ExitCode {
        let mut places: Vec<&String> = Vec::new();
        for place in self.scenarios.values().flat_map(BTreeMap::keys) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        if !places.is_empty() {
            let heads: Vec<String> = std::iter::once("scenario".to_owned())
                .chain(places.iter().map(|place| (*place).clone()))
                .collect();
            let rows: Vec<Vec<String>> = self
                .scenarios
                .iter()
                .map(|(name, by_place)| {
                    let cells = places.iter().map(|place| match by_place.get(*place) {
                        Some(Status::Pass) => "pass",
                        Some(Status::Fail) => "FAIL",
                        Some(Status::Skip) => "skip",
                        None => "-",
                    });
                    std::iter::once(name.clone())
                        .chain(cells.map(str::to_owned))
                        .collect()
                })
                .collect();
            println!("\n{}", table::render(&heads, &rows));
        }
        self.print_conformance();
        let rows: Vec<Vec<String>> = self
            .stages
            .iter()
            .map(|(name, word, time)| {
                vec![
                    name.clone(),
                    format!("{:.1} s", time.as_secs_f64()),
                    word.clone(),
                ]
            })
            .collect();
        println!(
            "\n{}",
            table::render(&["stage", "time", "outcome"].map(str::to_owned), &rows)
        );
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!(
            "\n{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        );
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Whether a filter names cases of actions that wait, and nothing else.
fn is_of_holds(only: Option<&str>) -> bool {
    only.is_some_and(|filter| filter.starts_with(HOLDS))
}

/// Where a guest has the runner of scenarios and the actor.
fn guest_programs() -> (String, String) {
    (format!("{PROGRAMS}/scenarios"), format!("{PROGRAMS}/act"))
}

/// The runner's command line in a guest, as far as it is always the same.
fn scenario_words<'a>(runner: &'a str, act: &'a str, required: &'a str) -> [&'a str; 12] {
    [
        runner,
        "--agentwatch",
        "/usr/bin/agentwatch",
        "--act",
        act,
        "--scenarios",
        SCENARIOS,
        "--guest",
        "--require",
        required,
        "--patience",
        "4",
    ]
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

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Adds up the `test result:` lines of `cargo test`.
fn unit_test_counts(text: &str) -> (u64, u64, u64) {
    let mut counts = (0, 0, 0);
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        let of = |name: &str| -> u64 {
            line.split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(name)?.trim().parse().ok())
                .unwrap_or(0)
        };
        counts.0 += of("passed");
        counts.1 += of("failed");
        counts.2 += of("ignored");
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_tests_are_added_up() {
        let text = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: FAILED. 3 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n";
        assert_eq!(unit_test_counts(text), (5, 4, 1));
    }

    #[test]
    fn holds_are_named_by_their_prefix() {
        assert!(tries_holds(None) && !is_of_holds(None));
        for only in ["hold", "hold_threads"] {
            assert!(tries_holds(Some(only)) && is_of_holds(Some(only)), "{only}");
        }
        assert!(!tries_holds(Some("conformance/file")));
    }

    #[test]
    fn results_are_read_as_the_runner_writes_them() {
        let mut summary = Summary::default();
        let line = r#"@result {"name":"x (user)","status":"skip","reason":"needs bpf-lsm","ms":0}"#;
        assert!(summary.scenario_line(line, "6.1").unwrap());
        assert_eq!((summary.passed, summary.failed, summary.skipped), (0, 0, 1));
        let line =
            r#"@case {"family":"open","case":"plain","user":"root","status":"fail","reason":"x"}"#;
        assert!(summary.scenario_line(line, "6.1").unwrap());
        assert_eq!(
            summary.failed_cases["open/plain"].0,
            ["6.1 root".to_owned()]
        );
    }
}
