//! What the maps hold of a daemon that is gone: sessions, and the rules of their policies. Whatever belongs to nobody is
//! removed; nothing that a session stands on is.

use std::collections::{BTreeSet, HashMap as StdMap};

use agentwatch_common::policy::{Binding, Session};

use super::{Bound, Concerned, Maps, slot};

impl Maps {
    /// The sessions in the kernel.
    pub fn sessions(&self) -> Vec<Session> {
        self.sessions
            .iter()
            .flatten()
            .filter(|session| session.number != 0)
            .collect()
    }

    /// What is in force for a session.
    pub fn binding(&self, number: u32) -> Binding {
        self.bindings.get(slot(number))
    }

    /// The highest number of any session or policy in the kernel.
    pub fn highest_number(&self) -> u32 {
        let policies = self.policies.keys().flatten();
        let sessions = self.sessions().into_iter().map(|session| session.number);
        policies.chain(sessions).max().unwrap_or(0)
    }

    /// Removes a policy of which only the number is known.
    pub fn remove_policy_number(&mut self, number: u32) {
        let mut bound = Bound {
            number,
            ..Bound::default()
        };
        bound.places = self
            .places
            .keys()
            .flatten()
            .filter(|key| key.policy == number)
            .collect();
        bound.prefixes = self
            .prefixes
            .keys()
            .flatten()
            .map(|key| (key.prefix_len(), key.data()))
            .filter(|(_, key)| key.policy == number)
            .collect();
        bound.children = self
            .children
            .keys()
            .flatten()
            .filter(|key| key.policy == number)
            .collect();
        bound.commands = self
            .commands
            .keys()
            .flatten()
            .map(|key| (key.prefix_len(), key.data()))
            .filter(|(_, key)| key.policy == number)
            .collect();
        bound.names = self
            .names
            .keys()
            .flatten()
            .map(|key| (key.prefix_len(), key.data()))
            .filter(|(_, key)| key.policy == number)
            .collect();
        self.remove_policy(&bound);
    }

    /// Removes what belongs to none of these sessions and policies, and says what there is of each policy, so that it can be
    /// taken out again.
    pub fn keep_only(
        &mut self,
        sessions: &BTreeSet<u32>,
        policies: &BTreeSet<u32>,
    ) -> StdMap<u32, Bound> {
        let mut kept: StdMap<u32, Bound> = StdMap::new();
        let mut stray: StdMap<u32, Bound> = StdMap::new();
        for number in self.policies.keys().flatten() {
            entry(&mut kept, &mut stray, policies, number);
        }
        for key in self.places.keys().flatten() {
            entry(&mut kept, &mut stray, policies, key.policy)
                .places
                .push(key);
        }
        for key in self.prefixes.keys().flatten() {
            let (len, key) = (key.prefix_len(), key.data());
            entry(&mut kept, &mut stray, policies, key.policy)
                .prefixes
                .push((len, key));
        }
        for key in self.children.keys().flatten() {
            entry(&mut kept, &mut stray, policies, key.policy)
                .children
                .push(key);
        }
        for key in self.names.keys().flatten() {
            let (len, key) = (key.prefix_len(), key.data());
            entry(&mut kept, &mut stray, policies, key.policy)
                .names
                .push((len, key));
        }
        for key in self.commands.keys().flatten() {
            let (len, key) = (key.prefix_len(), key.data());
            entry(&mut kept, &mut stray, policies, key.policy)
                .commands
                .push((len, key));
        }
        for bound in stray.values() {
            self.remove_policy(bound);
        }
        let granted: BTreeSet<u32> = self
            .grants
            .keys()
            .flatten()
            .map(|key| key.session)
            .chain(self.holds().into_iter().map(|hold| hold.key.session))
            .filter(|session| !sessions.contains(session))
            .collect();
        for session in granted {
            self.revoke_all(session);
        }
        let owners: BTreeSet<u32> = self
            .cgroups
            .iter()
            .flatten()
            .map(|(_, owner)| owner)
            .filter(|owner| !sessions.contains(owner))
            .collect();
        for owner in owners {
            self.remove_cgroups(owner);
        }
        let folded: BTreeSet<u32> = self
            .folds()
            .map(|fold| fold.key.session)
            .filter(|session| !sessions.contains(session))
            .collect();
        for session in folded {
            self.remove_folds(session);
        }
        kept
    }
}

fn entry<'a>(
    kept: &'a mut StdMap<u32, Bound>,
    stray: &'a mut StdMap<u32, Bound>,
    policies: &BTreeSet<u32>,
    number: u32,
) -> &'a mut Bound {
    let place = if policies.contains(&number) {
        kept
    } else {
        stray
    };
    place.entry(number).or_insert_with(|| Bound {
        number,
        ..Bound::default()
    })
}

impl Bound {
    /// The number of the policy.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Places that name nothing yet, by their index.
    pub fn missing(&self) -> &[usize] {
        &self.missing
    }

    /// Adds what the maps do not say.
    pub fn remember(
        &mut self,
        missing: Vec<usize>,
        gaps: Vec<String>,
        mounts: Option<Vec<Concerned>>,
        links: Vec<String>,
    ) {
        self.missing = missing;
        self.gaps = gaps;
        self.mounts = mounts;
        self.links = links;
    }
}
