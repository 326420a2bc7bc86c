//! What holds in file systems by where they are mounted: on the host, once more, in overlays, in a container alone.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    path::{Path, PathBuf},
};

use agentwatch_common::{
    limits,
    policy::{BY_MAGIC, Child, Place, effect, place, right, rule},
};

use serde::{Deserialize, Serialize};

use super::{ChildAt, Entries, Looked, PlaceAt, inherited, place_of, stricter};
use crate::{
    kernel::{
        container::Private,
        files::{self, Identifier, Mounts, Rooted},
    },
    policy::model::{Access, Compiled, FILES_DEFAULT},
};

/// A mount of the host on which it depends what a policy is worked out to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Concerned {
    pub point: PathBuf,
    pub dev: u32,
    /// Of the file that the mount point names; 0 where that is not known.
    pub inode: u64,
    pub generation: u32,
}

/// The mounts on which it depends what a policy is worked out to: file systems below a mount point where it says something, and what is
/// mounted on the way to its places.
pub fn concerned(policy: &Compiled, mounts: &[Rooted]) -> HashSet<Concerned> {
    let ways: HashSet<&Path> = policy
        .places
        .iter()
        .flat_map(|place| place.path.ancestors())
        .collect();
    let says = |mount: &files::Mount| {
        ways.contains(mount.point.as_path())
            || inherited(policy, &mount.point)
                .iter()
                .any(|decision| decision.rule != FILES_DEFAULT)
    };
    let parts = Parts::of(mounts);
    let devices: HashSet<u32> = mounts
        .iter()
        .filter(|rooted| !parts.is_part(rooted) && says(&rooted.mount))
        .map(|rooted| rooted.mount.dev)
        .collect();
    mounts
        .iter()
        .filter(|rooted| {
            if parts.is_part(rooted) {
                ways.contains(rooted.mount.point.as_path())
            } else {
                devices.contains(&rooted.mount.dev)
            }
        })
        .map(|rooted| {
            let root = rooted.root.as_ref().map(|root| root.identity);
            Concerned {
                point: rooted.mount.point.clone(),
                dev: rooted.mount.dev,
                inode: root.map_or(0, |root| root.inode),
                generation: root.map_or(0, |root| root.generation),
            }
        })
        .collect()
}

/// What is mounted of each file system.
struct Parts<'a>(HashMap<u32, HashSet<&'a Path>>);

impl<'a> Parts<'a> {
    fn of(mounts: &'a [Rooted]) -> Self {
        let mut parts: HashMap<u32, HashSet<&Path>> = HashMap::new();
        for Rooted { mount, root } in mounts {
            if root.is_some() {
                parts.entry(mount.dev).or_default().insert(&mount.root);
            }
        }
        Self(parts)
    }

    /// Whether a mount shows a part of what another one shows: it is a name more for files that the host has at another place, whose
    /// rules hold.
    fn is_part(&self, Rooted { mount, .. }: &Rooted) -> bool {
        self.0.get(&mount.dev).is_some_and(|parts| {
            mount
                .root
                .ancestors()
                .skip(1)
                .any(|root| parts.contains(root))
        })
    }
}

impl Entries {
    /// Gives the roots of mounts what holds above them, and says what holds for file systems of a kind that shows the host.
    pub(super) fn roots(&mut self, policy: &Compiled, mounts: &[Rooted]) {
        let mut roots: HashMap<PlaceAt, Place> = HashMap::new();
        let parts = Parts::of(mounts);
        for rooted in mounts.iter().filter(|rooted| !parts.is_part(rooted)) {
            let Rooted { mount, root } = rooted;
            let decisions = inherited(policy, &mount.point);
            let value = place_of(policy, &decisions);
            if let Some(magic) = mount.magic() {
                roots
                    .entry((BY_MAGIC, magic))
                    .and_modify(|old| *old = mounted_again(*old, value))
                    .or_insert(value);
            }
            // What is mounted over is not reached by this name, and what cannot be looked at is denied anyway. A device that is mounted
            // as a file is named by no rule around it.
            if let Some(found) = root
                && !found.is_block_device
                && let identity = found.identity
                && !self.places.contains_key(&(identity.dev, identity.inode))
            {
                let value = Place {
                    generation: identity.generation,
                    ..value
                };
                roots
                    .entry((identity.dev, identity.inode))
                    .and_modify(|old| *old = mounted_again(*old, value))
                    .or_insert(value);
            }
        }
        self.places.extend(roots);
    }

    /// Says where less holds than the policy seems to say, because files have another name by which they are judged.
    pub(super) fn other_names(&mut self, policy: &Compiled, mounts: &[Rooted]) {
        let named: HashSet<&Path> = policy
            .places
            .iter()
            .map(|place| place.path.as_path())
            .collect();
        let names: Mounts = mounts
            .iter()
            .filter(|rooted| rooted.root.is_some())
            .map(|rooted| rooted.mount.clone())
            .collect();
        for Rooted { mount, root } in mounts {
            if root.is_none() || named.contains(mount.point.as_path()) || mount.shows_the_host() {
                continue;
            }
            let Some(judged) = names.judged(mount.dev, &mount.root) else {
                continue;
            };
            let (here, there) = (inherited(policy, &mount.point), inherited(policy, &judged));
            if judged != mount.point
                && Access::ALL
                    .iter()
                    .any(|access| here[*access as usize].effect < there[*access as usize].effect)
            {
                self.notes.push(format!(
                    "{} shows what is at {}, too, and what the policy says there holds; hint: a rule that names {} itself",
                    mount.point.display(),
                    judged.display(),
                    mount.point.display()
                ));
            }
        }
    }

    /// Enters by their names what stands below such roots: another instance, which a session mounts for itself, has other devices and
    /// inodes, and shows the same.
    pub(super) fn instances(&mut self, policy: &Compiled, mounts: &[Rooted]) {
        let mounts = || mounts.iter().map(|rooted| &rooted.mount);
        let hosts: HashMap<&Path, PlaceAt> = mounts()
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
            let around = mounts()
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
    pub(super) fn again(&mut self, mounts: &[Rooted]) {
        let depth = |rooted: &&Rooted| rooted.mount.point.components().count();
        for kind in ["proc", "sysfs"] {
            let of_kind = || mounts.iter().filter(|rooted| rooted.mount.kind == kind);
            let Some(Rooted { mount: first, .. }) = of_kind().min_by_key(depth) else {
                continue;
            };
            let Some(shown) = first.magic().map(|magic| (BY_MAGIC, magic)) else {
                continue;
            };
            for rooted in of_kind().filter(|rooted| rooted.mount.dev != first.dev) {
                let Some(found) = &rooted.root else {
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
    pub(super) fn layers(&mut self, policy: &Compiled, looked: &mut Looked<'_>, mounts: &[Rooted]) {
        for layer in mounts.iter().flat_map(|rooted| rooted.mount.layers()) {
            if let Ok(Some(seen)) = looked.seen(&layer) {
                self.flag(policy, &layer, &seen, place::LAYER);
            }
        }
    }
}

/// What holds in a file system that is mounted at more than one place: what holds at the first, less what a rule takes away at another.
fn mounted_again(first: Place, other: Place) -> Place {
    let mut other = other;
    for right in 0..3 {
        // No rule speaks of it: it is a name of no concern.
        if other.rules[right] == FILES_DEFAULT {
            other.effects[right] = first.effects[right];
        }
    }
    let generation = if first.generation == other.generation {
        first.generation
    } else {
        // Two files of one device with one number: on a btrfs, in different subvolumes.
        0
    };
    Place {
        generation,
        ..stricter(first, other)
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
