//! What was tried and how it went: results are taken in from the programs that run cases, and told at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::table;

/// How one check, test or scenario went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Pass,
    Fail,
    Skip,
}

impl Status {
    /// In a table, where a failure is to be seen.
    fn word(self) -> &'static str {
        match self {
            Status::Pass => "pass",
            Status::Fail => "FAIL",
            Status::Skip => "skip",
        }
    }
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
pub(super) struct Summary {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
    /// Name, outcome in words, seconds.
    stages: Vec<(String, String, Duration)>,
    /// Scenario → place → status.
    scenarios: BTreeMap<String, BTreeMap<String, Status>>,
    /// Family and user → place → counts.
    conformance: BTreeMap<(String, String), BTreeMap<String, Tally>>,
    /// Conformance case → place and user → status.
    cases: BTreeMap<String, BTreeMap<String, Status>>,
    /// Case → the places, with their users, where it failed, and the reason in the first of them.
    failed_cases: BTreeMap<String, (Vec<String>, String)>,
    pub(super) failures: Vec<String>,
}

impl Summary {
    /// Takes in what another has seen.
    pub(super) fn add(&mut self, other: Summary) {
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
        for (case, places) in other.cases {
            self.cases.entry(case).or_default().extend(places);
        }
        for (case, (places, reason)) in other.failed_cases {
            let known = self.failed_cases.entry(case);
            known
                .or_insert_with(|| (Vec::new(), reason))
                .0
                .extend(places);
        }
    }

    pub(super) fn stage<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Summary) -> Result<T>,
    ) -> Option<T> {
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

    /// Takes a line of the runner in; whether it was a result. Others are for people.
    pub(super) fn scenario_line(&mut self, line: &str, place: &str) -> Result<bool> {
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

    pub(super) fn record(&mut self, name: &str, place: &str, status: Status, reason: &str) {
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
        let name = format!("{}/{}", result.family, result.case);
        let tried_by = format!("{place} {}", result.user);
        self.cases
            .entry(name.clone())
            .or_default()
            .insert(tried_by.clone(), result.status);
        match result.status {
            Status::Pass => self.passed += 1,
            Status::Skip => self.skipped += 1,
            Status::Fail => {
                self.failed += 1;
                let reason = first_line(&result.reason).to_owned();
                let (places, _) = self
                    .failed_cases
                    .entry(name)
                    .or_insert_with(|| (Vec::new(), reason));
                places.push(tried_by);
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
        let places: BTreeSet<&String> =
            self.conformance.values().flat_map(BTreeMap::keys).collect();
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

    pub(super) fn close(&self) -> ExitCode {
        print_statuses("scenario", &self.scenarios);
        print_statuses("conformance case", &self.cases);
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

/// A row a name, a column a place where it was tried.
fn print_statuses(head: &str, statuses: &BTreeMap<String, BTreeMap<String, Status>>) {
    let places: BTreeSet<&String> = statuses.values().flat_map(BTreeMap::keys).collect();
    if places.is_empty() {
        return;
    }
    let heads: Vec<String> = std::iter::once(head.to_owned())
        .chain(places.iter().map(|place| (*place).clone()))
        .collect();
    let rows: Vec<Vec<String>> = statuses
        .iter()
        .map(|(name, by_place)| {
            let cells = places
                .iter()
                .map(|place| by_place.get(*place).map_or("-", |status| status.word()));
            std::iter::once(name.clone())
                .chain(cells.map(str::to_owned))
                .collect()
        })
        .collect();
    println!("\n{}", table::render(&heads, &rows));
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_as_the_runner_writes_them() {
        let mut summary = Summary::default();
        let line = r#"@result {"name":"x (user)","status":"skip","reason":"needs bpf-lsm","ms":0}"#;
        assert!(summary.scenario_line(line, "6.1").unwrap());
        assert_eq!((summary.passed, summary.failed, summary.skipped), (0, 0, 1));
        let line =
            r#"@case {"family":"open","case":"plain","user":"root","status":"fail","reason":"x"}"#;
        assert!(summary.scenario_line(line, "6.1").unwrap());
        assert_eq!(summary.cases["open/plain"]["6.1 root"], Status::Fail);
        assert_eq!(
            summary.failed_cases["open/plain"].0,
            ["6.1 root".to_owned()]
        );
    }
}
