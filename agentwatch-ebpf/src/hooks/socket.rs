//! The outcome of connects, where the kernel takes fexit programs: any family, any way in.

use agentwatch_common::{
    event::{kind, state, verdict},
    policy::{net, rule},
};
use aya_ebpf::{macros::fexit, programs::FExitContext};

use crate::{
    emit,
    hooks::net::{mapped, record, words},
    kernel::{FileAt, TaskAt, read},
    session::Subject,
    verdict as policy,
};

const EPERM: i32 = 1;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

#[fexit(function = "__sys_connect_file")]
pub fn sys_connect_file(ctx: FExitContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let file = FileAt(ctx.arg(0));
    let address: u64 = ctx.arg(1);
    let len = ctx.arg::<u64>(2) as u32;
    let errno = -(ctx.arg::<u64>(4) as i32);
    connected(&subject, file.socket_type(), address, len, errno);
    0
}

/// Records a connect that is over, from the address that the kernel used; both backends end here.
#[inline(always)]
pub fn connected(subject: &Subject, socket_type: u32, address: u64, len: u32, errno: i32) {
    let family: u16 = if len >= 2 { read(address) } else { 0 };
    if family == AF_INET || family == AF_INET6 {
        let port = u16::from_be(read(address + 2));
        let addr = if family == AF_INET {
            mapped(read(address + 4))
        } else {
            words([
                read(address + 8),
                read(address + 12),
                read(address + 16),
                read(address + 20),
            ])
        };
        let decision = policy::address(
            subject.policy,
            net::CONNECT,
            addr,
            port,
            rule::NETWORK_DEFAULT,
        );
        // The cgroup program has recorded what it refused, and what it would have. What came through all the same is
        // recorded as what it is.
        let came_through = !subject.monitors() && errno != EPERM;
        if decision.allows() || came_through {
            record(
                subject,
                kind::CONNECT,
                family,
                addr,
                port,
                socket_type,
                verdict::ALLOWED,
                decision.rule,
                errno,
            );
        }
        return;
    }
    let task = TaskAt::current();
    let Some(mut draft) = emit::begin(kind::CONNECT, subject, task) else {
        return;
    };
    if family == AF_UNIX && len > 2 {
        draft.name_bytes((address + 2) as *const u8, len - 2);
        let cwd = task.cwd();
        draft.path(cwd);
        draft.record().dev = cwd.device();
    }
    let record = draft.record();
    record.state |= state::NAME_ONLY;
    record.family = family;
    record.socket_type = socket_type;
    record.errno = errno;
    draft.submit(subject);
}
