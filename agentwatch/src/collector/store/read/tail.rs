//! What is not sealed yet, and the numbers of a session wherever they are.

use std::{collections::HashSet, path::Path};

use rusqlite::Connection;

use super::{
    super::{
        account,
        columns::{C, Row as _},
        segment::{self, Segment},
    },
    StoreError,
};
use crate::{event::account::Numbers, wire::batch::Batch};

pub(super) fn session_no(connection: &Connection, id: &str) -> Option<i64> {
    let mut statement = connection
        .prepare_cached("SELECT no FROM session_rows WHERE id = ?")
        .ok()?;
    statement.query_row([id], |row| row.get(0)).ok()
}

/// The unsealed batches, one after the other.
pub(in crate::collector::store) struct Tail<'c> {
    statement: rusqlite::CachedStatement<'c>,
    numbers: (i64, i64),
    since_ns: i64,
}

impl<'c> Tail<'c> {
    pub(in crate::collector::store) fn new(
        connection: &'c Connection,
        numbers: (i64, i64),
        since_ns: Option<i64>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            statement: connection.prepare_cached(
                "SELECT no, sessions, frame FROM tail_rows WHERE no + events > ? AND no <= ? AND max_time >= ? ORDER BY no",
            )?,
            numbers,
            since_ns: since_ns.unwrap_or(i64::MIN),
        })
    }

    /// Hands on each batch that may hold an event of `sessions`, with the number of its first event.
    pub(in crate::collector::store) fn each(
        &mut self,
        sessions: Option<&HashSet<i64>>,
        mut use_: impl FnMut(i64, &Batch<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut rows = self
            .statement
            .query([self.numbers.0, self.numbers.1, self.since_ns])?;
        while let Some(row) = rows.next()? {
            if let Some(wanted) = sessions {
                let bytes = row
                    .get_ref(1)?
                    .as_blob()
                    .map_err(|error| StoreError::Corrupt(error.to_string()))?;
                let held = bytes.chunks_exact(8).any(|bytes| {
                    bytes
                        .try_into()
                        .is_ok_and(|bytes| wanted.contains(&i64::from_le_bytes(bytes)))
                });
                if !held {
                    continue;
                }
            }
            let frame = row
                .get_ref(2)?
                .as_blob()
                .map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let batch = Batch::decode(frame)
                .map_err(|error| StoreError::Corrupt(format!("a batch of the tail: {error}")))?;
            use_(row.get(0)?, &batch)?;
        }
        Ok(())
    }
}

/// The sequence numbers of a session's events; with `named` also of those whose id is not made of it.
pub(in crate::collector::store) fn numbers(
    connection: &Connection,
    directory: &Path,
    session: i64,
    named: bool,
) -> Result<Numbers, StoreError> {
    let mut numbers = account::let_go_numbers(connection, session)?;
    let mut add = |seq: u64, id: Option<&str>| {
        if named || id.is_none() {
            numbers.insert(seq..=seq);
        }
    };
    let mut statement = connection.prepare_cached(
        "SELECT segment, first_row, rows FROM run_rows WHERE session = ? ORDER BY segment",
    )?;
    let mut rows = statement.query([session])?;
    while let Some(row) = rows.next()? {
        let (no, first, count): (i64, usize, usize) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let segment = Segment::open(&segment::path(directory, no))?;
        let chunk = segment.read_range(&[C::Seq, C::Id], first, first + count)?;
        for index in 0..chunk.rows {
            let row = chunk.row(index);
            add(
                row.number(C::Seq).unwrap_or_default().cast_unsigned(),
                row.text(C::Id),
            );
        }
    }
    let only = HashSet::from([session]);
    Tail::new(connection, (1, i64::MAX), None)?.each(Some(&only), |_, batch| {
        let own: Vec<bool> = batch
            .sessions
            .iter()
            .map(|held| {
                session_no(connection, batch.text(held.id).unwrap_or_default()) == Some(session)
            })
            .collect();
        for record in &batch.records {
            if own.get(record.session as usize) == Some(&true) {
                add(record.seq, batch.text(record.id));
            }
        }
        Ok(())
    })?;
    Ok(numbers)
}
