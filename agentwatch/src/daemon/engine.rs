//! All sessions and the kernel side, on one task: takes orders, drains the rings, keeps the account.

mod approve;
mod folds;
mod live;
mod mounts;
mod orders;
mod policies;
mod prove;
mod refused;
mod reload;
mod resume;
mod review;
mod start;
mod stray;

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use agentwatch_common::{
    event::{Record, kind, state, verdict},
    limits::{BULK_RING, VERDICT_RING},
    policy::Session,
};
use anyhow::Result;
use jiff::Timestamp;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{self, MissedTickBehavior},
};

use super::{
    config::{ApprovalsConfig, Config},
    control::Order,
    forward::Figures,
    launch::Origin,
    notify::Notifier,
    reckon::Found,
    registry::Registry,
    review::{Reviewed, Reviewer},
};
use crate::{
    allocator,
    approval::{Desk, Told},
    event::{
        Event, Kind,
        account::Given,
        decode::{Decoded, decode, when},
        enrich::Enricher,
        host::Host,
        model::{Counts, Lifecycle, Loss},
    },
    kernel::{Kernel, load::Rings},
    session::{cgroup, watch::Watch},
};
use live::Live;

/// How often sessions are looked after.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between looks at what has been folded, at watched cgroups, and at places that were missing.
const FOLD_TICKS: u64 = 4;
const WATCH_TICKS: u64 = 3;
const REBIND_TICKS: u64 = 10;
/// Ticks between giving back what events have used.
const MEMORY_TICKS: u64 = 10;
/// Ticks after which a watched cgroup that could not become a session is tried again.
const REFUSED_TICKS: u64 = 90;
/// Orders after which the rings are looked at, however many more wait.
const ORDERS: usize = 16;
/// Records that are taken from a ring at a time: what they become is held in memory until it is passed on.
const TURN: usize = 256;
/// Turns that leave nothing in the rings of what was there when the first began.
const TURNS: usize = (VERDICT_RING + BULK_RING) / size_of::<Record>() / TURN + 1;
/// How long a session whose processes are gone waits for the word on how its command ended.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long a session waits for its command to prepare itself.
const FIRST_TASK: Duration = Duration::from_secs(30);

pub struct Engine {
    kernel: Kernel,
    /// Whether what the programs are to refuse is refused.
    proof: prove::Proof,
    /// Where the canary tries.
    canary: PathBuf,
    rings: Rings,
    enricher: Enricher,
    mounts: mounts::Watched,
    sessions: HashMap<u32, Live>,
    /// The newest number of a session or a policy.
    last_number: u32,
    registry: Registry,
    inheritance: resume::Inheritance,
    boot_id: String,
    /// When this daemon began.
    began: Timestamp,
    /// Whether everything is to be taken out of the kernel.
    released: bool,
    watches: Vec<Watch>,
    /// Where the administrator's policies are.
    managed_dir: std::path::PathBuf,
    /// Watched cgroups that could not become sessions, so that it is said once.
    refused: Vec<std::path::PathBuf>,
    outbox: Outbox,
    /// What was taken of each ring and is younger than what is left in the other.
    ahead: [Vec<Box<[u8]>>; 2],
    folds: folds::Folds,
    delivered: u64,
    /// As many had been delivered when memory was last given back.
    delivered_then: u64,
    lost: u64,
    undecodable: u64,
    figures: Arc<Figures>,
    ticks: u64,
    /// Whether the last look at the rings left them empty.
    drained: bool,
    /// The tick in which the rings were last emptied for an answer.
    emptied: u64,
    /// Orders so far.
    heard: usize,
    /// Whether all tasks have been counted in this tick.
    census_taken: bool,
    /// What waits for people, and what they have granted.
    desk: Desk,
    /// Who may decide.
    deciders: ApprovalsConfig,
    /// Who decides before people do, where the configuration names one.
    reviewer: Option<Reviewer>,
    notifier: Notifier,
    /// What was said to tasks.
    told: Told,
    /// Sessions of which more tasks wait than is written down.
    unsaved: BTreeSet<u32>,
}

/// The way to the forwarder.
struct Outbox {
    to: mpsc::Sender<Event>,
    /// Events that could not be passed on.
    lost: u64,
}

impl Outbox {
    /// Passes an event on; waits where the forwarder is behind, and lets the rings fill meanwhile.
    fn tell(&mut self, event: Event) {
        let sent = match self.to.try_send(event) {
            Err(TrySendError::Full(event)) => {
                tokio::task::block_in_place(|| self.to.blocking_send(event).is_ok())
            }
            sent => sent.is_ok(),
        };
        if !sent {
            tracing::error!("the forwarder is gone: events are lost");
            self.lost += 1;
        }
    }
}

/// Who works beside the engine.
pub struct Colleagues {
    pub reviewer: Option<Reviewer>,
    pub notifier: Notifier,
}

impl Engine {
    #[expect(clippy::too_many_arguments, reason = "everything that it owns")]
    pub fn new(
        kernel: Kernel,
        rings: Rings,
        outbox: mpsc::Sender<Event>,
        config: &Config,
        figures: Arc<Figures>,
        registry: Registry,
        runtime: &Path,
        colleagues: Colleagues,
    ) -> Result<Self> {
        let enricher = Enricher::new(kernel.cgroup_root.clone())?;
        let watches = config
            .watch
            .iter()
            .map(|rule| Watch::new(rule.clone()))
            .collect::<Result<_, _>>()
            .map_err(|error| anyhow::anyhow!("a [[watch]] rule's cgroup is not a glob: {error}"))?;
        Ok(Self {
            kernel,
            proof: prove::Proof::default(),
            canary: runtime.join("canary"),
            rings,
            enricher,
            mounts: mounts::Watched::begin()?,
            sessions: HashMap::new(),
            last_number: 0,
            registry,
            inheritance: resume::Inheritance::default(),
            boot_id: Host::read()?.boot_id,
            began: Timestamp::now(),
            released: false,
            watches,
            managed_dir: config.managed_dir.0.clone(),
            refused: Vec::new(),
            outbox: Outbox {
                to: outbox,
                lost: 0,
            },
            ahead: Default::default(),
            folds: folds::Folds::default(),
            delivered: 0,
            delivered_then: 0,
            lost: 0,
            undecodable: 0,
            figures,
            ticks: 0,
            drained: true,
            emptied: 0,
            heard: 0,
            census_taken: false,
            desk: Desk::default(),
            deciders: config.approvals.clone(),
            reviewer: colleagues.reviewer,
            notifier: colleagues.notifier,
            told: Told::default(),
            unsaved: BTreeSet::new(),
        })
    }

    /// Runs until told to stop. Sessions go on then, held by the kernel, for the next daemon to take over.
    pub async fn run(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        mut found: mpsc::Receiver<Found>,
        mut opinions: mpsc::Receiver<Reviewed>,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<()> {
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = stopped.changed() => break,
                // Before whoever asks, who may ask without end; but neither keeps the other waiting.
                _ = tick.tick() => {
                    self.empty_rings();
                    self.tick();
                    for order in std::iter::from_fn(|| orders.try_recv().ok()).take(ORDERS) {
                        self.hear(order);
                    }
                    if self.released {
                        break;
                    }
                }
                Some(order) = orders.recv() => {
                    self.hear(order);
                    if self.released {
                        break;
                    }
                    self.heard += 1;
                    if self.heard.is_multiple_of(ORDERS) {
                        self.drain();
                    }
                }
                Some(found) = found.recv() => self.found(found),
                Some(reviewed) = opinions.recv() => self.reviewed(reviewed),
                ready = self.rings.verdicts.ready() => { ready?; self.drain(); }
                ready = self.rings.bulk.ready() => { ready?; self.drain(); }
                // Whoever waits for an answer is heard between two turns.
                () = tokio::task::yield_now(), if !self.drained => self.drain(),
            }
        }
        if self.kernel.outlives_us() {
            self.empty_rings();
            if !self.sessions.is_empty() {
                tracing::warn!(
                    sessions = self.sessions.len(),
                    "the sessions stay enforced without a daemon, and the next one takes them over; hint: `agentwatch release` ends them"
                );
            }
        } else {
            self.end_all("daemon_stopped");
        }
        Ok(())
    }

    fn hear(&mut self, order: Order) {
        let response = self.obey(order.peer, &order.asker, order.request);
        let _ = order.answer.send(response);
    }

    fn end_all(&mut self, reason: &str) {
        let numbers: Vec<u32> = self.sessions.keys().copied().collect();
        for number in numbers {
            self.end(number, reason);
        }
        for number in std::mem::take(&mut self.inheritance.strangers) {
            self.end_stranger(number);
        }
    }

    /// Takes all that is in the rings now.
    fn empty_rings(&mut self) {
        for _ in 0..TURNS {
            self.drain();
            if self.drained {
                return;
            }
        }
        let ahead = std::mem::take(&mut self.ahead).concat();
        self.go_through(&ahead);
    }

    /// Takes records from both rings, and goes through those that are older than whatever is left in a ring: what a process is stands
    /// in the bulk's ring, what it is refused in the other, and a person may be asked by it who wants to do what.
    fn drain(&mut self) {
        let (verdicts, bulk) = (&mut self.rings.verdicts, &mut self.rings.bulk);
        let mut horizon = u64::MAX;
        self.drained = true;
        for (ring, waiting) in [verdicts, bulk].into_iter().zip(&mut self.ahead) {
            ring.drain(TURN - waiting.len(), |bytes| waiting.push(bytes.into()));
            if waiting.len() == TURN {
                let youngest = waiting.iter().map(|bytes| when(bytes)).max();
                horizon = horizon.min(youngest.unwrap_or(horizon));
                self.drained = false;
            }
        }
        let mut records = Vec::new();
        for waiting in &mut self.ahead {
            records.extend(waiting.extract_if(.., |bytes| when(bytes) <= horizon));
        }
        self.go_through(&records);
    }

    /// Goes through records in the order of their times: what a process is stands in the bulk's ring, what it is refused in the other.
    fn go_through(&mut self, records: &[Box<[u8]>]) {
        let mut decoded = Vec::with_capacity(records.len());
        for bytes in records {
            match decode(bytes) {
                Ok(record) => decoded.push(record),
                Err(error) => {
                    tracing::error!(%error, "the kernel's record cannot be read");
                    self.undecodable += 1;
                }
            }
        }
        if !decoded.is_empty() {
            self.enricher.refresh_mounts();
        }
        decoded.sort_by_key(|decoded| decoded.record.ktime);
        for decoded in &decoded {
            self.recorded(decoded);
        }
    }

    fn recorded(&mut self, decoded: &Decoded<'_>) {
        let record = decoded.record;
        // A session that has ended: what its last tasks still do is nobody's.
        let Some(live) = self.sessions.get_mut(&record.session) else {
            return;
        };
        if record.seq != 0 {
            live.account.arrived(record.seq);
            self.delivered += 1;
        }
        let Some(mut event) = self.enricher.event(decoded, &mut live.subject) else {
            if record.kind == kind::FORK {
                self.born(&record);
            }
            return;
        };
        if record.state & state::FOLDED != 0 {
            self.folds.began(record.session, &event);
        }
        live.saw(&event);
        if record.verdict == verdict::HELD {
            self.waits(&record, &mut event);
        } else if record.state & state::GRANTED != 0 {
            self.passed(&record, &mut event);
        } else if record.state & state::NOT_HELD != 0 {
            self.cannot_wait(&mut event);
        } else if record.state & state::REJECTED != 0 {
            self.refused(&record, &mut event);
        }
        self.outbox.tell(event);
    }

    fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(FOLD_TICKS) {
            self.collect_folds(None);
        }
        if self.ticks.is_multiple_of(WATCH_TICKS) && !self.watches.is_empty() {
            self.scan_watches();
        }
        if self.ticks.is_multiple_of(REBIND_TICKS) {
            for live in self.sessions.values_mut() {
                if let Err(error) = self
                    .kernel
                    .maps
                    .rebind(&live.subject.policy, &mut live.bound)
                {
                    tracing::warn!(
                        session = live.id(),
                        error = format!("{error:#}"),
                        "a new file's rule is not in force"
                    );
                }
            }
        }
        self.look_after_mounts();
        if self.ticks.is_multiple_of(REBIND_TICKS) {
            self.look_after_strangers();
            self.retire();
        }
        if self.ticks.is_multiple_of(MEMORY_TICKS)
            && std::mem::replace(&mut self.delivered_then, self.delivered) != self.delivered
        {
            allocator::give_back();
        }
        self.look_after_approvals(self.ticks.is_multiple_of(REBIND_TICKS));
        self.census_taken = false;
        let numbers: Vec<u32> = self.sessions.keys().copied().collect();
        for number in numbers {
            self.look_after(number);
        }
    }

    fn look_after(&mut self, number: u32) {
        let out_of_time = self.out_of_time(number);
        if self.drained {
            self.declare_losses(number, false);
        }
        let Some(live) = self.sessions.get_mut(&number) else {
            return;
        };
        // The kernel's count is a hint: a tracepoint's program can be left out. Where either it or the cgroup says that nobody
        // is left, all tasks are counted.
        let hint = self
            .kernel
            .maps
            .session(number)
            .map_or(0, |session| session.tasks);
        let mut alive = hint > 0;
        if !alive || !cgroup::populated(&live.cgroup) {
            if !std::mem::replace(&mut self.census_taken, true)
                && let Err(error) = self.kernel.census()
            {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the tasks of sessions cannot be counted"
                );
                self.census_taken = false;
                return;
            }
            alive = self.kernel.maps.counted_tasks(number).unwrap_or(1) > 0;
        }
        if alive {
            live.seen_tasks = true;
            live.empty_since = None;
            return;
        }
        let cgroup_gone = cgroup::id(&live.cgroup).ok() != Some(live.cgroup_id);
        let over = match live.origin {
            Origin::Run => true,
            Origin::Attach => cgroup_gone,
            Origin::Watch => cgroup_gone || (live.seen_tasks && !cgroup::populated(&live.cgroup)),
        };
        if !over {
            return;
        }
        if live.unreckoned {
            // Its account cannot be closed before the history has said what an earlier daemon delivered.
            return;
        }
        let since = *live.empty_since.get_or_insert_with(Instant::now);
        let patience = since.elapsed() < LAST_WORD;
        match live.origin {
            Origin::Run if out_of_time && (live.exit_code.is_some() || !patience) => {
                self.end(number, "wall_time");
            }
            Origin::Run if live.exit_code.is_some() => self.end(number, "exited"),
            Origin::Run if !live.seen_tasks && since.elapsed() < FIRST_TASK => {}
            Origin::Run if patience => {}
            Origin::Run => self.end(number, "killed"),
            Origin::Attach | Origin::Watch => self.end(number, "empty"),
        }
    }

    /// Ends a session: takes what is left of it from the rings, closes its account, and takes it out of the kernel.
    fn end(&mut self, number: u32, reason: &str) {
        self.dismiss(number);
        self.kernel.maps.stop_counting(number);
        // Nothing is added to the account of a session that is closed; what was added before is in the rings.
        let counted = self.kernel.maps.session(number).unwrap_or_default();
        if let Err(error) = self.kernel.maps.close_session(number) {
            tracing::error!(
                error = format!("{error:#}"),
                "an ended session stays in the kernel"
            );
        }
        self.empty_rings();
        self.collect_folds(Some(number));
        self.declare_losses_of(number, &counted, true);
        let Some(live) = self.sessions.remove(&number) else {
            return;
        };
        self.kernel.maps.remove_cgroups(number);
        self.kernel.maps.remove_objects(number);
        self.kernel.maps.remove_policy(&live.bound);
        for (_, bound) in &live.retiring {
            self.kernel.maps.remove_policy(bound);
        }
        self.forget_approvals(number, live.id());
        self.kernel.maps.remove_folds(number);
        self.folds.ended(number);
        if live.origin == Origin::Run {
            cgroup::remove(&live.cgroup);
        }
        let mut event = self.enricher.own(&live.subject.reference, Kind::Session);
        event.lifecycle = Some(Lifecycle::Ended {
            reason: reason.to_owned(),
            exit_code: live.exit_code,
            counts: Counts {
                made: counted.made,
                delivered: live.account.delivered,
                folded: counted.folded,
                lost: live.account.lost,
            },
        });
        tracing::info!(session = live.subject.reference.id, reason, "session ended");
        self.outbox.tell(event);
        self.registry.remove(live.id());
    }

    fn declare_losses(&mut self, number: u32, at_once: bool) {
        let Ok(session) = self.kernel.maps.session(number) else {
            return;
        };
        self.declare_losses_of(number, &session, at_once);
    }

    fn declare_losses_of(&mut self, number: u32, kernel: &Session, at_once: bool) {
        let Some(live) = self.sessions.get_mut(&number) else {
            return;
        };
        if live.unreckoned && !at_once {
            return;
        }
        let given = Given {
            last: kernel.seq,
            dropped: kernel.dropped,
        };
        let losses = live.account.losses(
            given,
            live.taken_over_at.unwrap_or(0),
            Instant::now(),
            at_once,
        );
        for (run, reason) in losses {
            let (from, to) = run.into_inner();
            let events = to - from + 1;
            self.lost += events;
            let mut event = self.enricher.own(&live.subject.reference, Kind::Loss);
            event.loss = Some(Loss {
                from,
                to,
                reason: reason.to_owned(),
                events,
            });
            self.outbox.tell(event);
        }
    }

    fn scan_watches(&mut self) {
        let root = self.kernel.cgroup_root.clone();
        let watches = std::mem::take(&mut self.watches);
        for (path, watch) in crate::session::watch::scan(&root, &watches) {
            let taken = self
                .sessions
                .values()
                .any(|live| path.starts_with(&live.cgroup) || live.cgroup.starts_with(&path));
            if taken || !cgroup::populated(&path) || self.refused.contains(&path) {
                continue;
            }
            if let Err(refusal) = self.watch(&path, watch) {
                tracing::error!(cgroup = %path.display(), "a watched cgroup is not held: {refusal}");
                self.refused.push(path);
            }
        }
        // A refusal may have been a passing one: it is tried again after a while.
        if self.ticks.is_multiple_of(REFUSED_TICKS) {
            self.refused.clear();
        }
        self.watches = watches;
    }
}
