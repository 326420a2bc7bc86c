//! Files, where the kernel takes BPF LSM programs: each operation is decided on the identity of what it acts on.

use agentwatch_common::event::{access, kind, state, verdict};
use aya_ebpf::{
    macros::{fexit, lsm},
    programs::{FExitContext, LsmContext},
};

use crate::{
    emit::{self, Draft},
    kernel::{self, Dentry, DentryAt, File, TaskAt},
    maps::TAGS,
    session::Subject,
    verdict::{self as policy, Decision},
};

const EACCES: i32 = 13;

/// Opening, for reading, writing, listing or executing; by any system call, and by io_uring.
#[lsm(hook = "file_open")]
pub fn file_open(ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let file = File(ctx.arg(0));
    let flags = file.flags();
    let mode = file.mode();
    let dentry = file.dentry();
    let (rights, access) = if flags & kernel::OPEN_EXEC != 0 {
        (policy::EXEC, access::EXEC)
    } else {
        let mut rights = 0;
        let mut bits = 0;
        if mode & kernel::FMODE_READ != 0 {
            rights |= policy::READ;
            bits |= if dentry.is_dir() {
                access::LIST
            } else {
                access::READ
            };
        }
        if mode & kernel::FMODE_WRITE != 0 || flags & kernel::O_TRUNC != 0 {
            rights |= policy::WRITE;
            bits |= access::WRITE;
        }
        // Access mode 3, for ioctl alone, is neither: it is held to both.
        if rights == 0 {
            rights = policy::READ | policy::WRITE;
            bits = access::READ | access::WRITE;
        }
        (rights, bits)
    };
    let (rights, access) = subject.forget(rights, access);
    let decision = policy::file(&subject, dentry, rights);
    // A program that may run is recorded when it does.
    let execs = access & access::EXEC != 0;
    if execs && decision.allows() {
        return 0;
    }
    let what = if execs { kind::EXEC } else { kind::OPEN };
    answer(&subject, what, dentry, access, flags, decision)
}

/// Creating a file: decided on its directory, because there is no file yet.
#[lsm(hook = "inode_create")]
pub fn inode_create(ctx: LsmContext) -> i32 {
    change(kind::CREATE, access::CREATE, Dentry(ctx.arg(1)))
}

#[lsm(hook = "inode_mkdir")]
pub fn inode_mkdir(ctx: LsmContext) -> i32 {
    change(kind::CREATE, access::CREATE, Dentry(ctx.arg(1)))
}

#[lsm(hook = "inode_mknod")]
pub fn inode_mknod(ctx: LsmContext) -> i32 {
    change(kind::CREATE, access::CREATE, Dentry(ctx.arg(1)))
}

#[lsm(hook = "inode_symlink")]
pub fn inode_symlink(ctx: LsmContext) -> i32 {
    change(kind::CREATE, access::CREATE, Dentry(ctx.arg(1)))
}

#[lsm(hook = "inode_unlink")]
pub fn inode_unlink(ctx: LsmContext) -> i32 {
    change(kind::DELETE, access::DELETE, Dentry(ctx.arg(1)))
}

#[lsm(hook = "inode_rmdir")]
pub fn inode_rmdir(ctx: LsmContext) -> i32 {
    change(kind::DELETE, access::DELETE, Dentry(ctx.arg(1)))
}

/// Renaming needs both sides: it takes a name away and makes one, and may replace a file.
#[lsm(hook = "inode_rename")]
pub fn inode_rename(ctx: LsmContext) -> i32 {
    change_two(
        kind::RENAME,
        access::DELETE | access::CREATE,
        Dentry(ctx.arg(1)),
        Dentry(ctx.arg(3)),
    )
}

/// A hard link gives a file a second place. The session needs to be allowed to write the file itself: or it would
/// carry what it may not touch to where it may.
#[lsm(hook = "inode_link")]
pub fn inode_link(ctx: LsmContext) -> i32 {
    change_two(
        kind::LINK,
        access::CREATE,
        Dentry(ctx.arg(0)),
        Dentry(ctx.arg(2)),
    )
}

/// Mode, owner, size, times. Since 6.9 the hook's first argument is the mount's id map; the loader picks the one that fits.
#[lsm(hook = "inode_setattr")]
pub fn inode_setattr(ctx: LsmContext) -> i32 {
    change(kind::ATTR, access::ATTR, Dentry(ctx.arg(0)))
}

#[lsm(hook = "inode_setattr")]
pub fn inode_setattr_idmap(ctx: LsmContext) -> i32 {
    change(kind::ATTR, access::ATTR, Dentry(ctx.arg(1)))
}

/// The end of every path look-up that was to open a file. Success and denial have been recorded by `file_open`;
/// what is left are the attempts that failed before.
#[fexit(function = "do_filp_open")]
pub fn do_filp_open(ctx: FExitContext) -> i32 {
    let Some(errno) = kernel::error_of(ctx.arg::<u64>(3)) else {
        // A denial of before that came by another way than this function is not this look-up's.
        let tag = TAGS.get(kernel::current());
        if !tag.is_null() {
            // SAFETY: not null.
            unsafe { (*tag).denied = 0 };
        }
        return 0;
    };
    let Some(subject) = Subject::current() else {
        return 0;
    };
    // SAFETY: the subject was found by its tag.
    let denied = unsafe { core::mem::replace(&mut (*subject.tag).denied, 0) };
    if denied != 0 {
        return 0;
    }
    let flags = kernel::open_flag(ctx.arg(2));
    let (what, bits) = if flags & kernel::OPEN_EXEC != 0 {
        (kind::EXEC, access::EXEC)
    } else {
        (kind::OPEN, super::syscall::access_of(flags))
    };
    let task = TaskAt::current();
    let Some(mut draft) = emit::begin(what, &subject, task) else {
        return 0;
    };
    draft.name_from_kernel(kernel::filename(ctx.arg(1)));
    base(&mut draft, task, ctx.arg::<u64>(0) as i32);
    let record = draft.record();
    record.errno = errno;
    record.access = bits;
    record.flags = flags;
    draft.submit(&subject);
    0
}

/// Adds the directory that a name starts at.
#[inline(always)]
pub fn base(draft: &mut Draft, task: TaskAt, fd: i32) {
    let dentry = if fd == kernel::AT_FDCWD {
        task.cwd()
    } else {
        let file = task.file(fd);
        if file.0 == 0 {
            DentryAt(0)
        } else {
            file.dentry()
        }
    };
    draft.record().state |= state::NAME_ONLY;
    if dentry.0 != 0 {
        draft.path(dentry);
        let record = draft.record();
        record.dev = dentry.device();
        record.inode = dentry.inode();
    }
}

/// The same for the second name.
#[inline(always)]
pub fn second_base(draft: &mut Draft, task: TaskAt, fd: i32) {
    let dentry = if fd == kernel::AT_FDCWD {
        task.cwd()
    } else {
        let file = task.file(fd);
        if file.0 == 0 {
            DentryAt(0)
        } else {
            file.dentry()
        }
    };
    if dentry.0 != 0 {
        draft.second_path(dentry);
        draft.record().second_dev = dentry.device();
    }
}

#[inline(always)]
fn change(what: u32, bits: u32, dentry: Dentry) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let decision = if bits & access::DELETE != 0 {
        policy::name(&subject, dentry)
    } else {
        policy::file(&subject, dentry, policy::WRITE)
    };
    if dentry.is_internal() && decision.allows() {
        return 0;
    }
    answer(&subject, what, dentry, bits, 0, decision)
}

#[inline(always)]
fn change_two(what: u32, access: u32, first: Dentry, second: Dentry) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let mut decision = policy::name(&subject, first);
    if decision.allows() {
        decision = policy::name(&subject, second);
    }
    let (outcome, result) = outcome(&subject, &decision);
    let Some(mut draft) = emit::begin(what, &subject, TaskAt::current()) else {
        return result;
    };
    let (from, to) = (DentryAt(first.address()), DentryAt(second.address()));
    draft.path(from);
    draft.second_path(to);
    let record = draft.record();
    record.dev = from.device();
    record.inode = from.inode();
    record.second_dev = to.device();
    record.second_inode = to.inode();
    record.verdict = outcome;
    record.rule = decision.rule;
    record.errno = -result;
    record.access = access;
    draft.submit(&subject);
    result
}

/// What is recorded, and what the kernel is told.
#[inline(always)]
fn outcome(subject: &Subject, decision: &Decision) -> (u32, i32) {
    if decision.allows() {
        (verdict::ALLOWED, 0)
    } else if subject.monitors() {
        (verdict::AUDITED, 0)
    } else {
        (verdict::DENIED, -EACCES)
    }
}

/// Records the decision, folding repetitions, and gives it to the kernel.
#[inline(always)]
fn answer(
    subject: &Subject,
    what: u32,
    dentry: Dentry,
    access: u32,
    flags: u32,
    decision: Decision,
) -> i32 {
    let (outcome, result) = outcome(subject, &decision);
    if result != 0 && (what == kind::OPEN || what == kind::EXEC) {
        // SAFETY: the subject was found by its tag.
        unsafe { (*subject.tag).denied = 1 };
    }
    record_file(
        subject,
        &Action {
            what,
            verdict: outcome,
            rule: decision.rule,
            access,
            flags,
            errno: -result,
            dentry: dentry.address(),
            inode: dentry.inode(),
            device: dentry.device(),
        },
    );
    result
}

/// An action on one file, as it is recorded.
pub struct Action {
    pub what: u32,
    pub verdict: u32,
    pub rule: u32,
    pub access: u32,
    pub flags: u32,
    pub errno: i32,
    pub dentry: u64,
    pub inode: u64,
    pub device: u32,
}

/// Records an action on one file; used by both backends. A function of its own, for its share of the stack.
#[inline(never)]
pub fn record_file(subject: &Subject, action: &Action) -> u32 {
    let key = emit::key(
        subject,
        action.what,
        action.access,
        action.verdict,
        [
            u64::from(action.device),
            action.inode,
            u64::from(action.flags),
        ],
    );
    // A name without a file has no identity to fold by.
    if action.inode != 0 && emit::fold(subject, &key) {
        return 0;
    }
    let Some(mut draft) = emit::begin(action.what, subject, TaskAt::current()) else {
        return 0;
    };
    draft.path(DentryAt(action.dentry));
    let record = draft.record();
    record.verdict = action.verdict;
    record.rule = action.rule;
    record.dev = action.device;
    record.inode = action.inode;
    record.access = action.access;
    record.flags = action.flags;
    record.errno = action.errno;
    if action.inode != 0 {
        record.state |= state::FOLDED;
    }
    let seq = draft.submit(subject);
    if action.inode != 0 {
        emit::remember(&key, seq);
    }
    0
}
