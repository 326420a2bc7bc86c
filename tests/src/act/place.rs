//! Operations that change where the process stands: working directory, root, namespaces, mounts.

use std::{fs, os::fd::AsRawFd};

use nix::{
    mount::{MntFlags, MsFlags},
    sched::CloneFlags,
    unistd::{Gid, Uid},
};

use super::{Operation, Outcome, arguments, c_string, number, perform, sys};

const NONE: Option<&str> = None;

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "chdir",
        usage: "DIR",
        run: |args| Ok(std::env::set_current_dir(arguments::<1>(args)?[0])?),
    },
    Operation {
        name: "variable",
        usage: "NAME VALUE (in the environment of what is executed)",
        run: |args| {
            let [name, value] = arguments(args)?;
            // SAFETY: the actor has one thread, but for those that the operation `thread` makes and waits for.
            unsafe { std::env::set_var(name, value) };
            Ok(())
        },
    },
    Operation {
        name: "descend",
        usage: "DIR NAME LEVELS (from DIR so many times into NAME)",
        run: descend,
    },
    Operation {
        name: "mkdir-chain",
        usage: "DIR LEVELS (makes so many directories, one in the other, and a file in the last)",
        run: mkdir_chain,
    },
    Operation {
        name: "chroot",
        usage: "DIR",
        run: |args| {
            nix::unistd::chroot(arguments::<1>(args)?[0])?;
            Ok(std::env::set_current_dir("/")?)
        },
    },
    Operation {
        name: "pivot-root",
        usage: "DIR (a mount; the old root is then at /old)",
        run: pivot_root,
    },
    Operation {
        name: "userns",
        usage: "(new user and mount namespace; its root is this user)",
        run: |_| enter_user_namespace(CloneFlags::CLONE_NEWNS),
    },
    Operation {
        name: "mntns",
        usage: "(new mount namespace, private)",
        run: |_| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        },
    },
    Operation {
        name: "mntns-as-is",
        usage: "(new mount namespace, a copy that shares what is shared)",
        run: |_| Ok(nix::sched::unshare(CloneFlags::CLONE_NEWNS)?),
    },
    Operation {
        name: "pidns",
        usage: "(new user and pid namespace: the next child is its first process)",
        run: |_| enter_user_namespace(CloneFlags::CLONE_NEWPID),
    },
    Operation {
        name: "utsns",
        usage: "(new user and UTS namespace)",
        run: |_| enter_user_namespace(CloneFlags::CLONE_NEWUTS),
    },
    Operation {
        name: "netns",
        usage: "(new user and network namespace, with its loopback up)",
        run: |_| {
            enter_user_namespace(CloneFlags::CLONE_NEWNET)?;
            perform(&["loopback-up".to_owned()])
        },
    },
    Operation {
        name: "bind-mount",
        usage: "FROM TO (mount --rbind)",
        run: |args| {
            let [from, to] = arguments(args)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(from), to, NONE, flags, NONE)
        },
    },
    Operation {
        name: "bind-mount-private",
        usage: "FROM TO (asks to bind, and to make private, which the kernel leaves out then)",
        run: |args| {
            let [from, to] = arguments(args)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_PRIVATE;
            mount(Some(from), to, NONE, flags, NONE)
        },
    },
    Operation {
        name: "move-mount",
        usage: "FROM TO (mount --move)",
        run: |args| {
            let [from, to] = arguments(args)?;
            mount(Some(from), to, NONE, MsFlags::MS_MOVE, NONE)
        },
    },
    Operation {
        name: "remount-bind-ro",
        usage: "DIR",
        run: |args| {
            let [dir] = arguments(args)?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(NONE, dir, NONE, flags, NONE)
        },
    },
    Operation {
        name: "remount",
        usage: "DIR (its file system, with the options that it has)",
        run: |args| {
            let [dir] = arguments(args)?;
            mount(NONE, dir, NONE, MsFlags::MS_REMOUNT, NONE)
        },
    },
    Operation {
        name: "reconfigure",
        usage: "DIR (the same by fspick and fsconfig)",
        run: reconfigure,
    },
    Operation {
        name: "mount-private",
        usage: "DIR",
        run: |args| {
            let [dir] = arguments(args)?;
            mount(NONE, dir, NONE, MsFlags::MS_PRIVATE, NONE)
        },
    },
    Operation {
        name: "mount-kind",
        usage: "KIND DIR",
        run: |args| {
            let [kind, dir] = arguments(args)?;
            mount(Some("none"), dir, Some(kind), MsFlags::empty(), NONE)
        },
    },
    Operation {
        name: "mount-hierarchy",
        usage: "NAME DIR (of cgroups, version 1, without controllers)",
        run: |args| {
            let [name, dir] = arguments(args)?;
            let options = format!("none,name={name}");
            mount(
                Some("none"),
                dir,
                Some("cgroup"),
                MsFlags::empty(),
                Some(options.as_str()),
            )
        },
    },
    Operation {
        name: "mount-device",
        usage: "KIND DEVICE DIR",
        run: |args| {
            let [kind, device, dir] = arguments(args)?;
            mount(Some(device), dir, Some(kind), MsFlags::empty(), NONE)
        },
    },
    Operation {
        name: "snapshot",
        usage: "SUBVOLUME DIR NAME (of btrfs)",
        run: snapshot,
    },
    Operation {
        name: "overlay",
        usage: "LOWER UPPER WORK DIR",
        run: |args| {
            let [lower, upper, work, dir] = arguments(args)?;
            let options = format!("lowerdir={lower},upperdir={upper},workdir={work},userxattr");
            mount(
                Some("none"),
                dir,
                Some("overlay"),
                MsFlags::empty(),
                Some(&options),
            )
        },
    },
    Operation {
        name: "umount",
        usage: "DIR",
        run: |args| {
            Ok(nix::mount::umount2(
                arguments::<1>(args)?[0],
                MntFlags::MNT_DETACH,
            )?)
        },
    },
    Operation {
        name: "umount-by-force",
        usage: "DIR (MNT_FORCE)",
        run: |args| {
            Ok(nix::mount::umount2(
                arguments::<1>(args)?[0],
                MntFlags::MNT_FORCE,
            )?)
        },
    },
    Operation {
        name: "mount-setattr",
        usage: "DIR (makes the mount read-only)",
        run: mount_setattr,
    },
    Operation {
        name: "fsopen",
        usage: "KIND DIR (fsopen, fsconfig, fsmount, move_mount)",
        run: fsopen,
    },
    Operation {
        name: "open-tree-clone",
        usage: "DIR (a detached copy of the mount)",
        run: |args| {
            const CLONE: i32 = 1;
            let dir = c_string(arguments::<1>(args)?[0])?;
            sys!(libc::syscall(
                libc::SYS_open_tree,
                libc::AT_FDCWD,
                dir.as_ptr(),
                CLONE
            ))
            .map(drop)
        },
    },
];

fn mount(
    from: Option<&str>,
    to: &str,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Outcome {
    Ok(nix::mount::mount(from, to, kind, flags, options)?)
}

fn snapshot(args: &[String]) -> Outcome {
    /// `BTRFS_IOC_SNAP_CREATE` and its argument (include/uapi/linux/btrfs.h).
    const SNAP_CREATE: libc::Ioctl = 0x5000_9401;
    #[repr(C)]
    struct Volume {
        fd: i64,
        name: [u8; 4088],
    }
    let [from, dir, name] = arguments(args)?;
    let (from, dir) = (fs::File::open(from)?, fs::File::open(dir)?);
    let mut volume = Volume {
        fd: from.as_raw_fd().into(),
        name: [0; 4088],
    };
    volume.name[..name.len()].copy_from_slice(name.as_bytes());
    sys!(libc::ioctl(dir.as_raw_fd(), SNAP_CREATE, &raw const volume)).map(drop)
}

fn enter_user_namespace(more: CloneFlags) -> Outcome {
    let (uid, gid) = (Uid::current(), Gid::current());
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER | more)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    Ok(())
}

fn descend(args: &[String]) -> Outcome {
    let [dir, name, levels] = arguments(args)?;
    std::env::set_current_dir(dir)?;
    for _ in 0..number::<u32>(levels)? {
        std::env::set_current_dir(name)?;
    }
    Ok(())
}

fn mkdir_chain(args: &[String]) -> Outcome {
    let [dir, levels] = arguments(args)?;
    std::env::set_current_dir(dir)?;
    for _ in 0..number::<u32>(levels)? {
        fs::create_dir("n")?;
        std::env::set_current_dir("n")?;
    }
    Ok(fs::write("file", "x")?)
}

fn pivot_root(args: &[String]) -> Outcome {
    let [dir] = arguments(args)?;
    std::env::set_current_dir(dir)?;
    let _ = fs::create_dir("old");
    nix::unistd::pivot_root(".", "old")?;
    Ok(std::env::set_current_dir("/")?)
}

fn mount_setattr(args: &[String]) -> Outcome {
    const READ_ONLY: u64 = 1;
    let dir = c_string(arguments::<1>(args)?[0])?;
    // attr_set, attr_clr, propagation, userns_fd.
    let attributes = [READ_ONLY, 0, 0, 0_u64];
    sys!(libc::syscall(
        libc::SYS_mount_setattr,
        libc::AT_FDCWD,
        dir.as_ptr(),
        0,
        attributes.as_ptr(),
        size_of_val(&attributes)
    ))
    .map(drop)
}

fn fsopen(args: &[String]) -> Outcome {
    const CONFIG_CREATE: u32 = 6;
    const EMPTY_FROM: u32 = 4;
    let [kind, dir] = arguments(args)?;
    let (kind, dir, empty) = (c_string(kind)?, c_string(dir)?, c_string("")?);
    let nothing = std::ptr::null::<u8>();
    let context = sys!(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 0))?;
    sys!(libc::syscall(
        libc::SYS_fsconfig,
        context,
        CONFIG_CREATE,
        nothing,
        nothing,
        0
    ))?;
    let made = sys!(libc::syscall(libc::SYS_fsmount, context, 0, 0))?;
    sys!(libc::syscall(
        libc::SYS_move_mount,
        made,
        empty.as_ptr(),
        libc::AT_FDCWD,
        dir.as_ptr(),
        EMPTY_FROM
    ))
    .map(drop)
}

fn reconfigure(args: &[String]) -> Outcome {
    const CONFIG_RECONFIGURE: u32 = 7;
    let dir = c_string(arguments::<1>(args)?[0])?;
    let nothing = std::ptr::null::<u8>();
    let context = sys!(libc::syscall(
        libc::SYS_fspick,
        libc::AT_FDCWD,
        dir.as_ptr(),
        0
    ))?;
    sys!(libc::syscall(
        libc::SYS_fsconfig,
        context,
        CONFIG_RECONFIGURE,
        nothing,
        nothing,
        0
    ))
    .map(drop)
}

/// Brings the loopback interface up; also tells whether the interfaces may be configured.
pub(super) fn loopback_up(_: &[String]) -> Outcome {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an ifreq is plain data, all zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    sys!(libc::ioctl(
        socket.as_raw_fd(),
        libc::SIOCSIFFLAGS,
        &request
    ))
    .map(drop)
}
