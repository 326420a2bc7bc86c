//! From rules to what the kernel looks up: each place with its three decisions, each address prefix with its ports.
//! Everything that rules mean together (merging, inheriting, order) is worked out here and nowhere else, so that the
//! kernel only has to find the nearest place or the longest prefix. Pure: no I/O.

mod places;
mod prefixes;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    path::Path,
};

use self::{places::places, prefixes::prefixes};
use super::{
    approvals,
    check::{
        self, Approval, Checked, CommandEntry, CommandList, FileList, NameRule, NetList, Rules,
    },
    command,
    diagnostic::Report,
    model::{
        Access, CommandRule, Compiled, DEFAULT_RULES, Decision, Effect, FamilyRule, GuardRule,
        Name, NamePattern, NetOp, Rule, RuleIndex, UnixRule, UnixTarget,
    },
    name,
};
use crate::event::model::Layer;

/// Compiles rules. What can't be compiled goes into the report; the result is then good for nothing. The digest and the
/// warnings are left empty.
pub fn compile(rules: &Rules, report: &mut Report) -> Compiled {
    let bases = Bases::of(rules);
    let (names, managed_names) = names(&rules.names, bases.names);
    let managed_names = managed_names.as_slice();
    let forbidden = |operation: &u32| {
        rules
            .denied_guards
            .iter()
            .any(|rule| rule.target == *operation)
    };
    Compiled {
        digest: String::new(),
        // What the administrator says of the mode holds for all.
        mode: rules
            .floor
            .mode
            .as_ref()
            .map_or(rules.mode.unwrap_or_default(), |(mode, _)| *mode),
        rules: numbered(rules, report),
        places: places(&rules.files, &names, managed_names),
        prefixes: prefixes(rules, bases.network, report),
        unix: unix(rules, managed_names, bases.unix),
        names,
        commands: commands(&rules.commands, bases.commands),
        families: first_of_each(&rules.families, bases.families)
            .map(|(bit, rule)| FamilyRule { bit, rule })
            .collect(),
        guards: first_of_each(&rules.guards, bases.guards)
            .filter(|(operation, _)| !forbidden(operation))
            .map(|(operation, rule)| GuardRule { operation, rule })
            .collect(),
        task: rules.task.clone(),
        limits: rules.limits,
        approvals: approvals::bounded(&rules.approvals, &rules.floor.approvals).0,
        environment: rules.environment.clone(),
        opens: rules.opens.unwrap_or_default(),
        floor: rules.floor.clone(),
        warnings: Vec::new(),
    }
}

/// All rules, those that are built in first, in the order of [`Bases`].
fn numbered(rules: &Rules, report: &Report) -> Vec<Rule> {
    let mut all: Vec<Rule> = DEFAULT_RULES.iter().map(|id| built_in(id)).collect();
    for rule in &rules.files {
        all.push(written(rule, rule.list.name(), report));
    }
    for rule in &rules.names {
        all.push(written(rule, rule.list.name(), report));
    }
    for rule in &rules.network {
        all.push(written(rule, rule.list.name(), report));
    }
    for rule in &rules.unix {
        all.push(written(rule, check::UNIX, report));
    }
    for rule in &rules.families {
        all.push(written(rule, check::FAMILIES, report));
    }
    let guards = [
        (check::GUARDS, &rules.guards),
        (check::DENIED_GUARDS, &rules.denied_guards),
    ];
    for (list, rules) in guards {
        for rule in rules {
            all.push(written(rule, list, report));
        }
    }
    for rule in &rules.commands {
        all.push(written(rule, rule.list.name(), report));
    }
    all
}

fn built_in(id: &str) -> Rule {
    Rule {
        id: id.to_owned(),
        layer: Layer::Default,
        source: String::new(),
        text: String::new(),
    }
}

fn written<L, T>(rule: &Checked<L, T>, list: &str, report: &Report) -> Rule {
    Rule {
        id: format!("{list}[{}]", rule.index),
        layer: rule.layer,
        source: report.place(rule.span.start),
        text: rule.text.clone(),
    }
}

/// Index in [`Compiled::rules`] of the first rule that is written, which is about a file.
pub(super) const FILES_BASE: RuleIndex = DEFAULT_RULES.len() as RuleIndex;

/// Indexes in [`Compiled::rules`] of the first rule of each sort.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bases {
    pub(super) names: RuleIndex,
    pub(super) network: RuleIndex,
    pub(super) unix: RuleIndex,
    pub(super) families: RuleIndex,
    pub(super) guards: RuleIndex,
    pub(super) commands: RuleIndex,
}

impl Bases {
    pub(super) fn of(rules: &Rules) -> Self {
        let names = FILES_BASE + rules.files.len() as RuleIndex;
        let network = names + rules.names.len() as RuleIndex;
        let unix = network + rules.network.len() as RuleIndex;
        let families = unix + rules.unix.len() as RuleIndex;
        let guards = families + rules.families.len() as RuleIndex;
        let all_guards = rules.guards.len() + rules.denied_guards.len();
        Self {
            names,
            network,
            unix,
            families,
            guards,
            commands: guards + all_guards as RuleIndex,
        }
    }
}

/// The rules on names, each pattern once, and those of the administrator alone.
fn names(rules: &[NameRule], base: RuleIndex) -> (Vec<Name>, Vec<Name>) {
    let managed: Vec<Name> = merged_names(rules, base, |rule| rule.layer == Layer::Managed);
    let mut names = merged_names(rules, base, |_| true);
    // The kernel looks up the longest pattern alone: it says what the administrator says of shorter ones too.
    for name in &mut names {
        let shorter = managed
            .iter()
            .filter(|managed| name::covers(&managed.pattern, &name.pattern));
        for managed in shorter {
            for (own, managed) in name.decisions.iter_mut().zip(managed.decisions) {
                if managed.effect > Effect::Allow && managed.effect >= own.effect {
                    *own = managed;
                }
            }
        }
    }
    (names, managed)
}

/// What rules say of each pattern, right by right the strictest; of two layers that say the same, the administrator's is named.
fn merged_names(
    rules: &[NameRule],
    base: RuleIndex,
    among: impl Fn(&NameRule) -> bool,
) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::new();
    let mut known: HashMap<&NamePattern, usize> = HashMap::new();
    let mut numbered: Vec<(&NameRule, RuleIndex)> = rules.iter().zip(base..).collect();
    numbered.sort_by_key(|(rule, _)| rule.layer != Layer::Managed);
    for (rule, index) in numbered.into_iter().filter(|(rule, _)| among(rule)) {
        use Effect::{Allow, Approve, Deny};
        let effects = match rule.list {
            FileList::Approve(Approval::Both | Approval::Read) => [Approve, Approve, Allow],
            FileList::Approve(Approval::Write) => [Allow, Approve, Allow],
            _ => [Deny; 3],
        };
        let decisions = effects.map(|effect| Decision {
            effect,
            rule: index,
        });
        match known.entry(&rule.target) {
            Entry::Vacant(entry) => {
                entry.insert(names.len());
                names.push(Name {
                    pattern: rule.target.clone(),
                    decisions,
                });
            }
            Entry::Occupied(entry) => {
                let known = &mut names[*entry.get()].decisions;
                for (known, own) in known.iter_mut().zip(decisions) {
                    if own.effect > known.effect {
                        *known = own;
                    }
                }
            }
        }
    }
    names
}

fn commands(rules: &[CommandEntry], base: RuleIndex) -> Vec<CommandRule> {
    command::merge(rules.iter().zip(base..).map(|(rule, index)| {
        let effect = match rule.list {
            CommandList::Allow => Effect::Allow,
            CommandList::Approve => Effect::Approve,
            CommandList::Deny => Effect::Deny,
        };
        let decision = Decision {
            effect,
            rule: index,
        };
        (rule.target.clone(), decision, rule.layer)
    }))
}

/// A socket that `files.deny` names too is left out: the stricter rule wins. What the administrator denies is left out with
/// everything below it.
fn unix(rules: &Rules, managed_names: &[Name], base: RuleIndex) -> Vec<UnixRule> {
    let closed: HashSet<&Path> = rules
        .files
        .iter()
        .filter(|rule| rule.layer == Layer::Managed && rule.list == FileList::Deny)
        .map(|rule| rule.target.as_path())
        .collect();
    let managed = |path: &Path| {
        name::names_over(managed_names, path, None)[Access::Write as usize]
            .is_some_and(|name| name.effect == Effect::Deny)
            || path.ancestors().any(|above| closed.contains(above))
    };
    let denied: HashSet<&Path> = rules
        .files
        .iter()
        .filter(|rule| rule.list == FileList::Deny)
        .map(|rule| rule.target.as_path())
        .collect();
    first_of_each(&rules.unix, base)
        .filter(|(target, _)| match target {
            UnixTarget::Path(path) => !denied.contains(path.as_path()) && !managed(path),
            UnixTarget::Abstract(_) | UnixTarget::AbstractPrefix(_) => true,
        })
        .map(|(target, rule)| UnixRule {
            target,
            decision: Decision {
                effect: Effect::Allow,
                rule,
            },
        })
        .collect()
}

fn first_of_each<L, T: Clone + Eq + Hash>(
    rules: &[Checked<L, T>],
    base: RuleIndex,
) -> impl Iterator<Item = (T, RuleIndex)> {
    let mut seen = HashSet::new();
    rules
        .iter()
        .zip(base..)
        .filter(move |(rule, _)| seen.insert(&rule.target))
        .map(|(rule, index)| (rule.target.clone(), index))
}

/// What a list of addresses is about.
pub(super) fn operation(list: NetList) -> NetOp {
    match list {
        NetList::Allow | NetList::Deny | NetList::Approve => NetOp::Connect,
        NetList::Listen => NetOp::Listen,
    }
}
