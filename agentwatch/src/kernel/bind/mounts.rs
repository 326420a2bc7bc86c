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
        files::{Identifier, Mount, Rooted},
    },
    policy::model::{Access, Compiled, Decision, Effect, FILES_DEFAULT, Program, Rule, UnixTarget},
};

/// A mount of the host on which it depends what a policy is worked out to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Concerned {
    /// Mount point, and the part of the file system that is mounted, for people where they are not UTF-8.
    pub point: String,
    root: String,
    pub dev: u32,
    /// Of the file that the mount point names, as its generation; 0 where that is not known.
    inode: u64,
    generation: u32,
    /// The mount's own number.
    pub mount: u64,
    is_part: bool,
}

/// The paths that a policy goes by.
pub struct Ways<'a> {
    policy: &'a Compiled,
    /// Its paths, where links on them lead, and the directories on the way.
    ways: HashSet<&'a Path>,
}

impl<'a> Ways<'a> {
    /// `links`: where paths of the policy lead by links.
    pub fn of(policy: &'a Compiled, links: &'a [String]) -> Self {
        let places = policy.places.iter().map(|place| place.path.as_path());
        let sockets = policy.unix.iter().filter_map(|rule| match &rule.target {
            UnixTarget::Path(path) => Some(path.as_path()),
            _ => None,
        });
        let programs = policy
            .commands
            .iter()
            .filter_map(|rule| match &rule.program {
                Program::Path(path) => Some(path.as_path()),
                Program::Name(_) => None,
            });
        let ways = places
            .chain(sockets)
            .chain(programs)
            .chain(links.iter().map(Path::new))
            .flat_map(Path::ancestors)
            .collect();
        Self { policy, ways }
    }

    fn on_a_way(&self, mount: &Mount) -> bool {
        self.ways.contains(mount.point.as_path())
    }

    /// The file systems on which it depends what the policy is worked out to.
    pub fn devices<'m>(&self, mounts: impl IntoIterator<Item = &'m Mount>) -> HashSet<u32> {
        let says = |mount: &&Mount| {
            self.on_a_way(mount)
                || inherited(self.policy, &mount.point)
                    .iter()
                    .any(|decision| decision.rule != FILES_DEFAULT)
        };
        let mounts = mounts.into_iter().filter(says);
        mounts.map(|mount| mount.dev).collect()
    }

    /// The mounts on which it does, in their order.
    pub fn concerned(&self, mounts: &[Rooted], devices: &HashSet<u32>) -> Vec<Concerned> {
        let parts = Parts::of(mounts);
        let concerns = |rooted: &Rooted, is_part: bool| {
            let mount = &rooted.mount;
            devices.contains(&mount.dev)
                && (self.on_a_way(mount)
                    || if is_part {
                        taken_away(self.policy, &inherited(self.policy, &mount.point)).is_some()
                    } else {
                        rooted.root.is_some()
                    })
        };
        let mounts = mounts.iter().zip(&parts.is_part);
        mounts
            .filter(|(rooted, is_part)| concerns(rooted, **is_part))
            .map(|(Rooted { mount, root, .. }, is_part)| {
                let root = root.as_ref();
                let text = |path: &Path| path.to_string_lossy().into_owned();
                Concerned {
                    point: text(&mount.point),
                    root: text(&mount.root),
                    dev: mount.dev,
                    inode: root.map_or(0, |root| root.identity.inode),
                    generation: root.map_or(0, |root| root.identity.generation),
                    mount: root.map_or(0, |root| root.mount),
                    is_part: *is_part,
                }
            })
            .collect()
    }
}

/// Which mounts give files of a file system the names by which they are judged, and which give them names more: those that show a part, or
/// all, of what a mount before them shows.
struct Parts<'a> {
    /// By device: what is mounted first of each part, and where.
    first: HashMap<u32, HashMap<&'a Path, &'a Mount>>,
    /// As the mounts are.
    is_part: Vec<bool>,
}

impl<'a> Parts<'a> {
    fn of(mounts: &'a [Rooted]) -> Self {
        let mut first: HashMap<u32, HashMap<&Path, &Mount>> = HashMap::new();
        let is_part = mounts
            .iter()
            .map(
                |Rooted {
                     mount, is_hidden, ..
                 }| {
                    let of_device = first.entry(mount.dev).or_default();
                    let is_part = mount
                        .root
                        .ancestors()
                        .any(|root| of_device.contains_key(root));
                    // One that cannot be looked at is there all the same.
                    if !is_part && !is_hidden {
                        of_device.insert(&mount.root, mount);
                    }
                    is_part
                },
            )
            .collect();
        Self { first, is_part }
    }

    /// The name by which a file is judged.
    fn judged(&self, dev: u32, inside: &Path) -> Option<PathBuf> {
        let of_device = self.first.get(&dev)?;
        inside.ancestors().find_map(|root| {
            let below = inside.strip_prefix(root).ok()?;
            Some(of_device.get(root)?.shows(below))
        })
    }
}

impl Entries {
    /// Gives the roots of mounts what holds above them, and says what holds for file systems of a kind that shows the host.
    pub(super) fn roots(&mut self, policy: &Compiled, mounts: &[Rooted]) {
        let parts = Parts::of(mounts);
        let mut roots: HashMap<PlaceAt, (Place, &Path)> = HashMap::new();
        for (Rooted { mount, root, .. }, is_part) in mounts.iter().zip(&parts.is_part) {
            let Some(found) = root else {
                continue;
            };
            let decisions = inherited(policy, &mount.point);
            let taken = taken_away(policy, &decisions);
            let less = |first: Place| taken.map_or(first, |taken| stricter(first, taken));
            let value = if *is_part {
                // What shows the host shows it to everybody.
                if taken.is_none() || mount.shows_the_host() {
                    continue;
                }
                let Some(judged) = parts.judged(mount.dev, &mount.root) else {
                    continue;
                };
                less(place_of(policy, &inherited(policy, &judged)))
            } else {
                place_of(policy, &decisions)
            };
            let mut enter = |at: PlaceAt, value: Place| {
                roots
                    .entry(at)
                    .and_modify(|(old, root)| {
                        *old = if *root == mount.root && old.generation == value.generation {
                            less(*old)
                        } else {
                            // Two files of one device with one number: on a btrfs, in different subvolumes.
                            Place {
                                generation: 0,
                                ..stricter(*old, value)
                            }
                        };
                    })
                    .or_insert((value, mount.root.as_path()));
            };
            if let Some(magic) = mount.magic() {
                enter((BY_MAGIC, magic), value);
            }
            // What is mounted over is not reached by this name, and what cannot be looked at is denied anyway. A device that is mounted
            // as a file is named by no rule around it.
            let identity = found.identity;
            if found.is_block_device {
                continue;
            }
            if let Some(place) = self.places.get_mut(&(identity.dev, identity.inode)) {
                if *is_part {
                    let generation = place.generation;
                    *place = Place {
                        generation,
                        ..less(*place)
                    };
                }
            } else {
                let value = Place {
                    generation: identity.generation,
                    ..value
                };
                enter((identity.dev, identity.inode), value);
            }
        }
        self.places
            .extend(roots.into_iter().map(|(at, (place, _))| (at, place)));
    }

    /// Says where other things hold than the policy seems to say, because files have another name by which they are judged.
    pub(super) fn other_names(&mut self, policy: &Compiled, mounts: &[Rooted]) {
        let named: HashSet<&Path> = policy
            .places
            .iter()
            .map(|place| place.path.as_path())
            .collect();
        let parts = Parts::of(mounts);
        for (Rooted { mount, root, .. }, is_part) in mounts.iter().zip(&parts.is_part) {
            if !is_part
                || root.is_none()
                || named.contains(mount.point.as_path())
                || mount.shows_the_host()
            {
                continue;
            }
            let Some(judged) = parts.judged(mount.dev, &mount.root) else {
                continue;
            };
            let here = inherited(policy, &mount.point);
            let there = inherited(policy, &judged);
            let (point, judged) = (mount.point.display(), judged.display());
            if Access::ALL
                .iter()
                .any(|access| here[*access as usize].effect < there[*access as usize].effect)
            {
                self.notes.push(format!(
                    "{point} shows what is at {judged}, and what the policy says there holds; hint: a rule that names {point} itself"
                ));
            }
            if taken_away(policy, &here).is_some_and(|taken| {
                stricter(place_of(policy, &there), taken).effects
                    != place_of(policy, &there).effects
            }) {
                self.notes.push(format!(
                    "{point} shows what is at {judged}, which is denied there, too"
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

/// What a name takes away from files that have another one, by which they are judged: what a rule denies, or has approved, at it. That no
/// rule speaks of it takes nothing away.
fn taken_away(policy: &Compiled, decisions: &[Decision; 3]) -> Option<Place> {
    let mut taken = place_of(policy, decisions);
    for decision in decisions.iter().zip(&mut taken.effects) {
        let (decision, effect) = decision;
        let denies = policy
            .rules
            .get(decision.rule as usize)
            .is_some_and(Rule::denies);
        if decision.effect == Effect::Deny && !denies {
            *effect = effect::ALLOW;
        }
    }
    (taken.effects != [effect::ALLOW; 3]).then_some(taken)
}

/// The same, but for executing.
fn unexecuted(mut value: Place) -> Place {
    if value.effects[right::EXEC] != effect::DENY {
        value.effects[right::EXEC] = effect::DENY;
        value.rules[right::EXEC] = rule::OWN;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::files::{Found, Identity},
        policy,
    };

    fn mounts(list: &[(&str, u32, &str)]) -> Vec<Rooted> {
        let mounts = list.iter().zip(1..);
        mounts
            .map(|((point, dev, root), number)| Rooted {
                mount: Mount::sample(point, *dev, root),
                root: Some(Found {
                    identity: Identity {
                        dev: *dev,
                        // A number for each root of a device.
                        inode: root.len() as u64,
                        generation: 7,
                    },
                    mount: number,
                    is_block_device: false,
                }),
                is_hidden: false,
            })
            .collect()
    }

    fn compiled(text: &str) -> Compiled {
        let context = policy::model::Context {
            cwd: "/".into(),
            home: "/".into(),
            tmp: "/tmp".into(),
            uid: 0,
        };
        policy::load("test", text.as_bytes(), &context).expect("a policy")
    }

    fn roots(policy: &Compiled, list: &[(&str, u32, &str)]) -> HashMap<PlaceAt, Place> {
        let mut entries = Entries::default();
        entries.roots(policy, &mounts(list));
        entries.places
    }

    const WRITABLE: [u8; 3] = [effect::ALLOW, effect::ALLOW, effect::DENY];
    const CLOSED: [u8; 3] = [effect::DENY; 3];

    #[test]
    fn a_mount_of_a_part_gives_nothing_and_takes_what_a_rule_denies() {
        let policy = compiled("[files]\nwrite = ['/work']\ndeny = ['/work/closed']\n");
        let list = [
            ("/", 1, "/"),
            ("/work/part", 1, "/out"),
            ("/out/kept", 1, "/work/kept"),
            ("/work/closed/shown", 1, "/work/shown"),
        ];
        let roots = roots(&policy, &list);
        assert_eq!(roots[&(1, 1)].effects, CLOSED, "the root");
        assert!(!roots.contains_key(&(1, 4)), "judged by its first place");
        assert!(!roots.contains_key(&(1, 10)), "in the scope all the same");
        assert_eq!(roots[&(1, 11)].effects, CLOSED, "denied by one name");
        assert_eq!(roots[&(1, 11)].generation, 7);
    }

    #[test]
    fn what_a_rule_denies_by_another_name_is_denied_where_names_are_waited_for() {
        let policy = compiled("[files]\nwrite = ['/work']\ndeny = ['/work/closed']\n");
        let list = [("/", 1, "/"), ("/work/closed/shown", 1, "/work/shown")];
        let mut entries = Entries::default();
        let waits = Place {
            effects: WRITABLE,
            flags: place::CHILDREN,
            generation: 7,
            ..Place::default()
        };
        entries.places.insert((1, 11), waits);
        entries.roots(&policy, &mounts(&list));
        let found = entries.places[&(1, 11)];
        assert_eq!(found.effects, CLOSED);
        assert_eq!(
            (found.flags & place::CHILDREN, found.generation),
            (place::CHILDREN, 7)
        );
    }

    #[test]
    fn a_first_mount_that_cannot_be_looked_at_is_still_the_first() {
        let policy = compiled("[files]\nwrite = ['/work']\n");
        let mut mounts = mounts(&[("/disk", 5, "/"), ("/work/part", 5, "/part")]);
        mounts[0].root = None;
        let entered = |mounts: &[Rooted]| {
            let mut entries = Entries::default();
            entries.roots(&policy, mounts);
            entries.places.len()
        };
        assert_eq!(entered(&mounts), 0, "nothing is given to a part");
        mounts[0].is_hidden = true;
        assert_eq!(entered(&mounts), 1);
    }

    #[test]
    fn what_is_mounted_first_decides_whatever_comes_after_it() {
        let policy = compiled("[files]\nwrite = ['/work']\nread = ['/run']\n");
        let first = roots(&policy, &[("/work/data", 2, "/"), ("/srv", 2, "/")]);
        assert_eq!(first[&(2, 1)].effects, WRITABLE);
        let last = roots(&policy, &[("/srv", 2, "/"), ("/work/data", 2, "/")]);
        assert_eq!(last[&(2, 1)].effects, CLOSED);
        // The whole of a disk of which a part is the host's root.
        let whole = roots(&policy, &[("/", 3, "/@"), ("/run/whole", 3, "/")]);
        assert_eq!(whole[&(3, 2)].effects, CLOSED);
    }

    #[test]
    fn two_roots_with_one_number_are_held_to_the_stricter_rule() {
        let policy = compiled("[files]\nwrite = ['/work']\n");
        let found = roots(&policy, &[("/work/a", 4, "/@a"), ("/backup", 4, "/@b")]);
        assert_eq!(found[&(4, 3)].effects, CLOSED);
        assert_eq!(found[&(4, 3)].generation, 0);
    }

    #[test]
    fn a_policy_depends_on_mounts_in_its_scope_and_on_its_ways() {
        let policy = compiled("[files]\nwrite = ['/work']\nread = ['/data/set']\n");
        let links = ["/mnt/disk/set".to_owned()];
        let concerned = |list: &[(&str, u32, &str)]| {
            let mounts = mounts(list);
            let ways = Ways::of(&policy, &links);
            let devices = ways.devices(mounts.iter().map(|rooted| &rooted.mount));
            ways.concerned(&mounts, &devices)
        };
        let before = concerned(&[("/", 1, "/")]);
        for of_no_concern in [("/srv/x", 2, "/"), ("/srv/x", 1, "/work/x")] {
            assert_eq!(before, concerned(&[("/", 1, "/"), of_no_concern]));
        }
        for concerning in [
            ("/work/x", 2, "/"),
            ("/data", 2, "/"),
            ("/data", 1, "/srv"),
            ("/mnt/disk", 2, "/"),
        ] {
            assert_ne!(before, concerned(&[("/", 1, "/"), concerning]));
        }
    }
}
