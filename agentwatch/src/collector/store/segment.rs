//! Segments: Parquet files of sealed events, one column for each of [`COLUMNS`], open to any tool that reads Parquet.
//!
//! What was refused comes first, then what was allowed, each ordered by session, boot, kernel time and number: a session is two
//! runs of rows for each boot, and the refusals of all sessions stand together. A segment is
//! written once, under another name until it is whole and on disk, and never changed.

mod turn;
mod write;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, DataType},
    errors::ParquetError,
    file::{
        metadata::ParquetMetaData,
        properties::ReaderProperties,
        reader::{FileReader as _, RowGroupReader},
        serialized_reader::{ReadOptionsBuilder, SerializedFileReader},
        statistics::Statistics,
    },
};

use super::{
    StoreError,
    columns::{ALL, C, COLUMNS, Row},
};
pub(super) use write::Writer;

/// Most rows of a row group; a segment has a few.
const GROUP_ROWS: usize = 1 << 15;

/// More rows than a segment ever has: it is sealed by the time that it has a good half as many. A few bytes of a footer can tell of billions.
const MOST_ROWS: usize = 1 << 20;

/// The path of a segment below the history's directory.
pub(super) fn path(directory: &Path, no: i64) -> PathBuf {
    directory.join(DIRECTORY).join(format!("{no:010}.parquet"))
}

/// Name of the segments' directory.
pub const DIRECTORY: &str = "segments";

/// A segment to read from.
pub(super) struct Segment {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    /// Where each of our columns is in the file; one of an older version may lack the newest.
    places: Vec<Option<usize>>,
    rows: usize,
}

impl Segment {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, false)
    }

    /// With the filters that say which values are not in it.
    pub(super) fn open_with(path: &Path, bloom: bool) -> Result<Self, StoreError> {
        let file = File::open(path)
            .map_err(|error| StoreError::Segment(format!("{}: {error}", path.display())))?;
        let properties = ReaderProperties::builder()
            .set_read_bloom_filter(bloom)
            .build();
        let options = ReadOptionsBuilder::new()
            .with_reader_properties(properties)
            .build();
        let bytes = file.metadata()?.len();
        let reader = whole(path, || {
            SerializedFileReader::new_with_options(file, options)
        })?;
        if !placed(reader.metadata(), bytes) {
            return Err(StoreError::Segment(format!(
                "{}: its footer names places that are not in the file",
                path.display()
            )));
        }
        let rows = counted(reader.metadata()).ok_or_else(|| {
            StoreError::Segment(format!(
                "{}: its footer says {} rows, which are not those of its row groups, or more than {MOST_ROWS}",
                path.display(),
                reader.metadata().file_metadata().num_rows()
            ))
        })?;
        let described = reader.metadata().file_metadata().schema_descr();
        let places = COLUMNS
            .iter()
            .map(|column| {
                described
                    .columns()
                    .iter()
                    .position(|found| found.name() == column.name)
            })
            .collect();
        Ok(Self {
            path: path.to_owned(),
            reader,
            places,
            rows,
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether a text may be in a column of a row group; `true` where nothing says that it is not.
    fn may_hold(&self, group: &dyn RowGroupReader, column: C, text: &str) -> bool {
        let Some(place) = self.places.get(column as usize).copied().flatten() else {
            return false;
        };
        if let Some(statistics) = group.metadata().column(place).statistics()
            && let (Some(least), Some(most)) =
                (statistics.min_bytes_opt(), statistics.max_bytes_opt())
            && (text.as_bytes() < least || (text.as_bytes() > most && statistics.max_is_exact()))
        {
            return false;
        }
        group
            .get_column_bloom_filter(place)
            .is_none_or(|filter| filter.check(text.as_bytes()))
    }

    /// The rows of `from..to` that lie in row groups where every one of `equal` may hold.
    pub(super) fn narrowed(
        &self,
        from: usize,
        to: usize,
        equal: &[(C, String)],
    ) -> Result<Vec<(usize, usize)>, StoreError> {
        let mut kept = Vec::new();
        let mut start = 0;
        for index in 0..self.reader.num_row_groups() {
            let group = self
                .reader
                .get_row_group(index)
                .map_err(|error| self.at(error))?;
            let end = start + usize::try_from(group.metadata().num_rows()).unwrap_or(0);
            let (first, last) = (start.max(from), end.min(to));
            if first < last
                && equal
                    .iter()
                    .all(|(column, text)| self.may_hold(group.as_ref(), *column, text))
            {
                kept.push((first, last));
            }
            start = end;
        }
        Ok(kept)
    }

    /// The given rows, which ascend, with the given columns.
    pub(super) fn read(&self, columns: &[C], rows: &[u32]) -> Result<Chunk, StoreError> {
        let mut chunk = Chunk::new(rows.len());
        let mut start = 0u32;
        let mut rest = rows;
        for index in 0..self.reader.num_row_groups() {
            if rest.is_empty() {
                break;
            }
            let group = self
                .reader
                .get_row_group(index)
                .map_err(|error| self.at(error))?;
            let count = u32::try_from(group.metadata().num_rows()).unwrap_or(0);
            let end = start + count;
            let (mine, later) = rest.split_at(rest.partition_point(|row| *row < end));
            rest = later;
            if !mine.is_empty() {
                let runs = runs(mine, start);
                for column in columns {
                    if let Some(place) = self.places.get(*column as usize).copied().flatten() {
                        let Some(values) = chunk.values.get_mut(*column as usize) else {
                            continue;
                        };
                        let described = group.metadata().column(place);
                        if said(
                            described.statistics(),
                            count,
                            mine.len(),
                            chunk.filled,
                            values,
                        ) {
                            continue;
                        }
                        whole(&self.path, || {
                            let reader = group.get_column_reader(place)?;
                            read_column(reader, &runs, mine.len(), chunk.filled, values)
                        })?;
                    }
                }
                chunk.filled += mine.len();
                chunk.even_out(columns);
            }
            start = end;
        }
        if rest.is_empty() {
            Ok(chunk)
        } else {
            Err(StoreError::Segment(format!(
                "{}: it has {} rows and {} were to be there",
                self.path.display(),
                self.rows,
                rows.last().map_or(0, |row| row + 1)
            )))
        }
    }

    pub(super) fn read_range(
        &self,
        columns: &[C],
        from: usize,
        to: usize,
    ) -> Result<Chunk, StoreError> {
        let rows: Vec<u32> = (from as u32..to as u32).collect();
        self.read(columns, &rows)
    }

    fn at(&self, error: ParquetError) -> StoreError {
        at(&self.path, error)
    }
}

/// Rows that follow each other, as (how many to pass over first, how many to read).
fn runs(rows: &[u32], start: u32) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut next = start;
    for row in rows {
        match runs.last_mut() {
            Some((_, length)) if *row == next => *length += 1,
            _ => runs.push(((row - next) as usize, 1)),
        }
        next = row + 1;
    }
    runs
}

fn read_column(
    reader: ColumnReader,
    runs: &[(usize, usize)],
    rows: usize,
    before: usize,
    values: &mut Values,
) -> Result<(), ParquetError> {
    match reader {
        ColumnReader::Int64ColumnReader(reader) => {
            let (levels, read) = read_runs(reader, runs, rows)?;
            if !read.is_empty() {
                values.numbers(before, &levels, read);
            }
        }
        ColumnReader::ByteArrayColumnReader(reader) => {
            let (levels, read) = read_runs(reader, runs, rows)?;
            if !read.is_empty() {
                values.texts(before, &levels, read);
            }
        }
        _ => {
            return Err(ParquetError::General(
                "a column has a type that no version of ours writes".to_owned(),
            ));
        }
    }
    Ok(())
}

/// Takes a column's values from what the file says of it, where it has none in this row group, or the same in each row;
/// `false` where it must be read.
fn said(
    statistics: Option<&Statistics>,
    count: u32,
    rows: usize,
    before: usize,
    values: &mut Values,
) -> bool {
    let Some(statistics) = statistics else {
        return false;
    };
    match statistics.null_count_opt() {
        Some(nulls) if nulls == u64::from(count) => true,
        Some(0) if statistics.min_is_exact() && statistics.max_is_exact() => match statistics {
            Statistics::Int64(one) if one.min_opt() == one.max_opt() => match one.min_opt() {
                Some(value) => {
                    values.same_number(before, rows, *value);
                    true
                }
                None => false,
            },
            Statistics::ByteArray(one) if one.min_opt() == one.max_opt() => match one.min_opt() {
                Some(value) => {
                    values.same_text(before, rows, value);
                    true
                }
                None => false,
            },
            _ => false,
        },
        _ => false,
    }
}

fn read_runs<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    runs: &[(usize, usize)],
    rows: usize,
) -> Result<(Vec<i16>, Vec<T::T>), ParquetError> {
    let (mut levels, mut values) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for (skip, length) in runs {
        if *skip > 0 && reader.skip_records(*skip)? != *skip {
            return Err(ParquetError::EOF("a column ends early".to_owned()));
        }
        let mut left = *length;
        while left > 0 {
            let (read, ..) = reader.read_records(left, Some(&mut levels), None, &mut values)?;
            if read == 0 {
                return Err(ParquetError::EOF("a column ends early".to_owned()));
            }
            left -= read;
        }
    }
    Ok((levels, values))
}

/// Rows in memory.
pub(super) struct Chunk {
    pub(super) rows: usize,
    filled: usize,
    values: Vec<Values>,
}

/// One column of a chunk.
enum Values {
    /// Not read, or without a value in any row.
    Absent,
    Numbers(Vec<i64>, Vec<bool>),
    Texts(Vec<Option<ByteArray>>),
}

impl Values {
    /// Adds the rows of a row group; `before` rows came before.
    fn numbers(&mut self, before: usize, levels: &[i16], read: Vec<i64>) {
        if let Values::Absent = self {
            *self = Values::Numbers(vec![0; before], vec![false; before]);
        }
        if let Values::Numbers(values, there) = self {
            let mut read = read.into_iter();
            values.reserve(levels.len());
            for level in levels {
                there.push(*level > 0);
                values.push(if *level > 0 {
                    read.next().unwrap_or(0)
                } else {
                    0
                });
            }
        }
    }

    /// As [`Values::numbers`], of `rows` rows with the same value.
    fn same_number(&mut self, before: usize, rows: usize, value: i64) {
        if let Values::Absent = self {
            *self = Values::Numbers(vec![0; before], vec![false; before]);
        }
        if let Values::Numbers(values, there) = self {
            values.resize(before + rows, value);
            there.resize(before + rows, true);
        }
    }

    /// As [`Values::texts`], of `rows` rows with the same value.
    fn same_text(&mut self, before: usize, rows: usize, value: &ByteArray) {
        if let Values::Absent = self {
            *self = Values::Texts(vec![None; before]);
        }
        if let Values::Texts(values) = self {
            values.resize(before + rows, Some(value.clone()));
        }
    }

    fn texts(&mut self, before: usize, levels: &[i16], read: Vec<ByteArray>) {
        if let Values::Absent = self {
            *self = Values::Texts(vec![None; before]);
        }
        if let Values::Texts(values) = self {
            let mut read = read.into_iter();
            values.extend(
                levels
                    .iter()
                    .map(|level| if *level > 0 { read.next() } else { None }),
            );
        }
    }
}

impl Chunk {
    fn new(rows: usize) -> Self {
        Self {
            rows,
            filled: 0,
            values: ALL.iter().map(|_| Values::Absent).collect(),
        }
    }

    /// After a row group: a column that had no value in it is filled up.
    fn even_out(&mut self, columns: &[C]) {
        let filled = self.filled;
        for column in columns {
            match self.values.get_mut(*column as usize) {
                Some(Values::Numbers(values, there)) => fill(values, there, filled),
                Some(Values::Texts(values)) if values.len() < filled => {
                    values.resize(filled, None);
                }
                _ => {}
            }
        }
    }

    pub(super) fn row(&self, index: usize) -> ChunkRow<'_> {
        ChunkRow { chunk: self, index }
    }
}

fn fill(values: &mut Vec<i64>, there: &mut Vec<bool>, filled: usize) {
    values.resize(filled.max(values.len()), 0);
    there.resize(filled.max(there.len()), false);
}

/// A row of a chunk.
pub(super) struct ChunkRow<'a> {
    chunk: &'a Chunk,
    index: usize,
}

impl Row for ChunkRow<'_> {
    fn number(&self, column: C) -> Option<i64> {
        match self.chunk.values.get(column as usize)? {
            Values::Numbers(values, there) if there.get(self.index) == Some(&true) => {
                values.get(self.index).copied()
            }
            _ => None,
        }
    }

    fn text(&self, column: C) -> Option<&str> {
        match self.chunk.values.get(column as usize)? {
            Values::Texts(values) => values.get(self.index)?.as_ref()?.as_utf8().ok(),
            _ => None,
        }
    }

    fn bytes(&self, column: C) -> Option<&[u8]> {
        match self.chunk.values.get(column as usize)? {
            Values::Texts(values) => Some(values.get(self.index)?.as_ref()?.data()),
            _ => None,
        }
    }
}

/// How many rows there are; none where the footer contradicts itself, or tells of more than anybody writes.
fn counted(metadata: &ParquetMetaData) -> Option<usize> {
    let mut groups = metadata.row_groups().iter();
    let sum = groups.try_fold(0i64, |sum, group| {
        let rows = group.num_rows();
        (rows >= 0).then(|| sum.checked_add(rows)).flatten()
    })?;
    let rows = usize::try_from(sum).ok()?;
    (sum == metadata.file_metadata().num_rows() && rows <= MOST_ROWS).then_some(rows)
}

/// Whether every column lies in the file, as its footer says; the library takes that for granted.
fn placed(metadata: &ParquetMetaData, bytes: u64) -> bool {
    metadata
        .row_groups()
        .iter()
        .flat_map(|group| group.columns())
        .all(|column| {
            let start = column
                .dictionary_page_offset()
                .unwrap_or(column.data_page_offset());
            start
                .checked_add(column.compressed_size())
                .is_some_and(|end| {
                    start >= 0 && column.compressed_size() >= 0 && end.cast_unsigned() <= bytes
                })
        })
}

/// What the library makes of a file that anybody may have edited: it is written for whole files, and meets some
/// damage with a panic.
fn whole<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, StoreError> {
    // What was filled half is dropped with the error.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| at(path, error)),
        Err(_) => Err(StoreError::Segment(format!(
            "{}: it is damaged, in a way that its reader does not expect",
            path.display()
        ))),
    }
}

fn failed(error: ParquetError) -> StoreError {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(io) => (*io).into(),
            Err(other) => StoreError::Segment(other.to_string()),
        },
        other => StoreError::Segment(other.to_string()),
    }
}

fn at(path: &Path, error: ParquetError) -> StoreError {
    StoreError::Segment(format!("{}: {error}", path.display()))
}
