//! All events as one read-only table of SQLite's: `event_rows`, over the segments and the tail.
//!
//! What a statement asks of session, kind, verdict and time decides which runs of which segments are looked at, what it
//! asks of texts which row groups (by their least and greatest values and their Bloom filters); only columns that it
//! uses are read. SQLite checks every row again, so pruning may only ever leave out what cannot match.
//!
//! A statement that groups all events by what has few values (their kind, say) would have SQLite sort them all. Such rows
//! are counted here and handed on in order, the same ones after each other.

use std::{
    collections::HashSet,
    ffi::c_int,
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{
    Connection, Error,
    ffi::{self, sqlite3_vtab, sqlite3_vtab_cursor},
    types::ValueRef,
    vtab::{
        Context, Filters, IndexConstraintOp, IndexInfo, VTab, VTabConfig, VTabConnection,
        VTabCursor, eponymous_only_module,
    },
};

use super::{
    StoreError,
    columns::{ALL, C, COLUMNS, Row, Unsealed, event},
    connect,
    segment::{self, Chunk, Segment},
};
use crate::{
    event::model::{Kind, Verdict},
    wire::batch::Batch,
};

/// Values that are read from a segment at once: more rows where fewer columns are used, because getting at a row group's
/// columns costs the same for few rows as for many.
const PART_VALUES: usize = 1 << 18;
/// And rows.
const PART_ROWS: usize = 1 << 15;
/// Columns of few values: rows that have no others are counted.
const FEW: [C; 3] = [C::Kind, C::Verdict, C::Mode];
/// The column behind all others: the event as JSON.
const JSON: usize = ALL.len();
// SQLite says which columns are used by the bits of a 64-bit mask.
const _: () = assert!(JSON < 63);

/// Says whether an answer is to end before it is whole.
pub(super) type IsOver = Arc<dyn Fn() -> bool + Send + Sync>;

/// What the table is made of.
#[derive(Clone)]
struct Source {
    directory: PathBuf,
    /// SQLite asks that between its own steps; of a long way to the next row it knows nothing.
    is_over: IsOver,
}

/// Makes `event_rows` known to a connection.
pub(super) fn register(
    connection: &Connection,
    directory: &Path,
    is_over: IsOver,
) -> rusqlite::Result<()> {
    let source = Source {
        directory: directory.to_owned(),
        is_over,
    };
    connection.create_module(
        c"event_rows",
        eponymous_only_module::<Table>(),
        Some(source),
    )
}

#[repr(C)]
struct Table {
    /// Must be first.
    base: sqlite3_vtab,
    source: Source,
}

// SAFETY: `repr(C)` with the base class first, as SQLite wants it.
unsafe impl<'vtab> VTab<'vtab> for Table {
    type Aux = Source;
    type Cursor = Cursor<'vtab>;

    fn connect(
        db: &mut VTabConnection,
        source: Option<&Source>,
        _args: &[&[u8]],
    ) -> rusqlite::Result<(String, Self)> {
        db.config(VTabConfig::Innocuous)?;
        let source = source.cloned().ok_or_else(|| {
            Error::ModuleError("the table was registered without a directory".to_owned())
        })?;
        let columns: Vec<String> = COLUMNS
            .iter()
            .map(|column| {
                let kind = if column.is_text() { "TEXT" } else { "INTEGER" };
                format!("{} {kind}", column.name)
            })
            .collect();
        Ok((
            format!("CREATE TABLE x({}, json TEXT)", columns.join(", ")),
            Self {
                base: sqlite3_vtab::default(),
                source,
            },
        ))
    }

    fn best_index(&self, info: &mut IndexInfo) -> rusqlite::Result<()> {
        let mut plan = String::new();
        let mut cost = 1e7;
        let mut taken = Vec::new();
        for (index, constraint) in info.constraints().enumerate() {
            let Some(column) = usize::try_from(constraint.column())
                .ok()
                .and_then(|column| ALL.get(column).copied())
            else {
                continue;
            };
            let (operator, gain) = match (constraint.operator(), column) {
                (IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ, C::SessionId) => ('=', 1e-3),
                (
                    IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ,
                    C::Session | C::Path | C::Addr | C::Domain,
                ) => ('=', 1e-2),
                (IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ, C::Kind | C::Verdict) => ('=', 0.3),
                (IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_EQ, column)
                    if COLUMNS[column as usize].is_text() =>
                {
                    ('=', 0.3)
                }
                (
                    IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_GT
                    | IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_GE,
                    C::Time,
                ) => ('>', 0.3),
                (
                    IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_LT
                    | IndexConstraintOp::SQLITE_INDEX_CONSTRAINT_LE,
                    C::Time,
                ) => ('<', 0.5),
                _ => continue,
            };
            if !constraint.is_usable() {
                // A plan in which the session is known beforehand is always better than one in which it is not.
                if operator == '=' {
                    cost *= 10.0;
                }
                continue;
            }
            taken.push((index, column, operator, gain));
        }
        let mut argument = 0;
        for (index, column, operator, gain) in taken {
            if operator == '=' && info.collation(index)? != "BINARY" {
                continue;
            }
            argument += 1;
            info.constraint_usage(index).set_argv_index(argument);
            plan.push_str(&format!("{operator}{} ", column as usize));
            cost *= gain;
        }
        let used = info.col_used();
        let order = order(info, used);
        info.set_order_by_consumed(!order.is_empty());
        let order: Vec<String> = order
            .iter()
            .map(|column| (*column as usize).to_string())
            .collect();
        info.set_idx_str(&format!("{used:x} ,{} {plan}", order.join(",")));
        info.set_estimated_cost(cost);
        info.set_estimated_rows(cost as i64);
        Ok(())
    }

    fn open(&'vtab mut self) -> rusqlite::Result<Cursor<'vtab>> {
        Ok(Cursor {
            base: sqlite3_vtab_cursor::default(),
            source: self.source.clone(),
            wanted: Wanted::default(),
            ahead: Vec::new(),
            segment: None,
            tail: Vec::new(),
            part: Part::Done,
            place: 0,
            passed: 0,
            phantom: PhantomData,
        })
    }
}

/// The order that a statement wants, where its rows are to be counted for it; else nothing.
fn order(info: &IndexInfo, used: u64) -> Vec<C> {
    let few = FEW
        .iter()
        .fold(0, |few, column| few | 1 << *column as usize);
    // Without an order there is no list either.
    if info.num_of_order_by() == 0 || used & !few != 0 {
        return Vec::new();
    }
    let mut order = Vec::new();
    for wanted in info.order_bys() {
        match FEW
            .iter()
            .find(|column| wanted.column() == **column as c_int)
        {
            Some(column) if !wanted.is_order_by_desc() => order.push(*column),
            _ => return Vec::new(),
        }
    }
    order
}

/// What a statement asks of the rows.
#[derive(Default)]
struct Wanted {
    columns: Vec<C>,
    /// Where the rows are to be counted, and come by these columns.
    order: Vec<C>,
    json: bool,
    equal: Vec<(C, String)>,
    from_ns: Option<i64>,
    to_ns: Option<i64>,
}

impl Wanted {
    /// Reads a plan of `best_index`'s.
    fn new(plan: &str, arguments: &Filters<'_>) -> Self {
        let mut words = plan.split_ascii_whitespace();
        let used = words
            .next()
            .and_then(|word| u64::from_str_radix(word, 16).ok())
            .unwrap_or(u64::MAX);
        let order = words.next().unwrap_or_default().split(',');
        let order = order.filter_map(|place| ALL.get(place.parse::<usize>().ok()?).copied());
        let mut wanted = Wanted {
            json: used & (1 << JSON) != 0,
            order: order.collect(),
            ..Wanted::default()
        };
        for (word, value) in words.zip(arguments.iter()) {
            let mut characters = word.chars();
            let operator = characters.next();
            let Some(column) = characters
                .as_str()
                .parse::<usize>()
                .ok()
                .and_then(|column| ALL.get(column).copied())
            else {
                continue;
            };
            match (operator, value) {
                (Some('='), ValueRef::Text(text)) => {
                    if let Ok(text) = std::str::from_utf8(text) {
                        wanted.equal.push((column, text.to_owned()));
                    }
                }
                (Some('>'), ValueRef::Integer(least)) => {
                    wanted.from_ns = wanted.from_ns.max(Some(least));
                }
                (Some('<'), ValueRef::Integer(most)) => {
                    wanted.to_ns = Some(wanted.to_ns.map_or(most, |to| to.min(most)));
                }
                _ => {}
            }
        }
        wanted.columns = ALL
            .iter()
            .copied()
            .filter(|column| {
                wanted.json
                    || used & (1 << *column as usize) != 0
                    || wanted.equal.iter().any(|(equal, _)| equal == column)
            })
            .collect();
        if wanted.columns.is_empty() {
            // Only the number of rows is asked for.
            wanted.columns.push(C::No);
        }
        wanted
    }

    fn matches(&self, row: &impl Row) -> bool {
        self.equal
            .iter()
            .all(|(column, text)| row.bytes(*column) == Some(text.as_bytes()))
    }

    fn bits<T: Copy>(&self, column: C, all: &[T], name: fn(T) -> &'static str) -> u32 {
        self.equal
            .iter()
            .filter(|(equal, _)| *equal == column)
            .fold(u32::MAX, |mask, (_, text)| {
                let bit = all.iter().position(|value| name(*value) == text);
                mask & bit.map_or(0, |bit| 1 << bit)
            })
    }
}

#[repr(C)]
struct Cursor<'vtab> {
    /// Must be first.
    base: sqlite3_vtab_cursor,
    source: Source,
    wanted: Wanted,
    /// Segments still to read, the next one last, with the rows that are of interest.
    ahead: Vec<(i64, Vec<(usize, usize)>)>,
    /// The segment that is being read, and what is left of it.
    segment: Option<(Segment, Vec<(usize, usize)>)>,
    /// Batches of the tail still to read, the next one last.
    tail: Vec<(i64, Vec<u8>)>,
    part: Part,
    place: usize,
    passed: i64,
    phantom: PhantomData<&'vtab Table>,
}

/// Rows in memory.
enum Part {
    Chunk(Chunk),
    Owned(Vec<Owned>),
    /// Each as often as it says.
    Counted(Vec<(Owned, u64)>),
    Done,
}

/// A row of the tail, with the columns that are used.
struct Owned {
    numbers: Vec<(C, i64)>,
    texts: Vec<(C, String)>,
}

impl Row for Owned {
    fn number(&self, column: C) -> Option<i64> {
        let found = self.numbers.iter().find(|(held, _)| *held == column);
        found.map(|(_, number)| *number)
    }

    fn text(&self, column: C) -> Option<&str> {
        let found = self.texts.iter().find(|(held, _)| *held == column);
        found.map(|(_, text)| text.as_str())
    }
}

impl Owned {
    fn of(row: &impl Row, columns: &[C]) -> Self {
        let mut owned = Owned {
            numbers: Vec::new(),
            texts: Vec::new(),
        };
        for column in columns {
            if COLUMNS[*column as usize].is_text() {
                if let Some(text) = row.text(*column) {
                    owned.texts.push((*column, text.to_owned()));
                }
            } else if let Some(number) = row.number(*column) {
                owned.numbers.push((*column, number));
            }
        }
        owned
    }
}

impl Cursor<'_> {
    /// Finds what must be read. Lists of segments and tail are of one moment.
    fn begin(&mut self) -> Result<(), StoreError> {
        let connection = connect::bare(&self.source.directory)?;
        let transaction = connection.unchecked_transaction()?;
        let sessions = self.sessions(&transaction)?;
        let kinds = self.wanted.bits(C::Kind, &Kind::ALL, Kind::name);
        let verdicts = self.wanted.bits(C::Verdict, &Verdict::ALL, Verdict::name);
        self.ahead.clear();
        self.tail.clear();
        {
            let mut statement = transaction.prepare(
                "SELECT segment, first_row, rows, session FROM run_rows
                 WHERE kinds & ? AND verdicts & ? AND max_time >= ? AND min_time <= ? AND (?5 IS NULL OR session = ?5)
                 ORDER BY segment DESC, first_row DESC",
            )?;
            let only = match &sessions {
                Some(sessions) if sessions.len() == 1 => sessions.iter().next().copied(),
                _ => None,
            };
            let (from, to) = (
                self.wanted.from_ns.unwrap_or(i64::MIN),
                self.wanted.to_ns.unwrap_or(i64::MAX),
            );
            let mut rows = statement.query(rusqlite::params![kinds, verdicts, from, to, only])?;
            while let Some(row) = rows.next()? {
                let session: Option<i64> = row.get(3)?;
                if sessions
                    .as_ref()
                    .is_some_and(|sessions| !sessions.contains(&session.unwrap_or(0)))
                {
                    continue;
                }
                let segment: i64 = row.get(0)?;
                let first: usize = row.get(1)?;
                let end = first + row.get::<_, usize>(2)?;
                match self.ahead.last_mut() {
                    Some((last, ranges)) if *last == segment => match ranges.last_mut() {
                        Some(range) if range.0 == end => range.0 = first,
                        _ => ranges.push((first, end)),
                    },
                    _ => self.ahead.push((segment, vec![(first, end)])),
                }
            }
            let mut tail = transaction.prepare(
                "SELECT no, sessions, frame FROM tail_rows WHERE max_time >= ? AND min_time <= ? ORDER BY no DESC",
            )?;
            let mut rows = tail.query([from, to])?;
            while let Some(row) = rows.next()? {
                let held: Vec<u8> = row.get(1)?;
                let fits = sessions.as_ref().is_none_or(|sessions| {
                    held.chunks_exact(8).any(|bytes| {
                        bytes
                            .try_into()
                            .is_ok_and(|bytes| sessions.contains(&i64::from_le_bytes(bytes)))
                    })
                });
                if fits {
                    self.tail.push((row.get(0)?, row.get(2)?));
                }
            }
        }
        transaction.finish()?;
        (self.segment, self.part, self.place, self.passed) = (None, Part::Owned(Vec::new()), 0, 0);
        if !self.wanted.order.is_empty() {
            self.part = self.counted()?;
            self.place = 0;
        }
        self.settle()
    }

    /// All rows that are left, counted and in their order.
    fn counted(&mut self) -> Result<Part, StoreError> {
        let mut counted: Vec<(Owned, u64)> = Vec::new();
        let mut last = 0;
        loop {
            let part = self.next_part()?;
            match &part {
                Part::Chunk(chunk) => {
                    for place in 0..chunk.rows {
                        self.count(&chunk.row(place), &mut counted, &mut last);
                    }
                }
                Part::Owned(rows) => {
                    for row in rows {
                        self.count(row, &mut counted, &mut last);
                    }
                }
                Part::Counted(_) | Part::Done => break,
            }
        }
        let order = &self.wanted.order;
        counted.sort_by(|(one, _), (other, _)| {
            let texts = |row: &Owned| {
                order
                    .iter()
                    .map(|c| row.text(*c).map(str::to_owned))
                    .collect::<Vec<_>>()
            };
            texts(one).cmp(&texts(other))
        });
        Ok(Part::Counted(counted))
    }

    /// Counts a row; `last` is the place of the one before it.
    fn count(&self, row: &impl Row, counted: &mut Vec<(Owned, u64)>, last: &mut usize) {
        if !self.wanted.matches(row) {
            return;
        }
        let columns = &self.wanted.columns;
        let same = |(held, _): &(Owned, u64)| {
            columns
                .iter()
                .all(|column| held.bytes(*column) == row.bytes(*column))
        };
        if !counted.get(*last).is_some_and(same) {
            *last = counted.iter().position(same).unwrap_or_else(|| {
                counted.push((Owned::of(row, columns), 0));
                counted.len() - 1
            });
        }
        if let Some((_, count)) = counted.get_mut(*last) {
            *count += 1;
        }
    }

    /// The numbers of the sessions that a statement names; 0 is none.
    fn sessions(&self, connection: &Connection) -> Result<Option<HashSet<i64>>, StoreError> {
        let mut all: Option<HashSet<i64>> = None;
        for (column, text) in &self.wanted.equal {
            let sql = match column {
                C::SessionId => "SELECT no FROM session_rows WHERE id = ?",
                C::Session => "SELECT no FROM session_rows WHERE name = ?",
                _ => continue,
            };
            let mut statement = connection.prepare(sql)?;
            let mut found: HashSet<i64> = statement
                .query_map([text], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            if *column == C::Session || text.is_empty() {
                // A session may have had another name in an event than in its row, and none has no row.
                continue;
            }
            if let Some(before) = all.take() {
                found.retain(|no| before.contains(no));
            }
            all = Some(found);
        }
        Ok(all)
    }

    /// Goes to the first row from `place` on that may match, through as many parts as it takes.
    fn settle(&mut self) -> Result<(), StoreError> {
        loop {
            match &self.part {
                Part::Done => return Ok(()),
                Part::Chunk(chunk) => {
                    while self.place < chunk.rows {
                        if self.wanted.matches(&chunk.row(self.place)) {
                            return Ok(());
                        }
                        self.place += 1;
                    }
                }
                Part::Owned(rows) => {
                    // Those that do not match were left out.
                    if self.place < rows.len() {
                        return Ok(());
                    }
                }
                Part::Counted(rows) => {
                    if self.place < rows.len() {
                        return Ok(());
                    }
                    self.part = Part::Done;
                    continue;
                }
            }
            self.place = 0;
            self.part = self.next_part()?;
        }
    }

    fn next_part(&mut self) -> Result<Part, StoreError> {
        loop {
            if (self.source.is_over)() {
                let interrupted = ffi::Error::new(ffi::SQLITE_INTERRUPT);
                return Err(Error::SqliteFailure(interrupted, None).into());
            }
            if let Some((segment, ranges)) = &mut self.segment {
                if let Some((from, to)) = ranges.pop() {
                    let most = (PART_VALUES / self.wanted.columns.len()).clamp(1, PART_ROWS);
                    let end = to.min(from + most);
                    if end < to {
                        ranges.push((end, to));
                    }
                    let wanted = &self.wanted;
                    if wanted.equal.is_empty() {
                        let chunk = segment.read_range(&wanted.columns, from, end)?;
                        return Ok(Part::Chunk(chunk));
                    }
                    // What decides comes first: the rest is read of the rows that match.
                    let decisive: Vec<C> = wanted.equal.iter().map(|(column, _)| *column).collect();
                    let chunk = segment.read_range(&decisive, from, end)?;
                    let rows: Vec<u32> = (0..chunk.rows)
                        .filter(|place| wanted.matches(&chunk.row(*place)))
                        .map(|place| (from + place) as u32)
                        .collect();
                    if rows.is_empty() {
                        continue;
                    }
                    return Ok(Part::Chunk(segment.read(&wanted.columns, &rows)?));
                }
                self.segment = None;
            }
            if let Some((no, ranges)) = self.ahead.pop() {
                let bloom = !self.wanted.equal.is_empty();
                let segment =
                    Segment::open_with(&segment::path(&self.source.directory, no), bloom)?;
                // Ranges come last first, and are taken from the end.
                let mut kept = Vec::new();
                for (from, to) in ranges {
                    let narrowed = segment.narrowed(from, to, &self.wanted.equal)?;
                    kept.extend(narrowed.into_iter().rev());
                }
                self.segment = Some((segment, kept));
                continue;
            }
            let Some((first_no, frame)) = self.tail.pop() else {
                return Ok(Part::Done);
            };
            let batch = Batch::decode(&frame)
                .map_err(|error| StoreError::Corrupt(format!("a batch of the tail: {error}")))?;
            let rows = batch
                .records
                .iter()
                .zip(first_no..)
                .map(|(record, no)| Unsealed {
                    batch: &batch,
                    record,
                    no,
                })
                .filter(|row| self.wanted.matches(row))
                .map(|row| Owned::of(&row, &self.wanted.columns))
                .collect();
            return Ok(Part::Owned(rows));
        }
    }

    fn set(&self, row: &impl Row, context: &mut Context, column: usize) -> rusqlite::Result<()> {
        if column == JSON {
            let event = event(row).map_err(Error::ModuleError)?;
            let json = serde_json::to_string(&event)
                .map_err(|error| Error::ModuleError(error.to_string()))?;
            return context.set_result(&json);
        }
        match ALL.get(column) {
            Some(column) if COLUMNS[*column as usize].is_text() => {
                context.set_result(&row.text(*column))
            }
            Some(column) => context.set_result(&row.number(*column)),
            None => Ok(()),
        }
    }
}

// SAFETY: `repr(C)` with the base class first, as SQLite wants it.
unsafe impl VTabCursor for Cursor<'_> {
    fn filter(
        &mut self,
        _idx_num: c_int,
        idx_str: Option<&str>,
        arguments: &Filters<'_>,
    ) -> rusqlite::Result<()> {
        self.wanted = Wanted::new(idx_str.unwrap_or_default(), arguments);
        self.begin().map_err(failed)
    }

    fn next(&mut self) -> rusqlite::Result<()> {
        self.passed += 1;
        if let Part::Counted(rows) = &mut self.part
            && let Some((_, left)) = rows.get_mut(self.place)
            && *left > 1
        {
            *left -= 1;
            return Ok(());
        }
        self.place += 1;
        self.settle().map_err(failed)
    }

    fn eof(&self) -> bool {
        matches!(self.part, Part::Done)
    }

    fn column(&self, context: &mut Context, column: c_int) -> rusqlite::Result<()> {
        let column = usize::try_from(column).unwrap_or(usize::MAX);
        match &self.part {
            Part::Chunk(chunk) => self.set(&chunk.row(self.place), context, column),
            Part::Owned(rows) => match rows.get(self.place) {
                Some(row) => self.set(row, context, column),
                None => Ok(()),
            },
            Part::Counted(rows) => match rows.get(self.place) {
                Some((row, _)) => self.set(row, context, column),
                None => Ok(()),
            },
            Part::Done => Ok(()),
        }
    }

    fn rowid(&self) -> rusqlite::Result<i64> {
        Ok(self.passed)
    }
}

fn failed(error: StoreError) -> Error {
    match error {
        StoreError::Sql(error) => error,
        error => Error::ModuleError(error.to_string()),
    }
}
