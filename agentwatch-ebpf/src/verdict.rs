//! What the policy says: files by walking from the file up to the nearest place that has a rule, addresses by
//! longest prefix.

use agentwatch_common::{
    limits,
    policy::{OP_INET6, PREFIX_BASE, Place, PlaceKey, PrefixKey, effect, net, place, right, rule},
    stats,
};
use aya_ebpf::btf_maps::lpm_trie::Key;

use crate::{
    kernel::Dentry,
    maps::{PLACES, PREFIXES, count},
};

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
}

/// Rights that are asked for, as bits `1 << right::…`.
pub type Rights = u32;
pub const READ: Rights = 1 << right::READ;
pub const WRITE: Rights = 1 << right::WRITE;
pub const EXEC: Rights = 1 << right::EXEC;

/// Decides on a file. The name's own directory decides where there is no file yet.
///
/// What has no rule up to the root of its file system is denied, and so is what is too deep to tell.
#[inline(always)]
pub fn file(policy: u32, dentry: Dentry, rights: Rights) -> Decision {
    // The task's own pipes, sockets and memory files. They are not executed: nothing says what they hold.
    if dentry.is_internal() && rights & EXEC == 0 {
        return Decision {
            effect: effect::ALLOW,
            rule: rule::FILES_DEFAULT,
        };
    }
    let place = nearest(policy, dentry.0);
    if place.is_null() {
        return Decision {
            effect: effect::DENY,
            rule: rule::FILES_DEFAULT,
        };
    }
    of_place(place, rights)
}

/// Decides on taking a name away, or putting another file in its place: needs writing, and that no protected place
/// lies below.
#[inline(always)]
pub fn name(policy: u32, dentry: Dentry) -> Decision {
    let decision = file(policy, dentry, WRITE);
    let key = PlaceKey {
        policy,
        dev: dentry.device(),
        inode: dentry.inode(),
    };
    if decision.allows()
        && let Some(found) = PLACES.get_ptr(key)
    {
        // SAFETY: an entry of a map; user space replaces entries whole.
        let found = unsafe { &*found };
        if found.flags & place::PINNED != 0 {
            return Decision {
                effect: effect::DENY,
                rule: found.pin_rule,
            };
        }
    }
    decision
}

/// The nearest place upwards that has a rule; null where there is none. A function of its own, so that
/// every way out of the loop looks the same to the verifier.
#[inline(never)]
fn nearest(policy: u32, dentry: *const core::ffi::c_void) -> *const Place {
    let mut entry = Dentry(dentry);
    let mut key = PlaceKey {
        policy,
        dev: entry.device(),
        inode: 0,
    };
    for _ in 0..limits::DEPTH {
        key.inode = entry.inode();
        if let Some(place) = PLACES.get_ptr(key) {
            return place;
        }
        let parent = entry.parent();
        if parent.address() == entry.address() {
            return core::ptr::null();
        }
        entry = parent;
    }
    count(stats::TOO_DEEP);
    core::ptr::null()
}

/// The strictest decision among the rights that are asked for.
#[inline(always)]
fn of_place(place: *const Place, rights: Rights) -> Decision {
    // SAFETY: an entry of a map; user space replaces entries whole.
    let place = unsafe { &*place };
    let mut decision = Decision {
        effect: effect::ALLOW,
        rule: place.rules[right::READ],
    };
    if rights & READ != 0 {
        decision = Decision {
            effect: place.effects[right::READ],
            rule: place.rules[right::READ],
        };
    }
    if rights & WRITE != 0 && decision.allows() {
        decision = Decision {
            effect: place.effects[right::WRITE],
            rule: place.rules[right::WRITE],
        };
    }
    if rights & EXEC != 0 && decision.allows() {
        decision = Decision {
            effect: place.effects[right::EXEC],
            rule: place.rules[right::EXEC],
        };
    }
    decision
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
