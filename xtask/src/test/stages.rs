//! What each stage runs, and where: cargo's checks and tests, and the programs that print results, here or in a guest.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{PRESETS, summary::Summary};
use crate::{
    build::Guest,
    initramfs::{CONFORMANCE, Image, Job, PROGRAMS, SCENARIOS},
    kernels::{self, Kernel},
    paths, process, tools,
    vm::{self, Lines, Machine, StaleCode},
};

/// What the stock kernels have; a scenario that is skipped there for lack of one of these has failed.
const STOCK_CAPABILITIES: &str = "bpf-lsm,cgroup,landlock";

/// How long what takes minutes may take in an emulated guest, beside another one on a slow machine.
const LONG: Duration = Duration::from_secs(2400);

/// How often the repeated cases of actions that wait are repeated in an emulated guest: among everything else, and for those who ask
/// for them.
const ROUNDS: &str = "30";
const ROUNDS_ASKED_FOR: &str = "100";

impl Summary {
    /// A command that is one check.
    pub(super) fn check(&mut self, name: &str, command: &mut Command) -> Result<()> {
        process::run(command)?;
        println!("PASS {name}");
        self.passed += 1;
        Ok(())
    }

    pub(super) fn unit_tests(&mut self, only: Option<&str>) -> Result<()> {
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
    pub(super) fn natively(
        &mut self,
        agentwatch: &Path,
        guest: &Guest,
        only: Option<&str>,
    ) -> Result<()> {
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
    pub(super) fn holds_natively(
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
    pub(super) fn holds_in_vm(
        &mut self,
        series: &str,
        image: &Image,
        only: Option<&str>,
    ) -> Result<()> {
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
    pub(super) fn in_vm(&mut self, series: &str, image: &Image, only: Option<&str>) -> Result<()> {
        let kernel = kernels::fetch(series)?;
        println!("kernel {}", kernel.version);
        let (runner, act) = guest_programs();
        let mut words = scenario_words(&runner, &act, STOCK_CAPABILITIES).to_vec();
        words.extend(["--conformance", CONFORMANCE]);
        words.extend(only.map(|filter| ["--only", filter]).into_iter().flatten());
        self.job_in_vm(&kernel, image, &words, series)
    }

    /// Runs the scenarios where LSM programs attach and are never asked, as on most hosts that nobody has set up for it.
    pub(super) fn without_bpf_lsm(&mut self, series: &str, image: &Image) -> Result<()> {
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
    pub(super) fn outlive_in_vm(&mut self, series: &str, image: &Image) -> Result<()> {
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
    pub(super) fn presets_in_vm(
        &mut self,
        series: &str,
        image: &Image,
        only: Option<&str>,
    ) -> Result<()> {
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
}
