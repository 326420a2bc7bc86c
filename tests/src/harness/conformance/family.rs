//! A family as its file has it, and its cases with their placeholders replaced.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::harness::scenario::{
    ExpectedEvent, FileFixture, ListenerFixture, Values, fill, toml_files,
};

/// One file of cases.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What the cases show, in one sentence.
    pub about: String,
    /// Capabilities without which nothing here can hold.
    pub needs: Vec<String>,
    /// Who runs the cases: `root`, `user`.
    pub users: Vec<String>,
    /// Whether the cases touch the host around them, so that they run in a guest that is thrown away, and nowhere else.
    #[serde(default)]
    pub guest: bool,
    /// Whether the session is attached to a container that stands already: see `container`. `{root}` is its root on the host.
    #[serde(default)]
    pub container: bool,
    /// Whether there is a process outside the session to act upon: `{outside.*}`.
    #[serde(default)]
    pub outside: bool,
    /// The policy of that process, where it is in a session of its own while the cases are done in theirs.
    pub neighbour: Option<String>,
    /// Text of the policy, with placeholders. A line that holds `{id}` is repeated for every case.
    pub policy: String,
    /// What stands before the first case; a path that holds `{id}` is made for every case.
    #[serde(default, rename = "file")]
    pub files: Vec<FileFixture>,
    #[serde(default, rename = "listener")]
    pub listeners: Vec<ListenerFixture>,
    #[serde(rename = "case")]
    pub cases: Vec<Case>,
}

/// One operation, how it ends without agentwatch and how in the session.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub id: String,
    /// Words of the actor; what stands before the last ` ; ` prepares.
    pub act: String,
    /// Where only some of the family's users can do this even without agentwatch.
    pub users: Option<Vec<String>>,
    /// The first kernel that can do this without agentwatch.
    pub since: Option<String>,
    /// The first kernel that no longer can.
    pub until: Option<String>,
    /// `ok`, an errno's name, `exit:N`, `signal:N`.
    #[serde(default = "ok")]
    pub unconfined: String,
    /// The same, or `denied` where either errno of a refusal is right.
    #[serde(default = "ok")]
    pub confined: String,
    /// What must be in the record of just this operation. Verdict and errno follow from `confined` where they are not said.
    pub event: Option<ExpectedEvent>,
    /// Files of this case alone.
    #[serde(default, rename = "file")]
    pub files: Vec<FileFixture>,
}

pub(super) fn ok() -> String {
    "ok".to_owned()
}

/// Reads every family below `dir`.
pub fn load_all(dir: &Path) -> Result<Vec<Family>> {
    toml_files(dir)?
        .iter()
        .map(|path| load(path).with_context(|| format!("family {}", path.display())))
        .collect()
}

fn load(path: &Path) -> Result<Family> {
    let mut family: Family = toml::from_str(&fs::read_to_string(path)?)?;
    family.name = path
        .file_stem()
        .context("a family has a name")?
        .to_string_lossy()
        .into_owned();
    let mut seen = std::collections::HashSet::new();
    for case in &mut family.cases {
        let refused = matches!(case.confined.as_str(), "EACCES" | "EPERM" | "denied");
        ensure!(seen.insert(case.id.clone()), "{} stands twice", case.id);
        for bound in [&case.since, &case.until].into_iter().flatten() {
            ensure!(
                version(bound).is_some(),
                "{}: {bound} is no kernel's version; write one like 6.12",
                case.id
            );
        }
        ensure!(
            !refused || case.unconfined != case.confined,
            "{}: it ends the same way without agentwatch",
            case.id
        );
        ensure!(
            !refused || case.event.is_some(),
            "{}: a refusal needs an event",
            case.id
        );
        if let Some(event) = &mut case.event {
            let verdict = if refused { "denied" } else { "allowed" };
            event.verdict.get_or_insert_with(|| verdict.to_owned());
            if refused && case.confined != "denied" {
                event.errno.get_or_insert_with(|| case.confined.clone());
            }
        }
    }
    Ok(family)
}

impl Family {
    /// Keeps the cases that are wanted by their full name, `conformance/FAMILY/CASE`.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        let name = &self.name;
        self.cases
            .retain(|case| wanted(&format!("conformance/{name}/{}", case.id)));
    }

    /// The cases that `user` can do on this kernel, each with its placeholders replaced.
    pub(super) fn cases_of(&self, user: &str, kernel: (u32, u32), values: &Values) -> Vec<Case> {
        self.cases
            .iter()
            .filter(|case| {
                let users = case.users.as_ref().unwrap_or(&self.users);
                users.iter().any(|one| one == user)
                    && case
                        .since
                        .as_deref()
                        .and_then(version)
                        .is_none_or(|since| kernel >= since)
                    && case
                        .until
                        .as_deref()
                        .and_then(version)
                        .is_none_or(|until| kernel < until)
            })
            .enumerate()
            .map(|(number, case)| {
                let mut case = case.clone();
                let values = values_of(&case.id, number, values);
                case.act = fill(&case.act, &values);
                if let Some(event) = &mut case.event {
                    event.fill(&values);
                }
                case
            })
            .collect()
    }

    /// All fixtures, those of single cases included. A path may be one of agentwatch's own: `{state}` and `{runtime}`.
    pub(super) fn all_files(&self, cases: &[Case], values: &Values) -> Vec<FileFixture> {
        let (of_each, once): (Vec<_>, Vec<_>) = self
            .files
            .iter()
            .partition(|file| file.path.contains("{id}"));
        let own = cases.iter().flat_map(|case| {
            let all = of_each.iter().copied().chain(&case.files);
            all.map(|file| {
                let named = |text: &str| text.replace("{id}", &case.id);
                let mut file = file.clone();
                file.path = fill(&named(&file.path), values);
                file.content = named(&file.content);
                file.symlink = file.symlink.as_deref().map(named);
                file.hardlink = file.hardlink.as_deref().map(named);
                file
            })
        });
        once.into_iter().cloned().chain(own).collect()
    }

    pub(super) fn policy_for(&self, cases: &[Case], values: &Values) -> String {
        let mut text = String::new();
        for line in self.policy.lines() {
            if line.contains("{id}") {
                for (number, case) in cases.iter().enumerate() {
                    text.push_str(&fill(line, &values_of(&case.id, number, values)));
                    text.push('\n');
                }
            } else {
                text.push_str(&fill(line, values));
                text.push('\n');
            }
        }
        text
    }
}

/// `{id}`, `{n}` (the case's place among those that run), and its directories `{in}`, `{ro}`, `{out}`.
fn values_of(id: &str, number: usize, values: &Values) -> Values {
    let mut values = values.clone();
    let dir = values.get("dir").cloned().unwrap_or_default();
    for part in ["in", "ro", "out"] {
        values.insert(part.to_owned(), format!("{dir}/{part}/{id}"));
    }
    values.insert("id".to_owned(), id.to_owned());
    values.insert("n".to_owned(), number.to_string());
    values
}

/// Version and patch level of this kernel.
pub(super) fn running_kernel() -> (u32, u32) {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .ok()
        .and_then(|text| version(&text))
        .unwrap_or((0, 0))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .trim()
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|digits| digits.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_reads() {
        let all = load_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance")).unwrap();
        let cases: usize = all.iter().map(|family| family.cases.len()).sum();
        assert!(cases >= 150, "only {cases} cases were found");
        for case in all.iter().flat_map(|family| &family.cases) {
            for part in case.act.split(" ; ") {
                let name = part.split_whitespace().next().unwrap_or_default();
                assert!(
                    crate::act::operations().any(|operation| operation.name == name),
                    "{}: there is no operation {name}",
                    case.id
                );
            }
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.12.117+deb12-cloud-amd64\n"), Some((6, 12)));
        assert!(version("6.12") > version("6.1"));
    }
}
