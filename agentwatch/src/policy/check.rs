//! From a policy file to rules: every entry read, numbered and named, or said to be wrong and why. After this step no
//! text is looked at again. It must not decide what rules mean together; that is `compile`.

use std::{collections::HashMap, hash::Hash, ops::Range, path::PathBuf};

use toml::Spanned;

use super::{
    approvals,
    command::{self, Command},
    diagnostic::{Diagnostic, Report, quote},
    file::{ApproveEntry, Entries, ExecEntry, ExpectTable, PolicyFile, SessionsTable},
    limits,
    model::{Admission, Context, Environment, Floor, Limits, NamePattern, Opens, Task, UnixTarget},
    name,
    network::{self, Endpoint},
    path::{self, Fault},
    suggest::suggestion,
    surface,
};
use crate::event::model::{Layer, Mode};

/// The most rules that a policy may have.
pub const MAX_RULES: usize = 20_000;

/// The most rules on names that a policy may have: each name of each path is held against all of them.
pub const MAX_NAMES: usize = 512;

/// The longest name of a policy, in characters.
pub const MAX_NAME: usize = 128;

/// Lists of a policy that name files, in the order of their rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileList {
    Read,
    Write,
    Exec,
    Deny,
    Approve(Approval),
    /// `[exec] allow`, and so on.
    ExecAllow,
    ExecDeny,
    ExecApprove,
}

/// What a rule of `files.approve` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Approval {
    Both,
    /// Reading, and so writing where that is allowed at all.
    Read,
    Write,
}

impl FileList {
    pub fn name(self) -> &'static str {
        match self {
            FileList::Read => "files.read",
            FileList::Write => "files.write",
            FileList::Exec => "files.exec",
            FileList::Deny => "files.deny",
            FileList::Approve(_) => "files.approve",
            FileList::ExecAllow => EXEC_LISTS[0],
            FileList::ExecDeny => EXEC_LISTS[1],
            FileList::ExecApprove => EXEC_LISTS[2],
        }
    }
}

const EXEC_LISTS: [&str; 3] = ["exec.allow", "exec.deny", "exec.approve"];

/// Lists of a policy that name commands: the same as those on executables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommandList {
    Allow,
    Deny,
    Approve,
}

impl CommandList {
    pub fn name(self) -> &'static str {
        EXEC_LISTS[self as usize]
    }
}

/// Lists of a policy that name addresses, in the order of their rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetList {
    Allow,
    Deny,
    Approve,
    Listen,
}

impl NetList {
    pub fn name(self) -> &'static str {
        match self {
            NetList::Allow => "network.allow",
            NetList::Deny => "network.deny",
            NetList::Approve => "network.approve",
            NetList::Listen => "network.listen",
        }
    }
}

/// One rule: which list, what it names, and where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked<L, T> {
    pub list: L,
    /// Index in its list, from 0.
    pub index: usize,
    pub target: T,
    /// As written.
    pub text: String,
    pub span: Range<usize>,
    pub layer: Layer,
}

impl<L: Copy, T> Checked<L, T> {
    fn with<U>(self, target: U) -> Checked<L, U> {
        Checked {
            list: self.list,
            index: self.index,
            target,
            text: self.text,
            span: self.span,
            layer: self.layer,
        }
    }
}

/// What a text is to the policy that it is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is the task's own file.
    Task,
    /// The task's file extends it.
    Base,
    /// It is the administrator's.
    Managed,
}

pub type FileRule = Checked<FileList, PathBuf>;
/// A rule of `files.deny` or `files.approve` on names.
pub type NameRule = Checked<FileList, NamePattern>;
pub type CommandEntry = Checked<CommandList, Command>;
pub type NetRule = Checked<NetList, Endpoint>;
/// The lists below have one name each.
pub type UnixRule = Checked<(), UnixTarget>;
/// The target is the family's bit.
pub type FamilyRule = Checked<(), u32>;
/// The target is the operation's index.
pub type GuardRule = Checked<(), u32>;

/// The rules of a policy and its bases, and what else they say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    pub name: Option<String>,
    /// As the task asks for it; see [`Floor::mode`].
    pub mode: Option<Mode>,
    pub files: Vec<FileRule>,
    pub names: Vec<NameRule>,
    pub network: Vec<NetRule>,
    pub unix: Vec<UnixRule>,
    pub families: Vec<FamilyRule>,
    pub guards: Vec<GuardRule>,
    /// What the administrator takes out of `guards`.
    pub denied_guards: Vec<GuardRule>,
    pub commands: Vec<CommandEntry>,
    /// Whether connections that no rule decides on need approval.
    pub unknown: Option<bool>,
    /// Where the administrator says that they are denied.
    pub unknown_denied: Option<String>,
    pub task: Task,
    pub limits: Limits,
    pub approvals: approvals::Asked,
    pub environment: Environment,
    pub opens: Option<Opens>,
    pub expect: Vec<ExpectTable>,
    pub floor: Floor,
}

impl Rules {
    /// How many rules there are.
    pub fn count(&self) -> usize {
        self.files.len()
            + self.names.len()
            + self.network.len()
            + self.unix.len()
            + self.families.len()
            + self.guards.len()
            + self.denied_guards.len()
            + self.commands.len()
    }
}

/// Reads every entry of one text into the rules. What is wrong goes into the report; rules that are wrong are left out.
pub fn check(
    file: PolicyFile,
    origin: Origin,
    context: &Context,
    report: &mut Report,
    rules: &mut Rules,
) {
    let layer = match origin {
        Origin::Managed => Layer::Managed,
        Origin::Task | Origin::Base => Layer::Task,
    };
    if origin == Origin::Task {
        rules.name = file.name.and_then(|name| check_name(name, report));
        rules.expect = file.expect;
    }
    let unknown = file
        .network
        .unknown
        .and_then(|unknown| check_unknown(unknown, report));
    if origin == Origin::Managed {
        if let Some(unknown) = unknown {
            if *unknown.get_ref() {
                report.push(
                    Diagnostic::error(
                        "a managed file may not say `network.unknown = \"approve\"`",
                        unknown.span(),
                    )
                    .help("it only takes away: write \"deny\", which no task changes"),
                );
            } else {
                let place = || report.place(unknown.span().start);
                rules.unknown_denied.get_or_insert_with(place);
            }
        }
        approvals::bounds(&file.approvals, report, &mut rules.floor.approvals);
        floor(
            file.mode.as_ref(),
            file.accept_degraded.as_ref(),
            file.sessions,
            report,
            &mut rules.floor,
        );
    } else {
        // What a policy does not say itself is said by what it extends, the first first.
        rules.mode = rules.mode.or(file.mode.map(Spanned::into_inner));
        limits::task(file.task, report, &mut rules.task);
        limits::limits(&file.limits, report, &mut rules.limits);
        approvals::asked(&file.approvals, report, &mut rules.approvals);
        rules.unknown = rules.unknown.or(unknown.map(Spanned::into_inner));
        limits::environment(file.env, report, &mut rules.environment);
        let opens = limits::opens(file.trace.opens, report);
        rules.opens = rules.opens.or(opens);
    }
    let (exec_allow, commands_allow) = exec_entries(file.exec.allow);
    let (exec_deny, commands_deny) = exec_entries(file.exec.deny);
    let (exec_approve, commands_approve) = exec_entries(file.exec.approve);
    let [approve_both, approve_read, approve_write] = approve_entries(file.files.approve, report);
    let file_lists = [
        (FileList::Read, numbered(file.files.read)),
        (FileList::Write, numbered(file.files.write)),
        (FileList::Exec, numbered(file.files.exec)),
        (FileList::Deny, numbered(file.files.deny)),
        (FileList::Approve(Approval::Both), approve_both),
        (FileList::Approve(Approval::Read), approve_read),
        (FileList::Approve(Approval::Write), approve_write),
        (FileList::ExecAllow, exec_allow),
        (FileList::ExecDeny, exec_deny),
        (FileList::ExecApprove, exec_approve),
    ];
    let command_lists = [
        (CommandList::Allow, commands_allow),
        (CommandList::Deny, commands_deny),
        (CommandList::Approve, commands_approve),
    ];
    let net_lists = [
        (NetList::Allow, numbered(file.network.allow)),
        (NetList::Deny, numbered(file.network.deny)),
        (NetList::Approve, numbered(file.network.approve)),
        (NetList::Listen, numbered(file.network.listen)),
    ];
    let (unix, families) = (numbered(file.network.unix), numbered(file.network.families));
    let (guards, denied_guards) = (numbered(file.guard.allow), numbered(file.guard.deny));
    let lists = (file_lists.iter().map(|(_, entries)| entries))
        .chain(net_lists.iter().map(|(_, entries)| entries))
        .chain([&unix, &families, &guards, &denied_guards])
        .flat_map(|entries| entries.iter().map(|(_, entry)| entry.span()))
        .chain(
            (command_lists.iter())
                .flat_map(|(_, entries)| entries.iter().map(|(_, entry)| entry.span())),
        );
    if too_many(rules.count(), lists, report) {
        return;
    }
    for (list, entries) in file_lists {
        let mut targets = Vec::new();
        read_list(
            list,
            list.name(),
            layer,
            entries,
            &mut targets,
            report,
            |text| parse_file(list, text, context),
        );
        for rule in targets {
            let (paths, names) = (&mut rules.files, &mut rules.names);
            match rule.target.clone() {
                FileTarget::Path(path) => paths.push(rule.with(path)),
                FileTarget::Name(pattern) => names.push(rule.with(pattern)),
            }
        }
    }
    for (list, entries) in command_lists {
        let mut texts = Vec::with_capacity(entries.len());
        let mut words: HashMap<String, Vec<String>> = HashMap::new();
        for (index, entry) in entries {
            let span = entry.span();
            let own: Vec<String> = (entry.into_inner().into_iter())
                .map(Spanned::into_inner)
                .collect();
            let text = command::text(&own);
            words.insert(text.clone(), own);
            texts.push((index, Spanned::new(span, text)));
        }
        let parse = |text: &str| {
            let own: Vec<&str> = words
                .get(text)
                .map(|words| words.iter().map(String::as_str).collect())
                .unwrap_or_default();
            command::parse(&own, context)
        };
        let name = list.name();
        read_list(list, name, layer, texts, &mut rules.commands, report, parse);
    }
    if let Some(beyond) = rules.names.get(MAX_NAMES) {
        report.push(
            Diagnostic::error(
                format!(
                    "the policy has {} rules on names, more than {MAX_NAMES}",
                    rules.names.len()
                ),
                beyond.span.clone(),
            )
            .help("name directories by their paths instead of what is in them"),
        );
        rules.names.truncate(MAX_NAMES);
    }
    for (list, entries) in net_lists {
        read_list(
            list,
            list.name(),
            layer,
            entries,
            &mut rules.network,
            report,
            network::parse,
        );
    }
    read_list((), UNIX, layer, unix, &mut rules.unix, report, |text| {
        surface::parse_unix(text, context)
    });
    let parse = surface::parse_family;
    read_list(
        (),
        FAMILIES,
        layer,
        families,
        &mut rules.families,
        report,
        parse,
    );
    let parse = surface::parse_guard;
    read_list((), GUARDS, layer, guards, &mut rules.guards, report, parse);
    read_list(
        (),
        DENIED_GUARDS,
        layer,
        denied_guards,
        &mut rules.denied_guards,
        report,
        parse,
    );
}

/// Entries, each with its index in its list.
type Numbered<T> = Vec<(usize, Spanned<T>)>;

fn numbered(entries: Entries) -> Numbered<String> {
    entries.into_iter().enumerate().collect()
}

/// Paths apart from commands.
fn exec_entries(entries: Vec<ExecEntry>) -> (Numbered<String>, Numbered<Entries>) {
    let (mut paths, mut commands) = (Vec::new(), Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        match entry {
            ExecEntry::Program(path) => paths.push((index, path)),
            ExecEntry::Command(words) => commands.push((index, words)),
        }
    }
    (paths, commands)
}

/// The entries of `files.approve` by what they are about, in the order of [`Approval`].
fn approve_entries(entries: Vec<ApproveEntry>, report: &mut Report) -> [Numbered<String>; 3] {
    let mut lists: [Numbered<String>; 3] = Default::default();
    for (index, entry) in entries.into_iter().enumerate() {
        let approval = match entry.access {
            None => Some(Approval::Both),
            Some(access) => check_access(&access, report),
        };
        if let Some(approval) = approval {
            lists[approval as usize].push((index, entry.path));
        }
    }
    lists
}

fn check_access(access: &Spanned<Entries>, report: &mut Report) -> Option<Approval> {
    let (mut read, mut write, mut wrong) = (false, false, false);
    for word in access.get_ref() {
        match word.get_ref().as_str() {
            "read" => read = true,
            "write" => write = true,
            other => {
                wrong = true;
                let help = match other {
                    "exec" => "what is executed is approved by `exec.approve`".to_owned(),
                    _ => suggestion(other, &["read", "write"], "they are"),
                };
                report.push(
                    Diagnostic::error(format!("there is no access {}", quote(other)), word.span())
                        .help(help),
                );
            }
        }
    }
    match (read, write) {
        _ if wrong => None,
        (true, true) => Some(Approval::Both),
        (true, false) => Some(Approval::Read),
        (false, true) => Some(Approval::Write),
        (false, false) => {
            report.push(
                Diagnostic::error("the entry is about no access", access.span())
                    .help("leave `access` out for reading and writing"),
            );
            None
        }
    }
}

/// Whether what nobody knows needs approval; otherwise it is denied.
fn check_unknown(unknown: Spanned<String>, report: &mut Report) -> Option<Spanned<bool>> {
    match unknown.get_ref().as_str() {
        "approve" => Some(Spanned::new(unknown.span(), true)),
        "deny" => Some(Spanned::new(unknown.span(), false)),
        other => {
            report.push(
                Diagnostic::error(
                    format!("{} does not say what becomes of them", quote(other)),
                    unknown.span(),
                )
                .help(suggestion(other, &["deny", "approve"], "write one of")),
            );
            None
        }
    }
}

/// What a managed file says of sessions as such.
fn floor(
    mode: Option<&Spanned<Mode>>,
    accept_degraded: Option<&Spanned<bool>>,
    sessions: SessionsTable,
    report: &mut Report,
    floor: &mut Floor,
) {
    if let Some(mode) = mode {
        let forced = (*mode.get_ref(), report.place(mode.span().start));
        match &floor.mode {
            // Of two the stricter one holds.
            Some((Mode::Enforce, _)) => {}
            _ => floor.mode = Some(forced),
        }
    }
    if let Some(accept) = accept_degraded
        && !accept.get_ref()
    {
        floor
            .refuses_degraded
            .get_or_insert_with(|| report.place(accept.span().start));
    }
    let max_per_user = sessions.max_per_user.and_then(|max| {
        let place = report.place(max.span().start);
        match u32::try_from(*max.get_ref()) {
            Ok(number) => Some((number, place)),
            Err(_) => {
                report.push(
                    Diagnostic::error(
                        format!("{} is not a number of sessions", max.get_ref()),
                        max.span(),
                    )
                    .help("write a number from 0 on"),
                );
                None
            }
        }
    });
    let source = sessions.users.as_ref().or(sessions.groups.as_ref());
    let source = source.map(|entries| report.place(entries.span().start));
    let names = |entries: Option<Spanned<Entries>>| {
        entries.map(|entries| -> Vec<String> {
            entries
                .into_inner()
                .into_iter()
                .map(Spanned::into_inner)
                .collect()
        })
    };
    if source.is_some() || max_per_user.is_some() {
        floor.sessions.push(Admission {
            source: source.unwrap_or_default(),
            users: names(sessions.users),
            groups: names(sessions.groups),
            max_per_user,
        });
    }
}

/// Names of the lists that are neither about files nor about addresses.
pub const UNIX: &str = "network.unix";
pub const FAMILIES: &str = "network.families";
pub const GUARDS: &str = "guard.allow";
pub const DENIED_GUARDS: &str = "guard.deny";

/// What an entry on files is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum FileTarget {
    Path(PathBuf),
    Name(NamePattern),
}

fn parse_file(list: FileList, text: &str, context: &Context) -> Result<FileTarget, Fault> {
    let of_exec = matches!(
        list,
        FileList::ExecAllow | FileList::ExecDeny | FileList::ExecApprove
    );
    if name::is_pattern(text) {
        return match list {
            FileList::Deny | FileList::Approve(_) => name::parse(text).map(FileTarget::Name),
            _ if of_exec => Err(Fault::new(
                format!(
                    "{} is a pattern, and `{}` takes paths",
                    quote(text),
                    list.name()
                ),
                "a program can be copied to another name, so a name keeps nothing from being run: write the paths, or leave \
                 the directories where copies can be made out of `files.exec`",
            )),
            _ => Err(Fault::new(
                format!(
                    "the path holds the pattern character `{}`",
                    text.chars()
                        .find(|letter| name::PATTERN.contains(letter))
                        .unwrap_or('*')
                ),
                "a session can give any file any name, so a name allows nothing: write the directory, and list what \
                 differs inside it as rules of their own; `files.deny` and `files.approve` take patterns of names",
            )),
        };
    }
    if of_exec && !text.is_empty() && !text.contains('/') && !matches!(text, "." | ".." | "~") {
        let short: String = text.chars().take(40).collect();
        return Err(Fault::new(
            format!(
                "{} is a bare name, and rules bind to the file that a path names",
                quote(text)
            ),
            format!(
                "write the path, such as `/usr/bin/{short}`, or `[\"{short}\"]` for the command that is installed under this name"
            ),
        ));
    }
    path::parse(text, context).map(FileTarget::Path)
}

/// Names stand in tables and in file names of reports.
fn check_name(name: Spanned<String>, report: &mut Report) -> Option<String> {
    let text = name.get_ref();
    if text.trim().is_empty()
        || text.chars().count() > MAX_NAME
        || text.chars().any(char::is_control)
    {
        report.push(
            Diagnostic::error(format!("{} is not a usable name", quote(text)), name.span()).help(
                format!("write 1 to {MAX_NAME} characters, and no control characters among them"),
            ),
        );
        return None;
    }
    Some(name.into_inner())
}

/// Reports the first rule beyond [`MAX_RULES`].
fn too_many(
    before: usize,
    rules: impl Iterator<Item = Range<usize>> + Clone,
    report: &mut Report,
) -> bool {
    let count = before + rules.clone().count();
    let Some(beyond) = rules.clone().nth(MAX_RULES.saturating_sub(before)) else {
        return false;
    };
    report.push(
        Diagnostic::error(format!("the policy has {count} rules, more than {MAX_RULES}"), beyond)
            .help("name directories instead of the files in them, and prefixes instead of the addresses in them"),
    );
    true
}

fn read_list<L: Copy, T: Clone + Eq + Hash>(
    list: L,
    name: &str,
    layer: Layer,
    entries: Numbered<String>,
    rules: &mut Vec<Checked<L, T>>,
    report: &mut Report,
    parse: impl Fn(&str) -> Result<T, Fault>,
) {
    let mut seen: HashMap<T, Range<usize>> = HashMap::new();
    for (index, entry) in entries {
        let span = entry.span();
        let text = entry.into_inner();
        match parse(&text) {
            Ok(target) => {
                if let Some(first) = seen.get(&target) {
                    // Variables may have the same value here and different ones elsewhere.
                    if text.contains("${") {
                        rules.push(Checked {
                            list,
                            index,
                            target,
                            text,
                            span,
                            layer,
                        });
                        continue;
                    }
                    report.push(
                        Diagnostic::warning(
                            format!("{} is listed twice in `{name}`", quote(&text)),
                            span.clone(),
                        )
                        .related(first.clone(), "first listed here")
                        .help("take one of them out"),
                    );
                } else {
                    seen.insert(target.clone(), span.clone());
                }
                rules.push(Checked {
                    list,
                    index,
                    target,
                    text,
                    span,
                    layer,
                });
            }
            Err(fault) => report.push(Diagnostic::error(fault.message, span).help(fault.help)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::file;

    fn checked(text: &str) -> (Rules, String) {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
            ..Default::default()
        };
        let mut report = Report::new("p.toml", text);
        let file = file::read(text, Layer::Task, 0, &mut report);
        let mut rules = Rules::default();
        check(file, Origin::Task, &context, &mut report, &mut rules);
        (rules, report.render(false))
    }

    #[test]
    fn every_fault_is_reported_with_its_place() {
        let (rules, faults) = checked(
            "[files]\nread = [\"/usr\", \"~bob/x\", \"\"]\nwrite = [\"src/*.rs\"]\n[network]\nallow = [\"crates.io:443\"]\n[exec]\ndeny = [\"curl\"]\n",
        );
        assert_eq!(rules.files.len(), 1);
        assert_eq!(
            faults,
            "\
error: only one's own home directory can be written with `~`: `~bob/x`
 --> p.toml:2:17
  |
2 | read = [\"/usr\", \"~bob/x\", \"\"]
  |                 ^^^^^^^^
  |
  = help: write the other user's home as an absolute path; a name that begins with `~` is written `./~…`

error: the path is empty
 --> p.toml:2:27
  |
2 | read = [\"/usr\", \"~bob/x\", \"\"]
  |                           ^^
  |
  = help: write `.` for the working directory

error: the path holds the pattern character `*`
 --> p.toml:3:10
  |
3 | write = [\"src/*.rs\"]
  |          ^^^^^^^^^^
  |
  = help: a session can give any file any name, so a name allows nothing: write the directory, and list what differs inside it as rules of their own; `files.deny` and `files.approve` take patterns of names

error: domain names are not yet supported: `crates.io`
 --> p.toml:5:10
  |
5 | allow = [\"crates.io:443\"]
  |          ^^^^^^^^^^^^^^^
  |
  = help: write the IP addresses, or the prefix, that the name stands for

error: `curl` is a bare name, and rules bind to the file that a path names
 --> p.toml:7:9
  |
7 | deny = [\"curl\"]
  |         ^^^^^^
  |
  = help: write the path, such as `/usr/bin/curl`, or `[\"curl\"]` for the command that is installed under this name"
        );
    }

    #[test]
    fn a_rule_listed_twice_is_a_warning_however_it_is_spelt() {
        let (rules, faults) = checked(
            "[files]\nread = [\"/usr\",\n  \"/usr/./\"]\n[network]\nallow = [\"::ffff:10.0.0.1\", \"10.0.0.1/32\"]",
        );
        assert_eq!(rules.files.len(), 2);
        assert!(
            faults.contains("warning: `/usr/./` is listed twice in `files.read`"),
            "{faults}"
        );
        assert!(faults.contains("first listed here"), "{faults}");
        assert!(
            faults.contains("warning: `10.0.0.1/32` is listed twice in `network.allow`"),
            "{faults}"
        );
    }

    #[test]
    fn names_can_be_shown() {
        for name in ["", " ", "a\\nb", &"n".repeat(MAX_NAME + 1)] {
            let (_, faults) = checked(&format!("name = \"{name}\""));
            assert!(faults.contains("is not a usable name"), "{name}: {faults}");
        }
        assert_eq!(
            checked("name = \"fix the parser\"").0.name.as_deref(),
            Some("fix the parser")
        );
    }

    #[test]
    fn indexes_count_rules_that_are_wrong_too() {
        let (rules, _) = checked("[files]\nread = [\"*\", \"/usr\"]");
        assert_eq!(
            (rules.files[0].index, rules.files[0].text.as_str()),
            (1, "/usr")
        );
    }

    #[test]
    fn too_many_rules_are_refused() {
        let list = |count: usize| format!("[files]\nread = [{}]", "\"/a\",".repeat(count));
        let (_, faults) = checked(&list(MAX_RULES + 1));
        assert!(
            faults.starts_with("error: the policy has 20001 rules, more than 20000"),
            "{faults}"
        );
        let (rules, _) = checked(&list(MAX_RULES));
        assert_eq!(rules.files.len(), MAX_RULES);
    }
}
