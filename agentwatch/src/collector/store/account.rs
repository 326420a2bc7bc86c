//! What the history has of one session, for a daemon that takes the session over: which numbers are here, which were
//! declared lost, and how often each folded action has been told of.

use std::{collections::HashMap, path::Path};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    Reader, StoreError, Viewer,
    columns::{C, Row as _},
    read,
    segment::{self, Segment},
};
use crate::{
    event::{Kind, account::Numbers, model::Loss},
    wire::collector::AccountPart,
};

/// Entries of one part of the answer.
const PART: usize = 20_000;

impl Reader {
    /// The account of the session with this id; nothing where there is none.
    pub fn account(&self, id: &str) -> Result<Vec<AccountPart>, StoreError> {
        if self.viewer != Viewer::All {
            return Err(StoreError::Question(
                "only root and the collector's own user may ask for a session's account".to_owned(),
            ));
        }
        let found: Option<(i64, u64, u64)> = self
            .connection
            .query_row(
                "SELECT no, events, denied FROM session_rows WHERE id = ?",
                [id],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?;
        let Some((session, events, denied)) = found else {
            return Ok(Vec::new());
        };
        let mut parts = vec![AccountPart {
            events,
            denied,
            ..AccountPart::default()
        }];
        let arrived = read::numbers(&self.connection, &self.directory, session, true)?;
        let runs: Vec<(u64, u64)> = arrived
            .runs()
            .map(|run| run.into_inner())
            .filter(|(_, last)| *last > 0)
            .map(|(first, last)| (first.max(1), last))
            .collect();
        parts.extend(runs.chunks(PART).map(|arrived| AccountPart {
            arrived: arrived.to_vec(),
            ..AccountPart::default()
        }));

        let mut statement = self
            .connection
            .prepare("SELECT loss FROM event_rows WHERE session_id = ? AND kind = 'loss'")?;
        let mut rows = statement.query([id])?;
        let mut lost: Vec<Loss> = Vec::new();
        while let Some(row) = rows.next()? {
            let text: String = row.get(0)?;
            lost.push(serde_json::from_str(&text).map_err(|error| {
                StoreError::Corrupt(format!("a loss in the history cannot be read: {error}"))
            })?);
        }
        parts.extend(lost.chunks(PART).map(|lost| AccountPart {
            lost: lost.to_vec(),
            ..AccountPart::default()
        }));

        let mut statement = self.connection.prepare(
            "SELECT fold, sum(count) FROM (
                 SELECT fold, count FROM event_rows WHERE session_id = ?1 AND seq = 0 AND fold IS NOT NULL
                 UNION ALL SELECT fold, count FROM let_go_fold_rows WHERE session = ?2
             ) GROUP BY fold",
        )?;
        let mut rows = statement.query(params![id, session])?;
        let mut told = Vec::new();
        while let Some(row) = rows.next()? {
            let fold: String = row.get(0)?;
            // The id of a first event ends in its number.
            if let Some(seq) = fold.rsplit('-').next().and_then(|seq| seq.parse().ok()) {
                told.push((seq, row.get(1)?));
            }
        }
        parts.extend(told.chunks(PART).map(|told| AccountPart {
            told: told.to_vec(),
            ..AccountPart::default()
        }));
        Ok(parts)
    }
}

/// Notes what a segment that is let go of says of the accounts of sessions that may go on.
pub(super) fn let_go(
    connection: &Connection,
    directory: &Path,
    segment: i64,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare(
        "SELECT r.session, r.first_row, r.rows FROM run_rows r JOIN session_rows s ON s.no = r.session
         WHERE r.segment = ? AND s.ended_ns IS NULL
           AND s.boot = (SELECT no FROM boot_rows ORDER BY opened DESC LIMIT 1)",
    )?;
    let runs: Vec<(i64, usize, usize)> = statement
        .query_map([segment], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let path = segment::path(directory, segment);
    let columns = [C::Seq, C::Kind, C::Fold, C::Count, C::Loss];
    for (session, first, rows) in runs {
        let read = Segment::open(&path)
            .and_then(|segment| segment.read_range(&columns, first, first + rows));
        let chunk = match read {
            Ok(chunk) => chunk,
            // It is to go all the same.
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "what is let go of cannot be read for the account of its session");
                continue;
            }
        };
        let mut numbers = Numbers::default();
        let mut folds: HashMap<String, i64> = HashMap::new();
        for index in 0..chunk.rows {
            let row = chunk.row(index);
            let seq = row.number(C::Seq).unwrap_or_default().cast_unsigned();
            if seq != 0 {
                numbers.insert(seq..=seq);
            } else if let Some(fold) = row.text(C::Fold) {
                *folds.entry(fold.to_owned()).or_default() += row.number(C::Count).unwrap_or(1);
            }
            // What was declared is not declared again.
            if row.text(C::Kind) == Some(Kind::Loss.name())
                && let Some(loss) = row
                    .text(C::Loss)
                    .and_then(|text| serde_json::from_str::<Loss>(text).ok())
                && loss.from != 0
            {
                numbers.insert(loss.from..=loss.to);
            }
        }
        remember(connection, session, numbers, &folds)?;
    }
    Ok(())
}

/// The numbers of a session's events that retention let go of.
pub(super) fn let_go_numbers(connection: &Connection, session: i64) -> Result<Numbers, StoreError> {
    let mut numbers = Numbers::default();
    let mut statement =
        connection.prepare_cached("SELECT first, last FROM let_go_rows WHERE session = ?")?;
    let mut rows = statement.query([session])?;
    while let Some(row) = rows.next()? {
        let (first, last): (i64, i64) = (row.get(0)?, row.get(1)?);
        numbers.insert(first.cast_unsigned()..=last.cast_unsigned());
    }
    Ok(numbers)
}

fn remember(
    connection: &Connection,
    session: i64,
    mut numbers: Numbers,
    folds: &HashMap<String, i64>,
) -> Result<(), StoreError> {
    for run in let_go_numbers(connection, session)?.runs() {
        numbers.insert(run);
    }
    connection.execute("DELETE FROM let_go_rows WHERE session = ?", [session])?;
    let mut insert = connection
        .prepare_cached("INSERT INTO let_go_rows (session, first, last) VALUES (?, ?, ?)")?;
    for (first, last) in numbers.runs().map(std::ops::RangeInclusive::into_inner) {
        insert.execute(params![session, first.cast_signed(), last.cast_signed()])?;
    }
    let mut add = connection.prepare_cached(
        "INSERT INTO let_go_fold_rows (session, fold, count) VALUES (?, ?, ?)
         ON CONFLICT DO UPDATE SET count = count + excluded.count",
    )?;
    for (fold, count) in folds {
        add.execute(params![session, fold, count])?;
    }
    Ok(())
}
