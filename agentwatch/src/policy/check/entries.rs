//! The entries of a file's lists, each read by what its list is about. One that is wrong is reported and left out; the
//! others keep their indexes.

use std::{collections::HashMap, hash::Hash, ops::Range, path::PathBuf};

use toml::Spanned;

use super::{
    Checked, CommandList, DENIED_GUARDS, FAMILIES, FileList, GUARDS, MAX_NAMES, Rules, UNIX,
    lists::{Lists, Numbered},
};
use crate::{
    event::model::Layer,
    policy::{
        command,
        diagnostic::{Diagnostic, Report, quote},
        file::Entries,
        model::{Context, NamePattern},
        name, network,
        path::{self, Fault},
        surface,
    },
};

/// Adds the lists' entries to the rules.
pub(super) fn read(
    lists: Lists,
    layer: Layer,
    context: &Context,
    report: &mut Report,
    rules: &mut Rules,
) {
    let mut reading = Reading {
        layer,
        context,
        report,
    };
    for (list, entries) in lists.files {
        reading.files(list, entries, rules);
    }
    for (list, entries) in lists.commands {
        reading.commands(list, entries, rules);
    }
    reading.bound_names(rules);
    for (list, entries) in lists.network {
        let read = reading.list(list, list.name(), entries, network::parse);
        rules.network.extend(read);
    }
    let parse = |text: &str| surface::parse_unix(text, context);
    let read = reading.list((), UNIX, lists.unix, parse);
    rules.unix.extend(read);
    let read = reading.list((), FAMILIES, lists.families, surface::parse_family);
    rules.families.extend(read);
    let read = reading.list((), GUARDS, lists.guards, surface::parse_guard);
    rules.guards.extend(read);
    let read = reading.list((), DENIED_GUARDS, lists.denied_guards, surface::parse_guard);
    rules.denied_guards.extend(read);
}

/// What the lists of one file have in common while they are read.
struct Reading<'a> {
    layer: Layer,
    context: &'a Context,
    report: &'a mut Report,
}

impl Reading<'_> {
    fn files(&mut self, list: FileList, entries: Numbered<String>, rules: &mut Rules) {
        let context = self.context;
        let parse = |text: &str| parse_file(list, text, context);
        for rule in self.list(list, list.name(), entries, parse) {
            match rule.target.clone() {
                FileTarget::Path(path) => rules.files.push(rule.with(path)),
                FileTarget::Name(pattern) => rules.names.push(rule.with(pattern)),
            }
        }
    }

    fn commands(&mut self, list: CommandList, entries: Numbered<Entries>, rules: &mut Rules) {
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
        let context = self.context;
        let parse = |text: &str| {
            let own: Vec<&str> = words
                .get(text)
                .map(|words| words.iter().map(String::as_str).collect())
                .unwrap_or_default();
            command::parse(&own, context)
        };
        let read = self.list(list, list.name(), texts, parse);
        rules.commands.extend(read);
    }

    /// Keeps the rules on names to [`MAX_NAMES`].
    fn bound_names(&mut self, rules: &mut Rules) {
        let Some(beyond) = rules.names.get(MAX_NAMES) else {
            return;
        };
        self.report.push(
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

    /// Reads a list's entries; what is named twice in it is warned of and stays.
    fn list<L: Copy, T: Clone + Eq + Hash>(
        &mut self,
        list: L,
        name: &str,
        entries: Numbered<String>,
        parse: impl Fn(&str) -> Result<T, Fault>,
    ) -> Vec<Checked<L, T>> {
        let mut seen: HashMap<T, Range<usize>> = HashMap::new();
        let mut rules = Vec::with_capacity(entries.len());
        for (index, entry) in entries {
            let span = entry.span();
            let text = entry.into_inner();
            let target = match parse(&text) {
                Ok(target) => target,
                Err(fault) => {
                    let fault = Diagnostic::error(fault.message, span).help(fault.help);
                    self.report.push(fault);
                    continue;
                }
            };
            match seen.get(&target) {
                None => {
                    seen.insert(target.clone(), span.clone());
                }
                // Variables may have the same value here and different ones elsewhere.
                Some(_) if text.contains("${") => {}
                Some(first) => self.report.push(
                    Diagnostic::warning(
                        format!("{} is listed twice in `{name}`", quote(&text)),
                        span.clone(),
                    )
                    .related(first.clone(), "first listed here")
                    .help("take one of them out"),
                ),
            }
            rules.push(Checked {
                list,
                index,
                target,
                text,
                span,
                layer: self.layer,
            });
        }
        rules
    }
}

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
