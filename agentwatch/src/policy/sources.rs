//! The texts that make one policy: the task's own, what it extends, and what the host's administrator adds. Which they
//! are is worked out here; whoever has the rights to read them hands them in. Never opens a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    check::{self, Rules},
    diagnostic::{Diagnostic, Report, quote},
    file::{self, MAX_TEXT},
    model::Context,
    path::{self, Fault},
    preset,
    suggest::suggestion,
};
use crate::event::model::Layer;

/// The most files that one policy may build on, presets not counted.
pub const MAX_INCLUDED: usize = 64;

/// A file that a policy extends, as its reader found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Included {
    /// Absolute, lexically clean.
    pub path: PathBuf,
    /// Its text, or why it could not be read.
    pub text: Result<String, String>,
}

/// A file of the host's administrator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Managed {
    pub path: PathBuf,
    pub text: String,
}

/// Everything that a policy is compiled from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// Name for messages and for the rules' sources; empty for the built-in default policy.
    pub file: &'a str,
    pub text: &'a [u8],
    /// What files in `extends` are named from. Absolute.
    pub directory: &'a Path,
    pub included: &'a [Included],
    pub context: &'a Context,
    /// In the order of their names.
    pub managed: &'a [Managed],
    /// What `~` and variables mean in the administrator's files: what the host knows of the user, not what a client says.
    pub managed_context: &'a Context,
}

impl<'a> Sources<'a> {
    /// A policy that stands alone.
    pub fn alone(file: &'a str, text: &'a [u8], context: &'a Context) -> Self {
        Self {
            file,
            text,
            directory: &context.cwd,
            included: &[],
            context,
            managed: &[],
            managed_context: context,
        }
    }
}

/// What an entry of `extends` names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Base {
    Preset(&'static preset::Preset),
    File(PathBuf),
}

fn base(entry: &str, directory: &Path, context: &Context) -> Result<Base, Fault> {
    if let Some(name) = entry.strip_prefix("preset:") {
        let names: Vec<&str> = preset::PRESETS.iter().map(|preset| preset.name).collect();
        return preset::find(name).map(Base::Preset).ok_or_else(|| {
            Fault::new(
                format!("there is no preset {}", quote(name)),
                suggestion(name, &names, "the presets are"),
            )
        });
    }
    if let Some(preset) = preset::find(entry) {
        return Err(Fault::new(
            format!(
                "{} is a preset's name, and files are named by their paths",
                quote(entry)
            ),
            format!("write `preset:{0}`, or `./{0}` for a file", preset.name),
        ));
    }
    let from = Context {
        cwd: directory.to_owned(),
        ..context.clone()
    };
    path::parse(entry, &from).map(Base::File)
}

/// Fetches every file that a text builds on, those of those files included, by asking `read`.
pub fn gather(
    text: &str,
    directory: &Path,
    context: &Context,
    mut read: impl FnMut(&Path) -> Result<String, String>,
) -> Vec<Included> {
    let mut found: BTreeMap<PathBuf, Result<String, String>> = BTreeMap::new();
    let mut next = vec![(text.to_owned(), directory.to_owned())];
    while let Some((text, directory)) = next.pop() {
        for entry in file::extends(&text) {
            let Ok(Base::File(path)) = base(&entry, &directory, context) else {
                continue;
            };
            if found.contains_key(&path) || found.len() >= MAX_INCLUDED {
                continue;
            }
            let text = read(&path);
            if let Ok(text) = &text {
                next.push((text.clone(), parent(&path)));
            }
            found.insert(path, text);
        }
    }
    found
        .into_iter()
        .map(|(path, text)| Included { path, text })
        .collect()
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

/// Reads and checks all texts. The first is in the report already.
pub(super) fn read(sources: &Sources<'_>, report: &mut Report) -> Rules {
    let mut rules = Rules::default();
    let text = String::from_utf8_lossy(sources.text);
    let mut walk = Walk {
        sources,
        rules: &mut rules,
        report,
        around: Vec::new(),
        done: BTreeSet::new(),
        bytes: text.len(),
    };
    walk.visit(&text, 0, sources.directory, true);
    for managed in sources.managed {
        let name = managed.path.display().to_string();
        let base = report.add(name, managed.text.clone());
        let file = file::read(&managed.text, Layer::Managed, base, report);
        let layer = check::Origin::Managed;
        check::check(file, layer, sources.managed_context, report, &mut rules);
    }
    rules
}

struct Walk<'a, 'r> {
    sources: &'a Sources<'a>,
    rules: &'r mut Rules,
    report: &'r mut Report,
    /// The files that lead to the one in hand.
    around: Vec<String>,
    done: BTreeSet<String>,
    bytes: usize,
}

impl Walk<'_, '_> {
    fn visit(&mut self, text: &str, at: usize, directory: &Path, first: bool) {
        let mut file = file::read(text, Layer::Task, at, self.report);
        let extends = std::mem::take(&mut file.extends);
        let origin = if first {
            check::Origin::Task
        } else {
            check::Origin::Base
        };
        check::check(file, origin, self.sources.context, self.report, self.rules);
        for entry in extends {
            let span = entry.span();
            let (name, text, directory) =
                match base(entry.get_ref(), directory, self.sources.context) {
                    Ok(Base::Preset(preset)) => (
                        format!("preset:{}", preset.name),
                        Ok(preset.text.to_owned()),
                        PathBuf::from("/"),
                    ),
                    Ok(Base::File(path)) => {
                        let found = self.sources.included.iter().find(|file| file.path == path);
                        let text = found.map_or_else(
                            || Err("it was not handed in".to_owned()),
                            |file| file.text.clone(),
                        );
                        (path.display().to_string(), text, parent(&path))
                    }
                    Err(fault) => {
                        self.report
                            .push(Diagnostic::error(fault.message, span).help(fault.help));
                        continue;
                    }
                };
            if let Some(begin) = self.around.iter().position(|around| *around == name) {
                let mut circle: Vec<&str> =
                    self.around[begin..].iter().map(String::as_str).collect();
                circle.push(&name);
                self.report.push(
                    Diagnostic::error(
                        format!(
                            "{} extends itself: {}",
                            quote(&name),
                            quote(&circle.join(" → "))
                        ),
                        span,
                    )
                    .help("take one of these `extends` out"),
                );
                continue;
            }
            // What is reached on two ways is read once.
            if !self.done.insert(name.clone()) {
                continue;
            }
            let text = match text {
                Ok(text) => text,
                Err(why) => {
                    self.report.push(
                        Diagnostic::error(format!("{} cannot be read: {why}", quote(&name)), span)
                            .help("a file in `extends` is named by its path from the directory of the file that names it"),
                    );
                    continue;
                }
            };
            self.bytes += text.len();
            if self.bytes > MAX_TEXT {
                self.report.push(
                    Diagnostic::error(
                        format!(
                            "with {} the policy is longer than {MAX_TEXT} bytes",
                            quote(&name)
                        ),
                        span,
                    )
                    .help("name directories instead of the files in them"),
                );
                return;
            }
            let at = self.report.add(name.clone(), text.clone());
            self.around.push(name);
            self.visit(&text, at, &directory, false);
            self.around.pop();
        }
    }
}
