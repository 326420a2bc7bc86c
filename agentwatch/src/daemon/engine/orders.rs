//! What the command line asks for.

use std::{
    collections::BTreeMap, os::unix::fs::MetadataExt as _, path::Path, sync::atomic::Ordering,
};

use agentwatch_common::limits;

use super::{Engine, live::Live, policies, start::Plan};
use crate::{
    approval::metrics::Metrics,
    daemon::{
        control::{Asker, Peer},
        launch::Origin,
    },
    event::Mode,
    session::{cgroup, watch::Watch},
    wire::control::{PolicyText, Request, Response, Status},
};

/// Arguments of a session's command that are kept, in bytes; as many as of any execution.
const LONGEST_COMMAND: usize = limits::ARGV;

/// Why an order is not obeyed.
#[derive(Debug)]
pub struct Refusal {
    message: String,
    hint: Option<String>,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl Engine {
    pub(super) fn obey(&mut self, peer: Peer, asker: &Asker, request: Request) -> Response {
        let result = match request {
            Request::Run { .. }
            | Request::Enter { .. }
            | Request::Exited { .. }
            | Request::Attach { .. }
            | Request::Detach { .. }
            | Request::Reload { .. }
            | Request::Release { .. }
            | Request::Approvals
            | Request::Decide { .. }
            | Request::Grants
            | Request::Revoke { .. }
                // In this order: what is there at the end was what was looked at.
                if self.is_inside(peer) || asker.is_gone() =>
            {
                Err(
                    Refusal::new("a process of a session, or one that is gone, may not start, change or end sessions, or decide what they may do")
                        .hint("ask from outside the session"),
                )
            }
            Request::Run {
                policy,
                name,
                mode,
                accept_degraded,
                command,
            } => self.order_run(peer, &policy, name, mode, accept_degraded, command),
            Request::Enter { session } => self.order_enter(peer, &session),
            Request::Exited { session, code } => self.order_exited(peer, &session, code),
            Request::Attach {
                cgroup,
                policy,
                name,
                accept_degraded,
            } => self.order_attach(peer, &cgroup, &policy, name, accept_degraded),
            Request::Detach { session, now } => self.order_detach(peer, &session, now),
            Request::Reload {
                session,
                policy,
                mode,
                accept_degraded,
            } => self.order_reload(peer, &session, policy.as_ref(), mode, accept_degraded),
            Request::Release { now } => self.order_release(peer, now),
            Request::Sessions => {
                let own = self.own_session(peer, asker);
                own.map(|own| self.order_sessions(peer, own))
            }
            Request::Approvals => Ok(self.order_approvals(peer)),
            Request::Decide { id, extent, reason } => self.order_decide(peer, &id, extent, reason),
            Request::Grants => Ok(self.order_grants(peer)),
            Request::Revoke { id, reason } => self.order_revoke(peer, &id, reason),
            Request::Why { session, after } => self
                .own_session(peer, asker)
                .and_then(|own| self.order_why(peer, own, session.as_deref(), after)),
            Request::Status => self.status(),
        };
        result.unwrap_or_else(|refusal| Response::Error {
            message: refusal.message,
            hint: refusal.hint,
        })
    }

    /// The sessions that somebody may know of: in one, it alone; outside, one's own, and root all.
    fn order_sessions(&self, peer: Peer, own: Option<u32>) -> Response {
        let may_know = |live: &&Live| match own {
            Some(number) => live.number == number,
            None => may(peer, live),
        };
        let rows = self.sessions.values().filter(may_know).map(Live::row);
        Response::Sessions {
            sessions: rows.collect(),
        }
    }

    /// Whether the asker belongs to a session, whatever its user.
    pub(super) fn is_inside(&self, peer: Peer) -> bool {
        let tagged = self
            .kernel
            .maps
            .process_session(peer.pid)
            // Also of a session that this daemon could not take over: the kernel holds it all the same.
            .is_some_and(|number| self.kernel.maps.is_open(number));
        tagged
            || cgroup::of_process(&self.kernel.cgroup_root, peer.pid).is_some_and(|path| {
                self.sessions
                    .values()
                    .any(|live| path.starts_with(&live.cgroup))
            })
    }

    fn order_run(
        &mut self,
        peer: Peer,
        text: &PolicyText,
        name: Option<String>,
        mode: Option<Mode>,
        accept_degraded: bool,
        mut command: Vec<String>,
    ) -> Result<Response, Refusal> {
        let mut left = LONGEST_COMMAND;
        command.retain(|argument| {
            left = left.saturating_sub(argument.len() + 1);
            left > 0
        });
        let (policy, policy_name) = self.compile(text, peer.uid)?;
        let told = policies::mode_warning(&policy, mode);
        let program = command.first().map(|program| {
            Path::new(program).file_name().map_or_else(
                || program.clone(),
                |name| name.to_string_lossy().into_owned(),
            )
        });
        let plan = Plan {
            name: name
                .or(policy_name)
                .or(program)
                .unwrap_or_else(|| "session".to_owned()),
            uid: peer.uid,
            origin: Origin::Run,
            command,
            mode: policies::mode_of(&policy, mode),
            policy,
            accept_degraded,
            cgroup: None,
        };
        let number = self.start(plan)?;
        let mut response = self.ready(number)?;
        if let Response::Ready { warnings, .. } = &mut response {
            warnings.extend(told);
        }
        Ok(response)
    }

    fn order_enter(&mut self, peer: Peer, session: &str) -> Result<Response, Refusal> {
        let live = self.find(peer, session)?;
        if live.origin != Origin::Run || live.seen_tasks {
            return Err(Refusal::new(format!(
                "session {session} is not waiting for its command"
            )));
        }
        // The number that came with the socket may be another process's by now.
        let owner = std::fs::metadata(format!("/proc/{}", peer.pid)).map(|meta| meta.uid());
        if peer.pid == 0 || !owner.is_ok_and(|uid| uid == peer.uid) {
            return Err(Refusal::new("the asking process cannot be told")
                .hint("run agentwatch in the daemon's pid namespace"));
        }
        cgroup::enter(&live.cgroup, peer.pid)?;
        live.seen_tasks = true;
        Ok(Response::Done)
    }

    /// What the asker is told of a session that is in force.
    pub(super) fn ready(&self, number: u32) -> Result<Response, Refusal> {
        let Some(live) = self.sessions.get(&number) else {
            return Err(Refusal::new("the session is gone"));
        };
        let policy = &live.subject.policy;
        let missing = live.holding.missing.iter();
        let warnings = policy
            .warnings
            .iter()
            .chain(&live.bound.gaps)
            .chain(&live.bound.notes)
            .cloned()
            .chain(missing.map(|missing| format!("not enforced: {missing}")))
            .collect();
        Ok(Response::Ready {
            session: live.id().to_owned(),
            name: live.subject.reference.name.clone(),
            warnings,
            environment: policy.environment.clone(),
            landlock: live.holding.landlock.then(|| Box::new((**policy).clone())),
        })
    }

    fn order_exited(&mut self, peer: Peer, session: &str, code: i32) -> Result<Response, Refusal> {
        let live = self.find(peer, session)?;
        if live.origin != Origin::Run {
            return Err(Refusal::new(format!(
                "session {session} was not started by `agentwatch run`"
            )));
        }
        live.exit_code = Some(code);
        let number = live.number;
        self.write_down(number);
        Ok(Response::Done)
    }

    fn order_attach(
        &mut self,
        peer: Peer,
        named: &Path,
        text: &PolicyText,
        name: Option<String>,
        accept_degraded: bool,
    ) -> Result<Response, Refusal> {
        if !peer.is_root() {
            return Err(Refusal::new("only root may attach to a cgroup")
                .hint("`agentwatch run` starts a session of your own"));
        }
        let (policy, policy_name) = self.compile(text, peer.uid)?;
        let path = cgroup::resolve(&self.kernel.cgroup_root, named)?;
        let last = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let plan = Plan {
            name: name.or(policy_name).or(last).unwrap_or_default(),
            uid: peer.uid,
            origin: Origin::Attach,
            command: Vec::new(),
            mode: policy.mode,
            policy,
            accept_degraded,
            cgroup: Some(&path),
        };
        let number = self.start(plan)?;
        self.ready(number)
    }

    fn order_detach(&mut self, peer: Peer, session: &str, now: bool) -> Result<Response, Refusal> {
        let live = self.find(peer, session)?;
        if live.origin != Origin::Run && !peer.is_root() {
            return Err(Refusal::new("only root may end this session"));
        }
        if live.unreckoned && !now {
            return Ok(Response::Later);
        }
        let number = live.number;
        self.end(number, "detached");
        Ok(Response::Done)
    }

    fn order_release(&mut self, peer: Peer, now: bool) -> Result<Response, Refusal> {
        if !peer.is_root() {
            return Err(Refusal::new("only root may end the sessions of all users")
                .hint("agentwatch detach ends one of yours"));
        }
        if !now && self.sessions.values().any(|live| live.unreckoned) {
            return Ok(Response::Later);
        }
        self.end_all("released");
        self.released = true;
        Ok(Response::Done)
    }

    /// Starts a session for a watched cgroup.
    pub(super) fn watch(&mut self, path: &Path, watch: &Watch) -> Result<(), Refusal> {
        let rule = &watch.rule;
        let file = &rule.policy;
        let (policy, name) = self.compile(&policies::watched(file)?, 0)?;
        let last = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        self.start(Plan {
            name: rule.name.clone().or(name).or(last).unwrap_or_default(),
            uid: 0,
            origin: Origin::Watch,
            command: Vec::new(),
            mode: policy.mode,
            policy,
            accept_degraded: rule.accept_degraded,
            cgroup: Some(path),
        })?;
        Ok(())
    }

    pub(super) fn find(&mut self, peer: Peer, named: &str) -> Result<&mut Live, Refusal> {
        let mut found: Vec<&mut Live> = self
            .sessions
            .values_mut()
            .filter(|live| {
                may(peer, live)
                    && (live.id() == named
                        || live.id().starts_with(named)
                        || live.subject.reference.name == named)
            })
            .collect();
        if found.is_empty() || named.is_empty() {
            return Err(
                Refusal::new(format!("no session {named} is running")).hint("agentwatch sessions")
            );
        }
        if let Some(exact) = found.iter().position(|live| live.id() == named) {
            return Ok(found.swap_remove(exact));
        }
        if found.len() > 1 {
            return Err(Refusal::new(format!("{named} is {} sessions", found.len()))
                .hint("give the id: agentwatch sessions"));
        }
        Ok(found.swap_remove(0))
    }

    fn status(&self) -> Result<Response, Refusal> {
        let mut kernel = self.kernel.counters()?;
        kernel.insert("undecodable_records".to_owned(), self.undecodable);
        kernel.insert(
            "unknown_sessions".to_owned(),
            self.inheritance.strangers.len() as u64,
        );
        let (waiting, decisions) = self.kernel.maps.count_holds();
        kernel.insert("tasks_that_wait".to_owned(), waiting);
        kernel.insert("decisions".to_owned(), decisions);
        let connected = self.figures.connected.load(Ordering::Relaxed);
        let mut coverage: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for live in self.sessions.values() {
            let row = live.row();
            let of_coverage = coverage.entry(row.coverage.name().to_owned()).or_default();
            *of_coverage.entry(row.mode.name().to_owned()).or_default() += 1;
        }
        Ok(Response::Status {
            status: Box::new(Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                backends: self.kernel.backends(),
                sessions: self.sessions.len(),
                coverage,
                events: self.figures.events(),
                events_delivered: self.delivered,
                events_folded: self.folds.seen(),
                events_lost: self.lost
                    + self.outbox.lost
                    + self.figures.lost.load(Ordering::Relaxed),
                spooled: self.figures.spooled.load(Ordering::Relaxed),
                queued: self.figures.queued.load(Ordering::Relaxed),
                collector: if connected { "connected" } else { "away" }.to_owned(),
                approvals: Metrics {
                    notifications: self.notifier.figures(),
                    ..self.desk.metrics()
                },
                kernel,
                costs: self.kernel.costs(),
            }),
        })
    }
}

fn may(peer: Peer, live: &Live) -> bool {
    peer.is_root() || peer.uid == live.uid
}
