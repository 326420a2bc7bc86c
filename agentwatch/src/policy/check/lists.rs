//! The lists of a policy file, each entry with its index in the list as it is written: a file's list of commands and paths
//! becomes two, and one on approvals three.

use std::ops::Range;

use toml::Spanned;

use super::{Approval, CommandList, FileList, MAX_RULES, NetList};
use crate::policy::{
    diagnostic::{Diagnostic, Report, quote},
    file::{ApproveEntry, Entries, ExecEntry, PolicyFile},
    suggest::suggestion,
};

/// Entries, each with its index in its list.
pub(super) type Numbered<T> = Vec<(usize, Spanned<T>)>;

/// All lists of one file, in the order of their rules.
pub(super) struct Lists {
    pub(super) files: [(FileList, Numbered<String>); 10],
    pub(super) commands: [(CommandList, Numbered<Entries>); 3],
    pub(super) network: [(NetList, Numbered<String>); 4],
    pub(super) unix: Numbered<String>,
    pub(super) families: Numbered<String>,
    pub(super) guards: Numbered<String>,
    pub(super) denied_guards: Numbered<String>,
}

impl Lists {
    pub(super) fn of(file: PolicyFile, report: &mut Report) -> Self {
        let (exec_allow, commands_allow) = exec_entries(file.exec.allow);
        let (exec_deny, commands_deny) = exec_entries(file.exec.deny);
        let (exec_approve, commands_approve) = exec_entries(file.exec.approve);
        let [approve_both, approve_read, approve_write] =
            approve_entries(file.files.approve, report);
        Self {
            files: [
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
            ],
            commands: [
                (CommandList::Allow, commands_allow),
                (CommandList::Deny, commands_deny),
                (CommandList::Approve, commands_approve),
            ],
            network: [
                (NetList::Allow, numbered(file.network.allow)),
                (NetList::Deny, numbered(file.network.deny)),
                (NetList::Approve, numbered(file.network.approve)),
                (NetList::Listen, numbered(file.network.listen)),
            ],
            unix: numbered(file.network.unix),
            families: numbered(file.network.families),
            guards: numbered(file.guard.allow),
            denied_guards: numbered(file.guard.deny),
        }
    }

    /// Whether they go beyond [`MAX_RULES`] with the rules that there are `before` them; the first that does is reported.
    pub(super) fn are_too_many(&self, before: usize, report: &mut Report) -> bool {
        let count = before + self.spans().count();
        let Some(beyond) = self.spans().nth(MAX_RULES.saturating_sub(before)) else {
            return false;
        };
        report.push(
            Diagnostic::error(format!("the policy has {count} rules, more than {MAX_RULES}"), beyond)
                .help("name directories instead of the files in them, and prefixes instead of the addresses in them"),
        );
        true
    }

    /// Where each entry stands, those on commands last.
    fn spans(&self) -> impl Iterator<Item = Range<usize>> {
        let others = [
            &self.unix,
            &self.families,
            &self.guards,
            &self.denied_guards,
        ];
        (self.files.iter().map(|(_, entries)| entries))
            .chain(self.network.iter().map(|(_, entries)| entries))
            .chain(others)
            .flat_map(|entries| entries.iter().map(|(_, entry)| entry.span()))
            .chain(
                (self.commands.iter())
                    .flat_map(|(_, entries)| entries.iter().map(|(_, entry)| entry.span())),
            )
    }
}

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
