//! Floods sessions with opens, short processes and connects, in peace, with a collector that stands still for ten seconds, and with a
//! daemon that is killed in the middle. What was made is delivered, folded or declared lost, the history has it so, and it agrees with
//! what the flood did; no denial drowns.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::DIR;
use crate::harness::{agentwatch::Daemon, compare};

mod memory;

/// What a result line begins with.
pub const MARK: &str = "@storm";

/// How many opens, processes and connects.
pub const OPENS: u64 = 200_000;
pub const PROCESSES: u64 = 20_000;
pub const CONNECTS: u64 = 50_000;

/// How many of the denied file's opens are strewn among the opens.
pub const DENIALS: u64 = 100;

/// For how long the collector stands still.
const STILL: Duration = Duration::from_secs(10);
/// How long the record of a session may take after its end.
const PATIENCE: Duration = Duration::from_secs(300);
/// A port that the policy allows.
const PORT: u16 = 7777;

/// What is done many times.
#[derive(Clone, Copy, Debug)]
enum Load {
    OneFile,
    ManyFiles,
    Processes,
    Connects,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::OneFile => "opens of one file",
            Self::ManyFiles => "opens of 20 000 files",
            Self::Processes => "short processes",
            Self::Connects => "connects",
        }
    }

    fn files(self) -> u64 {
        match self {
            Self::OneFile => 1,
            Self::ManyFiles => 20_000,
            Self::Processes | Self::Connects => 0,
        }
    }

    /// How often it is done.
    fn count(self) -> u64 {
        match self {
            Self::OneFile | Self::ManyFiles => OPENS,
            Self::Processes => PROCESSES,
            Self::Connects => CONNECTS,
        }
    }

    fn arguments(self) -> Vec<String> {
        let (name, files) = match self {
            Self::OneFile | Self::ManyFiles => ("opens", Some(self.files())),
            Self::Processes => ("processes", None),
            Self::Connects => ("connects", None),
        };
        let mut arguments = vec![name.to_owned()];
        if let Some(files) = files {
            arguments.extend(["--files".to_owned(), files.to_string()]);
        }
        arguments.extend(["--count".to_owned(), self.count().to_string()]);
        arguments
    }

    /// Whether an event tells of it.
    fn told_by(self, event: &Value) -> bool {
        let path = || event["file"]["path"].as_str().unwrap_or_default();
        match self {
            Self::OneFile | Self::ManyFiles => {
                event["kind"] == "open" && path().starts_with(&format!("{DIR}/storm/"))
            }
            Self::Processes => event["kind"] == "exec" && Path::new(path()) == nothing(),
            Self::Connects => event["kind"] == "connect" && event["net"]["port"] == PORT,
        }
    }
}

/// What goes wrong meanwhile.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    CollectorStill,
    DaemonKilled,
}

impl Trouble {
    fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::CollectorStill => "the collector stands still for 10 s",
            Self::DaemonKilled => "the daemon is killed and started again",
        }
    }
}

/// Every load under every trouble.
pub fn all(agentwatch: &Path) -> Result<()> {
    let root = tempfile::tempdir()?;
    let policy = root.path().join("policy.toml");
    fs::write(&policy, self::policy()?)?;
    prepare()?;
    let mut storms = Storms {
        policy,
        daemon: Daemon::start(agentwatch, root.path())?,
    };
    for trouble in [
        Trouble::None,
        Trouble::CollectorStill,
        Trouble::DaemonKilled,
    ] {
        for load in [
            Load::OneFile,
            Load::ManyFiles,
            Load::Processes,
            Load::Connects,
        ] {
            storms
                .storm(load, trouble)
                .with_context(|| format!("{}; {}", load.name(), trouble.name()))?;
        }
    }
    Ok(())
}

/// What a storm may do. Nothing is denied inside of what is allowed, so that kernels without BPF LSM can hold it too.
fn policy() -> Result<String> {
    let own = std::env::current_exe()?;
    let own = own.parent().context("the directory of this program")?;
    Ok(format!(
        "[files]\n\
         read = ['/usr', '/lib', '/lib64', '/bin', '/etc', '/proc', '{DIR}/storm']\n\
         write = ['{DIR}/out', '/dev/null']\n\
         exec = ['/usr', '/lib', '/lib64', '/bin', '{DIR}/bin', '{}']\n\
         [network]\nallow = ['127.0.0.1:{PORT}']\n",
        own.display()
    ))
}

/// The files that are opened, the program that is executed, and what takes connections.
fn prepare() -> Result<()> {
    let dir = Path::new(DIR).join("storm");
    fs::create_dir_all(&dir)?;
    for index in 0..Load::ManyFiles.files() {
        File::create(dir.join(index.to_string()))?;
    }
    fs::write(Path::new(DIR).join("denied"), "x")?;
    for name in ["bin", "out"] {
        fs::create_dir_all(Path::new(DIR).join(name))?;
    }
    // Under a name of its own, so that its executions are known by it.
    fs::copy(std::env::current_exe()?, nothing())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
    thread::spawn(move || listener.incoming().for_each(drop));
    Ok(())
}

struct Storms {
    policy: PathBuf,
    daemon: Daemon,
}

impl Storms {
    fn storm(&mut self, load: Load, trouble: Trouble) -> Result<()> {
        let session = format!("storm-{load:?}-{trouble:?}").to_lowercase();
        let begun = begun();
        let _ = fs::remove_file(&begun);
        let started = Instant::now();
        let mut command = self.daemon.agentwatch.command(&["run", "--policy"]);
        command
            .arg(&self.policy)
            .args(["--name", &session, "--"])
            .arg(std::env::current_exe()?)
            .args(load.arguments());
        let mut run = command.spawn()?;
        while !begun.exists() {
            ensure!(
                started.elapsed() < PATIENCE && run.try_wait()?.is_none(),
                "the storm does not begin"
            );
            thread::sleep(Duration::from_millis(5));
        }
        let memory = memory::Watch::start(&self.daemon.agentwatch.runtime_dir);
        self.trouble(trouble, &mut run)?;
        let status = run.wait()?;
        let seconds = started.elapsed().as_secs_f64();
        let memory = memory.most();
        ensure!(memory.resident > 0, "the daemon's memory cannot be seen");
        ensure!(status.success(), "the session ended with {status}");
        let (counts, denied) = self.account(&session, load)?;
        println!(
            "{MARK} {}",
            json!({
                "name": load.name(), "trouble": trouble.name(), "seconds": seconds, "did": load.count(), "denied": denied,
                "resident_mib": memory.resident >> 20, "proportional_mib": memory.proportional >> 20,
                "counts": counts
            })
        );
        Ok(())
    }

    fn trouble(&mut self, trouble: Trouble, run: &mut Child) -> Result<()> {
        match trouble {
            Trouble::None => {}
            Trouble::CollectorStill => {
                let pid =
                    fs::read_to_string(self.daemon.agentwatch.runtime_dir.join("collector.pid"))
                        .context("the collector's process id")?;
                let pid = Pid::from_raw(pid.trim().parse()?);
                kill(pid, Signal::SIGSTOP)?;
                thread::sleep(STILL);
                kill(pid, Signal::SIGCONT)?;
            }
            Trouble::DaemonKilled => {
                thread::sleep(Duration::from_millis(300));
                ensure!(run.try_wait()?.is_none(), "the storm is over too soon");
                self.daemon.replace()?;
            }
        }
        Ok(())
    }

    /// Waits for the end of a session in the record; its counts, and how many denials there are.
    fn account(&self, session: &str, load: Load) -> Result<(Value, u64)> {
        let deadline = Instant::now() + PATIENCE;
        let counts = loop {
            let ended = self
                .daemon
                .agentwatch
                .output(&["events", session, "--kind", "session", "--format", "jsonl"])?;
            let ended: Vec<Value> = ended
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            if let Some(counts) = compare::ended_counts(&ended) {
                break counts.clone();
            }
            ensure!(
                Instant::now() < deadline,
                "the session's end is not in the record"
            );
            thread::sleep(Duration::from_millis(500));
        };
        let events = self.daemon.agentwatch.events(session)?;
        let sum = |wanted: &dyn Fn(&Value) -> Option<u64>| -> u64 {
            events.iter().filter_map(wanted).sum()
        };
        let count = |name: &str| counts[name].as_u64().unwrap_or(u64::MAX);
        let stored = sum(&|event| Some(u64::from(event["seq"] != 0)));
        let lost = sum(&|event| event["loss"]["events"].as_u64());
        let folded = sum(&|event| event["count"].as_u64().filter(|_| !event["fold"].is_null()));
        ensure!(
            count("made") == count("delivered") + count("folded") + count("lost")
                && (stored, folded, lost) == (count("delivered"), count("folded"), count("lost")),
            "the history has {stored} events, {folded} repetitions and {lost} declared lost; the account says {counts}"
        );
        // A daemon that took over tells of what was folded before by the first event's id alone; that event may be lost.
        let by_id: HashMap<&str, &Value> = events
            .iter()
            .filter_map(|event| Some((event["id"].as_str()?, event)))
            .collect();
        let first = |event: &Value| Some(by_id.get(event["fold"].as_str()?).copied());
        let told = sum(&|event| {
            let told = load.told_by(event)
                || first(event)
                    .flatten()
                    .is_some_and(|first| load.told_by(first));
            event["count"].as_u64().filter(|_| told)
        });
        let orphans = sum(&|event| {
            event["count"]
                .as_u64()
                .filter(|_| first(event).is_some_and(|first| first.is_none()))
        });
        ensure!(
            told <= load.count() && told + lost + orphans >= load.count(),
            "{} were done, {told} are told of, {lost} events were lost, with {orphans} repetitions",
            load.count()
        );
        let is_denial = |event: &Value| {
            event["verdict"] == "denied" && event["file"]["path"] == format!("{DIR}/denied")
        };
        let denied = sum(&|event| {
            let told = is_denial(event) || first(event).flatten().is_some_and(is_denial);
            event["count"].as_u64().filter(|_| told)
        });
        if load.files() > 0 {
            ensure!(
                denied + lost + orphans >= DENIALS && denied <= DENIALS,
                "{denied} of {DENIALS} denials are told of, and {lost} events were lost"
            );
        }
        Ok((counts, denied))
    }
}

/// The short process.
fn nothing() -> PathBuf {
    Path::new(DIR).join("bin/nothing")
}

/// A file that is there when a flood has begun.
fn begun() -> PathBuf {
    Path::new(DIR).join("out/begun")
}

/// Says that the flood has begun.
fn begin() -> Result<()> {
    File::create(begun())?.write_all(b"x")?;
    Ok(())
}

/// A flood of opens, run inside the session.
pub fn opens(files: u64, count: u64) -> Result<()> {
    begin()?;
    let dir = Path::new(DIR).join("storm");
    let denied = Path::new(DIR).join("denied");
    for index in 0..count {
        drop(File::open(dir.join((index % files).to_string()))?);
        if index % (count / DENIALS).max(1) == 0 {
            ensure!(File::open(&denied).is_err(), "the denied file was opened");
        }
    }
    Ok(())
}

/// A flood of short processes.
pub fn processes(count: u64) -> Result<()> {
    begin()?;
    for _ in 0..count {
        let status = Command::new(nothing()).arg("nothing").status()?;
        ensure!(status.success(), "a short process ended with {status}");
    }
    Ok(())
}

/// A flood of connects.
pub fn connects(count: u64) -> Result<()> {
    begin()?;
    for _ in 0..count {
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?);
    }
    Ok(())
}
