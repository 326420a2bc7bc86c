//! Processes: membership at fork and on entering a cgroup, execution, end. On every kernel.

use agentwatch_common::{
    event::{kind, verdict},
    policy::flags,
};
use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::bpf_send_signal,
    macros::{btf_tracepoint, lsm},
    programs::{BtfTracePointContext, LsmContext},
};

use crate::{
    emit,
    kernel::{self, DentryAt, TaskAt},
    session::{self, Subject},
    verdict as policy,
};

const SIGKILL: u32 = 9;
const CLONE_THREAD: u64 = 0x0001_0000;
const EACCES: i32 = 13;

/// A task was made, by whatever means (io_uring's workers too). It inherits its maker's session, or has been made
/// right into a session's cgroup.
#[btf_tracepoint(function = "task_newtask")]
pub fn task_newtask(ctx: BtfTracePointContext) -> i32 {
    let child: *mut task_struct = ctx.arg(0);
    let clone_flags: u64 = ctx.arg(1);
    match Subject::current() {
        Some(subject) => {
            let image = unsafe { (*subject.tag).image };
            session::tag(child, subject.number, image);
            if clone_flags & CLONE_THREAD == 0 {
                announce(&subject, TaskAt(child as u64));
            }
        }
        None => {
            let number = session::of_cgroup(TaskAt(child as u64).cgroup());
            if number != 0 {
                session::tag(child, number, 0);
            } else if clone_flags & CLONE_THREAD == 0 {
                session::forget_process(TaskAt(child as u64));
            }
        }
    }
    0
}

/// The same, where the kernel takes LSM programs. Since 7.0 a tracepoint's program can be preempted, and the kernel then leaves out its
/// run for the next task on that processor; LSM programs are never left out, and no task is to escape its session.
#[lsm(hook = "task_alloc")]
pub fn task_alloc(ctx: LsmContext) -> i32 {
    if let Some(subject) = Subject::current() {
        // SAFETY: the subject was found by its tag.
        let image = unsafe { (*subject.tag).image };
        let _ = session::inherit(ctx.arg(0), subject.number, image);
    }
    0
}

/// Lets user space know of a process before its first action.
#[inline(always)]
fn announce(subject: &Subject, child: TaskAt) {
    if let Some(mut draft) = emit::begin(kind::FORK, subject, child) {
        draft.path(TaskAt::current().cwd());
        draft.submit_unnumbered();
    }
}

/// A task was moved to another cgroup. Moving into a session's makes it a member; moving out does not end that.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    let cgroup: u64 = ctx.arg(0);
    let task: *mut task_struct = ctx.arg(2);
    let number = session::of_cgroup(kernel::CgroupAt(cgroup).id());
    if number != 0 {
        session::tag(task, number, 0);
    }
    0
}

/// A program is about to run its first instruction.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    executed(&ctx)
}

/// The same again: since 7.0 the kernel leaves a program's run out when another task on the processor is in the middle of it. Of two
/// programs one runs; what the first has recorded the second leaves alone.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec_again(ctx: BtfTracePointContext) -> i32 {
    executed(&ctx)
}

#[inline(always)]
fn executed(ctx: &BtfTracePointContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let exec_id = TaskAt::current().exec_id();
    // SAFETY: the subject was found by its tag.
    if unsafe { core::mem::replace(&mut (*subject.tag).exec_id, exec_id) } == exec_id {
        return 0;
    }
    let bprm: *const core::ffi::c_void = ctx.arg(2);
    let dentry = kernel::binprm_file(bprm).dentry();
    let (device, inode) = (dentry.device(), dentry.inode());
    // SAFETY: the subject was found by its tag.
    unsafe { (*subject.tag).image = u64::from(device) << 40 ^ inode };

    let decision = policy::file_at(&subject, dentry.address(), policy::EXEC);
    let mut outcome = verdict::ALLOWED;
    if !decision.allows() {
        if subject.monitors() {
            // With LSM hooks, opening the file has reported it already.
            outcome = if subject.flags & flags::LANDLOCK != 0 {
                verdict::AUDITED
            } else {
                verdict::ALLOWED
            };
        } else if subject.flags & flags::LANDLOCK != 0 {
            // Without LSM hooks nobody refused it: it dies before its first instruction.
            unsafe { bpf_send_signal(SIGKILL) };
            outcome = verdict::DENIED;
        }
    }
    let task = TaskAt::current();
    let Some(mut draft) = emit::begin(kind::EXEC, &subject, task) else {
        return 0;
    };
    draft.arguments(task);
    draft.path(DentryAt(dentry.address()));
    let cwd = task.cwd();
    draft.second_path(cwd);
    let record = draft.record();
    record.verdict = outcome;
    record.rule = decision.rule;
    record.dev = device;
    record.inode = inode;
    record.second_dev = cwd.device();
    if outcome == verdict::DENIED {
        record.errno = EACCES;
    }
    draft.submit(&subject);
    0
}

/// A task ends; with the last of a process's, the process.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(_ctx: BtfTracePointContext) -> i32 {
    ended()
}

/// The same again: see [`sched_process_exec_again`].
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit_again(_ctx: BtfTracePointContext) -> i32 {
    ended()
}

#[inline(always)]
fn ended() -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    // SAFETY: the subject was found by its tag.
    if unsafe { core::mem::replace(&mut (*subject.tag).ended, 1) } != 0 {
        return 0;
    }
    let task = TaskAt::current();
    let ending = task.ending();
    if ending.last
        && let Some(mut draft) = emit::begin(kind::EXIT, &subject, task)
    {
        let record = draft.record();
        record.flags = ending.status;
        record.duration = record.ktime.wrapping_sub(record.start);
        draft.submit(&subject);
    }
    session::leave(&subject, task, ending.last);
    0
}
