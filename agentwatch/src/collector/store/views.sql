-- What responders ask (docs/history.md). `event_rows` is the events of all segments and of what is not sealed yet, as one table.

CREATE TEMP VIEW events AS
SELECT e.no, coalesce(e.id, e.session_id || '-' || e.seq) AS id, e.session_id, e.session, e.seq,
       moment(e.time_ns) AS time,
       e.time_ns, e.ktime_ns, e.boot_id, e.kind, e.verdict, e.errno, e.count, e.fold, e.rule_id, e.rule_layer, e.rule_source,
       e.pid, e.tid, e.ppid, e.start_ns, e.exe, e.comm, e.argv, e.cwd, e.uid, e.gid, e.cgroup,
       e.path, e.dev, e.inode, e.access, e.flags, e.target_path, e.family, e.sock_type, e.addr, e.port, e.sock_path, e.domain,
       e.exit_code, e.exit_signal, e.duration_ns, e.guard, e.approval, e.lifecycle, e.loss, e.json
FROM event_rows e;

CREATE TEMP VIEW denials AS
SELECT moment(r.time_ns) AS time,
       r.time_ns, s.id AS session_id, s.name AS session, r.verdict, r.kind, r.path, r.addr, r.port, r.domain, r.access,
       r.rule_id, r.rule_layer, r.rule_source, r.errno, r.count, r.pid, r.start_ns, r.exe, r.argv, r.uid, r.cgroup,
       coalesce(r.id, s.id || '-' || r.seq) AS id
FROM main.refusal_rows r LEFT JOIN main.session_rows s ON s.no = r.session
WHERE r.verdict = 'denied';

CREATE TEMP VIEW refusals AS
SELECT moment(r.time_ns) AS time,
       r.time_ns, s.id AS session_id, s.name AS session, r.verdict, r.kind, r.path, r.addr, r.port, r.domain, r.access,
       r.rule_id, r.rule_layer, r.rule_source, r.errno, r.count, r.pid, r.start_ns, r.exe, r.argv, r.uid, r.cgroup,
       coalesce(r.id, s.id || '-' || r.seq) AS id
FROM main.refusal_rows r LEFT JOIN main.session_rows s ON s.no = r.session;

CREATE TEMP VIEW files AS
SELECT e.session_id, e.session, e.cgroup, e.path, e.kind, e.access, e.verdict, e.exe, sum(e.count) AS count,
       min(e.time_ns) AS first_ns, max(e.time_ns) AS last_ns
FROM event_rows e
WHERE e.kind IN ('open', 'create', 'delete', 'rename', 'link', 'attr') AND e.path IS NOT NULL
GROUP BY e.session_id, e.session, e.cgroup, e.path, e.kind, e.access, e.verdict, e.exe;

CREATE TEMP VIEW destinations AS
SELECT s.id AS session_id, s.name AS session, s.cgroup, d.kind, d.family, nullif(d.sock_type, '') AS sock_type,
       nullif(d.addr, '') AS addr, nullif(d.port, -1) AS port, nullif(d.sock_path, '') AS sock_path,
       nullif(d.domain, '') AS domain, d.verdict, d.exe, d.count, d.failed, d.first_ns, d.last_ns
FROM main.destination_rows d LEFT JOIN main.session_rows s ON s.no = d.session;

-- A process is what executed, ended or did something: of several executions the last one names it.
CREATE TEMP VIEW processes AS
SELECT e.session_id, e.session, e.boot_id, e.pid, e.start_ns, e.ppid, e.parent_start_ns, e.exe, e.argv, e.cwd, e.uid, e.gid,
       e.cgroup, min(e.time_ns) AS first_ns,
       max(CASE WHEN e.kind = 'exec' AND e.errno IS NULL AND e.verdict IN ('allowed', 'audited') THEN e.ktime_ns ELSE 0 END) AS exec_ktime_ns,
       sum(CASE WHEN e.kind = 'exit' THEN e.time_ns END) AS exit_ns, sum(e.exit_code) AS exit_code,
       sum(e.exit_signal) AS exit_signal, sum(e.duration_ns) AS duration_ns, count(*) AS events
FROM event_rows e WHERE e.pid IS NOT NULL
GROUP BY e.session_id, e.session, e.boot_id, e.pid, e.start_ns;

CREATE TEMP VIEW approvals AS
SELECT e.session_id, e.session, e.time_ns, e.verdict, e.rule_id, e.rule_layer, e.rule_source, e.pid, e.start_ns, e.exe, e.argv, e.uid,
       e.cgroup, e.path, e.access, e.addr, e.port, e.domain, e.json
FROM event_rows e WHERE e.kind = 'approval';

-- Nothing of ours outlives a boot: a session of an earlier boot that has no `ended` event ended with it.
CREATE TEMP VIEW sessions AS
SELECT s.id, s.name, s.uid, s.policy, s.mode, s.coverage, s.missing, s.backends, s.cgroup, s.command, s.origin,
       CASE WHEN s.ended_ns IS NOT NULL OR s.boot <> (SELECT no FROM main.boot_rows ORDER BY opened DESC LIMIT 1) THEN 'ended' ELSE 'running' END AS state,
       coalesce(s.started_ns, s.first_ns) AS started_ns, s.ended_ns,
       CASE WHEN s.reason IS NOT NULL THEN s.reason
            WHEN s.ended_ns IS NULL AND s.boot <> (SELECT no FROM main.boot_rows ORDER BY opened DESC LIMIT 1) THEN 'host_restarted' END AS reason,
       s.exit_code, s.events, s.denied, s.counts, b.boot_id, s.no
FROM main.session_rows s JOIN main.boot_rows b ON b.no = s.boot;

CREATE TEMP VIEW segments AS
SELECT g.no, printf('segments/%010d.parquet', g.no) AS file, g.first_no, g.last_no, g.events, g.bytes, g.min_time AS min_time_ns,
       g.max_time AS max_time_ns, lower(hex(g.link)) AS link
FROM main.segment_rows g;
