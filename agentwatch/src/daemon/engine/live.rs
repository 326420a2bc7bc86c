//! A session that lives.

use std::{collections::VecDeque, path::PathBuf, time::Instant};

use jiff::Timestamp;

use super::{refused::Refusals, stray::Strays};
use crate::{
    approval::summary,
    daemon::launch::{Holding, Origin},
    event::{Event, Kind, Verdict, account::Account, enrich::Subject, model::Lifecycle},
    kernel::maps::Bound,
    wire::collector::SessionRow,
};

pub struct Live {
    pub number: u32,
    pub uid: u32,
    pub origin: Origin,
    pub command: Vec<String>,
    pub holding: Holding,
    pub backends: Vec<String>,
    pub started: Timestamp,
    pub cgroup: PathBuf,
    /// Its id: a cgroup that is made again at the same path is another one.
    pub cgroup_id: u64,
    /// Path of the cgroup as events show it.
    pub shown: String,
    pub subject: Subject,
    pub bound: Bound,
    /// Policies that are no longer in force, and since when: a program may still be in the middle of one.
    pub retiring: Vec<(Instant, Bound)>,
    pub account: Account,
    /// For a session of an earlier daemon: its last number when this one took it over.
    pub taken_over_at: Option<u64>,
    /// Whether the history has yet to say what the daemon before delivered.
    pub unreckoned: bool,
    /// How often it was taken over; what was folded in an earlier epoch has its first event elsewhere.
    pub epoch: u32,
    /// Since when folds of an earlier epoch do not grow any more, while there may be some.
    pub stale_folds: Option<Instant>,
    pub exit_code: Option<i32>,
    pub seen_tasks: bool,
    pub empty_since: Option<Instant>,
    pub events: u64,
    pub denied: u64,
    /// The events of its start and of what has changed since, the newest of them.
    pub told: Vec<Event>,
    /// What it did last, in a line each: for who decides on what it wants to do next.
    pub recent: VecDeque<String>,
    /// What was denied or held last.
    pub refused: Refusals,
    /// Processes that were put back into its cgroup.
    pub strays: Strays,
    /// When its policy may be worked out again for the host's mounts, where that was refused, and how often it was.
    pub bind_after: Option<Instant>,
    pub bind_refused: u32,
}

/// Actions that are kept of it.
const RECENT: usize = 8;

/// Events of a session's life that are told again after a restart.
const TOLD: usize = 16;

/// What a session is from the start, or was for the daemon before.
pub struct Beginning {
    pub number: u32,
    pub uid: u32,
    pub origin: Origin,
    pub command: Vec<String>,
    pub holding: Holding,
    pub backends: Vec<String>,
    pub started: Timestamp,
    pub cgroup: PathBuf,
    pub cgroup_id: u64,
    pub shown: String,
    pub subject: Subject,
    pub bound: Bound,
    pub told: Vec<Event>,
}

impl Live {
    /// A session of which nothing has been heard yet.
    pub fn new(beginning: Beginning) -> Self {
        let Beginning {
            number,
            uid,
            origin,
            command,
            holding,
            backends,
            started,
            cgroup,
            cgroup_id,
            shown,
            subject,
            bound,
            told,
        } = beginning;
        Self {
            number,
            uid,
            origin,
            command,
            holding,
            backends,
            started,
            cgroup,
            cgroup_id,
            shown,
            subject,
            bound,
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
            told,
            recent: VecDeque::new(),
            refused: Refusals::default(),
            strays: Strays::default(),
            bind_after: None,
            bind_refused: 0,
        }
    }

    pub fn id(&self) -> &str {
        &self.subject.reference.id
    }

    /// Remembers a change in the session's life.
    pub fn changed(&mut self, event: &Event) {
        let of_mounts =
            |event: &Event| matches!(event.lifecycle, Some(Lifecycle::MountsChanged { .. }));
        if of_mounts(event) && self.told.last().is_some_and(of_mounts) {
            // There may be many, and none undoes another change.
            self.told.pop();
        }
        if self.told.len() >= TOLD {
            // The start stays.
            self.told.remove(1);
        }
        self.told.push(event.clone());
    }

    pub fn saw(&mut self, event: &Event) {
        self.events += 1;
        self.refused.saw(event);
        if event.verdict == Verdict::Denied {
            self.denied += 1;
        }
        // What is merely read says little, and is most of what happens.
        let tells = event.verdict != Verdict::Allowed
            || (event.errno.is_none()
                && !matches!(event.kind, Kind::Open | Kind::Exit | Kind::Session));
        if tells {
            if self.recent.len() >= RECENT {
                self.recent.pop_front();
            }
            let verdict = match event.verdict {
                Verdict::Allowed => "",
                Verdict::Denied => " (denied)",
                Verdict::Held => " (held)",
                Verdict::Audited => " (audited)",
            };
            self.recent
                .push_back(format!("{}{verdict}", summary(event)));
        }
    }

    pub fn row(&self) -> SessionRow {
        let reference = &self.subject.reference;
        SessionRow {
            id: reference.id.clone(),
            name: reference.name.clone(),
            uid: self.uid,
            policy: reference.policy.clone(),
            mode: reference.mode,
            coverage: self.holding.coverage,
            missing: self.holding.missing.clone(),
            backends: self.backends.clone(),
            cgroup: self.shown.clone(),
            command: self.command.clone(),
            origin: self.origin.name().to_owned(),
            state: "running".to_owned(),
            started: self.started,
            ended: None,
            reason: None,
            exit_code: None,
            events: self.events,
            denied: self.denied,
            counts: None,
        }
    }
}
