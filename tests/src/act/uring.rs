//! Operations that go through io_uring: the same acts without the system calls that usually carry them.

use std::{
    ffi::CString,
    io::Write as _,
    os::fd::{AsRawFd as _, FromRawFd, OwnedFd},
    time::Duration,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::errno::Errno;

use super::{Failure, Operation, Outcome, arguments, c_string};

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
        name: "io_uring-open-direct",
        usage: "PATH (for reading, into a slot of the ring and no descriptor)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            let mut ring = IoUring::new(2)?;
            ring.submitter().register_files_sparse(1)?;
            let slot = types::DestinationSlot::auto_target();
            let entry = opcode::OpenAt::new(CWD, path.as_ptr())
                .flags(libc::O_RDONLY)
                .file_index(Some(slot))
                .build();
            submit_to(&mut ring, &entry).map(drop)
        },
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
