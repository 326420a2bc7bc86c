//! What the kernel's records say of actions that wait, passed or were rejected, and asking about those that wait.

use agentwatch_common::{
    event::Record,
    hold::{GrantKey, Hold, object},
};

use crate::{
    approval::{About, Asked, Filed, Waiting, model::Ancestor, summary},
    daemon::engine::Engine,
    event::{
        Event,
        enrich::kind_of,
        host::{boottime_ns, wall},
        model::{Approval, Decider, DeciderKind, File, Net, Process, Step},
    },
    session::cgroup,
};

/// Processes above one that waits that are shown.
const ANCESTORS: usize = 16;

impl Engine {
    /// The record of an action that waits has arrived.
    pub(in crate::daemon::engine) fn waits(&mut self, record: &Record, event: &mut Event) {
        let Some(hold) = self.kernel.maps.hold(record.tid) else {
            if !self.desk.answers().contains_key(&record.tid) {
                self.gone(event);
            }
            return;
        };
        if hold.key.session == record.session && hold.since <= record.ktime {
            self.ask(&hold, event);
        }
    }

    /// An action waited, and is over before anybody could be asked: its process has ended.
    fn gone(&mut self, event: &mut Event) {
        let step = Approval {
            waited_ns: boottime_ns().saturating_sub(event.ktime_ns),
            ..Approval::bare(Step::Withdrawn, event.kind)
        };
        event.approval = Some(step.clone());
        let about = event.clone();
        self.tell_step(&about, step);
    }

    /// The record of an action that passed by what was granted has arrived.
    pub(in crate::daemon::engine) fn passed(&mut self, record: &Record, event: &mut Event) {
        let now = boottime_ns();
        let Some(answer) = self.desk.answers().get_mut(&record.tid) else {
            return;
        };
        if answer.pending.session != record.session || !answer.allowed {
            return;
        }
        let mut step = answer.pending.step(Step::Resumed, now);
        step.waited_ns = now.saturating_sub(answer.task.since);
        event.approval = Some(step.clone());
        if !std::mem::replace(&mut answer.resumed, true) {
            let about = answer.pending.event.clone();
            self.tell_step(&about, step);
        }
    }

    /// The record of an action that was rejected has arrived.
    pub(in crate::daemon::engine) fn refused(&mut self, record: &Record, event: &mut Event) {
        let now = boottime_ns();
        let answer = self.desk.answers().get(&record.tid);
        if let Some(answer) =
            answer.filter(|it| it.pending.session == record.session && !it.allowed)
        {
            let mut step = answer.pending.step(Step::Rejected, now);
            step.waited_ns = now.saturating_sub(answer.task.since);
            event.approval = Some(step);
        }
    }

    /// The record of an action that a person was to be asked about, and that cannot wait, has arrived.
    pub(in crate::daemon::engine) fn cannot_wait(&mut self, event: &mut Event) {
        event.approval = Some(Approval {
            tasks: 1,
            ..Approval::bare(Step::Unasked, event.kind)
        });
        self.desk.count(event);
    }

    pub(super) fn ask(&mut self, hold: &Hold, event: &mut Event) {
        let Some(asked) = self.asked(hold, event) else {
            return;
        };
        let now = boottime_ns();
        let id = match self.desk.file(asked, now) {
            Filed::New(id) => {
                self.tell_requested(&id, now);
                self.consult(&id);
                self.save_approvals(hold.key.session);
                id
            }
            Filed::Joined(id) => {
                // Many may wait for the same: they are written down together.
                self.unsaved.insert(hold.key.session);
                id
            }
            Filed::Over(limit) => return self.turn_away(hold, event, limit),
        };
        event.approval = self
            .desk
            .get(&id)
            .map(|pending| pending.step(Step::Requested, now));
        if hold.key.object.kind == object::COMMAND
            && let Err(error) = cgroup::freeze(&self.kernel.cgroup_root, hold.pid)
        {
            tracing::warn!(
                pid = hold.pid,
                error = format!("{error:#}"),
                "a command that waits is stopped, and not frozen"
            );
        }
    }

    /// What is known of an action that has begun to wait, for who decides.
    fn asked<'a>(&self, hold: &'a Hold, event: &Event) -> Option<Asked<'a>> {
        let live = self.sessions.get(&hold.key.session)?;
        let policy = &live.subject.policy;
        let rule_text = policy
            .rules
            .get(hold.rule as usize)
            .map(|rule| rule.text.clone())
            .unwrap_or_default();
        let mut before: Vec<String> = live.recent.iter().cloned().collect();
        // The newest is the action itself.
        if before
            .last()
            .is_some_and(|line| *line == format!("{} (held)", summary(event)))
        {
            before.pop();
        }
        let mut about = event.clone();
        if let Some(process) = &mut about.process
            && process.argv.is_empty()
        {
            // People see what it is by its arguments.
            process.argv = self.enricher.process_of(hold.pid).argv.to_vec();
        }
        Some(Asked {
            hold,
            event: about,
            limits: policy.approvals,
            rule_text,
            ancestry: self.ancestry(hold),
            before,
        })
    }

    fn tell_requested(&mut self, id: &str, now: u64) {
        if let Some(pending) = self.desk.get(id) {
            let mut step = pending.step(Step::Requested, now);
            step.finding.clone_from(&pending.finding);
            let about = pending.event.clone();
            tracing::info!(
                session = about.session.id,
                id,
                what = summary(&about),
                "an action waits for approval"
            );
            self.tell_step(&about, step);
        }
    }

    /// There are too many: it may not, and nobody is asked.
    fn turn_away(&mut self, hold: &Hold, event: &mut Event, limit: &str) {
        let step = Approval {
            by: Some(Decider {
                kind: DeciderKind::Limit,
                uid: None,
                name: None,
            }),
            finding: Some(limit.to_owned()),
            tasks: 1,
            ..Approval::bare(Step::Rejected, event.kind)
        };
        event.approval = Some(step.clone());
        let about = event.clone();
        self.tell_step(&about, step);
        let key = GrantKey {
            session: hold.key.session,
            task: hold.tid,
            object: hold.key.object,
        };
        let task = Waiting {
            tid: hold.tid,
            pid: hold.pid,
            start: hold.start,
            since: hold.since,
        };
        if let Err(error) = self.say(key, hold.rights, task, false) {
            tracing::error!(
                session = about.session.id,
                pid = task.pid,
                tid = task.tid,
                error = format!("{error:#}"),
                "a task that nobody is asked for does not hear so; hint: it is told again"
            );
        }
    }

    /// The processes above one, within its session, the nearest first.
    fn ancestry(&self, hold: &Hold) -> Vec<Ancestor> {
        let mut ancestors = Vec::new();
        let mut at = hold.pid;
        while ancestors.len() < ANCESTORS {
            let Ok(stat) =
                procfs::process::Process::new(at.cast_signed()).and_then(|process| process.stat())
            else {
                break;
            };
            at = stat.ppid.cast_unsigned();
            if self.kernel.maps.process_session(at) != Some(hold.key.session) {
                break;
            }
            let known = self.enricher.process_of(at);
            ancestors.push(Ancestor {
                pid: at,
                exe: known.exe.to_string(),
                argv: known.argv.to_vec(),
            });
        }
        ancestors
    }

    /// The event of an action that waits, from what the kernel still knows of it.
    pub(super) fn event_of(&self, hold: &Hold) -> Option<Event> {
        let live = self.sessions.get(&hold.key.session)?;
        let kind = kind_of(hold.what)?;
        let mut event = self.enricher.own(&live.subject.reference, kind);
        event.verdict = crate::event::Verdict::Held;
        event.ktime_ns = hold.since;
        event.time = wall(hold.since);
        event.rule = live
            .subject
            .policy
            .rules
            .get(hold.rule as usize)
            .map(crate::policy::model::Rule::reference);
        let known = self.enricher.process_of(hold.pid);
        let about = About::of(&hold.key.object);
        let text = String::from_utf8_lossy(&about.name);
        let mut process = Process {
            pid: hold.pid,
            tid: hold.tid,
            start_ns: hold.start,
            exe: known.exe.to_string(),
            cwd: known.cwd.to_string(),
            uid: live.uid,
            ..Process::default()
        };
        match about.kind {
            object::ADDRESS => {
                let mut octets = [0; 16];
                octets.copy_from_slice(&hold.key.object.name[..16]);
                event.net = Some(Net {
                    addr: Some(std::net::Ipv6Addr::from(octets).to_canonical().to_string()),
                    port: u16::try_from(about.detail).ok(),
                    ..Net::default()
                });
            }
            object::COMMAND => {
                process.argv = std::iter::once(known.exe.as_ref())
                    .chain(text.split_terminator('\0'))
                    .map(str::to_owned)
                    .collect();
                event.file = Some(File {
                    path: known.exe.to_string(),
                    ..File::default()
                });
            }
            _ => {
                event.file = Some(File {
                    path: text.trim_end_matches('\0').to_owned(),
                    path_truncated: true,
                    dev: u64::from(about.dev),
                    inode: about.inode,
                    ..File::default()
                });
            }
        }
        event.process = Some(process);
        Some(event)
    }
}
