//! What was said to tasks and stands in the kernel until they have heard it.

use std::collections::HashMap;

use agentwatch_common::{hold::GrantKey, limits};
use indexmap::IndexMap;

/// Of each session, the oldest first, with the time when it was said.
#[derive(Default)]
pub struct Told {
    of: HashMap<u32, IndexMap<GrantKey, u64>>,
}

impl Told {
    /// Remembers what was said. Gives back what the kernel is to forget for it where the session has its share.
    pub fn note(&mut self, key: GrantKey, now: u64) -> Option<GrantKey> {
        let own = self.of.entry(key.session).or_default();
        let oldest = (own.len() >= limits::GRANT_SHARE && !own.contains_key(&key))
            .then(|| own.shift_remove_index(0))
            .flatten();
        own.insert(key, now);
        oldest.map(|(key, _)| key)
    }

    pub fn knows(&self, key: &GrantKey) -> bool {
        self.of
            .get(&key.session)
            .is_some_and(|own| own.contains_key(key))
    }

    /// Keeps what `stays` says of a key and the time of its word.
    pub fn retain(&mut self, mut stays: impl FnMut(&GrantKey, u64) -> bool) {
        self.of.retain(|_, own| {
            own.retain(|key, at| stays(key, *at));
            !own.is_empty()
        });
    }

    pub fn forget(&mut self, session: u32) {
        self.of.remove(&session);
    }
}

#[cfg(test)]
mod tests {
    use agentwatch_common::hold::Object;

    use super::*;

    fn key(session: u32, task: u32) -> GrantKey {
        GrantKey {
            session,
            task,
            object: Object {
                kind: 0,
                dev: 0,
                inode: 0,
                detail: 0,
                name: [0; limits::NAME],
            },
        }
    }

    #[test]
    fn the_oldest_of_a_session_makes_room() {
        let mut told = Told::default();
        let share = u32::try_from(limits::GRANT_SHARE).unwrap();
        assert!((1..=share).all(|task| told.note(key(1, task), 0).is_none()));
        assert!(told.note(key(2, 1), 0).is_none(), "another session");
        assert!(told.note(key(1, 7), 5).is_none(), "it stands already");
        assert_eq!(told.note(key(1, share + 1), 6), Some(key(1, 1)));
        assert!(!told.knows(&key(1, 1)) && told.knows(&key(1, 2)));
        told.retain(|_, at| at > 0);
        assert!(!told.knows(&key(1, 2)) && told.knows(&key(1, 7)) && !told.knows(&key(2, 1)));
        told.forget(1);
        assert!(!told.knows(&key(1, 7)));
    }
}
