//! Parking a task until a person decides.
//!
//! A system call is refused with an error that makes the kernel do it once more when the task goes on, and the task is stopped. Then
//! it finds what was granted, or is parked again: going on by itself gains it nothing. A command is stopped at the end of its
//! execution, before its first instruction, where its arguments are what it will see; going on by itself is refused to it by
//! `task_kill`, and user space freezes it.

use core::ffi::c_void;

use agentwatch_common::{
    event::kind,
    hold::{GrantKey, Hold, object},
    limits,
    policy::{effect, right},
    stats,
};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{
        bpf_ktime_get_boot_ns, bpf_loop, bpf_probe_read_kernel_str, bpf_probe_read_user,
        bpf_probe_read_user_str, bpf_send_signal, bpf_send_signal_thread,
    },
};

use crate::{
    emit,
    kernel::{self, DentryAt, Entry as _, Task},
    maps::{GRANTS, HELD, HOLDS, URING_OPENS, count},
    memory,
    session::{Subject, add64},
};

/// What came of asking.
pub const GRANTED: u32 = 0;
/// The task is being stopped: the system call is to be done once more.
pub const PARKED: u32 = 1;
/// The same, and it was parked for the same before.
pub const PARKED_AGAIN: u32 = 2;
/// A person rejected it.
pub const REJECTED: u32 = 3;
/// It cannot wait: refused.
pub const IMPOSSIBLE: u32 = 4;
/// Nobody has said anything.
const UNHEARD: u32 = 5;

const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;
/// arch/x86/entry/syscalls/syscall_64.tbl.
const SYS_CONNECT: u64 = 42;
const SYS_SENDTO: u64 = 44;
const SYS_SENDMSG: u64 = 46;
const SYS_IO_URING_ENTER: u64 = 426;

/// The action that is to wait.
pub struct Request {
    pub what: u32,
    /// Bits `1 << right::…`.
    pub rights: u32,
    pub rule: u32,
    /// Whether its system call can be done once more.
    pub repeatable: bool,
    /// Whether it passes when this is granted: then what was granted for one action is used up.
    pub last: bool,
}

/// Asks for a file, which has no inode yet where it is to be made.
#[inline(never)]
pub fn file(subject: &Subject, request: &Request, dentry: u64) -> u32 {
    let Some(scratch) = emit::take() else {
        count(stats::NO_SCRATCH);
        return IMPOSSIBLE;
    };
    // SAFETY: the slot is ours, and long enough.
    let hold = unsafe { &mut *(&raw mut (*scratch).data).cast::<Hold>() };
    begin(hold, subject, request);
    let dentry = DentryAt(dentry);
    let (inode, device) = (dentry.inode(), dentry.device());
    // What was granted before there was a file holds for the file that has the name.
    let object = &mut hold.key.object;
    object.kind = object::NAME;
    object.dev = device;
    object.inode = dentry.parent().inode();
    object.detail = 0;
    // SAFETY: the helper writes at most the name's length.
    unsafe {
        bpf_probe_read_kernel_str(
            object.name.as_mut_ptr().cast(),
            limits::NAME as u32,
            dentry.name() as *const _,
        )
    };
    let mut word = heard(hold, 1 << request.what, request.last);
    if word == UNHEARD && inode != 0 {
        let object = &mut hold.key.object;
        object.kind = object::FILE;
        object.inode = inode;
        object.detail = u64::from(dentry.generation());
        memory::zero(&mut object.name);
        word = heard(hold, 1 << request.what, request.last);
    }
    if word == UNHEARD {
        word = if request.repeatable && is_repeatable() != 0 {
            park(hold)
        } else {
            count(stats::NOT_PARKED);
            IMPOSSIBLE
        };
    }
    emit::give_back(scratch);
    word
}

/// Asks for an internet address. `stops`: whether the program may stop the task; otherwise the end of the system call does.
#[inline(never)]
pub fn address(
    subject: &Subject,
    request: &Request,
    addr: &[u8; 16],
    port: u16,
    stops: bool,
) -> u32 {
    let Some(scratch) = emit::take() else {
        count(stats::NO_SCRATCH);
        return IMPOSSIBLE;
    };
    // SAFETY: the slot is ours, and long enough.
    let hold = unsafe { &mut *(&raw mut (*scratch).data).cast::<Hold>() };
    begin(hold, subject, request);
    let object = &mut hold.key.object;
    object.kind = object::ADDRESS;
    object.dev = 0;
    object.inode = 0;
    object.detail = u64::from(port);
    for (i, byte) in addr.iter().enumerate() {
        object.name[i] = *byte;
    }
    let mut word = heard(hold, 1 << request.what, request.last);
    if word == UNHEARD {
        word = if request.repeatable && is_network_call() {
            if stops { park(hold) } else { note(hold) }
        } else {
            count(stats::NOT_PARKED);
            IMPOSSIBLE
        };
    }
    emit::give_back(scratch);
    word
}

/// Asks for a command whose program is in place, and whose arguments begin at `arguments` of its memory.
#[inline(never)]
pub fn command(
    subject: &Subject,
    request: &Request,
    device: u32,
    inode: u64,
    arguments: &[u64; 2],
) -> u32 {
    let Some(scratch) = emit::take() else {
        count(stats::NO_SCRATCH);
        return IMPOSSIBLE;
    };
    // SAFETY: the slot is ours, and long enough.
    let hold = unsafe { &mut *(&raw mut (*scratch).data).cast::<Hold>() };
    begin(hold, subject, request);
    let [start, end] = *arguments;
    let len = end.wrapping_sub(start);
    let object = &mut hold.key.object;
    object.kind = object::COMMAND;
    object.dev = device;
    object.inode = inode;
    object.detail = len;
    let part = if len > limits::NAME as u64 {
        limits::NAME as u64
    } else {
        len
    };
    // SAFETY: the helper checks the address and writes at most the name's length.
    let read = unsafe {
        bpf_probe_read_user(
            object.name.as_mut_ptr().cast(),
            part as u32,
            start as *const _,
        )
    };
    let mut word = UNHEARD;
    if read != 0 {
        count(stats::READ_FAILED);
        word = IMPOSSIBLE;
    } else if len <= limits::NAME as u64 {
        word = heard(hold, 1 << request.what, request.last);
    }
    if word == UNHEARD {
        let task = Task::current();
        // What traces it decides which signals reach it.
        word = if task.can_stop() && !task.is_traced() {
            park(hold)
        } else {
            count(stats::NOT_PARKED);
            IMPOSSIBLE
        };
    }
    emit::give_back(scratch);
    word
}

/// Whether a process waits as a command does: stopped before its first instruction.
#[inline(always)]
pub fn is_held_command(pid: u32) -> bool {
    // SAFETY: entries are replaced whole.
    unsafe { HOLDS.get(pid) }.is_some_and(|hold| hold.key.object.kind == object::COMMAND)
}

/// A command that waits was told to go on by somebody else than the daemon.
#[inline(always)]
pub fn urged(pid: u32) {
    if let Some(hold) = HOLDS.get_ptr_mut(pid) {
        // SAFETY: an entry of a map.
        add64(unsafe { &raw mut (*hold).tries }, 1);
    }
}

/// A command that waits runs: somebody told it to go on, where no program refuses that. It is stopped again the first time, which is
/// before its first instruction, and ended the next time.
#[inline(always)]
pub fn runs() {
    // No session's: nearly every fault of a host.
    if !Task::current().has_storage() {
        return;
    }
    let Some(hold) = HOLDS.get_ptr_mut(Task::current().tid()) else {
        return;
    };
    // SAFETY: an entry of a map, of the current task.
    unsafe {
        if (*hold).key.object.kind != object::COMMAND {
            return;
        }
        let signal = if (*hold).tries == 0 { SIGSTOP } else { SIGKILL };
        add64(&raw mut (*hold).tries, 1);
        if bpf_send_signal(signal) != 0 {
            count(stats::NOT_PARKED);
        }
    }
}

/// Ends the current process before it goes on, where nothing can be refused any more.
#[inline(always)]
pub fn kill() {
    // SAFETY: no requirements.
    if unsafe { bpf_send_signal(SIGKILL) } != 0 {
        count(stats::NOT_KILLED);
    }
}

/// A task ends: it waits for nothing any more.
#[inline(always)]
pub fn forget(tid: u32) {
    // SAFETY: only its session is read, which stays.
    let Some(hold) = (unsafe { HOLDS.get(tid) }) else {
        return;
    };
    let held = held(hold.key.session);
    // User space may have been first.
    if HOLDS.remove(tid).is_ok() && !held.is_null() {
        add64(held, u64::MAX);
    }
}

/// Stops the current task.
#[inline(always)]
pub fn stop() -> bool {
    // SAFETY: no requirements.
    unsafe { bpf_send_signal_thread(SIGSTOP) == 0 }
}

#[inline(always)]
fn begin(hold: &mut Hold, subject: &Subject, request: &Request) {
    let task = Task::current();
    hold.key.session = subject.number;
    hold.key.task = 0;
    memory::zero(&mut hold.key.object.name);
    hold.rights = request.rights;
    hold.what = request.what;
    hold.rule = request.rule;
    hold.policy = subject.policy;
    hold.pid = task.pid();
    hold.tid = task.tid();
    hold.start = task.start();
    hold.tries = 0;
    // SAFETY: no requirements.
    hold.since = unsafe { bpf_ktime_get_boot_ns() };
}

/// What a person has said: to this task, or to all of the session.
#[inline(never)]
fn heard(hold: &mut Hold, operation: u32, last: bool) -> u32 {
    let tid = hold.tid;
    hold.key.task = tid;
    let mut word = look(hold, operation, last);
    hold.key.task = 0;
    if word == UNHEARD {
        word = look(hold, operation, false);
    }
    if word != UNHEARD && (last || word == REJECTED) {
        forget(tid);
    }
    word
}

#[inline(always)]
fn look(hold: &Hold, operation: u32, last: bool) -> u32 {
    let key: &GrantKey = &hold.key;
    let Some(grant) = GRANTS.get_ptr_mut(key) else {
        return UNHEARD;
    };
    // SAFETY: an entry of a map; user space replaces entries whole. A task's own grant is used by that task alone.
    unsafe {
        let grant = &mut *grant;
        if hold.rights & !grant.rights != 0
            || hold.since >= grant.until
            || (grant.start != 0 && grant.start != hold.start)
        {
            return UNHEARD;
        }
        let rejected = grant.effect != u32::from(effect::ALLOW);
        if key.task != 0 {
            if grant.used & operation != 0 {
                return UNHEARD;
            }
            if last || rejected {
                grant.used |= operation;
            }
        }
        if rejected { REJECTED } else { GRANTED }
    }
}

/// Parks the task.
#[inline(always)]
fn park(hold: &Hold) -> u32 {
    let word = note(hold);
    if word == IMPOSSIBLE || stop() {
        return word;
    }
    count(stats::NOT_PARKED);
    forget(hold.tid);
    IMPOSSIBLE
}

/// Writes down that the task waits.
#[inline(never)]
fn note(hold: &Hold) -> u32 {
    if let Some(old) = HOLDS.get_ptr_mut(hold.tid)
        // SAFETY: an entry of a map, which only its own task writes; both are made of words.
        && unsafe { is_same(old, hold) }
    {
        // SAFETY: as above.
        add64(unsafe { &raw mut (*old).tries }, 1);
        return PARKED_AGAIN;
    }
    forget(hold.tid);
    let held = held(hold.key.session);
    // SAFETY: a value of a map. What a session before left behind in the slot may have taken it below nothing.
    if held.is_null()
        || unsafe { held.read_volatile() } as i64 >= limits::HOLD_SHARE as i64
        || HOLDS.insert(hold.tid, hold, 0).is_err()
    {
        count(stats::HOLDS_FULL);
        return IMPOSSIBLE;
    }
    add64(held, 1);
    PARKED
}

/// Where it is counted how many tasks of a session wait.
#[inline(always)]
fn held(session: u32) -> *mut u64 {
    let slot = session & (limits::SESSIONS as u32 - 1);
    HELD.get_ptr_mut(slot).unwrap_or(core::ptr::null_mut())
}

/// Whether both wait for the same: everything up to and with the policy.
#[inline(always)]
unsafe fn is_same(a: *const Hold, b: *const Hold) -> bool {
    const WORDS: usize = size_of::<GrantKey>() / 8 + 2;
    for word in 0..WORDS {
        // SAFETY: the caller says that both are holds.
        let same = unsafe {
            a.cast::<u64>().add(word).read_volatile() == b.cast::<u64>().add(word).read_volatile()
        };
        if !same {
            return false;
        }
    }
    true
}

/// Whether the system call in hand gives its error to the kernel's signal handling, which does it once more. A request of io_uring's
/// would end with the error, and one that waited for another runs on the way out of any system call.
/// A function of its own, for the verifier.
#[inline(never)]
fn is_repeatable() -> u32 {
    u32::from(
        Task::current().can_stop()
            && kernel::system_call() != SYS_IO_URING_ENTER
            // SAFETY: only looked at whether it is there.
            && unsafe { URING_OPENS.get(bpf_get_current_pid_tgid()) }.is_none(),
    )
}

/// The same of what connects and sends; of `sendmmsg` a part may have been sent.
#[inline(always)]
fn is_network_call() -> bool {
    let call = kernel::system_call();
    Task::current().can_stop() && (call == SYS_CONNECT || call == SYS_SENDTO || call == SYS_SENDMSG)
}

/// What rights an action on a file needs, as a person is asked for them.
#[inline(always)]
pub fn rights_of(what: u32, bits: u32) -> u32 {
    use agentwatch_common::event::access;
    if what == kind::EXEC {
        return 1 << right::EXEC;
    }
    let mut rights = 0;
    if bits & (access::READ | access::LIST | access::WATCH | access::CREATE) != 0 {
        rights |= 1 << right::READ;
    }
    // Who makes a file may read it.
    if bits & !(access::READ | access::LIST | access::WATCH | access::RECEIVE) != 0 {
        rights |= 1 << right::WRITE;
    }
    rights
}

/// Skips the first `n` strings of the current task's arguments. Not 0 where all of them could be read.
#[inline(never)]
pub fn skip(arguments: &mut [u64; 2], n: u32) -> u32 {
    let Some(scratch) = emit::take() else {
        count(stats::NO_SCRATCH);
        return 0;
    };
    let mut skipping = Skipping {
        at: arguments[0],
        // SAFETY: the slot is ours.
        data: unsafe { (&raw mut (*scratch).data).cast() },
        failed: 0,
    };
    let many = n > MOST_SKIPPED;
    let n = if many { MOST_SKIPPED } else { n };
    // SAFETY: the callback takes a number and the context that stands here.
    unsafe { bpf_loop(n, skip_one as *mut c_void, (&raw mut skipping).cast(), 0) };
    emit::give_back(scratch);
    arguments[0] = skipping.at;
    u32::from(skipping.failed == 0 && !many)
}

/// More strings than the kernel puts before a script's arguments.
const MOST_SKIPPED: u32 = 16;

#[repr(C)]
struct Skipping {
    at: u64,
    data: *mut u8,
    failed: u64,
}

extern "C" fn skip_one(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `skip` gave, with scratch memory that is longer than what is read.
    unsafe {
        let skipping = &mut *context.cast::<Skipping>();
        let len = bpf_probe_read_user_str(
            skipping.data.cast(),
            limits::ARGV as u32,
            skipping.at as *const _,
        );
        // What is longer than all that is looked at hides what comes after it.
        if len <= 0 || len >= limits::ARGV as i64 {
            skipping.failed = 1;
            return 1;
        }
        skipping.at += len as u64;
    }
    0
}
