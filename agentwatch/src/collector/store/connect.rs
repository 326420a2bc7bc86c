//! Connections that can only read.

use std::path::Path;

use jiff::fmt::temporal::DateTimePrinter;
use rusqlite::{Connection, OpenFlags, functions::FunctionFlags};

use super::{BUSY, FILE, StoreError, table};
use crate::wire::batch::timestamp;

/// A connection that can only read, without the tables and views of responders.
pub(super) fn bare(directory: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(directory.join(FILE), flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "temp_store", "FILE")?;
    Ok(connection)
}

/// A connection that can only read. Reading events ends when `is_over` says so.
pub(super) fn with_views(
    directory: &Path,
    is_over: table::IsOver,
) -> Result<Connection, StoreError> {
    let connection = bare(directory)?;
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
