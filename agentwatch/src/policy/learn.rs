//! A policy out of what was recorded: directories instead of files, ports instead of sockets, and nothing that the base
//! preset takes for a credential. Pure: the history is handed in, and a text is handed back.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Component, Path, PathBuf},
};

use super::{
    examine::load,
    expect::Question,
    explain::decide_file,
    model::{Access, Compiled, Context, Effect, MAX_ARGUMENTS, NetOp, Place},
    network, preset,
    replay::{decided, questions},
};
use crate::event::model::{Event, Verdict};

/// Trees of the system: one file of them stands for all.
const SYSTEM: [&str; 12] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/nix/store",
    "/proc",
    "/sys",
    "/run/systemd/resolve",
    "/dev/pts",
];
/// Places for what has a new name each time.
const SCRATCH: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
/// Different addresses with one port from which on every address is meant.
const MANY_ADDRESSES: usize = 8;
/// From here on the kernel picks ports by itself (ip_local_port_range).
const EPHEMERAL: u16 = 32768;
/// Arguments by which commands are told apart.
const TOLD_APART: usize = 4;
/// Programs that a comment names.
const SHOWN: usize = 3;

/// What was done with one object: how often, and by which programs.
#[derive(Clone, Debug, Default)]
struct Seen {
    count: u64,
    programs: BTreeSet<String>,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.count += other.count;
        self.programs.extend(other.programs.iter().cloned());
    }

    fn comment(&self) -> String {
        let mut names: Vec<&str> = self
            .programs
            .iter()
            .map(|path| path.rsplit('/').next().unwrap_or(path))
            .collect();
        names.dedup();
        let more = names.len().saturating_sub(SHOWN);
        let shown = names
            .iter()
            .take(SHOWN)
            .copied()
            .collect::<Vec<_>>()
            .join(", ");
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let times = if self.count == 1 {
            "seen once".to_owned()
        } else {
            format!("seen {} times", self.count)
        };
        if shown.is_empty() {
            return times;
        }
        format!("{times}, by {}", visible(&format!("{shown}{more}")))
    }
}

/// What sessions did.
#[derive(Clone, Debug, Default)]
pub struct Learner {
    files: BTreeMap<(Access, PathBuf), Seen>,
    net: BTreeMap<(NetOp, IpAddr, u16), Seen>,
    unix: BTreeMap<String, Seen>,
    /// The first arguments that each program was executed with.
    commands: BTreeMap<PathBuf, BTreeSet<Vec<String>>>,
    approved: Approved,
    events: u64,
}

/// What a person approved.
#[derive(Clone, Debug, Default)]
struct Approved {
    files: BTreeMap<(Access, PathBuf), Seen>,
    commands: BTreeMap<(PathBuf, Vec<String>), Seen>,
    net: BTreeMap<SocketAddr, Seen>,
}

/// A learned policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    pub text: String,
    /// What was done and is not in the policy, a sentence each: credentials.
    pub left_out: Vec<String>,
}

impl Learner {
    /// Takes an event into account: what was allowed, and what would have been denied in `monitor` mode. What was denied stays
    /// denied.
    pub fn see(&mut self, event: &Event) {
        if event.verdict == Verdict::Denied || event.verdict == Verdict::Held {
            return;
        }
        let seen = Seen {
            count: event.count,
            programs: event
                .process
                .iter()
                .map(|process| process.exe.clone())
                .collect(),
        };
        let approved = decided(event) == Effect::Approve;
        for question in questions(event) {
            self.events += 1;
            match question {
                Question::File(access, path) if approved => {
                    let files = &mut self.approved.files;
                    files.entry((access, path)).or_default().add(&seen);
                }
                Question::Net(NetOp::Connect, address) if approved => {
                    for ip in named(NetOp::Connect, address.ip()) {
                        let address = SocketAddr::new(ip, address.port());
                        self.approved.net.entry(address).or_default().add(&seen);
                    }
                }
                Question::Command(path, arguments) if approved => {
                    let key = (path, first(&arguments));
                    let commands = &mut self.approved.commands;
                    commands.entry(key).or_default().add(&seen);
                }
                Question::Command(path, arguments) => {
                    let commands = self.commands.entry(path.clone()).or_default();
                    commands.insert(first(&arguments));
                    let key = (Access::Exec, path);
                    self.files.entry(key).or_default().add(&seen);
                }
                Question::File(access, path) => {
                    self.files.entry((access, path)).or_default().add(&seen);
                }
                Question::Net(op, address) => {
                    for ip in named(op, address.ip()) {
                        let key = (op, ip, address.port());
                        self.net.entry(key).or_default().add(&seen);
                    }
                }
                Question::Unix(path) => {
                    let path = path.display().to_string();
                    self.unix.entry(path).or_default().add(&seen);
                }
                Question::Abstract(name) => {
                    self.unix.entry(format!("@{name}")).or_default().add(&seen);
                }
            }
        }
    }

    /// How many actions were taken into account.
    pub fn seen(&self) -> u64 {
        self.events
    }

    /// Writes the policy. `context` has the directory that the sessions worked in, and the home of their user.
    pub fn learn(&self, sessions: &[String], context: &Context) -> Learned {
        let base = secrets(context);
        let base = base.as_ref();
        let mut left_out = Vec::new();
        let rules = self.file_rules(base, context, &mut left_out);
        let approve = self.approved_files(base, &mut left_out);
        let mut text = heading(sessions, &left_out);
        let list = |access: Access| {
            rules
                .iter()
                .filter(move |((own, _), _)| *own == access)
                .map(|((_, rule), seen)| (rule.clone(), seen.comment()))
                .collect::<Vec<_>>()
        };
        text.push_str("\n[files]\n");
        push_list(&mut text, "read", &list(Access::Read));
        push_list(&mut text, "write", &list(Access::Write));
        push_list(&mut text, "exec", &list(Access::Exec));
        push_list(&mut text, "deny", &denied(base, &rules, context));
        push_values(&mut text, "approve", &approve);
        let commands = self.approved_commands();
        if !commands.is_empty() {
            text.push_str("\n[exec]\n");
            push_values(&mut text, "approve", &commands);
        }
        self.push_network(&mut text, base);
        Learned { text, left_out }
    }

    /// What was done with files, by the trees that they stand for.
    fn file_rules(
        &self,
        base: Option<&Compiled>,
        context: &Context,
        left_out: &mut Vec<String>,
    ) -> BTreeMap<(Access, String), Seen> {
        let mut rules: BTreeMap<(Access, String), Seen> = BTreeMap::new();
        let written = self.written(base, context);
        for ((access, path), seen) in &self.files {
            if is_secret(base, path) {
                left_out.push(format!(
                    "{} of {} ({}): the base preset denies it",
                    name(*access),
                    visible(&path.display().to_string()),
                    seen.comment()
                ));
                continue;
            }
            let rule = widen(*access, path, context);
            // What may be written may be read, and a rule on reading inside would take the writing away.
            let around = super::path::parse(&rule, context).ok().and_then(|path| {
                path.ancestors()
                    .filter_map(|above| written.get(above))
                    .last()
                    .cloned()
            });
            let (access, rule) = match around {
                Some(around) if *access != Access::Exec => (Access::Write, around),
                _ => (*access, rule),
            };
            rules.entry((access, rule)).or_default().add(seen);
        }
        rules
    }

    /// The trees that were written to, each with the rule that names it.
    fn written(&self, base: Option<&Compiled>, context: &Context) -> BTreeMap<PathBuf, String> {
        self.files
            .keys()
            .filter(|(access, path)| *access == Access::Write && !is_secret(base, path))
            .map(|(_, path)| widen(Access::Write, path, context))
            .filter_map(|rule| Some((super::path::parse(&rule, context).ok()?, rule)))
            .collect()
    }

    /// What was approved is asked about again, and nothing around it: entries as TOML.
    fn approved_files(
        &self,
        base: Option<&Compiled>,
        left_out: &mut Vec<String>,
    ) -> Vec<(String, String)> {
        let mut approve = Vec::new();
        for ((access, path), seen) in &self.approved.files {
            let text = path.display().to_string();
            if is_secret(base, path) || text.contains("${") || super::name::is_pattern(&text) {
                left_out.push(format!(
                    "{} of {} ({}, with approval): it is a credential, or has a name that a policy cannot write",
                    name(*access),
                    visible(&text),
                    seen.comment()
                ));
                continue;
            }
            let path = toml::Value::from(text);
            let entry = match access {
                Access::Read => path.to_string(),
                Access::Write => format!("{{ path = {path}, access = [\"write\"] }}"),
                Access::Exec => continue,
            };
            approve.push((entry, seen.comment()));
        }
        approve
    }

    /// What was approved of programs: by as many arguments as tell it from what was executed without approval.
    fn approved_commands(&self) -> Vec<(String, String)> {
        let mut rules: BTreeMap<(String, Vec<String>), Seen> = BTreeMap::new();
        for ((path, arguments), seen) in &self.approved.commands {
            let Some(text) = path.to_str().filter(|text| !super::name::is_pattern(text)) else {
                continue;
            };
            let others = self.commands.get(path);
            let needed = (0..arguments.len()).find(|length| {
                others.is_none_or(|others| {
                    !others
                        .iter()
                        .any(|other| other.starts_with(&arguments[..*length]))
                })
            });
            let kept = arguments[..needed.unwrap_or(arguments.len())].to_vec();
            let key = (text.to_owned(), kept);
            rules.entry(key).or_default().add(seen);
        }
        for ((access, path), seen) in &self.approved.files {
            if let (Access::Exec, Some(text)) = (access, path.to_str()) {
                let key = (text.to_owned(), Vec::new());
                rules.entry(key).or_default().add(seen);
            }
        }
        rules
            .into_iter()
            .map(|((path, arguments), seen)| {
                let value = if arguments.is_empty() && !self.commands.contains_key(Path::new(&path))
                {
                    toml::Value::from(path)
                } else {
                    let words = std::iter::once(path).chain(arguments);
                    toml::Value::from(words.collect::<Vec<_>>())
                };
                (value.to_string(), seen.comment())
            })
            .collect()
    }

    /// Adds the table on sockets, if anything is in it.
    fn push_network(&self, text: &mut String, base: Option<&Compiled>) {
        let allow = self.addresses(NetOp::Connect);
        let listen = self.addresses(NetOp::Listen);
        let unix: Vec<(String, String)> = self
            .unix
            .iter()
            .filter(|(path, _)| !path.starts_with('/') || !is_secret(base, Path::new(path)))
            .map(|(path, seen)| (path.clone(), seen.comment()))
            .collect();
        let approve: Vec<(String, String)> = self
            .approved
            .net
            .iter()
            .map(|(address, seen)| (address_of(*address), seen.comment()))
            .collect();
        if allow.is_empty() && approve.is_empty() && listen.is_empty() && unix.is_empty() {
            return;
        }
        text.push_str("\n[network]\n");
        push_list(text, "allow", &allow);
        push_list(text, "approve", &approve);
        push_list(text, "listen", &listen);
        push_list(text, "unix", &unix);
    }

    fn addresses(&self, op: NetOp) -> Vec<(String, String)> {
        let mut by_port: BTreeMap<u16, Vec<(IpAddr, &Seen)>> = BTreeMap::new();
        for ((own, address, port), seen) in &self.net {
            if *own == op {
                by_port.entry(*port).or_default().push((*address, seen));
            }
        }
        let mut rules: BTreeMap<String, Seen> = BTreeMap::new();
        for (port, peers) in by_port {
            let picked = port == 0
                || (port >= EPHEMERAL && peers.iter().all(|(address, _)| address.is_loopback()))
                || (port >= EPHEMERAL && op == NetOp::Listen);
            let addresses: BTreeSet<IpAddr> = peers.iter().map(|(address, _)| *address).collect();
            for (address, seen) in peers {
                let rule = if picked {
                    address.to_string()
                } else if addresses.len() >= MANY_ADDRESSES {
                    format!("*:{port}")
                } else {
                    SocketAddr::new(address, port).to_string()
                };
                rules.entry(rule).or_default().add(seen);
            }
        }
        rules
            .into_iter()
            .map(|(rule, seen)| (rule, seen.comment()))
            .collect()
    }
}

/// What the policy was learned from, and what is not in it.
fn heading(sessions: &[String], left_out: &[String]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "# Learned from {} {}: {}.\n# Every rule says what it was seen for; read it before it is used.",
        sessions.len(),
        if sessions.len() == 1 {
            "session"
        } else {
            "sessions"
        },
        visible(&sessions.join(", "))
    );
    for sentence in left_out {
        let _ = writeln!(text, "# Left out: {sentence}.");
    }
    text
}

/// What has to be allowed for an address: for 0.0.0.0 and `::` loopback, and they themselves where a socket is bound to something.
fn named(op: NetOp, address: IpAddr) -> BTreeSet<IpAddr> {
    [network::canonical(op, address), address.to_canonical()].into()
}

/// The arguments that a rule on a command may be about.
fn first(arguments: &[String]) -> Vec<String> {
    let mut bytes = 0;
    let fits = |argument: &&String| {
        bytes += argument.len() + 1;
        !argument.is_empty() && !argument.contains('\0') && bytes <= MAX_ARGUMENTS
    };
    arguments
        .iter()
        .take(TOLD_APART)
        .take_while(fits)
        .cloned()
        .collect()
}

/// An address as a rule writes it; port 0 is none.
fn address_of(address: SocketAddr) -> String {
    if address.port() == 0 {
        address.ip().to_string()
    } else {
        address.to_string()
    }
}

/// The base preset, for what it takes for credentials.
fn secrets(context: &Context) -> Option<Compiled> {
    let preset = preset::find("base")?;
    load("preset:base", preset.text.as_bytes(), context).ok()
}

fn is_secret(base: Option<&Compiled>, path: &Path) -> bool {
    base.is_some_and(|base| {
        let decision = decide_file(base, Access::Read, path);
        base.rules[decision.rule as usize]
            .id
            .starts_with("files.deny")
    })
}

/// What stays closed inside what the policy opens.
fn denied(
    base: Option<&Compiled>,
    rules: &BTreeMap<(Access, String), Seen>,
    context: &Context,
) -> Vec<(String, String)> {
    let Some(base) = base else {
        return Vec::new();
    };
    let text = |rule: u32| base.rules[rule as usize].text.clone();
    let comment = "denied by the base preset".to_owned();
    let opened: Vec<PathBuf> = rules
        .keys()
        .filter_map(|(_, rule)| super::path::parse(rule, context).ok())
        .collect();
    let places = base.places.iter().filter(|place: &&Place| {
        let decision = place.decisions[Access::Read as usize];
        decision.effect == Effect::Deny
            && base.rules[decision.rule as usize]
                .id
                .starts_with("files.deny")
            && opened.iter().any(|open| place.path.starts_with(open))
    });
    places
        .map(|place| text(place.decisions[Access::Read as usize].rule))
        .chain(base.names.iter().map(|name| text(name.decisions[0].rule)))
        .map(|rule| (rule, comment.clone()))
        .collect()
}

/// The tree that a path stands for, as a rule writes it.
fn widen(access: Access, path: &Path, context: &Context) -> String {
    let inside = |root: &Path, name: &str, depth: usize| {
        let rest = path.strip_prefix(root).ok()?;
        if depth == 0 || rest.as_os_str().is_empty() {
            return Some(name.to_owned());
        }
        let parts: Vec<_> = rest.components().collect();
        // What is written is often written beside and renamed: its directory is meant.
        let keep = match access {
            Access::Write => parts.len().saturating_sub(1).clamp(1, depth),
            Access::Read | Access::Exec => parts.len().min(depth),
        };
        let kept: PathBuf = parts[..keep].iter().collect();
        let kept = kept.to_str()?;
        Some(match name {
            "/" => format!("/{kept}"),
            name => format!("{name}/{kept}"),
        })
    };
    if context.cwd.components().count() > 1
        && let Some(rule) = inside(&context.cwd, "${workspace}", 0)
    {
        return escaped(rule, path);
    }
    for tree in SYSTEM.into_iter().chain(SCRATCH) {
        if path.starts_with(tree) {
            return tree.to_owned();
        }
    }
    let hidden = |root: &Path| {
        path.strip_prefix(root).is_ok_and(|rest| {
            let first = rest.components().next();
            matches!(first, Some(Component::Normal(name)) if name.as_encoded_bytes().starts_with(b"."))
        })
    };
    if context.home.components().count() > 1 && path.starts_with(&context.home) {
        let depth = if hidden(&context.home) { 2 } else { 1 };
        if let Some(rule) = inside(&context.home, "${home}", depth) {
            return escaped(rule, path);
        }
    }
    let depth = if path.starts_with("/etc") || path.starts_with("/dev") {
        2
    } else {
        3
    };
    escaped(
        inside(Path::new("/"), "/", depth).unwrap_or_else(|| path.display().to_string()),
        path,
    )
}

/// A rule's text cannot hold what a pattern or a variable is written with: then the directory above is meant.
fn escaped(rule: String, path: &Path) -> String {
    let plain = |text: &str| {
        !text.contains(super::name::PATTERN)
            && !text
                .trim_start_matches("${workspace}")
                .trim_start_matches("${home}")
                .contains("${")
    };
    if plain(&rule) {
        return rule;
    }
    path.ancestors()
        .filter_map(Path::to_str)
        .find(|text| plain(text))
        .unwrap_or("/")
        .to_owned()
}

fn name(access: Access) -> &'static str {
    match access {
        Access::Read => "reading",
        Access::Write => "writing",
        Access::Exec => "executing",
    }
}

/// Text of others in a comment: one line, nothing that steers a terminal.
fn visible(text: &str) -> String {
    super::diagnostic::Visible(text).to_string()
}

fn push_list(text: &mut String, name: &str, rules: &[(String, String)]) {
    let values: Vec<(String, String)> = rules
        .iter()
        .map(|(rule, comment)| {
            let rule = toml::Value::from(rule.as_str());
            (rule.to_string(), comment.clone())
        })
        .collect();
    push_values(text, name, &values);
}

/// Adds a list whose entries are TOML already, each with its comment.
fn push_values(text: &mut String, name: &str, rules: &[(String, String)]) {
    if rules.is_empty() {
        return;
    }
    let _ = writeln!(text, "{name} = [");
    for (rule, comment) in rules {
        let _ = writeln!(text, "    {rule}, # {comment}");
    }
    text.push_str("]\n");
}
