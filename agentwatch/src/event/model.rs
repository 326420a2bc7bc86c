//! The event as every consumer sees it: one action, one event.
//!
//! This module is the source of the published schema (`agentwatch event-schema`, docs/events.md).
//! It holds types only; it must never read the kernel, a file or a clock. A field is added as
//! optional; a field that changes its meaning raises [`SCHEMA_VERSION`].

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::model::{Limits, Rule, Task};

/// The value of `v` in every event.
pub const SCHEMA_VERSION: u32 = 1;

/// One action of a session, or one fact about the session or its record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Version of this schema.
    pub v: u32,
    /// Unique id of the event, by which a repeated delivery is recognised: `<session>-<seq>` for what the kernel numbered,
    /// a UUID for what the daemon itself makes.
    pub id: String,
    /// Number of the event within its session, counted in the kernel from 1. Events that the daemon
    /// itself makes (`session`, `loss`) carry 0.
    pub seq: u64,
    /// Wall time of the action, RFC 3339 in UTC.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// Kernel time of the action: nanoseconds of CLOCK_BOOTTIME. Where `fold` is set, that of the last repetition; of opens that were
    /// allowed, to a tick (1 to 10 ms).
    pub ktime_ns: u64,
    /// Name of the host.
    pub host: String,
    /// Boot id of the kernel that `ktime_ns` belongs to.
    pub boot_id: String,
    /// The session that the event belongs to.
    pub session: SessionRef,
    /// What happened.
    pub kind: Kind,
    /// What was decided, or would have been.
    pub verdict: Verdict,
    /// Error number that the action ended with, absent on success.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub errno: Option<i32>,
    /// How many identical actions this event stands for. Repetitions are folded in the kernel; an event with
    /// `fold` set continues the one that it names.
    pub count: u64,
    /// Id of the event that this one continues.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fold: Option<String>,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<RuleRef>,
    /// Who did it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process: Option<Process>,
    /// The file it was done to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<File>,
    /// The second file of a rename or a link: where it went.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<File>,
    /// The peer or the local address of a socket.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub net: Option<Net>,
    /// What was tried on the host around the session (`guard`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guard: Option<Guard>,
    /// How a process ended (`exit`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit: Option<Exit>,
    /// A step in asking a person (`approval`); with another kind, the request that the action waits for or has passed by.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub approval: Option<Approval>,
    /// A change in the session's life (`session`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lifecycle: Option<Lifecycle>,
    /// What could not be delivered (`loss`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss: Option<Loss>,
}

/// Which session an event belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionRef {
    /// Unique id of the session.
    pub id: String,
    /// Name that a person gave it; names may repeat.
    pub name: String,
    /// Digest of the compiled policy in force, `sha256:<hex>`.
    pub policy: String,
    /// Whether the policy is enforced or only recorded.
    pub mode: Mode,
}

/// What happened.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A session started, ended or changed.
    Session,
    /// A program was executed, or could not be.
    Exec,
    /// A process ended.
    Exit,
    /// A file was opened, or could not be.
    Open,
    /// A file, directory, node or symbolic link was created.
    Create,
    /// A name was removed.
    Delete,
    /// A name was changed.
    Rename,
    /// A hard link was made.
    Link,
    /// Mode, owner, size, times or extended attributes were changed.
    Attr,
    /// A socket was connected, or a datagram sent to an address.
    Connect,
    /// A socket was bound to an address.
    Bind,
    /// A name was looked up. Reserved: nothing records it yet.
    Dns,
    /// An operation on the host around the session: mount, ptrace, signal, bpf and the like.
    Guard,
    /// A step in asking a person.
    Approval,
    /// A tool call that the agent declared. Reserved: nothing records it yet.
    ToolCall,
    /// Events that could not be delivered.
    Loss,
}

/// What the kernel decided.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The policy allowed it. It may still have failed: see `errno`.
    Allowed,
    /// The policy refused it.
    Denied,
    /// It waits for a person.
    Held,
    /// It would have been denied; the session is in `monitor` mode.
    Audited,
}

/// What a policy does with what it forbids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Refuse it.
    #[default]
    Enforce,
    /// Let it pass and record it as `audited`.
    Monitor,
}

/// Which layer of a policy a rule comes from.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// The host administrator's: cannot be loosened.
    Managed,
    /// The task's.
    Task,
    /// What holds where no rule says anything.
    Default,
}

/// The rule that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleRef {
    /// Id of the rule, such as `files.deny[2]`, or `files.default` where no rule matched.
    pub id: String,
    /// Layer of the rule.
    pub layer: Layer,
    /// Where it is written, `FILE:LINE`; empty for built-in rules.
    pub source: String,
}

/// The process that acted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Process id in the host's namespace.
    pub pid: u32,
    /// Thread id in the host's namespace.
    pub tid: u32,
    /// Parent's process id in the host's namespace.
    pub ppid: u32,
    /// When the process started, nanoseconds of CLOCK_BOOTTIME. With `pid` and `boot_id` it names a process for good.
    pub start_ns: u64,
    /// When the process started, RFC 3339.
    #[schemars(with = "Option<String>")]
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub start: Option<Timestamp>,
    /// The parent's start, nanoseconds of CLOCK_BOOTTIME; 0 where it is not known.
    #[serde(default)]
    pub parent_start_ns: u64,
    /// Path of the executable, as the host names it.
    pub exe: String,
    /// Name of the thread. The process can set it at will: it identifies nothing.
    pub comm: String,
    /// Arguments.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub argv: Vec<String>,
    /// Whether `argv` was longer than what is recorded (4 KiB).
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub argv_truncated: bool,
    /// Working directory, as the host names it.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub cwd: String,
    /// Real user id in the host's namespace.
    pub uid: u32,
    /// Real group id in the host's namespace.
    pub gid: u32,
    /// Path of the cgroup below the mount of cgroup2.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub cgroup: String,
}

/// A file by identity, and the name by which the host knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct File {
    /// Path as the host names it, resolved. For an attempt that failed before the file was found: the path as
    /// asked for, made absolute.
    pub path: String,
    /// Whether the path was longer or deeper than what is recorded; its beginning is then missing.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub path_truncated: bool,
    /// Device of the file system, as the kernel numbers it (major << 20 | minor); 0 where the file was not found.
    pub dev: u64,
    /// Inode number; 0 where the file was not found.
    pub inode: u64,
    /// What was asked for: `read`, `write`, `append`, `truncate`, `create`, `exec`, `list`, `delete`, `attr`,
    /// `xattr`, `map` (as code), `receive` (a descriptor from another process), `watch`.
    pub access: Vec<String>,
    /// Open flags by their names in open(2), but for the access mode.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub flags: Vec<String>,
}

/// A socket address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Net {
    /// Address family: `inet`, `inet6`, `unix`, or its number.
    pub family: String,
    /// Socket type: `stream`, `dgram`, `seqpacket`, `raw`, or its number; empty where it is not known.
    #[serde(rename = "type")]
    pub socket_type: String,
    /// IP address in text form.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub addr: Option<String>,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// Path of a UNIX socket; abstract names begin with `@`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
    /// Domain name that the address was leased for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub domain: Option<String>,
}

/// An operation on the host around the session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Guard {
    /// Which: `mount`, `ptrace`, `signal`, `priority`, `bpf`, `perf`, `capability`, `keyring`, `ipc`, `terminal`,
    /// `credentials`, `socket` for a socket of a family that the policy does not name, or `cgroup` for a process that was made outside
    /// the session's cgroup and was put back or killed.
    pub operation: String,
    /// Process id of the process that it was about, in the host's namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// What exactly: a signal's number, a capability's name, a bpf command's number, a key's serial number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// A step in asking a person whether an action may happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Approval {
    /// Id of the request, as `agentwatch approve` takes it.
    pub id: String,
    /// Which step.
    pub step: Step,
    /// What the action is.
    pub action: Kind,
    /// Who took the step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<Decider>,
    /// How far an approval goes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scope: Option<Scope>,
    /// Until when it holds, where it is for a time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(with = "Option<String>")]
    pub until: Option<Timestamp>,
    /// Why, in the words of who decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What is wrong about the request: `max_pending`, `max_per_hour` (it was denied, because there were too many),
    /// `repeated_after_rejection`, `bypass_attempt` (the process went on by itself, and was stopped again).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finding: Option<String>,
    /// How long the first of its tasks has waited, in nanoseconds.
    pub waited_ns: u64,
    /// Tasks that wait for it.
    pub tasks: u64,
    /// How often one of them went on by itself, and was stopped again.
    #[serde(default)]
    pub tries: u64,
}

/// A step in asking a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// An action waits.
    Requested,
    /// Somebody who may decide has looked at the request.
    Shown,
    /// A reviewer leaves it to a person.
    Escalated,
    /// It may happen.
    Approved,
    /// It may not.
    Rejected,
    /// Nobody decided in time.
    Expired,
    /// Nothing waits for it any more: the process ended, or gave up.
    Withdrawn,
    /// An action that waited went on.
    Resumed,
    /// What was granted does not hold any more.
    Revoked,
    /// The action cannot wait, and was denied without anybody being asked: a request of io_uring's, `sendmmsg`, a traced process.
    Unasked,
}

/// Who took a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decider {
    /// What.
    pub kind: DeciderKind,
    /// User id, of a person.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// Name of the user, or the reviewer's command.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeciderKind {
    /// A person, at a command line.
    User,
    /// The command that the administrator configured.
    Reviewer,
    /// The policy's time limit.
    Timeout,
    /// The policy's limits on requests.
    Limit,
    /// The end of the session.
    Session,
}

/// How far an approval goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Each task that waits may do it once.
    Once,
    /// The session may do it for a time.
    For,
    /// The session may do it until it ends.
    Session,
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exit {
    /// Exit code, where it ended by itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<i32>,
    /// Number of the signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<i32>,
    /// Whether it left a core dump.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub core: bool,
    /// How long it lived, in nanoseconds.
    pub duration_ns: u64,
}

/// What the session's policy is held by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Coverage {
    /// Everything that the policy asks for is enforced.
    Enforcing,
    /// Something is missing; the record says what.
    Degraded,
    /// Nothing is enforced (`monitor` mode).
    Off,
}

/// A change in a session's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Lifecycle {
    /// The session began.
    Started {
        /// How well the policy is held.
        coverage: Coverage,
        /// What is missing, a sentence each.
        missing: Vec<String>,
        /// What enforces: `bpf-lsm`, `cgroup`, `landlock`.
        backends: Vec<String>,
        /// Path of the session's cgroup below the mount of cgroup2.
        cgroup: String,
        /// Who started it.
        uid: u32,
        /// The command, for a session that `run` made.
        command: Vec<String>,
        /// How it came to be: `run`, `attach`, `watch`.
        origin: String,
        /// The policy in force: its task, its limits, and every rule that is written, with where it is written.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        policy: Option<Box<PolicyRecord>>,
    },
    /// A restarted daemon took the session over.
    Resumed {
        /// How well the policy is held.
        coverage: Coverage,
    },
    /// Another policy, or another mode, was put in force.
    Reloaded {
        /// Digest of the policy that is in force from here on.
        policy: String,
        /// Whether it is enforced or only recorded.
        mode: Mode,
        /// How well the policy is held.
        coverage: Coverage,
        /// What is missing, a sentence each.
        missing: Vec<String>,
        /// Who did it.
        uid: u32,
        /// What is in force from here on: task, limits, and every rule that is written, with where it is written.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        rules: Option<Box<PolicyRecord>>,
    },
    /// The policy was worked out again, because mounts of the host have changed on which it depends: what is mounted now holds what the
    /// policy says of it.
    MountsChanged {
        /// Mount points at which something is mounted since, the first 64 of them.
        mounted: Vec<String>,
        /// Mount points at which something was mounted before, the first 64 of them.
        unmounted: Vec<String>,
        /// How well the policy is held.
        coverage: Coverage,
    },
    /// The session ended.
    Ended {
        /// Why: `exited`, `wall_time` (the policy's limit), `killed` (nobody said how the command ended), `detached`, `empty`, `released` (`agentwatch release`),
        /// `host_restarted`, `lost` (it was gone from the kernel when a daemon came to take it over), `daemon_stopped` (where
        /// nothing could be pinned).
        reason: String,
        /// Exit code of the command, for a session that `run` made.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        exit_code: Option<i32>,
        /// What the kernel counted over the session's life.
        counts: Counts,
    },
}

/// A policy as the record of a session has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRecord {
    /// What the task is.
    #[serde(default)]
    pub task: Task,
    /// What the session may use of the host.
    #[serde(default)]
    pub limits: Limits,
    /// Every rule of the policy, of what it extends and of the host's administrator, in the order of their numbers.
    pub rules: Vec<Rule>,
    /// How many more rules there are: a record holds 3 MiB of them.
    #[serde(default)]
    pub left_out: u64,
}

/// What the kernel counted for one session: made = delivered + folded + lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Actions that were seen.
    pub made: u64,
    /// Events that reached the daemon.
    pub delivered: u64,
    /// Actions that were folded into an event that had been delivered before.
    pub folded: u64,
    /// Events that were declared lost.
    pub lost: u64,
}

/// Events of a session that could not be delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// First lost sequence number.
    pub from: u64,
    /// Last lost sequence number.
    pub to: u64,
    /// Why: `ring_full` (the kernel's ring had no room), `daemon_killed` (a daemon that was killed had them in memory),
    /// `host_restarted` and `lost` (what a session did after the last event that is known of, when it ended like that),
    /// `record_damaged` (what was known of a session that is still enforced cannot be read), `spool_full` (the collector was away for too long),
    /// `spool_corrupt` (the spool on disk was damaged), `store_corrupt` (the history was damaged and begun anew), `segment_missing` (a part of the history was removed or cut). To one sink
    /// only: `sink_behind` (events were gone from the history before it could send them) and `sink_refused` (its receiver does not take
    /// them). Where what is gone
    /// is not known, `from`, `to` and `events` are 0.
    pub reason: String,
    /// How many events are missing.
    pub events: u64,
}
