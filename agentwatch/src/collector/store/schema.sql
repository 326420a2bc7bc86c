-- The history, version 1. The views are the contract with responders (`agentwatch query`); the tables below them are not.
-- Unsigned 64-bit numbers of the kernel (inode, seq) are stored with their bits unchanged, so that the rare one above
-- 2^63 shows as negative and still compares equal.

CREATE TABLE boot_rows (
    no         INTEGER PRIMARY KEY,
    boot_id    TEXT NOT NULL UNIQUE,
    -- Largest difference seen between wall time and kernel time. With it a bound on the wall time becomes a bound on
    -- the kernel time, which is what events are ordered and indexed by.
    max_offset INTEGER NOT NULL,
    -- Counts up with every start of the collector: the largest is the boot that runs now.
    opened     INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE session_rows (
    no         INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    name       TEXT NOT NULL,
    policy     TEXT NOT NULL,
    mode       TEXT NOT NULL,
    boot       INTEGER NOT NULL REFERENCES boot_rows (no),
    first_ns   INTEGER NOT NULL,
    -- NULL until the session's `started` event is here. Without a uid only root and the collector's user see it.
    uid        INTEGER,
    started_ns INTEGER,
    coverage   TEXT,
    missing    TEXT,
    backends   TEXT,
    cgroup     TEXT,
    command    TEXT,
    origin     TEXT,
    ended_ns   INTEGER,
    reason     TEXT,
    exit_code  INTEGER,
    counts     TEXT,
    events     INTEGER NOT NULL DEFAULT 0,
    denied     INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX session_name ON session_rows (name);
CREATE INDEX session_uid ON session_rows (uid);

CREATE TABLE process_rows (
    session         INTEGER NOT NULL REFERENCES session_rows (no),
    boot            INTEGER NOT NULL REFERENCES boot_rows (no),
    pid             INTEGER NOT NULL,
    start_ns        INTEGER NOT NULL,
    ppid            INTEGER NOT NULL,
    parent_start_ns INTEGER NOT NULL,
    exe             TEXT NOT NULL,
    argv            TEXT NOT NULL,
    cwd             TEXT NOT NULL,
    uid             INTEGER NOT NULL,
    gid             INTEGER NOT NULL,
    first_ns        INTEGER NOT NULL,
    -- Kernel time of the exec that `exe` and `argv` are of; 0 where only a later action was seen.
    exec_ktime      INTEGER NOT NULL,
    exit_ns         INTEGER,
    exit_code       INTEGER,
    exit_signal     INTEGER,
    duration_ns     INTEGER,
    PRIMARY KEY (session, boot, pid, start_ns)
) WITHOUT ROWID;

CREATE TABLE event_rows (
    no              INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    session         INTEGER REFERENCES session_rows (no),
    boot            INTEGER NOT NULL REFERENCES boot_rows (no),
    ktime_ns        INTEGER NOT NULL,
    seq             INTEGER NOT NULL,
    time_ns         INTEGER NOT NULL,
    kind            TEXT NOT NULL,
    verdict         TEXT NOT NULL,
    errno           INTEGER,
    count           INTEGER NOT NULL,
    rule_id         TEXT,
    rule_layer      TEXT,
    rule_source     TEXT,
    pid             INTEGER,
    tid             INTEGER,
    ppid            INTEGER,
    start_ns        INTEGER,
    exe             TEXT,
    comm            TEXT,
    argv            TEXT,
    cwd             TEXT,
    uid             INTEGER,
    gid             INTEGER,
    cgroup          TEXT,
    path            TEXT,
    dev             INTEGER,
    inode           INTEGER,
    access          TEXT,
    target_path     TEXT,
    family          TEXT,
    sock_type       TEXT,
    addr            TEXT,
    port            INTEGER,
    sock_path       TEXT,
    domain          TEXT,
    -- The event as it came, the truth that the columns were taken from.
    json            TEXT NOT NULL
);
-- Everything in its order; one session in its order; denials in their order, and by wall time for responders.
CREATE INDEX event_order ON event_rows (boot, ktime_ns, seq);
CREATE INDEX event_session ON event_rows (session, boot, ktime_ns, seq);
CREATE INDEX event_denied ON event_rows (boot, ktime_ns, seq) WHERE verdict = 'denied';
CREATE INDEX event_denied_time ON event_rows (time_ns) WHERE verdict = 'denied';

CREATE VIEW events AS
SELECT e.no, e.id, s.id AS session_id, s.name AS session, e.seq,
       strftime('%Y-%m-%dT%H:%M:%S', e.time_ns / 1000000000, 'unixepoch') || printf('.%09dZ', e.time_ns % 1000000000) AS time,
       e.time_ns, e.ktime_ns, b.boot_id, e.kind, e.verdict, e.errno, e.count, e.rule_id, e.rule_layer, e.rule_source,
       e.pid, e.tid, e.ppid, e.start_ns, e.exe, e.comm, e.argv, e.cwd, e.uid, e.gid, e.cgroup,
       e.path, e.dev, e.inode, e.access, e.target_path, e.family, e.sock_type, e.addr, e.port, e.sock_path, e.domain, e.json
FROM event_rows e JOIN boot_rows b ON b.no = e.boot LEFT JOIN session_rows s ON s.no = e.session;

CREATE VIEW denials AS
SELECT time, time_ns, session_id, session, kind, path, addr, port, domain, access, rule_id, rule_layer, rule_source, errno,
       count, pid, start_ns, exe, argv, uid, id
FROM events WHERE verdict = 'denied';

CREATE VIEW files AS
SELECT s.id AS session_id, s.name AS session, e.path, e.kind, e.access, e.verdict, e.exe, sum(e.count) AS count,
       min(e.time_ns) AS first_ns, max(e.time_ns) AS last_ns
FROM event_rows e LEFT JOIN session_rows s ON s.no = e.session
WHERE e.kind IN ('open', 'create', 'delete', 'rename', 'link', 'attr') AND e.path IS NOT NULL
GROUP BY e.session, e.path, e.kind, e.access, e.verdict, e.exe;

CREATE VIEW destinations AS
SELECT s.id AS session_id, s.name AS session, e.kind, e.family, e.sock_type, e.addr, e.port, e.sock_path, e.domain, e.verdict, e.exe,
       sum(e.count) AS count, min(e.time_ns) AS first_ns, max(e.time_ns) AS last_ns
FROM event_rows e LEFT JOIN session_rows s ON s.no = e.session
WHERE e.kind IN ('connect', 'bind', 'dns')
GROUP BY e.session, e.kind, e.family, e.sock_type, e.addr, e.port, e.sock_path, e.domain, e.verdict, e.exe;

CREATE VIEW processes AS
SELECT s.id AS session_id, s.name AS session, b.boot_id, p.pid, p.start_ns, p.ppid, p.parent_start_ns, p.exe, p.argv, p.cwd,
       p.uid, p.gid, p.first_ns, p.exit_ns, p.exit_code, p.exit_signal, p.duration_ns
FROM process_rows p JOIN session_rows s ON s.no = p.session JOIN boot_rows b ON b.no = p.boot;

-- Nothing of ours outlives a boot: a session of an earlier boot that has no `ended` event ended with it.
CREATE VIEW sessions AS
SELECT s.id, s.name, s.uid, s.policy, s.mode, s.coverage, s.missing, s.backends, s.cgroup, s.command, s.origin,
       CASE WHEN s.ended_ns IS NOT NULL OR s.boot <> (SELECT no FROM boot_rows ORDER BY opened DESC LIMIT 1) THEN 'ended' ELSE 'running' END AS state,
       coalesce(s.started_ns, s.first_ns) AS started_ns, s.ended_ns,
       CASE WHEN s.reason IS NOT NULL THEN s.reason
            WHEN s.ended_ns IS NULL AND s.boot <> (SELECT no FROM boot_rows ORDER BY opened DESC LIMIT 1) THEN 'host_restarted' END AS reason,
       s.exit_code, s.events, s.denied, s.counts, b.boot_id, s.no
FROM session_rows s JOIN boot_rows b ON b.no = s.boot;
