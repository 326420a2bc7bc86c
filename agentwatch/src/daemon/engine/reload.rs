//! Another policy for a session that lives. It is put into the kernel whole under a number of its own, one store makes it
//! the one in force, and what was in force before is taken out when no program can be in the middle of it any more.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use agentwatch_common::policy::flags;

use super::{Engine, live::Live, orders::Refusal, policies};
use crate::{
    daemon::{
        control::Peer,
        launch::{self, Holding, Origin},
    },
    event::{
        Kind, Mode,
        model::{Lifecycle, SessionRef},
    },
    kernel::{maps::Bound, probe},
    policy::model::Compiled,
    wire::control::{PolicyText, Response},
};

/// How long a policy that is no longer in force stays in the kernel: longer than any record of it stays in a ring that
/// is drained ten times a second.
pub(super) const RETIRE: Duration = Duration::from_secs(3);

/// Another policy for a session, or the same once more.
pub(super) struct Exchange {
    pub reference: SessionRef,
    pub policy: Arc<Compiled>,
    pub holding: Holding,
    /// It is in the kernel, and not in force.
    pub bound: Bound,
    /// What the record says of it.
    pub told: Lifecycle,
}

impl Engine {
    pub(super) fn order_reload(
        &mut self,
        peer: Peer,
        session: &str,
        text: Option<&PolicyText>,
        mode: Option<Mode>,
        accept_degraded: bool,
    ) -> Result<Response, Refusal> {
        let by_syscall = self.kernel.traces_by_syscall();
        let live = self.find(peer, session)?;
        if live.origin != Origin::Run && !peer.is_root() {
            return Err(Refusal::new("only root may change this session"));
        }
        if by_syscall && live.origin == Origin::Run {
            return Err(Refusal::new(
                "files of this session are held by Landlock, which nobody can change for processes that run",
            )
            .hint("start another session; on a kernel with BPF LSM policies can be exchanged"));
        }
        let (number, origin, uid) = (live.number, live.origin, live.uid);
        let in_force = Arc::clone(&live.subject.policy);
        let cgroup = live.cgroup.clone();
        let private = live.bound.private.clone();
        let mode_in_force = live.subject.reference.mode;
        let (policy, asked) = match text {
            Some(text) => (self.compile(text, uid)?.0, mode),
            None => (policies::again(&in_force), mode.or(Some(mode_in_force))),
        };
        let mode = policies::mode_of(&policy, asked);
        let live = self.find(peer, session)?;
        let reference = SessionRef {
            policy: policy.digest.clone(),
            mode,
            ..live.subject.reference.clone()
        };
        let mut holding = launch::holding(
            self.kernel.file_backend,
            probe::landlock_abi(),
            origin,
            mode,
            &policy,
        );
        holding.lacks(policies::limit_gaps(
            &self.kernel.cgroup_root,
            origin,
            mode,
            &policy.limits,
        ));
        if mode == Mode::Enforce {
            self.prove();
            holding.lacks(self.proof.failures.clone());
        }
        policies::degraded(&holding.missing, accept_degraded, &policy)?;

        self.limit(&cgroup, origin, mode, &policy)?;
        let key = self.next_number()?;
        let private = match private {
            Some(private) => private,
            None => Arc::new(self.kernel.maps.private(&cgroup, &policy)?),
        };
        let bound = self.kernel.insert_policy(key, number, &policy, private)?;
        if let Err(refusal) = policies::degraded(&bound.gaps, accept_degraded, &policy) {
            self.kernel.maps.remove_policy(&bound);
            return Err(refusal);
        }
        if !self.sessions.contains_key(&number) {
            self.kernel.maps.remove_policy(&bound);
            return Err(Refusal::new("the session is gone"));
        }
        tracing::info!(
            session = reference.id,
            policy = reference.policy,
            ?mode,
            uid = peer.uid,
            "policy exchanged"
        );
        let told = Lifecycle::Reloaded {
            policy: reference.policy.clone(),
            mode,
            coverage: holding.coverage,
            missing: holding.missing.clone(),
            uid: peer.uid,
            rules: Some(Box::new(policy.record())),
        };
        self.distrust_reviewer(number);
        self.exchange(
            number,
            Exchange {
                reference,
                policy,
                holding,
                bound,
                told,
            },
        );
        self.ready(number)
    }

    /// Puts in force what is in the kernel already.
    pub(super) fn exchange(&mut self, number: u32, exchange: Exchange) {
        let Exchange {
            reference,
            policy,
            holding,
            bound,
            told,
        } = exchange;
        let bits = self.flags(reference.mode, &policy);
        let Some(live) = self.sessions.get_mut(&number) else {
            self.kernel.maps.remove_policy(&bound);
            return;
        };
        let key = bound.number();
        live.subject.reload(key, reference.clone(), policy);
        let private = bound.private.as_ref();
        live.subject.private = private.map(|own| own.names()).unwrap_or_default();
        let old = std::mem::replace(&mut live.bound, bound);
        live.retiring.push((Instant::now(), old));
        live.holding = holding;
        let bits = bits | live.epoch << flags::EPOCH_SHIFT;
        let mut event = self.enricher.own(&reference, Kind::Session);
        event.lifecycle = Some(told);
        live.changed(&event);
        // Both are written down before the store, so that whichever a killed daemon leaves in force is known.
        self.write_down(number);
        self.kernel.maps.bind_policy(number, key, bits);
        self.outbox.tell(event);
    }

    /// Takes policies out of the kernel that no program goes by any more.
    pub(super) fn retire(&mut self) {
        let due = |(since, _): &(Instant, _)| since.elapsed() >= RETIRE;
        let stale = |live: &Live| {
            live.stale_folds
                .is_some_and(|since| since.elapsed() >= RETIRE)
        };
        if !self.drained
            || !self
                .sessions
                .values()
                .any(|live| stale(live) || live.retiring.iter().any(due))
        {
            return;
        }
        self.kernel.maps.wait_for_programs();
        let numbers: Vec<u32> = self.sessions.keys().copied().collect();
        for number in numbers {
            let Some(live) = self.sessions.get_mut(&number) else {
                continue;
            };
            if live.unreckoned {
                continue;
            }
            let (old, still): (Vec<_>, Vec<_>) = std::mem::take(&mut live.retiring)
                .into_iter()
                .partition(due);
            live.retiring = still;
            let epoch = live.epoch;
            let stale = stale(live);
            if stale {
                live.stale_folds = None;
            }
            if old.is_empty() && !stale {
                continue;
            }
            // Its counts do not grow any more: they are told to the end, and forgotten.
            self.collect_folds(Some(number));
            if stale {
                self.kernel.maps.remove_folds_of_other_epochs(number, epoch);
            }
            for (_, bound) in &old {
                self.kernel.maps.remove_folds_of(bound.number());
                self.kernel.maps.remove_policy(bound);
            }
            self.forget_folds(number);
        }
    }
}
