//! The history in the order in which it was stored, for those who pass it on.

use std::path::Path;

use rusqlite::Connection;

pub(crate) use super::read::weight;
use super::{StoreError, connect, read};
use crate::{
    event::{Event, Kind, Verdict},
    wire::collector::Filter,
};

/// Some events, and how far they go.
pub(crate) struct Fed {
    /// Which history it is.
    pub(crate) history: String,
    /// Events that are wanted, with their numbers.
    pub(crate) events: Vec<(i64, Event)>,
    /// Up to this number, `events` is all that is wanted.
    pub(crate) upto: i64,
    /// Numbers up to there that are not in the history any more: first and last of each run.
    pub(crate) gaps: Vec<(i64, i64)>,
    /// The number of the newest event.
    pub(crate) newest: i64,
}

/// Which history is in `directory`, and the number of its newest event.
pub(crate) fn end(directory: &Path) -> Result<(String, i64), StoreError> {
    let connection = connect::bare(directory)?;
    Ok((history(&connection)?, read::newest(&connection)?))
}

/// Events with numbers above `after`, a few thousand at the most. Empty lists do not restrict.
pub(crate) fn after(
    directory: &Path,
    after: i64,
    kinds: &[Kind],
    verdicts: &[Verdict],
) -> Result<Fed, StoreError> {
    let reader = read::Reader::open_bare(directory)?;
    let filter = Filter {
        kinds: kinds.to_vec(),
        verdicts: verdicts.to_vec(),
        ..Filter::default()
    };
    let history = history(&reader.connection)?;
    let newest = read::newest(&reader.connection)?;
    let read::Arrived {
        mut events,
        mut upto,
        mut gaps,
    } = reader.arrived(&filter, after, newest)?;
    if !kinds.is_empty() || !verdicts.is_empty() {
        let losses = Filter {
            kinds: vec![Kind::Loss],
            ..Filter::default()
        };
        let lost = reader.arrived(&losses, after, newest)?;
        if lost.upto < upto {
            (upto, gaps) = (lost.upto, lost.gaps);
        }
        events.extend(
            lost.events
                .into_iter()
                .filter(|(_, event)| is_for_all(event)),
        );
        events.retain(|(no, _)| *no <= upto);
        events.sort_by_key(|(no, _)| *no);
        events.dedup_by_key(|(no, _)| *no);
    }
    Ok(Fed {
        history,
        events,
        upto,
        gaps,
        newest,
    })
}

/// Whether an event is for whoever is told of anything: that a part of the history is missing, whosever it was.
pub(crate) fn is_for_all(event: &Event) -> bool {
    event.kind == Kind::Loss && event.session.id.is_empty()
}

fn history(connection: &Connection) -> Result<String, StoreError> {
    Ok(connection.query_row("SELECT id FROM history_row", [], |row| row.get(0))?)
}
