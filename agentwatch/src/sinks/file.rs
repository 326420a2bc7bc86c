//! JSON Lines in a file, which is begun anew when it is full or old, and compressed then.
//!
//! A delivery is on disk when it is acknowledged. What a stop left half written at the end is cut off at the next start: it was not
//! acknowledged, and comes again.

use std::{
    fs,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use tokio::task::spawn_blocking;

use super::{
    Failure, Sink,
    config::{Compression, FileTarget},
};
use crate::event::{Event, format::Format};

pub(crate) struct File {
    target: FileTarget,
    format: Format,
    open: Option<Open>,
}

/// The current file.
struct Open {
    file: fs::File,
    bytes: u64,
    begun: SystemTime,
}

impl File {
    pub(super) fn new(target: &FileTarget, format: Format) -> Self {
        Self {
            target: target.clone(),
            format,
            open: None,
        }
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.target
            .path
            .parent()
            .unwrap_or(Path::new("/"))
            .to_owned()
    }
}

impl Sink for File {
    async fn deliver(&mut self, events: &[Event]) -> Result<u64, Failure> {
        let lines = self.format.lines(events);
        let (target, open) = (self.target.clone(), self.open.take());
        let work = spawn_blocking(move || append(&target, open, &lines));
        self.open = Some(work.await.context("writing ended in a panic")??);
        Ok(0)
    }

    fn most_events(&self) -> usize {
        4000
    }
}

fn append(target: &FileTarget, open: Option<Open>, lines: &[u8]) -> Result<Open> {
    let path = &target.path;
    let written = || format!("write {}", path.display());
    // Somebody else's rotation, or a removed file: it is begun anew under its name.
    let open = open.filter(|open| is_at(&open.file, path));
    let mut open = match open {
        Some(open) => open,
        None => begin(path).with_context(|| format!("open {}", path.display()))?,
    };
    let old = target.rotate_hours > 0
        && open
            .begun
            .elapsed()
            .is_ok_and(|age| age >= Duration::from_secs(u64::from(target.rotate_hours) * 3600));
    let full = open.bytes.saturating_add(lines.len() as u64) > target.rotate.as_u64();
    if open.bytes > 0 && (old || full) {
        drop(open);
        rotate(target).with_context(|| format!("rotate {}", path.display()))?;
        open = begin(path).with_context(|| format!("open {}", path.display()))?;
    }
    if let Err(error) = open
        .file
        .write_all(lines)
        .and_then(|()| open.file.sync_data())
    {
        // What is half there goes, so that the next attempt does not follow it.
        let _ = open.file.set_len(open.bytes);
        return Err(error).with_context(written);
    }
    open.bytes += lines.len() as u64;
    Ok(open)
}

fn is_at(file: &fs::File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Opens the file at its end, without a last line that is not whole.
fn begin(path: &Path) -> io::Result<Open> {
    let mut file = fs::OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let bytes = whole_lines(&mut file, found.len())?;
    if bytes < found.len() {
        tracing::info!(file = %path.display(), bytes = found.len() - bytes, "the last line was not whole and is written again");
        file.set_len(bytes)?;
    }
    let begun = found.created().or_else(|_| found.modified())?;
    if let Some(directory) = path.parent() {
        fs::File::open(directory)?.sync_all()?;
    }
    Ok(Open { file, bytes, begun })
}

/// Up to where a file ends in a newline.
fn whole_lines(file: &mut fs::File, length: u64) -> io::Result<u64> {
    let mut end = length;
    let mut buffer = vec![0; 1 << 16];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let part = buffer
            .get_mut(..usize::try_from(end - start).unwrap_or(0))
            .unwrap_or_default();
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Puts the current file aside under its time, compresses it, and removes what is too much.
fn rotate(target: &FileTarget) -> io::Result<()> {
    // Later than what was put aside before, also where the clock has jumped back: the oldest go by their names.
    let newest = set_aside(&target.path)?
        .last()
        .and_then(|path| stamp_of(&target.path, path));
    let now = Timestamp::now();
    let time = newest.map_or(now, |newest| {
        now.max(newest + SignedDuration::from_millis(1))
    });
    let stamp = time.strftime(STAMP).to_string();
    let aside = suffixed(&target.path, &format!(".{stamp}"));
    fs::rename(&target.path, &aside)?;
    let suffix = match target.compress {
        Compression::None => None,
        Compression::Zstd => Some(".zst"),
        Compression::Gzip => Some(".gz"),
    };
    if let Some(suffix) = suffix {
        // Beside the old one until it is whole.
        let (temporary, done) = (suffixed(&aside, ".tmp"), suffixed(&aside, suffix));
        let mut from = fs::File::open(&aside)?;
        let to = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(&temporary)?;
        let to = match target.compress {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::default());
                io::copy(&mut from, &mut encoder)?;
                encoder.finish()?
            }
            _ => {
                let mut encoder = zstd::Encoder::new(to, 3)?;
                io::copy(&mut from, &mut encoder)?;
                encoder.finish()?
            }
        };
        to.sync_all()?;
        fs::rename(&temporary, &done)?;
        fs::remove_file(&aside)?;
    }
    let mut aside = set_aside(&target.path)?;
    let much = aside.len().saturating_sub(target.keep as usize);
    for old in aside.drain(..much) {
        fs::remove_file(old)?;
    }
    Ok(())
}

/// How the time of a file that was put aside stands in its name.
const STAMP: &str = "%Y%m%dT%H%M%S%.3f";

/// When a file was put aside.
fn stamp_of(path: &Path, aside: &Path) -> Option<Timestamp> {
    let name = aside.file_name()?.to_str()?;
    let rest = name
        .strip_prefix(path.file_name()?.to_str()?)?
        .strip_prefix('.')?;
    let time = jiff::civil::DateTime::strptime(STAMP, rest.get(..19)?).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// Files that were put aside, the oldest first.
fn set_aside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Ok(Vec::new());
    };
    let mut found: Vec<PathBuf> = fs::read_dir(directory)?
        .flatten()
        .filter(|entry| {
            let entry = entry.file_name();
            // Ours only: a time follows the name.
            entry
                .to_str()
                .and_then(|entry| entry.strip_prefix(name)?.strip_prefix('.'))
                .and_then(|rest| rest.get(..19))
                .is_some_and(|stamp| {
                    stamp.bytes().enumerate().all(|(index, byte)| match index {
                        8 => byte == b'T',
                        15 => byte == b'.',
                        _ => byte.is_ascii_digit(),
                    })
                })
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::*;
    use crate::event::{Kind, samples::sample};

    fn target(path: &Path, rotate: u64, compress: Compression) -> FileTarget {
        FileTarget {
            path: path.to_owned(),
            rotate: ByteSize::b(rotate),
            rotate_hours: 0,
            keep: 2,
            compress,
        }
    }

    fn text(path: &Path) -> String {
        let bytes = fs::read(path).expect("a file");
        let bytes = match path.extension().and_then(|name| name.to_str()) {
            Some("zst") => zstd::decode_all(bytes.as_slice()).expect("zstd"),
            Some("gz") => {
                let mut text = Vec::new();
                flate2::read::GzDecoder::new(bytes.as_slice())
                    .read_to_end(&mut text)
                    .expect("gzip");
                text
            }
            _ => bytes,
        };
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[tokio::test]
    async fn full_files_are_put_aside_and_the_oldest_go() {
        for compress in [Compression::None, Compression::Zstd, Compression::Gzip] {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let path = directory.path().join("events.jsonl");
            fs::write(directory.path().join("events.jsonl.notes"), "mine").expect("written");
            let line = Format::Native.lines(&[sample(Kind::Open)]).len() as u64;
            let mut sink = File::new(&target(&path, line * 3, compress), Format::Native);
            for n in 0..10u64 {
                let mut event = sample(Kind::Open);
                event.seq = n;
                sink.deliver(&[event]).await.expect("delivered");
                // Their names are their times.
                std::thread::sleep(Duration::from_millis(2));
            }
            let aside = set_aside(&path).expect("listed");
            assert_eq!(aside.len(), 2, "{compress:?}");
            let numbers = |path: &Path| -> Vec<u64> {
                text(path)
                    .lines()
                    .map(|line| serde_json::from_str::<Event>(line).expect("an event").seq)
                    .collect()
            };
            assert_eq!(numbers(&aside[0]), [3, 4, 5]);
            assert_eq!(numbers(&aside[1]), [6, 7, 8]);
            assert_eq!(numbers(&path), [9]);
            assert!(directory.path().join("events.jsonl.notes").exists());
        }
    }

    #[tokio::test]
    async fn a_clock_that_jumped_back_does_not_make_the_newest_the_oldest() {
        for suffix in ["", ".gz"] {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let path = directory.path().join("events.jsonl");
            let late = suffixed(&path, &format!(".29991231T235959.999{suffix}"));
            fs::write(&late, "").expect("written");
            let mut sink = File::new(&target(&path, 1, Compression::None), Format::Native);
            for _ in 0..3 {
                sink.deliver(&[sample(Kind::Open)])
                    .await
                    .expect("delivered");
            }
            let names: Vec<_> = set_aside(&path)
                .expect("listed")
                .iter()
                .filter_map(|aside| Some(aside.file_name()?.to_str()?.to_owned()))
                .collect();
            // Each is a millisecond later than the one before, and the one that was there has gone as the oldest.
            assert_eq!(
                names,
                [
                    "events.jsonl.30000101T000000.000",
                    "events.jsonl.30000101T000000.001"
                ]
            );
        }
    }

    #[tokio::test]
    async fn half_a_line_is_cut_off_and_a_removed_file_is_begun_anew() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("events.jsonl");
        fs::write(&path, "{\"whole\":1}\n{\"half\":").expect("written");
        let mut sink = File::new(&target(&path, 1 << 20, Compression::None), Format::Native);
        sink.deliver(&[sample(Kind::Open)])
            .await
            .expect("delivered");
        assert!(
            text(&path).starts_with("{\"whole\":1}\n{\"v\":1"),
            "{}",
            text(&path)
        );
        fs::remove_file(&path).expect("removed");
        sink.deliver(&[sample(Kind::Open)])
            .await
            .expect("delivered");
        assert_eq!(text(&path).lines().count(), 1);
        // Never through a link, which anybody who may write to the directory could lay.
        fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink(directory.path().join("other"), &path).expect("linked");
        assert!(sink.deliver(&[sample(Kind::Open)]).await.is_err());
    }
}
