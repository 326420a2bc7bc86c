//! Actions that wait: from the kernel's word that a task is parked to a person's word that it may go on. What is asked and decided
//! is kept by `approval::Desk`; here it meets the kernel, the processes and the clock.

use std::{collections::HashSet, time::Duration};

use agentwatch_common::{
    event::Record,
    hold::{Grant, GrantKey, Hold, object},
    policy::effect,
};
use anyhow::Result;
use nix::{
    sys::signal::Signal,
    unistd::{Gid, Group, Uid, User, getgrouplist},
};

use super::{Engine, orders::Refusal};
use crate::{
    approval::{
        About, Asked, Filed, Given, LONGEST_REASON, Waiting,
        model::{Ancestor, GrantRow},
        summary,
    },
    daemon::control::Peer,
    event::{
        Event, Kind,
        enrich::kind_of,
        host::{boottime_ns, wall},
        model::{Approval, Decider, DeciderKind, File, Net, Process, Scope, Step},
    },
    policy::model::OnTimeout,
    session::{cgroup, signal},
    wire::control::{Extent, Response},
};

/// How long a task may take to hear what was said to it.
const HEARING: Duration = Duration::from_secs(60);
/// How long what a task has heard stays, for the rest of its system call.
const REST: Duration = Duration::from_secs(2);
/// After which time a task is asked about of which no record has come.
const UNTOLD: Duration = Duration::from_secs(1);
/// How long the end of a session waits for its tasks to hear that they may not.
const DISMISSAL: Duration = Duration::from_millis(500);
/// Processes above one that waits that are shown.
const ANCESTORS: usize = 16;
/// The longest approval for a time, in seconds: 30 days.
const LONGEST: u64 = 30 * 24 * 3600;

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Who decides, and what.
pub(super) struct Word {
    step: Step,
    allowed: bool,
    pub by: Decider,
    scope: Option<Scope>,
    until: u64,
    pub reason: Option<String>,
    finding: Option<&'static str>,
}

impl Word {
    pub fn of(step: Step, allowed: bool, kind: DeciderKind) -> Self {
        Self {
            step,
            allowed,
            by: Decider {
                kind,
                uid: None,
                name: None,
            },
            scope: allowed.then_some(Scope::Once),
            until: 0,
            reason: None,
            finding: None,
        }
    }
}

fn person(uid: u32) -> Decider {
    Decider {
        kind: DeciderKind::User,
        uid: Some(uid),
        name: User::from_uid(Uid::from_raw(uid))
            .ok()
            .flatten()
            .map(|user| user.name),
    }
}

/// The reviewer, by its command.
pub(super) fn reviewer(name: Option<String>) -> Decider {
    Decider {
        kind: DeciderKind::Reviewer,
        uid: None,
        name,
    }
}

impl Engine {
    /// The record of an action that waits has arrived.
    pub(super) fn waits(&mut self, record: &Record, event: &mut Event) {
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
            id: String::new(),
            step: Step::Withdrawn,
            action: event.kind,
            by: None,
            scope: None,
            until: None,
            reason: None,
            finding: None,
            waited_ns: boottime_ns().saturating_sub(event.ktime_ns),
            tasks: 0,
            tries: 0,
        };
        event.approval = Some(step.clone());
        let about = event.clone();
        self.tell_step(&about, step);
    }

    /// The record of an action that passed by what was granted has arrived.
    pub(super) fn passed(&mut self, record: &Record, event: &mut Event) {
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
    pub(super) fn refused(&mut self, record: &Record, event: &mut Event) {
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
    pub(super) fn cannot_wait(&mut self, event: &mut Event) {
        event.approval = Some(Approval {
            id: String::new(),
            step: Step::Unasked,
            action: event.kind,
            by: None,
            scope: None,
            until: None,
            reason: None,
            finding: None,
            waited_ns: 0,
            tasks: 1,
            tries: 0,
        });
        self.desk.count(event);
    }

    fn ask(&mut self, hold: &Hold, event: &mut Event) {
        let number = hold.key.session;
        let Some(live) = self.sessions.get(&number) else {
            return;
        };
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
        let asked = Asked {
            hold,
            event: about,
            limits: policy.approvals,
            rule_text,
            ancestry: self.ancestry(hold.pid),
            before,
        };
        let now = boottime_ns();
        let task = Waiting {
            tid: hold.tid,
            pid: hold.pid,
            start: hold.start,
            since: hold.since,
        };
        let id = match self.desk.file(asked, now) {
            Filed::New(id) => {
                if let Some(pending) = self.desk.get(&id) {
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
                self.consult(&id);
                id
            }
            Filed::Joined(id) => id,
            Filed::Over(limit) => {
                let step = Approval {
                    id: String::new(),
                    step: Step::Rejected,
                    action: event.kind,
                    by: Some(Decider {
                        kind: DeciderKind::Limit,
                        uid: None,
                        name: None,
                    }),
                    scope: None,
                    until: None,
                    reason: None,
                    finding: Some(limit.to_owned()),
                    waited_ns: 0,
                    tasks: 1,
                    tries: 0,
                };
                event.approval = Some(step.clone());
                let about = event.clone();
                self.tell_step(&about, step);
                let key = GrantKey {
                    session: number,
                    task: hold.tid,
                    object: hold.key.object,
                };
                self.say(key, hold.rights, task, false);
                self.heard_soon.push((key, now));
                return;
            }
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
        self.save_approvals(number);
    }

    /// The processes above one, within its session, the nearest first.
    fn ancestry(&self, pid: u32) -> Vec<Ancestor> {
        let mut ancestors = Vec::new();
        let mut at = pid;
        while ancestors.len() < ANCESTORS {
            let Ok(stat) =
                procfs::process::Process::new(at.cast_signed()).and_then(|process| process.stat())
            else {
                break;
            };
            at = stat.ppid.cast_unsigned();
            if self.kernel.maps.process_session(at).is_none() {
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

    /// Passes on a step, and counts it.
    pub(super) fn tell_step(&mut self, about: &Event, step: Approval) {
        let mut event = self.enricher.own(&about.session, Kind::Approval);
        event.verdict = about.verdict;
        event.rule.clone_from(&about.rule);
        event.process.clone_from(&about.process);
        event.file.clone_from(&about.file);
        event.target.clone_from(&about.target);
        event.net.clone_from(&about.net);
        event.approval = Some(step);
        self.desk.count(&event);
        self.notifier.tell(&event);
        self.outbox.tell(event);
    }

    /// Tells a task that it may go on, or that it may not.
    fn say(&mut self, key: GrantKey, rights: u32, task: Waiting, allowed: bool) {
        let is_command = key.object.kind == object::COMMAND;
        if !is_command {
            let grant = Grant {
                effect: u32::from(if allowed { effect::ALLOW } else { effect::DENY }),
                rights,
                until: boottime_ns().saturating_add(nanoseconds(HEARING)),
                start: task.start,
                used: 0,
                _pad: 0,
            };
            if let Err(error) = self.kernel.maps.grant(&key, grant) {
                tracing::error!(error = format!("{error:#}"), "a task waits on");
                return;
            }
        }
        let signal = if is_command && !allowed {
            Signal::SIGKILL
        } else {
            Signal::SIGCONT
        };
        // A command that is to end does so while it is stopped.
        if signal == Signal::SIGCONT {
            self.kernel.maps.forget_hold(task.tid);
        }
        if is_command && allowed {
            self.thaw(task.pid);
        }
        if let Err(error) = signal::send(task.pid, task.start, signal) {
            tracing::error!(
                pid = task.pid,
                error = format!("{error:#}"),
                "a process does not hear what was decided"
            );
        }
        if is_command && !allowed {
            self.thaw(task.pid);
            self.kernel.maps.forget_hold(task.tid);
        }
        // Its other tasks go on with it, and those that wait are parked again.
        self.desk
            .excuse(task.pid, boottime_ns() + nanoseconds(REST));
    }

    fn thaw(&self, pid: u32) {
        if let Some(path) = cgroup::frozen_in(&self.kernel.cgroup_root, pid) {
            cgroup::thaw(&path, pid);
        }
    }

    /// Carries out a decision.
    pub(super) fn decide(&mut self, id: &str, word: Word) {
        let Some(pending) = self.desk.take(id) else {
            return;
        };
        let now = boottime_ns();
        let object = pending.about.object();
        if word.allowed && matches!(word.scope, Some(Scope::For | Scope::Session)) {
            let key = GrantKey {
                session: pending.session,
                task: 0,
                object,
            };
            let grant = Grant {
                effect: u32::from(effect::ALLOW),
                rights: pending.rights,
                until: word.until,
                start: 0,
                used: 0,
                _pad: 0,
            };
            if let Err(error) = self.kernel.maps.grant(&key, grant) {
                tracing::error!(
                    error = format!("{error:#}"),
                    "a grant holds for the tasks that wait alone"
                );
            }
        }
        for task in &pending.tasks {
            let key = GrantKey {
                session: pending.session,
                task: task.tid,
                object,
            };
            self.say(key, pending.rights, *task, word.allowed);
        }
        let how = match word.step {
            Step::Approved => "approved",
            Step::Expired => "expired",
            _ => "rejected",
        };
        self.desk.answered(&pending, word.allowed, how, now);
        let mut step = pending.step(word.step, now);
        step.by = Some(word.by);
        step.scope = word.scope;
        step.until = (word.scope == Some(Scope::For)).then(|| wall(word.until));
        step.reason = word.reason;
        step.finding = word.finding.map(str::to_owned);
        tracing::info!(
            session = pending.event.session.id,
            id,
            what = pending.summary(),
            how,
            "decided"
        );
        self.tell_step(&pending.event, step);
        if pending.about.is_command() && word.allowed {
            // Nothing more is heard of it: it runs.
            for task in &pending.tasks {
                let mut step = pending.step(Step::Resumed, now);
                step.waited_ns = now.saturating_sub(task.since);
                self.tell_step(&pending.event, step);
                self.desk.answers().remove(&task.tid);
            }
        }
        self.save_approvals(pending.session);
    }

    /// Looks after everything that waits: what is over, what is late, what nobody has told of.
    pub(super) fn look_after_approvals(&mut self, thoroughly: bool) {
        let now = boottime_ns();
        self.look_after_tasks(now);
        for id in self.desk.due(now) {
            let Some(pending) = self.desk.get(&id) else {
                continue;
            };
            let allowed = pending.on_timeout == OnTimeout::Allow;
            self.decide(&id, Word::of(Step::Expired, allowed, DeciderKind::Timeout));
        }
        self.look_after_answers(now);
        if thoroughly {
            for given in self.desk.take_given(|given| given.until <= now) {
                self.withdraw(&given);
                self.save_approvals(given.session);
            }
            self.find_untold(now);
        }
    }

    fn look_after_tasks(&mut self, now: u64) {
        let (mut over, mut urged, mut doomed) = (Vec::new(), Vec::new(), Vec::new());
        let mut called = Vec::new();
        let maps = &self.kernel.maps;
        for pending in self.desk.pending_mut() {
            let mut tries = pending.restarted;
            let command = pending.about.is_command();
            pending.tasks.retain(|task| {
                let hold = maps.hold(task.tid);
                let waits = hold.is_some_and(|hold| hold.since == task.since);
                if waits && let Some(hold) = hold {
                    tries += hold.tries;
                    if command && signal::is_doomed(task.pid, task.start) {
                        doomed.push(*task);
                        return true;
                    }
                    if !command && signal::is_called(task.pid, task.start) {
                        called.push(*task);
                    }
                    // Where no program refuses it, others can tell a command to go on. It is frozen; that they tried is told once.
                    if command && pending.restarted == 0 && signal::stop_again(task.pid, task.start)
                    {
                        pending.restarted = 1;
                    }
                }
                waits
            });
            if tries > pending.tries + pending.excused {
                if now < pending.excused_until {
                    pending.excused = tries - pending.tries;
                } else {
                    pending.tries = tries - pending.excused;
                    if !std::mem::replace(&mut pending.urged, true) {
                        urged.push(pending.id.clone());
                    }
                }
            }
            if pending.tasks.is_empty() {
                over.push(pending.id.clone());
            }
        }
        for task in doomed {
            // `timeout`, or an interrupt: the signal would reach it when it goes on, which it must not. It ends by one that reaches
            // it as it is.
            if let Err(error) = signal::send(task.pid, task.start, Signal::SIGKILL) {
                tracing::error!(
                    pid = task.pid,
                    error = format!("{error:#}"),
                    "a process waits on"
                );
            }
            self.thaw(task.pid);
        }
        for task in called {
            // It hears the signal when it goes on; unless that ends it, its system call is done once more and parked again.
            self.desk.excuse(task.pid, now + nanoseconds(REST));
            if let Err(error) = signal::send(task.pid, task.start, Signal::SIGCONT) {
                tracing::warn!(
                    pid = task.pid,
                    error = format!("{error:#}"),
                    "a process that waits does not hear a signal"
                );
            }
        }
        for id in urged {
            if let Some(pending) = self.desk.get(&id) {
                let mut step = pending.step(Step::Requested, now);
                step.finding = Some("bypass_attempt".to_owned());
                let about = pending.event.clone();
                self.tell_step(&about, step);
            }
        }
        for id in over {
            if let Some(pending) = self.desk.take(&id) {
                let step = pending.step(Step::Withdrawn, now);
                self.tell_step(&pending.event, step);
                self.save_approvals(pending.session);
            }
        }
    }

    /// Takes back what was said to tasks that have heard it, or that never will.
    fn look_after_answers(&mut self, now: u64) {
        let maps = &mut self.kernel.maps;
        let mut is_over = |key: &GrantKey, at: u64| {
            let age = now.saturating_sub(at);
            let over = age > nanoseconds(HEARING) || (age > nanoseconds(REST) && maps.is_used(key));
            if over {
                maps.revoke(key);
            }
            over
        };
        self.desk.answers().retain(|tid, answer| {
            let key = GrantKey {
                session: answer.pending.session,
                task: *tid,
                object: answer.pending.about.object(),
            };
            !is_over(&key, answer.at)
        });
        self.heard_soon.retain(|(key, at)| !is_over(key, *at));
    }

    /// Asks about tasks of which no record has come: the ring was full, or an earlier daemon had it.
    fn find_untold(&mut self, now: u64) {
        let known: HashSet<u32> = self
            .desk
            .pending()
            .flat_map(|pending| pending.tasks.iter().map(|task| task.tid))
            .collect();
        let untold: Vec<Hold> = self
            .kernel
            .maps
            .holds()
            .into_iter()
            .filter(|hold| {
                !known.contains(&hold.tid)
                    && now.saturating_sub(hold.since) > nanoseconds(UNTOLD)
                    && self.sessions.contains_key(&hold.key.session)
            })
            .collect();
        for hold in untold {
            if let Some(mut event) = self.event_of(&hold) {
                self.ask(&hold, &mut event);
            }
        }
    }

    /// The event of an action that waits, from what the kernel still knows of it.
    fn event_of(&self, hold: &Hold) -> Option<Event> {
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

    fn withdraw(&mut self, given: &Given) {
        self.kernel.maps.revoke(&GrantKey {
            session: given.session,
            task: 0,
            object: given.about.object(),
        });
    }

    /// Lets nothing of a session wait any more: what waits is denied, before the session is out of the kernel.
    pub(super) fn dismiss(&mut self, number: u32) {
        let ids: Vec<String> = self
            .desk
            .of_session(number)
            .map(|pending| pending.id.clone())
            .collect();
        let mut deaf = Vec::new();
        for id in ids {
            if let Some(pending) = self.desk.get(&id)
                && !pending.about.is_command()
            {
                deaf.extend(pending.tasks.iter().map(|task| {
                    (
                        *task,
                        GrantKey {
                            session: number,
                            task: task.tid,
                            object: pending.about.object(),
                        },
                    )
                }));
            }
            self.decide(&id, Word::of(Step::Rejected, false, DeciderKind::Session));
        }
        let since = std::time::Instant::now();
        while since.elapsed() < DISMISSAL {
            deaf.retain(|(task, key)| {
                !self.kernel.maps.is_used(key)
                    && std::path::Path::new(&format!("/proc/{}", task.pid)).exists()
            });
            if deaf.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.desk.take_given(|given| given.session == number);
    }

    /// A session is out of the kernel.
    pub(super) fn forget_approvals(&mut self, number: u32, id: &str) {
        self.kernel.maps.revoke_all(number);
        self.heard_soon.retain(|(key, _)| key.session != number);
        self.desk.forget(number);
        self.registry.remove_approvals(id);
    }

    pub(super) fn save_approvals(&self, number: u32) {
        let Some(live) = self.sessions.get(&number) else {
            return;
        };
        if !self.kernel.outlives_us() {
            return;
        }
        let papers = self.desk.papers(number);
        if let Err(error) = self.registry.write_approvals(live.id(), &papers) {
            tracing::error!(
                session = live.id(),
                error = format!("{error:#}"),
                "what waits cannot be written down: another daemon would have to ask again"
            );
        }
    }

    /// Takes over what an earlier daemon had been asked for a session, where it still waits.
    pub(super) fn resume_approvals(&mut self, number: u32, session: &str) {
        match self.registry.read_approvals(session) {
            Ok(Some(papers)) => {
                let ids: Vec<String> = papers.pending.iter().map(|it| it.id.clone()).collect();
                self.desk.restore(number, papers);
                // What the reviewer was asked by then, it was not heard to say.
                for id in ids {
                    self.consult(&id);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(
                session,
                error = format!("{error:#}"),
                "what was asked and granted before is not known: it is asked again"
            ),
        }
    }

    // What people say.

    fn may_decide(&self, peer: Peer, owner: u32) -> bool {
        if peer.is_root() {
            return true;
        }
        let rules = &self.deciders;
        if rules.owner && peer.uid == owner {
            return true;
        }
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(peer.uid)) else {
            return false;
        };
        if rules.users.contains(&user.name) {
            return true;
        }
        let Ok(name) = std::ffi::CString::new(user.name) else {
            return false;
        };
        let groups = getgrouplist(&name, user.gid).unwrap_or_default();
        groups.iter().any(|gid: &Gid| {
            Group::from_gid(*gid)
                .ok()
                .flatten()
                .is_some_and(|group| rules.groups.contains(&group.name))
        })
    }

    fn owner(&self, session: u32) -> u32 {
        self.sessions
            .get(&session)
            .map_or(u32::MAX, |live| live.uid)
    }

    pub(super) fn order_approvals(&mut self, peer: Peer) -> Response {
        let now = boottime_ns();
        let mut requests = Vec::new();
        let mut seen = Vec::new();
        for pending in self.desk.pending() {
            let Some(live) = self.sessions.get(&pending.session) else {
                continue;
            };
            if !self.may_decide(peer, live.uid) {
                continue;
            }
            let goal = live.subject.policy.task.goal.clone();
            let decided = self.desk.decided(pending.session);
            requests.push(pending.request(goal, live.uid, decided));
            if !pending.shown {
                seen.push(pending.id.clone());
            }
        }
        for id in seen {
            let told = self
                .desk
                .pending_mut()
                .find(|pending| pending.id == id)
                .map(|pending| {
                    pending.shown = true;
                    let mut step = pending.step(Step::Shown, now);
                    step.by = Some(person(peer.uid));
                    (pending.event.clone(), step)
                });
            if let Some((about, step)) = told {
                self.tell_step(&about, step);
            }
        }
        Response::Approvals { requests }
    }

    pub(super) fn order_decide(
        &mut self,
        peer: Peer,
        named: &str,
        extent: Option<Extent>,
        reason: Option<String>,
    ) -> Result<Response, Refusal> {
        if reason
            .as_ref()
            .is_some_and(|reason| reason.len() > LONGEST_REASON)
        {
            return Err(Refusal::new(format!(
                "the reason is longer than {LONGEST_REASON} bytes"
            )));
        }
        let found = self
            .desk
            .find(named, |pending| {
                self.may_decide(peer, self.owner(pending.session))
            })
            .map_err(|error| Refusal::new(format!("{error:#}")).hint("agentwatch approvals"))?;
        let id = found.id.clone();
        match extent {
            Some(extent) => self.approve(&id, extent, person(peer.uid), reason)?,
            None => {
                let mut word = Word::of(Step::Rejected, false, DeciderKind::User);
                word.by = person(peer.uid);
                word.reason = reason;
                self.decide(&id, word);
            }
        }
        Ok(Response::Done)
    }

    /// Lets an action that waits happen, as far as that is possible.
    pub(super) fn approve(
        &mut self,
        id: &str,
        extent: Extent,
        by: Decider,
        reason: Option<String>,
    ) -> Result<(), Refusal> {
        let Some(found) = self.desk.get(id) else {
            return Err(Refusal::new(format!("no request {id} waits")));
        };
        let mut word = Word::of(Step::Approved, true, by.kind);
        word.by = by;
        word.reason = reason;
        let (scope, until) = match extent {
            Extent::Once => {
                self.decide(id, word);
                return Ok(());
            }
            Extent::For { seconds } if seconds == 0 || seconds > LONGEST => {
                return Err(Refusal::new(
                    "an approval for a time is for at least a second and at most 30 days",
                ));
            }
            Extent::For { seconds } => (
                Scope::For,
                boottime_ns().saturating_add(seconds.saturating_mul(1_000_000_000)),
            ),
            Extent::Session => (Scope::Session, u64::MAX),
        };
        if let Some(why) = found.once_only() {
            return Err(
                Refusal::new(format!("this can only be approved once: {why}"))
                    .hint("agentwatch approve ID --once"),
            );
        }
        word.scope = Some(scope);
        word.until = until;
        let given = Given {
            id: id.to_owned(),
            session: found.session,
            about: found.about.clone(),
            rights: found.rights,
            scope,
            until,
            summary: found.summary(),
            by: word.by.clone(),
            reason: word.reason.clone(),
            event: found.event.clone(),
        };
        self.desk
            .give(given)
            .map_err(|error| Refusal::new(format!("{error:#}")).hint("agentwatch grants"))?;
        self.decide(id, word);
        Ok(())
    }

    pub(super) fn order_grants(&self, peer: Peer) -> Response {
        let grants = self
            .desk
            .given()
            .iter()
            .filter(|given| self.may_decide(peer, self.owner(given.session)))
            .map(|given| GrantRow {
                id: given.id.clone(),
                session: given.event.session.id.clone(),
                session_name: given.event.session.name.clone(),
                scope: given.scope,
                until: (given.scope == Scope::For).then(|| wall(given.until)),
                about: given.summary.clone(),
                by: given.by.clone(),
                reason: given.reason.clone(),
            })
            .collect();
        Response::Grants { grants }
    }

    pub(super) fn order_revoke(
        &mut self,
        peer: Peer,
        named: &str,
        reason: Option<String>,
    ) -> Result<Response, Refusal> {
        let mut found = self.desk.given().iter().filter(|given| {
            !named.is_empty()
                && given.id.starts_with(named)
                && self.may_decide(peer, self.owner(given.session))
        });
        let id = match (found.next(), found.next()) {
            (Some(given), None) => given.id.clone(),
            (Some(_), Some(_)) => {
                return Err(Refusal::new(format!(
                    "{named} is the beginning of several grants"
                )));
            }
            _ => {
                return Err(
                    Refusal::new(format!("no grant {named} holds")).hint("agentwatch grants")
                );
            }
        };
        for given in self.desk.take_given(|given| given.id == id) {
            self.take_back(given, person(peer.uid), reason.clone());
        }
        Ok(Response::Done)
    }

    /// A grant does not hold any more.
    pub(super) fn take_back(&mut self, given: Given, by: Decider, reason: Option<String>) {
        self.withdraw(&given);
        let step = Approval {
            id: given.id.clone(),
            step: Step::Revoked,
            action: given.event.kind,
            by: Some(by),
            scope: Some(given.scope),
            until: None,
            reason,
            finding: None,
            waited_ns: 0,
            tasks: 0,
            tries: 0,
        };
        self.tell_step(&given.event, step);
        self.save_approvals(given.session);
    }
}
