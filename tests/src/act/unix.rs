//! Operations on UNIX sockets. A name that begins with `@` is abstract.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrLike, UnixAddr,
};

use super::{Failure, Operation, Outcome, arguments, descriptor, net};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "unix-connect",
        usage: "PATH or @NAME",
        run: |args| connect(args, SockType::Stream),
    },
    Operation {
        name: "unix-connect-dgram",
        usage: "PATH or @NAME",
        run: |args| connect(args, SockType::Datagram),
    },
    Operation {
        name: "unix-connect-seqpacket",
        usage: "PATH or @NAME",
        run: |args| connect(args, SockType::SeqPacket),
    },
    Operation {
        name: "unix-sendto",
        usage: "PATH or @NAME (a datagram, unconnected)",
        run: |args| {
            let to = address(arguments::<1>(args)?[0])?;
            let fd = open(SockType::Datagram)?;
            let bytes = b"x";
            socket::sendto(fd.as_raw_fd(), bytes, &to, MsgFlags::empty())?;
            Ok(())
        },
    },
    Operation {
        name: "unix-sendmsg",
        usage: "PATH or @NAME (a datagram, unconnected, by sendmsg)",
        run: |args| {
            let to = address(arguments::<1>(args)?[0])?;
            let fd = open(SockType::Datagram)?;
            let bytes = [std::io::IoSlice::new(b"x")];
            socket::sendmsg(fd.as_raw_fd(), &bytes, &[], MsgFlags::empty(), Some(&to))?;
            Ok(())
        },
    },
    Operation {
        name: "unix-sendmmsg",
        usage: "PATH OTHER (a datagram to each by one call; another one sends what it left)",
        run: send_many,
    },
    Operation {
        name: "unix-reconnect-dgram",
        usage: "PATH OTHER (connects to PATH, then to OTHER, and sends)",
        run: |args| {
            let (fd, other) = connected_to_first(args)?;
            socket::connect(fd.as_raw_fd(), &other)?;
            socket::send(fd.as_raw_fd(), b"x", MsgFlags::empty())?;
            Ok(())
        },
    },
    Operation {
        name: "unix-connected-sendto",
        usage: "PATH OTHER (connects to PATH, sends a datagram to OTHER)",
        run: |args| {
            let (fd, other) = connected_to_first(args)?;
            socket::sendto(fd.as_raw_fd(), b"x", &other, MsgFlags::empty())?;
            Ok(())
        },
    },
    Operation {
        name: "unix-connect-held",
        usage: "NAME (in the held directory, through /proc/self/fd)",
        run: |args| {
            let [name] = arguments(args)?;
            descriptor::held(|dir| {
                let to = address(&format!("/proc/self/fd/{dir}/{name}"))?;
                let fd = open(SockType::Stream)?;
                Ok(socket::connect(fd.as_raw_fd(), &to)?)
            })
        },
    },
    Operation {
        name: "io_uring-unix-connect",
        usage: "PATH or @NAME",
        run: |args| {
            let to = address(arguments::<1>(args)?[0])?;
            let fd = open(SockType::Stream)?;
            net::by_ring(&net::connect_entry(&fd, &to)).map(drop)
        },
    },
    Operation {
        name: "io_uring-unix-sendto",
        usage: "PATH or @NAME (a datagram, unconnected)",
        run: |args| {
            let to = address(arguments::<1>(args)?[0])?;
            let fd = open(SockType::Datagram)?;
            net::by_ring(&net::send_entry(&fd, &to, 0)).map(drop)
        },
    },
    Operation {
        name: "unix-bind",
        usage: "PATH or @NAME (and listens)",
        run: |args| serve(arguments::<1>(args)?[0]).map(drop),
    },
    Operation {
        name: "unix-own",
        usage: "PATH or @NAME (binds, listens, and connects to itself)",
        run: |args| {
            let _server = serve(arguments::<1>(args)?[0])?;
            connect(args, SockType::Stream)
        },
    },
    Operation {
        name: "unix-own-dgram",
        usage: "PATH or @NAME (binds, and sends to itself)",
        run: |args| {
            let to = address(arguments::<1>(args)?[0])?;
            let (server, client) = (open(SockType::Datagram)?, open(SockType::Datagram)?);
            socket::bind(server.as_raw_fd(), &to)?;
            socket::sendto(client.as_raw_fd(), b"x", &to, MsgFlags::empty())?;
            Ok(())
        },
    },
    Operation {
        name: "unix-pair",
        usage: "(and sends through it)",
        run: |_| {
            let (one, _other) = socket::socketpair(
                AddressFamily::Unix,
                SockType::Stream,
                None,
                SockFlag::SOCK_CLOEXEC,
            )?;
            nix::unistd::write(&one, b"x")?;
            Ok(())
        },
    },
];

fn address(name: &str) -> Result<UnixAddr, Failure> {
    Ok(match name.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
        None => UnixAddr::new(name)?,
    })
}

fn open(kind: SockType) -> Result<OwnedFd, Failure> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket::socket(AddressFamily::Unix, kind, flags, None)?)
}

fn connect(args: &[String], kind: SockType) -> Outcome {
    let [name] = arguments(args)?;
    let fd = open(kind)?;
    Ok(socket::connect(fd.as_raw_fd(), &address(name)?)?)
}

fn serve(name: &str) -> Result<OwnedFd, Failure> {
    let fd = open(SockType::Stream)?;
    socket::bind(fd.as_raw_fd(), &address(name)?)?;
    socket::listen(&fd, Backlog::new(1)?)?;
    Ok(fd)
}

/// A datagram socket that is connected to the first, and the address of the other one.
fn connected_to_first(args: &[String]) -> Result<(OwnedFd, UnixAddr), Failure> {
    let [first, other] = arguments(args)?;
    let fd = open(SockType::Datagram)?;
    socket::connect(fd.as_raw_fd(), &address(first)?)
        .map_err(|errno| Failure::Usage(format!("the first connect: {errno}")))?;
    Ok((fd, address(other)?))
}

fn send_many(args: &[String]) -> Outcome {
    let [first, other] = arguments(args)?;
    let to = [address(first)?, address(other)?];
    let fd = open(SockType::Datagram)?;
    let mut bytes = libc::iovec {
        iov_base: b"x".as_ptr().cast_mut().cast(),
        iov_len: 1,
    };
    let mut messages = to.each_ref().map(|to| {
        // SAFETY: plain data, all zeroes are a valid value.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = to.len();
        message.msg_hdr.msg_iov = &raw mut bytes;
        message.msg_hdr.msg_iovlen = 1;
        message
    });
    net::send_messages(&fd, &mut messages)
}
