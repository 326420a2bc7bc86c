//! What holds at a file: its own place, a rule on its name, or what holds in its directory, which is found by walking up to the
//! nearest place and kept.

use core::ffi::c_void;

use agentwatch_common::{
    limits,
    policy::{BY_MAGIC, Held, Place, PlaceKey, effect, flags, found, place, right, rule},
    stats,
};
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_loop};

use super::{
    has,
    names::{DECIDES, child, named, names},
};
use crate::{
    kernel::{self, Dentry, DentryAt, Entry as _},
    maps::{DIRECTORIES, HOST, OBJECTS, PLACES, POLICIES, count},
    memory,
};

/// include/uapi/linux/magic.h.
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
/// File systems that hold nothing but what is put into them: tmpfs, ramfs, FUSE, devpts, mqueue.
const OWN_FILE_SYSTEMS: [u64; 5] = [0x0102_1994, 0x8584_58f6, 0x6573_5546, 0x1cd1, 0x1980_0202];

/// The value of [`Held::steps`] while no name that is waited for has decided.
const NAMELESS: u32 = u32::MAX;

/// Directories that [`near`] walks.
const NEAR: u32 = 4;

/// Nothing holds, so far: denied.
#[inline(always)]
fn clear(held: &mut Held) {
    const {
        assert!(effect::DENY == 0 && rule::FILES_DEFAULT == 0 && found::NOTHING == 0);
    }
    memory::zero(held);
}

/// Without room to look, nothing may pass, and nothing is kept of it.
#[inline(always)]
pub(super) fn give_up(held: &mut Held) {
    count(stats::NO_SCRATCH);
    clear(held);
    held.found = found::UNTOLD;
}

/// What holds in a directory, kept until a policy changes or a directory moves. `version` stands first and `seal` last, and they
/// are equal but while the kernel writes another value over this one. It may be another directory's value by then, so it says whose.
#[repr(C)]
pub struct Kept {
    version: u64,
    of: PlaceKey,
    generation: u32,
    moves: u32,
    inode_generation: u32,
    _pad: u32,
    held: Held,
    seal: u64,
}

/// What holds at a file: its own place, a rule on its name, or what holds in its directory.
#[inline(always)]
pub(super) fn hold(policy: u32, flags: u32, dentry: *const c_void, held: &mut Held) -> u32 {
    clear(held);
    let dentry = Dentry(dentry);
    let (inode, generation) = dentry.identity();
    if inode != 0 && here(policy, dentry.device(), inode, generation, held) != 0 {
        return 1;
    }
    let parent = dentry.parent();
    if parent.address() == dentry.address() {
        top(policy, dentry.address(), held);
        return 1;
    }
    directory(policy, flags, parent.0, held);
    // What is pinned is the directory.
    held.place.flags &= !place::PINNED;
    held.steps = NAMELESS;
    // Whether a name of this length is waited for at all; without a branch, for the verifier.
    let waits = held.place.lengths >> (dentry.name_len() % u32::BITS) & 1;
    held.place.flags &= !place::CHILDREN | waits as u8 * place::CHILDREN;
    if has(held, place::CHILDREN) {
        child(policy, dentry.address(), held);
    }
    // What was found goes by way of memory: as a result, the verifier would follow each of them through all that comes after.
    // SAFETY: a field of the task's tag.
    if unsafe { (&raw const held.steps).read_volatile() } != NAMELESS {
        return 1;
    }
    // A name that only leads to others that are waited for may have a rule as a name.
    if flags & flags::NAMES != 0 {
        named(policy, dentry.address(), held, 0);
    }
    // HERE or NAME, in one branch.
    if held.found.wrapping_sub(found::HERE) <= found::NAME - found::HERE {
        held.found = found::ABOVE;
    }
    0
}

/// A place of this very file.
#[inline(always)]
fn here(policy: u32, dev: u32, inode: u64, generation: u32, held: &mut Held) -> u32 {
    let Some(found) = PLACES.get_ptr(PlaceKey { policy, dev, inode }) else {
        return 0;
    };
    // SAFETY: an entry of a map; user space replaces entries whole.
    let found = unsafe { &*found };
    // The number of a file that is gone, given to another.
    if found.generation != 0 && found.generation != generation {
        return 0;
    }
    held.place = *found;
    held.found = found::HERE;
    held.number = 0;
    held.dev = dev;
    held.inode = inode;
    1
}

/// What holds for the names in a directory.
#[inline(never)]
fn directory(policy: u32, flags: u32, dentry: *const c_void, held: &mut Held) -> u32 {
    let Some(host) = HOST.get_ptr(0) else {
        return 0;
    };
    // SAFETY: a slot of an array map.
    let generation = unsafe { (&raw const (*host).generation).read_volatile() };
    let moves = kernel::moves();
    let sequence = moves.unwrap_or(1);
    let start = Dentry(dentry);
    if kept(start, policy, generation, sequence, held) != 0 {
        return 1;
    }
    near(policy, start.0, generation, sequence, held);
    // Read again: what the verifier knows of each way through `near` ends there.
    // SAFETY: a field of the task's tag.
    let steps = unsafe { (&raw const held.steps).read_volatile() };
    if steps >= NEAR {
        climb(policy, start.address(), held);
    }
    below(policy, flags, start.address(), held);
    // A file system that the session mounted goes with its numbers.
    let keeps = held.found != found::UNTOLD && held.place.rules[right::READ] != rule::OWN;
    if sequence & 1 == 0 && keeps && kernel::moves() == moves {
        keep(start.0, policy, generation, sequence, held);
    }
    0
}

/// The nearest place at or above a directory, or what is kept of one on the way. `steps` says how far above it stands, [`NEAR`]
/// where it is further away.
#[inline(never)]
fn near(policy: u32, start: *const c_void, generation: u32, sequence: u32, held: &mut Held) -> u32 {
    let mut entry = Dentry(start);
    let mut steps = 0;
    while steps < NEAR {
        let (inode, inode_generation) = entry.identity();
        if here(policy, entry.device(), inode, inode_generation, held) != 0
            || (steps > 0 && kept(entry, policy, generation, sequence, held) != 0)
        {
            break;
        }
        let parent = entry.parent();
        if parent.address() == entry.address() {
            top(policy, entry.address(), held);
            break;
        }
        entry = parent;
        steps += 1;
    }
    // SAFETY: a field of the task's tag.
    unsafe { (&raw mut held.steps).write_volatile(steps) };
    0
}

/// Takes what is kept of a directory, where that is still true.
#[inline(always)]
fn kept(dentry: Dentry, policy: u32, generation: u32, moves: u32, held: &mut Held) -> u32 {
    let (inode, inode_generation) = dentry.identity();
    let of = PlaceKey {
        policy,
        dev: dentry.device(),
        inode,
    };
    let Some(kept) = DIRECTORIES.get_ptr(of.digest()) else {
        return 0;
    };
    // SAFETY: a map's value, which another processor may be writing: it is read between two looks at its ends.
    unsafe {
        let version = (&raw const (*kept).version).read_volatile();
        let whose = (&raw const (*kept).of).read_volatile();
        if (&raw const (*kept).seal).read_volatile() != version
            || whose.inode != of.inode
            || whose.dev != of.dev
            || whose.policy != of.policy
            || (&raw const (*kept).generation).read_volatile() != generation
            || (&raw const (*kept).moves).read_volatile() != moves
            || (&raw const (*kept).inode_generation).read_volatile() != inode_generation
        {
            return 0;
        }
        memory::copy(&raw const (*kept).held, held);
        if (&raw const (*kept).version).read_volatile() != version
            || (&raw const (*kept).seal).read_volatile() != version
        {
            clear(held);
            return 0;
        }
        1
    }
}

/// Keeps what was found in a directory.
#[inline(never)]
fn keep(dentry: *const c_void, policy: u32, generation: u32, moves: u32, held: &Held) -> u32 {
    let dentry = Dentry(dentry);
    // SAFETY: no requirements.
    let version = unsafe { bpf_ktime_get_boot_ns() };
    let (inode, inode_generation) = dentry.identity();
    let of = PlaceKey {
        policy,
        dev: dentry.device(),
        inode,
    };
    let kept = Kept {
        version,
        of,
        generation,
        moves,
        // Where a file system counts no generations (overlayfs does not), another directory may get the number: such a one is never found.
        // Arithmetic and not a branch, behind which the verifier would follow everything again.
        inode_generation: inode_generation.wrapping_sub(u32::from(inode_generation == 0)),
        _pad: 0,
        held: *held,
        seal: version,
    };
    // Without room the answer is found again the next time.
    let _ = DIRECTORIES.insert(of.digest(), kept, 0);
    0
}

/// What is the session's own: it may be read and written, and not executed.
#[inline(always)]
fn own() -> Place {
    Place {
        effects: [effect::ALLOW, effect::ALLOW, effect::DENY],
        flags: 0,
        rules: [rule::OWN; 3],
        pin_rule: 0,
        socket_rule: rule::OWN,
        generation: 0,
        lengths: 0,
    }
}

/// What holds at the root of a file system that no place stands above: one that the session mounted is its own.
#[inline(never)]
fn top(policy: u32, dentry: u64, held: &mut Held) -> u32 {
    let super_block = DentryAt(dentry).super_block();
    if super_block.root() != dentry {
        // Memory of huge pages: a file without a name in a file system that the kernel mounts for itself. It is not marked as that, and no
        // file of it can be opened by a handle.
        if super_block.magic() == HUGETLBFS_MAGIC {
            held.place = own();
            held.found = found::ABOVE;
        }
        // Else one that has no name in memory, opened by its handle: nobody can tell where it is.
        return 0;
    }
    // SAFETY: entries are replaced whole.
    let Some(owner) = (unsafe { OBJECTS.get(super_block.0) }) else {
        return 0;
    };
    // SAFETY: entries are replaced whole. One that is no longer in force stays for as long as anything is decided by it.
    let Some(own_policy) = (unsafe { POLICIES.get(policy) }) else {
        return 0;
    };
    if own_policy.session != *owner {
        return 0;
    }
    let magic = super_block.magic();
    let is_overlay = magic == OVERLAYFS_SUPER_MAGIC;
    // One that the kernel mounts by itself where the session goes may be the host's.
    if !is_overlay && (!OWN_FILE_SYSTEMS.contains(&magic) || !super_block.is_harmless()) {
        return here(policy, BY_MAGIC, magic, 0, held);
    }
    held.place = own();
    if is_overlay {
        // What it shows is decided once more where it really is.
        held.place.effects[right::EXEC] = effect::ALLOW;
    }
    held.found = found::ABOVE;
    1
}

/// A way up by address, for as many directories as there are.
#[repr(C)]
struct Climb {
    entry: u64,
    policy: u32,
    done: u32,
    held: *mut Held,
}

/// The same walk as [`directory`]'s without its limit and by address: what is too deep for it, and what has no type.
#[inline(never)]
pub(super) fn climb(policy: u32, dentry: u64, held: &mut Held) -> u32 {
    clear(held);
    let mut climb = Climb {
        entry: dentry,
        policy,
        done: 0,
        held,
    };
    // SAFETY: the callback takes a number and the context that stands here.
    unsafe {
        bpf_loop(
            limits::DEEPEST as u32,
            step_up as *mut c_void,
            (&raw mut climb).cast(),
            0,
        )
    };
    if climb.done == 0 {
        count(stats::TOO_DEEP);
        return 0;
    }
    0
}

extern "C" fn step_up(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `climb` gave.
    let climb = unsafe { &mut *context.cast::<Climb>() };
    // SAFETY: it stands in the caller of `climb`.
    let held = unsafe { &mut *climb.held };
    let entry = DentryAt(climb.entry);
    let inode = entry.inode();
    if inode != 0
        && here(
            climb.policy,
            entry.device(),
            inode,
            entry.generation(),
            held,
        ) != 0
    {
        climb.done = 1;
        return 1;
    }
    let parent = entry.parent();
    if parent.0 == entry.0 || parent.0 == 0 {
        top(climb.policy, entry.0, held);
        climb.done = 1;
        return 1;
    }
    climb.entry = parent.0;
    held.steps += 1;
    0
}

/// What names say between a place and `dentry` below it: those that are waited for, and then those that rules are about.
#[inline(always)]
pub(super) fn below(policy: u32, flags: u32, dentry: u64, held: &mut Held) {
    // SAFETY: a field of the task's tag; read so that the verifier knows nothing of it.
    if unsafe { (&raw const held.steps).read_volatile() } == 0 {
        return;
    }
    if has(held, place::CHILDREN) {
        descend(policy, dentry, held);
    }
    if flags & flags::NAMES != 0 && held.found != found::UNTOLD {
        names(policy, dentry, held);
    }
}

/// From a place that names below it have rules under, down again to `dentry`, `steps` below it, along the names that are waited for.
#[inline(never)]
fn descend(policy: u32, dentry: u64, held: &mut Held) -> u32 {
    let steps = held.steps;
    for level in 0..limits::MISSING as u32 {
        if level >= steps || !has(held, place::CHILDREN) {
            break;
        }
        let left = steps - 1 - level;
        let hit = child(policy, above(dentry, left), held);
        if hit == 0 {
            break;
        }
        if hit == DECIDES {
            held.steps = left;
        }
    }
    // Names wait below the last component only where that is one of them.
    0
}

#[repr(C)]
struct Way {
    entry: u64,
}

/// The directory entry `steps` above another.
#[inline(never)]
fn above(dentry: u64, steps: u32) -> u64 {
    let mut way = Way { entry: dentry };
    // SAFETY: as in `climb`.
    unsafe { bpf_loop(steps, one_up as *mut c_void, (&raw mut way).cast(), 0) };
    way.entry
}

extern "C" fn one_up(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `above` gave.
    let way = unsafe { &mut *context.cast::<Way>() };
    way.entry = DentryAt(way.entry).parent().0;
    0
}
