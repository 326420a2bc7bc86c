//! From a compiled policy's paths to what the kernel looks up: files by identity, and names that a file will be known by when it
//! comes to be there.
//!
//! Every path is entered twice: by the file that it names now, wherever that goes; and by its name in its directory, so that a
//! file that is made or put there later is judged from its first moment.

mod look;
mod mounts;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use agentwatch_common::{
    limits,
    policy::{Child, Place, effect, length, place, right, rule},
};
use anyhow::Result;

pub(super) use self::look::Looked;
use self::look::{Led, Seen};
pub use self::mounts::{Concerned, Ways};
use super::{
    container::Private,
    files::{self, Identifier, Identity, MountChanges},
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
    /// The host's mounts that it was worked out with; `None` where they changed meanwhile.
    pub mounts: Option<Vec<Concerned>>,
    /// Where paths of the policy lead by links.
    pub links: Vec<String>,
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
    let changes = MountChanges::watch()?;
    let mounts = files::list()?;
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
    for target in &policy.unix {
        if let UnixTarget::Path(path) = &target.target {
            // Told of below, where it cannot be looked at.
            let _ = looked.leads(path);
        }
    }
    entries.links = looked.links();
    let ways = Ways::of(policy, &entries.links);
    let devices = ways.devices(&mounts);
    let mounts = files::rooted(mounts, &devices, identifier);
    let concerned = ways.concerned(&mounts, &devices);
    entries.roots(policy, &mounts);
    entries.other_names(policy, &mounts);
    entries.instances(policy, &mounts);
    entries.again(&mounts);
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
    // Where something was mounted meanwhile, paths were looked at before it and after it.
    entries.mounts = (!changes.any()?).then_some(concerned);
    Ok(entries)
}

/// Whether a file system is mounted at a directory or not far above it, and a rule takes something away from what holds above that.
fn below_a_mount(
    policy: &Compiled,
    looked: &mut Looked<'_>,
    (below, seen): (&Path, &Seen),
    path: &Path,
    value: Place,
) -> bool {
    let takes_away = |above: &Path| {
        let around = place_of(policy, &inherited(policy, above));
        stricter(around, value).effects != around.effects
    };
    let names = path.components().count() - below.components().count();
    for above in below
        .ancestors()
        .skip(1)
        .take(limits::MISSING.saturating_sub(names))
    {
        match looked.seen(above) {
            Ok(Some(other)) if other.identity.dev == seen.identity.dev => {}
            Ok(Some(_)) => return takes_away(above),
            _ => return false,
        }
    }
    false
}

/// What a rule gives through such a link: no more than the policy does where it leads.
fn limited(policy: &Compiled, led: Option<&Led>, value: Place) -> Place {
    led.map_or(value, |led| {
        stricter(value, place_of(policy, &inherited(policy, &led.to)))
    })
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
            let told = format!(
                "{}: {} directories on the way do not exist, more than {}; hint: make them before the session starts",
                path.display(),
                names.len() - 1,
                limits::MISSING - 1
            );
            self.miss(policy, path, value, told);
            return;
        }
        self.flag(policy, above, &start, place::CHILDREN);
        let at = (start.identity.dev, start.identity.inode);
        self.wait_below(at, names.clone(), path, value);
        self.wait_above(policy, looked, (above, start), names, path, value);
    }

    /// Enters the same names, and those of the directories above, where the session may write: such a directory may be taken away and made
    /// again, the rule is to hold in the new one. What denies keeps the session from that, but not who works beside it. The same up to where
    /// the file system is mounted, if the rule takes something away: what lies below the mount may be reached otherwise. A way through a link is
    /// not gone back.
    fn wait_above<'p>(
        &mut self,
        policy: &Compiled,
        looked: &mut Looked<'_>,
        (mut below, mut seen): (&'p Path, Seen),
        mut names: Vec<&'p OsStr>,
        path: &Path,
        value: Place,
    ) {
        while let (Some(above), Some(name)) = (below.parent(), below.file_name()) {
            names.push(name);
            if seen.led.is_some() || names.len() > limits::MISSING {
                return;
            }
            let may_write =
                explain::decide_file(policy, Access::Write, above).effect == Effect::Allow;
            if !may_write && !below_a_mount(policy, looked, (below, &seen), path, value) {
                return;
            }
            let Ok(Some(next)) = looked.seen(above) else {
                return;
            };
            self.flag(policy, above, &next, place::CHILDREN);
            let at = (next.identity.dev, next.identity.inode);
            self.wait_below(at, names.clone(), path, value);
            (below, seen) = (above, next);
        }
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
