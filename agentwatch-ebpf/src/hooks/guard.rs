//! The host around a session: what root inside it could do to everything else. Each operation is refused unless the policy
//! names it in `guard.allow`; what a session does to its own processes, mounts, keys and shared memory is its own affair.

use agentwatch_common::{
    event::{kind, verdict},
    limits,
    policy::{Session, guard, rule},
    stats,
};
use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, task_struct},
    btf_maps::HashMap,
    helpers::bpf_get_current_pid_tgid,
    macros::lsm,
    programs::LsmContext,
};

use super::mount;
use crate::{
    emit, hold,
    kernel::{self, DentryAt, Entry as _, SuperBlockAt, Task},
    maps::{HOST, OBJECTS, OWNERS, POLICIES},
    session::{Subject, add32, answer, of_task},
};

const EPERM: i32 = 1;
const SIGCONT: u32 = 18;
/// include/linux/ptrace.h: to change a process, and not only to look at it.
const PTRACE_MODE_ATTACH: u32 = 2;
/// `PTRACE_MODE_NOAUDIT`: the kernel asks for itself what to show.
const PTRACE_MODE_NOAUDIT: u32 = 4;
/// `CAP_OPT_NOAUDIT`.
const CAP_OPT_NOAUDIT: u32 = 2;

/// Refuses an operation, unless the policy allows it, and records that.
#[inline(always)]
pub fn refuse(operation: u32, target: u32, detail: u64) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    decide(&subject, operation, target, detail, 0, true)
}

/// The same for a subject that is known, about a file where `dentry` is not 0.
#[inline(always)]
pub fn decide(
    subject: &Subject,
    operation: u32,
    target: u32,
    detail: u64,
    dentry: u64,
    tell: bool,
) -> i32 {
    let mut rule = rule::GUARDS + operation;
    let mut outcome = verdict::DENIED;
    // SAFETY: entries are replaced whole.
    if let Some(policy) = unsafe { POLICIES.get(subject.policy) }
        && policy.guards & 1 << operation != 0
    {
        rule = policy.guard_rules[operation as usize];
        outcome = verdict::ALLOWED;
    } else if subject.monitors() {
        outcome = verdict::AUDITED;
    }
    if tell {
        record(
            subject,
            &Guarded {
                operation,
                rule,
                verdict: outcome,
                target,
                detail,
                dentry,
                family: 0,
                socket_type: 0,
            },
        );
    }
    answer(outcome == verdict::DENIED, EPERM)
}

/// A guarded operation, as it is recorded.
pub struct Guarded {
    pub operation: u32,
    pub rule: u32,
    pub verdict: u32,
    pub target: u32,
    pub detail: u64,
    pub dentry: u64,
    pub family: u16,
    pub socket_type: u32,
}

/// Records it, folding repetitions.
#[inline(never)]
pub fn record(subject: &Subject, guarded: &Guarded) -> u32 {
    let key = emit::key(
        subject,
        kind::GUARD,
        guarded.operation,
        guarded.verdict,
        [
            u64::from(guarded.target),
            guarded.detail,
            guarded.dentry ^ u64::from(guarded.family),
        ],
    );
    if emit::fold(subject, &key, 0) {
        return 0;
    }
    let Some(mut draft) = emit::begin(kind::GUARD, subject, Task::current()) else {
        return 0;
    };
    if guarded.dentry != 0 {
        let dentry = DentryAt(guarded.dentry);
        draft.path(dentry);
        draft.record().dev = dentry.device();
    }
    let record = draft.record();
    record.verdict = guarded.verdict;
    record.rule = guarded.rule;
    record.flags = guarded.operation;
    record.second_inode = u64::from(guarded.target);
    record.inode = guarded.detail;
    record.family = guarded.family;
    record.socket_type = guarded.socket_type;
    if guarded.verdict == verdict::DENIED {
        record.errno = EPERM;
    }
    draft.submit_first(subject, &key, 0);
    0
}

// Processes outside the session.

#[inline(always)]
fn outside(operation: u32, task: *mut task_struct, detail: u64, tell: bool) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    if of_task(task) == subject.number {
        return 0;
    }
    decide(&subject, operation, Task(task).pid(), detail, 0, tell)
}

/// ptrace, process_vm_readv, pidfd_getfd, and what of /proc shows a process's memory, files and environment.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(ctx: LsmContext) -> i32 {
    let mode: u32 = ctx.arg(1);
    outside(
        guard::PTRACE,
        ctx.arg(0),
        u64::from(mode),
        mode & PTRACE_MODE_NOAUDIT == 0,
    )
}

/// A process asks its parent to trace it. A tracer outside the session could stop the process, and read and write all it has.
#[lsm(hook = "ptrace_traceme")]
pub fn ptrace_traceme(ctx: LsmContext) -> i32 {
    outside(guard::PTRACE, ctx.arg(0), 0, true)
}

/// A command that waits for a person goes on when the daemon says so, and not when another process does.
#[lsm(hook = "task_kill")]
pub fn task_kill_held(ctx: LsmContext) -> i32 {
    let signal: u32 = ctx.arg(2);
    if signal != SIGCONT {
        return 0;
    }
    answer(waits(ctx.arg(0)), EPERM)
}

/// Nor is it changed while it waits.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_held(ctx: LsmContext) -> i32 {
    let mode: u32 = ctx.arg(1);
    if mode & PTRACE_MODE_ATTACH == 0 {
        return 0;
    }
    answer(waits(ctx.arg(0)), EPERM)
}

/// Whether a task is a command that waits for a person, and it is not the daemon that turns to it. That somebody else does is counted.
#[inline(always)]
fn waits(task: *mut task_struct) -> bool {
    let pid = Task(task).pid();
    if !hold::is_held_command(pid) {
        return false;
    }
    let caller = (bpf_get_current_pid_tgid() >> 32) as u32;
    if HOST.get(0).is_some_and(|host| host.daemon == caller) {
        return false;
    }
    hold::urged(pid);
    true
}

/// Signals; number 0 only asks whether a process is there.
#[lsm(hook = "task_kill")]
pub fn task_kill(ctx: LsmContext) -> i32 {
    let signal: u32 = ctx.arg(2);
    if signal == 0 {
        return 0;
    }
    outside(guard::SIGNAL, ctx.arg(0), u64::from(signal), true)
}

/// Signals that are sent for a descriptor (`F_SETOWN`), in the name of who said to whom: what sends them in the end may be anybody, or
/// the kernel.
#[lsm(hook = "file_send_sigiotask")]
pub fn file_send_sigiotask(ctx: LsmContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    // SAFETY: entries are replaced whole.
    let Some(number) = (unsafe { OWNERS.get(ctx.arg::<u64>(1)) }) else {
        return 0;
    };
    let Some(subject) = Subject::of_session(*number) else {
        return 0;
    };
    if of_task(task) == subject.number {
        return 0;
    }
    let signal: u32 = ctx.arg(2);
    let pid = Task(task).pid();
    decide(&subject, guard::SIGNAL, pid, u64::from(signal), 0, true)
}

/// Who a descriptor's events are told to is about to be set: refused to a session that has had enough of them remembered.
#[lsm(hook = "file_fcntl")]
pub fn file_fcntl(ctx: LsmContext) -> i32 {
    /// include/uapi/linux/fcntl.h.
    const F_SETFL: u32 = 4;
    const FASYNC: u64 = 0o20000;
    const F_UNLCK: u64 = 2;
    /// F_SETOWN, F_SETOWN_EX and F_NOTIFY; 0 sets nobody.
    const SET: [u32; 3] = [8, 15, 1026];
    /// F_SETLEASE, F_SETDELEG.
    const LEASE: [u32; 2] = [1024, 1040];
    let (command, argument): (u32, u64) = (ctx.arg(1), ctx.arg(2));
    let sets = (command == F_SETFL && argument & FASYNC != 0)
        || (SET.contains(&command) && argument != 0)
        || (LEASE.contains(&command) && argument != F_UNLCK);
    if sets { may_own_descriptor() } else { 0 }
}

/// Whether the session may have another descriptor's owner remembered.
#[inline(always)]
pub fn may_own_descriptor() -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    // SAFETY: a field of a map's value.
    if unsafe { owners(subject.session).read_volatile() } < limits::SHARE {
        return 0;
    }
    decide(&subject, guard::SIGNAL, 0, 0, 0, true)
}

/// A descriptor's events are to be told to somebody. It cannot be refused here any more: who could not be remembered does not go on.
#[lsm(hook = "file_set_fowner")]
pub fn file_set_fowner(ctx: LsmContext) -> i32 {
    let owner = kernel::file_owner(ctx.arg(0));
    match Subject::current() {
        Some(subject) => {
            if !take_in(&OWNERS, owner, &subject, owners, 2 * limits::SHARE)
                && decide(&subject, guard::SIGNAL, 0, 0, 0, true) != 0
            {
                hold::kill();
            }
        }
        None => take_out(&OWNERS, owner, owners),
    }
    0
}

/// A table of whose something is, by its address.
type Owned<const LEN: usize> = HashMap<u64, u32, LEN, { BPF_F_NO_PREALLOC as usize }>;

/// Where a session's share of such a table is counted.
type Share = fn(*mut Session) -> *mut u32;

#[inline(always)]
fn objects(session: *mut Session) -> *mut u32 {
    // SAFETY: a field of a map's value.
    unsafe { &raw mut (*session).objects }
}

#[inline(always)]
fn owners(session: *mut Session) -> *mut u32 {
    // SAFETY: as above.
    unsafe { &raw mut (*session).owners }
}

/// Enters that something is the session's. Whether there was room for it, in the table and in the session's share of it, of `most`.
#[inline(always)]
fn take_in<const LEN: usize>(
    table: &Owned<LEN>,
    object: u64,
    subject: &Subject,
    share: Share,
    most: u32,
) -> bool {
    // SAFETY: entries are replaced whole.
    if unsafe { table.get(object) }.is_some_and(|owner| *owner == subject.number) {
        return true;
    }
    // What stood at the same address before may have been another session's.
    take_out(table, object, share);
    let share = share(subject.session);
    // SAFETY: a field of a map's value.
    let is_within = unsafe { share.read_volatile() } < most;
    if is_within
        && table
            .insert(object, subject.number, BPF_NOEXIST.into())
            .is_ok()
    {
        add32(share, 1);
        return true;
    }
    // Another thread of the session's may have been first.
    // SAFETY: as above.
    if unsafe { table.get(object) }.is_some_and(|owner| *owner == subject.number) {
        return true;
    }
    crate::maps::count(if LEN == limits::OWNERS {
        stats::OWNERS_FULL
    } else {
        stats::OBJECTS_FULL
    });
    false
}

/// What stood there is gone, from the share of whose it was too.
#[inline(always)]
fn take_out<const LEN: usize>(table: &Owned<LEN>, object: u64, share: Share) {
    // SAFETY: entries are replaced whole.
    let Some(owner) = (unsafe { table.get(object) }) else {
        return;
    };
    let owner = *owner;
    // Another processor may have been first.
    if table.remove(object).is_ok()
        && let Some(subject) = Subject::of_session(owner)
    {
        add32(share(subject.session), u32::MAX);
    }
}

#[lsm(hook = "task_setnice")]
pub fn task_setnice(ctx: LsmContext) -> i32 {
    outside(guard::PRIORITY, ctx.arg(0), 0, true)
}

#[lsm(hook = "task_setioprio")]
pub fn task_setioprio(ctx: LsmContext) -> i32 {
    outside(guard::PRIORITY, ctx.arg(0), 1, true)
}

#[lsm(hook = "task_setscheduler")]
pub fn task_setscheduler(ctx: LsmContext) -> i32 {
    outside(guard::PRIORITY, ctx.arg(0), 2, true)
}

#[lsm(hook = "task_movememory")]
pub fn task_movememory(ctx: LsmContext) -> i32 {
    outside(guard::PRIORITY, ctx.arg(0), 3, true)
}

#[lsm(hook = "task_setrlimit")]
pub fn task_setrlimit(ctx: LsmContext) -> i32 {
    outside(guard::PRIORITY, ctx.arg(0), 4, true)
}

// System calls that reach the whole host.

#[lsm(hook = "bpf")]
pub fn bpf(ctx: LsmContext) -> i32 {
    let command: u32 = ctx.arg(0);
    refuse(guard::BPF, 0, u64::from(command))
}

#[lsm(hook = "perf_event_open")]
pub fn perf_event_open(_ctx: LsmContext) -> i32 {
    refuse(guard::PERF, 0, 0)
}

#[lsm(hook = "uring_override_creds")]
pub fn uring_override_creds(_ctx: LsmContext) -> i32 {
    refuse(guard::CREDENTIALS, 0, 0)
}

/// A tun device that is there already: its owner needs no capability. To make one needs the network namespace's, which `capable` decides.
#[lsm(hook = "tun_dev_open")]
pub fn tun_dev_open(_ctx: LsmContext) -> i32 {
    refuse(guard::CAPABILITY, 0, u64::from(CAP_NET_ADMIN))
}

/// The kernel's log by its system call, which asks for no capability where `dmesg_restrict` is off. Its size says nothing.
#[lsm(hook = "syslog")]
pub fn syslog(ctx: LsmContext) -> i32 {
    const SYSLOG_ACTION_SIZE_BUFFER: u32 = 10;
    let action: u32 = ctx.arg(0);
    if action == SYSLOG_ACTION_SIZE_BUFFER {
        return 0;
    }
    refuse(guard::CAPABILITY, 0, u64::from(CAP_SYSLOG))
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYSLOG: u32 = 34;
const CAP_SYS_ADMIN: u32 = 21;
/// Capabilities over the host, by number (include/uapi/linux/capability.h): network administration, modules, raw I/O, process accounting,
/// reboot and kexec, time, terminals, device nodes, audit control, MAC, the kernel's log, wake-ups, suspend, audit, tracing, BPF,
/// checkpoints.
const OVER_THE_HOST: u64 = 1 << CAP_NET_ADMIN
    | 1 << 16
    | 1 << 17
    | 1 << 20
    | 1 << 22
    | 1 << 25
    | 1 << 26
    | 1 << 27
    | 1 << 30
    | 1 << 32
    | 1 << 33
    | 1 << 34
    | 1 << 35
    | 1 << 36
    | 1 << 37
    | 1 << 38
    | 1 << 39
    | 1 << 40;

/// Capabilities that were part of CAP_SYS_ADMIN once: the kernel's log, tracing, BPF, checkpoints.
const SPLIT_OFF: u64 = 1 << 34 | 1 << 38 | 1 << 39 | 1 << 40;

/// Capabilities, where they are over the host: those that a session has in a user namespace of its own reach nothing outside it.
#[lsm(hook = "capable")]
pub fn capable(ctx: LsmContext) -> i32 {
    let capability: u32 = ctx.arg(2);
    let interesting = capability == CAP_SYS_ADMIN
        || (capability < 64 && OVER_THE_HOST & 1 << (capability & 63) != 0);
    if !interesting {
        return 0;
    }
    let Some(subject) = Subject::current() else {
        return 0;
    };
    if !kernel::is_hosts_namespace(ctx.arg(1)) {
        return 0;
    }
    let mut operation = guard::CAPABILITY;
    // Where one of these is refused the kernel may ask for CAP_SYS_ADMIN in its place.
    let call = (kernel::system_call() as u32).wrapping_add(1);
    let is_split_off = capability < 64 && SPLIT_OFF & 1 << (capability & 63) != 0;
    // SAFETY: the subject was found by its tag.
    let stood_in = unsafe {
        core::mem::replace(
            &mut (*subject.tag).stands_in,
            if is_split_off { call } else { 0 },
        )
    };
    if capability == CAP_SYS_ADMIN && stood_in != call {
        operation = administers();
        if operation == guard::COUNT as u32 {
            return 0;
        }
    }
    let options: u32 = ctx.arg(3);
    decide(
        &subject,
        operation,
        0,
        u64::from(capability),
        0,
        options & CAP_OPT_NOAUDIT == 0,
    )
}

/// What a system call that asks for `CAP_SYS_ADMIN` is guarded as; `guard::COUNT` for those that have hooks of their own or
/// harm nobody (making namespaces, say).
#[inline(always)]
fn administers() -> u32 {
    /// Changes of mounts (arch/x86/entry/syscalls/syscall_64.tbl): pivot_root, mount, umount2, open_tree, move_mount, fsopen, fsconfig,
    /// fsmount, fspick, mount_setattr, open_tree_attr.
    const MOUNTS: [u64; 11] = [155, 165, 166, 428, 429, 430, 431, 432, 433, 442, 467];
    /// ioctl, madvise and process_madvise (which take pages from the host), syslog (which asks for this where CAP_SYSLOG was refused),
    /// sethostname, setdomainname, swapon, swapoff, quotactl, lookup_dcookie, fanotify_init, open_by_handle_at (of namespaces), setns,
    /// io_uring_setup (whose thread goes by it) and io_uring_enter (they hand commands to drivers), quotactl_fd; write, writev,
    /// pwrite64, pwritev, pwritev2, sendfile, splice, io_submit, sendto, sendmsg and sendmmsg (netlink, and who a message is from).
    const HOST: [u64; 27] = [
        16, 28, 440, 103, 170, 171, 167, 168, 179, 212, 300, 304, 308, 425, 426, 443, 1, 20, 18,
        296, 328, 40, 275, 209, 44, 46, 307,
    ];
    let call = kernel::system_call();
    // A request of io_uring's that waited for another runs in whatever system call its task is in, or on its way out of one.
    let untold = call == kernel::COMPAT_SYSCALL || Task::current().may_act_for_a_ring();
    if untold || HOST.contains(&call) {
        return guard::CAPABILITY;
    }
    if MOUNTS.contains(&call) && mount::in_the_hosts_mounts() {
        return guard::MOUNT;
    }
    guard::COUNT as u32
}

// Objects by the session that made them.

#[inline(always)]
fn made(operation: u32, object: u64) -> i32 {
    match Subject::current() {
        Some(subject) => {
            if take_in(&OBJECTS, object, &subject, objects, limits::SHARE) {
                0
            } else {
                decide(&subject, operation, 0, 0, 0, true)
            }
        }
        // What stood at the same address before is gone.
        None => {
            gone(object);
            0
        }
    }
}

#[inline(always)]
fn gone(object: u64) {
    take_out(&OBJECTS, object, objects);
}

#[inline(always)]
fn foreign(operation: u32, object: u64, detail: u64) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    // SAFETY: entries are replaced whole.
    if unsafe { OBJECTS.get(object) }.is_some_and(|owner| *owner == subject.number) {
        return 0;
    }
    decide(&subject, operation, 0, detail, 0, true)
}

/// The session that mounted a file system, 0 where none is known to have.
#[inline(always)]
pub fn owner(super_block: SuperBlockAt) -> u32 {
    // SAFETY: entries are replaced whole.
    unsafe { OBJECTS.get(super_block.0) }.copied().unwrap_or(0)
}

#[lsm(hook = "sb_alloc_security")]
pub fn sb_alloc_security(ctx: LsmContext) -> i32 {
    made(guard::MOUNT, ctx.arg(0))
}

#[lsm(hook = "sb_free_security")]
pub fn sb_free_security(ctx: LsmContext) -> i32 {
    gone(ctx.arg(0));
    0
}

#[lsm(hook = "key_alloc")]
pub fn key_alloc(ctx: LsmContext) -> i32 {
    const REQUEST_KEY: u64 = 249;
    let key: u64 = ctx.arg(0);
    let refusal = made(guard::KEYRING, key);
    if refusal != 0 {
        return refusal;
    }
    // The kernel would start a program of the host's, outside the session, and hand it what the session asks for. What the kernel asks
    // for by itself (a network file system's names) is its own affair.
    let call = kernel::system_call();
    if kernel::is_key_request(key) && (call == REQUEST_KEY || call == kernel::COMPAT_SYSCALL) {
        let refusal = refuse(guard::KEYRING, 0, 0);
        if refusal != 0 {
            // It comes to nothing, and not to `key_free` either.
            gone(key);
        }
        return refusal;
    }
    0
}

/// A keyring for the parent (`KEYCTL_SESSION_TO_PARENT`), which nothing else makes credentials of this kind for. The kernel makes `ENOMEM`
/// of what is refused here.
#[lsm(hook = "cred_alloc_blank")]
pub fn cred_alloc_blank(_ctx: LsmContext) -> i32 {
    outside(guard::KEYRING, Task::current().parent().0, 0, true)
}

#[lsm(hook = "key_free")]
pub fn key_free(ctx: LsmContext) -> i32 {
    gone(kernel::raw_argument(aya_ebpf::EbpfContext::as_ptr(&ctx), 0));
    0
}

#[lsm(hook = "key_permission")]
pub fn key_permission(ctx: LsmContext) -> i32 {
    // The lowest bit of a key reference says whether the key is possessed.
    // Its type is declared and not defined: the verifier allows no look at it.
    let key = kernel::raw_argument(aya_ebpf::EbpfContext::as_ptr(&ctx), 0) & !1;
    foreign(guard::KEYRING, key, u64::from(kernel::key_serial(key)))
}

#[lsm(hook = "shm_alloc_security")]
pub fn shm_alloc_security(ctx: LsmContext) -> i32 {
    made(guard::IPC, ctx.arg(0))
}

#[lsm(hook = "sem_alloc_security")]
pub fn sem_alloc_security(ctx: LsmContext) -> i32 {
    made(guard::IPC, ctx.arg(0))
}

#[lsm(hook = "msg_queue_alloc_security")]
pub fn msg_queue_alloc_security(ctx: LsmContext) -> i32 {
    made(guard::IPC, ctx.arg(0))
}

#[lsm(hook = "shm_free_security")]
pub fn shm_free_security(ctx: LsmContext) -> i32 {
    gone(ctx.arg(0));
    0
}

#[lsm(hook = "sem_free_security")]
pub fn sem_free_security(ctx: LsmContext) -> i32 {
    gone(ctx.arg(0));
    0
}

#[lsm(hook = "msg_queue_free_security")]
pub fn msg_queue_free_security(ctx: LsmContext) -> i32 {
    gone(ctx.arg(0));
    0
}

/// The kernel makes `EACCES` of what is refused here.
#[lsm(hook = "ipc_permission")]
pub fn ipc_permission(ctx: LsmContext) -> i32 {
    foreign(guard::IPC, ctx.arg(0), 0)
}

/// Control of an object; none is named where only figures are asked for.
#[inline(always)]
fn control(ctx: &LsmContext) -> i32 {
    let object: u64 = kernel::raw_argument(aya_ebpf::EbpfContext::as_ptr(ctx), 0);
    if object == 0 {
        return 0;
    }
    foreign(guard::IPC, object, 1)
}

#[lsm(hook = "shm_shmctl")]
pub fn shm_shmctl(ctx: LsmContext) -> i32 {
    control(&ctx)
}

#[lsm(hook = "sem_semctl")]
pub fn sem_semctl(ctx: LsmContext) -> i32 {
    control(&ctx)
}

#[lsm(hook = "msg_queue_msgctl")]
pub fn msg_queue_msgctl(ctx: LsmContext) -> i32 {
    control(&ctx)
}
