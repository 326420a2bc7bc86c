//! Cgroups of sessions, in the unified hierarchy or the unified part of a hybrid one.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::policy::model::Limits;

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

/// What of these limits no controller of this hierarchy holds, a sentence each. Controllers that are there are turned on
/// for sessions.
pub fn limit_gaps(root: &Path, limits: &Limits) -> Vec<String> {
    let wanted = [
        ("pids", "limits.pids", limits.pids.is_some()),
        ("memory", "limits.memory", limits.memory.is_some()),
        ("cpu", "limits.cpu", limits.cpu.is_some()),
    ];
    wanted
        .into_iter()
        .filter(|(.., asked)| *asked)
        .filter_map(|(controller, limit, _)| {
            let error = enable(root, controller).err()?;
            Some(format!("{limit}: {error:#}"))
        })
        .collect()
}

/// Turns a controller on for the sessions' cgroups.
fn enable(root: &Path, controller: &str) -> Result<()> {
    let listed = |file: &Path| {
        fs::read_to_string(file)
            .is_ok_and(|names| names.split_whitespace().any(|name| name == controller))
    };
    if !listed(&root.join("cgroup.controllers")) {
        bail!(
            "the controller {controller} is not in {}; it is turned off, or belongs to a hierarchy of version 1",
            root.display()
        );
    }
    let parent = root.join(PARENT);
    fs::create_dir_all(&parent).with_context(|| format!("make cgroup {}", parent.display()))?;
    for cgroup in [root, &parent] {
        let file = cgroup.join("cgroup.subtree_control");
        if !listed(&file) {
            fs::write(&file, format!("+{controller}")).with_context(|| {
                format!("turn the controller {controller} on in {}", file.display())
            })?;
        }
    }
    Ok(())
}

/// Sets the limits of a session's cgroup; those that [`limit_gaps`] names are left out.
pub fn limit(root: &Path, path: &Path, limits: &Limits) -> Result<()> {
    /// Microseconds in which a share of processors is measured (cpu.max in cgroup-v2.rst).
    const PERIOD: u64 = 100_000;
    let number = |number: Option<u64>| number.map_or("max".to_owned(), |number| number.to_string());
    let quota = limits
        .cpu
        .map(|thousandths| u64::from(thousandths) * PERIOD / 1000);
    for (controller, file, value) in [
        ("pids", "pids.max", number(limits.pids.map(u64::from))),
        ("memory", "memory.max", number(limits.memory)),
        // Or the limit would only move what is beyond it.
        (
            "memory",
            "memory.swap.max",
            limits.memory.map_or("max", |_| "0").to_owned(),
        ),
        ("cpu", "cpu.max", format!("{} {PERIOD}", number(quota))),
    ] {
        let target = path.join(file);
        if !target.exists() || enable(root, controller).is_err() {
            continue;
        }
        fs::write(&target, &value)
            .with_context(|| format!("write {value} to {}", target.display()))?;
    }
    Ok(())
}

/// Kills every process in the cgroup and below.
pub fn kill(path: &Path) -> Result<()> {
    let file = path.join("cgroup.kill");
    fs::write(&file, "1").with_context(|| format!("write to {}", file.display()))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The files are those of a hierarchy; what the kernel makes of them is tried in the VMs.
    #[test]
    fn limits_are_written_where_there_is_a_controller() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let limits = Limits {
            pids: Some(5),
            memory: Some(1 << 20),
            cpu: Some(1500),
            wall_time: Some(1),
        };
        assert_eq!(limit_gaps(root, &limits).len(), 3);
        fs::write(root.join("cgroup.controllers"), "cpu pids\n").unwrap();
        let session = create(root, "s").unwrap();
        for file in ["pids.max", "cpu.max"] {
            fs::write(session.join(file), "max").unwrap();
        }
        let gaps = limit_gaps(root, &limits);
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert!(
            gaps[0].starts_with("limits.memory: the controller memory is not in"),
            "{gaps:?}"
        );
        limit(root, &session, &limits).unwrap();
        let read = |file: &str| fs::read_to_string(session.join(file)).unwrap();
        assert_eq!(read("pids.max"), "5");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert!(!session.join("memory.max").exists());
    }
}
