//! The only file that reads kernel structs. Offsets are constants that the loader takes from the running kernel's BTF.
//!
//! Two ways to read: *direct* loads from pointers that the verifier knows the type of (cheap; for the paths every
//! action takes), and *probed* ones by address (for what only recorded actions need, in programs whose pointers have no type).
//! A direct load from a bad address gives 0, a probed one an error that is counted.

use core::ffi::c_void;

use agentwatch_common::{stats, with_members};
use aya_ebpf::{
    Global,
    bindings::task_struct,
    helpers::{
        bpf_get_current_task_btf,
        generated::{bpf_probe_read_kernel, bpf_task_pt_regs},
    },
};

use crate::maps::count;

macro_rules! define {
    ($($name:ident = $parent:literal: $($path:literal)|+;)+) => {
        $(#[unsafe(no_mangle)] static $name: Global<u64> = Global::new(0);)+
    };
}
with_members!(define);

/// Address of the sequence counter that every change of a directory's place passes; 0 where the kernel does not show it.
#[unsafe(no_mangle)]
static RENAME_LOCK: Global<u64> = Global::new(0);

/// `FMODE_READ`, `FMODE_WRITE` (include/linux/fs.h).
pub const FMODE_READ: u32 = 1;
pub const FMODE_WRITE: u32 = 2;
/// `FMODE_CREATED`: the open made the file.
pub const FMODE_CREATED: u32 = 0x10_0000;
/// `FMODE_BACKING`: a file that a file system opened behind one of its own. It moved from one bit to the other with the opt-in for
/// fanotify's permission events, in stable kernels too, and what it left says nothing of how a file was opened by a session.
const FMODE_BACKING: u32 = 1 << 24 | 1 << 25;
/// include/uapi/linux/magic.h.
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
/// `__FMODE_EXEC`, in `f_flags` when a file is opened to be executed.
pub const OPEN_EXEC: u32 = 0x20;
pub const O_TRUNC: u32 = 0o1000;
pub const AT_FDCWD: i32 = -100;
/// `SB_NOUSER`: a file system that nobody can mount (pipes, sockets, memory files).
const SB_NOUSER: u64 = 1 << 31;
/// include/linux/fs.h.
const FS_USERNS_MOUNT: u32 = 8;
const SB_KERNMOUNT: u64 = 1 << 22;
const S_IFSOCK: u16 = 0o140000;
/// arch/x86/include/asm/thread_info.h.
const TS_COMPAT: u32 = 2;
/// Of a system call of the 32-bit kind, whose numbers mean something else.
pub const COMPAT_SYSCALL: u64 = u64::MAX;
/// `SIGNAL_GROUP_EXIT` (include/linux/sched/signal.h).
const SIGNAL_GROUP_EXIT: u32 = 4;
/// include/linux/sched.h.
const PF_EXITING: u32 = 4;
const PF_IO_WORKER: u32 = 0x10;
const PF_KTHREAD: u32 = 0x20_0000;
const S_IFMT: u16 = 0o170000;
const S_IFDIR: u16 = 0o040000;
/// `MAX_ERRNO`: the pointers that are errors.
const MAX_ERRNO: u64 = 4095;

#[inline(always)]
unsafe fn direct<T: Copy>(base: *const c_void, offset: &Global<u64>) -> T {
    // SAFETY: the verifier knows the type at `base` and checks the offset.
    unsafe {
        base.cast::<u8>()
            .add(offset.load() as usize)
            .cast::<T>()
            .read_volatile()
    }
}

/// Reads by address; zero, and counted, where that fails.
#[inline(always)]
pub fn read<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: the helper checks the address and writes only `value`.
    let error = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address as *const c_void,
        )
    };
    if error != 0 {
        count(stats::READ_FAILED);
        return T::default();
    }
    value
}

#[inline(always)]
fn member<T: Copy + Default>(address: u64, offset: &Global<u64>) -> T {
    read(address + offset.load())
}

/// The error that a pointer stands for.
#[inline(always)]
pub fn error_of(pointer: u64) -> Option<i32> {
    (pointer > u64::MAX - MAX_ERRNO).then(|| (pointer as i64).unsigned_abs() as i32)
}

/// An open file that the verifier knows.
#[derive(Clone, Copy)]
pub struct File(pub *const c_void);

impl File {
    #[inline(always)]
    pub fn dentry(self) -> Dentry {
        // SAFETY: a direct load.
        Dentry(unsafe { direct(self.0, &FILE_F_PATH_DENTRY) })
    }
    #[inline(always)]
    pub fn flags(self) -> u32 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &FILE_F_FLAGS) }
    }
    #[inline(always)]
    pub fn mode(self) -> u32 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &FILE_F_MODE) }
    }
    /// The inode behind it, which is not its name's where a file system (an overlay) opened it behind one of its own.
    #[inline(always)]
    pub fn inode(self) -> u64 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &FILE_F_INODE) }
    }
    /// The file of an overlay that this one was opened behind; address 0 for all others.
    #[inline(always)]
    pub fn in_front(self) -> DentryAt {
        if self.mode() & FMODE_BACKING == 0 || BACKING_FILE_USER_DENTRY.load() == 0 {
            return DentryAt(0);
        }
        let dentry = DentryAt(member(self.0 as u64, &BACKING_FILE_USER_DENTRY));
        // The bit alone may mean something else: then there is no such member, and whatever stands there is no overlay's.
        if dentry.0 == 0 || !dentry.super_block().is_overlay() {
            return DentryAt(0);
        }
        dentry
    }
}

/// A directory entry.
pub trait Entry: Copy {
    fn address(self) -> u64;
    /// What it stands in: itself at the root of its file system.
    fn parent(self) -> Self;
    /// Address of its name.
    fn name(self) -> u64;
    /// Bytes of its name.
    fn name_len(self) -> u32;
    /// Inode number, 0 for a name without a file.
    fn inode(self) -> u64;
    /// Number of its file system's device.
    fn device(self) -> u32;
    /// Generation of its inode.
    fn generation(self) -> u32;
}

/// A directory entry that the verifier knows.
#[derive(Clone, Copy)]
pub struct Dentry(pub *const c_void);

impl Entry for Dentry {
    #[inline(always)]
    fn address(self) -> u64 {
        self.0 as u64
    }
    #[inline(always)]
    fn parent(self) -> Dentry {
        // SAFETY: a direct load.
        Dentry(unsafe { direct(self.0, &DENTRY_D_PARENT) })
    }
    #[inline(always)]
    fn name(self) -> u64 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &DENTRY_D_NAME_NAME) }
    }
    #[inline(always)]
    fn name_len(self) -> u32 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &DENTRY_D_NAME_LEN) }
    }
    #[inline(always)]
    fn inode(self) -> u64 {
        // SAFETY: direct loads.
        unsafe {
            let inode: *const c_void = direct(self.0, &DENTRY_D_INODE);
            if inode.is_null() {
                0
            } else {
                direct(inode, &INODE_I_INO)
            }
        }
    }
    #[inline(always)]
    fn device(self) -> u32 {
        // SAFETY: direct loads.
        unsafe {
            let super_block: *const c_void = direct(self.0, &DENTRY_D_SB);
            direct(super_block, &SUPER_BLOCK_S_DEV)
        }
    }
    #[inline(always)]
    fn generation(self) -> u32 {
        let inode = self.inode_pointer();
        if inode.is_null() {
            0
        } else {
            // SAFETY: a direct load.
            unsafe { direct(inode, &INODE_I_GENERATION) }
        }
    }
}

impl Dentry {
    #[inline(always)]
    pub fn is_dir(self) -> bool {
        // SAFETY: direct loads.
        unsafe {
            let inode: *const c_void = direct(self.0, &DENTRY_D_INODE);
            !inode.is_null() && direct::<u16>(inode, &INODE_I_MODE) & S_IFMT == S_IFDIR
        }
    }
    #[inline(always)]
    pub fn is_socket(self) -> bool {
        let inode = self.inode_pointer();
        // SAFETY: a direct load.
        !inode.is_null() && unsafe { direct::<u16>(inode, &INODE_I_MODE) } & S_IFMT == S_IFSOCK
    }
    /// The inode itself, null for a name without a file.
    #[inline(always)]
    pub fn inode_pointer(self) -> *const c_void {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &DENTRY_D_INODE) }
    }
    /// Hash and length of its name.
    #[inline(always)]
    pub fn name_hash(self) -> u64 {
        // SAFETY: direct loads.
        let (hash, len): (u32, u32) = unsafe {
            (
                direct(self.0, &DENTRY_D_NAME_HASH),
                direct(self.0, &DENTRY_D_NAME_LEN),
            )
        };
        u64::from(hash) | u64::from(len) << 32
    }
    /// Address of its file system.
    #[inline(always)]
    pub fn super_block(self) -> SuperBlockAt {
        // SAFETY: a direct load.
        SuperBlockAt(unsafe { direct(self.0, &DENTRY_D_SB) })
    }
    /// Whether its file system is one that nobody can mount: a pipe, a socket, a memory file.
    #[inline(always)]
    pub fn is_internal(self) -> bool {
        // SAFETY: direct loads.
        unsafe {
            let super_block: *const c_void = direct(self.0, &DENTRY_D_SB);
            direct::<u64>(super_block, &SUPER_BLOCK_S_FLAGS) & SB_NOUSER != 0
        }
    }
    /// Whether an overlay shows it.
    #[inline(always)]
    pub fn is_overlay(self) -> bool {
        // SAFETY: direct loads.
        unsafe {
            let super_block: *const c_void = direct(self.0, &DENTRY_D_SB);
            direct::<u64>(super_block, &SUPER_BLOCK_S_MAGIC) == OVERLAYFS_SUPER_MAGIC
        }
    }
}

/// A directory entry by address.
#[derive(Clone, Copy)]
pub struct DentryAt(pub u64);

impl Entry for DentryAt {
    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }
    #[inline(always)]
    fn parent(self) -> DentryAt {
        DentryAt(member(self.0, &DENTRY_D_PARENT))
    }
    #[inline(always)]
    fn name(self) -> u64 {
        member(self.0, &DENTRY_D_NAME_NAME)
    }
    #[inline(always)]
    fn name_len(self) -> u32 {
        member(self.0, &DENTRY_D_NAME_LEN)
    }
    #[inline(always)]
    fn inode(self) -> u64 {
        let inode = self.inode_address();
        if inode == 0 {
            0
        } else {
            member(inode, &INODE_I_INO)
        }
    }
    #[inline(always)]
    fn device(self) -> u32 {
        self.super_block().device()
    }
    #[inline(always)]
    fn generation(self) -> u32 {
        let inode = self.inode_address();
        if inode == 0 {
            0
        } else {
            member(inode, &INODE_I_GENERATION)
        }
    }
}

impl DentryAt {
    #[inline(always)]
    pub fn super_block(self) -> SuperBlockAt {
        SuperBlockAt(member(self.0, &DENTRY_D_SB))
    }
    #[inline(always)]
    pub fn inode_address(self) -> u64 {
        member(self.0, &DENTRY_D_INODE)
    }
    #[inline(always)]
    pub fn is_dir(self) -> bool {
        let inode: u64 = member(self.0, &DENTRY_D_INODE);
        inode != 0 && member::<u16>(inode, &INODE_I_MODE) & S_IFMT == S_IFDIR
    }
}

/// One of the names of an inode at an address; address 0 where it has none in memory.
#[inline(always)]
pub fn a_name_of(inode: u64) -> DentryAt {
    let link: u64 = member(inode, &INODE_I_DENTRY);
    DentryAt(if link == 0 {
        0
    } else {
        link - DENTRY_D_ALIAS.load()
    })
}

/// A file system by address.
#[derive(Clone, Copy)]
pub struct SuperBlockAt(pub u64);

impl SuperBlockAt {
    #[inline(always)]
    pub fn device(self) -> u32 {
        member(self.0, &SUPER_BLOCK_S_DEV)
    }
    #[inline(always)]
    pub fn magic(self) -> u64 {
        member(self.0, &SUPER_BLOCK_S_MAGIC)
    }
    #[inline(always)]
    pub fn is_overlay(self) -> bool {
        self.magic() == OVERLAYFS_SUPER_MAGIC
    }
    #[inline(always)]
    pub fn root(self) -> u64 {
        member(self.0, &SUPER_BLOCK_S_ROOT)
    }
    /// Whether the kernel mounted it for itself (`SB_KERNMOUNT`).
    #[inline(always)]
    pub fn is_kernels(self) -> bool {
        member::<u64>(self.0, &SUPER_BLOCK_S_FLAGS) & SB_KERNMOUNT != 0
    }
    /// Whether user namespaces may mount its kind: the kernel's own word for a file system that reaches nothing of the host.
    #[inline(always)]
    pub fn is_harmless(self) -> bool {
        let kind: u64 = member(self.0, &SUPER_BLOCK_S_TYPE);
        member::<u32>(kind, &FILE_SYSTEM_TYPE_FS_FLAGS) & FS_USERNS_MOUNT != 0
    }
}

/// The process that a file of procfs is about, by its number on the host; 0 where it is about none.
#[inline(always)]
pub fn process_of(inode: u64) -> u32 {
    let proc = inode
        .wrapping_sub(PROC_INODE_VFS_INODE.load())
        .wrapping_add(PROC_INODE_PID.load());
    let pid: u64 = read(proc);
    if pid == 0 {
        0
    } else {
        member(pid, &PID_NUMBERS)
    }
}

/// How often directories have been moved on this host, odd while one is; `None` where the kernel does not tell.
#[inline(always)]
pub fn moves() -> Option<u32> {
    let address = RENAME_LOCK.load();
    if address == 0 {
        return None;
    }
    Some(read(address))
}

/// A `struct path` by address.
#[derive(Clone, Copy)]
pub struct PathAt(pub u64);

impl PathAt {
    #[inline(always)]
    pub fn dentry(self) -> DentryAt {
        DentryAt(member(self.0, &PATH_DENTRY))
    }
    #[inline(always)]
    pub fn mount(self) -> MountAt {
        let mnt: u64 = member(self.0, &PATH_MNT);
        MountAt(mnt - MOUNT_MNT.load())
    }
}

/// A `struct mount` by address.
#[derive(Clone, Copy)]
pub struct MountAt(pub u64);

impl MountAt {
    #[inline(always)]
    pub fn of_vfsmount(address: u64) -> Self {
        Self(address - MOUNT_MNT.load())
    }
    /// Whether what happens on it happens on other mounts too.
    #[inline(always)]
    pub fn is_shared(self) -> bool {
        member::<u32>(self.0, &MOUNT_GROUP_ID) != 0
    }
    #[inline(always)]
    pub fn parent(self) -> Self {
        Self(member(self.0, &MOUNT_PARENT))
    }
}

/// A socket (`struct sock`) that the verifier knows.
#[derive(Clone, Copy)]
pub struct Sock(pub *const c_void);

impl Sock {
    #[inline(always)]
    pub fn family(self) -> u16 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &SOCK_FAMILY) }
    }
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &SOCK_NUM) }
    }
    /// The same by address, for what only recorded actions need.
    #[inline(always)]
    pub fn at(self) -> SockAt {
        SockAt(self.0 as u64)
    }
}

/// What stands in a socket address (`struct sockaddr`), by offset.
pub trait Address: Copy {
    fn half(self, offset: u32) -> u16;
    fn word(self, offset: u32) -> u32;
    /// Where it stands.
    fn address(self) -> u64;
}

/// One that the verifier knows, and that is long enough for every family.
#[derive(Clone, Copy)]
pub struct Sockaddr(pub *const c_void);

impl Address for Sockaddr {
    #[inline(always)]
    fn half(self, offset: u32) -> u16 {
        // SAFETY: the verifier knows the type and checks the offset.
        unsafe {
            self.0
                .byte_add(offset as usize)
                .cast::<u16>()
                .read_volatile()
        }
    }
    #[inline(always)]
    fn word(self, offset: u32) -> u32 {
        // SAFETY: as above.
        unsafe {
            self.0
                .byte_add(offset as usize)
                .cast::<u32>()
                .read_volatile()
        }
    }
    #[inline(always)]
    fn address(self) -> u64 {
        self.0 as u64
    }
}

/// One by address.
#[derive(Clone, Copy)]
pub struct SockaddrAt(pub u64);

impl Address for SockaddrAt {
    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }
    #[inline(always)]
    fn half(self, offset: u32) -> u16 {
        read(self.0 + u64::from(offset))
    }
    #[inline(always)]
    fn word(self, offset: u32) -> u32 {
        read(self.0 + u64::from(offset))
    }
}

/// A socket (`struct sock`) by address.
#[derive(Clone, Copy)]
pub struct SockAt(pub u64);

impl SockAt {
    #[inline(always)]
    pub fn family(self) -> u16 {
        member(self.0, &SOCK_FAMILY)
    }
    /// The peer's address: IPv4 in network order, or IPv6 words.
    #[inline(always)]
    pub fn peer4(self) -> u32 {
        member(self.0, &SOCK_DADDR)
    }
    #[inline(always)]
    pub fn peer6(self) -> [u32; 4] {
        let at = self.0 + SOCK_DADDR6.load();
        [read(at), read(at + 4), read(at + 8), read(at + 12)]
    }
    #[inline(always)]
    pub fn local4(self) -> u32 {
        member(self.0, &SOCK_RCV_SADDR)
    }
    #[inline(always)]
    pub fn local6(self) -> [u32; 4] {
        let at = self.0 + SOCK_RCV_SADDR6.load();
        [read(at), read(at + 4), read(at + 8), read(at + 12)]
    }
    /// In host byte order.
    #[inline(always)]
    pub fn peer_port(self) -> u16 {
        u16::from_be(member(self.0, &SOCK_DPORT))
    }
    /// Of a UNIX socket: the file that it is bound to.
    #[inline(always)]
    pub fn unix_dentry(self) -> DentryAt {
        DentryAt(member(self.0, &UNIX_SOCK_PATH_DENTRY))
    }
    /// Of a UNIX socket: address and length of its name after the family, 0 where it has none.
    #[inline(always)]
    pub fn unix_name(self) -> (u64, u32) {
        let address: u64 = member(self.0, &UNIX_SOCK_ADDR);
        if address == 0 {
            return (0, 0);
        }
        let len: u32 = member(address, &UNIX_ADDRESS_LEN);
        (address + UNIX_ADDRESS_NAME.load() + 2, len.wrapping_sub(2))
    }
}

/// The socket of a `struct socket` that the verifier knows, typed.
#[inline(always)]
pub fn sock_of(socket: *const c_void) -> Sock {
    // SAFETY: a direct load.
    Sock(unsafe { direct(socket, &SOCKET_SK) })
}

#[inline(always)]
pub fn socket_type(socket: *const c_void) -> u32 {
    // SAFETY: a direct load.
    u32::from(unsafe { direct::<u16>(socket, &SOCKET_TYPE) })
}

/// What attributes an `iattr` at an address sets.
#[inline(always)]
pub fn attributes(iattr: u64) -> u32 {
    member(iattr, &IATTR_IA_VALID)
}

/// The file of a memory area that the verifier knows.
#[inline(always)]
pub fn mapped_file(area: *const c_void) -> File {
    // SAFETY: a direct load.
    File(unsafe { direct(area, &VM_FILE) })
}

/// The serial number of a key at an address.
#[inline(always)]
pub fn key_serial(key: u64) -> u32 {
    member(key, &KEY_SERIAL)
}

/// Whether a user namespace at an address is the host's.
#[inline(always)]
pub fn is_hosts_namespace(namespace: u64) -> bool {
    member::<u32>(namespace, &USER_NAMESPACE_LEVEL) == 0
}

/// An open file by address.
#[derive(Clone, Copy)]
pub struct FileAt(pub u64);

impl FileAt {
    #[inline(always)]
    pub fn dentry(self) -> DentryAt {
        DentryAt(member(self.0, &FILE_F_PATH_DENTRY))
    }
    #[inline(always)]
    pub fn flags(self) -> u32 {
        member(self.0, &FILE_F_FLAGS)
    }
    #[inline(always)]
    pub fn mode(self) -> u32 {
        member(self.0, &FILE_F_MODE)
    }
    /// The socket behind the descriptor; the caller knows that it is one.
    #[inline(always)]
    pub fn sock(self) -> SockAt {
        let socket: u64 = member(self.0, &FILE_PRIVATE_DATA);
        SockAt(member(socket, &SOCKET_SK))
    }
    /// Type of the socket behind the descriptor; the caller knows that it is one.
    #[inline(always)]
    pub fn socket_type(self) -> u32 {
        let socket: u64 = member(self.0, &FILE_PRIVATE_DATA);
        u32::from(member::<u16>(socket, &SOCKET_TYPE))
    }
}

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
    fn field<T: Copy>(self, offset: &Global<u64>) -> T {
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
        self.field::<u32>(&TASK_FLAGS) & PF_EXITING != 0
    }
    /// Whether it is a process's own task that can be stopped: no thread of the kernel's, no worker of io_uring's, none on its way out.
    #[inline(always)]
    pub fn can_stop(self) -> bool {
        self.field::<u32>(&TASK_FLAGS) & (PF_EXITING | PF_IO_WORKER | PF_KTHREAD) == 0
    }
    /// Whether another process traces it, and decides which signals reach it.
    #[inline(always)]
    pub fn is_traced(self) -> bool {
        self.field::<u32>(&TASK_PTRACE) != 0
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
        TASK_BPF_STORAGE.load() == 0 || self.field::<u64>(&TASK_BPF_STORAGE) != 0
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
        self.acting_credentials() != self.field::<u64>(&TASK_REAL_CRED)
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

/// Number of the system call that the current task is in.
#[inline(always)]
pub fn system_call() -> u64 {
    let task = Task::current();
    if TASK_STATUS.load() != 0 && task.field::<u32>(&TASK_STATUS) & TS_COMPAT != 0 {
        return COMPAT_SYSCALL;
    }
    // SAFETY: the current task.
    let registers = unsafe { bpf_task_pt_regs(task.0) };
    member(registers as u64, &PT_REGS_SYSCALL)
}

/// The directory entry of a `struct path` that the verifier knows.
#[inline(always)]
pub fn path_dentry(path: *const c_void) -> Dentry {
    // SAFETY: a direct load.
    Dentry(unsafe { direct(path, &PATH_DENTRY) })
}

/// The argument of a hook as a number: some are null where the verifier of older kernels believes that they are not.
#[inline(always)]
pub fn raw_argument(context: *const c_void, n: usize) -> u64 {
    read(context as u64 + 8 * n as u64)
}

/// The file that a program is loaded from, of a `linux_binprm` that the verifier knows.
#[inline(always)]
pub fn binprm_file(bprm: *const c_void) -> File {
    // SAFETY: a direct load.
    File(unsafe { direct(bprm, &BINPRM_FILE) })
}

/// How many arguments it has, of a `linux_binprm` at an address.
#[inline(always)]
pub fn binprm_argc(bprm: u64) -> u32 {
    member(bprm, &BINPRM_ARGC)
}

/// The path that an execution was asked for by, and that of what runs it, as addresses: they are two where it is a script.
#[inline(always)]
pub fn binprm_names(bprm: u64) -> (u64, u64) {
    (member(bprm, &BINPRM_FILENAME), member(bprm, &BINPRM_INTERP))
}

/// The string of a `struct filename` at an address, as an address.
#[inline(always)]
pub fn filename(address: u64) -> u64 {
    member(address, &FILENAME_NAME)
}

/// `open_flag` of a `struct open_flags` at an address.
#[inline(always)]
pub fn open_flag(address: u64) -> u32 {
    member(address, &OPEN_FLAGS_OPEN_FLAG)
}
