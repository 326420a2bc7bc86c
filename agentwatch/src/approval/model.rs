//! Requests and grants as people and their tools see them: what `agentwatch approvals --json` and `agentwatch grants --json` print.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::{
    Kind,
    model::{Decider, File, Net, Process, RuleRef, Scope},
};

/// An action that waits for a person.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// What `agentwatch approve` and `agentwatch reject` take.
    pub id: String,
    /// Id and name of the session.
    pub session: String,
    pub session_name: String,
    /// What the session is to reach, in the words of its policy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub goal: Option<String>,
    /// The user that the session belongs to.
    pub uid: u32,
    /// What the action is.
    pub action: Kind,
    /// The file that it is about; of an `exec`, the program.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<File>,
    /// Where a rename or link goes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<File>,
    /// Where it connects or sends to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub net: Option<Net>,
    /// The rule that holds it, and the rule's text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<RuleRef>,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub rule_text: String,
    /// The first process that waits, with its arguments; of an `exec`, those that it will see.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process: Option<Process>,
    /// Its ancestors in the session, the nearest first.
    pub ancestry: Vec<Ancestor>,
    /// What the session did just before, the newest last.
    pub before: Vec<String>,
    /// What was decided for the session before, the newest last.
    pub decided: Vec<String>,
    /// When the first task began to wait.
    pub since: Timestamp,
    /// When it is decided without a person, and how: `deny` or `allow`.
    pub deadline: Timestamp,
    pub on_timeout: String,
    /// How many tasks wait for it.
    pub tasks: u64,
    /// How often one of them went on by itself, and was stopped again.
    pub tries: u64,
    /// Why it cannot be approved beyond this once, where that is so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub once_only: Option<String>,
    /// What is wrong about it: see `finding` of the event.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finding: Option<String>,
    /// Why the reviewer leaves it to a person, where it was asked and does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub review: Option<String>,
}

/// A process above one that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    pub pid: u32,
    pub exe: String,
    pub argv: Vec<String>,
}

/// What was granted beyond once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GrantRow {
    /// Id of the request that it was given for; what `agentwatch revoke` takes.
    pub id: String,
    pub session: String,
    pub session_name: String,
    pub scope: Scope,
    /// Until when, where it is for a time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<Timestamp>,
    /// What it is for.
    pub about: String,
    pub by: Decider,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}
