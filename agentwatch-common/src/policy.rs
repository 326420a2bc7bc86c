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

/// Bits of [`Binding::flags`].
pub mod flags {
    /// Record what the policy forbids, and let it pass.
    pub const MONITOR: u32 = 1;
    /// File rules are enforced by Landlock: a failed open is reported as undecided.
    pub const LANDLOCK: u32 = 1 << 1;
    /// The policy has rules on names: every file's own name is looked up.
    pub const NAMES: u32 = 1 << 2;
    /// The policy has rules on the arguments of commands.
    pub const COMMANDS: u32 = 1 << 3;
    /// The policy holds connections for a person.
    pub const HOLDS: u32 = 1 << 4;
    /// Every open that is allowed is an event of its own: none is folded.
    pub const OPENS_ALL: u32 = 1 << 5;
    /// Opens that are allowed and change nothing are not recorded.
    pub const OPENS_WRITES: u32 = 1 << 6;
    /// From this bit on: how often the session was taken over.
    pub const EPOCH_SHIFT: u32 = 16;
}

/// Rules that stand first in every policy.
pub mod rule {
    pub const FILES_DEFAULT: u32 = 0;
    pub const NETWORK_DEFAULT: u32 = 1;
    pub const LISTEN_DEFAULT: u32 = 2;
    pub const UNIX_DEFAULT: u32 = 3;
    pub const FAMILIES_DEFAULT: u32 = 4;
    /// What belongs to agentwatch itself.
    pub const SELF: u32 = 5;
    /// What the session's own processes, and file systems that it mounted, hold.
    pub const OWN: u32 = 6;
    /// Settings of the kernel's, which rules around them do not give.
    pub const SETTINGS: u32 = 7;
    /// The rule of the first guard; the others follow in the order of [`super::guard`].
    pub const GUARDS: u32 = 8;
}

/// Operations on the host around a session, each refused unless the policy allows it.
pub mod guard {
    macro_rules! operations {
        ($($name:ident = $text:literal: $about:literal;)+) => {
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "an index that is named like a constant")]
            #[repr(u32)]
            enum Index { $($name),+ , END }
            $(#[doc = $about] pub const $name: u32 = Index::$name as u32;)+
            pub const COUNT: usize = Index::END as usize;
            /// Names by index, as policies and events write them.
            pub const NAMES: [&str; COUNT] = [$($text),+];
            /// The built-in rule of each.
            pub const RULES: [&str; COUNT] = [$(concat!("guard.", $text)),+];
            /// What each is, for people.
            pub const ABOUT: [&str; COUNT] = [$($about),+];
        };
    }

    operations! {
        MOUNT = "mount": "mounting, unmounting and moving mounts where the host sees it, and file systems that need the host's privileges";
        PTRACE = "ptrace": "reading or changing a process outside the session: ptrace, process_vm_readv, /proc/PID/mem, pidfd_getfd";
        SIGNAL = "signal": "signals to processes outside the session";
        PRIORITY = "priority": "priority, limits, affinity and memory placement of processes outside the session";
        BPF = "bpf": "the bpf system call";
        PERF = "perf": "the perf_event_open system call";
        CAPABILITY = "capability": "capabilities over the whole host: modules, kexec, raw I/O, clocks, network administration and the like";
        KEYRING = "keyring": "kernel keys that were not made by the session";
        IPC = "ipc": "System V shared memory, semaphores and message queues that were not made by the session";
        TERMINAL = "terminal": "typing into a terminal by ioctl (TIOCSTI, TIOCLINUX)";
        CREDENTIALS = "credentials": "io_uring requests under stored credentials";
    }
}

/// Bits of [`Policy::families`]: an address family stands at its own number, and these above them.
pub mod family {
    /// Raw sockets of the internet families.
    pub const RAW: u32 = 63;
    /// Protocols of the internet families other than TCP, UDP and MPTCP.
    pub const OTHER_PROTOCOL: u32 = 62;
}

/// What a policy says beyond files and addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Address families that may be used, a bit each: see [`family`].
    pub families: u64,
    /// Guarded operations that are allowed, a bit each: see [`guard`].
    pub guards: u64,
    /// The rule that allows each.
    pub guard_rules: [u32; guard::COUNT],
    /// Number of the session whose policy it is.
    pub session: u32,
}
const _: () = assert!(size_of::<Policy>() == 64);

/// What is in force for the session in a slot. User space exchanges it with one store of eight bytes, so that no action is
/// judged by half of one policy and half of another.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// Key of its rules.
    pub policy: u32,
    /// See [`flags`].
    pub flags: u32,
}
const _: () = assert!(size_of::<Binding>() == 8);

/// A session, in slot `number % limits::SESSIONS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Session {
    /// Number of the session, 0 for a free slot. Never used twice while the programs stay loaded.
    pub number: u32,
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
    /// What it has of the tables that all sessions share: objects of the kernel that it made, and files with an owner for signals.
    pub objects: u32,
    pub owners: u32,
}
const _: () = assert!(size_of::<Session>() == 48);

/// The sessions of processes whose numbers follow each other, 0 for none.
pub type ProcessGroup = [u32; limits::PROCESS_GROUP];

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
    /// What of the system call in hand has been recorded already, so that its end is not recorded again.
    pub denied: u64,
    /// The socket address of the `connect` in hand.
    pub addr: [u8; limits::SOCKET_ADDRESS],
    pub addr_len: u32,
    /// Whether its end has been recorded.
    pub ended: u32,
    /// Which of the task's executions was recorded last.
    pub exec_id: u32,
    /// Type of the socket of the `connect` in hand.
    pub socket_type: u32,
    /// Whether no open like the one in hand is being folded yet.
    pub unseen: u32,
    /// The system call, and one more, in which CAP_SYS_ADMIN may be asked for in place of a capability that was refused; 0 is none.
    pub stands_in: u32,
    /// The file that the execution in hand began with, which is a script where another one is run in the end.
    pub script_inode: u64,
    pub script_dev: u32,
    /// The arguments that it began with.
    pub script_argc: u32,
    /// What is said of that file, and by which rule.
    pub script_effect: u32,
    pub script_rule: u32,
    /// Which of the task's executions was decided on last, and how: the verdict, the rule, bits of the record's state.
    pub judged: u32,
    pub outcome: u32,
    pub outcome_rule: u32,
    pub noted: u32,
    /// Digest of what the decision on the open in hand stands on.
    pub seal: u64,
    /// Not 0 while it is decided on a file that is opened behind an overlay of the session's.
    pub behind: u64,
    /// The credentials under which the last decision on a file of an overlay was made, where the host mounted that overlay; else 0.
    /// What the overlay then does in its layers it does under its own.
    pub shown_to: u64,
    /// What holds at the file in hand: here rather than on the programs' small stack, and where the verifier of no kernel tries to
    /// tell apart what it may be.
    pub held: Held,
    /// What that was found for.
    pub held_of: HeldOf,
}
const _: () = assert!(size_of::<Tag>() == 336);

/// Device of a [`PlaceKey`] whose inode is a file system's magic number: what holds at the root of the host's file system of
/// that kind holds for one that a session mounts. Such file systems (proc, sysfs …) show the host.
pub const BY_MAGIC: u32 = u32::MAX;

/// What the programs know of the host; written by the daemon alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Host {
    /// Changes with every place, name and child that is entered or removed: what was found before is looked for again.
    pub generation: u32,
    /// The daemon's process.
    pub daemon: u32,
    /// Number of the host's mount namespace.
    pub mount_namespace: u32,
    /// Whether LSM programs are attached.
    pub lsm: u32,
}
const _: () = assert!(size_of::<Host>() == 16);

/// A file as the kernel knows it: the answer to the daemon's asking for it by a watch that is never set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Identified {
    /// Counts the answers.
    pub asked: u32,
    pub dev: u32,
    pub inode: u64,
    pub generation: u32,
    /// The session that mounted the file system; 0 for none that is known.
    pub owner: u32,
}
const _: () = assert!(size_of::<Identified>() == 24);

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

impl PlaceKey {
    /// What is kept of a directory is found by this, because the kernel hashes it with half the instructions; of two with one digest
    /// the one that was asked for last is kept.
    #[inline(always)]
    pub fn digest(&self) -> u64 {
        /// Odd, and without a pattern (the golden ratio's digits).
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let first = u64::from(self.policy) << 32 | u64::from(self.dev);
        first
            .wrapping_mul(FACTOR)
            .wrapping_add(self.inode)
            .wrapping_mul(FACTOR)
    }
}

/// Bits of [`Place::flags`].
pub mod place {
    /// A protected place lies below: this directory is not renamed or removed, although what is in it may be written.
    /// `pin_rule` says which place it is.
    pub const PINNED: u8 = 1;
    /// Names below it have rules although nothing has them yet: see [`super::ChildKey`].
    pub const CHILDREN: u8 = 1 << 1;
    /// Executing is denied by a rule that says so, and not for want of one: such a file is not mapped as code either.
    pub const EXEC_DENIED: u8 = 1 << 2;
    /// A UNIX socket that may be connected to; `socket_rule` says why.
    pub const SOCKET: u8 = 1 << 3;
    /// A layer of an overlay that the host mounted: what the overlay itself does here has been decided already.
    pub const LAYER: u8 = 1 << 4;
}

/// What holds from a file downwards; indexed by [`right`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub effects: [u8; 3],
    /// See [`place`].
    pub flags: u8,
    pub rules: [u32; 3],
    pub pin_rule: u32,
    pub socket_rule: u32,
    /// Generation of the inode, where it is known: the number of a removed file is given to another.
    pub generation: u32,
    /// Lengths of the names below that have rules although nothing has them yet, a bit each: see [`length`].
    pub lengths: u32,
}
const _: () = assert!(size_of::<Place>() == 32);

/// The bit of [`Place::lengths`] for a name of so many bytes: most names are of a length that none has that is waited for, and need not
/// be looked up.
#[inline(always)]
pub const fn length(bytes: u32) -> u32 {
    1 << (bytes % u32::BITS)
}

/// The value of [`Held::found`].
pub mod found {
    /// Nothing holds: denied.
    pub const NOTHING: u32 = 0;
    /// A place of the file itself.
    pub const HERE: u32 = 1;
    /// A place of its name, which was waited for.
    pub const NAME: u32 = 2;
    /// The same of something above it.
    pub const ABOVE: u32 = 3;
    /// There was no room to look: denied, this time.
    pub const UNTOLD: u32 = 4;
}

/// What was found to hold at a file.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub place: Place,
    /// How it came to hold: see [`found`].
    pub found: u32,
    /// How far above the file it was found.
    pub steps: u32,
    /// Where `place` has [`place::CHILDREN`]: what the names below are entered under.
    pub number: u64,
    pub inode: u64,
    pub dev: u32,
    pub _pad: u32,
}
const _: () = assert!(size_of::<Held>() == 64);

/// What something was found for: it holds for the same again.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeldOf {
    /// Digest of what it stands on. Those that say so are odd: an even one is none yet, and is found again.
    pub seal: u64,
    /// Address of the directory entry.
    pub dentry: u64,
    pub inode: u64,
    pub dev: u32,
    pub policy: u32,
}
const _: () = assert!(size_of::<HeldOf>() == 32);

/// A name in a directory that has a rule before anything has the name.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChildKey {
    pub policy: u32,
    /// Device of the directory, or 0 where `inode` is the number of the name above, as [`Child::number`] has it.
    pub dev: u32,
    pub inode: u64,
    /// [`digest::of`] the name: of two names with one digest the value says which is meant.
    pub digest: u64,
}
const _: () = assert!(size_of::<ChildKey>() == 24);

/// A digest of a name, made of its words of eight bytes, little-endian, the last filled up with zeroes.
pub mod digest {
    /// Before the first word.
    pub const NOTHING: u64 = 0x9e37_79b9_7f4a_7c15;

    /// One word further.
    #[inline(always)]
    pub const fn further(digest: u64, word: u64) -> u64 {
        (digest.rotate_left(29) ^ word).wrapping_mul(0xb504_f333_f9de_6485)
    }

    /// Of a whole name.
    pub fn of(name: &[u8]) -> u64 {
        name.chunks(8).fold(NOTHING, |digest, part| {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            further(digest, u64::from_le_bytes(word))
        })
    }

    #[test]
    fn names_can_have_the_same_digest() {
        assert_eq!(of(b"sixteenbytesname"), of(b"adhfbdigIBo41TTH"));
        assert_ne!(of(b"sixteenbytesname"), of(b"sixteenbytesnamf"));
    }
}

/// What such a name stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Child {
    /// Number of this name, for the names below it; 0 where there are none.
    pub number: u64,
    /// Whether `place` holds from here on; otherwise only names below have rules.
    pub decides: u32,
    pub place: Place,
    pub _pad: u32,
}
const _: () = assert!(size_of::<Child>() == 48);

/// The same with the name, filled up with zeroes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedChild {
    pub child: Child,
    pub name: [u8; limits::NAME],
}

/// A rule on names, wherever they stand: looked up by the longest match of what a file's name ends or begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NameKey {
    pub policy: u32,
    /// See [`name`].
    pub kind: u32,
    /// A name's bytes, from the end for [`name::SUFFIX`]; an exact name has a `/` behind them,
    /// an exact abstract name the byte 255.
    pub bytes: [u8; limits::NAME_RULE],
}
const _: () = assert!(size_of::<NameKey>() == 8 + limits::NAME_RULE);
/// Bits of a [`NameKey`] before the bytes.
pub const NAME_BASE: u32 = 64;

/// The value of [`NameKey::kind`].
pub mod name {
    /// Of a file, from its end backwards.
    pub const SUFFIX: u32 = 0;
    /// Of a file, from its beginning.
    pub const PREFIX: u32 = 1;
    /// Of an abstract UNIX socket, from its beginning.
    pub const ABSTRACT: u32 = 2;
}

/// What a rule on names says; indexed by [`right`], the first alone for sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Name {
    pub effects: [u8; 3],
    pub _pad: u8,
    pub rules: [u32; 3],
}
const _: () = assert!(size_of::<Name>() == 16);

/// A command by its program and the bytes of its first arguments, each with its NUL. The longest match decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandKey {
    pub policy: u32,
    pub dev: u32,
    pub inode: u64,
    pub arguments: [u8; limits::COMMAND_RULE],
}
const _: () = assert!(size_of::<CommandKey>() == 16 + limits::COMMAND_RULE);
/// Device of a [`CommandKey`] whose arguments begin with a program's name, whatever file has it; the inode is 0.
pub const BY_NAME: u32 = u32::MAX;
/// Bits of a [`CommandKey`] before the arguments.
pub const COMMAND_BASE: u32 = 128;

/// What a rule on a command says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// See [`effect`].
    pub effect: u32,
    pub rule: u32,
}
const _: () = assert!(size_of::<Command>() == 8);

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

pod!(
    Host, Identified, Session, Binding, Policy, Tag, PlaceKey, Place, ChildKey, NamedChild,
    NameKey, Name, PrefixKey, Prefix, CommandKey, Command
);
