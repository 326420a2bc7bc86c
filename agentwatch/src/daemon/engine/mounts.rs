//! The host's mounts, on which it depends what a policy's paths name: where they change while a session runs, its policy is worked out
//! again. Until then what is mounted anew is on a file system that the kernel side does not know, and closed.

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Engine, reload::Exchange};
use crate::{
    event::{Mode, model::Lifecycle},
    kernel::{
        bind::{Concerned, concerned},
        files::{MountChanges, Rooted},
    },
};

/// The least time between two looks at what has changed; each keeps the engine no more than a tenth of the time.
const PAUSE: Duration = Duration::from_secs(1);
const SHARE: u32 = 10;
/// When it is tried again what did not succeed.
const AGAIN: Duration = Duration::from_secs(10);
/// Mount points that an event names.
const NAMED: usize = 64;

/// Whether something has changed, and when it is to be looked at.
pub struct Watched {
    changes: MountChanges,
    due: bool,
    not_before: Instant,
}

impl Watched {
    pub fn begin() -> Result<Self> {
        Ok(Self {
            changes: MountChanges::watch()?,
            // Sessions of a daemon before this one may have missed something.
            due: true,
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
            Ok(changed) => self.mounts.due |= changed,
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "what is mounted from here on stays closed to sessions"
            ),
        }
        if !self.mounts.due || Instant::now() < self.mounts.not_before {
            return;
        }
        let begin = Instant::now();
        self.mounts.due = false;
        let mut pause = PAUSE;
        if let Err(error) = self.work_out_again() {
            tracing::warn!(
                error = format!("{error:#}"),
                "what the host has mounted or unmounted is not taken into a session's policy; it is tried again"
            );
            self.mounts.due = true;
            pause = AGAIN;
        }
        self.mounts.not_before = Instant::now() + pause.max(begin.elapsed() * SHARE);
    }

    /// Works the policies out again that depend on what has changed.
    fn work_out_again(&mut self) -> Result<()> {
        if self.sessions.is_empty() {
            return Ok(());
        }
        let mounts = self.kernel.maps.host_mounts()?;
        let numbers: Vec<u32> = self.sessions.keys().copied().collect();
        let mut failure = None;
        for number in numbers {
            if let Err(error) = self.bind_again(number, &mounts) {
                failure = failure.or(Some(error));
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn bind_again(&mut self, number: u32, mounts: &[Rooted]) -> Result<()> {
        let Some(live) = self.sessions.get(&number) else {
            return Ok(());
        };
        let policy = Arc::clone(&live.subject.policy);
        let now = concerned(&policy, mounts);
        if live.bound.mounts.as_ref() == Some(&now) {
            return Ok(());
        }
        let before = live.bound.mounts.clone();
        let told_of = live.id().to_owned();
        let reference = live.subject.reference.clone();
        let holding = live.holding.clone();
        let cgroup = live.cgroup.clone();
        let known_gaps = live.bound.gaps.clone();
        let context = || format!("session {told_of}");

        let key = self.next_number().with_context(context)?;
        let bound = self
            .kernel
            .insert_policy(key, &policy, Some(&cgroup))
            .with_context(context)?;
        // Nobody was asked whether it may be held in part.
        let gap = bound.gaps.iter().find(|gap| !known_gaps.contains(gap));
        if reference.mode == Mode::Enforce
            && let Some(gap) = gap.cloned()
        {
            self.kernel.maps.remove_policy(&bound);
            anyhow::bail!("session {told_of}: {gap}");
        }
        let now = bound.mounts.clone().unwrap_or_default();
        if before.as_ref() == Some(&now) {
            // Meanwhile it is as it was.
            self.kernel.maps.remove_policy(&bound);
            return Ok(());
        }
        let before = before.unwrap_or_default();
        let (mounted, unmounted) = (points(&now, &before), points(&before, &now));
        tracing::info!(
            session = told_of,
            ?mounted,
            ?unmounted,
            "policy worked out again: the host's mounts have changed"
        );
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
        Ok(())
    }
}

/// Mount points of what is in the one and not in the other.
fn points(these: &HashSet<Concerned>, those: &HashSet<Concerned>) -> Vec<String> {
    let mut points: Vec<&Path> = these
        .difference(those)
        .map(|mount| mount.point.as_path())
        .collect();
    points.sort_unstable();
    points.dedup();
    points.truncate(NAMED);
    points
        .into_iter()
        .map(|point| point.to_string_lossy().into_owned())
        .collect()
}
