//! Mounts that the processes of a cgroup have and the host has not: what a container's runtime mounted for it alone.
//!
//! Such a mount is named as the host would name its mount point: by the host's name of the root that the processes stand in, and the
//! path from there. Which files the host has, and what they are called, no process in a container can change: only file systems
//! that are on no mount of the host are looked at here. A volume that is bound into a container keeps its host's name.
//!
//! A container may have a file system that it serves itself (FUSE): nothing here waits for one. What cannot be found without is closed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use procfs::process::Process;

use super::files::{self, Identifier, Identity, Mount, Mounts};
use crate::{policy::model::Compiled, session::cgroup};

/// Mounts of one cgroup that are looked at: the processes decide how many there are.
const MOST: usize = 256;
/// Mount namespaces of one cgroup that are looked at.
const NAMESPACES: usize = 64;

/// How often a look-up is begun anew.
const TRIES: u32 = 8;

/// The file systems that only a cgroup's processes have.
#[derive(Default)]
pub struct Private {
    pub mounts: Vec<PrivateMount>,
    /// What paths of the policy named in them.
    known: HashMap<PathBuf, Identity>,
    /// What is closed because it has no name on the host, a sentence each.
    pub notes: Vec<String>,
}

/// A file system that the host has not mounted.
pub struct PrivateMount {
    /// Named as the host would name it.
    pub mount: Mount,
    /// What it shows at its mount point, open and by identity. Who holds it open keeps it from being unmounted.
    root: Option<OwnedFd>,
    pub identity: Identity,
    /// Magic number of its kind, where such file systems show the host.
    pub shows_the_host: Option<u64>,
}

impl Private {
    /// Looks at what the processes of a cgroup have mounted now.
    pub fn of(path: &Path, identifier: &Identifier) -> Result<Self> {
        let mut private = Self::default();
        let host = Mounts::read()?;
        let mut seen = HashSet::new();
        // The daemon's own namespace is the host's.
        seen.extend(place_of(Path::new("/proc/self")).ok());
        for pid in cgroup::processes(path) {
            let Ok(place) = place_of(Path::new(&format!("/proc/{pid}"))) else {
                // It has ended.
                continue;
            };
            if !seen.insert(place) {
                continue;
            }
            if seen.len() > NAMESPACES {
                private.notes.push(format!(
                    "its processes stand in more than {NAMESPACES} mount namespaces: what only the others have mounted is closed"
                ));
                break;
            }
            if let Err(error) = private.look(pid, &host, identifier) {
                tracing::debug!(
                    pid,
                    error = format!("{error:#}"),
                    "the mounts of a process cannot be looked at"
                );
            }
        }
        // Read after everything was identified: what the host has mounted is never taken for a container's.
        let host = Mounts::read()?;
        private
            .mounts
            .retain(|private| !host.knows(private.mount.dev));
        Ok(private)
    }

    /// Looks up what a policy's paths name in them, and lets go of them.
    pub fn learn(mut self, policy: &Compiled, identifier: &Identifier) -> Result<Self> {
        let places = policy.places.iter().map(|place| place.path.as_path());
        let paths: BTreeSet<&Path> = places.flat_map(Path::ancestors).collect();
        let mut known = HashMap::new();
        for path in paths.into_iter().filter(|path| self.holds(path)) {
            if let Some(identity) = self.identify(path, identifier)? {
                known.insert(path.to_owned(), identity);
            }
        }
        self.known = known;
        for private in &mut self.mounts {
            private.root = None;
        }
        Ok(self)
    }

    /// How the host would name what is in these file systems.
    pub fn names(&self) -> Mounts {
        self.mounts
            .iter()
            .map(|private| private.mount.clone())
            .collect()
    }

    /// Whether a device is that of such a file system.
    pub fn has(&self, dev: u32) -> bool {
        self.mounts.iter().any(|private| private.mount.dev == dev)
    }

    /// Whether a path leads below the mount point of such a file system.
    pub fn holds(&self, path: &Path) -> bool {
        self.around(path)
            .is_some_and(|private| private.mount.point != path)
    }

    /// The file that a path names in such a file system, no link followed; `None` where it names none, or leads to no such file system.
    pub fn identify(&self, path: &Path, identifier: &Identifier) -> Result<Option<Identity>> {
        if let Some(known) = self.known.get(path) {
            return Ok(Some(*known));
        }
        let Some(private) = self.around(path) else {
            return Ok(None);
        };
        let Some(root) = &private.root else {
            return Ok(None);
        };
        let inside = path
            .strip_prefix(&private.mount.point)
            .unwrap_or(Path::new(""));
        let Ok(file) = open_below(root, inside) else {
            return Ok(None);
        };
        let (identity, _) = identifier.identify_open(&file, path)?;
        Ok((identity.dev == private.mount.dev).then_some(identity))
    }

    /// The innermost mount that a path leads into.
    fn around(&self, path: &Path) -> Option<&PrivateMount> {
        self.mounts
            .iter()
            .filter(|private| path.starts_with(&private.mount.point))
            .max_by_key(|private| private.mount.point.components().count())
    }

    fn look(&mut self, pid: u32, host: &Mounts, identifier: &Identifier) -> Result<()> {
        let process = Process::new(pid.cast_signed()).context("look at the process")?;
        let root = open(
            format!("/proc/{pid}/root").as_str(),
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .context("open its root")?;
        let mounts = files::list_of(&process)?;
        let name = mounts
            .iter()
            .rev()
            .find(|mount| mount.point == Path::new("/"))
            .and_then(|mount| host.find(mount.dev, &mount.root));
        let mut by_device: BTreeMap<u32, Vec<&Mount>> = BTreeMap::new();
        for mount in mounts.iter().filter(|mount| !host.knows(mount.dev)) {
            by_device.entry(mount.dev).or_default().push(mount);
        }
        let Some(name) = name else {
            if by_device.is_empty() {
                return Ok(());
            }
            self.notes.push(format!(
                "the root that process {pid} stands in is on no mount of the host: rules do not reach what is in it, and it is closed"
            ));
            return Ok(());
        };
        for mounts in by_device.values() {
            // A file system is named by the mount that shows most of it; parts that are bound elsewhere too keep that name.
            let Some(most) = mounts
                .iter()
                .map(|mount| mount.root.components().count())
                .min()
            else {
                continue;
            };
            for mount in mounts
                .iter()
                .filter(|mount| mount.root.components().count() == most)
            {
                if self.mounts.len() >= MOST {
                    self.notes.push(format!(
                        "its processes have more than {MOST} mounts of their own: the others are closed"
                    ));
                    return Ok(());
                }
                let point = below(&name, &mount.point);
                if mount.kind == "overlay" {
                    self.notes.push(format!(
                        "the overlay at {} is mounted for process {pid} alone: what is in its layers cannot be told, and it is closed",
                        point.display()
                    ));
                    continue;
                }
                // What is mounted over another mount, or was unmounted meanwhile, is not found: it is not reached either.
                let Ok(file) = open_below(&root, &mount.point) else {
                    continue;
                };
                let Ok((identity, owner)) = identifier.identify_open(&file, &point) else {
                    // Served by another user, say.
                    continue;
                };
                // What a session mounted for itself is its own already.
                if identity.dev != mount.dev || owner != 0 {
                    continue;
                }
                let shows_the_host = mount
                    .shows_the_host()
                    .then(|| files::magic_of(&file))
                    .flatten();
                self.mounts.push(PrivateMount {
                    root: Some(file),
                    shows_the_host,
                    mount: mount.named(point),
                    identity,
                });
            }
        }
        Ok(())
    }
}

/// What tells mount namespaces, and roots in them, apart.
fn place_of(process: &Path) -> Result<(u64, PathBuf)> {
    let namespace = fs::metadata(process.join("ns/mnt"))?;
    Ok((namespace.ino(), fs::read_link(process.join("root"))?))
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Opens a file below a root that others may be changing: no link is followed, nothing above the root is reached, and no file system is
/// asked for what the kernel does not know.
fn open_below(root: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() {
        Path::new(".")
    } else {
        relative
    };
    let name =
        std::ffi::CString::new(relative.as_os_str().as_bytes()).context("a path holds a NUL")?;
    // SAFETY: all zeroes is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT
        | libc::RESOLVE_NO_SYMLINKS
        | libc::RESOLVE_NO_MAGICLINKS
        | libc::RESOLVE_CACHED;
    let mut tries = 0;
    loop {
        // SAFETY: the name and the struct outlive the call, and the size is the struct's.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                name.as_ptr(),
                &raw mut how,
                size_of::<libc::open_how>(),
            )
        };
        match Errno::result(fd) {
            // SAFETY: the call just made it, and nobody else has it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
            // Something was being renamed meanwhile, or it is not known.
            Err(Errno::EAGAIN) if tries < TRIES => tries += 1,
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        }
    }
}
