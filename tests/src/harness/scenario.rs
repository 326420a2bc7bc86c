//! The scenario files: what a user does, told so that it reads without the harness.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::act::script;

/// One scenario file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What is shown, in one sentence.
    pub about: String,
    /// Capabilities without which nothing here can hold: `bpf-lsm`, `cgroup`, `landlock`, or several with `|`
    /// between them where any one will do.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Programs, by their paths, without which there is nothing to try.
    #[serde(default)]
    pub programs: Vec<String>,
    /// A directory that the scenarios must not be made in.
    pub not_below: Option<String>,
    /// The user's home, below `{dir}`; `{dir}` itself where nothing is said.
    #[serde(default)]
    pub home: String,
    /// Where the steps begin, below `{dir}`; `{dir}` itself where nothing is said.
    #[serde(default)]
    pub workspace: String,
    /// Whether it touches the host around it, so that it runs in a guest that is thrown away, and nowhere else.
    #[serde(default)]
    pub guest: bool,
    /// Who runs it: `root`, `user`.
    #[serde(default = "root_only")]
    pub users: Vec<String>,
    /// Given to `agentwatch run --mode`; absent: the policy decides.
    pub mode: Option<String>,
    /// Text of the policy, with placeholders.
    pub policy: String,
    /// Whether the session may lose events (it is made to).
    #[serde(default)]
    pub may_lose: bool,
    /// By how many MiB the daemon's memory may grow meanwhile.
    pub daemon_grows: Option<u64>,
    /// Whether the session may start with less than the policy asks for.
    #[serde(default)]
    pub accept_degraded: bool,
    /// How long the steps may take, in seconds on a machine with KVM-like speed; VMs get more.
    #[serde(default = "step_seconds")]
    pub seconds: u64,
    /// How long one of the steps may take; not multiplied.
    #[serde(default = "one_step_seconds")]
    pub step_seconds: u32,
    #[serde(default, rename = "file")]
    pub files: Vec<FileFixture>,
    #[serde(default, rename = "listener")]
    pub listeners: Vec<ListenerFixture>,
    #[serde(rename = "step")]
    pub steps: Vec<Step>,
    #[serde(default, rename = "event")]
    pub events: Vec<ExpectedEvent>,
}

/// A file, directory or link that stands before the first step, owned by whoever runs the scenario.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFixture {
    /// Below `{dir}`; a directory ends in `/`.
    pub path: String,
    #[serde(default)]
    pub content: String,
    /// Octal.
    pub mode: Option<String>,
    /// Copies this program there instead of `content`: `act`, or one of this machine by its path.
    pub program: Option<String>,
    /// Makes a symbolic link with this text instead.
    pub symlink: Option<String>,
    /// Makes a hard link to this file below `{dir}` instead.
    pub hardlink: Option<String>,
    /// Makes `path` a directory with so many others in it, each in the one before, and a `file` in the last.
    pub levels: Option<u32>,
    /// How long the name of each of them is.
    pub level_length: Option<usize>,
    /// Mounts a tmpfs there, where the host sees it.
    #[serde(default)]
    pub tmpfs: bool,
    /// Mounts another procfs there, where the host sees it.
    #[serde(default)]
    pub proc: bool,
    /// What is mounted on it is seen in copies of the host's mounts, and the other way round.
    #[serde(default)]
    pub shared: bool,
    /// Mounts a fresh btrfs there, on a loop device.
    #[serde(default)]
    pub btrfs: bool,
    /// Makes the directory as a subvolume of the btrfs that it lies on.
    #[serde(default)]
    pub subvolume: bool,
}

/// A socket that the harness holds open outside the session. Its port is `{port.NAME}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerFixture {
    pub name: String,
    pub kind: ListenerKind,
    /// IP address, or for `unix` a path below `{dir}` or `@NAME`.
    pub addr: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenerKind {
    Tcp,
    Udp,
    Unix,
    UnixDgram,
    UnixSeqpacket,
}

/// One action and how it must end. Exactly one of `act`, `run` and `outside` is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// An operation of the actor.
    pub act: Option<Vec<String>>,
    /// A program.
    pub run: Option<Vec<String>>,
    /// A probe that the harness makes by itself once the session has ended.
    pub outside: Option<String>,
    /// `ok`, an errno's name, `exit:N`, `signal:N`, or `denied` for whichever errno a refusal has here.
    pub expect: String,
    /// How the same step ends without agentwatch, tried first: shows that it is the policy that refuses.
    pub unconfined: Option<String>,
    /// Capabilities without which this step is left out.
    #[serde(default)]
    pub needs: Vec<String>,
}

impl Step {
    /// What the actor is told, `None` for a probe.
    pub fn script(&self) -> Option<script::Step> {
        match (&self.act, &self.run) {
            (Some(words), _) => Some(script::Step::Act(words.clone())),
            (_, Some(words)) => Some(script::Step::Run(words.clone())),
            _ => None,
        }
    }
}

/// Fields that an event must have; what is not said is not compared.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedEvent {
    pub kind: String,
    pub verdict: Option<String>,
    /// Rule id; a `*` at the end stands for any rest.
    pub rule: Option<String>,
    /// `file.path`, or `net.path` for a UNIX socket.
    pub path: Option<String>,
    /// `target.path`.
    pub target: Option<String>,
    /// Must be among `file.access`.
    pub access: Option<String>,
    pub addr: Option<String>,
    /// Text, because it may be a placeholder.
    pub port: Option<String>,
    pub domain: Option<String>,
    /// An errno's name, or `none`.
    pub errno: Option<String>,
    /// Executable of the acting process.
    pub exe: Option<String>,
    /// An argument that must be among `process.argv`.
    pub argument: Option<String>,
    pub uid: Option<u32>,
    /// `exit.code`.
    pub code: Option<i64>,
    /// `exit.signal`.
    pub signal: Option<i64>,
    /// How many actions the matching events stand for, exactly.
    pub count: Option<u64>,
    /// How many actions they stand for at the least.
    pub min_count: Option<u64>,
    /// How many events match, whatever they stand for.
    pub events: Option<u64>,
    /// How many events match at the most.
    pub max_events: Option<u64>,
    /// No such event may exist.
    #[serde(default)]
    pub absent: bool,
    /// Capabilities without which this expectation is left out.
    #[serde(default)]
    pub needs: Vec<String>,
}

fn root_only() -> Vec<String> {
    vec!["root".to_owned()]
}

fn step_seconds() -> u64 {
    20
}

fn one_step_seconds() -> u32 {
    script::STEP
}

/// Reads every scenario below `dir`, in the order of their names.
pub fn load_all(dir: &Path) -> Result<Vec<Scenario>> {
    toml_files(dir)?
        .iter()
        .map(|path| load(path).with_context(|| format!("scenario {}", path.display())))
        .collect()
}

/// The files below `dir` that end in `.toml`, in the order of their names.
pub(super) fn toml_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(dir)
        .with_context(|| format!("read {}", dir.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
    paths.sort();
    Ok(paths)
}

fn load(path: &Path) -> Result<Scenario> {
    let mut scenario: Scenario = toml::from_str(&fs::read_to_string(path)?)?;
    scenario.name = path
        .file_stem()
        .context("a scenario has a name")?
        .to_string_lossy()
        .into_owned();
    check(&scenario)?;
    Ok(scenario)
}

/// What the types cannot say. A refusal that was never shown to be the policy's own proves nothing.
fn check(scenario: &Scenario) -> Result<()> {
    ensure!(!scenario.steps.is_empty(), "it has no step");
    for user in &scenario.users {
        ensure!(
            user == "root" || user == "user",
            "user {user} is neither `root` nor `user`"
        );
    }
    for (index, step) in scenario.steps.iter().enumerate() {
        let given = [
            step.act.is_some(),
            step.run.is_some(),
            step.outside.is_some(),
        ];
        if given.iter().filter(|is| **is).count() != 1 {
            bail!("step {index}: exactly one of `act`, `run`, `outside` is needed");
        }
        let refused = matches!(step.expect.as_str(), "denied" | "EACCES" | "EPERM");
        ensure!(
            !refused || step.unconfined.is_some(),
            "step {index}: a refusal needs `unconfined`"
        );
    }
    Ok(())
}

/// Placeholders and their values.
pub type Values = BTreeMap<String, String>;

/// Replaces `{name}` by its value. Unknown names in braces stay: globs have braces too.
pub fn fill(text: &str, values: &Values) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{name}}}"), value)
    })
}

impl ExpectedEvent {
    /// Replaces the placeholders.
    pub fn fill(&mut self, values: &Values) {
        [
            &mut self.rule,
            &mut self.path,
            &mut self.target,
            &mut self.port,
            &mut self.exe,
            &mut self.argument,
            &mut self.addr,
        ]
        .into_iter()
        .flatten()
        .for_each(|text| *text = fill(text, values));
    }
}

impl Scenario {
    /// The same scenario with all placeholders replaced.
    pub fn filled(&self, values: &Values) -> Result<Scenario> {
        let mut filled = self.clone();
        let fill_in = |text: &mut String| *text = fill(text, values);
        fill_in(&mut filled.policy);
        for step in &mut filled.steps {
            step.act
                .iter_mut()
                .chain(&mut step.run)
                .flatten()
                .for_each(fill_in);
        }
        for event in &mut filled.events {
            event.fill(values);
        }
        ensure!(
            !filled.policy.contains("{port."),
            "the policy names a port of a listener that does not exist"
        );
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_reads() {
        let all = load_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap();
        assert!(all.len() >= 10, "only {} scenarios were found", all.len());
    }

    #[test]
    fn placeholders_are_replaced_and_globs_stay() {
        let values = Values::from([("dir".to_owned(), "/t".to_owned())]);
        assert_eq!(fill("{dir}/**/*.{a,b}", &values), "/t/**/*.{a,b}");
    }

    #[test]
    fn a_refusal_must_be_shown_to_be_the_policys() {
        let text =
            "about = 'x'\npolicy = ''\n[[step]]\nact = ['open-read', '/x']\nexpect = 'denied'\n";
        let error = check(&toml::from_str(text).unwrap()).unwrap_err();
        assert!(error.to_string().contains("unconfined"), "{error}");
    }
}
