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
    /// Events whose loss the receiver has not been told of yet: refused, and gone from the history.
    pub(super) owed_refused: u64,
    pub(super) owed_lost: u64,
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
