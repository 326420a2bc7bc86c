//! Runs the scenarios against a daemon of their own: on a line each `PASS`, `FAIL` or `SKIP`, and at the end a line for
//! machines. Runs on the host and in the VM alike; needs root.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::ExitCode, time::Instant};

use agentwatch_tests::{
    harness::{
        agentwatch::Daemon,
        capability::Doctor,
        conformance::{self, Report},
        explained::{self, Extent},
        run::{self, Stage, Verdict},
        scenario::{self, Scenario},
    },
    trials::{self, TRIALS},
};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sys::resource::Resource;
use serde_json::json;

/// How many descriptors the harness may have.
const FILES: u64 = 8192;

/// Runs the scenarios against a daemon of their own.
#[derive(Parser)]
struct Options {
    /// The agentwatch binary.
    #[arg(long)]
    agentwatch: PathBuf,
    /// The actor.
    #[arg(long)]
    act: PathBuf,
    /// Where the scenario files are.
    #[arg(long)]
    scenarios: PathBuf,
    /// Where the conformance families are.
    #[arg(long)]
    conformance: Option<PathBuf>,
    /// This machine is a guest that is thrown away: cases that touch the host may run.
    #[arg(long)]
    guest: bool,
    /// Only scenarios whose name, and cases whose `conformance/FAMILY/CASE`, contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Capabilities that this kernel must have.
    #[arg(long, value_delimiter = ',')]
    require: Vec<String>,
    /// Policies of a session that hold `policy explain` and the kernel together.
    #[arg(long, default_value_t = 40)]
    policies: usize,
    /// Actions for each of them.
    #[arg(long, default_value_t = 60)]
    actions: usize,
    /// Such sessions.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// What their policies are made from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the scenarios' directory is made.
    #[arg(long, default_value = "/tmp")]
    root: PathBuf,
    /// Multiplies every time limit.
    #[arg(long, default_value_t = 1)]
    patience: u32,
}

fn main() -> ExitCode {
    match all(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAIL harness: {error:#}");
            println!(
                "@result {}",
                json!({"name": "harness", "status": "fail", "reason": format!("{error:#}")})
            );
            ExitCode::FAILURE
        }
    }
}

fn all(options: &Options) -> Result<bool> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the scenarios need root: they start a daemon"
    );
    let mut scenarios = scenario::load_all(&options.scenarios)?;
    let wanted = |name: &str| {
        let filters = &options.only;
        filters.is_empty() || filters.iter().any(|only| name.contains(only.as_str()))
    };
    scenarios.retain(|scenario| wanted(&scenario.name));
    let mut families = match &options.conformance {
        Some(dir) => conformance::load_all(dir)?,
        None => Vec::new(),
    };
    families.iter_mut().for_each(|family| family.retain(wanted));
    // A chain of directories is taken away with a descriptor for each level.
    nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES)?;
    let root = tempfile::Builder::new()
        .prefix("agentwatch-test-")
        .tempdir_in(&options.root)?;
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
    // Copies, because the tree that they were built in may be closed to the ordinary user.
    let bin = root.path().join("bin");
    fs::create_dir(&bin)?;
    let [act, binary] =
        [(&options.act, "act"), (&options.agentwatch, "agentwatch")].map(|(from, name)| {
            let to = bin.join(name);
            fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
            anyhow::Ok(to)
        });
    let (act, binary) = (act?, binary?);

    let started = Instant::now();
    let mut daemon = Daemon::start(&binary, root.path()).context("start the daemon")?;
    let doctor = Doctor::ask(&daemon.agentwatch).context("ask what this kernel can enforce")?;
    let backends: Vec<&str> = doctor.backends.iter().map(String::as_str).collect();
    println!(
        "daemon ready after {:.1} s; backends: {}",
        started.elapsed().as_secs_f64(),
        backends.join(", ")
    );
    let mut good = true;
    let wrong = doctor.wrongly_missing();
    let verdict = if wrong.is_empty() {
        Verdict::Pass
    } else {
        Verdict::Fail(wrong.join("; "))
    };
    good &= report("doctor", "root", &verdict, 0);

    let stage = Stage {
        root: root.path().canonicalize()?,
        act,
        doctor,
        required: options.require.clone(),
        patience: options.patience,
        guest: options.guest,
    };
    let runs = scenarios
        .iter()
        .flat_map(|scenario| scenario.users.iter().map(move |user| (scenario, user)));
    for (scenario, user) in runs {
        let (verdict, milliseconds) = timed(scenario, user, &mut daemon, &stage);
        good &= report(&scenario.name, user, &verdict, milliseconds);
        if !daemon.is_alive() {
            println!(
                "the daemon ended; its log ends with:\n{}",
                daemon.log_tail()
            );
            daemon = Daemon::start(&binary, root.path()).context("start the daemon again")?;
        }
    }
    if wanted(explained::NAME) {
        let extent = Extent {
            rounds: options.rounds,
            policies: options.policies,
            actions: options.actions,
            seed: options.seed,
        };
        let started = Instant::now();
        let verdict = explained::run(extent, &daemon, &stage);
        good &= report(
            explained::NAME,
            "root",
            &verdict,
            started.elapsed().as_millis(),
        );
    }
    for trial in &TRIALS {
        if !wanted(&format!("trials/{}", trial.name)) {
            continue;
        }
        let started = Instant::now();
        let verdict = trials::run(trial, &mut daemon, &stage);
        good &= report(trial.name, "root", &verdict, started.elapsed().as_millis());
        if !daemon.is_alive() {
            daemon = Daemon::start(&binary, root.path()).context("start the daemon again")?;
        }
    }
    families.retain(|family| !family.cases.is_empty());
    let runs = families
        .iter()
        .flat_map(|family| family.users.iter().map(move |user| (family, user)));
    for (family, user) in runs {
        let started = Instant::now();
        let reports = conformance::run(family, user, &mut daemon, &stage);
        let of = |status| {
            let alike = reports.iter().filter(|report| report.status == status);
            alike.count()
        };
        println!(
            "{} ({user}): {} pass, {} fail, {} skipped, {} ms",
            family.name,
            of("pass"),
            of("fail"),
            of("skip"),
            started.elapsed().as_millis()
        );
        good &= report_cases(&reports);
        if !daemon.is_alive() {
            daemon = Daemon::start(&binary, root.path()).context("start the daemon again")?;
        }
    }
    if !good {
        println!("the daemon's log ends with:\n{}", daemon.log_tail());
    }
    Ok(good)
}

/// Prints a line for machines for each case, and one for people for what went wrong in the same way; whether nothing did.
fn report_cases(reports: &[Report]) -> bool {
    let failed: Vec<&Report> = reports
        .iter()
        .filter(|report| report.status == "fail")
        .collect();
    for alike in failed.chunk_by(|one, next| one.reason == next.reason) {
        let cases: Vec<&str> = alike.iter().map(|report| report.case.as_str()).collect();
        let (family, user) = (&alike[0].family, &alike[0].user);
        println!(
            "FAIL {family}/{} ({user}): {}",
            cases.join(", "),
            alike[0].reason
        );
    }
    for report in reports {
        println!("@case {}", json!(report));
    }
    failed.is_empty()
}

fn timed(scenario: &Scenario, user: &str, daemon: &mut Daemon, stage: &Stage) -> (Verdict, u128) {
    let started = Instant::now();
    let verdict = run::run(scenario, user, daemon, stage);
    (verdict, started.elapsed().as_millis())
}

/// Prints both lines; whether it went well.
fn report(name: &str, user: &str, verdict: &Verdict, milliseconds: u128) -> bool {
    let (status, reason) = match verdict {
        Verdict::Pass => ("pass", String::new()),
        Verdict::PassWithout(parts) => ("pass", format!("without {}", parts.join(", "))),
        Verdict::Fail(reason) => ("fail", reason.clone()),
        Verdict::Skip(reason) => ("skip", reason.clone()),
    };
    let name = if user == "root" {
        name.to_owned()
    } else {
        format!("{name} ({user})")
    };
    let word = status.to_uppercase();
    let tail = if reason.is_empty() {
        format!("{milliseconds} ms")
    } else {
        reason.clone()
    };
    println!("{word} {name}: {tail}");
    println!(
        "@result {}",
        json!({"name": name, "status": status, "reason": reason, "ms": milliseconds as u64})
    );
    status != "fail"
}
