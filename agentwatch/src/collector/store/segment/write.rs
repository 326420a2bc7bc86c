//! Segments as they are written.
//!
//! Column by column: what the library makes of a column of a row group is a chunk, which is appended to the file. What says the same
//! in each row of a full group is made once, and serves in every segment.

use std::{
    collections::HashMap,
    fs::{self, File},
    io, iter,
    ops::Range,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use parquet::{
    basic::{Compression, Encoding, LogicalType, Repetition, Type as Physical, ZstdLevel},
    column::writer::{ColumnCloseResult, ColumnWriter, get_column_writer},
    data_type::ByteArray,
    errors::ParquetError,
    file::{
        properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr},
        statistics::Statistics,
        writer::{SerializedFileWriter, SerializedPageWriter, TrackedWrite},
    },
    schema::types::{ColumnPath, SchemaDescPtr, SchemaDescriptor, Type},
};

use super::{
    GROUP_ROWS, failed,
    turn::{Buffer, Runs, Turned},
};
use crate::{
    collector::store::{
        StoreError,
        columns::{C, COLUMNS, Unsealed},
    },
    event::Verdict,
};

/// Rows of a page: what must be decoded to get at one row.
const PAGE_ROWS: usize = 4096;
/// Values that are handed to the writer at once.
const WRITE_ROWS: usize = 8192;
/// Numbers whose differences are as short as a dictionary, and cheaper to make: they change with every row, or hardly ever.
const DELTAS: [C; 14] = [
    C::No,
    C::Time,
    C::Ktime,
    C::Seq,
    C::V,
    C::Count,
    C::Errno,
    C::Pid,
    C::Tid,
    C::Ppid,
    C::Uid,
    C::Gid,
    C::Dev,
    C::Port,
];
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

/// Texts that are longer stand in no statistics: footers stay short.
const MOST_SAID: usize = 1024;

/// Full row groups of one value that are kept, for each column and value.
const CONSTANTS: usize = 256;

/// What writes segments, one after the other.
pub(in crate::collector::store) struct Writer {
    schema: SchemaDescPtr,
    properties: WriterPropertiesPtr,
    /// Chunks of full row groups in which every row says the same: they differ in nothing else.
    constants: HashMap<(usize, Option<Value>), Chunk>,
    levels: Vec<i16>,
    numbers: Vec<i64>,
    texts: Vec<ByteArray>,
}

/// A value of a column.
#[derive(PartialEq, Eq, Hash)]
enum Value {
    Number(i64),
    Text(String),
}

/// A column of a row group as it stands in a file, and what the footer says of it.
#[derive(Clone)]
struct Chunk {
    bytes: Bytes,
    close: ColumnCloseResult,
}

impl Writer {
    pub(in crate::collector::store) fn new() -> Result<Self, StoreError> {
        Ok(Self {
            schema: Arc::new(SchemaDescriptor::new(schema()?)),
            properties: Arc::new(properties()?),
            constants: HashMap::new(),
            levels: Vec::new(),
            numbers: Vec::new(),
            texts: Vec::new(),
        })
    }

    /// Writes rows, which are in their order, to a new file, and returns their hashes when it is on disk under its name.
    pub(in crate::collector::store) fn write(
        &mut self,
        path: &Path,
        rows: &[Unsealed<'_>],
    ) -> Result<String, StoreError> {
        let temporary = path.with_extension("parquet.tmp");
        let result = self.write_to(&temporary, rows).and_then(|hashes| {
            settle(&temporary, path)?;
            Ok(hashes)
        });
        if result.is_err() {
            // What is left of it is of no use; the next attempt writes over it.
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    fn write_to(&mut self, path: &Path, rows: &[Unsealed<'_>]) -> Result<String, StoreError> {
        let file = private(path)?;
        let buffered = io::BufWriter::with_capacity(1 << 18, file);
        let mut writer = SerializedFileWriter::new(
            buffered,
            self.schema.root_schema_ptr(),
            Arc::clone(&self.properties),
        )
        .map_err(failed)?;
        let mut turned = Turned::new();
        // What was refused is asked for by itself, and few: it has row groups of its own.
        let refused = rows.partition_point(|row| row.verdict() != Verdict::Allowed);
        let (refused, allowed) = rows.split_at(refused);
        let mut rest = [refused, allowed];
        while let Some(rows) = rest.iter_mut().find(|rows| !rows.is_empty()) {
            let taken = turned.turn(rows);
            *rows = &rows[taken..];
            let mut group_writer = writer.next_row_group().map_err(failed)?;
            for (place, buffer) in turned.columns.iter().enumerate() {
                let chunk = match buffer {
                    Buffer::Numbers(runs) => {
                        let constant = runs.constant().map(|said| said.map(Value::Number));
                        self.chunk(place, buffer, taken, constant)
                    }
                    Buffer::Texts(runs, _) => {
                        let text = |text: &str| Value::Text(text.to_owned());
                        let constant = runs.constant().map(|said| said.map(text));
                        self.chunk(place, buffer, taken, constant)
                    }
                };
                chunk
                    .and_then(|chunk| group_writer.append_column(&chunk.bytes, chunk.close))
                    .map_err(failed)?;
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

    /// A column of a row group, which may say the same in each of its rows.
    fn chunk(
        &mut self,
        place: usize,
        buffer: &Buffer<'_>,
        rows: usize,
        constant: Option<Option<Value>>,
    ) -> Result<Chunk, ParquetError> {
        let Some(constant) = constant.filter(|_| rows == GROUP_ROWS) else {
            return self.encode(place, buffer);
        };
        let constant = (place, constant);
        if let Some(chunk) = self.constants.get(&constant) {
            return Ok(chunk.clone());
        }
        let chunk = self.encode(place, buffer)?;
        if self.constants.len() >= CONSTANTS {
            self.constants.clear();
        }
        self.constants.insert(constant, chunk.clone());
        Ok(chunk)
    }

    fn encode(&mut self, place: usize, buffer: &Buffer<'_>) -> Result<Chunk, ParquetError> {
        let mut bytes = TrackedWrite::new(Vec::new());
        let mut writer = get_column_writer(
            self.schema.column(place),
            Arc::clone(&self.properties),
            Box::new(SerializedPageWriter::new(&mut bytes)),
        );
        let statistics = match (&mut writer, buffer) {
            (ColumnWriter::Int64ColumnWriter(writer), Buffer::Numbers(runs)) => {
                let (levels, numbers) = (&mut self.levels, &mut self.numbers);
                let same = |number| number;
                spread(runs, levels, numbers, same, |levels, numbers| {
                    writer.write_batch(numbers, Some(levels), None).map(drop)
                })?;
                let (least, greatest) = bounds(runs.values.iter().copied()).unzip();
                Statistics::int64(least, greatest, None, Some(runs.absent()), false)
            }
            (ColumnWriter::ByteArrayColumnWriter(writer), Buffer::Texts(runs, memory)) => {
                let (levels, texts) = (&mut self.levels, &mut self.texts);
                let shared = Bytes::copy_from_slice(memory.as_bytes());
                let mut place = places(&runs.values);
                let placed = |_| ByteArray::from(shared.slice(place.next().unwrap_or_default()));
                spread(runs, levels, texts, placed, |levels, texts| {
                    writer.write_batch(texts, Some(levels), None).map(drop)
                })?;
                let said = places(&runs.values).filter_map(|place| memory.get(place));
                let (least, greatest) = bounds(said)
                    .filter(|(least, greatest)| least.len().max(greatest.len()) <= MOST_SAID)
                    .map(|(least, greatest)| (ByteArray::from(least), ByteArray::from(greatest)))
                    .unzip();
                Statistics::byte_array(least, greatest, None, Some(runs.absent()), false)
            }
            _ => return Err(ParquetError::General("a column of another type".to_owned())),
        };
        let mut close = writer.close()?;
        close.metadata = close
            .metadata
            .into_builder()
            .set_statistics(statistics)
            .build()?;
        Ok(Chunk {
            bytes: bytes.into_inner()?.into(),
            close,
        })
    }
}

/// A new file that only the collector's user can read.
fn private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Gives a file that is on disk its name, and brings the name to disk.
fn settle(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Where each text is, when they stand one after the other.
fn places(texts: &[&str]) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    texts.iter().map(move |text| {
        let from = end;
        end += text.len();
        from..end
    })
}

/// The least and the greatest value, where there is any.
fn bounds<V: Ord + Copy>(mut values: impl Iterator<Item = V>) -> Option<(V, V)> {
    let first = values.next()?;
    Some(values.fold((first, first), |(least, greatest), value| {
        (least.min(value), greatest.max(value))
    }))
}

/// Hands on the rows of runs one by one, some at a time: whether each has a value, and the values.
fn spread<V: Copy + Ord, T: Clone>(
    runs: &Runs<V>,
    levels: &mut Vec<i16>,
    values: &mut Vec<T>,
    mut made: impl FnMut(V) -> T,
    mut write: impl FnMut(&[i16], &[T]) -> Result<(), ParquetError>,
) -> Result<(), ParquetError> {
    levels.clear();
    values.clear();
    for (mut rows, value) in runs.iter() {
        let level = i16::from(value.is_some());
        let value = value.map(&mut made);
        while rows > 1 {
            let here = (rows - 1).min(WRITE_ROWS - levels.len());
            rows -= here;
            levels.extend(iter::repeat_n(level, here));
            if let Some(value) = &value {
                values.extend(iter::repeat_n(value, here).cloned());
            }
            if levels.len() == WRITE_ROWS {
                write(levels, values)?;
                levels.clear();
                values.clear();
            }
        }
        // Most runs are of one row: its value is not copied.
        levels.push(level);
        if let Some(value) = value {
            values.push(value);
        }
        if levels.len() == WRITE_ROWS {
            write(levels, values)?;
            levels.clear();
            values.clear();
        }
    }
    if !levels.is_empty() {
        write(levels, values)?;
    }
    values.clear();
    Ok(())
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
        // They are made from runs, which is cheaper than from rows.
        .set_statistics_enabled(EnabledStatistics::None)
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
