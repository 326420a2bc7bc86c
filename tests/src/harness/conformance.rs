//! The conformance families: tables of cases, each one operation that is first done without agentwatch and then in a session.
//!
//! All cases of a family share one policy and one session for each user, and each has files of its own. A case whose operation does
//! not end as it says without agentwatch proves nothing about agentwatch: it has failed, whatever happens in the session.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use self::{
    family::{Case, running_kernel},
    judge::{judge, wrong_without},
    outside::{Neighbour, Outside, OutsideCgroup},
};
use super::{
    agentwatch::Daemon,
    compare,
    container::{Attached, Container},
    fixture::{self, Listeners},
    run::{Actor, Stage, USER},
    scenario::{ListenerFixture, Values, fill},
};
use crate::act::script;

mod family;
mod judge;
mod outside;

pub use family::{Family, load_all};

/// How a case went for a user.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub family: String,
    pub case: String,
    pub user: String,
    /// `pass`, `fail` or `skip`.
    pub status: &'static str,
    pub reason: String,
}

/// Runs a family as `user`; there is a report for every case that can be done here.
pub fn run(family: &Family, user: &str, daemon: &mut Daemon, stage: &Stage) -> Vec<Report> {
    let report = |case: &str, status, reason: &str| Report {
        family: family.name.clone(),
        case: case.to_owned(),
        user: user.to_owned(),
        status,
        reason: reason.to_owned(),
    };
    let kernel = running_kernel();
    let applicable = family.cases_of(user, kernel, &Values::new());
    let missing = stage.doctor.missing(&family.needs);
    let skip = match missing.is_empty() {
        false => Some((
            format!("needs {}", missing.join(", ")),
            stage.requires(&missing),
        )),
        true if family.guest && !stage.guest => Some(("only in a guest".to_owned(), false)),
        true => None,
    };
    if let Some((reason, is_failure)) = skip {
        let status = if is_failure { "fail" } else { "skip" };
        return applicable
            .iter()
            .map(|case| report(&case.id, status, &reason))
            .collect();
    }
    match try_run(family, user, kernel, daemon, stage) {
        Ok(results) => results
            .iter()
            .map(|(case, problem)| match problem {
                None => report(case, "pass", ""),
                Some(problem) => {
                    let dir = dir_of(family, user, stage);
                    let short = problem.replace(&*dir.to_string_lossy(), "{dir}");
                    report(case, "fail", &short)
                }
            })
            .collect(),
        Err(error) => applicable
            .iter()
            .map(|case| report(&case.id, "fail", &format!("{error:#}")))
            .collect(),
    }
}

fn dir_of(family: &Family, user: &str, stage: &Stage) -> PathBuf {
    let name = format!("{}-{user}", family.name);
    stage.root.join("conformance").join(name)
}

fn try_run(
    family: &Family,
    user: &str,
    kernel: (u32, u32),
    daemon: &mut Daemon,
    stage: &Stage,
) -> Result<Vec<(String, Option<String>)>> {
    let uid = if user == "root" { 0 } else { USER };
    let session = format!("{}-{user}", family.name);
    let dir = dir_of(family, user, stage);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (state, runtime) = (stage.root.join("state"), stage.root.join("run"));
    // One that does not run, and pins that are not there, are missed by the cases that need them.
    let collector = fs::read_to_string(runtime.join("collector.pid")).unwrap_or_default();
    let mut values = Values::from([
        ("dir".to_owned(), text(&dir)),
        ("act".to_owned(), text(&stage.act)),
        ("uid".to_owned(), uid.to_string()),
        ("user".to_owned(), user.to_owned()),
        ("pid.daemon".to_owned(), daemon.pid().to_string()),
        ("root".to_owned(), text(&dir.join("merged"))),
        ("state".to_owned(), text(&state)),
        ("runtime".to_owned(), text(&runtime)),
        ("pid.collector".to_owned(), collector.trim().to_owned()),
        ("pins".to_owned(), text(&pins_of(&runtime))),
    ]);
    let mut listeners = Listeners::default();
    let fixtures: Vec<ListenerFixture> = family
        .listeners
        .iter()
        .cloned()
        .map(|mut fixture| {
            fixture.addr = fill(&fixture.addr, &values);
            fixture
        })
        .collect();
    listeners
        .open(&fixtures, &mut values)
        .context("open the listeners")?;
    let cgroup = OutsideCgroup::make(family.guest.then_some(&session))?;
    values.insert("outside.cgroup".to_owned(), cgroup.path.clone());

    let actor = Actor {
        dir: &dir,
        home: &dir,
        uid,
        seconds: 120 * u64::from(stage.patience),
    };
    // Both halves find the same: files, sockets and the process outside are made anew.
    let fresh = |listeners: &mut Listeners,
                 neighbour: Option<&Neighbour>|
     -> Result<(Values, Vec<Case>, Option<Outside>)> {
        let named = family.cases_of(user, kernel, &values);
        fixture::make_files(&dir, &family.all_files(&named, &values), &stage.act, uid)?;
        listeners.open_unix(&fixtures, &dir)?;
        cgroup.clear();
        let mut values = values.clone();
        let outside = match family.outside {
            true => Some(Outside::start(stage, &dir, uid, neighbour, &mut values)?),
            false => None,
        };
        Ok((
            values.clone(),
            family.cases_of(user, kernel, &values),
            outside,
        ))
    };
    let steps = |cases: &[Case]| -> Vec<script::Step> {
        cases
            .iter()
            .map(|case| script::Step::Act(case.act.split_whitespace().map(str::to_owned).collect()))
            .collect()
    };

    let (_, cases, outside) = fresh(&mut listeners, None)?;
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    let container = Container {
        stage,
        dir: &dir,
        uid,
        seconds: actor.seconds,
    };
    let without = if family.container {
        container.perform(&steps(&cases), None)
    } else {
        let mut command = Command::new(&stage.act);
        command.arg("--script");
        actor.perform(command, &steps(&cases))
    };
    let without = without.context("without agentwatch")?;
    drop(outside);

    let neighbour = match &family.neighbour {
        None => None,
        Some(text) => {
            let policy = stage.root.join(format!("{session}-neighbour.toml"));
            fs::write(&policy, fill(text, &values))?;
            Some(Neighbour {
                agentwatch: &daemon.agentwatch,
                policy,
            })
        }
    };
    let (values, cases, outside) = fresh(&mut listeners, neighbour.as_ref())?;
    let policy = stage.root.join(format!("{session}.toml"));
    fs::write(&policy, family.policy_for(&cases, &values))?;
    let within = if family.container {
        let attached = Attached {
            agentwatch: &daemon.agentwatch,
            name: &session,
            policy: &policy,
        };
        container.perform(&steps(&cases), Some(&attached))
    } else {
        let (policy, act) = (text(&policy), text(&stage.act));
        let arguments = [
            "run", "--policy", &policy, "--name", &session, "--", &act, "--script",
        ];
        actor.perform(daemon.agentwatch.command(&arguments), &steps(&cases))
    };
    drop(outside);
    let judged = match within {
        Ok(within) => {
            let events = await_end(&session, daemon, stage, false)?;
            judge(&cases, &without, &within, &events)
        }
        Err(error) => {
            let reason = format!("no session: {}", format!("{error:#}").replace('\n', " | "));
            cases
                .iter()
                .zip(&without)
                .map(|(case, done)| wrong_without(case, done).or_else(|| Some(reason.clone())))
                .collect()
        }
    };
    ensure!(
        daemon.is_alive(),
        "the daemon ended during the family; its log ends with:\n{}",
        daemon.log_tail()
    );
    fixture::make_files(&dir, &[], &stage.act, uid)?;
    Ok(cases.into_iter().map(|case| case.id).zip(judged).collect())
}

/// Where the daemon of a runtime directory has what it pinned: its directory says whose it is.
fn pins_of(runtime: &Path) -> PathBuf {
    let all = Path::new("/sys/fs/bpf/agentwatch");
    let is_ours = |dir: &PathBuf| {
        fs::canonicalize(dir.join("runtime"))
            .is_ok_and(|of| fs::canonicalize(runtime).is_ok_and(|own| of == own))
    };
    let entries = fs::read_dir(all).into_iter().flatten().flatten();
    let ours = entries.map(|entry| entry.path()).find(is_ours);
    ours.unwrap_or_else(|| all.join("none"))
}

/// The session's events, once it has ended and its account holds.
pub(crate) fn await_end(
    session: &str,
    daemon: &Daemon,
    stage: &Stage,
    may_lose: bool,
) -> Result<Vec<Value>> {
    let deadline = Instant::now() + Duration::from_secs(10) * stage.patience;
    loop {
        // The history may not know the session yet.
        let judged = daemon.agentwatch.events(session).and_then(|events| {
            let wrong = match compare::ended_counts(&events) {
                Some(counts) => compare::unbalanced(counts, may_lose),
                None => Some("the session has no `ended` event".to_owned()),
            };
            match wrong {
                None => Ok(events),
                Some(wrong) => bail!("{wrong}"),
            }
        });
        match judged {
            Err(_) if Instant::now() <= deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            judged => return judged,
        }
    }
}
