//! Taking over from a daemon that is gone: sessions that the kernel still holds become live again, those that it no longer
//! holds are said to have ended, and what nobody can account for is declared.
//!
//! Nothing here opens what is closed: a session that nothing is known of stays enforced for as long as anything lives in it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use agentwatch_common::policy::flags;

use anyhow::Result;
use tokio::sync::mpsc;

use super::{
    Engine,
    live::{Beginning, Live},
};
use crate::{
    daemon::{
        launch::{self, Origin},
        reckon::{Found, History, Wanted},
        registry::{Damaged, Policy, Record},
    },
    event::{
        Kind,
        account::Account,
        enrich::{Before, Subject},
        host::{Host, no_session},
        model::{Counts, Lifecycle, Loss, SessionRef},
    },
    kernel::{files::Mounts, load::Taken, probe},
    session::cgroup,
    wire::collector::SessionRow,
};

/// Numbers that are left out where nobody knows which was the last.
const LEAP: u32 = 1 << 20;

/// A session that is over, before its end can be told: the history knows how much of it there is.
pub struct Gone {
    reference: SessionRef,
    reason: String,
    exit_code: Option<i32>,
}

/// What of earlier daemons' sessions is still open.
#[derive(Default)]
pub struct Inheritance {
    pub gone: HashMap<String, Gone>,
    /// Sessions in the kernel of which nothing is known: enforced until nothing lives in them.
    pub strangers: Vec<u32>,
    wanted: Option<mpsc::UnboundedSender<Wanted>>,
    /// Sessions that the history may rightly take for running.
    known: BTreeSet<String>,
}

impl Engine {
    /// Takes over what is written down and what the kernel has. Questions to the history go to `wanted`.
    pub fn take_over(&mut self, wanted: mpsc::UnboundedSender<Wanted>) -> Result<()> {
        let (records, damaged) = self.registry.load()?;
        let host = Host::read()?;
        let fresh = self.kernel.taken == Taken::Fresh;
        let mut sessions: HashMap<u32, _> = self
            .kernel
            .maps
            .sessions()
            .into_iter()
            .map(|session| (session.number, session))
            .collect();
        self.choose_last_number(fresh, &records);
        self.report(&damaged);
        self.inheritance.wanted = Some(wanted);
        if !sessions.is_empty() {
            // Counts who lives in which; also tags whoever escaped notice.
            self.kernel.census()?;
        }

        let mut live = Vec::new();
        for record in records {
            let same_boot = record.boot_id == host.boot_id;
            let held = sessions.contains_key(&record.number);
            if same_boot && held && record.ended.is_none() {
                let number = record.number;
                match self.in_force(&record) {
                    Some(at) => {
                        sessions.remove(&number);
                        live.push((record, at));
                        continue;
                    }
                    None => tracing::error!(
                        session = record.id,
                        "the kernel holds it under a policy that is not written down"
                    ),
                }
            }
            let reason = match &record.ended {
                Some(reason) => reason.clone(),
                None if !same_boot => "host_restarted".to_owned(),
                None => "lost".to_owned(),
            };
            self.mourn(&record, reason);
            self.registry.remove(&record.id);
        }
        for number in sessions.into_keys() {
            if self.kernel.maps.counted_tasks(number).unwrap_or(1) == 0 {
                tracing::warn!(
                    number,
                    "a session of which nothing is known, and in which nothing lives, was ended"
                );
                self.kernel.maps.close_session(number)?;
            } else {
                tracing::error!(
                    number,
                    "the kernel holds a session of which nothing is known: it stays enforced until its processes end; \
                     hint: `agentwatch release` ends it now"
                );
                self.inheritance.strangers.push(number);
            }
        }

        let held: BTreeSet<u32> = live
            .iter()
            .map(|(record, _)| record.number)
            .chain(self.inheritance.strangers.iter().copied())
            .collect();
        let in_force: BTreeSet<u32> = held
            .iter()
            .map(|number| self.kernel.maps.binding(*number).policy)
            .collect();
        let mut bound = self.kernel.maps.keep_only(&held, &in_force);
        for (record, at) in live {
            let policy = &record.policies[at];
            let mut bound = bound.remove(&policy.number).unwrap_or_default();
            // The newest was never put in force, if it is another one, and these are its own.
            let (missing, mounts) = if at + 1 == record.policies.len() {
                (policy.missing.clone(), policy.mounts.clone())
            } else {
                ((0..policy.policy.places.len()).collect(), None)
            };
            bound.remember(missing, policy.gaps.clone(), mounts, policy.links.clone());
            if record.origin == Origin::Run {
                bound.private = Some(Arc::default());
            }
            self.resume(record, at, bound);
        }
        self.want(Wanted::Running);
        Ok(())
    }

    fn choose_last_number(&mut self, fresh: bool, records: &[Record]) {
        let highest = records
            .iter()
            .flat_map(|record| {
                record
                    .policies
                    .iter()
                    .map(|policy| policy.number)
                    .chain([record.number])
            })
            .chain([self.kernel.maps.highest_number()])
            .max()
            .unwrap_or(0);
        self.last_number = match self.kernel.last_number() {
            Some(last) => last.max(highest),
            None if fresh => highest,
            // Tags of sessions that have ended may still be about.
            None => highest.saturating_add(LEAP),
        };
    }

    fn report(&mut self, damaged: &[Damaged]) {
        for Damaged { path, why } in damaged {
            tracing::error!(file = %path.display(), why, "what is known of a session cannot be read: it was put aside");
            let mut event = self.enricher.own(&no_session(), Kind::Loss);
            event.loss = Some(unknown_loss("record_damaged"));
            self.outbox.tell(event);
        }
    }

    /// Which of the policies that are written down the kernel goes by.
    fn in_force(&self, record: &Record) -> Option<usize> {
        let binding = self.kernel.maps.binding(record.number);
        record
            .policies
            .iter()
            .position(|policy| policy.number == binding.policy)
    }

    fn resume(&mut self, record: Record, at: usize, bound: crate::kernel::maps::Bound) {
        let policy = record.policies[at].clone();
        let mut holding = policy.holding.clone();
        // What the kernel takes can have become less, or more, with other programs.
        if !holding.landlock {
            holding = launch::holding(
                self.kernel.file_backend,
                probe::landlock_abi(),
                record.origin,
                policy.reference.mode,
                &policy.policy,
            );
            if holding.landlock {
                // Nobody confines a process that runs already.
                holding.landlock = false;
                holding
                    .missing
                    .push("file rules: the kernel no longer takes BPF LSM programs".to_owned());
                holding.coverage = crate::event::model::Coverage::Degraded;
            }
        }
        let before = record
            .policies
            .iter()
            .filter(|other| other.number != policy.number)
            .map(|other| Before {
                number: other.number,
                reference: other.reference.clone(),
                policy: Arc::clone(&other.policy),
            })
            .collect();
        let mut event = self.enricher.own(&policy.reference, Kind::Session);
        event.lifecycle = Some(Lifecycle::Resumed {
            coverage: holding.coverage,
        });
        for event in &record.told {
            self.outbox.tell(event.clone());
        }
        self.outbox.tell(event.clone());
        tracing::info!(session = record.id, name = record.name, coverage = ?holding.coverage, "session taken over");
        let shown = cgroup::shown(&self.kernel.cgroup_root, &record.cgroup);
        let kernel = self.kernel.maps.session(record.number).unwrap_or_default();
        // The first event of what was folded before may be lost: from here on everything has a first event again.
        let binding = self.kernel.maps.binding(record.number);
        let epoch = ((binding.flags >> flags::EPOCH_SHIFT) + 1) & (u32::MAX >> flags::EPOCH_SHIFT);
        let bits = binding.flags & ((1 << flags::EPOCH_SHIFT) - 1);
        self.kernel.maps.bind_policy(
            record.number,
            binding.policy,
            bits | epoch << flags::EPOCH_SHIFT,
        );
        let mut live = Live {
            taken_over_at: Some(kernel.seq),
            unreckoned: true,
            epoch,
            stale_folds: Some(Instant::now()),
            exit_code: record.exit_code,
            seen_tasks: true,
            ..Live::new(Beginning {
                number: record.number,
                uid: record.uid,
                origin: record.origin,
                command: record.command,
                holding,
                backends: record.backends,
                started: record.started,
                cgroup: record.cgroup,
                cgroup_id: record.cgroup_id,
                shown,
                subject: Subject {
                    number: policy.number,
                    reference: policy.reference.clone(),
                    policy: Arc::clone(&policy.policy),
                    before,
                    cgroups: HashMap::new(),
                    landlock: self.kernel.traces_by_syscall(),
                    private: Mounts::default(),
                },
                bound,
                told: record.told,
            })
        };
        live.changed(&event);
        self.inheritance.known.insert(record.id.clone());
        self.want(Wanted::Account {
            session: record.id.clone(),
            up_to: kernel.seq,
        });
        self.sessions.insert(record.number, live);
        self.write_down(record.number);
        self.resume_approvals(record.number, &record.id);
    }

    /// Remembers a session that is over, until the history says how much of it there is.
    fn mourn(&mut self, record: &Record, reason: String) {
        let Some(policy) = record.policies.last() else {
            return;
        };
        tracing::warn!(session = record.id, reason, "a session is over");
        for event in &record.told {
            self.outbox.tell(event.clone());
        }
        self.bury_later(Gone {
            reference: policy.reference.clone(),
            reason,
            exit_code: record.exit_code,
        });
    }

    fn bury_later(&mut self, gone: Gone) {
        let session = gone.reference.id.clone();
        self.inheritance.known.insert(session.clone());
        self.inheritance.gone.insert(session.clone(), gone);
        self.want(Wanted::Account {
            session,
            up_to: u64::MAX,
        });
    }

    fn want(&self, wanted: Wanted) {
        if let Some(sender) = &self.inheritance.wanted {
            let _ = sender.send(wanted);
        }
    }

    /// The history has answered.
    pub(super) fn found(&mut self, found: Found) {
        match found {
            Found::Running(rows) => self.found_running(rows),
            Found::Account { session, history } => {
                if let Some(gone) = self.inheritance.gone.remove(&session) {
                    self.bury(&gone, &history);
                } else if let Some(number) = self
                    .sessions
                    .values()
                    .find(|live| live.id() == session)
                    .map(|live| live.number)
                {
                    self.reckon(number, &history);
                }
            }
        }
    }

    /// The history takes sessions for running that nobody has: their end was on its way when a daemon was killed.
    fn found_running(&mut self, rows: Vec<SessionRow>) {
        for row in rows {
            if row.started > self.began || self.inheritance.known.contains(&row.id) {
                continue;
            }
            self.bury_later(Gone {
                reference: SessionRef {
                    id: row.id,
                    name: row.name,
                    policy: row.policy,
                    mode: row.mode,
                },
                reason: "lost".to_owned(),
                exit_code: None,
            });
        }
    }

    /// Puts what the dead daemon delivered and declared into the account; what is missing then is declared as any loss is.
    fn reckon(&mut self, number: u32, history: &History) {
        let Some(live) = self.sessions.get_mut(&number) else {
            return;
        };
        live.unreckoned = false;
        live.events += history.events;
        live.denied += history.denied;
        for run in history.arrived.runs() {
            live.account.arrived_before(run);
        }
        for loss in &history.lost {
            if loss.from == 0 || loss.to < loss.from {
                continue;
            }
            if loss.reason == "spool_full" {
                // It did reach a daemon, and there was no room for it then.
                live.account.arrived_before(loss.from..=loss.to);
            } else {
                live.account.lost_before(loss.from..=loss.to);
            }
        }
        for fold in self.kernel.maps.folds() {
            if fold.key.session == number
                && let Some(told) = history.told.get(&fold.seq)
            {
                self.folds.told_before(number, fold.seq, *told);
            }
        }
        self.folds.reckoned();
    }

    /// Tells the end of a session whose account only the history has.
    fn bury(&mut self, gone: &Gone, history: &History) {
        let mut account = Account::default();
        for run in history.arrived.runs() {
            account.arrived_before(run);
        }
        for loss in &history.lost {
            if loss.from != 0 && loss.reason == "spool_full" {
                account.arrived_before(loss.from..=loss.to.max(loss.from));
            } else if loss.from != 0 {
                account.lost_before(loss.from..=loss.to.max(loss.from));
            }
        }
        let last = history.arrived.last();
        for gap in account.give_up(last) {
            let mut event = self.enricher.own(&gone.reference, Kind::Loss);
            event.loss = Some(Loss {
                from: *gap.start(),
                to: *gap.end(),
                reason: "daemon_killed".to_owned(),
                events: gap.end() - gap.start() + 1,
            });
            self.outbox.tell(event);
        }
        // What came after the last event that is known of.
        let mut event = self.enricher.own(&gone.reference, Kind::Loss);
        event.loss = Some(unknown_loss(&gone.reason));
        self.outbox.tell(event);

        let folded = history.told.values().sum();
        let mut event = self.enricher.own(&gone.reference, Kind::Session);
        event.lifecycle = Some(Lifecycle::Ended {
            reason: gone.reason.clone(),
            exit_code: gone.exit_code,
            counts: Counts {
                made: account.delivered + folded + account.lost,
                delivered: account.delivered,
                folded,
                lost: account.lost,
            },
        });
        self.outbox.tell(event);
    }

    /// Ends sessions of which nothing is known when nothing lives in them any more.
    pub(super) fn look_after_strangers(&mut self) {
        if self.inheritance.strangers.is_empty() || self.kernel.census().is_err() {
            return;
        }
        let strangers = std::mem::take(&mut self.inheritance.strangers);
        for number in strangers {
            if self.kernel.maps.counted_tasks(number).unwrap_or(1) > 0 {
                self.inheritance.strangers.push(number);
            } else {
                self.end_stranger(number);
            }
        }
    }

    pub(super) fn end_stranger(&mut self, number: u32) {
        let policy = self.kernel.maps.binding(number).policy;
        if let Err(error) = self.kernel.maps.close_session(number) {
            tracing::error!(
                error = format!("{error:#}"),
                "a session of which nothing is known stays in the kernel"
            );
            return;
        }
        self.kernel.maps.remove_cgroups(number);
        self.kernel.maps.remove_objects(number);
        self.kernel.maps.remove_folds(number);
        self.kernel.maps.remove_policy_number(policy);
        tracing::info!(number, "a session of which nothing is known has ended");
    }

    /// What is written down of a session.
    fn record(&self, live: &Live) -> Record {
        let policy = |number, reference: &SessionRef, policy: &Arc<_>| Policy {
            number,
            reference: reference.clone(),
            policy: Arc::clone(policy),
            holding: live.holding.clone(),
            missing: live.bound.missing().to_vec(),
            gaps: live.bound.gaps.clone(),
            mounts: live.bound.mounts.clone(),
            links: live.bound.links.clone(),
        };
        let subject = &live.subject;
        Record {
            version: Record::VERSION,
            boot_id: self.boot_id.clone(),
            number: live.number,
            name: subject.reference.name.clone(),
            id: live.id().to_owned(),
            uid: live.uid,
            origin: live.origin,
            command: live.command.clone(),
            backends: live.backends.clone(),
            started: live.started,
            cgroup: live.cgroup.clone(),
            cgroup_id: live.cgroup_id,
            exit_code: live.exit_code,
            ended: None,
            policies: subject
                .before
                .iter()
                .map(|before| policy(before.number, &before.reference, &before.policy))
                .chain([policy(subject.number, &subject.reference, &subject.policy)])
                .collect(),
            told: live.told.clone(),
        }
    }

    /// Writes a live session down. Where that fails it goes on, and could not be taken over: that is said.
    pub(super) fn write_down(&self, number: u32) {
        let Some(live) = self.sessions.get(&number) else {
            return;
        };
        if self.kernel.outlives_us()
            && let Err(error) = self.registry.write(&self.record(live))
        {
            tracing::error!(
                session = live.id(),
                error = format!("{error:#}"),
                "it cannot be written down: another daemon could hold it, and not know what it is"
            );
        }
    }
}

fn unknown_loss(reason: &str) -> Loss {
    Loss {
        from: 0,
        to: 0,
        reason: reason.to_owned(),
        events: 0,
    }
}
