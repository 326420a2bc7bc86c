//! How far a sink has come: a small file of its own, so that it is kept however the history's own file fares.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::collector::chain::write_through;

/// A sink's position and its figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Which history `number` is of; a new one begins when the old one is damaged.
    pub(super) history: String,
    /// Number of the last event that needs not be sent again.
    pub(super) number: i64,
    pub(super) delivered: u64,
    pub(super) refused: u64,
    pub(super) lost: u64,
    /// Numbers above `number` that are counted in `lost` already: first and last of each run.
    #[serde(default)]
    pub(super) gaps: Vec<(i64, i64)>,
    /// Events whose loss the receiver has not been told of yet: refused, and gone from the history.
    pub(super) owed_refused: u64,
    pub(super) owed_lost: u64,
}

impl Position {
    /// Takes in which numbers above `after` and up to `upto` are gone from the history; returns how many of them were not
    /// known to be. What is gone does not come back, so it is counted once, however often it is passed.
    pub(super) fn gone(&mut self, after: i64, upto: i64, gaps: Vec<(i64, i64)>) -> u64 {
        let within = |runs: &[(i64, i64)]| -> i64 {
            let runs = runs.iter();
            runs.map(|(first, last)| (upto.min(*last) - (after + 1).max(*first) + 1).max(0))
                .sum()
        };
        let new = (within(&gaps) - within(&self.gaps)).max(0).cast_unsigned();
        let before = self
            .gaps
            .iter()
            .map(|(first, last)| (*first, after.min(*last)));
        let beyond = self
            .gaps
            .iter()
            .map(|(first, last)| ((upto + 1).max(*first), *last));
        let kept = before.chain(gaps).chain(beyond);
        self.gaps = kept.filter(|(first, last)| first <= last).collect();
        self.lost += new;
        self.owed_lost += new;
        new
    }

    /// Moves on.
    pub(super) fn pass(&mut self, number: i64) {
        self.number = number;
        self.gaps.retain(|(_, last)| *last > number);
    }
}

/// Where a sink's position is, below the history's directory.
pub(super) fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join("sinks").join(format!("{name}.json"))
}

/// The position, `None` for a sink that has none yet.
///
/// # Errors
/// When it cannot be read. It is not guessed: the sink would send everything again, or leave something out.
pub(super) fn read(path: &Path) -> Result<Option<Position>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| {
            format!(
                "{} is damaged; hint: remove it, and the sink begins where its configuration says",
                path.display()
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Keeps it; returns when it is on disk.
pub(super) fn write(path: &Path, position: &Position) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    write_through(path, &serde_json::to_vec(position)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_counted_once() {
        let mut position = Position::default();
        assert_eq!(position.gone(0, 100, vec![(1, 50)]), 50);
        // Passed again after a failure, in windows of other sizes.
        assert_eq!(position.gone(0, 100, vec![(1, 50)]), 0);
        assert_eq!(position.gone(0, 30, vec![(1, 30)]), 0);
        assert_eq!(position.gone(30, 200, vec![(31, 50), (150, 160)]), 11);
        // More has gone meanwhile.
        assert_eq!(position.gone(0, 100, vec![(1, 80)]), 30);
        position.pass(100);
        assert_eq!(position.gaps, [(150, 160)]);
        assert_eq!(position.gone(100, 200, vec![(101, 200)]), 89);
        position.pass(200);
        assert_eq!(
            (position.gaps.len(), position.lost, position.owed_lost),
            (0, 180, 180)
        );
    }
}
