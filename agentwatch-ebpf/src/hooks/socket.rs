//! Sockets, where the kernel takes LSM programs: which families there are for a session, UNIX sockets by their file or
//! name, sockets that come from elsewhere; and the outcome of connects: any family, any way in.

use core::ffi::c_void;

use agentwatch_common::{
    event::{GUARD_SOCKET, kind, state, verdict},
    hold::RESTART,
    policy::{family, flags, rule},
};
use aya_ebpf::{
    macros::{fexit, lsm},
    programs::{FExitContext, LsmContext},
};

use crate::{
    emit, hold,
    hooks::{
        guard::{self, Guarded},
        net,
    },
    kernel::{self, Address, Entry as _, FileAt, Sock, SockAt, Sockaddr, SockaddrAt, Task},
    maps::{POLICIES, SOCKETS},
    session::{self, Subject, answer},
    verdict::{self as policy, Own, from_words, is_mapped, mapped},
};

const EPERM: i32 = 1;
const EINTR: i32 = 4;
/// include/linux/errno.h: what a system call that a signal ends says to the kernel.
const ERESTARTSYS: i32 = 512;
/// In a task's tag: the connect in hand has been recorded.
const TOLD: u64 = 2;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Making a socket. Internet, UNIX and netlink sockets are for everyone; others are for those whose policy names them.
#[lsm(hook = "socket_create")]
pub fn socket_create(ctx: LsmContext) -> i32 {
    let kernels: u32 = ctx.arg(3);
    if kernels != 0 {
        return 0;
    }
    let Some(subject) = Subject::current() else {
        return 0;
    };
    session::make_known(&subject);
    let (family, kind, protocol): (u32, u32, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let bit = family_bit(family, kind & 0xf, protocol);
    usable(&subject, bit, family as u16, kind & 0xf)
}

/// The bit of [`agentwatch_common::policy::Policy::families`] that a socket needs.
#[inline(always)]
fn family_bit(family: u32, kind: u32, protocol: u32) -> u32 {
    const IPPROTO_TCP: u32 = 6;
    const IPPROTO_UDP: u32 = 17;
    const IPPROTO_MPTCP: u32 = 262;
    if family != u32::from(AF_INET) && family != u32::from(AF_INET6) {
        return if family < family::OTHER_PROTOCOL {
            family
        } else {
            family::OTHER_PROTOCOL
        };
    }
    if kind == SOCK_RAW {
        return family::RAW;
    }
    let usual = (kind == SOCK_STREAM
        && (protocol == 0 || protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP))
        || (kind == SOCK_DGRAM && (protocol == 0 || protocol == IPPROTO_UDP));
    if usual {
        family
    } else {
        family::OTHER_PROTOCOL
    }
}

#[inline(always)]
fn usable(subject: &Subject, bit: u32, family: u16, kind: u32) -> i32 {
    // SAFETY: entries are replaced whole.
    if let Some(policy) = unsafe { POLICIES.get(subject.policy) }
        && policy.families & 1 << (bit & 63) != 0
    {
        return 0;
    }
    let outcome = if subject.monitors() {
        verdict::AUDITED
    } else {
        verdict::DENIED
    };
    guard::record(
        subject,
        &Guarded {
            operation: GUARD_SOCKET,
            rule: rule::FAMILIES_DEFAULT,
            verdict: outcome,
            target: 0,
            detail: u64::from(bit),
            dentry: 0,
            family,
            socket_type: kind,
        },
    );
    answer(outcome == verdict::DENIED, EPERM)
}

/// A UNIX socket of the session's, so that the session may talk to itself.
#[lsm(hook = "socket_post_create")]
pub fn socket_post_create(ctx: LsmContext) -> i32 {
    let family: u32 = ctx.arg(1);
    if family == u32::from(AF_UNIX)
        && let Some(subject) = Subject::current()
    {
        mark_as_own(&subject, ctx.arg(0));
    }
    0
}

/// An internet socket that the session gives an address that it may listen on. One that has an address already came with it.
#[lsm(hook = "socket_bind")]
pub fn socket_bind(ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let sock = kernel::sock_of(ctx.arg(0));
    if sock.0.is_null() {
        return 0;
    }
    let family = sock.family();
    if (family != AF_INET && family != AF_INET6) || sock.local_port() != 0 {
        return 0;
    }
    if let Some(local) = Peer::at(SockaddrAt(ctx.arg(1)), ctx.arg::<u64>(2) as u32)
        && policy::listen(subject.policy, local.addr, local.port).allows()
    {
        mark_as_own(&subject, ctx.arg(0));
    }
    0
}

/// Marks a socket as the session's.
#[inline(always)]
fn mark_as_own(subject: &Subject, socket: *const c_void) {
    let sock = kernel::sock_of(socket);
    if sock.0.is_null() {
        return;
    }
    let mark = SOCKETS.get_or_insert(sock.0, core::ptr::null());
    if !mark.is_null() {
        // SAFETY: not null.
        unsafe { mark.write_volatile(subject.number) };
    }
}

#[inline(always)]
fn is_own(subject: &Subject, sock: Sock) -> bool {
    if sock.0.is_null() {
        return false;
    }
    let mark = SOCKETS.get(sock.0);
    // SAFETY: read where it is not null.
    !mark.is_null() && unsafe { mark.read_volatile() } == subject.number
}

/// A connect begins: nothing of it has been recorded yet. Where a person is to be asked, it waits here: the program that decides
/// cannot stop a task.
#[lsm(hook = "socket_connect")]
pub fn socket_connect(ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    session::make_known(&subject);
    // SAFETY: the subject was found by its tag.
    unsafe {
        (*subject.tag).denied = 0;
        (*subject.tag).socket_type = kernel::socket_type(ctx.arg(0));
    }
    // A connect that was interrupted, or asks how the first is getting on, reaches nothing new: what was granted once is used up.
    let socket: *const c_void = ctx.arg(0);
    if subject.flags & flags::HOLDS == 0 || subject.monitors() || kernel::has_connected(socket) {
        return 0;
    }
    let Some(mut peer) = Peer::at(SockaddrAt(ctx.arg(1)), ctx.arg::<u64>(2) as u32) else {
        return 0;
    };
    let own = if policy::is_unspecified(&peer.addr) {
        own_address(socket)
    } else {
        Own::NONE
    };
    let decision;
    (decision, peer.addr) = policy::peer(subject.policy, peer.addr, peer.port, own);
    if !decision.holds() {
        return 0;
    }
    let request = hold::Request {
        what: kind::CONNECT,
        rights: policy::WRITE,
        rule: decision.rule,
        repeatable: true,
        // The program of the cgroup follows.
        last: false,
    };
    let (outcome, errno, noted) =
        match hold::address(&subject, &request, &peer.addr, peer.port, true) {
            hold::GRANTED => return 0,
            hold::PARKED_AGAIN => return answer(true, RESTART),
            hold::PARKED => (verdict::HELD, RESTART, 0),
            hold::REJECTED => (verdict::DENIED, EPERM, state::REJECTED),
            _ => (verdict::DENIED, EPERM, state::NOT_HELD),
        };
    let action = net::Action {
        what: kind::CONNECT,
        family: peer.family,
        addr: peer.addr,
        port: peer.port,
        socket_type: kernel::socket_type(ctx.arg(0)),
        verdict: outcome,
        rule: decision.rule,
        errno,
        state: noted,
    };
    action.record(&subject);
    // The end of the connect has nothing to add.
    // SAFETY: as above.
    unsafe { (*subject.tag).denied = TOLD };
    // As in `file::answer::refusal`.
    let (errno, _) = subject.forget(errno as u32, 0);
    if errno as i32 == RESTART {
        answer(true, RESTART)
    } else {
        answer(true, EPERM)
    }
}

/// The end of a datagram's sending: where a program of the cgroup has noted that it waits, the task is stopped.
#[fexit(function = "udp_sendmsg")]
pub fn udp_sendmsg(ctx: FExitContext) -> i32 {
    if ctx.arg::<u64>(3) as i32 == -RESTART && Subject::current().is_some() {
        hold::stop();
    }
    0
}

#[fexit(function = "udpv6_sendmsg")]
pub fn udpv6_sendmsg(ctx: FExitContext) -> i32 {
    if ctx.arg::<u64>(3) as i32 == -RESTART && Subject::current().is_some() {
        hold::stop();
    }
    0
}

/// An internet address as a system call gives it.
struct Peer {
    family: u16,
    addr: [u8; 16],
    port: u16,
}

impl Peer {
    /// From an address in the kernel's memory; `None` for other families.
    #[inline(always)]
    fn at(address: impl Address, len: u32) -> Option<Self> {
        let family = if len >= 2 { address.half(0) } else { 0 };
        if family != AF_INET && family != AF_INET6 {
            return None;
        }
        let port = u16::from_be(address.half(2));
        let addr = if family == AF_INET {
            mapped(address.word(4))
        } else {
            from_words([8, 12, 16, 20].map(|offset| address.word(offset)))
        };
        Some(Self { family, addr, port })
    }
}

/// Where a connection of a socket comes from. Devices that it is bound to are for the program that decides.
#[inline(always)]
fn own_address(socket: *const c_void) -> Own {
    let sock = kernel::sock_of(socket);
    if sock.0.is_null() {
        return Own::UNKNOWN;
    }
    let inet4 = sock.at().local4();
    let [a, b, c, _] = sock.at().local6();
    Own {
        inet4,
        is_mapped: sock.family() == AF_INET6 && is_mapped(a, b, c),
        exact: kernel::socket_type(socket) == SOCK_STREAM && inet4 == 0,
    }
}

/// Listening: without a name the kernel gives the socket one.
#[lsm(hook = "socket_listen")]
pub fn socket_listen(ctx: LsmContext) -> i32 {
    listens(ctx.arg(0), false)
}

/// Accepting from a socket that was listening before the session had it.
#[lsm(hook = "socket_accept")]
pub fn socket_accept(ctx: LsmContext) -> i32 {
    listens(ctx.arg(0), true)
}

#[inline(always)]
fn listens(socket: *const c_void, accepts: bool) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let sock = kernel::sock_of(socket);
    if sock.0.is_null() {
        return 0;
    }
    let family = sock.family();
    if family != AF_INET && family != AF_INET6 {
        return 0;
    }
    let port = sock.local_port();
    // Its own have been decided when they were bound.
    if is_own(&subject, sock) && (accepts || port != 0) {
        return 0;
    }
    let addr = if family == AF_INET {
        mapped(sock.at().local4())
    } else {
        from_words(sock.at().local6())
    };
    let decision = policy::listen(subject.policy, addr, port);
    if decision.allows() {
        return 0;
    }
    refused(
        &subject,
        kind::BIND,
        family,
        addr,
        port,
        kernel::socket_type(socket),
        decision.rule,
    )
}

#[inline(always)]
fn refused(
    subject: &Subject,
    what: u32,
    family: u16,
    addr: [u8; 16],
    port: u16,
    socket_type: u32,
    rule: u32,
) -> i32 {
    let outcome = if subject.monitors() {
        verdict::AUDITED
    } else {
        verdict::DENIED
    };
    let errno = if outcome == verdict::DENIED { EPERM } else { 0 };
    let action = net::Action {
        what,
        family,
        addr,
        port,
        socket_type,
        verdict: outcome,
        rule,
        errno,
        state: 0,
    };
    action.record(subject);
    answer(errno != 0, EPERM)
}

/// A socket that comes from another process: what it is connected to is decided as if the session connected to it, unless it has accepted
/// the connection.
#[lsm(hook = "file_receive")]
pub fn socket_receive(ctx: LsmContext) -> i32 {
    let file = kernel::File(ctx.arg(0));
    let dentry = file.dentry();
    if !dentry.is_socket() || !dentry.is_internal() {
        return 0;
    }
    match Subject::current() {
        Some(subject) => {
            session::make_known(&subject);
            received(&subject, FileAt(file.0 as u64))
        }
        None => 0,
    }
}

#[inline(always)]
fn received(subject: &Subject, file: FileAt) -> i32 {
    let sock = file.sock();
    let family = sock.family();
    let kind = file.socket_type();
    if family != AF_INET && family != AF_INET6 {
        return usable(subject, u32::from(family) & 63, family, kind);
    }
    // One that the session could not make is none that it is given either.
    let bit = family_bit(u32::from(family), kind, sock.protocol());
    if bit != u32::from(family) {
        return usable(subject, bit, family, kind);
    }
    let port = sock.peer_port();
    if port == 0 {
        return 0;
    }
    let addr = if family == AF_INET {
        mapped(sock.peer4())
    } else {
        from_words(sock.peer6())
    };
    let (decision, _) = policy::peer(subject.policy, addr, port, Own::NONE);
    if decision.allows() || is_accepted(subject, sock, family, kind) {
        return 0;
    }
    refused(
        subject,
        kind::CONNECT,
        family,
        addr,
        port,
        kind,
        decision.rule,
    )
}

/// Whether the session accepted a connection itself, and may share it out among its processes, whoever is at the other end: the listener
/// was made in its cgroup, where it may listen. Sockets that it made and somebody else connected have ports that the kernel chose.
#[inline(always)]
fn is_accepted(subject: &Subject, sock: SockAt, family: u16, kind: u32) -> bool {
    if kind != SOCK_STREAM || session::of_cgroup(sock.cgroup().id()) != subject.number {
        return false;
    }
    let addr = if family == AF_INET {
        mapped(sock.local4())
    } else {
        from_words(sock.local6())
    };
    policy::listen(subject.policy, addr, sock.local_port()).allows()
}

/// Connecting to a UNIX socket.
#[lsm(hook = "unix_stream_connect")]
pub fn unix_stream_connect(ctx: LsmContext) -> i32 {
    unix(Sock(ctx.arg(1)), SOCK_STREAM)
}

/// Sending a datagram to a UNIX socket, or connecting to one that takes datagrams.
#[lsm(hook = "unix_may_send")]
pub fn unix_may_send(ctx: LsmContext) -> i32 {
    unix(kernel::sock_of(ctx.arg(1)), SOCK_DGRAM)
}

#[inline(always)]
fn unix(peer: Sock, socket_type: u32) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    if peer.0.is_null() || is_own(&subject, peer) {
        return 0;
    }
    let peer = peer.at();
    let dentry = peer.unix_dentry();
    let (name, len) = peer.unix_name();
    let decision = if dentry.0 != 0 {
        let held = policy::everything_at(&subject, dentry.0);
        policy::socket_file(held)
    } else if len != 0 {
        // An abstract name: a NUL stands before it, and that may be all of it.
        policy::abstract_name(&subject, name + 1, len - 1)
    } else {
        // One that has no name was handed over by somebody.
        return 0;
    };
    let (outcome, errno) = if decision.allows() {
        (verdict::ALLOWED, 0)
    } else if subject.monitors() {
        (verdict::AUDITED, 0)
    } else {
        (verdict::DENIED, EPERM)
    };
    // The end of the connect has nothing to add.
    // SAFETY: the subject was found by its tag.
    unsafe { (*subject.tag).denied = TOLD };
    let key = emit::key(
        &subject,
        kind::CONNECT,
        0,
        outcome,
        [
            subject.forget_all(peer.0),
            u64::from(socket_type),
            u64::from(decision.rule),
        ],
    );
    if emit::fold(&subject, &key, 0) {
        return answer(errno != 0, EPERM);
    }
    let Some(mut draft) = emit::begin(kind::CONNECT, &subject, Task::current()) else {
        return answer(errno != 0, EPERM);
    };
    if dentry.0 != 0 {
        draft.path(dentry);
        let record = draft.record();
        record.dev = dentry.device();
        record.inode = dentry.inode();
    } else {
        draft.name_bytes(name as *const u8, len);
    }
    let record = draft.record();
    record.verdict = outcome;
    record.rule = decision.rule;
    record.family = AF_UNIX;
    record.socket_type = socket_type;
    record.errno = errno;
    draft.submit_first(&subject, &key, 0);
    answer(errno != 0, EPERM)
}

#[fexit(function = "__sys_connect_file")]
pub fn sys_connect_file(ctx: FExitContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let address = Sockaddr(ctx.arg(1));
    let len = ctx.arg::<u64>(2) as u32;
    let errno = match -(ctx.arg::<u64>(4) as i32) {
        // By a signal; the kernel does it once more, or gives the program this error.
        ERESTARTSYS => EINTR,
        errno => errno,
    };
    // SAFETY: the subject was found by its tag.
    let (told, socket_type) = unsafe {
        let tag = &mut *subject.tag;
        (
            core::mem::replace(&mut tag.denied, 0),
            core::mem::replace(&mut tag.socket_type, 0),
        )
    };
    if told == TOLD {
        return 0;
    }
    connected(&subject, socket_type, address, len, errno);
    0
}

/// Records a connect that is over, from the address that the kernel used; both backends end here.
#[inline(always)]
pub fn connected(subject: &Subject, socket_type: u32, address: impl Address, len: u32, errno: i32) {
    if errno == RESTART {
        return;
    }
    if let Some(peer) = Peer::at(address, len) {
        let mut action = net::Action {
            what: kind::CONNECT,
            family: peer.family,
            addr: peer.addr,
            port: peer.port,
            socket_type,
            verdict: verdict::ALLOWED,
            rule: 0,
            errno,
            state: 0,
        };
        // What was allowed once is allowed again by the same policy, which is part of what makes two connects the same.
        if action.fold(subject) {
            return;
        }
        let (decision, _) = policy::peer(subject.policy, peer.addr, peer.port, Own::NONE);
        // The cgroup program has recorded what it refused, and what it would have, and what a person granted. What came through
        // all the same is recorded as what it is.
        let came_through = !subject.monitors() && errno != EPERM && !decision.holds();
        if decision.allows() || came_through {
            action.rule = decision.rule;
            action.record_first(subject);
        }
        return;
    }
    let family = if len >= 2 { address.half(0) } else { 0 };
    let task = Task::current();
    let Some(mut draft) = emit::begin(kind::CONNECT, subject, task) else {
        return;
    };
    if family == AF_UNIX && len > 2 {
        draft.name_bytes((address.address() + 2) as *const u8, len - 2);
        let cwd = task.cwd();
        draft.cwd(cwd);
        draft.record().dev = cwd.device();
    }
    let record = draft.record();
    record.state |= state::NAME_ONLY;
    record.family = family;
    record.socket_type = socket_type;
    record.errno = errno;
    draft.submit(subject);
}
