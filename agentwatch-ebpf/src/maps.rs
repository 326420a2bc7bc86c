//! Every map, in one place. What lives in them is defined in `agentwatch_common`.

use agentwatch_common::{
    event::{Fold, FoldMarks, Scratch},
    hold::{Grant, GrantKey, Hold},
    limits,
    opens::{Opens, UringOpen},
    policy::{
        Binding, ChildKey, Command, CommandKey, Host, Identified, Name, NameKey, NamedChild, Place,
        PlaceKey, Policy, Prefix, PrefixKey, ProcessGroup, Session, Tag,
    },
    stats,
};
use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE,
        BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type,
    },
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    helpers::generated::{bpf_sk_storage_get, bpf_task_storage_get},
    macros::btf_map,
};

use crate::verdict::Kept;

/// Denials, holds and audits: bulk events cannot displace them.
#[btf_map]
pub static VERDICTS: RingBuf<u8, { limits::VERDICT_RING }> = RingBuf::new();
/// Everything else.
#[btf_map]
pub static BULK: RingBuf<u8, { limits::BULK_RING }> = RingBuf::new();

/// Sessions by slot.
#[btf_map]
pub static SESSIONS: Array<Session, { limits::SESSIONS }> = Array::new();
/// What is in force for each slot. User space maps it into its memory, to exchange it with one store.
#[btf_map]
pub static BINDINGS: Array<Binding, { limits::SESSIONS }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
/// What policies say beyond files and addresses.
#[btf_map]
pub static POLICIES: HashMap<u32, Policy, { limits::POLICIES }> = HashMap::new();
/// Live tasks of each slot, as the last census found them.
#[btf_map]
pub static CENSUS: Array<u32, { limits::SESSIONS }> = Array::new();
/// Sessions by the id of a cgroup, every cgroup below a session's own included.
#[btf_map]
pub static CGROUPS: HashMap<u64, u32, { limits::CGROUPS }> = HashMap::new();
/// Sessions by process id, for programs that cannot read task storage; 0 where there is none. An entry lives from a process's first
/// tagged task to its last. There is one for every number that a process can have (16 MiB): nothing can fill the table, and neither a
/// fork nor an end pays for a hash map's.
#[btf_map]
pub static PROCESSES: Array<ProcessGroup, { limits::PROCESS_GROUPS }> = Array::new();
/// Sessions by task: what a decision starts from.
#[btf_map]
pub static TAGS: TaskStorage<Tag> = TaskStorage::new();

/// File rules by identity.
#[btf_map]
pub static PLACES: HashMap<PlaceKey, Place, { limits::PLACES }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// Rules on names that nothing has yet.
#[btf_map]
pub static CHILDREN: HashMap<
    ChildKey,
    NamedChild,
    { limits::CHILDREN },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
/// Rules on names wherever they stand.
#[btf_map]
pub static NAMES: LpmTrie<NameKey, Name, { limits::NAMES }> = LpmTrie::new();
/// Network rules by address.
#[btf_map]
pub static PREFIXES: LpmTrie<PrefixKey, Prefix, { limits::PREFIXES }> = LpmTrie::new();

/// Rules on the arguments of commands.
#[btf_map]
pub static COMMANDS: LpmTrie<CommandKey, Command, { limits::COMMANDS }> = LpmTrie::new();

/// Tasks that wait for a person.
#[btf_map]
pub static HOLDS: HashMap<u32, Hold, { limits::HOLDS }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// How many of them each slot's session has. User space, which ends the waiting of some, maps it into its memory.
#[btf_map]
pub static HELD: Array<u64, { limits::SESSIONS }, { BPF_F_MMAPABLE as usize }> = Array::new();
/// What people have granted and rejected. User space writes it.
#[btf_map]
pub static GRANTS: HashMap<GrantKey, Grant, { limits::GRANTS }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// What was found to hold in directories, those that were asked for last, by the digests of their places.
#[btf_map]
pub static DIRECTORIES: LruHashMap<u64, Kept, { limits::DIRECTORIES }> = LruHashMap::new();
/// Sessions by the sockets that they made.
#[btf_map]
pub static SOCKETS: SocketStorage<u32> = SocketStorage::new();
/// Sessions by the address of other kernel objects that they made: file systems, keys, System V objects.
#[btf_map]
pub static OBJECTS: HashMap<u64, u32, { limits::OBJECTS }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// Sessions by where it stands to whom a file's events are told, as they said. A file that is gone leaves its entry, which means
/// nothing until a session says so of another file at the same address.
#[btf_map]
pub static OWNERS: HashMap<u64, u32, { limits::OWNERS }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// Where a failed open keeps what it was about.
#[btf_map]
pub static OPENS: Array<Opens, 1> = Array::new();
/// What io_uring is opening, by thread.
#[btf_map]
pub static URING_OPENS: HashMap<
    u64,
    UringOpen,
    { limits::URING_OPENS },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
/// What is known of the host.
#[btf_map]
pub static HOST: Array<Host, 1> = Array::new();
/// The file that the daemon asked for last.
#[btf_map]
pub static IDENTIFIED: Array<Identified, 1> = Array::new();

/// Actions that happened before, by group and place in it. An array and not a hash map, because to enter something into one of those costs
/// some four hundred instructions.
#[btf_map]
pub static FOLDS: Array<Fold, { limits::FOLDS }> = Array::new();
/// What marks them, by group. User space maps it into its memory, to take them away.
#[btf_map]
pub static FOLD_MARKS: Array<FoldMarks, { limits::FOLD_GROUPS }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

/// Where records are built. Several a processor, because a program can be preempted by another one.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 4> = PerCpuArray::new();
/// Counters by `stats` index.
#[btf_map]
pub static STATS: PerCpuArray<u64, { stats::COUNT }> = PerCpuArray::new();

/// A value per kernel object of one kind, freed with it.
macro_rules! local_storage {
    ($(#[$doc:meta])* $name:ident: $kind:ident, $get:ident, $create:ident, $flags:expr) => {
        $(#[$doc])*
        #[repr(C)]
        pub struct $name<T> {
            r#type: *const [i32; bpf_map_type::$kind as usize],
            key: *const i32,
            value: *const T,
            max_entries: *const [i32; 0],
            map_flags: *const [i32; $flags as usize],
        }

        // SAFETY: the fields are placeholders for the loader and are never dereferenced.
        unsafe impl<T> Sync for $name<T> {}

        impl<T> $name<T> {
            pub const fn new() -> Self {
                Self {
                    r#type: core::ptr::null(),
                    key: core::ptr::null(),
                    value: core::ptr::null(),
                    max_entries: core::ptr::null(),
                    map_flags: core::ptr::null(),
                }
            }

            /// The object's value, null where it has none.
            #[inline(always)]
            pub fn get<O>(&self, object: *const O) -> *mut T {
                // SAFETY: the verifier checks what `object` is.
                unsafe {
                    $get(self.as_ptr(), object.cast_mut().cast(), core::ptr::null_mut(), 0).cast()
                }
            }

            /// The object's value, made from `initial`, or of zeroes where that is null, where it has none; null where memory
            /// is short.
            #[inline(always)]
            pub fn get_or_insert<O>(&self, object: *const O, initial: *const T) -> *mut T {
                // SAFETY: as above; the helper copies `initial`.
                unsafe {
                    $get(
                        self.as_ptr(),
                        object.cast_mut().cast(),
                        initial.cast_mut().cast(),
                        u64::from($create),
                    )
                    .cast()
                }
            }

            #[inline(always)]
            fn as_ptr(&self) -> *mut core::ffi::c_void {
                core::ptr::from_ref(self).cast_mut().cast()
            }
        }
    };
}

local_storage!(
    /// A value per task.
    TaskStorage: BPF_MAP_TYPE_TASK_STORAGE, bpf_task_storage_get, BPF_LOCAL_STORAGE_GET_F_CREATE,
    BPF_F_NO_PREALLOC
);
local_storage!(
    /// A value per socket.
    SocketStorage: BPF_MAP_TYPE_SK_STORAGE, bpf_sk_storage_get, BPF_SK_STORAGE_GET_F_CREATE,
    BPF_F_NO_PREALLOC
);

/// Adds one to a counter.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = STATS.get_ptr_mut(index) {
        // SAFETY: this processor's own slot.
        unsafe { *counter += 1 }
    }
}
