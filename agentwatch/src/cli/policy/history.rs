//! Asking the history, for the policy commands that judge what has been recorded.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::{
    cli::ask::ask,
    event::model::{Event, Kind, Lifecycle, PolicyRecord},
    wire::collector::{Answer, Filter, Question},
};

/// Calls `each` for every event that the filter lets through, oldest first.
pub(super) fn events(
    runtime_dir: &Path,
    filter: Filter,
    mut each: impl FnMut(Event) -> Result<()>,
) -> Result<()> {
    let question = Question::Events {
        filter,
        follow: false,
    };
    asked(runtime_dir, &question, |answer| match answer {
        Answer::Events { events } => events.into_iter().try_for_each(&mut each),
        _ => Ok(()),
    })
}

/// The policy that was put in force for a session last, and the reference by which its events name it.
pub(super) fn policy(
    runtime_dir: &Path,
    session: &str,
) -> Result<(crate::event::model::SessionRef, PolicyRecord)> {
    let filter = Filter {
        session: Some(session.to_owned()),
        kinds: vec![Kind::Session],
        ..Filter::default()
    };
    let mut found = None;
    events(runtime_dir, filter, |event| {
        let policy = match event.lifecycle {
            Some(Lifecycle::Started { policy, .. }) => policy,
            Some(Lifecycle::Reloaded { rules, .. }) => rules,
            _ => None,
        };
        if let Some(policy) = policy {
            found = Some((event.session, *policy));
        }
        Ok(())
    })?;
    found.with_context(|| {
        format!("the history has no policy of session {session}; hint: agentwatch sessions")
    })
}

fn asked(
    runtime_dir: &Path,
    question: &Question,
    each: impl FnMut(Answer) -> Result<()>,
) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start asking")?
        .block_on(ask(runtime_dir, question, each))
}
