//! The keys of a policy file, table by table: those of a task's file, those of the administrator's, and those that are
//! still to come.

/// The keys of one table.
pub(super) struct Keys {
    /// Name of the table; empty for the top level.
    pub(super) table: &'static str,
    pub(super) known: &'static [&'static str],
    /// The keys of a managed file, which only takes away.
    pub(super) managed: &'static [&'static str],
    /// Keys that the language will have. They are named so that a policy written for a later agentwatch is refused with
    /// a reason, and never understood by half.
    pub(super) planned: &'static [&'static str],
}

pub(super) const TOP: Keys = Keys {
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
pub(super) const TASK: Keys = Keys {
    table: "task",
    known: &["goal", "owner", "ticket", "acceptance"],
    managed: &[],
    planned: &[],
};
pub(super) const FILES: Keys = Keys {
    table: "files",
    known: &["read", "write", "exec", "deny", "approve"],
    managed: &["deny", "approve"],
    planned: &[],
};
pub(super) const APPROVE: Keys = Keys {
    table: "files.approve",
    known: &["path", "access"],
    managed: &["path", "access"],
    planned: &[],
};
pub(super) const NETWORK: Keys = Keys {
    table: "network",
    known: &[
        "allow", "deny", "approve", "unknown", "listen", "unix", "families",
    ],
    managed: &["deny", "approve", "unknown"],
    planned: &["domains", "dns", "sni"],
};
pub(super) const EXEC: Keys = Keys {
    table: "exec",
    known: &["allow", "deny", "approve"],
    managed: &["deny", "approve"],
    planned: &[],
};
pub(super) const GUARD: Keys = Keys {
    table: "guard",
    known: &["allow"],
    managed: &["deny"],
    planned: &["approve"],
};
pub(super) const APPROVALS: Keys = Keys {
    table: "approvals",
    known: &["timeout", "on_timeout", "max_pending", "max_per_hour"],
    managed: &["timeout", "on_timeout", "max_pending", "max_per_hour"],
    planned: &[],
};
pub(super) const LIMITS: Keys = Keys {
    table: "limits",
    known: &["pids", "memory", "cpu", "wall_time"],
    managed: &[],
    planned: &["io"],
};
pub(super) const ENV: Keys = Keys {
    table: "env",
    known: &["pass", "drop"],
    managed: &[],
    planned: &["set"],
};
pub(super) const TRACE: Keys = Keys {
    table: "trace",
    known: &["opens"],
    managed: &[],
    planned: &["redact"],
};
pub(super) const EXPECT: Keys = Keys {
    table: "expect",
    known: &[
        "read", "write", "exec", "connect", "listen", "verdict", "rule",
    ],
    managed: &[],
    planned: &[],
};
pub(super) const SESSIONS: Keys = Keys {
    table: "sessions",
    known: &[],
    managed: &["users", "groups", "max_per_user"],
    planned: &[],
};

pub(super) const TABLES: [&Keys; 10] = [
    &FILES, &NETWORK, &EXEC, &GUARD, &APPROVALS, &TASK, &LIMITS, &ENV, &TRACE, &SESSIONS,
];

/// The keys of a table in the order in which they are written down, by the table's path.
pub(in crate::policy) fn order_of(path: &[&str]) -> Vec<&'static str> {
    let name = path.join(".");
    let mut tables = [&TOP, &EXPECT].into_iter().chain(TABLES);
    let Some(keys) = tables.find(|keys| keys.table == name) else {
        return Vec::new();
    };
    let of_managed = keys.managed.iter().filter(|key| !keys.known.contains(key));
    keys.known.iter().chain(of_managed).copied().collect()
}
