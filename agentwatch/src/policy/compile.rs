//! From rules to what the kernel looks up: each place with its three decisions, each address prefix with its ports.
//! Everything that rules mean together (merging, inheriting, order) is worked out here and nowhere else, so that the
//! kernel only has to find the nearest place or the longest prefix. Pure: no I/O.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    path::Path,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    approvals,
    check::{
        self, Approval, Checked, CommandEntry, CommandList, FileList, FileRule, NameRule, NetList,
        Rules,
    },
    command, default,
    diagnostic::{Diagnostic, PolicyError, Report, Severity, quote},
    expect::{self, Expectation},
    lint,
    model::{
        Access, Approvals, CommandRule, Compiled, Context, DEFAULT_RULES, Decision, Effect,
        Environment, FILES_DEFAULT, FamilyRule, GuardRule, Limits, MAX_PORT_RULES, NETWORK_DEFAULT,
        Name, NamePattern, NetOp, Opens, Place, PortRule, Prefix, Rule, RuleIndex, SETTINGS,
        UnixRule, UnixTarget,
    },
    name,
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
    for rule in &rules.commands {
        all.push(written(rule, rule.list.name(), report));
    }
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
        rules: all,
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
    approve_read: Option<RuleIndex>,
    approve_write: Option<RuleIndex>,
    exec_approve: Option<RuleIndex>,
    /// Whether the kernel is set up here.
    settings: bool,
    /// The administrator's.
    floor: Floor,
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

fn places(rules: &[FileRule], names: &[Name], managed_names: &[Name]) -> Vec<Place> {
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

/// The rules of one prefix, as indexes into the list of rules on addresses.
#[derive(Default)]
struct Own {
    managed: Vec<usize>,
    managed_approves: Vec<usize>,
    denies: Vec<usize>,
    approves: Vec<usize>,
    allows: Vec<usize>,
}

impl Own {
    fn all(&self) -> impl DoubleEndedIterator<Item = usize> + Clone {
        (self.denies.iter())
            .chain(&self.approves)
            .chain(&self.allows)
            .chain(&self.managed)
            .chain(&self.managed_approves)
            .copied()
    }
}

/// What holds in a prefix and what is inside it.
#[derive(Clone, Default)]
struct Around {
    op: Option<NetOp>,
    net: IpNet,
    /// Without what the administrator has approved.
    ports: Vec<PortRule>,
    /// What he has, the nearest first.
    approves: Vec<PortRule>,
}

fn prefixes(all: &Rules, base: RuleIndex, report: &mut Report) -> Vec<Prefix> {
    let rules = &all.network;
    let mut own: BTreeMap<(NetOp, IpNet), Own> = BTreeMap::new();
    for (index, rule) in rules.iter().enumerate() {
        for net in &rule.target.nets {
            let entry = own.entry((operation(rule.list), *net)).or_default();
            let managed = rule.layer == Layer::Managed;
            let list = match rule.list {
                NetList::Deny if managed => &mut entry.managed,
                NetList::Approve if managed => &mut entry.managed_approves,
                NetList::Deny => &mut entry.denies,
                NetList::Approve => &mut entry.approves,
                NetList::Allow | NetList::Listen => &mut entry.allows,
            };
            list.push(index);
        }
    }
    // What nothing else decides is decided by the prefixes that hold every address.
    let unknown = (all.unknown == Some(true) && all.unknown_denied.is_none()).then_some(PortRule {
        first: Ports::ALL.first,
        last: Ports::ALL.last,
        decision: Decision {
            effect: Effect::Approve,
            rule: NETWORK_DEFAULT,
        },
    });
    if unknown.is_some() {
        for net in [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())] {
            own.entry((NetOp::Connect, net)).or_default();
        }
    }
    let is_managed = |rule: &PortRule| {
        rule.decision
            .rule
            .checked_sub(base)
            .and_then(|index| rules.get(index as usize))
            .is_some_and(|rule| rule.layer == Layer::Managed)
    };
    // Prefixes compare by address, then by length, so a prefix comes before everything inside it.
    let mut enclosing: Vec<Around> = Vec::new();
    let mut prefixes: Vec<Prefix> = Vec::with_capacity(own.len());
    for ((op, net), own_rules) in own {
        while enclosing
            .last()
            .is_some_and(|around| around.op != Some(op) || !around.net.contains(&net))
        {
            enclosing.pop();
        }
        let around = enclosing.last().cloned().unwrap_or_default();
        let own = |index: &usize| PortRule {
            first: rules[*index].target.ports.first,
            last: rules[*index].target.ports.last,
            decision: Decision {
                effect: match rules[*index].list {
                    NetList::Deny => Effect::Deny,
                    NetList::Approve => Effect::Approve,
                    NetList::Allow | NetList::Listen => Effect::Allow,
                },
                rule: base + *index as RuleIndex,
            },
        };
        let whole = net.prefix_len() == 0 && op == NetOp::Connect;
        // The administrator's denials come before all others, those of enclosing prefixes too.
        let ports = (own_rules.managed.iter().map(own))
            .chain(around.ports.iter().filter(|rule| is_managed(rule)).copied())
            .chain(own_rules.denies.iter().map(own))
            .chain(own_rules.approves.iter().map(own))
            .chain(own_rules.allows.iter().map(own))
            .chain(
                around
                    .ports
                    .iter()
                    .filter(|rule| !is_managed(rule))
                    .copied(),
            )
            .chain(unknown.filter(|_| whole));
        let mut approves = PortList::default();
        let mut beyond = (own_rules.managed_approves.iter().map(own))
            .chain(around.approves)
            .find(|approve| !approves.push(*approve));
        let approves = approves.0;
        let mut inherited = PortList::default();
        let mut list = PortList::default();
        for port in ports {
            let fits = inherited.push(port)
                && under_approvals(port, &approves).all(|part| list.push(part));
            if !fits {
                beyond = Some(port);
                break;
            }
        }
        if let Some(port) = beyond {
            // The rule that is too many may stand further out: then the last one here is shown.
            let index = port.decision.rule.checked_sub(base).map(|at| at as usize);
            let here = own_rules.all();
            let shown = (here.clone().find(|own| Some(*own) == index)).or(here.last());
            report.push(
                Diagnostic::error(
                    format!(
                        "at {} there are more than {MAX_PORT_RULES} rules on ports, those around it included",
                        quote(&net.to_string())
                    ),
                    shown.map(|index| rules[index].span.clone()),
                )
                .help("join ports into ranges such as `8000-8999`"),
            );
        }
        enclosing.push(Around {
            op: Some(op),
            net,
            ports: inherited.0,
            approves,
        });
        prefixes.push(Prefix {
            op,
            net,
            ports: list.0,
        });
    }
    prefixes
}

/// A rule on ports, and before it what of it the administrator has approved.
fn under_approvals(port: PortRule, approves: &[PortRule]) -> impl Iterator<Item = PortRule> {
    let parts: Vec<PortRule> = approves
        .iter()
        .filter(|_| port.decision.effect != Effect::Deny)
        .map(|approve| PortRule {
            first: approve.first.max(port.first),
            last: approve.last.min(port.last),
            decision: approve.decision,
        })
        .filter(|part| part.first <= part.last)
        .collect();
    parts.into_iter().chain([port])
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
    commands: &'a [CommandRule],
    unix: &'a [UnixRule],
    families: &'a [FamilyRule],
    guards: &'a [GuardRule],
    limits: &'a Limits,
    approvals: &'a Approvals,
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
        commands: &compiled.commands,
        unix: &compiled.unix,
        families: &compiled.families,
        guards: &compiled.guards,
        limits: &compiled.limits,
        approvals: &compiled.approvals,
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
