-- What the history keeps beside its segments, version 3. None of it is a contract: responders have the views (views.sql).
-- Unsigned 64-bit numbers of the kernel (inode, seq) are stored with their bits unchanged, so that the rare one above
-- 2^63 shows as negative and still compares equal.

CREATE TABLE boot_rows (
    no         INTEGER PRIMARY KEY,
    boot_id    TEXT NOT NULL UNIQUE,
    -- Largest difference seen between wall time and kernel time: boots are walked in its order.
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

-- Batches that are not in a segment yet, as they came. `no` is the number of the first event. `sessions` are the numbers of
-- the sessions in it, eight bytes each. The frame stands last, so that the rest is read without it.
CREATE TABLE tail_rows (
    no       INTEGER PRIMARY KEY,
    events   INTEGER NOT NULL,
    min_time INTEGER NOT NULL,
    max_time INTEGER NOT NULL,
    sessions BLOB NOT NULL,
    previous BLOB NOT NULL,
    hash     BLOB NOT NULL,
    frame    BLOB NOT NULL
);

CREATE TABLE segment_rows (
    no       INTEGER PRIMARY KEY,
    first_no INTEGER NOT NULL,
    last_no  INTEGER NOT NULL,
    events   INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    min_time INTEGER NOT NULL,
    max_time INTEGER NOT NULL,
    link     BLOB NOT NULL
);

-- One session's rows of one boot in one segment, those that were refused or those that were allowed: they follow each other, in the
-- order of kernel time.
CREATE TABLE run_rows (
    segment   INTEGER NOT NULL REFERENCES segment_rows (no),
    first_row INTEGER NOT NULL,
    rows      INTEGER NOT NULL,
    session   INTEGER REFERENCES session_rows (no),
    boot      INTEGER NOT NULL REFERENCES boot_rows (no),
    min_ktime INTEGER NOT NULL,
    max_ktime INTEGER NOT NULL,
    min_time  INTEGER NOT NULL,
    max_time  INTEGER NOT NULL,
    -- A bit for each kind and each verdict that occurs.
    kinds     INTEGER NOT NULL,
    verdicts  INTEGER NOT NULL,
    PRIMARY KEY (segment, first_row)
) WITHOUT ROWID;
CREATE INDEX run_session ON run_rows (session);

-- Ids that are not made of session and number, by which a repeated delivery is recognised.
CREATE TABLE id_rows (
    id TEXT PRIMARY KEY,
    no INTEGER NOT NULL
) WITHOUT ROWID;

-- What was denied, held, or would have been denied: asked for most, and few.
CREATE TABLE refusal_rows (
    no          INTEGER PRIMARY KEY,
    id          TEXT,
    session     INTEGER REFERENCES session_rows (no),
    time_ns     INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    verdict     TEXT NOT NULL,
    errno       INTEGER,
    count       INTEGER NOT NULL,
    rule_id     TEXT,
    rule_layer  TEXT,
    rule_source TEXT,
    pid         INTEGER,
    start_ns    INTEGER,
    exe         TEXT,
    argv        TEXT,
    uid         INTEGER,
    cgroup      TEXT,
    path        TEXT,
    access      TEXT,
    addr        TEXT,
    port        INTEGER,
    domain      TEXT
);
CREATE INDEX refusal_time ON refusal_rows (time_ns);
CREATE INDEX refusal_session ON refusal_rows (session);

-- Roll-up of what was connected to, bound or looked up; '' and -1 where there is no value, so that the key is whole.
CREATE TABLE destination_rows (
    session   INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    verdict   TEXT NOT NULL,
    family    TEXT NOT NULL,
    sock_type TEXT NOT NULL,
    addr      TEXT NOT NULL,
    port      INTEGER NOT NULL,
    sock_path TEXT NOT NULL,
    domain    TEXT NOT NULL,
    exe       TEXT NOT NULL,
    count     INTEGER NOT NULL,
    failed    INTEGER NOT NULL,
    first_ns  INTEGER NOT NULL,
    last_ns   INTEGER NOT NULL,
    PRIMARY KEY (session, kind, verdict, family, sock_type, addr, port, sock_path, domain, exe)
) WITHOUT ROWID;

-- Of sessions that may go on: the numbers of their events that were let go of, first and last of each run, and how often each folded
-- action was told of in them. Without these they would look as if they had never come.
CREATE TABLE let_go_rows (
    session INTEGER NOT NULL REFERENCES session_rows (no),
    first   INTEGER NOT NULL,
    last    INTEGER NOT NULL,
    PRIMARY KEY (session, first)
) WITHOUT ROWID;
CREATE TABLE let_go_fold_rows (
    session INTEGER NOT NULL REFERENCES session_rows (no),
    fold    TEXT NOT NULL,
    count   INTEGER NOT NULL,
    PRIMARY KEY (session, fold)
) WITHOUT ROWID;

-- Which history this is: one row. Positions in it mean nothing in another one.
CREATE TABLE history_row (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id  TEXT NOT NULL
);

-- The signed end of the chain: one row.
CREATE TABLE head_row (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    json TEXT NOT NULL
);
