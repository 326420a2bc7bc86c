//! Operations on sockets. Peers are given as numbers: nothing here resolves a name.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            self, AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType,
            SockaddrStorage, sockopt,
        },
        time::TimeVal,
    },
};

use super::{Failure, Operation, Outcome, arguments, number, sys};

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
        name: "udp-send-connected",
        usage: "ADDR PORT (connect, then send)",
        run: |args| {
            let address = address(args)?;
            let fd = ip_socket(address, SockType::Datagram)?;
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
            socket::send(fd.as_raw_fd(), b"hello", MsgFlags::empty())?;
            Ok(())
        },
    },
    Operation {
        name: "udp-send-tos",
        usage: "ADDR PORT (connect, then send with a type of service)",
        run: |args| {
            let address = address(args)?;
            let fd = ip_socket(address, SockType::Datagram)?;
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
            let bytes = [std::io::IoSlice::new(b"hello")];
            let tos = [socket::ControlMessage::Ipv4Tos(&0x10)];
            let to = None::<&SockaddrStorage>;
            socket::sendmsg(fd.as_raw_fd(), &bytes, &tos, MsgFlags::empty(), to)?;
            Ok(())
        },
    },
    Operation {
        name: "udp-sendto-from",
        usage: "ADDR PORT SOURCE (unconnected, from this address of the host's)",
        run: |args| {
            let [addr, port, source] = arguments(args)?;
            let address = address(&[addr.to_owned(), port.to_owned()])?;
            let source: Ipv4Addr = source
                .parse()
                .map_err(|_| Failure::Usage(format!("{source} is not an IPv4 address")))?;
            let fd = ip_socket(address, SockType::Datagram)?;
            let bytes = [std::io::IoSlice::new(b"hello")];
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from(source).to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let from = [socket::ControlMessage::Ipv4PacketInfo(&info)];
            let to = SockaddrStorage::from(address);
            socket::sendmsg(fd.as_raw_fd(), &bytes, &from, MsgFlags::empty(), Some(&to))?;
            Ok(())
        },
    },
    Operation {
        name: "connect-from",
        usage: "SOURCE SOURCEPORT ADDR PORT (a v4 source is mapped into v6 for a v6 ADDR)",
        run: |args| {
            let [source, source_port, addr, port] = arguments(args)?;
            let to = address(&[addr.to_owned(), port.to_owned()])?;
            let source = [source.to_owned(), source_port.to_owned()];
            let source = if to.is_ipv4() {
                address(&source)?
            } else {
                mapped(&source)?
            };
            let fd = ip_socket(to, SockType::Stream)?;
            socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(source))
                .map_err(|errno| Failure::Usage(format!("the bind: {errno}")))?;
            Ok(socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?)
        },
    },
    Operation {
        name: "udp-sendto-through",
        usage: "DEVICE ADDR PORT (unconnected, bound to the device)",
        run: |args| {
            let [device, addr, port] = arguments(args)?;
            let to = address(&[addr.to_owned(), port.to_owned()])?;
            let fd = ip_socket(to, SockType::Datagram)?;
            socket::setsockopt(&fd, sockopt::BindToDevice, &device.into())
                .map_err(|errno| Failure::Usage(format!("the device: {errno}")))?;
            send_through(&fd, to)
        },
    },
    Operation {
        name: "mptcp-listen-anew",
        usage: "ADDR PORT OTHER (binds to OTHER, or not; connects to PORT, disconnects, listens)",
        run: |args| {
            let [addr, port, other] = arguments(args)?;
            let to = |port: &str| address(&[addr.to_owned(), port.to_owned()]);
            let fd = sys!(libc::socket(
                libc::AF_INET,
                libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
                libc::IPPROTO_MPTCP
            ))?;
            // SAFETY: the kernel gave it to us just now.
            let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd as i32) };
            let _ = socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(to(other)?));
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to(port)?))
                .map_err(|errno| Failure::Usage(format!("the connect: {errno}")))?;
            let unspecified = [0_u8; 16];
            sys!(libc::connect(
                fd.as_raw_fd(),
                unspecified.as_ptr().cast(),
                16
            ))
            .map_err(|failure| Failure::Usage(format!("the disconnect: {failure}")))?;
            Ok(socket::listen(&fd, Backlog::new(1)?)?)
        },
    },
    Operation {
        name: "udp-sendmsg",
        usage: "ADDR PORT (unconnected)",
        run: |args| {
            let address = address(args)?;
            let fd = ip_socket(address, SockType::Datagram)?;
            let bytes = [std::io::IoSlice::new(b"hello")];
            let to = SockaddrStorage::from(address);
            socket::sendmsg(fd.as_raw_fd(), &bytes, &[], MsgFlags::empty(), Some(&to))?;
            Ok(())
        },
    },
    Operation {
        name: "udp-sendmmsg",
        usage: "ADDR PORT (two datagrams, unconnected)",
        run: send_many,
    },
    Operation {
        name: "tcp-fast-open",
        usage: "ADDR PORT (sendto with MSG_FASTOPEN)",
        run: |args| {
            let address = address(args)?;
            let fd = ip_socket(address, SockType::Stream)?;
            let to = SockaddrStorage::from(address);
            socket::sendto(
                fd.as_raw_fd(),
                b"hello",
                &to,
                MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
            )?;
            Ok(())
        },
    },
    Operation {
        name: "tcp-reconnect",
        usage: "ADDR PORT OTHER (connects to PORT, disconnects by AF_UNSPEC, connects to OTHER)",
        run: |args| {
            let [addr, port, other] = arguments(args)?;
            let to = |port: &str| address(&[addr.to_owned(), port.to_owned()]);
            let (first, second) = (to(port)?, to(other)?);
            let fd = ip_socket(first, SockType::Stream)?;
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(first))
                .map_err(|errno| Failure::Usage(format!("the first connect: {errno}")))?;
            let unspecified = [0_u8; 16];
            sys!(libc::connect(
                fd.as_raw_fd(),
                unspecified.as_ptr().cast(),
                16
            ))
            .map_err(|failure| Failure::Usage(format!("the disconnect: {failure}")))?;
            Ok(socket::connect(
                fd.as_raw_fd(),
                &SockaddrStorage::from(second),
            )?)
        },
    },
    Operation {
        name: "connect-mptcp",
        usage: "ADDR PORT",
        run: |args| connect_protocol(address(args)?, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
    },
    Operation {
        name: "connect-sctp",
        usage: "ADDR PORT",
        run: |args| connect_protocol(address(args)?, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
    },
    Operation {
        name: "connect-udplite",
        usage: "ADDR PORT",
        run: |args| connect_protocol(address(args)?, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
    },
    Operation {
        name: "listen-unbound",
        usage: "(TCP: listens without binding, so that the kernel picks a port)",
        run: |_| {
            let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
            let fd = ip_socket(any, SockType::Stream)?;
            Ok(socket::listen(&fd, Backlog::new(1)?)?)
        },
    },
    Operation {
        name: "loopback-up",
        usage: "(sets the interface's flags to up)",
        run: super::place::loopback_up,
    },
    Operation {
        name: "netlink-links",
        usage: "(asks for the list of interfaces)",
        run: |_| netlink(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16]),
    },
    Operation {
        name: "netlink-set-link",
        usage: "(sets no flag of the loopback interface)",
        run: |_| {
            // family and padding, type, index, flags, change mask.
            let mut body = [0_u8; 16];
            body[4..8].copy_from_slice(&1_i32.to_ne_bytes());
            netlink(libc::RTM_NEWLINK, libc::NLM_F_ACK, &body)
        },
    },
    Operation {
        name: "netlink-add-address",
        usage: "(127.9.9.9 to the loopback interface, or again)",
        run: |_| {
            // family, prefix length, flags, scope (host), index; two attributes of eight bytes: local and address.
            let mut body = vec![libc::AF_INET as u8, 32, 0, 254, 1, 0, 0, 0];
            for attribute in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
                body.extend([8, 0, attribute as u8, 0, 127, 9, 9, 9]);
            }
            netlink(
                libc::RTM_NEWADDR,
                libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
                &body,
            )
        },
    },
    Operation {
        name: "socket",
        usage: "FAMILY TYPE PROTOCOL (by number)",
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
    send_through(&ip_socket(address, SockType::Datagram)?, address)
}

fn send_through(fd: &OwnedFd, address: SocketAddr) -> Outcome {
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

fn connect_protocol(address: SocketAddr, kind: i32, protocol: i32) -> Outcome {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let fd = sys!(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol))
        .map_err(|failure| Failure::Usage(format!("the socket: {failure}")))?;
    Ok(socket::connect(fd, &SockaddrStorage::from(address))?)
}

fn send_many(args: &[String]) -> Outcome {
    let address = address(args)?;
    let fd = ip_socket(address, SockType::Datagram)?;
    let mut to = SockaddrStorage::from(address);
    let mut bytes = libc::iovec {
        iov_base: b"hello".as_ptr().cast_mut().cast(),
        iov_len: 5,
    };
    // SAFETY: plain data, all zeroes are a valid value.
    let mut messages: [libc::mmsghdr; 2] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_name = (&raw mut to).cast();
        message.msg_hdr.msg_namelen = if address.is_ipv4() { 16 } else { 28 };
        message.msg_hdr.msg_iov = &raw mut bytes;
        message.msg_hdr.msg_iovlen = 1;
    }
    sys!(libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), 2, 0)).map(drop)
}

/// Sends a request to the kernel's routing family and gives the errno of its answer back.
fn netlink(kind: u16, flags: i32, body: &[u8]) -> Outcome {
    let fd = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut request = Vec::new();
    request.extend((16 + body.len() as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16 | flags as u16).to_ne_bytes());
    // Sequence number and sender.
    request.extend([0; 8]);
    request.extend(body);
    let mut kernel = [0_u8; 12];
    kernel[..2].copy_from_slice(&(libc::AF_NETLINK as u16).to_ne_bytes());
    sys!(libc::sendto(
        fd.as_raw_fd(),
        request.as_ptr().cast(),
        request.len(),
        0,
        kernel.as_ptr().cast(),
        12
    ))?;
    let mut answer = [0_u8; 8192];
    let length = sys!(libc::recv(
        fd.as_raw_fd(),
        answer.as_mut_ptr().cast(),
        answer.len(),
        0
    ))? as usize;
    let kind = answer
        .get(4..6)
        .map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    match (kind, answer.get(16..20)) {
        (Some(kind), Some(errno)) if length >= 20 && i32::from(kind) == libc::NLMSG_ERROR => {
            match i32::from_ne_bytes([errno[0], errno[1], errno[2], errno[3]]) {
                0 => Ok(()),
                errno => Err(Errno::from_raw(-errno).into()),
            }
        }
        _ => Ok(()),
    }
}

/// Opens a socket of any family; its numbers, because libc's names differ from what policies call them.
fn open_socket(args: &[String]) -> Outcome {
    let [family, kind, protocol] = arguments(args)?;
    let (family, kind, protocol): (i32, i32, i32) =
        (number(family)?, number(kind)?, number(protocol)?);
    // Packet sockets have their protocol in the network's byte order; 0 is the same in both.
    sys!(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol)).map(drop)
}
