//! Rows as columns.

use std::hint::black_box;

use super::GROUP_ROWS;
use crate::collector::store::{
    columns::{ALL, C, COLUMNS, PARTS, Part, Same, Take, Unsealed},
    hash::Groups,
};

/// Rows whose memory is asked for together before they are looked at: rows in order lie all over the batches that they came in, and
/// the processor waits for many places at once as long as for one.
const WARM_ROWS: usize = 16;

/// Bytes of texts of a row group at the most, give or take some rows: a text stands in it as often as rows begin to say it.
const GROUP_BYTES: usize = 16 << 20;

/// A column of some rows, as runs of rows that say the same.
pub(super) struct Runs<V> {
    /// Of each run twice the number of rows, and one more where they have a value.
    lengths: Vec<u32>,
    /// The values of the runs that have one.
    pub(super) values: Vec<V>,
}

impl<V: Copy + Ord> Runs<V> {
    fn new() -> Self {
        Self {
            lengths: Vec::new(),
            values: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.lengths.clear();
        self.values.clear();
    }

    /// Another row; whether its value begins a run.
    #[inline]
    fn push(&mut self, value: Option<V>, same: impl Fn(V, V) -> bool) -> bool {
        let there = u32::from(value.is_some());
        if let Some(length) = self.lengths.last_mut()
            && *length & 1 == there
            && match (value, self.values.last()) {
                (Some(value), Some(last)) => same(value, *last),
                _ => true,
            }
        {
            *length += 2;
            return false;
        }
        self.lengths.push(2 | there);
        self.values.extend(value);
        value.is_some()
    }

    /// More rows that say what the last one said.
    fn again(&mut self, rows: u32) {
        if let Some(length) = self.lengths.last_mut() {
            *length += 2 * rows;
        }
    }

    /// The runs: rows, and what they say.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Option<V>)> {
        let mut values = self.values.iter().copied();
        self.lengths.iter().map(move |length| {
            let value = if length & 1 == 1 { values.next() } else { None };
            ((length >> 1) as usize, value)
        })
    }

    /// Rows without a value.
    pub(super) fn absent(&self) -> u64 {
        let lengths = self.lengths.iter().filter(|length| **length & 1 == 0);
        lengths.map(|length| u64::from(length >> 1)).sum()
    }

    /// What all rows say, where they say the same.
    pub(super) fn constant(&self) -> Option<Option<V>> {
        (self.lengths.len() <= 1).then(|| self.values.first().copied())
    }
}

/// A column of some rows.
pub(super) enum Buffer<'a> {
    Numbers(Runs<i64>),
    /// With the texts of the runs one after the other: they are read while they are near, for the hash.
    Texts(Runs<&'a str>, String),
}

/// What was told of a part of the columns for the row before.
#[derive(Default)]
struct Told {
    same: Same,
    /// Rows that say it too, which its columns have not been told of.
    again: u32,
}

/// Rows as columns. Each row is looked at once, because going through all rows for every column costs a miss of the
/// processor's cache each time; so the hashes are made here too. The memory of one row group serves the next.
pub(super) struct Turned<'a> {
    pub(super) columns: [Buffer<'a>; ALL.len()],
    parts: [Told; PARTS.len()],
    pub(super) hashes: Groups,
}

impl<'a> Turned<'a> {
    pub(super) fn new() -> Self {
        Self {
            columns: std::array::from_fn(|index| {
                if COLUMNS[index].is_text() {
                    Buffer::Texts(Runs::new(), String::new())
                } else {
                    Buffer::Numbers(Runs::new())
                }
            }),
            parts: Default::default(),
            hashes: Groups::default(),
        }
    }

    /// Takes rows for a row group; how many.
    pub(super) fn turn(&mut self, rows: &'a [Unsealed<'a>]) -> usize {
        for buffer in &mut self.columns {
            match buffer {
                Buffer::Numbers(runs) => runs.clear(),
                Buffer::Texts(runs, memory) => {
                    runs.clear();
                    memory.clear();
                }
            }
        }
        let mut taken = 0;
        for rows in rows[..rows.len().min(GROUP_ROWS)].chunks(WARM_ROWS) {
            if self.bytes() >= GROUP_BYTES {
                break;
            }
            taken += rows.len();
            black_box(rows.iter().fold(0, |sum, row| row.warm().wrapping_add(sum)));
            for row in rows {
                row.each(self);
                self.hashes.end_row();
            }
        }
        for part in 0..PARTS.len() {
            self.settle(part);
            self.parts[part].same = None;
        }
        taken
    }

    /// Bytes of the texts.
    fn bytes(&self) -> usize {
        let texts = self.columns.iter().map(|buffer| match buffer {
            Buffer::Numbers(_) => 0,
            Buffer::Texts(_, memory) => memory.len(),
        });
        texts.sum()
    }

    /// Tells the columns of a part of the rows that say what was said before.
    fn settle(&mut self, part: usize) {
        let rows = std::mem::take(&mut self.parts[part].again);
        if rows > 0 {
            for column in PARTS[part] {
                match &mut self.columns[*column as usize] {
                    Buffer::Numbers(runs) => runs.again(rows),
                    Buffer::Texts(runs, _) => runs.again(rows),
                }
            }
        }
    }
}

impl<'a> Take<'a> for Turned<'a> {
    #[inline]
    fn number(&mut self, column: C, value: Option<i64>) {
        self.hashes.number(value);
        if let Buffer::Numbers(runs) = &mut self.columns[column as usize] {
            runs.push(value, |one, other| one == other);
        }
    }

    #[inline]
    fn text(&mut self, column: C, value: Option<&'a str>) {
        self.hashes.text(value);
        if let Buffer::Texts(runs, memory) = &mut self.columns[column as usize] {
            // Mostly it is not only the same text, but the same memory.
            let is_new = runs.push(value, |one, other| std::ptr::eq(one, other) || one == other);
            if is_new {
                memory.push_str(value.unwrap_or_default());
            }
        }
    }

    #[inline]
    fn begin(&mut self, part: Part, same: Same) -> bool {
        let told = &mut self.parts[part as usize];
        if same.is_some() && same == told.same {
            told.again += 1;
            self.hashes.again(part);
            return true;
        }
        told.same = same;
        self.settle(part as usize);
        self.hashes.begin();
        false
    }

    #[inline]
    fn end(&mut self, part: Part) {
        self.hashes.end(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        collector::store::columns::Row as _,
        event::{Event, Kind, Verdict, samples::sample},
        wire::batch::{Batch, pack},
    };

    /// Events that are alike in most, and differ in one thing or another.
    fn alike(events: u64) -> Vec<Event> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut is = move |one_of: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 33).is_multiple_of(one_of)
        };
        (0..events)
            .map(|n| {
                let all = Kind::ALL.len() as u64;
                let kind = if is(3) {
                    Kind::ALL[(n % all) as usize]
                } else {
                    Kind::Open
                };
                let mut event = sample(kind);
                event.seq = n;
                event.ktime_ns += n;
                if is(2) {
                    event.verdict = Verdict::Allowed;
                    event.rule = None;
                }
                event.id = format!("{}-{n}", event.session.id);
                event.count += u64::from(is(4));
                event.errno = [None, Some(0), Some(13)][usize::from(is(3)) + usize::from(is(3))];
                if is(6) {
                    event.id = "an-id-of-its-own".into();
                }
                event.fold = is(5).then(|| event.id.clone());
                if is(4) {
                    event.session.policy = "0123456789ab".into();
                }
                if is(6) {
                    event.session.id = "another".into();
                }
                if let Some(process) = &mut event.process {
                    process.tid += u32::from(is(4));
                    process.argv_truncated = is(5);
                    if is(4) {
                        process.comm = "thread".into();
                    }
                    if is(3) {
                        process.argv.clear();
                    }
                    if is(4) {
                        process.cwd = "/elsewhere".into();
                    }
                    // When it started follows from the clocks, but for some.
                    let age = event.ktime_ns.cast_signed() - process.start_ns.cast_signed();
                    process.start = Some(event.time - jiff::SignedDuration::from_nanos(age));
                    if is(5) {
                        process.start = process
                            .start
                            .map(|start| start + jiff::SignedDuration::from_nanos(7));
                    }
                    if is(7) {
                        event.process = None;
                    }
                }
                event
            })
            .collect()
    }

    #[test]
    fn columns_say_what_the_rows_say() {
        let (many, few) = (alike(3000), alike(1000));
        let frames: Vec<Vec<u8>> = many.chunks(700).chain(few.chunks(2)).map(pack).collect();
        let batches: Vec<Batch<'_>> = frames
            .iter()
            .map(|frame| Batch::decode(frame).expect("a batch"))
            .collect();
        let rows: Vec<Unsealed<'_>> = batches
            .iter()
            .flat_map(|batch| batch.records.iter().map(move |record| (batch, record)))
            .zip(1..)
            .map(|((batch, record), no)| Unsealed { batch, record, no })
            .collect();
        let mut turned = Turned::new();
        // What is left of one group must not be seen in the next.
        for rows in rows.chunks(1300) {
            assert_eq!(turned.turn(rows), rows.len());
            for (column, buffer) in ALL.iter().zip(&turned.columns) {
                let name = COLUMNS[*column as usize].name;
                match buffer {
                    Buffer::Numbers(runs) => {
                        let told: Vec<_> = spread(runs);
                        let said: Vec<_> = rows.iter().map(|row| row.number(*column)).collect();
                        assert_eq!(told, said, "{name}");
                    }
                    Buffer::Texts(runs, memory) => {
                        let told: Vec<_> = spread(runs);
                        let said: Vec<_> = rows.iter().map(|row| row.text(*column)).collect();
                        assert_eq!(told, said, "{name}");
                        assert_eq!(*memory, runs.values.concat(), "{name}");
                    }
                }
            }
        }
        let mut plain = Groups::default();
        for row in &rows {
            plain.add(row);
        }
        assert_eq!(turned.hashes.finish(), plain.finish());
    }

    fn spread<V: Copy + Ord>(runs: &Runs<V>) -> Vec<Option<V>> {
        runs.iter()
            .flat_map(|(rows, value)| std::iter::repeat_n(value, rows))
            .collect()
    }
}
