//! `cargo xtask demo`: a daemon of its own, a scripted agent under a policy, and everything that one can then ask.
//!
//! Nothing outlives it: state and runtime directories are temporary, and the daemon ends with the demo.

use std::{
    fs,
    io::{BufRead, BufReader, IsTerminal, Read},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{build, paths, process};

/// The session's name.
const SESSION: &str = "demo";

/// A daemon on this machine, for as long as the value lives.
pub struct Host {
    pub binary: PathBuf,
    pub runtime_dir: PathBuf,
    child: Child,
    scratch: tempfile::TempDir,
}

impl Host {
    /// Starts a daemon in temporary directories and waits until it answers.
    pub fn start(binary: &Path) -> Result<Host> {
        ensure!(
            process::is_root(),
            "the daemon loads programs into the kernel: run this as root"
        );
        let scratch = tempfile::Builder::new().prefix("agentwatch-").tempdir()?;
        fs::set_permissions(
            scratch.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        let (state, runtime_dir) = (scratch.path().join("state"), scratch.path().join("run"));
        fs::create_dir(&state)?;
        fs::create_dir(&runtime_dir)?;
        let log = fs::File::create(scratch.path().join("daemon.log"))?;
        let child = Command::new(binary)
            .arg("daemon")
            .arg("--state-dir")
            .arg(&state)
            .arg("--runtime-dir")
            .arg(&runtime_dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo, which then ends the daemon in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {} daemon", binary.display()))?;
        let mut host = Host {
            binary: binary.to_owned(),
            runtime_dir,
            child,
            scratch,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while host.output(&["status", "--json"]).is_err() {
            if let Some(status) = host.child.try_wait()? {
                bail!(
                    "the daemon ended with {status} before it answered:\n{}",
                    host.log()
                );
            }
            ensure!(
                Instant::now() < deadline,
                "the daemon does not answer:\n{}",
                host.log()
            );
            thread::sleep(Duration::from_millis(100));
        }
        Ok(host)
    }

    /// The command, talking to this daemon.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env("AGENTWATCH_RUNTIME_DIR", &self.runtime_dir);
        command
    }

    /// What a command prints; it must succeed.
    pub fn output(&self, arguments: &[&str]) -> Result<String> {
        process::output(&mut self.command(arguments))
    }

    /// The denied actions of a session, once it has ended.
    pub fn denied(&self, session: &str) -> Result<Vec<Value>> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let ended =
                self.output(&["events", session, "--kind", "session", "--format", "jsonl"])?;
            if ended.contains("\"ended\"") || Instant::now() > deadline {
                let lines = self.output(&[
                    "events",
                    session,
                    "--verdict",
                    "denied",
                    "--format",
                    "jsonl",
                ])?;
                return lines
                    .lines()
                    .map(|line| Ok(serde_json::from_str(line)?))
                    .collect();
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Stopped alone, it would leave a session that still runs in force.
        let released = self.command(&["release"]).output();
        if !released.is_ok_and(|output| output.status.success()) {
            let _ = Command::new("kill")
                .arg(self.child.id().to_string())
                .status();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `cargo xtask demo`.
pub fn run(own: &[String]) -> Result<ExitCode> {
    let binary = build::agentwatch(true)?;
    heading("What this kernel can enforce: agentwatch doctor");
    let host = Host::start(&binary)?;
    show(&host, &["doctor"])?;

    // The services are ours and listen outside the session: what the agent reaches is up to the policy alone.
    let (allowed, refused) = (
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    );
    let (allowed_port, refused_port) = (allowed.local_addr()?.port(), refused.local_addr()?.port());
    let scratch = tempfile::Builder::new()
        .prefix("agentwatch-demo-")
        .tempdir()?;
    let dir = scratch.path().canonicalize()?;
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    for name in ["work", "outside"] {
        fs::create_dir(dir.join(name))?;
    }
    let fixtures = paths::repository().join("tests/fixtures/demo");
    fs::copy(fixtures.join("agent.sh"), dir.join("agent.sh"))?;
    fs::copy(fixtures.join("publish"), dir.join("publish"))?;
    fs::set_permissions(
        dir.join("publish"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let policy = fs::read_to_string(fixtures.join("policy.toml"))?
        .replace("{dir}", &dir.to_string_lossy())
        .replace("{allowed}", &allowed_port.to_string());
    let policy_file = dir.join("policy.toml");
    fs::write(&policy_file, &policy)?;
    heading("The policy");
    println!("{}", policy.trim());

    let scripted = own.is_empty();
    let command = if scripted {
        vec![
            "/bin/bash".to_owned(),
            dir.join("agent.sh").display().to_string(),
        ]
    } else {
        own.to_vec()
    };
    heading(&format!(
        "The session: agentwatch run --policy policy.toml -- {}",
        command.join(" ")
    ));
    let mut stream = host
        .command(&["events", "--follow", "--format", "table"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let follower = relay(
        stream.stdout.take().context("standard output is piped")?,
        "event",
    );

    let mut session = host.command(&["run", "--name", SESSION, "--policy"]);
    session
        .arg(&policy_file)
        .arg("--")
        .args(&command)
        .current_dir(dir.join("work"));
    session
        .env("ALLOWED", allowed_port.to_string())
        .env("REFUSED", refused_port.to_string())
        .env("OUTSIDE", dir.join("outside"))
        .env("PUBLISH", dir.join("publish"));
    let status = if scripted {
        let mut child = session
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let readers = [
            relay(child.stdout.take().context("piped")?, "agent"),
            relay(child.stderr.take().context("piped")?, "agent"),
        ];
        let status = approving(&host, &mut child)?;
        for reader in readers {
            let _ = reader.join();
        }
        status
    } else {
        // One's own command keeps the terminal.
        session.status()?
    };
    let denied = host.denied(SESSION)?;
    thread::sleep(Duration::from_millis(300));
    stream.kill()?;
    stream.wait()?;
    let _ = follower.join();

    heading("agentwatch sessions");
    show(&host, &["sessions"])?;
    heading("agentwatch timeline demo");
    show(&host, &["timeline", SESSION])?;
    heading("agentwatch report demo");
    show(&host, &["report", SESSION])?;
    heading("The denials: agentwatch query");
    show(
        &host,
        &[
            "query",
            "SELECT kind, verdict, count(*) AS events FROM events GROUP BY kind, verdict ORDER BY kind, verdict",
        ],
    )?;
    println!();
    show(&host, &["events", SESSION, "--verdict", "denied"])?;

    heading("Result");
    println!(
        "the command ended with {status}; {} denied events",
        denied.len()
    );
    let stolen = dir.join("outside/note").exists();
    if scripted {
        ensure!(
            status.success(),
            "the scripted agent was to end well, and ended with {status}"
        );
        ensure!(!stolen, "the agent wrote outside its workspace");
        ensure!(
            approved(&host)? && dir.join("work/published").exists(),
            "what waited was to be approved, and to happen then"
        );
        ensure!(
            denied.len() >= 3,
            "three denied actions were to be recorded, {} were",
            denied.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for the session, and does what a person does when something waits: looks at it, and approves it.
fn approving(host: &Host, session: &mut Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = session.try_wait()? {
            return Ok(status);
        }
        let requests: Value = serde_json::from_str(&host.output(&["approvals", "--json"])?)
            .context("what waits is no JSON")?;
        if let Some(id) = requests[0]["id"].as_str() {
            heading("It waits: agentwatch approvals");
            show(host, &["approvals"])?;
            heading(&format!("agentwatch approve {id} --reason demo"));
            host.output(&["approve", id, "--reason", "demo"])?;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// How the one action that waits was decided, for the end.
fn approved(host: &Host) -> Result<bool> {
    let lines = host.output(&["events", SESSION, "--kind", "approval", "--format", "jsonl"])?;
    Ok(lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .any(|event| event["approval"]["step"] == "approved"))
}

fn show(host: &Host, arguments: &[&str]) -> Result<()> {
    process::run(host.command(arguments).stdin(Stdio::null()))
}

fn heading(text: &str) {
    let plain = std::env::var_os("NO_COLOR").is_some() || !std::io::stdout().is_terminal();
    if plain {
        println!("\n== {text}\n")
    } else {
        println!("\n\x1b[1m== {text}\x1b[0m\n")
    }
}

/// Prints lines with a word in front of them that says whose they are.
fn relay(from: impl Read + Send + 'static, whose: &'static str) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            println!("{whose} | {line}");
        }
    })
}
