//! Processes: membership at fork and on entering a cgroup, execution, end. On every kernel.

use agentwatch_common::{
    event::{kind, state, verdict},
    policy::{effect, flags, rule},
};
use aya_ebpf::{
    bindings::task_struct,
    macros::{btf_tracepoint, lsm},
    programs::{BtfTracePointContext, LsmContext},
};

use crate::{
    emit, hold,
    kernel::{self, Dentry, Entry as _, Task},
    session::{self, Subject, answer},
    verdict::{self as policy, Decision},
};

const CLONE_THREAD: u64 = 0x0001_0000;
const EACCES: i32 = 13;
const ENOMEM: i32 = 12;

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
                announce(&subject, Task(child));
            }
        }
        None => {
            let number = session::of_cgroup(Task(child).cgroup());
            if number != 0 {
                session::tag(child, number, 0);
            } else if clone_flags & CLONE_THREAD == 0 {
                session::forget_process(Task(child));
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
        // One that cannot be known as the session's is not made.
        if session::inherit(ctx.arg(0), subject.number, image).is_none() {
            return answer(true, ENOMEM);
        }
    }
    0
}

/// Lets user space know of a process before its first action.
#[inline(always)]
fn announce(subject: &Subject, child: Task) {
    if let Some(mut draft) = emit::begin(kind::FORK, subject, child) {
        draft.cwd(Task::current().cwd());
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

/// An execution begins, with the file that was asked for. Where that is a script, another one runs in the end.
#[lsm(hook = "bprm_creds_for_exec")]
pub fn bprm_creds_for_exec(ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let bprm: *const core::ffi::c_void = ctx.arg(0);
    let dentry = kernel::binprm_file(bprm).dentry();
    let decision = policy::file(&subject, dentry, policy::EXEC);
    // SAFETY: the subject was found by its tag.
    unsafe {
        (*subject.tag).script_inode = dentry.inode();
        (*subject.tag).script_dev = dentry.device();
        (*subject.tag).script_argc = kernel::binprm_argc(bprm as u64);
        (*subject.tag).script_effect = u32::from(decision.effect);
        (*subject.tag).script_rule = decision.rule;
    }
    0
}

/// A program is about to run its first instruction: it is decided on. What is recorded of it is another program's affair, because
/// the verifier would follow that once for each way through this one.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec_judge(ctx: BtfTracePointContext) -> i32 {
    judged(&ctx)
}

/// The same again: since 7.0 the kernel leaves a program's run out when another task on the processor is in the middle of it. Of two
/// programs one runs; what the first has done the second leaves alone.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec_judge_again(ctx: BtfTracePointContext) -> i32 {
    judged(&ctx)
}

#[inline(always)]
fn judged(ctx: &BtfTracePointContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let task = Task::current();
    let exec_id = task.exec_id();
    // SAFETY: the subject was found by its tag.
    if unsafe { core::mem::replace(&mut (*subject.tag).judged, exec_id) } == exec_id {
        return 0;
    }
    let bprm: *const core::ffi::c_void = ctx.arg(2);
    let dentry = kernel::binprm_file(bprm).dentry();
    let command = judge(&subject, bprm as u64, dentry, task);
    let decision = command.decision;
    let mut outcome = verdict::ALLOWED;
    let mut noted = 0;
    // With LSM hooks, opening the file has refused and recorded what its rule denies.
    let is_new = subject.flags & flags::LANDLOCK != 0 || command.by_file == 0 || decision.holds();
    if !decision.allows() && is_new {
        if subject.monitors() {
            outcome = verdict::AUDITED;
        } else if decision.holds() {
            let request = hold::Request {
                what: kind::EXEC,
                rights: policy::EXEC,
                rule: decision.rule,
                repeatable: true,
                last: true,
            };
            let (device, inode) = (command.device, command.inode);
            match hold::command(&subject, &request, device, inode, &command.arguments) {
                hold::GRANTED => noted = state::GRANTED,
                hold::PARKED | hold::PARKED_AGAIN => outcome = verdict::HELD,
                hold::REJECTED => {
                    outcome = verdict::DENIED;
                    noted = state::REJECTED;
                }
                _ => {
                    outcome = verdict::DENIED;
                    noted = state::NOT_HELD;
                }
            }
        } else {
            outcome = verdict::DENIED;
        }
    }
    if outcome == verdict::DENIED {
        // Nobody refused it before: it dies before its first instruction.
        hold::kill();
    }
    // SAFETY: the subject was found by its tag.
    unsafe {
        (*subject.tag).outcome = outcome;
        (*subject.tag).outcome_rule = decision.rule;
        (*subject.tag).noted = noted;
    }
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    executed(&ctx)
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec_again(ctx: BtfTracePointContext) -> i32 {
    executed(&ctx)
}

#[inline(always)]
fn executed(ctx: &BtfTracePointContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let task = Task::current();
    let exec_id = task.exec_id();
    // SAFETY: the subject was found by its tag.
    if unsafe { core::mem::replace(&mut (*subject.tag).exec_id, exec_id) } == exec_id {
        return 0;
    }
    let bprm: *const core::ffi::c_void = ctx.arg(2);
    let dentry = kernel::binprm_file(bprm).dentry();
    let (device, inode) = (dentry.device(), dentry.inode());
    // SAFETY: as above.
    let (mut outcome, rule, mut noted) = unsafe {
        let tag = subject.tag;
        (*tag).image = u64::from(device) << 40 ^ inode;
        if (*tag).judged == exec_id {
            ((*tag).outcome, (*tag).outcome_rule, (*tag).noted)
        } else {
            (verdict::UNDECIDED, (*tag).script_rule, 0)
        }
    };
    if outcome == verdict::UNDECIDED {
        // Both programs that decide were left out. What may depend on them does not run.
        // SAFETY: as above.
        let holds = unsafe { (*subject.tag).script_effect } == u32::from(effect::HOLD);
        let by_trace = subject.flags & (flags::COMMANDS | flags::LANDLOCK) != 0;
        outcome = verdict::ALLOWED;
        if (holds || by_trace) && !subject.monitors() {
            outcome = verdict::DENIED;
            noted = state::NOT_HELD;
            hold::kill();
        }
    }
    let Some(mut draft) = emit::begin(kind::EXEC, &subject, task) else {
        return 0;
    };
    draft.arguments(task);
    draft.path(dentry);
    let cwd = task.cwd();
    draft.second_path(cwd);
    let record = draft.record();
    record.verdict = outcome;
    record.rule = rule;
    record.dev = device;
    record.inode = inode;
    record.second_dev = cwd.device();
    record.state |= noted;
    if outcome == verdict::DENIED {
        record.errno = EACCES;
    }
    draft.submit(&subject);
    0
}

/// A program needs a page that it does not have yet, as every one does for its first instruction.
#[btf_tracepoint(function = "page_fault_user")]
pub fn page_fault_user(_ctx: BtfTracePointContext) -> i32 {
    hold::runs();
    0
}

/// What is said of a command, and of which file and arguments.
struct Command {
    decision: Decision,
    /// Not 0 where the file alone decided, and not its arguments.
    by_file: u32,
    device: u32,
    inode: u64,
    /// Where its arguments after the first stand in its memory.
    arguments: [u64; 2],
}

impl Command {
    /// Takes what the verifier knows of the decision: it would otherwise follow all that comes after once for each.
    #[inline(always)]
    fn settle(&mut self, subject: &Subject) {
        let effect = u32::from(self.decision.effect) | self.by_file << 8;
        let (effect, rule) = subject.forget(effect, self.decision.rule);
        self.decision = Decision {
            effect: effect as u8,
            rule,
        };
        self.by_file = effect >> 8;
    }
}

/// Decides on a command by its file and its arguments, and where it is a script on that and on what runs it: the stricter holds.
#[inline(always)]
fn judge(subject: &Subject, bprm: u64, dentry: Dentry, task: Task) -> Command {
    let (start, end) = task.arguments();
    let mut program = Command {
        decision: ALLOWED,
        by_file: 1,
        device: dentry.device(),
        inode: dentry.inode(),
        arguments: [start, end],
    };
    // SAFETY: the subject was found by its tag.
    let (inode, device, argc, begun_with) = unsafe {
        let tag = subject.tag;
        (
            (*tag).script_inode,
            (*tag).script_dev,
            (*tag).script_argc,
            Decision {
                effect: (*tag).script_effect as u8,
                rule: (*tag).script_rule,
            },
        )
    };
    let is_script = inode != 0 && (inode != program.inode || device != program.device);
    program.decision = if inode != 0 && !is_script {
        // It has been decided on when the execution began.
        begun_with
    } else {
        policy::file_at(subject, dentry.address(), policy::EXEC)
    };
    if subject.flags & flags::COMMANDS == 0
        && !program.decision.holds()
        && !(is_script && begun_with.holds())
    {
        return program;
    }
    let mut readable = hold::skip(&mut program.arguments, 1);
    by_arguments(subject, &mut program);
    let (path, interpreter) = kernel::binprm_names(bprm);
    // Where what was asked for by its name has its arguments.
    let mut named = program.arguments;
    if is_script {
        // The kernel has put what runs it, and perhaps one argument for that, before the script's path.
        let added = kernel::binprm_argc(bprm).wrapping_sub(argc);
        readable &= hold::skip(&mut named, added);
        let mut script = Command {
            decision: begun_with,
            by_file: 1,
            device,
            inode,
            arguments: named,
        };
        script.settle(subject);
        by_arguments(subject, &mut script);
        let stricter = program.decision.stricter(script.decision);
        if stricter.effect != program.decision.effect || program.decision.allows() {
            program = script;
        }
        program.settle(subject);
    } else if inode == 0 && path != interpreter {
        // A script, where no LSM program saw how it began: it goes by its name, and stands second or third.
        readable &= hold::skip(&mut named, 1);
        by_name(subject, path, &named, &mut program);
        readable &= hold::skip(&mut named, 1);
    }
    by_name(subject, path, &named, &mut program);
    // Arguments that cannot be looked at are nobody's to allow.
    if readable == 0 && subject.flags & flags::COMMANDS != 0 {
        program.decision.effect = effect::DENY;
        program.by_file = 0;
        program.settle(subject);
    }
    program
}

/// What a rule on a command's arguments says comes before what is said of its file, but where that is denied.
#[inline(always)]
fn by_arguments(subject: &Subject, command: &mut Command) {
    if subject.flags & flags::COMMANDS == 0 || command.decision.effect == effect::DENY {
        return;
    }
    let mut said = command.decision;
    if policy::command(
        subject.policy,
        command.device,
        command.inode,
        &command.arguments,
        &mut said,
    ) != 0
    {
        command.decision = said;
        command.by_file = 0;
    }
    command.settle(subject);
}

/// The same of a rule that names no file, by the path that the execution was asked for by: the stricter holds.
#[inline(always)]
fn by_name(subject: &Subject, path: u64, arguments: &[u64; 2], command: &mut Command) {
    if subject.flags & flags::COMMANDS == 0 || command.decision.effect == effect::DENY {
        return;
    }
    let mut said = ALLOWED;
    if policy::command_by_name(subject.policy, path, arguments, &mut said) != 0 && !said.allows() {
        let stricter = command.decision.stricter(said);
        if stricter.effect != command.decision.effect {
            command.by_file = 0;
        }
        command.decision = stricter;
    }
    command.settle(subject);
}

const ALLOWED: Decision = Decision {
    effect: effect::ALLOW,
    rule: rule::FILES_DEFAULT,
};

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
    let task = Task::current();
    let ending = task.ending();
    if ending.last
        && let Some(mut draft) = emit::begin(kind::EXIT, &subject, task)
    {
        let record = draft.record();
        record.flags = ending.status;
        record.duration = record.ktime.wrapping_sub(record.start);
        draft.submit(&subject);
    }
    hold::forget(task.tid());
    session::leave(&subject, task, ending.last);
    0
}
