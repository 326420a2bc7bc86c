//! Operations on sockets. Peers are given as numbers: nothing here resolves a name.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            self, AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType,
            SockaddrStorage, UnixAddr, sockopt,
        },
        time::TimeVal,
    },
};

use super::{Failure, Operation, Outcome, arguments, number};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "connect-tcp",
        usage: "ADDR PORT",
        run: |args| connect(args, SockType::Stream),
    },
    Operation {
        name: "connect-tcp6",
        usage: "ADDR PORT (a v4 address is mapped into v6)",
        run: connect_mapped,
    },
    Operation {
        name: "udp-connect",
        usage: "ADDR PORT",
        run: |args| connect(args, SockType::Datagram),
    },
    Operation {
        name: "udp-sendto",
        usage: "ADDR PORT (unconnected)",
        run: |args| send_to(address(args)?),
    },
    Operation {
        name: "udp6-sendto",
        usage: "ADDR PORT (a v4 address is mapped into v6)",
        run: |args| send_to(mapped(args)?),
    },
    Operation {
        name: "bind",
        usage: "ADDR PORT (TCP, and listens)",
        run: bind_tcp,
    },
    Operation {
        name: "bind-udp",
        usage: "ADDR PORT",
        run: bind_udp,
    },
    Operation {
        name: "unix-connect",
        usage: "PATH or @NAME",
        run: unix_connect,
    },
    Operation {
        name: "socket",
        usage: "inet-raw | packet | vsock | alg | netlink | unix",
        run: open_socket,
    },
];

fn address(args: &[String]) -> Result<SocketAddr, Failure> {
    let [addr, port] = arguments(args)?;
    let addr: IpAddr = addr
        .parse()
        .map_err(|_| Failure::Usage(format!("{addr} is not an IP address")))?;
    Ok(SocketAddr::new(addr, number(port)?))
}

fn mapped(args: &[String]) -> Result<SocketAddr, Failure> {
    let address = address(args)?;
    Ok(match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(Ipv4Addr::to_ipv6_mapped(&v4).into(), address.port()),
        IpAddr::V6(_) => address,
    })
}

fn ip_socket(address: SocketAddr, kind: SockType) -> Result<OwnedFd, Failure> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // A connect that nobody answers ends in EINPROGRESS after this, and does not hang the scenario.
    socket::setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(3, 0))?;
    Ok(fd)
}

fn connect_to(address: SocketAddr, kind: SockType) -> Outcome {
    let fd = ip_socket(address, kind)?;
    Ok(socket::connect(
        fd.as_raw_fd(),
        &SockaddrStorage::from(address),
    )?)
}

fn connect(args: &[String], kind: SockType) -> Outcome {
    connect_to(address(args)?, kind)
}

fn connect_mapped(args: &[String]) -> Outcome {
    connect_to(mapped(args)?, SockType::Stream)
}

fn send_to(address: SocketAddr) -> Outcome {
    let fd = ip_socket(address, SockType::Datagram)?;
    socket::sendto(
        fd.as_raw_fd(),
        b"hello",
        &SockaddrStorage::from(address),
        MsgFlags::empty(),
    )?;
    Ok(())
}

fn bind_tcp(args: &[String]) -> Outcome {
    let address = address(args)?;
    let fd = ip_socket(address, SockType::Stream)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&fd, Backlog::new(1)?)?;
    Ok(())
}

fn bind_udp(args: &[String]) -> Outcome {
    let address = address(args)?;
    let fd = ip_socket(address, SockType::Datagram)?;
    Ok(socket::bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(address),
    )?)
}

fn unix_connect(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    let Some(name) = path.strip_prefix('@') else {
        UnixStream::connect(path)?;
        return Ok(());
    };
    let fd = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    Ok(socket::connect(
        fd.as_raw_fd(),
        &UnixAddr::new_abstract(name.as_bytes())?,
    )?)
}

fn open_socket(args: &[String]) -> Outcome {
    let [family] = arguments(args)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    match family {
        "inet-raw" => socket::socket(
            AddressFamily::Inet,
            SockType::Raw,
            flags,
            SockProtocol::Icmp,
        )?,
        "packet" => socket::socket(AddressFamily::Packet, SockType::Raw, flags, None)?,
        "vsock" => socket::socket(AddressFamily::Vsock, SockType::Stream, flags, None)?,
        "alg" => socket::socket(AddressFamily::Alg, SockType::SeqPacket, flags, None)?,
        "netlink" => socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkRoute,
        )?,
        "unix" => socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?,
        other => {
            return Err(Failure::Usage(format!(
                "socket family {other} is not known here ({:?})",
                Errno::EAFNOSUPPORT
            )));
        }
    };
    Ok(())
}
