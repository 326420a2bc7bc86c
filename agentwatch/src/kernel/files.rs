//! Files by identity, and identities by the host's names.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    fs::File,
    io::Read as _,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use agentwatch_common::policy::Identified;
use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        stat::{SFlag, fstat},
        statfs::fstatfs,
    },
};
use procfs::process::{MountInfo, Process};

/// A file as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// major << 20 | minor.
    pub dev: u32,
    pub inode: u64,
    /// 0 where it is not known.
    pub generation: u32,
}

/// What a path named when it was looked at.
pub struct Found {
    pub identity: Identity,
    /// Number of the mount by which it was found. Since Linux 6.8 none is given twice.
    pub mount: u64,
    pub is_block_device: bool,
}

/// Tells which file a path names to the kernel. `stat` shows other numbers on some file systems (btrfs, overlayfs) and no generation
/// on any; so the kernel is asked to watch the file, and the program that is asked whether it may answers and refuses.
pub struct Identifier {
    watch: Option<Inotify>,
    answers: Array<MapData, Identified>,
}

impl Identifier {
    /// `asks`: whether the program is attached.
    pub fn new(answers: Array<MapData, Identified>, asks: bool) -> Result<Self> {
        let watch = if asks {
            Some(
                Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
                    .context("ask the kernel about files")?,
            )
        } else {
            None
        };
        Ok(Self { watch, answers })
    }

    /// The file that a path names now, symbolic links followed, but none of /proc's that lead where no path does; `None` where there is
    /// none.
    pub fn identify(&self, path: &Path) -> Result<Option<Found>> {
        match open_path(path, ResolveFlag::RESOLVE_NO_MAGICLINKS) {
            Ok(file) => self.found(&file, path).map(Some),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
        }
    }

    fn found(&self, file: &OwnedFd, path: &Path) -> Result<Found> {
        let (identity, _) = self.identify_open(file, path)?;
        let stat = statx(file).with_context(|| format!("look at {}", path.display()))?;
        let kind = SFlag::from_bits_truncate(u32::from(stat.stx_mode) & SFlag::S_IFMT.bits());
        Ok(Found {
            identity,
            mount: stat.stx_mnt_id,
            is_block_device: kind == SFlag::S_IFBLK,
        })
    }

    /// The file that is open, and the session that mounted its file system (0: none that is known). `path` is for people.
    pub fn identify_open(&self, file: &OwnedFd, path: &Path) -> Result<(Identity, u32)> {
        if let Some(watch) = &self.watch {
            let before = self
                .answers
                .get(&0, 0)
                .context("read the kernel's answer")?;
            let name = format!("/proc/self/fd/{}", file.as_raw_fd());
            match watch.add_watch(name.as_str(), AddWatchFlags::IN_MODIFY) {
                // Nobody refused it: the program is not there.
                Ok(set) => {
                    let _ = watch.rm_watch(set);
                }
                Err(_) => {
                    let answer = self
                        .answers
                        .get(&0, 0)
                        .context("read the kernel's answer")?;
                    if answer.asked != before.asked {
                        let identity = Identity {
                            dev: answer.dev,
                            inode: answer.inode,
                            generation: answer.generation,
                        };
                        return Ok((identity, answer.owner));
                    }
                }
            }
            anyhow::bail!("the kernel does not say which file {} is", path.display());
        }
        let stat = fstat(file.as_fd()).with_context(|| format!("look at {}", path.display()))?;
        let identity = Identity {
            dev: device(stat.st_dev),
            inode: stat.st_ino,
            generation: 0,
        };
        Ok((identity, 0))
    }

    /// The file that a path names now, if no symbolic link is on the way.
    pub fn identify_unlinked(&self, path: &Path) -> Result<Option<Found>> {
        match open_path(path, ResolveFlag::RESOLVE_NO_SYMLINKS) {
            Ok(file) => self.found(&file, path).map(Some),
            Err(_) => Ok(None),
        }
    }
}

fn open_path(path: &Path, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(resolve);
    openat2(AT_FDCWD, path, how)
}

/// What the kernel knows of a file without asking its file system.
fn statx(file: &OwnedFd) -> nix::Result<libc::statx> {
    // SAFETY: all zeroes is a valid statx.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty string, and the struct outlives the call.
    let done = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC,
            // The older number is what kernels give that do not know the newer.
            libc::STATX_TYPE | libc::STATX_MNT_ID | libc::STATX_MNT_ID_UNIQUE,
            &raw mut stat,
        )
    };
    Errno::result(done)?;
    Ok(stat)
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
    /// Name of its kind.
    pub kind: String,
    /// Layers of an overlay.
    layers: Vec<PathBuf>,
}

/// Kinds of file systems that show the host: one that a session mounts shows the same.
const SHOW_THE_HOST: [&str; 12] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "securityfs",
    "debugfs",
    "tracefs",
    "bpf",
    "configfs",
    "efivarfs",
    "binfmt_misc",
    "pstore",
];

impl Mount {
    #[cfg(test)]
    pub fn sample(point: &str, dev: u32, root: &str) -> Self {
        Self {
            point: point.into(),
            root: root.into(),
            dev,
            kind: "ext4".to_owned(),
            layers: Vec::new(),
        }
    }

    /// The name of what is below its root.
    pub fn shows(&self, below: &Path) -> PathBuf {
        if below.as_os_str().is_empty() {
            self.point.clone()
        } else {
            self.point.join(below)
        }
    }

    /// The same mount under another name.
    pub fn named(&self, point: PathBuf) -> Mount {
        Mount {
            point,
            ..self.clone()
        }
    }

    /// Whether a file system of this kind shows the host, wherever it is mounted.
    pub fn shows_the_host(&self) -> bool {
        SHOW_THE_HOST.contains(&self.kind.as_str())
    }

    /// The magic number of a kind of file system that shows the host.
    pub fn magic(&self) -> Option<u64> {
        if !self.shows_the_host() {
            return None;
        }
        let file = open_path(&self.point, ResolveFlag::RESOLVE_NO_SYMLINKS).ok()?;
        magic_of(&file)
    }

    /// The directories that an overlay shows together, and the one that it works in.
    pub fn layers(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.layers.iter().cloned()
    }
}

/// A mount of the host, and the file that its mount point names.
pub struct Rooted {
    pub mount: Mount,
    /// `None` where another mount is on top of it, where it was taken away meanwhile, and where it was not looked at or cannot be.
    pub root: Option<Found>,
    /// Whether the mount point names something else.
    pub is_hidden: bool,
}

/// Mounts with what they show at their mount points; file systems on other devices are not looked at, of which some wait for a server.
pub fn rooted(mounts: Vec<Mount>, devices: &HashSet<u32>, identifier: &Identifier) -> Vec<Rooted> {
    let look = |mount: &Mount| {
        if !devices.contains(&mount.dev) && !mount.shows_the_host() {
            return (None, false);
        }
        match open_path(&mount.point, ResolveFlag::RESOLVE_NO_SYMLINKS) {
            Ok(file) => match identifier.found(&file, &mount.point) {
                Ok(found) if found.identity.dev == mount.dev => (Some(found), false),
                Ok(_) => (None, true),
                Err(_) => (None, false),
            },
            Err(error) => (
                None,
                matches!(error, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP),
            ),
        }
    };
    mounts
        .into_iter()
        .map(|mount| {
            let (root, is_hidden) = look(&mount);
            Rooted {
                mount,
                root,
                is_hidden,
            }
        })
        .collect()
}

/// The magic number of the file system that a file is on.
pub fn magic_of(file: &OwnedFd) -> Option<u64> {
    u64::try_from(fstatfs(file).ok()?.filesystem_type().0).ok()
}

/// The directories of an overlay, from its options.
fn layers_of(options: &HashMap<String, Option<String>>) -> Vec<PathBuf> {
    ["lowerdir", "upperdir", "workdir"]
        .into_iter()
        .filter_map(|name| options.get(name)?.as_deref())
        .flat_map(|value| value.split(':'))
        .filter(|path| path.starts_with('/'))
        .map(unescaped)
        .collect()
}

/// Says when the host's mounts have changed.
pub struct MountChanges {
    /// Is ready (`POLLPRI`) once a mount was made or taken away since it was last asked.
    mountinfo: File,
}

impl MountChanges {
    pub fn watch() -> Result<Self> {
        let mountinfo = File::open("/proc/self/mountinfo")
            .context("open /proc/self/mountinfo; hint: /proc must be mounted")?;
        Ok(Self { mountinfo })
    }

    /// Whether a mount was made or taken away since this was last asked.
    pub fn any(&self) -> Result<bool> {
        let mut changed = [PollFd::new(self.mountinfo.as_fd(), PollFlags::POLLPRI)];
        let ready =
            poll(&mut changed, PollTimeout::ZERO).context("ask whether mounts have changed")?;
        Ok(ready > 0)
    }
}

/// The host's mounts as they are now.
pub struct HostMounts {
    now: Mounts,
    changes: MountChanges,
}

impl HostMounts {
    pub fn read() -> Result<Self> {
        let changes = MountChanges::watch()?;
        Ok(Self {
            now: Mounts::read()?,
            changes,
        })
    }

    /// Reads them again where they have changed. The number of a device that is gone is given to the next one, so a file must not
    /// be named by a mount of before.
    pub fn refresh(&mut self) -> Result<()> {
        if self.changes.any()? {
            self.now = Mounts::read()?;
        }
        Ok(())
    }

    /// See [`Mounts::find`].
    pub fn find(&self, dev: u32, inside: &Path) -> Option<PathBuf> {
        self.now.find(dev, inside)
    }
}

/// Mounts, to name files by.
#[derive(Default)]
pub struct Mounts {
    by_device: HashMap<u32, Vec<Mount>>,
}

impl Mounts {
    pub fn read() -> Result<Self> {
        Ok(list()?.into_iter().collect())
    }

    pub fn knows(&self, dev: u32) -> bool {
        self.by_device.contains_key(&dev)
    }

    /// The name of a file from its device and its path inside the file system; `None` for a file on none of these mounts.
    pub fn find(&self, dev: u32, inside: &Path) -> Option<PathBuf> {
        let mounts = self.by_device.get(&dev).map_or(&[][..], Vec::as_slice);
        let best = mounts
            .iter()
            .filter_map(|mount| {
                inside
                    .strip_prefix(&mount.root)
                    .ok()
                    .map(|rest| (mount, rest))
            })
            // The host's root is what the others are names in; then the shortest name, and of two the one that was there first.
            .min_by_key(|(mount, rest)| {
                let below = rest.components().count();
                (
                    mount.point != Path::new("/"),
                    mount.point.components().count() + below,
                )
            });
        best.map(|(mount, rest)| mount.shows(rest))
    }
}

impl FromIterator<Mount> for Mounts {
    fn from_iter<I: IntoIterator<Item = Mount>>(list: I) -> Self {
        let mut mounts = Self::default();
        for mount in list {
            mounts.by_device.entry(mount.dev).or_default().push(mount);
        }
        mounts
    }
}

/// What a file is called that is on no known mount: by its device.
pub fn name_by_device(dev: u32, inside: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(format!("[{}:{}]", dev >> 20, dev & 0xf_ffff));
    name.push(inside);
    PathBuf::from(name)
}

/// The mounts of this process's mount namespace.
pub fn list() -> Result<Vec<Mount>> {
    let process =
        Process::myself().context("look at our own process; hint: /proc must be mounted")?;
    list_of(&process)
}

/// The mounts that a process has below its root, named from there, in the order in which they were made.
pub fn list_of(process: &Process) -> Result<Vec<Mount>> {
    let path = format!("/proc/{}/mountinfo", process.pid);
    let mut bytes = Vec::new();
    process
        .open_relative("mountinfo")
        .map_err(anyhow::Error::from)
        .and_then(|mut file| Ok(file.read_to_end(&mut bytes)?))
        .with_context(|| format!("read {path}"))?;
    let mounts = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .filter_map(|line| {
            let mount = mount_of(line);
            if mount.is_none() {
                tracing::warn!(
                    line = %String::from_utf8_lossy(line),
                    "a mount cannot be read from {path}: what is on it is closed to sessions"
                );
            }
            mount
        });
    Ok(mounts.collect())
}

fn mount_of(line: &[u8]) -> Option<Mount> {
    // The kernel writes what would end a field as octal digits, and everything else as it is, in whatever encoding: the library takes
    // UTF-8 alone.
    let mut ascii = String::with_capacity(line.len());
    for byte in line {
        if byte.is_ascii() {
            ascii.push(char::from(*byte));
        } else {
            ascii.push_str(&format!("\\{byte:03o}"));
        }
    }
    let info = MountInfo::from_line(&ascii).ok()?;
    let (major, minor) = info.majmin.split_once(':')?;
    let dev = (major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?;
    Some(Mount {
        point: unescaped(info.mount_point.to_str()?),
        root: unescaped(&info.root),
        dev,
        layers: if info.fs_type == "overlay" {
            layers_of(&info.super_options)
        } else {
            Vec::new()
        },
        kind: info.fs_type,
    })
}

/// A path from what mountinfo writes: a backslash and three octal digits are a byte.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .and_then(|digits| str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_may_have_any_name() {
        let line =
            b"36 35 8:17 /a\\040b /media/My\\040\xffDisk rw,noatime shared:1 - vfat /dev/sdb1 rw";
        let mount = mount_of(line).expect("a mount");
        assert_eq!(mount.point.as_os_str().as_bytes(), b"/media/My \xffDisk");
        assert_eq!(mount.root, Path::new("/a b"));
        assert_eq!((mount.dev, &*mount.kind), (8 << 20 | 17, "vfat"));
        assert!(mount_of(b"36 35 8:17 /").is_none());
        assert_eq!(unescaped("/a\\0x\\"), Path::new("/a\\0x\\"));
        let overlay =
            b"40 35 0:50 / /m rw - overlay overlay rw,lowerdir=/l\\040a:/b,upperdir=/u,workdir=/w";
        let layers: Vec<PathBuf> = mount_of(overlay).expect("a mount").layers().collect();
        assert_eq!(layers, ["/l a", "/b", "/u", "/w"].map(PathBuf::from));
    }

    #[test]
    fn files_have_the_hosts_shortest_name() {
        let mounts: Mounts = [
            Mount::sample("/", 1, "/"),
            Mount::sample("/srv/root/home", 1, "/home"),
            Mount::sample("/h", 1, "/home"),
            Mount::sample("/sysroot", 2, "/"),
            Mount::sample("/var", 2, "/deploy/var"),
            Mount::sample("/data", 3, "/"),
            Mount::sample("/work/data", 3, "/"),
        ]
        .into_iter()
        .collect();
        for (dev, inside, name) in [
            (1, "/home/a", "/home/a"),
            (1, "/", "/"),
            (2, "/deploy/var/a", "/var/a"),
            (2, "/other", "/sysroot/other"),
            (3, "/a/b", "/data/a/b"),
        ] {
            let found = mounts.find(dev, Path::new(inside));
            assert_eq!(found.as_deref(), Some(Path::new(name)));
        }
        assert_eq!(mounts.find(4, Path::new("/a")), None);
    }
}
