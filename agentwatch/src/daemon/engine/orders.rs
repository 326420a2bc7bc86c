//! What the command line asks for, and starting sessions.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    sync::atomic::Ordering,
};

use agentwatch_common::{limits, policy::flags};
use anyhow::Result;
use jiff::Timestamp;

use super::{Engine, live::Live, policies, refused::Refusals, stray::Strays};
use crate::{
    allocator,
    approval::metrics::Metrics,
    daemon::{
        control::{Asker, Peer},
        launch::{self, Holding, Origin},
    },
    event::{
        Kind, Mode,
        account::Account,
        enrich::Subject,
        model::{Lifecycle, SessionRef},
    },
    kernel::{maps::Bound, probe},
    policy::model::{Compiled, Opens},
    session::{cgroup, watch::Watch},
    wire::control::{PolicyText, Request, Response, Status},
};

/// Sessions that one user (but root) may have at the same time.
const SESSIONS_OF_A_USER: usize = 64;
/// Bytes of a session's name, which stands in every event.
const LONGEST_NAME: usize = 128;
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

/// A session that is to be.
struct Plan<'a> {
    name: String,
    uid: u32,
    origin: Origin,
    command: Vec<String>,
    policy: Arc<Compiled>,
    mode: Mode,
    accept_degraded: bool,
    /// The cgroup that is there already, or none for one of its own.
    cgroup: Option<&'a Path>,
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
            Request::Sessions => Ok(Response::Sessions {
                sessions: self
                    .sessions
                    .values()
                    .filter(|live| may(peer, live))
                    .map(Live::row)
                    .collect(),
            }),
            Request::Approvals => Ok(self.order_approvals(peer)),
            Request::Decide { id, extent, reason } => self.order_decide(peer, &id, extent, reason),
            Request::Grants => Ok(self.order_grants(peer)),
            Request::Revoke { id, reason } => self.order_revoke(peer, &id, reason),
            Request::Why { session, after } => self.order_why(peer, session.as_deref(), after),
            Request::Status => self.status(),
        };
        result.unwrap_or_else(|refusal| Response::Error {
            message: refusal.message,
            hint: refusal.hint,
        })
    }

    /// Whether the asker belongs to a session, whatever its user.
    fn is_inside(&self, peer: Peer) -> bool {
        let tagged = self
            .kernel
            .maps
            .process_session(peer.pid)
            .is_some_and(|number| self.sessions.contains_key(&number));
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

    /// Puts a session into the kernel, its rules before its processes.
    fn start(&mut self, plan: Plan<'_>) -> Result<u32, Refusal> {
        let mut holding = launch::holding(
            self.kernel.file_backend,
            probe::landlock_abi(),
            plan.origin,
            plan.mode,
            &plan.policy,
        );
        if plan.mode == Mode::Enforce {
            self.prove();
            holding.lacks(self.proof.failures.clone());
        }
        holding.lacks(policies::limit_gaps(
            &self.kernel.cgroup_root,
            plan.origin,
            plan.mode,
            &plan.policy.limits,
        ));
        policies::degraded(&holding.missing, plan.accept_degraded, &plan.policy)?;
        self.admit(plan.uid, &plan.policy)?;
        if let Some(path) = plan.cgroup
            && let Some(other) = self
                .sessions
                .values()
                .find(|live| path.starts_with(&live.cgroup) || live.cgroup.starts_with(path))
        {
            return Err(Refusal::new(format!(
                "cgroup {} is part of session {} already",
                path.display(),
                other.id()
            )));
        }
        let own_sessions = self
            .sessions
            .values()
            .filter(|live| live.uid == plan.uid)
            .count();
        if plan.uid != 0 && own_sessions >= SESSIONS_OF_A_USER {
            return Err(Refusal::new(format!(
                "user {} has {own_sessions} sessions already",
                plan.uid
            ))
            .hint("end some: agentwatch detach"));
        }
        if plan.name.len() > LONGEST_NAME {
            return Err(Refusal::new(format!(
                "a session's name is at most {LONGEST_NAME} bytes long"
            )));
        }
        let number = self.free_number()?;
        let id = uuid::Uuid::now_v7().to_string();
        let (path, own) = match plan.cgroup {
            Some(path) => (path.to_owned(), false),
            None => (cgroup::create(&self.kernel.cgroup_root, &id)?, true),
        };
        let started = self.enter_kernel(number, &plan, &holding, &path);
        let started = started.and_then(|(bound, id)| {
            let accepted = plan.accept_degraded && plan.policy.floor.refuses_degraded.is_none();
            let may_begin = if bound.gaps.is_empty() || accepted {
                self.limit(&path, plan.origin, plan.mode, &plan.policy)
            } else {
                let gaps = bound.gaps.join("\n  - ");
                Err(anyhow::anyhow!(
                    "some rules cannot be put in force:\n  - {gaps}\nhint: --accept-degraded starts the session without them"
                ))
            };
            match may_begin {
                Ok(()) => Ok((bound, id)),
                Err(error) => {
                    self.undo(number, &bound);
                    Err(error)
                }
            }
        });
        let (mut bound, cgroup_id) = match started {
            Ok(parts) => parts,
            Err(error) => {
                if own {
                    cgroup::remove(&path);
                }
                return Err(error.into());
            }
        };
        let shown = cgroup::shown(&self.kernel.cgroup_root, &path);
        let backends = match holding.coverage {
            crate::event::model::Coverage::Off => Vec::new(),
            _ => self.kernel.backends(),
        };
        let reference = SessionRef {
            id: id.clone(),
            name: plan.name,
            policy: plan.policy.digest.clone(),
            mode: plan.mode,
        };
        let mut event = self.enricher.own(&reference, Kind::Session);
        event.lifecycle = Some(Lifecycle::Started {
            coverage: holding.coverage,
            missing: holding.missing.clone(),
            backends: backends.clone(),
            cgroup: shown.clone(),
            uid: plan.uid,
            command: plan.command.clone(),
            origin: plan.origin.name().to_owned(),
            policy: Some(Box::new(plan.policy.record())),
        });
        self.outbox.tell(event.clone());
        tracing::info!(session = id, name = reference.name, coverage = ?holding.coverage, "session started");
        // Policies are compiled and bound by much code that events do not need.
        allocator::give_back_code();
        let live = Live {
            number,
            uid: plan.uid,
            origin: plan.origin,
            command: plan.command,
            backends,
            started: Timestamp::now(),
            cgroup: path,
            shown,
            subject: Subject {
                number: bound.number(),
                reference,
                policy: plan.policy,
                before: Vec::new(),
                cgroups: HashMap::new(),
                landlock: self.kernel.traces_by_syscall(),
                private: std::mem::take(&mut bound.private),
            },
            bound,
            cgroup_id,
            retiring: Vec::new(),
            account: Account::default(),
            taken_over_at: None,
            unreckoned: false,
            epoch: 0,
            stale_folds: None,
            exit_code: None,
            seen_tasks: false,
            empty_since: None,
            events: 0,
            denied: 0,
            holding,
            told: vec![event],
            recent: VecDeque::new(),
            refused: Refusals::default(),
            strays: Strays::default(),
        };
        self.sessions.insert(number, live);
        self.write_down(number);
        if !own && let Err(error) = self.kernel.census() {
            self.end(number, "detached");
            return Err(error.into());
        }
        Ok(number)
    }

    fn enter_kernel(
        &mut self,
        number: u32,
        plan: &Plan<'_>,
        holding: &Holding,
        path: &Path,
    ) -> Result<(Bound, u64)> {
        let bits = self.flags(plan.mode, &plan.policy);
        let _ = holding;
        let bound = self
            .kernel
            .insert_policy(number, &plan.policy, plan.cgroup)?;
        let rest = (|| {
            self.kernel.maps.open_session(number, number, bits)?;
            // Each is in the map before its children are listed, so that the kernel adds those that are made meanwhile.
            let mut cgroups = vec![path.to_owned()];
            while let Some(cgroup) = cgroups.pop() {
                self.kernel
                    .maps
                    .insert_cgroup(cgroup::id(&cgroup)?, number)?;
                cgroups.extend(cgroup::children(&cgroup));
            }
            cgroup::id(path)
        })();
        match rest {
            Ok(id) => Ok((bound, id)),
            Err(error) => {
                self.undo(number, &bound);
                Err(error)
            }
        }
    }

    /// Takes a session out of the kernel that does not begin after all, with what its processes, where it has some, did meanwhile.
    fn undo(&mut self, number: u32, bound: &Bound) {
        let maps = &mut self.kernel.maps;
        // First, so that nothing is judged by a policy that is half gone.
        maps.stop_counting(number);
        if let Err(error) = maps.close_session(number) {
            tracing::error!(
                number,
                error = format!("{error:#}"),
                "the slot of a session that did not begin stays open in the kernel, without a policy; \
                 hint: the next daemon closes it: restart this one"
            );
        }
        maps.remove_cgroups(number);
        maps.remove_objects(number);
        maps.remove_folds(number);
        maps.remove_policy(bound);
    }

    /// Bits of a session's binding.
    pub(super) fn flags(&self, mode: Mode, policy: &Compiled) -> u32 {
        let mut bits = match policy.opens {
            Opens::Fold => 0,
            Opens::All => flags::OPENS_ALL,
            Opens::Writes => flags::OPENS_WRITES,
        };
        if mode == Mode::Monitor {
            bits |= flags::MONITOR;
        }
        if self.kernel.traces_by_syscall() {
            bits |= flags::LANDLOCK;
        }
        bits
    }

    /// A number that nothing has had: a tag or a record may still bear an old one.
    pub(super) fn next_number(&mut self) -> Result<u32, Refusal> {
        self.last_number = self.last_number.wrapping_add(1).max(1);
        self.kernel.set_last_number(self.last_number)?;
        Ok(self.last_number)
    }

    /// A number whose slot is free.
    fn free_number(&mut self) -> Result<u32, Refusal> {
        let slots = limits::SESSIONS as u32;
        let taken: Vec<u32> = self
            .sessions
            .keys()
            .chain(&self.inheritance.strangers)
            .map(|number| number % slots)
            .collect();
        for _ in 0..slots {
            let number = self.next_number()?;
            if !taken.contains(&(number % slots)) {
                return Ok(number);
            }
        }
        Err(Refusal::new(format!("{slots} sessions run already"))
            .hint("end some: agentwatch sessions, agentwatch detach"))
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
