//! Brings events to the collector: in memory while it keeps up, by way of the spool on disk while it does not.
//!
//! An event is let go of only when the collector has acknowledged it. What neither the collector nor the disk takes is
//! counted by session and number and declared as a `loss` event as soon as something can be written again.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{net::UnixStream, sync::mpsc, time};

use super::{
    Paths,
    spool::{MOST_BYTES, Refusal, Spool},
};
use crate::{
    event::{
        Event, Kind, Verdict,
        host::{Host, no_session},
        model::{Loss, SessionRef},
        redact::Redactor,
    },
    wire::{
        Connection,
        batch::unpack,
        collector::{Batch, BatchAnswer, INGEST_SOCKET, frame},
    },
};

/// Events of one batch at the most.
const BATCH: usize = 512;
/// How long events are gathered for a batch.
const GATHER: Duration = Duration::from_millis(20);
/// Batches that wait for their acknowledgement at the most; beyond, events go to disk.
const WINDOW: usize = 16;
/// How often a collector that is away is looked for.
const RETRY: Duration = Duration::from_millis(200);
/// How long a collector may take to answer before it counts as away.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to read a batch; the daemon waits for nothing else meanwhile.
const SEND: Duration = Duration::from_secs(1);
/// How long one that did not read or answer is left alone.
const PENANCE: Duration = Duration::from_secs(15);

/// What `status` shows of the way to the collector.
#[derive(Default)]
pub struct Figures {
    pub queued: AtomicU64,
    pub spooled: AtomicU64,
    pub lost: AtomicU64,
    pub connected: AtomicBool,
    /// Events that were passed on, by kind and verdict.
    passed: [[AtomicU64; Verdict::ALL.len()]; Kind::ALL.len()],
}

impl Figures {
    /// Events by kind, then by verdict, as far as there were any.
    pub fn events(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut events: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (kind, counts) in Kind::ALL.iter().zip(&self.passed) {
            for (verdict, count) in Verdict::ALL.iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let of_kind = events.entry(kind.name().to_owned()).or_default();
                    of_kind.insert(verdict.name().to_owned(), count);
                }
            }
        }
        events
    }
}

/// Starts the forwarder on a thread of its own: it may wait for the disk. It ends when `inbox` is closed.
pub fn start(
    inbox: mpsc::Receiver<Event>,
    paths: &Paths,
    max_bytes: u64,
    redactor: Arc<Redactor>,
) -> Result<(JoinHandle<()>, Arc<Figures>)> {
    let (spool, damage) = Spool::open(&paths.state.join("spool"), max_bytes)?;
    let figures = Arc::new(Figures::default());
    let mut forwarder = Forwarder {
        socket: paths.runtime.join("collector").join(INGEST_SOCKET),
        spool,
        connection: None,
        unacknowledged: VecDeque::new(),
        number: 0,
        progress: time::Instant::now(),
        not_before: time::Instant::now(),
        losses: BTreeMap::new(),
        host: Host::read()?,
        redactor,
        figures: figures.clone(),
    };
    if let Some(damage) = damage {
        tracing::error!("{damage}");
        forwarder.declare_damage();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the forwarder")?;
    let thread = std::thread::Builder::new()
        .name("forward".to_owned())
        .spawn(move || runtime.block_on(forwarder.run(inbox)))
        .context("start the forwarder")?;
    Ok((thread, figures))
}

struct Forwarder {
    socket: PathBuf,
    spool: Spool,
    connection: Option<Connection>,
    /// Sent and not acknowledged.
    unacknowledged: VecDeque<Sent>,
    number: u64,
    /// When the collector last answered, or was first asked since.
    progress: time::Instant,
    not_before: time::Instant,
    /// What could not be kept, by session.
    losses: BTreeMap<String, (SessionRef, Loss)>,
    host: Host,
    redactor: Arc<Redactor>,
    figures: Arc<Figures>,
}

/// A batch that was sent. Its events are kept as they were packed, which takes a tenth of the memory.
struct Sent {
    number: u64,
    origin: Origin,
    events: usize,
    frame: bytes::Bytes,
}

#[derive(Clone, Copy)]
enum Origin {
    Memory,
    /// Up to this number of the spool.
    Disk(i64),
}

impl Sent {
    /// Its events.
    fn unpack(self) -> Result<Vec<Event>> {
        let (_, packed) = Batch::open(self.frame.into())?;
        unpack(&packed).map_err(anyhow::Error::msg)
    }
}

impl Forwarder {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        let mut open = true;
        let mut pending: Vec<Event> = Vec::with_capacity(BATCH);
        let mut retry = time::interval(RETRY);
        retry.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        while open {
            tokio::select! {
                received = inbox.recv_many(&mut pending, BATCH) => {
                    open = received > 0;
                    if open && pending.len() < BATCH {
                        // More may be about to come; a denial is not kept waiting for it.
                        if !pending.iter().any(|event| event.verdict != Verdict::Allowed) {
                            let gathered = time::timeout(GATHER, inbox.recv_many(&mut pending, BATCH)).await;
                            open = !matches!(gathered, Ok(0));
                        }
                    }
                }
                answer = answer(&mut self.connection), if !self.unacknowledged.is_empty() => self.answered(answer),
                _ = retry.tick() => {
                    if !self.unacknowledged.is_empty() && self.progress.elapsed() > PATIENCE {
                        self.stuck("it does not answer");
                    }
                    self.reconnect().await;
                }
            }
            self.declare_losses(&mut pending);
            self.pass_on(&mut pending).await;
            self.show();
        }
        self.finish(pending).await;
    }

    /// Sends what is pending, or puts it on disk.
    async fn pass_on(&mut self, pending: &mut Vec<Event>) {
        if !pending.is_empty() {
            // Before anything is sent or written.
            for event in &mut *pending {
                self.redactor.event(event);
                self.figures.passed[event.kind as usize][event.verdict as usize]
                    .fetch_add(1, Ordering::Relaxed);
            }
            // An event can be long (control characters of a name take six bytes each in JSON): by way of the disk,
            // batches are measured in bytes.
            let long = pending.iter().map(weight).sum::<usize>() > MOST_BYTES / 8;
            if !long
                && self.connection.is_some()
                && self.spool.events() == 0
                && self.unacknowledged.len() < WINDOW
            {
                self.send(Origin::Memory, pending).await;
            } else {
                self.keep(&*pending);
            }
            pending.clear();
        }
        // What is on disk goes one batch at a time: it is taken off when it is acknowledged.
        if self.connection.is_some() && self.unacknowledged.is_empty() && self.spool.events() > 0 {
            match self.spool.front(BATCH) {
                Ok(Some(front)) => {
                    let mut events = front.events;
                    if front.unreadable > 0 {
                        events.push(self.damage(front.unreadable));
                    }
                    self.send(Origin::Disk(front.last), &events).await;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "the spool cannot be read")
                }
            }
        }
    }

    async fn send(&mut self, origin: Origin, events: &[Event]) {
        let Some(connection) = &mut self.connection else {
            return self.keep(events);
        };
        self.number += 1;
        if self.unacknowledged.is_empty() {
            self.progress = time::Instant::now();
        }
        let frame = frame(self.number, events);
        self.unacknowledged.push_back(Sent {
            number: self.number,
            origin,
            events: events.len(),
            frame: frame.clone(),
        });
        let sent = time::timeout(SEND, connection.send_frame(frame)).await;
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.lost_connection(&format!("{error:#}")),
            Err(_) => self.stuck("it does not read"),
        }
    }

    /// The collector is there and does nothing: it is left alone for a while.
    fn stuck(&mut self, why: &str) {
        self.lost_connection(why);
        self.not_before = time::Instant::now() + PENANCE;
    }

    fn answered(&mut self, answer: Result<Option<BatchAnswer>>) {
        self.progress = time::Instant::now();
        match answer {
            Ok(Some(BatchAnswer::Ack { number })) => {
                while self
                    .unacknowledged
                    .front()
                    .is_some_and(|sent| sent.number <= number)
                {
                    if let Some(sent) = self.unacknowledged.pop_front()
                        && let Origin::Disk(up_to) = sent.origin
                        && let Err(error) = self.spool.pop(up_to)
                    {
                        // They are sent again, later, and recognised by their ids.
                        let why = format!("the spool does not let go of events: {error:#}");
                        return self.lost_connection(&why);
                    }
                }
            }
            Ok(Some(BatchAnswer::Refused { number, error })) => {
                self.lost_connection(&format!("it refused batch {number}: {error}"));
            }
            Ok(None) => self.lost_connection("it closed the connection"),
            Err(error) => self.lost_connection(&format!("{error:#}")),
        }
    }

    /// The collector is away: what it has not acknowledged goes to disk.
    fn lost_connection(&mut self, why: &str) {
        tracing::warn!(why, "the collector is away");
        self.connection = None;
        for sent in std::mem::take(&mut self.unacknowledged) {
            if matches!(sent.origin, Origin::Disk(_)) {
                continue;
            }
            let count = sent.events as u64;
            match sent.unpack() {
                Ok(events) => self.keep(&events),
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "a batch that was sent cannot be read again: its events are lost"
                    );
                    self.figures.lost.fetch_add(count, Ordering::Relaxed);
                    self.declare_damage();
                }
            }
        }
    }

    async fn reconnect(&mut self) {
        if self.connection.is_some() || time::Instant::now() < self.not_before {
            return;
        }
        if let Ok(stream) = UnixStream::connect(&self.socket).await {
            tracing::info!(spooled = self.spool.events(), "connected to the collector");
            self.connection = Some(Connection::new(stream));
            self.number = 0;
        }
    }

    fn keep(&mut self, events: &[Event]) {
        match self.spool.push(events) {
            Ok(()) => {}
            Err(refusal) => {
                if let Refusal::Failed(error) = refusal {
                    tracing::error!(
                        error = format!("{error:#}"),
                        events = events.len(),
                        "the spool takes no events"
                    );
                }
                for event in events {
                    self.lose(event);
                }
            }
        }
    }

    fn lose(&mut self, event: &Event) {
        self.figures.lost.fetch_add(1, Ordering::Relaxed);
        let seq = event.seq;
        let count = event.loss.as_ref().map_or(1, |loss| loss.events.max(1));
        let (_, loss) = self
            .losses
            .entry(event.session.id.clone())
            .or_insert_with(|| {
                let loss = Loss {
                    from: seq,
                    to: seq,
                    reason: "spool_full".to_owned(),
                    events: 0,
                };
                (event.session.clone(), loss)
            });
        // What has no number says nothing of those that have one, but for a loss that tells of some.
        let (first, last) = match &event.loss {
            Some(told) if told.from != 0 => (told.from, told.to),
            _ => (seq, seq),
        };
        if first != 0 {
            loss.from = if loss.from == 0 {
                first
            } else {
                loss.from.min(first)
            };
            loss.to = loss.to.max(last);
        }
        loss.events += count;
    }

    /// Declares losses as soon as there is a way out for them.
    fn declare_losses(&mut self, pending: &mut Vec<Event>) {
        if self.losses.is_empty() {
            return;
        }
        if self.spool.events() == 0 && self.connection.is_some() {
            pending.extend(self.take_losses());
        } else if self.spool.has_room() {
            // In memory they would be lost with the daemon.
            let losses = self.told_losses();
            if self.spool.push(&losses).is_ok() {
                self.losses.clear();
            }
        }
    }

    fn take_losses(&mut self) -> Vec<Event> {
        let losses = self.told_losses();
        self.losses.clear();
        losses
    }

    fn told_losses(&self) -> Vec<Event> {
        self.losses
            .values()
            .map(|(session, loss)| {
                let mut event = self.host.event(session, Kind::Loss);
                event.loss = Some(loss.clone());
                event
            })
            .collect()
    }

    fn declare_damage(&mut self) {
        let event = self.damage(0);
        self.keep(&[event]);
    }

    /// That so many events in the spool were damaged; 0 where that is not known.
    fn damage(&self, events: u64) -> Event {
        let mut event = self.host.event(&no_session(), Kind::Loss);
        event.loss = Some(Loss {
            from: 0,
            to: 0,
            reason: "spool_corrupt".to_owned(),
            events,
        });
        event
    }

    fn show(&self) {
        let queued = self
            .unacknowledged
            .iter()
            .map(|sent| sent.events as u64)
            .sum();
        self.figures.queued.store(queued, Ordering::Relaxed);
        self.figures
            .spooled
            .store(self.spool.events(), Ordering::Relaxed);
        self.figures
            .connected
            // Whoever sees that it is connected sees what is on disk, too.
            .store(self.connection.is_some(), Ordering::Release);
    }

    /// The daemon stops: gives the collector a moment, and puts the rest on disk.
    async fn finish(&mut self, mut pending: Vec<Event>) {
        let deadline = time::Instant::now() + Duration::from_secs(2);
        loop {
            self.declare_losses(&mut pending);
            self.pass_on(&mut pending).await;
            if self.connection.is_none() || self.unacknowledged.is_empty() {
                break;
            }
            match time::timeout_at(deadline, answer(&mut self.connection)).await {
                Ok(answer) => self.answered(answer),
                Err(_) => break,
            }
        }
        self.lost_connection("the daemon stops");
        self.keep(&pending);
        let left = self.take_losses();
        if !left.is_empty() && self.spool.push(&left).is_err() {
            tracing::error!(sessions = left.len(), "losses could not be written down");
        }
    }
}

/// What the collector says next; never, where it is away.
async fn answer(connection: &mut Option<Connection>) -> Result<Option<BatchAnswer>> {
    match connection {
        Some(connection) => connection.receive().await,
        None => std::future::pending().await,
    }
}

/// The bytes of an event that an agent can make many of.
fn weight(event: &Event) -> usize {
    let file =
        |file: &Option<crate::event::model::File>| file.as_ref().map_or(0, |file| file.path.len());
    let process = event.process.as_ref().map_or(0, |process| {
        process.argv.iter().map(String::len).sum::<usize>() + process.exe.len() + process.cwd.len()
    });
    let net = event
        .net
        .as_ref()
        .and_then(|net| net.path.as_ref())
        .map_or(0, String::len);
    512 + file(&event.file) + file(&event.target) + process + net
}
