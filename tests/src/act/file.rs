//! Operations on files: opening in every way, making, removing, renaming, linking, changing attributes.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag},
    sys::stat::{Mode, SFlag},
    unistd::{Gid, Uid},
};

use super::{Failure, Operation, Outcome, arguments, c_string, number, sys};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "copy",
        usage: "FROM TO (its bytes and its mode)",
        run: |args| {
            let [from, to] = arguments(args)?;
            Ok(std::fs::copy(from, to).map(drop)?)
        },
    },
    Operation {
        name: "open-read",
        usage: "PATH",
        run: |args| open(args, OpenOptions::new().read(true)),
    },
    Operation {
        name: "open-write",
        usage: "PATH",
        run: |args| open(args, OpenOptions::new().write(true)),
    },
    Operation {
        name: "open-rdwr",
        usage: "PATH",
        run: |args| open(args, OpenOptions::new().read(true).write(true)),
    },
    Operation {
        name: "open-append",
        usage: "PATH",
        run: |args| open(args, OpenOptions::new().append(true)),
    },
    Operation {
        name: "open-trunc",
        usage: "PATH",
        run: |args| open(args, OpenOptions::new().write(true).truncate(true)),
    },
    Operation {
        name: "open-path",
        usage: "PATH (O_PATH: no right to the contents)",
        run: |args| {
            open(
                args,
                OpenOptions::new().read(true).custom_flags(libc::O_PATH),
            )
        },
    },
    Operation {
        name: "creat",
        usage: "PATH (makes it, or empties it)",
        run: |args| {
            open(
                args,
                OpenOptions::new().write(true).create(true).truncate(true),
            )
        },
    },
    Operation {
        name: "tmpfile",
        usage: "DIR (O_TMPFILE)",
        run: |args| {
            open(
                args,
                OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE),
            )
        },
    },
    Operation {
        name: "openat2",
        usage: "PATH (for reading, RESOLVE_NO_MAGICLINKS)",
        run: openat2,
    },
    Operation {
        name: "open-by-open",
        usage: "PATH (for reading, by the system call open, which no library makes any more)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            sys!(libc::syscall(
                libc::SYS_open,
                path.as_ptr(),
                libc::O_RDONLY,
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "open-by-creat",
        usage: "PATH (by the system call creat)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            sys!(libc::syscall(libc::SYS_creat, path.as_ptr(), 0o644)).map(drop)
        },
    },
    Operation {
        name: "open-below",
        usage: "DIR NAME (for reading, by a descriptor of DIR)",
        run: |args| {
            let [dir, name] = arguments(args)?;
            let dir = std::fs::File::open(dir)?;
            nix::fcntl::openat(&dir, name, OFlag::O_RDONLY, nix::sys::stat::Mode::empty())?;
            Ok(())
        },
    },
    Operation {
        name: "open-dot-dot",
        usage: "DIR NAME (opens DIR/../NAME by a descriptor of DIR)",
        run: open_dot_dot,
    },
    Operation {
        name: "reopen",
        usage: "PATH (O_PATH, then /proc/self/fd/N for reading)",
        run: reopen,
    },
    Operation {
        name: "truncate",
        usage: "PATH",
        run: truncate,
    },
    Operation {
        name: "unlink",
        usage: "PATH",
        run: |args| Ok(fs::remove_file(arguments::<1>(args)?[0])?),
    },
    Operation {
        name: "rmdir",
        usage: "PATH",
        run: |args| Ok(fs::remove_dir(arguments::<1>(args)?[0])?),
    },
    Operation {
        name: "mkdir",
        usage: "PATH",
        run: |args| Ok(fs::create_dir(arguments::<1>(args)?[0])?),
    },
    Operation {
        name: "mknod",
        usage: "PATH (a FIFO)",
        run: mknod,
    },
    Operation {
        name: "rename",
        usage: "FROM TO",
        run: |args| {
            let [from, to] = arguments(args)?;
            Ok(fs::rename(from, to)?)
        },
    },
    Operation {
        name: "rename2",
        usage: "FROM TO exchange|noreplace|whiteout",
        run: rename2,
    },
    Operation {
        name: "removexattr",
        usage: "PATH NAME",
        run: |args| {
            let [path, name] = arguments(args)?;
            let (path, name) = (c_string(path)?, c_string(name)?);
            sys!(libc::removexattr(path.as_ptr(), name.as_ptr())).map(drop)
        },
    },
    Operation {
        name: "set-acl",
        usage: "PATH (lets another user read it)",
        run: |args| {
            // Version 2; entries of tag, rights and id: owner, user 65534, group, mask, others.
            let mut acl = vec![2_u8, 0, 0, 0];
            for (tag, rights, id) in [
                (1_u16, 6_u16, u32::MAX),
                (2, 4, 65534),
                (4, 4, u32::MAX),
                (16, 4, u32::MAX),
                (32, 0, u32::MAX),
            ] {
                acl.extend(tag.to_le_bytes());
                acl.extend(rights.to_le_bytes());
                acl.extend(id.to_le_bytes());
            }
            let path = c_string(arguments::<1>(args)?[0])?;
            let name = c"system.posix_acl_access";
            sys!(libc::setxattr(
                path.as_ptr(),
                name.as_ptr(),
                acl.as_ptr().cast(),
                acl.len(),
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "watch",
        usage: "PATH (inotify: modifications)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            let fd = sys!(libc::inotify_init1(libc::IN_CLOEXEC))?;
            sys!(libc::inotify_add_watch(fd, path.as_ptr(), libc::IN_MODIFY)).map(drop)
        },
    },
    Operation {
        name: "watch-file-system",
        usage: "PATH (fanotify: opens in all of its file system)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID | libc::FAN_CLOEXEC;
            let fd = sys!(libc::fanotify_init(flags, 0))?;
            let add = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
            sys!(libc::fanotify_mark(
                fd,
                add,
                libc::FAN_OPEN,
                libc::AT_FDCWD,
                path.as_ptr()
            ))
            .map(drop)
        },
    },
    Operation {
        name: "getxattr-list",
        usage: "PATH",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            sys!(libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0)).map(drop)
        },
    },
    Operation {
        name: "readlink",
        usage: "PATH",
        run: |args| Ok(fs::read_link(arguments::<1>(args)?[0]).map(drop)?),
    },
    Operation {
        name: "write-text",
        usage: "PATH TEXT",
        run: |args| {
            let [path, text] = arguments(args)?;
            Ok(fs::write(path, text)?)
        },
    },
    Operation {
        name: "read-text",
        usage: "PATH",
        run: |args| Ok(fs::read(arguments::<1>(args)?[0]).map(drop)?),
    },
    Operation {
        name: "link",
        usage: "FROM TO",
        run: |args| {
            let [from, to] = arguments(args)?;
            Ok(fs::hard_link(from, to)?)
        },
    },
    Operation {
        name: "symlink",
        usage: "TEXT PATH",
        run: |args| {
            let [text, path] = arguments(args)?;
            Ok(std::os::unix::fs::symlink(text, path)?)
        },
    },
    Operation {
        name: "chmod",
        usage: "PATH OCTAL",
        run: chmod,
    },
    Operation {
        name: "chown",
        usage: "PATH UID GID",
        run: chown,
    },
    Operation {
        name: "touch",
        usage: "PATH (sets both times to now)",
        run: touch,
    },
    Operation {
        name: "setxattr",
        usage: "PATH NAME VALUE",
        run: setxattr,
    },
    Operation {
        name: "stat",
        usage: "PATH",
        run: |args| {
            fs::metadata(arguments::<1>(args)?[0])
                .map(drop)
                .map_err(Failure::from)
        },
    },
    Operation {
        name: "list",
        usage: "DIR",
        run: list,
    },
    Operation {
        name: "file-setattr",
        usage: "PATH (by its path: no dump)",
        run: file_setattr,
    },
    Operation {
        name: "mmap-exec",
        usage: "PATH (maps it PROT_READ|PROT_EXEC)",
        run: mmap_exec,
    },
];

fn open(args: &[String], options: &OpenOptions) -> Outcome {
    let [path] = arguments(args)?;
    options.open(path)?;
    Ok(())
}

fn openat2(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    nix::fcntl::openat2(AT_FDCWD, path, how)?;
    Ok(())
}

fn open_dot_dot(args: &[String]) -> Outcome {
    let [dir, name] = arguments(args)?;
    let dir = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(dir)?;
    nix::fcntl::openat(
        &dir,
        format!("../{name}").as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    Ok(())
}

fn reopen(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    File::open(format!("/proc/self/fd/{}", handle.as_raw_fd()))?;
    Ok(())
}

fn truncate(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    Ok(nix::unistd::truncate(path, 0)?)
}

fn rename2(args: &[String]) -> Outcome {
    let [from, to, how] = arguments(args)?;
    let flags = match how {
        "noreplace" => libc::RENAME_NOREPLACE,
        "exchange" => libc::RENAME_EXCHANGE,
        "whiteout" => libc::RENAME_WHITEOUT,
        other => return Err(Failure::Usage(format!("{other} is no way to rename"))),
    };
    let (from, to) = (c_string(from)?, c_string(to)?);
    let here = libc::AT_FDCWD;
    sys!(libc::renameat2(
        here,
        from.as_ptr(),
        here,
        to.as_ptr(),
        flags
    ))
    .map(drop)
}

fn mknod(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    Ok(nix::sys::stat::mknod(
        path,
        SFlag::S_IFIFO,
        Mode::from_bits_truncate(0o600),
        0,
    )?)
}

fn chmod(args: &[String]) -> Outcome {
    let [path, mode] = arguments(args)?;
    let mode =
        u32::from_str_radix(mode, 8).map_err(|_| Failure::Usage(format!("{mode} is not octal")))?;
    Ok(fs::set_permissions(
        path,
        std::os::unix::fs::PermissionsExt::from_mode(mode),
    )?)
}

fn chown(args: &[String]) -> Outcome {
    let [path, uid, gid] = arguments(args)?;
    Ok(nix::unistd::chown(
        path,
        Some(Uid::from_raw(number(uid)?)),
        Some(Gid::from_raw(number(gid)?)),
    )?)
}

fn touch(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    let path = CString::new(path).map_err(|error| Failure::Usage(error.to_string()))?;
    // SAFETY: the path is a C string that lives across the call; a null time means now.
    let done = unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), std::ptr::null(), 0) };
    Errno::result(done).map(drop).map_err(Failure::from)
}

fn setxattr(args: &[String]) -> Outcome {
    let [path, name, value] = arguments(args)?;
    let path = CString::new(path).map_err(|error| Failure::Usage(error.to_string()))?;
    let name = CString::new(name).map_err(|error| Failure::Usage(error.to_string()))?;
    // SAFETY: both strings and the value live across the call, and the length is the value's.
    let done = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(done).map(drop).map_err(Failure::from)
}

fn list(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    for entry in fs::read_dir(path)? {
        entry?;
    }
    Ok(())
}

fn file_setattr(args: &[String]) -> Outcome {
    /// Not in the libc crate.
    const SYS_FILE_SETATTR: i64 = 469;
    const FS_XFLAG_NODUMP: u64 = 0x80;
    let path = c_string(arguments::<1>(args)?[0])?;
    // struct file_attr: fa_xflags; fa_extsize, fa_nextents; fa_projid, fa_cowextsize.
    let attributes = [FS_XFLAG_NODUMP, 0, 0];
    sys!(libc::syscall(
        SYS_FILE_SETATTR,
        libc::AT_FDCWD,
        path.as_ptr(),
        attributes.as_ptr(),
        size_of_val(&attributes),
        0
    ))
    .map(drop)
}

fn mmap_exec(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    let file = File::open(path)?;
    // SAFETY: a fresh private mapping of a file that is open; nothing refers to it and it is unmapped at once.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            1,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        );
        if at == libc::MAP_FAILED {
            return Err(Errno::last().into());
        }
        libc::munmap(at, 1);
    }
    Ok(())
}
