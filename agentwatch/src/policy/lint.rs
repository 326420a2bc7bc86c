//! Warnings about rules that are right one by one and can't mean what their author meant: rules that never apply, and
//! denies that look wider than they are. It must never change what a policy means.

use std::{collections::HashMap, path::Path};

use super::{
    approvals,
    check::{self, Approval, Checked, CommandList, FileList, FileRule, NetList, NetRule, Rules},
    compile::{Bases, operation},
    diagnostic::{Diagnostic, Report, quote},
    explain::{decide_file, enclosing_prefix, find_prefix},
    model::{Access, Compiled, Effect, NetOp, PortRule, RuleIndex, UnixTarget},
    network::Ports,
};
use crate::event::model::{Layer, Mode};

const NARROWEST_WINS: &str = "the most specific rule decides, so a deny only takes away from what is allowed at the same place or around it";

/// Adds the warnings on a policy that has no errors.
pub fn lint(rules: &Rules, compiled: &Compiled, report: &mut Report) {
    lint_files(rules, compiled, report);
    lint_network(rules, compiled, report);
    lint_unix(rules, compiled, report);
    lint_commands(rules, compiled, report);
    lint_floor(rules, compiled, report);
    let allowing = |effect| effect != Effect::Deny;
    let any = compiled
        .places
        .iter()
        .flat_map(|place| &place.decisions)
        .any(|decision| allowing(decision.effect))
        || compiled
            .prefixes
            .iter()
            .flat_map(|prefix| &prefix.ports)
            .any(|port| allowing(port.decision.effect));
    if !any && compiled.mode == Mode::Enforce {
        report.push(
            Diagnostic::warning("the policy allows nothing", None)
                .help("a session needs at least `files.read` and `files.exec` for its command and the libraries that it loads"),
        );
    }
}

fn lint_files(rules: &Rules, compiled: &Compiled, report: &mut Report) {
    let mut at: HashMap<(&Path, FileList), &FileRule> = HashMap::new();
    for rule in &rules.files {
        at.entry((&rule.target, rule.list)).or_insert(rule);
    }
    for rule in &rules.files {
        let path = rule.target.as_path();
        let beside = |list| at.get(&(path, list)).copied();
        // Told for the first of equal rules only; the others are reported as listed twice.
        if !is_own(rule, report) || beside(rule.list).is_some_and(|first| first.span != rule.span) {
            continue;
        }
        // At its beginning a `$` is an error; further on it may be part of a name, and mostly is not.
        if rule.text.contains("/$") && !rule.text.contains("/${") && !rule.text.starts_with("./$") {
            report.push(
                Diagnostic::warning(
                    format!(
                        "variables are not expanded: {} names a file with a `$`",
                        quote(&rule.text)
                    ),
                    rule.span.clone(),
                )
                .help("write the path in full, or `${home}`, `${workspace}`, `${tmp}`, `${uid}`"),
            );
        }
        let over = match rule.list {
            FileList::Read => beside(FileList::Deny).or(beside(FileList::Write)),
            FileList::Write | FileList::ExecDeny | FileList::Approve(_) => beside(FileList::Deny),
            FileList::Exec | FileList::ExecAllow => beside(FileList::Deny)
                .or(beside(FileList::ExecDeny))
                .or(beside(FileList::ExecApprove)),
            FileList::ExecApprove => beside(FileList::Deny).or(beside(FileList::ExecDeny)),
            FileList::Deny => None,
        };
        if let Some(over) = over {
            let (why, help) = match over.list {
                FileList::Write => (
                    "which covers reading",
                    "take it out here; to make a part read-only, name that part",
                ),
                _ => ("and the stricter rule wins", "take one of them out"),
            };
            report.push(
                Diagnostic::warning(
                    format!(
                        "{} in `{}` changes nothing: it is also in `{}`, {why}",
                        quote(&rule.text),
                        rule.list.name(),
                        over.list.name()
                    ),
                    rule.span.clone(),
                )
                .related(over.span.clone(), "here")
                .help(help),
            );
        } else if is_idle(rule, &beside, compiled) {
            report.push(
                Diagnostic::warning(
                    format!(
                        "{} in `{}` changes nothing: it is denied without it",
                        quote(&rule.text),
                        rule.list.name()
                    ),
                    rule.span.clone(),
                )
                .help(NARROWEST_WINS),
            );
        }
    }
}

/// Whether a rule stands in the policy itself, and not in one that it extends: those are written for many.
fn is_own<L, T>(rule: &Checked<L, T>, report: &Report) -> bool {
    report.file(rule.span.start) == 0
}

/// What the policy says and the host's administrator does not let it have.
fn lint_floor(rules: &Rules, compiled: &Compiled, report: &mut Report) {
    let over = |rule: RuleIndex| {
        compiled
            .rules
            .get(rule as usize)
            .filter(|rule| rule.layer == Layer::Managed)
            .map(|rule| format!("`{}` of {}", rule.id, rule.source))
    };
    let mut forbidden = Vec::new();
    for rule in &rules.files {
        let access = match rule.list {
            FileList::Read => Access::Read,
            FileList::Write => Access::Write,
            FileList::Exec | FileList::ExecAllow => Access::Exec,
            // What is to be approved is, whoever says so first.
            FileList::Approve(_) | FileList::ExecApprove | FileList::Deny | FileList::ExecDeny => {
                continue;
            }
        };
        let decision = decide_file(compiled, access, &rule.target);
        if is_own(rule, report)
            && let Some(over) = over(decision.rule)
        {
            forbidden.push((
                rule.list.name(),
                &rule.text,
                &rule.span,
                over,
                decision.effect,
            ));
        }
    }
    for rule in &rules.guards {
        let denied = rules
            .denied_guards
            .iter()
            .find(|denied| denied.target == rule.target);
        if is_own(rule, report)
            && let Some(denied) = denied
        {
            let over = format!(
                "`{}[{}]` of {}",
                check::DENIED_GUARDS,
                denied.index,
                report.place(denied.span.start)
            );
            forbidden.push((check::GUARDS, &rule.text, &rule.span, over, Effect::Deny));
        }
    }
    let forbidden: Vec<Diagnostic> = forbidden
        .into_iter()
        .map(|(list, text, span, over, effect)| {
            let message = if effect == Effect::Approve {
                format!("{} in `{list}` needs approval: {over} says so", quote(text))
            } else {
                format!(
                    "{} in `{list}` changes nothing: {over} denies it",
                    quote(text)
                )
            };
            Diagnostic::warning(message, span.clone())
                .help("the host's administrator decides that: take it out")
        })
        .collect();
    forbidden
        .into_iter()
        .for_each(|diagnostic| report.push(diagnostic));
    if let Some((mode, source)) = &rules.floor.mode
        && rules.mode.is_some_and(|asked| asked != *mode)
    {
        let (asked, forced) = match mode {
            Mode::Enforce => ("monitor", "enforce"),
            Mode::Monitor => ("enforce", "monitor"),
        };
        report.push(
            Diagnostic::warning(
                format!("mode `{asked}` changes nothing: {source} makes it `{forced}`"),
                None,
            )
            .help("the host's administrator decides that: take it out"),
        );
    }
    let (_, mut unheard) = approvals::bounded(&rules.approvals, &rules.floor.approvals);
    if let Some(source) = &rules.unknown_denied
        && rules.unknown == Some(true)
    {
        unheard.push(format!(
            "`network.unknown` changes nothing: {source} makes it `deny`"
        ));
    }
    for message in unheard {
        report.push(
            Diagnostic::warning(message, None)
                .help("the host's administrator decides that: take it out"),
        );
    }
}

/// Commands that are allowed or approved, and whose programs may not be executed.
fn lint_commands(rules: &Rules, compiled: &Compiled, report: &mut Report) {
    for rule in &rules.commands {
        let (program, _) = &rule.target;
        let denied = |path: &std::path::PathBuf| {
            decide_file(compiled, Access::Exec, path).effect == Effect::Deny
        };
        if rule.list == CommandList::Deny
            || !is_own(rule, report)
            || !program.paths().iter().all(denied)
        {
            continue;
        }
        report.push(
            Diagnostic::warning(
                format!(
                    "{} in `{}` opens no program: executing it is denied",
                    quote(&rule.text),
                    rule.list.name()
                ),
                rule.span.clone(),
            )
            .help("a rule on a command only says more of a program that may be executed: name its path in `exec.allow` or `exec.approve` too"),
        );
    }
}

fn lint_unix(rules: &Rules, compiled: &Compiled, report: &mut Report) {
    let denied: HashMap<&Path, &FileRule> = rules
        .files
        .iter()
        .filter(|rule| rule.list == FileList::Deny)
        .map(|rule| (rule.target.as_path(), rule))
        .collect();
    for rule in &rules.unix {
        let UnixTarget::Path(path) = &rule.target else {
            continue;
        };
        if !is_own(rule, report) {
            continue;
        }
        let denied = denied.get(path.as_path());
        if let Some(over) = denied {
            report.push(
                Diagnostic::warning(
                    format!("{} in `network.unix` changes nothing: it is also in `files.deny`, and the stricter rule wins", quote(&rule.text)),
                    rule.span.clone(),
                )
                .related(over.span.clone(), "here")
                .help("take one of them out"),
            );
        } else if decide_file(compiled, Access::Write, path).effect == Effect::Allow {
            report.push(
                Diagnostic::warning(
                    format!(
                        "{} in `network.unix` changes nothing: `files.write` covers it",
                        quote(&rule.text)
                    ),
                    rule.span.clone(),
                )
                .help("a socket that may be written may be connected to: take it out"),
            );
        }
    }
}

/// Whether everything that a deny takes away is denied anyway.
fn is_idle<'a>(
    rule: &FileRule,
    beside: &impl Fn(FileList) -> Option<&'a FileRule>,
    compiled: &Compiled,
) -> bool {
    let around = |access| {
        let parent = rule.target.parent();
        parent.is_some_and(|parent| decide_file(compiled, access, parent).effect != Effect::Deny)
    };
    let stating = beside(FileList::Read).or(beside(FileList::Write));
    match rule.list {
        FileList::Deny => {
            let stated = [
                FileList::Exec,
                FileList::ExecAllow,
                FileList::ExecApprove,
                FileList::Approve(Approval::Both),
                FileList::Approve(Approval::Read),
                FileList::Approve(Approval::Write),
            ];
            stating.or(stated.into_iter().find_map(beside)).is_none()
                && !Access::ALL.into_iter().any(around)
        }
        FileList::ExecDeny => {
            let stated = [FileList::Exec, FileList::ExecAllow, FileList::ExecApprove];
            stated.into_iter().find_map(beside).is_none()
                && (stating.is_some() || !around(Access::Exec))
        }
        _ => false,
    }
}

fn lint_network(rules: &Rules, compiled: &Compiled, report: &mut Report) {
    let base = Bases::of(rules).network;
    // What each prefix opens; a policy without errors has few that are not covered by others.
    let mut allows: HashMap<ipnet::IpNet, Vec<Ports>> = HashMap::new();
    for rule in rules
        .network
        .iter()
        .filter(|rule| matches!(rule.list, NetList::Allow | NetList::Approve))
    {
        for net in &rule.target.nets {
            allows.entry(*net).or_default().push(rule.target.ports);
        }
    }
    for (rule, index) in rules.network.iter().zip(base..) {
        if !is_own(rule, report) {
            continue;
        }
        match cover(rule, index, compiled) {
            // Equal rules of one list are reported as listed twice.
            Some(over) if is_twin(rule, over, rules, base) => {}
            Some(over) => {
                let over = &rules.network[(over - base) as usize];
                report.push(
                    Diagnostic::warning(
                        format!(
                            "{} in `{}` changes nothing: {} in `{}` covers it",
                            quote(&rule.text),
                            rule.list.name(),
                            quote(&over.text),
                            over.list.name()
                        ),
                        rule.span.clone(),
                    )
                    .related(over.span.clone(), "here")
                    .help("take one of them out"),
                );
            }
            None if rule.list == NetList::Deny => lint_deny(rule, &allows, compiled, report),
            None => {}
        }
    }
}

/// The rule that leaves another one nothing at any of its prefixes.
fn cover(rule: &NetRule, index: RuleIndex, compiled: &Compiled) -> Option<RuleIndex> {
    let mut over = None;
    for net in &rule.target.nets {
        let prefix = find_prefix(compiled, operation(rule.list), *net)?;
        if prefix.ports.iter().any(|port| port.decision.rule == index) {
            return None;
        }
        over = prefix
            .ports
            .iter()
            .find(|port| ports(port).covers(rule.target.ports))
            .map(|port| port.decision.rule);
    }
    over
}

fn is_twin(rule: &NetRule, over: RuleIndex, rules: &Rules, base: RuleIndex) -> bool {
    over.checked_sub(base)
        .and_then(|over| rules.network.get(over as usize))
        .is_none_or(|over| over.list == rule.list && over.target == rule.target)
}

fn lint_deny(
    rule: &NetRule,
    allows: &HashMap<ipnet::IpNet, Vec<Ports>>,
    compiled: &Compiled,
    report: &mut Report,
) {
    let matters = rule.target.nets.iter().any(|net| {
        allows
            .get(net)
            .is_some_and(|allows| allows.iter().any(|ports| ports.overlaps(rule.target.ports)))
            || enclosing_prefix(compiled, NetOp::Connect, *net).is_some_and(|around| {
                around.ports.iter().any(|port| {
                    port.decision.effect != Effect::Deny && ports(port).overlaps(rule.target.ports)
                })
            })
    });
    if !matters {
        report.push(
            Diagnostic::warning(
                format!(
                    "{} in `network.deny` changes nothing: it is denied without it",
                    quote(&rule.text)
                ),
                rule.span.clone(),
            )
            .help(NARROWEST_WINS),
        );
    }
}

fn ports(rule: &PortRule) -> Ports {
    Ports {
        first: rule.first,
        last: rule.last,
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::{load, model::Context};

    fn warnings(text: &str) -> Vec<String> {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
            ..Default::default()
        };
        let compiled =
            load("p.toml", text.as_bytes(), &context).unwrap_or_else(|error| panic!("{error}"));
        compiled.warnings
    }

    fn first_lines(text: &str) -> Vec<String> {
        warnings(text)
            .iter()
            .map(|warning| warning.lines().next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn a_warning_shows_both_rules() {
        assert_eq!(
            warnings("[files]\nread = [\"/w/a\"]\nwrite = [\"a\"]\n"),
            ["\
warning: `/w/a` in `files.read` changes nothing: it is also in `files.write`, which covers reading
 --> p.toml:2:9
  |
2 | read = [\"/w/a\"]
  |         ^^^^^^
  |
 ::: p.toml:3:10
  |
3 | write = [\"a\"]
  |          --- here
  |
  = help: take it out here; to make a part read-only, name that part"]
        );
    }

    #[test]
    fn rules_without_effect_are_named() {
        for (text, expected) in [
            ("[files]\nread = [\"/a\"]\ndeny = [\"/a/b\"]", &[][..]),
            (
                "[files]\nread = [\"/a\", \"/b\"]\ndeny = [\"/a\"]",
                &[
                    "warning: `/a` in `files.read` changes nothing: it is also in `files.deny`, and the stricter rule wins",
                ],
            ),
            (
                "[files]\nread = [\"/a\"]\ndeny = [\"/b\"]",
                &["warning: `/b` in `files.deny` changes nothing: it is denied without it"],
            ),
            // A deny around an allow does not close it.
            (
                "[files]\nread = [\"/a/b\"]\ndeny = [\"/a\"]",
                &["warning: `/a` in `files.deny` changes nothing: it is denied without it"],
            ),
            (
                "[files]\nread = [\"/a\"]\nexec = [\"/a\"]\n[exec]\ndeny = [\"/a/b\"]",
                &[],
            ),
            (
                "[files]\nread = [\"/a\"]\n[exec]\ndeny = [\"/a/b\"]",
                &["warning: `/a/b` in `exec.deny` changes nothing: it is denied without it"],
            ),
            (
                "[files]\nread = [\"/b\"]\nexec = [\"/a\"]\n[exec]\ndeny = [\"/a\"]",
                &[
                    "warning: `/a` in `files.exec` changes nothing: it is also in `exec.deny`, and the stricter rule wins",
                ],
            ),
            (
                "[files]\nread = [\"/home/$USER/x\", \"/a/B$C\", \"./$x\"]",
                &["warning: variables are not expanded: `/home/$USER/x` names a file with a `$`"],
            ),
            ("", &["warning: the policy allows nothing"]),
            ("mode = \"monitor\"", &[]),
            ("[network]\nallow = [\"*\"]\ndeny = [\"10.0.0.0/8\"]", &[]),
            (
                "[network]\nallow = [\"10.0.0.0/8:80\", \"10.1.0.0/16\"]\ndeny = [\"10.0.0.0/8:25\"]",
                &[
                    "warning: `10.0.0.0/8:25` in `network.deny` changes nothing: it is denied without it",
                ],
            ),
            (
                "[network]\nallow = [\"10.0.0.0/8:80\", \"::1\"]\ndeny = [\"10.0.0.0/8:1-99\"]",
                &[
                    "warning: `10.0.0.0/8:80` in `network.allow` changes nothing: `10.0.0.0/8:1-99` in `network.deny` covers it",
                ],
            ),
            (
                "[network]\nallow = [\"*\", \"*:443\"]",
                &[
                    "warning: `*:443` in `network.allow` changes nothing: `*` in `network.allow` covers it",
                ],
            ),
            (
                "[network]\nallow = [\"*:443\", \"*:443\"]",
                &["warning: `*:443` is listed twice in `network.allow`"],
            ),
        ] {
            assert_eq!(first_lines(text), expected, "{text}");
        }
    }
}
