//! Rules on files as places: what is decided at each path that a rule names, with what it inherits. The kernel then only
//! looks for the nearest one.

use std::{collections::BTreeMap, path::Path};

use super::FILES_BASE;
use crate::{
    event::model::Layer,
    policy::{
        check::{Approval, FileList, FileRule},
        model::{Access, Decision, Effect, FILES_DEFAULT, Name, Place, RuleIndex, SETTINGS},
        name,
    },
};

/// The places of a policy, each before everything inside it.
pub(super) fn places(rules: &[FileRule], names: &[Name], managed_names: &[Name]) -> Vec<Place> {
    let stated = stated(rules);
    // Paths compare by component, so a place comes right before everything inside it, and the last entries of
    // `enclosing` are the places around the next path.
    let mut enclosing: Vec<(&Path, [Decision; 3], Floor)> = Vec::new();
    let mut places = Vec::with_capacity(stated.len());
    for (path, stated) in stated {
        while enclosing
            .last()
            .is_some_and(|(around, ..)| !path.starts_with(around))
        {
            enclosing.pop();
        }
        let around = enclosing.last().copied();
        let (above, decisions, floor) = around.map_or(
            (
                None,
                [Decision {
                    effect: Effect::Deny,
                    rule: FILES_DEFAULT,
                }; 3],
                Floor::default(),
            ),
            |(above, decisions, floor)| (Some(above), decisions, floor),
        );
        // What rules on names take away between there and here is inherited too.
        let over = name::names_over(names, path, above);
        let inherited = Access::ALL
            .map(|access| name::under_names(over[access as usize], decisions[access as usize]));
        let floor = stated.floor.inside(floor);
        let decisions = stated.decide(inherited);
        enclosing.push((path, decisions, floor));
        // What the administrator says holds whatever is said below it, and so does what he says of names.
        let over = name::names_over(managed_names, path, None);
        let decisions = Access::ALL
            .map(|access| floor.limit(access, over[access as usize], decisions[access as usize]));
        places.push(Place {
            path: path.to_owned(),
            decisions,
        });
    }
    places
}

/// What is said at each path.
fn stated(rules: &[FileRule]) -> BTreeMap<&Path, Stated> {
    let mut stated: BTreeMap<&Path, Stated> = BTreeMap::new();
    let settings = SETTINGS_PLACES.iter().map(Path::new);
    let is_writable = |path: &Path| {
        let mut writable = rules.iter().filter(|rule| rule.list == FileList::Write);
        writable.any(|rule| path.starts_with(&rule.target))
    };
    for path in settings.filter(|path| is_writable(path)) {
        stated.entry(path).or_default().settings = true;
    }
    for (rule, index) in rules.iter().zip(FILES_BASE..) {
        stated
            .entry(&rule.target)
            .or_default()
            .add(rule.list, rule.layer, index);
    }
    stated
}

/// Where the kernel is set up, and with it the host: what is written there runs programs outside the session (`core_pattern`,
/// `uevent_helper`), moves processes between cgroups, or unpins what agentwatch stands on. A rule around such a place does not give
/// writing to it; one that names it, or something in it, does.
const SETTINGS_PLACES: [&str; 7] = [
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/sys",
    "/sys/fs/bpf",
    "/sys/fs/cgroup",
    "/sys/kernel",
];

/// What the rules at one path say, each list by its first rule.
#[derive(Clone, Copy, Default)]
struct Stated {
    read: Option<RuleIndex>,
    write: Option<RuleIndex>,
    exec: Option<RuleIndex>,
    deny: Option<RuleIndex>,
    exec_deny: Option<RuleIndex>,
    approve_read: Option<RuleIndex>,
    approve_write: Option<RuleIndex>,
    exec_approve: Option<RuleIndex>,
    /// Whether the kernel is set up here.
    settings: bool,
    /// The administrator's.
    floor: Floor,
}

impl Stated {
    fn add(&mut self, list: FileList, layer: Layer, rule: RuleIndex) {
        let [read, write, exec] = Access::ALL.map(|access| access as usize);
        if layer == Layer::Managed {
            let Floor { deny, approve } = &mut self.floor;
            let (slots, rights): (_, &[usize]) = match list {
                FileList::Deny => (deny, &[read, write, exec]),
                FileList::ExecDeny => (deny, &[exec]),
                FileList::Approve(Approval::Both | Approval::Read) => (approve, &[read, write]),
                FileList::Approve(Approval::Write) => (approve, &[write]),
                FileList::ExecApprove => (approve, &[exec]),
                // A managed file has no such lists.
                FileList::Read | FileList::Write | FileList::Exec | FileList::ExecAllow => return,
            };
            for right in rights {
                slots[*right].get_or_insert(rule);
            }
            return;
        }
        let set = |slot: &mut Option<RuleIndex>| {
            slot.get_or_insert(rule);
        };
        match list {
            FileList::Read => set(&mut self.read),
            FileList::Write => set(&mut self.write),
            FileList::Exec | FileList::ExecAllow => set(&mut self.exec),
            FileList::Deny => set(&mut self.deny),
            FileList::ExecDeny => set(&mut self.exec_deny),
            FileList::ExecApprove => set(&mut self.exec_approve),
            FileList::Approve(approval) => {
                if approval != Approval::Write {
                    set(&mut self.approve_read);
                }
                if approval != Approval::Read {
                    set(&mut self.approve_write);
                }
            }
        }
    }

    fn decide(self, inherited: [Decision; 3]) -> [Decision; 3] {
        let by = |effect| move |rule| Decision { effect, rule };
        let (allow, approve, deny) = (by(Effect::Allow), by(Effect::Approve), by(Effect::Deny));
        let mut decisions = inherited;
        let [read, write, exec] = &mut decisions;
        if self.settings && write.effect == Effect::Allow {
            *write = deny(SETTINGS);
        }
        // A rule that speaks of reading or writing states everything that is allowed from here down.
        if let Some(stating) = self.read.or(self.write) {
            *read = allow(stating);
            *write = self.write.map_or(deny(stating), allow);
            *exec = deny(stating);
        }
        if let Some(rule) = self.approve_read {
            *read = approve(rule);
            // What is not read without asking is not changed without asking.
            if write.effect == Effect::Allow {
                *write = approve(rule);
            }
        }
        if let Some(rule) = self.approve_write {
            *write = approve(rule);
        }
        if let Some(rule) = self.exec {
            *exec = allow(rule);
        }
        if let Some(rule) = self.exec_approve {
            *exec = approve(rule);
        }
        if let Some(rule) = self.exec_deny {
            *exec = deny(rule);
        }
        if let Some(rule) = self.deny {
            decisions = [deny(rule); 3];
        }
        decisions
    }
}

/// What the administrator denies and has approved at a place and above it, indexed by [`Access`].
#[derive(Clone, Copy, Default)]
struct Floor {
    deny: [Option<RuleIndex>; 3],
    approve: [Option<RuleIndex>; 3],
}

impl Floor {
    /// With what holds around it.
    fn inside(self, around: Floor) -> Floor {
        let nearer = |own: [Option<RuleIndex>; 3], around: [Option<RuleIndex>; 3]| {
            Access::ALL.map(|access| own[access as usize].or(around[access as usize]))
        };
        Floor {
            deny: nearer(self.deny, around.deny),
            approve: nearer(self.approve, around.approve),
        }
    }

    /// What is left of a decision.
    fn limit(&self, access: Access, name: Option<Decision>, decided: Decision) -> Decision {
        let by = |effect, rule: Option<RuleIndex>| rule.map(|rule| Decision { effect, rule });
        let denied = by(Effect::Deny, self.deny[access as usize]);
        let approved = by(Effect::Approve, self.approve[access as usize]);
        [denied, name, approved]
            .into_iter()
            .flatten()
            .rev()
            .filter(|floor| floor.effect >= decided.effect)
            .max_by_key(|floor| floor.effect)
            .unwrap_or(decided)
    }
}
