//! The canary: a process in a session that may do nothing tries one act for each hook that can be tried harmlessly. What comes through
//! is not enforced here, whatever the kernel said when the programs were attached. The other hooks stand in `canary/no_act.rs`.

#[cfg(test)]
mod no_act;

use std::{
    ffi::{CString, c_void},
    io::{IoSliceMut, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// File that is there for the canary.
pub const FILE: &str = "file";
/// Directory that is there for the canary.
pub const DIRECTORY: &str = "directory";
/// Socket that listens for the canary.
pub const SOCKET: &str = "socket";

/// What the canary says when it can be moved, and what when it has tried everything.
pub const READY: &str = "ready\n";
pub const END: &str = "end\n";

/// An act, by the program that is to refuse it.
struct Act {
    hook: &'static str,
    errno: i32,
    /// Whether cgroup programs decide it, on every kernel.
    by_cgroup: bool,
    try_it: fn(&Place) -> i64,
}

/// Where the acts take place: C strings, made before the session is entered, and what the canary has from before.
struct Place {
    before: Before,
    /// Whether a descriptor came with the word to begin.
    received: bool,
    file: CString,
    other: CString,
    directory: CString,
    socket: CString,
    name: CString,
}

/// What a session did not make, and so may not use. -1 where this kernel has no such thing.
struct Before {
    /// The file, open for reading.
    file: OwnedFd,
    /// A page of it, mapped for reading.
    page: *mut c_void,
    key: i64,
    shared_memory: i32,
    /// A socket that listens on loopback.
    listener: Option<TcpListener>,
}

const PAGE: usize = 4096;

impl Before {
    fn make(file: &Path) -> Result<Self> {
        let file = OwnedFd::from(std::fs::File::open(file).context("open the canary's file")?);
        // SAFETY: a new private mapping, which stays to the end of this process.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        ensure!(
            page != libc::MAP_FAILED,
            "the canary's file cannot be mapped"
        );
        // SAFETY: the strings and the payload outlive the call.
        let key = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                c"agentwatch-canary".as_ptr(),
                c"x".as_ptr(),
                1usize,
                libc::KEY_SPEC_PROCESS_KEYRING,
            )
        };
        // SAFETY: takes numbers only.
        let shared_memory =
            unsafe { libc::shmget(libc::IPC_PRIVATE, PAGE, libc::IPC_CREAT | 0o600) };
        if shared_memory >= 0 {
            // Attached and marked for removal, it goes with this process.
            // SAFETY: a new attachment, which nothing refers to; no buffer is written.
            unsafe {
                libc::shmat(shared_memory, std::ptr::null(), 0);
                libc::shmctl(shared_memory, libc::IPC_RMID, std::ptr::null_mut());
            }
        }
        Ok(Self {
            file,
            page,
            key,
            shared_memory,
            listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                .ok(),
        })
    }
}

const FILES: i32 = libc::EACCES;
const REST: i32 = libc::EPERM;

macro_rules! acts {
    ($($hook:literal, $errno:expr, $by_cgroup:expr, $act:expr;)+) => {
        &[$(Act { hook: $hook, errno: $errno, by_cgroup: $by_cgroup, try_it: $act }),+]
    };
}

// SAFETY of all of them: the strings are C strings that outlive the call, and every struct is whole and outlives it.
#[expect(
    clippy::undocumented_unsafe_blocks,
    reason = "said once for all of them"
)]
const ACTS: &[Act] = acts! {
    "file_open", FILES, false, |p| unsafe { libc::open(p.file.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) as i64 };
    "inode_create", FILES, false, |p| unsafe { libc::open(p.other.as_ptr(), libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC, 0o600) as i64 };
    "inode_mkdir", FILES, false, |p| unsafe { libc::mkdir(p.other.as_ptr(), 0o700) as i64 };
    "inode_mknod", FILES, false, |p| unsafe { libc::mkfifo(p.other.as_ptr(), 0o600) as i64 };
    "inode_symlink", FILES, false, |p| unsafe { libc::symlink(p.file.as_ptr(), p.other.as_ptr()) as i64 };
    "inode_link", FILES, false, |p| unsafe { libc::link(p.file.as_ptr(), p.other.as_ptr()) as i64 };
    "inode_rename", FILES, false, |p| unsafe { libc::rename(p.file.as_ptr(), p.other.as_ptr()) as i64 };
    "inode_unlink", FILES, false, |p| unsafe { libc::unlink(p.file.as_ptr()) as i64 };
    "inode_rmdir", FILES, false, |p| unsafe { libc::rmdir(p.directory.as_ptr()) as i64 };
    "inode_setattr", FILES, false, |p| unsafe { libc::chmod(p.file.as_ptr(), 0o640) as i64 };
    "inode_setxattr", FILES, false, |p| unsafe {
        libc::setxattr(p.file.as_ptr(), p.name.as_ptr(), std::ptr::null(), 0, 0) as i64
    };
    "inode_removexattr", FILES, false, |p| unsafe {
        libc::removexattr(p.file.as_ptr(), p.name.as_ptr()) as i64
    };
    "file_ioctl", FILES, false, |p| unsafe {
        const FS_IOC_SETFLAGS: libc::Ioctl = 0x4008_6602;
        let none = 0u64;
        libc::ioctl(p.before.file.as_raw_fd(), FS_IOC_SETFLAGS, &raw const none) as i64
    };
    "path_notify", FILES, false, |p| unsafe {
        let watch = libc::inotify_init1(libc::IN_CLOEXEC);
        libc::inotify_add_watch(watch, p.file.as_ptr(), libc::IN_MODIFY) as i64
    };
    "file_receive", FILES, false, |p| {
        if p.received {
            return 0;
        }
        unsafe { *libc::__errno_location() = FILES };
        -1
    };
    "mmap_file", FILES, false, |p| unsafe {
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        let fd = p.before.file.as_raw_fd();
        libc::mmap(std::ptr::null_mut(), PAGE, protection, libc::MAP_PRIVATE, fd, 0) as i64
    };
    "file_mprotect", FILES, false, |p| unsafe {
        libc::mprotect(p.before.page, PAGE, libc::PROT_READ | libc::PROT_EXEC) as i64
    };
    "key_permission", REST, false, |p| unsafe {
        if p.before.key < 0 {
            return UNTRIED;
        }
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_DESCRIBE, p.before.key, 0usize, 0usize)
    };
    "ipc_permission", FILES, false, |p| unsafe {
        if p.before.shared_memory < 0 {
            return UNTRIED;
        }
        libc::shmat(p.before.shared_memory, std::ptr::null(), 0) as i64
    };
    "shm_shmctl", REST, false, |p| unsafe {
        if p.before.shared_memory < 0 {
            return UNTRIED;
        }
        libc::shmctl(p.before.shared_memory, libc::IPC_RMID, std::ptr::null_mut()) as i64
    };
    "unix_stream_connect", REST, false, unix;
    "socket_listen", REST, false, |_| unsafe {
        // Without binding: the kernel picks the port.
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        libc::listen(socket, 1) as i64
    };
    "socket_accept", REST, false, |p| unsafe {
        let Some(listener) = &p.before.listener else {
            return UNTRIED;
        };
        libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) as i64
    };
    "socket_create", REST, false, |_| unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) as i64 };
    "connect4", REST, true, |_| inet(Call::Connect, false);
    "connect6", REST, true, |_| inet(Call::Connect, true);
    "sendmsg4", REST, true, |_| inet(Call::Send, false);
    "sendmsg6", REST, true, |_| inet(Call::Send, true);
    "bind4", REST, true, |_| inet(Call::Bind, false);
    "bind6", REST, true, |_| inet(Call::Bind, true);
    "ptrace_access_check", REST, false, |_| unsafe {
        let mut word = 0u64;
        let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
        let remote = libc::iovec { iov_base: ACTS.as_ptr().cast_mut().cast(), iov_len: 8 };
        libc::process_vm_readv(libc::getppid(), &raw const local, 1, &raw const remote, 1, 0) as i64
    };
    "task_kill", REST, false, |_| unsafe { libc::kill(libc::getppid(), libc::SIGURG) as i64 };
    "task_setnice", REST, false, |_| unsafe {
        libc::setpriority(libc::PRIO_PROCESS, libc::getppid().cast_unsigned(), 1) as i64
    };
    "task_setscheduler", REST, false, |_| unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(libc::getppid(), libc::SCHED_OTHER, &raw const parameters) as i64
    };
    "task_setioprio", REST, false, |_| unsafe {
        const IOPRIO_WHO_PROCESS: i32 = 1;
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, libc::getppid(), 0)
    };
    "task_setrlimit", REST, false, |_| unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit);
        libc::prlimit(libc::getppid(), libc::RLIMIT_CORE, &raw const limit, std::ptr::null_mut()) as i64
    };
    "bpf", REST, false, |_| unsafe {
        const BPF_MAP_LOOKUP_ELEM: i32 = 1;
        let attributes = [0u64; 16];
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, attributes.as_ptr(), 32u32)
    };
    "perf_event_open", REST, false, |_| unsafe {
        // PERF_TYPE_SOFTWARE with PERF_COUNT_SW_CPU_CLOCK: type 1, size, configuration 0.
        let mut attributes = [0u64; 16];
        attributes[0] = 1 | 64 << 32;
        libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0)
    };
    "capable", REST, false, |_| unsafe {
        let mut name = [0u8; 65];
        libc::gethostname(name.as_mut_ptr().cast(), 64);
        let len = name.iter().position(|byte| *byte == 0).unwrap_or(64);
        libc::sethostname(name.as_ptr().cast(), len) as i64
    };
    "syslog", REST, false, |_| unsafe {
        const SYSLOG_ACTION_READ_ALL: i32 = 3;
        let mut text = [0u8; 1];
        libc::klogctl(SYSLOG_ACTION_READ_ALL, text.as_mut_ptr().cast(), 1) as i64
    };
    "sb_mount", REST, false, |p| unsafe {
        let kind = c"tmpfs";
        libc::mount(kind.as_ptr(), p.directory.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) as i64
    };
};

enum Call {
    Connect,
    Send,
    Bind,
}

/// An internet socket and the loopback address, port 9 (discard).
fn inet(call: Call, v6: bool) -> i64 {
    let kind = if matches!(call, Call::Connect) {
        libc::SOCK_STREAM
    } else {
        libc::SOCK_DGRAM
    };
    // SAFETY: all zeroes is a valid address of either family; the lengths are the structs'.
    unsafe {
        let mut v4_address: libc::sockaddr_in = std::mem::zeroed();
        v4_address.sin_family = libc::AF_INET as u16;
        v4_address.sin_port = 9u16.to_be();
        v4_address.sin_addr.s_addr = 0x7f00_0001_u32.to_be();
        let mut v6_address: libc::sockaddr_in6 = std::mem::zeroed();
        v6_address.sin6_family = libc::AF_INET6 as u16;
        v6_address.sin6_port = 9u16.to_be();
        v6_address.sin6_addr.s6_addr[15] = 1;
        let (family, address, len): (i32, *const libc::sockaddr, usize) = if v6 {
            (
                libc::AF_INET6,
                (&raw const v6_address).cast(),
                size_of::<libc::sockaddr_in6>(),
            )
        } else {
            (
                libc::AF_INET,
                (&raw const v4_address).cast(),
                size_of::<libc::sockaddr_in>(),
            )
        };
        let socket = libc::socket(family, kind | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            // A host without IPv6 has nothing to refuse.
            return if v6 { UNTRIED } else { -1 };
        }
        let len = len as u32;
        let result = match call {
            Call::Connect => libc::connect(socket, address, len) as i64,
            Call::Send => libc::sendto(socket, c"x".as_ptr().cast(), 1, 0, address, len) as i64,
            Call::Bind => libc::bind(socket, address, len) as i64,
        };
        let error = std::io::Error::last_os_error();
        libc::close(socket);
        if result < 0 && v6 && error.raw_os_error() == Some(libc::EADDRNOTAVAIL) {
            return UNTRIED;
        }
        *libc::__errno_location() = error.raw_os_error().unwrap_or(0);
        result
    }
}

/// What this kernel has no way to try.
const UNTRIED: i64 = i64::MIN;

fn unix(place: &Place) -> i64 {
    // SAFETY: the address is whole, and its length the struct's.
    unsafe {
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as u16;
        for (to, from) in address.sun_path.iter_mut().zip(place.socket.as_bytes()) {
            *to = (*from).cast_signed();
        }
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        libc::connect(
            socket,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_un>() as u32,
        ) as i64
    }
}

/// Waits for the word to begin; whether a descriptor came with it. The standard input is a socket.
fn begin() -> Result<bool> {
    let mut word = [0];
    let mut parts = [IoSliceMut::new(&mut word)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        libc::STDIN_FILENO,
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    ensure!(message.bytes == 1, "the daemon is gone");
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Ok(false);
    }
    let mut received = false;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(list) = part {
            received |= !list.is_empty();
            // SAFETY: the kernel just handed them out, and nobody else has them.
            list.into_iter()
                .for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(received)
}

/// The canary's own side: waits until it has been moved into the session, tries everything, and tells what came of it, a line an
/// act. `all`: also what only LSM programs decide.
pub fn sing(directory: &Path, all: bool) -> Result<()> {
    let at = |name: &str| {
        CString::new(directory.join(name).as_os_str().as_bytes()).context("a path holds a NUL")
    };
    let mut place = Place {
        before: Before::make(&directory.join(FILE))?,
        received: false,
        file: at(FILE)?,
        other: at("other")?,
        directory: at(DIRECTORY)?,
        socket: CString::new(SOCKET).context("a name holds a NUL")?,
        name: CString::new("user.canary").context("a name holds a NUL")?,
    };
    // The socket is named relative to the directory: a socket's address has room for short paths only.
    std::env::set_current_dir(directory).context("enter the canary's directory")?;
    // Moved any earlier, it could not load its own libraries.
    std::io::stdout()
        .write_all(READY.as_bytes())
        .and_then(|()| std::io::stdout().flush())
        .context("say that it is ready")?;
    place.received = begin().context("wait for the session")?;
    let mut lines = String::new();
    for act in ACTS.iter().filter(|act| all || act.by_cgroup) {
        let result = (act.try_it)(&place);
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if result == UNTRIED || (result < 0 && errno == act.errno) {
            continue;
        }
        let met = if result < 0 {
            std::io::Error::from_raw_os_error(errno).to_string()
        } else {
            "it went through".to_owned()
        };
        lines.push_str(&format!("{}: {met}\n", act.hook));
    }
    lines.push_str(END);
    std::io::stdout()
        .write_all(lines.as_bytes())
        .context("tell what came of it")
}
