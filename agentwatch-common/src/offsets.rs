//! Members of kernel structs that the programs read. User space looks their offsets up in the running kernel's
//! BTF and writes them into the programs' instructions, so one object fits every kernel. That is what CO-RE does, for which Rust's
//! compiler has no relocations: ours are instructions with numbers that no other instruction has.

/// A load at this offset, and so many further, is one of the member in this place of the list.
pub const LOAD: i16 = 0x7000;
/// This number, and so many further, moved into a register is the offset of the member in this place of the list.
pub const OFFSET: i32 = 0x6f66_0000;
/// Moved into a register: whether the kernel has the function that is called by [`CALL_CAST`], 1 or 0.
pub const HAS_CAST: i32 = 0x6361_0001;
/// Moved into a register: the number of the type that is cast to, `struct seqcount`.
pub const CAST_TYPE: i32 = 0x6361_0002;
/// Called: `bpf_rdonly_cast`.
pub const CALL_CAST: i32 = 0x6361_0003;

/// A member: its struct, and where it is below it. A second path is tried where a kernel has renamed the member.
pub struct Member {
    pub parent: &'static str,
    /// An empty one stands last where there are kernels without it that we run on; its offset is then 0.
    pub paths: &'static [&'static str],
}

/// Calls the macro `$with` with the list of members, each `NAME = "struct": "path" | "other path";`. The programs define
/// their constants with it, user space its table: the list stands once.
#[macro_export]
macro_rules! with_members {
    ($with:ident) => {
        $with! {
            FILE_F_PATH_DENTRY = "file": "f_path.dentry";
            FILE_F_FLAGS = "file": "f_flags";
            FILE_F_MODE = "file": "f_mode";
            FILE_PRIVATE_DATA = "file": "private_data";
            FILE_F_OWNER = "file": "f_owner";
            FILE_F_OWNER_PID = "file": "f_owner.pid" | "";
            FOWN_PID = "fown_struct": "pid";
            VFSMOUNT_MNT_SB = "vfsmount": "mnt_sb";
            DENTRY_D_INODE = "dentry": "d_inode";
            DENTRY_D_PARENT = "dentry": "d_parent";
            DENTRY_D_SB = "dentry": "d_sb";
            DENTRY_D_NAME_NAME = "dentry": "d_name.name" | "__d_name.name";
            DENTRY_D_SEQ = "dentry": "d_seq.seqcount.sequence";
            DENTRY_D_ALIAS = "dentry": "d_u.d_alias" | "d_alias";
            FILE_F_INODE = "file": "f_inode";
            BACKING_FILE_USER_DENTRY = "backing_file": "user_path.dentry" | "";
            INODE_I_INO = "inode": "i_ino";
            INODE_I_GENERATION = "inode": "i_generation";
            INODE_I_DENTRY = "inode": "i_dentry.first";
            INODE_I_SB = "inode": "i_sb";
            INODE_I_MODE = "inode": "i_mode";
            SUPER_BLOCK_S_DEV = "super_block": "s_dev";
            SUPER_BLOCK_S_FLAGS = "super_block": "s_flags";
            SUPER_BLOCK_S_MAGIC = "super_block": "s_magic";
            SUPER_BLOCK_S_ROOT = "super_block": "s_root";
            SUPER_BLOCK_S_TYPE = "super_block": "s_type";
            FILE_SYSTEM_TYPE_FS_FLAGS = "file_system_type": "fs_flags";
            FILE_SYSTEM_TYPE_NAME = "file_system_type": "name";
            PATH_DENTRY = "path": "dentry";
            PATH_MNT = "path": "mnt";
            MOUNT_MNT = "mount": "mnt";
            MOUNT_GROUP_ID = "mount": "mnt_group_id";
            MOUNT_PARENT = "mount": "mnt_parent";
            MOUNT_MOUNTS = "mount": "mnt_mounts";
            MOUNT_CHILD = "mount": "mnt_child";
            MOUNT_NS = "mount": "mnt_ns";
            VFSMOUNT_MNT_ROOT = "vfsmount": "mnt_root";
            FS_CONTEXT_FS_TYPE = "fs_context": "fs_type";
            FS_PARAMETER_KEY = "fs_parameter": "key";
            KEY_TYPE = "key": "index_key.type";
            KEY_TYPE_NAME = "key_type": "name";
            PROC_INODE_PID = "proc_inode": "pid";
            PROC_INODE_VFS_INODE = "proc_inode": "vfs_inode";
            PID_TASKS = "pid": "tasks";
            TASK_PID_LINKS = "task_struct": "pid_links";
            USER_NAMESPACE_LEVEL = "user_namespace": "level";
            MNT_NAMESPACE_USER_NS = "mnt_namespace": "user_ns";
            MNT_NAMESPACE_INUM = "mnt_namespace": "ns.inum";
            NSPROXY_MNT_NS = "nsproxy": "mnt_ns";
            TASK_NSPROXY = "task_struct": "nsproxy";
            TASK_CRED = "task_struct": "cred";
            TASK_STATUS = "task_struct": "thread_info.status" | "";
            PT_REGS_SYSCALL = "pt_regs": "orig_ax" | "syscallno";
            PT_REGS_ARGUMENT = "pt_regs": "di" | "";
            PT_REGS_COMPAT_ARGUMENT = "pt_regs": "bx" | "";
            VM_FILE = "vm_area_struct": "vm_file";
            IATTR_IA_VALID = "iattr": "ia_valid";
            KEY_SERIAL = "key": "serial";
            SOCKET_STATE = "socket": "state";
            SOCK_FAMILY = "sock": "__sk_common.skc_family";
            SOCK_PROTOCOL = "sock": "sk_protocol";
            SOCK_DADDR = "sock": "__sk_common.skc_daddr";
            SOCK_DADDR6 = "sock": "__sk_common.skc_v6_daddr";
            SOCK_RCV_SADDR = "sock": "__sk_common.skc_rcv_saddr";
            SOCK_RCV_SADDR6 = "sock": "__sk_common.skc_v6_rcv_saddr";
            SOCK_DPORT = "sock": "__sk_common.skc_dport";
            SOCK_NUM = "sock": "__sk_common.skc_num";
            SOCK_CGROUP = "sock": "sk_cgrp_data.cgroup";
            UNIX_SOCK_PATH_DENTRY = "unix_sock": "path.dentry";
            UNIX_SOCK_ADDR = "unix_sock": "addr";
            UNIX_ADDRESS_LEN = "unix_address": "len";
            UNIX_ADDRESS_NAME = "unix_address": "name";
            TASK_TGID = "task_struct": "tgid";
            TASK_BPF_STORAGE = "task_struct": "bpf_storage" | "";
            DENTRY_D_NAME_HASH = "dentry": "d_name.hash" | "__d_name.hash";
            DENTRY_D_NAME_LEN = "dentry": "d_name.len" | "__d_name.len";
            TASK_FLAGS = "task_struct": "flags";
            TASK_IO_URING = "task_struct": "io_uring" | "";
            TASK_SELF_EXEC_ID = "task_struct": "self_exec_id";
            TASK_PID = "task_struct": "pid";
            TASK_COMM = "task_struct": "comm";
            TASK_REAL_PARENT = "task_struct": "real_parent";
            TASK_GROUP_LEADER = "task_struct": "group_leader";
            TASK_START_BOOTTIME = "task_struct": "start_boottime";
            TASK_EXIT_CODE = "task_struct": "exit_code";
            TASK_SIGNAL = "task_struct": "signal";
            TASK_MM = "task_struct": "mm";
            TASK_FS = "task_struct": "fs";
            TASK_FILES = "task_struct": "files";
            TASK_CGROUPS = "task_struct": "cgroups";
            TASK_REAL_CRED = "task_struct": "real_cred";
            CRED_UID = "cred": "uid";
            CRED_GID = "cred": "gid";
            CSS_SET_DFL_CGRP = "css_set": "dfl_cgrp";
            CGROUP_KN = "cgroup": "kn";
            KERNFS_NODE_ID = "kernfs_node": "id";
            KERNFS_NODE_PARENT = "kernfs_node": "parent" | "__parent";
            SIGNAL_LIVE = "signal_struct": "live";
            SIGNAL_FLAGS = "signal_struct": "flags";
            SIGNAL_GROUP_EXIT_CODE = "signal_struct": "group_exit_code";
            MM_ARG_START = "mm_struct": "arg_start";
            MM_ARG_END = "mm_struct": "arg_end";
            FS_PWD_DENTRY = "fs_struct": "pwd.dentry";
            FILES_FDT = "files_struct": "fdt";
            FDTABLE_FD = "fdtable": "fd";
            FDTABLE_MAX_FDS = "fdtable": "max_fds";
            BINPRM_FILE = "linux_binprm": "file";
            BINPRM_ARGC = "linux_binprm": "argc";
            BINPRM_FILENAME = "linux_binprm": "filename";
            BINPRM_INTERP = "linux_binprm": "interp";
            TASK_PTRACE = "task_struct": "ptrace";
            FILENAME_NAME = "filename": "name";
            IO_KIOCB_CMD = "io_kiocb": "cmd" | "";
            IO_KIOCB_RES = "io_kiocb": "cqe.res" | "";
            IO_OPEN_FILENAME = "io_open": "filename" | "";
            IO_OPEN_DFD = "io_open": "dfd" | "";
            IO_OPEN_FLAGS = "io_open": "how.flags" | "";
            OPEN_FLAGS_OPEN_FLAG = "open_flags": "open_flag";
            SOCKET_TYPE = "socket": "type";
            SOCKET_SK = "socket": "sk";
        }
    };
}

macro_rules! table {
    ($($name:ident = $parent:literal: $($path:literal)|+;)+) => {
        pub const MEMBERS: &[Member] = &[
            $(Member {
                parent: $parent,
                paths: &[$($path),+],
            }),+
        ];
    };
}
with_members!(table);
