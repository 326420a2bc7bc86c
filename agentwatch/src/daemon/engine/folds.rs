//! What the kernel folds: how often an action was repeated is told from time to time, in an event that names the first.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
};

use agentwatch_common::event::Fold;

use super::{Engine, live::Live};
use crate::{
    event::{
        Event,
        enrich::{self, Enricher},
        host,
    },
    wire::batch::{self, Batch},
};

/// First events that are kept, so that what continues them can be told in full.
const FIRSTS: usize = 1 << 16;
/// First events that are packed together. What they have in common, which is most of each, stands once then; but all of
/// them are read to get at one.
const TOGETHER: usize = 16;

/// Folds that are told of between two looks at the rings.
const BETWEEN: usize = 256;

/// A fold: its session, and the number of its first event.
type Name = (u32, u64);

/// Whether there is something to tell of a fold.
enum News {
    None,
    Later,
    Now,
}

/// What has been told of folds.
#[derive(Default)]
pub(super) struct Folds {
    firsts: Firsts,
    /// Repetitions that have been told.
    told: HashMap<Name, u64>,
    /// Repetitions in all sessions at the last look.
    seen: u64,
    /// Whether more may be told now of what was seen then.
    look_again: bool,
}

/// First events: there can be as many as files that an agent opens.
#[derive(Default)]
struct Firsts {
    /// Where each is: how many came before it.
    places: HashMap<Name, usize>,
    /// Those of [`TOGETHER`] places each, by the place of the first.
    packed: HashMap<usize, Box<[u8]>>,
    /// The newest, which begin at the next such place.
    newest: Vec<Event>,
    count: usize,
}

impl Firsts {
    fn add(&mut self, name: Name, event: &Event) {
        if self.places.len() >= FIRSTS {
            *self = Self::default();
        }
        self.places.insert(name, self.count);
        self.newest.push(event.clone());
        self.count += 1;
        if self.newest.len() == TOGETHER {
            let packed = batch::pack(&self.newest);
            self.packed.insert(self.count - TOGETHER, packed.into());
            self.newest.clear();
        }
    }

    fn get(&self, name: Name) -> Option<Event> {
        let place = *self.places.get(&name)?;
        let (begin, at) = (place - place % TOGETHER, place % TOGETHER);
        let Some(packed) = self.packed.get(&begin) else {
            return self.newest.get(at).cloned();
        };
        let batch = Batch::decode(packed).ok()?;
        batch.event(batch.records.get(at)?).ok()
    }

    fn has(&self, fold: &Fold) -> bool {
        self.places.contains_key(&name(fold))
    }

    fn keep(&mut self, kept: impl Fn(&Name) -> bool) {
        self.places.retain(|name, _| kept(name));
        let needed: HashSet<usize> = self
            .places
            .values()
            .map(|place| place - place % TOGETHER)
            .collect();
        self.packed.retain(|begin, _| needed.contains(begin));
    }
}

impl Folds {
    /// The first event of a fold.
    pub(super) fn began(&mut self, session: u32, first: &Event) {
        self.firsts.add((session, first.seq), first);
    }

    /// What an earlier daemon has told of a fold.
    pub(super) fn told_before(&mut self, session: u32, seq: u64, count: u64) {
        self.told.insert((session, seq), count);
    }

    /// The history has said what was told before.
    pub(super) fn reckoned(&mut self) {
        self.look_again = true;
    }

    /// Repetitions in all sessions that live, at the last look.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// A session has ended.
    pub(super) fn ended(&mut self, session: u32) {
        self.firsts.keep(|(of, _)| *of != session);
        self.told.retain(|(of, _), _| *of != session);
    }

    /// Of a session, only the folds with these first events are left.
    fn keep(&mut self, session: u32, left: &HashSet<u64>) {
        let kept = |(of, seq): &Name| *of != session || left.contains(seq);
        self.firsts.keep(kept);
        self.told.retain(|key, _| kept(key));
    }

    fn told(&self, fold: &Fold) -> u64 {
        let told = self.told.get(&name(fold));
        told.copied().unwrap_or_default()
    }

    /// The event that tells what is new of a fold.
    fn tell(&mut self, fold: &Fold, live: &Live, enricher: &Enricher) -> Event {
        let mut event = match self.firsts.get(name(fold)) {
            Some(first) => Event {
                fold: Some(first.id.clone()),
                ..first
            },
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
                    ..enricher.own(reference, kind)
                }
            }
        };
        event.id = uuid::Uuid::now_v7().to_string();
        event.seq = 0;
        event.count = fold.count.saturating_sub(self.told(fold));
        event.ktime_ns = host::last(fold);
        event.time = host::wall(event.ktime_ns);
        self.told.insert(name(fold), fold.count);
        event
    }
}

fn name(fold: &Fold) -> Name {
    (fold.key.session, fold.seq)
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
        let waits = Cell::new(false);
        let due: Vec<Fold> = self
            .kernel
            .maps
            .folds()
            .filter(|fold| only.is_none_or(|only| only == fold.key.session))
            .filter(|fold| match self.news_of(fold, only.is_some()) {
                News::None => false,
                News::Later => {
                    waits.set(true);
                    false
                }
                News::Now => true,
            })
            .collect();
        self.folds.look_again |= waits.get();
        for (told, fold) in due.iter().enumerate() {
            // Telling can wait for the forwarder, and the rings are small.
            if told % BETWEEN == BETWEEN - 1 {
                self.drain();
            }
            if let Some(live) = self.sessions.get(&fold.key.session) {
                let event = self.folds.tell(fold, live, &self.enricher);
                self.outbox.tell(event);
            }
        }
    }

    /// Whether there is something new of a fold; `last`: nothing more comes of its session.
    fn news_of(&self, fold: &Fold, last: bool) -> News {
        let Some(live) = self.sessions.get(&fold.key.session) else {
            return News::None;
        };
        // What an earlier daemon has told of is not known before its session has been reckoned.
        if fold.count <= self.folds.told(fold) || (live.unreckoned && !last) {
            News::None
        } else if last || self.folds.firsts.has(fold) || live.account.is_settled(fold.seq) {
            News::Now
        } else {
            // Its first event is still on its way.
            News::Later
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, samples::sample};

    #[test]
    fn first_events_come_back_whole_until_their_session_ends() {
        let event = |seq| Event {
            seq,
            ..sample(Kind::ALL[seq as usize % Kind::ALL.len()])
        };
        let mut firsts = Firsts::default();
        let name = |seq: u64| (1 + u32::from(seq >= 40), seq);
        for seq in 0..90 {
            firsts.add(name(seq), &event(seq));
        }
        for seq in 0..90 {
            assert_eq!(firsts.get(name(seq)), Some(event(seq)));
        }
        firsts.keep(|(session, _)| *session != 1);
        assert_eq!(firsts.get(name(39)), None);
        assert_eq!(firsts.get(name(40)), Some(event(40)));
        assert_eq!(firsts.get(name(89)), Some(event(89)));
        // Of the first session, what is packed with events of the second is left.
        assert_eq!(firsts.packed.len(), 3);
    }

    #[test]
    fn first_events_are_bounded() {
        let mut firsts = Firsts::default();
        for seq in 0..=FIRSTS as u64 {
            firsts.add(
                (1, seq),
                &Event {
                    seq,
                    ..sample(Kind::Open)
                },
            );
        }
        assert_eq!(firsts.get((1, 0)), None);
        assert_eq!(
            firsts.get((1, FIRSTS as u64)).map(|event| event.seq),
            Some(FIRSTS as u64)
        );
    }
}
