//! From rules to what the kernel looks up: each place with its three decisions, each address prefix with its ports.
//! Everything that rules mean together (merging, inheriting, order) is worked out here and nowhere else, so that the
//! kernel only has to find the nearest place or the longest prefix. Pure: no I/O.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    ops::Range,
    path::Path,
};

use ipnet::IpNet;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    check::{self, Checked, FileList, FileRule, NameRule, NetList, NetRule, Rules},
    default,
    diagnostic::{Diagnostic, PolicyError, Report, Severity, quote},
    explain, file, lint,
    model::{
        Access, Compiled, Context, DEFAULT_RULES, Decision, Effect, FILES_DEFAULT, FamilyRule,
        GuardRule, MAX_PORT_RULES, Name, NetOp, Place, PortRule, Prefix, Rule, RuleIndex, UnixRule,
        UnixTarget,
    },
    network::Ports,
};
use crate::event::model::{Layer, Mode};

/// The longest policy text, in bytes.
pub const MAX_TEXT: usize = 1 << 20;

/// All that can be said about a policy's text.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The name that the policy gives itself.
    pub name: Option<String>,
    /// Absent where the report holds errors.
    pub compiled: Option<Compiled>,
    pub report: Report,
}

/// Reads, checks and compiles a policy. `file_name` is for messages and for the rules' sources. The built-in default
/// policy is loaded with an empty name.
pub fn load(file_name: &str, text: &[u8], context: &Context) -> Result<Compiled, PolicyError> {
    let Examined {
        compiled, report, ..
    } = examine(file_name, text, context);
    compiled.ok_or_else(|| PolicyError::new(report))
}

/// As [`load`], and keeps the diagnostics as data.
pub fn examine(file_name: &str, text: &[u8], context: &Context) -> Examined {
    let built_in = file_name.is_empty() && text == default::TEXT.as_bytes();
    let file_name = if built_in { default::NAME } else { file_name };
    let mut report = match decode(file_name, text) {
        Ok(report) => report,
        Err(report) => {
            return Examined {
                name: None,
                compiled: None,
                report,
            };
        }
    };
    // The text was decoded; the report owns it, and reading borrows it while the report is written to.
    let text = String::from_utf8_lossy(text);
    let file = file::read(&text, &mut report);
    let rules = check::check(file, context, &mut report);
    let mut compiled = compile(&rules, file_name, &mut report);
    if report.errors() == 0 {
        lint::lint(&rules, &compiled, &mut report);
        match digest(&compiled) {
            Ok(digest) => compiled.digest = digest,
            Err(error) => report.push(Diagnostic::error(
                format!("the compiled policy has no canonical form: {error}"),
                None,
            )),
        }
    }
    if built_in {
        // Its rules are written for every working directory; some of them are idle in most.
        report = report.without_warnings();
    }
    compiled.warnings = report.render_each(Severity::Warning, false);
    Examined {
        name: rules.name,
        compiled: (report.errors() == 0).then_some(compiled),
        report,
    }
}

/// Compiles rules. What can't be compiled goes into the report; the result is then good for nothing. The digest and the
/// warnings are left empty.
pub fn compile(rules: &Rules, file_name: &str, report: &mut Report) -> Compiled {
    let mut all: Vec<Rule> = DEFAULT_RULES.iter().map(|id| built_in(id)).collect();
    let mut add = |list: &str, index: usize, text: &str, span: &Range<usize>| {
        all.push(Rule {
            id: format!("{list}[{index}]"),
            layer: Layer::Task,
            source: format!("{file_name}:{}", report.line(span.start)),
            text: text.to_owned(),
        });
    };
    // The order of `Bases`.
    for rule in &rules.files {
        add(rule.list.name(), rule.index, &rule.text, &rule.span);
    }
    for rule in &rules.names {
        add(rule.list.name(), rule.index, &rule.text, &rule.span);
    }
    for rule in &rules.network {
        add(rule.list.name(), rule.index, &rule.text, &rule.span);
    }
    for rule in &rules.unix {
        add(check::UNIX, rule.index, &rule.text, &rule.span);
    }
    for rule in &rules.families {
        add(check::FAMILIES, rule.index, &rule.text, &rule.span);
    }
    for rule in &rules.guards {
        add(check::GUARDS, rule.index, &rule.text, &rule.span);
    }
    let bases = Bases::of(rules);
    let names = names(&rules.names, bases.names);
    Compiled {
        digest: String::new(),
        mode: rules.mode,
        rules: all,
        places: places(&rules.files, &names),
        prefixes: prefixes(&rules.network, bases.network, report),
        names,
        unix: unix(rules, bases.unix),
        families: first_of_each(&rules.families, bases.families)
            .map(|(bit, rule)| FamilyRule { bit, rule })
            .collect(),
        guards: first_of_each(&rules.guards, bases.guards)
            .map(|(operation, rule)| GuardRule { operation, rule })
            .collect(),
        warnings: Vec::new(),
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
}

impl Bases {
    pub(super) fn of(rules: &Rules) -> Self {
        let names = FILES_BASE + rules.files.len() as RuleIndex;
        let network = names + rules.names.len() as RuleIndex;
        let unix = network + rules.network.len() as RuleIndex;
        let families = unix + rules.unix.len() as RuleIndex;
        let guards = families + rules.families.len() as RuleIndex;
        Self {
            names,
            network,
            unix,
            families,
            guards,
        }
    }
}

fn names(rules: &[NameRule], base: RuleIndex) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::with_capacity(rules.len());
    let mut seen = HashSet::new();
    for (rule, index) in rules.iter().zip(base..) {
        if seen.insert(&rule.target) {
            names.push(Name {
                pattern: rule.target.clone(),
                decisions: [Decision {
                    effect: Effect::Deny,
                    rule: index,
                }; 3],
            });
        }
    }
    names
}

/// A socket that `files.deny` names too is left out: the stricter rule wins.
fn unix(rules: &Rules, base: RuleIndex) -> Vec<UnixRule> {
    let denied: HashSet<&Path> = rules
        .files
        .iter()
        .filter(|rule| rule.list == FileList::Deny)
        .map(|rule| rule.target.as_path())
        .collect();
    first_of_each(&rules.unix, base)
        .filter(|(target, _)| match target {
            UnixTarget::Path(path) => !denied.contains(path.as_path()),
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
        NetList::Allow | NetList::Deny => NetOp::Connect,
        NetList::Listen => NetOp::Listen,
    }
}

/// The text, ready to be pointed into; an error where there is none.
fn decode(file_name: &str, text: &[u8]) -> Result<Report, Report> {
    if text.len() > MAX_TEXT {
        let mut report = Report::new(file_name, "");
        report.push(
            Diagnostic::error(format!("the policy is longer than {MAX_TEXT} bytes"), None)
                .help("name directories instead of the files in them"),
        );
        return Err(report);
    }
    match std::str::from_utf8(text) {
        Ok(text) => Ok(Report::new(file_name, text)),
        Err(error) => {
            // Up to the fault both texts are the same, so its place is right in what is shown.
            let mut report = Report::new(file_name, String::from_utf8_lossy(text));
            let at = error.valid_up_to();
            report.push(
                Diagnostic::error(
                    "the policy is not UTF-8",
                    at..at + char::REPLACEMENT_CHARACTER.len_utf8(),
                )
                .help("save the file as UTF-8 text"),
            );
            Err(report)
        }
    }
}

fn built_in(id: &str) -> Rule {
    Rule {
        id: id.to_owned(),
        layer: Layer::Default,
        source: String::new(),
        text: String::new(),
    }
}

/// What the rules at one path say, each list by its first rule.
#[derive(Clone, Copy, Default)]
struct Stated {
    read: Option<RuleIndex>,
    write: Option<RuleIndex>,
    exec: Option<RuleIndex>,
    deny: Option<RuleIndex>,
    exec_deny: Option<RuleIndex>,
}

impl Stated {
    fn add(&mut self, list: FileList, rule: RuleIndex) {
        let slot = match list {
            FileList::Read => &mut self.read,
            FileList::Write => &mut self.write,
            FileList::Exec => &mut self.exec,
            FileList::Deny => &mut self.deny,
            FileList::ExecDeny => &mut self.exec_deny,
        };
        slot.get_or_insert(rule);
    }

    fn decide(self, inherited: [Decision; 3]) -> [Decision; 3] {
        let allow = |rule| Decision {
            effect: Effect::Allow,
            rule,
        };
        let deny = |rule| Decision {
            effect: Effect::Deny,
            rule,
        };
        let mut decisions = inherited;
        // A rule that speaks of reading or writing states everything that is allowed from here down.
        if let Some(stating) = self.read.or(self.write) {
            decisions[Access::Read as usize] = allow(stating);
            decisions[Access::Write as usize] = self.write.map_or(deny(stating), allow);
            decisions[Access::Exec as usize] = deny(stating);
        }
        if let Some(rule) = self.exec {
            decisions[Access::Exec as usize] = allow(rule);
        }
        if let Some(rule) = self.exec_deny {
            decisions[Access::Exec as usize] = deny(rule);
        }
        if let Some(rule) = self.deny {
            decisions = [deny(rule); 3];
        }
        decisions
    }
}

fn places(rules: &[FileRule], names: &[Name]) -> Vec<Place> {
    let mut stated: BTreeMap<&Path, Stated> = BTreeMap::new();
    for (rule, index) in rules.iter().zip(FILES_BASE..) {
        stated
            .entry(&rule.target)
            .or_default()
            .add(rule.list, index);
    }
    // Paths compare by component, so a place comes right before everything inside it, and the last entries of
    // `enclosing` are the places around the next path.
    let mut enclosing: Vec<(&Path, [Decision; 3])> = Vec::new();
    let mut places = Vec::with_capacity(stated.len());
    for (path, stated) in stated {
        while enclosing
            .last()
            .is_some_and(|(around, _)| !path.starts_with(around))
        {
            enclosing.pop();
        }
        // What a rule on names says between here and there comes first.
        let around = enclosing.last().copied();
        let inherited = explain::named(names, path, around.map(|(around, _)| around)).map_or_else(
            || {
                around.map_or(
                    [Decision {
                        effect: Effect::Deny,
                        rule: FILES_DEFAULT,
                    }; 3],
                    |(_, decisions)| decisions,
                )
            },
            |(_, name)| name.decisions,
        );
        let decisions = stated.decide(inherited);
        enclosing.push((path, decisions));
        places.push(Place {
            path: path.to_owned(),
            decisions,
        });
    }
    places
}

/// The rules of one prefix, as indexes into the list of rules on addresses.
#[derive(Default)]
struct Own {
    denies: Vec<usize>,
    allows: Vec<usize>,
}

fn prefixes(rules: &[NetRule], base: RuleIndex, report: &mut Report) -> Vec<Prefix> {
    let mut own: BTreeMap<(NetOp, IpNet), Own> = BTreeMap::new();
    for (index, rule) in rules.iter().enumerate() {
        for net in &rule.target.nets {
            let entry = own.entry((operation(rule.list), *net)).or_default();
            match rule.list {
                NetList::Deny => entry.denies.push(index),
                NetList::Allow | NetList::Listen => entry.allows.push(index),
            }
        }
    }
    // Prefixes compare by address, then by length, so a prefix comes before everything inside it.
    let mut enclosing: Vec<usize> = Vec::new();
    let mut prefixes: Vec<Prefix> = Vec::with_capacity(own.len());
    for ((op, net), own) in own {
        while enclosing.last().is_some_and(|around| {
            prefixes[*around].op != op || !prefixes[*around].net.contains(&net)
        }) {
            enclosing.pop();
        }
        let mut list = PortList::default();
        let mut overflow = None;
        for index in own.denies.iter().chain(&own.allows).copied() {
            let effect = if rules[index].list == NetList::Deny {
                Effect::Deny
            } else {
                Effect::Allow
            };
            let decision = Decision {
                effect,
                rule: base + index as RuleIndex,
            };
            if !list.push(PortRule {
                first: rules[index].target.ports.first,
                last: rules[index].target.ports.last,
                decision,
            }) {
                overflow = Some(index);
                break;
            }
        }
        if overflow.is_none()
            && let Some(around) = enclosing.last()
            && !prefixes[*around].ports.iter().all(|port| list.push(*port))
        {
            overflow = own.denies.iter().chain(&own.allows).next_back().copied();
        }
        if let Some(index) = overflow {
            report.push(
                Diagnostic::error(
                    format!(
                        "at {} there are more than {MAX_PORT_RULES} rules on ports, those around it included",
                        quote(&net.to_string())
                    ),
                    rules[index].span.clone(),
                )
                .help("join ports into ranges such as `8000-8999`"),
            );
        }
        enclosing.push(prefixes.len());
        prefixes.push(Prefix {
            op,
            net,
            ports: list.0,
        });
    }
    prefixes
}

/// Port rules in the order in which they are asked.
#[derive(Default)]
struct PortList(Vec<PortRule>);

impl PortList {
    /// Appends a rule unless an earlier one leaves it nothing. False where the list is full.
    fn push(&mut self, rule: PortRule) -> bool {
        let ports = |rule: &PortRule| Ports {
            first: rule.first,
            last: rule.last,
        };
        if self
            .0
            .iter()
            .any(|earlier| ports(earlier).covers(ports(&rule)))
        {
            return true;
        }
        if self.0.len() == MAX_PORT_RULES {
            return false;
        }
        self.0.push(rule);
        true
    }
}

/// What a policy is, without where it was written: two files that mean the same rule by rule have the same digest.
#[derive(Serialize)]
struct Canonical<'a> {
    mode: Mode,
    rules: Vec<(&'a str, &'a str, Layer)>,
    places: &'a [Place],
    prefixes: &'a [Prefix],
    names: &'a [Name],
    unix: &'a [UnixRule],
    families: &'a [FamilyRule],
    guards: &'a [GuardRule],
}

fn digest(compiled: &Compiled) -> Result<String, serde_json::Error> {
    let canonical = Canonical {
        mode: compiled.mode,
        rules: compiled
            .rules
            .iter()
            .map(|rule| (rule.id.as_str(), rule.text.as_str(), rule.layer))
            .collect(),
        places: &compiled.places,
        prefixes: &compiled.prefixes,
        names: &compiled.names,
        unix: &compiled.unix,
        families: &compiled.families,
        guards: &compiled.guards,
    };
    Ok(format!(
        "sha256:{}",
        hex::encode(Sha256::digest(serde_json::to_vec(&canonical)?))
    ))
}

#[cfg(test)]
mod tests;
