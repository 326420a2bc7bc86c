//! Operations on files: opening in every way, making, removing, renaming, linking, changing attributes.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag},
    sys::{
        personality::{self, Persona},
        stat::{Mode, SFlag},
    },
    unistd::{Gid, Uid},
};

use super::{Failure, Operation, Outcome, arguments, c_string, descriptor, number, sys};

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
        name: "open-read-trunc",
        usage: "PATH (for reading, O_TRUNC: empties it all the same)",
        run: |args| open_with(args, libc::O_RDONLY | libc::O_TRUNC),
    },
    Operation {
        name: "open-read-create",
        usage: "PATH (for reading; makes it where it is not there)",
        run: |args| open_with(args, libc::O_RDONLY | libc::O_CREAT),
    },
    Operation {
        name: "open-neither",
        usage: "PATH (access mode 3: neither for reading nor for writing, for ioctl)",
        run: |args| open_with(args, libc::O_ACCMODE),
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
        name: "openat2-below",
        usage: "DIR NAME in-root|beneath|no-symlinks|no-xdev (for reading, by a descriptor of DIR)",
        run: openat2_below,
    },
    Operation {
        name: "open-by-handle",
        usage: "PATH MOUNT read|write|path (with a descriptor of MOUNT; the held-* operations act on what it opened)",
        run: open_by_handle,
    },
    Operation {
        name: "open-mapped",
        usage: "PATH (maps it for reading, then opens its file for writing by /proc/self/map_files)",
        run: open_mapped,
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
        name: "lremovexattr",
        usage: "PATH NAME",
        run: |args| {
            let [path, name] = arguments(args)?;
            let (path, name) = (c_string(path)?, c_string(name)?);
            sys!(libc::lremovexattr(path.as_ptr(), name.as_ptr())).map(drop)
        },
    },
    Operation {
        name: "removexattrat",
        usage: "PATH NAME",
        run: |args| {
            /// Not in the libc crate.
            const SYS_REMOVEXATTRAT: i64 = 466;
            let [path, name] = arguments(args)?;
            let (path, name) = (c_string(path)?, c_string(name)?);
            sys!(libc::syscall(
                SYS_REMOVEXATTRAT,
                libc::AT_FDCWD,
                path.as_ptr(),
                0,
                name.as_ptr()
            ))
            .map(drop)
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
        name: "link-path-descriptor",
        usage: "FROM TO (linkat of a descriptor that was opened with O_PATH, AT_EMPTY_PATH)",
        run: |args| {
            let [from, to] = arguments(args)?;
            let (from, to) = (path_descriptor(from)?, c_string(to)?);
            sys!(libc::linkat(
                from.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                to.as_ptr(),
                libc::AT_EMPTY_PATH
            ))
            .map(drop)
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
        name: "fchmodat2",
        usage: "PATH OCTAL (AT_SYMLINK_NOFOLLOW)",
        run: |args| {
            let [path, mode] = arguments(args)?;
            change_mode(libc::AT_FDCWD, path, mode, libc::AT_SYMLINK_NOFOLLOW)
        },
    },
    Operation {
        name: "chmod-path-descriptor",
        usage: "PATH OCTAL (fchmodat2 of a descriptor that was opened with O_PATH, AT_EMPTY_PATH)",
        run: |args| {
            let [path, mode] = arguments(args)?;
            let handle = path_descriptor(path)?;
            change_mode(handle.as_raw_fd(), "", mode, libc::AT_EMPTY_PATH)
        },
    },
    Operation {
        name: "chown",
        usage: "PATH UID GID",
        run: chown,
    },
    Operation {
        name: "lchown",
        usage: "PATH UID GID (of a symbolic link itself)",
        run: |args| {
            let [path, uid, gid] = arguments(args)?;
            let path = c_string(path)?;
            sys!(libc::lchown(path.as_ptr(), number(uid)?, number(gid)?)).map(drop)
        },
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
        name: "setxattr-path-descriptor",
        usage: "PATH NAME VALUE (by /proc/self/fd of a descriptor that was opened with O_PATH)",
        run: |args| {
            let [path, name, value] = arguments(args)?;
            let handle = path_descriptor(path)?;
            let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
            setxattr(&[path, name.to_owned(), value.to_owned()])
        },
    },
    Operation {
        name: "setxattrat",
        usage: "PATH NAME VALUE",
        run: setxattrat,
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
    Operation {
        name: "mmap-exec-implied",
        usage: "PATH (maps it PROT_READ where that implies PROT_EXEC: READ_IMPLIES_EXEC)",
        run: |args| {
            let file = File::open(arguments::<1>(args)?[0])?;
            imply_exec()?;
            map(&file, libc::PROT_READ, libc::MAP_PRIVATE).map(drop)
        },
    },
    Operation {
        name: "mprotect-exec-implied",
        usage: "PATH (maps it without a right, then asks for PROT_READ where that implies PROT_EXEC)",
        run: |args| {
            let file = File::open(arguments::<1>(args)?[0])?;
            let at = map(&file, libc::PROT_NONE, libc::MAP_PRIVATE)?;
            imply_exec()?;
            sys!(libc::mprotect(at, PAGE, libc::PROT_READ)).map(drop)
        },
    },
    Operation {
        name: "remap-exec-implied",
        usage: "PATH (maps it for reading, shared; remap_file_pages where that implies PROT_EXEC)",
        run: |args| {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .open(arguments::<1>(args)?[0])?;
            let at = map(&file, libc::PROT_READ, libc::MAP_SHARED)?;
            imply_exec()?;
            sys!(libc::remap_file_pages(at, PAGE, 0, 0, 0)).map(drop)
        },
    },
    Operation {
        name: "pkey-mprotect-exec",
        usage: "PATH (maps it for reading, then asks for PROT_EXEC by pkey_mprotect)",
        run: |args| {
            /// As mprotect does, and where the processor has no keys too.
            const NO_KEY: i32 = -1;
            let file = File::open(arguments::<1>(args)?[0])?;
            let at = map(&file, libc::PROT_READ, libc::MAP_PRIVATE)?;
            sys!(libc::syscall(
                libc::SYS_pkey_mprotect,
                at,
                PAGE,
                libc::PROT_READ | libc::PROT_EXEC,
                NO_KEY
            ))
            .map(drop)
        },
    },
    Operation {
        name: "memory-exec",
        usage: "anonymous|huge|file|shared (memory of its own, as code: without a file, of memfd_create, of shmget)",
        run: memory_exec,
    },
    Operation {
        name: "memory-file-huge",
        usage: "(memfd_create of huge pages; makes it one page long, which takes none)",
        run: |args| {
            arguments::<0>(args)?;
            let file = memory_file(libc::MFD_HUGETLB | libc::MFD_HUGE_2MB)?;
            Ok(file.set_len(HUGE_PAGE as u64)?)
        },
    },
];

const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;

fn open(args: &[String], options: &OpenOptions) -> Outcome {
    let [path] = arguments(args)?;
    options.open(path)?;
    Ok(())
}

/// With flags that the standard library does not let pass.
fn open_with(args: &[String], flags: i32) -> Outcome {
    let path = c_string(arguments::<1>(args)?[0])?;
    sys!(libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o644)).map(drop)
}

fn path_descriptor(path: &str) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    Ok(options.read(true).custom_flags(libc::O_PATH).open(path)?)
}

fn openat2(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    nix::fcntl::openat2(AT_FDCWD, path, how)?;
    Ok(())
}

fn openat2_below(args: &[String]) -> Outcome {
    let [dir, name, how] = arguments(args)?;
    let resolve = match how {
        "in-root" => ResolveFlag::RESOLVE_IN_ROOT,
        "beneath" => ResolveFlag::RESOLVE_BENEATH,
        "no-symlinks" => ResolveFlag::RESOLVE_NO_SYMLINKS,
        "no-xdev" => ResolveFlag::RESOLVE_NO_XDEV,
        other => return Err(Failure::Usage(format!("{other} is no way to resolve"))),
    };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(resolve);
    nix::fcntl::openat2(path_descriptor(dir)?, name, how)?;
    Ok(())
}

fn open_by_handle(args: &[String]) -> Outcome {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    let [path, mount, how] = arguments(args)?;
    let flags = match how {
        "read" => libc::O_RDONLY,
        "write" => libc::O_WRONLY,
        "path" => libc::O_PATH,
        other => return Err(Failure::Usage(format!("{other} is no way to open"))),
    };
    let (path, mount) = (c_string(path)?, File::open(mount)?);
    let mut handle = Handle {
        bytes: 128,
        kind: 0,
        data: [0; 128],
    };
    let (at, mut id) = (&raw mut handle, 0_i32);
    sys!(libc::syscall(
        libc::SYS_name_to_handle_at,
        libc::AT_FDCWD,
        path.as_ptr(),
        at,
        &raw mut id,
        0
    ))?;
    let fd = sys!(libc::syscall(
        libc::SYS_open_by_handle_at,
        mount.as_raw_fd(),
        at,
        flags | libc::O_CLOEXEC
    ))?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    descriptor::keep(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
    Ok(())
}

fn open_mapped(args: &[String]) -> Outcome {
    let file = File::open(arguments::<1>(args)?[0])?;
    let begin = map(&file, libc::PROT_READ, libc::MAP_PRIVATE)? as usize;
    let name = format!("/proc/self/map_files/{begin:x}-{:x}", begin + PAGE);
    OpenOptions::new().write(true).open(name)?;
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
    let handle = path_descriptor(path)?;
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
    Ok(fs::set_permissions(
        path,
        std::os::unix::fs::PermissionsExt::from_mode(octal(mode)?),
    )?)
}

fn octal(mode: &str) -> Result<u32, Failure> {
    u32::from_str_radix(mode, 8).map_err(|_| Failure::Usage(format!("{mode} is not octal")))
}

/// By `fchmodat2`, the only one of its kind that takes flags.
fn change_mode(dir: RawFd, path: &str, mode: &str, flags: i32) -> Outcome {
    let (path, mode) = (c_string(path)?, octal(mode)?);
    sys!(libc::syscall(
        libc::SYS_fchmodat2,
        dir,
        path.as_ptr(),
        mode,
        flags
    ))
    .map(drop)
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

fn setxattrat(args: &[String]) -> Outcome {
    /// Not in the libc crate, and `struct xattr_args` (include/uapi/linux/xattr.h).
    const SYS_SETXATTRAT: i64 = 463;
    #[repr(C)]
    struct Arguments {
        value: u64,
        size: u32,
        flags: u32,
    }
    let [path, name, value] = arguments(args)?;
    let (path, name) = (c_string(path)?, c_string(name)?);
    let given = Arguments {
        value: value.as_ptr() as u64,
        size: value.len() as u32,
        flags: 0,
    };
    sys!(libc::syscall(
        SYS_SETXATTRAT,
        libc::AT_FDCWD,
        path.as_ptr(),
        0,
        name.as_ptr(),
        &raw const given,
        size_of_val(&given)
    ))
    .map(drop)
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
    let file = File::open(arguments::<1>(args)?[0])?;
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    map(&file, protection, libc::MAP_PRIVATE).map(drop)
}

/// Maps its first page. Nothing refers to it, and it stays until the process ends.
fn map(file: &File, protection: i32, kind: i32) -> Result<*mut libc::c_void, Failure> {
    sys!(libc::mmap(
        std::ptr::null_mut(),
        PAGE,
        protection,
        kind,
        file.as_raw_fd(),
        0
    ))
}

/// From here on, what is mapped for reading is mapped as code too.
fn imply_exec() -> Outcome {
    personality::set(personality::get()? | Persona::READ_IMPLIES_EXEC)?;
    Ok(())
}

fn memory_file(flags: u32) -> Result<File, Failure> {
    let fd = sys!(libc::memfd_create(
        c"memory".as_ptr(),
        flags | libc::MFD_CLOEXEC
    ))?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn memory_exec(args: &[String]) -> Outcome {
    let code = libc::PROT_READ | libc::PROT_EXEC;
    match arguments::<1>(args)?[0] {
        "anonymous" => anonymous_exec(PAGE, 0),
        // No page is taken before it is touched, so that the host need not have any.
        "huge" => anonymous_exec(
            HUGE_PAGE,
            libc::MAP_HUGETLB | libc::MAP_HUGE_2MB | libc::MAP_NORESERVE,
        ),
        "file" => {
            let file = memory_file(0)?;
            file.set_len(PAGE as u64)?;
            map(&file, code, libc::MAP_SHARED).map(drop)
        }
        "shared" => {
            let id = sys!(libc::shmget(libc::IPC_PRIVATE, PAGE, 0o700))?;
            let attached = sys!(libc::shmat(id, std::ptr::null(), libc::SHM_EXEC));
            // It goes when the process ends.
            sys!(libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()))?;
            attached.map(drop)
        }
        other => Err(Failure::Usage(format!("{other} is no kind of memory"))),
    }
}

fn anonymous_exec(length: usize, kind: i32) -> Outcome {
    sys!(libc::mmap(
        std::ptr::null_mut(),
        length,
        libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | kind,
        -1,
        0
    ))
    .map(drop)
}
