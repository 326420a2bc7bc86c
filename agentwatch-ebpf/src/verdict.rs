//! What the policy says: files by walking from the file up to the nearest place that has a rule, addresses by
//! longest prefix.

use agentwatch_common::{
    event::state,
    limits,
    policy::{Place, PlaceKey, PREFIX_BASE, PrefixKey, effect, right, rule},
};
use aya_ebpf::btf_maps::lpm_trie::Key;

use crate::{
    kernel::Dentry,
    maps::{PLACES, PREFIXES},
};

/// What was decided, and by which rule.
#[derive(Clone, Copy)]
pub struct Decision {
    pub effect: u8,
    pub rule: u32,
    /// Bits of `event::state`.
    pub state: u32,
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
        return Decision { effect: effect::ALLOW, rule: rule::FILES_DEFAULT, state: 0 };
    }
    let mut key = PlaceKey { policy, dev: dentry.device(), inode: 0 };
    let mut entry = dentry;
    for _ in 0..limits::DEPTH {
        key.inode = entry.inode();
        if key.inode != 0
            && let Some(place) = PLACES.get_ptr(key)
        {
            return of_place(place, rights);
        }
        let parent = entry.parent();
        if parent.address() == entry.address() {
            return Decision { effect: effect::DENY, rule: rule::FILES_DEFAULT, state: 0 };
        }
        entry = parent;
    }
    Decision { effect: effect::DENY, rule: rule::FILES_DEFAULT, state: state::TOO_DEEP }
}

/// The strictest decision among the rights that are asked for.
#[inline(always)]
fn of_place(place: *const Place, rights: Rights) -> Decision {
    // SAFETY: an entry of a map; user space replaces entries whole.
    let place = unsafe { &*place };
    let mut decision = Decision { effect: effect::ALLOW, rule: place.rules[right::READ], state: 0 };
    if rights & READ != 0 {
        decision = Decision { effect: place.effects[right::READ], rule: place.rules[right::READ], state: 0 };
    }
    if rights & WRITE != 0 && decision.allows() {
        decision = Decision { effect: place.effects[right::WRITE], rule: place.rules[right::WRITE], state: 0 };
    }
    if rights & EXEC != 0 && decision.allows() {
        decision = Decision { effect: place.effects[right::EXEC], rule: place.rules[right::EXEC], state: 0 };
    }
    decision
}

/// Decides on an address: IPv4 as v4-mapped, the port in host byte order.
#[inline(always)]
pub fn address(policy: u32, op: u32, addr: [u8; 16], port: u16, default: u32) -> Decision {
    let key = Key::new(PREFIX_BASE + 128, PrefixKey { policy, op, addr });
    let none = Decision { effect: effect::DENY, rule: default, state: 0 };
    let Some(prefix) = PREFIXES.get(&key) else { return none };
    for (i, ports) in prefix.ports.iter().enumerate() {
        if i as u32 >= prefix.len {
            return none;
        }
        if ports.first <= port && port <= ports.last {
            return Decision { effect: ports.effect, rule: ports.rule, state: 0 };
        }
    }
    none
}
