//! A policy after its text has been read, checked and compiled: what `explain` reads and what the
//! kernel is given.
//!
//! Paths are absolute and lexically clean; binding them to inodes is the kernel side's work
//! (`kernel::maps`), so that everything here runs on any machine without one. Nothing in this module does I/O.

use std::path::PathBuf;

use agentwatch_common::policy::{guard, rule};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::model::{Layer, Mode, PolicyRecord, RuleRef};

/// Index of a rule in [`Compiled::rules`].
pub type RuleIndex = u32;

/// The built-in rules that decide where no rule of the policy matches; they stand first in every
/// [`Compiled::rules`], in this order.
pub const DEFAULT_RULES: [&str; rule::GUARDS as usize + guard::COUNT] = {
    let mut rules = [""; rule::GUARDS as usize + guard::COUNT];
    rules[rule::FILES_DEFAULT as usize] = "files.default";
    rules[rule::NETWORK_DEFAULT as usize] = "network.default";
    rules[rule::LISTEN_DEFAULT as usize] = "network.listen.default";
    rules[rule::UNIX_DEFAULT as usize] = "network.unix.default";
    rules[rule::FAMILIES_DEFAULT as usize] = "network.families.default";
    rules[rule::SELF as usize] = "agentwatch.self";
    rules[rule::OWN as usize] = "session.own";
    rules[rule::SETTINGS as usize] = "host.settings";
    let mut operation = 0;
    while operation < guard::COUNT {
        rules[rule::GUARDS as usize + operation] = guard::RULES[operation];
        operation += 1;
    }
    rules
};
pub const FILES_DEFAULT: RuleIndex = rule::FILES_DEFAULT;
pub const NETWORK_DEFAULT: RuleIndex = rule::NETWORK_DEFAULT;
pub const LISTEN_DEFAULT: RuleIndex = rule::LISTEN_DEFAULT;
pub const UNIX_DEFAULT: RuleIndex = rule::UNIX_DEFAULT;
pub const FAMILIES_DEFAULT: RuleIndex = rule::FAMILIES_DEFAULT;
pub const SETTINGS: RuleIndex = rule::SETTINGS;

/// What a rule does with an action that it matches. At the same place the stricter one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    Allow,
    Approve,
    Deny,
}

/// A right on files. `write` covers reading too: that is worked out when a place is compiled, so the three are
/// asked for separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Read = 0,
    Write = 1,
    Exec = 2,
}

impl Access {
    pub const ALL: [Access; 3] = [Access::Read, Access::Write, Access::Exec];
}

/// One rule as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// Id, such as `files.deny[2]`.
    pub id: String,
    /// Who wrote it.
    pub layer: Layer,
    /// `FILE:LINE`, empty for built-in rules.
    pub source: String,
    /// The rule's text as written.
    pub text: String,
}

impl Rule {
    /// Whether it denies in so many words.
    pub fn denies(&self) -> bool {
        self.id.contains(".deny[")
    }

    pub fn reference(&self) -> RuleRef {
        RuleRef {
            id: self.id.clone(),
            layer: self.layer,
            source: self.source.clone(),
        }
    }
}

/// What is decided for one right at one place, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub effect: Effect,
    pub rule: RuleIndex,
}

/// A path that some rule names, and everything that holds from there down to the next place.
///
/// Rules at the same path are merged, and what they leave open is inherited from the enclosing place, when the policy
/// is compiled; the kernel only looks for the nearest place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Absolute, lexically clean.
    pub path: PathBuf,
    /// Indexed by [`Access`].
    pub decisions: [Decision; 3],
}

/// Names that a rule is about, wherever they stand: the last component of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamePattern {
    /// `**/.env`
    Exact(String),
    /// `*.pem`
    Suffix(String),
    /// `id_*`
    Prefix(String),
}

/// A rule on names. It takes away from what the places around a file say, right by right, and never gives: [`Effect::Allow`]
/// adds nothing. A place that names that very file wins over it. A directory's name holds for everything below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    pub pattern: NamePattern,
    /// Indexed by [`Access`].
    pub decisions: [Decision; 3],
}

/// A command by its program and the first of its arguments. Of the rules that match, the one with the most arguments decides;
/// none opens a program that its place denies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRule {
    pub program: Program,
    /// argv[1..] begins with these; empty: any arguments.
    pub arguments: Vec<String>,
    pub decision: Decision,
}

/// What a [`CommandRule`] says of the program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A file. Absolute, lexically clean.
    Path(PathBuf),
    /// A name, looked for in the usual directories when the rules are bound.
    Name(String),
}

/// The most bytes of a [`CommandRule`]'s arguments, each with its NUL: the size of the kernel's key.
pub const MAX_ARGUMENTS: usize = 111;

/// The longest pattern of a name, in bytes.
pub const MAX_NAME_PATTERN: usize = agentwatch_common::limits::NAME_RULE - 1;

/// UNIX sockets that may be connected and sent to. A socket with a path may be also where `files.write` covers the path, and
/// one that the session made always.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnixTarget {
    /// A socket's file.
    Path(PathBuf),
    /// An abstract name, without the `@` that stands for its first byte.
    Abstract(String),
    /// Abstract names that begin so.
    AbstractPrefix(String),
}

/// A rule on UNIX sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixRule {
    pub target: UnixTarget,
    pub decision: Decision,
}

/// A socket family that is allowed although it is not one of `unix`, `inet`, `inet6` (TCP and UDP) and `netlink`, which always are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyRule {
    /// Bit in the kernel's mask: the family's number, or one of `agentwatch_common::policy::family`.
    pub bit: u32,
    pub rule: RuleIndex,
}

/// An operation on the host around the session that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardRule {
    /// Index in `agentwatch_common::policy::guard`.
    pub operation: u32,
    pub rule: RuleIndex,
}

/// What a network rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetOp {
    /// Connecting, and sending datagrams to an address.
    Connect,
    /// Binding to a local address.
    Listen,
}

/// Ports of a prefix, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRule {
    pub first: u16,
    pub last: u16,
    pub decision: Decision,
}

impl PartialOrd for Decision {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Decision {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.effect, self.rule).cmp(&(other.effect, other.rule))
    }
}
impl std::hash::Hash for Decision {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.effect, self.rule).hash(state);
    }
}

/// An address prefix, and what holds for its ports: the first rule whose ports match decides, and where none
/// matches the default does. What enclosing prefixes say is already appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    pub op: NetOp,
    pub net: IpNet,
    pub ports: Vec<PortRule>,
}

/// The most port rules that one prefix may have, its enclosing prefixes' included: the size of the kernel's map value.
pub const MAX_PORT_RULES: usize = agentwatch_common::limits::PORT_RULES;

/// What the task is. It is recorded, and decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Task {
    /// What is to be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// Who answers for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Where it is written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// Commands that show that it is done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub acceptance: Vec<String>,
}

/// What a session may use of the host; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// Tasks at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Seconds from start to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_time: Option<u64>,
}

/// How an action that needs approval waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Approvals {
    /// Seconds until an action that nobody decided on is decided by `on_timeout`.
    pub timeout: u64,
    pub on_timeout: OnTimeout,
    /// Actions of a session that may wait at the same time. What is beyond is denied.
    pub max_pending: u32,
    /// Requests of a session within an hour. What is beyond is denied.
    pub max_per_hour: u32,
}

impl Default for Approvals {
    fn default() -> Self {
        Self {
            timeout: 900,
            on_timeout: OnTimeout::Deny,
            max_pending: 64,
            max_per_hour: 120,
        }
    }
}

/// What becomes of an action that nobody decided on in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    #[default]
    Deny,
    Allow,
}

/// Which of the environment `run` passes on, beyond [`super::limits::SECRETS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    pub pass: Vec<NamePattern>,
    pub drop: Vec<NamePattern>,
}

/// Which opens are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opens {
    /// Equal ones as one event with a count.
    #[default]
    Fold,
    /// Each as an event of its own.
    All,
    /// Those that change something, equal ones as one event; what is denied is recorded in any case.
    Writes,
}

/// Who may start sessions, as one managed file says. Users and groups together; anyone where both are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// `FILE:LINE`.
    pub source: String,
    pub users: Option<Vec<String>>,
    pub groups: Option<Vec<String>>,
    /// Sessions of one user at the same time, and where that is written.
    pub max_per_user: Option<(u32, String)>,
}

/// What the host's administrator says of all sessions; each with the place where it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    pub mode: Option<(Mode, String)>,
    /// Whether a session must not begin where the kernel cannot hold all of its policy.
    pub refuses_degraded: Option<String>,
    pub sessions: Vec<Admission>,
    pub approvals: ApprovalBounds,
}

/// How far a task's [`Approvals`] may go, each bound with the place where it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApprovalBounds {
    pub timeout: Option<(u64, String)>,
    /// What nobody decides on is denied.
    pub denies_on_timeout: Option<String>,
    pub max_pending: Option<(u32, String)>,
    pub max_per_hour: Option<(u32, String)>,
}

/// A compiled policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compiled {
    /// `sha256:<hex>` over the canonical JSON of everything else here but the rules' sources.
    pub digest: String,
    pub mode: Mode,
    /// Default rules first (see [`DEFAULT_RULES`]).
    pub rules: Vec<Rule>,
    /// Sorted by path, each path once.
    pub places: Vec<Place>,
    /// Sorted by operation and prefix, each pair once.
    pub prefixes: Vec<Prefix>,
    pub names: Vec<Name>,
    /// Each program with each list of arguments once.
    pub commands: Vec<CommandRule>,
    pub unix: Vec<UnixRule>,
    pub families: Vec<FamilyRule>,
    pub guards: Vec<GuardRule>,
    pub task: Task,
    pub limits: Limits,
    pub approvals: Approvals,
    pub environment: Environment,
    pub opens: Opens,
    pub floor: Floor,
    /// Warnings that do not keep the policy from being used, rendered for a person.
    pub warnings: Vec<String>,
}

/// Bytes of rules, as JSON, that the record of a session holds: with the rest of its event well below a frame.
const RECORDED: usize = 3 << 20;

impl Compiled {
    /// Whether it may let a command wait for a person.
    pub fn commands_wait(&self) -> bool {
        let waits = |decision: &Decision| decision.effect == Effect::Approve;
        let exec = Access::Exec as usize;
        self.commands.iter().any(|rule| waits(&rule.decision))
            || self
                .places
                .iter()
                .any(|place| waits(&place.decisions[exec]))
            || self.names.iter().any(|name| waits(&name.decisions[exec]))
    }

    /// What the record of a session keeps of the policy.
    pub fn record(&self) -> PolicyRecord {
        let written = self.rules.get(DEFAULT_RULES.len()..).unwrap_or_default();
        let mut bytes = 0;
        let rules: Vec<Rule> = written
            .iter()
            .take_while(|rule| {
                bytes += serde_json::to_vec(rule).map_or(0, |json| json.len());
                bytes <= RECORDED
            })
            .cloned()
            .collect();
        PolicyRecord {
            task: self.task.clone(),
            limits: self.limits,
            left_out: (written.len() - rules.len()) as u64,
            rules,
        }
    }
}

/// What a policy's relative parts refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Absolute. Relative paths start here; `${workspace}`.
    pub cwd: PathBuf,
    /// Absolute. What `~` and `${home}` stand for.
    pub home: PathBuf,
    /// Absolute. What `${tmp}` stands for; `/tmp` where it is empty.
    #[serde(default)]
    pub tmp: PathBuf,
    /// What `${uid}` stands for.
    #[serde(default)]
    pub uid: u32,
}

#[cfg(test)]
impl Context {
    /// An ordinary user's, for tests.
    pub(crate) fn of_tests(cwd: &str) -> Self {
        Self {
            cwd: cwd.into(),
            home: "/home/u".into(),
            uid: 1000,
            ..Self::default()
        }
    }
}
