//! Reading events and sessions, a page at a time.
//!
//! No read transaction outlives a page, so a slow asker holds neither the log back nor more than a page in memory; a
//! [`Scan`] remembers where the next one begins. What an asker may see is part of every statement.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, Row, types::Value};
use serde::de::DeserializeOwned;

use super::{BUSY, FILE, StoreError, insert::nanoseconds};
use crate::{
    event::model::{Coverage, Event, Mode},
    wire::collector::{Filter, SessionRow, StoreStatus},
};

/// Most events or sessions in a page.
const PAGE_ROWS: usize = 500;
/// A page ends before the row that would bring it beyond this, in bytes of JSON. A larger row makes a page of its own.
const PAGE_BYTES: usize = 1 << 20;

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
}

/// A walk over the events that a filter selects, in the order of kernel time within each boot.
pub struct Scan {
    session: Option<i64>,
    since_ns: Option<i64>,
    kinds: Vec<&'static str>,
    verdicts: Vec<&'static str>,
    /// Boots still to walk, the next one last.
    boots: Vec<Boot>,
    /// Events with a larger number came after the question and are not part of the walk.
    until: i64,
}

struct Boot {
    no: i64,
    /// Kernel time, sequence number and event number that the walk has passed.
    passed: (i64, i64, i64),
}

/// Some events.
pub struct Page {
    pub events: Vec<Event>,
    /// Whether nothing follows.
    pub last: bool,
}

impl Reader {
    /// Opens the history below `directory` for what `viewer` may see.
    pub fn open(directory: &Path, viewer: Viewer) -> Result<Self, StoreError> {
        Ok(Self {
            connection: connect(directory)?,
            viewer,
        })
    }

    /// Begins a walk over the events that are stored now.
    pub fn scan(&self, filter: &Filter) -> Result<Scan, StoreError> {
        let session = filter
            .session
            .as_deref()
            .map(|wanted| self.resolve(wanted))
            .transpose()?;
        let since_ns = filter.since.map(nanoseconds);
        let until = self.newest()?;
        let mut statement = self
            .connection
            .prepare("SELECT no, max_offset FROM boot_rows ORDER BY max_offset DESC, no DESC")?;
        let boots = statement
            .query_map([], |row| {
                let (no, max_offset): (i64, i64) = (row.get(0)?, row.get(1)?);
                // An event of wall time >= since has kernel time >= since - offset, for any offset up to the largest.
                let from = since_ns.map_or(i64::MIN, |since| {
                    since.saturating_sub(max_offset).saturating_sub(1)
                });
                Ok(Boot {
                    no,
                    passed: (from, i64::MAX, i64::MAX),
                })
            })?
            .collect::<Result<_, _>>()?;
        Ok(Scan {
            session,
            since_ns,
            kinds: filter.kinds.iter().map(|kind| kind.name()).collect(),
            verdicts: filter
                .verdicts
                .iter()
                .map(|verdict| verdict.name())
                .collect(),
            boots,
            until,
        })
    }

    /// The next events of a walk.
    pub fn page(&self, scan: &mut Scan) -> Result<Page, StoreError> {
        let mut pack = Pack::default();
        while let Some(boot) = scan.boots.last() {
            let index = if scan.session.is_some() {
                "event_session"
            } else if scan.verdicts == ["denied"] {
                "event_denied"
            } else {
                "event_order"
            };
            let (restriction, mut values) = scan.restriction(self.viewer);
            let sql = format!(
                "SELECT no, json, ktime_ns, seq FROM event_rows INDEXED BY {index}
                 WHERE boot = ? AND (ktime_ns, seq, no) > (?, ?, ?) AND no <= ? {restriction}
                 ORDER BY ktime_ns, seq, no LIMIT {PAGE_ROWS}"
            );
            let (ktime, seq, no) = boot.passed;
            let mut all: Vec<Value> = [boot.no, ktime, seq, no, scan.until]
                .map(Value::Integer)
                .into();
            all.append(&mut values);
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut rows = statement.query(rusqlite::params_from_iter(all))?;
            let mut passed = boot.passed;
            let mut more = false;
            while let Some(row) = rows.next()? {
                more = !pack.add(row)?;
                if more {
                    break;
                }
                passed = (row.get(2)?, row.get(3)?, row.get(0)?);
            }
            if more || pack.events.len() == PAGE_ROWS {
                if let Some(boot) = scan.boots.last_mut() {
                    boot.passed = passed;
                }
            } else {
                scan.boots.pop();
            }
            if !pack.events.is_empty() {
                break;
            }
        }
        Ok(Page {
            events: pack.events,
            last: scan.boots.is_empty(),
        })
    }

    /// Events that were stored after the walk, or after the last call, in the order in which they came. `last` says
    /// that there are no more for now.
    pub fn newer(&self, scan: &mut Scan) -> Result<Page, StoreError> {
        let newest = self.newest()?;
        let (restriction, mut values) = scan.restriction(self.viewer);
        let sql = format!(
            "SELECT no, json FROM event_rows NOT INDEXED WHERE no > ? AND no <= ? {restriction} ORDER BY no LIMIT {PAGE_ROWS}"
        );
        let mut all: Vec<Value> = [scan.until, newest].map(Value::Integer).into();
        all.append(&mut values);
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(all))?;
        let mut pack = Pack::default();
        let mut passed = scan.until;
        let mut last = true;
        while let Some(row) = rows.next()? {
            if !pack.add(row)? {
                last = false;
                break;
            }
            passed = row.get(0)?;
        }
        last &= pack.events.len() < PAGE_ROWS;
        scan.until = if last { newest } else { passed };
        Ok(Page {
            events: pack.events,
            last,
        })
    }

    /// Sessions, newest first, that are older than the one whose number is `before`. The second value is the number
    /// to go on from, `None` at the end.
    pub fn sessions(
        &self,
        before: Option<i64>,
    ) -> Result<(Vec<SessionRow>, Option<i64>), StoreError> {
        let (visible, mut values) = visible(self.viewer, "uid");
        let sql = format!(
            "SELECT {SESSION_COLUMNS} FROM sessions WHERE no < ? {visible} ORDER BY no DESC LIMIT {PAGE_ROWS}"
        );
        values.insert(0, Value::Integer(before.unwrap_or(i64::MAX)));
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values))?;
        let (mut sessions, mut bytes, mut next) = (Vec::new(), 0, None);
        while let Some(row) = rows.next()? {
            let session = session_row(row)?;
            // What has no fixed size in a row; the rest is some hundred bytes.
            bytes += session
                .command
                .iter()
                .chain(&session.missing)
                .map(|text| text.len() + 8)
                .sum::<usize>()
                + 512;
            if !sessions.is_empty() && bytes > PAGE_BYTES {
                return Ok((sessions, next));
            }
            next = Some(row.get("no")?);
            sessions.push(session);
        }
        if sessions.len() < PAGE_ROWS {
            next = None;
        }
        Ok((sessions, next))
    }

    /// The one session that `wanted` names.
    pub fn session(&self, wanted: &str) -> Result<SessionRow, StoreError> {
        let no = self.resolve(wanted)?;
        let sql = format!("SELECT {SESSION_COLUMNS} FROM sessions WHERE no = ?");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([no])?;
        match rows.next()? {
            Some(row) => session_row(row),
            None => Err(unknown_session(wanted)),
        }
    }

    /// Figures about the store.
    pub fn status(&self) -> Result<StoreStatus, StoreError> {
        let sessions =
            self.connection
                .query_row("SELECT count(*) FROM session_rows", [], |row| row.get(0))?;
        let bytes = self.connection.query_row(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
            [],
            |row| row.get(0),
        )?;
        // Nothing deletes events, so the newest number is how many there are.
        let events = u64::try_from(self.newest()?).unwrap_or(0);
        Ok(StoreStatus {
            events,
            sessions,
            bytes,
            schema_version: super::SCHEMA_VERSION,
        })
    }

    fn newest(&self) -> Result<i64, StoreError> {
        Ok(self
            .connection
            .query_row("SELECT coalesce(max(no), 0) FROM event_rows", [], |row| {
                row.get(0)
            })?)
    }

    /// A session by its id, by a beginning of one that no other has, or by name (then the newest).
    fn resolve(&self, wanted: &str) -> Result<i64, StoreError> {
        if wanted.is_empty() {
            return Err(StoreError::Question(
                "a session's id or name is needed".to_owned(),
            ));
        }
        let (visible, restriction) = visible(self.viewer, "uid");
        let ask = |condition: &str, values: Vec<Value>| -> Result<Vec<i64>, StoreError> {
            let sql = format!(
                "SELECT no FROM session_rows WHERE {condition} {visible} ORDER BY no DESC LIMIT 2"
            );
            let all = values.into_iter().chain(restriction.iter().cloned());
            let mut statement = self.connection.prepare(&sql)?;
            let found = statement.query_map(rusqlite::params_from_iter(all), |row| row.get(0))?;
            Ok(found.collect::<Result<_, _>>()?)
        };
        let text = || Value::Text(wanted.to_owned());
        if let Some(no) = ask("id = ?", vec![text()])?.first() {
            return Ok(*no);
        }
        if let Some(no) = ask("name = ?", vec![text()])?.first() {
            return Ok(*no);
        }
        match ask("substr(id, 1, length(?)) = ?", vec![text(), text()])?.as_slice() {
            [] => Err(unknown_session(wanted)),
            [no] => Ok(*no),
            _ => Err(StoreError::Question(format!(
                "several sessions have an id that begins with {wanted:?}: give more of it"
            ))),
        }
    }
}

impl Scan {
    /// What the filter and the viewer ask of an event, as SQL to put after other conditions. Names of kinds and
    /// verdicts are constants of the model and stand in the text, so that SQLite can use the partial indexes.
    fn restriction(&self, viewer: Viewer) -> (String, Vec<Value>) {
        let (mut sql, mut values) = (String::new(), Vec::new());
        if let Some(session) = self.session {
            sql.push_str(" AND session = ?");
            values.push(Value::Integer(session));
        }
        if let Some(since) = self.since_ns {
            sql.push_str(" AND time_ns >= ?");
            values.push(Value::Integer(since));
        }
        match self.verdicts.as_slice() {
            [] => {}
            [one] => sql.push_str(&format!(" AND verdict = '{one}'")),
            several => sql.push_str(&format!(" AND verdict IN ('{}')", several.join("', '"))),
        }
        if !self.kinds.is_empty() {
            sql.push_str(&format!(" AND kind IN ('{}')", self.kinds.join("', '")));
        }
        if let Viewer::User(uid) = viewer {
            sql.push_str(" AND session IN (SELECT no FROM session_rows WHERE uid = ?)");
            values.push(Value::Integer(uid.into()));
        }
        (sql, values)
    }
}

/// Events on their way into a page.
#[derive(Default)]
struct Pack {
    events: Vec<Event>,
    bytes: usize,
}

impl Pack {
    /// Adds the row, `false` where it is for the next page.
    fn add(&mut self, row: &Row<'_>) -> Result<bool, StoreError> {
        let json = row
            .get_ref(1)?
            .as_str()
            .map_err(|error| StoreError::Corrupt(error.to_string()))?;
        if !self.events.is_empty() && self.bytes + json.len() > PAGE_BYTES {
            return Ok(false);
        }
        self.bytes += json.len();
        let event = serde_json::from_str(json).map_err(|error| StoreError::Decode {
            id: row.get(0).unwrap_or_default(),
            error,
        })?;
        self.events.push(event);
        Ok(true)
    }
}

/// A connection that can only read.
pub(super) fn connect(directory: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(directory.join(FILE), flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

const SESSION_COLUMNS: &str =
    "no, id, name, uid, policy, mode, coverage, missing, backends, cgroup, command, origin, state,
    started_ns, ended_ns, reason, exit_code, events, denied, counts";

/// A condition for what `viewer` may see, with its value.
fn visible(viewer: Viewer, column: &str) -> (String, Vec<Value>) {
    match viewer {
        Viewer::All => (String::new(), Vec::new()),
        Viewer::User(uid) => (
            format!("AND {column} = ?"),
            vec![Value::Integer(uid.into())],
        ),
    }
}

fn unknown_session(wanted: &str) -> StoreError {
    StoreError::Question(format!(
        "no session of yours has the id or name {wanted:?}\nhint: `agentwatch sessions` lists them"
    ))
}

fn session_row(row: &Row<'_>) -> Result<SessionRow, StoreError> {
    let mode: String = row.get("mode")?;
    let coverage: Option<String> = row.get("coverage")?;
    let begun = coverage.is_some();
    Ok(SessionRow {
        id: row.get("id")?,
        name: row.get("name")?,
        // (uid_t)-1 is nobody: the start of the session, which would say whose it is, is not in the history.
        uid: row.get::<_, Option<u32>>("uid")?.unwrap_or(u32::MAX),
        policy: row.get("policy")?,
        mode: Mode::ALL
            .into_iter()
            .find(|known| known.name() == mode)
            .unwrap_or_default(),
        coverage: coverage
            .and_then(|name| Coverage::ALL.into_iter().find(|known| known.name() == name))
            .unwrap_or(Coverage::Degraded),
        missing: if begun {
            column(row, "missing")?.unwrap_or_default()
        } else {
            vec![
                "the session's start is not in the history, so its coverage is not known"
                    .to_owned(),
            ]
        },
        backends: column(row, "backends")?.unwrap_or_default(),
        cgroup: row.get::<_, Option<String>>("cgroup")?.unwrap_or_default(),
        command: column(row, "command")?.unwrap_or_default(),
        origin: row.get::<_, Option<String>>("origin")?.unwrap_or_default(),
        state: row.get("state")?,
        started: timestamp(row.get("started_ns")?),
        ended: row.get::<_, Option<i64>>("ended_ns")?.map(timestamp),
        reason: row.get("reason")?,
        exit_code: row.get("exit_code")?,
        events: row.get("events")?,
        denied: row.get("denied")?,
        counts: column(row, "counts")?,
    })
}

/// A column that holds JSON.
fn column<T: DeserializeOwned>(row: &Row<'_>, name: &str) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.get(name)?;
    text.map(|text| {
        serde_json::from_str(&text)
            .map_err(|error| StoreError::Corrupt(format!("{name} of a session: {error}")))
    })
    .transpose()
}

fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default()
}
