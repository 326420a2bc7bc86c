//! Processes that are made outside their session's cgroup (`CLONE_INTO_CGROUP` asks for no file): they are of the session all the same, and
//! are put back, so that its limits hold for them too.

use agentwatch_common::event::Record;
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
        if let Err(error) = cgroup::enter(&live.cgroup, record.pid) {
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
