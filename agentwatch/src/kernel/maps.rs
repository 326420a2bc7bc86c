//! Sessions, policies and folds in the kernel's maps. Binds a compiled policy's paths to the files that they name.

mod resume;

use std::{
    collections::HashMap as StdMap,
    net::IpAddr,
    num::NonZeroUsize,
    path::PathBuf,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use agentwatch_common::{
    event::{Fold, FoldKey},
    limits,
    policy::{
        Binding, OP_INET6, PREFIX_BASE, Place, PlaceKey, Policy, Ports, Prefix, PrefixKey, Session,
        effect, net, place, right,
    },
};
use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, lpm_trie::Key},
};
use ipnet::IpNet;
use nix::sys::mman::{MapFlags, ProtFlags};

use super::files::{self, Found, Identity};
use crate::policy::{
    explain,
    model::{Access, Compiled, Decision, Effect, NetOp},
};

/// The maps that user space writes or reads.
pub struct Maps {
    bindings: Bindings,
    policies: HashMap<MapData, u32, Policy>,
    sessions: Array<MapData, Session>,
    census: Array<MapData, u32>,
    cgroups: HashMap<MapData, u64, u32>,
    processes: HashMap<MapData, u32, u32>,
    places: HashMap<MapData, PlaceKey, Place>,
    prefixes: LpmTrie<MapData, PrefixKey, Prefix>,
    folds: HashMap<MapData, FoldKey, Fold>,
}

/// What is in force for each session, in memory that the kernel reads too: a store is seen whole or not at all.
struct Bindings {
    /// Keeps the map.
    _map: Map,
    words: NonNull<AtomicU64>,
}

// SAFETY: the words are atomics in memory that lives as long as the process.
unsafe impl Send for Bindings {}

impl Bindings {
    fn map(map: Map) -> Result<Self> {
        let Map::Array(data) = &map else {
            anyhow::bail!("map BINDINGS is not an array");
        };
        let length = NonZeroUsize::new(limits::SESSIONS * size_of::<Binding>())
            .context("there are sessions")?;
        // SAFETY: a shared mapping of the whole map, which nothing else in this process refers to; it is never unmapped.
        let words = unsafe {
            nix::sys::mman::mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                data.fd(),
                0,
            )
        }
        .context("map the sessions' policies")?;
        Ok(Self {
            _map: map,
            words: words.cast(),
        })
    }

    fn set(&self, slot: u32, binding: Binding) {
        let word = u64::from(binding.policy) | u64::from(binding.flags) << 32;
        // SAFETY: a slot is below the number of sessions, and the mapping has a word for each.
        unsafe { self.words.add(slot as usize).as_ref() }.store(word, Ordering::Release);
    }
}

/// A policy as the kernel has it, so that it can be taken out again.
#[derive(Default)]
pub struct Bound {
    /// Key of its rules.
    number: u32,
    places: Vec<PlaceKey>,
    prefixes: Vec<(u32, PrefixKey)>,
    /// Indexes of places that name nothing yet.
    missing: Vec<usize>,
    /// What of the policy is not in force, a sentence each.
    pub gaps: Vec<String>,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut map = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        Ok(Self {
            bindings: Bindings::map(map("BINDINGS")?)?,
            policies: map("POLICIES")?.try_into()?,
            sessions: map("SESSIONS")?.try_into()?,
            census: map("CENSUS")?.try_into()?,
            cgroups: map("CGROUPS")?.try_into()?,
            processes: map("PROCESSES")?.try_into()?,
            places: map("PLACES")?.try_into()?,
            prefixes: map("PREFIXES")?.try_into()?,
            folds: map("FOLDS")?.try_into()?,
        })
    }

    /// Puts a policy into the kernel under a number of its own. It is in force when a session names that number.
    pub fn insert_policy(&mut self, number: u32, policy: &Compiled) -> Result<Bound> {
        let mut bound = Bound {
            number,
            ..Bound::default()
        };
        let places = bind(policy, &mut bound)?;
        self.policies
            .insert(number, beyond(policy), 0)
            .context("enter the policy into the kernel; hint: too many policies on this host?")?;
        for (identity, place) in places {
            let key = PlaceKey {
                policy: number,
                dev: identity.dev,
                inode: identity.inode,
            };
            if let Err(error) = self.places.insert(key, place, 0) {
                self.remove_policy(&bound);
                return Err(error).context(
                    "enter a file rule into the kernel; hint: too many rules on this host?",
                );
            }
            bound.places.push(key);
        }
        for prefix in &policy.prefixes {
            let (len, addr) = mapped(prefix.net);
            let op = match prefix.op {
                NetOp::Connect => net::CONNECT,
                NetOp::Listen => net::LISTEN,
            };
            let family = if prefix.net.network().is_ipv4() {
                0
            } else {
                OP_INET6
            };
            let key = PrefixKey {
                policy: number,
                op: op | family,
                addr,
            };
            let mut value = Prefix::default();
            for (slot, rule) in value.ports.iter_mut().zip(&prefix.ports) {
                *slot = Ports {
                    first: rule.first,
                    last: rule.last,
                    effect: effect_of(rule.decision.effect),
                    _pad: [0; 3],
                    rule: rule.decision.rule,
                };
                value.len += 1;
            }
            if let Err(error) = self
                .prefixes
                .insert(&Key::new(PREFIX_BASE + len, key), value, 0)
            {
                self.remove_policy(&bound);
                return Err(error).context(
                    "enter a network rule into the kernel; hint: too many rules on this host?",
                );
            }
            bound.prefixes.push((PREFIX_BASE + len, key));
        }
        Ok(bound)
    }

    /// Binds places that named nothing before and do now.
    pub fn rebind(&mut self, number: u32, policy: &Compiled, bound: &mut Bound) -> Result<()> {
        let mut still = Vec::new();
        for index in std::mem::take(&mut bound.missing) {
            let Some(place) = policy.places.get(index) else {
                continue;
            };
            // The session may have made it: a link would bind the rule to a file of the session's choice.
            let Ok(Found::File(identity)) = files::identify_unlinked(&place.path) else {
                still.push(index);
                continue;
            };
            let key = PlaceKey {
                policy: number,
                dev: identity.dev,
                inode: identity.inode,
            };
            let new = place_of(&place.decisions);
            let value = match self.places.get(&key, 0) {
                Ok(old) => stricter(old, new),
                Err(_) => new,
            };
            self.places
                .insert(key, value, 0)
                .context("enter a file rule into the kernel")?;
            if !bound.places.contains(&key) {
                bound.places.push(key);
            }
        }
        bound.missing = still;
        Ok(())
    }

    pub fn remove_policy(&mut self, bound: &Bound) {
        let _ = self.policies.remove(&bound.number);
        for key in &bound.places {
            if let Err(error) = self.places.remove(key) {
                tracing::warn!(%error, "a file rule of an ended session stays in the kernel");
            }
        }
        for (len, key) in &bound.prefixes {
            if let Err(error) = self.prefixes.remove(&Key::new(*len, *key)) {
                tracing::warn!(%error, "a network rule of an ended session stays in the kernel");
            }
        }
    }

    /// Puts a policy in force for a session, in place of the one before.
    pub fn bind_policy(&mut self, number: u32, policy: u32, flags: u32) {
        self.bindings.set(slot(number), Binding { policy, flags });
    }

    pub fn open_session(&mut self, number: u32, policy: u32, flags: u32) -> Result<()> {
        self.bind_policy(number, policy, flags);
        let session = Session {
            number,
            ..Session::default()
        };
        self.sessions
            .set(slot(number), session, 0)
            .context("enter the session into the kernel")
    }

    /// From here on, tags of this session mean nothing.
    pub fn close_session(&mut self, number: u32) -> Result<()> {
        self.sessions
            .set(slot(number), Session::default(), 0)
            .context("take the session out of the kernel")
    }

    /// The kernel's account of a session.
    pub fn session(&self, number: u32) -> Result<Session> {
        self.sessions
            .get(&slot(number), 0)
            .context("read the session from the kernel")
    }

    pub(super) fn clear_census(&mut self) -> Result<()> {
        for slot in 0..limits::SESSIONS as u32 {
            self.census.set(slot, 0, 0).context("clear the census")?;
        }
        Ok(())
    }

    /// Live tasks of a session, as the last census found them.
    pub fn counted_tasks(&self, number: u32) -> Result<u32> {
        self.census.get(&slot(number), 0).context("read the census")
    }

    pub fn insert_cgroup(&mut self, id: u64, session: u32) -> Result<()> {
        self.cgroups
            .insert(id, session, 0)
            .context("enter the cgroup into the kernel")
    }

    pub fn remove_cgroups(&mut self, session: u32) {
        let ids: Vec<u64> = self
            .cgroups
            .iter()
            .flatten()
            .filter(|(_, owner)| *owner == session)
            .map(|(id, _)| id)
            .collect();
        for id in ids {
            // It may have been removed with its cgroup meanwhile.
            let _ = self.cgroups.remove(&id);
        }
    }

    /// Waits until no program goes by what was read before.
    pub fn wait_for_programs(&self) {
        const MEMBARRIER_CMD_GLOBAL: i32 = 1;
        // SAFETY: takes no pointer. The kernel waits for a grace period of RCU, inside which every program runs whole.
        let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
        if done != 0 {
            tracing::debug!("membarrier is not to be had here: the wait before it has to do");
        }
    }

    /// The session that a process belongs to, or belonged to.
    pub fn process_session(&self, pid: u32) -> Option<u32> {
        self.processes.get(&pid, 0).ok()
    }

    /// What has been folded so far. Counts only grow while a session lives.
    pub fn folds(&self) -> impl Iterator<Item = (FoldKey, Fold)> + '_ {
        self.folds.iter().flatten()
    }

    pub fn remove_folds(&mut self, session: u32) {
        self.remove_folds_where(|key| key.session == session);
    }

    /// Of a policy that is no longer in force.
    pub fn remove_folds_of(&mut self, policy: u32) {
        self.remove_folds_where(|key| key.policy == policy);
    }

    pub fn remove_folds_of_other_epochs(&mut self, session: u32, epoch: u32) {
        self.remove_folds_where(|key| key.session == session && key.epoch != epoch);
    }

    fn remove_folds_where(&mut self, which: impl Fn(&FoldKey) -> bool) {
        let keys: Vec<FoldKey> = self
            .folds
            .keys()
            .flatten()
            .filter(|key| which(key))
            .collect();
        for key in keys {
            if let Err(error) = self.folds.remove(&key) {
                tracing::warn!(%error, "a fold of an ended session stays in the kernel");
            }
        }
    }
}

/// What a policy says beyond files and addresses.
fn beyond(policy: &Compiled) -> Policy {
    const ALWAYS: [i32; 4] = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let mut value = Policy::default();
    for family in ALWAYS {
        value.families |= 1 << family;
    }
    for family in &policy.families {
        value.families |= 1 << family.bit;
    }
    for guard in &policy.guards {
        value.guards |= 1 << guard.operation;
        if let Some(rule) = value.guard_rules.get_mut(guard.operation as usize) {
            *rule = guard.rule;
        }
    }
    value
}

fn slot(number: u32) -> u32 {
    number & (limits::SESSIONS as u32 - 1)
}

fn effect_of(effect: Effect) -> u8 {
    match effect {
        Effect::Allow => effect::ALLOW,
        Effect::Approve => effect::HOLD,
        Effect::Deny => effect::DENY,
    }
}

fn place_of(decisions: &[Decision; 3]) -> Place {
    let mut place = Place::default();
    for access in Access::ALL {
        let index = match access {
            Access::Read => right::READ,
            Access::Write => right::WRITE,
            Access::Exec => right::EXEC,
        };
        let decision = decisions[access as usize];
        place.effects[index] = effect_of(decision.effect);
        place.rules[index] = decision.rule;
    }
    place
}

/// Of two places that turn out to be one file, what the stricter one says, right by right.
fn stricter(a: Place, b: Place) -> Place {
    let mut place = a;
    for right in 0..3 {
        let rank = |effect| match effect {
            effect::DENY => 0,
            effect::HOLD => 1,
            _ => 2,
        };
        if rank(b.effects[right]) < rank(a.effects[right]) {
            place.effects[right] = b.effects[right];
            place.rules[right] = b.rules[right];
        }
    }
    place
}

/// Finds the file that each place names, and gives the roots of mounts what holds above them.
fn bind(policy: &Compiled, report: &mut Bound) -> Result<StdMap<Identity, Place>> {
    let mut bound: StdMap<Identity, Place> = StdMap::new();
    let gaps = &mut report.gaps;
    for (index, place) in policy.places.iter().enumerate() {
        let value = place_of(&place.decisions);
        match files::identify(&place.path) {
            Ok(Found::File(identity)) => {
                bound.entry(identity).and_modify(|old| *old = stricter(*old, value)).or_insert(value);
            }
            // What grants something that is not there takes nothing away; what denies it does.
            Ok(Found::Missing) => report.missing.push(index),
            Ok(Found::Hidden(name)) => gaps.push(format!(
                "{} is on {name}, whose files cannot be told apart from here: its rule is not in force",
                place.path.display()
            )),
            Err(error) => gaps.push(format!("{} cannot be looked at: {error:#}", place.path.display())),
        }
    }
    let mut roots: StdMap<Identity, Place> = StdMap::new();
    for mount in files::list()? {
        let decisions =
            Access::ALL.map(|access| explain::decide_file(policy, access, &mount.point));
        let point: PathBuf = mount.point;
        // What is mounted over is not reached by this name, and what cannot be looked at is denied anyway.
        if let Ok(Found::File(identity)) = files::identify(&point)
            && !bound.contains_key(&identity)
        {
            let value = place_of(&decisions);
            roots
                .entry(identity)
                .and_modify(|old| *old = stricter(*old, value))
                .or_insert(value);
        }
    }
    bound.extend(roots);
    pin_ancestors(policy, &mut bound);
    Ok(bound)
}

/// A place that may not be written inside one that may protects the directories on the way to it: renaming or
/// removing one of them would carry it off.
fn pin_ancestors(policy: &Compiled, bound: &mut StdMap<Identity, Place>) {
    let write = Access::Write as usize;
    for place in &policy.places {
        let decision = place.decisions[write];
        if decision.effect == Effect::Allow {
            continue;
        }
        for above in place.path.ancestors().skip(1) {
            if explain::decide_file(policy, Access::Write, above).effect != Effect::Allow {
                break;
            }
            let Ok(Found::File(identity)) = files::identify(above) else {
                continue;
            };
            let inherited = Access::ALL.map(|access| explain::decide_file(policy, access, above));
            let entry = bound
                .entry(identity)
                .or_insert_with(|| place_of(&inherited));
            entry.flags |= place::PINNED;
            entry.pin_rule = decision.rule;
        }
    }
}

/// A prefix over v4-mapped addresses, and its length.
fn mapped(net: IpNet) -> (u32, [u8; 16]) {
    match net.network() {
        IpAddr::V4(addr) => (
            96 + u32::from(net.prefix_len()),
            addr.to_ipv6_mapped().octets(),
        ),
        IpAddr::V6(addr) => (u32::from(net.prefix_len()), addr.octets()),
    }
}
