//! From rules to what the kernel looks up: each place with its three decisions, each address prefix with its ports.
//! Everything that rules mean together (merging, inheriting, order) is worked out here and nowhere else, so that the
//! kernel only has to find the nearest place or the longest prefix. Pure: no I/O.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    path::Path,
};

use ipnet::IpNet;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    check::{self, Checked, FileList, FileRule, NameRule, NetList, NetRule, Rules},
    default,
    diagnostic::{Diagnostic, PolicyError, Report, Severity, quote},
    expect::{self, Expectation},
    explain, lint,
    model::{
        Access, Compiled, Context, DEFAULT_RULES, Decision, Effect, Environment, FILES_DEFAULT,
        FamilyRule, GuardRule, Limits, MAX_PORT_RULES, Name, NetOp, Opens, Place, PortRule, Prefix,
        Rule, RuleIndex, UnixRule, UnixTarget,
    },
    network::Ports,
    sources::{self, Sources},
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
    /// What the policy is to be held to.
    pub expect: Vec<Expectation>,
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
    examine_all(&Sources::alone(file_name, text, context))
}

/// As [`examine`], with what the policy extends and what the host's administrator adds.
pub fn examine_all(sources: &Sources<'_>) -> Examined {
    let built_in = sources.file.is_empty() && sources.text == default::TEXT.as_bytes();
    let file_name = if built_in {
        default::NAME
    } else {
        sources.file
    };
    let mut report = match decode(file_name, sources.text) {
        Ok(report) => report,
        Err(report) => {
            return Examined {
                name: None,
                compiled: None,
                expect: Vec::new(),
                report,
            };
        }
    };
    let mut rules = sources::read(sources, &mut report);
    let expect = std::mem::take(&mut rules.expect);
    let expect = expect::read(expect, sources.context, &mut report);
    let mut compiled = compile(&rules, &mut report);
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
        expect,
        report,
    }
}

/// Compiles rules. What can't be compiled goes into the report; the result is then good for nothing. The digest and the
/// warnings are left empty.
pub fn compile(rules: &Rules, report: &mut Report) -> Compiled {
    let mut all: Vec<Rule> = DEFAULT_RULES.iter().map(|id| built_in(id)).collect();
    // The order of `Bases`.
    for rule in &rules.files {
        all.push(written(rule, rule.list.name(), report));
    }
    for rule in &rules.names {
        all.push(written(rule, rule.list.name(), report));
    }
    for rule in &rules.network {
        all.push(written(rule, rule.list.name(), report));
    }
    let others = [
        (check::GUARDS, &rules.guards),
        (check::DENIED_GUARDS, &rules.denied_guards),
    ];
    for rule in &rules.unix {
        all.push(written(rule, check::UNIX, report));
    }
    for rule in &rules.families {
        all.push(written(rule, check::FAMILIES, report));
    }
    for (list, rules) in others {
        for rule in rules {
            all.push(written(rule, list, report));
        }
    }
    let bases = Bases::of(rules);
    let names = names(&rules.names, bases.names);
    let managed_names: Vec<Name> = names
        .iter()
        .filter(|name| is_managed(&all, name.decisions[0].rule))
        .cloned()
        .collect();
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
        rules: all,
        places: places(&rules.files, &names, managed_names),
        prefixes: prefixes(&rules.network, bases.network, report),
        unix: unix(rules, managed_names, bases.unix),
        names,
        families: first_of_each(&rules.families, bases.families)
            .map(|(bit, rule)| FamilyRule { bit, rule })
            .collect(),
        guards: first_of_each(&rules.guards, bases.guards)
            .filter(|(operation, _)| !forbidden(operation))
            .map(|(operation, rule)| GuardRule { operation, rule })
            .collect(),
        task: rules.task.clone(),
        limits: rules.limits,
        environment: rules.environment.clone(),
        opens: rules.opens.unwrap_or_default(),
        floor: rules.floor.clone(),
        warnings: Vec::new(),
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

fn is_managed(rules: &[Rule], rule: RuleIndex) -> bool {
    rules
        .get(rule as usize)
        .is_some_and(|rule| rule.layer == Layer::Managed)
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
    // Of two layers that say the same, the administrator's is named.
    let mut numbered: Vec<(&NameRule, RuleIndex)> = rules.iter().zip(base..).collect();
    numbered.sort_by_key(|(rule, _)| rule.layer != Layer::Managed);
    for (rule, index) in numbered {
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
        explain::named(managed_names, path, None).is_some()
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
    /// The administrator's.
    managed_deny: Option<RuleIndex>,
    managed_exec_deny: Option<RuleIndex>,
}

impl Stated {
    fn add(&mut self, list: FileList, layer: Layer, rule: RuleIndex) {
        let slot = match list {
            FileList::Deny if layer == Layer::Managed => &mut self.managed_deny,
            FileList::ExecDeny if layer == Layer::Managed => &mut self.managed_exec_deny,
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

/// What the administrator denies at a place and above it, right by right.
type Forbidden = [Option<RuleIndex>; 3];

fn places(rules: &[FileRule], names: &[Name], managed_names: &[Name]) -> Vec<Place> {
    let mut stated: BTreeMap<&Path, Stated> = BTreeMap::new();
    for (rule, index) in rules.iter().zip(FILES_BASE..) {
        stated
            .entry(&rule.target)
            .or_default()
            .add(rule.list, rule.layer, index);
    }
    // Paths compare by component, so a place comes right before everything inside it, and the last entries of
    // `enclosing` are the places around the next path.
    let mut enclosing: Vec<(&Path, [Decision; 3], Forbidden)> = Vec::new();
    let mut places = Vec::with_capacity(stated.len());
    for (path, stated) in stated {
        while enclosing
            .last()
            .is_some_and(|(around, ..)| !path.starts_with(around))
        {
            enclosing.pop();
        }
        // What a rule on names says between here and there comes first.
        let around = enclosing.last().copied();
        let inherited = explain::named(names, path, around.map(|(around, ..)| around)).map_or_else(
            || {
                around.map_or(
                    [Decision {
                        effect: Effect::Deny,
                        rule: FILES_DEFAULT,
                    }; 3],
                    |(_, decisions, _)| decisions,
                )
            },
            |(_, name)| name.decisions,
        );
        let decisions = stated.decide(inherited);
        // The administrator's denials hold whatever is said below them, and so do those on names.
        let mut forbidden = around.map_or([None; 3], |(.., forbidden)| forbidden);
        for access in Access::ALL {
            let slot = &mut forbidden[access as usize];
            *slot = stated.managed_deny.or(*slot);
            if access == Access::Exec {
                *slot = slot.or(stated.managed_exec_deny);
            }
        }
        enclosing.push((path, decisions, forbidden));
        let name = explain::named(managed_names, path, None).map(|(_, name)| name.decisions);
        let mut decisions = decisions;
        for access in Access::ALL {
            let right = access as usize;
            let by_name = || name.map(|decisions| decisions[right].rule);
            if let Some(rule) = forbidden[right].or_else(by_name) {
                decisions[right] = Decision {
                    effect: Effect::Deny,
                    rule,
                };
            }
        }
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
    managed: Vec<usize>,
    denies: Vec<usize>,
    allows: Vec<usize>,
}

fn prefixes(rules: &[NetRule], base: RuleIndex, report: &mut Report) -> Vec<Prefix> {
    let mut own: BTreeMap<(NetOp, IpNet), Own> = BTreeMap::new();
    for (index, rule) in rules.iter().enumerate() {
        for net in &rule.target.nets {
            let entry = own.entry((operation(rule.list), *net)).or_default();
            match rule.list {
                NetList::Deny if rule.layer == Layer::Managed => entry.managed.push(index),
                NetList::Deny => entry.denies.push(index),
                NetList::Allow | NetList::Listen => entry.allows.push(index),
            }
        }
    }
    // Prefixes compare by address, then by length, so a prefix comes before everything inside it.
    let mut enclosing: Vec<usize> = Vec::new();
    let mut prefixes: Vec<Prefix> = Vec::with_capacity(own.len());
    for ((op, net), own_rules) in own {
        while enclosing.last().is_some_and(|around| {
            prefixes[*around].op != op || !prefixes[*around].net.contains(&net)
        }) {
            enclosing.pop();
        }
        let around: &[PortRule] = enclosing
            .last()
            .map_or(&[], |around| prefixes[*around].ports.as_slice());
        let managed =
            |rule: &&PortRule| rules[(rule.decision.rule - base) as usize].layer == Layer::Managed;
        let own = |index: &usize| PortRule {
            first: rules[*index].target.ports.first,
            last: rules[*index].target.ports.last,
            decision: Decision {
                effect: match rules[*index].list {
                    NetList::Deny => Effect::Deny,
                    NetList::Allow | NetList::Listen => Effect::Allow,
                },
                rule: base + *index as RuleIndex,
            },
        };
        // The administrator's denials come before all others, those of enclosing prefixes too.
        let ports = (own_rules.managed.iter().map(own))
            .chain(around.iter().filter(managed).copied())
            .chain(own_rules.denies.iter().map(own))
            .chain(own_rules.allows.iter().map(own))
            .chain(around.iter().filter(|rule| !managed(rule)).copied());
        let mut list = PortList::default();
        let mut overflow = None;
        for port in ports {
            if !list.push(port) {
                // The rule that is too many may stand further out: then the last one here is shown.
                let here = own_rules
                    .denies
                    .iter()
                    .chain(&own_rules.allows)
                    .chain(&own_rules.managed);
                let beyond = (port.decision.rule - base) as usize;
                overflow = here
                    .clone()
                    .find(|index| **index == beyond)
                    .or(here.last())
                    .copied();
                break;
            }
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
    limits: &'a Limits,
    environment: &'a Environment,
    opens: Opens,
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
        limits: &compiled.limits,
        environment: &compiled.environment,
        opens: compiled.opens,
    };
    Ok(format!(
        "sha256:{}",
        hex::encode(Sha256::digest(serde_json::to_vec(&canonical)?))
    ))
}

#[cfg(test)]
mod tests;
