//! Setting a damaged history aside. Nothing is deleted: the file keeps its content under another name.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::FILE;
use crate::event::{
    host::{Host, no_session},
    model::{Event, Kind, Loss},
};

/// Renames the file together with its log and its index, and returns the new name of the file.
pub(super) fn set_aside(directory: &Path) -> io::Result<PathBuf> {
    let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%S");
    let free = (0u32..)
        .map(|try_| {
            if try_ == 0 {
                format!("{FILE}.corrupt-{stamp}")
            } else {
                format!("{FILE}.corrupt-{stamp}.{try_}")
            }
        })
        .map(|name| directory.join(name))
        .find(|path| !path.exists())
        .ok_or_else(|| io::Error::other("no free name to set the damaged history aside"))?;
    // The log goes first, so that no stop in between leaves it to be replayed into a new file.
    for suffix in ["-wal", "-shm", ""] {
        match std::fs::rename(
            with_suffix(&directory.join(FILE), suffix),
            with_suffix(&free, suffix),
        ) {
            // Also the file itself, where an earlier attempt ended between this and the new file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    // The segments go along: without the file that knew them they are still readable, and still verify.
    let segments = directory.join(super::SEGMENTS);
    match std::fs::rename(segments, with_suffix(&free, ".segments")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(free),
    }
}

/// The record of it in the new history. It belongs to no session, so its session has no id; how many events are gone
/// is not known.
pub(super) fn loss(host: &Host) -> Event {
    let mut event = host.event(&no_session(), Kind::Loss);
    event.loss = Some(Loss {
        from: 0,
        to: 0,
        reason: "store_corrupt".to_owned(),
        events: 0,
    });
    event
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
