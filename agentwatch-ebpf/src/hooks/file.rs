//! Files, where the kernel takes BPF LSM programs: each operation is decided on the identity of what it acts on.

mod answer;
mod failed;

use core::ffi::c_void;

use agentwatch_common::{
    event::{access, kind, state, verdict},
    hold::RESTART,
    policy::{flags, guard},
};
use aya_ebpf::{
    EbpfContext as _, helpers::bpf_get_current_pid_tgid, macros::lsm, programs::LsmContext,
};

use crate::{
    emit::{self, Draft, before},
    hold,
    kernel::{self, Dentry, Entry, File, Inode, Task},
    maps::{HOST, IDENTIFIED},
    session::{self, Subject},
    verdict as policy,
};

pub use self::answer::{Action, record_file};
use self::answer::{answer, ask, heard, is_behind, note_overlay, outcome, refusal};

const EACCES: i32 = 13;
/// In a task's tag: the open in hand has been recorded as denied.
const DENIED: u64 = 1;
/// `ATTR_SIZE` (include/linux/fs.h).
const ATTR_SIZE: u32 = 1 << 3;
const PROT_EXEC: u64 = 4;
/// include/linux/fsnotify_backend.h.
const FSNOTIFY_OBJ_TYPE_INODE: u32 = 0;
/// include/uapi/linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
/// Who is told of a descriptor's events (include/uapi/asm-generic/sockios.h).
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;
const FIOASYNC: u32 = 0x5452;
/// What changes a file, a directory or its file system by any descriptor: `FS_IOC_SETFLAGS`, the same of 32 bits, `FS_IOC_SETVERSION`, the
/// same, ext4's own, the same, `FS_IOC_FSSETXATTR`, `FS_IOC_ENABLE_VERITY`, `EXT4_IOC_RESIZE_FS`; btrfs' `SNAP_CREATE`,
/// `SUBVOL_CREATE`, `SNAP_DESTROY`, `SNAP_CREATE_V2`, `SUBVOL_CREATE_V2`, `SUBVOL_SETFLAGS`, `SNAP_DESTROY_V2`;
/// `FS_IOC_SET_ENCRYPTION_POLICY`; ext4's `MIGRATE`, `GROUP_EXTEND`, `GROUP_ADD`.
const SET_ATTRIBUTES: [u32; 20] = [
    0x4008_6602,
    0x4004_6602,
    0x4008_7602,
    0x4004_7602,
    0x4008_6604,
    0x4004_6604,
    0x401c_5820,
    0x4080_6685,
    0x4008_6610,
    0x5000_9401,
    0x5000_940e,
    0x5000_940f,
    0x5000_9417,
    0x5000_9418,
    0x4008_941a,
    0x5000_943f,
    0x800c_6613,
    0x6609,
    0x4008_6607,
    0x4028_6608,
];

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
    let inode = file.inode();
    let access = if flags & kernel::OPEN_EXEC != 0 {
        access::EXEC
    } else {
        let mut bits = 0;
        if mode & kernel::FMODE_READ != 0 {
            bits |= if inode.is_dir() {
                access::LIST
            } else {
                access::READ
            };
        }
        if mode & kernel::FMODE_WRITE != 0 || flags & kernel::O_TRUNC != 0 {
            bits |= access::WRITE;
        }
        // Access mode 3, for ioctl alone, is neither: it is held to both.
        if bits == 0 {
            bits = access::READ | access::WRITE;
        }
        bits
    };
    // A file that an overlay opens behind one of its own. What the host mounted has been decided by what it shows; what the
    // session mounted is decided by what is really there too.
    let in_front = file.in_front();
    if in_front.0 != 0 {
        if !policy::is_own(in_front.super_block(), subject.number) {
            return 0;
        }
    } else if !kernel::tells_what_is_in_front() && inode.0 as u64 != dentry.inode_address() {
        // Before 6.7 such a file goes by the overlay's name.
        if !policy::is_own(dentry.super_block().at(), subject.number) {
            return 0;
        }
        let name = kernel::a_name_of(inode.0 as u64);
        policy::set_behind(&subject, 1);
        let decision = policy::file_at(&subject, name.0, rights_of(access));
        policy::set_behind(&subject, 0);
        let (outcome, result) = outcome(&subject, &decision);
        if outcome != verdict::ALLOWED {
            record_file(
                &subject,
                &Action {
                    what: kind::OPEN,
                    verdict: outcome,
                    rule: decision.rule,
                    access,
                    flags,
                    errno: -result,
                    dentry: name,
                    inode: name.inode(),
                    device: name.device(),
                    state: 0,
                },
            );
        }
        return session::answer(result != 0, EACCES);
    }
    let access = subject.forget_all(access.into()) as u32;
    let super_block = inode.super_block();
    note_overlay(&subject, super_block);
    // SAFETY: the subject was found by its tag.
    unsafe { (*subject.tag).denied = 0 };
    policy::set_behind(&subject, in_front.0);
    let mut seal = 0;
    if access & access::EXEC == 0 {
        let before = opened_before(&subject, dentry.0, inode.0, access, flags);
        if before == before::SAME {
            return 0;
        }
        // SAFETY: as above.
        unsafe {
            (*subject.tag).unseen = u32::from(before == before::NEVER);
            seal = (&raw const (*subject.tag).seal).read_volatile();
        }
    }
    let is_internal = super_block.is_internal();
    let rights = rights_of(access);
    let decision = policy::file_sealed(&subject, dentry, is_internal, rights, seal);
    policy::set_behind(&subject, 0);
    // Copying up, and reading directories.
    if !decision.allows() && is_behind(&subject, dentry) {
        return 0;
    }
    // A program that may run is recorded when it does, and one that waits for a person waits then.
    let execs = access & access::EXEC != 0;
    if execs && (decision.allows() || decision.holds()) {
        return 0;
    }
    let what = if execs { kind::EXEC } else { kind::OPEN };
    answer(&subject, what, dentry, access, flags, decision)
}

/// The rights that an open asks for. Without a branch, for the verifier.
#[inline(always)]
fn rights_of(access: u32) -> policy::Rights {
    const _: () = assert!(
        policy::READ == access::READ
            && policy::WRITE == access::WRITE
            && policy::EXEC == access::EXEC
            && policy::READ << 6 == access::LIST
    );
    (access | access >> 6) & (policy::READ | policy::WRITE | policy::EXEC)
}

/// Whether the same open was allowed before, and nothing has changed that it stood on: see [`before`]. A function of its own, for its
/// share of the stack.
#[inline(never)]
fn opened_before(
    subject: &Subject,
    dentry: *const c_void,
    inode: *const c_void,
    access: u32,
    flags: u32,
) -> u32 {
    let inode = Inode(inode);
    // SAFETY: the subject was found by its tag.
    unsafe {
        if (&raw const (*subject.tag).behind).read_volatile() != 0 {
            (*subject.tag).seal = 0;
            return before::OTHER;
        }
    }
    let seal = policy::seal(Dentry(dentry), inode.generation());
    // SAFETY: the subject was found by its tag.
    unsafe { (*subject.tag).seal = seal };
    if seal == 0 || subject.flags & (flags::OPENS_ALL | flags::OPENS_WRITES) != 0 {
        return before::OTHER;
    }
    let key = emit::key(
        subject,
        kind::OPEN,
        access,
        verdict::ALLOWED,
        [
            u64::from(inode.super_block().device()),
            inode.number(),
            u64::from(flags),
        ],
    );
    emit::fold_as_before(subject, &key, seal)
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
    change(kind::ATTR, changes_of(ctx.arg(1)), Dentry(ctx.arg(0)))
}

#[lsm(hook = "inode_setattr")]
pub fn inode_setattr_idmap(ctx: LsmContext) -> i32 {
    change(kind::ATTR, changes_of(ctx.arg(2)), Dentry(ctx.arg(1)))
}

#[inline(always)]
fn changes_of(iattr: u64) -> u32 {
    if kernel::attributes(iattr) & ATTR_SIZE != 0 {
        access::TRUNCATE
    } else {
        access::ATTR
    }
}

#[lsm(hook = "inode_setxattr")]
pub fn inode_setxattr(ctx: LsmContext) -> i32 {
    change(kind::ATTR, access::XATTR, Dentry(ctx.arg(1)))
}

#[lsm(hook = "inode_removexattr")]
pub fn inode_removexattr(ctx: LsmContext) -> i32 {
    change(kind::ATTR, access::XATTR, Dentry(ctx.arg(1)))
}

#[lsm(hook = "inode_set_acl")]
pub fn inode_set_acl(ctx: LsmContext) -> i32 {
    change(kind::ATTR, access::XATTR, Dentry(ctx.arg(1)))
}

#[lsm(hook = "inode_remove_acl")]
pub fn inode_remove_acl(ctx: LsmContext) -> i32 {
    change(kind::ATTR, access::XATTR, Dentry(ctx.arg(1)))
}

/// What ioctl sets, by path.
#[lsm(hook = "inode_file_setattr")]
pub fn inode_file_setattr(ctx: LsmContext) -> i32 {
    change(kind::ATTR, access::ATTR, Dentry(ctx.arg(0)))
}

/// Attributes of files that are set by ioctl, and typing into a terminal.
#[lsm(hook = "file_ioctl")]
pub fn file_ioctl(ctx: LsmContext) -> i32 {
    ioctl(File(ctx.arg(0)), ctx.arg(1))
}

#[lsm(hook = "file_ioctl_compat")]
pub fn file_ioctl_compat(ctx: LsmContext) -> i32 {
    ioctl(File(ctx.arg(0)), ctx.arg(1))
}

#[inline(always)]
fn ioctl(file: File, command: u32) -> i32 {
    if command == TIOCSTI || command == TIOCLINUX {
        return super::guard::refuse(guard::TERMINAL, 0, u64::from(command));
    }
    if command == FIOSETOWN || command == SIOCSPGRP || command == FIOASYNC {
        return super::guard::may_own_descriptor();
    }
    if SET_ATTRIBUTES.contains(&command) {
        return change(kind::ATTR, access::ATTR, file.dentry());
    }
    0
}

/// Mapping a file as code.
#[lsm(hook = "mmap_file")]
pub fn mmap_file(ctx: LsmContext) -> i32 {
    let protection: u64 = ctx.arg(2);
    if protection & PROT_EXEC == 0 || kernel::raw_argument(ctx.as_ptr(), 0) == 0 {
        return 0;
    }
    let file = File(ctx.arg(0));
    // The verifier of newer kernels asks for this look, that of older ones believes that it is not needed.
    if file.0.is_null() {
        return 0;
    }
    map(file)
}

#[lsm(hook = "file_mprotect")]
pub fn file_mprotect(ctx: LsmContext) -> i32 {
    let protection: u64 = ctx.arg(2);
    if protection & PROT_EXEC == 0 {
        return 0;
    }
    let file = kernel::mapped_file(ctx.arg(0));
    if file.0.is_null() {
        return 0;
    }
    map(file)
}

#[inline(always)]
fn map(file: File) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let dentry = file.dentry();
    if dentry.is_internal() {
        return 0;
    }
    // Mapped pages are those of the file behind an overlay's; one that the host mounted is decided by what it shows.
    let in_front = file.in_front();
    let held = if in_front.0 != 0 && !policy::is_own(in_front.super_block(), subject.number) {
        policy::everything_at(&subject, in_front.0)
    } else {
        policy::everything(&subject, dentry)
    };
    let decision = policy::code(held);
    // A library that may be loaded is no event: its opening is, and there it waited for a person, if it had to. A program that waits is
    // mapped before it does.
    if decision.allows() || decision.holds() {
        return 0;
    }
    answer(
        &subject,
        kind::EXEC,
        dentry,
        access::EXEC | access::MAP,
        0,
        decision,
    )
}

/// A descriptor that comes from another process: over a UNIX socket, or taken from it.
#[lsm(hook = "file_receive")]
pub fn file_receive(ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let file = File(ctx.arg(0));
    let dentry = file.dentry();
    // Sockets have a program of their own on this hook.
    if dentry.is_socket() && dentry.is_internal() {
        return 0;
    }
    let mode = file.mode();
    let mut rights = 0;
    let mut bits = access::RECEIVE;
    if mode & kernel::FMODE_READ != 0 {
        rights |= policy::READ;
        bits |= access::READ;
    }
    if mode & kernel::FMODE_WRITE != 0 {
        rights |= policy::WRITE;
        bits |= access::WRITE;
    }
    // What gives no right to the contents is decided when it is used.
    if rights == 0 {
        return 0;
    }
    let (rights, bits) = subject.forget(rights, bits);
    let decision = policy::file(&subject, dentry, rights);
    if decision.allows() {
        return 0;
    }
    answer(&subject, kind::OPEN, dentry, bits, 0, decision)
}

/// Watching a file for what is done to it: whoever may read it may. The daemon learns by it which file a path names to the
/// kernel, and is refused.
#[lsm(hook = "path_notify")]
pub fn path_notify(ctx: LsmContext) -> i32 {
    let dentry = kernel::path_dentry(ctx.arg(0));
    if let Some(host) = HOST.get(0)
        && host.daemon == (bpf_get_current_pid_tgid() >> 32) as u32
        && let Some(answer) = IDENTIFIED.get_ptr_mut(0)
    {
        // SAFETY: the daemon asks for one file at a time.
        unsafe {
            (*answer).dev = dentry.device();
            (*answer).inode = dentry.inode();
            (*answer).generation = dentry.generation();
            (*answer).owner = super::guard::owner(dentry.super_block().at());
            (*answer).asked = (*answer).asked.wrapping_add(1);
        }
        return -EACCES;
    }
    let Some(subject) = Subject::current() else {
        return 0;
    };
    // A whole file system, mount or mount namespace: since 6.16 the kernel asks for no capability that tells it from one file.
    let watched: u32 = ctx.arg(2);
    if watched != FSNOTIFY_OBJ_TYPE_INODE
        && !policy::is_own(dentry.super_block().at(), subject.number)
    {
        return super::guard::refuse(guard::CAPABILITY, 0, u64::from(CAP_SYS_ADMIN));
    }
    let decision = policy::file(&subject, dentry, policy::READ);
    if decision.allows() {
        return 0;
    }
    answer(&subject, kind::OPEN, dentry, access::WATCH, 0, decision)
}

/// Adds the directory that a name starts at.
#[inline(always)]
pub fn base(draft: &mut Draft, task: Task, fd: i32) {
    draft.record().state |= state::NAME_ONLY;
    if fd == kernel::AT_FDCWD {
        add_base(draft, task.cwd());
    } else {
        let file = task.file(fd);
        if file.0 != 0 {
            add_base(draft, file.dentry());
        }
    }
}

#[inline(always)]
fn add_base(draft: &mut Draft, dentry: impl Entry) {
    if dentry.address() != 0 {
        draft.path(dentry);
        let record = draft.record();
        record.dev = dentry.device();
        record.inode = dentry.inode();
    }
}

/// The same for the second name.
#[inline(always)]
pub fn second_base(draft: &mut Draft, task: Task, fd: i32) {
    if fd == kernel::AT_FDCWD {
        add_second_base(draft, task.cwd());
    } else {
        let file = task.file(fd);
        if file.0 != 0 {
            add_second_base(draft, file.dentry());
        }
    }
}

#[inline(always)]
fn add_second_base(draft: &mut Draft, dentry: impl Entry) {
    if dentry.address() != 0 {
        draft.second_path(dentry);
        draft.record().second_dev = dentry.device();
    }
}

#[inline(always)]
fn change(what: u32, bits: u32, dentry: Dentry) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    note_overlay(&subject, dentry.super_block());
    let decision = if bits & access::DELETE != 0 {
        policy::name(&subject, dentry, false)
    } else {
        policy::file(&subject, dentry, policy::WRITE)
    };
    if dentry.is_internal() && decision.allows() {
        return 0;
    }
    if !decision.allows() && is_behind(&subject, dentry) {
        return 0;
    }
    answer(&subject, what, dentry, bits, 0, decision)
}

#[inline(always)]
fn change_two(what: u32, access: u32, first: Dentry, second: Dentry) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    note_overlay(&subject, second.super_block());
    let from_says = policy::name(&subject, first, true);
    let to_says = policy::name(&subject, second, true);
    let decision = from_says.stricter(to_says);
    if !decision.allows() && is_behind(&subject, second) {
        return 0;
    }
    let (mut outcome, mut result) = outcome(&subject, &decision);
    let mut state = 0;
    if decision.holds() && outcome == verdict::DENIED {
        // Both sides are asked for, one after the other, and what was granted is used up when both are.
        let mut word = hold::GRANTED;
        if from_says.holds() {
            word = ask(
                &subject,
                what,
                access,
                from_says.rule,
                first,
                !to_says.holds(),
            );
        }
        if word == hold::GRANTED && to_says.holds() {
            word = ask(&subject, what, access, to_says.rule, second, true);
            if word == hold::GRANTED && from_says.holds() {
                word = ask(&subject, what, access, from_says.rule, first, true);
            }
        }
        if word == hold::PARKED_AGAIN {
            return session::answer(true, RESTART);
        }
        (outcome, result, state) = heard(word);
    }
    let Some(mut draft) = emit::begin(what, &subject, Task::current()) else {
        return session::answer(result != 0, EACCES);
    };
    let (from, to) = (first, second);
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
    record.state |= state;
    draft.submit(&subject);
    refusal(&subject, result)
}
