//! An action that waits: what it is about, which tasks wait for it, and how people and the record are told of it.

use agentwatch_common::{
    hold::{Object, object},
    limits,
};
use serde::{Deserialize, Serialize};

use super::model::{Ancestor, Request};
use crate::{
    event::{
        Event, Kind,
        host::wall,
        model::{Approval, RuleRef, Step},
    },
    policy::model::OnTimeout,
};

/// A command with longer arguments is not granted beforehand: the kernel compares no more.
pub(super) const COMPARED: u64 = limits::NAME as u64;

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
            waited_ns: now.saturating_sub(self.since),
            tasks: self.tasks.len() as u64,
            tries: self.tries,
            ..Approval::bare(step, self.event.kind)
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

impl Approval {
    /// A step of which nothing more is known: no request, nobody who took it, no task.
    pub fn bare(step: Step, action: Kind) -> Self {
        Self {
            id: String::new(),
            step,
            action,
            by: None,
            scope: None,
            until: None,
            reason: None,
            finding: None,
            waited_ns: 0,
            tasks: 0,
            tries: 0,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::samples::sample;

    #[test]
    fn objects_survive_being_written_down() {
        let mut name = [0; limits::NAME];
        name[..4].copy_from_slice(&[10, 11, 198, 51]);
        for (detail, name) in [(0, name), (443, name), (1, [7; limits::NAME])] {
            let object = Object {
                kind: object::ADDRESS,
                dev: 0,
                inode: 0,
                detail,
                name,
            };
            assert_eq!(About::of(&object).object(), object);
        }
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
