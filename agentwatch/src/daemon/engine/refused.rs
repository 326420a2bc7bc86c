//! The last actions of a session that were denied or held, for whoever is inside and wants to know why.

use std::collections::VecDeque;

use super::{Engine, live::Live, orders::Refusal};
use crate::{
    daemon::control::{Asker, Peer},
    event::{Event, Verdict},
    policy::advice,
    session::cgroup,
    wire::control::{Refused, Response},
};

/// How many are kept.
const KEPT: usize = 32;

/// The last of them, the oldest first.
#[derive(Default)]
pub struct Refusals {
    events: VecDeque<(u64, Event)>,
    /// How many there have been.
    count: u64,
}

impl Refusals {
    pub fn saw(&mut self, event: &Event) {
        if matches!(event.verdict, Verdict::Allowed) {
            return;
        }
        self.count += 1;
        if self.events.len() >= KEPT {
            self.events.pop_front();
        }
        let mut event = event.clone();
        // Nobody asks for them here, and they are what makes an event long.
        if let Some(process) = &mut event.process {
            process.argv = Vec::new();
        }
        self.events.push_back((self.count, event));
    }
}

impl Engine {
    /// Says what was refused after the one with the number `after`: to a process of a session about that session, and to
    /// others about a session of theirs.
    pub(super) fn order_why(
        &mut self,
        peer: Peer,
        own: Option<u32>,
        session: Option<&str>,
        after: u64,
    ) -> Result<Response, Refusal> {
        // What was refused just now is in the rings. Anyone may ask, so often that nothing else would be done.
        if std::mem::replace(&mut self.emptied, self.ticks) != self.ticks {
            self.empty_rings();
        } else {
            self.drain();
        }
        let live = match (own, session) {
            (Some(number), asked) => {
                let live = self.sessions.get(&number);
                let own = live.filter(|live| {
                    asked.is_none_or(|asked| {
                        live.id().starts_with(asked) || live.subject.reference.name == asked
                    })
                });
                own.ok_or_else(|| {
                    Refusal::new("a process of a session is told of its own session alone")
                })?
            }
            (None, Some(asked)) => &*self.find(peer, asked)?,
            (None, None) => {
                return Err(Refusal::new("this process is in no session")
                    .hint("name one: `agentwatch sessions` lists them"));
            }
        };
        Ok(Response::Why {
            session: live.id().to_owned(),
            name: live.subject.reference.name.clone(),
            count: live.refused.count,
            refused: refused(live, after),
        })
    }

    /// The session that the asker is in, none where it is in none for certain. One that is gone may have been in any, and its number may be
    /// another's by now.
    pub(super) fn own_session(&self, peer: Peer, asker: &Asker) -> Result<Option<u32>, Refusal> {
        let own = self.session_of(peer);
        if asker.is_gone() || own.is_none() && self.is_inside(peer) {
            return Err(Refusal::new(
                "who asks is gone, or in a session that this daemon knows nothing of",
            )
            .hint("ask again, from outside the session"));
        }
        Ok(own)
    }

    /// The session that a process belongs to, whatever its user.
    fn session_of(&self, peer: Peer) -> Option<u32> {
        let tagged = self.kernel.maps.process_session(peer.pid);
        tagged
            .filter(|number| self.sessions.contains_key(number))
            .or_else(|| {
                let path = cgroup::of_process(&self.kernel.cgroup_root, peer.pid)?;
                let inside = |live: &&Live| path.starts_with(&live.cgroup);
                self.sessions.values().find(inside).map(|live| live.number)
            })
    }
}

fn refused(live: &Live, after: u64) -> Vec<Refused> {
    let events = live.refused.events.iter();
    events
        .filter(|(number, _)| *number > after)
        .map(|(number, event)| {
            let text = event.rule.as_ref().and_then(|reference| {
                let rules = &live.subject.policy.rules;
                rules
                    .iter()
                    .find(|rule| rule.id == reference.id && rule.source == reference.source)
                    .map(|rule| rule.text.clone())
            });
            Refused {
                number: *number,
                text: text.unwrap_or_default(),
                advice: advice::advise(event),
                event: event.clone(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, samples::sample};

    #[test]
    fn the_newest_are_kept() {
        let mut refused = Refusals::default();
        for number in 0..100 {
            let mut event = sample(Kind::Open);
            event.verdict = [Verdict::Allowed, Verdict::Denied, Verdict::Held][number % 3];
            event.seq = number as u64;
            refused.saw(&event);
        }
        assert_eq!(refused.count, 66);
        assert_eq!(refused.events.len(), KEPT);
        let (first, last) = (refused.events.front(), refused.events.back());
        assert_eq!(first.map(|(number, _)| *number), Some(35));
        assert_eq!(
            last.map(|(number, event)| (*number, event.seq)),
            Some((66, 98))
        );
    }
}
