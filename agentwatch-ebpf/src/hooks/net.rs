//! Internet sockets, decided by programs on the root of all cgroups, for processes of sessions. On every kernel.

use agentwatch_common::{
    event::{FoldKey, kind, state, verdict},
    hold::RESTART,
    policy::net,
};
use aya_ebpf::{
    bindings::bpf_sock_addr, helpers::generated::bpf_set_retval, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    emit, hold,
    kernel::Task,
    maps::HOST,
    session::Subject,
    verdict::{self as policy, Own, from_words, is_mapped, mapped},
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: u32 = 1;
const EPERM: i32 = 1;
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    decide(&ctx, AF_INET, net::CONNECT, false)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    decide(&ctx, AF_INET6, net::CONNECT, false)
}

/// Sending to an address without connecting.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    decide(&ctx, AF_INET, net::CONNECT, true)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    decide(&ctx, AF_INET6, net::CONNECT, true)
}

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    decide(&ctx, AF_INET, net::LISTEN, true)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    decide(&ctx, AF_INET6, net::LISTEN, true)
}

/// What a datagram that is sent without an address goes to: what its socket is connected to. It has control data, or the program
/// would not be asked.
#[inline(always)]
fn connected_to(ctx: &SockAddrContext, family: u16) -> Option<([u8; 16], u16)> {
    let sock: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: as in `decide`; the kernel gives a socket to each of these programs.
    unsafe {
        let from = (&raw const (*sock).__bindgen_anon_1.sk).read_volatile();
        if from.is_null() {
            return None;
        }
        let port = u16::from_be((&raw const (*from).dst_port).read_volatile());
        if family == AF_INET {
            return Some((mapped((&raw const (*from).dst_ip4).read_volatile()), port));
        }
        let to = (&raw const (*from).dst_ip6).cast::<u32>();
        let to = from_words([
            to.read_volatile(),
            to.add(1).read_volatile(),
            to.add(2).read_volatile(),
            to.add(3).read_volatile(),
        ]);
        Some((to, port))
    }
}

/// Where a connection or a datagram comes from.
#[inline(always)]
fn own(ctx: &SockAddrContext, family: u16, sends: bool, socket_type: u32) -> Own {
    let sock: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: as in `decide`.
    unsafe {
        if sends && family == AF_INET {
            let inet4 = (&raw const (*sock).msg_src_ip4).read_volatile();
            // What it is bound to, or asks for; a device may have another.
            return Own {
                inet4,
                is_mapped: false,
                exact: inet4 != 0,
            };
        }
        let from = (&raw const (*sock).__bindgen_anon_1.sk).read_volatile();
        if from.is_null() {
            return Own::UNKNOWN;
        }
        let inet4 = (&raw const (*from).src_ip4).read_volatile();
        let is_mapped = family == AF_INET6 && {
            let own = (&raw const (*from).src_ip6).cast::<u32>();
            is_mapped(
                own.read_volatile(),
                own.add(1).read_volatile(),
                own.add(2).read_volatile(),
            )
        };
        // One that is bound to an address for many has none to send from.
        let device = (&raw const (*from).bound_dev_if).read_volatile();
        Own {
            inet4,
            is_mapped,
            exact: socket_type == SOCK_STREAM && inet4 == 0 && device == 0,
        }
    }
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, family: u16, op: u32, record_allowed: bool) -> i32 {
    let Some(subject) = Subject::by_process() else {
        return ALLOW;
    };
    let sock: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the verifier checks accesses to its context; words of the address are read one by one, as it demands.
    let (addr, port, socket_type) = unsafe {
        let addr = if family == AF_INET {
            mapped((&raw const (*sock).user_ip4).read_volatile())
        } else {
            let ip = (&raw const (*sock).user_ip6).cast::<u32>();
            from_words([
                ip.read_volatile(),
                ip.add(1).read_volatile(),
                ip.add(2).read_volatile(),
                ip.add(3).read_volatile(),
            ])
        };
        let port = u16::from_be((&raw const (*sock).user_port).read_volatile() as u16);
        (addr, port, (&raw const (*sock).type_).read_volatile())
    };
    let (decision, addr, port) = if op == net::LISTEN {
        (policy::listen(subject.policy, addr, port), addr, port)
    } else {
        let (mut peer, mut from) = ((addr, port), Own::NONE);
        if policy::is_unspecified(&addr) {
            let sends = record_allowed;
            if sends && port == 0 {
                peer = connected_to(ctx, family).unwrap_or(peer);
            }
            from = own(ctx, family, sends, socket_type);
        }
        let (decision, addr) = policy::peer(subject.policy, peer.0, peer.1, from);
        (decision, addr, peer.1)
    };
    let (mut outcome, mut answer) = if decision.allows() {
        (verdict::ALLOWED, ALLOW)
    } else if subject.monitors() {
        (verdict::AUDITED, ALLOW)
    } else {
        (verdict::DENIED, REFUSE)
    };
    let mut noted = 0;
    if decision.holds() && answer == REFUSE {
        let request = hold::Request {
            what: kind::CONNECT,
            rights: policy::WRITE,
            rule: decision.rule,
            // Where there are LSM programs, a connect that waits has been parked before it came here.
            repeatable: record_allowed || HOST.get(0).is_none_or(|host| host.lsm == 0),
            last: true,
        };
        match hold::address(&subject, &request, &addr, port, false) {
            hold::GRANTED => {
                (outcome, answer) = (verdict::ALLOWED, ALLOW);
                noted = state::GRANTED;
            }
            word @ (hold::PARKED | hold::PARKED_AGAIN) => {
                // The end of the system call stops the task.
                // SAFETY: no requirements.
                unsafe { bpf_set_retval(-RESTART) };
                if word == hold::PARKED_AGAIN {
                    return REFUSE;
                }
                outcome = verdict::HELD;
            }
            hold::REJECTED => noted = state::REJECTED,
            _ => noted = state::NOT_HELD,
        }
    }
    // A connect that may go on is recorded at its end, with its outcome.
    if outcome == verdict::ALLOWED && !record_allowed && noted == 0 {
        return answer;
    }
    let what = if op == net::LISTEN {
        kind::BIND
    } else {
        kind::CONNECT
    };
    let action = Action {
        what,
        family,
        addr,
        port,
        socket_type,
        verdict: outcome,
        rule: decision.rule,
        errno: match outcome {
            verdict::HELD => RESTART,
            verdict::DENIED => EPERM,
            _ => 0,
        },
        state: noted,
    };
    action.record(&subject);
    answer
}

/// An action on an internet address, as it is recorded.
pub struct Action {
    pub what: u32,
    pub family: u16,
    pub addr: [u8; 16],
    pub port: u16,
    pub socket_type: u32,
    pub verdict: u32,
    pub rule: u32,
    pub errno: i32,
    /// Bits of the record's state.
    pub state: u32,
}

impl Action {
    /// Records it, folding repetitions.
    #[inline(always)]
    pub fn record(&self, subject: &Subject) {
        if !self.fold(subject) {
            self.record_first(subject);
        }
    }

    /// Whether one like this was recorded before: then it is counted.
    #[inline(always)]
    pub fn fold(&self, subject: &Subject) -> bool {
        self.folds() && emit::fold(subject, &self.key(subject), 0)
    }

    /// Records it as the first of its kind.
    #[inline(always)]
    pub fn record_first(&self, subject: &Subject) {
        let Some(mut draft) = emit::begin(self.what, subject, Task::current()) else {
            return;
        };
        let record = draft.record();
        record.verdict = self.verdict;
        record.rule = self.rule;
        record.family = self.family;
        record.addr = self.addr;
        record.port = self.port;
        record.socket_type = self.socket_type;
        record.errno = self.errno;
        record.state |= self.state;
        if self.folds() {
            draft.submit_first(subject, &self.key(subject), 0);
        } else {
            draft.submit(subject);
        }
    }

    /// Each time that a person is asked counts.
    #[inline(always)]
    fn folds(&self) -> bool {
        self.verdict != verdict::HELD && self.state == 0
    }

    #[inline(always)]
    fn key(&self, subject: &Subject) -> FoldKey {
        // SAFETY: both are sixteen plain bytes.
        let halves = unsafe { core::mem::transmute::<[u8; 16], [u64; 2]>(self.addr) };
        let rest = u64::from(self.port)
            | u64::from(self.family) << 16
            | u64::from(self.socket_type) << 32
            | (self.errno as u64) << 48;
        emit::key(
            subject,
            self.what,
            0,
            self.verdict,
            [halves[0], halves[1], rest],
        )
    }
}
