//! Asks the collector what it has of sessions that this daemon has not begun: only with that can it be said what a dead
//! daemon took with it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::forward::Figures;
use crate::{
    cli::ask::ask,
    event::{account::Numbers, model::Loss},
    wire::collector::{AccountPart, Answer, Question, SessionRow},
};

/// How often it is looked whether the collector can be asked.
const LOOK: Duration = Duration::from_millis(100);
/// Between two questions about the same: what the dead daemon had sent may still be on its way into the store.
const SETTLE: Duration = Duration::from_millis(400);

/// What is to be found out.
#[derive(Debug)]
pub enum Wanted {
    /// A session's account; what lies beyond the number is of no interest.
    Account { session: String, up_to: u64 },
    /// The sessions that the history takes for running.
    Running,
}

#[derive(Debug)]
pub enum Found {
    Account { session: String, history: History },
    Running(Vec<SessionRow>),
}

/// What the history has of a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    pub arrived: Numbers,
    pub lost: Vec<Loss>,
    /// By the number of the first event: how many repetitions have been told of.
    pub told: HashMap<u64, u64>,
    pub events: u64,
    pub denied: u64,
}

/// Answers what is wanted, one after the other, until told to stop.
pub async fn run(
    runtime: PathBuf,
    figures: Arc<Figures>,
    mut wanted: mpsc::UnboundedReceiver<Wanted>,
    found: mpsc::Sender<Found>,
    mut stopped: watch::Receiver<bool>,
) {
    let work = async {
        while let Some(wanted) = wanted.recv().await {
            let answer = loop {
                // The spool first: what is on disk is not lost, and the collector does not have it yet.
                while !(figures.connected.load(Ordering::Acquire)
                    && figures.spooled.load(Ordering::Acquire) == 0)
                {
                    sleep(LOOK).await;
                }
                match look(&runtime, &wanted).await {
                    Ok(answer) => break answer,
                    Err(error) => {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "the history cannot be asked yet"
                        );
                        sleep(SETTLE).await;
                    }
                }
            };
            if found.send(answer).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = work => {}
        _ = stopped.changed() => {}
    }
}

async fn look(runtime: &std::path::Path, wanted: &Wanted) -> Result<Found> {
    match wanted {
        Wanted::Running => {
            // An end that the dead daemon had sent may still be on its way into the store.
            sleep(SETTLE * 2).await;
            let mut running = Vec::new();
            ask(runtime, &Question::Sessions, |answer| {
                if let Answer::Sessions { sessions } = answer {
                    running.extend(sessions.into_iter().filter(|row| row.state == "running"));
                }
                Ok(())
            })
            .await?;
            Ok(Found::Running(running))
        }
        Wanted::Account { session, up_to } => {
            let mut before = None;
            loop {
                let history = account(runtime, session).await?;
                let last = (*up_to).min(history.arrived.last());
                let state = (history.arrived.gaps(1, last), last);
                if before.as_ref() == Some(&state) {
                    return Ok(Found::Account {
                        session: session.clone(),
                        history,
                    });
                }
                before = Some(state);
                sleep(SETTLE).await;
            }
        }
    }
}

async fn account(runtime: &std::path::Path, session: &str) -> Result<History> {
    let mut history = History::default();
    let question = Question::Account {
        session: session.to_owned(),
    };
    ask(runtime, &question, |answer| {
        if let Answer::Account { part } = answer {
            let AccountPart {
                arrived,
                lost,
                told,
                events,
                denied,
            } = part;
            for (first, last) in arrived {
                history.arrived.insert(first..=last);
            }
            history.lost.extend(lost);
            history.told.extend(told);
            history.events += events;
            history.denied += denied;
        }
        Ok(())
    })
    .await?;
    Ok(history)
}
