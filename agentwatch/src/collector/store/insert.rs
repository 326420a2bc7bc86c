//! From an event to rows: the event itself, and what it says about its session and its process.
//!
//! The event id decides whether an event is new. Sessions and processes are derived from new events only, so a batch
//! that comes twice changes nothing.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::{Known, StoreError};
use crate::event::model::{Event, Kind, Lifecycle, Process, Verdict};

/// Added to a boot's largest offset when it grows, so that the jitter between two clocks does not rewrite it each time.
const OFFSET_SLACK_NS: i64 = 1_000_000_000;
/// Processes that are remembered as known before the memory is started anew.
const KNOWN_PROCESSES: usize = 100_000;

const EVENT: &str = "INSERT INTO event_rows (id, session, boot, ktime_ns, seq, time_ns, kind, verdict, errno, count,
    rule_id, rule_layer, rule_source, pid, tid, ppid, start_ns, exe, comm, argv, cwd, uid, gid, cgroup,
    path, dev, inode, access, target_path, family, sock_type, addr, port, sock_path, domain, json)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO NOTHING";

const PROCESS: &str = "INSERT INTO process_rows (session, boot, pid, start_ns, ppid, parent_start_ns, exe, argv, cwd, uid, gid,
    first_ns, exec_ktime) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (session, boot, pid, start_ns) DO UPDATE
    SET exe = excluded.exe, argv = excluded.argv, cwd = excluded.cwd, exec_ktime = excluded.exec_ktime
    WHERE excluded.exec_ktime > process_rows.exec_ktime";

const EXIT: &str =
    "UPDATE process_rows SET exit_ns = ?, exit_code = ?, exit_signal = ?, duration_ns = ?
    WHERE session = ? AND boot = ? AND pid = ? AND start_ns = ?";

const STARTED: &str = "UPDATE session_rows SET name = ?, policy = ?, mode = ?, uid = ?, started_ns = ?, coverage = ?, missing = ?,
    backends = ?, cgroup = ?, command = ?, origin = ? WHERE no = ? AND started_ns IS NULL";

/// Stores all batches in one transaction; returns the number of the newest event.
pub(super) fn insert<'a>(
    connection: &mut Connection,
    known: &mut Known,
    batches: impl IntoIterator<Item = &'a [Event]>,
) -> Result<i64, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Events and denials to add to each session.
    let mut tally: HashMap<i64, (u64, u64)> = HashMap::new();
    for event in batches.into_iter().flatten() {
        let boot = boot_no(&transaction, known, event)?;
        let session = session_no(&transaction, known, event, boot)?;
        if !insert_event(&transaction, event, session, boot)? {
            continue;
        }
        let Some(session) = session else { continue };
        let counted = tally.entry(session).or_default();
        counted.0 += 1;
        counted.1 += u64::from(event.verdict == Verdict::Denied);
        if let Some(process) = &event.process {
            record_process(&transaction, known, event, process, session, boot)?;
        }
        if let Some(lifecycle) = &event.lifecycle {
            record_lifecycle(&transaction, event, lifecycle, session)?;
        }
    }
    {
        let mut add = transaction.prepare_cached(
            "UPDATE session_rows SET events = events + ?, denied = denied + ? WHERE no = ?",
        )?;
        for (session, (events, denied)) in tally {
            add.execute(params![events, denied, session])?;
        }
    }
    let newest =
        transaction.query_row("SELECT coalesce(max(no), 0) FROM event_rows", [], |row| {
            row.get(0)
        })?;
    transaction.commit()?;
    Ok(newest)
}

/// Wall time minus kernel time, now.
pub(super) fn offset_now() -> i64 {
    nanoseconds(Timestamp::now())
        .saturating_sub(clamp(crate::event::host::boottime_ns()))
        .saturating_add(OFFSET_SLACK_NS)
}

/// Nanoseconds since 1970, at the limits of 64 bits where a time lies outside (before 1677, after 2262).
pub(super) fn nanoseconds(time: Timestamp) -> i64 {
    let nanoseconds = time.as_nanosecond();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

fn boot_no(
    transaction: &Transaction<'_>,
    known: &mut Known,
    event: &Event,
) -> Result<i64, StoreError> {
    let offset = nanoseconds(event.time).saturating_sub(clamp(event.ktime_ns));
    if let Some((no, largest)) = known.boots.get(&event.boot_id)
        && offset <= *largest
    {
        return Ok(*no);
    }
    let mut statement = transaction.prepare_cached(
        "INSERT INTO boot_rows (boot_id, max_offset) VALUES (?, ?) ON CONFLICT (boot_id) DO UPDATE
         SET max_offset = max(max_offset, excluded.max_offset) RETURNING no, max_offset",
    )?;
    let row: (i64, i64) = statement.query_row(
        params![event.boot_id, offset.saturating_add(OFFSET_SLACK_NS)],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    known.boots.insert(event.boot_id.clone(), row);
    Ok(row.0)
}

/// The number of the event's session, `None` for an event that belongs to none.
fn session_no(
    transaction: &Transaction<'_>,
    known: &mut Known,
    event: &Event,
    boot: i64,
) -> Result<Option<i64>, StoreError> {
    let session = &event.session;
    if session.id.is_empty() {
        return Ok(None);
    }
    if let Some(no) = known.sessions.get(&session.id) {
        return Ok(Some(*no));
    }
    let mut find = transaction.prepare_cached("SELECT no FROM session_rows WHERE id = ?")?;
    let no = match find.query_row([&session.id], |row| row.get(0)).optional()? {
        Some(no) => no,
        None => {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO session_rows (id, name, policy, mode, boot, first_ns) VALUES (?, ?, ?, ?, ?, ?)",
            )?;
            insert.insert(params![
                session.id,
                session.name,
                session.policy,
                session.mode.name(),
                boot,
                nanoseconds(event.time)
            ])?
        }
    };
    known.sessions.insert(session.id.clone(), no);
    Ok(Some(no))
}

/// Whether the event was new.
fn insert_event(
    transaction: &Transaction<'_>,
    event: &Event,
    session: Option<i64>,
    boot: i64,
) -> Result<bool, StoreError> {
    let (rule, process, file, net) = (
        event.rule.as_ref(),
        event.process.as_ref(),
        event.file.as_ref(),
        event.net.as_ref(),
    );
    let mut statement = transaction.prepare_cached(EVENT)?;
    let inserted = statement.execute(params![
        event.id,
        session,
        boot,
        clamp(event.ktime_ns),
        bits(event.seq),
        nanoseconds(event.time),
        event.kind.name(),
        event.verdict.name(),
        event.errno,
        clamp(event.count),
        rule.map(|rule| &rule.id),
        rule.map(|rule| rule.layer.name()),
        rule.map(|rule| &rule.source),
        process.map(|process| process.pid),
        process.map(|process| process.tid),
        process.map(|process| process.ppid),
        process.map(|process| clamp(process.start_ns)),
        process.map(|process| &process.exe),
        process.map(|process| &process.comm),
        process.map(|process| list(&process.argv)),
        process.map(|process| &process.cwd),
        process.map(|process| process.uid),
        process.map(|process| process.gid),
        process.map(|process| &process.cgroup),
        file.map(|file| &file.path),
        file.map(|file| bits(file.dev)),
        file.map(|file| bits(file.inode)),
        file.map(|file| file.access.join(",")),
        event.target.as_ref().map(|target| &target.path),
        net.map(|net| &net.family),
        net.map(|net| &net.socket_type),
        net.and_then(|net| net.addr.as_ref()),
        net.and_then(|net| net.port),
        net.and_then(|net| net.path.as_ref()),
        net.and_then(|net| net.domain.as_ref()),
        encode(event),
    ])?;
    Ok(inserted == 1)
}

fn record_process(
    transaction: &Transaction<'_>,
    known: &mut Known,
    event: &Event,
    process: &Process,
    session: i64,
    boot: i64,
) -> Result<(), StoreError> {
    let key = (session, boot, process.pid, process.start_ns);
    // An exec that was refused or failed leaves the process what it was.
    let executed = event.kind == Kind::Exec
        && event.errno.is_none()
        && matches!(event.verdict, Verdict::Allowed | Verdict::Audited);
    if executed || !known.processes.contains(&key) {
        let mut statement = transaction.prepare_cached(PROCESS)?;
        statement.execute(params![
            session,
            boot,
            process.pid,
            clamp(process.start_ns),
            process.ppid,
            clamp(process.parent_start_ns),
            process.exe,
            list(&process.argv),
            process.cwd,
            process.uid,
            process.gid,
            nanoseconds(event.time),
            if executed { clamp(event.ktime_ns) } else { 0 },
        ])?;
        if known.processes.len() >= KNOWN_PROCESSES {
            known.processes.clear();
        }
        known.processes.insert(key);
    }
    if event.kind == Kind::Exit
        && let Some(exit) = &event.exit
    {
        let mut statement = transaction.prepare_cached(EXIT)?;
        statement.execute(params![
            nanoseconds(event.time),
            exit.code,
            exit.signal,
            clamp(exit.duration_ns),
            session,
            boot,
            process.pid,
            clamp(process.start_ns)
        ])?;
    }
    Ok(())
}

fn record_lifecycle(
    transaction: &Transaction<'_>,
    event: &Event,
    lifecycle: &Lifecycle,
    session: i64,
) -> Result<(), StoreError> {
    let (reference, time) = (&event.session, nanoseconds(event.time));
    match lifecycle {
        Lifecycle::Started {
            coverage,
            missing,
            backends,
            cgroup,
            uid,
            command,
            origin,
            ..
        } => {
            transaction.prepare_cached(STARTED)?.execute(params![
                reference.name,
                reference.policy,
                reference.mode.name(),
                uid,
                time,
                coverage.name(),
                list(missing),
                list(backends),
                cgroup,
                list(command),
                origin,
                session,
            ])?;
        }
        Lifecycle::Resumed { coverage } => {
            transaction
                .prepare_cached(
                    "UPDATE session_rows SET policy = ?, mode = ?, coverage = ? WHERE no = ?",
                )?
                .execute(params![
                    reference.policy,
                    reference.mode.name(),
                    coverage.name(),
                    session
                ])?;
        }
        Lifecycle::Reloaded {
            policy,
            mode,
            coverage,
            missing,
            ..
        } => {
            transaction
                .prepare_cached(
                    "UPDATE session_rows SET policy = ?, mode = ?, coverage = ?, missing = ? WHERE no = ?",
                )?
                .execute(params![
                    policy,
                    mode.name(),
                    coverage.name(),
                    list(missing),
                    session
                ])?;
        }
        Lifecycle::Ended {
            reason,
            exit_code,
            counts,
        } => {
            transaction
                .prepare_cached("UPDATE session_rows SET ended_ns = ?, reason = ?, exit_code = ?, counts = ? WHERE no = ?")?
                .execute(params![time, reason, exit_code, encode(counts), session])?;
        }
    }
    Ok(())
}

fn list(values: &[String]) -> String {
    encode(values)
}

/// JSON of a value of the model: types without maps of odd keys and without failing serialisers, so it cannot fail.
fn encode<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("the model's types always serialise")
}

/// A time or a count, at most what SQLite's integers hold (292 years of nanoseconds).
fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// An identity: the same bits, so that equal stays equal.
fn bits(value: u64) -> i64 {
    value.cast_signed()
}
