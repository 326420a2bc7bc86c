//! Operations on sockets, by system calls and by io_uring. Peers are given as numbers: nothing here resolves a name.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use io_uring::{IoUring, opcode, squeue, types};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            self, AddressFamily, Backlog, MsgFlags, NetlinkAddr, SockFlag, SockType, SockaddrLike,
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
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
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
        run: |args| {
            let to = address(args)?;
            send_many(&ip_socket(to, SockType::Datagram)?, &[to, to])
        },
    },
    Operation {
        name: "udp-sendmmsg-to-both",
        usage: "ADDR PORT OTHER (a datagram to each by one call; another one sends what it left)",
        run: |args| {
            let [addr, port, other] = arguments(args)?;
            let to = |port: &str| address(&[addr.to_owned(), port.to_owned()]);
            let both = [to(port)?, to(other)?];
            send_many(&ip_socket(both[0], SockType::Datagram)?, &both)
        },
    },
    Operation {
        name: "udp-reconnect",
        usage: "ADDR PORT OTHER (connects to PORT, then to OTHER, and sends)",
        run: |args| {
            let (fd, second) = connected_to_first(args)?;
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(second))?;
            socket::send(fd.as_raw_fd(), b"hello", MsgFlags::empty())?;
            Ok(())
        },
    },
    Operation {
        name: "udp-connected-sendto",
        usage: "ADDR PORT OTHER (connects to PORT, sends to OTHER)",
        run: |args| {
            let (fd, second) = connected_to_first(args)?;
            send_through(&fd, second)
        },
    },
    Operation {
        name: "udp-sendto-unspecified-family",
        usage: "ADDR PORT (an IPv4 address that does not say that it is one)",
        run: |args| {
            let to = address(args)?;
            let (fd, to) = (ip_socket(to, SockType::Datagram)?, without_family(to));
            sys!(libc::sendto(
                fd.as_raw_fd(),
                b"hello".as_ptr().cast(),
                5,
                0,
                (&raw const to).cast(),
                size_of_val(&to) as u32
            ))
            .map(drop)
        },
    },
    Operation {
        name: "udp6-sendto-v4",
        usage: "ADDR PORT (an IPv4 address as it is, on a socket of IPv6)",
        run: |args| {
            let to = address(args)?;
            send_through(&ip_socket(mapped(args)?, SockType::Datagram)?, to)
        },
    },
    Operation {
        name: "udp6-connect-v4",
        usage: "ADDR PORT (an IPv4 address as it is, on a socket of IPv6; then sends)",
        run: |args| {
            let to = address(args)?;
            let fd = ip_socket(mapped(args)?, SockType::Datagram)?;
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
            socket::send(fd.as_raw_fd(), b"hello", MsgFlags::empty())?;
            Ok(())
        },
    },
    Operation {
        name: "udp-broadcast",
        usage: "DEVICE ADDR PORT (unconnected, bound to the device, with SO_BROADCAST)",
        run: |args| {
            let [device, addr, port] = arguments(args)?;
            let to = address(&[addr.to_owned(), port.to_owned()])?;
            let fd = ip_socket(to, SockType::Datagram)?;
            socket::setsockopt(&fd, sockopt::Broadcast, &true)?;
            socket::setsockopt(&fd, sockopt::BindToDevice, &device.into())
                .map_err(|errno| Failure::Usage(format!("the device: {errno}")))?;
            send_through(&fd, to)
        },
    },
    Operation {
        name: "udp6-sendto-scope",
        usage: "DEVICE ADDR PORT (an address that holds on that device only)",
        run: |args| {
            let to = scoped(args)?;
            send_through(&ip_socket(to, SockType::Datagram)?, to)
        },
    },
    Operation {
        name: "connect-tcp6-scope",
        usage: "DEVICE ADDR PORT (an address that holds on that device only)",
        run: |args| connect_to(scoped(args)?, SockType::Stream),
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
        name: "tcp-fast-open-sendmsg",
        usage: "ADDR PORT (sendmsg with MSG_FASTOPEN)",
        run: |args| fast_open_message(address(args)?),
    },
    Operation {
        name: "tcp6-fast-open-sendmsg",
        usage: "ADDR PORT (sendmsg with MSG_FASTOPEN; a v4 address is mapped into v6)",
        run: |args| fast_open_message(mapped(args)?),
    },
    Operation {
        name: "tcp-fast-open-connect",
        usage: "ADDR PORT (TCP_FASTOPEN_CONNECT: connects when it writes)",
        run: |args| fast_open_connect(address(args)?),
    },
    Operation {
        name: "tcp6-fast-open-connect",
        usage: "ADDR PORT (TCP_FASTOPEN_CONNECT; a v4 address is mapped into v6)",
        run: |args| fast_open_connect(mapped(args)?),
    },
    Operation {
        name: "tcp-repair",
        usage: "(TCP_REPAIR: a connection that no packet is sent for)",
        run: |_| {
            let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
            let fd = ip_socket(any, SockType::Stream)?;
            set_option(&fd, libc::TCP_REPAIR)
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
        name: "bind6",
        usage: "ADDR PORT (TCP, and listens; a v4 address is mapped into v6)",
        run: |args| serve(mapped(args)?).map(drop),
    },
    Operation {
        name: "bind-twice",
        usage: "ADDR PORT (TCP: two sockets that share it by SO_REUSEPORT, and listen)",
        run: |args| {
            let to = address(args)?;
            let shares = || -> Result<OwnedFd, Failure> {
                let fd = ip_socket(to, SockType::Stream)?;
                socket::setsockopt(&fd, sockopt::ReusePort, &true)?;
                socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
                socket::listen(&fd, Backlog::new(1)?)?;
                Ok(fd)
            };
            let _first = shares()?;
            shares().map(drop)
        },
    },
    Operation {
        name: "bind-unspecified-family",
        usage: "ADDR PORT (TCP: an IPv4 address that does not say that it is one; 0.0.0.0 is the only one that the kernel takes)",
        run: |args| {
            let to = address(args)?;
            let (fd, to) = (ip_socket(to, SockType::Stream)?, without_family(to));
            let length = size_of_val(&to) as u32;
            sys!(libc::bind(fd.as_raw_fd(), (&raw const to).cast(), length)).map(drop)
        },
    },
    Operation {
        name: "accept-own",
        usage: "ADDR PORT (TCP: listens, connects to itself, and accepts)",
        run: |args| {
            let to = address(args)?;
            let server = serve(to)?;
            let client = ip_socket(to, SockType::Stream)?;
            socket::connect(client.as_raw_fd(), &SockaddrStorage::from(to))
                .map_err(|errno| Failure::Usage(format!("the connect: {errno}")))?;
            accept(server.as_raw_fd())
        },
    },
    Operation {
        name: "io_uring-connect6",
        usage: "ADDR PORT (TCP; a v4 address is mapped into v6)",
        run: |args| {
            let to = mapped(args)?;
            let fd = ip_socket(to, SockType::Stream)?;
            by_ring(&connect_entry(&fd, &SockaddrStorage::from(to))).map(drop)
        },
    },
    Operation {
        name: "io_uring-connect-by-worker",
        usage: "ADDR PORT (TCP, in a thread that the kernel makes for it)",
        run: |args| {
            let to = address(args)?;
            let fd = ip_socket(to, SockType::Stream)?;
            let to = SockaddrStorage::from(to);
            let entry = connect_entry(&fd, &to).flags(squeue::Flags::ASYNC);
            by_ring(&entry).map(drop)
        },
    },
    Operation {
        name: "io_uring-connect-by-poller",
        usage: "ADDR PORT (TCP, by the thread that polls the ring)",
        run: |args| {
            let to = address(args)?;
            let fd = ip_socket(to, SockType::Stream)?;
            let mut ring = IoUring::builder().setup_sqpoll(1000).build(2)?;
            by(&mut ring, &connect_entry(&fd, &SockaddrStorage::from(to))).map(drop)
        },
    },
    Operation {
        name: "io_uring-sendto",
        usage: "ADDR PORT (a UDP datagram, unconnected, IORING_OP_SEND)",
        run: |args| {
            let to = address(args)?;
            let fd = ip_socket(to, SockType::Datagram)?;
            by_ring(&send_entry(&fd, &SockaddrStorage::from(to), 0)).map(drop)
        },
    },
    Operation {
        name: "io_uring-sendto-zero-copy",
        usage: "ADDR PORT (a UDP datagram, unconnected, IORING_OP_SEND_ZC)",
        run: |args| {
            let to = address(args)?;
            let (fd, to) = (
                ip_socket(to, SockType::Datagram)?,
                SockaddrStorage::from(to),
            );
            let entry = opcode::SendZc::new(types::Fd(fd.as_raw_fd()), HELLO.as_ptr(), 5)
                .dest_addr(to.as_ptr())
                .dest_addr_len(to.len());
            by_ring(&entry.build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-fast-open",
        usage: "ADDR PORT (IORING_OP_SEND with MSG_FASTOPEN and data in the first packet)",
        run: |args| {
            let to = address(args)?;
            let fd = ip_socket(to, SockType::Stream)?;
            set_option(&fd, libc::TCP_FASTOPEN_NO_COOKIE)?;
            let to = SockaddrStorage::from(to);
            by_ring(&send_entry(&fd, &to, libc::MSG_FASTOPEN)).map(drop)
        },
    },
    Operation {
        name: "io_uring-bind",
        usage: "ADDR PORT (TCP, and listens)",
        run: |args| {
            let to = address(args)?;
            let fd = ip_socket(to, SockType::Stream)?;
            socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            let (to, fd) = (SockaddrStorage::from(to), types::Fd(fd.as_raw_fd()));
            by_ring(&opcode::Bind::new(fd, to.as_ptr(), to.len()).build())?;
            by_ring(&opcode::Listen::new(fd, 1).build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-listen-unbound",
        usage: "(TCP: listens without binding, so that the kernel picks a port)",
        run: |_| {
            let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
            let fd = ip_socket(any, SockType::Stream)?;
            by_ring(&opcode::Listen::new(types::Fd(fd.as_raw_fd()), 1).build()).map(drop)
        },
    },
    Operation {
        name: "io_uring-accept-own",
        usage: "ADDR PORT (TCP: listens, connects to itself, and accepts)",
        run: |args| {
            let to = address(args)?;
            let server = serve(to)?;
            let client = ip_socket(to, SockType::Stream)?;
            socket::connect(client.as_raw_fd(), &SockaddrStorage::from(to))
                .map_err(|errno| Failure::Usage(format!("the connect: {errno}")))?;
            accept_by_ring(server.as_raw_fd())
        },
    },
    Operation {
        name: "io_uring-socket",
        usage: "FAMILY TYPE PROTOCOL (by number)",
        run: |args| {
            let [family, kind, protocol] = arguments(args)?;
            let (family, kind, protocol): (i32, i32, i32) =
                (number(family)?, number(kind)?, number(protocol)?);
            let kind = kind | libc::SOCK_CLOEXEC;
            by_ring(&opcode::Socket::new(family, kind, protocol).build()).map(drop)
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
        name: "netlink-add-link-local",
        usage: "(fe80::1 to the loopback interface, or again)",
        run: |_| {
            // family, prefix length, flags, scope (link), index; two attributes of twenty bytes: local and address.
            let mut body = vec![libc::AF_INET6 as u8, 64, 0, 253, 1, 0, 0, 0];
            for attribute in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
                body.extend([20, 0, attribute as u8, 0, 0xfe, 0x80]);
                body.extend([0; 13]);
                body.push(1);
            }
            netlink(
                libc::RTM_NEWADDR,
                libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
                &body,
            )
        },
    },
    Operation {
        name: "netlink-generic",
        usage: "(asks the generic family for itself)",
        run: |_| {
            // CTRL_CMD_GETFAMILY and its version; an attribute of eleven bytes: CTRL_ATTR_FAMILY_NAME.
            let mut body = vec![3, 1, 0, 0, 11, 0, 2, 0];
            body.extend(b"nlctrl\0\0");
            ask(libc::NETLINK_GENERIC, GENL_ID_CTRL, 0, &body)
        },
    },
    Operation {
        name: "netlink-device-event",
        usage: "(tells whoever listens of a device that there is not)",
        run: |_| {
            let change = b"change@/devices/agentwatch\0ACTION=change\0SUBSYSTEM=agentwatch\0";
            let kind = libc::NLMSG_MIN_TYPE as u16;
            ask(libc::NETLINK_KOBJECT_UEVENT, kind, libc::NLM_F_ACK, change)
        },
    },
    Operation {
        name: "netlink-join",
        usage: "PROTOCOL GROUP (by number: listens to what is told to all)",
        run: |args| {
            let [protocol, group] = arguments(args)?;
            let group: u32 = number(group)?;
            let fd = netlink_socket(number(protocol)?)?;
            let groups = 1_u32 << group.saturating_sub(1);
            Ok(socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?)
        },
    },
    Operation {
        name: "socket",
        usage: "FAMILY TYPE PROTOCOL (by number)",
        run: open_socket,
    },
];

/// What is sent.
const HELLO: &[u8; 5] = b"hello";

/// The generic family's own number (include/uapi/linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;

pub(super) fn address(args: &[String]) -> Result<SocketAddr, Failure> {
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

/// An address of IPv6 that holds on one device only.
fn scoped(args: &[String]) -> Result<SocketAddr, Failure> {
    let [device, addr, port] = arguments(args)?;
    let index = nix::net::if_::if_nametoindex(device)
        .map_err(|errno| Failure::Usage(format!("the device: {errno}")))?;
    match address(&[addr.to_owned(), port.to_owned()])? {
        SocketAddr::V6(to) => Ok(SocketAddrV6::new(*to.ip(), to.port(), 0, index).into()),
        SocketAddr::V4(to) => Err(Failure::Usage(format!("{to} is no address of IPv6"))),
    }
}

/// An IPv4 address whose family is AF_UNSPEC.
fn without_family(address: SocketAddr) -> libc::sockaddr_in {
    // SAFETY: plain data, all zeroes are a valid value.
    let mut plain: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    plain.sin_port = address.port().to_be();
    if let IpAddr::V4(addr) = address.ip() {
        plain.sin_addr.s_addr = u32::from(addr).to_be();
    }
    plain
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

/// A UDP socket that is connected to the first port, and the address with the other one.
fn connected_to_first(args: &[String]) -> Result<(OwnedFd, SocketAddr), Failure> {
    let [addr, port, other] = arguments(args)?;
    let to = |port: &str| address(&[addr.to_owned(), port.to_owned()]);
    let (first, second) = (to(port)?, to(other)?);
    let fd = ip_socket(first, SockType::Datagram)?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(first))
        .map_err(|errno| Failure::Usage(format!("the first connect: {errno}")))?;
    Ok((fd, second))
}

/// Switches an option of TCP on.
fn set_option(fd: &OwnedFd, option: i32) -> Outcome {
    let on = 1_i32;
    sys!(libc::setsockopt(
        fd.as_raw_fd(),
        libc::IPPROTO_TCP,
        option,
        (&raw const on).cast(),
        size_of_val(&on) as u32
    ))
    .map(drop)
}

fn fast_open_message(address: SocketAddr) -> Outcome {
    let fd = ip_socket(address, SockType::Stream)?;
    let bytes = [std::io::IoSlice::new(HELLO)];
    let to = SockaddrStorage::from(address);
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    socket::sendmsg(fd.as_raw_fd(), &bytes, &[], flags, Some(&to))?;
    Ok(())
}

fn fast_open_connect(address: SocketAddr) -> Outcome {
    let fd = ip_socket(address, SockType::Stream)?;
    set_option(&fd, libc::TCP_FASTOPEN_CONNECT)?;
    // Without a cookie from an earlier connection the connect would send its packet at once.
    set_option(&fd, libc::TCP_FASTOPEN_NO_COOKIE)?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    nix::unistd::write(&fd, HELLO)?;
    Ok(())
}

fn bind_tcp(args: &[String]) -> Outcome {
    serve(address(args)?).map(drop)
}

fn serve(address: SocketAddr) -> Result<OwnedFd, Failure> {
    let fd = ip_socket(address, SockType::Stream)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&fd, Backlog::new(1)?)?;
    Ok(fd)
}

/// Takes a connection that waits.
pub(super) fn accept(listener: RawFd) -> Outcome {
    let fd = socket::accept4(listener, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// The same by io_uring.
pub(super) fn accept_by_ring(listener: RawFd) -> Outcome {
    let (no_address, no_length) = (std::ptr::null_mut(), std::ptr::null_mut());
    let entry = opcode::Accept::new(types::Fd(listener), no_address, no_length)
        .flags(libc::SOCK_CLOEXEC)
        .build();
    let fd = by_ring(&entry)?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// A connect by io_uring; both must live until it is over.
pub(super) fn connect_entry(fd: &OwnedFd, to: &impl SockaddrLike) -> squeue::Entry {
    opcode::Connect::new(types::Fd(fd.as_raw_fd()), to.as_ptr(), to.len()).build()
}

/// Sending to an address by io_uring; both must live until it is over.
pub(super) fn send_entry(fd: &OwnedFd, to: &impl SockaddrLike, flags: i32) -> squeue::Entry {
    let length = HELLO.len() as u32;
    opcode::Send::new(types::Fd(fd.as_raw_fd()), HELLO.as_ptr(), length)
        .flags(flags)
        .dest_addr(to.as_ptr())
        .dest_addr_len(to.len())
        .build()
}

/// Has a ring of its own do what the entry says, and waits for the result. What the entry points to must outlive the call.
pub(super) fn by_ring(entry: &squeue::Entry) -> Result<i32, Failure> {
    by(&mut IoUring::new(2)?, entry)
}

fn by(ring: &mut IoUring, entry: &squeue::Entry) -> Result<i32, Failure> {
    // SAFETY: the callers keep what the entry points to until this function returns, and it returns only after the completion.
    unsafe { ring.submission().push(entry) }.map_err(|error| Failure::Usage(error.to_string()))?;
    ring.submit_and_wait(1)?;
    match ring.completion().next().map(|done| done.result()) {
        Some(result) if result < 0 => Err(Errno::from_raw(-result).into()),
        Some(result) => Ok(result),
        None => Err(Failure::Usage(
            "io_uring ended the wait without a completion".to_owned(),
        )),
    }
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

/// Sends a datagram to each by one call. It says how many it sent, and why no more only where it sent none: what is left is sent by
/// another call.
fn send_many(fd: &OwnedFd, addresses: &[SocketAddr]) -> Outcome {
    let mut to: Vec<SockaddrStorage> = addresses.iter().copied().map(Into::into).collect();
    let mut bytes = libc::iovec {
        iov_base: HELLO.as_ptr().cast_mut().cast(),
        iov_len: HELLO.len(),
    };
    let mut messages: Vec<libc::mmsghdr> = to
        .iter_mut()
        .map(|to| {
            // SAFETY: plain data, all zeroes are a valid value.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_namelen = to.len();
            message.msg_hdr.msg_name = std::ptr::from_mut(to).cast();
            message.msg_hdr.msg_iov = &raw mut bytes;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    send_messages(fd, &mut messages)
}

/// Sends all messages, by as many calls as it takes. What they point to must live as long.
pub(super) fn send_messages(fd: &OwnedFd, messages: &mut [libc::mmsghdr]) -> Outcome {
    let mut sent = 0;
    while let Some(left) = messages.get_mut(sent..).filter(|left| !left.is_empty()) {
        let count = left.len() as u32;
        sent += sys!(libc::sendmmsg(fd.as_raw_fd(), left.as_mut_ptr(), count, 0))? as usize;
    }
    Ok(())
}

fn netlink_socket(protocol: i32) -> Result<OwnedFd, Failure> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    let fd = sys!(libc::socket(libc::AF_NETLINK, kind, protocol))?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn netlink(kind: u16, flags: i32, body: &[u8]) -> Outcome {
    ask(libc::NETLINK_ROUTE, kind, flags, body)
}

/// Sends a request to one of the kernel's netlink families and gives the errno of its answer back.
fn ask(protocol: i32, kind: u16, flags: i32, body: &[u8]) -> Outcome {
    let fd = netlink_socket(protocol)?;
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
