//! The one thread that writes. It commits what waits in one transaction, and must never answer before the commit. A commit costs
//! about as much as storing a thousand events, so while batches stream in, some are gathered for each.
//!
//! Segments are built by a thread beside it, so that a sender is not kept waiting, and entered here.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tokio::{
    runtime::{self, Runtime},
    sync::{mpsc, oneshot, watch},
    time::timeout_at,
};

use super::{
    ingest::PIPELINE,
    store::{Order, Retention, Sealed, Sealer, Store, StoreError},
};
use crate::{allocator, wire::batch::Batch};

/// Batches that may wait for the writer; each is at most a frame.
const QUEUE: usize = 16;
/// Least time between two commits, unless there is a full one before. A batch that comes after a pause is committed at once.
const GATHER: Duration = Duration::from_millis(40);
/// Bytes in one commit, after which no further batch joins it: some 20,000 events.
const COMMIT_BYTES: usize = 2 << 20;
/// Pause after a segment could not be built.
const RETRY: Duration = Duration::from_secs(30);
/// Segments' worth of unsealed events beyond which batches wait for the segment that is being built.
const MOST_UNSEALED: usize = 3;

/// Where to say how it went. An error is text for the one who asked.
pub(super) type Reply = oneshot::Sender<Result<(), String>>;

/// What the writer is to do.
pub(super) enum Job {
    /// Store a batch.
    Store { frame: Bytes, reply: Reply },
    /// Seal all that there is, and answer when that is done.
    Seal { reply: Reply },
    /// See whether a segment was built, or something has become old.
    Look,
}

/// Starts the writer. It ends, with the store closed, when every sender is gone. `committed` is told the number of
/// the newest event after each commit.
pub(super) fn start(
    store: Store,
    retention: Retention,
    committed: watch::Sender<i64>,
) -> Result<(mpsc::Sender<Job>, JoinHandle<()>)> {
    let (sender, jobs) = mpsc::channel(QUEUE);
    let mut sealer = Sealer::new(store.key()).context("make what builds segments")?;
    let (orders, waiting) = std::sync::mpsc::channel::<Order>();
    let (built, done) = std::sync::mpsc::channel();
    // Weak, because the writer ends when nobody else can send.
    let wake = sender.downgrade();
    // For its clock: waiting for a job has no limit otherwise.
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .context("start the writer's clock")?;
    std::thread::Builder::new()
        .name("sealer".to_owned())
        .spawn(move || {
            for order in waiting {
                let sealed = sealer.build(&order);
                // It took tens of megabytes that nothing needs until the next one.
                allocator::give_back_code();
                if built.send(sealed).is_err() {
                    return;
                }
                // Where the queue is full the writer is awake, and looks by itself.
                if let Some(wake) = wake.upgrade() {
                    let _ = wake.try_send(Job::Look);
                }
            }
        })
        .context("start the sealer's thread")?;
    let thread = std::thread::Builder::new()
        .name("writer".to_owned())
        .spawn(move || {
            Writer {
                store,
                retention,
                committed,
                failed: None,
                orders,
                done,
                building: false,
                pause: None,
                sealing: Vec::new(),
            }
            .run(&runtime, jobs)
        })
        .context("start the writer's thread")?;
    Ok((sender, thread))
}

struct Writer {
    store: Store,
    retention: Retention,
    committed: watch::Sender<i64>,
    /// An error that the connection may not survive: it is opened afresh before the next commit.
    failed: Option<StoreError>,
    orders: std::sync::mpsc::Sender<Order>,
    done: std::sync::mpsc::Receiver<Result<Sealed, StoreError>>,
    building: bool,
    /// Until when no segment is built after one that could not be.
    pause: Option<Instant>,
    /// Who waits for everything to be sealed.
    sealing: Vec<Reply>,
}

impl Writer {
    fn run(mut self, runtime: &Runtime, mut jobs: mpsc::Receiver<Job>) {
        let mut gathered = Instant::now();
        while let Some(first) = jobs.blocking_recv() {
            let mut group: Vec<(Bytes, Reply)> = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    Job::Store { frame, reply } => {
                        bytes += frame.len();
                        group.push((frame, reply));
                    }
                    Job::Seal { reply } => self.sealing.push(reply),
                    Job::Look => {}
                }
                // Who waits for everything to be sealed, or has sent all that it may, is not kept waiting.
                next = if bytes >= COMMIT_BYTES {
                    None
                } else if group.is_empty() || group.len() >= PIPELINE || !self.sealing.is_empty() {
                    jobs.try_recv().ok()
                } else {
                    let until = (gathered + GATHER).into();
                    let job = async { timeout_at(until, jobs.recv()).await.ok().flatten() };
                    runtime.block_on(job)
                };
            }
            gathered = Instant::now();
            if !group.is_empty() {
                self.store(group);
            }
            self.tend();
        }
        if self.building
            && let Ok(sealed) = self.done.recv()
        {
            self.enter(sealed);
        }
        if let Err(error) = self.store.close() {
            tracing::warn!(%error, "the history's log could not be moved into its file; the next start will do it");
        }
    }

    /// Stores a group of batches. Where one of them is no batch, each is stored by itself, and that one is refused.
    fn store(&mut self, group: Vec<(Bytes, Reply)>) {
        let frames: Vec<&[u8]> = group.iter().map(|(frame, _)| frame.as_ref()).collect();
        let outcome = self.commit(&frames);
        let alone = outcome.is_err()
            && frames.len() > 1
            && frames.iter().any(|frame| Batch::decode(frame).is_err());
        for (frame, reply) in group {
            let outcome = if alone {
                self.commit(&[&frame])
            } else {
                outcome.clone()
            };
            // The connection may be gone by now; what is stored stays stored.
            let _ = reply.send(outcome);
        }
    }

    fn commit(&mut self, frames: &[&[u8]]) -> Result<(), String> {
        if let Some(error) = self.failed.take() {
            // What is being built is of this history, and is entered into no other.
            if self.building
                && let Ok(sealed) = self.done.recv()
            {
                self.enter(sealed);
            }
            // What that met is of this history too.
            let error = self.failed.take().unwrap_or(error);
            if let Err(second) = self.store.replace(&error) {
                self.failed = Some(error);
                return Err(refusal(&second));
            }
        }
        match self.store.insert(frames) {
            Ok(newest) => {
                self.committed.send_replace(newest);
                Ok(())
            }
            Err(error) => {
                let refusal = refusal(&error);
                tracing::error!(%error, batches = frames.len(), "events could not be stored; their sender keeps them");
                if !matches!(error, StoreError::Full | StoreError::Batch(_)) {
                    self.failed = Some(error);
                }
                Err(refusal)
            }
        }
    }

    /// Enters what was built, has built what is due, and lets go of what is old.
    fn tend(&mut self) {
        loop {
            if self.building {
                let wait = self.store.unsealed() > MOST_UNSEALED * self.store.segment_events;
                let sealed = if wait {
                    self.done.recv().ok()
                } else {
                    self.done.try_recv().ok()
                };
                match sealed {
                    Some(sealed) => self.enter(sealed),
                    None => return,
                }
            }
            if self.pause.is_some_and(|until| Instant::now() < until) {
                self.answer(Err(
                    "the last attempt to seal failed; the log says why".to_owned()
                ));
                return;
            }
            self.pause = None;
            match self.store.order(!self.sealing.is_empty()) {
                Ok(Some(order)) => self.building = self.orders.send(order).is_ok(),
                Ok(None) => {
                    self.answer(Ok(()));
                    if let Err(error) = self.store.retain(&self.retention) {
                        tracing::error!(%error, "what is too old could not be removed");
                    }
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "nothing can be sealed");
                    self.pause = Some(Instant::now() + RETRY);
                }
            }
            if !self.building {
                return;
            }
        }
    }

    fn enter(&mut self, sealed: Result<Sealed, StoreError>) {
        self.building = false;
        let result = sealed.and_then(|sealed| self.store.enter(&sealed));
        if let Err(error) = result {
            tracing::error!(%error, "a segment could not be sealed; its events stay where they are");
            self.pause = Some(Instant::now() + RETRY);
            if matches!(error, StoreError::Corrupt(_)) {
                self.failed.get_or_insert(error);
            }
        }
    }

    fn answer(&mut self, outcome: Result<(), String>) {
        for reply in self.sealing.drain(..) {
            let _ = reply.send(outcome.clone());
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
