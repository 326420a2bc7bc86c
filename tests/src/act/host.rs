//! Operations on the host as a whole: kernel programs, modules, clocks, names, devices, terminals. Each asks for something
//! that changes nothing where it is granted (the name that the host has, a module that does not exist).

use std::{
    fs::OpenOptions,
    io::Write,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::errno::Errno;

use super::{Failure, Operation, arguments, c_string, number, sys};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "bpf-map-create",
        usage: "",
        run: |_| {
            // map_type (array), key_size, value_size, max_entries.
            bpf(0, &[2 | 4 << 32, 8 | 1 << 32]).map(drop)
        },
    },
    Operation {
        name: "bpf-prog-load",
        usage: "(a socket filter that returns 0)",
        run: |_| {
            let program: [u64; 2] = [0xb7, 0x95];
            let license = c"GPL";
            let (code, license) = (program.as_ptr() as u64, license.as_ptr() as u64);
            bpf(5, &[1 | 2 << 32, code, license]).map(drop)
        },
    },
    Operation {
        name: "bpf-obj-get",
        usage: "PATH",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            bpf(7, &[path.as_ptr() as u64, 0]).map(drop)
        },
    },
    Operation {
        name: "bpf-maps",
        usage: "(takes a descriptor of the first map that the kernel has)",
        run: |_| {
            // BPF_MAP_GET_NEXT_ID answers in the second word; BPF_MAP_GET_FD_BY_ID.
            let mut next = [0_u64];
            bpf_in(12, &mut next)?;
            bpf(14, &[next[0] >> 32]).map(drop)
        },
    },
    Operation {
        name: "perf-open",
        usage: "(counts this process's own task clock)",
        run: |_| {
            // type (software), size; config (task clock); no more. 128 is the size of the eighth version.
            let mut attributes = [0_u64; 16];
            attributes[0] = 1 | 128 << 32;
            attributes[1] = 1;
            // Bits 5 and 6 leave the kernel and the hypervisor out: an ordinary user may ask for no more.
            attributes[5] = 1 << 5 | 1 << 6;
            sys!(libc::syscall(
                libc::SYS_perf_event_open,
                attributes.as_ptr(),
                0,
                -1,
                -1,
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "init-module",
        usage: "(of four bytes that are no module)",
        run: |_| {
            let options = c"";
            sys!(libc::syscall(
                libc::SYS_init_module,
                b"none".as_ptr(),
                4,
                options.as_ptr()
            ))
            .map(drop)
        },
    },
    Operation {
        name: "finit-module",
        usage: "PATH",
        run: |args| {
            let file = std::fs::File::open(arguments::<1>(args)?[0])
                .map_err(|error| Failure::Usage(error.to_string()))?;
            let options = c"";
            sys!(libc::syscall(
                libc::SYS_finit_module,
                file.as_raw_fd(),
                options.as_ptr(),
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "delete-module",
        usage: "(that does not exist)",
        run: |_| {
            let name = c"agentwatch_none";
            sys!(libc::syscall(
                libc::SYS_delete_module,
                name.as_ptr(),
                libc::O_NONBLOCK
            ))
            .map(drop)
        },
    },
    Operation {
        name: "kexec-load",
        usage: "(nothing, in place of nothing)",
        run: |_| {
            let none = std::ptr::null::<u8>();
            sys!(libc::syscall(libc::SYS_kexec_load, 0, 0, none, 0)).map(drop)
        },
    },
    Operation {
        name: "reboot-cad",
        usage: "(Ctrl-Alt-Delete sends init a signal, as it does already)",
        run: |_| sys!(libc::reboot(libc::RB_DISABLE_CAD)).map(drop),
    },
    Operation {
        name: "ioperm",
        usage: "(port 0x80, where nothing listens)",
        run: |_| sys!(libc::ioperm(0x80, 1, 1)).map(drop),
    },
    Operation {
        name: "iopl",
        usage: "",
        run: |_| sys!(libc::iopl(3)).map(drop),
    },
    Operation {
        name: "settimeofday",
        usage: "(to what it is)",
        run: |_| {
            let mut now = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            sys!(libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now))?;
            sys!(libc::clock_settime(libc::CLOCK_REALTIME, &now)).map(drop)
        },
    },
    Operation {
        name: "adjtimex",
        usage: "(sets the frequency that is set)",
        run: |_| {
            // SAFETY: plain data, all zeroes are a valid value.
            let mut clock: libc::timex = unsafe { std::mem::zeroed() };
            sys!(libc::adjtimex(&raw mut clock))?;
            clock.modes = libc::ADJ_FREQUENCY;
            sys!(libc::adjtimex(&raw mut clock)).map(drop)
        },
    },
    Operation {
        name: "sethostname",
        usage: "(to what it is)",
        run: |_| {
            let name = nix::unistd::gethostname()?;
            Ok(nix::unistd::sethostname(name)?)
        },
    },
    Operation {
        name: "sethostname-high",
        usage: "(to what it is, by a number whose upper half the kernel does not look at)",
        run: |_| {
            let name = nix::unistd::gethostname()?;
            let name = name.as_encoded_bytes();
            sys!(libc::syscall(
                libc::SYS_sethostname | 1 << 32,
                name.as_ptr(),
                name.len()
            ))
            .map(drop)
        },
    },
    Operation {
        name: "syslog-clear",
        usage: "",
        run: |_| sys!(libc::klogctl(5, std::ptr::null_mut(), 0)).map(drop),
    },
    Operation {
        name: "syslog-clear-then-unshare",
        usage: "(what comes of the first; the second has to work)",
        run: |_| {
            let cleared = sys!(libc::klogctl(5, std::ptr::null_mut(), 0)).map(drop);
            sys!(libc::unshare(libc::CLONE_NEWUTS))
                .map_err(|_| Failure::Usage("no namespace could be made then".to_owned()))?;
            cleared
        },
    },
    Operation {
        name: "acct-off",
        usage: "",
        run: |_| sys!(libc::acct(std::ptr::null())).map(drop),
    },
    Operation {
        name: "swapoff",
        usage: "PATH (that is no swap area)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            sys!(libc::swapoff(path.as_ptr())).map(drop)
        },
    },
    Operation {
        name: "write-same",
        usage: "PATH (a setting: reads it and writes it back)",
        run: |args| {
            let [path] = arguments(args)?;
            let text = std::fs::read(path)?;
            OpenOptions::new()
                .write(true)
                .open(path)?
                .write_all(&text)?;
            Ok(())
        },
    },
    Operation {
        name: "tiocsti",
        usage: "TERMINAL (types a letter into it, as the leader of a session that has it)",
        run: |args| {
            let [terminal] = arguments(args)?;
            nix::unistd::setsid().map_err(|errno| Failure::Usage(format!("setsid: {errno}")))?;
            let terminal = OpenOptions::new()
                .read(true)
                .write(true)
                .open(terminal)
                .map_err(|error| Failure::Usage(format!("the terminal: {error}")))?;
            sys!(libc::ioctl(
                terminal.as_raw_fd(),
                libc::TIOCSTI,
                c"x".as_ptr()
            ))
            .map(drop)
        },
    },
    Operation {
        name: "tun",
        usage: "NAME (TUNSETIFF)",
        run: |args| {
            let [name] = arguments(args)?;
            let tun = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun")?;
            // SAFETY: an ifreq is plain data, all zeroes are a valid value.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = libc::IFF_TUN as libc::c_short;
            sys!(libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &request)).map(drop)
        },
    },
    Operation {
        name: "setns",
        usage: "PATH (of a namespace)",
        run: |args| {
            let namespace = std::fs::File::open(arguments::<1>(args)?[0])?;
            sys!(libc::setns(namespace.as_raw_fd(), 0)).map(drop)
        },
    },
    Operation {
        name: "seccomp",
        usage: "(a filter that allows everything)",
        run: |_| {
            sys!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            let mut allow = libc::sock_filter {
                code: 6,
                jt: 0,
                jf: 0,
                k: libc::SECCOMP_RET_ALLOW,
            };
            let program = libc::sock_fprog {
                len: 1,
                filter: &raw mut allow,
            };
            sys!(libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program
            ))
            .map(drop)
        },
    },
    Operation {
        name: "mknod-kind",
        usage: "PATH fifo|socket|char|block MAJOR MINOR",
        run: |args| {
            let [path, kind, major, minor] = arguments(args)?;
            let path = c_string(path)?;
            let kind = match kind {
                "fifo" => libc::S_IFIFO,
                "socket" => libc::S_IFSOCK,
                "char" => libc::S_IFCHR,
                "block" => libc::S_IFBLK,
                other => return Err(Failure::Usage(format!("{other} is no kind of node"))),
            };
            let device = libc::makedev(number(major)?, number(minor)?);
            sys!(libc::mknod(path.as_ptr(), kind | 0o600, device)).map(drop)
        },
    },
];

/// The bpf system call, with attributes given as words and the rest of them zero.
fn bpf(command: i32, words: &[u64]) -> Result<OwnedFd, Failure> {
    let mut attributes = [0_u64; 16];
    attributes[..words.len()].copy_from_slice(words);
    let fd = bpf_in(command, &mut attributes)?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf_in(command: i32, attributes: &mut [u64]) -> Result<RawFd, Failure> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes live across the call and are as large as it is told.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    Ok(Errno::result(done)? as RawFd)
}
