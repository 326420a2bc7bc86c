//! The record that the kernel programs write into a ring.

use crate::{limits, pod};

/// What a record is about; the value of [`Record::kind`].
pub mod kind {
    /// A process was made: not an event, but what ancestry is known by.
    pub const FORK: u32 = 1;
    pub const EXEC: u32 = 2;
    pub const EXIT: u32 = 3;
    pub const OPEN: u32 = 4;
    pub const CREATE: u32 = 5;
    pub const DELETE: u32 = 6;
    pub const RENAME: u32 = 7;
    pub const LINK: u32 = 8;
    pub const ATTR: u32 = 9;
    pub const CONNECT: u32 = 10;
    pub const BIND: u32 = 11;
    pub const GUARD: u32 = 12;
}

/// The value of [`Record::verdict`].
pub mod verdict {
    pub const ALLOWED: u32 = 0;
    pub const DENIED: u32 = 1;
    pub const HELD: u32 = 2;
    pub const AUDITED: u32 = 3;
    /// The kernel refused by a mechanism that names no rule (Landlock, or the file's mode): user space finds out which.
    pub const UNDECIDED: u32 = 4;
}

/// Bits of [`Record::access`].
pub mod access {
    pub const READ: u32 = 1;
    pub const WRITE: u32 = 1 << 1;
    pub const EXEC: u32 = 1 << 2;
    pub const CREATE: u32 = 1 << 3;
    pub const DELETE: u32 = 1 << 4;
    pub const ATTR: u32 = 1 << 5;
    pub const LIST: u32 = 1 << 6;
    pub const TRUNCATE: u32 = 1 << 7;
    pub const XATTR: u32 = 1 << 8;
    pub const MAP: u32 = 1 << 9;
    pub const RECEIVE: u32 = 1 << 10;
    pub const WATCH: u32 = 1 << 11;
}

/// The value of [`Record::flags`] of a `GUARD` record that is no guard's of `policy::guard`: a socket that may not be made.
pub const GUARD_SOCKET: u32 = 64;

/// Bits of [`Record::state`].
pub mod state {
    /// The path's beginning is missing.
    pub const PATH_TRUNCATED: u32 = 1;
    pub const ARGV_TRUNCATED: u32 = 1 << 1;
    /// Further actions like this one are folded into it.
    pub const FOLDED: u32 = 1 << 2;
    /// `dev`, `inode` are not those of the file but of the directory that the name starts at.
    pub const NAME_ONLY: u32 = 1 << 3;
    /// The process dumped core.
    pub const CORE: u32 = 1 << 5;
    /// It was to wait for a person, and passed by what one had granted.
    pub const GRANTED: u32 = 1 << 6;
    /// It was to wait for a person, and could not.
    pub const NOT_HELD: u32 = 1 << 7;
    /// A person rejected it.
    pub const REJECTED: u32 = 1 << 8;
}

/// Everything about one action but its strings.
///
/// The variable part that follows holds, one after another: `name_len` bytes as the program gave them (a path
/// as asked for, arguments, a UNIX socket's name), `path_len` bytes of path components and `second_len` bytes
/// of another path's. Components stand leaf first, each with its NUL, up to but without the root of the file system.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    pub kind: u32,
    pub verdict: u32,
    pub session: u32,
    pub rule: u32,
    /// Number within the session, from 1; 0 for what is not numbered.
    pub seq: u64,
    /// CLOCK_BOOTTIME, nanoseconds.
    pub ktime: u64,
    pub pid: u32,
    pub tid: u32,
    pub ppid: u32,
    pub errno: i32,
    pub start: u64,
    pub parent_start: u64,
    pub cgroup: u64,
    pub uid: u32,
    pub gid: u32,
    pub comm: [u8; 16],
    pub state: u32,
    pub access: u32,
    /// Open flags, the exit status as wait(2) gives it, or the operation of a guard.
    pub flags: u32,
    pub dev: u32,
    /// Of a guard: which of its kind (a capability, a command, a signal).
    pub inode: u64,
    /// Of a guard: the process that it was about.
    pub second_inode: u64,
    pub second_dev: u32,
    pub family: u16,
    /// Host byte order.
    pub port: u16,
    /// IPv4 as v4-mapped.
    pub addr: [u8; 16],
    pub socket_type: u32,
    pub _pad: u32,
    pub duration: u64,
    pub name_len: u32,
    pub path_len: u32,
    pub second_len: u32,
    /// Which of the session's policies decided: key of its rules.
    pub policy: u32,
}

const _: () = assert!(size_of::<Record>() == 184 && align_of::<Record>() == 8);

/// A record with the room for its strings, as the programs build it.
#[repr(C)]
pub struct Scratch {
    /// Nonzero while a program uses it.
    pub busy: u64,
    /// Of what is acted on, and of where the actor is: records of the one and of the other come by turns.
    pub ways: [Way; 2],
    /// The strings stand behind it: both go out as one.
    pub record: Record,
    pub data: [u8; limits::DATA],
}

/// The names of a directory and of those around it, as they stand in a record: the next record of a file in it need not read them again.
#[repr(C)]
pub struct Way {
    /// What tells the directory from any other.
    pub of: [u64; 5],
    /// The same of the one that is asked for: written here, an address is a number to the verifier of older kernels too.
    pub asked: [u64; 5],
    /// The kernel's counter of moves when they were read.
    pub moves: u32,
    /// Bytes of the names, 0 while there are none.
    pub len: u32,
    pub names: [u8; limits::WAY],
}

/// What makes two actions the same for folding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FoldKey {
    pub session: u32,
    /// Access bits and, from bit 16 up, the verdict and, from bit 24 up, the kind.
    pub what: u32,
    /// Identity of the acting program's executable.
    pub image: u64,
    /// Device and inode, or address and port.
    pub object: [u64; 3],
    /// Which of the session's policies decided: what another one decides is an event of its own.
    pub policy: u32,
    /// Which daemon it was told to, as [`crate::policy::flags::EPOCH_SHIFT`] has it: the next one knows nothing of what
    /// this one folded.
    pub epoch: u32,
}
const _: () = assert!(size_of::<FoldKey>() == 48);

impl FoldKey {
    const WORDS: usize = size_of::<Self>() / 8;

    /// Where it is looked for. Two actions with one mark in one group are told apart by their [`difference`](Self::difference), and the
    /// second is not folded.
    #[inline(always)]
    pub fn spot(&self) -> FoldSpot {
        /// Odd, and without a pattern (the golden ratio's digits).
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut digest = 0u64;
        for word in 0..Self::WORDS {
            digest = digest.wrapping_add(self.word(word)).wrapping_mul(FACTOR);
        }
        // The upper bits are the better ones.
        const GROUP: u32 = u64::BITS - limits::FOLD_GROUPS.ilog2();
        FoldSpot {
            group: (digest >> GROUP) as u32,
            mark: (digest >> (GROUP - u32::BITS)) as u32 | fold_mark::LEAST,
        }
    }

    /// 0 where they are equal. What the compiler makes of `==` calls a function that kernel programs do not have, or branches at each
    /// word.
    #[inline(always)]
    pub fn difference(&self, other: &Self) -> u64 {
        let mut difference = 0;
        for word in 0..Self::WORDS {
            difference |= self.word(word) ^ other.word(word);
        }
        difference
    }

    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        // SAFETY: aligned, and inside the value, which has no padding.
        unsafe { (&raw const *self).cast::<u64>().add(index).read() }
    }
}

/// A place in the table of folds: a group, and what marks an action among the [`limits::FOLD_GROUP`] of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldSpot {
    pub group: u32,
    pub mark: u32,
}

/// Marks of the folds of a group, in the order of the folds. User space takes a fold away by freeing its mark.
pub type FoldMarks = [u32; limits::FOLD_GROUP];

/// Values of a mark that stand for no action.
pub mod fold_mark {
    pub const FREE: u32 = 0;
    /// The fold is being written.
    pub const TAKEN: u32 = 1;
    /// Every action's mark has this bit.
    pub const LEAST: u32 = 2;
}

/// How often it happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Fold {
    pub key: FoldKey,
    /// Occurrences after the first.
    pub count: u64,
    /// A moment when it happened, in nanoseconds of the boot clock and in the kernel's ticks.
    pub at_ns: u64,
    pub at_tick: u64,
    /// When the last happened: an open that is not decided again tells it in ticks alone, which cost less to read.
    pub last_tick: u64,
    /// Sequence number of the first.
    pub seq: u64,
    /// Digest of what the decision stood on, 0 where it has to be found again: see `verdict::seal` in the programs.
    pub seal: u64,
}

pod!(Record, FoldKey, Fold);
