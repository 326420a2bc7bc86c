//! Reading sessions, and figures about the store.

use rusqlite::{Row as SqlRow, types::Value};
use serde::de::DeserializeOwned;

use super::{super::SCHEMA_VERSION, PAGE_BYTES, PAGE_ROWS, Reader, StoreError, Viewer, bytes};
use crate::{
    event::model::{Coverage, Mode},
    wire::{
        batch::timestamp,
        collector::{SessionRow, StoreStatus},
    },
};

const SESSION_COLUMNS: &str =
    "no, id, name, uid, policy, mode, coverage, missing, backends, cgroup, command, origin, state,
    started_ns, ended_ns, reason, exit_code, events, denied, counts";

impl Reader {
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
        let count = |sql: &str| -> Result<u64, StoreError> {
            Ok(self.connection.query_row(sql, [], |row| row.get(0))?)
        };
        let unsealed = count("SELECT coalesce(sum(events), 0) FROM tail_rows")?;
        Ok(StoreStatus {
            events: unsealed + count("SELECT coalesce(sum(events), 0) FROM segment_rows")?,
            sessions: count("SELECT count(*) FROM session_rows")?,
            bytes: bytes(&self.connection)?,
            segments: count("SELECT count(*) FROM segment_rows")?,
            unsealed,
            schema_version: SCHEMA_VERSION,
            sinks: Vec::new(),
        })
    }

    /// A session by its id, by a beginning of one that no other has, or by name (then the newest).
    pub(super) fn resolve(&self, wanted: &str) -> Result<i64, StoreError> {
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

fn session_row(row: &SqlRow<'_>) -> Result<SessionRow, StoreError> {
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
fn column<T: DeserializeOwned>(row: &SqlRow<'_>, name: &str) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.get(name)?;
    text.map(|text| {
        serde_json::from_str(&text)
            .map_err(|error| StoreError::Corrupt(format!("{name} of a session: {error}")))
    })
    .transpose()
}
