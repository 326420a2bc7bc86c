//! Runs the measurement under every configuration that the report compares.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::personality::{self, Persona};

use super::{DENIED, DIR, POLICY};
use crate::harness::agentwatch::Daemon;

/// What the measurement runs with.
pub struct Tools {
    pub agentwatch: PathBuf,
    /// Left out where there is none.
    pub strace: Option<PathBuf>,
    pub landlocked: PathBuf,
    pub effort: u64,
}

/// How long a guest is left alone after its boot; guest time, which passes at once where nothing runs.
const SETTLE: Duration = Duration::from_secs(60);

/// All configurations in one boot, so that they share a kernel and its state.
pub fn all(tools: &Tools) -> Result<()> {
    let own = std::env::current_exe()?;
    // Or processes differ by the page tables that their addresses need, which is more than what is measured of an execution.
    personality::set(personality::get()? | Persona::ADDR_NO_RANDOMIZE)?;
    fs::create_dir_all(DIR)?;
    fs::write(Path::new(DIR).join(DENIED), "x")?;
    // What a fresh boot still does in the background would count as the first configuration's.
    std::thread::sleep(SETTLE);
    run(measure(Command::new(&own), "bare", tools.effort), "bare")?;

    let mut landlocked = Command::new(&tools.landlocked);
    landlocked
        .args(["--write", DIR, "--port", "7001", "--"])
        .arg(&own);
    run(measure(landlocked, "Landlock", tools.effort), "Landlock")?;

    if let Some(strace) = &tools.strace {
        let mut traced = Command::new(strace);
        traced.args(["-f", "-o", "/dev/null"]).arg(&own);
        // Two stops and as many context switches a system call: a tenth of the repetitions tells as much.
        run(measure(traced, "strace -f", tools.effort / 10), "strace")?;
    }

    let root = tempfile::tempdir()?;
    let policy = root.path().join("policy.toml");
    fs::write(&policy, POLICY)?;
    let daemon = Daemon::start(&tools.agentwatch, root.path())?;
    outside(&own, &daemon, &policy, tools.effort)?;
    for (config, mode) in [
        ("agentwatch, monitor", "monitor"),
        ("agentwatch, enforce", "enforce"),
    ] {
        let policy = policy.to_string_lossy();
        let mut confined = daemon.agentwatch.command(&[
            "run", "--policy", &policy, "--name", mode, "--mode", mode, "--",
        ]);
        confined.arg(&own);
        run(measure(confined, config, tools.effort), config)?;
    }
    Ok(())
}

/// Measures outside a session while one exists, so that every program is attached.
fn outside(own: &Path, daemon: &Daemon, policy: &Path, effort: u64) -> Result<()> {
    let policy = policy.to_string_lossy();
    let mut session = daemon
        .agentwatch
        .command(&["run", "--policy", &policy, "--name", "idle", "--"]);
    session
        .arg(own)
        .arg("idle")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0);
    let mut session = session.spawn().context("start a session that idles")?;
    // It says a word as soon as it runs, and ends when its input does.
    let mut word = [0; 1];
    use std::io::Read;
    let began = session
        .stdout
        .as_mut()
        .context("standard output is piped")?
        .read(&mut word)?;
    if began == 0 {
        bail!("the idle session did not start: {}", session.wait()?);
    }
    let done = run(
        measure(Command::new(own), "outside a session", effort),
        "outside",
    );
    drop(session.stdin.take());
    session.wait()?;
    // Its end must not fall into the next measurement.
    std::thread::sleep(Duration::from_millis(500));
    done
}

fn measure(mut command: Command, config: &str, effort: u64) -> Command {
    command.args([
        "measure",
        "--config",
        config,
        "--effort",
        &effort.max(1).to_string(),
    ]);
    command
}

fn run(mut command: Command, what: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("measure {what}"))?;
    if !status.success() {
        bail!("measuring {what} ended with {status}");
    }
    Ok(())
}
