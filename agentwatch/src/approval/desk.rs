//! What waits, what was granted, and what became of both. Times are nanoseconds of CLOCK_BOOTTIME.

mod papers;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use agentwatch_common::hold::Hold;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    metrics::Metrics,
    model::Ancestor,
    pending::{About, Pending, Waiting},
};
use crate::{
    event::{
        Event,
        model::{Decider, Scope},
    },
    policy::model::Approvals,
};
pub use papers::Papers;

/// Grants beyond once that a session may have at the same time.
const GRANTS: usize = 256;
/// Decisions that are shown with the next request of a session.
const DECIDED: usize = 8;
/// Rejections of a session that are remembered.
const REJECTED: usize = 4096;
/// Requests of a session are counted over this time.
const HOUR: u64 = 3600 * 1_000_000_000;
/// After which time what could not be said is said again, in nanoseconds.
const AGAIN: u64 = 5 * 1_000_000_000;

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

/// What was said to a task, until it is known to have heard it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Many tasks may have waited for the same.
    pub pending: Arc<Pending>,
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
    /// What was rejected to a session, with the rights that were asked for.
    rejected: HashMap<u32, HashSet<(About, u32)>>,
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
        // A task waits for one thing at a time. What was said to it before may be for the same system call: that is `Told`'s.
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
            .get(&session)
            .is_some_and(|rejected| rejected.contains(&(about.clone(), hold.rights)));
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

    /// Puts a request back that was decided in vain, to be decided again. That it is late is not found out at once.
    pub fn put_back(&mut self, mut pending: Pending, now: u64) {
        pending.deadline = pending.deadline.max(now + AGAIN);
        self.pending.push(pending);
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
    pub fn answered(&mut self, pending: &Arc<Pending>, allowed: bool, how: &str, now: u64) {
        let list = self.decided.entry(pending.session).or_default();
        if list.len() >= DECIDED {
            list.pop_front();
        }
        list.push_back(format!("{how}: {}", pending.summary()));
        let rejected = self.rejected.entry(pending.session).or_default();
        let key = (pending.about.clone(), pending.rights);
        if allowed {
            rejected.remove(&key);
        } else if rejected.len() < REJECTED {
            rejected.insert(key);
        }
        for task in &pending.tasks {
            self.answers.insert(
                task.tid,
                Answer {
                    pending: Arc::clone(pending),
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

    /// A session has ended.
    pub fn forget(&mut self, session: u32) {
        self.asked.remove(&session);
        self.decided.remove(&session);
        self.rejected.remove(&session);
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
