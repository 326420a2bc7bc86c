//! What the kernel folds: how often an action was repeated is told from time to time, in an event that names the first.

use std::collections::{HashMap, HashSet};

use agentwatch_common::event::Fold;

use super::Engine;
use crate::{
    event::{Event, enrich, host},
    wire::batch,
};

/// First events that are kept, so that what continues them can be told in full.
const FIRSTS: usize = 1 << 15;

/// What has been told of folds. A fold is known by its session and the number of its first event.
#[derive(Default)]
pub(super) struct Folds {
    /// First events, packed: there can be as many as files that an agent opens.
    firsts: HashMap<(u32, u64), Box<[u8]>>,
    /// Repetitions that have been told.
    told: HashMap<(u32, u64), u64>,
    /// Repetitions in all sessions at the last look.
    seen: u64,
    /// Whether some could not be told of then.
    look_again: bool,
}

impl Folds {
    /// The first event of a fold.
    pub(super) fn began(&mut self, session: u32, first: &Event) {
        if self.firsts.len() >= FIRSTS {
            self.firsts.clear();
        }
        let packed = batch::pack(std::slice::from_ref(first));
        self.firsts.insert((session, first.seq), packed.into());
    }

    fn first(&self, session: u32, seq: u64) -> Option<Event> {
        let packed = self.firsts.get(&(session, seq))?;
        // It was packed here, so it can be unpacked.
        batch::unpack(packed).ok()?.pop()
    }

    /// What an earlier daemon has told of a fold.
    pub(super) fn told_before(&mut self, session: u32, seq: u64, count: u64) {
        self.told.insert((session, seq), count);
    }

    /// Repetitions in all sessions that live, at the last look.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// A session has ended.
    pub(super) fn ended(&mut self, session: u32) {
        self.firsts.retain(|(of, _), _| *of != session);
        self.told.retain(|(of, _), _| *of != session);
    }

    /// Of a session, only the folds with these first events are left.
    fn keep(&mut self, session: u32, left: &HashSet<u64>) {
        let kept = |(of, seq): &(u32, u64)| *of != session || left.contains(seq);
        self.firsts.retain(|key, _| kept(key));
        self.told.retain(|key, _| kept(key));
    }

    fn told(&self, fold: &Fold) -> u64 {
        let told = self.told.get(&(fold.key.session, fold.seq));
        told.copied().unwrap_or_default()
    }
}

impl Engine {
    /// Tells how often folded actions have happened since the last look; of all sessions, or of one.
    pub(super) fn collect_folds(&mut self, only: Option<u32>) {
        // The walk over the map costs a system call an entry: only where something was folded.
        let seen: u64 = self
            .sessions
            .keys()
            .filter_map(|number| self.kernel.maps.session(*number).ok())
            .map(|session| session.folded)
            .sum();
        if only.is_none() {
            let look_again = std::mem::take(&mut self.folds.look_again);
            if std::mem::replace(&mut self.folds.seen, seen) == seen && !look_again {
                return;
            }
        }
        let grown: Vec<Fold> = self
            .kernel
            .maps
            .folds()
            .filter(|fold| only.is_none_or(|only| only == fold.key.session))
            .filter(|fold| fold.count > self.folds.told(fold))
            .collect();
        for fold in grown {
            self.tell_fold(&fold, only.is_some());
        }
    }

    /// Tells what is new of a fold; `last`: whether nothing more comes of its session.
    fn tell_fold(&mut self, fold: &Fold, last: bool) {
        let session = fold.key.session;
        let Some(live) = self.sessions.get(&session) else {
            return;
        };
        // What an earlier daemon has told of is not known yet.
        if live.unreckoned && !last {
            self.folds.look_again = true;
            return;
        }
        let mut event = match self.folds.first(session, fold.seq) {
            Some(first) => Event {
                fold: Some(first.id.clone()),
                ..first
            },
            // Its first event is still on its way.
            None if !live.account.is_settled(fold.seq) && !last => {
                self.folds.look_again = true;
                return;
            }
            // It has been forgotten: the count is told, and which event it belongs to.
            None => {
                let (kind, verdict) = enrich::folded(&fold.key);
                let reference = live
                    .subject
                    .decided_by(fold.key.policy)
                    .map_or(&live.subject.reference, |(reference, _)| reference);
                Event {
                    verdict,
                    fold: Some(format!("{}-{}", live.subject.reference.id, fold.seq)),
                    ..self.enricher.own(reference, kind)
                }
            }
        };
        event.id = uuid::Uuid::now_v7().to_string();
        event.seq = 0;
        event.count = fold.count - self.folds.told(fold);
        event.ktime_ns = host::last(fold);
        event.time = host::wall(event.ktime_ns);
        self.folds.told.insert((session, fold.seq), fold.count);
        self.tell(event);
    }

    /// Forgets what was told of folds of a session that the kernel no longer has.
    pub(super) fn forget_folds(&mut self, session: u32) {
        let left: HashSet<u64> = self
            .kernel
            .maps
            .folds()
            .filter(|fold| fold.key.session == session)
            .map(|fold| fold.seq)
            .collect();
        self.folds.keep(session, &left);
    }
}
