//! Cgroups of sessions, in the unified hierarchy or the unified part of a hybrid one.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// Below which cgroup `run` makes those of its sessions.
const PARENT: &str = "agentwatch";

/// Makes the cgroup of a new session.
pub fn create(root: &Path, session: &str) -> Result<PathBuf> {
    let path = root.join(PARENT).join(session);
    fs::create_dir_all(&path).with_context(|| format!("make cgroup {}", path.display()))?;
    Ok(path)
}

/// Removes a session's cgroup and those below it; one that still has processes stays.
pub fn remove(path: &Path) {
    for cgroup in descendants(path).into_iter().rev() {
        if let Err(error) = fs::remove_dir(&cgroup)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(cgroup = %cgroup.display(), %error, "a cgroup of an ended session stays");
        }
    }
}

/// The id by which the kernel's programs know a cgroup: its inode number (kernfs).
pub fn id(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)
        .with_context(|| format!("look at cgroup {}", path.display()))?
        .ino())
}

/// Moves a process, with all its threads.
pub fn enter(path: &Path, pid: u32) -> Result<()> {
    fs::write(path.join("cgroup.procs"), pid.to_string())
        .with_context(|| format!("move process {pid} into cgroup {}", path.display()))
}

/// Whether any process is in the cgroup or below; false where it is gone.
pub fn populated(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// The cgroups right below.
pub fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The cgroup that a process is in.
pub fn of_process(root: &Path, pid: u32) -> Option<PathBuf> {
    let process = procfs::process::Process::new(pid.cast_signed()).ok()?;
    let cgroups = process.cgroups().ok()?;
    let unified = cgroups.into_iter().find(|cgroup| cgroup.hierarchy == 0)?;
    Some(root.join(unified.pathname.trim_start_matches('/')))
}

/// The cgroup and all below it, parents first.
pub fn descendants(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    let mut next = 0;
    while let Some(dir) = all.get(next).cloned() {
        next += 1;
        all.extend(children(&dir));
    }
    all
}

/// The cgroup with an id.
pub fn by_id(root: &Path, id: u64) -> Option<PathBuf> {
    descendants(root)
        .into_iter()
        .find(|path| self::id(path).is_ok_and(|own| own == id))
}

/// A cgroup that someone names: absolute below the mount, or as `/proc/PID/cgroup` writes it.
pub fn resolve(root: &Path, named: &Path) -> Result<PathBuf> {
    let candidates = [
        named.to_owned(),
        root.join(named.strip_prefix("/").unwrap_or(named)),
    ];
    for path in candidates {
        let Ok(path) = path.canonicalize() else {
            continue;
        };
        if path.starts_with(root) && path.join("cgroup.procs").exists() {
            if path == root {
                bail!(
                    "{} is the root of all cgroups: a session there would hold the whole host",
                    path.display()
                );
            }
            return Ok(path);
        }
    }
    bail!(
        "there is no cgroup {} below {}; hint: see the line 0:: of /proc/PID/cgroup",
        named.display(),
        root.display()
    )
}

/// The path of a cgroup as events show it: below the mount.
pub fn shown(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    format!("/{}", below.display())
}
