//! Operations on a descriptor that was opened before, in this process or in another one: what the kernel decides when
//! there is no path any more.

use std::{
    io::{IoSlice, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::Mutex,
};

use io_uring::{opcode, types};
use nix::{
    fcntl::OFlag,
    sys::{
        socket::{
            self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            SockaddrStorage, recvmsg, sendmsg,
        },
        stat::Mode,
    },
};

use super::{Failure, Operation, Outcome, arguments, c_string, net, number, process, sys};

/// Descriptors that are kept between the operations of one step, the newest last.
static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "hold",
        usage: "PATH r|w|rw|path|create (opens and keeps it; the held-* operations act on the newest)",
        run: hold,
    },
    Operation {
        name: "held-read",
        usage: "",
        run: |_| held(|fd| sys!(libc::read(fd, [0_u8; 16].as_mut_ptr().cast(), 16)).map(drop)),
    },
    Operation {
        name: "held-write",
        usage: "",
        run: |_| held(|fd| sys!(libc::write(fd, b"x".as_ptr().cast(), 1)).map(drop)),
    },
    Operation {
        name: "held-truncate",
        usage: "",
        run: |_| held(|fd| sys!(libc::ftruncate(fd, 0)).map(drop)),
    },
    Operation {
        name: "held-fallocate",
        usage: "",
        run: |_| held(|fd| sys!(libc::fallocate(fd, 0, 0, 4096)).map(drop)),
    },
    Operation {
        name: "held-chmod",
        usage: "OCTAL",
        run: |args| {
            let mode = u32::from_str_radix(arguments::<1>(args)?[0], 8)
                .map_err(|_| Failure::Usage("the mode is not octal".to_owned()))?;
            held(|fd| sys!(libc::fchmod(fd, mode)).map(drop))
        },
    },
    Operation {
        name: "held-chown",
        usage: "UID GID",
        run: |args| {
            let [uid, gid] = arguments(args)?;
            let (uid, gid) = (number(uid)?, number(gid)?);
            held(|fd| sys!(libc::fchown(fd, uid, gid)).map(drop))
        },
    },
    Operation {
        name: "held-touch",
        usage: "",
        run: |_| held(|fd| sys!(libc::futimens(fd, std::ptr::null())).map(drop)),
    },
    Operation {
        name: "held-setxattr",
        usage: "NAME VALUE",
        run: |args| {
            let [name, value] = arguments(args)?;
            let name = c_string(name)?;
            held(|fd| {
                sys!(libc::fsetxattr(
                    fd,
                    name.as_ptr(),
                    value.as_ptr().cast(),
                    value.len(),
                    0
                ))
                .map(drop)
            })
        },
    },
    Operation {
        name: "held-chattr",
        usage: "(FS_IOC_SETFLAGS: no dump)",
        run: |_| {
            const NODUMP: libc::c_long = 0x40;
            held(|fd| sys!(libc::ioctl(fd, libc::FS_IOC_SETFLAGS, &NODUMP)).map(drop))
        },
    },
    Operation {
        name: "held-reopen",
        usage: "r|w (through /proc/self/fd)",
        run: |args| {
            let flags = open_flags(arguments::<1>(args)?[0])?;
            held(|fd| open(&format!("/proc/self/fd/{fd}"), flags).map(drop))
        },
    },
    Operation {
        name: "held-open",
        usage: "NAME r|w (relative to it)",
        run: |args| {
            let [name, how] = arguments(args)?;
            let (name, flags) = (c_string(name)?, open_flags(how)?);
            held(|fd| sys!(libc::openat(fd, name.as_ptr(), flags.bits(), 0o644)).map(drop))
        },
    },
    Operation {
        name: "held-unlink",
        usage: "NAME (relative to it)",
        run: |args| {
            let name = c_string(arguments::<1>(args)?[0])?;
            held(|fd| sys!(libc::unlinkat(fd, name.as_ptr(), 0)).map(drop))
        },
    },
    Operation {
        name: "held-link",
        usage: "TO (gives a name to what has none: linkat through /proc/self/fd)",
        run: |args| {
            let to = c_string(arguments::<1>(args)?[0])?;
            held(|fd| {
                let from = c_string(&format!("/proc/self/fd/{fd}"))?;
                sys!(libc::linkat(
                    libc::AT_FDCWD,
                    from.as_ptr(),
                    libc::AT_FDCWD,
                    to.as_ptr(),
                    libc::AT_SYMLINK_FOLLOW
                ))
                .map(drop)
            })
        },
    },
    Operation {
        name: "held-mmap-exec",
        usage: "(PROT_READ|PROT_EXEC)",
        run: |_| held(|fd| map(fd, libc::PROT_READ | libc::PROT_EXEC).map(drop)),
    },
    Operation {
        name: "held-mprotect-exec",
        usage: "(maps it for reading, then asks for PROT_EXEC)",
        run: |_| {
            held(|fd| {
                let at = map(fd, libc::PROT_READ)?;
                sys!(libc::mprotect(at, 1, libc::PROT_READ | libc::PROT_EXEC)).map(drop)
            })
        },
    },
    Operation {
        name: "held-exec",
        usage: "(execveat of the descriptor itself)",
        run: |_| held(|fd| process::execute_at(fd, "", libc::AT_EMPTY_PATH)),
    },
    Operation {
        name: "held-exec-by-name",
        usage: "(execve of /proc/self/fd/N)",
        run: |_| {
            held(|fd| {
                let words = [&*format!("/proc/self/fd/{fd}"), "exit", "0"];
                process::execute(&words.map(str::to_owned))
            })
        },
    },
    Operation {
        name: "held-accept",
        usage: "",
        run: |_| held(net::accept),
    },
    Operation {
        name: "held-accept-by-io_uring",
        usage: "",
        run: |_| held(net::accept_by_ring),
    },
    Operation {
        name: "held-listen",
        usage: "",
        run: |_| held(|fd| sys!(libc::listen(fd, 1)).map(drop)),
    },
    Operation {
        name: "held-bind",
        usage: "ADDR PORT",
        run: |args| {
            let to = SockaddrStorage::from(net::address(args)?);
            held(|fd| Ok(socket::bind(fd, &to)?))
        },
    },
    Operation {
        name: "held-connect",
        usage: "ADDR PORT",
        run: |args| {
            let to = SockaddrStorage::from(net::address(args)?);
            held(|fd| Ok(socket::connect(fd, &to)?))
        },
    },
    Operation {
        name: "held-sendto",
        usage: "ADDR PORT",
        run: |args| {
            let to = SockaddrStorage::from(net::address(args)?);
            held(|fd| {
                socket::sendto(fd, b"hello", &to, MsgFlags::empty())?;
                Ok(())
            })
        },
    },
    Operation {
        name: "copy-to",
        usage: "PATH range|sendfile|splice (from the held descriptor)",
        run: copy_to,
    },
    Operation {
        name: "handle-open",
        usage: "PATH MOUNT (open_by_handle_at, with a descriptor of MOUNT)",
        run: handle_open,
    },
    Operation {
        name: "receive",
        usage: "SOCKET PATH (asks the process outside for a descriptor of PATH, and reads from it)",
        run: |args| receive(args, true),
    },
    Operation {
        name: "receive-only",
        usage: "SOCKET PATH (the same without reading)",
        run: |args| receive(args, false),
    },
    Operation {
        name: "io_uring-receive",
        usage: "SOCKET PATH (as `receive`, the descriptor by IORING_OP_RECVMSG)",
        run: |args| {
            let [socket, path] = arguments(args)?;
            read_and_keep(received_by_ring(&asked(socket, path)?)?)
        },
    },
    Operation {
        name: "receive-socket",
        usage: "SOCKET WORDS... (asks the process outside for a socket, and keeps it: see `outside`)",
        run: |args| {
            let Some((socket, words)) = args.split_first() else {
                return Err(Failure::Usage("a socket to ask at is needed".to_owned()));
            };
            keep(ask(socket, &format!("socket {}", words.join(" ")))?);
            Ok(())
        },
    },
    Operation {
        name: "have-made",
        usage: "SOCKET PATH (has the process outside make a file there, and the directories above it)",
        run: |args| {
            let [socket, path] = arguments(args)?;
            ask(socket, &format!("make {path}")).map(drop)
        },
    },
    Operation {
        name: "have-made-again",
        usage: "SOCKET DIRECTORY PATH (the same, after the directory was taken away with all that is in it)",
        run: |args| {
            let [socket, top, path] = arguments(args)?;
            ask(socket, &format!("make-again {top} {path}")).map(drop)
        },
    },
    Operation {
        name: "pass-accepted",
        usage: "ADDR PORT (accepts a connection of its own there, hands it to itself over a socket pair, and writes to it)",
        run: pass_accepted,
    },
    Operation {
        name: "lend-socket",
        usage: "SOCKET ADDR PORT (makes a TCP socket, has the process outside connect it, and takes it back)",
        run: lend_socket,
    },
    Operation {
        name: "keep",
        usage: "FD (one that it was started with: the held-* operations act on it)",
        run: |args| {
            let fd: RawFd = number(arguments::<1>(args)?[0])?;
            sys!(libc::fcntl(fd, libc::F_GETFD))?;
            // SAFETY: it is open, and nothing of ours knows it.
            keep(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(())
        },
    },
    Operation {
        name: "inherited",
        usage: "FD (whether it is open)",
        run: |args| {
            let fd: RawFd = number(arguments::<1>(args)?[0])?;
            sys!(libc::fcntl(fd, libc::F_GETFD)).map(drop)
        },
    },
];

/// Keeps a descriptor for the operations that follow.
pub(super) fn keep(fd: OwnedFd) {
    if let Ok(mut list) = HELD.lock() {
        list.push(fd);
    }
}

/// Acts on the newest descriptor.
pub(super) fn held(act: impl FnOnce(RawFd) -> Outcome) -> Outcome {
    let newest = HELD
        .lock()
        .ok()
        .and_then(|list| list.last().map(AsRawFd::as_raw_fd));
    act(newest.ok_or_else(|| Failure::Usage("no descriptor is held".to_owned()))?)
}

fn open_flags(how: &str) -> Result<OFlag, Failure> {
    Ok(OFlag::O_CLOEXEC
        | match how {
            "r" => OFlag::O_RDONLY,
            "w" => OFlag::O_WRONLY,
            "rw" => OFlag::O_RDWR,
            "path" => OFlag::O_PATH,
            "create" => OFlag::O_RDWR | OFlag::O_CREAT,
            "tmpfile" => OFlag::O_RDWR | OFlag::O_TMPFILE,
            other => return Err(Failure::Usage(format!("{other} is no way to open"))),
        })
}

fn open(path: &str, flags: OFlag) -> Result<OwnedFd, Failure> {
    Ok(nix::fcntl::open(
        path,
        flags,
        Mode::from_bits_truncate(0o644),
    )?)
}

fn hold(args: &[String]) -> Outcome {
    let [path, how] = arguments(args)?;
    keep(open(path, open_flags(how)?)?);
    Ok(())
}

fn map(fd: RawFd, protection: i32) -> Result<*mut libc::c_void, Failure> {
    // SAFETY: a fresh private mapping that nothing refers to; it ends with the process.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            1,
            protection,
            libc::MAP_PRIVATE,
            fd,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(nix::errno::Errno::last().into());
    }
    Ok(at)
}

fn copy_to(args: &[String]) -> Outcome {
    let [path, how] = arguments(args)?;
    let to = open(path, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC)?;
    let (to, none) = (to.as_raw_fd(), std::ptr::null_mut());
    held(|from| {
        let copied = match how {
            "range" => sys!(libc::copy_file_range(from, none, to, none, 1, 0))?,
            "sendfile" => sys!(libc::sendfile(to, from, none, 1))?,
            "splice" => {
                let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                sys!(libc::splice(from, none, writer.as_raw_fd(), none, 1, 0))?;
                sys!(libc::splice(reader.as_raw_fd(), none, to, none, 1, 0))?
            }
            other => {
                return Err(Failure::Usage(format!("{other} is no way to copy")));
            }
        };
        if copied == 1 {
            Ok(())
        } else {
            Err(Failure::Usage(format!("{copied} bytes were copied")))
        }
    })
}

fn handle_open(args: &[String]) -> Outcome {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    let [path, mount] = arguments(args)?;
    let (path, mount) = (c_string(path)?, open(mount, OFlag::O_RDONLY)?);
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
        libc::O_RDONLY | libc::O_CLOEXEC
    ))?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    keep(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
    Ok(())
}

fn receive(args: &[String], read: bool) -> Outcome {
    let [socket, path] = arguments(args)?;
    let fd = ask(socket, path)?;
    if read {
        return read_and_keep(fd);
    }
    keep(fd);
    Ok(())
}

fn read_and_keep(fd: OwnedFd) -> Outcome {
    let mut file = std::fs::File::from(fd);
    file.read_exact(&mut [0])?;
    keep(file.into());
    Ok(())
}

/// Asks the process outside for a descriptor.
fn ask(socket: &str, what: &str) -> Result<OwnedFd, Failure> {
    received(&asked(socket, what)?)
}

/// A connection to the process outside, on which it answers what it was asked.
fn asked(socket: &str, what: &str) -> Result<UnixStream, Failure> {
    let mut stream = UnixStream::connect(socket)
        .map_err(|error| Failure::Usage(format!("the process outside: {error}")))?;
    stream.write_all(format!("{what}\n").as_bytes())?;
    Ok(stream)
}

/// Accepts a connection of its own, and hands it to itself over a socket pair, as a server does that shares its work out.
fn pass_accepted(args: &[String]) -> Outcome {
    let [addr, port] = arguments(args)?;
    let listener = TcpListener::bind(SocketAddr::new(number(addr)?, number(port)?))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    let (one, other) = UnixStream::pair()?;
    pass(&one, b"x", &accepted)?;
    let passed = TcpStream::from(received(&other)?);
    (&passed).write_all(b"x")?;
    (&client).read_exact(&mut [0])?;
    Ok(())
}

fn lend_socket(args: &[String]) -> Outcome {
    let [socket, addr, port] = arguments(args)?;
    let outside = UnixStream::connect(socket)
        .map_err(|error| Failure::Usage(format!("the process outside: {error}")))?;
    let own = socket::socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let request = format!("connect {addr} {port}\n");
    pass(&outside, request.as_bytes(), &own)?;
    keep(received(&outside)?);
    Ok(())
}

/// Sends a descriptor with a message.
fn pass(to: &UnixStream, message: &[u8], fd: &impl AsRawFd) -> Result<(), Failure> {
    let fds = [fd.as_raw_fd()];
    sendmsg::<()>(
        to.as_raw_fd(),
        &[IoSlice::new(message)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )?;
    Ok(())
}

/// The descriptor that a message brings.
fn received(stream: &UnixStream) -> Result<OwnedFd, Failure> {
    let mut byte = [0_u8; 1];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
    let fd = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(list) => list.first().copied(),
        _ => None,
    });
    match fd {
        // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
        Some(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        // The kernel drops a descriptor that may not be received, and marks the message as cut short.
        None if truncated => Err(nix::errno::Errno::EACCES.into()),
        None => Err(Failure::Usage("no descriptor came".to_owned())),
    }
}

/// The same by io_uring, with the errno that `received` has for a message that was cut short.
fn received_by_ring(stream: &UnixStream) -> Result<OwnedFd, Failure> {
    let mut byte = [0_u8; 1];
    let mut bytes = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: byte.len(),
    };
    // As much as CMSG_SPACE says, aligned.
    let mut control = [0_u64; 3];
    // SAFETY: plain data, all zeroes are a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let entry = opcode::RecvMsg::new(types::Fd(stream.as_raw_fd()), &raw mut message)
        .flags(libc::MSG_CMSG_CLOEXEC as u32);
    net::by_ring(&entry.build())?;
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(nix::errno::Errno::ENOBUFS.into());
    }
    // SAFETY: the kernel has said how much of the buffer it filled, and a header that it wrote is whole.
    let fd = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
            return Err(Failure::Usage("no descriptor came".to_owned()));
        }
        libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()
    };
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
