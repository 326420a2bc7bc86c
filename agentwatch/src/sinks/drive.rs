//! What keeps a sink going: reads the history from the sink's position, offers it to the receiver, tries again, splits what is refused,
//! and moves the position on.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use globset::GlobSet;
use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

use super::{
    Any, Failure, Sink, SinkConfig, SinkStatus,
    config::From,
    position::{self, Position},
};
use crate::{
    collector::store::feed::{self, Fed},
    event::{
        Event, Kind,
        host::{Host, no_session},
        model::Loss,
    },
};

/// Time for one delivery.
const DELIVERY: Duration = Duration::from_secs(60);
/// Pauses between attempts: the first, and the longest of our own.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause that a receiver can ask for.
const LONGEST_WISH: Duration = Duration::from_secs(600);
/// How often a position is written to disk, at the most; what was delivered since comes again after a crash.
const WRITE: Duration = Duration::from_secs(1);
/// Look at a receiver to which there is nothing to deliver.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes of a delivery, about.
const DELIVERY_BYTES: usize = 1 << 20;

/// The sinks of a collector.
#[derive(Default)]
pub(crate) struct Sinks {
    states: Vec<Arc<Mutex<SinkStatus>>>,
    tasks: JoinSet<()>,
}

impl Sinks {
    /// How each of them is, to be looked at from elsewhere.
    pub(crate) fn states(&self) -> Vec<Arc<Mutex<SinkStatus>>> {
        self.states.clone()
    }

    /// Waits until all have ended, once they were told to.
    pub(crate) async fn ended(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Starts sinks, on the runtime of the caller.
pub(crate) fn start(
    sinks: Vec<(SinkConfig, Any)>,
    directory: &std::path::Path,
    host: &Host,
    newest: &watch::Receiver<i64>,
    stopping: &watch::Receiver<bool>,
) -> Result<Sinks> {
    let mut started = Sinks::default();
    for (config, sink) in sinks {
        let state = Arc::new(Mutex::new(SinkStatus {
            name: config.name.clone(),
            target: config.target.to_string(),
            state: "starting".to_owned(),
            ..SinkStatus::default()
        }));
        started.states.push(Arc::clone(&state));
        let drive = Drive {
            sessions: config.session_globs()?,
            path: position::path(directory, &config.name),
            config,
            sink,
            directory: directory.to_owned(),
            host: host.clone(),
            position: Position::default(),
            reached: 0,
            unsettled: VecDeque::new(),
            told: (0, 0),
            written: None,
            pause: FIRST_PAUSE,
            state,
        };
        started
            .tasks
            .spawn(drive.run(newest.clone(), stopping.clone()));
    }
    Ok(started)
}

struct Drive {
    config: SinkConfig,
    sessions: Option<GlobSet>,
    sink: Any,
    directory: PathBuf,
    host: Host,
    path: PathBuf,
    position: Position,
    /// Number of the last event that was offered; the position follows once the receiver is known to have it.
    reached: i64,
    unsettled: VecDeque<Offered>,
    /// Losses that were told since the position: refused, and gone from the history.
    told: (u64, u64),
    /// The position on disk, and since when.
    written: Option<(Position, Instant)>,
    pause: Duration,
    state: Arc<Mutex<SinkStatus>>,
}

/// What is delivered next.
struct Next {
    batch: Vec<Event>,
    /// How many of its events are words of ours, which are not counted as delivered.
    words: u64,
    /// The losses that they tell: refused, and gone from the history.
    told: (u64, u64),
    /// Number of the last event that is passed with it.
    last: i64,
}

/// What was delivered and is not known to have stayed so.
struct Offered {
    when: Instant,
    number: i64,
    events: u64,
    told: (u64, u64),
}

impl Drive {
    async fn run(mut self, mut newest: watch::Receiver<i64>, mut stopping: watch::Receiver<bool>) {
        let mut known = false;
        loop {
            newest.mark_unchanged();
            let turn = async {
                if !known {
                    self.begin().await?;
                    known = true;
                }
                self.turn().await
            };
            let turned = tokio::select! {
                turned = turn => turned,
                _ = stopping.wait_for(|stop| *stop) => break,
            };
            let wait = match turned {
                Ok(true) => continue,
                Ok(false) => {
                    tokio::select! {
                        changed = newest.changed() => if changed.is_err() { break },
                        () = sleep(LOOK) => {}
                        _ = stopping.wait_for(|stop| *stop) => break,
                    }
                    continue;
                }
                Err(failure) => self.failed(failure),
            };
            tokio::select! {
                () = sleep(wait) => {}
                _ = stopping.wait_for(|stop| *stop) => break,
            }
        }
        self.settle();
        self.keep(true);
    }

    /// Finds the position, or begins where the configuration says.
    async fn begin(&mut self) -> Result<(), Failure> {
        let (history, newest) = self.feed_end().await?;
        let found = position::read(&self.path)?;
        self.position = match found {
            Some(found) if found.history == history && found.number <= newest => found,
            // Another history, or an older copy of this one: what is there is sent, also what may have been sent before.
            Some(found) => {
                tracing::warn!(
                    sink = self.config.name,
                    "the history is not the one that this sink had come through: it begins with the oldest event"
                );
                Position {
                    history,
                    number: 0,
                    gaps: Vec::new(),
                    ..found
                }
            }
            None => Position {
                history,
                number: match self.config.from {
                    From::Start => 0,
                    From::Now => newest,
                },
                ..Position::default()
            },
        };
        self.reached = self.position.number;
        // A first position that is not kept would be another one after a stop.
        position::write(&self.path, &self.position)
            .with_context(|| format!("write {}", self.path.display()))?;
        self.written = Some((self.position.clone(), Instant::now()));
        self.show();
        Ok(())
    }

    async fn feed_end(&self) -> Result<(String, i64), Failure> {
        let directory = self.directory.clone();
        Ok(blocking(move || Ok(feed::end(&directory)?)).await?)
    }

    /// Offers the next events; `false` when there are none.
    async fn turn(&mut self) -> Result<bool, Failure> {
        self.settle();
        self.keep(false);
        let (directory, after) = (self.directory.clone(), self.reached);
        let (kinds, mut verdicts) = (self.config.kinds.clone(), self.config.verdicts.clone());
        verdicts.dedup();
        let fed = blocking(move || Ok(feed::after(&directory, after, &kinds, &verdicts)?)).await?;
        if fed.history != self.position.history || fed.newest < self.reached {
            self.begin().await?;
            return Ok(true);
        }
        let Fed {
            events,
            upto,
            gaps,
            newest,
            ..
        } = fed;
        let missing = self.position.gone(after, upto, gaps);
        if missing > 0 {
            tracing::error!(
                sink = self.config.name,
                events = missing,
                "events were gone from the history before this sink had sent them"
            );
        }
        let mut events: VecDeque<(i64, Event)> = events.into();
        if let Some(globs) = &self.sessions {
            events.retain(|(_, event)| {
                globs.is_match(&event.session.name)
                    || globs.is_match(&event.session.id)
                    || feed::is_for_all(event)
            });
        }
        let any = self.owes() || !events.is_empty();
        if any {
            self.showing(|state| state.state = "delivering".to_owned());
        }
        while self.owes() || !events.is_empty() {
            let next = self.next_batch(&mut events, upto);
            let delivered = self.offer(next.batch).await?;
            self.told = (self.told.0 + next.told.0, self.told.1 + next.told.1);
            self.reached = next.last;
            self.unsettled.push_back(Offered {
                when: Instant::now(),
                number: next.last,
                events: delivered.saturating_sub(next.words),
                told: next.told,
            });
            self.pause = FIRST_PAUSE;
            self.settle();
            self.keep(false);
            self.showing(|state| {
                state.last = Some(Timestamp::now());
                (state.error, state.failing_since) = (None, None);
            });
            self.show();
        }
        if upto > self.reached {
            // Nothing of it is wanted here.
            self.reached = upto;
            self.unsettled.push_back(Offered {
                when: Instant::now(),
                number: upto,
                events: 0,
                told: (0, 0),
            });
            self.settle();
        }
        if !any && upto >= newest {
            self.sink.check().await?;
            let idle = self.unsettled.is_empty();
            self.showing(|state| {
                if state.error.is_none() {
                    state.state = if idle { "idle" } else { "delivering" }.to_owned();
                }
            });
        }
        self.show();
        Ok(any || upto < newest)
    }

    /// Takes what is delivered next: the losses that are owed, then events as far as there is room.
    fn next_batch(&self, events: &mut VecDeque<(i64, Event)>, upto: i64) -> Next {
        let owed = self.owed();
        let mut batch: Vec<Event> = owed.iter().map(|(event, _)| event.clone()).collect();
        let told = owed
            .iter()
            .fold((0, 0), |all, (_, told)| (all.0 + told.0, all.1 + told.1));
        let (mut bytes, mut last) = (0, self.reached);
        let mut own = 0;
        while batch.len() < self.sink.most_events()
            && let Some((_, event)) = events.front()
        {
            bytes += feed::weight(event);
            if own > 0 && bytes > DELIVERY_BYTES {
                break;
            }
            if let Some((number, event)) = events.pop_front() {
                batch.push(event);
                (last, own) = (number, own + 1);
            }
        }
        if events.is_empty() {
            last = upto;
        }
        Next {
            batch,
            words: owed.len() as u64,
            told,
            last,
        }
    }

    /// Offers a batch until all of it is taken or refused for good; returns how many were taken.
    async fn offer(&mut self, batch: Vec<Event>) -> Result<u64, Failure> {
        let mut parts = vec![batch];
        // Counted once all is settled: where a part is to be offered again, so is all that was refused.
        let (mut taken, mut refusals, mut owed) = (0, 0, 0);
        while let Some(mut part) = parts.pop() {
            let delivered = timeout(DELIVERY, self.sink.deliver(&part))
                .await
                .unwrap_or_else(|_| {
                    Err(anyhow!(
                        "the receiver did not answer in {} seconds",
                        DELIVERY.as_secs()
                    )
                    .into())
                });
            match delivered {
                Ok(refused) => {
                    if refused > 0 {
                        tracing::error!(
                            sink = self.config.name,
                            events = refused,
                            "the receiver refuses events and does not say which"
                        );
                    }
                    refusals += refused;
                    // Of a word that something is missing alone, nothing is owed.
                    if part.iter().any(|event| !is_word(event)) {
                        owed += refused;
                    }
                    taken += (part.len() as u64).saturating_sub(refused);
                }
                Err(Failure::Refused(_)) if part.len() > 1 => {
                    let second = part.split_off(part.len() / 2);
                    // The first half is taken from the end next.
                    parts.extend([second, part]);
                }
                Err(Failure::Refused(error)) => {
                    let event = part.first();
                    tracing::error!(
                        sink = self.config.name,
                        event = event.map(|event| event.id.as_str()),
                        error = format!("{error:#}"),
                        "the receiver refuses an event"
                    );
                    refusals += 1;
                    // The word that something is missing is not owed again, or it would be for ever.
                    if event.is_some_and(|event| !is_word(event)) {
                        owed += 1;
                    }
                }
                Err(again) => return Err(again),
            }
        }
        self.position.refused += refusals;
        self.position.owed_refused += owed;
        Ok(taken)
    }

    fn owes(&self) -> bool {
        self.position.owed_refused > self.told.0 || self.position.owed_lost > self.told.1
    }

    /// The losses that the receiver is to be told of, and what each settles.
    fn owed(&self) -> Vec<(Event, (u64, u64))> {
        let refused = self.position.owed_refused.saturating_sub(self.told.0);
        let lost = self.position.owed_lost.saturating_sub(self.told.1);
        [
            (refused, "sink_refused", (refused, 0)),
            (lost, "sink_behind", (0, lost)),
        ]
        .into_iter()
        .filter(|(events, ..)| *events > 0)
        .map(|(events, reason, told)| {
            let mut event = self.host.event(&no_session(), Kind::Loss);
            event.loss = Some(Loss {
                from: 0,
                to: 0,
                reason: reason.to_owned(),
                events,
            });
            (event, told)
        })
        .collect()
    }

    /// Takes as delivered what the receiver has had for long enough.
    fn settle(&mut self) {
        let settling = self.sink.settling();
        while let Some(offered) = self
            .unsettled
            .pop_front_if(|offered| offered.when.elapsed() >= settling)
        {
            self.position.pass(offered.number);
            self.position.delivered += offered.events;
            self.position.owed_refused -= offered.told.0.min(self.position.owed_refused);
            self.position.owed_lost -= offered.told.1.min(self.position.owed_lost);
            self.told.0 -= offered.told.0.min(self.told.0);
            self.told.1 -= offered.told.1.min(self.told.1);
        }
    }

    /// Writes the position, where it has moved, and not too often.
    fn keep(&mut self, now: bool) {
        let due = match &self.written {
            Some((position, _)) if *position == self.position => false,
            Some((_, when)) => now || when.elapsed() >= WRITE,
            // Nothing is known of the history yet.
            None => false,
        };
        if !due {
            return;
        }
        match position::write(&self.path, &self.position) {
            Ok(()) => self.written = Some((self.position.clone(), Instant::now())),
            Err(error) => {
                tracing::error!(
                    sink = self.config.name,
                    %error,
                    "the position cannot be written: what is delivered now comes again after a stop"
                );
                // Not at every turn.
                if let Some((_, when)) = &mut self.written {
                    *when = Instant::now();
                }
            }
        }
    }

    /// Goes back to what the receiver is known to have; returns how long to wait.
    fn failed(&mut self, failure: Failure) -> Duration {
        let (error, wish) = match failure {
            Failure::Again { error, after } => (error, after),
            Failure::Refused(error) => (error, None),
        };
        self.settle();
        self.reached = self.position.number;
        self.unsettled.clear();
        self.told = (0, 0);
        let text = format!("{error:#}");
        let mut state = locked(&self.state);
        if state.error.as_deref() != Some(text.as_str()) {
            tracing::warn!(
                sink = self.config.name,
                error = text,
                "events could not be delivered; they stay in the history until they are"
            );
        }
        state.state = "retrying".to_owned();
        state.error = Some(text);
        state.failing_since.get_or_insert_with(Timestamp::now);
        state.retries += 1;
        drop(state);
        self.show();
        let wait = wish
            .unwrap_or_default()
            .min(LONGEST_WISH)
            .max(jittered(self.pause));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        wait
    }

    fn show(&self) {
        let position = &self.position;
        self.showing(|state| {
            state.delivered = position.delivered;
            state.refused = position.refused;
            state.lost = position.lost;
            state.position = position.number;
        });
    }

    fn showing(&self, change: impl FnOnce(&mut SinkStatus)) {
        change(&mut locked(&self.state));
    }
}

/// Whether an event is a word of ours that others are missing.
fn is_word(event: &Event) -> bool {
    event.kind == Kind::Loss && event.session.id.is_empty()
}

fn locked(state: &Mutex<SinkStatus>) -> MutexGuard<'_, SinkStatus> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Up to a fifth less, so that receivers that come back are not met by everyone at once.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(0);
    pause.mul_f64(1.0 - 0.2 * f64::from(random) / f64::from(u32::MAX))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work)
        .await
        .context("reading the history ended in a panic")?
}
