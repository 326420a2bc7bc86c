//! The history on disk: the only code that knows SQLite and Parquet.
//!
//! Events come in batches, which SQLite keeps as they came: the tail. When enough have gathered they are sealed into a
//! [`segment`], a Parquet file that is never changed again. SQLite also holds what is derived: sessions, refusals,
//! destinations, and where in which segment a session's events are. [`table`] is all events as one table of SQL.
//!
//! One [`Store`] owns the connection that writes; every question gets a [`Reader`] of its own, so that reads go on
//! while events are stored. What [`Store::insert`] has returned from is on disk. A damaged file is set aside and
//! never repaired in place or deleted, because it may be evidence.

mod account;
mod columns;
mod connect;
pub(crate) mod feed;
mod hash;
mod insert;
mod quarantine;
mod read;
mod seal;
mod segment;
mod sql;
mod table;
pub mod verify;

use std::{
    collections::{HashMap, HashSet},
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

pub use read::{Page, Reader, Scan, Viewer};
pub use seal::{Order, Retention, SEGMENT_EVENTS, Sealed, Sealer};
pub use segment::DIRECTORY as SEGMENTS;
pub use sql::{Part, SqlLimits, run as run_sql};

use super::chain::{Head, Key};
use crate::{event::Event, event::account::Numbers};

/// File name of the history below the state directory.
pub const FILE: &str = "history.db";

/// Version of the tables and views, kept as SQLite's `user_version`.
pub const SCHEMA_VERSION: u32 = 3;

/// The tables of an empty history. Versions before were never released.
const SCHEMA: &str = include_str!("schema.sql");

/// How long a statement waits for another connection's lock.
const BUSY: Duration = Duration::from_secs(10);
/// Up to this size a file is checked as a whole when it is opened; above, only where tables and indexes begin and end,
/// because reading gigabytes would keep the daemon waiting. Damage that shows later is met by [`Store::replace`].
const CHECKED_WHOLE: u64 = 64 << 20;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no space is left for the history")]
    Full,
    #[error("the history is damaged: {0}")]
    Corrupt(String),
    #[error("the history has version {found} and this agentwatch knows up to {SCHEMA_VERSION}")]
    Newer { found: u32 },
    #[error("{0}")]
    Io(std::io::Error),
    /// A segment cannot be read or written; the text names it.
    #[error("a segment of the history: {0}\nhint: `agentwatch verify` says what is damaged")]
    Segment(String),
    /// What is to be stored has to be compared with a segment that is not what it was.
    #[error("segment {segment} of the history is damaged: {why}")]
    Damaged { segment: i64, why: String },
    /// What was sent is no batch.
    #[error("what was sent is not a batch of events: {0}")]
    Batch(String),
    #[error("{0}")]
    Sql(rusqlite::Error),
    #[error("event {id} in the history is not one that is known here: {error}")]
    Decode { id: i64, error: serde_json::Error },
    /// The question cannot be answered; the text says why.
    #[error("{0}")]
    Question(String),
}

impl StoreError {
    /// Whether the history's files may not be used, as the kernel says it or as SQLite passes it on.
    pub(super) fn is_permission(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, PermissionDenied, ReadOnly};
        use std::io::ErrorKind;
        match self {
            StoreError::Io(error) => matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            ),
            StoreError::Sql(error) => matches!(
                error.sqlite_error_code(),
                Some(CannotOpen | PermissionDenied | ReadOnly)
            ),
            _ => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
        match error.sqlite_error_code() {
            Some(DiskFull) => StoreError::Full,
            Some(DatabaseCorrupt | NotADatabase) => StoreError::Corrupt(error.to_string()),
            _ => StoreError::Sql(error),
        }
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::Full,
            _ => StoreError::Io(error),
        }
    }
}

pub use crate::event::host::Host;

/// Has SQLite keep what a question sorts on disk, in `directory`, instead of in memory without bound. Once for a process, and
/// before it opens a history.
pub fn sort_in(directory: &Path) -> Result<(), StoreError> {
    use std::os::unix::ffi::OsStrExt as _;
    static ONCE: std::sync::Once = std::sync::Once::new();
    let path = directory.join("sort");
    std::fs::create_dir_all(&path)?;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|error| StoreError::Io(error.into()))?;
    ONCE.call_once(|| {
        // SAFETY: the variable is written once, and SQLite's documentation asks for memory of its own allocator in it.
        unsafe {
            rusqlite::ffi::sqlite3_temp_directory =
                rusqlite::ffi::sqlite3_mprintf(c"%s".as_ptr(), path.as_ptr());
        }
    });
    Ok(())
}

/// The connection that writes.
pub struct Store {
    connection: Connection,
    directory: PathBuf,
    host: Host,
    key: std::sync::Arc<Key>,
    /// Events of a segment.
    pub segment_events: usize,
    /// What the tables are known to hold already. Forgotten when a transaction fails.
    known: Known,
}

#[derive(Default)]
struct Known {
    sessions: HashMap<String, i64>,
    /// By boot id: number and largest offset of the boot.
    boots: HashMap<String, (i64, i64)>,
    /// By session: the numbers of the events that are stored.
    numbers: HashMap<i64, Numbers>,
    /// Segments that are what they were when they were sealed.
    intact: HashSet<i64>,
    head: Option<Head>,
    /// What is in the tail, and since when there is anything.
    unsealed: Unsealed,
    unsealed_since: Option<std::time::Instant>,
}

/// What is in the tail, or in a part of it.
#[derive(Default)]
struct Unsealed {
    events: usize,
    /// Of their batches.
    bytes: usize,
    /// Events by session, of batches with several sessions as many of each.
    sessions: HashMap<i64, usize>,
    /// Events of the session that has most.
    longest: usize,
}

impl Unsealed {
    /// Another batch: how many events and bytes it has, and of which sessions, as the tail has them.
    fn add(&mut self, events: usize, bytes: usize, sessions: &[u8]) {
        self.events += events;
        self.bytes += bytes;
        let numbers = insert::sessions_of(sessions);
        let each = events / numbers.len().max(1);
        for number in numbers {
            let of_session = self.sessions.entry(number).or_default();
            *of_session += each;
            self.longest = self.longest.max(*of_session);
        }
    }
}

impl Known {
    /// Forgets all but which segments are intact: they are large, and do not change.
    fn forget(&mut self) {
        *self = Self {
            intact: std::mem::take(&mut self.intact),
            ..Self::default()
        };
    }

    /// Forgets sessions, and the numbers of their events, where it is more than `most` of them.
    fn forget_beyond(&mut self, most: usize) {
        if self.numbers.len() >= most {
            self.numbers.clear();
        }
        if self.sessions.len() >= most {
            self.sessions.clear();
        }
    }
}

impl Store {
    /// Opens the history below `directory`, or makes a new one. A damaged one is set aside: the new one then begins
    /// with a `loss` event, and the name that the old one has now is returned.
    pub fn open(directory: &Path, host: &Host) -> Result<(Self, Option<PathBuf>), StoreError> {
        match Self::open_as_is(directory, host) {
            Ok(store) => Ok((store, None)),
            Err(StoreError::Corrupt(damage)) => {
                let (store, aside) = Self::begin_anew(directory, host, &damage)?;
                Ok((store, Some(aside)))
            }
            Err(error) => Err(error),
        }
    }

    /// Stores events in one transaction and returns when they are on disk, with the number of the newest event. An
    /// event whose id is there already is left as it is. After an error nothing of `batches` is stored.
    pub fn insert(&mut self, frames: &[&[u8]]) -> Result<i64, StoreError> {
        let result = insert::insert(
            &mut self.connection,
            &mut self.known,
            &self.directory,
            &self.key,
            frames,
        );
        let Err(error) = result else {
            return result;
        };
        self.known.forget();
        self.recount()?;
        if let StoreError::Damaged { segment, .. } = error {
            tracing::error!(%error, "what it held counts as gone");
            self.declare_missing(&[segment])?;
            return self.insert(frames);
        }
        Err(error)
    }

    /// As [`Store::insert`], of events that are not packed yet.
    pub fn insert_events(&mut self, events: &[Event]) -> Result<i64, StoreError> {
        self.insert(&[&crate::wire::batch::pack(events)])
    }

    /// The key that signs this history.
    pub fn key(&self) -> std::sync::Arc<Key> {
        std::sync::Arc::clone(&self.key)
    }

    /// Events that are not in a segment yet.
    pub fn unsealed(&self) -> usize {
        self.known.unsealed.events
    }

    fn recount(&mut self) -> Result<(), StoreError> {
        let mut unsealed = Unsealed::default();
        insert::each_unsealed(&self.connection, |batch| {
            unsealed.add(batch.events, batch.bytes, batch.sessions);
            true
        })?;
        let events = unsealed.events;
        self.known.unsealed = unsealed;
        self.known.unsealed_since = (events > 0).then(|| {
            self.known
                .unsealed_since
                .unwrap_or_else(std::time::Instant::now)
        });
        Ok(())
    }

    /// Opens the file afresh after an error; what turned out to be damaged is set aside first.
    pub fn replace(&mut self, after: &StoreError) -> Result<Option<PathBuf>, StoreError> {
        let (directory, host) = (self.directory.clone(), self.host.clone());
        let (store, aside) = match after {
            StoreError::Corrupt(damage) => {
                // Without this connection's locks the file can be renamed as a whole, with its log.
                self.connection = Connection::open_in_memory()?;
                let (store, aside) = Self::begin_anew(&directory, &host, damage)?;
                (store, Some(aside))
            }
            _ => Self::open(&directory, &host)?,
        };
        let segment_events = self.segment_events;
        *self = store;
        self.segment_events = segment_events;
        Ok(aside)
    }

    /// Moves the log into the file, so that what is left behind is one file.
    pub fn close(self) -> Result<(), StoreError> {
        self.connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.connection
            .close()
            .map_err(|(_, error)| StoreError::from(error))
    }

    fn open_as_is(directory: &Path, host: &Host) -> Result<Self, StoreError> {
        let path = directory.join(FILE);
        // SQLite gives its log and its index the mode of the file itself, so that this one line keeps them all private.
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags)?;
        connection.busy_timeout(BUSY)?;
        // Batches span many pages, and each page that is written is a call; only a new file takes it.
        connection.pragma_update(None, "page_size", 8192)?;
        // WAL lets readers go on; FULL makes a commit mean that it is on disk; temporary tables have no other place
        // that the sandbox allows.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "foreign_keys", false)?;
        connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
        connection.set_prepared_statement_cache_capacity(32);
        migrate(&mut connection)?;
        check(&connection, path.metadata()?.len())?;
        connection.execute(
            "INSERT INTO boot_rows (boot_id, max_offset, opened) VALUES (?1, ?2, (SELECT coalesce(max(opened), 0) + 1 FROM boot_rows))
             ON CONFLICT (boot_id) DO UPDATE SET opened = excluded.opened",
            (&host.boot_id, insert::offset_now()),
        )?;
        let mut store = Self {
            connection,
            directory: directory.to_owned(),
            host: host.clone(),
            key: std::sync::Arc::new(Key::open(directory)?),
            segment_events: SEGMENT_EVENTS,
            known: Known::default(),
        };
        let tidied = store.tidy()?;
        store.recount()?;
        if !tidied.unknown.is_empty() {
            // What is told first is told again after a stop in between; the other way round it might never be.
            store.insert_events(&[quarantine::loss(host)])?;
            let aside = quarantine::set_segments_aside(directory, &tidied.unknown)?;
            tracing::error!(
                files = tidied.unknown.len(), aside = %aside.display(),
                "there are segments that the history's tables know nothing of, from another history or an earlier copy of this one; \
                 they were set aside"
            );
        } else if !tidied.unfinished.is_empty() {
            let aside = quarantine::set_segments_aside(directory, &tidied.unfinished)?;
            tracing::warn!(
                aside = %aside.display(),
                "a sealing did not end, and left what cannot be read; it was set aside, its events are in the tail"
            );
        } else if insert::head(&store.connection)?.newest == 0 && quarantine::has_any(directory)? {
            store.insert_events(&[quarantine::loss(host)])?;
        }
        if !tidied.missing.is_empty() {
            store.declare_missing(&tidied.missing)?;
        }
        Ok(store)
    }

    /// Records that segments are gone, or have another length than they had, and asks them no more.
    fn declare_missing(&mut self, segments: &[i64]) -> Result<(), StoreError> {
        for segment in segments {
            let known: Option<(u64, u64, u64)> = self
                .connection
                .query_row(
                    "SELECT first_no, last_no, events FROM segment_rows WHERE no = ?",
                    [segment],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
                )
                .optional()?;
            let (first, last, events) = known.unwrap_or_default();
            tracing::error!(
                file = %segment::path(&self.directory, *segment).display(), first, last, events,
                "a segment of the history is gone or was cut; hint: agentwatch verify"
            );
            let mut loss = quarantine::loss(&self.host);
            if let Some(loss) = &mut loss.loss {
                loss.reason = "segment_missing".to_owned();
                loss.events = events;
            }
            // What is told first is told again after a stop in between; the other way round it might never be.
            self.insert_events(&[loss])?;
            let transaction = self.connection.transaction()?;
            transaction.execute("DELETE FROM segment_rows WHERE no = ?", [segment])?;
            transaction.execute("DELETE FROM run_rows WHERE segment = ?", [segment])?;
            transaction.commit()?;
        }
        Ok(())
    }

    fn begin_anew(
        directory: &Path,
        host: &Host,
        damage: &str,
    ) -> Result<(Self, PathBuf), StoreError> {
        let aside = quarantine::set_aside(directory)?;
        tracing::error!(
            file = %directory.join(FILE).display(), aside = %aside.display(), damage,
            "the history is damaged; it was set aside and a new one begun"
        );
        // It begins with a loss, because there is something that was set aside.
        Ok((Self::open_as_is(directory, host)?, aside))
    }

    #[cfg(test)]
    fn limit_pages(&self, pages: u32) {
        self.connection
            .pragma_update(None, "max_page_count", pages)
            .expect("a limit can be set");
    }
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer { found });
    }
    match found {
        SCHEMA_VERSION => Ok(()),
        0 => {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.execute(
                "INSERT INTO history_row (one, id) VALUES (1, ?)",
                [uuid::Uuid::now_v7().to_string()],
            )?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.commit()?;
            Ok(())
        }
        _ => Err(StoreError::Corrupt(format!(
            "it has version {found}, which no release wrote"
        ))),
    }
}

/// Looks for damage: everywhere in a small file, at the ends of tables and indexes in a large one.
fn check(connection: &Connection, bytes: u64) -> Result<(), StoreError> {
    if bytes <= CHECKED_WHOLE {
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        return if found == "ok" {
            Ok(())
        } else {
            Err(StoreError::Corrupt(found))
        };
    }
    for probe in [
        "SELECT max(no), min(no) FROM tail_rows",
        "SELECT max(no), min(no) FROM segment_rows",
        "SELECT max(session), min(session) FROM run_rows",
        "SELECT max(time_ns), min(time_ns), max(no), min(no) FROM refusal_rows",
        "SELECT max(session), min(session) FROM destination_rows",
        "SELECT count(*) FROM session_rows",
        "SELECT count(*) FROM boot_rows",
        "SELECT count(*) FROM head_row",
    ] {
        connection.query_row(probe, [], |_| Ok(()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
