//! Holds `policy explain` and the kernel together: random policies over random trees, and for each of many actions what the kernel
//! made of it, told to `agentwatch policy test` as what is expected.
//!
//! The policies of a round are one policy in one session: each speaks of a tree of its own, in names of its own, so that they do
//! not meet. Rules name files by their real paths, because `explain` follows no links; the actions go through links too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use serde_json::Value;

use super::{
    agentwatch::Daemon,
    conformance,
    run::{Actor, Stage, Verdict},
};
use crate::act::script::{Done, Step};

/// What this is called among the scenarios.
pub const NAME: &str = "explained";
/// Names of a tree.
const NAMES: [&str; 4] = ["a", "ab", "b", "ba"];
/// Files and directories of a tree, and how deep they lie at most.
const NODES: usize = 14;
const DEPTH: usize = 4;
/// Mismatches that are told.
const TOLD: usize = 12;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Sessions, one after the other.
    pub rounds: u32,
    /// Policies of a session.
    pub policies: usize,
    /// Actions for each of them.
    pub actions: usize,
    pub seed: u64,
}

/// Runs all rounds.
pub fn run(extent: Extent, daemon: &Daemon, stage: &Stage) -> Verdict {
    let missing = stage.doctor.missing(&["bpf-lsm".to_owned()]);
    if !missing.is_empty() {
        let reason = format!("needs {}", missing.join(", "));
        return if stage.requires(&missing) {
            Verdict::Fail(reason)
        } else {
            Verdict::Skip(reason)
        };
    }
    let mut compared = Compared::default();
    for round in 0..extent.rounds {
        let seed = extent.seed.wrapping_add(u64::from(round));
        match one_round(seed, extent, daemon, stage) {
            Ok(more) => compared.add(more),
            Err(error) => return Verdict::Fail(format!("seed {seed}: {error:#}")),
        }
    }
    println!(
        "{} policies, {} actions compared ({} allowed, {} denied, {} to be approved), {} of them by their rule, {} without an event, {} mismatches",
        extent.policies * extent.rounds as usize,
        compared.actions,
        compared.actions - compared.denied - compared.held,
        compared.denied,
        compared.held,
        compared.with_rule,
        compared.without_event,
        compared.mismatches
    );
    if compared.agree() {
        Verdict::Pass
    } else {
        Verdict::Fail(format!(
            "of {} answers {} differ, and {} have no event: {}",
            compared.actions,
            compared.mismatches,
            compared.without_event,
            compared.told.join("; ")
        ))
    }
}

/// What was compared, and how it went.
#[derive(Default)]
struct Compared {
    actions: usize,
    denied: usize,
    held: usize,
    with_rule: usize,
    /// No event says by which rule.
    without_event: usize,
    mismatches: usize,
    told: Vec<String>,
}

impl Compared {
    fn add(&mut self, more: Compared) {
        self.actions += more.actions;
        self.denied += more.denied;
        self.held += more.held;
        self.with_rule += more.with_rule;
        self.without_event += more.without_event;
        self.mismatches += more.mismatches;
        self.tell(more.told);
    }

    /// Keeps the first lines on what differs.
    fn tell(&mut self, lines: impl IntoIterator<Item = String>) {
        let room = TOLD.saturating_sub(self.told.len());
        self.told.extend(lines.into_iter().take(room));
    }

    /// Every action was recorded, and ended as it is explained.
    fn agree(&self) -> bool {
        self.mismatches == 0 && self.without_event == 0
    }
}

fn one_round(seed: u64, extent: Extent, daemon: &Daemon, stage: &Stage) -> Result<Compared> {
    let session = format!("{NAME}-{seed}");
    let dir = stage.root.join("work").join(&session);
    fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    let mut rng = Rng::with_seed(seed);
    let mut lists = Lists::default();
    let mut questions = Vec::new();
    for number in 0..extent.policies {
        let tree = Tree::make(&dir.join(format!("t{number}")), number, &mut rng)?;
        tree.write_rules(&mut lists, &mut rng);
        questions.extend(tree.ask(extent.actions, &mut rng));
    }
    lists.add("files", "exec", &quoted(&stage.act));
    let text = lists.text();
    let policy = stage.root.join(format!("{session}.toml"));
    fs::write(&policy, &text)?;
    let policy_path = policy.to_string_lossy();
    let act = stage.act.to_string_lossy();
    let arguments = [
        "run",
        "--policy",
        &policy_path,
        "--name",
        &session,
        "--",
        &act,
        "--script",
    ];
    let actor = Actor {
        dir: &dir,
        home: &dir,
        uid: 0,
        seconds: 240 * u64::from(stage.patience) * u64::from(extent.rounds.min(4)),
    };
    let steps: Vec<Step> = questions.iter().map(Question::step).collect();
    let done = actor.perform(daemon.agentwatch.command(&arguments), &steps)?;
    let events = conformance::await_end(&session, daemon, stage, false)?;

    let mut compared = Compared::default();
    let mut expectations = text;
    for (question, done) in questions.iter().zip(&done) {
        let Some(allowed) = outcome(question, done)? else {
            continue;
        };
        let rule = rule_of(question, done, allowed, &events);
        if rule.is_none() && !is_folded(question, done, &events) {
            compared.without_event += 1;
            compared.tell([without_event(question, done, allowed, &events)]);
        }
        let held = rule
            .as_deref()
            .is_some_and(|rule| rule.contains(".approve["));
        let verdict = match (allowed, held) {
            (true, _) => "allowed",
            (false, true) => "held",
            (false, false) => "denied",
        };
        compared.actions += 1;
        compared.denied += usize::from(verdict == "denied");
        compared.held += usize::from(verdict == "held");
        compared.with_rule += usize::from(rule.is_some());
        let _ = write!(
            expectations,
            "\n[[expect]]\n{} = {}\nverdict = \"{verdict}\"\n",
            question.access.key(),
            quoted(&question.real)
        );
        if let Some(rule) = rule {
            let _ = writeln!(expectations, "rule = \"{rule}\"");
        }
    }
    let expected = stage.root.join(format!("{session}-expected.toml"));
    fs::write(&expected, expectations)?;
    let output = daemon
        .agentwatch
        .command(&["policy", "test", &expected.to_string_lossy(), "--json"])
        .output()?;
    let answer: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "`agentwatch policy test` ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    ensure!(
        answer["expectations"] == compared.actions,
        "{} expectations were read instead of {}",
        answer["expectations"],
        compared.actions
    );
    compared.mismatches = usize::try_from(answer["failed"].as_u64().context("a count")?)?;
    let diagnostics = answer["diagnostics"].as_array().into_iter().flatten();
    compared.tell(
        diagnostics
            .filter(|diagnostic| diagnostic["severity"] == "error")
            .filter_map(|diagnostic| diagnostic["message"].as_str())
            .map(|message| message.replace(&*dir.to_string_lossy(), "{dir}")),
    );
    if compared.agree() {
        fs::remove_dir_all(&dir)?;
    } else {
        println!(
            "what differs, seed {seed}, is kept in {}",
            expected.display()
        );
        println!("the policy:\n{}", lists.about(&compared.told));
    }
    Ok(compared)
}

/// Whether the action was allowed; nothing where it could not be tried: something on the way is not there, because making it
/// was refused.
fn outcome(question: &Question, done: &Done) -> Result<Option<bool>> {
    match done.outcome.as_str() {
        "ok" => Ok(Some(true)),
        "EACCES" => Ok(Some(false)),
        "ENOENT" | "ENOTDIR" => Ok(None),
        other => anyhow::bail!("{} {}: {other}", question.act, question.asked.display()),
    }
}

/// Whether an earlier event of the file stands for further actions like it.
fn is_folded(question: &Question, done: &Done, events: &[Value]) -> bool {
    events.iter().any(|event| {
        event["count"].as_u64() > Some(1)
            && event["ktime_ns"].as_u64() < Some(done.begin)
            && event.pointer("/file/path").and_then(Value::as_str) == question.real.to_str()
    })
}

/// What the record has about the file of an action that it has no event of.
fn without_event(question: &Question, done: &Done, allowed: bool, events: &[Value]) -> String {
    let real = question.real.to_str();
    let about: Vec<String> = events
        .iter()
        .filter(|event| event.pointer("/file/path").and_then(Value::as_str) == real)
        .map(|event| {
            let rule = event.pointer("/rule/id").and_then(Value::as_str);
            format!(
                "{} {} {} at {} by {rule:?}",
                event["kind"], event["verdict"], event["errno"], event["ktime_ns"]
            )
        })
        .collect();
    format!(
        "no event says that {} {} was {} between {} and {}; of the file there are {about:?}",
        question.act,
        question.real.display(),
        if allowed { "allowed" } else { "refused" },
        done.begin,
        done.end
    )
}

/// The rule that the record names for an action.
fn rule_of(question: &Question, done: &Done, allowed: bool, events: &[Value]) -> Option<String> {
    let real = question.real.to_str();
    let about = |event: &&Value| {
        let during = event["ktime_ns"]
            .as_u64()
            .is_some_and(|time| (done.begin..=done.end).contains(&time));
        // What was held and then refused is refused in the end.
        let verdict = event["verdict"].as_str();
        let as_it_ended = verdict == Some(if allowed { "allowed" } else { "denied" });
        let kind = event["kind"].as_str();
        let kinds: &[&str] = match question.act {
            "exec" => &["exec"],
            "creat" | "mkdir" => &["create", "open"],
            _ => &["open"],
        };
        during
            && as_it_ended
            && kind.is_some_and(|kind| kinds.contains(&kind))
            && event.pointer("/file/path").and_then(Value::as_str) == real
    };
    let event = events.iter().find(about)?;
    Some(event.pointer("/rule/id")?.as_str()?.to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    Read,
    Write,
    Exec,
}

impl Access {
    fn key(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "write",
            Access::Exec => "exec",
        }
    }
}

/// One action: by which way it goes, and what it reaches.
#[derive(Clone, Debug)]
struct Question {
    act: &'static str,
    access: Access,
    asked: PathBuf,
    real: PathBuf,
}

impl Question {
    fn step(&self) -> Step {
        Step::Act(vec![
            self.act.to_owned(),
            self.asked.to_string_lossy().into_owned(),
        ])
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File,
    Link,
}

/// A tree with names that are found in no other one.
struct Tree {
    root: PathBuf,
    number: usize,
    /// By real path, links by their own.
    nodes: BTreeMap<PathBuf, Node>,
}

impl Tree {
    fn make(root: &Path, number: usize, rng: &mut Rng) -> Result<Self> {
        fs::create_dir(root)?;
        let mut tree = Self {
            root: root.to_owned(),
            number,
            nodes: BTreeMap::from([(root.to_owned(), Node::Directory)]),
        };
        for _ in 0..NODES {
            let around = tree.pick(rng, |node| *node == Node::Directory);
            let path = around.join(tree.name(rng));
            if tree.nodes.contains_key(&path) || tree.depth(&path) > DEPTH {
                continue;
            }
            let node = match rng.u8(0..10) {
                0..4 => Node::Directory,
                4 => Node::Link,
                _ => Node::File,
            };
            match node {
                Node::Directory => fs::create_dir(&path)?,
                Node::File => {
                    fs::write(&path, PROGRAM)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                }
                Node::Link => {
                    let target = tree.pick(rng, |node| *node != Node::Link);
                    std::os::unix::fs::symlink(target, &path)?;
                }
            }
            tree.nodes.insert(path, node);
        }
        Ok(tree)
    }

    fn name(&self, rng: &mut Rng) -> String {
        let name = NAMES[rng.usize(..NAMES.len())];
        format!("{0}{name}-{0}", self.number)
    }

    fn depth(&self, path: &Path) -> usize {
        path.strip_prefix(&self.root)
            .map_or(0, |rest| rest.components().count())
    }

    fn pick(&self, rng: &mut Rng, which: impl Fn(&Node) -> bool) -> PathBuf {
        let paths: Vec<&PathBuf> = self
            .nodes
            .iter()
            .filter(|(_, node)| which(node))
            .map(|(path, _)| path)
            .collect();
        paths[rng.usize(..paths.len())].clone()
    }

    /// A path that something has, or that nothing has below something that is there; never through a link.
    fn real_path(&self, rng: &mut Rng) -> PathBuf {
        let mut path = self.pick(rng, |node| *node != Node::Link);
        while rng.u8(0..4) == 0 && self.depth(&path) < DEPTH {
            let below = path.join(self.name(rng));
            if matches!(self.nodes.get(&path), Some(Node::File | Node::Link))
                || self.nodes.get(&below) == Some(&Node::Link)
            {
                break;
            }
            path = below;
        }
        path
    }

    fn pattern(&self, rng: &mut Rng) -> String {
        let (number, name) = (self.number, NAMES[rng.usize(..NAMES.len())]);
        match rng.u8(0..3) {
            0 => format!("**/{number}{name}-{number}"),
            1 => format!("**/*{name}-{number}"),
            _ => format!("**/{number}{name}*"),
        }
    }

    fn write_rules(&self, lists: &mut Lists, rng: &mut Rng) {
        // Mostly something is open, so that there is something to take away.
        match rng.u8(0..8) {
            0..5 => lists.add("files", "write", &quoted(&self.root)),
            5 | 6 => lists.add("files", "read", &quoted(&self.root)),
            _ => {}
        }
        if rng.u8(0..3) > 0 {
            lists.add("files", "exec", &quoted(&self.root));
        }
        for _ in 0..rng.usize(2..9) {
            let path = quoted(&self.real_path(rng));
            match rng.u8(0..10) {
                0 | 1 => lists.add("files", "read", &path),
                2 | 3 => lists.add("files", "write", &path),
                4 => lists.add("files", "exec", &path),
                5 | 6 => lists.add("files", "deny", &path),
                7 => lists.add("exec", "deny", &path),
                8 => lists.add("files", "approve", &path),
                _ => {
                    let access = if rng.bool() { "read" } else { "write" };
                    let entry = format!("{{ path = {path}, access = [\"{access}\"] }}");
                    lists.add("files", "approve", &entry);
                }
            }
        }
        for _ in 0..rng.usize(0..3) {
            let pattern = format!("\"{}\"", self.pattern(rng));
            let entry = match rng.u8(0..4) {
                0 => format!("{{ path = {pattern}, access = [\"write\"] }}"),
                _ => pattern,
            };
            let list = if rng.u8(0..3) == 0 || entry.starts_with('{') {
                "approve"
            } else {
                "deny"
            };
            lists.add("files", list, &entry);
        }
    }

    /// Actions on what is there, and on what is not: that is made first, and then used.
    fn ask(&self, most: usize, rng: &mut Rng) -> Vec<Question> {
        let mut asked = BTreeSet::new();
        let mut made: BTreeMap<PathBuf, Node> = BTreeMap::new();
        let mut questions = Vec::new();
        for _ in 0..most * 8 {
            if questions.len() >= most {
                break;
            }
            let real = self.real_path(rng);
            let known = self.nodes.get(&real).or_else(|| made.get(&real)).cloned();
            let is_directory = known == Some(Node::Directory);
            let (act, access) = match (&known, rng.u8(0..3)) {
                (None, _) => {
                    let parent = real.parent().unwrap_or(Path::new("/"));
                    let around = self.nodes.get(parent).or_else(|| made.get(parent));
                    if around != Some(&Node::Directory) {
                        continue;
                    }
                    let directory = rng.bool();
                    let node = if directory {
                        Node::Directory
                    } else {
                        Node::File
                    };
                    made.insert(real.clone(), node);
                    let act = if directory { "mkdir" } else { "creat" };
                    (act, Access::Write)
                }
                (_, 0) if is_directory => ("list", Access::Read),
                (_, 0) => ("open-read", Access::Read),
                (_, 1) if !is_directory => ("open-write", Access::Write),
                // What is made here may not be executed by its mode.
                (_, _) if !is_directory && !made.contains_key(&real) => ("exec", Access::Exec),
                _ => continue,
            };
            if !asked.insert((real.clone(), access)) {
                continue;
            }
            let way = self.way_to(&real, rng);
            questions.push(Question {
                act,
                access,
                asked: way,
                real,
            });
        }
        questions
    }

    /// A path that leads there, through a link where one does.
    fn way_to(&self, real: &Path, rng: &mut Rng) -> PathBuf {
        let links = self.nodes.iter().filter(|(_, node)| **node == Node::Link);
        let ways: Vec<PathBuf> = links
            .filter_map(|(link, _)| {
                let rest = real.strip_prefix(fs::read_link(link).ok()?).ok()?;
                Some(if rest.as_os_str().is_empty() {
                    link.clone()
                } else {
                    link.join(rest)
                })
            })
            .collect();
        if ways.is_empty() || rng.bool() {
            real.to_owned()
        } else {
            ways[rng.usize(..ways.len())].clone()
        }
    }
}

/// The lists of a policy, entry by entry as TOML.
#[derive(Default)]
struct Lists(BTreeMap<&'static str, BTreeMap<&'static str, Vec<String>>>);

impl Lists {
    fn add(&mut self, table: &'static str, list: &'static str, entry: &str) {
        let list = self.0.entry(table).or_default().entry(list).or_default();
        list.push(entry.to_owned());
    }

    fn text(&self) -> String {
        // What waits for a person is refused at once: none comes.
        let mut text =
            "[approvals]\ntimeout = \"1s\"\nmax_pending = 1\nmax_per_hour = 1\n".to_owned();
        for (table, lists) in &self.0 {
            let _ = writeln!(text, "\n[{table}]");
            for (list, entries) in lists {
                let _ = writeln!(text, "{list} = [\n    {},\n]", entries.join(",\n    "));
            }
        }
        text
    }

    /// The rules that have a say where these sentences speak of a tree.
    fn about(&self, told: &[String]) -> String {
        let mut text = String::new();
        for (table, lists) in &self.0 {
            for (list, entries) in lists {
                for (index, entry) in entries.iter().enumerate() {
                    let tree = entry.split('/').find(|part| {
                        let rest = part.strip_prefix('t').unwrap_or_default();
                        rest.parse::<usize>().is_ok()
                    });
                    let spoken_of = match tree {
                        Some(tree) => told.iter().any(|line| line.contains(&format!("/{tree}/"))),
                        None => entry.contains("**/"),
                    };
                    if spoken_of {
                        let _ = writeln!(text, "  {table}.{list}[{index}] {entry}");
                    }
                }
            }
        }
        text
    }
}

fn quoted(path: &Path) -> String {
    toml::Value::from(path.to_string_lossy().into_owned()).to_string()
}

/// A program that ends well and needs nothing: an ELF header, one segment, and `exit(0)`.
const PROGRAM: [u8; 129] = {
    let mut program = [0; 129];
    let header: [u8; 64] = [
        0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 64 bits, little endian
        2, 0, 62, 0, 1, 0, 0, 0, // executable, x86-64
        0x78, 0, 0x40, 0, 0, 0, 0, 0, // starts behind the headers
        64, 0, 0, 0, 0, 0, 0, 0, // program headers
        0, 0, 0, 0, 0, 0, 0, 0, // no sections
        0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    ];
    let segment: [u8; 56] = [
        1, 0, 0, 0, 5, 0, 0, 0, // loaded, readable and executable
        0, 0, 0, 0, 0, 0, 0, 0, // from the beginning of the file
        0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, // to 0x400000
        129, 0, 0, 0, 0, 0, 0, 0, 129, 0, 0, 0, 0, 0, 0, 0, // all of it
        0, 0x10, 0, 0, 0, 0, 0, 0,
    ];
    // mov eax, 60; xor edi, edi; syscall
    let code: [u8; 9] = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let mut at = 0;
    while at < 129 {
        program[at] = if at < 64 {
            header[at]
        } else if at < 120 {
            segment[at - 64]
        } else {
            code[at - 120]
        };
        at += 1;
    }
    program
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_ends_well() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, PROGRAM).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(
            std::process::Command::new(&path)
                .status()
                .unwrap()
                .success()
        );
    }

    #[test]
    fn a_seed_makes_the_same_each_time() {
        let text = |seed| {
            let directory = tempfile::tempdir().unwrap();
            let mut rng = Rng::with_seed(seed);
            let tree = Tree::make(&directory.path().join("t0"), 0, &mut rng).unwrap();
            let mut lists = Lists::default();
            tree.write_rules(&mut lists, &mut rng);
            let questions = tree.ask(60, &mut rng);
            let all = format!("{} {questions:?}", lists.text());
            all.replace(&*directory.path().to_string_lossy(), "")
        };
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }
}
