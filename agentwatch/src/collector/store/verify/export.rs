//! What is sealed of a history, as a directory of its own.

use std::{fs, io, path::Path};

use super::{
    super::{StoreError, connect, insert, segment},
    HEAD, number,
};
use crate::collector::chain::{self, PUBLIC_KEY};

/// Copies what is sealed of a history to a new directory, where it can be checked and read by itself.
///
/// # Errors
/// When something cannot be read or written, or the directory is not empty.
pub fn export(from: &Path, to: &Path) -> Result<u64, StoreError> {
    fs::create_dir_all(to.join(segment::DIRECTORY))?;
    if fs::read_dir(to.join(segment::DIRECTORY))?.next().is_some() {
        return Err(StoreError::Question(format!(
            "{} holds an export already\nhint: name a new directory",
            to.display()
        )));
    }
    let mut head = insert::head(&connect::bare(from)?)?;
    let mut segments = 0;
    for entry in fs::read_dir(from.join(segment::DIRECTORY))?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(number);
        // What is being built is not part of the history yet.
        let Some(number) = number.filter(|number| *number <= head.segment) else {
            continue;
        };
        match fs::copy(entry.path(), to.join(segment::DIRECTORY).join(&name)) {
            Ok(_) => {
                segments += u64::from(name.to_str().is_some_and(|name| name.ends_with(".parquet")))
            }
            // Retired in between; its manifest says so, now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = segment::path(Path::new(""), number).with_extension("json");
                fs::copy(from.join(&name), to.join(&name))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    match fs::copy(from.join(PUBLIC_KEY), to.join(PUBLIC_KEY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // The signed head also speaks of the tail, which an export does not have: its signature is kept as it is.
    head.key = if head.signature.is_empty() {
        chain::GENESIS
    } else {
        head.key
    };
    let json = serde_json::to_vec_pretty(&head).expect("plain types always serialise");
    chain::write_through(&to.join(HEAD), &json)?;
    Ok(segments)
}
