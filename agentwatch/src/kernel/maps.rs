//! Sessions, policies and folds in the kernel's maps. Binds a compiled policy's paths to the files that they name.

mod enter;
mod folds;
mod hold;
mod resume;
mod shared;

use std::{collections::HashSet, path::Path, sync::Arc};

use agentwatch_common::{
    hold::{Grant, GrantKey, Hold},
    limits,
    policy::{
        Binding, ChildKey, Command, CommandKey, Host, Name, NameKey, NamedChild, Place, PlaceKey,
        Policy, Prefix, PrefixKey, ProcessGroup, Session, flags,
    },
};
use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, MapData, lpm_trie::Key},
};

use self::{
    folds::Folds,
    shared::{Bindings, Held},
};
use super::{
    bind::{self, Concerned, Own},
    container::Private,
    files::{self, Identifier, Mount, Rooted},
    probe,
};
use crate::policy::model::Compiled;

/// The sessions of processes.
#[derive(Clone)]
pub struct Processes(Arc<Array<MapData, ProcessGroup>>);

impl Processes {
    pub fn session_of(&self, pid: u32) -> Option<u32> {
        let group = self.0.get(&(pid / GROUP), 0).ok()?;
        let number = group[(pid % GROUP) as usize];
        (number != 0).then_some(number)
    }
}

/// The maps that user space writes or reads.
pub struct Maps {
    bindings: Bindings,
    held: Held,
    policies: HashMap<MapData, u32, Policy>,
    sessions: Array<MapData, Session>,
    census: Array<MapData, u32>,
    cgroups: HashMap<MapData, u64, u32>,
    processes: Processes,
    owners: HashMap<MapData, u64, u32>,
    objects: HashMap<MapData, u64, u32>,
    places: HashMap<MapData, PlaceKey, Place>,
    children: HashMap<MapData, ChildKey, NamedChild>,
    names: LpmTrie<MapData, NameKey, Name>,
    host_map: Array<MapData, Host>,
    host: Host,
    identifier: Identifier,
    own: Own,
    prefixes: LpmTrie<MapData, PrefixKey, Prefix>,
    folds: Folds,
    commands: LpmTrie<MapData, CommandKey, Command>,
    holds: HashMap<MapData, u32, Hold>,
    grants: HashMap<MapData, GrantKey, Grant>,
}

/// A policy as the kernel has it, so that it can be taken out again.
#[derive(Default)]
pub struct Bound {
    /// Key of its rules.
    number: u32,
    places: Vec<PlaceKey>,
    children: Vec<ChildKey>,
    names: Vec<(u32, NameKey)>,
    prefixes: Vec<(u32, PrefixKey)>,
    commands: Vec<(u32, CommandKey)>,
    /// Indexes of places that name nothing yet.
    missing: Vec<usize>,
    /// What of the policy is not in force, a sentence each.
    pub gaps: Vec<String>,
    /// What else is good to know, a sentence each.
    pub notes: Vec<String>,
    /// The host's mounts that it was worked out with; `None` where they changed meanwhile.
    pub mounts: Option<Vec<Concerned>>,
    /// Where paths of the policy led by links.
    pub links: Vec<String>,
    /// What only the session's processes had mounted when it began; `None` where that is not known any more.
    pub private: Option<Arc<Private>>,
}

/// Processes whose sessions stand side by side.
const GROUP: u32 = limits::PROCESS_GROUP as u32;

/// Removes what belongs to a session. Some of it may be gone meanwhile.
fn remove_all_of(map: &mut HashMap<MapData, u64, u32>, session: u32) {
    let of_session = map.iter().flatten().filter(|(_, owner)| *owner == session);
    let keys: Vec<u64> = of_session.map(|(key, _)| key).collect();
    for key in keys {
        // Another session's by now, it stays.
        if map.get(&key, 0).is_ok_and(|owner| owner == session) {
            let _ = map.remove(&key);
        }
    }
}

impl Maps {
    /// `asks`: whether the kernel can be asked which file a path names.
    pub(super) fn take(ebpf: &mut Ebpf, asks: bool) -> Result<Self> {
        let mut map = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        let mut host_map: Array<MapData, Host> = map("HOST")?.try_into()?;
        let host = Host {
            generation: host_map.get(&0, 0).map_or(0, |host: Host| host.generation) + 1,
            daemon: std::process::id(),
            mount_namespace: probe::mount_namespace(),
            lsm: u32::from(asks),
        };
        host_map
            .set(0, host, 0)
            .context("tell the programs about the host")?;
        Ok(Self {
            children: map("CHILDREN")?.try_into()?,
            names: map("NAMES")?.try_into()?,
            host_map,
            host,
            identifier: Identifier::new(map("IDENTIFIED")?.try_into()?, asks)?,
            own: Own::default(),
            bindings: Bindings::of_sessions(map("BINDINGS")?)?,
            held: Held::of_sessions(map("HELD")?)?,
            policies: map("POLICIES")?.try_into()?,
            sessions: map("SESSIONS")?.try_into()?,
            census: map("CENSUS")?.try_into()?,
            cgroups: map("CGROUPS")?.try_into()?,
            processes: Processes(Arc::new(map("PROCESSES")?.try_into()?)),
            owners: map("OWNERS")?.try_into()?,
            objects: map("OBJECTS")?.try_into()?,
            places: map("PLACES")?.try_into()?,
            prefixes: map("PREFIXES")?.try_into()?,
            folds: Folds::new(map("FOLD_MARKS")?, map("FOLDS")?)?,
            commands: map("COMMANDS")?.try_into()?,
            holds: map("HOLDS")?.try_into()?,
            grants: map("GRANTS")?.try_into()?,
        })
    }

    /// Says what is our own: sessions that start from now on do not reach it.
    pub fn protect(&mut self, own: Own) {
        self.own = own;
    }

    /// What the processes of a cgroup have mounted, and the host has not. To be asked before they are in a session: what they mount from then on
    /// is to have no name of the host's.
    pub fn private(&self, cgroup: &Path, policy: &Compiled) -> Result<Private> {
        Private::of(cgroup, &self.identifier)?.learn(policy, &self.identifier)
    }

    /// Puts a policy of a session's into the kernel under a number of its own. It is in force when the session names that number. `private`: what
    /// only its processes had mounted when it began.
    pub fn insert_policy(
        &mut self,
        number: u32,
        session: u32,
        policy: &Compiled,
        private: Arc<Private>,
    ) -> Result<Bound> {
        let mut bound = Bound {
            number,
            ..Bound::default()
        };
        let entries = bind::entries(policy, &self.identifier, &self.own, &private)?;
        bound.missing = entries.missing;
        bound.gaps = entries.gaps;
        bound.notes = entries.notes;
        bound.mounts = entries.mounts;
        bound.links = entries.links;
        bound.private = Some(private);
        let entered = self.enter(
            session,
            policy,
            entries.places,
            entries.children,
            &mut bound,
        );
        self.touch();
        if let Err(error) = entered {
            self.remove_policy(&bound);
            return Err(error);
        }
        Ok(bound)
    }

    /// Mounts with what they show, as far as they are on these devices.
    pub fn rooted(&self, mounts: Vec<Mount>, devices: &HashSet<u32>) -> Vec<Rooted> {
        files::rooted(mounts, devices, &self.identifier)
    }

    /// Closes file systems that are gone: what held in them does not hold in others that get their numbers.
    pub fn close_devices(&mut self, bound: &mut Bound, gone: &HashSet<u32>) {
        let (stale, still) = std::mem::take(&mut bound.places)
            .into_iter()
            .partition(|key| gone.contains(&key.dev));
        bound.places = still;
        let stale: Vec<PlaceKey> = stale;
        for key in &stale {
            if let Err(error) = self.places.remove(key) {
                tracing::warn!(%error, "a file rule stays in the kernel whose file system is gone");
            }
        }
        if !stale.is_empty() {
            self.touch();
        }
    }

    /// What was found before is looked for again.
    fn touch(&mut self) {
        self.host.generation = self.host.generation.wrapping_add(1);
        if let Err(error) = self.host_map.set(0, self.host, 0) {
            tracing::error!(%error, "the kernel goes by rules that have changed");
        }
    }

    /// Whether a policy has rules on names.
    fn has_names(&self, policy: u32) -> bool {
        self.names
            .keys()
            .flatten()
            .any(|key| key.data().policy == policy)
    }

    /// Binds places that named nothing before and do now.
    pub fn rebind(&mut self, policy: &Compiled, bound: &mut Bound) -> Result<()> {
        let mut still = Vec::new();
        let mut changed = false;
        for index in std::mem::take(&mut bound.missing) {
            let Some(place) = policy.places.get(index) else {
                continue;
            };
            // The session may have made it: a link would bind the rule to a file of the session's choice.
            let Ok(Some(found)) = self.identifier.identify_unlinked(&place.path) else {
                still.push(index);
                continue;
            };
            // It may have been moved there; by its name it is what the rule says.
            if found.is_block_device {
                continue;
            }
            let identity = found.identity;
            let key = PlaceKey {
                policy: bound.number,
                dev: identity.dev,
                inode: identity.inode,
            };
            let new = Place {
                generation: identity.generation,
                ..bind::place_of(policy, &place.decisions)
            };
            let value = match self.places.get(&key, 0) {
                Ok(old) => bind::stricter(old, new),
                Err(_) => new,
            };
            let entered = self.places.insert(key, value, 0);
            enter::PLACES.entered(entered, || enter::ids(policy, value.rules))?;
            if !bound.places.contains(&key) {
                bound.places.push(key);
            }
            changed = true;
        }
        bound.missing = still;
        if changed {
            self.touch();
        }
        Ok(())
    }

    pub fn remove_policy(&mut self, bound: &Bound) {
        let _ = self.policies.remove(&bound.number);
        for key in &bound.places {
            if let Err(error) = self.places.remove(key) {
                tracing::warn!(%error, "a file rule of an ended session stays in the kernel");
            }
        }
        for key in &bound.children {
            if let Err(error) = self.children.remove(key) {
                tracing::warn!(%error, "a name of an ended session stays in the kernel");
            }
        }
        for (len, key) in &bound.names {
            if let Err(error) = self.names.remove(&Key::new(*len, *key)) {
                tracing::warn!(%error, "a rule on names of an ended session stays in the kernel");
            }
        }
        self.touch();
        for (len, key) in &bound.commands {
            if let Err(error) = self.commands.remove(&Key::new(*len, *key)) {
                tracing::warn!(%error, "a rule on a command of an ended session stays in the kernel");
            }
        }
        for (len, key) in &bound.prefixes {
            if let Err(error) = self.prefixes.remove(&Key::new(*len, *key)) {
                tracing::warn!(%error, "a network rule of an ended session stays in the kernel");
            }
        }
    }

    /// Puts a policy in force for a session, in place of the one before.
    pub fn bind_policy(&mut self, number: u32, policy: u32, mut flags: u32) {
        if self.has_names(policy) {
            flags |= flags::NAMES;
        }
        if self.has_commands(policy) {
            flags |= flags::COMMANDS;
        }
        if self.holds_connections(policy) {
            flags |= flags::HOLDS;
        }
        self.bindings.set(slot(number), Binding { policy, flags });
    }

    pub fn open_session(&mut self, number: u32, policy: u32, flags: u32) -> Result<()> {
        self.held.clear(slot(number));
        self.bind_policy(number, policy, flags);
        let session = Session {
            number,
            ..Session::default()
        };
        self.sessions
            .set(slot(number), session, 0)
            .context("enter the session into the kernel")
    }

    /// From here on no action of the session is judged or counted; those that programs are in the middle of are waited for.
    pub fn stop_counting(&self, number: u32) {
        self.bindings.set(slot(number), Binding::default());
        self.wait_for_programs();
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

    /// Whether the kernel holds processes to what is in force for a session.
    pub fn is_open(&self, number: u32) -> bool {
        self.session(number)
            .is_ok_and(|session| session.number == number)
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
        remove_all_of(&mut self.cgroups, session);
    }

    /// What it said of files, and what it made: nobody is told of the ones in its name any more, and the others are nobody's.
    pub fn remove_objects(&mut self, session: u32) {
        remove_all_of(&mut self.owners, session);
        remove_all_of(&mut self.objects, session);
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
        self.processes.session_of(pid)
    }

    /// The same for those who have nothing else of the kernel's.
    pub fn processes(&self) -> Processes {
        self.processes.clone()
    }

    /// The processes that belong to a session.
    pub fn processes_of(&self, session: u32) -> Vec<u32> {
        let mut pids = Vec::new();
        for (first, group) in (0..).step_by(GROUP as usize).zip(self.processes.0.iter()) {
            match group {
                Ok(group) => pids.extend(
                    (first..)
                        .zip(group)
                        .filter(|(_, owner)| *owner == session)
                        .map(|(pid, _)| pid),
                ),
                Err(error) => {
                    tracing::error!(%error, first, "processes could not be read from the kernel");
                }
            }
        }
        pids
    }
}

fn slot(number: u32) -> u32 {
    number & (limits::SESSIONS as u32 - 1)
}
