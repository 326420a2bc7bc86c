//! From events to what a report says: pure, one event at a time, in their order.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::{
    acceptance::{Acceptance, Watching},
    content::Content,
};
use crate::{
    cli::{
        render,
        timeline::gather::{Gathering, Timeline},
    },
    event::model::{self, Event, Kind, Lifecycle, PolicyRecord, Verdict},
    wire::collector::SessionRow,
};

/// Version of the report's JSON.
const VERSION: u32 = 1;

/// A report.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) v: u32,
    pub(super) written: Timestamp,
    /// Name of the user who started the session, where this host knows one.
    pub(super) user: Option<String>,
    /// Host and boot of the events.
    pub(super) host: String,
    /// What became of the session, in order.
    pub(super) life: Vec<Step>,
    pub(super) files_changed: Vec<Change>,
    pub(super) files_read: u64,
    pub(super) destinations: Vec<Reached>,
    pub(super) approvals: Vec<Approval>,
    /// The policy that was last in force, as the record has it: the task, its limits, the rules.
    pub(super) policy: Option<PolicyRecord>,
    /// Commands that were to show that the task is done, and whether they did.
    pub(super) acceptance: Vec<Acceptance>,
    #[serde(flatten)]
    pub(super) timeline: Timeline,
}

#[derive(Debug, Serialize)]
pub(super) struct Step {
    pub(super) time: Timestamp,
    pub(super) what: String,
    pub(super) policy: String,
}

/// What a session did to a file, over all.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) path: String,
    pub(super) change: What,
    /// Where it was before, for one that was renamed or linked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<String>,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    pub(super) times: u64,
    /// The programs that did it.
    pub(super) programs: Vec<String>,
    /// The file as it is now.
    pub(super) now: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Created,
    Modified,
    Deleted,
    /// Mode, owner, times or extended attributes only.
    Attributes,
    /// Created and deleted again.
    Temporary,
}

impl What {
    pub(super) fn name(self) -> &'static str {
        match self {
            What::Created => "created",
            What::Modified => "modified",
            What::Deleted => "deleted",
            What::Attributes => "attributes",
            What::Temporary => "temporary",
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Reached {
    pub(super) kind: Kind,
    pub(super) destination: String,
    pub(super) count: u64,
    pub(super) failed: u64,
    pub(super) programs: Vec<String>,
}

/// A step of a request, with who took it and why.
#[derive(Debug, Serialize)]
pub(super) struct Approval {
    pub(super) time: Timestamp,
    /// Id of the request; the same in each of its steps.
    pub(super) request: String,
    pub(super) step: model::Step,
    pub(super) verdict: Verdict,
    pub(super) what: String,
    pub(super) rule: Option<String>,
    pub(super) by: Option<model::Decider>,
    pub(super) scope: Option<model::Scope>,
    pub(super) until: Option<Timestamp>,
    pub(super) reason: Option<String>,
    pub(super) finding: Option<String>,
    /// How long the action had waited by then.
    pub(super) waited_ns: u64,
}

impl Approval {
    fn of(event: &Event, approval: &model::Approval) -> Self {
        let about = Event {
            kind: approval.action,
            approval: None,
            ..event.clone()
        };
        Self {
            time: event.time,
            request: approval.id.clone(),
            step: approval.step,
            verdict: event.verdict,
            what: format!("{} {}", about.kind.name(), render::what(&about)),
            rule: event.rule.as_ref().map(|rule| rule.id.clone()),
            by: approval.by.clone(),
            scope: approval.scope,
            until: approval.until,
            reason: approval.reason.clone(),
            finding: approval.finding.clone(),
            waited_ns: approval.waited_ns,
        }
    }

    /// Who took the step, in words.
    pub(super) fn who(&self) -> Option<String> {
        let by = self.by.as_ref()?;
        Some(match (by.kind, &by.name, by.uid) {
            (model::DeciderKind::User, Some(name), Some(uid)) => format!("{name} (uid {uid})"),
            (model::DeciderKind::User, _, Some(uid)) => format!("uid {uid}"),
            (kind, Some(name), _) => format!("{} {name}", kind.name()),
            (kind, ..) => kind.name().to_owned(),
        })
    }
}

/// A report that is not complete yet.
#[derive(Default)]
pub(super) struct Composing {
    gathering: Gathering,
    host: String,
    life: Vec<Step>,
    files: BTreeMap<String, Change>,
    read: std::collections::HashSet<String>,
    reached: BTreeMap<(Kind, String), Reached>,
    approvals: Vec<Approval>,
    policy: Option<PolicyRecord>,
    watching: Watching,
}

impl Composing {
    pub(super) fn session(&mut self, sessions: Vec<SessionRow>) {
        self.gathering.session = sessions.into_iter().next();
    }

    /// Adds one event; they come in their order.
    pub(super) fn add(&mut self, event: &Event) {
        self.gathering.add(event);
        if self.host.is_empty() {
            self.host.clone_from(&event.host);
        }
        let files = &self.files;
        self.watching.event(event, |path| files.contains_key(path));
        if let Some(lifecycle) = &event.lifecycle {
            match lifecycle {
                Lifecycle::Started { policy, .. } => self.policy = policy.as_deref().cloned(),
                Lifecycle::Reloaded { rules, .. } => self.policy = rules.as_deref().cloned(),
                _ => {}
            }
            self.life.push(Step {
                time: event.time,
                what: step(lifecycle),
                policy: event.session.policy.clone(),
            });
        }
        if let Some(approval) = &event.approval {
            self.approvals.push(Approval::of(event, approval));
        }
        // What was refused or failed did nothing to a file; what is only audited did happen.
        if !matches!(event.verdict, Verdict::Allowed | Verdict::Audited) {
            return;
        }
        match event.kind {
            Kind::Connect | Kind::Bind | Kind::Dns => self.reach(event),
            _ if event.errno.is_none() => self.touch(event),
            _ => {}
        }
    }

    fn touch(&mut self, event: &Event) {
        let Some(file) = &event.file else { return };
        let access = |wanted: &[&str]| {
            file.access
                .iter()
                .any(|held| wanted.contains(&held.as_str()))
        };
        match event.kind {
            Kind::Open if access(&["write", "append", "truncate"]) => {
                self.change(event, &file.path, What::Modified);
            }
            Kind::Open => {
                self.read.insert(file.path.clone());
            }
            Kind::Create => self.change(event, &file.path, What::Created),
            Kind::Delete => self.change(event, &file.path, What::Deleted),
            Kind::Attr => self.change(event, &file.path, What::Attributes),
            Kind::Rename | Kind::Link => {
                let Some(target) = &event.target else { return };
                let before = self.files.get(&file.path).map(|change| change.change);
                // What was opened before was there before.
                let what = if self.read.contains(&target.path) {
                    What::Modified
                } else {
                    What::Created
                };
                self.change(event, &target.path, what);
                if let Some(change) = self.files.get_mut(&target.path) {
                    change.from = Some(file.path.clone());
                }
                if event.kind == Kind::Rename {
                    if before == Some(What::Created) {
                        // It was the session's own, under the name that a program writes to first.
                        self.files.remove(&file.path);
                        if let Some(change) = self.files.get_mut(&target.path) {
                            change.from = None;
                        }
                    } else {
                        self.change(event, &file.path, What::Deleted);
                    }
                }
            }
            _ => {}
        }
    }

    fn change(&mut self, event: &Event, path: &str, what: What) {
        // Terminals, /dev/null and the kernel's own files keep nothing of what is written to them.
        if (path.starts_with("/dev/") && !path.starts_with("/dev/shm/"))
            || path.starts_with("/proc/")
            || path.starts_with("/sys/")
        {
            return;
        }
        self.watching.wrote(event, path);
        let program = program(event);
        let change = self.files.entry(path.to_owned()).or_insert_with(|| Change {
            path: path.to_owned(),
            change: what,
            from: None,
            first: event.time,
            last: event.time,
            times: 0,
            programs: Vec::new(),
            now: Content::default(),
        });
        change.change = match (change.change, what) {
            // Begun anew: what it was before the session is unknown, and it is another file now.
            (What::Deleted, What::Created | What::Modified) => What::Modified,
            (What::Temporary, What::Created) => What::Created,
            (What::Created, What::Deleted) if change.times > 0 => What::Temporary,
            (What::Created, _) => What::Created,
            (What::Modified, What::Created | What::Attributes) => What::Modified,
            (_, new) => new,
        };
        change.last = event.time;
        change.times += event.count;
        if let Some(program) = program
            && !change.programs.contains(&program)
        {
            change.programs.push(program);
        }
    }

    fn reach(&mut self, event: &Event) {
        let destination = event
            .net
            .as_ref()
            .map(render::destination)
            .unwrap_or_default();
        let reached = self
            .reached
            .entry((event.kind, destination.clone()))
            .or_insert(Reached {
                kind: event.kind,
                destination,
                count: 0,
                failed: 0,
                programs: Vec::new(),
            });
        reached.count += event.count;
        if event.errno.is_some() {
            reached.failed += event.count;
        }
        if let Some(program) = program(event)
            && !reached.programs.contains(&program)
        {
            reached.programs.push(program);
        }
    }

    /// The report, `None` if no session was named.
    pub(super) fn finish(self) -> Option<Report> {
        let timeline = self.gathering.finish()?;
        let mut files: Vec<Change> = self.files.into_values().collect();
        files.sort_by(|one, other| (one.change, &one.path).cmp(&(other.change, &other.path)));
        let uid = nix::unistd::Uid::from_raw(timeline.session.uid);
        let user = nix::unistd::User::from_uid(uid).ok().flatten();
        Some(Report {
            v: VERSION,
            written: Timestamp::now(),
            user: user.map(|user| user.name),
            host: self.host,
            life: self.life,
            files_read: self.read.len() as u64,
            files_changed: files,
            destinations: self.reached.into_values().collect(),
            approvals: self.approvals,
            policy: self.policy,
            acceptance: self.watching.finish(),
            timeline,
        })
    }
}

fn program(event: &Event) -> Option<String> {
    event
        .process
        .as_ref()
        .map(|process| render::basename(&process.exe).to_owned())
}

fn step(lifecycle: &Lifecycle) -> String {
    match lifecycle {
        Lifecycle::Started { coverage, .. } => format!("started, coverage {}", coverage.name()),
        Lifecycle::Resumed { coverage } => {
            format!("taken over by a new daemon, coverage {}", coverage.name())
        }
        Lifecycle::Reloaded {
            coverage,
            mode,
            uid,
            ..
        } => format!(
            "policy exchanged by uid {uid}: {}, coverage {}",
            mode.name(),
            coverage.name()
        ),
        Lifecycle::MountsChanged { coverage, .. } => format!(
            "policy worked out again for changed mounts of the host, coverage {}",
            coverage.name()
        ),
        Lifecycle::Ended {
            reason, exit_code, ..
        } => match exit_code {
            Some(code) => format!("ended: {reason}, exit code {code}"),
            None => format!("ended: {reason}"),
        },
    }
}
