//! Processes that are made outside their session's cgroup (`CLONE_INTO_CGROUP` asks for no file): they are of the session all the same, and
//! are put back, so that its limits hold for them too.

use std::time::{Duration, Instant};

use agentwatch_common::event::Record;
use anyhow::anyhow;
use nix::sys::signal::Signal;

use super::Engine;
use crate::{
    event::{
        Kind, Verdict,
        model::{Guard, Mode},
    },
    policy::{
        explain,
        model::{Access, Effect},
    },
    session::{cgroup, signal},
};

/// Processes of one session that are put back in a second; more are killed. To move one takes the kernel milliseconds, in which nothing
/// else is done.
const PUT_BACK: u32 = 8;

/// How many were put back in the second that began then.
#[derive(Default)]
pub struct Strays {
    since: Option<Instant>,
    put_back: u32,
}

impl Strays {
    /// Whether one more may be put back.
    fn more(&mut self, now: Instant) -> bool {
        let is_over = |since| now.duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(is_over) {
            *self = Self {
                since: Some(now),
                put_back: 0,
            };
        }
        self.put_back += 1;
        self.put_back <= PUT_BACK
    }
}

impl Engine {
    /// A process of a session was made.
    pub(super) fn born(&mut self, record: &Record) {
        let Some(live) = self.sessions.get_mut(&record.session) else {
            return;
        };
        if record.cgroup == live.cgroup_id || live.subject.reference.mode == Mode::Monitor {
            return;
        }
        let root = &self.kernel.cgroup_root;
        let Some(path) = cgroup::of_process(root, record.pid) else {
            return;
        };
        // Where its maker was moved, by somebody outside, it may be too.
        if path.starts_with(&live.cgroup)
            || cgroup::of_process(root, record.ppid).as_ref() == Some(&path)
        {
            return;
        }
        let policy = &live.subject.policy;
        let decision = explain::decide_file(policy, Access::Write, &path.join("cgroup.procs"));
        if decision.effect == Effect::Allow {
            return;
        }
        let put_back = if live.strays.more(Instant::now()) {
            cgroup::enter(&live.cgroup, record.pid)
        } else {
            Err(anyhow!("its session makes more than {PUT_BACK} a second"))
        };
        if let Err(error) = put_back {
            tracing::warn!(
                session = live.id(),
                pid = record.pid,
                error = format!("{error:#}"),
                "a process outside its session's cgroup could not be put back and is killed"
            );
            let _ = signal::send(record.pid, record.start, Signal::SIGKILL);
        }
        let mut event = self.enricher.own(&live.subject.reference, Kind::Guard);
        event.verdict = Verdict::Denied;
        let rule = policy.rules.get(decision.rule as usize);
        event.rule = rule.map(crate::policy::model::Rule::reference);
        event.guard = Some(Guard {
            operation: "cgroup".to_owned(),
            pid: Some(record.pid),
            detail: Some(cgroup::shown(root, &path)),
        });
        live.saw(&event);
        self.outbox.tell(event);
    }
}
