//! What the policy says: files by walking from the file up to the nearest place that has a rule, addresses by
//! longest prefix.

use core::{ffi::c_void, hint::black_box};

use agentwatch_common::{
    event::Scratch,
    limits,
    policy::{
        BY_MAGIC, BY_NAME, COMMAND_BASE, Child, ChildKey, CommandKey, Held, NAME_BASE, Name,
        NameKey, OP_INET6, PREFIX_BASE, Place, PlaceKey, PrefixKey, Tag, digest, effect, flags,
        found, name, net, place, right, rule,
    },
    stats,
};
use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::generated::{
        bpf_ktime_get_boot_ns, bpf_loop, bpf_probe_read_kernel, bpf_probe_read_kernel_str,
        bpf_probe_read_user,
    },
};

use crate::{
    emit,
    kernel::{self, Dentry, DentryAt, Entry as _, SuperBlockAt},
    maps::{
        BINDINGS, CHILDREN, COMMANDS, DIRECTORIES, HOST, NAMES, OBJECTS, PLACES, PREFIXES,
        PROCESSES, SESSIONS, count,
    },
    memory,
    session::Subject,
};

/// include/uapi/linux/magic.h.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
/// File systems that hold nothing but what is put into them: tmpfs, ramfs, FUSE, devpts, mqueue.
const OWN_FILE_SYSTEMS: [u64; 5] = [0x0102_1994, 0x8584_58f6, 0x6573_5546, 0x1cd1, 0x1980_0202];

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
fn give_up(held: &mut Held) {
    count(stats::NO_SCRATCH);
    clear(held);
    held.found = found::UNTOLD;
}

#[inline(always)]
fn has(held: &Held, flag: u8) -> bool {
    held.place.flags & flag != 0
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

/// Decides on a file. The name's own directory decides where there is no file yet.
///
/// What has no rule up to the root of its file system is denied, and so is what cannot be told.
#[inline(always)]
pub fn file(subject: &Subject, dentry: Dentry, rights: Rights) -> Decision {
    file_sealed(subject, dentry, rights, 0)
}

/// The same with the [`seal`] that was just found for it; 0 where it was not.
#[inline(always)]
pub fn file_sealed(subject: &Subject, dentry: Dentry, rights: Rights, seal: u64) -> Decision {
    // The task's own pipes, sockets and memory files. They are not executed: nothing says what they hold.
    if dentry.is_internal() && rights & EXEC == 0 {
        return ALLOWED;
    }
    look(subject.policy, subject.flags, dentry.0, subject.tag, seal);
    // SAFETY: as in `everything`.
    let decision = of(unsafe { &(*subject.tag).held }, rights);
    if decision.allows() || rights & EXEC != 0 {
        return decision;
    }
    if is_own_process(
        dentry.super_block(),
        dentry.inode_pointer() as u64,
        subject.number,
    ) {
        return Decision {
            effect: effect::ALLOW,
            rule: rule::OWN,
        };
    }
    decision
}

/// The same of a directory entry by address, without what is kept; for programs whose pointers have no type.
#[inline(always)]
pub fn file_at(subject: &Subject, dentry: u64, rights: Rights) -> Decision {
    of(everything_at(subject, dentry), rights)
}

/// A digest of what a decision on a file stands on, taken before it is made: the rules, the places of directories, the directory and
/// the name by which the file is reached, its inode's generation. 0 where the kernel does not tell. It is kept with the file's device
/// and inode, so that two that are equal by chance are names of the same file.
#[inline(always)]
pub fn seal(dentry: Dentry) -> u64 {
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
    digest = (digest.rotate_left(29) ^ u64::from(dentry.generation())).wrapping_mul(B);
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
    let seal = if sealed == 0 { seal(asked) } else { sealed };
    let (address, inode, dev) = (asked.address(), asked.inode(), asked.device());
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
    hold(policy, flags, dentry, held);
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
    climb(subject.policy, dentry, held);
    below(subject.policy, subject.flags, dentry, held);
    held
}

/// Decides on taking a name away, or putting another file in its place: needs writing, and that no protected place
/// lies below.
#[inline(always)]
pub fn name(subject: &Subject, dentry: Dentry) -> Decision {
    if dentry.is_internal() {
        return ALLOWED;
    }
    let held = everything(subject, dentry);
    let decision = of(held, WRITE);
    if decision.effect != effect::DENY && held.found == found::HERE && has(held, place::PINNED) {
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

/// A file of procfs about a process of the session.
#[inline(always)]
fn is_own_process(super_block: SuperBlockAt, inode: u64, session: u32) -> bool {
    if super_block.magic() != PROC_SUPER_MAGIC || inode == 0 {
        return false;
    }
    let pid = kernel::process_of(inode);
    // SAFETY: entries are replaced whole.
    pid != 0 && unsafe { PROCESSES.get(pid) }.is_some_and(|number| *number == session)
}

/// What holds at a file: its own place, a rule on its name, or what holds in its directory.
#[inline(always)]
fn hold(policy: u32, flags: u32, dentry: *const c_void, held: &mut Held) -> u32 {
    clear(held);
    let dentry = Dentry(dentry);
    let inode = dentry.inode();
    if inode != 0 && here(policy, dentry.device(), inode, dentry.generation(), held) != 0 {
        return 1;
    }
    let parent = dentry.parent();
    if parent.address() == dentry.address() {
        top(policy, dentry.address(), held);
        return 1;
    }
    directory(policy, flags, parent.0, held);
    held.steps = NAMELESS;
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
    if held.found == found::HERE {
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
    if sequence & 1 == 0 && held.found != found::UNTOLD && kernel::moves() == moves {
        keep(start.0, policy, generation, sequence, held);
    }
    0
}

/// Directories that [`near`] walks.
const NEAR: u32 = 4;

/// The nearest place at or above a directory, or what is kept of one on the way. `steps` says how far above it stands, [`NEAR`]
/// where it is further away.
#[inline(never)]
fn near(policy: u32, start: *const c_void, generation: u32, sequence: u32, held: &mut Held) -> u32 {
    let mut entry = Dentry(start);
    let mut steps = 0;
    while steps < NEAR {
        if here(
            policy,
            entry.device(),
            entry.inode(),
            entry.generation(),
            held,
        ) != 0
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
    let of = PlaceKey {
        policy,
        dev: dentry.device(),
        inode: dentry.inode(),
    };
    let Some(kept) = DIRECTORIES.get_ptr(of) else {
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
            || (&raw const (*kept).inode_generation).read_volatile() != dentry.generation()
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
    let of = PlaceKey {
        policy,
        dev: dentry.device(),
        inode: dentry.inode(),
    };
    let kept = Kept {
        version,
        of,
        generation,
        moves,
        inode_generation: dentry.generation(),
        _pad: 0,
        held: *held,
        seal: version,
    };
    // Without room the answer is found again the next time.
    let _ = DIRECTORIES.insert(of, kept, 0);
    0
}

/// What holds at the root of a file system that no place stands above: one that the session mounted is its own.
#[inline(never)]
fn top(policy: u32, dentry: u64, held: &mut Held) -> u32 {
    let super_block = DentryAt(dentry).super_block();
    // A file that has no name in memory, opened by its handle: nobody can tell where it is.
    if super_block.root() != dentry {
        return 0;
    }
    // SAFETY: entries are replaced whole.
    let Some(owner) = (unsafe { OBJECTS.get(super_block.0) }) else {
        return 0;
    };
    let owner = *owner;
    let Some(binding) = BINDINGS.get_ptr(owner & (limits::SESSIONS as u32 - 1)) else {
        return 0;
    };
    let Some(session) = SESSIONS.get(owner & (limits::SESSIONS as u32 - 1)) else {
        return 0;
    };
    // SAFETY: a slot of an array map.
    if session.number != owner
        || unsafe { (&raw const (*binding).policy).read_volatile() } != policy
    {
        return 0;
    }
    let magic = super_block.magic();
    let is_overlay = magic == OVERLAYFS_SUPER_MAGIC;
    if !is_overlay && !OWN_FILE_SYSTEMS.contains(&magic) {
        return here(policy, BY_MAGIC, magic, 0, held);
    }
    held.place = Place {
        // What an overlay shows is decided once more where it really is.
        effects: [
            effect::ALLOW,
            effect::ALLOW,
            if is_overlay {
                effect::ALLOW
            } else {
                effect::DENY
            },
        ],
        flags: 0,
        rules: [rule::OWN; 3],
        pin_rule: 0,
        socket_rule: rule::OWN,
        generation: 0,
    };
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
fn climb(policy: u32, dentry: u64, held: &mut Held) -> u32 {
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

/// What names say between a place and `dentry` below it: those that are waited for, and then those that rules are about.
#[inline(always)]
fn below(policy: u32, flags: u32, dentry: u64, held: &mut Held) {
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

/// The names that rules are about from `dentry` up to what holds above it, without that: what they take away from it.
#[inline(never)]
fn names(policy: u32, dentry: u64, held: &mut Held) -> u32 {
    let mut naming = Naming {
        entry: dentry,
        policy,
        told: 0,
        held,
    };
    // SAFETY: as in `climb`.
    unsafe {
        bpf_loop(
            (*naming.held).steps,
            name_up as *mut c_void,
            (&raw mut naming).cast(),
            0,
        )
    };
    0
}

#[repr(C)]
struct Naming {
    entry: u64,
    policy: u32,
    told: u32,
    held: *mut Held,
}

extern "C" fn name_up(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `names` gave, and what holds stands in its caller.
    let (naming, held) = unsafe {
        let naming = &mut *context.cast::<Naming>();
        let held = &mut *naming.held;
        (naming, held)
    };
    naming.told = named(naming.policy, naming.entry, held, naming.told);
    naming.entry = DentryAt(naming.entry).parent().0;
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

/// The value of [`Held::steps`] while no name that is waited for has decided.
const NAMELESS: u32 = u32::MAX;

/// A name that is waited for, and that has rules itself.
const DECIDES: u32 = 2;

/// Whether a name is waited for in a directory where names are, and what it stands for.
#[inline(never)]
fn child(policy: u32, dentry: u64, held: &mut Held) -> u32 {
    let Some(scratch) = emit::take() else {
        give_up(held);
        return 1;
    };
    let (dev, inode) = if held.number == 0 {
        (held.dev, held.inode)
    } else {
        (0, held.number)
    };
    let mut hit = 0;
    if let Some(found) = waited_for(scratch, policy, dev, inode, dentry) {
        let flags = if found.number == 0 {
            0
        } else {
            place::CHILDREN
        };
        hit = 1;
        if found.decides != 0 {
            held.place = found.place;
            held.found = found::NAME;
            held.steps = 0;
            hit = DECIDES;
        } else {
            held.place.flags &= !(place::PINNED | place::SOCKET);
            held.found = found::ABOVE;
        }
        held.place.flags = held.place.flags & !place::CHILDREN | flags;
        held.number = found.number;
    } else {
        held.place.flags &= !place::CHILDREN;
    }
    emit::give_back(scratch);
    hit
}

/// What a name stands for in a directory, where it is waited for there. The name is read into scratch memory.
#[inline(always)]
fn waited_for<'a>(
    scratch: *mut Scratch,
    policy: u32,
    dev: u32,
    inode: u64,
    dentry: u64,
) -> Option<&'a Child> {
    // SAFETY: the slot is the caller's, and long enough; the helper writes at most the name's length.
    let len = unsafe {
        let data = (&raw mut (*scratch).data).cast::<c_void>();
        let name = DentryAt(dentry).name();
        bpf_probe_read_kernel_str(data, limits::NAME as u32, name as *const _) - 1
    };
    if len <= 0 || len >= limits::NAME as i64 {
        return None;
    }
    // Index of its last byte. The mask changes nothing; the verifier is to see it.
    let end = black_box(len - 1) as usize & (limits::NAME - 1);
    let words = (end / 8 + 1) as u32;
    // SAFETY: the slot is the caller's, and what the callbacks are given stands here.
    unsafe {
        let data = (&raw mut (*scratch).data).cast::<u64>();
        // The last word is filled up with zeroes.
        let place = data.add(end / 8);
        place.write_volatile(place.read_volatile() & u64::MAX >> (56 - (end & 7) * 8));
        let mut spelled = Spelled {
            name: data,
            digest: digest::NOTHING,
            other: core::ptr::null(),
        };
        let context = (&raw mut spelled).cast();
        bpf_loop(words, digest_word as *mut c_void, context, 0);
        let found = CHILDREN.get_ptr(ChildKey {
            policy,
            dev,
            inode,
            digest: spelled.digest,
        })?;
        // An entry of a map; user space replaces entries whole.
        spelled.other = (&raw const (*found).name).cast();
        // A name that is entered has zeroes up to its end, so that one more word tells whether it is longer.
        let words = if words < NAME_WORDS as u32 {
            place.add(1).write_volatile(0);
            words + 1
        } else {
            words
        };
        bpf_loop(words, compare_word as *mut c_void, context, 0);
        (!spelled.other.is_null()).then_some(&(*found).child)
    }
}

/// A name in scratch memory, word by word.
#[repr(C)]
struct Spelled {
    name: *const u64,
    digest: u64,
    /// What it is compared with; null once they differ.
    other: *const u64,
}

extern "C" fn digest_word(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `waited_for` gave; every index is below the name's length.
    unsafe {
        let spelled = &mut *context.cast::<Spelled>();
        let word = spelled.name.add(index as usize & (NAME_WORDS - 1));
        spelled.digest = digest::further(spelled.digest, word.read_volatile());
    }
    0
}

extern "C" fn compare_word(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: as above, in both.
    unsafe {
        let spelled = &mut *context.cast::<Spelled>();
        if spelled.other.is_null() {
            return 1;
        }
        let at = index as usize & (NAME_WORDS - 1);
        if spelled.name.add(at).read_volatile() != spelled.other.add(at).read_volatile() {
            spelled.other = core::ptr::null();
            return 1;
        }
    }
    0
}

/// Words of eight bytes of the longest name.
const NAME_WORDS: usize = limits::NAME / 8;

/// Takes away what rules on the name of a file take away: of its end and of its beginning the stricter, right by right. `told` are the
/// rights of which a nearer name has said something, as bits; gives back those of which one has now.
#[inline(never)]
fn named(policy: u32, dentry: u64, held: &mut Held, told: u32) -> u32 {
    let Some(scratch) = emit::take() else {
        give_up(held);
        return told;
    };
    let mut told = told;
    if read_name(scratch, DentryAt(dentry).name(), u32::MAX) {
        // SAFETY: the slot is ours, and long enough.
        let key = unsafe { &mut *(&raw mut (*scratch).data).cast::<Key<NameKey>>() };
        fill_name(scratch, policy, name::SUFFIX);
        if let Some(found) = NAMES.get(&*key) {
            told = take_away(found, held, told);
        }
        fill_name(scratch, policy, name::PREFIX);
        if let Some(found) = NAMES.get(&*key) {
            told = take_away(found, held, told);
        }
    }
    emit::give_back(scratch);
    told
}

/// Where a rule on a name is stricter than what holds; it is the one to tell where both say the same, and none before it did.
#[inline(always)]
fn take_away(said: &Name, held: &mut Held, told: u32) -> u32 {
    let mut told = told;
    for right in 0..3 {
        let bit = 1 << right;
        let (own, other) = (
            strictness(held.place.effects[right]),
            strictness(said.effects[right]),
        );
        if other == 0 || other < own || (other == own && told & bit != 0) {
            continue;
        }
        held.place.effects[right] = said.effects[right];
        held.place.rules[right] = said.rules[right];
        held.place.flags &= !place::SOCKET;
        held.found = found::NAME;
        if right == right::EXEC && said.effects[right] == effect::DENY {
            held.place.flags |= place::EXEC_DENIED;
        }
        told |= bit;
    }
    told
}

#[inline(always)]
fn strictness(effect: u8) -> u32 {
    match effect {
        effect::ALLOW => 0,
        effect::HOLD => 1,
        _ => 2,
    }
}

/// Reads a name into scratch memory, with its length behind it; `len` is `u32::MAX` for one that ends with a NUL.
#[inline(always)]
fn read_name(scratch: *mut Scratch, address: u64, len: u32) -> bool {
    // SAFETY: the slot is the caller's, and long enough; the helper writes at most a name's length.
    unsafe {
        let raw = (&raw mut (*scratch).data).cast::<u8>().add(RAW);
        let read = if len == u32::MAX {
            bpf_probe_read_kernel_str(raw.cast(), limits::NAME as u32, address as *const _) - 1
        } else {
            let len = if len > 112 { 112 } else { len };
            if bpf_probe_read_kernel(raw.cast(), len, address as *const _) == 0 {
                i64::from(len)
            } else {
                -1
            }
        };
        if read <= 0 || read >= limits::NAME as i64 {
            return false;
        }
        // By way of memory: what the verifier knows of the length would otherwise multiply all that comes after.
        raw.add(limits::NAME)
            .cast::<u32>()
            .write_volatile(read as u32);
        true
    }
}

/// Where a name stands in scratch memory, and where the bytes of its key.
const RAW: usize = 512;
const KEY: usize = 12;

/// Makes the key for a name that stands in scratch memory, its length behind it.
#[inline(never)]
fn fill_name(scratch: *mut Scratch, policy: u32, kind: u32) -> u32 {
    // SAFETY: the slot is ours; every index is below its length.
    unsafe {
        let data = (&raw mut (*scratch).data).cast::<u8>();
        let words = data.cast::<u32>();
        let len = data.add(RAW + limits::NAME).cast::<u32>().read_volatile();
        let used = if len >= limits::NAME_RULE as u32 {
            limits::NAME_RULE as u32
        } else {
            len + 1
        };
        words.write_volatile(NAME_BASE + used * 8);
        words.add(1).write_volatile(policy);
        words.add(2).write_volatile(kind);
        let mut spelling = Spelling { data, len, kind };
        bpf_loop(used, spell as *mut c_void, (&raw mut spelling).cast(), 0);
    }
    0
}

#[repr(C)]
struct Spelling {
    data: *mut u8,
    len: u32,
    kind: u32,
}

/// Writes a byte of a name's key: from the end for what is looked up by its end, and a `/` behind the last.
extern "C" fn spell(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `fill_name` gave; every index is below the data's length.
    unsafe {
        let spelling = &*context.cast::<Spelling>();
        let data = spelling.data;
        let at = index as usize & 127;
        if index >= spelling.len {
            let end = if spelling.kind == name::ABSTRACT {
                0xff
            } else {
                b'/'
            };
            data.add(KEY + at).write_volatile(end);
            return 1;
        }
        let from = if spelling.kind == name::SUFFIX {
            spelling.len - 1 - index
        } else {
            index
        };
        let byte = data.add(RAW + (from as usize & 255)).read_volatile();
        data.add(KEY + at).write_volatile(byte);
    }
    0
}

/// Decides on a UNIX socket by its abstract name.
#[inline(always)]
pub fn abstract_name(subject: &Subject, address: u64, len: u32) -> Decision {
    let mut decision = Decision {
        effect: effect::DENY,
        rule: rule::UNIX_DEFAULT,
    };
    let Some(scratch) = emit::take() else {
        return decision;
    };
    if read_name(scratch, address, len) {
        // SAFETY: the slot is ours, and long enough.
        let key = unsafe { &mut *(&raw mut (*scratch).data).cast::<Key<NameKey>>() };
        fill_name(scratch, subject.policy, name::ABSTRACT);
        if let Some(found) = NAMES.get(&*key) {
            decision = Decision {
                effect: found.effects[0],
                rule: found.rules[0],
            };
        }
    }
    emit::give_back(scratch);
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

/// Decides on a command by its program and where the rest of its arguments stands in its memory, into `answer`. Gives back whether a rule
/// is about it.
#[inline(never)]
pub fn command(
    policy: u32,
    device: u32,
    inode: u64,
    arguments: &[u64; 2],
    answer: &mut Decision,
) -> u32 {
    let Some(scratch) = emit::take() else {
        count(stats::NO_SCRATCH);
        return 0;
    };
    begin_command(scratch, policy, device, inode);
    read_arguments(scratch, 0, arguments);
    let hit = look_command_up(scratch, answer);
    emit::give_back(scratch);
    hit
}

/// The same by the last part of the path that it was asked for by, which stands at an address.
#[inline(never)]
pub fn command_by_name(policy: u32, path: u64, arguments: &[u64; 2], answer: &mut Decision) -> u32 {
    let Some(scratch) = emit::take() else {
        count(stats::NO_SCRATCH);
        return 0;
    };
    let mut hit = 0;
    if read_name(scratch, path, u32::MAX) {
        begin_command(scratch, policy, BY_NAME, 0);
        // SAFETY: the slot is ours, and long enough.
        let mut last = unsafe {
            let data = (&raw mut (*scratch).data).cast::<u8>();
            let len = data.add(RAW + limits::NAME).cast::<u32>().read_volatile();
            let mut last = LastPart { data, len, used: 0 };
            bpf_loop(
                limits::NAME as u32,
                one_back as *mut c_void,
                (&raw mut last).cast(),
                0,
            );
            copy_last_part(&mut last);
            last
        };
        let used = (&raw mut last.used).cast::<u32>();
        // SAFETY: it stands here; read so that the verifier knows its bounds alone.
        let used = unsafe { used.read_volatile() };
        if used != 0 && used < limits::COMMAND_RULE as u32 {
            read_arguments(scratch, used + 1, arguments);
            hit = look_command_up(scratch, answer);
        }
    }
    emit::give_back(scratch);
    hit
}

#[repr(C)]
struct LastPart {
    data: *mut u8,
    len: u32,
    /// Bytes behind the last slash.
    used: u32,
}

/// A step from the end of a path towards its last slash.
extern "C" fn one_back(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `command_by_name` gave; the index is below the name's length.
    unsafe {
        let last = &mut *context.cast::<LastPart>();
        // Taken from the index, and not counted: the verifier would follow each count.
        last.used = index;
        if index >= last.len {
            return 1;
        }
        let at = (last.len - 1 - index) as usize & (limits::NAME - 1);
        if last.data.add(RAW + at).read_volatile() == b'/' {
            return 1;
        }
    }
    0
}

/// Copies the last part of a path to where a command's arguments stand in its key.
#[inline(always)]
unsafe fn copy_last_part(last: &mut LastPart) {
    // SAFETY: the context stands in the caller.
    unsafe {
        bpf_loop(
            limits::COMMAND_RULE as u32,
            one_byte as *mut c_void,
            core::ptr::from_mut(last).cast(),
            0,
        );
    }
}

extern "C" fn one_byte(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `copy_last_part` gave; every index is below the data's length.
    unsafe {
        let last = &mut *context.cast::<LastPart>();
        if index >= last.used {
            return 1;
        }
        let from = (last.len - last.used + index) as usize & (limits::NAME - 1);
        let byte = last.data.add(RAW + from).read_volatile();
        last.data
            .add(COMMAND_KEY + (index as usize & 127))
            .write_volatile(byte);
    }
    0
}

/// Where the arguments stand in the key of a command.
const COMMAND_KEY: usize = 20;

/// Begins the key of a command in scratch memory.
#[inline(always)]
fn begin_command(scratch: *mut Scratch, policy: u32, device: u32, inode: u64) {
    // SAFETY: the slot is the caller's, and long enough.
    unsafe {
        let words = (&raw mut (*scratch).data).cast::<u32>();
        words.write_volatile(COMMAND_BASE + 8 * limits::COMMAND_RULE as u32);
        words.add(1).write_volatile(policy);
        words.add(2).write_volatile(device);
        words.add(3).write_volatile(inode as u32);
        words.add(4).write_volatile((inode >> 32) as u32);
        for word in 0..limits::COMMAND_RULE / 4 {
            words.add(5 + word).write_volatile(0);
        }
    }
}

/// Reads as many of the arguments as fit behind the first bytes.
#[inline(always)]
fn read_arguments(scratch: *mut Scratch, behind: u32, arguments: &[u64; 2]) {
    let len = arguments[1].wrapping_sub(arguments[0]);
    let room = if behind > limits::COMMAND_RULE as u32 {
        0
    } else {
        u64::from(limits::COMMAND_RULE as u32 - behind)
    };
    let len = if len > room { room } else { len };
    // The masks change nothing; the verifier is to see them.
    let (behind, len) = (black_box(behind) & 127, black_box(len as u32) & 127);
    // SAFETY: the slot is the caller's, and longer; the helper checks the address.
    let error = unsafe {
        let bytes = (&raw mut (*scratch).data).cast::<u8>().add(COMMAND_KEY);
        bpf_probe_read_user(
            bytes.add(behind as usize).cast(),
            len,
            arguments[0] as *const _,
        )
    };
    if len != 0 && error != 0 {
        count(stats::READ_FAILED);
    }
}

#[inline(always)]
fn look_command_up(scratch: *mut Scratch, answer: &mut Decision) -> u32 {
    // SAFETY: the slot is the caller's, and long enough.
    let key = unsafe { &*(&raw const (*scratch).data).cast::<Key<CommandKey>>() };
    let Some(found) = COMMANDS.get(key) else {
        return 0;
    };
    answer.effect = found.effect as u8;
    answer.rule = found.rule;
    1
}

/// Decides on an address: IPv4 as v4-mapped, the port in host byte order.
#[inline(always)]
pub fn address(policy: u32, op: u32, addr: [u8; 16], port: u16, default: u32) -> Decision {
    let (addr, family) = canonical(op, addr);
    let key = Key::new(
        PREFIX_BASE + 128,
        PrefixKey {
            policy,
            op: op | family,
            addr,
        },
    );
    let none = Decision {
        effect: effect::DENY,
        rule: default,
    };
    let Some(prefix) = PREFIXES.get(&key) else {
        return none;
    };
    for (i, ports) in prefix.ports.iter().enumerate() {
        if i as u32 >= prefix.len {
            return none;
        }
        if ports.first <= port && port <= ports.last {
            return Decision {
                effect: ports.effect,
                rule: ports.rule,
            };
        }
    }
    none
}

/// The address that is meant, and the family whose rules hold. Connecting to the unspecified address reaches loopback.
#[inline(always)]
fn canonical(op: u32, addr: [u8; 16]) -> ([u8; 16], u32) {
    // SAFETY: both are sixteen plain bytes.
    let mut words = unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(addr) };
    let inet4 = words[0] == 0 && words[1] == 0 && words[2] == 0xffff_u32.to_be();
    let mut family = OP_INET6;
    if inet4 {
        family = 0;
        if words[3] == 0 && op == net::CONNECT {
            words[3] = 0x7f00_0001_u32.to_be();
        }
    } else if words[0] == 0 && words[1] == 0 && words[2] == 0 && words[3] == 0 && op == net::CONNECT
    {
        words[3] = 1_u32.to_be();
    }
    // SAFETY: as above.
    (
        unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) },
        family,
    )
}
