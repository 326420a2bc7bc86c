//! Operations on UNIX sockets. A name that begins with `@` is abstract.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{self, AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr};

use super::{Failure, Operation, Outcome, arguments};

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
