//! Runs one scenario as one user and says how it went.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::{Gid, Pid, Uid},
};

use super::{
    agentwatch::{Daemon, said},
    capability::Doctor,
    compare,
    fixture::{self, Listeners},
    probe,
    scenario::{Scenario, Step, Values},
};
use crate::act::script;

/// The uid of `users = ["user"]`.
pub const USER: u32 = 1000;

/// What stands among the required capabilities where the programs that scenarios need have to be there.
const PROGRAMS: &str = "programs";

/// How a scenario went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Everything that could be tried held; these parts could not be tried here.
    PassWithout(Vec<String>),
    Fail(String),
    Skip(String),
}

/// Where things are while scenarios run.
pub struct Stage {
    /// Holds everything that the scenarios make.
    pub root: PathBuf,
    /// The actor, where every user can execute it.
    pub act: PathBuf,
    /// What this kernel can enforce.
    pub doctor: Doctor,
    /// Capabilities that must be there: a scenario that would be skipped for lack of one fails instead.
    pub required: Vec<String>,
    /// Times are multiplied by this under emulation.
    pub patience: u32,
    /// Whether all this is a guest that is thrown away.
    pub guest: bool,
}

impl Stage {
    /// Whether one of these needs is for something that must be here.
    pub(super) fn requires(&self, missing: &[String]) -> bool {
        missing.iter().any(|need| {
            self.required
                .iter()
                .any(|required| need.starts_with(required.as_str()))
        })
    }
}

/// Runs the scenario as `user` and never panics on what the daemon says.
pub fn run(scenario: &Scenario, user: &str, daemon: &mut Daemon, stage: &Stage) -> Verdict {
    let missing = stage.doctor.missing(&scenario.needs);
    if !missing.is_empty() {
        return match missing.iter().find(|need| {
            stage
                .required
                .iter()
                .any(|required| need.starts_with(required.as_str()))
        }) {
            Some(need) => Verdict::Fail(format!(
                "this kernel must have {need}, and doctor does not list it"
            )),
            None => Verdict::Skip(format!("needs {}", missing.join(", "))),
        };
    }
    if scenario.guest && !stage.guest {
        return Verdict::Skip("only in a guest".to_owned());
    }
    if let Some(not_below) = &scenario.not_below
        && stage.root.starts_with(not_below)
    {
        return Verdict::Skip(format!("not below {not_below}: see --root"));
    }
    if let Some(program) = scenario
        .programs
        .iter()
        .find(|path| !Path::new(path).exists())
    {
        return match stage.requires(&[PROGRAMS.to_owned()]) {
            true => Verdict::Fail(format!("this machine must have {program}")),
            false => Verdict::Skip(format!("this machine has no {program}")),
        };
    }
    match try_run(scenario, user, daemon, stage) {
        Ok(left_out) if left_out.is_empty() => Verdict::Pass,
        Ok(left_out) => Verdict::PassWithout(left_out),
        Err(error) => Verdict::Fail(format!("{error:#}")),
    }
}

fn try_run(
    scenario: &Scenario,
    user: &str,
    daemon: &mut Daemon,
    stage: &Stage,
) -> Result<Vec<String>> {
    let uid = if user == "root" { 0 } else { USER };
    let session = format!("{}-{user}", scenario.name);
    let dir = stage.root.join("work").join(&session);
    let mut listeners = Listeners::default();
    let mut values = Values::from([
        ("dir".to_owned(), dir.to_string_lossy().into_owned()),
        ("act".to_owned(), stage.act.to_string_lossy().into_owned()),
        ("pid.daemon".to_owned(), daemon.pid().to_string()),
        ("uid".to_owned(), uid.to_string()),
    ]);
    listeners
        .open(&scenario.listeners, &mut values)
        .context("open the listeners")?;
    let mut scenario = scenario.filled(&values)?;
    let left_out = leave_out(&mut scenario, &stage.doctor);

    let (home, workspace) = (dir.join(&scenario.home), dir.join(&scenario.workspace));
    let actor = Actor {
        dir: &workspace,
        home: &home,
        uid,
        seconds: scenario.seconds * u64::from(stage.patience),
    };
    let step_seconds = scenario.step_seconds.to_string();
    let fresh = |listeners: &mut Listeners| -> Result<()> {
        fixture::make_files(&dir, &scenario.files, &stage.act, uid)?;
        listeners.open_unix(&scenario.listeners, &dir)
    };

    let unconfined: Vec<(usize, &Step)> = scenario
        .steps
        .iter()
        .enumerate()
        .filter(|(_, step)| step.unconfined.is_some())
        .collect();
    if !unconfined.is_empty() {
        fresh(&mut listeners)?;
        let mut command = Command::new(&stage.act);
        command.args(["--script", &step_seconds]);
        let results = actor
            .perform(command, &scripts(&unconfined))
            .context("without agentwatch")?;
        for ((index, step), done) in unconfined.iter().zip(&results) {
            let result = &done.outcome;
            let wanted = step.unconfined.as_deref().unwrap_or("ok");
            ensure!(
                wanted == result,
                "step {index} without agentwatch: {result} instead of {wanted} ({})",
                told(step)
            );
        }
    }

    fresh(&mut listeners)?;
    let before = daemon.resident()?;
    let policy = stage.root.join(format!("{session}.toml"));
    std::fs::write(&policy, &scenario.policy)?;
    let policy = policy.to_string_lossy();
    let mut arguments = vec!["run", "--policy", &policy, "--name", &session];
    if let Some(mode) = &scenario.mode {
        arguments.extend(["--mode", mode]);
    }
    if scenario.accept_degraded {
        arguments.push("--accept-degraded");
    }
    let act = stage.act.to_string_lossy();
    arguments.extend(["--", &act, "--script", &step_seconds]);
    let confined: Vec<(usize, &Step)> = scenario
        .steps
        .iter()
        .enumerate()
        .filter(|(_, step)| step.outside.is_none())
        .collect();
    if !confined.is_empty() {
        let command = daemon.agentwatch.command(&arguments);
        let results = actor.perform(command, &scripts(&confined))?;
        let mut wrong = Vec::new();
        for ((index, step), done) in confined.iter().zip(&results) {
            let result = &done.outcome;
            if !is_expected(&step.expect, result) {
                wrong.push(format!(
                    "step {index}: {result} instead of {} ({})",
                    step.expect,
                    told(step)
                ));
            }
        }
        if !wrong.is_empty() {
            bail!("{}", wrong.join("; "));
        }
    }
    for step in &scenario.steps {
        if let Some(name) = &step.outside {
            probe::run(name, daemon).with_context(|| format!("probe {name}"))?;
        }
    }
    ensure!(
        daemon.is_alive(),
        "the daemon ended during the scenario; its log ends with:\n{}",
        daemon.log_tail()
    );
    if !confined.is_empty() {
        await_events(&scenario, &session, daemon, stage)?;
    }
    if let Some(limit) = scenario.daemon_grows {
        let after = daemon.resident()?;
        ensure!(
            after <= before + limit * 1024,
            "the daemon grew from {before} kB to {after} kB"
        );
    }
    Ok(left_out)
}

fn scripts(steps: &[(usize, &Step)]) -> Vec<script::Step> {
    steps.iter().filter_map(|(_, step)| step.script()).collect()
}

/// Takes out the steps and expectations whose needs are not met here, and says which.
fn leave_out(scenario: &mut Scenario, doctor: &Doctor) -> Vec<String> {
    let mut out = Vec::new();
    scenario.steps.retain(|step| {
        let missing = doctor.missing(&step.needs);
        if !missing.is_empty() {
            out.push(format!("{} needs {}", told(step), missing.join(", ")));
        }
        missing.is_empty()
    });
    scenario
        .events
        .retain(|event| doctor.missing(&event.needs).is_empty());
    out
}

pub(super) fn is_expected(expected: &str, result: &str) -> bool {
    match expected {
        "denied" => matches!(result, "EACCES" | "EPERM"),
        other => other == result,
    }
}

fn told(step: &Step) -> String {
    let words = step.act.as_ref().or(step.run.as_ref());
    words
        .map(|words| words.join(" "))
        .or_else(|| step.outside.clone())
        .unwrap_or_default()
}

/// Polls until the session has ended and every expectation is met, and says what is missing when time is up.
fn await_events(scenario: &Scenario, session: &str, daemon: &Daemon, stage: &Stage) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(6) * stage.patience;
    loop {
        let mut wrong = Vec::new();
        match daemon.agentwatch.events(session) {
            Err(error) => wrong.push(format!("{error:#}")),
            Ok(events) => {
                let counts = compare::ended_counts(&events);
                wrong.extend(compare::unmet(&scenario.events, &events, counts.is_some()));
                match counts {
                    None => wrong.push("the session has no `ended` event".to_owned()),
                    Some(counts) => wrong.extend(compare::unbalanced(counts, scenario.may_lose)),
                }
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{}", wrong.join("; "));
        }
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// Who performs the steps, where, and for how long at most.
pub(crate) struct Actor<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) home: &'a Path,
    pub(crate) uid: u32,
    pub(crate) seconds: u64,
}

/// A descriptor that whoever starts the actor has open: a session must not have it.
pub(super) const INHERITED: i32 = 77;

impl Actor<'_> {
    /// Runs `command`, which is to be an actor that reads a script, and gives each step's result.
    pub(crate) fn perform(
        &self,
        command: Command,
        steps: &[script::Step],
    ) -> Result<Vec<script::Done>> {
        self.perform_when(command, steps, "", || Ok(()))
    }

    /// The same for an actor that says `ready` on a line of its own once it stands where it is to act; what is to be done then is
    /// done before it has its script.
    pub(crate) fn perform_when(
        &self,
        mut command: Command,
        steps: &[script::Step],
        ready: &str,
        then: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<script::Done>> {
        let script = serde_json::to_vec(steps)?;
        command
            .current_dir(self.dir)
            .env("HOME", self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        become_user(&mut command, self.uid);
        // SAFETY: only system calls are made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                Errno::result(libc::dup2(0, INHERITED))?;
                Ok(())
            });
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("run {}", command.get_program().display()))?;
        let prepared = match ready {
            "" => Ok(()),
            word => hear(&mut child, word).and_then(|()| then()),
        };
        if let Err(error) = prepared {
            let _ = child.kill();
            let output = child.wait_with_output()?;
            return Err(error.context(said(&output)));
        }
        let sent = child
            .stdin
            .take()
            .context("standard input is piped")?
            .write_all(&script);
        let output = wait_with_output(child, Duration::from_secs(self.seconds))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let results: Vec<script::Done> = text.lines().filter_map(script::parse_result).collect();
        if results.len() != steps.len() || !output.status.success() {
            // A broken pipe only repeats what the command itself says better.
            let _ = sent;
            bail!(
                "{} of {} steps came to an end, then {}: {}",
                results.len(),
                steps.len(),
                output.status,
                said(&output)
            );
        }
        Ok(results)
    }
}

/// Waits for a line, and takes no more than that.
fn hear(child: &mut Child, word: &str) -> Result<()> {
    let output = child.stdout.as_mut().context("standard output is piped")?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        let len = std::io::Read::read(output, &mut byte)?;
        ensure!(len > 0, "the actor ended before it said {word}");
        line.extend(byte);
    }
    let line = String::from_utf8_lossy(&line);
    ensure!(
        line.trim() == word,
        "the actor said {line:?} instead of {word}"
    );
    Ok(())
}

/// Lets the command run as another user.
pub(super) fn become_user(command: &mut Command, uid: u32) {
    if uid == 0 {
        return;
    }
    // SAFETY: only system calls are made between fork and exec.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setgroups(&[])?;
            nix::unistd::setgid(Gid::from_raw(uid))?;
            nix::unistd::setuid(Uid::from_raw(uid))?;
            Ok(())
        });
    }
}

/// Waits with a limit; the whole process group is killed where it passes.
fn wait_with_output(child: Child, limit: Duration) -> Result<Output> {
    let group = Pid::from_raw(child.id().cast_signed());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(limit) {
        Ok(output) => Ok(output?),
        Err(_) => {
            let _ = killpg(group, Signal::SIGKILL);
            bail!("still running after {} s", limit.as_secs())
        }
    }
}
