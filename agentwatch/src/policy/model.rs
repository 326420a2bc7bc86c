//! A policy after its text has been read, checked and compiled: what `explain` reads and what the
//! kernel is given.
//!
//! Paths are absolute and lexically clean; binding them to inodes is the kernel side's work
//! (`kernel::maps`), so that everything here runs on any machine without one. Nothing in this module does I/O.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::event::model::{Layer, Mode, RuleRef};

/// Index of a rule in [`Compiled::rules`].
pub type RuleIndex = u32;

/// The built-in rules that decide where no rule of the policy matches; they stand first in every
/// [`Compiled::rules`], in this order.
pub const DEFAULT_RULES: [&str; 3] = ["files.default", "network.default", "network.listen.default"];
pub const FILES_DEFAULT: RuleIndex = 0;
pub const NETWORK_DEFAULT: RuleIndex = 1;
pub const LISTEN_DEFAULT: RuleIndex = 2;

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Id, such as `files.deny[2]`.
    pub id: String,
    pub layer: Layer,
    /// `FILE:LINE`, empty for built-in rules.
    pub source: String,
    /// The rule's text as written.
    pub text: String,
}

impl Rule {
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
    /// Warnings that do not keep the policy from being used, rendered for a person.
    pub warnings: Vec<String>,
}

/// What a policy's relative parts refer to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Absolute. Relative paths start here.
    pub cwd: PathBuf,
    /// Absolute. What `~` stands for.
    pub home: PathBuf,
}
