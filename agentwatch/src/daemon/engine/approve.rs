//! Actions that wait: from the kernel's word that a task is parked to a person's word that it may go on. What is asked and decided
//! is kept by `approval::Desk`; here it meets the kernel (`parked`), the processes (`tasks`), people (`orders`), and the disk (`papers`).

mod orders;
mod papers;
mod parked;
mod tasks;

use std::sync::Arc;

use agentwatch_common::{
    hold::{Grant, GrantKey},
    policy::effect,
};
use anyhow::Result;

use super::Engine;
use crate::{
    approval::{Given, Pending},
    event::{
        Event, Kind,
        host::{boottime_ns, wall},
        model::{Approval, Decider, DeciderKind, Scope, Step},
    },
    policy::model::OnTimeout,
};

/// Who decides, and what.
pub(super) struct Word {
    step: Step,
    allowed: bool,
    pub by: Decider,
    scope: Option<Scope>,
    until: u64,
    pub reason: Option<String>,
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
        }
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

    /// Carries out a decision. One that the kernel does not take is none: the request stays.
    ///
    /// # Errors
    /// When no task, or not every task, could be told.
    pub(super) fn decide(&mut self, id: &str, word: Word) -> Result<()> {
        let Some(mut pending) = self.desk.take(id) else {
            return Ok(());
        };
        let now = boottime_ns();
        // Before who waits goes on, and comes to the next of the same. Who asked for it takes it back where this fails.
        if word.allowed && matches!(word.scope, Some(Scope::For | Scope::Session)) {
            self.grant_until(&pending, word.until);
        }
        let mut deaf = Vec::new();
        let mut outcome = Ok(());
        for task in &pending.tasks {
            let key = GrantKey {
                session: pending.session,
                task: task.tid,
                object: pending.about.object(),
            };
            if let Err(error) = self.say(key, pending.rights, *task, word.allowed) {
                deaf.push(*task);
                outcome = Err(error);
            }
        }
        if let Err(error) = &outcome {
            tracing::error!(
                session = pending.event.session.id,
                id,
                tasks = deaf.len(),
                error = format!("{error:#}"),
                "what was decided does not reach the kernel, and tasks wait on; hint: decide again, or kill the processes"
            );
            let heard = !deaf.is_empty() && deaf.len() < pending.tasks.len();
            pending.tasks.retain(|task| heard && !deaf.contains(task));
            let waits_on = Pending {
                tasks: deaf,
                ..pending.clone()
            };
            self.desk.put_back(waits_on, now);
            if !heard {
                return outcome;
            }
        }
        let pending = Arc::new(pending);
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
        outcome
    }

    /// Decides where nobody is told how that went; what went wrong is in the log, and is tried again.
    pub(super) fn decide_by_itself(&mut self, id: &str, word: Word) {
        let _ = self.decide(id, word);
    }

    /// Lets a session do until then what a request is about, whichever of its tasks does.
    fn grant_until(&mut self, pending: &Pending, until: u64) {
        let key = GrantKey {
            session: pending.session,
            task: 0,
            object: pending.about.object(),
        };
        // One grant has all that was granted of the same thing, for as long at least.
        let rights = self
            .desk
            .given()
            .iter()
            .filter(|given| {
                given.session == key.session
                    && given.about.object() == key.object
                    && given.until >= until
            })
            .fold(pending.rights, |rights, given| rights | given.rights);
        let grant = Grant {
            effect: u32::from(effect::ALLOW),
            rights,
            until,
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

    /// Looks after everything that waits: what is over, what is late, what nobody has told of.
    pub(super) fn look_after_approvals(&mut self, thoroughly: bool) {
        let now = boottime_ns();
        self.look_after_tasks(now);
        for number in std::mem::take(&mut self.unsaved) {
            self.save_approvals(number);
        }
        for id in self.desk.due(now) {
            let Some(pending) = self.desk.get(&id) else {
                continue;
            };
            let allowed = pending.on_timeout == OnTimeout::Allow;
            self.decide_by_itself(&id, Word::of(Step::Expired, allowed, DeciderKind::Timeout));
        }
        self.look_after_answers(now);
        if thoroughly {
            for (id, word) in self.granted_meanwhile(now) {
                self.decide_by_itself(&id, word);
            }
            for given in self.desk.take_given(|given| given.until <= now) {
                self.withdraw(&given);
                self.save_approvals(given.session);
            }
            self.find_untold(now);
        }
    }

    /// The words on requests of who began to wait in the moment in which the same was being granted to the session.
    fn granted_meanwhile(&self, now: u64) -> Vec<(String, Word)> {
        let word = |given: &Given| {
            let mut word = Word::of(Step::Approved, true, given.by.kind);
            word.by = given.by.clone();
            word.reason.clone_from(&given.reason);
            word
        };
        self.desk
            .given()
            .iter()
            .filter(|given| given.until > now)
            .flat_map(|given| {
                let covers = move |pending: &&Pending| {
                    pending.about == given.about && given.rights & pending.rights == pending.rights
                };
                let pending = self.desk.of_session(given.session).filter(covers);
                pending.map(move |pending| (pending.id.clone(), word(given)))
            })
            .filter(|(id, _)| {
                // The kernel has the last word on what is granted.
                let Some(pending) = self.desk.get(id) else {
                    return false;
                };
                let key = GrantKey {
                    session: pending.session,
                    task: 0,
                    object: pending.about.object(),
                };
                self.kernel.maps.granted(&key).is_some_and(|grant| {
                    grant.rights & pending.rights == pending.rights && grant.until > now
                })
            })
            .collect()
    }

    fn withdraw(&mut self, given: &Given) {
        self.kernel.maps.revoke(&GrantKey {
            session: given.session,
            task: 0,
            object: given.about.object(),
        });
    }
}
