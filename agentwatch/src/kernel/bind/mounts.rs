//! What holds in file systems by where they are mounted: on the host, once more, in overlays, in a container alone.

use std::{collections::HashMap, ffi::OsStr, path::Path};

use agentwatch_common::{
    limits,
    policy::{BY_MAGIC, Child, Place, effect, place, right, rule},
};

use super::{ChildAt, Entries, Looked, PlaceAt, inherited, place_of, stricter};
use crate::{
    kernel::{
        container::Private,
        files::{self, Identifier},
    },
    policy::model::Compiled,
};

impl Entries {
    /// Gives the roots of mounts what holds above them, and says what holds for file systems of a kind that shows the host.
    pub(super) fn roots(
        &mut self,
        policy: &Compiled,
        looked: &mut Looked<'_>,
        mounts: &[files::Mount],
    ) {
        let mut roots: HashMap<PlaceAt, Place> = HashMap::new();
        for mount in mounts {
            let value = place_of(policy, &inherited(policy, &mount.point));
            if let Some(magic) = mount.magic() {
                roots
                    .entry((BY_MAGIC, magic))
                    .and_modify(|old| *old = stricter(*old, value))
                    .or_insert(value);
            }
            // What is mounted over is not reached by this name, and what cannot be looked at is denied anyway. A device that is mounted
            // as a file is named by no rule around it.
            if let Ok(Some(found)) = looked.identifier.identify_unlinked(&mount.point)
                && found.identity.dev == mount.dev
                && !found.is_block_device
                && let identity = found.identity
                && !self.places.contains_key(&(identity.dev, identity.inode))
            {
                roots
                    .entry((identity.dev, identity.inode))
                    .and_modify(|old| *old = stricter(*old, value))
                    .or_insert(value);
            }
        }
        self.places.extend(roots);
    }

    /// Enters by their names what stands below such roots: another instance, which a session mounts for itself, has other devices and
    /// inodes, and shows the same.
    pub(super) fn instances(&mut self, policy: &Compiled, mounts: &[files::Mount]) {
        let hosts: HashMap<&Path, PlaceAt> = mounts
            .iter()
            .filter_map(|mount| Some((mount.point.as_path(), (BY_MAGIC, mount.magic()?))))
            .collect();
        for entered in &policy.places {
            // Most places are below none.
            if !entered
                .path
                .ancestors()
                .any(|path| hosts.contains_key(path))
            {
                continue;
            }
            let around = mounts
                .iter()
                .filter(|mount| entered.path.starts_with(&mount.point))
                .max_by_key(|mount| mount.point.components().count());
            let Some(point) = around.map(|mount| mount.point.as_path()) else {
                continue;
            };
            let (Some(&root), Ok(below)) = (hosts.get(point), entered.path.strip_prefix(point))
            else {
                continue;
            };
            let names: Vec<&OsStr> = below.iter().rev().collect();
            let Some(place) = self.places.get_mut(&root) else {
                continue;
            };
            if names.is_empty() {
                continue;
            }
            let value = place_of(policy, &entered.decisions);
            if names.len() > limits::MISSING {
                let told = format!(
                    "{}: it is more than {} directories deep, and does not hold where a session mounts {} for itself",
                    entered.path.display(),
                    limits::MISSING,
                    point.display()
                );
                self.miss(policy, &entered.path, value, told);
                continue;
            }
            place.flags |= place::CHILDREN;
            self.wait_below(root, names, &entered.path, value);
        }
    }

    /// What the host has mounted once more, and shows the same wherever it is mounted, holds what is held below the first of them.
    pub(super) fn again(&mut self, identifier: &Identifier, mounts: &[files::Mount]) {
        let depth = |mount: &&files::Mount| mount.point.components().count();
        for kind in ["proc", "sysfs"] {
            let of_kind = || mounts.iter().filter(|mount| mount.kind == kind);
            let Some(first) = of_kind().min_by_key(depth) else {
                continue;
            };
            let Some(shown) = first.magic().map(|magic| (BY_MAGIC, magic)) else {
                continue;
            };
            for mount in of_kind().filter(|mount| mount.dev != first.dev) {
                let Ok(Some(found)) = identifier.identify_unlinked(&mount.point) else {
                    continue;
                };
                let root = (found.identity.dev, found.identity.inode);
                let (Some(shown_there), Some(place)) =
                    (self.places.get(&shown).copied(), self.places.get_mut(&root))
                else {
                    continue;
                };
                let generation = place.generation;
                *place = Place {
                    generation,
                    ..stricter(*place, shown_there)
                };
                self.waits_too(shown, root);
            }
        }
    }

    /// Enters what holds in file systems that only a container has: at their roots what holds at their host's name, or in the host's own
    /// for those that show the host; and the places below. Nothing in them is executed, as in what a session mounts for itself.
    pub(super) fn private(
        &mut self,
        policy: &Compiled,
        identifier: &Identifier,
        private: &Private,
    ) {
        self.notes.extend(private.notes.iter().cloned());
        if private.mounts.is_empty() {
            return;
        }
        let mut roots: HashMap<PlaceAt, Place> = HashMap::new();
        for own in &private.mounts {
            let identity = own.identity;
            let mut value = if own.mount.shows_the_host() {
                let hosts = own.shows_the_host.map(|magic| (BY_MAGIC, magic));
                let Some(hosts) = hosts.and_then(|kind| self.places.get(&kind)) else {
                    continue;
                };
                *hosts
            } else {
                place_of(policy, &inherited(policy, &own.mount.point))
            };
            value.generation = identity.generation;
            roots
                .entry((identity.dev, identity.inode))
                .and_modify(|old| *old = stricter(*old, value))
                .or_insert(value);
            if let Some(magic) = own.shows_the_host {
                self.waits_too((BY_MAGIC, magic), (identity.dev, identity.inode));
            }
        }
        self.places.extend(roots);
        let mut looked = Looked::within(policy, identifier, private);
        let below = policy
            .places
            .iter()
            .filter(|place| private.holds(&place.path));
        for place in below {
            let value = unexecuted(place_of(policy, &place.decisions));
            if let Ok(Some(identity)) = looked.at(&place.path) {
                self.enter(&place.path, identity, value);
            }
            self.wait_for(policy, &mut looked, &place.path, value);
        }
        self.pin_ancestors(policy, &mut looked);
        for ((dev, _), place) in &mut self.places {
            if private.has(*dev) {
                *place = unexecuted(*place);
            }
        }
    }

    /// Waits in one directory for the names that another waits for.
    fn waits_too(&mut self, (dev, inode): PlaceAt, other: PlaceAt) {
        let from = ChildAt {
            dev,
            inode,
            name: Vec::new(),
        };
        let names: Vec<(ChildAt, Child)> = self
            .children
            .range(from..)
            .take_while(|(at, _)| (at.dev, at.inode) == (dev, inode))
            .map(|(at, child)| {
                let at = ChildAt {
                    dev: other.0,
                    inode: other.1,
                    name: at.name.clone(),
                };
                (at, *child)
            })
            .collect();
        self.children.extend(names);
    }

    /// Marks the layers of overlays that the host mounted.
    pub(super) fn layers(
        &mut self,
        policy: &Compiled,
        looked: &mut Looked<'_>,
        mounts: &[files::Mount],
    ) {
        for layer in mounts.iter().flat_map(files::Mount::layers) {
            if let Ok(Some(seen)) = looked.seen(&layer) {
                self.flag(policy, &layer, &seen, place::LAYER);
            }
        }
    }
}

/// The same, but for executing.
fn unexecuted(mut value: Place) -> Place {
    if value.effects[right::EXEC] != effect::DENY {
        value.effects[right::EXEC] = effect::DENY;
        value.rules[right::EXEC] = rule::OWN;
    }
    value
}
