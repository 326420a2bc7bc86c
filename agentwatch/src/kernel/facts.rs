//! What the kernel's types say, kept on disk from one start to the next: to look through them takes tens of megabytes and most of the time
//! of a takeover.
//!
//! The file begins with its digest and names what it was made from: the types' bytes, what was looked for, and by which version. What is
//! cut short, changed, or of another kernel is not used, and written anew.

use std::{fmt::Write as _, fs, io, path::Path};

use agentwatch_common::offsets::MEMBERS;
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    btf::{self, CAST, COUNTER},
    relocate::Facts,
};
use crate::collector::chain::write_through;

/// Raised when the same question to the same types has another answer.
const VERSION: u32 = 1;

/// Name of the file in the daemon's state directory.
pub const FILE: &str = "kernel-types";

/// Bytes of the file at the most: it is some hundreds of numbers.
const MOST_BYTES: u64 = 1 << 16;

#[derive(Serialize, Deserialize)]
struct Kept {
    /// What it follows from.
    source: String,
    facts: Facts,
}

/// What stands in the programs' instructions, by a file of types; by what is kept of it where there is that.
pub fn facts(types: &Path, kept: Option<&Path>) -> Result<Facts> {
    let mut facts = match kept {
        Some(kept) => known(types, kept)?,
        None => btf::facts(types)?,
    };
    // Of the running system, not of its types.
    if !is_compiled() {
        facts.cast = None;
    }
    Ok(facts)
}

fn known(types: &Path, kept: &Path) -> Result<Facts> {
    let source = source(types)?;
    match read(kept, &source) {
        Ok(Some(facts)) => return Ok(facts),
        Ok(None) => {}
        Err(error) => tracing::warn!(
            file = %kept.display(),
            error = format!("{error:#}"),
            "what was kept of the kernel's types is of no use; they are read again"
        ),
    }
    let facts = btf::facts(types)?;
    let kept_now = Kept { source, facts };
    if let Err(error) = write(kept, &kept_now) {
        tracing::warn!(
            file = %kept.display(),
            error = format!("{error:#}"),
            "what the kernel's types say cannot be kept; the next start reads them again"
        );
    }
    Ok(kept_now.facts)
}

/// Whether the kernel compiles programs: only those may call its functions.
fn is_compiled() -> bool {
    fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
        .map_or(true, |enabled| enabled.trim() != "0")
}

/// The digest of all that facts follow from.
fn source(types: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut asked = format!("{VERSION} {} {CAST} {COUNTER}", env!("CARGO_PKG_VERSION"));
    for member in MEMBERS {
        // Into memory, which does not fail.
        let _ = write!(asked, "\n{} {}", member.parent, member.paths.join("|"));
    }
    // No text has this byte.
    hasher.update(asked.as_bytes()).update(&[0]);
    let file = btf::open(types)?;
    hasher
        .update_reader(file)
        .with_context(|| format!("read {}", types.display()))?;
    Ok(hasher.finalize().to_string())
}

/// What was kept; nothing where nothing was, or of other types.
fn read(path: &Path, source: &str) -> Result<Option<Facts>> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("look at it"),
    };
    ensure!(length <= MOST_BYTES, "it has {length} bytes");
    let text = fs::read_to_string(path).context("read it")?;
    let (sum, json) = text.split_once('\n').context("it is cut short")?;
    ensure!(
        sum == digest(json),
        "its content does not have the digest that it begins with"
    );
    let kept: Kept = serde_json::from_str(json).context("it is another version's")?;
    if kept.source != source {
        tracing::info!("the kernel's types are not those of the last start");
        return Ok(None);
    }
    ensure!(
        kept.facts.offsets.len() == MEMBERS.len(),
        "it tells of {} members, and there are {}",
        kept.facts.offsets.len(),
        MEMBERS.len()
    );
    Ok(Some(kept.facts))
}

fn write(path: &Path, kept: &Kept) -> Result<()> {
    let json = serde_json::to_string(kept).context("encode it")?;
    write_through(path, format!("{}\n{json}", digest(&json)).as_bytes()).context("write it")
}

fn digest(json: &str) -> String {
    blake3::hash(json.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            offsets: (0..MEMBERS.len() as u64).collect(),
            cast: Some((3, 4)),
        }
    }

    #[test]
    fn what_was_kept_of_these_types_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let (types, file) = (dir.path().join("types"), dir.path().join(FILE));
        fs::write(&types, "types").expect("written");
        let source = source(&types).expect("a digest");
        assert_eq!(read(&file, &source).expect("nothing"), None);
        let kept = Kept {
            source: source.clone(),
            facts: facts(),
        };
        write(&file, &kept).expect("written");
        assert_eq!(read(&file, &source).expect("read"), Some(facts()));
        // What is kept is believed: these are no types.
        assert_eq!(known(&types, &file).expect("known"), facts());
        // Of other types it says nothing, and these cannot be read.
        fs::write(&types, "other types").expect("written");
        let other = super::source(&types).expect("a digest");
        assert_eq!(read(&file, &other).expect("read"), None);
        assert!(known(&types, &file).is_err());
    }

    #[test]
    fn what_is_damaged_is_not_believed() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join(FILE);
        let kept = Kept {
            source: "source".to_owned(),
            facts: facts(),
        };
        write(&file, &kept).expect("written");
        let whole = fs::read(&file).expect("read");
        for place in 0..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 1;
            fs::write(&file, &changed).expect("written");
            assert!(read(&file, "source").is_err(), "{place}");
            fs::write(&file, &whole[..place]).expect("written");
            assert!(read(&file, "source").is_err(), "{place}");
        }
        let few = Kept {
            source: "source".to_owned(),
            facts: Facts {
                offsets: vec![1],
                cast: None,
            },
        };
        write(&file, &few).expect("written");
        assert!(read(&file, "source").is_err());
        fs::write(&file, vec![b' '; MOST_BYTES as usize + 1]).expect("written");
        assert!(read(&file, "source").is_err());
    }

    #[test]
    fn what_cannot_be_used_is_written_anew() {
        let types = Path::new(btf::VMLINUX);
        if !types.exists() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join(FILE);
        fs::write(&file, "damaged").expect("written");
        let said = known(types, &file).expect("the types say it");
        let source = source(types).expect("a digest");
        assert_eq!(read(&file, &source).expect("read").as_ref(), Some(&said));
        assert_eq!(known(types, &file).expect("kept"), said);
    }
}
