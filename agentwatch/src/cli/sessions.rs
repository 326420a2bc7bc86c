//! `agentwatch sessions`: what the history knows of each session.

use std::{io::Write as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;
use jiff::Timestamp;

use super::{
    ask::ask,
    output::{self, Output, Table, Tone, escape},
    render,
};
use crate::{
    event::model::Coverage,
    wire::collector::{Answer, Question, SessionRow},
};

/// List sessions, newest first
#[derive(Args, Debug)]
pub struct SessionsArgs {
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

impl SessionsArgs {
    /// Asks and prints.
    ///
    /// # Errors
    /// When the collector does not answer or answers with an error, or when standard output cannot be written.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let mut sessions = Vec::new();
        ask(runtime_dir, &Question::Sessions, |answer| {
            if let Answer::Sessions { sessions: more } = answer {
                sessions.extend(more);
            }
            Ok(())
        })
        .await?;
        let mut out = Output::stdout();
        let result = if self.json {
            json(&mut out, &sessions)
        } else {
            table(&mut out, &sessions)
        };
        output::finish(result.and_then(|()| out.flush().context("write to standard output")))
    }
}

fn json(out: &mut Output, sessions: &[SessionRow]) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, sessions)?;
    out.line("")?;
    Ok(())
}

fn table(out: &mut Output, sessions: &[SessionRow]) -> Result<()> {
    let mut table = Table::new(&[
        "ID", "NAME", "UID", "MODE", "COVERAGE", "STATE", "STARTED", "DURATION", "EVENTS", "DENIED",
    ]);
    let now = Timestamp::now();
    for session in sessions {
        let coverage = match session.coverage {
            Coverage::Enforcing => Tone::Good,
            Coverage::Degraded => Tone::Bad,
            Coverage::Off => Tone::Warn,
        };
        table.row(vec![
            (escape(&session.id).into_owned(), None),
            (escape(&session.name).into_owned(), None),
            (uid(session.uid), None),
            (session.mode.name().to_owned(), None),
            (session.coverage.name().to_owned(), Some(coverage)),
            (state(session), None),
            (render::time(session.started), None),
            (lasted(session, now), None),
            (session.events.to_string(), None),
            (
                session.denied.to_string(),
                (session.denied > 0).then_some(Tone::Bad),
            ),
        ]);
    }
    table.write(out)?;
    Ok(())
}

/// The user, or `?` where the session's start is not in the history.
pub(super) fn uid(uid: u32) -> String {
    if uid == u32::MAX {
        "?".to_owned()
    } else {
        uid.to_string()
    }
}

/// `running`, or how it ended.
pub(super) fn state(session: &SessionRow) -> String {
    match (&session.reason, session.exit_code) {
        (_, Some(code)) => format!("{} ({code})", escape(&session.state)),
        (Some(reason), None) => format!("{} ({})", escape(&session.state), escape(reason)),
        (None, None) => escape(&session.state).into_owned(),
    }
}

/// How long it lasted, or has lasted; `?` where its end is not known.
pub(super) fn lasted(session: &SessionRow, now: Timestamp) -> String {
    let end = match session.ended {
        Some(ended) => ended,
        None if session.state == "running" => now,
        None => return "?".to_owned(),
    };
    let nanoseconds = end.as_nanosecond() - session.started.as_nanosecond();
    render::duration(u64::try_from(nanoseconds).unwrap_or(0))
}
