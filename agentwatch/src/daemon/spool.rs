//! Events that wait on disk for the collector. SQLite keeps them: crash-safe, and a damaged file is noticed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rusqlite::{Connection, params};

use crate::event::Event;

/// Bytes of one batch: with its frame well below `wire::MAX_FRAME`. One event is never as long.
pub const MOST_BYTES: usize = crate::wire::MAX_FRAME / 2;

/// A bounded queue on disk.
pub struct Spool {
    path: PathBuf,
    database: Connection,
    max_bytes: u64,
    bytes: u64,
    events: u64,
}

/// What SQLite finds wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Damaged(String);

fn is_damage(error: &anyhow::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    error.is::<Damaged>()
        || error.chain().any(|cause| {
            cause
                .downcast_ref::<rusqlite::Error>()
                .and_then(rusqlite::Error::sqlite_error_code)
                .is_some_and(|code| matches!(code, DatabaseCorrupt | NotADatabase))
        })
}

/// The oldest events.
pub struct Front {
    /// The number up to which they go.
    pub last: i64,
    pub events: Vec<Event>,
    /// How many between them cannot be read.
    pub unreadable: u64,
}

/// Why events were not taken.
#[derive(Debug)]
pub enum Refusal {
    /// The bound is reached.
    Full,
    /// The disk did not take them.
    Failed(anyhow::Error),
}

impl Spool {
    /// Opens the queue that is there. One that is damaged is put aside; the second value then says what was found.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<(Self, Option<String>)> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let path = dir.join("spool.sqlite");
        match Self::try_open(&path, max_bytes) {
            Ok(spool) => Ok((spool, None)),
            // What cannot be opened for another reason, a full disk say, is left where it is.
            Err(error) if !is_damage(&error) => Err(error),
            Err(error) => {
                let aside = dir.join(format!(
                    "spool.damaged-{}",
                    jiff::Timestamp::now().as_millisecond()
                ));
                // Its log goes along: the newest events stand in it.
                for suffix in ["-wal", "-shm", ""] {
                    let name = |path: &Path| {
                        let mut name = path.to_owned().into_os_string();
                        name.push(suffix);
                        PathBuf::from(name)
                    };
                    match fs::rename(name(&path), name(&aside)) {
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        renamed => renamed.with_context(|| {
                            format!("put the damaged spool {} aside ({error:#})", path.display())
                        })?,
                    }
                }
                let spool = Self::try_open(&path, max_bytes)?;
                Ok((
                    spool,
                    Some(format!(
                        "the spool was damaged ({error:#}) and was put aside as {}",
                        aside.display()
                    )),
                ))
            }
        }
    }

    fn try_open(path: &Path, max_bytes: u64) -> Result<Self> {
        let database =
            Connection::open(path).with_context(|| format!("open {}", path.display()))?;
        // Space that was used is given back, so that the bound is one on the disk too. Has an effect only before WAL.
        database.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        database.pragma_update(None, "synchronous", "NORMAL")?;
        // In KiB: it is written at its end and read at its beginning, so pages that are kept are of little use.
        database.pragma_update(None, "cache_size", -256)?;
        database.execute_batch("CREATE TABLE IF NOT EXISTS event (number INTEGER PRIMARY KEY AUTOINCREMENT, json BLOB NOT NULL) STRICT;")?;
        let check: String = database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(anyhow::Error::new(Damaged(check)));
        }
        let (events, bytes): (u64, u64) = database.query_row(
            "SELECT count(*), coalesce(sum(length(json)), 0) FROM event",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        Ok(Self {
            path: path.to_owned(),
            database,
            max_bytes,
            bytes,
            events,
        })
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    /// Adds events, all or none.
    pub fn push(&mut self, events: &[Event]) -> Result<(), Refusal> {
        if self.bytes >= self.max_bytes {
            return Err(Refusal::Full);
        }
        let added = self.insert(events).map_err(Refusal::Failed)?;
        self.bytes += added;
        self.events += events.len() as u64;
        Ok(())
    }

    fn insert(&mut self, events: &[Event]) -> Result<u64> {
        let path = &self.path;
        let transaction = self.database.transaction()?;
        let mut bytes = 0;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO event (json) VALUES (?1)")?;
            for event in events {
                let json = serde_json::to_vec(event)?;
                bytes += json.len() as u64;
                insert.execute(params![json])?;
            }
        }
        transaction
            .commit()
            .with_context(|| format!("write {}", path.display()))?;
        Ok(bytes)
    }

    /// Whether there is room for more than a word of what there was none for.
    pub fn has_room(&self) -> bool {
        self.bytes < self.max_bytes - self.max_bytes / 8
    }

    /// The oldest events.
    pub fn front(&self, most: usize) -> Result<Option<Front>> {
        let mut query = self
            .database
            .prepare_cached("SELECT number, json FROM event ORDER BY number LIMIT ?1")?;
        let mut rows = query.query([most as i64])?;
        let (mut last, mut events, mut bytes, mut unreadable) = (None, Vec::new(), 0, 0);
        while let Some(row) = rows.next()? {
            let json: Vec<u8> = row.get(1)?;
            bytes += json.len();
            if bytes > MOST_BYTES && !events.is_empty() {
                break;
            }
            last = Some(row.get(0)?);
            match serde_json::from_slice(&json) {
                Ok(event) => events.push(event),
                Err(error) => {
                    tracing::error!(%error, "an event in the spool cannot be read: it counts as lost");
                    unreadable += 1;
                }
            }
        }
        Ok(last.map(|last| Front {
            last,
            events,
            unreadable,
        }))
    }

    /// The collector has them.
    pub fn pop(&mut self, up_to: i64) -> Result<()> {
        let (events, bytes): (u64, u64) = self.database.query_row(
            "SELECT count(*), coalesce(sum(length(json)), 0) FROM event WHERE number <= ?1",
            [up_to],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        self.database
            .execute("DELETE FROM event WHERE number <= ?1", [up_to])?;
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.events == 0 {
            self.database
                .execute_batch("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")?;
        }
        Ok(())
    }
}
