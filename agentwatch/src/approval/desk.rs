//! What waits, what was granted, and what became of both. Times are nanoseconds of CLOCK_BOOTTIME.

use std::collections::{HashMap, HashSet, VecDeque};

use agentwatch_common::{
    hold::{Hold, Object, object},
    limits,
};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    metrics::Metrics,
    model::{Ancestor, Request},
};
use crate::{
    event::{
        Event, Kind,
        host::wall,
        model::{Approval, Decider, RuleRef, Scope, Step},
    },
    policy::model::{Approvals, OnTimeout},
};

/// Grants beyond once that a session may have at the same time.
const GRANTS: usize = 256;
/// Decisions that are shown with the next request of a session.
const DECIDED: usize = 8;
/// Rejections that are remembered, of all sessions.
const REJECTED: usize = 4096;
/// Requests of a session are counted over this time.
const HOUR: u64 = 3600 * 1_000_000_000;
/// A command with longer arguments is not granted beforehand: the kernel compares no more.
const COMPARED: u64 = limits::NAME as u64;

/// What a request is about, as the kernel keys it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct About {
    pub kind: u32,
    pub dev: u32,
    pub inode: u64,
    pub detail: u64,
    /// Without the zeroes behind it.
    pub name: Vec<u8>,
}

impl About {
    pub fn of(object: &Object) -> Self {
        let len = object
            .name
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        Self {
            kind: object.kind,
            dev: object.dev,
            inode: object.inode,
            detail: object.detail,
            name: object.name[..len].to_vec(),
        }
    }

    pub fn object(&self) -> Object {
        let mut name = [0; limits::NAME];
        let len = self.name.len().min(limits::NAME);
        name[..len].copy_from_slice(&self.name[..len]);
        Object {
            kind: self.kind,
            dev: self.dev,
            inode: self.inode,
            detail: self.detail,
            name,
        }
    }

    pub fn is_command(&self) -> bool {
        self.kind == object::COMMAND
    }
}

/// A task that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub tid: u32,
    pub pid: u32,
    /// When its process started.
    pub start: u64,
    pub since: u64,
}

/// An action that waits, with every task that waits for the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pending {
    pub id: String,
    /// Number of the session.
    pub session: u32,
    pub about: About,
    pub rights: u32,
    /// The action of the first task, as it was recorded.
    pub event: Event,
    pub rule_text: String,
    pub ancestry: Vec<Ancestor>,
    pub before: Vec<String>,
    pub since: u64,
    pub deadline: u64,
    pub on_timeout: OnTimeout,
    pub tasks: Vec<Waiting>,
    pub tries: u64,
    pub finding: Option<String>,
    /// Why the reviewer leaves it to a person.
    #[serde(default)]
    pub review: Option<String>,
    /// Whether it has been told that somebody looked at it, and that a task tried to go on.
    pub shown: bool,
    pub urged: bool,
    /// Tries that were the daemon's own doing, and until when more of them are.
    pub excused: u64,
    pub excused_until: u64,
    /// Whether a command had to be stopped again, as a number.
    pub restarted: u64,
}

impl Pending {
    /// Why it cannot be granted beyond once.
    pub fn once_only(&self) -> Option<&'static str> {
        (self.about.is_command() && self.about.detail > COMPARED)
            .then_some("its arguments are too long to be compared with others")
    }

    pub fn rule(&self) -> Option<&RuleRef> {
        self.event.rule.as_ref()
    }

    /// What it is about, in a line.
    pub fn summary(&self) -> String {
        summary(&self.event)
    }

    /// A step of it.
    pub fn step(&self, step: Step, now: u64) -> Approval {
        Approval {
            id: self.id.clone(),
            step,
            action: self.event.kind,
            by: None,
            scope: None,
            until: None,
            reason: None,
            finding: None,
            waited_ns: now.saturating_sub(self.since),
            tasks: self.tasks.len() as u64,
            tries: self.tries,
        }
    }

    /// As people see it.
    pub fn request(&self, goal: Option<String>, uid: u32, decided: Vec<String>) -> Request {
        let event = &self.event;
        Request {
            id: self.id.clone(),
            session: event.session.id.clone(),
            session_name: event.session.name.clone(),
            goal,
            uid,
            action: event.kind,
            file: event.file.clone(),
            target: event.target.clone(),
            net: event.net.clone(),
            rule: event.rule.clone(),
            rule_text: self.rule_text.clone(),
            process: event.process.clone(),
            ancestry: self.ancestry.clone(),
            before: self.before.clone(),
            decided,
            since: wall(self.since),
            deadline: wall(self.deadline),
            on_timeout: match self.on_timeout {
                OnTimeout::Deny => "deny",
                OnTimeout::Allow => "allow",
            }
            .to_owned(),
            tasks: self.tasks.len() as u64,
            tries: self.tries,
            once_only: self.once_only().map(str::to_owned),
            finding: self.finding.clone(),
            review: self.review.clone(),
        }
    }
}

/// An action in a line: `open /etc/hosts (write)`, `exec git push`, `connect 192.0.2.7:443`.
pub fn summary(event: &Event) -> String {
    let mut text = event.kind.name().to_owned();
    let mut add = |part: &str| {
        text.push(' ');
        text.push_str(part);
    };
    if event.kind == Kind::Exec
        && let Some(process) = &event.process
        && !process.argv.is_empty()
    {
        add(&process.argv.join(" "));
        return text;
    }
    if let Some(file) = &event.file {
        add(&file.path);
        if let Some(target) = &event.target {
            add("to");
            add(&target.path);
        }
        if event.kind == Kind::Open && !file.access.is_empty() {
            add(&format!("({})", file.access.join(", ")));
        }
    }
    if let Some(net) = &event.net {
        match (&net.addr, net.port, &net.path) {
            (Some(addr), Some(port), _) if addr.contains(':') => add(&format!("[{addr}]:{port}")),
            (Some(addr), Some(port), _) => add(&format!("{addr}:{port}")),
            (_, _, Some(path)) => add(path),
            _ => {}
        }
    }
    text
}

/// A grant beyond once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Given {
    pub id: String,
    pub session: u32,
    pub about: About,
    pub rights: u32,
    pub scope: Scope,
    /// `u64::MAX` for the session.
    pub until: u64,
    pub summary: String,
    pub by: Decider,
    pub reason: Option<String>,
    /// Rule and session, for the event of its end.
    pub event: Event,
}

/// Everything that another daemon has to know of a session to go on where this one stopped.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Papers {
    pub pending: Vec<Pending>,
    pub given: Vec<Given>,
    /// What was rejected, with the rights that were asked for.
    pub rejected: Vec<(About, u32)>,
    /// When something was asked within the last hour.
    pub asked: Vec<u64>,
    /// What was decided, for people.
    pub decided: Vec<String>,
}

impl Papers {
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
            && self.given.is_empty()
            && self.rejected.is_empty()
            && self.asked.is_empty()
            && self.decided.is_empty()
    }
}

/// What was said to a task, until it is known to have heard it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub pending: Pending,
    pub task: Waiting,
    pub at: u64,
    pub allowed: bool,
    pub resumed: bool,
}

/// Where an action that waits was filed.
#[derive(Debug, PartialEq, Eq)]
pub enum Filed {
    New(String),
    /// The same as one that waits already.
    Joined(String),
    /// There are too many: by which limit.
    Over(&'static str),
}

/// Everything that is known of an action that has begun to wait.
pub struct Asked<'a> {
    pub hold: &'a Hold,
    pub event: Event,
    pub limits: Approvals,
    pub rule_text: String,
    pub ancestry: Vec<Ancestor>,
    pub before: Vec<String>,
}

#[derive(Default)]
pub struct Desk {
    pending: Vec<Pending>,
    given: Vec<Given>,
    /// Times of a session's requests within the last hour.
    asked: HashMap<u32, VecDeque<u64>>,
    rejected: HashSet<(u32, About, u32)>,
    decided: HashMap<u32, VecDeque<String>>,
    answers: HashMap<u32, Answer>,
    metrics: Metrics,
}

impl Desk {
    /// Files an action that waits.
    pub fn file(&mut self, asked: Asked<'_>, now: u64) -> Filed {
        let hold = asked.hold;
        let session = hold.key.session;
        let about = About::of(&hold.key.object);
        let task = Waiting {
            tid: hold.tid,
            pid: hold.pid,
            start: hold.start,
            since: hold.since,
        };
        // A task waits for one thing at a time.
        self.answers.remove(&task.tid);
        for pending in &mut self.pending {
            pending
                .tasks
                .retain(|other| other.tid != task.tid || other.since == task.since);
        }
        if let Some(pending) = self.pending.iter_mut().find(|pending| {
            pending.session == session && pending.about == about && pending.rights == hold.rights
        }) {
            if !pending.tasks.contains(&task) {
                pending.tasks.push(task);
            }
            return Filed::Joined(pending.id.clone());
        }
        let waiting = self.of_session(session).count();
        if waiting >= asked.limits.max_pending as usize {
            return Filed::Over("max_pending");
        }
        let times = self.asked.entry(session).or_default();
        while times.front().is_some_and(|time| time + HOUR < now) {
            times.pop_front();
        }
        if times.len() >= asked.limits.max_per_hour as usize {
            return Filed::Over("max_per_hour");
        }
        times.push_back(now);
        let repeated = self
            .rejected
            .contains(&(session, about.clone(), hold.rights));
        let id = self.new_id();
        self.pending.push(Pending {
            id: id.clone(),
            session,
            about,
            rights: hold.rights,
            event: asked.event,
            rule_text: asked.rule_text,
            ancestry: asked.ancestry,
            before: asked.before,
            since: hold.since,
            deadline: hold
                .since
                .saturating_add(asked.limits.timeout.saturating_mul(1_000_000_000)),
            on_timeout: asked.limits.on_timeout,
            tasks: vec![task],
            tries: 0,
            finding: repeated.then(|| "repeated_after_rejection".to_owned()),
            review: None,
            shown: false,
            urged: false,
            excused: 0,
            excused_until: 0,
            restarted: 0,
        });
        Filed::New(id)
    }

    /// Eight characters that no other request or grant begins with.
    fn new_id(&self) -> String {
        loop {
            // The end of such an id is random.
            let id = uuid::Uuid::now_v7().simple().to_string()[24..].to_owned();
            let taken = self.pending.iter().any(|pending| pending.id == id)
                || self.given.iter().any(|given| given.id == id);
            if !taken {
                return id;
            }
        }
    }

    pub fn pending(&self) -> impl Iterator<Item = &Pending> {
        self.pending.iter()
    }

    pub fn pending_mut(&mut self) -> impl Iterator<Item = &mut Pending> {
        self.pending.iter_mut()
    }

    pub fn of_session(&self, session: u32) -> impl Iterator<Item = &Pending> {
        self.pending
            .iter()
            .filter(move |pending| pending.session == session)
    }

    pub fn get(&self, id: &str) -> Option<&Pending> {
        self.pending.iter().find(|pending| pending.id == id)
    }

    /// The request that a person means by an id or the beginning of one.
    ///
    /// # Errors
    /// Where there is none, or more than one.
    pub fn find(&self, named: &str, may: impl Fn(&Pending) -> bool) -> Result<&Pending> {
        let mut found = self
            .pending
            .iter()
            .filter(|pending| !named.is_empty() && pending.id.starts_with(named) && may(pending));
        match (found.next(), found.next()) {
            (Some(pending), None) => Ok(pending),
            (Some(_), Some(_)) => bail!("{named} is the beginning of several requests"),
            _ => bail!("no request {named} waits"),
        }
    }

    /// Takes a request off the desk, to be decided.
    pub fn take(&mut self, id: &str) -> Option<Pending> {
        let at = self.pending.iter().position(|pending| pending.id == id)?;
        Some(self.pending.remove(at))
    }

    /// Requests that nobody has decided in time.
    pub fn due(&self, now: u64) -> Vec<String> {
        self.pending
            .iter()
            .filter(|pending| pending.deadline <= now)
            .map(|pending| pending.id.clone())
            .collect()
    }

    /// Remembers what was said, for the next request and for the tasks that are to hear it.
    pub fn answered(&mut self, pending: &Pending, allowed: bool, how: &str, now: u64) {
        let list = self.decided.entry(pending.session).or_default();
        if list.len() >= DECIDED {
            list.pop_front();
        }
        list.push_back(format!("{how}: {}", pending.summary()));
        let key = (pending.session, pending.about.clone(), pending.rights);
        if allowed {
            self.rejected.remove(&key);
        } else if self.rejected.len() < REJECTED {
            self.rejected.insert(key);
        }
        for task in &pending.tasks {
            self.answers.insert(
                task.tid,
                Answer {
                    pending: pending.clone(),
                    task: *task,
                    at: now,
                    allowed,
                    resumed: false,
                },
            );
        }
    }

    /// The tasks of a process were told to go on: those that wait for something else are parked again.
    pub fn excuse(&mut self, pid: u32, until: u64) {
        for pending in &mut self.pending {
            if pending.tasks.iter().any(|task| task.pid == pid) {
                pending.excused_until = until;
            }
        }
    }

    /// What was decided for a session before.
    pub fn decided(&self, session: u32) -> Vec<String> {
        self.decided
            .get(&session)
            .map(|list| list.iter().cloned().collect())
            .unwrap_or_default()
    }

    pub fn answers(&mut self) -> &mut HashMap<u32, Answer> {
        &mut self.answers
    }

    /// Remembers a grant beyond once.
    ///
    /// # Errors
    /// Where the session has too many.
    pub fn give(&mut self, given: Given) -> Result<()> {
        let of_session = self
            .given
            .iter()
            .filter(|other| other.session == given.session)
            .count();
        if of_session >= GRANTS {
            bail!("the session has {GRANTS} grants already");
        }
        // Of the same thing the last word holds.
        self.given.retain(|other| {
            other.session != given.session
                || other.about != given.about
                || other.rights != given.rights
        });
        self.given.push(given);
        Ok(())
    }

    pub fn given(&self) -> &[Given] {
        &self.given
    }

    /// Takes grants back.
    pub fn take_given(&mut self, which: impl Fn(&Given) -> bool) -> Vec<Given> {
        let (taken, left) = std::mem::take(&mut self.given)
            .into_iter()
            .partition(|given| which(given));
        self.given = left;
        taken
    }

    /// What is on the desk of a session.
    pub fn papers(&self, session: u32) -> Papers {
        Papers {
            pending: self.of_session(session).cloned().collect(),
            given: self
                .given
                .iter()
                .filter(|given| given.session == session)
                .cloned()
                .collect(),
            rejected: self
                .rejected
                .iter()
                .filter(|(number, ..)| *number == session)
                .map(|(_, about, rights)| (about.clone(), *rights))
                .collect(),
            asked: self
                .asked
                .get(&session)
                .map(|times| times.iter().copied().collect())
                .unwrap_or_default(),
            decided: self.decided(session),
        }
    }

    /// Puts back what an earlier daemon had on its desk.
    pub fn restore(&mut self, session: u32, papers: Papers) {
        self.pending.extend(papers.pending);
        self.given.extend(papers.given);
        self.rejected.extend(
            papers
                .rejected
                .into_iter()
                .map(|(about, rights)| (session, about, rights)),
        );
        self.asked.entry(session).or_default().extend(papers.asked);
        self.decided
            .entry(session)
            .or_default()
            .extend(papers.decided);
    }

    /// A session has ended.
    pub fn forget(&mut self, session: u32) {
        self.asked.remove(&session);
        self.decided.remove(&session);
        self.rejected.retain(|(number, ..)| *number != session);
        self.answers
            .retain(|_, answer| answer.pending.session != session);
    }

    pub fn count(&mut self, event: &Event) {
        if let Some(step) = &event.approval {
            let rule = event.rule.as_ref().map_or("", |rule| rule.id.as_str());
            self.metrics.count(&event.session.policy, rule, step);
        }
    }

    pub fn metrics(&self) -> Metrics {
        Metrics {
            pending: self.pending.len() as u64,
            grants: self.given.len() as u64,
            ..self.metrics.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use agentwatch_common::hold::GrantKey;

    use super::*;
    use crate::event::samples::sample;

    const SECOND: u64 = 1_000_000_000;

    fn about(port: u16) -> Object {
        let mut name = [0; limits::NAME];
        name[..4].copy_from_slice(&[10, 11, 198, 51]);
        Object {
            kind: object::ADDRESS,
            dev: 0,
            inode: 0,
            detail: u64::from(port),
            name,
        }
    }

    fn hold(session: u32, tid: u32, object: Object, since: u64) -> Hold {
        Hold {
            key: GrantKey {
                session,
                task: 0,
                object,
            },
            rights: 1,
            what: 0,
            rule: 0,
            policy: session,
            pid: tid,
            tid,
            since,
            start: 5,
            tries: 0,
        }
    }

    fn file(desk: &mut Desk, hold: &Hold, limits: Approvals) -> Filed {
        let asked = Asked {
            hold,
            event: sample(Kind::Connect),
            limits,
            rule_text: String::new(),
            ancestry: Vec::new(),
            before: Vec::new(),
        };
        desk.file(asked, hold.since)
    }

    fn new(desk: &mut Desk, hold: &Hold) -> String {
        match file(desk, hold, Approvals::default()) {
            Filed::New(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn given(session: u32, port: u16, until: u64) -> Given {
        Given {
            id: format!("{session}-{port}"),
            session,
            about: About::of(&about(port)),
            rights: 1,
            scope: Scope::For,
            until,
            summary: String::new(),
            by: Decider {
                kind: crate::event::model::DeciderKind::User,
                uid: Some(0),
                name: None,
            },
            reason: None,
            event: sample(Kind::Connect),
        }
    }

    #[test]
    fn objects_survive_being_written_down() {
        for port in [0, 443] {
            assert_eq!(About::of(&about(port)).object(), about(port));
        }
        let mut full = about(1);
        full.name = [7; limits::NAME];
        assert_eq!(About::of(&full).object(), full);
    }

    #[test]
    fn the_same_is_one_request() {
        let mut desk = Desk::default();
        let id = new(&mut desk, &hold(1, 10, about(443), 5));
        let again = file(&mut desk, &hold(1, 11, about(443), 6), Approvals::default());
        assert_eq!(again, Filed::Joined(id.clone()));
        // A task that is told of twice is one.
        file(&mut desk, &hold(1, 11, about(443), 6), Approvals::default());
        assert_eq!(desk.get(&id).map(|it| it.tasks.len()), Some(2));
        // Another object, another session, other rights are others.
        new(&mut desk, &hold(1, 12, about(80), 7));
        new(&mut desk, &hold(2, 13, about(443), 8));
        let mut writes = hold(1, 14, about(443), 9);
        writes.rights = 2;
        new(&mut desk, &writes);
        assert_eq!(desk.pending().count(), 4);
        assert_eq!(desk.metrics().pending, 4);
        assert_eq!(desk.of_session(1).count(), 3);
    }

    #[test]
    fn a_task_waits_for_one_thing_at_a_time() {
        let mut desk = Desk::default();
        let first = new(&mut desk, &hold(1, 10, about(443), 5));
        let second = new(&mut desk, &hold(1, 10, about(80), 6));
        assert_eq!(desk.get(&first).map(|it| it.tasks.len()), Some(0));
        assert_eq!(desk.get(&second).map(|it| it.tasks.len()), Some(1));
    }

    #[test]
    fn sessions_have_so_many_requests_and_no_more() {
        let mut desk = Desk::default();
        let limits = Approvals {
            max_pending: 2,
            max_per_hour: 3,
            ..Approvals::default()
        };
        for port in 0..2 {
            let filed = file(
                &mut desk,
                &hold(1, 10 + u32::from(port), about(port), 5),
                limits,
            );
            assert!(matches!(filed, Filed::New(_)), "{filed:?}");
        }
        let over = hold(1, 20, about(2), 6);
        assert_eq!(file(&mut desk, &over, limits), Filed::Over("max_pending"));
        // The same as one that waits is no further one.
        let joins = hold(1, 21, about(1), 6);
        assert!(matches!(file(&mut desk, &joins, limits), Filed::Joined(_)));
        // Another session has its own.
        let other = hold(2, 22, about(2), 6);
        assert!(matches!(file(&mut desk, &other, limits), Filed::New(_)));
        let ids: Vec<String> = desk.of_session(1).map(|it| it.id.clone()).collect();
        for id in ids {
            desk.take(&id);
        }
        let third = hold(1, 23, about(3), 7);
        assert!(matches!(file(&mut desk, &third, limits), Filed::New(_)));
        let fourth = hold(1, 24, about(4), 8);
        assert_eq!(
            file(&mut desk, &fourth, limits),
            Filed::Over("max_per_hour")
        );
        let later = hold(1, 24, about(4), 7 + 3601 * SECOND);
        assert!(matches!(file(&mut desk, &later, limits), Filed::New(_)));
    }

    #[test]
    fn requests_are_found_by_their_beginning() {
        let mut desk = Desk::default();
        let id = new(&mut desk, &hold(1, 10, about(443), 5));
        assert_eq!(
            desk.find(&id[..4], |_| true).map(|it| it.id.clone()).ok(),
            Some(id.clone())
        );
        assert!(desk.find("", |_| true).is_err());
        assert!(desk.find("zzzz", |_| true).is_err());
        assert!(
            desk.find(&id, |_| false).is_err(),
            "one that is not to be seen"
        );
        let mut twin = desk.get(&id).expect("it waits").clone();
        twin.id = format!("{}zzzz", &id[..4]);
        let papers = Papers {
            pending: vec![twin],
            ..Papers::default()
        };
        desk.restore(1, papers);
        let several = desk.find(&id[..4], |_| true).map(drop).unwrap_err();
        assert!(several.to_string().contains("several"), "{several}");
    }

    #[test]
    fn what_was_rejected_is_known_again() {
        let mut desk = Desk::default();
        let id = new(&mut desk, &hold(1, 10, about(443), 5));
        let pending = desk.take(&id).expect("it waits");
        desk.answered(&pending, false, "rejected", 6);
        assert_eq!(desk.answers().len(), 1);
        assert_eq!(desk.decided(1), ["rejected: connect 192.0.2.7:443"]);
        // The task has come back: the old answer is not for what it asks now.
        let id = new(&mut desk, &hold(1, 10, about(443), 7));
        assert!(desk.answers().is_empty());
        let pending = desk.take(&id).expect("it waits");
        assert_eq!(pending.finding.as_deref(), Some("repeated_after_rejection"));
        desk.answered(&pending, true, "approved", 8);
        let id = new(&mut desk, &hold(1, 10, about(443), 9));
        assert_eq!(desk.get(&id).and_then(|it| it.finding.clone()), None);
        desk.take(&id);
        desk.forget(1);
        assert!(desk.decided(1).is_empty() && desk.answers().is_empty());
    }

    #[test]
    fn another_desk_knows_what_was_asked_and_said() {
        let mut desk = Desk::default();
        assert!(desk.papers(1).is_empty());
        let limits = Approvals {
            max_per_hour: 3,
            ..Approvals::default()
        };
        for (tid, port) in [(10, 443), (11, 80)] {
            let id = new(&mut desk, &hold(1, tid, about(port), 5));
            let pending = desk.take(&id).expect("it waits");
            desk.answered(&pending, port == 80, "decided", 6);
        }
        new(&mut desk, &hold(1, 12, about(7), 7));
        new(&mut desk, &hold(2, 13, about(443), 7));
        desk.give(given(1, 80, 9)).expect("there is room");
        let json = serde_json::to_vec(&desk.papers(1)).expect("JSON");
        let papers: Papers = serde_json::from_slice(&json).expect("the same");
        assert_eq!((papers.pending.len(), papers.given.len()), (1, 1));
        assert_eq!(papers.rejected, [(About::of(&about(443)), 1)]);
        let mut desk = Desk::default();
        desk.restore(1, papers);
        assert_eq!(desk.decided(1).len(), 2);
        // Three were asked within the hour: there is no fourth.
        let fourth = hold(1, 14, about(9), 8);
        assert_eq!(
            file(&mut desk, &fourth, limits),
            Filed::Over("max_per_hour")
        );
        let again = new(&mut desk, &hold(1, 14, about(443), 8));
        assert_eq!(
            desk.get(&again).and_then(|it| it.finding.as_deref()),
            Some("repeated_after_rejection")
        );
        desk.forget(1);
        assert!(desk.papers(1).rejected.is_empty());
    }

    #[test]
    fn requests_are_due_at_their_deadline() {
        let mut desk = Desk::default();
        let limits = Approvals {
            timeout: 10,
            ..Approvals::default()
        };
        file(&mut desk, &hold(1, 10, about(443), 5), limits);
        assert!(desk.due(10 * SECOND).is_empty());
        assert_eq!(desk.due(10 * SECOND + 5).len(), 1);
        // The longest time there is does not run over.
        let limits = Approvals {
            timeout: u64::MAX,
            ..limits
        };
        file(&mut desk, &hold(2, 11, about(443), 5), limits);
        assert_eq!(desk.due(u64::MAX - 1).len(), 1);
    }

    #[test]
    fn long_commands_are_granted_once_only() {
        let mut desk = Desk::default();
        let mut command = about(0);
        command.kind = object::COMMAND;
        command.detail = COMPARED;
        let short = new(&mut desk, &hold(1, 10, command, 5));
        command.detail = COMPARED + 1;
        let long = new(&mut desk, &hold(1, 11, command, 5));
        assert_eq!(desk.get(&short).and_then(Pending::once_only), None);
        assert!(desk.get(&long).and_then(Pending::once_only).is_some());
    }

    #[test]
    fn grants_are_bounded_and_replaced() {
        let mut desk = Desk::default();
        for port in 0..GRANTS as u16 {
            desk.give(given(1, port, 5)).expect("there is room");
        }
        assert!(desk.give(given(1, 9999, 5)).is_err());
        desk.give(given(2, 1, 5))
            .expect("another session has its own");
        desk.take_given(|given| given.session == 1 && given.id != "1-7");
        desk.give(given(1, 7, 9)).expect("there is room again");
        let of_one: Vec<u64> = desk
            .given()
            .iter()
            .filter(|given| given.session == 1)
            .map(|given| given.until)
            .collect();
        assert_eq!(of_one, [9], "the last word holds");
        assert_eq!(desk.metrics().grants, 2);
    }

    #[test]
    fn summaries_are_a_line() {
        assert_eq!(summary(&sample(Kind::Connect)), "connect 192.0.2.7:443");
        assert!(summary(&sample(Kind::Exec)).starts_with("exec "));
        let mut event = sample(Kind::Connect);
        if let Some(net) = &mut event.net {
            net.addr = Some("2001:db8::7".to_owned());
        }
        assert_eq!(summary(&event), "connect [2001:db8::7]:443");
    }
}
