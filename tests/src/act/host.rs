//! Operations on the host as a whole: kernel programs, modules, clocks, names, devices, terminals. Each asks for something
//! that changes nothing where it is granted (the name that the host has), or takes it back (a module).

use std::{
    ffi::CStr,
    fmt::Display,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    unistd::{ForkResult, Pid},
};

use super::{Failure, Operation, Outcome, arguments, c_string, number, process, sys};

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
        name: "bpf-of-number",
        usage: "map|program|link|types (takes a descriptor of the first that the kernel has, by trying numbers)",
        run: bpf_of_number,
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
        usage: "PATH NAME OPTIONS (loads a module from memory, and removes it again)",
        run: |args| {
            load_and_remove(args, |file, options| {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                sys!(libc::syscall(
                    libc::SYS_init_module,
                    bytes.as_ptr(),
                    bytes.len(),
                    options.as_ptr()
                ))
                .map(drop)
            })
        },
    },
    Operation {
        name: "finit-module",
        usage: "PATH NAME OPTIONS (loads a module from its file, and removes it again)",
        run: |args| load_and_remove(args, |file, options| load_module(file, options)),
    },
    Operation {
        name: "delete-module",
        usage: "PATH NAME (removes a module that is loaded and not used, and loads it again)",
        run: |args| {
            let [path, name] = arguments(args)?;
            let file = module(path)?;
            remove_module(&c_string(name)?)?;
            undone(load_module(&file, c""))
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
        name: "kexec-file-load",
        usage: "(takes away what was loaded, which is nothing)",
        run: |_| {
            const KEXEC_FILE_UNLOAD: u64 = 1;
            let none = std::ptr::null::<u8>();
            sys!(libc::syscall(
                libc::SYS_kexec_file_load,
                -1,
                -1,
                0,
                none,
                KEXEC_FILE_UNLOAD
            ))
            .map(drop)
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
        name: "set-hardware-clock",
        usage: "(to what it is)",
        run: |_| {
            /// `RTC_RD_TIME` and `RTC_SET_TIME` (include/uapi/linux/rtc.h).
            const READ_TIME: libc::Ioctl = 0x8024_7009;
            const SET_TIME: libc::Ioctl = 0x4024_700a;
            let clock = fs::File::open("/dev/rtc0")
                .map_err(|error| Failure::Usage(format!("the clock: {error}")))?;
            let mut time = [0_i32; 9];
            sys!(libc::ioctl(clock.as_raw_fd(), READ_TIME, time.as_mut_ptr()))
                .map_err(|failure| Failure::Usage(format!("read the clock: {failure}")))?;
            sys!(libc::ioctl(clock.as_raw_fd(), SET_TIME, time.as_ptr())).map(drop)
        },
    },
    Operation {
        name: "wake-alarm",
        usage: "(a timer that would wake the machine up; it is not set)",
        run: |_| sys!(libc::timerfd_create(libc::CLOCK_REALTIME_ALARM, 0)).map(drop),
    },
    Operation {
        name: "clock-offset",
        usage: "(moves the monotonic clock of the time namespace that children will have)",
        run: |_| Ok(fs::write("/proc/self/timens_offsets", "monotonic 10 0")?),
    },
    Operation {
        name: "setdomainname",
        usage: "(to what it is)",
        run: |_| {
            let mut name = [0_u8; 65];
            sys!(libc::getdomainname(name.as_mut_ptr().cast(), name.len()))?;
            let length = name.iter().position(|byte| *byte == 0).unwrap_or_default();
            sys!(libc::setdomainname(name.as_ptr().cast(), length)).map(drop)
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
        name: "syslog-read",
        usage: "(all of it, as far as 64 bytes go)",
        run: |_| {
            let mut text = [0; 64];
            sys!(libc::klogctl(3, text.as_mut_ptr(), 64)).map(drop)
        },
    },
    Operation {
        name: "syslog-size",
        usage: "",
        run: |_| sys!(libc::klogctl(10, std::ptr::null_mut(), 0)).map(drop),
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
        name: "swapon",
        usage: "PATH (that is no swap area)",
        run: |args| {
            let path = c_string(arguments::<1>(args)?[0])?;
            sys!(libc::swapon(path.as_ptr(), 0)).map(drop)
        },
    },
    Operation {
        name: "thaw",
        usage: "PATH (whose file system is not frozen)",
        run: |args| {
            /// include/uapi/linux/fs.h.
            const FITHAW: libc::Ioctl = 0xc004_5878;
            let file = fs::File::open(arguments::<1>(args)?[0])
                .map_err(|error| Failure::Usage(error.to_string()))?;
            sys!(libc::ioctl(file.as_raw_fd(), FITHAW, 0)).map(drop)
        },
    },
    Operation {
        name: "vhangup",
        usage: "(the terminal of a session that has none)",
        run: |_| {
            nix::unistd::setsid().map_err(|errno| Failure::Usage(format!("setsid: {errno}")))?;
            sys!(libc::vhangup()).map(drop)
        },
    },
    Operation {
        name: "fork-as-number",
        usage: "(a child whose number it says itself)",
        run: |_| fork_as_number(),
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
        name: "mkdir-and-rmdir",
        usage: "DIR (that does not exist)",
        run: |args| {
            let [dir] = arguments(args)?;
            fs::create_dir(dir)?;
            undone(fs::remove_dir(dir))
        },
    },
    Operation {
        name: "link-and-unlink",
        usage: "FROM TO (that does not exist)",
        run: |args| {
            let [from, to] = arguments(args)?;
            fs::hard_link(from, to)?;
            undone(fs::remove_file(to))
        },
    },
    Operation {
        name: "rename-and-back",
        usage: "FROM TO (that does not exist)",
        run: |args| {
            let [from, to] = arguments(args)?;
            fs::rename(from, to)?;
            undone(fs::rename(to, from))
        },
    },
    Operation {
        name: "unlink-and-symlink",
        usage: "PATH (a symbolic link, which is made again)",
        run: |args| {
            let [path] = arguments(args)?;
            let text = fs::read_link(path)
                .map_err(|error| Failure::Usage(format!("read the link: {error}")))?;
            fs::remove_file(path)?;
            undone(std::os::unix::fs::symlink(text, path))
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

fn module(path: &str) -> Result<File, Failure> {
    File::open(path).map_err(|error| Failure::Usage(format!("open the module: {error}")))
}

fn load_module(file: &File, options: &CStr) -> Outcome {
    sys!(libc::syscall(
        libc::SYS_finit_module,
        file.as_raw_fd(),
        options.as_ptr(),
        0
    ))
    .map(drop)
}

fn remove_module(name: &CStr) -> Outcome {
    sys!(libc::syscall(
        libc::SYS_delete_module,
        name.as_ptr(),
        libc::O_NONBLOCK
    ))
    .map(drop)
}

/// Who comes next finds no more modules than there were.
fn load_and_remove(args: &[String], load: impl FnOnce(&mut File, &CStr) -> Outcome) -> Outcome {
    let [path, name, options] = arguments(args)?;
    let (name, options) = (c_string(name)?, c_string(options)?);
    load(&mut module(path)?, &options)?;
    undone(remove_module(&name))
}

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

/// What a case has done is taken back; where that fails, it has changed something.
fn undone(result: Result<(), impl Display>) -> Outcome {
    result.map_err(|error| Failure::Usage(format!("it could not be taken back: {error}")))
}

fn bpf_of_number(args: &[String]) -> Outcome {
    /// Numbers are given out one after the other, and not again.
    const MOST: u64 = 1_000_000;
    // BPF_MAP_GET_FD_BY_ID and the like (include/uapi/linux/bpf.h).
    let command = match arguments::<1>(args)?[0] {
        "program" => 13,
        "map" => 14,
        "types" => 19,
        "link" => 30,
        other => return Err(Failure::Usage(format!("{other} has no numbers"))),
    };
    for number in 1..MOST {
        match bpf(command, &[number]) {
            Err(Failure::Errno(Errno::ENOENT)) => {}
            taken => return taken.map(drop),
        }
    }
    Err(Failure::Usage("the kernel has none".to_owned()))
}

fn fork_as_number() -> Outcome {
    let is_free = |number: &i32| nix::sys::signal::kill(Pid::from_raw(*number), None).is_err();
    let number = (20_000..30_000)
        .find(is_free)
        .ok_or_else(|| Failure::Usage("no number is free".to_owned()))?;
    process::in_child_by(
        || {
            // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup.
            let mut request = [0_u64; 11];
            request[4] = libc::SIGCHLD as u64;
            request[8] = &raw const number as u64;
            request[9] = 1;
            // SAFETY: without CLONE_VM and a stack of its own this is fork; the actor has one thread.
            let child = Errno::result(unsafe {
                libc::syscall(libc::SYS_clone3, request.as_ptr(), size_of_val(&request))
            })?;
            Ok(match child {
                0 => ForkResult::Child,
                pid => ForkResult::Parent {
                    child: Pid::from_raw(pid as i32),
                },
            })
        },
        || Ok(()),
    )
}
