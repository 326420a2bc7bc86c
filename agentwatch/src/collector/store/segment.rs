//! Segments: Parquet files of sealed events, one column for each of [`COLUMNS`], open to any tool that reads Parquet.
//!
//! What was refused comes first, then what was allowed, each ordered by session, boot, kernel time and number: a session is two
//! runs of rows for each boot, and the refusals of all sessions stand together. A segment is
//! written once, under another name until it is whole and on disk, and never changed.

use std::{
    fs::{self, File},
    hint::black_box,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parquet::{
    basic::{Compression, Encoding, LogicalType, Repetition, Type as Physical, ZstdLevel},
    column::{
        reader::{ColumnReader, ColumnReaderImpl},
        writer::ColumnWriter,
    },
    data_type::{ByteArray, DataType},
    errors::ParquetError,
    file::{
        metadata::ParquetMetaData,
        properties::{EnabledStatistics, ReaderProperties, WriterProperties},
        reader::{FileReader as _, RowGroupReader},
        serialized_reader::{ReadOptionsBuilder, SerializedFileReader},
        statistics::Statistics,
        writer::SerializedFileWriter,
    },
    schema::types::{ColumnPath, Type},
};

use super::{
    StoreError,
    columns::{ALL, C, COLUMNS, Row, Take, Unsealed},
    hash::Groups,
};
use crate::event::Verdict;

/// Most rows of a row group; a segment has a few.
const GROUP_ROWS: usize = 1 << 15;
/// Rows of a page: what must be decoded to get at one row.
const PAGE_ROWS: usize = 4096;
/// Rows whose memory is asked for together before they are looked at: rows in order lie all over the batches that they came in, and
/// the processor waits for many places at once as long as for one.
const WARM_ROWS: usize = 16;
/// Values that are handed to the writer at once.
const WRITE_ROWS: usize = 8192;
/// Columns that change with every row: differences are shorter there than a dictionary.
const DELTAS: [C; 4] = [C::No, C::Time, C::Ktime, C::Seq];
/// Columns that are as short without compression: of few values, or with numbers packed into bits. Setting a compressor up costs
/// more than it saves there, for who writes and for who asks.
const BARE: [C; 19] = [
    C::No,
    C::Time,
    C::Ktime,
    C::Seq,
    C::Policy,
    C::Mode,
    C::Kind,
    C::Verdict,
    C::Errno,
    C::RuleId,
    C::RuleLayer,
    C::Uid,
    C::Gid,
    C::Dev,
    C::Access,
    C::Flags,
    C::Family,
    C::SockType,
    C::Port,
];
/// Columns that questions name values of.
const BLOOM: [C; 3] = [C::Path, C::Addr, C::Domain];

/// The path of a segment below the history's directory.
pub(super) fn path(directory: &Path, no: i64) -> PathBuf {
    directory.join(DIRECTORY).join(format!("{no:010}.parquet"))
}

/// Name of the segments' directory.
pub const DIRECTORY: &str = "segments";

/// Writes rows, which are in their order, to a new file, and returns their hashes when it is on disk under its name.
pub(super) fn write(path: &Path, rows: &[Unsealed<'_>]) -> Result<String, StoreError> {
    let temporary = path.with_extension("parquet.tmp");
    let result = write_to(&temporary, rows).and_then(|hashes| {
        settle(&temporary, path)?;
        Ok(hashes)
    });
    if result.is_err() {
        // What is left of it is of no use; the next attempt writes over it.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Gives a file that is on disk its name, and brings the name to disk.
pub(super) fn settle(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn write_to(path: &Path, rows: &[Unsealed<'_>]) -> Result<String, StoreError> {
    let file = private(path)?;
    let buffered = io::BufWriter::with_capacity(1 << 18, file);
    let mut writer =
        SerializedFileWriter::new(buffered, schema()?, Arc::new(properties()?)).map_err(failed)?;
    let mut turned = Turned::new(rows.len().min(GROUP_ROWS));
    let mut texts = Texts::default();
    // What was refused is asked for by itself, and few: it has row groups of its own.
    let refused = rows.partition_point(|row| row.verdict() != Verdict::Allowed);
    let (refused, allowed) = rows.split_at(refused);
    for group in refused.chunks(GROUP_ROWS).chain(allowed.chunks(GROUP_ROWS)) {
        turned.turn(group);
        let mut group_writer = writer.next_row_group().map_err(failed)?;
        for buffer in &turned.columns {
            let mut column_writer = group_writer
                .next_column()
                .map_err(failed)?
                .ok_or_else(|| StoreError::Segment("the layout has too few columns".to_owned()))?;
            write_column(column_writer.untyped(), buffer, &mut texts).map_err(failed)?;
            column_writer.close().map_err(failed)?;
        }
        group_writer.close().map_err(failed)?;
    }
    let buffered = writer.into_inner().map_err(failed)?;
    let file = buffered
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(turned.hashes.finish())
}

/// A column of some rows: which of them have a value (none, until one is told), and the values.
enum Buffer<'a> {
    Numbers(Vec<i16>, Vec<i64>),
    Texts(Vec<i16>, Vec<&'a str>),
}

/// Rows as columns. Each row is looked at once, because going through all rows for every column costs a miss of the
/// processor's cache each time; so the hashes are made here too. The memory of one row group serves the next.
struct Turned<'a> {
    columns: [Buffer<'a>; ALL.len()],
    /// The row that is looked at.
    row: usize,
    hashes: Groups,
}

impl<'a> Turned<'a> {
    fn new(rows: usize) -> Self {
        let levels = || Vec::with_capacity(rows);
        Self {
            columns: std::array::from_fn(|index| {
                if COLUMNS[index].is_text() {
                    Buffer::Texts(levels(), Vec::new())
                } else {
                    Buffer::Numbers(levels(), Vec::new())
                }
            }),
            row: 0,
            hashes: Groups::default(),
        }
    }

    fn turn(&mut self, rows: &'a [Unsealed<'a>]) {
        for buffer in &mut self.columns {
            match buffer {
                Buffer::Numbers(levels, values) => {
                    levels.clear();
                    levels.resize(rows.len(), 0);
                    values.clear();
                }
                Buffer::Texts(levels, values) => {
                    levels.clear();
                    levels.resize(rows.len(), 0);
                    values.clear();
                }
            }
        }
        for (block, rows) in rows.chunks(WARM_ROWS).enumerate() {
            black_box(rows.iter().fold(0, |sum, row| row.warm().wrapping_add(sum)));
            for (index, row) in rows.iter().enumerate() {
                self.row = block * WARM_ROWS + index;
                row.each(self);
                self.hashes.end_row();
            }
        }
    }
}

impl<'a> Take<'a> for Turned<'a> {
    #[inline]
    fn number(&mut self, column: C, value: Option<i64>) {
        self.hashes.number(value);
        if let (Some(value), Buffer::Numbers(levels, values)) =
            (value, &mut self.columns[column as usize])
        {
            levels[self.row] = 1;
            values.push(value);
        }
    }

    #[inline]
    fn text(&mut self, column: C, value: Option<&'a str>) {
        self.hashes.text(value);
        if let (Some(value), Buffer::Texts(levels, values)) =
            (value, &mut self.columns[column as usize])
        {
            levels[self.row] = 1;
            values.push(value);
        }
    }
}

/// A new file that only the collector's user can read.
pub(super) fn private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

fn write_column(
    writer: &mut ColumnWriter<'_>,
    buffer: &Buffer<'_>,
    shared: &mut Texts,
) -> Result<(), ParquetError> {
    match (writer, buffer) {
        (ColumnWriter::Int64ColumnWriter(writer), Buffer::Numbers(levels, values)) => {
            writer.write_batch(values, Some(levels), None)?;
        }
        (ColumnWriter::ByteArrayColumnWriter(writer), Buffer::Texts(levels, texts)) => {
            let mut texts = texts.as_slice();
            for levels in levels.chunks(WRITE_ROWS) {
                let here = levels.iter().filter(|level| **level > 0).count();
                let (mine, later) = texts.split_at(here.min(texts.len()));
                texts = later;
                writer.write_batch(shared.of(mine), Some(levels), None)?;
                shared.values.clear();
            }
        }
        _ => {
            return Err(ParquetError::General("a column of another type".to_owned()));
        }
    }
    Ok(())
}

/// Texts as the library wants them, all in one piece of memory. Most columns say the same in row after row, which stands there once.
#[derive(Default)]
struct Texts {
    places: Vec<Range<usize>>,
    values: Vec<ByteArray>,
}

impl Texts {
    fn of(&mut self, texts: &[&str]) -> &[ByteArray] {
        self.places.clear();
        self.values.clear();
        let mut place = 0..0;
        let mut last = None;
        for text in texts.iter().copied() {
            if !last.is_some_and(|last| std::ptr::eq(last, text) || last == text) {
                place = place.end..place.end + text.len();
                last = Some(text);
            }
            self.places.push(place.clone());
        }
        let mut memory = Vec::with_capacity(place.end);
        for (place, text) in self.places.iter().zip(texts) {
            if place.end > memory.len() {
                memory.extend_from_slice(text.as_bytes());
            }
        }
        let memory = Bytes::from(memory);
        self.values.extend(
            self.places
                .iter()
                .map(|place| ByteArray::from(memory.slice(place.clone()))),
        );
        &self.values
    }
}

/// Numbers are plain 64-bit integers, also times: not every reader takes timestamps of nanoseconds. There are no field ids, because
/// Iceberg adopts only files without.
fn schema() -> Result<Arc<Type>, StoreError> {
    let fields = COLUMNS
        .iter()
        .map(|column| {
            let (physical, logical) = if column.is_text() {
                (Physical::BYTE_ARRAY, Some(LogicalType::String))
            } else {
                (Physical::INT64, None)
            };
            Type::primitive_type_builder(column.name, physical)
                .with_repetition(Repetition::OPTIONAL)
                .with_logical_type(logical)
                .build()
                .map(Arc::new)
        })
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    Type::group_type_builder("event")
        .with_fields(fields)
        .build()
        .map(Arc::new)
        .map_err(failed)
}

fn properties() -> Result<WriterProperties, StoreError> {
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("agentwatch ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).map_err(failed)?))
        .set_max_row_group_row_count(None)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        // Paths of a whole row group fit, which is shorter than each of them in each row.
        .set_dictionary_page_size_limit(4 << 20)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true);
    for column in DELTAS {
        let path = ColumnPath::from(COLUMNS[column as usize].name);
        builder = builder
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
    }
    for column in BARE {
        let path = ColumnPath::from(COLUMNS[column as usize].name);
        builder = builder.set_column_compression(path, Compression::UNCOMPRESSED);
    }
    for column in BLOOM {
        let path = ColumnPath::from(COLUMNS[column as usize].name);
        builder = builder
            .set_column_bloom_filter_fpp(path.clone(), 0.02)
            .set_column_bloom_filter_max_ndv(path, GROUP_ROWS as u64);
    }
    Ok(builder.build())
}

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
        let metadata = reader.metadata().file_metadata();
        let rows = usize::try_from(metadata.num_rows()).unwrap_or(0);
        let described = metadata.schema_descr();
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
