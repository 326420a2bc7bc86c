//! Tracing by system-call tracepoints, for kernels that refuse BPF LSM and fexit programs. Nothing is decided here: Landlock and
//! the cgroup programs do that. What an agent's memory says is read for the record only, and where the kernel's own
//! view is to be had (an opened descriptor), that is what is recorded.

use agentwatch_common::{
    event::{access, kind, verdict},
    hold::RESTART,
    limits,
    policy::flags,
    stats,
};
use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_probe_read_user, macros::tracepoint,
    programs::TracePointContext,
};

use crate::{
    emit, hold,
    hooks::{
        file::{Action, base, record_file, second_base},
        socket::connected,
    },
    kernel::{
        AT_FDCWD, Entry as _, FMODE_CREATED, FMODE_READ, FMODE_WRITE, O_TRUNC, SockaddrAt, Task,
    },
    maps::count,
    session::Subject,
};

const O_ACCMODE: u32 = 3;
const O_WRONLY: u32 = 1;
const O_RDWR: u32 = 2;
const O_CREAT: u32 = 0o100;
const EACCES: i32 = 13;
const EPERM: i32 = 1;
/// What Landlock gives for a rename or link between directories with different rights.
const EXDEV: i32 = 18;

/// The `n`th argument of the system call: after the common fields and its number, eight bytes each.
#[inline(always)]
fn argument(ctx: &TracePointContext, n: usize) -> u64 {
    // SAFETY: the verifier checks that the field lies in the context.
    unsafe {
        ctx.as_ptr()
            .cast::<u8>()
            .add(16 + 8 * n)
            .cast::<u64>()
            .read_volatile()
    }
}

/// What a finished system call gave back.
#[inline(always)]
fn result(ctx: &TracePointContext) -> i64 {
    argument(ctx, 0) as i64
}

/// What open flags ask for.
#[inline(always)]
pub fn access_of(flags: u32) -> u32 {
    let mut bits = match flags & O_ACCMODE {
        O_WRONLY => access::WRITE,
        O_RDWR => access::READ | access::WRITE,
        _ => access::READ,
    };
    if flags & O_CREAT != 0 {
        bits |= access::CREATE;
    }
    if flags & O_TRUNC != 0 {
        bits |= access::WRITE;
    }
    bits
}

#[inline(always)]
fn enter(fd: i32, pointer: u64, flags: u64) -> u32 {
    if let Some(subject) = Subject::current() {
        // SAFETY: the subject was found by its tag.
        unsafe {
            (*subject.tag).fd = fd;
            (*subject.tag).pointer = pointer;
            (*subject.tag).flags = flags;
        }
    }
    0
}

#[tracepoint]
pub fn sys_enter_open(ctx: TracePointContext) -> u32 {
    enter(AT_FDCWD, argument(&ctx, 0), argument(&ctx, 1))
}

#[tracepoint]
pub fn sys_enter_creat(ctx: TracePointContext) -> u32 {
    enter(
        AT_FDCWD,
        argument(&ctx, 0),
        u64::from(O_CREAT | O_WRONLY | O_TRUNC),
    )
}

#[tracepoint]
pub fn sys_enter_openat(ctx: TracePointContext) -> u32 {
    enter(
        argument(&ctx, 0) as i32,
        argument(&ctx, 1),
        argument(&ctx, 2),
    )
}

#[tracepoint]
pub fn sys_enter_openat2(ctx: TracePointContext) -> u32 {
    let mut how = 0u64;
    // SAFETY: the helper checks the address.
    let error =
        unsafe { bpf_probe_read_user((&raw mut how).cast(), 8, argument(&ctx, 2) as *const _) };
    if error != 0 {
        count(stats::READ_FAILED);
    }
    enter(argument(&ctx, 0) as i32, argument(&ctx, 1), how)
}

/// The end of `open`, `creat`, `openat` and `openat2`.
#[tracepoint]
pub fn sys_exit_open(ctx: TracePointContext) -> u32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    // SAFETY: the subject was found by its tag.
    let (fd, pointer, flags) = unsafe {
        (
            (*subject.tag).fd,
            (*subject.tag).pointer,
            (*subject.tag).flags as u32,
        )
    };
    let result = result(&ctx);
    let task = Task::current();
    if result >= 0 {
        let file = task.file(result as i32);
        if file.0 == 0 {
            return 0;
        }
        let dentry = file.dentry();
        let mode = file.mode();
        let mut bits = 0;
        if mode & FMODE_READ != 0 {
            bits |= if dentry.is_dir() {
                access::LIST
            } else {
                access::READ
            };
        }
        if mode & FMODE_WRITE != 0 {
            bits |= access::WRITE;
        }
        let created = mode & FMODE_CREATED != 0;
        let flags = file.flags();
        // Which rule allowed it, user space finds out: this program has no typed file to walk from.
        let mut action = Action {
            what: kind::CREATE,
            verdict: verdict::ALLOWED,
            rule: u32::MAX,
            access: access::CREATE,
            flags: 0,
            errno: 0,
            dentry,
            inode: dentry.inode(),
            device: dentry.device(),
            state: 0,
        };
        if created {
            record_file(&subject, &action);
        }
        action.what = kind::OPEN;
        action.access = bits;
        action.flags = flags;
        record_file(&subject, &action);
        return 0;
    }
    failed(
        &subject,
        kind::OPEN,
        task,
        fd,
        pointer,
        flags,
        access_of(flags),
        -result as i32,
    );
    0
}

#[tracepoint]
pub fn sys_enter_execve(ctx: TracePointContext) -> u32 {
    enter(AT_FDCWD, argument(&ctx, 0), 0)
}

#[tracepoint]
pub fn sys_enter_execveat(ctx: TracePointContext) -> u32 {
    enter(argument(&ctx, 0) as i32, argument(&ctx, 1), 0)
}

/// The end of `execve` and `execveat`; success was recorded when the program was about to run.
#[tracepoint]
pub fn sys_exit_exec(ctx: TracePointContext) -> u32 {
    let result = result(&ctx);
    if result >= 0 {
        return 0;
    }
    let Some(subject) = Subject::current() else {
        return 0;
    };
    // SAFETY: the subject was found by its tag.
    let (fd, pointer) = unsafe { ((*subject.tag).fd, (*subject.tag).pointer) };
    failed(
        &subject,
        kind::EXEC,
        Task::current(),
        fd,
        pointer,
        0,
        access::EXEC,
        -result as i32,
    );
    0
}

/// An attempt that failed, by the name that was asked for.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "inlined: the fields of one record"
)]
fn failed(
    subject: &Subject,
    what: u32,
    task: Task,
    fd: i32,
    pointer: u64,
    open_flags: u32,
    bits: u32,
    errno: i32,
) {
    let Some(mut draft) = emit::begin(what, subject, task) else {
        return;
    };
    draft.name_from_user(pointer);
    base(&mut draft, task, fd);
    let record = draft.record();
    record.errno = errno;
    record.access = bits;
    record.flags = open_flags;
    // Landlock names no rule: user space judges the path.
    if subject.flags & flags::LANDLOCK != 0 && (errno == EACCES || errno == EPERM) {
        record.verdict = verdict::UNDECIDED;
    }
    draft.submit(subject);
}

#[tracepoint]
pub fn sys_enter_connect(ctx: TracePointContext) -> u32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let tag = subject.tag;
    let len = argument(&ctx, 2) as u32;
    const MOST: u32 = limits::SOCKET_ADDRESS as u32;
    let len = if len > MOST { MOST } else { len };
    // SAFETY: the subject was found by its tag; the helper checks the agent's address.
    unsafe {
        (*tag).fd = argument(&ctx, 0) as i32;
        (*tag).addr_len = 0;
        let address = argument(&ctx, 1) as *const _;
        if bpf_probe_read_user((&raw mut (*tag).addr).cast(), len, address) == 0 {
            (*tag).addr_len = len;
        }
    }
    0
}

#[tracepoint]
pub fn sys_exit_connect(ctx: TracePointContext) -> u32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    // SAFETY: the subject was found by its tag.
    let (fd, address, len) = unsafe {
        (
            (*subject.tag).fd,
            (&raw const (*subject.tag).addr) as u64,
            (*subject.tag).addr_len,
        )
    };
    let result = result(&ctx);
    if result == -i64::from(RESTART) {
        hold::stop();
        return 0;
    }
    let file = Task::current().file(fd);
    let socket_type = if file.0 == 0 { 0 } else { file.socket_type() };
    connected(
        &subject,
        socket_type,
        SockaddrAt(address),
        len,
        -result as i32,
    );
    0
}

/// The end of `sendto` and `sendmsg`: where a program of the cgroup has noted that it waits, the task is stopped.
#[tracepoint]
pub fn sys_exit_send(ctx: TracePointContext) -> u32 {
    if result(&ctx) == -i64::from(RESTART) && Subject::current().is_some() {
        hold::stop();
    }
    0
}

/// Where the second name of a system call that has two starts, and where it stands: kept in the tag's address buffer, which
/// only `connect` uses otherwise.
#[inline(always)]
fn enter_two(fd: i32, pointer: u64, second_fd: i32, second: u64) -> u32 {
    if let Some(subject) = Subject::current() {
        // SAFETY: the subject was found by its tag; the buffer is aligned to eight bytes and longer than two words.
        unsafe {
            (*subject.tag).fd = fd;
            (*subject.tag).pointer = pointer;
            let words = (&raw mut (*subject.tag).addr).cast::<u64>();
            words.write(second_fd as i64 as u64);
            words.add(1).write(second);
        }
    }
    0
}

/// Entries of system calls that act on names: which arguments are the directory descriptor and the path.
macro_rules! names {
    ($($name:ident: ($($fd:literal)?, $path:literal);)+) => {
        $(
            #[tracepoint]
            pub fn $name(ctx: TracePointContext) -> u32 {
                #[allow(unused_mut, unused_assignments, reason = "some calls take a descriptor")]
                let mut fd = AT_FDCWD;
                $(fd = argument(&ctx, $fd) as i32;)?
                enter(fd, argument(&ctx, $path), 0)
            }
        )+
    };
}

names! {
    sys_enter_mkdir: (, 0);
    sys_enter_mkdirat: (0, 1);
    sys_enter_mknod: (, 0);
    sys_enter_mknodat: (0, 1);
    sys_enter_symlink: (, 1);
    sys_enter_symlinkat: (1, 2);
    sys_enter_unlink: (, 0);
    sys_enter_unlinkat: (0, 1);
    sys_enter_rmdir: (, 0);
}

#[tracepoint]
pub fn sys_enter_rename(ctx: TracePointContext) -> u32 {
    enter_two(AT_FDCWD, argument(&ctx, 0), AT_FDCWD, argument(&ctx, 1))
}

/// `renameat`, `renameat2` and `linkat` have the same first four arguments.
#[tracepoint]
pub fn sys_enter_renameat(ctx: TracePointContext) -> u32 {
    enter_two(
        argument(&ctx, 0) as i32,
        argument(&ctx, 1),
        argument(&ctx, 2) as i32,
        argument(&ctx, 3),
    )
}

#[tracepoint]
pub fn sys_exit_create(ctx: TracePointContext) -> u32 {
    finish(&ctx, kind::CREATE, access::CREATE, false)
}

#[tracepoint]
pub fn sys_exit_delete(ctx: TracePointContext) -> u32 {
    finish(&ctx, kind::DELETE, access::DELETE, false)
}

#[tracepoint]
pub fn sys_exit_rename(ctx: TracePointContext) -> u32 {
    finish(&ctx, kind::RENAME, access::DELETE | access::CREATE, true)
}

#[tracepoint]
pub fn sys_exit_link(ctx: TracePointContext) -> u32 {
    finish(&ctx, kind::LINK, access::CREATE, true)
}

/// The end of a system call that acts on names, by the names that were asked for.
#[inline(always)]
fn finish(ctx: &TracePointContext, what: u32, bits: u32, two: bool) -> u32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let result = result(ctx);
    let errno = if result < 0 { -result as i32 } else { 0 };
    // SAFETY: the subject was found by its tag.
    let (fd, pointer, second_fd, second) = unsafe {
        let words = (&raw const (*subject.tag).addr).cast::<u64>();
        (
            (*subject.tag).fd,
            (*subject.tag).pointer,
            words.read() as i32,
            words.add(1).read(),
        )
    };
    let task = Task::current();
    let Some(mut draft) = emit::begin(what, &subject, task) else {
        return 0;
    };
    draft.name_from_user(pointer);
    if two {
        draft.second_name_from_user(second);
    }
    base(&mut draft, task, fd);
    if two {
        second_base(&mut draft, task, second_fd);
    }
    let record = draft.record();
    record.errno = errno;
    record.access = bits;
    if subject.flags & flags::LANDLOCK != 0 && (errno == EACCES || errno == EPERM || errno == EXDEV)
    {
        record.verdict = verdict::UNDECIDED;
    }
    draft.submit(&subject);
    0
}
