//! What the policy says of an action: of a file by what holds where it stands, of a command by its arguments, of an address by the longest
//! prefix.

mod address;
mod command;
mod names;
mod walk;

use core::ffi::c_void;

use agentwatch_common::policy::{Held, Place, Tag, effect, found, place, right, rule};

pub use self::{
    address::{Own, from_words, is_mapped, is_unspecified, listen, mapped, peer},
    command::{command, command_by_name},
    names::abstract_name,
    walk::Kept,
};
use crate::{
    kernel::{self, Dentry, Entry as _, InodeAt, S_IFBLK, SuperBlockAt, is_device},
    maps::{HOST, OBJECTS},
    session::{self, Subject},
};

/// include/uapi/linux/magic.h.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// What was decided, and by which rule.
#[derive(Clone, Copy)]
pub struct Decision {
    pub effect: u8,
    pub rule: u32,
}

impl Decision {
    #[inline(always)]
    pub fn allows(&self) -> bool {
        self.effect == effect::ALLOW
    }

    /// Whether a person is to be asked.
    #[inline(always)]
    pub fn holds(&self) -> bool {
        self.effect == effect::HOLD
    }

    /// What is said of one right.
    #[inline(always)]
    fn about(place: &Place, right: usize) -> Self {
        Self {
            effect: place.effects[right],
            rule: place.rules[right],
        }
    }

    /// The stricter one of two: denied, held, allowed. Of equals this one.
    #[inline(always)]
    pub fn stricter(self, other: Self) -> Self {
        let looser =
            (self.allows() && !other.allows()) || (self.holds() && other.effect == effect::DENY);
        if looser { other } else { self }
    }
}

/// Rights that are asked for, as bits `1 << right::…`.
pub type Rights = u32;
pub const READ: Rights = 1 << right::READ;
pub const WRITE: Rights = 1 << right::WRITE;
pub const EXEC: Rights = 1 << right::EXEC;

#[inline(always)]
fn has(held: &Held, flag: u8) -> bool {
    held.place.flags & flag != 0
}

/// Decides on a file. The name's own directory decides where there is no file yet.
///
/// What has no rule up to the root of its file system is denied, and so is what cannot be told.
#[inline(always)]
pub fn file(subject: &Subject, dentry: Dentry, rights: Rights) -> Decision {
    file_sealed(subject, dentry, dentry.is_internal(), rights, 0)
}

/// The same with what is known of it already: whether its file system is internal, and the [`seal`] that was just found for it, 0
/// where it was not.
#[inline(always)]
pub fn file_sealed(
    subject: &Subject,
    dentry: Dentry,
    is_internal: bool,
    rights: Rights,
    seal: u64,
) -> Decision {
    // The task's own pipes, sockets and memory files. They are not executed: nothing says what they hold.
    if is_internal && rights & EXEC == 0 {
        return ALLOWED;
    }
    look(subject.policy, subject.flags, dentry.0, subject.tag, seal);
    close_behind(subject.tag);
    // What is to be made has none, and the verifier would ask for a look at that.
    let inode = subject.forget_all(dentry.inode_address());
    close_device(subject.tag, inode);
    // SAFETY: as in `everything`.
    let decision = of(unsafe { &(*subject.tag).held }, rights);
    if decision.allows() || rights & EXEC != 0 {
        return decision;
    }
    let super_block = subject.forget_all(dentry.super_block().at().0);
    if is_own_process(super_block, inode, subject.number) != 0 {
        return Decision {
            effect: effect::ALLOW,
            rule: rule::OWN,
        };
    }
    decision
}

/// Sets, for the decision that follows, the file that an overlay of the session's shows in front of the one in hand, 1 for one that is not told, 0 for
/// none.
#[inline(always)]
pub fn set_behind(subject: &Subject, behind: u64) {
    // SAFETY: the subject was found by its tag.
    unsafe { (&raw mut (*subject.tag).behind).write_volatile(behind) };
}

/// Closes such a file where a rule is about its execution: under its name in the overlay nothing is known of that. It changes what was
/// found in its place in memory, so that the verifier has nothing to follow.
#[inline(never)]
fn close_behind(tag: *mut Tag) -> u32 {
    // SAFETY: the caller found the task by it.
    let tag = unsafe { &mut *tag };
    if tag.behind == 0 {
        return 0;
    }
    tag.held_of.seal = 0;
    let place = &mut tag.held.place;
    if place.flags & place::EXEC_DENIED != 0 {
        place.effects = [effect::DENY; 3];
        place.rules = [place.rules[right::EXEC]; 3];
    } else if place.effects[right::EXEC] == effect::HOLD {
        place.effects[right::EXEC] = effect::DENY;
    }
    0
}

/// Closes a block device that no rule names: what lies on it is in no file that rules on files hold. And any device in a file system that
/// the session mounted: an overlay, or a server of files of its own, shows the devices of the host, and nothing is opened behind them that
/// could be decided on. Terminals are in a file system of their own.
#[inline(never)]
fn close_device(tag: *mut Tag, inode: u64) -> u32 {
    // SAFETY: the caller found the task by it.
    let tag = unsafe { &mut *tag };
    let inode = InodeAt(inode);
    // What is to be made has no inode yet, and is of no kind. To ask whether that is 0 would split all that the verifier follows.
    let kind = inode.kind();
    if !is_device(kind) {
        return 0;
    }
    if tag.held.place.rules[right::READ] == rule::OWN {
        if inode.super_block().magic() != DEVPTS_SUPER_MAGIC {
            tag.held_of.seal = 0;
            tag.held.place.effects = [effect::DENY; 3];
        }
    } else {
        close_unnamed(tag, kind);
    }
    0
}

#[inline(always)]
fn close_unnamed(tag: &mut Tag, kind: u16) {
    if kind == S_IFBLK && tag.held.found == found::ABOVE {
        tag.held_of.seal = 0;
        tag.held.place.effects = [effect::DENY; 3];
        tag.held.place.rules = [rule::FILES_DEFAULT; 3];
    }
}

/// Keeps a block device that no rule names under its name: under one that a rule has it would be named.
#[inline(never)]
fn keep_device(tag: *mut Tag, inode: u64) -> u32 {
    // SAFETY: the caller found the task by it.
    let tag = unsafe { &mut *tag };
    // In a file system of the session's own it is closed by whatever name.
    if tag.held.place.rules[right::READ] != rule::OWN {
        close_unnamed(tag, InodeAt(inode).kind());
    }
    0
}

/// As [`file`], of a directory entry by its address, without what is kept; for programs whose pointers have no type.
#[inline(always)]
pub fn file_at(subject: &Subject, dentry: u64, rights: Rights) -> Decision {
    everything_at(subject, dentry);
    close_behind(subject.tag);
    // SAFETY: as in `everything`.
    of(unsafe { &(*subject.tag).held }, rights)
}

/// A digest of what a decision on a file stands on, taken before it is made: the rules, the places of directories, the directory and
/// the name by which the file is reached, its inode's generation. 0 where the kernel does not tell. It is kept with the file's device
/// and inode, so that two that are equal by chance are names of the same file.
#[inline(always)]
pub fn seal(dentry: Dentry, inode_generation: u32) -> u64 {
    /// Odd, and without a pattern (the golden ratio's and the square root of two's digits).
    const A: u64 = 0x9e37_79b9_7f4a_7c15;
    const B: u64 = 0xb504_f333_f9de_6485;
    let Some(host) = HOST.get_ptr(0) else {
        return 0;
    };
    let Some(moves) = kernel::moves() else {
        return 0;
    };
    if moves & 1 != 0 {
        return 0;
    }
    // SAFETY: a slot of an array map.
    let generation = unsafe { (&raw const (*host).generation).read_volatile() };
    let mut digest = (u64::from(generation) << 32 | u64::from(moves)).wrapping_mul(A);
    digest = (digest.rotate_left(29) ^ dentry.parent().inode()).wrapping_mul(B);
    digest = (digest.rotate_left(29) ^ dentry.name_hash()).wrapping_mul(A);
    digest = (digest.rotate_left(29) ^ u64::from(inode_generation)).wrapping_mul(B);
    digest | 1
}

/// Everything that holds at a file.
#[inline(always)]
pub fn everything(subject: &Subject, dentry: Dentry) -> &Held {
    look(subject.policy, subject.flags, dentry.0, subject.tag, 0);
    // SAFETY: the subject was found by its tag, and the task is in the middle of this.
    unsafe { &(*subject.tag).held }
}

/// Finds what holds at a file, but where the task has just asked for the same: an execution asks some four times.
#[inline(never)]
fn look(policy: u32, flags: u32, dentry: *const c_void, tag: *mut Tag, sealed: u64) -> u32 {
    // SAFETY: the caller found the task by it.
    let (held, of) = unsafe { (&mut (*tag).held, &mut (*tag).held_of) };
    let asked = Dentry(dentry);
    let (inode, inode_generation) = asked.identity();
    let seal = if sealed == 0 {
        seal(asked, inode_generation)
    } else {
        sealed
    };
    let (address, dev) = (asked.address(), asked.device());
    if seal != 0
        && of.seal == seal
        && of.dentry == address
        && of.inode == inode
        && of.dev == dev
        && of.policy == policy
    {
        return 1;
    }
    // Seals are odd: it is none yet.
    of.seal = seal & !1;
    of.dentry = address;
    of.inode = inode;
    of.dev = dev;
    of.policy = policy;
    walk::hold(policy, flags, dentry, held);
    // SAFETY: as above. A file system that the session mounted goes with its numbers and addresses.
    unsafe {
        let held = &(*tag).held;
        let keeps = held.place.rules[right::READ] != rule::OWN && held.found != found::UNTOLD;
        if keeps && (*tag).held_of.seal != 0 {
            (*tag).held_of.seal |= 1;
        }
    }
    0
}

/// Everything that holds at a file by address.
#[inline(always)]
pub fn everything_at(subject: &Subject, dentry: u64) -> &Held {
    // SAFETY: as above.
    let held = unsafe {
        (*subject.tag).held_of.seal = 0;
        &mut (*subject.tag).held
    };
    walk::climb(subject.policy, dentry, held);
    walk::below(subject.policy, subject.flags, dentry, held);
    held
}

/// Decides on taking a name away, or putting another file in its place: needs writing, and that no protected place
/// lies below. `moves`: whether the file gets another name.
#[inline(always)]
pub fn name(subject: &Subject, dentry: Dentry, moves: bool) -> Decision {
    if dentry.is_internal() {
        return ALLOWED;
    }
    look(subject.policy, subject.flags, dentry.0, subject.tag, 0);
    let inode = subject.forget_all(dentry.inode_address());
    if moves {
        keep_device(subject.tag, inode);
    }
    // SAFETY: as in `everything`.
    let held = unsafe { &(*subject.tag).held };
    let decision = of(held, WRITE);
    // A name without a file may become one.
    let pinned = has(held, place::PINNED) && inode != 0;
    if decision.effect != effect::DENY && pinned {
        return Decision {
            effect: effect::DENY,
            rule: held.place.pin_rule,
        };
    }
    decision
}

/// Whether a file lies in a layer of an overlay that the host mounted.
#[inline(always)]
pub fn is_layer(subject: &Subject, dentry: Dentry) -> bool {
    has(everything(subject, dentry), place::LAYER)
}

const ALLOWED: Decision = Decision {
    effect: effect::ALLOW,
    rule: rule::FILES_DEFAULT,
};

/// Whether the session mounted a file system.
#[inline(always)]
pub fn is_own(super_block: SuperBlockAt, session: u32) -> bool {
    // SAFETY: entries are replaced whole.
    unsafe { OBJECTS.get(super_block.0) }.is_some_and(|owner| *owner == session)
}

/// Whether it is a file of procfs about a process of the session, not 0 then. A function of its own: each of its reads may fail, and the
/// verifier would follow all that comes behind for each.
#[inline(never)]
fn is_own_process(super_block: u64, inode: u64, session: u32) -> u32 {
    if SuperBlockAt(super_block).magic() != PROC_SUPER_MAGIC || inode == 0 {
        return 0;
    }
    let pid = kernel::process_of(inode);
    u32::from(pid != 0 && session::of_process(pid) == session)
}

/// The strictest decision among the rights that are asked for.
#[inline(always)]
pub fn of(held: &Held, rights: Rights) -> Decision {
    let place = &held.place;
    let mut decision = Decision {
        effect: effect::ALLOW,
        rule: place.rules[right::READ],
    };
    if rights & READ != 0 {
        decision = Decision::about(place, right::READ);
    }
    if rights & WRITE != 0 {
        decision = Decision::about(place, right::WRITE).stricter(decision);
    }
    if rights & EXEC != 0 {
        decision = Decision::about(place, right::EXEC).stricter(decision);
    }
    decision
}

/// Decides on connecting to a UNIX socket by its file: where that may be written, or a rule names it.
#[inline(always)]
pub fn socket_file(held: &Held) -> Decision {
    if has(held, place::SOCKET) && held.found != found::ABOVE {
        return Decision {
            effect: effect::ALLOW,
            rule: held.place.socket_rule,
        };
    }
    let write = Decision {
        effect: held.place.effects[right::WRITE],
        rule: held.place.rules[right::WRITE],
    };
    // What closes the file closes the socket; what only grants less says nothing of sockets.
    let closed =
        held.place.effects[right::READ] == effect::DENY && write.rule != rule::FILES_DEFAULT;
    if write.allows() || closed {
        return write;
    }
    Decision {
        effect: effect::DENY,
        rule: rule::UNIX_DEFAULT,
    }
}

/// Decides on mapping a file as code: that needs no right to execute it, because libraries and what an interpreter reads are
/// no commands, but a file that a rule keeps from being executed is not started by its loader either.
#[inline(always)]
pub fn code(held: &Held) -> Decision {
    if has(held, place::EXEC_DENIED) {
        return Decision {
            effect: effect::DENY,
            rule: held.place.rules[right::EXEC],
        };
    }
    let exec = Decision {
        effect: held.place.effects[right::EXEC],
        rule: held.place.rules[right::EXEC],
    };
    if exec.allows() {
        return exec;
    }
    Decision {
        effect: held.place.effects[right::READ],
        rule: held.place.rules[right::READ],
    }
}
