//! `agentwatch timeline`: one session as a tree of processes, with what each of them touched.
//!
//! Events are gathered as they come and not kept, so a session may be long.

pub(in crate::cli) mod gather;
mod show;

use std::{io::Write as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use self::gather::Gathering;
use super::{
    ask::ask,
    output::{self, Output},
};
use crate::wire::collector::{Answer, Question};

/// Show a session as a tree of processes and what they touched
#[derive(Args, Debug)]
pub struct TimelineArgs {
    /// Session: its id, a unique beginning of it, or its name (then the newest of that name)
    #[arg(value_name = "SESSION")]
    pub session: String,
    /// Print JSON: nothing is summarised
    #[arg(long)]
    pub json: bool,
}

impl TimelineArgs {
    /// Asks and prints.
    ///
    /// # Errors
    /// When the collector does not answer or answers with an error, or when standard output cannot be written.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let mut gathering = Gathering::default();
        ask(
            runtime_dir,
            &Question::Timeline {
                session: self.session,
            },
            |answer| {
                match answer {
                    Answer::Sessions { sessions } => {
                        gathering.session = sessions.into_iter().next()
                    }
                    Answer::Events { events } => {
                        events.iter().for_each(|event| gathering.add(event))
                    }
                    _ => {}
                }
                Ok(())
            },
        )
        .await?;
        let timeline = gathering
            .finish()
            .context("the collector's answer has no session")?;
        let mut out = Output::stdout();
        let result = if self.json {
            serde_json::to_writer_pretty(&mut out, &timeline)
                .map_err(Into::into)
                .and_then(|()| Ok(out.line("")?))
        } else {
            show::show(&mut out, &timeline)
        };
        output::finish(result.and_then(|()| out.flush().context("write to standard output")))
    }
}
