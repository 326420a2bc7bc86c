//! Operations on another process, named by its pid: tracing, memory, descriptors, signals, priorities.

use std::{
    fs,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        raw::c_void,
    },
    time::Duration,
};

use nix::{errno::Errno, unistd::Pid};

use super::{Failure, Operation, Outcome, arguments, c_string, number, perform, process, sys};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "ptrace-stop",
        usage: "PID (PTRACE_ATTACH, waits for the stop, detaches)",
        run: |args| {
            let pid = pid(args)?;
            nix::sys::ptrace::attach(pid)?;
            // A tracee of another family is waited for with __WALL.
            sys!(libc::waitpid(
                pid.as_raw(),
                std::ptr::null_mut(),
                libc::__WALL
            ))?;
            Ok(nix::sys::ptrace::detach(pid, None)?)
        },
    },
    Operation {
        name: "vm-read",
        usage: "PID ADDRESS (process_vm_readv)",
        run: |args| transfer(args, false),
    },
    Operation {
        name: "vm-write",
        usage: "PID ADDRESS (process_vm_writev: what stands there already)",
        run: |args| transfer(args, true),
    },
    Operation {
        name: "pidfd-getfd",
        usage: "PID FD",
        run: |args| {
            let [pid, fd] = arguments(args)?;
            let handle = pidfd(number(pid)?)?;
            let fd: RawFd = number(fd)?;
            sys!(libc::syscall(
                libc::SYS_pidfd_getfd,
                handle.as_raw_fd(),
                fd,
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "pidfd-signal",
        usage: "PID SIGNAL",
        run: |args| {
            let [pid, signal] = arguments(args)?;
            let handle = pidfd(number(pid)?)?;
            let signal: i32 = number(signal)?;
            let none = std::ptr::null::<u8>();
            sys!(libc::syscall(
                libc::SYS_pidfd_send_signal,
                handle.as_raw_fd(),
                signal,
                none,
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "pidfd-signal-to",
        usage: "PID SIGNAL thread|process|group",
        run: |args| {
            let [pid, signal, whom] = arguments(args)?;
            // PIDFD_SIGNAL_THREAD and the like (include/uapi/linux/pidfd.h).
            let flags = match whom {
                "thread" => 1,
                "process" => 2,
                "group" => 4,
                other => return Err(Failure::Usage(format!("a signal does not go to a {other}"))),
            };
            let handle = pidfd(number(pid)?)?;
            let signal: i32 = number(signal)?;
            let none = std::ptr::null::<u8>();
            sys!(libc::syscall(
                libc::SYS_pidfd_send_signal,
                handle.as_raw_fd(),
                signal,
                none,
                flags
            ))
            .map(drop)
        },
    },
    Operation {
        name: "pidfd-namespace",
        usage: "PID (opens its UTS namespace by a descriptor of the process)",
        run: |args| {
            /// include/uapi/linux/pidfd.h.
            const PIDFD_GET_UTS_NAMESPACE: libc::Ioctl = 0xff0a;
            let handle = pidfd(number(arguments::<1>(args)?[0])?)?;
            sys!(libc::ioctl(handle.as_raw_fd(), PIDFD_GET_UTS_NAMESPACE, 0)).map(drop)
        },
    },
    Operation {
        name: "pidfd-setns",
        usage: "PID (enters its UTS namespace by a descriptor of the process)",
        run: |args| {
            let handle = pidfd(number(arguments::<1>(args)?[0])?)?;
            sys!(libc::setns(handle.as_raw_fd(), libc::CLONE_NEWUTS)).map(drop)
        },
    },
    Operation {
        name: "tgkill",
        usage: "PID SIGNAL",
        run: |args| {
            let [pid, signal] = arguments(args)?;
            let (pid, signal): (i32, i32) = (number(pid)?, number(signal)?);
            sys!(libc::syscall(libc::SYS_tgkill, pid, pid, signal)).map(drop)
        },
    },
    Operation {
        name: "tkill",
        usage: "PID SIGNAL",
        run: |args| {
            let [pid, signal] = arguments(args)?;
            let (pid, signal): (i32, i32) = (number(pid)?, number(signal)?);
            sys!(libc::syscall(libc::SYS_tkill, pid, signal)).map(drop)
        },
    },
    Operation {
        name: "sigqueue",
        usage: "PID SIGNAL",
        run: |args| {
            let [pid, signal] = arguments(args)?;
            let value = libc::sigval {
                sival_ptr: std::ptr::null_mut(),
            };
            sys!(libc::sigqueue(number(pid)?, number(signal)?, value)).map(drop)
        },
    },
    Operation {
        name: "tgsigqueue",
        usage: "PID SIGNAL (to its first thread)",
        run: |args| {
            /// include/uapi/asm-generic/siginfo.h.
            const SI_QUEUE: i32 = -1;
            let [pid, signal] = arguments(args)?;
            let (pid, signal): (i32, i32) = (number(pid)?, number(signal)?);
            // si_signo, si_errno, si_code; no more of a siginfo's 128 bytes.
            let mut about = [0_i32; 32];
            (about[0], about[2]) = (signal, SI_QUEUE);
            sys!(libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                pid,
                pid,
                signal,
                about.as_ptr()
            ))
            .map(drop)
        },
    },
    Operation {
        name: "signal-child",
        usage: "SIGNAL (to a child of its own)",
        run: |args| {
            let signal: i32 = number(arguments::<1>(args)?[0])?;
            let child = process::waiting_child()?;
            let sent = sys!(libc::kill(child.as_raw(), signal)).map(drop);
            process::end_child(child);
            sent
        },
    },
    Operation {
        name: "ptrace-child",
        usage: "(seizes a child of its own)",
        run: |_| {
            let child = process::waiting_child()?;
            let seized = nix::sys::ptrace::seize(child, nix::sys::ptrace::Options::empty());
            process::end_child(child);
            Ok(seized?)
        },
    },
    Operation {
        name: "ptrace-me",
        usage: "(by the parent)",
        run: |_| Ok(nix::sys::ptrace::traceme()?),
    },
    Operation {
        name: "thread-comm",
        usage: "(a thread that is not the first names itself, by its file)",
        run: |_| {
            let name_itself = || -> Outcome {
                let path = format!("/proc/self/task/{}/comm", nix::unistd::gettid());
                Ok(fs::write(path, "named")?)
            };
            std::thread::scope(|scope| scope.spawn(name_itself).join())
                .unwrap_or_else(|_| Err(Failure::Usage("the thread ended early".to_owned())))
        },
    },
    Operation {
        name: "setpriority",
        usage: "PID",
        run: |args| {
            let pid = pid(args)?.as_raw();
            sys!(libc::setpriority(libc::PRIO_PROCESS, pid as u32, 5)).map(drop)
        },
    },
    Operation {
        name: "sched-affinity",
        usage: "PID",
        run: |args| {
            let pid = pid(args)?.as_raw();
            let all = [u8::MAX; 128];
            sys!(libc::sched_setaffinity(pid, 128, all.as_ptr().cast())).map(drop)
        },
    },
    Operation {
        name: "sched-policy",
        usage: "PID (SCHED_BATCH)",
        run: |args| {
            let pid = pid(args)?.as_raw();
            let priority = libc::sched_param { sched_priority: 0 };
            sys!(libc::sched_setscheduler(pid, libc::SCHED_BATCH, &priority)).map(drop)
        },
    },
    Operation {
        name: "sched-attributes",
        usage: "PID (sched_setattr: to what they are)",
        run: |args| {
            /// `SCHED_FLAG_KEEP_POLICY` and `SCHED_FLAG_KEEP_PARAMS` (include/uapi/linux/sched.h).
            const KEEP_ALL: u64 = 0x18;
            let pid = pid(args)?.as_raw();
            // size, policy; flags; nice, priority; runtime, deadline, period.
            let attributes = [48_u64, KEEP_ALL, 0, 0, 0, 0];
            sys!(libc::syscall(
                libc::SYS_sched_setattr,
                pid,
                attributes.as_ptr(),
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "migrate-pages",
        usage: "PID (from the first node to the first node)",
        run: |args| {
            let pid = pid(args)?.as_raw();
            let nodes = 1_u64;
            sys!(libc::syscall(
                libc::SYS_migrate_pages,
                pid,
                64,
                &raw const nodes,
                &raw const nodes
            ))
            .map(drop)
        },
    },
    Operation {
        name: "move-pages",
        usage: "PID ADDRESS (asks on which node it is)",
        run: |args| {
            let [pid, at] = arguments(args)?;
            let (pid, at): (i32, usize) = (number(pid)?, number(at)?);
            let page = at & !4095;
            let mut node = 0_i32;
            sys!(libc::syscall(
                libc::SYS_move_pages,
                pid,
                1,
                &raw const page,
                std::ptr::null::<i32>(),
                &raw mut node,
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "robust-list",
        usage: "PID (asks where its list of locks is)",
        run: |args| {
            let pid = pid(args)?.as_raw();
            let (mut head, mut length) = (0_usize, 0_usize);
            sys!(libc::syscall(
                libc::SYS_get_robust_list,
                pid,
                &raw mut head,
                &raw mut length
            ))
            .map(drop)
        },
    },
    Operation {
        name: "prlimit-question",
        usage: "PID (what RLIMIT_CORE is)",
        run: |args| {
            let pid = pid(args)?.as_raw();
            let mut limit = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            let none = std::ptr::null();
            sys!(libc::prlimit(pid, libc::RLIMIT_CORE, none, &raw mut limit)).map(drop)
        },
    },
    Operation {
        name: "prlimit",
        usage: "PID (RLIMIT_CORE to 0)",
        run: |args| {
            let pid = pid(args)?.as_raw();
            let limit = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            let none = std::ptr::null_mut();
            sys!(libc::prlimit(pid, libc::RLIMIT_CORE, &limit, none)).map(drop)
        },
    },
    Operation {
        name: "ioprio",
        usage: "PID (best effort, 7)",
        run: |args| {
            const WHO_PROCESS: i32 = 1;
            let pid = pid(args)?.as_raw();
            sys!(libc::syscall(
                libc::SYS_ioprio_set,
                WHO_PROCESS,
                pid,
                (2 << 13) | 7
            ))
            .map(drop)
        },
    },
    Operation {
        name: "kcmp",
        usage: "PID (its virtual memory against ours)",
        run: |args| {
            const VM: i32 = 1;
            let pid = pid(args)?.as_raw();
            let own = std::process::id();
            sys!(libc::syscall(libc::SYS_kcmp, own, pid, VM, 0, 0)).map(drop)
        },
    },
    Operation {
        name: "madvise",
        usage: "PID ADDRESS (process_madvise: cold)",
        run: |args| {
            let [pid, at] = arguments(args)?;
            let handle = pidfd(number(pid)?)?;
            let at: usize = number(at)?;
            let page = libc::iovec {
                iov_base: (at & !4095) as *mut c_void,
                iov_len: 4096,
            };
            sys!(libc::syscall(
                libc::SYS_process_madvise,
                handle.as_raw_fd(),
                &raw const page,
                1,
                libc::MADV_COLD,
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "clone-into-cgroup",
        usage: "DIR OPERATION... (in a child that is born in that cgroup)",
        run: clone_into_cgroup,
    },
    Operation {
        name: "child-cgroup",
        usage: "NAME OPERATION... (in a child that enters a new cgroup below the one that it is in)",
        run: |args| child_cgroup(args, false),
    },
    Operation {
        name: "thread-cgroup",
        usage: "NAME OPERATION... (in a thread that enters such a cgroup, which is of threads, alone)",
        run: |args| child_cgroup(args, true),
    },
    Operation {
        name: "enter-cgroup",
        usage: "DIR (writes 0 into its cgroup.procs)",
        run: |args| {
            let [dir] = arguments(args)?;
            Ok(fs::write(format!("{dir}/cgroup.procs"), "0")?)
        },
    },
];

fn pid(args: &[String]) -> Result<Pid, Failure> {
    Ok(Pid::from_raw(number(arguments::<1>(args)?[0])?))
}

fn pidfd(pid: i32) -> Result<OwnedFd, Failure> {
    let fd = sys!(libc::syscall(libc::SYS_pidfd_open, pid, 0))
        .map_err(|failure| Failure::Usage(format!("pidfd_open: {failure}")))?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn transfer(args: &[String], write: bool) -> Outcome {
    let [pid, at] = arguments(args)?;
    let (pid, at): (i32, usize) = (number(pid)?, number(at)?);
    // The word that the process outside keeps at this address.
    let mut word = super::outside::WORD;
    let here = libc::iovec {
        iov_base: word.as_mut_ptr().cast(),
        iov_len: word.len(),
    };
    let there = libc::iovec {
        iov_base: at as *mut c_void,
        iov_len: word.len(),
    };
    let moved = if write {
        sys!(libc::process_vm_writev(pid, &here, 1, &there, 1, 0))?
    } else {
        sys!(libc::process_vm_readv(pid, &here, 1, &there, 1, 0))?
    };
    if moved == word.len() as isize {
        Ok(())
    } else {
        Err(Failure::Usage(format!("{moved} bytes were moved")))
    }
}

fn clone_into_cgroup(args: &[String]) -> Outcome {
    let Some((dir, operation)) = args.split_first() else {
        return Err(Failure::Usage(
            "a cgroup and an operation are needed".into(),
        ));
    };
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let dir = c_string(dir)?;
    let cgroup = sys!(libc::open(
        dir.as_ptr(),
        libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC
    ))
    .map_err(|failure| Failure::Usage(format!("open the cgroup: {failure}")))?;
    process::in_child_by(
        || {
            // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup.
            let mut request = [0_u64; 11];
            request[0] = INTO_CGROUP;
            request[4] = libc::SIGCHLD as u64;
            request[10] = cgroup as u64;
            // SAFETY: without CLONE_VM and a stack of its own this is fork; the actor has one thread.
            let child = Errno::result(unsafe {
                libc::syscall(libc::SYS_clone3, request.as_ptr(), size_of_val(&request))
            })?;
            Ok(match child {
                0 => nix::unistd::ForkResult::Child,
                pid => nix::unistd::ForkResult::Parent {
                    child: Pid::from_raw(pid as i32),
                },
            })
        },
        || perform(operation),
    )
}

fn child_cgroup(args: &[String], threaded: bool) -> Outcome {
    let Some((name, operation)) = args.split_first() else {
        return Err(Failure::Usage("a name and an operation are needed".into()));
    };
    let prepared = |result: std::io::Result<()>, what: &str| {
        result.map_err(|error| Failure::Usage(format!("{what}: {error}")))
    };
    let about = fs::read_to_string("/proc/self/cgroup")
        .map_err(|error| Failure::Usage(format!("look at the cgroup: {error}")))?;
    let around = about
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or_else(|| Failure::Usage("there is no unified hierarchy".into()))?;
    let dir = format!("/sys/fs/cgroup{around}/{name}");
    prepared(fs::create_dir(&dir), "make the cgroup")?;
    let done = process::in_child(|| {
        if !threaded {
            prepared(fs::write(format!("{dir}/cgroup.procs"), "0"), "enter it")?;
            return perform(operation);
        }
        let kind = fs::write(format!("{dir}/cgroup.type"), "threaded");
        prepared(kind, "make it one of threads")?;
        let enter = || -> Outcome {
            prepared(fs::write(format!("{dir}/cgroup.threads"), "0"), "enter it")?;
            perform(operation)
        };
        std::thread::scope(|scope| scope.spawn(enter).join())
            .unwrap_or_else(|_| Err(Failure::Usage("the thread ended early".to_owned())))
    });
    // Newer kernels let a task that has been waited for leave its cgroup a little later.
    let is_empty = || {
        fs::read_to_string(format!("{dir}/cgroup.events"))
            .is_ok_and(|events| events.contains("populated 0"))
    };
    for _ in 0..100 {
        if is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    prepared(fs::remove_dir(&dir), "remove the cgroup")?;
    done
}
