//! A daemon of its own, the sessions that are begun under it, and what is asked of both.

use std::{
    cell::{Cell, RefCell},
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use agentwatch_tests::harness::agentwatch::{Agentwatch, said};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{CALM, PATIENCE};

/// How long a daemon may take to load its programs, under emulation and on a machine with other work.
const LOADING: Duration = Duration::from_secs(400);

/// Who decides, of those whose names a host knows.
const CONFIGURATION: &str = "[approvals]\nusers = ['nobody']\ngroups = ['games']\n";

pub(super) struct Place {
    pub dir: tempfile::TempDir,
    pub agentwatch: Agentwatch,
    daemon: RefCell<Option<Child>>,
    pub has_lsm: bool,
    /// How often what is repeated is repeated.
    pub rounds: u32,
    /// The user of the sessions that are begun.
    uid: Cell<u32>,
}

/// A session whose actions are being watched.
pub(super) struct Doing {
    child: Child,
    report: PathBuf,
}

impl Doing {
    pub fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.report)
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// What came of the `n`th action, when it is over.
    pub fn outcome(&self, n: usize) -> Result<String> {
        eventually("an action is over", || {
            let line = self.lines().get(n)?.clone();
            // Without the time that it took.
            Some(line.rsplit_once(' ')?.0.to_owned())
        })
    }

    pub fn expect(&self, n: usize, said: &str) -> Result<()> {
        let outcome = self.outcome(n)?;
        ensure!(
            outcome.contains(said),
            "action {n} came to {outcome:?}, and not to {said:?}"
        );
        Ok(())
    }

    pub fn is_waiting(&self, n: usize) -> Result<()> {
        sleep(CALM);
        ensure!(
            self.lines().len() == n,
            "something went on that should wait: {:?}",
            self.lines()
        );
        Ok(())
    }

    pub fn end(mut self) -> Result<()> {
        let since = Instant::now();
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            ensure!(since.elapsed() < PATIENCE, "the session does not end");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Place {
    pub fn new(binary: &Path, rounds: u32) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("agentwatch-holds-")
            .tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        for name in ["work", "run", "state"] {
            fs::create_dir(dir.path().join(name))?;
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755))?;
        }
        let agentwatch = Agentwatch {
            binary: binary.canonicalize()?,
            runtime_dir: dir.path().join("run"),
        };
        let mut place = Self {
            dir,
            agentwatch,
            daemon: None.into(),
            has_lsm: false,
            rounds,
            uid: Cell::new(0),
        };
        fs::write(place.configuration(), CONFIGURATION)?;
        place.start()?;
        let backends = place.agentwatch.status()?["backends"].clone();
        place.has_lsm = backends
            .as_array()
            .is_some_and(|names| names.iter().any(|name| name == "bpf-lsm"));
        Ok(place)
    }

    pub fn start(&self) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))?;
        let child = self
            .agentwatch
            .command(&["daemon", "--state-dir"])
            .arg(self.dir.path().join("state"))
            .arg("--config")
            .arg(self.configuration())
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = u64::from(child.id());
        *self.daemon.borrow_mut() = Some(child);
        let since = Instant::now();
        loop {
            if let Ok(status) = self.agentwatch.status()
                && status["pid"] == pid
                && status["collector"] == "connected"
            {
                return Ok(());
            }
            ensure!(
                since.elapsed() < LOADING,
                "the daemon does not answer:\n{}",
                self.log()
            );
            sleep(Duration::from_millis(50));
        }
    }

    fn configuration(&self) -> PathBuf {
        self.dir.path().join("daemon.toml")
    }

    /// Puts a daemon with a further configuration into the place of the one that runs.
    pub fn configure(&self, further: &str) -> Result<()> {
        fs::write(self.configuration(), format!("{further}{CONFIGURATION}"))?;
        self.kill_daemon()?;
        self.start()
    }

    pub fn kill_daemon(&self) -> Result<()> {
        if let Some(mut child) = self.daemon.borrow_mut().take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    pub fn stop(&mut self) {
        let _ = self.agentwatch.output(&["release"]);
        if let Some(mut child) = self.daemon.borrow_mut().take() {
            let since = Instant::now();
            while since.elapsed() < Duration::from_secs(10) {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    return;
                }
                sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The last that was refused, held or decided, a line each.
    pub fn record(&self) -> String {
        const SQL: &str = "SELECT json FROM events WHERE kind = 'approval' OR verdict <> 'allowed' ORDER BY time DESC LIMIT 12";
        let answer = self.agentwatch.output(&["query", "--format", "jsonl", SQL]);
        answer.unwrap_or_else(|error| format!("the history does not answer: {error:#}"))
    }

    /// Nothing of the case before is left.
    pub fn clean(&self) {
        if let Ok(sessions) = self.agentwatch.output(&["sessions", "--json"])
            && let Ok(Value::Array(sessions)) = serde_json::from_str(&sessions)
        {
            for session in sessions {
                if session["state"] == "running"
                    && let Some(id) = session["id"].as_str()
                {
                    let _ = self.agentwatch.output(&["detach", id]);
                }
            }
        }
        let work = self.work();
        let _ = fs::remove_dir_all(&work);
        let _ = fs::create_dir(&work);
        self.uid.set(0);
    }

    /// Begins sessions as another user from here on.
    pub fn become_user(&self, uid: u32) -> Result<()> {
        std::os::unix::fs::chown(self.work(), Some(uid), Some(uid))?;
        self.uid.set(uid);
        Ok(())
    }

    /// What a command of agentwatch's says to a user, or complains of.
    pub fn as_user(&self, uid: u32, arguments: &[&str]) -> Result<String> {
        let output = self
            .agentwatch
            .command(arguments)
            .uid(uid)
            .gid(uid)
            .output()?;
        ensure!(output.status.success(), "{}", said(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Counters of what was asked and decided.
    pub fn metrics(&self) -> Result<Value> {
        Ok(self.agentwatch.status()?["approvals"].clone())
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn own(&self) -> Result<String> {
        Ok(std::env::current_exe()?.display().to_string())
    }

    /// Starts a session that does things under a policy whose further parts are given.
    pub fn session(&self, name: &str, further: &str, actions: &[&str]) -> Result<Doing> {
        let own = std::env::current_exe()?;
        let beside = own.parent().context("a directory")?;
        let policy = self.dir.path().join(format!("{name}.toml"));
        fs::write(
            &policy,
            format!(
                "[files]\nread = ['/proc', '/usr', '/lib', '/lib64', '/etc/ld.so.cache']\nexec = ['/usr', '/lib', '/lib64', '{}', '{}']\nwrite = ['{}', '/dev/null', '/dev/tty', '/dev/ptmx', '/dev/pts']\n{further}",
                beside.display(),
                self.work().display(),
                self.work().display(),
            )
            .replace("\n[files]\n", "\n")
        )?;
        let report = self.work().join(format!("{name}.report"));
        let mut command =
            self.agentwatch
                .command(&["run", "--accept-degraded", "--name", name, "--policy"]);
        if self.uid.get() != 0 {
            command.uid(self.uid.get()).gid(self.uid.get());
        }
        let child = command
            .arg(&policy)
            .arg("--")
            .arg(&own)
            .arg("do")
            .arg(&report)
            .args(actions)
            .current_dir(self.work())
            .stdout(Stdio::null())
            .stderr(
                fs::File::options()
                    .create(true)
                    .append(true)
                    .open(self.dir.path().join("log"))?,
            )
            .spawn()?;
        Ok(Doing { child, report })
    }

    pub fn approvals(&self) -> Result<Vec<Value>> {
        match serde_json::from_str(&self.agentwatch.output(&["approvals", "--json"])?)? {
            Value::Array(requests) => Ok(requests),
            other => bail!("approvals are {other}"),
        }
    }

    /// The requests that wait, when they are as they are to be.
    pub fn requests(&self, what: &str, which: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        eventually(what, || {
            let requests = self.approvals().ok()?;
            which(&requests).then_some(requests)
        })
    }

    /// Whether everything takes its time.
    pub fn is_emulated(&self) -> bool {
        fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU"))
    }

    /// The one request that waits, when it does.
    pub fn request(&self) -> Result<Value> {
        let requests = eventually("an action waits", || {
            let requests = self.approvals().ok()?;
            (!requests.is_empty()).then_some(requests)
        })?;
        ensure!(requests.len() == 1, "{} actions wait", requests.len());
        Ok(requests[0].clone())
    }

    pub fn id(&self) -> Result<String> {
        Ok(self.request()?["id"]
            .as_str()
            .context("a request has an id")?
            .to_owned())
    }

    pub fn approve(&self, extent: &[&str]) -> Result<()> {
        let id = self.id()?;
        let arguments: Vec<&str> = ["approve", id.as_str()]
            .into_iter()
            .chain(extent.iter().copied())
            .collect();
        self.agentwatch.output(&arguments).map(drop)
    }

    pub fn reject(&self) -> Result<()> {
        let id = self.id()?;
        self.agentwatch
            .output(&["reject", &id, "--reason", "not today"])
            .map(drop)
    }

    /// Waits for a step in the history of a session.
    pub fn step(&self, session: &str, which: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually("a step is in the history", || {
            let events = self.agentwatch.events(session).ok()?;
            events
                .into_iter()
                .find(|event| event["kind"] == "approval" && which(&event["approval"]))
        })
    }

    pub fn nothing_waits(&self) -> Result<()> {
        let requests = self.approvals()?;
        ensure!(requests.is_empty(), "something waits: {requests:?}");
        Ok(())
    }
}

pub(super) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(since.elapsed() < PATIENCE, "it does not happen that {what}");
        sleep(Duration::from_millis(20));
    }
}
