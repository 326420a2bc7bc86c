//! What this kernel can enforce. Probed, never inferred from a version: `agentwatch doctor` shows it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    mount::MsFlags,
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};
use serde::Serialize;

/// State of one thing that enforcement may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It works here.
    Active,
    /// The kernel has it, but it is not turned on or not permitted.
    Disabled,
    /// The kernel does not have it.
    Absent,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub state: State,
    pub detail: String,
    /// What to do about it; empty where nothing is to be done.
    pub hint: String,
}

impl Check {
    pub fn new(name: &'static str, state: State, detail: impl Into<String>) -> Self {
        Self {
            name,
            state,
            detail: detail.into(),
            hint: String::new(),
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// Where cgroup2 is mounted: the unified hierarchy's root, or the hybrid one's.
pub fn cgroup2() -> Option<PathBuf> {
    let candidates = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    if let Some(path) = candidates
        .into_iter()
        .map(Path::new)
        .find(|path| is_cgroup2(path))
    {
        return Some(path.to_owned());
    }
    crate::kernel::files::list()
        .ok()?
        .into_iter()
        .map(|mount| mount.point)
        .find(|point| is_cgroup2(point))
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// The active Linux security modules, in order. Mounts securityfs where it is missing.
pub fn lsms() -> Result<Vec<String>, String> {
    const LIST: &str = "/sys/kernel/security/lsm";
    if !Path::new(LIST).exists() {
        let mounted = nix::mount::mount(
            Some("securityfs"),
            "/sys/kernel/security",
            Some("securityfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            None::<&str>,
        );
        if let Err(error) = mounted {
            return Err(format!("securityfs is not mounted and cannot be ({error})"));
        }
    }
    fs::read_to_string(LIST)
        .map(|list| list.trim().split(',').map(str::to_owned).collect())
        .map_err(|error| format!("read {LIST}: {error}"))
}

/// Where tracefs is mounted; mounts it where it is missing.
pub fn tracefs() -> Result<PathBuf, String> {
    for path in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        if Path::new(path).join("events").is_dir() {
            return Ok(PathBuf::from(path));
        }
    }
    let path = PathBuf::from("/sys/kernel/tracing");
    nix::mount::mount(
        Some("tracefs"),
        &path,
        Some("tracefs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|error| format!("tracefs is not mounted and cannot be ({error})"))?;
    Ok(path)
}

/// The newest Landlock ABI that this kernel has; 0 where there is none.
pub fn landlock_abi() -> i64 {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no pointer and makes nothing.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    version.max(0)
}

/// Number of the host's mount namespace; 0 where it cannot be told.
pub fn mount_namespace() -> u32 {
    let inode = |path: &str| {
        fs::metadata(path)
            .ok()
            .and_then(|meta| u32::try_from(std::os::unix::fs::MetadataExt::ino(&meta)).ok())
    };
    inode("/proc/1/ns/mnt")
        .or_else(|| inode("/proc/self/ns/mnt"))
        .unwrap_or(0)
}

/// Major and minor number of the kernel's release; where it cannot be told that of one to come.
pub fn release() -> (u8, u8) {
    procfs::sys::kernel::Version::current()
        .map_or((u8::MAX, 0), |version| (version.major, version.minor))
}

/// Address of a symbol of the kernel; 0 where it does not show it.
pub fn symbol(name: &str) -> u64 {
    let Ok(file) = fs::File::open("/proc/kallsyms") else {
        return 0;
    };
    std::io::BufRead::lines(std::io::BufReader::new(file))
        .map_while(Result::ok)
        .find_map(|line| {
            let mut words = line.split(' ');
            let address = words.next()?;
            (words.nth(1)? == name).then(|| u64::from_str_radix(address, 16).ok())?
        })
        .unwrap_or(0)
}
