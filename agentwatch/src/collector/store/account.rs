//! What the history has of one session, for a daemon that takes the session over: which numbers are here, which were
//! declared lost, and how often each folded action has been told of.

use rusqlite::OptionalExtension as _;

use super::{Reader, StoreError, Viewer, read};
use crate::{event::model::Loss, wire::collector::AccountPart};

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
            "SELECT fold, sum(count) FROM event_rows
             WHERE session_id = ? AND seq = 0 AND fold IS NOT NULL GROUP BY fold",
        )?;
        let mut rows = statement.query([id])?;
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
