//! Files by identity, and identities by the host's names.

use std::{
    collections::HashMap,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::{OFlag, open},
    sys::{
        stat::{Mode, fstat},
        statfs::fstatfs,
    },
};
use procfs::process::Process;

/// A file as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// major << 20 | minor.
    pub dev: u32,
    pub inode: u64,
}

/// File systems whose `stat` shows other numbers than the kernel works with (linux/magic.h).
const STAT_DIFFERS: [(i64, &str); 2] = [(0x794c_7630, "overlayfs"), (0x9123_683e, "btrfs")];

/// What a path named when it was looked at.
pub enum Found {
    File(Identity),
    /// Its file system hides the kernel's numbers.
    Hidden(&'static str),
    Missing,
}

/// The file that a path names now, symbolic links followed.
pub fn identify(path: &Path) -> Result<Found> {
    let file: OwnedFd = match open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => return Ok(Found::Missing),
        Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
    };
    let kind = fstatfs(file.as_fd())
        .with_context(|| format!("look at the file system of {}", path.display()))?;
    if let Some((_, name)) = STAT_DIFFERS
        .iter()
        .find(|(magic, _)| kind.filesystem_type().0 == *magic)
    {
        return Ok(Found::Hidden(name));
    }
    let stat = fstat(file.as_fd()).with_context(|| format!("look at {}", path.display()))?;
    Ok(Found::File(Identity {
        dev: device(stat.st_dev),
        inode: stat.st_ino,
    }))
}

/// The file that a path names now, if no symbolic link is on the way.
pub fn identify_unlinked(path: &Path) -> Result<Found> {
    match path.canonicalize() {
        Ok(real) if real == path => identify(path),
        _ => Ok(Found::Missing),
    }
}

/// A device number as the kernel has it inside, from what stat(2) shows.
pub fn device(stat: u64) -> u32 {
    let major = nix::sys::stat::major(stat) as u32;
    let minor = nix::sys::stat::minor(stat) as u32;
    (major << 20) | (minor & 0xf_ffff)
}

/// What a path leads to, links followed, if the kernel can tell without asking any file system: a path that an agent
/// chose must not make us wait for a file system of the agent's.
pub fn resolve_cached(path: &Path) -> Option<PathBuf> {
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeroes is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_CACHED | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the name and the struct outlive the call, and the size is the struct's.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            name.as_ptr(),
            &raw mut how,
            size_of::<libc::open_how>(),
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the call just made it, and nobody else has it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// One mount of the host.
#[derive(Clone, Debug)]
pub struct Mount {
    pub point: PathBuf,
    /// The part of the file system that is mounted.
    pub root: PathBuf,
    pub dev: u32,
}

/// The host's mounts, to name files by.
#[derive(Default)]
pub struct Mounts {
    by_device: HashMap<u32, Vec<Mount>>,
}

impl Mounts {
    pub fn read() -> Result<Self> {
        let mut mounts = Self::default();
        for mount in list()? {
            mounts.by_device.entry(mount.dev).or_default().push(mount);
        }
        Ok(mounts)
    }

    pub fn knows(&self, dev: u32) -> bool {
        self.by_device.contains_key(&dev)
    }

    /// The host's name of a file from its device and its path inside the file system. A file on no mount of the host
    /// is named by its device.
    pub fn name(&self, dev: u32, inside: &Path) -> PathBuf {
        let mounts = self.by_device.get(&dev).map_or(&[][..], Vec::as_slice);
        let best = mounts
            .iter()
            .filter_map(|mount| {
                inside
                    .strip_prefix(&mount.root)
                    .ok()
                    .map(|rest| (mount, rest))
            })
            // The mount that shows the most specific part; of two, the one with the shorter name.
            .max_by_key(|(mount, _)| {
                (
                    mount.root.as_os_str().len(),
                    std::cmp::Reverse(mount.point.as_os_str().len()),
                )
            });
        match best {
            Some((mount, rest)) if rest.as_os_str().is_empty() => mount.point.clone(),
            Some((mount, rest)) => mount.point.join(rest),
            None => {
                let mut name =
                    std::ffi::OsString::from(format!("[{}:{}]", dev >> 20, dev & 0xf_ffff));
                name.push(inside);
                PathBuf::from(name)
            }
        }
    }
}

/// The mounts of this process's mount namespace.
pub fn list() -> Result<Vec<Mount>> {
    let infos = Process::myself()
        .and_then(|process| process.mountinfo())
        .context("read /proc/self/mountinfo; hint: /proc must be mounted")?;
    Ok(infos
        .into_iter()
        .filter_map(|info| {
            let (major, minor) = info.majmin.split_once(':')?;
            let dev = (major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?;
            Some(Mount {
                point: info.mount_point,
                root: PathBuf::from(info.root),
                dev,
            })
        })
        .collect())
}
