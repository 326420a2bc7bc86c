//! What the command line says to the daemon, on `RUNTIME_DIR/control.sock`. Root may do everything, others what
//! concerns their own sessions; the daemon decides that by the peer's credentials, never by what a message says.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    event::model::Mode,
    policy::{
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
    /// The sessions that live now and that the asker may see.
    Sessions,
    /// The daemon's state.
    Status,
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
    Status {
        status: Box<Status>,
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

/// The daemon's state, for `agentwatch status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// `bpf-lsm`, `cgroup`, `landlock`: what enforces here.
    pub backends: Vec<String>,
    pub sessions: usize,
    pub events_delivered: u64,
    pub events_folded: u64,
    pub events_lost: u64,
    /// Events that wait on disk for the collector, and in memory.
    pub spooled: u64,
    pub queued: u64,
    pub collector: String,
    /// Every counter of the kernel programs by name: drops and helper failures by place.
    pub kernel: BTreeMap<String, u64>,
}
