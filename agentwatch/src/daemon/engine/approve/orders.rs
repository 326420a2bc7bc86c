//! What people order: who may decide, what they are shown, and what comes of their word.

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::Word;
use crate::{
    approval::{Given, LONGEST_REASON, model::GrantRow},
    daemon::{
        control::Peer,
        engine::{Engine, orders::Refusal},
    },
    event::{
        host::{boottime_ns, wall},
        model::{Approval, Decider, DeciderKind, Scope, Step},
    },
    wire::control::{Extent, Response},
};

/// The longest approval for a time, in seconds: 30 days.
const LONGEST: u64 = 30 * 24 * 3600;

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

impl Engine {
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

    pub(in crate::daemon::engine) fn order_approvals(&mut self, peer: Peer) -> Response {
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

    pub(in crate::daemon::engine) fn order_decide(
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
                self.decide(&id, word)?;
            }
        }
        Ok(Response::Done)
    }

    /// Lets an action that waits happen, as far as that is possible.
    pub(in crate::daemon::engine) fn approve(
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
                return Ok(self.decide(id, word)?);
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
        if let Err(error) = self.decide(id, word) {
            for given in self.desk.take_given(|given| given.id == id) {
                self.withdraw(&given);
            }
            return Err(error.into());
        }
        Ok(())
    }

    pub(in crate::daemon::engine) fn order_grants(&self, peer: Peer) -> Response {
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

    pub(in crate::daemon::engine) fn order_revoke(
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
    pub(in crate::daemon::engine) fn take_back(
        &mut self,
        given: Given,
        by: Decider,
        reason: Option<String>,
    ) {
        self.withdraw(&given);
        let step = Approval {
            id: given.id.clone(),
            by: Some(by),
            scope: Some(given.scope),
            reason,
            ..Approval::bare(Step::Revoked, given.event.kind)
        };
        self.tell_step(&given.event, step);
        self.save_approvals(given.session);
    }
}
