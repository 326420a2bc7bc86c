//! The conformance families: tables of cases, each one operation that is first done without agentwatch and then in a session.
//!
//! All cases of a family share one policy and one session for each user, and each has files of its own. A case whose operation does
//! not end as it says without agentwatch proves nothing about agentwatch: it has failed, whatever happens in the session.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    agentwatch::{Agentwatch, Daemon},
    compare,
    container::{Attached, Container},
    fixture::{self, Listeners},
    run::{self, Actor, Stage, USER},
    scenario::{ExpectedEvent, FileFixture, ListenerFixture, Values, fill, toml_files},
};
use crate::act::script::{self, Done};

/// One file of cases.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What the cases show, in one sentence.
    pub about: String,
    /// Capabilities without which nothing here can hold.
    pub needs: Vec<String>,
    /// Who runs the cases: `root`, `user`.
    pub users: Vec<String>,
    /// Whether the cases touch the host around them, so that they run in a guest that is thrown away, and nowhere else.
    #[serde(default)]
    pub guest: bool,
    /// Whether the session is attached to a container that stands already: see `container`. `{root}` is its root on the host.
    #[serde(default)]
    pub container: bool,
    /// Whether there is a process outside the session to act upon: `{outside.*}`.
    #[serde(default)]
    pub outside: bool,
    /// The policy of that process, where it is in a session of its own while the cases are done in theirs.
    pub neighbour: Option<String>,
    /// Text of the policy, with placeholders. A line that holds `{id}` is repeated for every case.
    pub policy: String,
    /// What stands before the first case; a path that holds `{id}` is made for every case.
    #[serde(default, rename = "file")]
    pub files: Vec<FileFixture>,
    #[serde(default, rename = "listener")]
    pub listeners: Vec<ListenerFixture>,
    #[serde(rename = "case")]
    pub cases: Vec<Case>,
}

/// One operation, how it ends without agentwatch and how in the session.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub id: String,
    /// Words of the actor; what stands before the last ` ; ` prepares.
    pub act: String,
    /// Where only some of the family's users can do this even without agentwatch.
    pub users: Option<Vec<String>>,
    /// The first kernel that can do this without agentwatch.
    pub since: Option<String>,
    /// The first kernel that no longer can.
    pub until: Option<String>,
    /// `ok`, an errno's name, `exit:N`, `signal:N`.
    #[serde(default = "ok")]
    pub unconfined: String,
    /// The same, or `denied` where either errno of a refusal is right.
    #[serde(default = "ok")]
    pub confined: String,
    /// What must be in the record of just this operation. Verdict and errno follow from `confined` where they are not said.
    pub event: Option<ExpectedEvent>,
    /// Files of this case alone.
    #[serde(default, rename = "file")]
    pub files: Vec<FileFixture>,
}

fn ok() -> String {
    "ok".to_owned()
}

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

/// Reads every family below `dir`.
pub fn load_all(dir: &Path) -> Result<Vec<Family>> {
    toml_files(dir)?
        .iter()
        .map(|path| load(path).with_context(|| format!("family {}", path.display())))
        .collect()
}

fn load(path: &Path) -> Result<Family> {
    let mut family: Family = toml::from_str(&fs::read_to_string(path)?)?;
    family.name = path
        .file_stem()
        .context("a family has a name")?
        .to_string_lossy()
        .into_owned();
    let mut seen = std::collections::HashSet::new();
    for case in &mut family.cases {
        let refused = matches!(case.confined.as_str(), "EACCES" | "EPERM" | "denied");
        ensure!(seen.insert(case.id.clone()), "{} stands twice", case.id);
        for bound in [&case.since, &case.until].into_iter().flatten() {
            ensure!(
                version(bound).is_some(),
                "{}: {bound} is no kernel's version; write one like 6.12",
                case.id
            );
        }
        ensure!(
            !refused || case.unconfined != case.confined,
            "{}: it ends the same way without agentwatch",
            case.id
        );
        ensure!(
            !refused || case.event.is_some(),
            "{}: a refusal needs an event",
            case.id
        );
        if let Some(event) = &mut case.event {
            let verdict = if refused { "denied" } else { "allowed" };
            event.verdict.get_or_insert_with(|| verdict.to_owned());
            if refused && case.confined != "denied" {
                event.errno.get_or_insert_with(|| case.confined.clone());
            }
        }
    }
    Ok(family)
}

impl Family {
    /// Keeps the cases that are wanted by their full name, `conformance/FAMILY/CASE`.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        let name = &self.name;
        self.cases
            .retain(|case| wanted(&format!("conformance/{name}/{}", case.id)));
    }

    /// The cases that `user` can do on this kernel, each with its placeholders replaced.
    fn cases_of(&self, user: &str, kernel: (u32, u32), values: &Values) -> Vec<Case> {
        self.cases
            .iter()
            .filter(|case| {
                let users = case.users.as_ref().unwrap_or(&self.users);
                users.iter().any(|one| one == user)
                    && case
                        .since
                        .as_deref()
                        .and_then(version)
                        .is_none_or(|since| kernel >= since)
                    && case
                        .until
                        .as_deref()
                        .and_then(version)
                        .is_none_or(|until| kernel < until)
            })
            .enumerate()
            .map(|(number, case)| {
                let mut case = case.clone();
                let values = values_of(&case.id, number, values);
                case.act = fill(&case.act, &values);
                if let Some(event) = &mut case.event {
                    event.fill(&values);
                }
                case
            })
            .collect()
    }

    /// All fixtures, those of single cases included. A path may be one of agentwatch's own: `{state}` and `{runtime}`.
    fn all_files(&self, cases: &[Case], values: &Values) -> Vec<FileFixture> {
        let (of_each, once): (Vec<_>, Vec<_>) = self
            .files
            .iter()
            .partition(|file| file.path.contains("{id}"));
        let own = cases.iter().flat_map(|case| {
            let all = of_each.iter().copied().chain(&case.files);
            all.map(|file| {
                let named = |text: &str| text.replace("{id}", &case.id);
                let mut file = file.clone();
                file.path = fill(&named(&file.path), values);
                file.content = named(&file.content);
                file.symlink = file.symlink.as_deref().map(named);
                file.hardlink = file.hardlink.as_deref().map(named);
                file
            })
        });
        once.into_iter().cloned().chain(own).collect()
    }

    fn policy_for(&self, cases: &[Case], values: &Values) -> String {
        let mut text = String::new();
        for line in self.policy.lines() {
            if line.contains("{id}") {
                for (number, case) in cases.iter().enumerate() {
                    text.push_str(&fill(line, &values_of(&case.id, number, values)));
                    text.push('\n');
                }
            } else {
                text.push_str(&fill(line, values));
                text.push('\n');
            }
        }
        text
    }
}

/// `{id}`, `{n}` (the case's place among those that run), and its directories `{in}`, `{ro}`, `{out}`.
fn values_of(id: &str, number: usize, values: &Values) -> Values {
    let mut values = values.clone();
    let dir = values.get("dir").cloned().unwrap_or_default();
    for part in ["in", "ro", "out"] {
        values.insert(part.to_owned(), format!("{dir}/{part}/{id}"));
    }
    values.insert("id".to_owned(), id.to_owned());
    values.insert("n".to_owned(), number.to_string());
    values
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

fn wrong_without(case: &Case, done: &Done) -> Option<String> {
    (done.outcome != case.unconfined).then(|| {
        format!(
            "without agentwatch: {} instead of {} ({})",
            done.outcome, case.unconfined, case.act
        )
    })
}

/// What is wrong with each case, `None` where nothing is.
fn judge(
    cases: &[Case],
    without: &[Done],
    within: &[Done],
    events: &[Value],
) -> Vec<Option<String>> {
    // A repetition is folded into its first event: then there is none in a later case's time, and the first one's count tells of it.
    let mut alike: BTreeMap<String, u64> = BTreeMap::new();
    let key = |event: &ExpectedEvent| serde_json::to_string(event).unwrap_or_default();
    for (case, done) in cases.iter().zip(within) {
        if let Some(event) = case
            .event
            .as_ref()
            .filter(|_| run::is_expected(&case.confined, &done.outcome))
        {
            *alike.entry(key(event)).or_default() += 1;
        }
    }
    let during = |event: &Value, done: &Done| {
        event
            .get("ktime_ns")
            .and_then(Value::as_u64)
            .is_some_and(|time| (done.begin..=done.end).contains(&time))
    };
    cases
        .iter()
        .zip(without)
        .zip(within)
        .map(|((case, without), within)| {
            if let Some(wrong) = wrong_without(case, without) {
                return Some(wrong);
            }
            let own: Vec<&Value> = events
                .iter()
                .filter(|event| during(event, within))
                .collect();
            if !run::is_expected(&case.confined, &within.outcome) {
                return Some(format!(
                    "in the session: {} instead of {} ({}){}",
                    within.outcome,
                    case.confined,
                    case.act,
                    refusals(&own)
                ));
            }
            let refused = refusals(&own);
            if case.confined == "ok" && !refused.is_empty() {
                return Some(format!("it ended well, yet the record has{refused}"));
            }
            let event = case.event.as_ref()?;
            if own.iter().any(|found| compare::matches(event, found)) {
                return None;
            }
            let matching = events.iter().filter(|found| compare::matches(event, found));
            let actions: u64 = matching
                .map(|found| found.get("count").and_then(Value::as_u64).unwrap_or(1))
                .sum();
            let needed = alike.get(&key(event)).copied().unwrap_or(1);
            (actions < needed).then(|| {
                format!(
                    "{actions} actions in the record instead of {needed}: {}; in its time: {}",
                    compare::describe(event),
                    own.iter()
                        .map(|event| brief(event))
                        .collect::<Vec<_>>()
                        .join(", ")
                )
            })
        })
        .collect()
}

fn refusals(events: &[&Value]) -> String {
    events
        .iter()
        .filter(|event| event.get("verdict").and_then(Value::as_str) == Some("denied"))
        .map(|event| format!("; denied: {}", brief(event)))
        .collect()
}

/// An event in a few words.
fn brief(event: &Value) -> String {
    [
        "/kind",
        "/verdict",
        "/rule/id",
        "/file/path",
        "/file/access",
        "/target/path",
        "/net/addr",
        "/net/port",
        "/net/path",
        "/guard/operation",
        "/errno",
    ]
    .into_iter()
    .filter_map(|pointer| event.pointer(pointer))
    .map(|value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    })
    .collect::<Vec<_>>()
    .join(" ")
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

/// A process outside the session: see `act::outside`.
struct Outside {
    child: Child,
}

/// The session that the process outside is in.
struct Neighbour<'a> {
    agentwatch: &'a Agentwatch,
    policy: PathBuf,
}

impl Outside {
    fn start(
        stage: &Stage,
        dir: &Path,
        uid: u32,
        neighbour: Option<&Neighbour>,
        values: &mut Values,
    ) -> Result<Outside> {
        let mut command = match neighbour {
            None => Command::new(&stage.act),
            Some(neighbour) => {
                let mut command = neighbour.agentwatch.command(&["run", "--policy"]);
                command.arg(&neighbour.policy).arg("--").arg(&stage.act);
                command
            }
        };
        command
            .arg(if neighbour.is_some() {
                "--neighbour"
            } else {
                "--outside"
            })
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        run::become_user(&mut command, uid);
        let mut child = command.spawn().context("start the process outside")?;
        let output = child.stdout.take().context("standard output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let outside = Outside { child };
        let told: BTreeMap<String, String> =
            serde_json::from_str(&line).context("what the process outside says")?;
        values.extend(told);
        Ok(outside)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It ends with its input, and takes away what it made.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A cgroup beside the session's.
struct OutsideCgroup {
    path: String,
}

impl OutsideCgroup {
    fn make(name: Option<&String>) -> Result<OutsideCgroup> {
        let Some(name) = name else {
            return Ok(OutsideCgroup {
                path: String::new(),
            });
        };
        let path = format!("/sys/fs/cgroup/outside-{name}");
        fs::create_dir_all(&path).with_context(|| format!("make {path}"))?;
        Ok(OutsideCgroup { path })
    }
}

impl OutsideCgroup {
    /// Takes away what a case has made in it.
    fn clear(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            // Only directories are removed so: the files of a cgroup are its own.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

impl Drop for OutsideCgroup {
    fn drop(&mut self) {
        self.clear();
        if !self.path.is_empty() {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Version and patch level of this kernel.
fn running_kernel() -> (u32, u32) {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .ok()
        .and_then(|text| version(&text))
        .unwrap_or((0, 0))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .trim()
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|digits| digits.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_family_reads() {
        let all = load_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance")).unwrap();
        let cases: usize = all.iter().map(|family| family.cases.len()).sum();
        assert!(cases >= 150, "only {cases} cases were found");
        for case in all.iter().flat_map(|family| &family.cases) {
            for part in case.act.split(" ; ") {
                let name = part.split_whitespace().next().unwrap_or_default();
                assert!(
                    crate::act::operations().any(|operation| operation.name == name),
                    "{}: there is no operation {name}",
                    case.id
                );
            }
        }
    }

    fn case(confined: &str, event: Option<ExpectedEvent>) -> Case {
        Case {
            id: "x".into(),
            act: "stat /".into(),
            users: None,
            since: None,
            until: None,
            unconfined: ok(),
            confined: confined.into(),
            event,
            files: Vec::new(),
        }
    }

    fn done(outcome: &str, begin: u64, end: u64) -> Done {
        Done {
            outcome: outcome.into(),
            begin,
            end,
        }
    }

    fn denied_open() -> ExpectedEvent {
        ExpectedEvent {
            kind: "open".into(),
            verdict: Some("denied".into()),
            ..Default::default()
        }
    }

    #[test]
    fn what_fails_without_agentwatch_proves_nothing() {
        let cases = [case("EACCES", Some(denied_open()))];
        let event = json!({"kind": "open", "verdict": "denied", "ktime_ns": 15, "count": 1});
        let within = [done("EACCES", 10, 20)];
        let judged = |without: &str| {
            judge(
                &cases,
                &[done(without, 1, 2)],
                &within,
                std::slice::from_ref(&event),
            )
        };
        assert_eq!(judged("ok"), [None]);
        assert!(judged("EACCES")[0].as_ref().unwrap().contains("without"));
    }

    #[test]
    fn a_folded_refusal_is_told_by_the_count_of_the_first() {
        let cases = [
            case("EACCES", Some(denied_open())),
            case("EACCES", Some(denied_open())),
        ];
        let without = [done("ok", 1, 2), done("ok", 2, 3)];
        let within = [done("EACCES", 10, 20), done("EACCES", 20, 30)];
        let event = |count: u64| json!({"kind": "open", "verdict": "denied", "ktime_ns": 15, "count": count});
        assert_eq!(judge(&cases, &without, &within, &[event(2)]), [None, None]);
        let judged = judge(&cases, &without, &within, &[event(1)]);
        assert!(judged[0].is_none() && judged[1].is_some());
    }

    #[test]
    fn what_is_allowed_has_no_refusal_in_its_time() {
        let cases = [case("ok", None)];
        let event = json!({"kind": "open", "verdict": "denied", "ktime_ns": 15});
        let judged = judge(&cases, &[done("ok", 1, 2)], &[done("ok", 10, 20)], &[event]);
        assert!(judged[0].is_some());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.12.117+deb12-cloud-amd64\n"), Some((6, 12)));
        assert!(version("6.12") > version("6.1"));
    }
}
