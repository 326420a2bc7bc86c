//! Names: those that are waited for in a directory, and those that rules are about wherever they stand; UNIX sockets' too.

use core::{ffi::c_void, hint::black_box};

use agentwatch_common::{
    event::Scratch,
    limits,
    policy::{
        Child, ChildKey, Held, NAME_BASE, Name, NameKey, digest, effect, found, name, place, right,
        rule,
    },
};
use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::generated::{bpf_loop, bpf_probe_read_kernel, bpf_probe_read_kernel_str},
};

use super::{Decision, walk::give_up};
use crate::{
    emit,
    kernel::{DentryAt, Entry as _},
    maps::{CHILDREN, NAMES},
    session::Subject,
};

/// A name that is waited for, and that has rules itself.
pub(super) const DECIDES: u32 = 2;

/// Words of eight bytes of the longest name.
const NAME_WORDS: usize = limits::NAME / 8;

/// Whether a name is waited for in a directory where names are, and what it stands for.
#[inline(never)]
pub(super) fn child(policy: u32, dentry: u64, held: &mut Held) -> u32 {
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
            // It may be on the way to a protected place.
            held.place.flags = held.place.flags & !(place::PINNED | place::SOCKET)
                | found.place.flags & place::PINNED;
            held.place.pin_rule = found.place.pin_rule;
            held.place.lengths = found.place.lengths;
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

/// The names that rules are about from `dentry` up to what holds above it, without that: what they take away from it.
#[inline(never)]
pub(super) fn names(policy: u32, dentry: u64, held: &mut Held) -> u32 {
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

/// Takes away what rules on the name of a file take away: of its end and of its beginning the stricter, right by right. `told` are the
/// rights of which a nearer name has said something, as bits; gives back those of which one has now.
#[inline(never)]
pub(super) fn named(policy: u32, dentry: u64, held: &mut Held, told: u32) -> u32 {
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

/// Where a name stands in scratch memory, and where the bytes of its key.
pub(super) const RAW: usize = 512;
const KEY: usize = 12;

/// Reads a name into scratch memory, with its length behind it; `len` is `u32::MAX` for one that ends with a NUL.
#[inline(always)]
pub(super) fn read_name(scratch: *mut Scratch, address: u64, len: u32) -> bool {
    // SAFETY: the slot is the caller's, and long enough; the helper writes at most a name's length.
    unsafe {
        let raw = (&raw mut (*scratch).data).cast::<u8>().add(RAW);
        let read = if len == u32::MAX {
            bpf_probe_read_kernel_str(raw.cast(), limits::NAME as u32, address as *const _) - 1
        } else {
            const MOST: u32 = limits::SOCKET_ADDRESS as u32;
            let len = if len > MOST { MOST } else { len };
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
