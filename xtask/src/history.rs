//! The history's part of `cargo xtask bench`: runs the example that fills a collector and asks it, and reads its lines.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{bench::Table, build, paths, process, table};

/// A line of the example.
#[derive(Deserialize)]
struct Line {
    what: String,
    memory_mib: Option<u64>,
    // Of taking in.
    events_per_cpu_second: Option<f64>,
    disk_bytes_per_event: Option<f64>,
    // Of a question.
    rows: Option<u64>,
    median_ms: Option<f64>,
    cpu_ms: Option<f64>,
}

/// Rows: what, the figure, processor time of the collector's, rows of the answer, its memory at its highest so far.
pub fn measure(events: u64, sessions: u64) -> Result<Table> {
    build::agentwatch(true)?;
    let mut cargo = process::cargo(paths::repository());
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "agentwatch",
        "--example",
        "history",
    ]);
    process::run(&mut cargo).context("build the example that measures the history")?;
    println!("filling a history with {events} events of {sessions} sessions");
    let mut child = Command::new(paths::target().join("release/examples/history"))
        .args([events.to_string(), sessions.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .context("run the example")?;
    let output = BufReader::new(child.stdout.take().context("standard output is piped")?);
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in output.lines() {
        let line = line?;
        let line: Line = serde_json::from_str(&line).with_context(|| format!("line {line:?}"))?;
        let memory = line
            .memory_mib
            .map_or_else(String::new, |mib| format!("{mib} MiB"));
        if let (Some(speed), Some(bytes)) = (line.events_per_cpu_second, line.disk_bytes_per_event)
        {
            rows.push(vec![
                "taking in and sealing".to_owned(),
                format!("{speed:.0} events/s of processor time"),
                String::new(),
                String::new(),
                memory,
            ]);
            rows.push(vec![
                "on disk".to_owned(),
                format!("{bytes:.1} bytes/event"),
                String::new(),
                String::new(),
                String::new(),
            ]);
        } else {
            rows.push(vec![
                line.what,
                format!("{:.1} ms", line.median_ms.context("a time")?),
                line.cpu_ms
                    .map_or_else(String::new, |ms| format!("{ms:.1} ms")),
                line.rows.map_or_else(String::new, |rows| rows.to_string()),
                memory,
            ]);
        }
    }
    let status = child.wait()?;
    let heads = [
        "what",
        "figure",
        "processor time",
        "rows",
        "highest memory so far",
    ]
    .map(str::to_owned)
    .to_vec();
    // What was measured before a failure is still worth seeing.
    println!("\n{}\n", table::render(&heads, &rows));
    ensure!(status.success(), "the example ended with {status}");
    Ok((heads, rows))
}

pub fn section(events: u64, sessions: u64, rows: &Table) -> String {
    format!(
        "{events} events of {sessions} sessions, sent over the collector's socket as the daemon sends them; the collector is held on one processor of this machine \
         (`agentwatch/examples/history.rs`). Processor time is the collector's own, with sealing, compression, hashing and signing. Questions are asked over its other \
         socket, five times each, until the whole answer is there: the median on this machine as it was, and the collector's processor time for one.\n\n{}",
        table::markdown(&rows.0, &rows.1)
    )
}
