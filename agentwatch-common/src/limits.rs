//! Sizes that both sides must agree on.

/// Port rules of one address prefix, the enclosing prefixes' included.
pub const PORT_RULES: usize = 16;
/// Sessions at the same time; a power of two, because a session's slot is its number modulo this.
pub const SESSIONS: usize = 1024;
/// Places of all policies in force.
pub const PLACES: usize = 1 << 18;
/// Address prefixes of all policies in force.
pub const PREFIXES: usize = 1 << 16;
/// Names of all policies in force that have rules before anything has them.
pub const CHILDREN: usize = 1 << 17;
/// Directories of which is kept what holds there.
pub const DIRECTORIES: usize = 1 << 15;
/// Rules on names, of all policies in force.
pub const NAMES: usize = 1 << 14;
/// Bytes of a rule on names.
pub const NAME_RULE: usize = 120;
/// Policies in force at the same time: each session's, and those that are being exchanged.
pub const POLICIES: usize = 4096;
/// Distinct actions that are being folded: so many groups of those whose digests say the same group, and so many in each.
pub const FOLD_GROUPS: usize = 1 << 14;
pub const FOLD_GROUP: usize = 8;
pub const FOLDS: usize = FOLD_GROUPS * FOLD_GROUP;
/// Cgroups that belong to sessions.
pub const CGROUPS: usize = 1 << 16;
/// Numbers that processes can have, `PID_MAX_LIMIT` of the kernel's: so many groups of so many.
pub const PROCESS_GROUPS: usize = 1 << 12;
pub const PROCESS_GROUP: usize = 1 << 10;
/// Directories between a file and the root of its file system that a decision walks by direct loads, and that are recorded.
pub const DEPTH: usize = 64;
/// Directories that a decision walks at all; deeper is denied.
pub const DEEPEST: usize = 1 << 16;
/// Components of a path that does not exist yet, below the part that does.
pub const MISSING: usize = 8;
/// Kernel objects (file systems, keys, System V objects) that sessions made.
pub const OBJECTS: usize = 1 << 16;
/// Files whose events sessions have had told to somebody.
pub const OWNERS: usize = 1 << 17;
/// Kernel objects of one session, and descriptors whose events it has had told to somebody by `fcntl`: what it would have beyond is
/// refused to it, and other sessions' share is left. Other calls that set an owner cannot be refused, and have twice this.
pub const SHARE: u32 = 1 << 13;
/// Opens that io_uring has in hand at the same time, of all sessions.
pub const URING_OPENS: usize = 4096;
/// Tasks that wait for a person at the same time.
pub const HOLDS: usize = 1 << 14;
/// Of one session at the most: what is to wait beyond is refused to it, and other sessions' share is left.
pub const HOLD_SHARE: u64 = 1 << 10;
/// What people have granted, and what was said to tasks that wait.
pub const GRANTS: usize = 1 << 15;
/// What was said to tasks of one session, and not heard yet: beyond it the oldest is forgotten, and its task asks again.
pub const GRANT_SHARE: usize = 2 * HOLD_SHARE as usize;
/// Rules on the arguments of commands, of all policies in force.
pub const COMMANDS: usize = 1 << 14;
/// Bytes of the arguments that such a rule names, their NULs included.
pub const COMMAND_RULE: usize = 112;
/// Arguments of a command that are recorded, in bytes.
pub const ARGV: usize = 4096;
/// Path components that are recorded, in bytes.
pub const PATH: usize = 4096;
/// Bytes of a socket's address that are recorded: all of the longest, that of a UNIX socket.
pub const SOCKET_ADDRESS: usize = 112;
/// Bytes of the names of directories that are kept from one record to the next; a power of two.
pub const WAY: usize = 256;
/// Longest file name, with its NUL (`NAME_MAX` in linux/limits.h).
pub const NAME: usize = 256;
/// Bytes of the variable part of a record: arguments and two paths, and room for the last name of a full path.
pub const DATA: usize = 16384;
/// Bytes of the ring for verdicts: denials, holds, audits.
pub const VERDICT_RING: usize = 1 << 21;
/// Bytes of the ring for everything else.
pub const BULK_RING: usize = 1 << 22;

const _: () = assert!(SESSIONS.is_power_of_two() && WAY.is_power_of_two());
const _: () = assert!(PROCESS_GROUP.is_power_of_two() && PROCESS_GROUPS * PROCESS_GROUP == 4 << 20);
// bpf_ringbuf_output takes the size from a bounded register: the mask in emit.rs needs a power of two.
const _: () = assert!(DATA.is_power_of_two() && ARGV + 2 * (PATH + 2 * NAME) <= DATA);
