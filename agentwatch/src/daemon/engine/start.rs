//! How a session begins: whether it may, what is put into the kernel for it, and taking that out again where it cannot begin.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use agentwatch_common::{limits, policy::flags};
use anyhow::{Result, bail};
use jiff::Timestamp;

use super::{
    Engine,
    live::{Beginning, Live},
    orders::Refusal,
    policies,
};
use crate::{
    allocator,
    daemon::launch::{self, Holding, Origin},
    event::{
        Kind, Mode,
        enrich::Subject,
        model::{Coverage, Lifecycle, SessionRef},
    },
    kernel::{container::Private, maps::Bound, probe},
    policy::model::{Compiled, Opens},
    session::cgroup,
};

/// Sessions that one user (but root) may have at the same time.
const SESSIONS_OF_A_USER: usize = 64;
/// Bytes of a session's name, which stands in every event.
const LONGEST_NAME: usize = 128;

/// A session that is to be.
pub(super) struct Plan<'a> {
    pub name: String,
    pub uid: u32,
    pub origin: Origin,
    pub command: Vec<String>,
    pub policy: Arc<Compiled>,
    pub mode: Mode,
    pub accept_degraded: bool,
    /// The cgroup that is there already, or none for one of its own.
    pub cgroup: Option<&'a Path>,
}

/// What the kernel has of a session.
struct InForce {
    number: u32,
    id: String,
    cgroup: PathBuf,
    cgroup_id: u64,
    bound: Bound,
}

impl Engine {
    /// Puts a session into the kernel, its rules before its processes.
    pub(super) fn start(&mut self, plan: Plan<'_>) -> Result<u32, Refusal> {
        let holding = self.admissible(&plan)?;
        let in_force = self.put_in_force(&plan)?;
        let number = in_force.number;
        let has_processes = plan.cgroup.is_some();
        let live = self.begin(plan, holding, in_force);
        self.sessions.insert(number, live);
        self.write_down(number);
        if has_processes && let Err(error) = self.kernel.census() {
            self.end(number, "detached");
            return Err(error.into());
        }
        Ok(number)
    }

    /// How well the session would be held, where it may begin.
    fn admissible(&mut self, plan: &Plan<'_>) -> Result<Holding, Refusal> {
        let mut holding = launch::holding(
            self.kernel.file_backend,
            probe::landlock_abi(),
            plan.origin,
            plan.mode,
            &plan.policy,
        );
        if plan.mode == Mode::Enforce {
            self.prove();
            holding.lacks(self.proof.failures.clone());
        }
        holding.lacks(policies::limit_gaps(
            &self.kernel.cgroup_root,
            plan.origin,
            plan.mode,
            &plan.policy.limits,
        ));
        policies::degraded(&holding.missing, plan.accept_degraded, &plan.policy)?;
        self.admit(plan.uid, &plan.policy)?;
        if let Some(path) = plan.cgroup {
            self.stands_alone(path)?;
        }
        self.has_room(plan.uid)?;
        if plan.name.len() > LONGEST_NAME {
            return Err(Refusal::new(format!(
                "a session's name is at most {LONGEST_NAME} bytes long"
            )));
        }
        Ok(holding)
    }

    /// No process is in two sessions.
    fn stands_alone(&self, path: &Path) -> Result<(), Refusal> {
        let other = self
            .sessions
            .values()
            .find(|live| path.starts_with(&live.cgroup) || live.cgroup.starts_with(path));
        match other {
            Some(other) => Err(Refusal::new(format!(
                "cgroup {} is part of session {} already",
                path.display(),
                other.id()
            ))),
            None => Ok(()),
        }
    }

    fn has_room(&self, uid: u32) -> Result<(), Refusal> {
        let own = self
            .sessions
            .values()
            .filter(|live| live.uid == uid)
            .count();
        if uid != 0 && own >= SESSIONS_OF_A_USER {
            return Err(
                Refusal::new(format!("user {uid} has {own} sessions already"))
                    .hint("end some: agentwatch detach"),
            );
        }
        Ok(())
    }

    /// Gives a session a number and a cgroup, and puts both into the kernel with its policy. Where that fails, nothing of it is left.
    fn put_in_force(&mut self, plan: &Plan<'_>) -> Result<InForce, Refusal> {
        let number = self.free_number()?;
        let id = uuid::Uuid::now_v7().to_string();
        let cgroup = match plan.cgroup {
            Some(path) => path.to_owned(),
            None => cgroup::create(&self.kernel.cgroup_root, &id)?,
        };
        match self.enter_kernel(number, plan, &cgroup) {
            Ok((bound, cgroup_id)) => Ok(InForce {
                number,
                id,
                cgroup,
                cgroup_id,
                bound,
            }),
            Err(error) => {
                if plan.cgroup.is_none() {
                    cgroup::remove(&cgroup);
                }
                Err(error.into())
            }
        }
    }

    fn enter_kernel(
        &mut self,
        number: u32,
        plan: &Plan<'_>,
        cgroup: &Path,
    ) -> Result<(Bound, u64)> {
        let private = match plan.cgroup {
            Some(path) => self.kernel.maps.private(path, &plan.policy)?,
            None => Private::default(),
        };
        let private = Arc::new(private);
        let bound = self
            .kernel
            .insert_policy(number, number, &plan.policy, private)?;
        match self.open(number, plan, cgroup, &bound) {
            Ok(id) => Ok((bound, id)),
            Err(error) => {
                self.undo(number, &bound);
                Err(error)
            }
        }
    }

    /// Opens the slot of a session whose policy is in the kernel, for all processes in its cgroup; gives back the cgroup's id.
    fn open(&mut self, number: u32, plan: &Plan<'_>, cgroup: &Path, bound: &Bound) -> Result<u64> {
        let accepted = plan.accept_degraded && plan.policy.floor.refuses_degraded.is_none();
        if !bound.gaps.is_empty() && !accepted {
            bail!(
                "some rules cannot be put in force:\n  - {}\nhint: --accept-degraded starts the session without them",
                bound.gaps.join("\n  - ")
            );
        }
        let bits = self.flags(plan.mode, &plan.policy);
        self.kernel.maps.open_session(number, number, bits)?;
        // Each is in the map before its children are listed, so that the kernel adds those that are made meanwhile.
        let mut cgroups = vec![cgroup.to_owned()];
        while let Some(cgroup) = cgroups.pop() {
            self.kernel
                .maps
                .insert_cgroup(cgroup::id(&cgroup)?, number)?;
            cgroups.extend(cgroup::children(&cgroup));
        }
        let id = cgroup::id(cgroup)?;
        self.limit(cgroup, plan.origin, plan.mode, &plan.policy)?;
        Ok(id)
    }

    /// Takes a session out of the kernel that does not begin after all, with what its processes, where it has some, did meanwhile.
    fn undo(&mut self, number: u32, bound: &Bound) {
        let maps = &mut self.kernel.maps;
        // First, so that nothing is judged by a policy that is half gone.
        maps.stop_counting(number);
        if let Err(error) = maps.close_session(number) {
            tracing::error!(
                number,
                error = format!("{error:#}"),
                "the slot of a session that did not begin stays open in the kernel, without a policy; \
                 hint: the next daemon closes it: restart this one"
            );
        }
        maps.remove_cgroups(number);
        maps.remove_objects(number);
        maps.remove_folds(number);
        maps.remove_policy(bound);
    }

    /// Tells that a session has begun.
    fn begin(&mut self, plan: Plan<'_>, holding: Holding, in_force: InForce) -> Live {
        let bound = in_force.bound;
        let shown = cgroup::shown(&self.kernel.cgroup_root, &in_force.cgroup);
        let backends = match holding.coverage {
            Coverage::Off => Vec::new(),
            _ => self.kernel.backends(),
        };
        let reference = SessionRef {
            id: in_force.id,
            name: plan.name,
            policy: plan.policy.digest.clone(),
            mode: plan.mode,
        };
        let mut event = self.enricher.own(&reference, Kind::Session);
        event.lifecycle = Some(Lifecycle::Started {
            coverage: holding.coverage,
            missing: holding.missing.clone(),
            backends: backends.clone(),
            cgroup: shown.clone(),
            uid: plan.uid,
            command: plan.command.clone(),
            origin: plan.origin.name().to_owned(),
            policy: Some(Box::new(plan.policy.record())),
        });
        self.outbox.tell(event.clone());
        tracing::info!(session = reference.id, name = reference.name, coverage = ?holding.coverage, "session started");
        // Policies are compiled and bound by much code that events do not need.
        allocator::give_back_code();
        Live::new(Beginning {
            number: in_force.number,
            uid: plan.uid,
            origin: plan.origin,
            command: plan.command,
            holding,
            backends,
            started: Timestamp::now(),
            cgroup: in_force.cgroup,
            cgroup_id: in_force.cgroup_id,
            shown,
            subject: Subject {
                number: bound.number(),
                reference,
                policy: plan.policy,
                before: Vec::new(),
                cgroups: HashMap::new(),
                landlock: self.kernel.traces_by_syscall(),
                private: bound
                    .private
                    .as_ref()
                    .map(|own| own.names())
                    .unwrap_or_default(),
            },
            bound,
            told: vec![event],
        })
    }

    /// Bits of a session's binding.
    pub(super) fn flags(&self, mode: Mode, policy: &Compiled) -> u32 {
        let mut bits = match policy.opens {
            Opens::Fold => 0,
            Opens::All => flags::OPENS_ALL,
            Opens::Writes => flags::OPENS_WRITES,
        };
        if mode == Mode::Monitor {
            bits |= flags::MONITOR;
        }
        if self.kernel.traces_by_syscall() {
            bits |= flags::LANDLOCK;
        }
        bits
    }

    /// A number that nothing has had: a tag or a record may still bear an old one.
    pub(super) fn next_number(&mut self) -> anyhow::Result<u32> {
        self.last_number = self.last_number.wrapping_add(1).max(1);
        self.kernel.set_last_number(self.last_number)?;
        Ok(self.last_number)
    }

    /// A number whose slot is free.
    fn free_number(&mut self) -> Result<u32, Refusal> {
        let slots = limits::SESSIONS as u32;
        let taken: Vec<u32> = self
            .sessions
            .keys()
            .chain(&self.inheritance.strangers)
            .map(|number| number % slots)
            .collect();
        for _ in 0..slots {
            let number = self.next_number()?;
            if !taken.contains(&(number % slots)) {
                return Ok(number);
            }
        }
        Err(Refusal::new(format!("{slots} sessions run already"))
            .hint("end some: agentwatch sessions, agentwatch detach"))
    }
}
