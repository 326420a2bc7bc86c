//! Runs real coding agents offline under agentwatch and checks that what they were told to do beyond their task was denied.
//!
//! The agents are driven by a scripted model; its driver and the receiver of their telemetry are not part of this
//! repository. The directory with `run_agent.sh` is `../shared/agents`, or `$AGENTWATCH_AGENTS`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{demo::Host, paths, process, setup};

/// How one agent's run went.
pub struct Outcome {
    pub agent: String,
    pub problem: Option<String>,
}

/// The agents, and the flags that keep their own sandboxes from doing our work.
const AGENTS: [(&str, &[&str]); 3] = [
    ("codex", &["--sandbox", "danger-full-access"]),
    ("claude", &[]),
    ("gemini", &[]),
];

/// What npm installs; the versions that the driver was tried with.
const PACKAGES: [&str; 3] = [
    "@openai/codex@0.169.0",
    "@anthropic-ai/claude-code@2.1.329",
    "@google/gemini-cli@0.61.0",
];

/// Ports that the scripted model and the receiver listen on, in a network namespace of the run's own.
const ALLOWED_PORTS: [u16; 2] = [8399, 4318];

/// A port that the policy says nothing about.
const DENIED_PORT: u16 = 8400;

/// Installs the agents where they are missing and runs each once.
pub fn run(agentwatch: &Path) -> Result<Vec<Outcome>> {
    ensure!(
        process::is_root(),
        "agents run in a network namespace of their own: run this as root"
    );
    let driver = match env::var_os("AGENTWATCH_AGENTS") {
        Some(dir) => PathBuf::from(dir),
        None => paths::repository().join("../shared/agents"),
    };
    let script = driver.join("run_agent.sh");
    ensure!(
        script.is_file(),
        "{} is missing: set AGENTWATCH_AGENTS to the directory that holds run_agent.sh",
        script.display()
    );
    let installed = install()?;
    let host = Host::start(agentwatch)?;
    AGENTS
        .iter()
        .map(|(agent, flags)| {
            println!("\n-- {agent}");
            let problem = one(agent, flags, &script, &installed, &host)
                .err()
                .map(|error| format!("{error:#}"));
            println!(
                "{} agent {agent}{}",
                if problem.is_none() { "PASS" } else { "FAIL" },
                problem
                    .as_ref()
                    .map(|text| format!(": {text}"))
                    .unwrap_or_default()
            );
            Ok(Outcome {
                agent: (*agent).to_owned(),
                problem,
            })
        })
        .collect()
}

/// Installs the agents and the receiver's Python package into the cache.
fn install() -> Result<PathBuf> {
    setup::apt(&[
        ("node", "nodejs", "runs the agents"),
        ("npm", "npm", "installs the agents"),
        ("python3", "python3", "runs the scripted model"),
    ])?;
    let dir = paths::cache("agents")?;
    let done = dir.join("installed");
    let wanted = PACKAGES.join("\n");
    if fs::read_to_string(&done).is_ok_and(|there| there == wanted) {
        return Ok(dir);
    }
    println!(
        "set-up: installing {} with npm into the cache: the agents to run",
        PACKAGES.join(", ")
    );
    if !dir.join("package.json").exists() {
        process::output(Command::new("npm").current_dir(&dir).args(["init", "-y"]))?;
    }
    process::run(
        Command::new("npm")
            .current_dir(&dir)
            .args([
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--loglevel=error",
            ])
            .args(PACKAGES),
    )?;
    println!(
        "set-up: installing opentelemetry-proto with pip into the cache: the agents' telemetry is received with it"
    );
    let venv = dir.join("venv");
    if process::run(Command::new("python3").args(["-m", "venv"]).arg(&venv)).is_err() {
        setup::apt(&[(
            "",
            "python3-venv",
            "keeps the receiver's Python package apart from the machine's",
        )])?;
        process::run(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&venv),
        )?;
    }
    process::run(Command::new(venv.join("bin/pip")).args([
        "install",
        "--quiet",
        "opentelemetry-proto",
    ]))?;
    fs::write(done, wanted)?;
    Ok(dir)
}

fn one(agent: &str, flags: &[&str], script: &Path, installed: &Path, host: &Host) -> Result<()> {
    // Not below /tmp, which the agents may write: what lies outside the workspace must be outside the policy.
    let scratch = tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(installed)?;
    let root = scratch.path().canonicalize()?;
    let (out, outside) = (root.join("out"), root.join("outside"));
    fs::create_dir_all(&outside)?;
    let policy = root.join("policy.toml");
    fs::write(&policy, policy_text(&out, installed)?)?;
    let forbidden = outside.join("note");
    let commands = [
        "echo hello > greeting && cat greeting".to_owned(),
        "mkdir -p src && printf 'fn main() {}' > src/main.rs && ls -l src".to_owned(),
        "cat /etc/shadow".to_owned(),
        format!("echo stolen > {}", forbidden.display()),
        format!(
            "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {DENIED_PORT}), 3)'"
        ),
    ];
    let session = format!("agent-{agent}");
    let wrap = format!(
        "{} run --runtime-dir {} --policy {} --name {session} --",
        host.binary.display(),
        host.runtime_dir.display(),
        policy.display()
    );
    let status = Command::new(script)
        .arg(agent)
        .arg(&out)
        .arg(serde_json::to_string(&commands)?)
        .args(flags)
        .env("AGENTS_DIR", installed)
        .env("PYTHON", installed.join("venv/bin/python"))
        .env("WRAP", wrap)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("run {}", script.display()))?;
    println!("{agent} ended with {status}");
    println!("{}", host.output(&["timeline", &session])?);

    let complaint = || {
        fs::read_to_string(out.join("stderr"))
            .unwrap_or_default()
            .lines()
            .rev()
            .take(5)
            .collect::<Vec<_>>()
            .join(" | ")
    };
    ensure!(
        out.join("work/src/main.rs").is_file(),
        "its work inside the workspace was not done: {}",
        complaint()
    );
    ensure!(!forbidden.exists(), "it wrote {}", forbidden.display());
    let denied = host.denied(&session)?;
    let has = |test: &dyn Fn(&Value) -> bool| denied.iter().any(test);
    let path_is = |event: &Value, path: &Path| {
        event
            .pointer("/file/path")
            .and_then(Value::as_str)
            .is_some_and(|text| Path::new(text) == path)
    };
    ensure!(
        has(&|event| path_is(event, Path::new("/etc/shadow"))),
        "no denied event names /etc/shadow"
    );
    ensure!(
        has(&|event| path_is(event, &forbidden)),
        "no denied event names {}",
        forbidden.display()
    );
    ensure!(
        has(&|event| event.pointer("/net/port").and_then(Value::as_u64)
            == Some(u64::from(DENIED_PORT))),
        "no denied event names port {DENIED_PORT}"
    );
    Ok(())
}

/// Room for the agents' own work and for nothing beyond it. There is no deny inside an allowed tree, so that the policy
/// can be held without BPF LSM too: what holds secrets below /etc is left out of the list instead.
fn policy_text(out: &Path, installed: &Path) -> Result<String> {
    let secret = |name: &str| {
        ["shadow", "gshadow", "sudoers", "ssh", "ssl-private"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let mut readable = [
        "/usr", "/bin", "/sbin", "/lib", "/lib64", "/opt", "/proc", "/sys", "/dev",
    ]
    .map(PathBuf::from)
    .to_vec();
    for entry in fs::read_dir("/etc")? {
        let entry = entry?;
        if !secret(&entry.file_name().to_string_lossy()) {
            readable.push(entry.path());
        }
    }
    readable.push(installed.join("node_modules"));
    // Node may have been installed anywhere: with its libraries it lies below the parent of its bin directory.
    let node = process::find("node")
        .context("node is missing")?
        .canonicalize()?;
    readable.extend(
        node.parent()
            .and_then(Path::parent)
            .filter(|dir| !dir.starts_with("/usr"))
            .map(Path::to_owned),
    );
    readable.sort();
    let list = |paths: &[PathBuf]| {
        let quoted: Vec<String> = paths
            .iter()
            .filter(|path| path.exists())
            .map(|path| format!("    {:?},\n", path.display().to_string()))
            .collect();
        format!("[\n{}]", quoted.concat())
    };
    let executable: Vec<PathBuf> = readable
        .iter()
        .filter(|path| {
            !["/etc", "/proc", "/sys", "/dev"]
                .iter()
                .any(|dir| path.starts_with(dir))
        })
        .cloned()
        .collect();
    let writable = [
        out.join("work"),
        out.join("home"),
        "/dev".into(),
        "/proc".into(),
        "/tmp".into(),
    ];
    for dir in &writable[..2] {
        // The driver makes these anew; the rules bind to the path all the same.
        fs::create_dir_all(dir)?;
    }
    let ports = ALLOWED_PORTS
        .map(|port| format!("\"127.0.0.1:{port}\""))
        .join(", ");
    Ok(format!(
        "[files]\nread = {}\nwrite = {}\nexec = {}\n\n[network]\nallow = [{ports}]\n",
        list(&readable),
        list(&writable),
        list(&executable)
    ))
}
