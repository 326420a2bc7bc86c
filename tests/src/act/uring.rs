//! Operations that go through io_uring: the same acts without the system calls that usually carry them.

use std::{
    ffi::{CStr, CString},
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    time::Duration,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::errno::Errno;

use super::{Failure, Operation, Outcome, arguments, c_string, process};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "io_uring-openat",
        usage: "PATH (for reading)",
        run: |args| openat(args, libc::O_RDONLY, submit),
    },
    Operation {
        name: "io_uring-openat-linked",
        usage: "PATH (for reading, when another request is done)",
        run: |args| openat(args, libc::O_RDONLY, submit_linked),
    },
    Operation {
        name: "io_uring-openat-by-worker",
        usage: "PATH (for reading, by a worker of the ring's)",
        run: |args| {
            openat(args, libc::O_RDONLY, |entry| {
                submit(&entry.clone().flags(squeue::Flags::ASYNC))
            })
        },
    },
    Operation {
        name: "io_uring-openat-polled",
        usage: "PATH (for reading, by the thread of a ring that polls for what is submitted: SQPOLL)",
        run: |args| {
            openat(args, libc::O_RDONLY, |entry| {
                let mut ring = IoUring::builder().setup_sqpoll(100).build(2)?;
                submit_to(&mut ring, entry)
            })
        },
    },
    Operation {
        name: "io_uring-openat-by-child",
        usage: "PATH (for reading, by a child that submits to its parent's ring)",
        run: |args| {
            let mut ring = IoUring::new(2)?;
            process::in_child(|| openat(args, libc::O_RDONLY, |entry| submit_to(&mut ring, entry)))
        },
    },
    Operation {
        name: "io_uring-creat",
        usage: "PATH",
        run: |args| {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
            openat(args, flags, submit)
        },
    },
    Operation {
        name: "io_uring-unlink",
        usage: "PATH",
        run: unlink,
    },
    Operation {
        name: "io_uring-rmdir",
        usage: "PATH",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            let entry = opcode::UnlinkAt::new(CWD, path.as_ptr()).flags(libc::AT_REMOVEDIR);
            submit(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-openat2",
        usage: "PATH (for reading)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            let how = types::OpenHow::new().flags((libc::O_RDONLY | libc::O_CLOEXEC) as u64);
            let entry = opcode::OpenAt2::new(CWD, path.as_ptr(), &raw const how);
            submit(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-openat2-in-root",
        usage: "DIR NAME (for reading, by a descriptor of DIR, RESOLVE_IN_ROOT)",
        run: |args| {
            let [dir, name] = arguments(args)?;
            let mut options = OpenOptions::new();
            let dir = options.read(true).custom_flags(libc::O_PATH).open(dir)?;
            let name = c_string(name)?;
            let how = types::OpenHow::new()
                .flags((libc::O_RDONLY | libc::O_CLOEXEC) as u64)
                .resolve(libc::RESOLVE_IN_ROOT);
            let dir = types::Fd(dir.as_raw_fd());
            let entry = opcode::OpenAt2::new(dir, name.as_ptr(), &raw const how);
            submit(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-open-direct",
        usage: "PATH (for reading, into a slot of the ring and no descriptor)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            let mut ring = with_slot()?;
            submit_to(&mut ring, &open_direct(&path)).map(drop)
        },
    },
    Operation {
        name: "io_uring-splice",
        usage: "PATH (opens it into a slot, and from there splices a byte to a pipe)",
        run: splice,
    },
    Operation {
        name: "io_uring-install",
        usage: "PATH (opens it into a slot, makes a descriptor of that, and reads from it)",
        run: install,
    },
    Operation {
        name: "io_uring-pass",
        usage: "PATH (opens it into a slot, passes it to another ring by a message, and reads it there)",
        run: pass,
    },
    Operation {
        name: "io_uring-message-of-init",
        usage: "(a message that says that process 1 sent it, when another request is done)",
        run: |args| {
            arguments::<0>(args)?;
            message_of_init()
        },
    },
    Operation {
        name: "io_uring-as-stored",
        usage: "PATH (for reading, under credentials that were registered before)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            let mut ring = IoUring::new(2)?;
            let stored = ring.submitter().register_personality()?;
            let entry = opcode::OpenAt::new(CWD, path.as_ptr())
                .flags(libc::O_RDONLY | libc::O_CLOEXEC)
                .build()
                .personality(stored);
            submit_to(&mut ring, &entry).map(drop)
        },
    },
    Operation {
        name: "io_uring-mkdir",
        usage: "PATH",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            submit(&opcode::MkDirAt::new(CWD, path.as_ptr()).mode(0o755).build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-rename",
        usage: "FROM TO",
        run: |args| {
            let [from, to] = arguments(args)?;
            let (from, to) = (c_string(from)?, c_string(to)?);
            let entry = opcode::RenameAt::new(CWD, from.as_ptr(), CWD, to.as_ptr());
            submit(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-exchange",
        usage: "FROM TO",
        run: |args| {
            let [from, to] = arguments(args)?;
            let (from, to) = (c_string(from)?, c_string(to)?);
            let entry = opcode::RenameAt::new(CWD, from.as_ptr(), CWD, to.as_ptr());
            submit(&entry.flags(libc::RENAME_EXCHANGE).build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-link",
        usage: "FROM TO",
        run: |args| {
            let [from, to] = arguments(args)?;
            let (from, to) = (c_string(from)?, c_string(to)?);
            let entry = opcode::LinkAt::new(CWD, from.as_ptr(), CWD, to.as_ptr());
            submit(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-symlink",
        usage: "TEXT PATH",
        run: |args| {
            let [text, path] = arguments(args)?;
            let (text, path) = (c_string(text)?, c_string(path)?);
            let entry = opcode::SymlinkAt::new(CWD, text.as_ptr(), path.as_ptr());
            submit(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-setxattr",
        usage: "PATH NAME VALUE",
        run: |args| {
            let [path, name, value] = arguments(args)?;
            let (path, name) = (c_string(path)?, c_string(name)?);
            let length = value.len() as u32;
            let entry =
                opcode::SetXattr::new(name.as_ptr(), value.as_ptr().cast(), path.as_ptr(), length);
            submit(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-fsetxattr",
        usage: "PATH NAME VALUE (by a descriptor that was opened for reading)",
        run: |args| {
            let [path, name, value] = arguments(args)?;
            let (file, name) = (File::open(path)?, c_string(name)?);
            let (fd, length) = (types::Fd(file.as_raw_fd()), value.len() as u32);
            let entry = opcode::FSetXattr::new(fd, name.as_ptr(), value.as_ptr().cast(), length);
            submit(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-truncate",
        usage: "PATH (opens it for writing, then empties it)",
        run: |args| {
            let [path] = arguments(args)?;
            let file = OpenOptions::new().write(true).open(path)?;
            submit(&opcode::Ftruncate::new(types::Fd(file.as_raw_fd()), 0).build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-stat",
        usage: "PATH",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            let mut told = MaybeUninit::<libc::statx>::uninit();
            let entry = opcode::Statx::new(CWD, path.as_ptr(), told.as_mut_ptr().cast());
            submit(&entry.mask(libc::STATX_BASIC_STATS).build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-connect",
        usage: "ADDR PORT (TCP over IPv4)",
        run: |args| {
            let to = address(args)?;
            let fd = super::sys!(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0))?;
            let length = size_of_val(&to) as u32;
            let entry = opcode::Connect::new(types::Fd(fd), (&raw const to).cast(), length);
            submit(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-sendmsg",
        usage: "ADDR PORT (a UDP datagram over IPv4, unconnected)",
        run: |args| {
            let mut to = address(args)?;
            let fd = super::sys!(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0))?;
            let mut bytes = libc::iovec {
                iov_base: b"hello".as_ptr().cast_mut().cast(),
                iov_len: 5,
            };
            // SAFETY: plain data, all zeroes are a valid value.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_name = (&raw mut to).cast();
            message.msg_namelen = size_of_val(&to) as u32;
            message.msg_iov = &raw mut bytes;
            message.msg_iovlen = 1;
            let entry = opcode::SendMsg::new(types::Fd(fd), &raw const message);
            submit(&entry.build()).map(drop)
        },
    },
];

/// Marks the second of two requests.
const SECOND: u64 = 2;

const CWD: types::Fd = types::Fd(libc::AT_FDCWD);

fn address(args: &[String]) -> Result<libc::sockaddr_in, Failure> {
    let [addr, port] = arguments(args)?;
    let addr: std::net::Ipv4Addr = addr
        .parse()
        .map_err(|_| Failure::Usage(format!("{addr} is not an IPv4 address")))?;
    let port: u16 = super::number(port)?;
    // SAFETY: plain data, all zeroes are a valid value.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_port = port.to_be();
    address.sin_addr.s_addr = u32::from_ne_bytes(addr.octets());
    Ok(address)
}

fn openat(
    args: &[String],
    flags: i32,
    submit: impl FnOnce(&squeue::Entry) -> Result<i32, Failure>,
) -> Outcome {
    let [path] = arguments(args)?;
    let path = CString::new(path).map_err(|error| Failure::Usage(error.to_string()))?;
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(flags | libc::O_CLOEXEC)
        .mode(0o644)
        .build();
    let fd = submit(&entry)?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// A ring that can hold one file in a slot of its own.
fn with_slot() -> Result<IoUring, Failure> {
    let ring = IoUring::new(4)?;
    ring.submitter().register_files_sparse(1)?;
    Ok(ring)
}

/// The only slot of such a ring.
const SLOT: types::Fixed = types::Fixed(0);

/// An open for reading into that slot.
fn open_direct(path: &CStr) -> squeue::Entry {
    opcode::OpenAt::new(CWD, path.as_ptr())
        .flags(libc::O_RDONLY)
        .file_index(Some(types::DestinationSlot::auto_target()))
        .build()
}

fn splice(args: &[String]) -> Outcome {
    let path = c_string(arguments::<1>(args)?[0])?;
    let (_reader, writer) = std::io::pipe()?;
    let mut ring = with_slot()?;
    submit_to(&mut ring, &open_direct(&path))?;
    let to = types::Fd(writer.as_raw_fd());
    one_byte(submit_to(
        &mut ring,
        &opcode::Splice::new(SLOT, 0, to, -1, 1).build(),
    )?)
}

fn install(args: &[String]) -> Outcome {
    let path = c_string(arguments::<1>(args)?[0])?;
    let mut ring = with_slot()?;
    submit_to(&mut ring, &open_direct(&path))?;
    let fd = submit_to(&mut ring, &opcode::FixedFdInstall::new(SLOT, 0).build())?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(file.read_exact(&mut [0])?)
}

fn pass(args: &[String]) -> Outcome {
    /// Tells the other ring nothing: include/uapi/linux/io_uring.h, `IORING_MSG_RING_CQE_SKIP`.
    const SILENTLY: u32 = 1;
    let path = c_string(arguments::<1>(args)?[0])?;
    let (mut ring, mut other) = (with_slot()?, with_slot()?);
    submit_to(&mut ring, &open_direct(&path))?;
    let (to, slot) = (
        types::Fd(other.as_raw_fd()),
        types::DestinationSlot::auto_target(),
    );
    let message = opcode::MsgRingSendFd::new(to, SLOT, slot, 0).opcode_flags(SILENTLY);
    submit_to(&mut ring, &message.build())?;
    let mut byte = [0_u8; 1];
    let read = opcode::Read::new(SLOT, byte.as_mut_ptr(), 1).build();
    one_byte(submit_to(&mut other, &read)?)
}

fn one_byte(moved: i32) -> Outcome {
    match moved {
        1 => Ok(()),
        other => Err(Failure::Usage(format!("{other} bytes were moved"))),
    }
}

fn unlink(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    let path = CString::new(path).map_err(|error| Failure::Usage(error.to_string()))?;
    submit(&opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build()).map(drop)
}

fn message_of_init() -> Outcome {
    let (from, _to) = std::os::unix::net::UnixDatagram::pair()?;
    let credentials = libc::ucred {
        pid: 1,
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
    };
    let mut bytes = libc::iovec {
        iov_base: c"x".as_ptr().cast_mut().cast(),
        iov_len: 1,
    };
    // As much as CMSG_SPACE says, aligned.
    let mut control = [0u64; 8];
    // SAFETY: plain data, all zeroes are a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the buffer has room for a header and the credentials.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_CREDENTIALS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<libc::ucred>() as u32) as usize;
        libc::CMSG_DATA(header)
            .cast::<libc::ucred>()
            .write_unaligned(credentials);
    }
    let send = opcode::SendMsg::new(types::Fd(from.as_raw_fd()), &raw const message);
    submit_linked(&send.build()).map(drop)
}

/// Submits an entry that waits for a pipe first, and so runs when the task is in another system call, or leaves one. What it points to
/// must outlive the call.
fn submit_linked(entry: &squeue::Entry) -> Result<i32, Failure> {
    let (reader, mut writer) = std::io::pipe()?;
    let mut ring = IoUring::new(4)?;
    let wait = opcode::PollAdd::new(types::Fd(reader.as_raw_fd()), libc::POLLIN as u32)
        .build()
        .flags(squeue::Flags::IO_LINK);
    for entry in [wait, entry.clone().user_data(SECOND)] {
        // SAFETY: the callers keep what the entries point to until this function returns, and it returns after the last completion.
        unsafe { ring.submission().push(&entry) }
            .map_err(|error| Failure::Usage(error.to_string()))?;
    }
    ring.submit()?;
    let waker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        writer.write_all(b"x")
    });
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(100));
        let done = ring.completion().find(|done| done.user_data() == SECOND);
        if let Some(done) = done {
            let _ = waker.join();
            return result_of(&done);
        }
    }
    Err(Failure::Usage("the linked request never ended".to_owned()))
}

/// Submits one entry and waits for its result. What the entry points to must outlive the call.
fn submit(entry: &squeue::Entry) -> Result<i32, Failure> {
    submit_to(&mut IoUring::new(2)?, entry)
}

fn submit_to(ring: &mut IoUring, entry: &squeue::Entry) -> Result<i32, Failure> {
    // SAFETY: the callers keep the paths that the entry points to alive until this function returns, and it
    // returns only after the completion.
    unsafe { ring.submission().push(entry) }.map_err(|error| Failure::Usage(error.to_string()))?;
    ring.submit_and_wait(1)?;
    let Some(completion) = ring.completion().next() else {
        return Err(Failure::Usage(
            "io_uring ended the wait without a completion".to_owned(),
        ));
    };
    result_of(&completion)
}

fn result_of(completion: &cqueue::Entry) -> Result<i32, Failure> {
    match completion.result() {
        result if result < 0 => Err(Errno::from_raw(-result).into()),
        result => Ok(result),
    }
}
