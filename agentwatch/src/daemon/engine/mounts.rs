//! The host's mounts, on which it depends what a policy's paths name: where they change while a session runs, its policy is worked out
//! again. Until then what is mounted anew is on a file system that the kernel side does not know, and closed.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    Engine, policies,
    reload::{Exchange, RETIRE},
};
use crate::{
    event::{Mode, model::Lifecycle},
    kernel::{
        bind::{Concerned, Ways},
        files::{self, MountChanges, Rooted},
    },
};

/// The least time between two looks at what has changed; they take no more than a tenth of the time.
const PAUSE: Duration = Duration::from_secs(1);
const SHARE: u32 = 10;
/// After how long it is tried again what did not succeed: each time twice as long, so often.
const AGAIN: Duration = Duration::from_secs(10);
const DOUBLED: u32 = 5;
/// Mount points that an event names.
const NAMED: usize = 64;

/// Whether something has changed, and when it is to be looked at.
pub struct Watched {
    changes: MountChanges,
    /// When it is to be looked at, if it is.
    due: Option<Instant>,
    not_before: Instant,
}

impl Watched {
    pub fn begin() -> Result<Self> {
        Ok(Self {
            changes: MountChanges::watch()?,
            // Sessions of a daemon before this one may have missed something.
            due: Some(Instant::now()),
            not_before: Instant::now(),
        })
    }
}

impl Engine {
    pub(super) fn look_after_mounts(&mut self) {
        // Landlock goes by where a path leads, and takes in what is mounted there.
        if self.kernel.traces_by_syscall() {
            return;
        }
        match self.mounts.changes.any() {
            Ok(true) => self.mounts.due = Some(Instant::now()),
            Ok(false) => {}
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "what is mounted from here on stays closed to sessions"
            ),
        }
        let begin = Instant::now();
        let is_due = self.mounts.due.is_some_and(|due| due <= begin);
        if !is_due || begin < self.mounts.not_before {
            return;
        }
        self.mounts.due = self.work_out_again().unwrap_or_else(|error| {
            tracing::warn!(
                error = format!("{error:#}"),
                "the host's mounts cannot be looked at; it is tried again"
            );
            Some(Instant::now() + AGAIN)
        });
        self.mounts.not_before = Instant::now() + PAUSE.max(begin.elapsed() * SHARE);
    }

    /// Works the policies out again that depend on what has changed. Says when to look again, if not all are as the mounts are now.
    fn work_out_again(&mut self) -> Result<Option<Instant>> {
        if self.sessions.is_empty() {
            return Ok(None);
        }
        let mounts = files::list()?;
        let mut devices = HashSet::new();
        for live in self.sessions.values() {
            let ways = Ways::of(&live.subject.policy, &live.bound.links);
            devices.extend(ways.devices(&mounts));
        }
        let mounts = self.kernel.maps.rooted(mounts, &devices);
        let numbers: Vec<u32> = self.sessions.keys().copied().collect();
        let mut again: Option<Instant> = None;
        for number in numbers {
            let wanted = self.bind_again(number, &mounts).unwrap_or_else(|error| {
                let live = self.sessions.get_mut(&number)?;
                let pause = AGAIN * 2_u32.pow(live.bind_refused.min(DOUBLED));
                tracing::warn!(
                    error = format!("{error:#}"),
                    again_after = pause.as_secs(),
                    "what the host has mounted stays closed to a session"
                );
                live.bind_refused += 1;
                live.bind_after = Some(Instant::now() + pause);
                live.bind_after
            });
            again = [again, wanted].into_iter().flatten().min();
            // What happens meanwhile does not wait for all of them.
            self.drain();
        }
        Ok(again)
    }

    /// Works the policy of a session out again, if it depends on what has changed. Says when that is to be tried again.
    fn bind_again(&mut self, number: u32, mounts: &[Rooted]) -> Result<Option<Instant>> {
        let Some(live) = self.sessions.get_mut(&number) else {
            return Ok(None);
        };
        let ways = Ways::of(&live.subject.policy, &live.bound.links);
        let devices = ways.devices(mounts.iter().map(|rooted| &rooted.mount));
        let now = ways.concerned(mounts, &devices);
        let before = live.bound.mounts.clone();
        if before.as_ref() == Some(&now) {
            return Ok(None);
        }
        if let Some(before) = &before {
            let gone = gone(before, &now);
            self.kernel.maps.close_devices(&mut live.bound, &gone);
        }
        let Some(private) = live.bound.private.clone() else {
            // What its processes had mounted before they were held, nobody can tell any more.
            tracing::warn!(
                session = live.id(),
                "the host's mounts have changed, and what is new is closed to it, because an earlier daemon was attached to it; \
                 hint: agentwatch reload"
            );
            live.bound.mounts = Some(now);
            return Ok(None);
        };
        // What is no longer in force stays in the kernel for a while: there are no more than two of a session.
        if !live.retiring.is_empty() {
            return Ok(Some(Instant::now() + RETIRE));
        }
        if let Some(not_before) = live.bind_after.filter(|at| Instant::now() < *at) {
            return Ok(Some(not_before));
        }
        live.bind_after = None;
        let policy_before = Arc::clone(&live.subject.policy);
        let policy = policies::again(&live.subject.policy);
        let id = live.id().to_owned();
        let reference = live.subject.reference.clone();
        let holding = live.holding.clone();
        let known_gaps = live.bound.gaps.clone();
        let context = || format!("session {id}");

        let key = self.next_number().with_context(context)?;
        let bound = self
            .kernel
            .insert_policy(key, number, &policy, private)
            .with_context(context)?;
        // Nobody was asked whether it may be held in part.
        let gap = bound.gaps.iter().find(|gap| !known_gaps.contains(gap));
        if reference.mode == Mode::Enforce
            && let Some(gap) = gap
        {
            let refusal = format!("session {id}: {gap}");
            self.kernel.maps.remove_policy(&bound);
            bail!(refusal);
        }
        // Mounts have changed meanwhile.
        let again = bound.mounts.is_none().then(|| Instant::now() + RETIRE);
        let (mounted, unmounted) = match (&before, &bound.mounts) {
            (Some(before), Some(now)) => (points(now, before), points(before, now)),
            (Some(before), None) => (points(&now, before), points(before, &now)),
            (None, _) => Default::default(),
        };
        tracing::info!(
            session = id,
            ?mounted,
            ?unmounted,
            "policy worked out again: the host's mounts have changed"
        );
        if policy != policy_before {
            // Links of others lead into what the administrator rules, by now.
            self.distrust_reviewer(number);
        }
        if let Some(live) = self.sessions.get_mut(&number) {
            live.bind_refused = 0;
        }
        let told = Lifecycle::MountsChanged {
            mounted,
            unmounted,
            coverage: holding.coverage,
        };
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
        Ok(again)
    }
}

/// Devices of which no mount is left that was there before.
fn gone(before: &[Concerned], now: &[Concerned]) -> HashSet<u32> {
    let known = |mount: &&Concerned| {
        before
            .iter()
            .any(|other| (other.dev, other.mount) == (mount.dev, mount.mount))
    };
    let still: HashSet<u32> = now.iter().filter(known).map(|mount| mount.dev).collect();
    before
        .iter()
        .map(|mount| mount.dev)
        .filter(|dev| !still.contains(dev))
        .collect()
}

/// Mount points of what is in the one and not in the other.
fn points(these: &[Concerned], those: &[Concerned]) -> Vec<String> {
    let those: HashSet<&Concerned> = those.iter().collect();
    let mut points: Vec<&str> = these
        .iter()
        .filter(|mount| !those.contains(mount))
        .map(|mount| mount.point.as_str())
        .collect();
    points.sort_unstable();
    points.dedup();
    points.truncate(NAMED);
    points.into_iter().map(str::to_owned).collect()
}
