//! `agentwatch events`: the stream, as a table or as it is stored.

use std::{io::Write as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use jiff::{Span, Timestamp, tz::TimeZone};

use super::{
    ask::ask,
    output::{self, Output, Tone, escape, pad},
    render,
};
use crate::{
    event::{Event, Kind, Verdict, format::Format},
    wire::collector::{Answer, Filter, Question},
};

/// Show what happened
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Session: its id, a unique beginning of it, or its name (then the newest of that name)
    #[arg(value_name = "SESSION")]
    pub session: Option<String>,
    /// Only what happened since: a span until now (90s, 1h, 2d) or a time (2026-11-20T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Timestamp>,
    /// Only these kinds, separated by commas
    #[arg(long, value_name = "KIND,KIND", value_delimiter = ',', value_parser = kind)]
    pub kind: Vec<Kind>,
    /// Only these verdicts, separated by commas
    #[arg(long, value_name = "VERDICT,VERDICT", value_delimiter = ',', value_parser = verdict)]
    pub verdict: Vec<Verdict>,
    /// Go on with what comes, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// How to show it
    #[arg(long, value_enum, default_value_t)]
    pub format: EventFormat,
}

/// How events are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EventFormat {
    /// Columns for people
    #[default]
    Table,
    /// One JSON object a line, as stored
    Jsonl,
    /// The same in the Open Cybersecurity Schema Framework
    Ocsf,
    /// The same in the Elastic Common Schema
    Ecs,
}

impl EventsArgs {
    /// Asks and prints.
    ///
    /// # Errors
    /// When the collector does not answer or answers with an error, or when standard output cannot be written.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let filter = Filter {
            session: self.session,
            since: self.since,
            kinds: self.kind,
            verdicts: self.verdict,
        };
        let mut out = Output::stdout();
        let mut untitled = self.format == EventFormat::Table;
        let result = ask(
            runtime_dir,
            &Question::Events {
                filter,
                follow: self.follow,
            },
            |answer| {
                let Answer::Events { events } = answer else {
                    return Ok(());
                };
                if std::mem::take(&mut untitled) {
                    let title = out.style.paint(
                        Tone::Title,
                        &columns(["TIME", "SESSION", "VERDICT", "KIND", "PROCESS"], "WHAT"),
                    );
                    out.line(&title)?;
                }
                for event in &events {
                    match self.format {
                        EventFormat::Table => {
                            let line = table_line(event, out.style);
                            out.line(&line)?;
                        }
                        EventFormat::Jsonl => {
                            out.write_all(&Format::Native.lines(std::slice::from_ref(event)))?
                        }
                        EventFormat::Ocsf => {
                            out.write_all(&Format::Ocsf.lines(std::slice::from_ref(event)))?
                        }
                        EventFormat::Ecs => {
                            out.write_all(&Format::Ecs.lines(std::slice::from_ref(event)))?
                        }
                    }
                }
                if self.follow {
                    out.flush()?;
                }
                Ok(())
            },
        )
        .await;
        output::finish(result.and_then(|()| out.flush().context("write to standard output")))
    }
}

/// A time as people give it: a span before now, or RFC 3339.
pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let span: Span = text
        .parse()
        .map_err(|_| "neither a span (90s, 1h, 2d) nor a time (2026-11-20T12:00:00Z)".to_owned())?;
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    now.checked_sub(span.abs())
        .map(|time| time.timestamp())
        .map_err(|error| error.to_string())
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| one_of(Kind::ALL.map(Kind::name).as_slice()))
}

fn verdict(text: &str) -> Result<Verdict, String> {
    Verdict::ALL
        .into_iter()
        .find(|verdict| verdict.name() == text)
        .ok_or_else(|| one_of(Verdict::ALL.map(Verdict::name).as_slice()))
}

fn one_of(names: &[&str]) -> String {
    format!("expected one of {}", names.join(", "))
}

/// Events come one after the other, so widths are fixed; a longer cell pushes its line to the right and nothing is cut.
fn columns(cells: [&str; 5], last: &str) -> String {
    let widths = [24, 14, 7, 9, 18];
    let mut line = String::new();
    for (cell, width) in cells.into_iter().zip(widths) {
        line.push_str(&pad(cell, width));
        line.push_str("  ");
    }
    line.push_str(last);
    line.truncate(line.trim_end().len());
    line
}

fn table_line(event: &Event, style: output::Style) -> String {
    let session = if event.session.name.is_empty() {
        &event.session.id
    } else {
        &event.session.name
    };
    let session = if session.is_empty() {
        "-".into()
    } else {
        escape(session)
    };
    // What is about the record was not decided by anyone. The verdict is padded before it is painted, so that colours
    // do not count as columns.
    let verdict = match event.kind {
        Kind::Loss => style.paint(Tone::Bad, &pad("-", 7)),
        Kind::Session => pad("-", 7),
        _ => style.paint(render::tone(event.verdict), &pad(event.verdict.name(), 7)),
    };
    let process = event
        .process
        .as_ref()
        .map(render::process_name)
        .unwrap_or_default();
    let mut last = render::what(event);
    if event.count > 1 {
        last.push_str(&format!(" ×{}", event.count));
    }
    let why = render::why(event);
    if !why.is_empty() {
        let tone = if event.verdict == Verdict::Allowed {
            Tone::Dim
        } else {
            render::tone(event.verdict)
        };
        if !last.is_empty() {
            last.push_str("  ");
        }
        last.push_str(&style.paint(tone, &why));
    }
    columns(
        [
            &render::time(event.time),
            &session,
            &verdict,
            event.kind.name(),
            &process,
        ],
        &last,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::samples::sample;

    #[test]
    fn since_takes_spans_and_times() {
        let hour = since("1h").expect("a span");
        let ago = Timestamp::now().as_second() - hour.as_second();
        assert!((3599..=3601).contains(&ago), "{ago}");
        assert!(since("2d").is_ok());
        assert_eq!(
            since("2026-11-20T12:00:00Z").expect("a time").to_string(),
            "2026-11-20T12:00:00Z"
        );
        assert!(since("yesterday-ish").is_err());
    }

    #[test]
    fn a_denied_open_is_one_line_with_its_rule() {
        let mut event = sample(Kind::Open);
        event.session.name = "evil\x1b[2J".to_owned();
        let line = table_line(&event, output::Style::plain());
        assert!(line.contains("denied   open       cat[4711]"), "{line}");
        assert!(
            line.contains("/etc/shadow (read)  EACCES files.deny[2] (task.toml:9)"),
            "{line}"
        );
        assert!(!line.contains('\x1b'), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn unknown_kinds_are_answered_with_the_known_ones() {
        assert!(
            kind("opne")
                .expect_err("no such kind")
                .contains("open, create")
        );
        assert_eq!(verdict("denied"), Ok(Verdict::Denied));
    }
}
