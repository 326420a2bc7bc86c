//! The form of a policy file: which keys there are and what stands in them. This is the only place that knows TOML; it
//! must not know what a path or an address means. A fault never hides the next one: everything that can be read is read.

use std::ops::Range;

use schemars::JsonSchema;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::diagnostic::{Diagnostic, Report, quote};
use crate::event::model::{Layer, Mode};

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

/// Reads the text, which begins at `base` in the report; what is wrong with it goes there too.
pub fn read(text: &str, layer: Layer, base: usize, report: &mut Report) -> PolicyFile {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        layer,
        base,
        report,
    };
    if !errors.is_empty() {
        for error in errors {
            // The parser reports the end of the text as an empty span.
            reader.report.push(Diagnostic::error(
                format!("not valid TOML: {}", error.message()),
                error.span().map(|span| reader.shift(span)),
            ));
        }
        // What was recovered from broken text need not be what its author meant: say nothing about it.
        return PolicyFile::default();
    }
    reader.file(table.get_ref())
}

/// The keys of one table.
struct Keys {
    /// Name of the table; empty for the top level.
    table: &'static str,
    known: &'static [&'static str],
    /// The keys of a managed file, which only takes away.
    managed: &'static [&'static str],
    /// Keys that the language will have. They are named so that a policy written for a later agentwatch is refused with
    /// a reason, and never understood by half.
    planned: &'static [&'static str],
}

const TOP: Keys = Keys {
    table: "",
    known: &[
        "name",
        "mode",
        "extends",
        "task",
        "files",
        "network",
        "exec",
        "guard",
        "approvals",
        "limits",
        "env",
        "trace",
        "expect",
    ],
    managed: &[
        "mode",
        "accept_degraded",
        "sessions",
        "files",
        "network",
        "exec",
        "guard",
        "approvals",
    ],
    planned: &["redact"],
};
const TASK: Keys = Keys {
    table: "task",
    known: &["goal", "owner", "ticket", "acceptance"],
    managed: &[],
    planned: &[],
};
const FILES: Keys = Keys {
    table: "files",
    known: &["read", "write", "exec", "deny", "approve"],
    managed: &["deny", "approve"],
    planned: &[],
};
const APPROVE: Keys = Keys {
    table: "files.approve",
    known: &["path", "access"],
    managed: &["path", "access"],
    planned: &[],
};
const NETWORK: Keys = Keys {
    table: "network",
    known: &[
        "allow", "deny", "approve", "unknown", "listen", "unix", "families",
    ],
    managed: &["deny", "approve", "unknown"],
    planned: &["domains", "dns", "sni"],
};
const EXEC: Keys = Keys {
    table: "exec",
    known: &["allow", "deny", "approve"],
    managed: &["deny", "approve"],
    planned: &[],
};
const GUARD: Keys = Keys {
    table: "guard",
    known: &["allow"],
    managed: &["deny"],
    planned: &["approve"],
};
const APPROVALS: Keys = Keys {
    table: "approvals",
    known: &["timeout", "on_timeout", "max_pending", "max_per_hour"],
    managed: &["timeout", "on_timeout", "max_pending", "max_per_hour"],
    planned: &[],
};
const LIMITS: Keys = Keys {
    table: "limits",
    known: &["pids", "memory", "cpu", "wall_time"],
    managed: &[],
    planned: &["io"],
};
const ENV: Keys = Keys {
    table: "env",
    known: &["pass", "drop"],
    managed: &[],
    planned: &["set"],
};
const TRACE: Keys = Keys {
    table: "trace",
    known: &["opens"],
    managed: &[],
    planned: &["redact"],
};
const EXPECT: Keys = Keys {
    table: "expect",
    known: &[
        "read", "write", "exec", "connect", "listen", "verdict", "rule",
    ],
    managed: &[],
    planned: &[],
};
const SESSIONS: Keys = Keys {
    table: "sessions",
    known: &[],
    managed: &["users", "groups", "max_per_user"],
    planned: &[],
};

/// The keys of a table in the order in which they are written down, by the table's path.
pub(super) fn order_of(path: &[&str]) -> Vec<&'static str> {
    let name = path.join(".");
    let mut tables = [&TOP, &EXPECT].into_iter().chain(TABLES);
    let Some(keys) = tables.find(|keys| keys.table == name) else {
        return Vec::new();
    };
    let of_managed = keys.managed.iter().filter(|key| !keys.known.contains(key));
    keys.known.iter().chain(of_managed).copied().collect()
}

type Key<'i> = Spanned<std::borrow::Cow<'i, str>>;
type Value<'i> = Spanned<DeValue<'i>>;

struct Reader<'r> {
    layer: Layer,
    base: usize,
    report: &'r mut Report,
}

impl Reader<'_> {
    fn file(&mut self, table: &DeTable<'_>) -> PolicyFile {
        let mut file = PolicyFile::default();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if !self.is_known(&TOP, name) {
                self.unknown(&TOP, key);
                continue;
            }
            match name {
                "name" => file.name = self.string("", key, value),
                "mode" => file.mode = self.mode(key, value),
                "extends" => file.extends = self.strings("", key, value),
                "accept_degraded" => file.accept_degraded = self.boolean("", key, value),
                "task" => self.section(&TASK, key, value, |reader, name, key, value| match name {
                    "goal" => file.task.goal = reader.string("task", key, value),
                    "owner" => file.task.owner = reader.string("task", key, value),
                    "ticket" => file.task.ticket = reader.string("task", key, value),
                    _ => file.task.acceptance = reader.strings("task", key, value),
                }),
                "files" => self.section(&FILES, key, value, |reader, name, key, value| {
                    if name == "approve" {
                        file.files.approve = reader.approve(key, value);
                        return;
                    }
                    let entries = reader.strings("files", key, value);
                    match name {
                        "read" => file.files.read = entries,
                        "write" => file.files.write = entries,
                        "exec" => file.files.exec = entries,
                        _ => file.files.deny = entries,
                    }
                }),
                "network" => self.section(&NETWORK, key, value, |reader, name, key, value| {
                    if name == "unknown" {
                        file.network.unknown = reader.string("network", key, value);
                        return;
                    }
                    let entries = reader.strings("network", key, value);
                    match name {
                        "allow" => file.network.allow = entries,
                        "deny" => file.network.deny = entries,
                        "approve" => file.network.approve = entries,
                        "listen" => file.network.listen = entries,
                        "unix" => file.network.unix = entries,
                        _ => file.network.families = entries,
                    }
                }),
                "exec" => self.section(&EXEC, key, value, |reader, name, key, value| {
                    let entries = reader.commands(key, value);
                    match name {
                        "allow" => file.exec.allow = entries,
                        "deny" => file.exec.deny = entries,
                        _ => file.exec.approve = entries,
                    }
                }),
                "approvals" => {
                    let table = &mut file.approvals;
                    self.section(
                        &APPROVALS,
                        key,
                        value,
                        |reader, name, key, value| match name {
                            "timeout" => table.timeout = reader.string("approvals", key, value),
                            "on_timeout" => {
                                table.on_timeout = reader.string("approvals", key, value);
                            }
                            "max_pending" => {
                                table.max_pending = reader.integer("approvals", key, value);
                            }
                            _ => table.max_per_hour = reader.integer("approvals", key, value),
                        },
                    );
                }
                "guard" => self.section(&GUARD, key, value, |reader, name, key, value| {
                    let entries = reader.strings("guard", key, value);
                    match name {
                        "allow" => file.guard.allow = entries,
                        _ => file.guard.deny = entries,
                    }
                }),
                "limits" => {
                    self.section(&LIMITS, key, value, |reader, name, key, value| match name {
                        "pids" => file.limits.pids = reader.integer("limits", key, value),
                        "memory" => file.limits.memory = reader.string("limits", key, value),
                        "cpu" => file.limits.cpu = reader.number("limits", key, value),
                        _ => file.limits.wall_time = reader.string("limits", key, value),
                    })
                }
                "env" => self.section(&ENV, key, value, |reader, name, key, value| {
                    let entries = reader.strings("env", key, value);
                    match name {
                        "pass" => file.env.pass = entries,
                        _ => file.env.drop = entries,
                    }
                }),
                "trace" => self.section(&TRACE, key, value, |reader, _, key, value| {
                    file.trace.opens = reader.string("trace", key, value);
                }),
                "sessions" => {
                    self.section(
                        &SESSIONS,
                        key,
                        value,
                        |reader, name, key, value| match name {
                            "max_per_user" => {
                                file.sessions.max_per_user = reader.integer("sessions", key, value);
                            }
                            _ => {
                                let entries = reader.strings("sessions", key, value);
                                let entries = Some(reader.keep(value, entries));
                                match name {
                                    "users" => file.sessions.users = entries,
                                    _ => file.sessions.groups = entries,
                                }
                            }
                        },
                    );
                }
                _ => self.expectations(key, value, &mut file.expect),
            }
        }
        file
    }

    fn shift(&self, span: Range<usize>) -> Range<usize> {
        span.start + self.base..span.end + self.base
    }

    fn keep<T>(&self, value: &Value<'_>, kept: T) -> Spanned<T> {
        Spanned::new(self.shift(value.span()), kept)
    }

    fn known(&self, keys: &Keys) -> &'static [&'static str] {
        match self.layer {
            Layer::Managed => keys.managed,
            Layer::Task | Layer::Default => keys.known,
        }
    }

    fn is_known(&self, keys: &Keys, name: &str) -> bool {
        self.known(keys).contains(&name)
    }

    fn mode(&mut self, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<Mode>> {
        let text = self.string("", key, value)?;
        match text.get_ref().as_str() {
            "enforce" => Some(self.keep(value, Mode::Enforce)),
            "monitor" => Some(self.keep(value, Mode::Monitor)),
            other => {
                self.report.push(
                    Diagnostic::error(format!("there is no mode {}", quote(other)), text.span())
                        .help(suggestion(other, &["enforce", "monitor"], "the modes are")),
                );
                None
            }
        }
    }

    /// Reads one table, key by key.
    fn section(
        &mut self,
        keys: &Keys,
        key: &Key<'_>,
        value: &Value<'_>,
        mut each: impl FnMut(&mut Self, &str, &Key<'_>, &Value<'_>),
    ) {
        let Some(table) = value.get_ref().as_table() else {
            let wrong = kind(value.get_ref());
            self.report.push(
                Diagnostic::error(
                    format!("`{}` must be a table, and this is {wrong}", keys.table),
                    self.shift(here(key.span(), value)),
                )
                .help(format!("begin it with a line `[{}]`", keys.table)),
            );
            return;
        };
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if self.is_known(keys, name) {
                each(self, name, key, value);
            } else {
                self.unknown(keys, key);
            }
        }
    }

    fn expectations(&mut self, key: &Key<'_>, value: &Value<'_>, expect: &mut Vec<ExpectTable>) {
        let tables = value.get_ref().as_array();
        let Some(tables) =
            tables.filter(|tables| tables.iter().all(|table| table.get_ref().is_table()))
        else {
            self.report.push(
                Diagnostic::error(
                    "`expect` must be a list of tables",
                    self.shift(here(key.span(), value)),
                )
                .help("begin each with a line `[[expect]]`"),
            );
            return;
        };
        for table in tables.iter() {
            let mut one = ExpectTable {
                span: self.shift(table.span()),
                ..ExpectTable::default()
            };
            self.section(&EXPECT, key, table, |reader, name, key, value| {
                if name == "exec" {
                    one.exec = reader.command("expect.exec", value);
                    return;
                }
                let text = reader.string("expect", key, value);
                match name {
                    "read" => one.read = text,
                    "write" => one.write = text,
                    "connect" => one.connect = text,
                    "listen" => one.listen = text,
                    "verdict" => one.verdict = text,
                    _ => one.rule = text,
                }
            });
            expect.push(one);
        }
    }

    fn strings(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Entries {
        let name = full(table, key.get_ref());
        self.list(&name, "a list of strings", key, value, |reader, element| {
            reader.text_in(&name, element)
        })
    }

    fn approve(&mut self, key: &Key<'_>, value: &Value<'_>) -> Vec<ApproveEntry> {
        let name = full(FILES.table, key.get_ref());
        self.list(&name, "a list", key, value, |reader, element| {
            if let Some(text) = element.get_ref().as_str() {
                return Some(ApproveEntry {
                    path: reader.keep(element, text.to_owned()),
                    access: None,
                });
            }
            if !element.get_ref().is_table() {
                reader.wrong_element(
                    &name,
                    "strings and tables with `path` and `access`",
                    element,
                );
                return None;
            }
            let (mut path, mut access) = (None, None);
            reader.section(&APPROVE, key, element, |reader, name, key, value| {
                if name == "path" {
                    path = reader.string(APPROVE.table, key, value);
                } else {
                    let entries = reader.strings(APPROVE.table, key, value);
                    access = Some(reader.keep(value, entries));
                }
            });
            if path.is_none() {
                reader.report.push(
                    Diagnostic::error("the entry has no path", reader.shift(element.span()))
                        .help("write `{ path = \"…\", access = [\"write\"] }`"),
                );
            }
            Some(ApproveEntry {
                path: path?,
                access,
            })
        })
    }

    fn commands(&mut self, key: &Key<'_>, value: &Value<'_>) -> Vec<ExecEntry> {
        let name = full(EXEC.table, key.get_ref());
        self.list(&name, "a list", key, value, |reader, element| {
            reader.command(&name, element)
        })
    }

    /// A path, or a list of a program and its arguments.
    fn command(&mut self, name: &str, value: &Value<'_>) -> Option<ExecEntry> {
        if let Some(text) = value.get_ref().as_str() {
            return Some(ExecEntry::Program(self.keep(value, text.to_owned())));
        }
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_element(name, "strings and lists of strings", value);
            return None;
        };
        let words = array.iter().map(|word| self.text_in(name, word));
        // All of them, so that every fault is told.
        let words: Vec<Option<Spanned<String>>> = words.collect();
        let words: Entries = words.into_iter().collect::<Option<_>>()?;
        Some(ExecEntry::Command(self.keep(value, words)))
    }

    fn list<T>(
        &mut self,
        name: &str,
        what: &str,
        key: &Key<'_>,
        value: &Value<'_>,
        mut each: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(array) = value.get_ref().as_array() else {
            let mut fault = self.wrong_kind(name, what, key, value);
            if let Some(text) = value.get_ref().as_str() {
                fault = fault.help(format!(
                    "put it in brackets: {} = [{:?}]",
                    key.get_ref(),
                    shorten(text)
                ));
            }
            self.report.push(fault);
            return Vec::new();
        };
        let elements = array.iter();
        elements.filter_map(|element| each(self, element)).collect()
    }

    fn text_in(&mut self, name: &str, element: &Value<'_>) -> Option<Spanned<String>> {
        let Some(text) = element.get_ref().as_str() else {
            self.wrong_element(name, "strings", element);
            return None;
        };
        Some(self.keep(element, text.to_owned()))
    }

    fn wrong_element(&mut self, name: &str, what: &str, element: &Value<'_>) {
        self.report.push(Diagnostic::error(
            format!(
                "`{name}` holds {what}, and this is {}",
                kind(element.get_ref())
            ),
            self.shift(element.span()),
        ));
    }

    fn string(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<String>> {
        let text = value.get_ref().as_str().map(str::to_owned);
        self.one(table, "a string", key, value, text)
    }

    fn boolean(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<bool>> {
        let truth = match value.get_ref() {
            DeValue::Boolean(truth) => Some(*truth),
            _ => None,
        };
        self.one(table, "true or false", key, value, truth)
    }

    fn integer(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<i64>> {
        let number = match value.get_ref() {
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        self.one(table, "a whole number", key, value, number)
    }

    fn number(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<f64>> {
        let number = match value.get_ref() {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .ok()
                .map(|number| number as f64),
            _ => None,
        };
        self.one(table, "a number", key, value, number)
    }

    fn one<T>(
        &mut self,
        table: &str,
        what: &str,
        key: &Key<'_>,
        value: &Value<'_>,
        read: Option<T>,
    ) -> Option<Spanned<T>> {
        match read {
            Some(read) => Some(self.keep(value, read)),
            None => {
                let fault = self.wrong_kind(&full(table, key.get_ref()), what, key, value);
                self.report.push(fault);
                None
            }
        }
    }

    fn wrong_kind(&self, name: &str, what: &str, key: &Key<'_>, value: &Value<'_>) -> Diagnostic {
        Diagnostic::error(
            format!(
                "`{name}` must be {what}, and this is {}",
                kind(value.get_ref())
            ),
            self.shift(here(key.span(), value)),
        )
    }

    fn unknown(&mut self, keys: &Keys, key: &Key<'_>) {
        let fault = self.unknown_key(keys, key.get_ref(), self.shift(key.span()));
        self.report.push(fault);
    }

    fn unknown_key(&self, keys: &Keys, key: &str, span: Range<usize>) -> Diagnostic {
        let name = full(keys.table, key);
        if keys.planned.contains(&key) {
            return Diagnostic::error(format!("`{name}` is not yet supported"), span)
                .help("leave it out; until then, what no rule allows is denied");
        }
        let (known, other) = match self.layer {
            Layer::Managed => (keys.managed, keys.known),
            Layer::Task | Layer::Default => (keys.known, keys.managed),
        };
        if other.contains(&key) {
            return if self.layer == Layer::Managed {
                Diagnostic::error(format!("a managed file may not say `{name}`"), span)
                    .help("it only takes away; what is allowed is said by the policy of the task")
            } else {
                Diagnostic::error(format!("only a managed file may say `{name}`"), span)
                    .help("it is for the administrator, in /etc/agentwatch/managed.d")
            };
        }
        let fault = Diagnostic::error(format!("there is no key {}", quote(&name)), span);
        // A key that belongs to a table and stands at the top is more often misplaced than misspelt.
        if keys.table.is_empty()
            && let Some(home) = TABLES.into_iter().find(|table| self.is_known(table, key))
        {
            return fault.help(format!("`{key}` stands below a line `[{}]`", home.table));
        }
        let intro = if keys.table.is_empty() {
            "the keys here are".to_owned()
        } else {
            format!("the keys of [{}] are", keys.table)
        };
        fault.help(suggestion(key, known, &intro))
    }
}

const TABLES: [&Keys; 10] = [
    &FILES, &NETWORK, &EXEC, &GUARD, &APPROVALS, &TASK, &LIMITS, &ENV, &TRACE, &SESSIONS,
];

fn full(table: &str, key: &str) -> String {
    if table.is_empty() {
        key.to_owned()
    } else {
        format!("{table}.{key}")
    }
}

/// Where a value of the wrong kind stands. Tables are spread over the text, so their key is shown.
fn here(key: Range<usize>, value: &Spanned<DeValue<'_>>) -> Range<usize> {
    if value.get_ref().is_table() {
        key
    } else {
        value.span()
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// "did you mean" where a known word is near, and the list of them where none is.
pub(super) fn suggestion(word: &str, known: &[&str], intro: &str) -> String {
    let near = known
        .iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance < candidate.len())
        .min();
    match near {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None => format!("{intro} `{}`", known.join("`, `")),
    }
}

/// Edit distance where a swap of neighbours counts as one; far for words that are much longer than any key.
fn distance(left: &str, right: &str) -> usize {
    const LONGEST: usize = 32;
    if left.len() > LONGEST || right.len() > LONGEST {
        return usize::MAX;
    }
    let left: Vec<char> = left.to_lowercase().chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = usize::from(left[i - 1] != right[j - 1]);
                let mut best = (rows[i - 1][j] + 1)
                    .min(rows[i][j - 1] + 1)
                    .min(rows[i - 1][j - 1] + changed);
                if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[left.len()][right.len()]
}

fn shorten(text: &str) -> &str {
    text.char_indices()
        .nth(60)
        .map_or(text, |(at, _)| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        let mut report = Report::new("p.toml", text);
        read(text, Layer::Task, 0, &mut report);
        report.render(false)
    }

    #[test]
    fn everything_is_read() {
        let text = "name = \"n\"\nmode = \"monitor\"\n[files]\nread = [\"/r\"]\n[network]\nlisten = [\"*\"]\n[exec]\ndeny = [\"/x\"]";
        let mut report = Report::new("p.toml", text);
        let file = read(text, Layer::Task, 0, &mut report);
        assert_eq!(report.render(false), "");
        assert_eq!(file.mode.map(Spanned::into_inner), Some(Mode::Monitor));
        assert_eq!(
            file.name.as_ref().map(|name| name.get_ref().as_str()),
            Some("n")
        );
        assert_eq!(file.files.read[0].get_ref(), "/r");
        assert_eq!(&text[file.files.read[0].span()], "\"/r\"");
        assert_eq!(file.network.listen[0].get_ref(), "*");
        assert!(matches!(&file.exec.deny[0], ExecEntry::Program(path) if path.get_ref() == "/x"));
    }

    #[test]
    fn unknown_keys_are_all_found_and_get_a_suggestion() {
        assert_eq!(
            faults("mdoe = \"enforce\"\n[files]\nwrit = []\n[network]\nfoo = []\n"),
            "\
error: there is no key `mdoe`
 --> p.toml:1:1
  |
1 | mdoe = \"enforce\"
  | ^^^^
  |
  = help: did you mean `mode`?

error: there is no key `files.writ`
 --> p.toml:3:1
  |
3 | writ = []
  | ^^^^
  |
  = help: did you mean `write`?

error: there is no key `network.foo`
 --> p.toml:5:1
  |
5 | foo = []
  | ^^^
  |
  = help: the keys of [network] are `allow`, `deny`, `approve`, `unknown`, `listen`, `unix`, `families`"
        );
    }

    #[test]
    fn planned_and_misplaced_keys_say_so() {
        let planned = faults("[network]\ndomains = []\n[redact]\n");
        assert!(
            planned.contains("`network.domains` is not yet supported"),
            "{planned}"
        );
        assert!(
            planned.contains("`redact` is not yet supported"),
            "{planned}"
        );
        assert!(faults("read = []").contains("`read` stands below a line `[files]`"));
    }

    #[test]
    fn wrong_kinds_are_named() {
        let text = faults(
            "name = 1\nmode = \"enforced\"\nnetwork = []\n[files]\nread = \"/usr\"\nwrite = [\"/a\", 2, {}]\n",
        );
        for expected in [
            "`name` must be a string, and this is an integer",
            "there is no mode `enforced`",
            "did you mean `enforce`?",
            "`network` must be a table, and this is a list",
            "put it in brackets: read = [\"/usr\"]",
            "`files.write` holds strings, and this is an integer",
            "`files.write` holds strings, and this is a table",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn entries_have_more_than_one_form() {
        let text = "[files]\napprove = [\"/a\", { path = \"/b\", access = [\"write\"] }]\n[exec]\napprove = [\"/usr/bin/x\", [\"git\", \"push\"]]\n";
        let mut report = Report::new("p.toml", text);
        let file = read(text, Layer::Task, 0, &mut report);
        assert_eq!(report.render(false), "");
        assert_eq!(file.files.approve[0].path.get_ref(), "/a");
        let access = file.files.approve[1].access.as_ref().unwrap();
        assert_eq!(access.get_ref()[0].get_ref(), "write");
        let ExecEntry::Command(words) = &file.exec.approve[1] else {
            panic!("{:?}", file.exec.approve);
        };
        assert_eq!(&text[words.span()], "[\"git\", \"push\"]");
        let wrong = faults(
            "[files]\napprove = [1, { access = [] }, { path = \"/a\", acces = [] }]\n[exec]\napprove = [1, [\"git\", 2]]\nallow = \"x\"\n[approvals]\ntimeout = 1\nmax_pending = \"x\"\n",
        );
        for expected in [
            "`files.approve` holds strings and tables with `path` and `access`, and this is an integer",
            "the entry has no path",
            "there is no key `files.approve.acces`",
            "did you mean `access`?",
            "`exec.approve` holds strings and lists of strings, and this is an integer",
            "`exec.approve` holds strings, and this is an integer",
            "put it in brackets: allow = [\"x\"]",
            "`approvals.timeout` must be a string, and this is an integer",
            "`approvals.max_pending` must be a whole number, and this is a string",
        ] {
            assert!(
                wrong.contains(expected),
                "{expected} is missing in\n{wrong}"
            );
        }
    }

    #[test]
    fn a_managed_file_has_keys_of_its_own() {
        let managed = |text: &str| {
            let mut report = Report::new("10.toml", text);
            read(text, Layer::Managed, 0, &mut report);
            report.render(false)
        };
        assert_eq!(
            managed(
                "mode = \"enforce\"\naccept_degraded = false\n[sessions]\nusers = []\nmax_per_user = 3\n[guard]\ndeny = []\n"
            ),
            ""
        );
        let faults_of = managed("[files]\nread = []\n[limits]\n[session]\n");
        for expected in [
            "a managed file may not say `files.read`",
            "a managed file may not say `limits`",
            "did you mean `sessions`?",
        ] {
            assert!(
                faults_of.contains(expected),
                "{expected} is missing in\n{faults_of}"
            );
        }
        assert!(
            faults("accept_degraded = true")
                .contains("only a managed file may say `accept_degraded`")
        );
    }

    #[test]
    fn values_are_read_by_kind() {
        let text = "extends = [\"preset:base\"]\n[task]\ngoal = \"g\"\nacceptance = [\"make test\"]\n[limits]\npids = 0x10\ncpu = 2\nmemory = \"1GiB\"\n[[expect]]\nread = \"/x\"\nverdict = \"denied\"\n";
        let mut report = Report::new("p.toml", text);
        let file = read(text, Layer::Task, 0, &mut report);
        assert_eq!(report.render(false), "");
        assert_eq!(extends(text), ["preset:base"]);
        assert_eq!(file.limits.pids.map(Spanned::into_inner), Some(16));
        assert_eq!(file.limits.cpu.map(Spanned::into_inner), Some(2.0));
        assert_eq!(file.expect.len(), 1);
        let wrong = faults("expect = 1\n[limits]\npids = \"many\"\ncpu = true\n");
        for expected in [
            "`expect` must be a list of tables",
            "`limits.pids` must be a whole number, and this is a string",
            "`limits.cpu` must be a number, and this is a boolean",
        ] {
            assert!(
                wrong.contains(expected),
                "{expected} is missing in\n{wrong}"
            );
        }
    }

    #[test]
    fn broken_toml_points_at_the_place() {
        let text = faults("[files\nread = [\"/usr\"\n");
        assert!(text.starts_with("error: not valid TOML: "), "{text}");
        assert!(text.contains("p.toml:1:"), "{text}");
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        for text in [
            "x=".to_owned() + &"[".repeat(200_000),
            "x=".to_owned() + &"{a=".repeat(100_000),
            "a.".repeat(200_000),
        ] {
            assert!(faults(&text).contains("not valid TOML"));
        }
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read() {
        let schema = serde_json::to_value(schema()).unwrap();
        let keys = |pointer: &str| -> Vec<String> {
            let mut keys: Vec<String> = schema
                .pointer(pointer)
                .unwrap()
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect();
            keys.sort();
            keys
        };
        for (pointer, table) in [
            ("/properties", &TOP),
            ("/$defs/FilesTable/properties", &FILES),
            ("/$defs/NetworkTable/properties", &NETWORK),
            ("/$defs/ExecTable/properties", &EXEC),
            ("/$defs/GuardTable/properties", &GUARD),
            ("/$defs/ApprovalsTable/properties", &APPROVALS),
            ("/$defs/TaskTable/properties", &TASK),
            ("/$defs/LimitsTable/properties", &LIMITS),
            ("/$defs/EnvTable/properties", &ENV),
            ("/$defs/TraceTable/properties", &TRACE),
            ("/$defs/ExpectTable/properties", &EXPECT),
        ] {
            let mut known = table.known.to_vec();
            known.sort_unstable();
            assert_eq!(keys(pointer), known);
        }
        assert_eq!(
            schema.pointer("/additionalProperties"),
            Some(&serde_json::Value::Bool(false))
        );
    }
}
