//! The reviewer's part in decisions: what it is asked about, and what comes of its word.
//!
//! It is never asked about what a managed rule holds, nor about what was rejected before: those are for people.

use super::{
    Engine,
    approve::{Word, reviewer},
};
use crate::{
    approval::{Opinion, Pending},
    daemon::review::Reviewed,
    event::{
        host::boottime_ns,
        model::{DeciderKind, Layer, Step},
    },
    wire::control::Extent,
};

/// Whether only people decide on it.
fn is_for_people(pending: &Pending) -> bool {
    pending
        .rule()
        .is_none_or(|rule| rule.layer == Layer::Managed)
}

impl Engine {
    /// Asks the reviewer about a request, where there is one and it may be asked.
    pub(super) fn consult(&mut self, id: &str) {
        let Some(pending) = self.desk.get(id) else {
            return;
        };
        let Some(live) = self.sessions.get(&pending.session) else {
            return;
        };
        if self.reviewer.is_none() || pending.review.is_some() || is_for_people(pending) {
            return;
        }
        let asked = if pending.finding.is_some() {
            Err("the same was rejected before")
        } else {
            let request = pending.request(
                live.subject.policy.task.goal.clone(),
                live.uid,
                self.desk.decided(pending.session),
            );
            match &mut self.reviewer {
                Some(reviewer) => reviewer.ask(request),
                None => Ok(()),
            }
        };
        if let Err(reason) = asked {
            self.escalate(id, reason.to_owned());
        }
    }

    /// The reviewer has said something.
    pub(super) fn reviewed(&mut self, reviewed: Reviewed) {
        let Reviewed { id, opinion } = reviewed;
        // A person may have been quicker, the action is over, or its policy was exchanged.
        let Some(pending) = self.desk.get(&id) else {
            return;
        };
        if is_for_people(pending) || pending.review.is_some() {
            return;
        }
        let by = reviewer(self.reviewer.as_ref().map(|reviewer| reviewer.name.clone()));
        let (extent, reason) = match opinion {
            Opinion::Escalate { reason } => return self.escalate(&id, reason),
            Opinion::Reject { reason } => {
                let mut word = Word::of(Step::Rejected, false, DeciderKind::Reviewer);
                word.by = by;
                word.reason = reason;
                return self.decide_by_itself(&id, word);
            }
            Opinion::Approve {
                seconds: None,
                reason,
            } => (Extent::Once, reason),
            Opinion::Approve {
                seconds: Some(seconds),
                reason,
            } => (Extent::For { seconds }, reason),
        };
        if let Err(refusal) = self.approve(&id, extent, by, reason) {
            self.escalate(&id, refusal.to_string());
        }
    }

    /// The policy of a session is exchanged: what the reviewer has granted may be a managed rule's now, and so may what it is being
    /// asked about.
    pub(super) fn distrust_reviewer(&mut self, number: u32) {
        let ids: Vec<String> = self
            .desk
            .of_session(number)
            .filter(|pending| pending.review.is_none())
            .map(|pending| pending.id.clone())
            .collect();
        if self.reviewer.is_some() {
            for id in ids {
                self.escalate(&id, "the policy was exchanged".to_owned());
            }
        }
        let given = self
            .desk
            .take_given(|given| given.session == number && given.by.kind == DeciderKind::Reviewer);
        for given in given {
            self.take_back(
                given,
                reviewer(None),
                Some("the policy was exchanged".to_owned()),
            );
        }
    }

    /// Leaves a request to a person, and says why.
    fn escalate(&mut self, id: &str, reason: String) {
        let by = reviewer(self.reviewer.as_ref().map(|reviewer| reviewer.name.clone()));
        let Some(pending) = self.desk.pending_mut().find(|pending| pending.id == id) else {
            return;
        };
        pending.review = Some(reason.clone());
        let mut step = pending.step(Step::Escalated, boottime_ns());
        step.by = Some(by);
        step.reason = Some(reason);
        let (about, session) = (pending.event.clone(), pending.session);
        self.tell_step(&about, step);
        self.save_approvals(session);
    }
}
