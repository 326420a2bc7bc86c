//! The form of a policy file: which keys there are and what stands in them. This and [`read`](self::read()) are the only places that
//! know TOML; they must not know what a path or an address means.

mod keys;
mod read;
#[cfg(test)]
mod tests;

use std::ops::Range;

use schemars::JsonSchema;
use toml::Spanned;

pub(in crate::policy) use self::keys::order_of;
pub use self::read::read;
use super::diagnostic::Report;
use crate::event::model::{Layer, Mode};

/// The longest policy text, in bytes.
pub const MAX_TEXT: usize = 1 << 20;

/// A policy file: what a session may read, write, execute and connect to. What is not named is denied.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(title = "agentwatch policy", deny_unknown_fields, default)]
pub struct PolicyFile {
    /// Name for people.
    #[schemars(with = "Option<String>")]
    pub name: Option<Spanned<String>>,
    /// Whether what is forbidden is refused (`enforce`, if left out) or only recorded (`monitor`).
    #[schemars(with = "Option<Mode>")]
    pub mode: Option<Spanned<Mode>>,
    /// Policies that this one builds on: `preset:NAME`, or files by their paths from this one's directory.
    #[schemars(with = "Vec<String>")]
    pub extends: Entries,
    /// What the task is. It is recorded with the session, and decides nothing.
    pub task: TaskTable,
    /// Rights on files and directories. A rule holds from its path down to the next path that a rule names.
    pub files: FilesTable,
    /// Rights on IP addresses and ports.
    pub network: NetworkTable,
    /// Rules on executables.
    pub exec: ExecTable,
    /// Operations on the host around the session.
    pub guard: GuardTable,
    /// How actions that need approval wait for it.
    pub approvals: ApprovalsTable,
    /// What the session may use of the host.
    pub limits: LimitsTable,
    /// Which of the environment `run` passes on.
    pub env: EnvTable,
    /// What is recorded.
    pub trace: TraceTable,
    /// What `agentwatch policy test` holds the policy to.
    pub expect: Vec<ExpectTable>,
    /// Whether sessions may begin although the kernel cannot hold all of their policy.
    #[schemars(skip)]
    pub accept_degraded: Option<Spanned<bool>>,
    /// Who may start sessions.
    #[schemars(skip)]
    pub sessions: SessionsTable,
}

/// A list of rules, each with its place in the text.
pub type Entries = Vec<Spanned<String>>;

/// The `[task]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct TaskTable {
    /// What is to be reached.
    #[schemars(with = "Option<String>")]
    pub goal: Option<Spanned<String>>,
    /// Who answers for it.
    #[schemars(with = "Option<String>")]
    pub owner: Option<Spanned<String>>,
    /// Where it is written down.
    #[schemars(with = "Option<String>")]
    pub ticket: Option<Spanned<String>>,
    /// Commands that show that it is done. They are recorded, and not run.
    #[schemars(with = "Vec<String>")]
    pub acceptance: Entries,
}

/// The `[files]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct FilesTable {
    /// Paths that may be read and listed, and not written.
    #[schemars(with = "Vec<String>")]
    pub read: Entries,
    /// Paths that may be read, listed and written.
    #[schemars(with = "Vec<String>")]
    pub write: Entries,
    /// Paths whose files may be executed.
    #[schemars(with = "Vec<String>")]
    pub exec: Entries,
    /// Paths that may not be used at all, and names that may not be wherever they stand: `**/.env`, `**/*.pem`, `**/id_*`.
    #[schemars(with = "Vec<String>")]
    pub deny: Entries,
    /// Paths, and names wherever they stand, that are read and written only when a person approves.
    #[schemars(with = "Vec<ApproveForm>")]
    pub approve: Vec<ApproveEntry>,
}

/// An entry of `files.approve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApproveEntry {
    pub path: Spanned<String>,
    /// `read`, `write` or both; both where it is left out.
    pub access: Option<Spanned<Entries>>,
}

/// How an entry of `files.approve` is written.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "it describes the form, and is never made")]
enum ApproveForm {
    /// A path, or a pattern of names.
    Path(String),
    Part(ApprovePart),
}

/// Reading or writing alone.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it describes the form, and is never made")]
struct ApprovePart {
    /// A path, or a pattern of names.
    path: String,
    /// What needs approval: both if left out.
    #[schemars(default)]
    access: Vec<ApproveAccess>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[expect(dead_code, reason = "it describes the form, and is never made")]
enum ApproveAccess {
    Read,
    Write,
}

/// An entry of a list of `[exec]`, or a command that an expectation asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEntry {
    /// A path.
    Program(Spanned<String>),
    /// A program and the first of its arguments.
    Command(Spanned<Entries>),
}

impl ExecEntry {
    pub fn span(&self) -> Range<usize> {
        match self {
            ExecEntry::Program(text) => text.span(),
            ExecEntry::Command(words) => words.span(),
        }
    }
}

/// How an [`ExecEntry`] is written.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "it describes the form, and is never made")]
enum ExecForm {
    /// A path.
    Program(String),
    /// A program, by its path or its name, and the first of its arguments.
    Command(#[schemars(length(min = 1))] Vec<String>),
}

/// The `[network]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct NetworkTable {
    /// Addresses that may be connected to and sent to.
    #[schemars(with = "Vec<String>")]
    pub allow: Entries,
    /// Addresses that may not be connected to, inside what `allow` names.
    #[schemars(with = "Vec<String>")]
    pub deny: Entries,
    /// Addresses that are connected to only when a person approves.
    #[schemars(with = "Vec<String>")]
    pub approve: Entries,
    /// What becomes of a connection that no rule decides on: `deny`, if left out, or `approve`.
    #[schemars(with = "Option<String>")]
    pub unknown: Option<Spanned<String>>,
    /// Local addresses that may be bound.
    #[schemars(with = "Vec<String>")]
    pub listen: Entries,
    /// UNIX sockets that may be connected to: paths, `@NAME` and `@BEGINNING*`.
    #[schemars(with = "Vec<String>")]
    pub unix: Entries,
    /// Families of sockets that may be made besides UNIX, TCP, UDP and netlink.
    #[schemars(with = "Vec<String>")]
    pub families: Entries,
}

/// The `[exec]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct ExecTable {
    /// What may be executed: executables and directories by path, and commands.
    #[schemars(with = "Vec<ExecForm>")]
    pub allow: Vec<ExecEntry>,
    /// What may not.
    #[schemars(with = "Vec<ExecForm>")]
    pub deny: Vec<ExecEntry>,
    /// What is executed only when a person approves.
    #[schemars(with = "Vec<ExecForm>")]
    pub approve: Vec<ExecEntry>,
}

/// The `[guard]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct GuardTable {
    /// Guarded operations that are allowed, by name.
    #[schemars(with = "Vec<String>")]
    pub allow: Entries,
    /// Guarded operations that no task may allow.
    #[schemars(skip)]
    pub deny: Entries,
}

/// The `[approvals]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct ApprovalsTable {
    /// How long an action waits, such as `15m`.
    #[schemars(with = "Option<String>")]
    pub timeout: Option<Spanned<String>>,
    /// What becomes of it then: `deny`, if left out, or `allow`.
    #[schemars(with = "Option<String>")]
    pub on_timeout: Option<Spanned<String>>,
    /// Actions that may wait at the same time.
    #[schemars(with = "Option<u32>")]
    pub max_pending: Option<Spanned<i64>>,
    /// Requests within an hour.
    #[schemars(with = "Option<u32>")]
    pub max_per_hour: Option<Spanned<i64>>,
}

/// The `[limits]` table.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct LimitsTable {
    /// Tasks (processes and threads) at the same time.
    #[schemars(with = "Option<u32>")]
    pub pids: Option<Spanned<i64>>,
    /// Memory, such as `2GiB`.
    #[schemars(with = "Option<String>")]
    pub memory: Option<Spanned<String>>,
    /// Processors, such as `1.5`.
    #[schemars(with = "Option<f64>")]
    pub cpu: Option<Spanned<f64>>,
    /// Time from start to end, such as `2h 30m`.
    #[schemars(with = "Option<String>")]
    pub wall_time: Option<Spanned<String>>,
}

/// The `[env]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct EnvTable {
    /// Variables that are passed on although their names are those of secrets: `NAME`, `BEGINNING*`, `*END`.
    #[schemars(with = "Vec<String>")]
    pub pass: Entries,
    /// Variables that are dropped too.
    #[schemars(with = "Vec<String>")]
    pub drop: Entries,
}

/// The `[trace]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct TraceTable {
    /// Which opens are recorded: `fold`, equal ones as one event with a count; `all`, each as an event of its own; `writes`,
    /// only those that change something, and what is denied.
    #[schemars(with = "Option<String>")]
    pub opens: Option<Spanned<String>>,
}

/// One `[[expect]]` table: one question, and the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct ExpectTable {
    /// Where it begins.
    #[schemars(skip)]
    pub span: Range<usize>,
    /// A path that is opened for reading.
    #[schemars(with = "Option<String>")]
    pub read: Option<Spanned<String>>,
    /// A path that is opened for writing.
    #[schemars(with = "Option<String>")]
    pub write: Option<Spanned<String>>,
    /// A path that is executed, or a command: its program and all its arguments.
    #[schemars(with = "Option<ExecForm>")]
    pub exec: Option<ExecEntry>,
    /// An address and port, `unix:PATH` or `unix:@NAME`, that is connected to.
    #[schemars(with = "Option<String>")]
    pub connect: Option<Spanned<String>>,
    /// A local address and port that is bound.
    #[schemars(with = "Option<String>")]
    pub listen: Option<Spanned<String>>,
    /// `allowed`, `held` or `denied`.
    #[schemars(with = "String")]
    pub verdict: Option<Spanned<String>>,
    /// Id of the rule that decides.
    #[schemars(with = "Option<String>")]
    pub rule: Option<Spanned<String>>,
}

/// The `[sessions]` table of a managed file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionsTable {
    /// Users who may start sessions; together with `groups`, anyone where both are left out.
    pub users: Option<Spanned<Entries>>,
    /// Groups whose members may.
    pub groups: Option<Spanned<Entries>>,
    /// Sessions that one user may have at the same time.
    pub max_per_user: Option<Spanned<i64>>,
}

/// The JSON Schema of policy files, for editors.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(PolicyFile)
}

/// The entries of `extends`, for whoever fetches the files that they name; empty where the text cannot be read, which
/// reading the policy says.
pub fn extends(text: &str) -> Vec<String> {
    let mut report = Report::new("", "");
    read(text, Layer::Task, 0, &mut report)
        .extends
        .into_iter()
        .map(Spanned::into_inner)
        .collect()
}
