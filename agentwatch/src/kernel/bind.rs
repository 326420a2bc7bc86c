//! From a compiled policy's paths to what the kernel looks up: files by identity, and names that a file will be known by when it
//! comes to be there.
//!
//! Every path is entered twice: by the file that it names now, wherever that goes; and by its name in its directory, so that a
//! file that is made or put there later is judged from its first moment.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use agentwatch_common::{
    limits,
    policy::{BY_MAGIC, Child, Place, effect, length, place, right, rule},
};
use anyhow::Result;

use super::{
    container::Private,
    files::{self, Identifier, Identity},
};
use crate::policy::{
    explain::{self, UnixPeer},
    model::{Access, Compiled, Decision, Effect, RuleIndex, UnixTarget},
};

/// A place in the kernel's map: a file, or a kind of file system.
pub type PlaceAt = (u32, u64);

/// A name in a directory, or below a name that does not exist yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildAt {
    /// Device of the directory; 0 where `inode` is the number of the name above.
    pub dev: u32,
    pub inode: u64,
    pub name: Vec<u8>,
}

/// What a policy becomes on this host.
#[derive(Default)]
pub struct Entries {
    pub places: HashMap<PlaceAt, Place>,
    pub children: BTreeMap<ChildAt, Child>,
    /// Indexes of places that name nothing yet.
    pub missing: Vec<usize>,
    /// What of the policy is not in force, a sentence each.
    pub gaps: Vec<String>,
    /// What else is good to know, a sentence each.
    pub notes: Vec<String>,
    /// Numbers that have been given to names.
    numbers: u64,
}

/// Our own files: nobody in a session reads or writes them.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// State, runtime directory, pins.
    pub directories: Vec<PathBuf>,
    /// The socket that a session may ask on.
    pub socket: Option<PathBuf>,
}

/// Works a policy out. `private`: what only the processes of the session have mounted.
pub fn entries(
    policy: &Compiled,
    identifier: &Identifier,
    own: &Own,
    private: &Private,
) -> Result<Entries> {
    let mut looked = Looked::new(policy, identifier);
    let mut entries = Entries::default();
    for (index, place) in policy.places.iter().enumerate() {
        let own = place_of(policy, &place.decisions);
        match looked.seen(&place.path) {
            Ok(Some(seen)) => {
                let value = limited(policy, seen.led.as_ref(), own);
                entries.tell(&place.path, seen.led.as_ref(), own, value);
                // Through such a link no rule names a device.
                if seen.is_block_device && seen.led.is_some() {
                    continue;
                }
                entries.enter(&place.path, seen.identity, value);
            }
            Ok(None) => entries.missing.push(index),
            Err(error) => {
                let told = format!("{} cannot be looked at: {error:#}", place.path.display());
                entries.miss(policy, &place.path, own, told);
            }
        }
        // By its name it is what the rule says, where the directory is the one that is meant.
        match looked.leads_by_name(&place.path) {
            Ok(led) => {
                let value = limited(policy, led.as_ref(), own);
                entries.tell(&place.path, led.as_ref(), own, value);
                entries.wait_for(policy, &mut looked, &place.path, value);
            }
            // The name is not told of twice.
            Err(error) => tracing::debug!(
                path = %place.path.display(),
                error = format!("{error:#}"),
                "a name cannot be waited for"
            ),
        }
    }
    let mounts = files::list()?;
    entries.roots(policy, &mut looked, &mounts);
    entries.instances(policy, &mounts);
    entries.again(identifier, &mounts);
    entries.layers(policy, &mut looked, &mounts);
    entries.private(policy, identifier, private);
    for target in &policy.unix {
        if let UnixTarget::Path(path) = &target.target {
            let Ok(led) = looked.leads(path) else {
                entries
                    .gaps
                    .push(format!("{} cannot be looked at", path.display()));
                continue;
            };
            if let Some(led) = &led
                && explain::decide_unix(policy, UnixPeer::Path(&led.to)).effect != Effect::Allow
            {
                entries.notes.push(led.told(path));
                continue;
            }
            let around = place_of(policy, &inherited(policy, path));
            let mut value = limited(policy, led.as_ref(), around);
            if target.decision.effect == Effect::Allow {
                value.flags |= place::SOCKET;
            }
            value.socket_rule = target.decision.rule;
            if let Ok(Some(identity)) = looked.at(path) {
                let entry = entries
                    .places
                    .entry((identity.dev, identity.inode))
                    .or_insert(value);
                entry.flags |= value.flags & place::SOCKET;
                entry.socket_rule = value.socket_rule;
                entry.generation = identity.generation;
            }
            entries.wait_for(policy, &mut looked, path, value);
        }
    }
    entries.pin_ancestors(policy, &mut looked);
    entries.protect(policy, &mut looked, own);
    entries.measure();
    Ok(entries)
}

/// What a path names.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) identity: Identity,
    /// Where a link that a session could have made is on the way.
    pub(super) led: Option<Led>,
    is_block_device: bool,
}

/// What paths name, each looked up once.
pub(super) struct Looked<'a> {
    policy: &'a Compiled,
    identifier: &'a Identifier,
    /// Where paths lead in a container, if that is what is asked.
    private: Option<&'a Private>,
    known: HashMap<PathBuf, Option<Seen>>,
}

impl<'a> Looked<'a> {
    /// How often a path is looked at on whose way a link changes meanwhile.
    const TRIES: u32 = 3;

    pub(super) fn new(policy: &'a Compiled, identifier: &'a Identifier) -> Self {
        Self {
            policy,
            identifier,
            private: None,
            known: HashMap::new(),
        }
    }

    fn at(&mut self, path: &Path) -> Result<Option<Identity>> {
        Ok(self.seen(path)?.map(|seen| seen.identity))
    }

    pub(super) fn seen(&mut self, path: &Path) -> Result<Option<Seen>> {
        if let Some(known) = self.known.get(path) {
            return Ok(known.clone());
        }
        let seen = match self.private {
            Some(private) if private.holds(path) => {
                let identity = private.identify(path, self.identifier)?;
                identity.map(Seen::unlinked)
            }
            _ => self.look(path)?,
        };
        self.known.insert(path.to_owned(), seen.clone());
        Ok(seen)
    }

    /// What is opened and the links on the way are looked at one after the other: they belong together where both lead to the same file.
    fn look(&self, path: &Path) -> Result<Option<Seen>> {
        for _ in 0..Self::TRIES {
            let Some(found) = self.identifier.identify(path)? else {
                return Ok(None);
            };
            let (to, link) = follow(self.policy, path);
            let there = self.identifier.identify_unlinked(&to)?;
            if there.is_some_and(|there| there.identity == found.identity) {
                return Ok(Some(Seen {
                    identity: found.identity,
                    led: link.map(|link| Led { link, to }),
                    is_block_device: found.is_block_device,
                }));
            }
        }
        anyhow::bail!("a link on the way was changed while it was looked at")
    }

    /// Where a path leads by such links, the last part of which need not exist; `None` where there is none on the way.
    fn leads(&mut self, path: &Path) -> Result<Option<Led>> {
        for above in path.ancestors() {
            if let Some(seen) = self.seen(above)? {
                let below = path.strip_prefix(above).unwrap_or(Path::new(""));
                return Ok(seen.led.map(|led| Led {
                    to: if above == path {
                        led.to
                    } else {
                        led.to.join(below)
                    },
                    ..led
                }));
            }
        }
        Ok(None)
    }

    /// The same of a name in the directory that a path stands in: if that is a link itself, it is not followed.
    fn leads_by_name(&mut self, path: &Path) -> Result<Option<Led>> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        let led = self.leads(above)?;
        Ok(led.map(|led| Led {
            to: led.to.join(name),
            ..led
        }))
    }
}

impl Seen {
    fn unlinked(identity: Identity) -> Self {
        Self {
            identity,
            led: None,
            is_block_device: false,
        }
    }
}

/// A path that leads elsewhere by a link that a session under the same policy could have made.
#[derive(Clone, Debug)]
pub(super) struct Led {
    link: PathBuf,
    to: PathBuf,
}

/// Follows a path as the kernel does: where it leads, and the first link on the way that a session under the policy could have made. Where
/// the last part of it does not exist, that is taken as it is.
fn follow(policy: &Compiled, path: &Path) -> (PathBuf, Option<PathBuf>) {
    /// Links that the kernel follows in one path (`MAXSYMLINKS`).
    const MOST: usize = 40;
    let parts = |path: &Path| -> Vec<OsString> {
        let parts = path.components().rev();
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut rest = parts(path);
    let (mut to, mut link) = (PathBuf::from("/"), None);
    let mut followed = 0;
    while let Some(part) = rest.pop() {
        match part.as_encoded_bytes() {
            b"." => continue,
            b".." => {
                to.pop();
                continue;
            }
            _ => {}
        }
        // That of an absolute path is the root.
        let next = to.join(&part);
        match fs::read_link(&next) {
            Ok(target) if followed < MOST => {
                followed += 1;
                let may_write = explain::decide_file(policy, Access::Write, &next).effect;
                if link.is_none() && may_write != Effect::Deny {
                    link = Some(next);
                }
                rest.extend(parts(&target));
            }
            _ => to = next,
        }
    }
    (to, link)
}

/// What a rule gives through such a link: no more than the policy does where it leads.
fn limited(policy: &Compiled, led: Option<&Led>, value: Place) -> Place {
    led.map_or(value, |led| {
        stricter(value, place_of(policy, &inherited(policy, &led.to)))
    })
}

impl Led {
    pub(super) fn told(&self, path: &Path) -> String {
        format!(
            "{}: {} is a link that a session under this policy could have made; the rule gives no more than what the policy says of {}; \
             hint: name that",
            path.display(),
            self.link.display(),
            self.to.display()
        )
    }
}

impl Entries {
    /// Says that a rule does not hold: it is a gap where that takes something away.
    fn miss(&mut self, policy: &Compiled, path: &Path, value: Place, told: String) {
        let parent = path.parent().unwrap_or(path);
        let around = place_of(policy, &inherited(policy, parent));
        if stricter(around, value).effects == around.effects {
            self.notes.push(told);
        } else {
            self.gaps.push(told);
        }
    }

    /// Says where a link takes away what a rule says.
    fn tell(&mut self, path: &Path, led: Option<&Led>, own: Place, value: Place) {
        if let Some(led) = led.filter(|_| value.effects != own.effects) {
            let told = led.told(path);
            if self.notes.last() != Some(&told) {
                self.notes.push(told);
            }
        }
    }

    fn enter(&mut self, path: &Path, identity: Identity, mut value: Place) {
        value.generation = identity.generation;
        let Some(old) = self.places.get_mut(&(identity.dev, identity.inode)) else {
            self.places.insert((identity.dev, identity.inode), value);
            return;
        };
        let both = stricter(*old, value);
        if old.generation == value.generation || old.generation == 0 || value.generation == 0 {
            *old = both;
            return;
        }
        // Two files of one device with one number: on a btrfs, in different subvolumes.
        *old = Place {
            generation: 0,
            ..both
        };
        self.gaps.push(format!(
            "{}: another file of the policy has its inode number ({}) in another subvolume; both, and others with that number, are held to the stricter rule",
            path.display(),
            identity.inode
        ));
    }

    /// A directory that names are waited for in: what holds there is entered, if nothing is.
    fn flag(&mut self, policy: &Compiled, path: &Path, seen: &Seen, flag: u8) -> &mut Place {
        let identity = seen.identity;
        let entry = self
            .places
            .entry((identity.dev, identity.inode))
            .or_insert_with(|| {
                let around = place_of(policy, &inherited(policy, path));
                Place {
                    generation: identity.generation,
                    ..limited(policy, seen.led.as_ref(), around)
                }
            });
        entry.flags |= flag;
        entry
    }

    /// Enters a path by its name, and by the names on the way to it that do not exist.
    fn wait_for(&mut self, policy: &Compiled, looked: &mut Looked<'_>, path: &Path, value: Place) {
        let mut names: Vec<&OsStr> = Vec::new();
        let mut above = path;
        let start = loop {
            let (Some(parent), Some(name)) = (above.parent(), above.file_name()) else {
                return;
            };
            names.push(name);
            above = parent;
            if let Ok(Some(seen)) = looked.seen(above) {
                break seen;
            }
        };
        if names.len() > limits::MISSING {
            self.gaps.push(format!(
                "{}: {} directories on the way do not exist, more than {}; hint: make them before the session starts",
                path.display(),
                names.len() - 1,
                limits::MISSING - 1
            ));
            return;
        }
        self.flag(policy, above, &start, place::CHILDREN);
        let start = start.identity;
        self.wait_below((start.dev, start.inode), names, path, value);
    }

    /// Enters names, the last one first, below a place that names are waited for in.
    fn wait_below(
        &mut self,
        (mut dev, mut inode): PlaceAt,
        mut names: Vec<&OsStr>,
        path: &Path,
        mut value: Place,
    ) {
        // As for directories that are there: a protected place protects those on the way to it.
        let protects = value.effects[right::WRITE] != effect::ALLOW;
        while let Some(name) = names.pop() {
            let at = ChildAt {
                dev,
                inode,
                name: name.as_bytes().to_vec(),
            };
            if at.name.len() >= limits::NAME {
                self.gaps.push(format!(
                    "{}: the name is longer than any file's",
                    path.display()
                ));
                return;
            }
            let child = self.children.entry(at).or_default();
            if names.is_empty() {
                value.generation = 0;
                child.place = if child.decides == 0 {
                    Place {
                        flags: value.flags | child.place.flags,
                        pin_rule: child.place.pin_rule,
                        ..value
                    }
                } else {
                    let flags = child.place.flags | value.flags;
                    let socket_rule = child.place.socket_rule.max(value.socket_rule);
                    Place {
                        flags,
                        socket_rule,
                        ..stricter(child.place, value)
                    }
                };
                child.decides = 1;
                return;
            }
            if protects {
                child.place.flags |= place::PINNED;
                child.place.pin_rule = value.rules[right::WRITE];
            }
            if child.number == 0 {
                self.numbers += 1;
                child.number = self.numbers;
            }
            (dev, inode) = (0, child.number);
        }
    }

    /// Gives the roots of mounts what holds above them, and says what holds for file systems of a kind that shows the host.
    fn roots(&mut self, policy: &Compiled, looked: &mut Looked<'_>, mounts: &[files::Mount]) {
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
    fn instances(&mut self, policy: &Compiled, mounts: &[files::Mount]) {
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
    fn again(&mut self, identifier: &Identifier, mounts: &[files::Mount]) {
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
    fn private(&mut self, policy: &Compiled, identifier: &Identifier, private: &Private) {
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
        let mut looked = Looked {
            policy,
            identifier,
            private: Some(private),
            known: private
                .mounts
                .iter()
                .map(|own| (own.mount.point.clone(), Some(Seen::unlinked(own.identity))))
                .collect(),
        };
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
    fn layers(&mut self, policy: &Compiled, looked: &mut Looked<'_>, mounts: &[files::Mount]) {
        for layer in mounts.iter().flat_map(files::Mount::layers) {
            if let Ok(Some(seen)) = looked.seen(&layer) {
                self.flag(policy, &layer, &seen, place::LAYER);
            }
        }
    }

    /// A place that may not be written inside one that may protects the directories on the way to it: renaming or
    /// removing one of them would carry it off.
    fn pin_ancestors(&mut self, policy: &Compiled, looked: &mut Looked<'_>) {
        let write = Access::Write as usize;
        for protected in &policy.places {
            let decision = protected.decisions[write];
            if decision.effect == Effect::Allow {
                continue;
            }
            self.pin_above(policy, looked, &protected.path, decision.rule);
        }
    }

    /// Keeps what a session may write above a path where it is.
    fn pin_above(
        &mut self,
        policy: &Compiled,
        looked: &mut Looked<'_>,
        path: &Path,
        rule: RuleIndex,
    ) {
        for above in path.ancestors().skip(1) {
            if explain::decide_file(policy, Access::Write, above).effect == Effect::Deny {
                break;
            }
            let Ok(Some(seen)) = looked.seen(above) else {
                continue;
            };
            self.flag(policy, above, &seen, place::PINNED).pin_rule = rule;
        }
    }

    /// Says of each directory that names are waited for in, and of each such name that others are below, how long they are.
    fn measure(&mut self) {
        let mut lengths: HashMap<PlaceAt, u32> = HashMap::new();
        for at in self.children.keys() {
            let bytes = u32::try_from(at.name.len()).unwrap_or_default();
            *lengths.entry((at.dev, at.inode)).or_default() |= length(bytes);
        }
        let of = |at: &PlaceAt| lengths.get(at).copied().unwrap_or_default();
        for (at, place) in &mut self.places {
            place.lengths = of(at);
        }
        for child in self.children.values_mut().filter(|child| child.number != 0) {
            child.place.lengths = of(&(0, child.number));
        }
    }

    /// Closes what is ours to everyone in a session, but for the socket that they may ask on.
    fn protect(&mut self, policy: &Compiled, looked: &mut Looked<'_>, own: &Own) {
        let closed = Place {
            effects: [effect::DENY; 3],
            rules: [rule::SELF; 3],
            socket_rule: rule::SELF,
            ..Place::default()
        };
        for directory in &own.directories {
            self.pin_above(policy, looked, directory, rule::SELF);
            self.close(looked, directory, closed);
        }
        if let Some(socket) = &own.socket {
            let asked = Place {
                flags: place::SOCKET,
                ..closed
            };
            self.close(looked, socket, asked);
        }
    }

    fn close(&mut self, looked: &mut Looked<'_>, path: &Path, value: Place) {
        match looked.at(path) {
            Ok(Some(identity)) => {
                let generation = identity.generation;
                let value = Place {
                    generation,
                    ..value
                };
                self.places.insert((identity.dev, identity.inode), value);
            }
            Ok(None) => {}
            Err(error) => self.gaps.push(format!(
                "{}, which is agentwatch's own, cannot be looked at: {error:#}",
                path.display()
            )),
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

/// What holds at a path by the places around it.
fn inherited(policy: &Compiled, path: &Path) -> [Decision; 3] {
    Access::ALL.map(|access| explain::decide_file(policy, access, path))
}

pub(super) fn effect_of(effect: Effect) -> u8 {
    match effect {
        Effect::Allow => effect::ALLOW,
        Effect::Approve => effect::HOLD,
        Effect::Deny => effect::DENY,
    }
}

pub(super) fn place_of(policy: &Compiled, decisions: &[Decision; 3]) -> Place {
    let mut value = Place::default();
    for access in Access::ALL {
        let index = match access {
            Access::Read => right::READ,
            Access::Write => right::WRITE,
            Access::Exec => right::EXEC,
        };
        let decision = decisions[access as usize];
        value.effects[index] = effect_of(decision.effect);
        value.rules[index] = decision.rule;
    }
    let exec = decisions[Access::Exec as usize];
    if exec.effect == Effect::Deny
        && policy
            .rules
            .get(exec.rule as usize)
            .is_some_and(crate::policy::model::Rule::denies)
    {
        value.flags |= place::EXEC_DENIED;
    }
    value
}

/// Of two places that turn out to be one file, what the stricter one says, right by right.
pub(super) fn stricter(a: Place, b: Place) -> Place {
    let mut value = a;
    value.flags |= b.flags;
    value.lengths |= b.lengths;
    for right in 0..3 {
        let rank = |effect| match effect {
            effect::DENY => 0,
            effect::HOLD => 1,
            _ => 2,
        };
        if rank(b.effects[right]) < rank(a.effects[right]) {
            value.effects[right] = b.effects[right];
            value.rules[right] = b.rules[right];
        }
    }
    value
}
