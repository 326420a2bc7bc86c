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

/// Renames the segments and the file, together with its log and its index, and returns the new name of the file.
pub(super) fn set_aside(directory: &Path) -> io::Result<PathBuf> {
    let free = free_name(directory)?;
    // The segments go first: a new file must never meet those that it does not know. Without the file that knew them they are
    // still readable, and still verify.
    rename(
        &directory.join(super::SEGMENTS),
        &with_suffix(&free, SEGMENTS),
    )?;
    // The log goes before the file, so that no stop in between leaves it to be replayed into a new file.
    for suffix in ["-wal", "-shm", ""] {
        // Also the file itself may be gone, where an earlier attempt ended between this and the new file.
        rename(
            &with_suffix(&directory.join(FILE), suffix),
            &with_suffix(&free, suffix),
        )?;
    }
    Ok(free)
}

/// Moves files of segments that the history does not know out of its way, and returns where they are.
pub(super) fn set_segments_aside(directory: &Path, files: &[PathBuf]) -> io::Result<PathBuf> {
    let aside = with_suffix(&free_name(directory)?, SEGMENTS);
    std::fs::create_dir(&aside)?;
    for file in files {
        if let Some(name) = file.file_name() {
            rename(file, &aside.join(name))?;
        }
    }
    Ok(aside)
}

/// Whether anything was ever set aside here.
pub(super) fn has_any(directory: &Path) -> io::Result<bool> {
    let mark = format!("{FILE}{MARK}");
    Ok(std::fs::read_dir(directory)?
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(&mark)))
}

/// What the names of what is set aside go on with.
const MARK: &str = ".corrupt-";
const SEGMENTS: &str = ".segments";

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn free_name(directory: &Path) -> io::Result<PathBuf> {
    let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%S");
    (0u32..)
        .map(|try_| {
            if try_ == 0 {
                format!("{FILE}{MARK}{stamp}")
            } else {
                format!("{FILE}{MARK}{stamp}.{try_}")
            }
        })
        .map(|name| directory.join(name))
        .find(|path| !path.exists() && !with_suffix(path, SEGMENTS).exists())
        .ok_or_else(|| io::Error::other("no free name to set the damaged history aside"))
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
