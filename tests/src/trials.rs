//! What neither a scenario's steps nor a table of cases can say: things that happen at the same time, or in great number. Each trial
//! has a session of its own on the harness's daemon.

mod another;
mod later;
mod mounts;
mod open;
mod rare;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags},
    sys::{
        mman::{MapFlags, ProtFlags, mmap},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    act::script::{Done, Step},
    harness::{
        agentwatch::{Daemon, said},
        compare, conformance,
        run::{Actor, Stage, Verdict},
    },
};

/// One trial.
pub struct Trial {
    pub name: &'static str,
    /// Capabilities without which it shows nothing.
    needs: &'static [&'static str],
    try_it: fn(&Place<'_>) -> Result<()>,
}

/// All of them.
pub const TRIALS: [Trial; 15] = [
    Trial {
        name: "ten_thousand_rules",
        needs: &["bpf-lsm"],
        try_it: many_rules,
    },
    Trial {
        name: "attach_to_hundreds_of_threads",
        needs: &["bpf-lsm"],
        try_it: attach_to_threads,
    },
    Trial {
        name: "directories_renamed_while_walked",
        needs: &["bpf-lsm"],
        try_it: renamed_while_walked,
    },
    Trial {
        name: "device_numbers_used_again",
        needs: &["bpf-lsm"],
        try_it: device_used_again,
    },
    Trial {
        name: "denials_survive_a_full_ring",
        needs: &["bpf-lsm"],
        try_it: full_ring,
    },
    Trial {
        name: "refusals_beyond_their_ring_are_declared",
        needs: &["bpf-lsm"],
        try_it: full_ring_of_refusals,
    },
    Trial {
        name: "a_floor_and_no_kprobes",
        needs: &["bpf-lsm"],
        try_it: another::daemon,
    },
    Trial {
        name: "mounts_of_the_host",
        needs: &["bpf-lsm"],
        try_it: mounts::made_by_the_host,
    },
    Trial {
        name: "denied_path_made_by_others",
        needs: &["bpf-lsm"],
        try_it: later::made_by_others,
    },
    Trial {
        name: "denied_path_made_by_the_session",
        needs: &["bpf-lsm"],
        try_it: later::made_by_the_session,
    },
    Trial {
        name: "deeper_than_a_walk",
        needs: &["bpf-lsm"],
        try_it: rare::deeper_than_a_walk,
    },
    Trial {
        name: "keyring_to_a_parent_outside",
        needs: &["bpf-lsm"],
        try_it: rare::keyring_to_a_parent_outside,
    },
    Trial {
        name: "tun_that_stands",
        needs: &["bpf-lsm"],
        try_it: rare::tun_that_stands,
    },
    Trial {
        name: "attach_with_open_things",
        needs: &["bpf-lsm"],
        try_it: open::attached,
    },
    Trial {
        name: "listener_as_standard_input",
        needs: &["bpf-lsm"],
        try_it: open::passed_on,
    },
];

/// Runs a trial; never panics on what the daemon says.
pub fn run(trial: &Trial, daemon: &mut Daemon, stage: &Stage) -> Verdict {
    let needs: Vec<String> = trial.needs.iter().map(|need| (*need).to_owned()).collect();
    let missing = stage.doctor.missing(&needs);
    if !missing.is_empty() {
        return Verdict::Skip(format!("needs {}", missing.join(", ")));
    }
    if !stage.guest {
        return Verdict::Skip("only in a guest".to_owned());
    }
    let dir = stage.root.join("trials").join(trial.name);
    let tried = fs::create_dir_all(dir.join("in"))
        .map_err(anyhow::Error::from)
        .and_then(|()| {
            (trial.try_it)(&Place {
                name: trial.name,
                dir: dir.clone(),
                daemon,
                stage,
            })
        });
    let alive = daemon.is_alive();
    let _ = fs::remove_dir_all(dir);
    match tried {
        Ok(()) if alive => Verdict::Pass,
        Ok(()) => Verdict::Fail("the daemon ended".to_owned()),
        Err(error) => Verdict::Fail(format!("{error:#}")),
    }
}

/// Where a trial takes place.
struct Place<'a> {
    name: &'a str,
    dir: PathBuf,
    daemon: &'a Daemon,
    stage: &'a Stage,
}

impl Place<'_> {
    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    /// A policy under which `in` may be written and the actor executed, and what is added to its `[files]` and behind.
    fn policy(&self, more: &str) -> Result<PathBuf> {
        let path = self.stage.root.join(format!("{}.toml", self.name));
        let act = self.stage.act.display();
        let text = format!(
            "[files]\nexec = ['{act}']\nwrite = ['{}', '/proc']\n{more}",
            self.path("in")
        );
        fs::write(&path, text)?;
        Ok(path)
    }

    fn actor(&self) -> Actor<'_> {
        Actor {
            dir: &self.dir,
            home: &self.dir,
            uid: 0,
            seconds: 60 * u64::from(self.stage.patience),
        }
    }

    /// The actor with a script, without a session.
    fn unheld(&self) -> Command {
        let mut command = Command::new(&self.stage.act);
        command.arg("--script");
        command
    }

    /// The same in a session.
    fn held(&self, policy: &Path) -> Command {
        let (policy, act) = (policy.to_string_lossy(), self.stage.act.to_string_lossy());
        self.daemon.agentwatch.command(&[
            "run", "--policy", &policy, "--name", self.name, "--", &act, "--script",
        ])
    }

    /// The session's events once it has ended.
    fn events(&self, may_lose: bool) -> Result<Vec<Value>> {
        conformance::await_end(self.name, self.daemon, self.stage, may_lose)
    }
}

fn steps(acts: &[String]) -> Vec<Step> {
    acts.iter()
        .map(|act| Step::Act(act.split_whitespace().map(str::to_owned).collect()))
        .collect()
}

fn expect(done: &[Done], outcomes: &[&str]) -> Result<()> {
    let found: Vec<&str> = done.iter().map(|done| done.outcome.as_str()).collect();
    ensure!(found == outcomes, "{found:?} instead of {outcomes:?}");
    Ok(())
}

fn field<'a>(event: &'a Value, pointer: &str) -> &'a str {
    event
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Actions that events of a verdict about a path tell of.
fn actions(events: &[Value], verdict: &str, path: &str) -> u64 {
    events
        .iter()
        .filter(|event| field(event, "/verdict") == verdict && field(event, "/file/path") == path)
        .map(|event| event["count"].as_u64().unwrap_or(1))
        .sum()
}

/// Nobody empties the rings while more happens than they hold. What was refused meanwhile is told all the same, and what is lost
/// is declared.
fn full_ring(place: &Place<'_>) -> Result<()> {
    /// Each makes two events that nothing folds. With names this long each takes more than 3 KiB: seven times what the ring of 4 MiB
    /// takes, in few events.
    const NAMES: u32 = 5000;
    const LEVELS: usize = 14;
    const LENGTH: usize = 220;
    let secret = place.path("secret");
    fs::write(&secret, "secret")?;
    let policy = place.policy("")?;
    let (inside, end) = (place.path("in"), place.path("in/end"));
    let deep = (0..LEVELS).fold(place.dir.join("in"), |dir, _| dir.join("d".repeat(LENGTH)));
    fs::create_dir_all(&deep)?;
    let daemon = Pid::from_raw(place.daemon.pid().cast_signed());
    let before = place.daemon.resident()?;
    let script = steps(&[
        format!("write-text {inside}/begun x"),
        format!("open-read {secret}"),
        format!("make-names {} {NAMES}", deep.display()),
        format!("open-write {secret}"),
        "forks 200".to_owned(),
        format!("write-text {end} x"),
    ]);
    let done = AtomicBool::new(false);
    let wait_for = |name: &str| {
        while !place.dir.join(name).exists() && !done.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(1));
        }
    };
    let results = std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_for("in/begun");
            let stopped = kill(daemon, Signal::SIGSTOP);
            wait_for("in/end");
            let _ = stopped.and_then(|()| kill(daemon, Signal::SIGCONT));
        });
        let results = place.actor().perform(place.held(&policy), &script);
        done.store(true, Ordering::SeqCst);
        results
    });
    expect(&results?, &["ok", "EACCES", "ok", "EACCES", "ok", "ok"])?;
    let events = place.events(true)?;
    let counts = compare::ended_counts(&events).context("the session's account")?;
    ensure!(
        counts["lost"].as_u64() > Some(0),
        "nothing was lost, so the ring was never full: {counts}"
    );
    let declared: u64 = events
        .iter()
        .filter_map(|event| event.pointer("/loss/events")?.as_u64())
        .sum();
    ensure!(
        Some(declared) == counts["lost"].as_u64(),
        "{declared} declared lost: {counts}"
    );
    ensure!(
        actions(&events, "denied", &secret) == 2,
        "the refusals are not in the record"
    );
    let after = place.daemon.resident()?;
    println!("  {counts}; the daemon: {before} kB before, {after} kB after");
    // What the ring held, several times: records, events, and events on their way to the history.
    ensure!(
        after < before + 160 * 1024,
        "the daemon grew from {before} kB to {after} kB"
    );
    Ok(())
}

/// The same of more refusals than their own ring holds: each is refused, and those that are not told of are declared.
fn full_ring_of_refusals(place: &Place<'_>) -> Result<()> {
    /// Of more than 3 KiB each, where the ring has 2 MiB.
    const REFUSALS: usize = 1500;
    const LEVELS: usize = 14;
    const LENGTH: usize = 220;
    let deep = (0..LEVELS).fold(place.dir.clone(), |dir, _| dir.join("d".repeat(LENGTH)));
    fs::create_dir_all(&deep)?;
    let policy = place.policy("")?;
    let script: Vec<String> = (0..REFUSALS)
        .map(|n| format!("creat {}/{n}", deep.display()))
        .collect();
    let [begun, end] =
        ["in/begun", "in/end"].map(|name| format!("write-text {} x", place.path(name)));
    let script = steps(&[vec![begun, "sleep 1000".to_owned()], script, vec![end]].concat());
    let daemon = Pid::from_raw(place.daemon.pid().cast_signed());
    let done = AtomicBool::new(false);
    let results = std::thread::scope(|scope| {
        scope.spawn(|| {
            let wait_for = |name: &str| {
                while !place.dir.join(name).exists() && !done.load(Ordering::SeqCst) {
                    sleep(Duration::from_millis(1));
                }
            };
            wait_for("in/begun");
            let stopped = kill(daemon, Signal::SIGSTOP);
            // The session ends when the daemon has said so.
            wait_for("in/end");
            let _ = stopped.and_then(|()| kill(daemon, Signal::SIGCONT));
        });
        let results = place.actor().perform(place.held(&policy), &script);
        done.store(true, Ordering::SeqCst);
        results
    })?;
    let refused = results.iter().filter(|done| done.outcome == "EACCES");
    ensure!(refused.count() == REFUSALS, "not everything was refused");
    let events = place.events(true)?;
    let counts = compare::ended_counts(&events).context("the session's account")?;
    let declared: u64 = events
        .iter()
        .filter_map(|event| event.pointer("/loss/events")?.as_u64())
        .sum();
    ensure!(
        declared > 0 && Some(declared) == counts["lost"].as_u64(),
        "{declared} declared lost: {counts}"
    );
    let told = events
        .iter()
        .filter(|event| field(event, "/verdict") == "denied" && field(event, "/kind") == "create");
    let told = told.count() as u64;
    ensure!(
        told > 0 && told + declared >= REFUSALS as u64,
        "{told} told of and {declared} declared lost are fewer than {REFUSALS}: {counts}"
    );
    println!("  {counts}");
    Ok(())
}

fn many_rules(place: &Place<'_>) -> Result<()> {
    const HALF: usize = 5000;
    let mut more = [String::from("read = ["), String::from("deny = [")];
    fs::create_dir(place.dir.join("r"))?;
    for n in 0..HALF {
        let readable = place.dir.join(format!("r/{n}"));
        fs::write(&readable, "r")?;
        more[0] += &format!("'{}',\n", readable.display());
        let denied = place.dir.join(format!("in/{n}"));
        fs::write(&denied, "d")?;
        more[1] += &format!("'{}',\n", denied.display());
    }
    fs::write(place.dir.join("r/other"), "o")?;
    let policy = place.policy(&format!("{}]\n{}]\n", more[0], more[1]))?;
    let last = HALF - 1;
    let script = steps(&[
        format!("open-read {}", place.path("r/0")),
        format!("open-read {}", place.path(&format!("r/{last}"))),
        format!("open-write {}", place.path(&format!("r/{last}"))),
        format!("open-read {}", place.path("r/other")),
        format!("open-read {}", place.path("in/0")),
        format!("open-read {}", place.path(&format!("in/{last}"))),
        format!("unlink {}", place.path("in/2500")),
        format!("creat {}", place.path("in/new")),
    ]);
    expect(&place.actor().perform(place.unheld(), &script)?, &["ok"; 8])?;
    fs::write(place.dir.join("in/2500"), "d")?;
    let begin = Instant::now();
    let done = place.actor().perform(place.held(&policy), &script)?;
    let took = begin.elapsed();
    expect(
        &done,
        &[
            "ok", "ok", "EACCES", "EACCES", "EACCES", "EACCES", "EACCES", "ok",
        ],
    )?;
    let events = place.events(false)?;
    let rule = |path: &str| {
        events
            .iter()
            .find(|event| field(event, "/file/path") == path)
            .map(|event| field(event, "/rule/id").to_owned())
    };
    for (path, wanted) in [
        (place.path("r/0"), "files.read[0]".to_owned()),
        (
            place.path(&format!("in/{last}")),
            format!("files.deny[{last}]"),
        ),
    ] {
        let found = rule(&path);
        ensure!(
            found.as_ref() == Some(&wanted),
            "{path} was decided by {found:?} instead of {wanted}"
        );
    }
    println!(
        "  {} rules: the session began and ended in {:.1} s",
        2 * HALF,
        took.as_secs_f64()
    );
    Ok(())
}

fn attach_to_threads(place: &Place<'_>) -> Result<()> {
    const THREADS: u32 = 300;
    let secret = place.path("secret");
    fs::write(&secret, "secret")?;
    let policy = place.policy("")?;
    let cgroup = Path::new("/sys/fs/cgroup").join(place.name);
    let go = place.path("in/go");
    let script = steps(&[format!("threads-when {go} {THREADS} {secret}")]);
    // Without a session first: they all read it.
    let mut outcomes = Vec::new();
    for attach in [false, true] {
        fs::create_dir_all(&cgroup)?;
        for name in [&go, &format!("{go}.ready")] {
            let _ = fs::remove_file(name);
        }
        let done = AtomicBool::new(false);
        let (attached, results) = std::thread::scope(|scope| {
            let attacher = scope.spawn(|| {
                while !Path::new(&format!("{go}.ready")).exists() {
                    if done.load(Ordering::SeqCst) {
                        bail!("the threads never stood");
                    }
                    sleep(Duration::from_millis(5));
                }
                let attached = if attach {
                    attach_to(place, &cgroup, &policy)
                } else {
                    Ok(())
                };
                fs::write(&go, "")?;
                attached
            });
            let mut command = Command::new("dash");
            command.args(["-c", "echo 0 > $1/cgroup.procs; exec $2 --script", "-"]);
            command.arg(&cgroup).arg(&place.stage.act);
            let results = place.actor().perform(command, &script);
            done.store(true, Ordering::SeqCst);
            (attacher.join(), results)
        });
        match attached {
            Ok(result) => result?,
            Err(_) => bail!("the thread that attaches panicked"),
        }
        outcomes.push(results?);
        if attach {
            place.daemon.agentwatch.output(&["detach", place.name])?;
        }
        fs::remove_dir(&cgroup)?;
    }
    expect(&outcomes[0], &["ok"])?;
    expect(&outcomes[1], &["EACCES"])?;
    let events = place.events(false)?;
    let refused = actions(&events, "denied", &secret);
    ensure!(
        refused == u64::from(THREADS),
        "{refused} refusals of {THREADS} are in the record"
    );
    Ok(())
}

fn attach_to(place: &Place<'_>, cgroup: &Path, policy: &Path) -> Result<()> {
    let mut command = place
        .daemon
        .agentwatch
        .command(&["attach", "--name", place.name]);
    command.arg("--cgroup").arg(cgroup);
    command.arg("--policy").arg(policy);
    let output = command.output()?;
    ensure!(output.status.success(), "attach: {}", said(&output));
    Ok(())
}

/// A directory goes back and forth between what may be read and what may not, while a file in it is opened: it is never opened
/// while it lies where it may not be read.
fn renamed_while_walked(place: &Place<'_>) -> Result<()> {
    /// Less than a step may take.
    const RACE: Duration = Duration::from_secs(10);
    let policy = place.policy("")?;
    let (out, inside) = (place.dir.join("out"), place.dir.join("in"));
    fs::create_dir_all(out.join("a/moved/b/c"))?;
    fs::write(out.join("a/moved/b/c/file"), "x")?;
    let sequence = place.path("in/sequence");
    let script = steps(&[format!(
        "race-open {sequence} {}/a/moved/b/c file",
        out.display()
    )]);
    let race = |command: Command| -> Result<Vec<Done>> {
        fs::write(&sequence, [0_u8; 4096])?;
        let file = fs::File::options().read(true).write(true).open(&sequence)?;
        let length = std::num::NonZeroUsize::new(4096).context("a page")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a shared mapping of a file of that length, which stays to the end of this process.
        let memory = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) }?;
        // SAFETY: it is mapped, aligned, and only ever used as atomics.
        let sequence = unsafe { memory.cast::<AtomicU32>().as_ref() };
        sequence.store(2, Ordering::SeqCst);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| -> Result<()> {
                let (there, here) = (out.join("a/moved"), inside.join("moved"));
                let begin = Instant::now();
                while begin.elapsed() < RACE && !done.load(Ordering::SeqCst) {
                    sequence.fetch_add(1, Ordering::SeqCst);
                    fs::rename(&there, &here)?;
                    sleep(Duration::from_micros(200));
                    fs::rename(&here, &there)?;
                    sequence.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_micros(200));
                }
                sequence.store(0, Ordering::SeqCst);
                Ok(())
            });
            let results = place.actor().perform(command, &script);
            done.store(true, Ordering::SeqCst);
            match mover.join() {
                Ok(moved) => moved?,
                Err(_) => bail!("the thread that moves panicked"),
            }
            results
        })
    };
    let without = race(place.unheld())?;
    ensure!(
        without[0].outcome.contains("out of scope"),
        "without agentwatch it was not read: {}",
        without[0].outcome
    );
    expect(&race(place.held(&policy))?, &["ok"])?;
    place.events(false)?;
    Ok(())
}

/// A tmpfs of the host is known by its mount point. When it is gone, its device number goes to the next tmpfs, which is the
/// session's own: what happens there does not bear the name of the host's.
fn device_used_again(place: &Place<'_>) -> Result<()> {
    let (shown, inside) = (place.dir.join("in/shown"), place.path("in/own"));
    fs::create_dir_all(&shown)?;
    fs::create_dir_all(&inside)?;
    let policy = place.policy("")?;
    let mount = || {
        let none = None::<&str>;
        nix::mount::mount(none, &shown, Some("tmpfs"), MsFlags::empty(), none)
    };
    mount()?;
    fs::set_permissions(&shown, fs::Permissions::from_mode(0o777))?;
    let script = steps(&[format!("write-text {}/a x", shown.display())]);
    let first = place.actor().perform(place.held(&policy), &script)?;
    expect(&first, &["ok"])?;
    let events = place.events(false)?;
    let named = shown.join("a").to_string_lossy().into_owned();
    ensure!(
        actions(&events, "allowed", &named) > 0,
        "nothing happened at {named}"
    );
    let device = |events: &[Value], name: &str| {
        events
            .iter()
            .find(|event| field(event, "/file/path").ends_with(name))
            .and_then(|event| event.pointer("/file/dev")?.as_u64())
    };
    let host = device(&events, "/a");
    nix::mount::umount2(&shown, MntFlags::empty())?;
    let script = steps(&[format!(
        "userns ; mount-kind tmpfs {inside} ; write-text {inside}/b x"
    )]);
    let second = place.actor().perform(place.held(&policy), &script)?;
    expect(&second, &["ok"])?;
    // Both sessions have one name: the events are those of the newer one as soon as the history knows it.
    let begin = Instant::now();
    let events = loop {
        let events = place.events(false)?;
        if device(&events, "/b").is_some() {
            break events;
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(60),
            "nothing happened in the second session"
        );
        sleep(Duration::from_millis(100));
    };
    let own = device(&events, "/b");
    ensure!(
        own.is_some() && own == host,
        "the number was not used again: {host:?}, {own:?}"
    );
    let wrong = events
        .iter()
        .map(|event| field(event, "/file/path"))
        .find(|path| path.ends_with("/b") && Path::new(path).starts_with(&shown));
    ensure!(wrong.is_none(), "named by a mount that is gone: {wrong:?}");
    Ok(())
}
