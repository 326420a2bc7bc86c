//! The one thread that writes. It commits what waits in one transaction, and must never answer before the commit.

use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, oneshot, watch};

use super::store::{Store, StoreError};
use crate::event::Event;

/// Batches that may wait for the writer; each is at most a frame.
const QUEUE: usize = 16;
/// Events in one commit, after which no further batch joins it.
const COMMIT_EVENTS: usize = 20_000;

/// A batch to store, and where to say how it went. An error is text for the one who sent it.
pub(super) struct Job {
    pub(super) events: Vec<Event>,
    pub(super) reply: oneshot::Sender<Result<(), String>>,
}

/// Starts the writer. It ends, with the store closed, when every sender is gone. `committed` is told the number of
/// the newest event after each commit.
pub(super) fn start(
    store: Store,
    committed: watch::Sender<i64>,
) -> Result<(mpsc::Sender<Job>, JoinHandle<()>)> {
    let (sender, jobs) = mpsc::channel(QUEUE);
    let thread = std::thread::Builder::new()
        .name("writer".to_owned())
        .spawn(move || {
            Writer {
                store,
                committed,
                failed: None,
            }
            .run(jobs)
        })
        .context("start the writer's thread")?;
    Ok((sender, thread))
}

struct Writer {
    store: Store,
    committed: watch::Sender<i64>,
    /// An error that the connection may not survive: it is opened afresh before the next commit.
    failed: Option<StoreError>,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut group = vec![first];
            let mut events = group[0].events.len();
            while events < COMMIT_EVENTS
                && let Ok(job) = jobs.try_recv()
            {
                events += job.events.len();
                group.push(job);
            }
            let outcome = self.commit(&group);
            for job in group {
                // The connection may be gone by now; what is stored stays stored.
                let _ = job.reply.send(outcome.clone());
            }
        }
        if let Err(error) = self.store.close() {
            tracing::warn!(%error, "the history's log could not be moved into its file; the next start will do it");
        }
    }

    fn commit(&mut self, group: &[Job]) -> Result<(), String> {
        if let Some(error) = self.failed.take()
            && let Err(second) = self.store.replace(&error)
        {
            self.failed = Some(error);
            return Err(refusal(&second));
        }
        match self
            .store
            .insert(group.iter().map(|job| job.events.as_slice()))
        {
            Ok(newest) => {
                self.committed.send_replace(newest);
                Ok(())
            }
            Err(error) => {
                let refusal = refusal(&error);
                tracing::error!(%error, batches = group.len(), "events could not be stored; their sender keeps them");
                if !matches!(error, StoreError::Full) {
                    self.failed = Some(error);
                }
                Err(refusal)
            }
        }
    }
}

fn refusal(error: &StoreError) -> String {
    let hint = match error {
        StoreError::Full => {
            "\nhint: free some space where the collector's state directory is; it goes on by itself"
        }
        StoreError::Corrupt(_) => {
            "\nhint: the damaged file is set aside and a new one begun with the next batch"
        }
        _ => "",
    };
    format!("store events: {error}{hint}")
}
