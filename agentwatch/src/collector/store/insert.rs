//! From batches to the history: each is kept as it came until it is sealed, and what it says about sessions, refusals
//! and destinations is derived at once.
//!
//! An event's number in its session decides whether it is new, or its id where that is not made of the number. All
//! else is derived from new events only, so a batch that comes twice changes nothing.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::{
    Known, StoreError,
    columns::{C, Row as _, Unsealed},
    read, seal, segment,
};
use crate::{
    collector::chain::{self, Head, Key, Manifest},
    event::model::{Kind, Lifecycle, Verdict},
    wire::batch::{Batch, Record, clamp, nanoseconds},
};

/// Added to a boot's largest offset when it grows, so that the jitter between two clocks does not rewrite it each time.
const OFFSET_SLACK_NS: i64 = 1_000_000_000;
/// Sessions that are remembered, with their numbers, before the memory is started anew.
const KNOWN_SESSIONS: usize = 4096;

const STARTED: &str = "UPDATE session_rows SET name = ?, policy = ?, mode = ?, uid = ?, started_ns = ?, coverage = ?, missing = ?,
    backends = ?, cgroup = ?, command = ?, origin = ? WHERE no = ? AND started_ns IS NULL";

const REFUSAL: &str = "INSERT INTO refusal_rows (no, id, session, time_ns, seq, kind, verdict, errno, count, rule_id, rule_layer,
    rule_source, pid, start_ns, exe, argv, uid, cgroup, path, access, addr, port, domain)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

const DESTINATION: &str = "INSERT INTO destination_rows (session, kind, verdict, family, sock_type, addr, port, sock_path, domain, exe,
    count, failed, first_ns, last_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET count = count + excluded.count, failed = failed + excluded.failed,
    first_ns = min(first_ns, excluded.first_ns), last_ns = max(last_ns, excluded.last_ns)";

/// Stores all batches in one transaction; returns the number of the newest event.
pub(super) fn insert(
    connection: &mut Connection,
    known: &mut Known,
    directory: &std::path::Path,
    key: &Key,
    frames: &[&[u8]],
) -> Result<i64, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if known.head.is_none() {
        known.head = Some(head(&transaction)?);
    }
    let mut group = Group::default();
    let mut stored = false;
    for frame in frames {
        let batch = Batch::decode(frame).map_err(StoreError::Batch)?;
        stored |= group.store(&transaction, known, directory, &batch, frame)?;
    }
    group.finish(&transaction)?;
    let Some(head) = known.head.as_mut() else {
        return Err(StoreError::Corrupt("the chain has no head".to_owned()));
    };
    if stored {
        key.sign_head(head);
        write_head(&transaction, head)?;
    }
    let newest = head.newest;
    transaction.commit()?;
    Ok(newest)
}

/// The end of the chain as it is stored.
pub(super) fn head(connection: &Connection) -> Result<Head, StoreError> {
    let json: Option<String> = connection
        .query_row("SELECT json FROM head_row", [], |row| row.get(0))
        .optional()?;
    match json {
        Some(json) => serde_json::from_str(&json)
            .map_err(|error| StoreError::Corrupt(format!("the head of the chain: {error}"))),
        None => Ok(Head {
            newest: 0,
            segment: 0,
            link: chain::GENESIS,
            tail: chain::GENESIS,
            key: chain::GENESIS,
            signature: String::new(),
        }),
    }
}

pub(super) fn write_head(transaction: &Transaction<'_>, head: &Head) -> Result<(), StoreError> {
    transaction
        .prepare_cached("INSERT INTO head_row (one, json) VALUES (1, ?) ON CONFLICT DO UPDATE SET json = excluded.json")?
        .execute([encode(head)])?;
    Ok(())
}

/// Wall time minus kernel time, now.
pub(super) fn offset_now() -> i64 {
    nanoseconds(Timestamp::now())
        .saturating_sub(clamp(crate::event::host::boottime_ns()))
        .saturating_add(OFFSET_SLACK_NS)
}

/// What one transaction adds up before it writes it.
#[derive(Default)]
struct Group {
    /// Events and denials to add to each session.
    tally: HashMap<i64, (u64, u64)>,
    destinations: HashMap<Destination, Uses>,
}

#[derive(PartialEq, Eq, Hash)]
struct Destination {
    session: i64,
    kind: Kind,
    verdict: Verdict,
    /// Family, type, address, path, domain, program.
    texts: [String; 6],
    port: i64,
}

struct Uses {
    count: i64,
    failed: i64,
    first_ns: i64,
    last_ns: i64,
}

/// A batch of the tail, but for its frame.
pub(super) struct InTail<'a> {
    pub(super) last_no: i64,
    pub(super) events: usize,
    pub(super) bytes: usize,
    pub(super) sessions: &'a [u8],
}

/// Looks at the batches of the tail in their order, as long as it is told to.
pub(super) fn each_unsealed(
    connection: &Connection,
    mut look: impl FnMut(&InTail<'_>) -> bool,
) -> Result<(), StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT no, events, length(frame), sessions FROM tail_rows ORDER BY no")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (no, events, bytes): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let size = |number| usize::try_from(number).unwrap_or(0);
        let batch = InTail {
            last_no: no.saturating_add(events).saturating_sub(1),
            events: size(events),
            bytes: size(bytes),
            sessions: super::seal::bytes_in(row, 3)?,
        };
        if !look(&batch) {
            break;
        }
    }
    Ok(())
}

/// The numbers of the sessions that a batch of the tail has something of.
pub(super) fn sessions_of(stored: &[u8]) -> impl ExactSizeIterator<Item = i64> {
    stored.chunks_exact(8).map(|bytes| {
        let mut number = [0; 8];
        number.copy_from_slice(bytes);
        i64::from_le_bytes(number)
    })
}

/// The sessions of a batch by their places in it: number, boot.
type Places = Vec<(Option<i64>, i64)>;

impl Group {
    /// Stores what is new of a batch; whether anything is.
    fn store(
        &mut self,
        transaction: &Transaction<'_>,
        known: &mut Known,
        directory: &std::path::Path,
        batch: &Batch<'_>,
        frame: &[u8],
    ) -> Result<bool, StoreError> {
        let Some(head) = known.head.as_ref() else {
            return Ok(false);
        };
        let first_no = head.newest + 1;
        // Between batches: what a batch has settled so far stands nowhere else.
        known.forget_beyond(KNOWN_SESSIONS);
        let places = places(transaction, known, batch)?;
        let new = new_records(transaction, known, directory, batch, &places, first_no)?;
        // What is there already is taken out; the batch that is kept holds each event once.
        let rewritten = new.as_ref().map(|new| {
            let records = new.iter().filter_map(|index| batch.records.get(*index));
            Batch {
                strings: batch.strings.clone(),
                sessions: batch.sessions.clone(),
                processes: batch.processes.clone(),
                rules: batch.rules.clone(),
                base_time_ns: batch.base_time_ns,
                base_ktime_ns: batch.base_ktime_ns,
                records: records.cloned().collect(),
            }
        });
        let bytes = rewritten.as_ref().map(Batch::encode);
        let (batch, frame) = (
            rewritten.as_ref().unwrap_or(batch),
            bytes.as_deref().unwrap_or(frame),
        );
        if batch.records.is_empty() {
            return Ok(false);
        }
        let (mut min_time, mut max_time) = (i64::MAX, i64::MIN);
        // Events and denials, by the places of their sessions: a batch has few.
        let mut counts = vec![(0, 0); places.len()];
        for (record, no) in batch.records.iter().zip(first_no..) {
            let row = Unsealed { batch, record, no };
            let time = row.time();
            (min_time, max_time) = (min_time.min(time), max_time.max(time));
            if let Some((events, denied)) = counts.get_mut(record.session as usize) {
                *events += 1;
                *denied += u64::from(row.verdict() == Verdict::Denied);
            }
            self.derive(transaction, &row, place(&places, record).0)?;
        }
        let sessions = self.tally(&places, &counts);
        let Some(head) = known.head.as_mut() else {
            return Ok(false);
        };
        let hash = chain::batch(&head.tail, frame);
        let sessions: Vec<u8> = sessions.into_iter().flat_map(i64::to_le_bytes).collect();
        transaction
            .prepare_cached("INSERT INTO tail_rows (no, events, min_time, max_time, sessions, previous, hash, frame) VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?
            .execute(params![
                first_no,
                batch.records.len(),
                min_time,
                max_time,
                sessions,
                head.tail,
                hash,
                frame
            ])?;
        head.tail = hash;
        head.newest += batch.records.len() as i64;
        known
            .unsealed
            .add(batch.records.len(), frame.len(), &sessions);
        known
            .unsealed_since
            .get_or_insert_with(std::time::Instant::now);
        Ok(true)
    }

    /// Adds up what a batch has of each session; the sessions that it has something of, 0 for what belongs to none.
    fn tally(&mut self, places: &Places, counts: &[(u64, u64)]) -> Vec<i64> {
        let mut sessions = Vec::new();
        for ((session, _), (events, denied)) in places.iter().zip(counts) {
            if *events == 0 {
                continue;
            }
            let number = session.unwrap_or(0);
            if !sessions.contains(&number) {
                sessions.push(number);
            }
            if session.is_some() {
                let counted = self.tally.entry(number).or_default();
                counted.0 += events;
                counted.1 += denied;
            }
        }
        sessions
    }

    /// What one new event says beside itself.
    fn derive(
        &mut self,
        transaction: &Transaction<'_>,
        row: &Unsealed<'_>,
        session: Option<i64>,
    ) -> Result<(), StoreError> {
        let (kind, verdict) = (row.kind(), row.verdict());
        if verdict != Verdict::Allowed {
            refuse(transaction, row, session)?;
        }
        let Some(session) = session else {
            return Ok(());
        };
        if matches!(kind, Kind::Connect | Kind::Bind | Kind::Dns) {
            self.destination(row, session);
        }
        if let Some(json) = row.text(C::Lifecycle) {
            let lifecycle = serde_json::from_str(json).map_err(|error| {
                StoreError::Batch(format!("a change of a session's life: {error}"))
            })?;
            record_lifecycle(transaction, row, &lifecycle, session)?;
        }
        Ok(())
    }

    fn destination(&mut self, row: &Unsealed<'_>, session: i64) {
        let text = |column| row.text(column).unwrap_or_default().to_owned();
        let key = Destination {
            session,
            kind: row.kind(),
            verdict: row.verdict(),
            texts: [
                text(C::Family),
                text(C::SockType),
                text(C::Addr),
                text(C::SockPath),
                text(C::Domain),
                text(C::Exe),
            ],
            port: row.number(C::Port).unwrap_or(-1),
        };
        let (time, count) = (row.time(), clamp(row.record.count));
        let uses = self.destinations.entry(key).or_insert(Uses {
            count: 0,
            failed: 0,
            first_ns: time,
            last_ns: time,
        });
        uses.count = uses.count.saturating_add(count);
        if row.record.errno.is_some() {
            uses.failed = uses.failed.saturating_add(count);
        }
        uses.first_ns = uses.first_ns.min(time);
        uses.last_ns = uses.last_ns.max(time);
    }

    fn finish(self, transaction: &Transaction<'_>) -> Result<(), StoreError> {
        let mut add = transaction.prepare_cached(
            "UPDATE session_rows SET events = events + ?, denied = denied + ? WHERE no = ?",
        )?;
        for (session, (events, denied)) in self.tally {
            add.execute(params![events, denied, session])?;
        }
        let mut use_ = transaction.prepare_cached(DESTINATION)?;
        for (key, uses) in self.destinations {
            let [family, sock_type, addr, sock_path, domain, exe] = &key.texts;
            use_.execute(params![
                key.session,
                key.kind.name(),
                key.verdict.name(),
                family,
                sock_type,
                addr,
                key.port,
                sock_path,
                domain,
                exe,
                uses.count,
                uses.failed,
                uses.first_ns,
                uses.last_ns
            ])?;
        }
        Ok(())
    }
}

fn place(places: &Places, record: &Record) -> (Option<i64>, i64) {
    places
        .get(record.session as usize)
        .copied()
        .unwrap_or_default()
}

/// The numbers of a batch's sessions and boots, made where they are new.
fn places(
    transaction: &Transaction<'_>,
    known: &mut Known,
    batch: &Batch<'_>,
) -> Result<Places, StoreError> {
    let mut offsets: Vec<Option<(i64, i64)>> = vec![None; batch.sessions.len()];
    for record in &batch.records {
        let row = Unsealed {
            batch,
            record,
            no: 0,
        };
        let offset = row.time().saturating_sub(row.ktime());
        if let Some(slot) = offsets.get_mut(record.session as usize) {
            let (largest, _) = slot.get_or_insert((offset, row.time()));
            *largest = offset.max(*largest);
        }
    }
    let mut places = Vec::with_capacity(offsets.len());
    for (session, offset) in batch.sessions.iter().zip(offsets) {
        let Some((offset, time)) = offset else {
            places.push((None, 0));
            continue;
        };
        let text = |index| batch.text(index).unwrap_or_default();
        let boot = boot_no(transaction, known, text(session.boot_id), offset)?;
        let id = text(session.id);
        if id.is_empty() {
            places.push((None, boot));
            continue;
        }
        let no = match known.sessions.get(id) {
            Some(no) => *no,
            None => {
                let mode = if session.monitor {
                    "monitor"
                } else {
                    "enforce"
                };
                let (no, is_new) = session_no(
                    transaction,
                    id,
                    (text(session.name), text(session.policy), mode),
                    boot,
                    time,
                )?;
                known.sessions.insert(id.to_owned(), no);
                if is_new {
                    known.numbers.insert(no, Default::default());
                }
                no
            }
        };
        places.push((Some(no), boot));
    }
    Ok(places)
}

fn boot_no(
    transaction: &Transaction<'_>,
    known: &mut Known,
    boot_id: &str,
    offset: i64,
) -> Result<i64, StoreError> {
    if let Some((no, largest)) = known.boots.get(boot_id)
        && offset <= *largest
    {
        return Ok(*no);
    }
    let mut statement = transaction.prepare_cached(
        "INSERT INTO boot_rows (boot_id, max_offset) VALUES (?, ?) ON CONFLICT (boot_id) DO UPDATE
         SET max_offset = max(max_offset, excluded.max_offset) RETURNING no, max_offset",
    )?;
    let row: (i64, i64) = statement.query_row(
        params![boot_id, offset.saturating_add(OFFSET_SLACK_NS)],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    known.boots.insert(boot_id.to_owned(), row);
    Ok(row.0)
}

/// The number of a session, and whether it was made now.
fn session_no(
    transaction: &Transaction<'_>,
    id: &str,
    (name, policy, mode): (&str, &str, &str),
    boot: i64,
    time: i64,
) -> Result<(i64, bool), StoreError> {
    let mut find = transaction.prepare_cached("SELECT no FROM session_rows WHERE id = ?")?;
    if let Some(no) = find.query_row([id], |row| row.get(0)).optional()? {
        return Ok((no, false));
    }
    let mut insert = transaction.prepare_cached(
        "INSERT INTO session_rows (id, name, policy, mode, boot, first_ns) VALUES (?, ?, ?, ?, ?, ?)",
    )?;
    Ok((
        insert.insert(params![id, name, policy, mode, boot, time])?,
        true,
    ))
}

/// The places of the records that are not in the history; `None` where all are new.
fn new_records(
    transaction: &Transaction<'_>,
    known: &mut Known,
    directory: &std::path::Path,
    batch: &Batch<'_>,
    places: &Places,
    first_no: i64,
) -> Result<Option<Vec<usize>>, StoreError> {
    let mut new = Vec::with_capacity(batch.records.len());
    // Numbers of a session mostly follow each other: of each session, by the first of its places, the run that grows.
    let mut runs: Vec<Option<Run>> = places.iter().map(|_| None).collect();
    let mut slots = HashMap::new();
    let slots: Vec<usize> = places
        .iter()
        .enumerate()
        .map(|(place, (session, _))| *slots.entry(*session).or_insert(place))
        .collect();
    for (index, record) in batch.records.iter().enumerate() {
        let run = slots
            .get(record.session as usize)
            .and_then(|slot| runs.get_mut(*slot));
        let is_new = match (record.id, place(places, record).0, run) {
            (0, Some(session), Some(run)) => match run {
                Some(run)
                    if run.last.checked_add(1) == Some(record.seq) && record.seq < run.known =>
                {
                    run.last = record.seq;
                    true
                }
                _ => {
                    settle(transaction, known, directory, session, run.take())?;
                    let numbers = numbers(transaction, known, directory, session)?;
                    let is_new = !numbers.contains(record.seq);
                    if is_new {
                        *run = Some(Run {
                            first: record.seq,
                            last: record.seq,
                            known: numbers.after(record.seq),
                        });
                    }
                    is_new
                }
            },
            _ => {
                let row = Unsealed {
                    batch,
                    record,
                    no: 0,
                };
                let id = row.text(C::Id).unwrap_or_default();
                let no = first_no + new.len() as i64;
                transaction
                    .prepare_cached(
                        "INSERT INTO id_rows (id, no) VALUES (?, ?) ON CONFLICT DO NOTHING",
                    )?
                    .execute(params![id, no])?
                    == 1
            }
        };
        if is_new {
            new.push(index);
        }
    }
    for ((session, _), run) in places.iter().zip(runs) {
        if let Some(session) = session {
            settle(transaction, known, directory, *session, run)?;
        }
    }
    Ok((new.len() < batch.records.len()).then_some(new))
}

/// New numbers of a session that follow each other.
struct Run {
    first: u64,
    last: u64,
    /// The next number that is stored already.
    known: u64,
}

fn settle(
    transaction: &Transaction<'_>,
    known: &mut Known,
    directory: &std::path::Path,
    session: i64,
    run: Option<Run>,
) -> Result<(), StoreError> {
    if let Some(run) = run {
        numbers(transaction, known, directory, session)?.insert(run.first..=run.last);
    }
    Ok(())
}

/// The numbers of a session that are stored, read when it is first met.
fn numbers<'k>(
    transaction: &Transaction<'_>,
    known: &'k mut Known,
    directory: &std::path::Path,
    session: i64,
) -> Result<&'k mut crate::event::account::Numbers, StoreError> {
    Ok(match known.numbers.entry(session) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(unknown) => {
            check_segments(transaction, &mut known.intact, directory, session)?;
            unknown.insert(read::numbers(transaction, directory, session, false)?)
        }
    })
}

/// Checks the segments that hold events of a session: by what stands in them it is decided which events are new, and one that was
/// damaged would have them dropped.
fn check_segments(
    transaction: &Transaction<'_>,
    intact: &mut HashSet<i64>,
    directory: &std::path::Path,
    session: i64,
) -> Result<(), StoreError> {
    let mut statement =
        transaction.prepare_cached("SELECT DISTINCT segment FROM run_rows WHERE session = ?")?;
    let mut rows = statement.query([session])?;
    while let Some(row) = rows.next()? {
        let segment: i64 = row.get(0)?;
        if intact.contains(&segment) {
            continue;
        }
        let damaged = |why: String| StoreError::Damaged { segment, why };
        // Only what is so for good; that no more files can be opened, say, passes.
        let unread = |path: &std::path::Path, error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => damaged(format!("{}: {error}", path.display())),
            _ => StoreError::from(error),
        };
        let path = seal::manifest_path(directory, segment);
        let text = std::fs::read(&path).map_err(|error| unread(&path, error))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| damaged(format!("{}: {error}", path.display())))?;
        let path = segment::path(directory, segment);
        if chain::file(&path).map_err(|error| unread(&path, error))? != manifest.file {
            return Err(damaged(
                "its file is not the one that was signed".to_owned(),
            ));
        }
        intact.insert(segment);
    }
    Ok(())
}

fn refuse(
    transaction: &Transaction<'_>,
    row: &Unsealed<'_>,
    session: Option<i64>,
) -> Result<(), StoreError> {
    transaction.prepare_cached(REFUSAL)?.execute(params![
        row.no,
        row.text(C::Id),
        session,
        row.time(),
        row.number(C::Seq),
        row.kind().name(),
        row.verdict().name(),
        row.number(C::Errno),
        row.number(C::Count),
        row.text(C::RuleId),
        row.text(C::RuleLayer),
        row.text(C::RuleSource),
        row.number(C::Pid),
        row.number(C::Start),
        row.text(C::Exe),
        row.text(C::Argv),
        row.number(C::Uid),
        row.text(C::Cgroup),
        row.text(C::Path),
        row.text(C::Access),
        row.text(C::Addr),
        row.number(C::Port),
        row.text(C::Domain),
    ])?;
    Ok(())
}

fn record_lifecycle(
    transaction: &Transaction<'_>,
    row: &Unsealed<'_>,
    lifecycle: &Lifecycle,
    session: i64,
) -> Result<(), StoreError> {
    let (name, policy, mode) = (row.text(C::Session), row.text(C::Policy), row.text(C::Mode));
    let time = row.time();
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
                name,
                policy,
                mode,
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
        Lifecycle::Resumed { coverage } | Lifecycle::MountsChanged { coverage, .. } => {
            transaction
                .prepare_cached(
                    "UPDATE session_rows SET policy = ?, mode = ?, coverage = ? WHERE no = ?",
                )?
                .execute(params![policy, mode, coverage.name(), session])?;
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
