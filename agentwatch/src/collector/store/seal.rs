//! Sealing: what has gathered in the tail becomes a segment, in three steps of which each leaves a whole history behind.
//!
//! 1. The writer says what is to be sealed, which is then no longer changed by anyone.
//! 2. Anyone builds the segment and its manifest, beside the history.
//! 3. The writer enters the segment and takes its events out of the tail, in one transaction.
//!
//! A stop between 2 and 3 leaves files that nothing knows; they are removed at the next start.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::{
    Store, StoreError, account, columns::Unsealed, connect, hash::GROUP_ROWS, insert, read, segment,
};
use crate::{
    collector::chain::{self, Hash, Key, Manifest},
    event::Verdict,
    wire::batch::Batch,
};

/// Events of a segment.
pub const SEGMENT_EVENTS: usize = 1 << 17;
/// Events of one session that are a segment, whatever others there are: to wait for more of them would make nothing shorter and no answer
/// quicker, but take memory to seal.
const SESSION_EVENTS: usize = 1 << 13;
/// Bytes of batches that a segment is made of at the most, give or take one batch: they are in memory together.
const SEGMENT_BYTES: usize = 32 << 20;
/// What a manifest says of batches that were not as they had come.
const MOST_SAID: usize = 10;
/// What has waited for so long is sealed although it is less.
const OLDEST_UNSEALED: Duration = Duration::from_secs(6 * 3600);

/// How much is kept. Segments are the unit: one goes when all of it is too old, or when the whole is too large.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    pub age: Option<Duration>,
    pub bytes: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            age: Some(Duration::from_secs(90 * 24 * 3600)),
            bytes: Some(20 << 30),
        }
    }
}

/// What is to be sealed.
pub struct Order {
    directory: PathBuf,
    segment: i64,
    last_no: i64,
    previous: Hash,
}

/// A segment that is on disk and not yet known.
pub struct Sealed {
    segment: i64,
    first_no: i64,
    last_no: i64,
    events: usize,
    bytes: u64,
    times: (i64, i64),
    previous: Hash,
    link: Hash,
    runs: Vec<Run>,
}

/// Rows of one session on one boot, all refused or all allowed, which follow each other in the segment.
#[derive(Clone)]
struct Run {
    first_row: usize,
    rows: usize,
    session: String,
    boot: String,
    ktimes: (i64, i64),
    times: (i64, i64),
    kinds: u32,
    verdicts: u32,
}

impl Store {
    /// What is to be sealed now, if anything: a full segment, or with `all` what there is, a segment at a time.
    pub fn order(&self, all: bool) -> Result<Option<Order>, StoreError> {
        let old = self
            .known
            .unsealed_since
            .is_some_and(|since| since.elapsed() > OLDEST_UNSEALED);
        let is_full = |held: &super::Unsealed| {
            held.events >= self.segment_events
                || held.bytes >= SEGMENT_BYTES
                || held.longest >= SESSION_EVENTS
        };
        let unsealed = &self.known.unsealed;
        if unsealed.events == 0 || !(is_full(unsealed) || all || old) {
            return Ok(None);
        }
        let (mut held, mut last_no) = (super::Unsealed::default(), 0i64);
        insert::each_unsealed(&self.connection, |batch| {
            held.add(batch.events, batch.bytes, batch.sessions);
            last_no = batch.last_no;
            !is_full(&held)
        })?;
        let head = insert::head(&self.connection)?;
        Ok((held.events > 0).then(|| Order {
            directory: self.directory.clone(),
            segment: head.segment + 1,
            last_no,
            previous: head.link,
        }))
    }

    /// Enters a segment.
    pub fn enter(&mut self, sealed: &Sealed) -> Result<(), StoreError> {
        let head = insert::head(&self.connection)?;
        if sealed.segment != head.segment + 1 || sealed.previous != head.link {
            return Err(StoreError::Segment(format!(
                "segment {} was built for another history",
                sealed.segment
            )));
        }
        // Its events leave the tail for it.
        fs::metadata(segment::path(&self.directory, sealed.segment))?;
        let result = self.enter_in_one(sealed);
        // The head may have moved, and the tail is shorter.
        self.recount()?;
        result
    }

    fn enter_in_one(&mut self, sealed: &Sealed) -> Result<(), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute(
            "INSERT INTO segment_rows (no, first_no, last_no, events, bytes, min_time, max_time, link) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                sealed.segment,
                sealed.first_no,
                sealed.last_no,
                sealed.events,
                sealed.bytes,
                sealed.times.0,
                sealed.times.1,
                sealed.link
            ],
        )?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO run_rows (segment, first_row, rows, session, boot, min_ktime, max_ktime, min_time, max_time, kinds, verdicts)
                 VALUES (?, ?, ?, (SELECT no FROM session_rows WHERE id = ?), (SELECT no FROM boot_rows WHERE boot_id = ?), ?, ?, ?, ?, ?, ?)",
            )?;
            for run in &sealed.runs {
                insert.execute(params![
                    sealed.segment,
                    run.first_row,
                    run.rows,
                    run.session,
                    run.boot,
                    run.ktimes.0,
                    run.ktimes.1,
                    run.times.0,
                    run.times.1,
                    run.kinds,
                    run.verdicts
                ])?;
            }
        }
        transaction.execute("DELETE FROM tail_rows WHERE no <= ?", [sealed.last_no])?;
        let mut head = insert::head(&transaction)?;
        head.segment = sealed.segment;
        head.link = sealed.link;
        self.key.sign_head(&mut head);
        insert::write_head(&transaction, &head)?;
        transaction.commit()?;
        self.known.head = Some(head);
        Ok(())
    }

    /// Seals everything at once; for tests, and before an export.
    pub fn seal_all(&mut self) -> Result<(), StoreError> {
        let mut sealer = Sealer::new(self.key())?;
        while let Some(order) = self.order(true)? {
            let sealed = sealer.build(&order)?;
            self.enter(&sealed)?;
        }
        Ok(())
    }

    /// Lets go of what is older, or more, than what is to be kept; returns how many segments went.
    pub fn retain(&mut self, retention: &Retention) -> Result<usize, StoreError> {
        let now = crate::wire::batch::nanoseconds(Timestamp::now());
        let mut gone = 0;
        loop {
            let oldest: Option<(i64, i64, i64)> = self
                .connection
                .query_row(
                    "SELECT no, max_time, last_no FROM segment_rows ORDER BY no LIMIT 1",
                    [],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
                )
                .optional()?;
            let Some((segment, max_time, last_no)) = oldest else {
                return Ok(gone);
            };
            let age = retention
                .age
                .map(|age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX));
            let reason = if age.is_some_and(|age| now.saturating_sub(max_time) > age) {
                "age"
            } else if retention.bytes.is_some_and(|most| {
                read::kept(&self.connection, most).is_ok_and(|held| held > most)
            }) {
                "size"
            } else {
                return Ok(gone);
            };
            self.retire(segment, last_no, reason)?;
            gone += 1;
        }
    }

    fn retire(&mut self, segment: i64, last_no: i64, reason: &str) -> Result<(), StoreError> {
        // The signed note comes first, so that nobody sees a segment missing without a word.
        let manifest_path = manifest_path(&self.directory, segment);
        match read_manifest(&manifest_path) {
            Ok(manifest) => {
                let retired = self.key.retire(&manifest, reason);
                chain::write_through(&manifest_path, &json(&retired))?;
            }
            Err(error) => {
                tracing::error!(
                    segment,
                    error = error.to_string(),
                    "the manifest of a segment that is too old cannot be read"
                );
            }
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        account::let_go(&transaction, &self.directory, segment)?;
        transaction.execute("DELETE FROM segment_rows WHERE no = ?", [segment])?;
        transaction.execute("DELETE FROM run_rows WHERE segment = ?", [segment])?;
        transaction.execute("DELETE FROM refusal_rows WHERE no <= ?", [last_no])?;
        transaction.execute("DELETE FROM id_rows WHERE no <= ?", [last_no])?;
        forget_sessions(&transaction)?;
        transaction.commit()?;
        match fs::remove_file(segment::path(&self.directory, segment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.known.forget();
        self.recount()?;
        tracing::info!(segment, reason, "a segment was retired");
        Ok(())
    }

    /// Removes what a stop in the midst of sealing left, and says what of the history is not there, and what is and is not known.
    pub(super) fn tidy(&self) -> Result<Tidied, StoreError> {
        let directory = self.directory.join(segment::DIRECTORY);
        fs::create_dir_all(&directory)?;
        let last: i64 = self.connection.query_row(
            "SELECT coalesce(max(no), 0) FROM segment_rows",
            [],
            |row| row.get(0),
        )?;
        let head = insert::head(&self.connection)?;
        let known = head.segment.max(last);
        let mut tidied = Tidied::default();
        let next = self.left(known + 1, &head)?;
        for entry in fs::read_dir(&directory)?.flatten() {
            let path = entry.path();
            let number: Option<i64> = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| stem.split('.').next())
                .and_then(|stem| stem.parse().ok());
            let half = path.extension().is_some_and(|extension| extension == "tmp");
            let is_beyond = number.is_some_and(|number| number > known);
            let is_next = number == Some(known + 1);
            if half || (is_next && next == Some(Left::InTail)) {
                tracing::info!(file = %path.display(), "removed what was left of a sealing that did not end; its events are in the tail");
                fs::remove_file(&path)?;
            } else if is_next && next == Some(Left::Unfinished) {
                tidied.unfinished.push(path);
            } else if is_beyond {
                tidied.unknown.push(path);
            }
        }
        let mut statement = self
            .connection
            .prepare("SELECT no, bytes FROM segment_rows ORDER BY no")?;
        let known: Vec<(i64, u64)> = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        tidied.missing = known
            .into_iter()
            .filter(|(no, bytes)| {
                fs::metadata(segment::path(&self.directory, *no))
                    .map_or(true, |found| found.len() != *bytes)
            })
            .map(|(no, _)| no)
            .collect();
        Ok(tidied)
    }

    /// What a segment is that was not entered; `None` where its events are not in the tail.
    fn left(&self, segment: i64, head: &chain::Head) -> Result<Option<Left>, StoreError> {
        let (first, last): (Option<i64>, Option<i64>) = self.connection.query_row(
            "SELECT min(no), max(no + events - 1) FROM tail_rows",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let Some((first, last)) = first.zip(last) else {
            return Ok(None);
        };
        let text = match fs::read(manifest_path(&self.directory, segment)) {
            Ok(text) => text,
            // The segment is written before it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Left::InTail)),
            Err(error) => return Err(error.into()),
        };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) else {
            return Ok(Some(Left::Unfinished));
        };
        let is_in_tail = manifest.previous == head.link
            && manifest.first_no >= first
            && manifest.last_no <= last;
        Ok(is_in_tail.then_some(Left::InTail))
    }
}

/// What a sealing left that did not end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    /// All that it holds is in the tail.
    InTail,
    /// Its manifest cannot be read.
    Unfinished,
}

/// What is not as the tables say.
#[derive(Default)]
pub(super) struct Tidied {
    /// Segments that are gone, or have another length.
    pub missing: Vec<i64>,
    /// Files of segments that the tables know nothing of.
    pub unknown: Vec<PathBuf>,
    /// Files of a sealing that did not end, which cannot be read.
    pub unfinished: Vec<PathBuf>,
}

/// Forgets the sessions of which nothing is left, with their roll-ups, unless they live.
fn forget_sessions(transaction: &Connection) -> Result<(), StoreError> {
    let mut unsealed: HashSet<i64> = HashSet::new();
    let mut statement = transaction.prepare("SELECT sessions FROM tail_rows")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let held: Vec<u8> = row.get(0)?;
        unsealed.extend(insert::sessions_of(&held));
    }
    let mut statement = transaction.prepare(
        "SELECT no FROM session_rows s
         WHERE NOT EXISTS (SELECT 1 FROM run_rows r WHERE r.session = s.no)
           AND (s.ended_ns IS NOT NULL OR s.boot <> (SELECT no FROM boot_rows ORDER BY opened DESC LIMIT 1))",
    )?;
    let ended: Vec<i64> = statement
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for session in ended {
        if !unsealed.contains(&session) {
            for table in ["destination_rows", "let_go_rows", "let_go_fold_rows"] {
                transaction
                    .execute(&format!("DELETE FROM {table} WHERE session = ?"), [session])?;
            }
            transaction.execute("DELETE FROM session_rows WHERE no = ?", [session])?;
        }
    }
    Ok(())
}

/// What builds segments.
pub struct Sealer {
    key: Arc<Key>,
    writer: segment::Writer,
}

impl Sealer {
    pub fn new(key: Arc<Key>) -> Result<Self, StoreError> {
        Ok(Self {
            key,
            writer: segment::Writer::new()?,
        })
    }

    /// Builds the segment of an order.
    pub fn build(&mut self, order: &Order) -> Result<Sealed, StoreError> {
        let connection = connect::bare(&order.directory)?;
        let waiting = Waiting::read(&connection, order.last_no)?;
        let before = (order.segment > 1)
            .then(|| read_manifest(&manifest_path(&order.directory, order.segment - 1)).ok());
        let broken = waiting.objections(before.flatten().as_ref(), order);
        if let Some(broken) = &broken {
            tracing::error!(
                segment = order.segment,
                broken,
                "what is being sealed is not what had come; the segment's manifest says so, and so does agentwatch verify"
            );
        }
        let batches: Vec<(i64, Batch<'_>)> = waiting
            .batches
            .iter()
            .map(|batch| {
                let decoded = Batch::decode(&batch.frame).map_err(|error| {
                    StoreError::Corrupt(format!("a batch of the tail: {error}"))
                })?;
                Ok((batch.no, decoded))
            })
            .collect::<Result<_, StoreError>>()?;
        let (rows, runs) = ordered(&batches);
        let (Some(first_no), events) = (batches.first().map(|(no, _)| *no), rows.len()) else {
            return Err(StoreError::Corrupt(
                "what was to be sealed is gone".to_owned(),
            ));
        };
        let path = segment::path(&order.directory, order.segment);
        let groups = self.writer.write(&path, &rows)?;
        let mut manifest = Manifest {
            v: chain::VERSION,
            segment: order.segment,
            first_no,
            last_no: order.last_no,
            rows: events as u64,
            sealed: Timestamp::now(),
            file: chain::file(&path)?,
            group_rows: GROUP_ROWS,
            groups_hash: chain::hash_of_groups(&groups),
            groups,
            previous: order.previous,
            tail: waiting
                .batches
                .last()
                .map_or(chain::GENESIS, |batch| batch.hash),
            broken,
            link: chain::GENESIS,
            key: chain::GENESIS,
            signature: String::new(),
            retired: None,
        };
        self.key.seal(&mut manifest);
        chain::write_through(
            &manifest_path(&order.directory, order.segment),
            &json(&manifest),
        )?;
        let bounds = |get: fn(&Run) -> (i64, i64)| {
            runs.iter().map(get).fold((i64::MAX, i64::MIN), |all, run| {
                (all.0.min(run.0), all.1.max(run.1))
            })
        };
        Ok(Sealed {
            segment: order.segment,
            first_no,
            last_no: order.last_no,
            events,
            bytes: fs::metadata(&path)?.len(),
            times: bounds(|run| run.times),
            previous: order.previous,
            link: manifest.link,
            runs,
        })
    }
}

/// The path of a segment's manifest.
pub(super) fn manifest_path(directory: &Path, segment: i64) -> PathBuf {
    segment::path(directory, segment).with_extension("json")
}

/// Reads a manifest.
pub(super) fn read_manifest(path: &Path) -> Result<Manifest, StoreError> {
    let text = fs::read(path)
        .map_err(|error| StoreError::Segment(format!("{}: {error}", path.display())))?;
    serde_json::from_slice(&text)
        .map_err(|error| StoreError::Segment(format!("{}: {error}", path.display())))
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain types always serialise")
}

/// A batch of the tail, as it is stored.
struct Stored {
    no: i64,
    events: i64,
    previous: Hash,
    hash: Hash,
    frame: Vec<u8>,
}

/// A hash as it is stored. Whatever else somebody has written there is none that follows from anything.
pub(super) fn hash_in(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Hash> {
    Ok(Hash::try_from(bytes_in(row, column)?).unwrap_or([0xff; 32]))
}

/// What is stored as bytes, of whatever type somebody has made it.
pub(super) fn bytes_in<'r>(
    row: &'r rusqlite::Row<'_>,
    column: usize,
) -> rusqlite::Result<&'r [u8]> {
    use rusqlite::types::ValueRef;
    Ok(match row.get_ref(column)? {
        ValueRef::Blob(bytes) | ValueRef::Text(bytes) => bytes,
        _ => &[],
    })
}

/// What is to be sealed, and what stands after it.
struct Waiting {
    batches: Vec<Stored>,
    /// What goes on from the last of them: the next batch, or the end of the chain.
    goes_on_from: Hash,
}

impl Waiting {
    fn read(connection: &Connection, last_no: i64) -> Result<Self, StoreError> {
        let transaction = connection.unchecked_transaction()?;
        let mut statement = transaction.prepare(
            "SELECT no, events, previous, hash, frame FROM tail_rows WHERE no <= ? ORDER BY no",
        )?;
        let rows = statement.query_map([last_no], |row| {
            Ok(Stored {
                no: row.get(0)?,
                events: row.get(1)?,
                previous: hash_in(row, 2)?,
                hash: hash_in(row, 3)?,
                frame: bytes_in(row, 4)?.to_vec(),
            })
        })?;
        let batches = rows.collect::<Result<_, _>>()?;
        let next: Option<Hash> = transaction
            .query_row(
                "SELECT previous FROM tail_rows WHERE no > ? ORDER BY no LIMIT 1",
                [last_no],
                |row| hash_in(row, 0),
            )
            .optional()?;
        let goes_on_from = match next {
            Some(previous) => previous,
            None => insert::head(&transaction)?.tail,
        };
        Ok(Self {
            batches,
            goes_on_from,
        })
    }

    /// What of the batches is not as it came, after the segment before them, where that is known.
    fn objections(&self, before: Option<&Manifest>, order: &Order) -> Option<String> {
        let (mut next, mut hash) = match before {
            Some(before) => (Some(before.last_no.saturating_add(1)), Some(before.tail)),
            None if order.segment == 1 => (Some(1), Some(chain::GENESIS)),
            None => (None, None),
        };
        let mut said = Vec::new();
        for batch in &self.batches {
            let last = batch.no + batch.events - 1;
            let named = format!("the batch of events {} to {last}", batch.no);
            if let Some(next) = next
                && next != batch.no
            {
                said.push(format!("events {next} to {} were gone", batch.no - 1));
            }
            if hash.is_some_and(|hash| hash != batch.previous) {
                said.push(format!("{named} did not follow the one before it"));
            }
            if chain::batch(&batch.previous, &batch.frame) != batch.hash {
                said.push(format!("{named} was changed"));
            }
            (next, hash) = (Some(last + 1), Some(batch.hash));
        }
        if next.is_some_and(|next| next != order.last_no.saturating_add(1))
            || hash.is_some_and(|hash| hash != self.goes_on_from)
        {
            said.push(format!(
                "what stood after event {} does not go on from it",
                next.unwrap_or(1) - 1
            ));
        }
        let more = said.len().saturating_sub(MOST_SAID);
        said.truncate(MOST_SAID);
        if more > 0 {
            said.push(format!("and {more} more"));
        }
        (!said.is_empty()).then(|| said.join("; "))
    }
}

/// Where a record is in its order: its kernel time and number, then its batch and place in it.
type Place = (i64, i64, u32, u32);

/// All records: first those that were refused, then the others, each by session, boot, kernel time and number; and the runs of
/// rows that this makes.
fn ordered<'a>(batches: &'a [(i64, Batch<'a>)]) -> (Vec<Unsealed<'a>>, Vec<Run>) {
    let mut ranks: HashMap<(&str, &str), usize> = HashMap::new();
    // By rank, what is refused and what is allowed: told while the records are met as they lie in memory. Each mostly comes in
    // its order.
    let mut runs: Vec<[(Run, Vec<Place>); 2]> = Vec::new();
    for (place, (first, batch)) in batches.iter().enumerate() {
        let own: Vec<usize> = batch
            .sessions
            .iter()
            .map(|session| {
                let text = |index| batch.text(index).unwrap_or_default();
                let (id, boot) = (text(session.id), text(session.boot_id));
                *ranks.entry((id, boot)).or_insert_with(|| {
                    runs.push([(); 2].map(|()| (Run::none(id, boot), Vec::new())));
                    runs.len() - 1
                })
            })
            .collect();
        for (index, record) in batch.records.iter().enumerate() {
            let no = first + index as i64;
            let row = Unsealed { batch, record, no };
            // Checked when the batch was read.
            let rank = own.get(record.session as usize);
            let Some(runs) = rank.and_then(|rank| runs.get_mut(*rank)) else {
                continue;
            };
            let (run, places) = &mut runs[usize::from(row.verdict() == Verdict::Allowed)];
            run.add(&row);
            places.push((row.ktime(), no, place as u32, index as u32));
        }
    }
    let mut rows = Vec::with_capacity(runs.iter().flatten().map(|(run, _)| run.rows).sum());
    let mut told: Vec<Run> = Vec::new();
    for allowed in [false, true] {
        for runs in &mut runs {
            let (run, places) = &mut runs[usize::from(allowed)];
            if run.rows == 0 {
                continue;
            }
            places.sort_unstable();
            told.push(Run {
                first_row: rows.len(),
                ..run.clone()
            });
            rows.extend(places.drain(..).filter_map(|(_, no, place, index)| {
                let (_, batch) = batches.get(place as usize)?;
                let record = batch.records.get(index as usize)?;
                Some(Unsealed { batch, record, no })
            }));
        }
    }
    (rows, told)
}

impl Run {
    fn none(session: &str, boot: &str) -> Self {
        Self {
            first_row: 0,
            rows: 0,
            session: session.to_owned(),
            boot: boot.to_owned(),
            ktimes: (i64::MAX, i64::MIN),
            times: (i64::MAX, i64::MIN),
            kinds: 0,
            verdicts: 0,
        }
    }

    fn add(&mut self, row: &Unsealed<'_>) {
        let within = |all: (i64, i64), one: i64| (all.0.min(one), all.1.max(one));
        self.rows += 1;
        self.ktimes = within(self.ktimes, row.ktime());
        self.times = within(self.times, row.time());
        self.kinds |= 1 << row.record.kind;
        self.verdicts |= 1 << row.record.verdict;
    }
}
