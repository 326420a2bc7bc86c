//! Actions that wait for a person, and what a person has granted.

use crate::{limits, pod};

/// What an [`Object`] is; the value of [`Object::kind`].
pub mod object {
    /// A file: device, inode, and its generation as the detail.
    pub const FILE: u32 = 1;
    /// A name in a directory: the directory's device and inode, and the name.
    pub const NAME: u32 = 2;
    /// An internet address: the port as the detail; the name begins with the address, IPv4 as v4-mapped.
    pub const ADDRESS: u32 = 3;
    /// A command: its program's device and inode, its arguments' bytes after the first as the name, and how many they are as the
    /// detail. Where they are more than fit it cannot be granted beforehand.
    pub const COMMAND: u32 = 4;
}

/// What an action that waits is about.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// See [`object`].
    pub kind: u32,
    pub dev: u32,
    pub inode: u64,
    pub detail: u64,
    pub name: [u8; limits::NAME],
}
const _: () = assert!(size_of::<Object>() == 24 + limits::NAME);

/// Whose grant it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrantKey {
    pub session: u32,
    /// The one task that it is for; 0 for all of the session.
    pub task: u32,
    pub object: Object,
}
const _: () = assert!(size_of::<GrantKey>() == 8 + size_of::<Object>());

/// A person's word. For a task it holds for one action: each sort of operation passes once by it, so that an open and the
/// creation and the truncation that belong to it are one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// `effect::ALLOW`, or `effect::DENY` for a rejection.
    pub effect: u32,
    /// Rights that it is for, bits `1 << right::…`.
    pub rights: u32,
    /// Until when, CLOCK_BOOTTIME in nanoseconds.
    pub until: u64,
    /// When the task's process started; 0 where it is for all.
    pub start: u64,
    /// Operations that passed by it already, bits `1 << kind::…`.
    pub used: u32,
    pub _pad: u32,
}
const _: () = assert!(size_of::<Grant>() == 32);

/// A task that waits, by its number. It is written when the task is parked and removed when a word is heard.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// What it waits for; the task in it is 0.
    pub key: GrantKey,
    pub rights: u32,
    /// See `event::kind`.
    pub what: u32,
    /// The rule that holds it, and the policy that has the rule.
    pub rule: u32,
    pub policy: u32,
    pub pid: u32,
    pub tid: u32,
    /// When it was parked, CLOCK_BOOTTIME in nanoseconds.
    pub since: u64,
    /// When its process started.
    pub start: u64,
    /// How often it went on by itself, and was parked again.
    pub tries: u64,
}
const _: () = assert!(size_of::<Hold>() == size_of::<GrantKey>() + 48);

/// The errno that makes the kernel do a system call once more when the task goes on (`ERESTARTNOINTR`).
pub const RESTART: i32 = 513;

pod!(Object, GrantKey, Grant, Hold);
