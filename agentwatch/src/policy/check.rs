//! From a policy file to rules: every entry read, numbered and named, or said to be wrong and why. After this step no
//! text is looked at again. It must not decide what rules mean together; that is `compile`.

mod entries;
mod lists;
mod settings;
#[cfg(test)]
mod tests;

use std::{ops::Range, path::PathBuf};

use self::lists::Lists;
use super::{
    approvals,
    command::Command,
    diagnostic::Report,
    file::{ExpectTable, PolicyFile},
    model::{Context, Environment, Floor, Limits, NamePattern, Opens, Task, UnixTarget},
    network::Endpoint,
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

/// Names of the lists that are neither about files nor about addresses.
pub const UNIX: &str = "network.unix";
pub const FAMILIES: &str = "network.families";
pub const GUARDS: &str = "guard.allow";
pub const DENIED_GUARDS: &str = "guard.deny";

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
    mut file: PolicyFile,
    origin: Origin,
    context: &Context,
    report: &mut Report,
    rules: &mut Rules,
) {
    settings::read(&mut file, origin, report, rules);
    let lists = Lists::of(file, report);
    if lists.are_too_many(rules.count(), report) {
        return;
    }
    let layer = match origin {
        Origin::Managed => Layer::Managed,
        Origin::Task | Origin::Base => Layer::Task,
    };
    entries::read(lists, layer, context, report, rules);
}
