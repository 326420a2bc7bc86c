//! Every map, in one place. What lives in them is defined in `agentwatch_common`.

use agentwatch_common::{
    event::{Fold, FoldKey, Scratch},
    limits,
    policy::{
        Binding, Child, ChildKey, Name, NameKey, Place, PlaceKey, Policy, Prefix, PrefixKey,
        Session, Tag,
    },
    stats,
};
use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type,
        task_struct,
    },
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf},
    helpers::generated::bpf_task_storage_get,
    macros::btf_map,
};

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
/// Sessions by process id, for programs that cannot read task storage. An entry lives from a process's first tagged task
/// to its last.
#[btf_map]
pub static PROCESSES: HashMap<u32, u32, { limits::PROCESSES }> = HashMap::new();
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
    Child,
    { limits::CHILDREN },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
/// Rules on names wherever they stand.
#[btf_map]
pub static NAMES: LpmTrie<NameKey, Name, { limits::NAMES }> = LpmTrie::new();
/// Network rules by address.
#[btf_map]
pub static PREFIXES: LpmTrie<PrefixKey, Prefix, { limits::PREFIXES }> = LpmTrie::new();

/// Actions that happened before.
#[btf_map]
pub static FOLDS: HashMap<FoldKey, Fold, { limits::FOLDS }> = HashMap::new();

/// Where records are built. Several a processor, because a program can be preempted by another one.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 4> = PerCpuArray::new();
/// Counters by `stats` index.
#[btf_map]
pub static STATS: PerCpuArray<u64, { stats::COUNT }> = PerCpuArray::new();

/// A value per task, freed with it. aya-ebpf has the like for inodes and cgroups.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields are placeholders for the loader and are never dereferenced.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    pub const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The task's value, null where it has none.
    #[inline(always)]
    pub fn get(&self, task: *mut task_struct) -> *mut T {
        // SAFETY: the verifier checks that `task` is a task.
        unsafe { bpf_task_storage_get(self.as_ptr(), task.cast(), core::ptr::null_mut(), 0).cast() }
    }

    /// The task's value, made from `initial` where it has none; null where memory is short.
    #[inline(always)]
    pub fn get_or_insert(&self, task: *mut task_struct, initial: &mut T) -> *mut T {
        // SAFETY: as above; the helper copies `initial`.
        unsafe {
            bpf_task_storage_get(
                self.as_ptr(),
                task.cast(),
                core::ptr::from_mut(initial).cast(),
                u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE),
            )
            .cast()
        }
    }

    #[inline(always)]
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Adds one to a counter.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = STATS.get_ptr_mut(index) {
        // SAFETY: this processor's own slot.
        unsafe { *counter += 1 }
    }
}
