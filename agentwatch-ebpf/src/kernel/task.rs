//! Tasks, their cgroups, and the system call that one is in.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_get_current_task_btf, generated::bpf_task_pt_regs},
};

use super::*;

/// arch/x86/include/asm/thread_info.h.
const TS_COMPAT: u32 = 2;
/// Of a system call of the 32-bit kind, whose numbers mean something else.
pub const COMPAT_SYSCALL: u64 = u64::MAX;
/// `openat` and `openat2`; the first has another number among system calls of the 32-bit kind (arch/x86/entry/syscalls).
const OPENAT: u64 = 257;
const COMPAT_OPENAT: u64 = 295;
const OPENAT2: u64 = 437;
/// `SIGNAL_GROUP_EXIT` (include/linux/sched/signal.h).
const SIGNAL_GROUP_EXIT: u32 = 4;
/// include/linux/sched.h.
const PF_EXITING: u32 = 4;
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x20_0000;

/// A task that the verifier knows.
#[derive(Clone, Copy)]
pub struct Task(pub *mut task_struct);

/// The status of a process that ends.
pub struct Ending {
    /// As wait(2) gives it.
    pub status: u32,
    pub last: bool,
}

impl Task {
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: no requirements.
        Task(unsafe { bpf_get_current_task_btf() })
    }
    #[inline(always)]
    fn field<T: Copy, const N: usize>(self, offset: &Offset<N>) -> T {
        // SAFETY: a direct load.
        unsafe { direct(self.0.cast_const().cast(), offset) }
    }
    #[inline(always)]
    pub fn pid(self) -> u32 {
        self.field(&TASK_TGID)
    }
    /// Number of its executions.
    #[inline(always)]
    pub fn exec_id(self) -> u32 {
        self.field(&TASK_SELF_EXEC_ID)
    }
    /// Whether it is on its way out (`PF_EXITING`).
    #[inline(always)]
    pub fn is_exiting(self) -> bool {
        self.field::<u32, _>(&TASK_FLAGS) & PF_EXITING != 0
    }
    /// Whether it is a process's own task that can be stopped: no thread of the kernel's, no worker of io_uring's, none on its way out.
    #[inline(always)]
    pub fn can_stop(self) -> bool {
        self.field::<u32, _>(&TASK_FLAGS) & (PF_EXITING | PF_IO_WORKER | PF_KTHREAD) == 0
    }
    /// Whether it has a ring of io_uring's, or works for one: then what it does may be another's request, whatever system call it is in.
    #[inline(always)]
    pub fn may_act_for_a_ring(self) -> bool {
        self.field::<u32, _>(&TASK_FLAGS) & PF_IO_WORKER != 0
            || (TASK_IO_URING.load() != 0 && self.field::<u64, _>(&TASK_IO_URING) != 0)
    }
    /// Whether another process traces it, and decides which signals reach it.
    #[inline(always)]
    pub fn is_traced(self) -> bool {
        self.field::<u32, _>(&TASK_PTRACE) != 0
    }
    #[inline(always)]
    pub fn tid(self) -> u32 {
        self.field(&TASK_PID)
    }
    #[inline(always)]
    pub fn comm(self) -> [u8; 16] {
        let at = self.0.cast::<u8>();
        // SAFETY: direct loads, of a member of sixteen bytes.
        let halves: [u64; 2] = unsafe {
            let comm = at.add(TASK_COMM.load() as usize).cast::<u64>();
            [comm.read_volatile(), comm.add(1).read_volatile()]
        };
        // SAFETY: both are sixteen plain bytes.
        unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(halves) }
    }
    #[inline(always)]
    pub fn parent(self) -> Self {
        Task(self.field(&TASK_REAL_PARENT))
    }
    /// The first task of its process.
    #[inline(always)]
    pub fn leader(self) -> Self {
        Task(self.field(&TASK_GROUP_LEADER))
    }
    /// Whether anything is kept of it: where nothing is, there is no need to look.
    #[inline(always)]
    pub fn has_storage(self) -> bool {
        TASK_BPF_STORAGE.load() == 0 || self.field::<u64, _>(&TASK_BPF_STORAGE) != 0
    }
    /// When the process (not the thread) started, nanoseconds of CLOCK_BOOTTIME.
    #[inline(always)]
    pub fn start(self) -> u64 {
        self.leader().field(&TASK_START_BOOTTIME)
    }
    /// Real user and group id in the initial namespace.
    #[inline(always)]
    pub fn ids(self) -> (u32, u32) {
        let cred: *const c_void = self.field(&TASK_REAL_CRED);
        // SAFETY: direct loads.
        unsafe { (direct(cred, &CRED_UID), direct(cred, &CRED_GID)) }
    }
    /// Its working directory; null for a task that has none any more.
    #[inline(always)]
    pub fn cwd(self) -> Dentry {
        let fs: *const c_void = self.field(&TASK_FS);
        // Without a look at whether it is null: a load from null gives null of the right type.
        // SAFETY: a direct load.
        Dentry(unsafe { direct(fs, &FS_PWD_DENTRY) })
    }
    /// The file behind a descriptor; address 0 where there is none.
    #[inline(always)]
    pub fn file(self, fd: i32) -> FileAt {
        let files: u64 = self.field(&TASK_FILES);
        if files == 0 || fd < 0 {
            return FileAt(0);
        }
        let table: u64 = member(files, &FILES_FDT);
        let len: u32 = member(table, &FDTABLE_MAX_FDS);
        if fd as u32 >= len {
            return FileAt(0);
        }
        let array: u64 = member(table, &FDTABLE_FD);
        FileAt(read(array + fd as u64 * 8))
    }
    /// Where the arguments stand in its memory.
    #[inline(always)]
    pub fn arguments(self) -> (u64, u64) {
        let mm: *const c_void = self.field(&TASK_MM);
        if mm.is_null() {
            return (0, 0);
        }
        // SAFETY: direct loads.
        unsafe { (direct(mm, &MM_ARG_START), direct(mm, &MM_ARG_END)) }
    }
    #[inline(always)]
    pub fn ending(self) -> Ending {
        let signal: *const c_void = self.field(&TASK_SIGNAL);
        // SAFETY: direct loads.
        let (live, flags, code): (u32, u32, u32) = unsafe {
            (
                direct(signal, &SIGNAL_LIVE),
                direct(signal, &SIGNAL_FLAGS),
                direct(signal, &SIGNAL_GROUP_EXIT_CODE),
            )
        };
        let status = if flags & SIGNAL_GROUP_EXIT != 0 {
            code
        } else {
            self.field(&TASK_EXIT_CODE)
        };
        Ending {
            status,
            last: live == 0,
        }
    }
    /// The credentials that it acts under.
    #[inline(always)]
    pub fn acting_credentials(self) -> u64 {
        self.field(&TASK_CRED)
    }
    /// Whether it acts under other credentials than its own: inside an operation that a file system does on its behalf.
    #[inline(always)]
    pub fn acts_for_another(self) -> bool {
        self.acting_credentials() != self.field::<u64, _>(&TASK_REAL_CRED)
    }
    /// Number of its mount namespace, and whether that belongs to the host's user namespace.
    #[inline(always)]
    pub fn mount_namespace(self) -> (u32, bool) {
        let proxy: u64 = self.field(&TASK_NSPROXY);
        if proxy == 0 {
            return (0, true);
        }
        let namespace: u64 = member(proxy, &NSPROXY_MNT_NS);
        let owner: u64 = member(namespace, &MNT_NAMESPACE_USER_NS);
        (
            member(namespace, &MNT_NAMESPACE_INUM),
            is_hosts_namespace(owner),
        )
    }
    /// The address of its mount namespace.
    #[inline(always)]
    pub fn mounts(self) -> u64 {
        let proxy: u64 = self.field(&TASK_NSPROXY);
        if proxy == 0 {
            return 0;
        }
        member(proxy, &NSPROXY_MNT_NS)
    }
    /// Id of its cgroup in the unified hierarchy.
    #[inline(always)]
    pub fn cgroup(self) -> u64 {
        let set: *const c_void = self.field(&TASK_CGROUPS);
        // SAFETY: direct loads.
        unsafe {
            let cgroup: *const c_void = direct(set, &CSS_SET_DFL_CGRP);
            let node: *const c_void = direct(cgroup, &CGROUP_KN);
            direct(node, &KERNFS_NODE_ID)
        }
    }
}

/// A cgroup by address.
#[derive(Clone, Copy)]
pub struct CgroupAt(pub u64);

impl CgroupAt {
    #[inline(always)]
    pub fn id(self) -> u64 {
        let node: u64 = member(self.0, &CGROUP_KN);
        member(node, &KERNFS_NODE_ID)
    }
    /// Id of its parent; 0 for the root.
    #[inline(always)]
    pub fn parent_id(self) -> u64 {
        let node: u64 = member(self.0, &CGROUP_KN);
        let parent: u64 = member(node, &KERNFS_NODE_PARENT);
        if parent == 0 {
            0
        } else {
            member(parent, &KERNFS_NODE_ID)
        }
    }
}

/// Marks the system calls of the x32 interface.
const X32_SYSCALL: u64 = 0x4000_0000;

/// Number of the system call that the current task is in. The kernel goes by the lower half of the register.
#[inline(always)]
pub fn system_call() -> u64 {
    let task = Task::current();
    if TASK_STATUS.load() != 0 && task.field::<u32, _>(&TASK_STATUS) & TS_COMPAT != 0 {
        return COMPAT_SYSCALL;
    }
    // SAFETY: the current task.
    let registers = unsafe { bpf_task_pt_regs(task.0) };
    u64::from(member::<u64, _>(registers as u64, &PT_REGS_SYSCALL) as u32) & !X32_SYSCALL
}

/// The directory's descriptor that the name starts at which the current task's system call opens. The registers are the kernel's own
/// copy.
#[inline(always)]
pub fn open_directory() -> i32 {
    let task = Task::current();
    // SAFETY: the current task.
    let registers = unsafe { bpf_task_pt_regs(task.0) } as u64;
    let compat = TASK_STATUS.load() != 0 && task.field::<u32, _>(&TASK_STATUS) & TS_COMPAT != 0;
    let call = u64::from(member::<u64, _>(registers, &PT_REGS_SYSCALL) as u32) & !X32_SYSCALL;
    let first: u64 = if compat {
        if call != COMPAT_OPENAT && call != OPENAT2 {
            return AT_FDCWD;
        }
        member(registers, &PT_REGS_COMPAT_ARGUMENT)
    } else {
        if call != OPENAT && call != OPENAT2 {
            return AT_FDCWD;
        }
        member(registers, &PT_REGS_ARGUMENT)
    };
    first as i32
}
