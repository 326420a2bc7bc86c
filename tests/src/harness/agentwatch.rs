//! The `agentwatch` command and a daemon of its own, with state and runtime directories that end with the test.

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// How long the daemon may take to answer: it loads its programs, under emulation and on a machine with other work.
const START: Duration = Duration::from_secs(400);

/// The command, and which daemon it talks to.
#[derive(Clone, Debug)]
pub struct Agentwatch {
    pub binary: PathBuf,
    pub runtime_dir: PathBuf,
}

impl Agentwatch {
    /// The command with its daemon chosen and nothing inherited that could change its output.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env("AGENTWATCH_RUNTIME_DIR", &self.runtime_dir)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Standard output of a command that must succeed.
    pub fn output(&self, arguments: &[&str]) -> Result<String> {
        let called = format!("agentwatch {}", arguments.join(" "));
        let output = self
            .command(arguments)
            .output()
            .with_context(|| format!("run `{called}`"))?;
        if !output.status.success() {
            bail!("`{called}` ended with {}: {}", output.status, said(&output));
        }
        String::from_utf8(output.stdout).with_context(|| format!("`{called}` printed no UTF-8"))
    }

    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.output(&["status", "--json"])?)?)
    }

    /// The events of a session so far.
    pub fn events(&self, session: &str) -> Result<Vec<Value>> {
        self.output(&["events", session, "--format", "jsonl"])?
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("event line {line:?}")))
            .collect()
    }
}

/// What a command said on standard error, or a word about its silence.
pub fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    if text.trim().is_empty() {
        "it said nothing".to_owned()
    } else {
        text.trim().to_owned()
    }
}

/// A daemon that ends with this value.
pub struct Daemon {
    pub agentwatch: Agentwatch,
    child: Child,
    /// What its command line has beside its directories.
    arguments: Vec<String>,
    state: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts a daemon below `root` and waits until it answers.
    pub fn start(binary: &Path, root: &Path) -> Result<Daemon> {
        Self::start_with(binary, root, Vec::new())
    }

    /// The same with arguments of its own.
    pub fn start_with(binary: &Path, root: &Path, arguments: Vec<String>) -> Result<Daemon> {
        let (state, runtime, log) = (
            root.join("state"),
            root.join("run"),
            root.join("daemon.log"),
        );
        for dir in [&state, &runtime] {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        }
        let agentwatch = Agentwatch {
            binary: binary.to_owned(),
            runtime_dir: runtime,
        };
        let mut daemon = Daemon {
            child: spawn(&agentwatch, &arguments, &state, &log)?,
            agentwatch,
            arguments,
            state,
            log,
        };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// Kills it, which leaves in force what is, and starts another in its place.
    pub fn replace(&mut self) -> Result<()> {
        self.child.kill().context("kill the daemon")?;
        self.child.wait().context("reap the daemon")?;
        self.child = spawn(&self.agentwatch, &self.arguments, &self.state, &self.log)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let socket = self.agentwatch.runtime_dir.join("control.sock");
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the daemon ended with {status} before it answered; its log ends with:\n{}",
                    self.log_tail()
                );
            }
            let answer = if socket.exists() {
                self.agentwatch.status().map(drop)
            } else {
                Err(anyhow::anyhow!("{} is not there", socket.display()))
            };
            match answer {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    bail!(
                        "no answer in {} s ({error:#}); the daemon's log ends with:\n{}",
                        START.as_secs(),
                        self.log_tail()
                    )
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kilobytes that it has in memory.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .context("the daemon's memory")
    }

    /// Whether the process that was started is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The last lines of what the daemon wrote.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

fn spawn(agentwatch: &Agentwatch, arguments: &[String], state: &Path, log: &Path) -> Result<Child> {
    let output = File::options().create(true).append(true).open(log)?;
    Command::new(&agentwatch.binary)
        .arg("daemon")
        .args(arguments)
        .arg("--state-dir")
        .arg(state)
        .arg("--runtime-dir")
        .arg(&agentwatch.runtime_dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {} daemon", agentwatch.binary.display()))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Stopped alone, it would leave a session that still runs in force.
        let _ = self.agentwatch.command(&["release"]).output();
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
