//! Opens and executions that failed before there was a file to decide on. Success and denial are recorded by `file_open`.
//!
//! Where the daemon has found out what a failed open shows of itself ([`agentwatch_common::opens`]), `put_unused_fd` is looked at, with
//! the two that do not pass it: executions, and what io_uring opens, which need not take a descriptor. Elsewhere it is every look-up of
//! the host, by its result.

use core::ffi::c_void;

use agentwatch_common::{
    event::{access, kind},
    hold::RESTART,
    limits,
    opens::{REGISTERS, UringOpen, WORDS},
    stats,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str},
    },
    macros::{fentry, fexit, kprobe},
    programs::{FEntryContext, FExitContext, ProbeContext},
};

use super::{super::syscall::access_of, DENIED, base};
use crate::{
    emit,
    kernel::{self, Task},
    maps::{OPENS, URING_OPENS, count},
    session::Subject,
};

/// In `struct pt_regs`: the registers that a call leaves alone stand first, from r15 down to rbx; further down the stack pointer
/// (arch/x86/include/asm/ptrace.h).
const STACK_POINTER: usize = 19;
/// What an execution opens its file with.
const EXEC_FLAGS: u32 = kernel::O_LARGEFILE | kernel::OPEN_EXEC;

/// What an attempt was about.
struct Attempt {
    errno: i32,
    /// Address of the name, in the kernel's memory.
    name: u64,
    /// The directory's descriptor that it starts at.
    fd: i32,
    flags: u32,
}

/// Called where an open has failed.
#[kprobe]
pub fn put_unused_fd(ctx: ProbeContext) -> u32 {
    match Subject::current() {
        Some(subject) => given_back(&subject, ctx.as_ptr()),
        None => show(ctx.as_ptr()),
    }
}

/// Reads what stands in registers and on the stack.
#[inline(always)]
fn words(context: *mut c_void, to: *mut u32) -> bool {
    let registers = context.cast::<u64>();
    for register in 0..REGISTERS / 2 {
        // SAFETY: a register of the context, and a word of the caller's.
        unsafe {
            to.cast::<u64>()
                .add(register)
                .write_volatile(registers.add(register).read_volatile());
        }
    }
    // SAFETY: as above; the helper checks the address.
    unsafe {
        let stack = registers.add(STACK_POINTER).read_volatile();
        let len = 4 * (WORDS - REGISTERS) as u32;
        bpf_probe_read_kernel(to.add(REGISTERS).cast(), len, stack as *const _) == 0
    }
}

#[inline(never)]
fn given_back(subject: &Subject, context: *mut c_void) -> u32 {
    // SAFETY: the subject was found by its tag.
    if unsafe { core::mem::replace(&mut (*subject.tag).denied, 0) } == DENIED {
        return 0;
    }
    let Some(opens) = OPENS.get_ptr(0) else {
        return 0;
    };
    // SAFETY: a slot of an array map.
    let site = unsafe { (&raw const (*opens).site).read_volatile() };
    let Some(scratch) = emit::take() else {
        // Whether this was an open at all is not known.
        count(stats::NO_SCRATCH);
        return 0;
    };
    // SAFETY: the slot is ours.
    let found = unsafe { (&raw mut (*scratch).data).cast::<u32>() };
    let mut attempt = None;
    if words(context, found) {
        let word = |index: u32| {
            // SAFETY: one of the words.
            unsafe { found.add(index as usize & (WORDS - 1)).read_volatile() }
        };
        let double = |index: u32| {
            let index = index & (WORDS - 2) as u32;
            u64::from(word(index)) | u64::from(word(index + 1)) << 32
        };
        if double(REGISTERS as u32) == site.at {
            attempt = Some(Attempt {
                errno: (word(site.error) as i32).wrapping_neg(),
                name: kernel::filename(double(site.name)),
                fd: kernel::open_directory(),
                flags: word(site.flags),
            });
        }
    } else {
        count(stats::READ_FAILED);
    }
    emit::give_back(scratch);
    if let Some(attempt) = attempt {
        failed(subject, &attempt);
    }
    0
}

/// Shows the daemon what an open of its own left behind.
#[inline(always)]
fn show(context: *mut c_void) -> u32 {
    let Some(opens) = OPENS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a slot of an array map.
    let opens = unsafe { &mut *opens };
    if opens.learner != bpf_get_current_pid_tgid() as u32 {
        return 0;
    }
    if !words(context, (&raw mut opens.words).cast()) {
        return 0;
    }
    let mut names = 0;
    for index in (0..WORDS).step_by(2) {
        // SAFETY: two words, aligned to eight bytes.
        let address = unsafe {
            (&raw const opens.words)
                .cast::<u64>()
                .add(index / 2)
                .read_volatile()
        };
        if kernel::begins(address, opens.expected) {
            names |= 1 << index;
        }
    }
    opens.names = names;
    opens.shown += 1;
    0
}

/// What an execution opens: without a descriptor.
#[fexit(function = "do_open_execat")]
pub fn do_open_execat(ctx: FExitContext) -> i32 {
    let Some(errno) = kernel::error_of(ctx.arg::<u64>(3)) else {
        return 0;
    };
    if let Some(subject) = Subject::current() {
        let attempt = Attempt {
            errno,
            name: kernel::filename(ctx.arg(1)),
            fd: ctx.arg::<u64>(0) as i32,
            flags: EXEC_FLAGS,
        };
        failed(&subject, &attempt);
    }
    0
}

/// What io_uring opens, whether it takes a descriptor or not: its name is gone at the end.
#[fentry(function = "io_openat2")]
pub fn io_openat2(ctx: FEntryContext) -> i32 {
    if Subject::current().is_some() {
        keep(kernel::IoOpenAt::of(ctx.arg(0)));
    }
    0
}

#[inline(never)]
fn keep(open: kernel::IoOpenAt) -> u32 {
    let Some(scratch) = emit::take() else {
        count(stats::NO_SCRATCH);
        return 0;
    };
    // SAFETY: the slot is ours, and long enough; the helper writes at most the name's length.
    unsafe {
        let asked = (&raw mut (*scratch).data).cast::<UringOpen>();
        (*asked).fd = open.fd();
        (*asked).flags = open.flags();
        let name = (&raw mut (*asked).name).cast();
        bpf_probe_read_kernel_str(name, limits::ARGV as u32, open.name() as *const _);
        if URING_OPENS
            .insert(bpf_get_current_pid_tgid(), &*asked, 0)
            .is_err()
        {
            count(stats::URING_OPENS_FULL);
        }
    }
    emit::give_back(scratch);
    0
}

#[fexit(function = "io_openat2")]
pub fn io_openat2_end(ctx: FExitContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let thread = bpf_get_current_pid_tgid();
    let Some(asked) = URING_OPENS.get_ptr(thread) else {
        return 0;
    };
    let result = kernel::uring_result(ctx.arg(0));
    // Else it is tried again by a thread that may wait.
    let is_done = ctx.arg::<u64>(2) as i32 == 0;
    if is_done && result < 0 {
        // SAFETY: an entry of a map, this thread's own.
        let attempt = unsafe {
            Attempt {
                errno: result.wrapping_neg(),
                name: (&raw const (*asked).name) as u64,
                fd: (*asked).fd,
                flags: (*asked).flags,
            }
        };
        failed(&subject, &attempt);
    }
    let _ = URING_OPENS.remove(thread);
    0
}

/// The end of every path look-up that was to open a file. Every open of the host passes here: what is left to be done is a function of
/// its own, for its registers.
#[fexit(function = "do_filp_open")]
pub fn do_filp_open(ctx: FExitContext) -> i32 {
    match kernel::error_of(ctx.arg::<u64>(3)) {
        Some(errno) => found_nothing(ctx.as_ptr(), errno),
        None => 0,
    }
}

#[inline(never)]
fn found_nothing(ctx: *mut c_void, errno: i32) -> i32 {
    let ctx = FExitContext::new(ctx);
    if let Some(subject) = Subject::current() {
        let attempt = Attempt {
            errno,
            name: kernel::filename(ctx.arg(1)),
            fd: ctx.arg::<u64>(0) as i32,
            flags: kernel::open_flag(ctx.arg(2)),
        };
        failed(&subject, &attempt);
    }
    0
}

/// Records an attempt, but for one that has been recorded as denied, or begins anew.
#[inline(always)]
fn failed(subject: &Subject, attempt: &Attempt) {
    // SAFETY: the subject was found by its tag.
    let denied = unsafe { core::mem::replace(&mut (*subject.tag).denied, 0) };
    if denied == DENIED || attempt.errno == RESTART {
        return;
    }
    let (what, bits) = if attempt.flags & kernel::OPEN_EXEC != 0 {
        (kind::EXEC, access::EXEC)
    } else {
        (kind::OPEN, access_of(attempt.flags))
    };
    let task = Task::current();
    let Some(mut draft) = emit::begin(what, subject, task) else {
        return;
    };
    draft.name_from_kernel(attempt.name);
    base(&mut draft, task, attempt.fd);
    let record = draft.record();
    record.errno = attempt.errno;
    record.access = bits;
    record.flags = attempt.flags;
    draft.submit(subject);
}
