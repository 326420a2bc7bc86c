//! The changed files as they are when the report is written.
//!
//! The collector may read no file, so this is done by whoever asks for the report, with their rights. An agent chose the
//! names: nothing is followed (no symbolic link anywhere in a path), nothing but a regular file is read, and none beyond a limit.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsRawFd as _,
    path::Path,
};

use jiff::Timestamp;
use nix::{
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{SFlag, fstat},
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::compose::{Change, What};

/// Files that are looked at, at the most.
const MOST: usize = 10_000;

/// What a path holds now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum Content {
    /// Nobody looked.
    #[default]
    NotLookedAt,
    Absent,
    /// A regular file.
    File {
        size: u64,
        sha256: Option<String>,
        /// Whether it was written to after the session's last change of it, so that it may not be what the session left.
        changed_since: bool,
        /// Why there is no hash.
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// A directory, a link, a device …
    Other,
    /// It cannot be looked at; why.
    Unreadable {
        why: String,
    },
}

/// Looks at what was changed.
pub(super) fn look(changes: &mut [Change], limit: u64) {
    if limit == 0 {
        return;
    }
    for change in changes.iter_mut().take(MOST) {
        if change.change == What::Temporary {
            continue;
        }
        change.now = content(Path::new(&change.path), change.last, limit);
    }
}

fn content(path: &Path, last: Timestamp, limit: u64) -> Content {
    match open(path) {
        Ok(Some(file)) => regular(file, last, limit).unwrap_or_else(|error| Content::Unreadable {
            why: error.to_string(),
        }),
        Ok(None) => Content::Other,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Absent,
        Err(error) => Content::Unreadable {
            why: match error.raw_os_error() {
                Some(libc::ELOOP) => "a symbolic link is on the way to it now".to_owned(),
                _ => error.to_string(),
            },
        },
    }
}

/// The file, `None` where it is no regular one.
fn open(path: &Path) -> io::Result<Option<File>> {
    // First only a handle, which opens no device and waits for no pipe.
    let how = |flags| {
        OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS)
    };
    let handle = openat2(AT_FDCWD, path, how(OFlag::O_PATH | OFlag::O_NOFOLLOW))?;
    let kind = SFlag::from_bits_truncate(fstat(&handle)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG {
        return Ok(None);
    }
    // The same file, whatever its name leads to by now.
    File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).map(Some)
}

fn regular(mut file: File, last: Timestamp, limit: u64) -> io::Result<Content> {
    let found = file.metadata()?;
    let written = found
        .modified()
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok());
    // An open is recorded and the writes that follow are not, so a file may well be written a while after its event; a minute is
    // taken as the same doing.
    let changed_since = written
        .is_some_and(|written| written.duration_since(last) > jiff::SignedDuration::from_secs(60));
    let (sha256, note) = if found.len() > limit {
        (None, Some(format!("larger than {limit} bytes")))
    } else {
        let mut hasher = Sha256::new();
        let mut read = 0;
        let mut buffer = vec![0; 1 << 16];
        // One that grows meanwhile is read up to the limit.
        while read <= limit {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            read += count as u64;
            hasher.update(buffer.get(..count).unwrap_or_default());
        }
        (Some(hex::encode(hasher.finalize())), None)
    };
    Ok(Content::File {
        size: found.len(),
        sha256,
        changed_since,
        note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read_and_no_link_is_followed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "text").expect("written");
        std::fs::create_dir(at("dir")).expect("made");
        std::fs::write(at("dir/inner"), "text").expect("written");
        std::os::unix::fs::symlink(at("file"), at("link")).expect("linked");
        std::os::unix::fs::symlink(at("dir"), at("dirlink")).expect("linked");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        let now = Timestamp::now();
        let look = |name: &str, limit| content(&at(name), now, limit);
        let Content::File {
            size,
            sha256,
            changed_since,
            ..
        } = look("file", 100)
        else {
            panic!("{:?}", look("file", 100));
        };
        let text = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1";
        assert_eq!(
            (size, sha256.as_deref(), changed_since),
            (4, Some(text), false)
        );
        assert!(matches!(
            look("file", 3),
            Content::File {
                sha256: None,
                note: Some(_),
                ..
            }
        ));
        assert_eq!(look("nothing", 100), Content::Absent);
        for other in ["dir", "pipe", "link"] {
            assert_eq!(look(other, 100), Content::Other, "{other}");
        }
        assert!(matches!(
            look("dirlink/inner", 100),
            Content::Unreadable { .. }
        ));
        let before = now - jiff::SignedDuration::from_hours(1);
        assert!(matches!(
            content(&at("file"), before, 100),
            Content::File {
                changed_since: true,
                ..
            }
        ));
    }
}
