//! Operations on processes, and operations that perform another operation in some other place: a daemonised
//! grandchild, a thread, another uid, many times over.

use std::{
    ffi::{CStr, CString},
    io::{Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{
        atomic::{AtomicU8, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::MsFlags,
    sched::CloneFlags,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Gid, Pid, Uid, fork},
};

use super::{Failure, Operation, Outcome, arguments, number, outcome_text, perform, sys};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "exec",
        usage: "PATH [ARG...] (in a child; waits for it)",
        run: |args| execute(args),
    },
    Operation {
        name: "exit",
        usage: "CODE",
        run: |args| std::process::exit(number(arguments::<1>(args)?[0])?),
    },
    Operation {
        name: "sleep",
        usage: "MILLISECONDS",
        run: sleep,
    },
    Operation {
        name: "kill",
        usage: "PID|self SIGNAL-NUMBER",
        run: kill,
    },
    Operation {
        name: "stop-by-input",
        usage: "PID (as who a terminal's input is told to; it goes on then)",
        run: stop_by_input,
    },
    Operation {
        name: "ptrace-attach",
        usage: "PID",
        run: ptrace_attach,
    },
    Operation {
        name: "mount-tmpfs",
        usage: "DIR",
        run: mount_tmpfs,
    },
    Operation {
        name: "unshare-user",
        usage: "OPERATION... (in a new user and mount namespace)",
        run: unshare_user,
    },
    Operation {
        name: "unshare",
        usage: "cgroup|ipc|time (a new namespace, of the user namespace that it is in)",
        run: |args| {
            let kind = match arguments::<1>(args)?[0] {
                "cgroup" => libc::CLONE_NEWCGROUP,
                "ipc" => libc::CLONE_NEWIPC,
                "time" => libc::CLONE_NEWTIME,
                other => return Err(Failure::Usage(format!("{other} is no kind of namespace"))),
            };
            sys!(libc::unshare(kind)).map(drop)
        },
    },
    Operation {
        name: "vfork-exec",
        usage: "PATH [ARG...] (in a child of vfork, by posix_spawn)",
        run: vfork_exec,
    },
    Operation {
        name: "exec-at",
        usage: "PATH (execveat of a descriptor that was opened with O_PATH)",
        run: |args| {
            let path = super::c_string(arguments::<1>(args)?[0])?;
            let fd = super::sys!(libc::open(path.as_ptr(), libc::O_PATH))?;
            execute_at(fd, "", libc::AT_EMPTY_PATH)
        },
    },
    Operation {
        name: "exec-memfd",
        usage: "PATH (a copy of it in memory)",
        run: |args| {
            let bytes = std::fs::read(arguments::<1>(args)?[0])?;
            let name = c"copy";
            let fd = super::sys!(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC))?;
            // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
            let mut file = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
            file.write_all(&bytes)?;
            execute_at(fd, "", libc::AT_EMPTY_PATH)
        },
    },
    Operation {
        name: "setsid",
        usage: "",
        run: |_| Ok(nix::unistd::setsid().map(drop)?),
    },
    Operation {
        name: "orphan",
        usage: "OPERATION... (in a grandchild that waited until its parent was gone)",
        run: orphan,
    },
    Operation {
        name: "double-fork",
        usage: "OPERATION... (in a grandchild with a session of its own)",
        run: double_fork,
    },
    Operation {
        name: "thread",
        usage: "OPERATION... (in a second thread)",
        run: in_thread,
    },
    Operation {
        name: "clone-parent",
        usage: "OPERATION... (in a child of this process's parent)",
        run: clone_parent,
    },
    Operation {
        name: "leaderless",
        usage: "OPERATION... (in a second thread, when the first has ended)",
        run: leaderless,
    },
    Operation {
        name: "exec-from-thread",
        usage: "PATH [ARG...] (by a second thread, which becomes the first; waits for it)",
        run: execute_from_thread,
    },
    Operation {
        name: "ptrace-open",
        usage: "PATH OTHER (a child asks for PATH, and its tracer makes OTHER of that)",
        run: ptrace_open,
    },
    Operation {
        name: "seccomp-open",
        usage: "PATH OTHER give|change (a thread asks for PATH; who answers gives it OTHER, or makes OTHER of that and lets it go on)",
        run: seccomp_open,
    },
    Operation {
        name: "as-uid",
        usage: "UID OPERATION...",
        run: as_uid,
    },
    Operation {
        name: "repeat",
        usage: "N OPERATION... (ends at the first failure)",
        run: repeat,
    },
    Operation {
        name: "forks",
        usage: "N (children that end at once, one after the other)",
        run: forks,
    },
];

/// Runs a program in a child and waits for it; a refused `execve` gives its own errno back.
pub(super) fn execute(words: &[String]) -> Outcome {
    if words.is_empty() {
        return Err(Failure::Usage("no program was named".to_owned()));
    }
    let argv = words
        .iter()
        .map(|word| CString::new(word.as_str()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    // The pipe closes by itself when execve succeeds: an errno that arrives is the refusal's own, not a child's.
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the actor has one thread when it forks, and the child only executes or ends.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(reader);
            let refused = nix::unistd::execvp(&argv[0], &argv)
                .err()
                .unwrap_or(Errno::UnknownErrno);
            let _ = nix::unistd::write(&writer, &(refused as i32).to_ne_bytes());
            // SAFETY: ends this process at once, without running what the parent registered.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut refused = Vec::new();
            std::fs::File::from(reader).read_to_end(&mut refused)?;
            let ended = wait(child);
            match <[u8; 4]>::try_from(refused) {
                Ok(bytes) => Err(Errno::from_raw(i32::from_ne_bytes(bytes)).into()),
                Err(_) => ended,
            }
        }
    }
}

/// A child that waits for a signal.
pub(super) fn waiting_child() -> Result<Pid, Failure> {
    // SAFETY: the actor has one thread when it forks; the child only waits, and is ended by `end_child`.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => loop {
            nix::unistd::pause();
        },
    }
}

/// Kills and reaps a child.
pub(super) fn end_child(child: Pid) {
    let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
}

/// Executes by execveat in a child; what is refused has its own errno, what runs its own end.
pub(super) fn execute_at(dir: i32, path: &str, flags: i32) -> Outcome {
    let path = super::c_string(path)?;
    let words = [c"program", c"exit", c"0"];
    let argv = [
        words[0].as_ptr(),
        words[1].as_ptr(),
        words[2].as_ptr(),
        std::ptr::null(),
    ];
    let environment = [std::ptr::null::<libc::c_char>()];
    in_child(|| {
        super::sys!(libc::syscall(
            libc::SYS_execveat,
            dir,
            path.as_ptr(),
            argv.as_ptr(),
            environment.as_ptr(),
            flags
        ))
        .map(drop)
    })
}

/// Performs `work` in a child, so that whatever it does to itself ends with it.
pub(super) fn in_child(work: impl FnOnce() -> Outcome) -> Outcome {
    // SAFETY: the actor has one thread when it forks; `work` runs in a copy of it.
    in_child_by(|| unsafe { fork() }, work)
}

/// The same, in a child that was made in some other way.
pub(super) fn in_child_by(
    make: impl FnOnce() -> nix::Result<ForkResult>,
    work: impl FnOnce() -> Outcome,
) -> Outcome {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    match make()? {
        ForkResult::Child => {
            drop(reader);
            report(writer, &work())
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let told = listen(reader)?;
            let ended = wait(child);
            told.unwrap_or(ended)
        }
    }
}

/// Tells the parent how it went, and ends the process.
fn report(writer: OwnedFd, outcome: &Outcome) -> ! {
    let _ = std::fs::File::from(writer).write_all(outcome_text(outcome).as_bytes());
    std::process::exit(0)
}

/// What the other side of the pipe told, `None` where it ended without a word.
fn listen(reader: OwnedFd) -> Result<Option<Outcome>, Failure> {
    let mut text = String::new();
    std::fs::File::from(reader).read_to_string(&mut text)?;
    Ok(if text.is_empty() {
        None
    } else {
        Some(parse(&text))
    })
}

fn parse(text: &str) -> Outcome {
    let number_after = |prefix: &str| {
        text.strip_prefix(prefix)
            .and_then(|rest| rest.parse::<i32>().ok())
    };
    if text == "ok" {
        Ok(())
    } else if let Some(code) = number_after("exit:") {
        Err(Failure::Exit(code))
    } else if let Some(signal) = number_after("signal:") {
        Err(Failure::Signal(signal))
    } else if let Some(message) = text.strip_prefix("usage:") {
        Err(Failure::Usage(message.to_owned()))
    } else {
        match (1..200)
            .map(Errno::from_raw)
            .find(|errno| format!("{errno:?}") == text)
        {
            Some(errno) => Err(errno.into()),
            None => Err(Failure::Usage(format!("a child said {text}"))),
        }
    }
}

fn wait(child: Pid) -> Outcome {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, code)) => return Err(Failure::Exit(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Err(Failure::Signal(signal as i32)),
            Ok(_) => {}
        }
    }
}

fn sleep(args: &[String]) -> Outcome {
    let [milliseconds] = arguments(args)?;
    std::thread::sleep(Duration::from_millis(number(milliseconds)?));
    Ok(())
}

fn kill(args: &[String]) -> Outcome {
    let [pid, signal] = arguments(args)?;
    let pid = if pid == "self" {
        Pid::this()
    } else {
        Pid::from_raw(number(pid)?)
    };
    // Signal 0 only asks whether sending would be allowed.
    let signal = match number(signal)? {
        0 => None,
        other => Some(Signal::try_from(other)?),
    };
    Ok(nix::sys::signal::kill(pid, signal)?)
}

/// Has a terminal's input tell a process to stop, and looks whether it did.
fn stop_by_input(args: &[String]) -> Outcome {
    /// Not in the libc crate: include/uapi/asm-generic/fcntl.h.
    const F_SETSIG: i32 = 10;
    let [pid] = arguments(args)?;
    let pid = Pid::from_raw(number(pid)?);
    let terminal = nix::pty::openpty(None, None)?;
    let told = terminal.slave.as_raw_fd();
    sys!(libc::fcntl(told, F_SETSIG, libc::SIGSTOP))?;
    sys!(libc::fcntl(told, libc::F_SETOWN, pid.as_raw()))?;
    sys!(libc::fcntl(told, libc::F_SETFL, libc::O_ASYNC))?;
    nix::unistd::write(&terminal.master, b"input\n")?;
    let stat = format!("/proc/{pid}/stat");
    for _ in 0..50 {
        let stat = std::fs::read_to_string(&stat)?;
        if stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
        {
            return Ok(nix::sys::signal::kill(pid, Signal::SIGCONT)?);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Errno::EPERM.into())
}

fn ptrace_attach(args: &[String]) -> Outcome {
    let [pid] = arguments(args)?;
    let pid = Pid::from_raw(number(pid)?);
    nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty())?;
    // A seized process that was never stopped goes on by itself when its tracer ends; the actor ends right after.
    Ok(())
}

fn mount_tmpfs(args: &[String]) -> Outcome {
    let [dir] = arguments(args)?;
    Ok(nix::mount::mount(
        Some("none"),
        dir,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?)
}

fn unshare_user(args: &[String]) -> Outcome {
    let (uid, gid) = (Uid::current(), Gid::current());
    in_child(|| {
        nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        perform(args)
    })
}

fn double_fork(args: &[String]) -> Outcome {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the actor has one thread when it forks; the children run copies of it.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(reader);
            if let Err(errno) = nix::unistd::setsid() {
                report(writer, &Err(errno.into()));
            }
            // SAFETY: as above.
            match unsafe { fork() } {
                Err(errno) => report(writer, &Err(errno.into())),
                // The grandchild outlives its parent and belongs to whoever reaps orphans.
                Ok(ForkResult::Parent { .. }) => std::process::exit(0),
                Ok(ForkResult::Child) => report(writer, &perform(args)),
            }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            wait(child)?;
            listen(reader)?.unwrap_or(Err(Failure::Usage(
                "the grandchild ended without a word".to_owned(),
            )))
        }
    }
}

fn vfork_exec(args: &[String]) -> Outcome {
    let argv = args
        .iter()
        .map(|word| super::c_string(word))
        .collect::<Result<Vec<_>, _>>()?;
    let pointers: Vec<*mut libc::c_char> = argv
        .iter()
        .map(|word| word.as_ptr().cast_mut())
        .chain([std::ptr::null_mut()])
        .collect();
    let environment = [std::ptr::null_mut::<libc::c_char>()];
    let mut child = 0;
    // SAFETY: the strings, and the null-terminated lists of them, live across the call.
    let code = unsafe {
        libc::posix_spawn(
            &raw mut child,
            pointers[0],
            std::ptr::null(),
            std::ptr::null(),
            pointers.as_ptr(),
            environment.as_ptr(),
        )
    };
    match code {
        0 => wait(Pid::from_raw(child)),
        code => Err(Errno::from_raw(code).into()),
    }
}

fn orphan(args: &[String]) -> Outcome {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the actor has one thread when it forks; the children run copies of it.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(reader);
            let parent = Pid::this();
            // SAFETY: as above.
            match unsafe { fork() } {
                Err(errno) => report(writer, &Err(errno.into())),
                Ok(ForkResult::Parent { .. }) => std::process::exit(0),
                Ok(ForkResult::Child) => {
                    while nix::unistd::getppid() == parent {
                        std::thread::yield_now();
                    }
                    report(writer, &perform(args))
                }
            }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            wait(child)?;
            listen(reader)?.unwrap_or(Err(Failure::Usage(
                "the grandchild ended without a word".to_owned(),
            )))
        }
    }
}

fn clone_parent(args: &[String]) -> Outcome {
    in_child_by(
        || {
            let flags = libc::CLONE_PARENT | libc::SIGCHLD;
            // SAFETY: without CLONE_VM and a stack of its own this is fork; the actor has one thread.
            let child =
                Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
            Ok(match child {
                0 => ForkResult::Child,
                pid => ForkResult::Parent {
                    child: Pid::from_raw(pid as i32),
                },
            })
        },
        || perform(args),
    )
}

fn leaderless(args: &[String]) -> Outcome {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the actor has one thread when it forks; the child runs a copy of it.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(reader);
            let args = args.to_vec();
            std::thread::spawn(move || {
                let outcome = await_leaders_end().and_then(|()| perform(&args));
                report(writer, &outcome)
            });
            // SAFETY: ends this thread alone; nothing that it has is used by the other one.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            std::process::abort()
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let told = listen(reader)?;
            let ended = wait(child);
            told.unwrap_or(ended)
        }
    }
}

/// Waits until the first thread of this process has ended.
fn await_leaders_end() -> Outcome {
    let is_zombie = |stat: &str| {
        let rest = stat.rsplit(") ").next();
        rest.is_some_and(|rest| rest.starts_with('Z'))
    };
    loop {
        let stat = std::fs::read_to_string("/proc/self/stat")
            .map_err(|error| Failure::Usage(format!("look at the first thread: {error}")))?;
        if is_zombie(&stat) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn execute_from_thread(words: &[String]) -> Outcome {
    let argv = words
        .iter()
        .map(|word| super::c_string(word))
        .collect::<Result<Vec<_>, _>>()?;
    let program = argv
        .first()
        .ok_or_else(|| Failure::Usage("no program was named".to_owned()))?;
    let replace = || -> Outcome { Ok(nix::unistd::execv(program, &argv).map(drop)?) };
    in_child(|| {
        std::thread::scope(|scope| scope.spawn(replace).join())
            .unwrap_or_else(|_| Err(Failure::Usage("the thread ended early".to_owned())))
    })
}

/// Opens a file for reading, by the system call itself.
fn open_at(path: *const libc::c_char) -> Outcome {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    let file = sys!(libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags))?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(file as RawFd) });
    Ok(())
}

fn ptrace_open(args: &[String]) -> Outcome {
    let [asked, other] = arguments(args)?;
    let (asked, other) = (super::c_string(asked)?, super::c_string(other)?);
    // SAFETY: the actor has one thread when it forks; the child only makes system calls.
    match unsafe { fork() }? {
        ForkResult::Child => {
            if ptrace::traceme().is_ok() && nix::sys::signal::raise(Signal::SIGSTOP).is_ok() {
                // What comes of it is for the tracer to see.
                let _ = open_at(asked.as_ptr());
            }
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => {
            let outcome = change_open(child, &asked, &other);
            end_child(child);
            outcome
        }
    }
}

/// Lets a stopped child go on until it asks for a file, makes another file of that, and sees what comes of it. Both names stand in the
/// child where they stand here.
fn change_open(child: Pid, asked: &CStr, other: &CStr) -> Outcome {
    let silent = || Failure::Usage("the child did not ask for the file".to_owned());
    if waitpid(child, None)? != WaitStatus::Stopped(child, Signal::SIGSTOP) {
        return Err(silent());
    }
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(child, options)?;
    let next_stop = || -> Result<(), Failure> {
        ptrace::syscall(child, None)?;
        match waitpid(child, None)? {
            WaitStatus::PtraceSyscall(_) => Ok(()),
            _ => Err(silent()),
        }
    };
    loop {
        next_stop()?;
        let mut registers = ptrace::getregs(child)?;
        if registers.orig_rax == libc::SYS_openat as u64 && registers.rsi == asked.as_ptr() as u64 {
            registers.rsi = other.as_ptr() as u64;
            ptrace::setregs(child, registers)?;
            next_stop()?;
            let result = ptrace::getregs(child)?.rax as i64;
            return match i32::try_from(-result) {
                Ok(errno @ 1..) => Err(Errno::from_raw(errno).into()),
                _ => Ok(()),
            };
        }
    }
}

fn seccomp_open(args: &[String]) -> Outcome {
    let [asked, other, how] = arguments(args)?;
    let changes = match how {
        "give" => false,
        "change" => true,
        _ => return Err(Failure::Usage(format!("{how} is no way to answer"))),
    };
    let name = super::c_string(asked)?;
    let other = super::c_string(other)?;
    // The name that is asked for, with room for the other one, as both threads see it.
    let length = name.as_bytes().len().max(other.as_bytes().len()) + 1;
    let shared: Vec<AtomicU8> = (0..length)
        .map(|at| AtomicU8::new(name.as_bytes().get(at).copied().unwrap_or_default()))
        .collect();
    let (sender, receiver) = channel();
    let ask = |sender: Sender<Result<OwnedFd, Failure>>| -> Outcome {
        let listener = ask_for_opens();
        let has_filter = listener.is_ok();
        // Without a listener the other side says why.
        let _ = sender.send(listener);
        if !has_filter {
            return Err(Failure::Usage("there is no filter".to_owned()));
        }
        open_at(shared.as_ptr().cast())
    };
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| ask(sender));
        // Where this fails, the listener is closed, and the thread is told that nobody answers.
        let answered = answer_open(&receiver, changes.then_some(&shared[..]), &other);
        let outcome = asks
            .join()
            .unwrap_or_else(|_| Err(Failure::Usage("the thread ended early".to_owned())));
        answered.and(outcome)
    })
}

/// From here on this thread's opens are somebody else's to answer: who has the descriptor that is given back.
fn ask_for_opens() -> Result<OwnedFd, Failure> {
    /// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K` (include/uapi/linux/filter.h).
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let line = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut filter = [
        // The number of the system call stands first.
        line(LOAD, 0, 0),
        line(IF_EQUAL, 1, libc::SYS_openat as u32),
        line(RETURN, 0, libc::SECCOMP_RET_USER_NOTIF),
        line(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    sys!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
    let listener = sys!(libc::syscall(
        libc::SYS_seccomp,
        libc::SECCOMP_SET_MODE_FILTER,
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        &raw const program
    ))?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
}

/// Answers one open: by letting it go on with another name, where one is to be changed, or by what comes of opening the other file here.
fn answer_open(
    listeners: &Receiver<Result<OwnedFd, Failure>>,
    name: Option<&[AtomicU8]>,
    other: &CStr,
) -> Outcome {
    /// `SECCOMP_IOCTL_NOTIF_RECV`, `_SEND` and `_ADDFD` (include/uapi/linux/seccomp.h).
    const RECEIVE: libc::Ioctl = 0xc050_2100;
    const SEND: libc::Ioctl = 0xc018_2101;
    const ADD: libc::Ioctl = 0x4018_2103;
    let listener = listeners
        .recv()
        .map_err(|_| Failure::Usage("the thread ended early".to_owned()))??;
    // SAFETY: plain data, all zeroes are a valid value, and what the kernel asks for.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    sys!(libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked))?;
    let mut answer = libc::seccomp_notif_resp {
        id: asked.id,
        val: 0,
        error: 0,
        flags: 0,
    };
    if let Some(name) = name {
        let bytes = other.to_bytes().iter().chain(std::iter::repeat(&0));
        for (to, from) in name.iter().zip(bytes) {
            to.store(*from, Ordering::SeqCst);
        }
        answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    } else {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        match nix::fcntl::open(other, flags, nix::sys::stat::Mode::empty()) {
            Err(errno) => answer.error = -(errno as i32),
            Ok(file) => {
                let given = libc::seccomp_notif_addfd {
                    id: asked.id,
                    flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
                    srcfd: file.as_raw_fd() as u32,
                    newfd: 0,
                    newfd_flags: libc::O_CLOEXEC as u32,
                };
                return sys!(libc::ioctl(listener.as_raw_fd(), ADD, &raw const given)).map(drop);
            }
        }
    }
    sys!(libc::ioctl(listener.as_raw_fd(), SEND, &raw mut answer)).map(drop)
}

fn in_thread(args: &[String]) -> Outcome {
    std::thread::scope(|scope| scope.spawn(|| perform(args)).join())
        .unwrap_or_else(|_| Err(Failure::Usage("the thread panicked".to_owned())))
}

fn as_uid(args: &[String]) -> Outcome {
    let Some((uid, operation)) = args.split_first() else {
        return Err(Failure::Usage(
            "a uid and an operation are needed".to_owned(),
        ));
    };
    let uid: u32 = number(uid)?;
    in_child(|| {
        nix::unistd::setgroups(&[])?;
        nix::unistd::setgid(Gid::from_raw(uid))?;
        nix::unistd::setuid(Uid::from_raw(uid))?;
        perform(operation)
    })
}

fn repeat(args: &[String]) -> Outcome {
    let Some((times, operation)) = args.split_first() else {
        return Err(Failure::Usage(
            "a number and an operation are needed".to_owned(),
        ));
    };
    (0..number::<u64>(times)?).try_for_each(|_| perform(operation))
}

fn forks(args: &[String]) -> Outcome {
    let [times] = arguments(args)?;
    for _ in 0..number::<u64>(times)? {
        // SAFETY: the actor has one thread when it forks, and the child only ends.
        match unsafe { fork() }? {
            // SAFETY: ends this process at once.
            ForkResult::Child => unsafe { libc::_exit(0) },
            ForkResult::Parent { child } => wait(child)?,
        }
    }
    Ok(())
}

/// Reaps whatever ended meanwhile, without waiting: grandchildren whose parents ended come to a subreaper.
pub(super) fn reap_strays() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// Makes descriptor 1 a copy of `target`, so that programs cannot write among the actor's own results.
pub(super) fn send_stdout_to(target: &impl AsRawFd) -> Outcome {
    // SAFETY: both descriptors are open for the whole call; standard output stays a valid descriptor.
    let done = unsafe { libc::dup2(target.as_raw_fd(), libc::STDOUT_FILENO) };
    Errno::result(done).map(drop).map_err(Failure::from)
}
