//! `agentwatch status`: the daemon's state.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{ask::ask, control, output::escape, render};
use crate::{
    sinks::SinkStatus,
    wire::{
        collector::{Answer, Question, StoreStatus},
        control::{Request, Response},
    },
};

/// What the collector says of itself, where it answers.
async fn history(runtime_dir: &Path) -> Option<StoreStatus> {
    let mut found = None;
    let asked = ask(runtime_dir, &Question::Status, |answer| {
        if let Answer::Status { status } = answer {
            found = Some(status);
        }
        Ok(())
    });
    asked.await.ok()?;
    found
}

fn line(sink: &SinkStatus) -> String {
    let mut line = format!(
        "{} ({}): {}, {} delivered, {} behind",
        sink.name,
        escape(&sink.target),
        sink.state,
        sink.delivered,
        sink.behind
    );
    for (count, what) in [(sink.refused, "refused"), (sink.lost, "lost")] {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    if let Some(error) = &sink.error {
        line.push_str(&format!("; {}", escape(error)));
        if let Some(since) = sink.failing_since {
            line.push_str(&format!(" (since {})", render::time(since)));
        }
    }
    line
}

/// Show the daemon's state
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl StatusArgs {
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let answer = control::ask(&control::connect(runtime_dir)?, &Request::Status)?;
        let Response::Status { status } = answer else {
            return Err(control::other_answer(&Request::Status, &answer));
        };
        let history = history(runtime_dir).await;
        if self.json {
            let mut whole = serde_json::to_value(&status).context("encode the status")?;
            whole["history"] = serde_json::to_value(&history).context("encode the status")?;
            println!("{whole:#}");
            return Ok(ExitCode::SUCCESS);
        }
        println!("daemon     {} (process {})", status.version, status.pid);
        println!("enforces   {}", status.backends.join(", "));
        println!("collector  {}", status.collector);
        println!("sessions   {}", status.sessions);
        println!(
            "events     {} delivered, {} folded, {} lost",
            status.events_delivered, status.events_folded, status.events_lost
        );
        println!(
            "waiting    {} in memory, {} on disk",
            status.queued, status.spooled
        );
        if let Some(history) = &history {
            println!(
                "history    {} events in {} sessions, {}; {} not sealed yet",
                history.events,
                history.sessions,
                bytesize::ByteSize(history.bytes),
                history.unsealed
            );
        }
        for sink in history.iter().flat_map(|history| &history.sinks) {
            println!("sink       {}", line(sink));
        }
        for (name, count) in status.kernel.iter().filter(|(_, count)| **count > 0) {
            println!("kernel     {name}: {count}");
        }
        Ok(ExitCode::SUCCESS)
    }
}
