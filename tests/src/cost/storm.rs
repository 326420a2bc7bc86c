//! Floods a session with opens and checks its account: what was made is delivered, folded or declared lost, and no
//! denial drowns.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{DIR, POLICY};
use crate::harness::{agentwatch::Daemon, compare};

/// What a result line begins with.
pub const MARK: &str = "@storm";

/// How many opens.
pub const OPENS: u64 = 200_000;

/// How many of the denied file's opens are strewn among them.
pub const DENIALS: u64 = 100;

/// One storm over a single file and one over many, a daemon for both.
pub fn all(agentwatch: &Path) -> Result<()> {
    let root = tempfile::tempdir()?;
    let policy = root.path().join("policy.toml");
    fs::write(&policy, POLICY)?;
    let daemon = Daemon::start(agentwatch, root.path())?;
    for (name, files) in [("one file", 1), ("20 000 files", 20_000)] {
        storm(&daemon, &policy, name, files).with_context(|| format!("storm on {name}"))?;
    }
    Ok(())
}

fn storm(daemon: &Daemon, policy: &Path, name: &str, files: u64) -> Result<()> {
    let dir = Path::new(DIR).join("storm");
    fs::create_dir_all(&dir)?;
    for index in 0..files {
        File::create(dir.join(index.to_string()))?;
    }
    fs::write(Path::new(DIR).join("denied"), "x")?;
    let session = format!("storm-{files}");
    let own = std::env::current_exe()?;
    let (policy, own) = (policy.to_string_lossy(), own.to_string_lossy());
    let started = Instant::now();
    let opens = ["--files", &files.to_string(), "--opens", &OPENS.to_string()].map(str::to_owned);
    let mut command = daemon.agentwatch.command(&[
        "run", "--policy", &policy, "--name", &session, "--", &own, "opens",
    ]);
    let status = command.args(opens).status()?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(status.success(), "the session ended with {status}");

    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let denied = daemon.agentwatch.output(&[
            "events",
            &session,
            "--verdict",
            "denied",
            "--format",
            "jsonl",
        ])?;
        let denied: u64 = denied
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|event| event.get("count")?.as_u64())
            .sum();
        let ended = daemon
            .agentwatch
            .output(&["events", &session, "--kind", "session", "--format", "jsonl"])?;
        let ended: Vec<serde_json::Value> = ended
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        match compare::ended_counts(&ended) {
            Some(counts) if denied >= DENIALS => {
                if let Some(wrong) = compare::unbalanced(counts, true) {
                    bail!("{wrong}");
                }
                println!(
                    "{MARK} {}",
                    json!({"name": name, "seconds": seconds, "denied": denied, "counts": counts})
                );
                return Ok(());
            }
            counts if Instant::now() > deadline => {
                bail!("{denied} of {DENIALS} denials arrived; the session's account is {counts:?}")
            }
            _ => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

/// The flood itself, run inside the session.
pub fn opens(files: u64, opens: u64) -> Result<()> {
    let dir = Path::new(DIR).join("storm");
    let denied = Path::new(DIR).join("denied");
    for index in 0..opens {
        drop(File::open(dir.join((index % files).to_string()))?);
        if index % (opens / DENIALS).max(1) == 0 {
            ensure!(File::open(&denied).is_err(), "the denied file was opened");
        }
    }
    Ok(())
}
