//! The host's floor: the administrator's policy files, which hold for every session and cannot be loosened by a task.
//!
//! They are read anew whenever a session starts. One that cannot be used stops every session: a floor with a hole is none.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::policy::{file::MAX_TEXT, model::Context, sources::Managed};

/// Where the files are when the configuration names no other directory.
pub const DEFAULT: &str = "/etc/agentwatch/managed.d";
/// The most files.
const MAX_FILES: usize = 256;

/// Reads `*.toml` in the directory, in the order of their names; none where there is no directory.
///
/// # Errors
/// When something there cannot be read, or can be written by others than root.
pub fn read(directory: &Path) -> Result<Vec<Managed>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("read {}", directory.display()));
        }
    };
    let meta =
        fs::metadata(directory).with_context(|| format!("look at {}", directory.display()))?;
    trusted(directory, &meta)?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("read {}", directory.display()))?
            .path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.len() > MAX_FILES {
        bail!("{} holds more than {MAX_FILES} files", directory.display());
    }
    paths.into_iter().map(read_one).collect()
}

fn read_one(path: PathBuf) -> Result<Managed> {
    use std::io::Read as _;
    // What is looked at is what is read: the file may be exchanged in between.
    let file = fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let meta = file
        .metadata()
        .with_context(|| format!("look at {}", path.display()))?;
    if !meta.is_file() {
        bail!("{} is not a file", path.display());
    }
    trusted(&path, &meta)?;
    let mut text = String::new();
    file.take(MAX_TEXT as u64 + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("read {}", path.display()))?;
    if text.len() > MAX_TEXT {
        bail!("{} is longer than {MAX_TEXT} bytes", path.display());
    }
    Ok(Managed { path, text })
}

fn trusted(path: &Path, meta: &fs::Metadata) -> Result<()> {
    if meta.uid() != 0 {
        bail!(
            "{} belongs to user {}, and not to root; hint: chown root it",
            path.display(),
            meta.uid()
        );
    }
    // S_IWGRP and S_IWOTH.
    if meta.mode() & 0o022 != 0 {
        bail!(
            "{} can be written by others than root; hint: chmod go-w it",
            path.display()
        );
    }
    Ok(())
}

/// What `~` and variables mean in these files: what the host knows of the user.
pub fn context(uid: u32) -> Context {
    let home = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
        .ok()
        .flatten()
        .map(|user| user.dir);
    Context {
        // Relative paths are refused: there is nothing that they could start from.
        cwd: PathBuf::new(),
        home: home.unwrap_or_default(),
        tmp: PathBuf::new(),
        uid,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_are_read_in_order_and_only_from_root() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(&directory.path().join("none")).unwrap().is_empty());
        for (name, text) in [("20.toml", "b"), ("10.toml", "a"), ("notes.txt", "c")] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let found = read(directory.path());
        if !nix::unistd::geteuid().is_root() {
            assert!(found.unwrap_err().to_string().contains("not to root"));
            return;
        }
        let texts: Vec<String> = found.unwrap().into_iter().map(|file| file.text).collect();
        assert_eq!(texts, ["a", "b"]);
        let open = directory.path().join("20.toml");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o664)).unwrap();
        let error = read(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("20.toml can be written by others"),
            "{error}"
        );
        fs::remove_file(&open).unwrap();
        fs::create_dir(&open).unwrap();
        assert!(
            read(directory.path())
                .unwrap_err()
                .to_string()
                .contains("is not a file")
        );
        fs::remove_dir(&open).unwrap();
        fs::write(&open, b"\xff").unwrap();
        assert!(read(directory.path()).is_err());
    }
}
