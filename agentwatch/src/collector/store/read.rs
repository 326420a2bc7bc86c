//! Reading events and sessions, a page at a time.
//!
//! Events are read in windows: the keys of what a question asks for, from segments and tail, in their order, and the
//! rows of the first thousands, which become packed batches without becoming events. No read transaction outlives a window, so a slow asker holds neither the log back nor
//! more than a window in memory; a [`Scan`] remembers where the next one begins, and sealing in between changes nothing. What an asker
//! may see is part of every window.

mod sessions;
mod tail;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rusqlite::Connection;

use self::tail::session_no;
pub(super) use self::tail::{Tail, numbers};
use super::{
    StoreError,
    columns::{ALL, C, Packing, Row as _, Unsealed},
    connect,
    segment::{self, Segment},
};
use crate::{
    event::model::{Event, Kind, Verdict},
    wire::{
        batch::{Batch, Record, Tables, nanoseconds, unpack},
        collector::Filter,
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
        self.read().expect("a batch")
    }

    /// What whoever asked makes of it.
    pub(super) fn read(&self) -> Result<Vec<Event>, String> {
        self.events.as_deref().map_or(Ok(Vec::new()), unpack)
    }
}

impl Reader {
    /// Opens the history below `directory` for what `viewer` may see.
    pub fn open(directory: &Path, viewer: Viewer) -> Result<Self, StoreError> {
        Ok(Self {
            connection: connect::with_views(directory, Arc::new(|| false))?,
            viewer,
            directory: directory.to_owned(),
        })
    }

    /// As [`Reader::open`], for who sees everything and asks no SQL.
    pub(super) fn open_bare(directory: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            connection: connect::bare(directory)?,
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

/// Bytes in use: segments with their manifests, about, and what SQLite holds.
pub(super) fn bytes(connection: &Connection) -> Result<u64, StoreError> {
    kept(connection, u64::MAX)
}

/// As [`bytes`], where `most` are to be kept. What SQLite holds counts for no more than half of them: to let go of all segments
/// would not make it smaller.
pub(super) fn kept(connection: &Connection, most: u64) -> Result<u64, StoreError> {
    let (tables, segments): (u64, u64) = connection.query_row(
        "SELECT (page_count - freelist_count) * page_size,
                (SELECT coalesce(sum(bytes + events), 0) FROM segment_rows)
         FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(segments.saturating_add(tables.min(most / 2)))
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
