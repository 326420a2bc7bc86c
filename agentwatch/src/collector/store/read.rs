//! Reading events and sessions, a page at a time.
//!
//! Events are read in windows: the keys of what a question asks for, from segments and tail, in their order, and the
//! rows of the first thousands, which become packed batches without becoming events. No read transaction outlives a window, so a slow asker holds neither the log back nor
//! more than a window in memory; a [`Scan`] remembers where the next one begins, and sealing in between changes nothing. What an asker
//! may see is part of every window.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use jiff::fmt::temporal::DateTimePrinter;
use rusqlite::{Connection, OpenFlags, Row as SqlRow, functions::FunctionFlags, types::Value};
use serde::de::DeserializeOwned;

use super::{
    BUSY, FILE, StoreError,
    columns::{ALL, C, Packing, Row as _, Unsealed},
    segment::{self, Segment},
    table,
};
use crate::{
    event::{
        account::Numbers,
        model::{Coverage, Event, Kind, Mode, Verdict},
    },
    wire::{
        batch::{Batch, Record, Tables, nanoseconds, timestamp, unpack},
        collector::{Filter, SessionRow, StoreStatus},
    },
};

/// Most sessions in a page.
const PAGE_ROWS: usize = 500;
/// Most events in a page; few in tests, which go over the ends of pages and windows.
const PAGE_EVENTS: usize = if cfg!(test) { 500 } else { 2048 };
/// A page ends before what would bring it beyond this, in bytes, estimated. A larger one makes a page of its own.
const PAGE_BYTES: usize = 1 << 20;
/// Events of a window: getting at the first costs as much as some thousands do.
const WINDOW: usize = if cfg!(test) { 1000 } else { 16384 };
/// And their bytes, about.
const WINDOW_BYTES: usize = 16 << 20;
/// Rows that are held as columns at once.
const MATERIAL: usize = 8192;

/// What an asker may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// Everything: root and the collector's own user.
    All,
    /// The sessions of one user.
    User(u32),
}

/// A connection that reads.
pub struct Reader {
    pub(super) connection: Connection,
    pub(super) viewer: Viewer,
    pub(super) directory: PathBuf,
}

/// A walk over the events that a filter selects, in the order of kernel time within each boot.
pub struct Scan {
    wanted: Wanted,
    /// Boots still to walk, the next one last.
    boots: Vec<i64>,
    /// What the walk has passed in the boot that it is in.
    passed: Key,
    /// Events with a larger number came after the question and are not part of the walk.
    until: i64,
    window: VecDeque<Bytes>,
    /// Whether the window reaches the end of its boot.
    complete: bool,
}

/// What a filter asks for.
#[derive(Clone, Debug)]
struct Wanted {
    session: Option<i64>,
    since_ns: Option<i64>,
    kinds: u32,
    verdicts: u32,
}

impl Wanted {
    fn new(filter: &Filter, session: Option<i64>) -> Self {
        let all = |mask: u32| if mask == 0 { u32::MAX } else { mask };
        Self {
            session,
            since_ns: filter.since.map(nanoseconds),
            kinds: all(filter
                .kinds
                .iter()
                .fold(0, |mask, kind| mask | 1 << *kind as u32)),
            verdicts: all(filter
                .verdicts
                .iter()
                .fold(0, |mask, verdict| mask | 1 << *verdict as u32)),
        }
    }
}

/// The place of an event in the order of a walk: kernel time, sequence number, number.
type Key = (i64, i64, i64);

const BEFORE_ALL: Key = (i64::MIN, i64::MIN, i64::MIN);

/// Events in the order of their numbers.
pub(super) struct Arrived {
    pub(super) events: Vec<(i64, Event)>,
    /// Up to this number, `events` is all that is wanted.
    pub(super) upto: i64,
    /// Numbers up to there that are not in the history any more: first and last of each run.
    pub(super) gaps: Vec<(i64, i64)>,
}

/// Some events, packed.
pub struct Page {
    /// A batch; `None` where there is no event.
    pub events: Option<Bytes>,
    /// Whether nothing follows.
    pub last: bool,
}

#[cfg(test)]
impl Page {
    pub(super) fn unpacked(&self) -> Vec<Event> {
        self.events
            .as_deref()
            .map_or_else(Vec::new, |events| unpack(events).expect("a batch"))
    }
}

impl Reader {
    /// Opens the history below `directory` for what `viewer` may see.
    pub fn open(directory: &Path, viewer: Viewer) -> Result<Self, StoreError> {
        Ok(Self {
            connection: connect(directory, Arc::new(|| false))?,
            viewer,
            directory: directory.to_owned(),
        })
    }

    /// As [`Reader::open`], for who sees everything and asks no SQL.
    pub(super) fn open_bare(directory: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            connection: connect_bare(directory)?,
            viewer: Viewer::All,
            directory: directory.to_owned(),
        })
    }

    /// Begins a walk over the events that are stored now.
    pub fn scan(&self, filter: &Filter) -> Result<Scan, StoreError> {
        let session = filter
            .session
            .as_deref()
            .map(|wanted| self.resolve(wanted))
            .transpose()?;
        let mut statement = self
            .connection
            .prepare("SELECT no FROM boot_rows ORDER BY max_offset DESC, no DESC")?;
        let boots = statement
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        Ok(Scan {
            wanted: Wanted::new(filter, session),
            boots,
            passed: BEFORE_ALL,
            until: newest(&self.connection)?,
            window: VecDeque::new(),
            complete: false,
        })
    }

    /// The next events of a walk.
    pub fn page(&self, scan: &mut Scan) -> Result<Page, StoreError> {
        while scan.window.is_empty()
            && let Some(boot) = scan.boots.last().copied()
        {
            if scan.complete {
                scan.boots.pop();
                (scan.passed, scan.complete) = (BEFORE_ALL, false);
                continue;
            }
            let part = Part {
                boot: Some(boot),
                after: scan.passed,
                numbers: (1, scan.until),
            };
            let window = self.window(&scan.wanted, &part)?;
            scan.complete = window.last.is_none();
            scan.passed = window.last.unwrap_or(scan.passed);
            scan.window = window.pages();
        }
        let events = scan.window.pop_front();
        if scan.window.is_empty() && scan.complete {
            scan.boots.pop();
            (scan.passed, scan.complete) = (BEFORE_ALL, false);
        }
        Ok(Page {
            events,
            last: scan.window.is_empty() && scan.boots.is_empty(),
        })
    }

    /// Events that were stored after the walk, or after the last call, in the order in which they came. `last` says
    /// that there are no more for now.
    pub fn newer(&self, scan: &mut Scan) -> Result<Page, StoreError> {
        if scan.window.is_empty() {
            let newest = newest(&self.connection)?;
            let part = Part {
                boot: None,
                after: (scan.until, i64::MAX, i64::MAX),
                numbers: (scan.until + 1, newest),
            };
            let window = self.window(&scan.wanted, &part)?;
            scan.until = window.last.map_or(newest, |(no, ..)| no);
            scan.complete = window.last.is_none();
            scan.window = window.pages();
        }
        let events = scan.window.pop_front();
        Ok(Page {
            events,
            last: scan.window.is_empty() && scan.complete,
        })
    }

    /// Events with numbers above `after` and up to `newest`, in their order, some thousands at the most.
    pub(super) fn arrived(
        &self,
        filter: &Filter,
        after: i64,
        newest: i64,
    ) -> Result<Arrived, StoreError> {
        let part = Part {
            boot: None,
            after: (after, i64::MAX, i64::MAX),
            numbers: (after + 1, newest),
        };
        let window = self.window(&Wanted::new(filter, None), &part)?;
        let upto = window.last.map_or(newest, |(no, ..)| no);
        let gaps = window.gaps.iter();
        let gaps = gaps
            .map(|(first, last)| (*first, upto.min(*last)))
            .filter(|(first, last)| first <= last)
            .collect();
        Ok(Arrived {
            events: window.events()?,
            upto,
            gaps,
        })
    }

    /// Sessions, newest first, that are older than the one whose number is `before`. The second value is the number
    /// to go on from, `None` at the end.
    pub fn sessions(
        &self,
        before: Option<i64>,
    ) -> Result<(Vec<SessionRow>, Option<i64>), StoreError> {
        let (visible, mut values) = visible(self.viewer, "uid");
        let sql = format!(
            "SELECT {SESSION_COLUMNS} FROM sessions WHERE no < ? {visible} ORDER BY no DESC LIMIT {PAGE_ROWS}"
        );
        values.insert(0, Value::Integer(before.unwrap_or(i64::MAX)));
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values))?;
        let (mut sessions, mut bytes, mut next) = (Vec::new(), 0, None);
        while let Some(row) = rows.next()? {
            let session = session_row(row)?;
            // What has no fixed size in a row; the rest is some hundred bytes.
            bytes += session
                .command
                .iter()
                .chain(&session.missing)
                .map(|text| text.len() + 8)
                .sum::<usize>()
                + 512;
            if !sessions.is_empty() && bytes > PAGE_BYTES {
                return Ok((sessions, next));
            }
            next = Some(row.get("no")?);
            sessions.push(session);
        }
        if sessions.len() < PAGE_ROWS {
            next = None;
        }
        Ok((sessions, next))
    }

    /// The one session that `wanted` names.
    pub fn session(&self, wanted: &str) -> Result<SessionRow, StoreError> {
        let no = self.resolve(wanted)?;
        let sql = format!("SELECT {SESSION_COLUMNS} FROM sessions WHERE no = ?");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([no])?;
        match rows.next()? {
            Some(row) => session_row(row),
            None => Err(unknown_session(wanted)),
        }
    }

    /// Figures about the store.
    pub fn status(&self) -> Result<StoreStatus, StoreError> {
        let count = |sql: &str| -> Result<u64, StoreError> {
            Ok(self.connection.query_row(sql, [], |row| row.get(0))?)
        };
        let unsealed = count("SELECT coalesce(sum(events), 0) FROM tail_rows")?;
        Ok(StoreStatus {
            events: unsealed + count("SELECT coalesce(sum(events), 0) FROM segment_rows")?,
            sessions: count("SELECT count(*) FROM session_rows")?,
            bytes: bytes(&self.connection)?,
            segments: count("SELECT count(*) FROM segment_rows")?,
            unsealed,
            schema_version: super::SCHEMA_VERSION,
            sinks: Vec::new(),
        })
    }

    /// A session by its id, by a beginning of one that no other has, or by name (then the newest).
    fn resolve(&self, wanted: &str) -> Result<i64, StoreError> {
        if wanted.is_empty() {
            return Err(StoreError::Question(
                "a session's id or name is needed".to_owned(),
            ));
        }
        let (visible, restriction) = visible(self.viewer, "uid");
        let ask = |condition: &str, values: Vec<Value>| -> Result<Vec<i64>, StoreError> {
            let sql = format!(
                "SELECT no FROM session_rows WHERE {condition} {visible} ORDER BY no DESC LIMIT 2"
            );
            let all = values.into_iter().chain(restriction.iter().cloned());
            let mut statement = self.connection.prepare(&sql)?;
            let found = statement.query_map(rusqlite::params_from_iter(all), |row| row.get(0))?;
            Ok(found.collect::<Result<_, _>>()?)
        };
        let text = || Value::Text(wanted.to_owned());
        if let Some(no) = ask("id = ?", vec![text()])?.first() {
            return Ok(*no);
        }
        if let Some(no) = ask("name = ?", vec![text()])?.first() {
            return Ok(*no);
        }
        match ask("substr(id, 1, length(?)) = ?", vec![text(), text()])?.as_slice() {
            [] => Err(unknown_session(wanted)),
            [no] => Ok(*no),
            _ => Err(StoreError::Question(format!(
                "several sessions have an id that begins with {wanted:?}: give more of it"
            ))),
        }
    }

    /// The next window of a part.
    fn window(&self, wanted: &Wanted, part: &Part) -> Result<Window, StoreError> {
        // One transaction, so that an event that is sealed meanwhile is in one of the lists and not in both, and its batch is there.
        let transaction = self.connection.unchecked_transaction()?;
        let visible = self.visible_sessions(wanted)?;
        let runs = runs(&transaction, wanted, part, visible.as_ref())?;
        let mut found = tail_keys(&transaction, wanted, part, visible.as_ref())?;
        let gaps = match part.boot {
            Some(_) => Vec::new(),
            None => gaps(&transaction, part.numbers)?,
        };
        let mut cut = None;
        let mut opened: Vec<Segment> = Vec::new();
        for (index, (no, of_segment)) in runs.iter().enumerate() {
            // Runs come by their earliest event, so once there is a window's worth before that, the rest is for later.
            if let Some(next) = of_segment.iter().map(|run| run.earliest(part)).min()
                && found.iter().filter(|found| found.key.0 < next).count() >= WINDOW
            {
                cut = Some(index);
                break;
            }
            let segment = Segment::open(&segment::path(&self.directory, *no))?;
            segment_keys(&segment, opened.len(), of_segment, wanted, part, &mut found)?;
            opened.push(segment);
            if found.len() > 4 * WINDOW {
                found.sort_unstable_by_key(|found| found.key);
            }
        }
        found.sort_unstable_by_key(|found| found.key);
        let mut more = found.len() > WINDOW || cut.is_some();
        found.truncate(WINDOW);
        // So much that it cannot all be held: the window is made shorter, and the rest is for the next one.
        let mut most = WINDOW_BYTES;
        let (tables, records) = loop {
            if let Some(made) = materialise(&transaction, &found, &opened, most)? {
                break made;
            }
            more = true;
            found.truncate((found.len() / 2).max(1));
            if found.len() == 1 {
                most = usize::MAX;
            }
        };
        transaction.finish()?;
        let keys: Vec<Key> = found.iter().map(|found| found.key).collect();
        Ok(Window {
            last: keys.last().copied().filter(|_| more),
            keys,
            tables,
            records,
            gaps,
        })
    }

    /// The sessions that the viewer may see, `None` for all.
    fn visible_sessions(&self, wanted: &Wanted) -> Result<Option<HashSet<i64>>, StoreError> {
        let sessions = match (wanted.session, self.viewer) {
            // Who may not see it was told so when the session was looked up.
            (Some(session), _) => [session].into(),
            (None, Viewer::All) => return Ok(None),
            (None, Viewer::User(uid)) => {
                let mut statement = self
                    .connection
                    .prepare_cached("SELECT no FROM session_rows WHERE uid = ?")?;
                let found = statement.query_map([uid], |row| row.get(0))?;
                found.collect::<Result<_, _>>()?
            }
        };
        Ok(Some(sessions))
    }
}

/// Some events of a part.
struct Window {
    keys: Vec<Key>,
    tables: Tables,
    /// One for each key.
    records: Vec<Record>,
    /// The key of the last one, where more may follow.
    last: Option<Key>,
    /// Numbers of a part in the order of arrival that are not in the history any more: first and last of each run.
    gaps: Vec<(i64, i64)>,
}

impl Window {
    /// As batches that an asker can take.
    fn pages(&self) -> VecDeque<Bytes> {
        let mut pages = VecDeque::new();
        let mut rest = self.records.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(PAGE_EVENTS).take_while(|record| {
                bytes += self.tables.weight(record);
                bytes <= PAGE_BYTES
            });
            let (page, later) = rest.split_at(fits.count().max(1));
            pages.push_back(self.tables.pack(page).into());
            rest = later;
        }
        pages
    }

    /// With their numbers, where the part is in the order of arrival.
    fn events(&self) -> Result<Vec<(i64, Event)>, StoreError> {
        let mut events = Vec::with_capacity(self.records.len());
        let mut numbers = self.keys.iter().map(|(no, ..)| *no);
        for records in self.records.chunks(PAGE_EVENTS) {
            let unpacked = unpack(&self.tables.pack(records)).map_err(|error| {
                StoreError::Segment(format!("an event of the history is not one: {error}"))
            })?;
            events.extend(numbers.by_ref().zip(unpacked));
        }
        Ok(events)
    }
}

/// The records of keys in their order; `None` where they would take more than `most` bytes.
fn materialise(
    connection: &Connection,
    found: &[Found],
    opened: &[Segment],
    most: usize,
) -> Result<Option<(Tables, Vec<Record>)>, StoreError> {
    let mut tables = Tables::default();
    let mut made: Vec<Option<Record>> = Vec::new();
    made.resize_with(found.len(), || None);
    let mut of_segments: Vec<Vec<(u32, usize)>> = vec![Vec::new(); opened.len()];
    let mut of_tail: BTreeMap<i64, Vec<(u32, usize)>> = BTreeMap::new();
    for (at, found) in found.iter().enumerate() {
        match found.place {
            Place::Sealed { segment, row } => {
                if let Some(rows) = of_segments.get_mut(segment) {
                    rows.push((row, at));
                }
            }
            Place::Unsealed { batch, index } => of_tail.entry(batch).or_default().push((index, at)),
        }
    }
    // One segment after the other, so that only one is in memory as columns.
    for (segment, mut rows) in opened.iter().zip(of_segments) {
        rows.sort_unstable();
        for rows in rows.chunks(MATERIAL) {
            let numbers: Vec<u32> = rows.iter().map(|(row, _)| *row).collect();
            let chunk = segment.read(ALL, &numbers)?;
            let mut packing = Packing::new(&mut tables);
            for (place, (_, at)) in rows.iter().enumerate() {
                let record = packing.record(&chunk.row(place)).map_err(|error| {
                    let no = chunk.row(place).number(C::No).unwrap_or_default();
                    StoreError::Segment(format!("event {no} is not one: {error}"))
                })?;
                if let Some(slot) = made.get_mut(*at) {
                    *slot = Some(record);
                }
            }
            if tables.bytes() > most {
                return Ok(None);
            }
        }
    }
    let mut statement = connection.prepare_cached("SELECT frame FROM tail_rows WHERE no = ?")?;
    for (no, rows) in of_tail {
        let mut found = statement.query([no])?;
        let Some(row) = found.next()? else { continue };
        let frame = row
            .get_ref(0)?
            .as_blob()
            .map_err(|error| StoreError::Corrupt(error.to_string()))?;
        let batch = Batch::decode(frame)
            .map_err(|error| StoreError::Corrupt(format!("a batch of the tail: {error}")))?;
        for (index, at) in rows {
            if let (Some(record), Some(slot)) =
                (batch.records.get(index as usize), made.get_mut(at))
            {
                *slot = Some(tables.take(&batch, record));
            }
        }
        if tables.bytes() > most {
            return Ok(None);
        }
    }
    let made: Option<Vec<Record>> = made.into_iter().collect();
    let made = made.ok_or_else(|| {
        StoreError::Corrupt("an event is gone in the middle of a question".to_owned())
    })?;
    Ok(Some((tables, made)))
}

/// Which part of the events a window is of.
struct Part {
    /// A boot, in the order of kernel time; `None` is all boots in the order of arrival.
    boot: Option<i64>,
    after: Key,
    /// First and last number.
    numbers: (i64, i64),
}

impl Part {
    fn key(&self, ktime: i64, seq: i64, no: i64) -> Key {
        match self.boot {
            Some(_) => (ktime, seq, no),
            None => (no, 0, 0),
        }
    }
}

/// An event that was found.
struct Found {
    key: Key,
    place: Place,
}

enum Place {
    Sealed {
        segment: usize,
        row: u32,
    },
    /// In the batch that begins with this number.
    Unsealed {
        batch: i64,
        index: u32,
    },
}

/// Rows of one session in a segment.
pub(super) struct Run {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    min_ktime: i64,
    first_no: i64,
}

impl Run {
    fn earliest(&self, part: &Part) -> i64 {
        match part.boot {
            Some(_) => self.min_ktime,
            None => self.first_no,
        }
    }
}

/// The runs that may hold what is wanted, by segment, the segment with the earliest event first.
fn runs(
    connection: &Connection,
    wanted: &Wanted,
    part: &Part,
    visible: Option<&HashSet<i64>>,
) -> Result<Vec<(i64, Vec<Run>)>, StoreError> {
    let (ktime, boot) = match part.boot {
        Some(boot) => (part.after.0, boot),
        None => (i64::MIN, 0),
    };
    let session = match visible {
        Some(visible) if visible.len() == 1 => visible.iter().next().copied(),
        _ => None,
    };
    // Written out, because SQLite takes no index for a condition that may not hold.
    let of_session = match session {
        Some(_) => "r.session = ?1",
        None => "?1 IS NULL",
    };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT r.segment, r.first_row, r.rows, r.min_ktime, g.first_no, r.session FROM run_rows r JOIN segment_rows g ON g.no = r.segment
         WHERE {of_session} AND (?2 = 0 OR r.boot = ?2) AND r.max_ktime >= ?3 AND (?4 IS NULL OR r.max_time >= ?4)
           AND r.kinds & ?5 AND r.verdicts & ?6 AND g.last_no >= ?7 AND g.first_no <= ?8
         ORDER BY r.segment, r.first_row",
    ))?;
    let mut rows = statement.query(rusqlite::params![
        session,
        boot,
        ktime,
        wanted.since_ns,
        wanted.kinds,
        wanted.verdicts,
        part.numbers.0,
        part.numbers.1
    ])?;
    let mut segments: Vec<(i64, Vec<Run>)> = Vec::new();
    while let Some(row) = rows.next()? {
        let of: Option<i64> = row.get(5)?;
        if visible.is_some_and(|visible| of.is_none_or(|of| !visible.contains(&of))) {
            continue;
        }
        let segment: i64 = row.get(0)?;
        let run = Run {
            first_row: row.get(1)?,
            rows: row.get(2)?,
            min_ktime: row.get(3)?,
            first_no: row.get(4)?,
        };
        match segments.last_mut() {
            Some((last, runs)) if *last == segment => runs.push(run),
            _ => segments.push((segment, vec![run])),
        }
    }
    segments.sort_by_key(|(_, runs)| runs.iter().map(|run| run.earliest(part)).min());
    Ok(segments)
}

/// Runs of numbers that neither a segment nor the tail has.
fn gaps(connection: &Connection, (first, last): (i64, i64)) -> Result<Vec<(i64, i64)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT first_no, last_no FROM segment_rows WHERE last_no >= ?1 AND first_no <= ?2
         UNION ALL SELECT no, no + events - 1 FROM tail_rows WHERE no + events > ?1 AND no <= ?2 ORDER BY 1",
    )?;
    let mut rows = statement.query([first, last])?;
    let (mut gaps, mut next) = (Vec::new(), first);
    while let Some(row) = rows.next()? {
        let (from, to): (i64, i64) = (row.get(0)?, row.get(1)?);
        if from > next {
            gaps.push((next, from - 1));
        }
        next = next.max(to + 1);
    }
    if next <= last {
        gaps.push((next, last));
    }
    Ok(gaps)
}

fn segment_keys(
    segment: &Segment,
    index: usize,
    runs: &[Run],
    wanted: &Wanted,
    part: &Part,
    found: &mut Vec<Found>,
) -> Result<(), StoreError> {
    let mut columns = vec![C::No, C::Ktime, C::Seq];
    if wanted.since_ns.is_some() {
        columns.push(C::Time);
    }
    if wanted.kinds != u32::MAX {
        columns.push(C::Kind);
    }
    if wanted.verdicts != u32::MAX {
        columns.push(C::Verdict);
    }
    let rows: Vec<u32> = runs
        .iter()
        .flat_map(|run| run.first_row as u32..(run.first_row + run.rows) as u32)
        .collect();
    let chunk = segment.read(&columns, &rows)?;
    for (place, row_no) in rows.into_iter().enumerate() {
        let row = chunk.row(place);
        let number = |column| row.number(column).unwrap_or_default();
        let no = number(C::No);
        let key = part.key(number(C::Ktime), number(C::Seq), no);
        if key <= part.after || no < part.numbers.0 || no > part.numbers.1 {
            continue;
        }
        if wanted.since_ns.is_some_and(|since| number(C::Time) < since)
            || !names(wanted.kinds, &Kind::ALL, Kind::name, row.text(C::Kind))
            || !names(
                wanted.verdicts,
                &Verdict::ALL,
                Verdict::name,
                row.text(C::Verdict),
            )
        {
            continue;
        }
        found.push(Found {
            key,
            place: Place::Sealed {
                segment: index,
                row: row_no,
            },
        });
    }
    Ok(())
}

/// Whether a mask has the bit of the value with this name.
fn names<T: Copy>(mask: u32, all: &[T], name: fn(T) -> &'static str, text: Option<&str>) -> bool {
    mask == u32::MAX
        || all
            .iter()
            .zip(0u32..)
            .any(|(value, bit)| mask & (1 << bit) != 0 && Some(name(*value)) == text)
}

fn tail_keys(
    connection: &Connection,
    wanted: &Wanted,
    part: &Part,
    visible: Option<&HashSet<i64>>,
) -> Result<Vec<Found>, StoreError> {
    let boot_id: Option<String> = match part.boot {
        Some(boot) => Some(connection.query_row(
            "SELECT boot_id FROM boot_rows WHERE no = ?",
            [boot],
            |row| row.get(0),
        )?),
        None => None,
    };
    let mut found: Vec<Found> = Vec::new();
    let mut frames = Tail::new(connection, part.numbers, wanted.since_ns)?;
    frames.each(visible, |first_no, batch| {
        let shown: Vec<bool> = batch
            .sessions
            .iter()
            .map(|session| {
                let text = |index| batch.text(index).unwrap_or_default();
                boot_id
                    .as_deref()
                    .is_none_or(|boot| boot == text(session.boot_id))
                    && visible.is_none_or(|visible| {
                        session_no(connection, text(session.id))
                            .is_some_and(|no| visible.contains(&no))
                    })
            })
            .collect();
        for ((record, no), index) in batch.records.iter().zip(first_no..).zip(0u32..) {
            if shown.get(record.session as usize) != Some(&true)
                || wanted.kinds & (1 << record.kind) == 0
                || wanted.verdicts & (1 << record.verdict) == 0
            {
                continue;
            }
            let row = Unsealed { batch, record, no };
            let key = part.key(row.ktime(), record.seq.cast_signed(), no);
            if key <= part.after
                || no < part.numbers.0
                || no > part.numbers.1
                || wanted.since_ns.is_some_and(|since| row.time() < since)
            {
                continue;
            }
            found.push(Found {
                key,
                place: Place::Unsealed {
                    batch: first_no,
                    index,
                },
            });
        }
        // Only the first of them can be in the window.
        if found.len() > 2 * WINDOW {
            found.sort_unstable_by_key(|found| found.key);
            found.truncate(WINDOW + 1);
        }
        Ok(())
    })?;
    Ok(found)
}

fn session_no(connection: &Connection, id: &str) -> Option<i64> {
    let mut statement = connection
        .prepare_cached("SELECT no FROM session_rows WHERE id = ?")
        .ok()?;
    statement.query_row([id], |row| row.get(0)).ok()
}

/// The unsealed batches, one after the other.
pub(super) struct Tail<'c> {
    statement: rusqlite::CachedStatement<'c>,
    numbers: (i64, i64),
    since_ns: i64,
}

impl<'c> Tail<'c> {
    pub(super) fn new(
        connection: &'c Connection,
        numbers: (i64, i64),
        since_ns: Option<i64>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            statement: connection.prepare_cached(
                "SELECT no, sessions, frame FROM tail_rows WHERE no + events > ? AND no <= ? AND max_time >= ? ORDER BY no",
            )?,
            numbers,
            since_ns: since_ns.unwrap_or(i64::MIN),
        })
    }

    /// Hands on each batch that may hold an event of `sessions`, with the number of its first event.
    pub(super) fn each(
        &mut self,
        sessions: Option<&HashSet<i64>>,
        mut use_: impl FnMut(i64, &Batch<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut rows = self
            .statement
            .query([self.numbers.0, self.numbers.1, self.since_ns])?;
        while let Some(row) = rows.next()? {
            if let Some(wanted) = sessions {
                let bytes = row
                    .get_ref(1)?
                    .as_blob()
                    .map_err(|error| StoreError::Corrupt(error.to_string()))?;
                let held = bytes.chunks_exact(8).any(|bytes| {
                    bytes
                        .try_into()
                        .is_ok_and(|bytes| wanted.contains(&i64::from_le_bytes(bytes)))
                });
                if !held {
                    continue;
                }
            }
            let frame = row
                .get_ref(2)?
                .as_blob()
                .map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let batch = Batch::decode(frame)
                .map_err(|error| StoreError::Corrupt(format!("a batch of the tail: {error}")))?;
            use_(row.get(0)?, &batch)?;
        }
        Ok(())
    }
}

/// The sequence numbers of a session's events; with `named` also of those whose id is not made of it.
pub(super) fn numbers(
    connection: &Connection,
    directory: &Path,
    session: i64,
    named: bool,
) -> Result<Numbers, StoreError> {
    let mut numbers = Numbers::default();
    let mut add = |seq: u64, id: Option<&str>| {
        if named || id.is_none() {
            numbers.insert(seq..=seq);
        }
    };
    let mut statement = connection.prepare_cached(
        "SELECT segment, first_row, rows FROM run_rows WHERE session = ? ORDER BY segment",
    )?;
    let mut rows = statement.query([session])?;
    while let Some(row) = rows.next()? {
        let (no, first, count): (i64, usize, usize) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let segment = Segment::open(&segment::path(directory, no))?;
        let chunk = segment.read_range(&[C::Seq, C::Id], first, first + count)?;
        for index in 0..chunk.rows {
            let row = chunk.row(index);
            add(
                row.number(C::Seq).unwrap_or_default().cast_unsigned(),
                row.text(C::Id),
            );
        }
    }
    let only = HashSet::from([session]);
    Tail::new(connection, (1, i64::MAX), None)?.each(Some(&only), |_, batch| {
        let own: Vec<bool> = batch
            .sessions
            .iter()
            .map(|held| {
                session_no(connection, batch.text(held.id).unwrap_or_default()) == Some(session)
            })
            .collect();
        for record in &batch.records {
            if own.get(record.session as usize) == Some(&true) {
                add(record.seq, batch.text(record.id));
            }
        }
        Ok(())
    })?;
    Ok(numbers)
}

/// Bytes on disk: segments with their manifests, about, and what SQLite holds.
pub(super) fn bytes(connection: &Connection) -> Result<u64, StoreError> {
    Ok(connection.query_row(
        "SELECT page_count * page_size + (SELECT coalesce(sum(bytes + events), 0) FROM segment_rows)
         FROM pragma_page_count, pragma_page_size",
        [],
        |row| row.get(0),
    )?)
}

pub(super) fn newest(connection: &Connection) -> Result<i64, StoreError> {
    Ok(super::insert::head(connection)?.newest)
}

/// About the bytes that an event takes as JSON.
pub(crate) fn weight(event: &Event) -> usize {
    // Control characters take six bytes each; a path that holds so many is met by the limit on frames.
    let text = |text: &str| text.len() + text.bytes().filter(|byte| *byte < 0x20).count() * 5;
    let file = event.file.as_ref().map_or(0, |file| text(&file.path));
    let target = event.target.as_ref().map_or(0, |file| text(&file.path));
    let process = event.process.as_ref().map_or(0, |process| {
        process
            .argv
            .iter()
            .map(|argument| text(argument) + 3)
            .sum::<usize>()
            + text(&process.exe)
            + text(&process.cwd)
    });
    700 + file + target + process
}

/// A connection that can only read, without the tables and views of responders.
pub(super) fn connect_bare(directory: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(directory.join(FILE), flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "temp_store", "FILE")?;
    Ok(connection)
}

/// A connection that can only read. Reading events ends when `is_over` says so.
pub(super) fn connect(directory: &Path, is_over: table::IsOver) -> Result<Connection, StoreError> {
    let connection = connect_bare(directory)?;
    table::register(&connection, directory, is_over)?;
    connection.create_scalar_function(
        "moment",
        1,
        FunctionFlags::SQLITE_UTF8
            | FunctionFlags::SQLITE_DETERMINISTIC
            | FunctionFlags::SQLITE_INNOCUOUS,
        |context| Ok(context.get::<Option<i64>>(0)?.map(moment)),
    )?;
    connection.execute_batch(include_str!("views.sql"))?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Nanoseconds since 1970 as in events: RFC 3339, with all digits, so that texts order as times do.
fn moment(nanoseconds: i64) -> String {
    let mut text = String::with_capacity(32);
    // Into memory, which does not fail.
    let _ = DateTimePrinter::new()
        .precision(Some(9))
        .print_timestamp(&timestamp(nanoseconds), &mut text);
    text
}

const SESSION_COLUMNS: &str =
    "no, id, name, uid, policy, mode, coverage, missing, backends, cgroup, command, origin, state,
    started_ns, ended_ns, reason, exit_code, events, denied, counts";
/// A condition for what `viewer` may see, with its value.
fn visible(viewer: Viewer, column: &str) -> (String, Vec<Value>) {
    match viewer {
        Viewer::All => (String::new(), Vec::new()),
        Viewer::User(uid) => (
            format!("AND {column} = ?"),
            vec![Value::Integer(uid.into())],
        ),
    }
}

fn unknown_session(wanted: &str) -> StoreError {
    StoreError::Question(format!(
        "no session of yours has the id or name {wanted:?}\nhint: `agentwatch sessions` lists them"
    ))
}

fn session_row(row: &SqlRow<'_>) -> Result<SessionRow, StoreError> {
    let mode: String = row.get("mode")?;
    let coverage: Option<String> = row.get("coverage")?;
    let begun = coverage.is_some();
    Ok(SessionRow {
        id: row.get("id")?,
        name: row.get("name")?,
        // (uid_t)-1 is nobody: the start of the session, which would say whose it is, is not in the history.
        uid: row.get::<_, Option<u32>>("uid")?.unwrap_or(u32::MAX),
        policy: row.get("policy")?,
        mode: Mode::ALL
            .into_iter()
            .find(|known| known.name() == mode)
            .unwrap_or_default(),
        coverage: coverage
            .and_then(|name| Coverage::ALL.into_iter().find(|known| known.name() == name))
            .unwrap_or(Coverage::Degraded),
        missing: if begun {
            column(row, "missing")?.unwrap_or_default()
        } else {
            vec![
                "the session's start is not in the history, so its coverage is not known"
                    .to_owned(),
            ]
        },
        backends: column(row, "backends")?.unwrap_or_default(),
        cgroup: row.get::<_, Option<String>>("cgroup")?.unwrap_or_default(),
        command: column(row, "command")?.unwrap_or_default(),
        origin: row.get::<_, Option<String>>("origin")?.unwrap_or_default(),
        state: row.get("state")?,
        started: timestamp(row.get("started_ns")?),
        ended: row.get::<_, Option<i64>>("ended_ns")?.map(timestamp),
        reason: row.get("reason")?,
        exit_code: row.get("exit_code")?,
        events: row.get("events")?,
        denied: row.get("denied")?,
        counts: column(row, "counts")?,
    })
}

/// A column that holds JSON.
fn column<T: DeserializeOwned>(row: &SqlRow<'_>, name: &str) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.get(name)?;
    text.map(|text| {
        serde_json::from_str(&text)
            .map_err(|error| StoreError::Corrupt(format!("{name} of a session: {error}")))
    })
    .transpose()
}
