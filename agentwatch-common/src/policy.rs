//! Keys and values of the maps that hold sessions and compiled policies.

use crate::{limits, pod};

/// What a rule does; the value of `effect` fields.
pub mod effect {
    pub const DENY: u8 = 0;
    pub const ALLOW: u8 = 1;
    pub const HOLD: u8 = 2;
}

/// Rights on files; indexes into [`Place`].
pub mod right {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const EXEC: usize = 2;
}

/// Bits of [`Session::flags`].
pub mod flags {
    /// Record what the policy forbids, and let it pass.
    pub const MONITOR: u32 = 1;
    /// File rules are enforced by Landlock: a failed open is reported as undecided.
    pub const LANDLOCK: u32 = 1 << 1;
}

/// Rules that stand first in every policy.
pub mod rule {
    pub const FILES_DEFAULT: u32 = 0;
    pub const NETWORK_DEFAULT: u32 = 1;
    pub const LISTEN_DEFAULT: u32 = 2;
}

/// A session, in slot `number % limits::SESSIONS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Session {
    /// Number of the session, 0 for a free slot. Never used twice while the programs stay loaded.
    pub number: u32,
    pub flags: u32,
    /// Key of its rules. Exchanging a policy is one store to this field.
    pub policy: u32,
    /// Tagged tasks that live.
    pub tasks: u32,
    /// Number of its last event.
    pub seq: u64,
    /// Actions that were seen.
    pub made: u64,
    /// Actions that were folded into an earlier event.
    pub folded: u64,
    /// Events that a full ring refused.
    pub dropped: u64,
}
const _: () = assert!(size_of::<Session>() == 48);

/// A task's membership; lives in task storage.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tag {
    pub session: u32,
    /// A system call that has begun: its directory descriptor or socket, kept until its end.
    pub fd: i32,
    /// Identity of the executable, for folding.
    pub image: u64,
    /// A system call that has begun: address of its path, its flags.
    pub pointer: u64,
    pub flags: u64,
    /// Sequence number of the denial that the system call in hand has met; 0 for none.
    pub denied: u64,
    /// The socket address of the `connect` in hand.
    pub addr: [u8; 112],
    pub addr_len: u32,
    /// Whether its end has been recorded.
    pub ended: u32,
    /// Which of the task's executions was recorded last.
    pub exec_id: u32,
    pub _pad: u32,
}
const _: () = assert!(size_of::<Tag>() == 168);

/// A file by identity, within a policy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlaceKey {
    pub policy: u32,
    /// As the kernel has it: major << 20 | minor.
    pub dev: u32,
    pub inode: u64,
}
const _: () = assert!(size_of::<PlaceKey>() == 16);

/// What holds from a file downwards; indexed by [`right`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub effects: [u8; 3],
    /// Not zero where a protected place lies below: this directory is not renamed or removed, although what is in it may be
    /// written. `pin_rule` says which place it is.
    pub pinned: u8,
    pub rules: [u32; 3],
    pub pin_rule: u32,
}
const _: () = assert!(size_of::<Place>() == 20);

/// What a prefix is about; the value of [`PrefixKey::op`].
pub mod net {
    pub const CONNECT: u32 = 0;
    pub const LISTEN: u32 = 1;
}

/// Set in [`PrefixKey::op`] for IPv6 that is not v4-mapped: a rule for every IPv6 address says nothing on IPv4.
pub const OP_INET6: u32 = 1 << 8;

/// An address, within a policy. The trie compares from the first byte on: policy and operation are always whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PrefixKey {
    pub policy: u32,
    pub op: u32,
    /// IPv4 as v4-mapped.
    pub addr: [u8; 16],
}
const _: () = assert!(size_of::<PrefixKey>() == 24);
/// Bits of a [`PrefixKey`] before the address.
pub const PREFIX_BASE: u32 = 64;

/// Ports, both ends included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
    pub effect: u8,
    pub _pad: [u8; 3],
    pub rule: u32,
}

/// What holds for the ports of a prefix: the first match decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    pub len: u32,
    pub ports: [Ports; limits::PORT_RULES],
}
const _: () = assert!(size_of::<Prefix>() == 4 + 12 * limits::PORT_RULES);

pod!(Session, Tag, PlaceKey, Place, PrefixKey, Prefix);
