//! Whether the commands that were to show that a task is done really ran: pure, one event at a time, in their order.
//!
//! A run is an exec that the kernel saw, with these very words as its arguments (or a shell that was given the command as its text), and
//! its outcome is the exit that the kernel saw. What an agent says about its tests is not looked at. What a run writes
//! itself, with its descendants, is its own; whatever else was written after the last run makes its result stale.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    cli::render::basename,
    event::model::{Event, Kind, Lifecycle, Process},
};

/// Paths that are named of what was written after a run; the rest is counted.
const NAMED: usize = 20;
/// Runs of one command that are kept; the rest is counted.
const RUNS: usize = 50;
/// Programs whose argument after `-c` is a command.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "ksh", "ash"];

/// One command of the task, and what became of it.
#[derive(Debug, Serialize)]
pub(super) struct Acceptance {
    pub(super) command: String,
    pub(super) outcome: Outcome,
    /// How often it ran; `runs` has the last of them.
    pub(super) times: u64,
    pub(super) runs: Vec<Run>,
    /// What was written after the last run had ended, by anything but an acceptance command; only of one that passed.
    pub(super) written_after: Vec<String>,
    pub(super) written_after_count: u64,
    /// Whether the session had changed the program, or the script, before it ran.
    pub(super) program_changed: bool,
}

/// How the last run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    NotRun,
    Passed,
    Failed,
    /// Its end is not in the record.
    Unknown,
}

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Outcome::NotRun => "not run",
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Unknown => "end not known",
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    pub(super) started: Timestamp,
    pub(super) ended: Option<Timestamp>,
    /// The executable, which the kernel names; arguments are what the process was given.
    pub(super) exe: String,
    pub(super) argv: Vec<String>,
    pub(super) pid: u32,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
}

/// Boot id, pid, start.
type Key = (String, u32, u64);

struct Wanted {
    command: String,
    /// As a shell would split it, where it needs no shell.
    words: Option<Vec<String>>,
    times: u64,
    runs: Vec<Run>,
    program_changed: bool,
}

/// What is known so far.
#[derive(Default)]
pub(super) struct Watching {
    commands: Vec<Wanted>,
    /// Processes of runs, and the command that they belong to.
    members: HashMap<Key, usize>,
    /// Runs that have not ended: command and its run.
    open: HashMap<Key, usize>,
    /// When each path was last written by something else.
    written: BTreeMap<String, Timestamp>,
    /// And by whom it is not certain: repetitions are told with the process that was first.
    repeated: BTreeMap<String, Timestamp>,
    /// Start and end of each run.
    spans: Vec<(Timestamp, Timestamp)>,
}

impl Watching {
    /// Takes an event in; they come in their order. `changed` says whether the session has changed a file so far.
    pub(super) fn event(&mut self, event: &Event, changed: impl Fn(&str) -> bool) {
        match &event.lifecycle {
            Some(Lifecycle::Started { policy, .. }) => self.task(policy.as_deref()),
            Some(Lifecycle::Reloaded { rules, .. }) => self.task(rules.as_deref()),
            _ => {}
        }
        let Some(process) = &event.process else {
            return;
        };
        if self.commands.is_empty() {
            return;
        }
        let own = (event.boot_id.clone(), process.pid, process.start_ns);
        let parent = (event.boot_id.clone(), process.ppid, process.parent_start_ns);
        if !self.members.contains_key(&own)
            && let Some(of) = self.members.get(&parent).copied()
        {
            self.members.insert(own.clone(), of);
        }
        match event.kind {
            Kind::Exec if event.errno.is_none() => self.executed(event, process, own, changed),
            Kind::Exit => {
                if let Some(run) = self
                    .open
                    .remove(&own)
                    .and_then(|index| self.commands.get_mut(index))
                    .and_then(|wanted| {
                        wanted
                            .runs
                            .iter_mut()
                            .rfind(|run| run.pid == process.pid && run.ended.is_none())
                    })
                {
                    run.ended = Some(event.time);
                    if let Some(exit) = &event.exit {
                        (run.exit_code, run.signal) = (exit.code, exit.signal);
                    }
                    self.spans.push((run.started, event.time));
                }
            }
            _ => {}
        }
    }

    /// Notes that a file was changed.
    pub(super) fn wrote(&mut self, event: &Event, path: &str) {
        if self.commands.is_empty() {
            return;
        }
        let ours = event.process.as_ref().is_some_and(|process| {
            self.members
                .contains_key(&(event.boot_id.clone(), process.pid, process.start_ns))
        });
        let known = match (&event.fold, ours) {
            (Some(_), true) => &mut self.repeated,
            (None, true) => return,
            (_, false) => &mut self.written,
        };
        let last = known.entry(path.to_owned()).or_insert(event.time);
        *last = (*last).max(event.time);
    }

    /// What became of each command.
    pub(super) fn finish(mut self) -> Vec<Acceptance> {
        // A repetition in the time of a run, by a program of a run, is the run's.
        for (path, time) in std::mem::take(&mut self.repeated) {
            let within = self
                .spans
                .iter()
                .any(|(start, end)| (*start..=*end).contains(&time));
            if !within {
                let last = self.written.entry(path).or_insert(time);
                *last = (*last).max(time);
            }
        }
        let Self {
            commands, written, ..
        } = self;
        commands
            .into_iter()
            .map(|wanted| {
                let outcome = wanted.runs.last().map_or(Outcome::NotRun, |run| {
                    match (run.ended, run.exit_code) {
                        (Some(_), Some(0)) => Outcome::Passed,
                        (Some(_), _) => Outcome::Failed,
                        (None, _) => Outcome::Unknown,
                    }
                });
                let since = wanted
                    .runs
                    .last()
                    .and_then(|run| run.ended)
                    .filter(|_| outcome == Outcome::Passed);
                let after: Vec<&String> = written
                    .iter()
                    .filter(|(_, time)| since.is_some_and(|since| **time > since))
                    .map(|(path, _)| path)
                    .collect();
                Acceptance {
                    command: wanted.command,
                    outcome,
                    times: wanted.times,
                    runs: wanted.runs,
                    written_after_count: after.len() as u64,
                    written_after: after.into_iter().take(NAMED).cloned().collect(),
                    program_changed: wanted.program_changed,
                }
            })
            .collect()
    }

    /// The task in force from here on. Commands of one before stay in the report.
    fn task(&mut self, record: Option<&crate::event::model::PolicyRecord>) {
        for command in record.iter().flat_map(|record| &record.task.acceptance) {
            if self
                .commands
                .iter()
                .all(|wanted| wanted.command != *command)
            {
                self.commands.push(Wanted {
                    command: command.clone(),
                    words: words(command),
                    times: 0,
                    runs: Vec::new(),
                    program_changed: false,
                });
            }
        }
    }

    fn executed(
        &mut self,
        event: &Event,
        process: &Process,
        own: Key,
        changed: impl Fn(&str) -> bool,
    ) {
        // The run goes on as another program, as a launcher does, or as a shell that needs no child.
        let goes_on = self.open.get(&own).copied();
        let Some((index, script)) = self
            .commands
            .iter()
            .enumerate()
            .find_map(|(index, wanted)| wanted.is_run_by(process).map(|script| (index, script)))
        else {
            return;
        };
        if let Some(run) = goes_on
            .filter(|before| *before == index)
            .and_then(|index| self.commands.get_mut(index))
            .and_then(|wanted| wanted.runs.last_mut())
        {
            run.exe.clone_from(&process.exe);
            run.argv.clone_from(&process.argv);
            return;
        }
        // A shell's child that is the command itself is the same run.
        if self.members.get(&own) == Some(&index) {
            return;
        }
        if let Some(wanted) = self.commands.get_mut(index) {
            wanted.times += 1;
            if wanted.runs.len() == RUNS {
                wanted.runs.remove(0);
            }
            wanted.program_changed =
                changed(&process.exe) || script.as_deref().is_some_and(&changed);
            wanted.runs.push(Run {
                started: event.time,
                ended: None,
                exe: process.exe.clone(),
                argv: process.argv.clone(),
                pid: process.pid,
                exit_code: None,
                signal: None,
            });
            self.open.insert(own.clone(), index);
            self.members.insert(own, index);
        }
    }
}

impl Wanted {
    /// Whether a process that was just executed is this command; then the script that it runs, if it is an interpreter.
    fn is_run_by(&self, process: &Process) -> Option<Option<String>> {
        let argv = &process.argv;
        if process.argv_truncated {
            return None;
        }
        if let Some(words) = &self.words {
            if same(argv, words) {
                return Some(None);
            }
            // The kernel puts the interpreter of a script before its arguments, perhaps with one of its own.
            for skipped in [1, 2] {
                if let Some(rest) = argv.get(skipped..)
                    && same(rest, words)
                    && argv
                        .get(1)
                        .is_some_and(|first| skipped == 1 || first.starts_with('-'))
                    && rest.first().is_some_and(|script| script.contains('/'))
                {
                    return Some(rest.first().map(|script| absolute(script, &process.cwd)));
                }
            }
        }
        let shell = SHELLS.contains(&basename(&process.exe))
            || argv
                .first()
                .is_some_and(|name| SHELLS.contains(&basename(name)));
        let text = argv
            .iter()
            .skip(1)
            .position(|option| {
                option.starts_with('-') && !option.starts_with("--") && option.contains('c')
            })
            .and_then(|at| argv.get(at + 2));
        (shell && text.is_some_and(|text| text.trim() == self.command.trim())).then_some(None)
    }
}

/// Whether arguments are these words; a program's directory does not matter where the task names none.
fn same(argv: &[String], words: &[String]) -> bool {
    let (Some((program, arguments)), Some((named, expected))) =
        (argv.split_first(), words.split_first())
    else {
        return false;
    };
    arguments == expected
        && (program == named
            || (!named.contains('/') && basename(program) == named)
            || (named.contains('/') && program.ends_with(named.trim_start_matches('.'))))
}

fn absolute(path: &str, cwd: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    format!("{cwd}/{}", path.trim_start_matches("./"))
}

/// The words of a command that needs no shell.
fn words(command: &str) -> Option<Vec<String>> {
    let plain = !command
        .chars()
        .any(|character| "|&;<>()$`*?[]#~{}!\n".contains(character));
    shlex::split(command).filter(|words| plain && !words.is_empty())
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::event::{
        model::{Exit, PolicyRecord},
        samples::sample,
    };

    fn at(mut event: Event, n: i64) -> Event {
        event.time += SignedDuration::from_secs(n);
        event
    }

    fn started(commands: &[&str]) -> Event {
        let mut event = sample(Kind::Session);
        if let Some(Lifecycle::Started { policy, .. }) = &mut event.lifecycle {
            let mut record = PolicyRecord::default();
            record.task.acceptance = commands.iter().map(|text| (*text).to_owned()).collect();
            *policy = Some(Box::new(record));
        }
        event
    }

    fn process(mut event: Event, pid: u32, ppid: u32, exe: &str, argv: &[&str]) -> Event {
        event.errno = None;
        event.process = Some(Process {
            pid,
            tid: pid,
            ppid,
            start_ns: u64::from(pid) * 1000,
            parent_start_ns: u64::from(ppid) * 1000,
            exe: exe.to_owned(),
            argv: argv.iter().map(|text| (*text).to_owned()).collect(),
            cwd: "/w".to_owned(),
            ..Process::default()
        });
        event
    }

    fn exec(n: i64, pid: u32, ppid: u32, exe: &str, argv: &[&str]) -> Event {
        at(process(sample(Kind::Exec), pid, ppid, exe, argv), n)
    }

    fn exit(n: i64, pid: u32, ppid: u32, code: i32) -> Event {
        let mut event = at(process(sample(Kind::Exit), pid, ppid, "/x", &[]), n);
        event.exit = Some(Exit {
            code: Some(code),
            ..Exit::default()
        });
        event
    }

    fn write(n: i64, pid: u32, ppid: u32) -> Event {
        at(process(sample(Kind::Create), pid, ppid, "/x", &[]), n)
    }

    fn watched(commands: &[&str], events: &[Event], changed: &[&str]) -> Vec<Acceptance> {
        let mut watching = Watching::default();
        watching.event(&started(commands), |_| false);
        for event in events {
            watching.event(event, |path| changed.contains(&path));
            if event.kind == Kind::Create {
                watching.wrote(event, &format!("/w/{}", event.time.as_second() % 1000));
            }
        }
        watching.finish()
    }

    #[test]
    fn a_run_is_found_however_it_is_started() {
        let found = |command: &str, exe: &str, argv: &[&str]| {
            let found = watched(
                &[command],
                &[exec(1, 10, 1, exe, argv), exit(2, 10, 1, 0)],
                &[],
            );
            found[0].outcome
        };
        for (command, exe, argv) in [
            ("cargo test", "/usr/bin/cargo", &["cargo", "test"][..]),
            ("cargo test", "/usr/bin/cargo", &["/usr/bin/cargo", "test"]),
            (
                "sh test.sh 'a b'",
                "/usr/bin/dash",
                &["sh", "test.sh", "a b"],
            ),
            (
                "pytest -q",
                "/usr/bin/python3",
                &["/usr/bin/python3", "/usr/bin/pytest", "-q"],
            ),
            ("./check.sh", "/usr/bin/bash", &["/bin/bash", "./check.sh"]),
            (
                "./check.sh",
                "/usr/bin/bash",
                &["/bin/bash", "-e", "./check.sh"],
            ),
            ("./check.sh", "/w/check", &["/w/check.sh"]),
            (
                "make && make test",
                "/usr/bin/bash",
                &["bash", "-lc", "make && make test"],
            ),
            (
                "make && make test",
                "/usr/bin/dash",
                &["sh", "-c", " make && make test\n"],
            ),
            (
                "cargo test",
                "/usr/bin/bash",
                &["bash", "-l", "-c", "cargo test"],
            ),
        ] {
            assert_eq!(found(command, exe, argv), Outcome::Passed, "{argv:?}");
        }
        for (command, exe, argv) in [
            (
                "cargo test",
                "/usr/bin/cargo",
                &["cargo", "test", "--no-run"][..],
            ),
            ("cargo test", "/usr/bin/echo", &["echo", "cargo", "test"]),
            ("cargo test", "/usr/bin/echo", &["echo", "-c", "cargo test"]),
            (
                "make && make test",
                "/usr/bin/bash",
                &["bash", "-c", "echo 'make && make test'"],
            ),
            ("make", "/usr/bin/make", &["make", "clean"]),
        ] {
            assert_eq!(found(command, exe, argv), Outcome::NotRun, "{argv:?}");
        }
    }

    #[test]
    fn the_last_run_decides_and_a_run_is_counted_once() {
        let events = [
            exec(1, 10, 1, "/usr/bin/bash", &["bash", "-lc", "cargo test"]),
            exec(2, 11, 10, "/usr/bin/cargo", &["cargo", "test"]),
            exit(3, 11, 10, 0),
            exit(4, 10, 1, 0),
            exec(5, 12, 1, "/usr/bin/cargo", &["cargo", "test"]),
            exec(5, 12, 1, "/opt/toolchain/cargo", &["cargo", "test"]),
            exit(6, 12, 1, 101),
        ];
        let found = watched(&["cargo test", "make"], &events, &[]);
        assert_eq!(
            (found[0].outcome, found[0].times, found[0].runs.len()),
            (Outcome::Failed, 2, 2)
        );
        assert_eq!(found[0].runs[1].exe, "/opt/toolchain/cargo");
        assert_eq!(found[0].runs[1].exit_code, Some(101));
        assert_eq!(found[1].outcome, Outcome::NotRun);
        let found = watched(&["cargo test"], &events[..6], &[]);
        assert_eq!(found[0].outcome, Outcome::Unknown);
    }

    #[test]
    fn what_others_write_afterwards_is_told_and_what_a_run_writes_is_its_own() {
        let test = exec(10, 10, 1, "/usr/bin/make", &["make", "test"]);
        let compiler = exec(11, 11, 10, "/usr/bin/cc", &["cc"]);
        let mut events = vec![
            write(5, 2, 1),
            test,
            compiler,
            write(12, 11, 10),
            exit(13, 11, 10, 0),
            exit(14, 10, 1, 0),
        ];
        assert_eq!(
            watched(&["make test"], &events, &[])[0].written_after_count,
            0
        );
        // Another acceptance command makes nothing stale.
        events.extend([
            exec(20, 20, 1, "/usr/bin/make", &["make", "lint"]),
            write(21, 20, 1),
            exit(22, 20, 1, 0),
        ]);
        let both = ["make test", "make lint"];
        assert!(
            watched(&both, &events, &[])
                .iter()
                .all(|found| found.written_after_count == 0)
        );
        events.push(write(30, 2, 1));
        let found = watched(&both, &events, &[]);
        assert!(found.iter().all(|found| found.written_after.len() == 1));
        // A repetition that is told with the run's process, after the run.
        events.pop();
        let mut repeated = write(31, 11, 10);
        repeated.fold = Some("s-1".to_owned());
        events.push(repeated);
        assert!(
            watched(&both, &events, &[])
                .iter()
                .all(|found| found.written_after_count == 1)
        );
    }

    #[test]
    fn a_program_of_the_sessions_own_making_is_told() {
        let events = [
            exec(1, 10, 1, "/w/bin/cargo", &["cargo", "test"]),
            exit(2, 10, 1, 0),
        ];
        assert!(watched(&["cargo test"], &events, &["/w/bin/cargo"])[0].program_changed);
        let events = [
            exec(1, 10, 1, "/usr/bin/bash", &["/bin/bash", "./check.sh"]),
            exit(2, 10, 1, 0),
        ];
        assert!(watched(&["./check.sh"], &events, &["/w/check.sh"])[0].program_changed);
        assert!(!watched(&["./check.sh"], &events, &[])[0].program_changed);
    }
}
