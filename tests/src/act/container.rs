//! The actor as the first process of a container: in namespaces of its own, on a root that whoever started it has mounted.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        stat::{Mode, SFlag, makedev, mknod},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Gid, Uid, fork, pivot_root, setgid, setgroups, setuid},
};

/// What is said on standard output once the container stands.
pub const READY: &str = "@container";

const NONE: Option<&str> = None;

/// How the container is made.
pub struct Plan<'a> {
    /// The cgroup that it is to be in.
    pub cgroup: &'a Path,
    /// Its root, which is mounted.
    pub root: &'a Path,
    /// What is bound at `/volume` and at `/layers`.
    pub volume: &'a Path,
    pub layers: &'a Path,
    /// Who its process is.
    pub uid: u32,
}

/// Makes the container and returns in its first process; the process that called waits for it and ends as it did.
///
/// What runtimes do: new namespaces, a process of them in the cgroup, volumes bound below the root, proc, and a tmpfs each for `/dev`, `/dev/shm` and
/// `/tmp`, then `pivot_root` and away with the old root.
pub fn enter(plan: &Plan<'_>) -> Result<()> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNET,
    )
    .context("make namespaces")?;
    // SAFETY: the actor has one thread.
    if let ForkResult::Parent { child } = unsafe { fork() }? {
        let code = match waitpid(child, None)? {
            WaitStatus::Exited(_, code) => code,
            _ => 2,
        };
        std::process::exit(code);
    }
    fs::write(plan.cgroup.join("cgroup.procs"), "0").context("enter the cgroup")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("keep the mounts apart")?;
    for (from, to) in [(plan.volume, "volume"), (plan.layers, "layers")] {
        mount(
            Some(from),
            &plan.root.join(to),
            NONE,
            MsFlags::MS_BIND,
            NONE,
        )
        .with_context(|| format!("bind {}", from.display()))?;
    }
    for (kind, at, options) in [
        ("proc", "proc", ""),
        ("tmpfs", "dev", "mode=755"),
        ("tmpfs", "tmp", "mode=1777"),
        ("tmpfs", "run", "mode=755"),
    ] {
        mount(
            Some(kind),
            &plan.root.join(at),
            Some(kind),
            MsFlags::MS_NOSUID,
            Some(options),
        )
        .with_context(|| format!("mount {kind} at {at}"))?;
    }
    let shm = plan.root.join("dev/shm");
    fs::create_dir(&shm)?;
    mount(
        Some("shm"),
        &shm,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("mode=1777"),
    )
    .context("mount a tmpfs at dev/shm")?;
    let null = plan.root.join("dev/null");
    let all = Mode::from_bits_truncate(0o666);
    mknod(&null, SFlag::S_IFCHR, all, makedev(1, 3)).context("make dev/null")?;
    fs::set_permissions(&null, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    // So runtimes mask what a container is not to see. The device keeps its own name all the same.
    let masked = plan.root.join("proc/version");
    mount(Some(&null), &masked, NONE, MsFlags::MS_BIND, NONE).context("mask a file of proc")?;
    std::env::set_current_dir(plan.root)?;
    pivot_root(".", "old").context("change the root")?;
    std::env::set_current_dir("/")?;
    umount2("/old", MntFlags::MNT_DETACH).context("leave the old root")?;
    if plan.uid != 0 {
        setgroups(&[])?;
        setgid(Gid::from_raw(plan.uid))?;
        setuid(Uid::from_raw(plan.uid))?;
    }
    println!("{READY}");
    Ok(())
}
