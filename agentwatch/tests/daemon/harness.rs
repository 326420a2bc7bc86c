//! A daemon in directories of its own, and the command line that talks to it.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_agentwatch");
/// How long anything that must happen may take; generous, because nothing is asserted about speed.
const PATIENCE: Duration = Duration::from_secs(180);

/// Whether the tests can run; where they cannot, makes sure that the daemon says why.
pub fn possible() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let place = Place::new();
    let output = place
        .command()
        .arg("daemon")
        .output()
        .expect("run the daemon");
    assert!(!output.status.success());
    assert!(
        text(&output.stderr).contains("must be root"),
        "{}",
        text(&output.stderr)
    );
    false
}

/// Directories of one test.
pub struct Place {
    dir: TempDir,
    /// Whether what is in the kernel is left there.
    leave: std::cell::Cell<bool>,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("agentwatch-daemon-")
            .tempdir()
            .expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open it");
        let place = Self {
            dir,
            leave: std::cell::Cell::new(false),
        };
        fs::create_dir(place.work()).expect("a workspace");
        place
    }

    /// Leaves what is in the kernel where it is.
    pub fn leave(&self) {
        self.leave.set(true);
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn runtime(&self) -> PathBuf {
        self.path().join("run")
    }

    pub fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command
            .env("AGENTWATCH_RUNTIME_DIR", self.runtime())
            .env("AGENTWATCH_STATE_DIR", self.state())
            .env("NO_COLOR", "1")
            // Cargo's: every program of a session would look for its libraries in the toolchain first.
            .env_remove("LD_LIBRARY_PATH")
            .current_dir(self.work())
            .stdin(Stdio::null());
        command
    }

    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.command()
            .args(arguments)
            .output()
            .expect("run agentwatch")
    }

    /// Writes a policy and runs a shell command under it.
    pub fn run(&self, policy: &str, name: &str, script: &str) -> Output {
        self.session(policy, name)
            .args(["/bin/sh", "-c", script])
            .output()
            .expect("run agentwatch")
    }

    /// A session to be started; what is run in it is to be added.
    pub fn session(&self, policy: &str, name: &str) -> Command {
        let file = self.write("policy.toml", policy);
        let mut command = self.command();
        command
            .args(["run", "--policy"])
            .arg(file)
            .args(["--name", name, "--"]);
        command
    }

    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        let mut file = fs::File::create(&path).expect("a file");
        file.write_all(content.as_bytes()).expect("write it");
        path
    }

    pub fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    pub fn daemon_with(&self, arguments: &[&str]) -> Daemon {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path().join("log"))
            .expect("a log");
        let child = self
            .command()
            .arg("daemon")
            .args(arguments)
            .stderr(log)
            .spawn()
            .expect("start the daemon");
        let daemon = Daemon(child);
        let pid = u64::from(daemon.0.id());
        eventually(
            &format!(
                "the daemon answers; its log: {}",
                self.path().join("log").display()
            ),
            || {
                let output = self.cli(&["status", "--json"]);
                let status: Value = serde_json::from_slice(&output.stdout).ok()?;
                (status["pid"] == pid && status["collector"] == "connected").then_some(())
            },
        );
        daemon
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.cli(&["status", "--json"]).stdout).unwrap_or_default()
    }

    /// The collector of the daemon that runs here.
    pub fn collector(&self) -> Pid {
        let state = self.state();
        let found = processes(&["agentwatch collector", state.to_str().expect("UTF-8")]);
        Pid::from_raw(*found.first().expect("a collector"))
    }

    /// The events of a session, as soon as they satisfy a condition.
    pub fn events_until(
        &self,
        session: &str,
        what: &str,
        enough: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        eventually(what, || {
            let output = self.cli(&["events", session, "--format", "jsonl"]);
            let events: Vec<Value> = text(&output.stdout)
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            enough(&events).then_some(events)
        })
    }

    /// All events of a session that has ended, with a check that its account adds up.
    pub fn ended(&self, session: &str) -> Vec<Value> {
        let is_end = |event: &Value| event["lifecycle"]["state"] == "ended";
        let events = self.events_until(session, "the session ends", |events| {
            events.iter().any(is_end)
        });
        let counts = &events
            .iter()
            .find(|event| is_end(event))
            .expect("just seen")["lifecycle"]["counts"];
        let count = |name: &str| counts[name].as_u64().expect("a count");
        assert_eq!(
            count("made"),
            count("delivered") + count("folded") + count("lost"),
            "{counts}"
        );
        events
    }
}

impl Drop for Place {
    /// A daemon that was killed leaves its sessions in the kernel, and its collector, for the next one.
    fn drop(&mut self) {
        if nix::unistd::geteuid().is_root() && !self.leave.get() {
            let _ = self.command().arg("release").output();
        }
        for pid in processes(&["agentwatch collector", &self.path().to_string_lossy()]) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// A running daemon; killed, with its collector, when the test ends before it.
pub struct Daemon(Child);

impl Daemon {
    pub fn kill(mut self) {
        self.0.kill().expect("kill the daemon");
        self.0.wait().expect("reap it");
    }

    pub fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    /// Waits for one that was told to end.
    pub fn reap(mut self) {
        assert!(self.0.wait().expect("reap it").success());
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("stop the daemon");
        assert!(self.0.wait().expect("reap it").success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

/// A cgroup of the test's own; removed with it.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new(name: &str) -> Self {
        let root = agentwatch::kernel::probe::cgroup2().expect("cgroup2 is mounted");
        let path = root.join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Runs a shell command in it.
    pub fn run(&self, script: &str) -> std::process::ExitStatus {
        let script = format!("echo $$ > {}/cgroup.procs; {script}", self.0.display());
        std::process::Command::new("/bin/sh")
            .args(["-c", &script])
            .status()
            .expect("run a shell")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Waits until something is so.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Processes whose command line holds all of these.
pub fn processes(parts: &[&str]) -> Vec<i32> {
    let Ok(all) = procfs::process::all_processes() else {
        return Vec::new();
    };
    all.flatten()
        .filter(|process| {
            process.cmdline().is_ok_and(|line| {
                let line = line.join(" ");
                parts.iter().all(|part| line.contains(part))
            })
        })
        .map(|process| process.pid)
        .collect()
}

/// Every number of the session is stored or declared, once, and every repetition was told once.
pub fn accounted(events: &[Value]) {
    let counts = events
        .iter()
        .find(|event| event["lifecycle"]["state"] == "ended")
        .expect("it has ended")["lifecycle"]["counts"]
        .clone();
    let count = |name: &str| counts[name].as_u64().expect("a count");
    let mut seqs: Vec<u64> = events
        .iter()
        .filter_map(|event| event["seq"].as_u64())
        .filter(|seq| *seq > 0)
        .collect();
    seqs.sort_unstable();
    let stored = seqs.len() as u64;
    seqs.dedup();
    assert_eq!(seqs.len() as u64, stored, "no number twice");
    let lost: u64 = events
        .iter()
        .filter_map(|event| event["loss"]["events"].as_u64())
        .sum();
    let told: u64 = events
        .iter()
        .filter(|event| !event["fold"].is_null())
        .filter_map(|event| event["count"].as_u64())
        .sum();
    assert_eq!(
        (stored, lost, told),
        (count("delivered"), count("lost"), count("folded")),
        "{counts}"
    );
}

/// A policy that lets a shell work in the workspace and nowhere else.
pub fn policy() -> String {
    "[files]\n\
     read = ['/usr', '/lib', '/lib64', '/bin', '/etc/ld.so.cache', '/proc']\n\
     exec = ['/usr', '/lib', '/lib64', '/bin']\n\
     write = ['.', '/dev/null']\n"
        .to_owned()
}

/// Lets what runs until there is a file `enough` end.
pub fn calm(place: &Place) {
    fs::write(place.work().join("enough"), "").expect("a file");
}

/// Whether what is tried with Python can be.
pub fn python() -> bool {
    Path::new("/usr/bin/python3").exists()
}
