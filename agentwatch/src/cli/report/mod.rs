//! `agentwatch report`: one session as a document that one attaches to a pull request or to a ticket.
//!
//! `compose` gathers what the record says, with `acceptance` for the commands that were to show that the task is done; both are pure. `content` looks at the files as they are now, with the rights of whoever
//! asks for the report; `document` puts both into words once, which `text`, `markdown` and `html` write down.

mod acceptance;
mod compose;
mod content;
mod document;
mod html;
mod markdown;
mod text;

use std::{io::Write as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use self::compose::Composing;
use super::{
    ask::ask,
    output::{self, Output},
};
use crate::wire::collector::{Answer, Question};

/// Write a report on a session
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Session: its id, a unique beginning of it, or its name (then the newest of that name)
    #[arg(value_name = "SESSION")]
    pub session: String,
    /// Form of the report
    #[arg(long, value_enum, default_value_t)]
    pub format: ReportFormat,
    /// Hash changed files of up to so many bytes; 0 looks at no file
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    pub hash_limit: u64,
}

/// Form of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For a terminal
    #[default]
    Text,
    /// Markdown, for a pull request
    Md,
    /// One file that needs nothing else, for a ticket
    Html,
    /// Everything, for programs
    Json,
}

impl ReportArgs {
    /// Asks, looks at the changed files, and writes.
    ///
    /// # Errors
    /// When the collector does not answer or answers with an error, or when standard output cannot be written.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let mut composing = Composing::default();
        ask(
            runtime_dir,
            &Question::Timeline {
                session: self.session,
            },
            |answer| {
                match answer {
                    Answer::Sessions { sessions } => composing.session(sessions),
                    Answer::Events { events } => {
                        events.iter().for_each(|event| composing.add(event));
                    }
                    _ => {}
                }
                Ok(())
            },
        )
        .await?;
        let mut report = composing
            .finish()
            .context("the collector's answer has no session")?;
        content::look(&mut report.files_changed, self.hash_limit);
        let mut out = Output::stdout();
        let result = match self.format {
            ReportFormat::Json => serde_json::to_writer_pretty(&mut out, &report)
                .map_err(anyhow::Error::from)
                .and_then(|()| Ok(out.line("")?)),
            ReportFormat::Text => text::write(&mut out, &document::of(&report)),
            ReportFormat::Md => Ok(out.write_all(markdown::of(&document::of(&report)).as_bytes())?),
            ReportFormat::Html => Ok(out.write_all(html::of(&document::of(&report)).as_bytes())?),
        };
        output::finish(result.and_then(|()| out.flush().context("write to standard output")))
    }
}

#[cfg(test)]
mod tests;
