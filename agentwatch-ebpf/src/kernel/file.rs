//! Files and what they stand in: directory entries, file systems, mounts.

use core::ffi::c_void;

use super::*;

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
pub const O_LARGEFILE: u32 = 0o100_000;
pub const AT_FDCWD: i32 = -100;
/// `SB_NOUSER`: a file system that nobody can mount (pipes, sockets, memory files).
const SB_NOUSER: u64 = 1 << 31;
/// include/linux/fs.h.
const FS_USERNS_MOUNT: u32 = 8;
const SB_KERNMOUNT: u64 = 1 << 22;
/// include/uapi/linux/stat.h.
const S_IFMT: u16 = 0o170000;
const S_IFDIR: u16 = 0o040000;
const S_IFCHR: u16 = 0o020_000;
pub const S_IFBLK: u16 = 0o060_000;
const S_IFSOCK: u16 = 0o140000;

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
    pub fn inode(self) -> Inode {
        // SAFETY: a direct load.
        Inode(unsafe { direct(self.0, &FILE_F_INODE) })
    }
    /// The file of an overlay that this one was opened behind; address 0 for all others.
    #[inline(always)]
    pub fn in_front(self) -> DentryAt {
        if self.mode() & FMODE_BACKING == 0 || !tells_what_is_in_front() {
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

/// Whether a file that is opened behind another says so ([`File::in_front`]).
#[inline(always)]
pub fn tells_what_is_in_front() -> bool {
    BACKING_FILE_USER_DENTRY.load() != 0
}

/// An inode that the verifier knows, and that is there. What an open file shows of itself by it is cheaper than by its name: newer
/// verifiers trust the way there.
#[derive(Clone, Copy)]
pub struct Inode(pub *const c_void);

impl Inode {
    #[inline(always)]
    pub fn number(self) -> u64 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &INODE_I_INO) }
    }
    #[inline(always)]
    pub fn generation(self) -> u32 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &INODE_I_GENERATION) }
    }
    #[inline(always)]
    fn kind(self) -> u16 {
        // SAFETY: a direct load.
        unsafe { direct::<u16, _>(self.0, &INODE_I_MODE) & S_IFMT }
    }
    #[inline(always)]
    pub fn is_dir(self) -> bool {
        self.kind() == S_IFDIR
    }
    #[inline(always)]
    pub fn is_socket(self) -> bool {
        self.kind() == S_IFSOCK
    }
    #[inline(always)]
    pub fn super_block(self) -> SuperBlock {
        // SAFETY: a direct load.
        SuperBlock(unsafe { direct(self.0, &INODE_I_SB) })
    }
}

/// A file system that the verifier knows.
#[derive(Clone, Copy)]
pub struct SuperBlock(pub *const c_void);

impl SuperBlock {
    #[inline(always)]
    pub fn at(self) -> SuperBlockAt {
        SuperBlockAt(self.0 as u64)
    }
    #[inline(always)]
    pub fn device(self) -> u32 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &SUPER_BLOCK_S_DEV) }
    }
    /// Whether it is one that nobody can mount: of pipes, sockets, memory files.
    #[inline(always)]
    pub fn is_internal(self) -> bool {
        // SAFETY: a direct load.
        unsafe { direct::<u64, _>(self.0, &SUPER_BLOCK_S_FLAGS) & SB_NOUSER != 0 }
    }
    #[inline(always)]
    pub fn is_overlay(self) -> bool {
        // SAFETY: a direct load.
        unsafe { direct::<u64, _>(self.0, &SUPER_BLOCK_S_MAGIC) == OVERLAYFS_SUPER_MAGIC }
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
    /// How often its name and place have changed, odd while they do.
    fn sequence(self) -> u32;
    /// Inode number, 0 for a name without a file.
    fn inode(self) -> u64;
    /// Number of its file system's device.
    fn device(self) -> u32;
    /// Generation of its inode.
    fn generation(self) -> u32;
    /// Whether it is found out for less than its name is read what tells it from any other.
    const IS_DISTINCT: bool;
    /// What does, as long as nothing is moved.
    fn distinction(self) -> [u64; 5];
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
    fn sequence(self) -> u32 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &DENTRY_D_SEQ) }
    }
    #[inline(always)]
    fn inode(self) -> u64 {
        self.file().map_or(0, Inode::number)
    }
    #[inline(always)]
    fn device(self) -> u32 {
        self.super_block().device()
    }
    #[inline(always)]
    fn generation(self) -> u32 {
        self.file().map_or(0, Inode::generation)
    }
    const IS_DISTINCT: bool = true;
    #[inline(always)]
    fn distinction(self) -> [u64; 5] {
        let (inode, generation) = self.identity();
        [
            self.address(),
            self.parent().address(),
            inode,
            generation.into(),
            self.name_hash(),
        ]
    }
}

impl Dentry {
    /// Its inode; none for a name without a file.
    #[inline(always)]
    pub fn file(self) -> Option<Inode> {
        // SAFETY: a direct load.
        let inode: *const c_void = unsafe { direct(self.0, &DENTRY_D_INODE) };
        (!inode.is_null()).then_some(Inode(inode))
    }
    /// Number and generation of its inode, 0 for a name without a file.
    #[inline(always)]
    pub fn identity(self) -> (u64, u32) {
        self.file()
            .map_or((0, 0), |inode| (inode.number(), inode.generation()))
    }
    #[inline(always)]
    pub fn is_socket(self) -> bool {
        self.file().is_some_and(Inode::is_socket)
    }
    /// The inode's address, 0 for a name without a file.
    #[inline(always)]
    pub fn inode_address(self) -> u64 {
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
    #[inline(always)]
    pub fn super_block(self) -> SuperBlock {
        // SAFETY: a direct load.
        SuperBlock(unsafe { direct(self.0, &DENTRY_D_SB) })
    }
    /// Whether its file system is one that nobody can mount: a pipe, a socket, a memory file.
    #[inline(always)]
    pub fn is_internal(self) -> bool {
        self.super_block().is_internal()
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
    fn sequence(self) -> u32 {
        member(self.0, &DENTRY_D_SEQ)
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
    const IS_DISTINCT: bool = false;
    #[inline(always)]
    fn distinction(self) -> [u64; 5] {
        [0; 5]
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
        inode != 0 && member::<u16, _>(inode, &INODE_I_MODE) & S_IFMT == S_IFDIR
    }
}

/// Where it stands to whom a file's events are told, of a file at an address: in the file itself before 6.12.
#[inline(always)]
pub fn file_owner(file: u64) -> u64 {
    if FILE_F_OWNER_PID.load() != 0 {
        file + FILE_F_OWNER_PID.load() - FOWN_PID.load()
    } else {
        member(file, &FILE_F_OWNER)
    }
}

/// The file system of a `struct vfsmount` at an address.
#[inline(always)]
pub fn super_block_of(vfsmount: u64) -> SuperBlockAt {
    SuperBlockAt(member(vfsmount, &VFSMOUNT_MNT_SB))
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
        member::<u64, _>(self.0, &SUPER_BLOCK_S_FLAGS) & SB_KERNMOUNT != 0
    }
    /// Whether user namespaces may mount its kind: the kernel's own word for a file system that reaches nothing of the host.
    #[inline(always)]
    pub fn is_harmless(self) -> bool {
        let kind: u64 = member(self.0, &SUPER_BLOCK_S_TYPE);
        is_harmless(kind)
    }
}

#[inline(always)]
fn is_harmless(kind: u64) -> bool {
    member::<u32, _>(kind, &FILE_SYSTEM_TYPE_FS_FLAGS) & FS_USERNS_MOUNT != 0 && !is_cgroup1(kind)
}

/// The first version of cgroups: mounting a hierarchy makes one for the whole host, takes the controllers that it names from where they
/// were, and may name a program for the kernel to start.
#[inline(always)]
fn is_cgroup1(kind: u64) -> bool {
    let name: u64 = member(kind, &FILE_SYSTEM_TYPE_NAME);
    read::<u64>(name) << 8 == u64::from_le_bytes(*b"\0cgroup\0")
}

/// Whether a file system that is being set up (`struct fs_context`) is of such a kind.
#[inline(always)]
pub fn will_be_harmless(context: u64) -> bool {
    is_harmless(member(context, &FS_CONTEXT_FS_TYPE))
}

/// Whether it is a hierarchy of cgroups of the first version.
#[inline(always)]
pub fn will_be_cgroup1(context: u64) -> bool {
    is_cgroup1(member(context, &FS_CONTEXT_FS_TYPE))
}

/// Whether a parameter of it (`struct fs_parameter`) says where it comes from.
#[inline(always)]
pub fn is_source(parameter: u64) -> bool {
    let key: u64 = member(parameter, &FS_PARAMETER_KEY);
    read::<u64>(key) << 8 == u64::from_le_bytes(*b"\0source\0")
}

/// An inode by address.
#[derive(Clone, Copy)]
pub struct InodeAt(pub u64);

impl InodeAt {
    /// What it is, as the bits `S_IFMT` of its mode say; 0 where there is no inode.
    #[inline(always)]
    pub fn kind(self) -> u16 {
        member_if_any::<u16, _>(self.0, &INODE_I_MODE) & S_IFMT
    }
    #[inline(always)]
    pub fn super_block(self) -> SuperBlockAt {
        SuperBlockAt(member(self.0, &INODE_I_SB))
    }
}

/// Whether a file of this kind is a device.
#[inline(always)]
pub fn is_device(kind: u16) -> bool {
    const _: () = assert!(S_IFCHR | 0x4000 == S_IFBLK);
    // One branch for both.
    kind & !0x4000 == S_IFCHR
}

/// The process that a file of procfs is about, or about a thread of, by its number on the host; 0 where it is about none, or it is gone.
#[inline(always)]
pub fn process_of(inode: u64) -> u32 {
    let proc = inode
        .wrapping_sub(PROC_INODE_VFS_INODE.load())
        .wrapping_add(PROC_INODE_PID.load());
    let pid: u64 = read(proc);
    if pid == 0 {
        0
    } else {
        // Of the tasks that have the number, those of its own kind come first (PIDTYPE_PID), and are one. Where it is gone, nothing can be
        // read.
        let link: u64 = member(pid, &PID_TASKS);
        member_if_any(link.wrapping_sub(TASK_PID_LINKS.load()), &TASK_TGID)
    }
}

/// How often directories have been moved on this host, odd while one is; `None` where the kernel does not tell.
#[inline(always)]
pub fn moves() -> Option<u32> {
    let address = RENAME_LOCK.load();
    if address == 0 {
        return None;
    }
    Some(if has_cast() {
        counter(address)
    } else {
        read(address)
    })
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
        member::<u32, _>(self.0, &MOUNT_GROUP_ID) != 0
    }
    #[inline(always)]
    pub fn parent(self) -> Self {
        Self(member(self.0, &MOUNT_PARENT))
    }
    /// The directory that is seen at its place.
    #[inline(always)]
    pub fn root(self) -> u64 {
        member(self.0 + MOUNT_MNT.load(), &VFSMOUNT_MNT_ROOT)
    }
    /// The address of its mount namespace.
    #[inline(always)]
    pub fn namespace(self) -> u64 {
        member(self.0, &MOUNT_NS)
    }
    /// The first mount on it; `None` where there is none.
    #[inline(always)]
    pub fn first_child(self) -> Option<Self> {
        self.listed_in(self, self.0 + MOUNT_MOUNTS.load())
    }
    /// The next mount on the same parent.
    #[inline(always)]
    pub fn next_sibling(self) -> Option<Self> {
        self.listed_in(self.parent(), self.0 + MOUNT_CHILD.load())
    }
    #[inline(always)]
    fn listed_in(self, parent: Self, link: u64) -> Option<Self> {
        let next: u64 = read(link);
        (next != 0 && next != parent.0 + MOUNT_MOUNTS.load())
            .then(|| Self(next - MOUNT_CHILD.load()))
    }
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
        u32::from(member::<u16, _>(socket, &SOCKET_TYPE))
    }
}
