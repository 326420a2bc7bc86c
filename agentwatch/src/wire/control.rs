//! What the command line says to the daemon, on `RUNTIME_DIR/control.sock`. Root may do everything, others what
//! concerns their own sessions; the daemon decides that by the peer's credentials, never by what a message says.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    approval::{metrics::Metrics, model},
    event::{Event, model::Mode},
    policy::{
        advice::Advice,
        model::{Context, Environment},
        sources::Included,
    },
    wire::collector::SessionRow,
};

/// Name of the control socket below `RUNTIME_DIR`.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The policy's text, read by the asker with the asker's own rights: the daemon opens no file that a client names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyText {
    /// File name for messages; empty for the built-in default.
    pub file: String,
    pub text: String,
    pub context: Context,
    /// What files in `extends` are named from.
    #[serde(default)]
    pub directory: PathBuf,
    /// The files that it extends.
    #[serde(default)]
    pub included: Vec<Included>,
}

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Makes a session for a command.
    Run {
        policy: PolicyText,
        name: Option<String>,
        mode: Option<Mode>,
        accept_degraded: bool,
        command: Vec<String>,
    },
    /// Moves the asker into the session that it made, when it has prepared itself.
    Enter { session: String },
    /// Says that the command of a session ended, and how.
    Exited { session: String, code: i32 },
    /// Makes a session of an existing cgroup. Root only.
    Attach {
        cgroup: PathBuf,
        policy: PolicyText,
        name: Option<String>,
        accept_degraded: bool,
    },
    /// Ends a session; its processes go on, unwatched. Root only for `attach` and `watch` sessions.
    /// Without `now` the daemon may answer [`Response::Later`].
    Detach { session: String, now: bool },
    /// Puts another policy, another mode, or both in force for a session. Root only for `attach` and `watch` sessions.
    Reload {
        session: String,
        policy: Option<PolicyText>,
        mode: Option<Mode>,
        accept_degraded: bool,
    },
    /// Ends all sessions, takes everything out of the kernel and stops the daemon. Root only.
    Release { now: bool },
    /// What waits for a person, and the asker may decide.
    Approvals,
    /// Decides on a request: lets it happen, as far as `extent` says, or not where there is none.
    Decide {
        id: String,
        extent: Option<Extent>,
        reason: Option<String>,
    },
    /// What was granted beyond once.
    Grants,
    /// Takes a grant back.
    Revoke { id: String, reason: Option<String> },
    /// The sessions that live now and that the asker may see.
    Sessions,
    /// The last actions of a session that were denied or held. Without its name: of the session that the asker is in.
    Why {
        session: Option<String>,
        /// Only what came after the one with this number.
        after: u64,
    },
    /// The daemon's state.
    Status,
}

/// How far an approval goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "extent", rename_all = "snake_case")]
pub enum Extent {
    Once,
    For { seconds: u64 },
    Session,
}

/// A response.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// The session is in force. The asker of `Run` prepares itself and enters.
    Ready {
        session: String,
        name: String,
        warnings: Vec<String>,
        /// Which of the asker's environment the command gets.
        #[serde(default)]
        environment: Environment,
        landlock: Option<Box<crate::policy::model::Compiled>>,
    },
    Sessions {
        sessions: Vec<SessionRow>,
    },
    Why {
        session: String,
        name: String,
        /// How many there have been.
        count: u64,
        /// The last of them, the oldest first.
        refused: Vec<Refused>,
    },
    Status {
        status: Box<Status>,
    },
    Approvals {
        requests: Vec<model::Request>,
    },
    Grants {
        grants: Vec<model::GrantRow>,
    },
    Done,
    /// What an earlier daemon has told of the session is being looked up: ask again in a moment. Asked for `now`, the
    /// daemon does not wait, and declares lost what it does not know of.
    Later,
    Error {
        message: String,
        hint: Option<String>,
    },
}

/// An action that was denied, is held, or would have been denied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// Counts those of its session, from 1.
    pub number: u64,
    pub event: Event,
    /// The rule as it is written; empty for built-in rules.
    pub text: String,
    pub advice: Advice,
}

/// The daemon's state, for `agentwatch status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// `bpf-lsm`, `cgroup`, `landlock`: what enforces here.
    pub backends: Vec<String>,
    pub sessions: usize,
    /// Sessions by coverage, then by mode.
    #[serde(default)]
    pub coverage: BTreeMap<String, BTreeMap<String, u64>>,
    /// Events since this daemon began, by kind, then by verdict.
    #[serde(default)]
    pub events: BTreeMap<String, BTreeMap<String, u64>>,
    pub events_delivered: u64,
    pub events_folded: u64,
    pub events_lost: u64,
    /// Events that wait on disk for the collector, and in memory.
    pub spooled: u64,
    pub queued: u64,
    pub collector: String,
    /// What people were asked, and how it was decided.
    #[serde(default)]
    pub approvals: Metrics,
    /// Every counter of the kernel programs by name: drops and helper failures by place.
    pub kernel: BTreeMap<String, u64>,
    /// How often each kernel program ran, and its nanoseconds; only while `kernel.bpf_stats_enabled` is set.
    #[serde(default)]
    pub costs: BTreeMap<String, (u64, u64)>,
}
