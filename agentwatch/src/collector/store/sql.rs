//! Free SQL for those who may see everything.
//!
//! Four things keep it from writing, each enough: a read-only connection, `query_only`, an authorizer that knows only
//! reading, and a check of the prepared statement. Time, values and rows are bounded, so that a question costs no more
//! than it says.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::{
    ffi::ErrorCode,
    hooks::{AuthAction, AuthContext, Authorization},
    limits::Limit,
    types::ValueRef,
};

use super::{StoreError, connect, table::IsOver};

/// Most rows in a part.
const PART_ROWS: usize = 500;
/// A part ends with the row that brings it beyond this, in bytes of JSON.
const PART_BYTES: usize = 1 << 20;
/// Longest row, in bytes of JSON: with [`PART_BYTES`] it stays below a frame.
const ROW_BYTES: usize = 4 << 20;
/// Longest value that a statement may make, in bytes.
const VALUE_BYTES: i32 = 2 << 20;
/// Virtual instructions between two looks at the clock.
const LOOK_EVERY: i32 = 10_000;

/// Statements of these pragmas read the layout and nothing else.
const PRAGMAS: [&str; 7] = [
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "user_version",
    "compile_options",
];

/// What bounds a statement from outside.
pub struct SqlLimits {
    /// Time that SQLite may spend; waiting for the asker to read does not count.
    pub time: Duration,
    /// Set when the answer is no longer wanted.
    pub cancelled: Arc<AtomicBool>,
}

/// A part of the result.
pub enum Part {
    Columns(Vec<String>),
    /// A list of rows, each a list of values, as JSON.
    Rows(Vec<u8>),
}

/// Runs one statement that reads, and hands its result on in parts until `emit` says `false`.
pub fn run(
    directory: &Path,
    sql: &str,
    limits: &SqlLimits,
    mut emit: impl FnMut(Part) -> bool,
) -> Result<(), StoreError> {
    let clock = Arc::new(Clock {
        begun: Instant::now(),
        end_ns: AtomicU64::new(whole_nanoseconds(limits.time)),
    });
    let (watched, cancelled) = (Arc::clone(&clock), Arc::clone(&limits.cancelled));
    let is_over: IsOver = Arc::new(move || watched.is_over() || cancelled.load(Ordering::Relaxed));
    let connection = connect::with_views(directory, Arc::clone(&is_over))?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.authorizer(Some(authorize));
    connection.progress_handler(LOOK_EVERY, Some(move || is_over()));

    let mut statement = connection.prepare(sql).map_err(explain)?;
    if !statement.readonly() {
        return Err(refused());
    }
    if statement.column_count() == 0 {
        return Err(StoreError::Question(
            "the statement returns nothing; only statements that read can be asked".to_owned(),
        ));
    }
    let columns: Vec<String> = statement
        .column_names()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let width = columns.len();
    if !emit(Part::Columns(columns)) {
        return Ok(());
    }
    let mut rows = statement.query([]).map_err(explain)?;
    let (mut part, mut held) = (Vec::new(), 0);
    while let Some(row) = rows.next().map_err(explain)? {
        let begun = part.len();
        part.push(if held == 0 { b'[' } else { b',' });
        for index in 0..width {
            part.push(if index == 0 { b'[' } else { b',' });
            write(&mut part, row.get_ref(index)?);
            if part.len() - begun > ROW_BYTES {
                return Err(StoreError::Question(format!(
                    "a row is longer than {ROW_BYTES} bytes: ask for fewer columns"
                )));
            }
        }
        part.push(b']');
        held += 1;
        if held >= PART_ROWS || part.len() > PART_BYTES {
            part.push(b']');
            let waiting = Instant::now();
            if !emit(Part::Rows(std::mem::take(&mut part))) {
                return Ok(());
            }
            clock.extend(waiting.elapsed());
            held = 0;
        }
    }
    if held > 0 {
        part.push(b']');
        emit(Part::Rows(part));
    }
    Ok(())
}

/// The end of a statement's time, which moves while the asker is awaited.
struct Clock {
    begun: Instant,
    end_ns: AtomicU64,
}

impl Clock {
    fn extend(&self, by: Duration) {
        self.end_ns
            .fetch_add(whole_nanoseconds(by), Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        whole_nanoseconds(self.begun.elapsed()) > self.end_ns.load(Ordering::Relaxed)
    }
}

fn authorize(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => {
            Authorization::Allow
        }
        AuthAction::Function { function_name }
            if !function_name.eq_ignore_ascii_case("load_extension") =>
        {
            Authorization::Allow
        }
        AuthAction::Pragma { pragma_name, .. }
            if PRAGMAS
                .iter()
                .any(|known| pragma_name.eq_ignore_ascii_case(known)) =>
        {
            Authorization::Allow
        }
        _ => Authorization::Deny,
    }
}

fn refused() -> StoreError {
    StoreError::Question(
        "the statement was refused: the history can only be read, with SELECT".to_owned(),
    )
}

/// SQLite's error in words for the asker.
fn explain(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::AuthorizationForStatementDenied | ErrorCode::ReadOnly) => refused(),
        Some(ErrorCode::OperationInterrupted) => {
            StoreError::Question("the statement took too long and was stopped\nhint: restrict it, by session_id or time_ns".to_owned())
        }
        Some(ErrorCode::TooBig) => StoreError::Question(format!("the statement makes a value longer than {VALUE_BYTES} bytes")),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => error.into(),
        // SQLite's own word on a table that a module reads, which comes before the authorizer is asked.
        _ if error.to_string().contains("may not be modified") => refused(),
        _ => StoreError::Question(format!("the statement cannot be run: {error}")),
    }
}

/// A value as JSON: straight from SQLite's memory, because answers have hundreds of thousands of them.
fn write(json: &mut Vec<u8>, value: ValueRef<'_>) {
    let written = match value {
        ValueRef::Null => serde_json::to_writer(json, &()),
        ValueRef::Integer(number) => serde_json::to_writer(json, &number),
        // Infinite numbers have no form in JSON and become null.
        ValueRef::Real(number) => serde_json::to_writer(json, &number),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => serde_json::to_writer(json, text),
            Err(_) => serde_json::to_writer(json, &String::from_utf8_lossy(text)),
        },
        ValueRef::Blob(bytes) => serde_json::to_writer(json, &hex::encode(bytes)),
    };
    written.expect("plain types into memory");
}

fn whole_nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
