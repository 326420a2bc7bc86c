//! What is done inside a session: one action after the other, each reported on a line of a file.

use std::{
    ffi::CString,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    },
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicI32, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use agentwatch_tests::act;
use nix::{
    errno::Errno,
    pty::{ForkptyResult, forkpty},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction, signal},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getpeername, socket,
        },
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    time::{ClockId, clock_gettime},
    unistd::{ForkResult, execv, fork},
};

/// The program that `spawn` has started and `wait` waits for.
static CHILD: Mutex<Option<Child>> = Mutex::new(None);

pub(super) fn perform(report: &Path, actions: &[String]) -> ExitCode {
    // A shell that began all this in the background had it ignored.
    // SAFETY: no handler is installed.
    if unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.is_err() {
        return ExitCode::from(99);
    }
    let mut failed = false;
    for action in actions {
        let since = Instant::now();
        let result = act(action);
        failed |= result.is_err();
        let line = match result {
            Ok(said) => format!("ok {said}"),
            Err(error) => format!("error {}", error.raw_os_error().unwrap_or(-1)),
        };
        // Written at once: whoever looks on sees whole lines.
        let line = format!("{action} {line} {}\n", since.elapsed().as_millis());
        let told = fs::File::options()
            .create(true)
            .append(true)
            .open(report)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if told.is_err() {
            return ExitCode::from(99);
        }
    }
    ExitCode::from(u8::from(failed))
}

fn act(action: &str) -> std::io::Result<String> {
    let (verb, object) = action.split_once(':').unwrap_or((action, ""));
    let done = |result: std::io::Result<()>| result.map(|()| "-".to_owned());
    match verb {
        "read" => fs::read_to_string(object),
        "write" => done(fs::write(object, "written")),
        "append" => done(
            fs::File::options()
                .append(true)
                .open(object)
                .and_then(|mut file| file.write_all(b"more")),
        ),
        "delete" => done(fs::remove_file(object)),
        "mkdir" => done(fs::create_dir(object)),
        "rename" => {
            let (from, to) = object.split_once('>').unwrap_or((object, ""));
            done(fs::rename(from, to))
        }
        "chmod" => done(fs::set_permissions(
            object,
            fs::Permissions::from_mode(0o640),
        )),
        "connect" => TcpStream::connect(object).map(|_| "-".to_owned()),
        "send" => UdpSocket::bind("127.0.0.1:0")
            .and_then(|socket| socket.send_to(b"x", object))
            .map(|_| "-".to_owned()),
        "exec" => {
            let mut words = object.split(' ');
            let program = words.next().unwrap_or_default();
            let output = Command::new(program).args(words).output()?;
            Ok(said(&output.stdout, output.status))
        }
        // By posix_spawn, whose parent goes on when the child has its program.
        "spawn" => {
            let mut words = object.split(' ');
            let program = words.next().unwrap_or_default();
            let child = Command::new(program)
                .args(words)
                .stdout(Stdio::piped())
                .spawn()?;
            *CHILD.lock().map_err(|_| invalid())? = Some(child);
            Ok("-".to_owned())
        }
        "wait" => {
            let child = CHILD.lock().map_err(|_| invalid())?.take();
            let output = child.ok_or_else(invalid)?.wait_with_output()?;
            Ok(said(&output.stdout, output.status))
        }
        // On a terminal of its own.
        "terminal" => terminal(object),
        "urge" => urge(object),
        "threads" => threads(object),
        "connect-later" => connect_later(object),
        "connect-elsewhere" => connect_elsewhere(object),
        "create" => done(fs::File::create_new(object).map(drop)),
        "repeat" => {
            let (times, address) = object.split_once(':').unwrap_or(("0", object));
            let times: u32 = times.parse().unwrap_or(0);
            for _ in 0..times {
                TcpStream::connect(address)?;
            }
            Ok(times.to_string())
        }
        "repeat-append" => {
            let (times, path) = object.split_once(':').unwrap_or(("0", object));
            let times: u32 = times.parse().unwrap_or(0);
            for _ in 0..times {
                act(&format!("append:{path}"))?;
            }
            Ok(times.to_string())
        }
        // Connects as well, and when each of them was through: CLOCK_BOOTTIME in nanoseconds.
        "stamps" => {
            let (times, address) = object.split_once(':').unwrap_or(("0", object));
            let times: u32 = times.parse().unwrap_or(0);
            let mut stamps = Vec::new();
            for _ in 0..times {
                TcpStream::connect(address)?;
                let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
                stamps.push(now.as_nanos().to_string());
            }
            Ok(stamps.join(","))
        }
        // A handler that writes a byte to a file whenever it is called.
        "catch" => done(catch(Signal::SIGUSR1, SaFlags::empty(), object)),
        "catch-restart" => done(catch(Signal::SIGUSR1, SaFlags::SA_RESTART, object)),
        // The same for a timer that rings every 300 ms.
        "timer" => done(catch(Signal::SIGALRM, SaFlags::empty(), object).and_then(|()| ring())),
        "ignore" => done(ignore()),
        "first" => first_of_its_kind(object),
        // An operation of the actor's.
        "act" => {
            let words: Vec<String> = object.split(' ').map(str::to_owned).collect();
            Ok(act::outcome_text(&act::perform(&words)))
        }
        "is-first" => {
            if std::process::id() == 1 {
                Ok("-".to_owned())
            } else {
                Err(invalid())
            }
        }
        "sleep" => {
            sleep(Duration::from_millis(object.parse().unwrap_or(0)));
            Ok("-".to_owned())
        }
        // Many of one kind: `ports:N:ADDRESS` connects to N ports from the address's on, `crowd:N:ADDRESS` so many times to it.
        "ports" => connect_many(object, 1),
        "crowd" => connect_many(object, 0),
        _ => Err(invalid()),
    }
}

/// Connects by processes of their own, and says how many came through.
fn connect_many(object: &str, step: u16) -> std::io::Result<String> {
    let (count, address) = object.split_once(':').unwrap_or(("0", object));
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let first: u16 = port.parse().unwrap_or(0);
    let children: Vec<Child> = (0..count.parse().unwrap_or(0))
        .map(|n: u16| {
            Command::new(std::env::current_exe()?)
                .arg("do")
                .arg("/dev/null")
                .arg(format!("connect:{host}:{}", first + n * step))
                .spawn()
        })
        .collect::<std::io::Result<_>>()?;
    let mut through = 0;
    for mut child in children {
        through += u32::from(child.wait()?.success());
    }
    Ok(through.to_string())
}

fn invalid() -> std::io::Error {
    std::io::Error::from_raw_os_error(libc::EINVAL)
}

/// What a program said, and how it ended where that was not well.
fn said(stdout: &[u8], status: ExitStatus) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(stdout).trim(),
        match (status.code(), status.signal()) {
            (Some(0), _) => String::new(),
            (Some(code), _) => format!("code {code}"),
            _ => "killed".to_owned(),
        }
    )
}

/// Where the handler writes.
static HEARD: AtomicI32 = AtomicI32::new(-1);

extern "C" fn hear(_signal: i32) {
    // SAFETY: write(2) is safe in a handler, and the byte is there.
    unsafe { libc::write(HEARD.load(Ordering::Relaxed), b"x".as_ptr().cast(), 1) };
}

fn catch(signal: Signal, flags: SaFlags, file: &str) -> std::io::Result<()> {
    let file = fs::File::create(file)?;
    HEARD.store(file.into_raw_fd(), Ordering::Relaxed);
    let action = SigAction::new(SigHandler::Handler(hear), flags, SigSet::empty());
    // SAFETY: the handler does nothing that is not safe in one.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

fn ring() -> std::io::Result<()> {
    let often = libc::timeval {
        tv_sec: 0,
        tv_usec: 300_000,
    };
    let timer = libc::itimerval {
        it_interval: often,
        it_value: often,
    };
    // SAFETY: the value outlives the call, and the old one is not asked for.
    Errno::result(unsafe {
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut())
    })?;
    Ok(())
}

/// Ignores SIGTERM, and blocks SIGINT.
fn ignore() -> std::io::Result<()> {
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is called.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    SigSet::from(Signal::SIGINT).thread_block()?;
    Ok(())
}

/// Begins a program time after time, and tells each to go on without a pause from before it is executed; says what they said.
fn urge(command: &str) -> std::io::Result<String> {
    let words: Vec<CString> = command
        .split(' ')
        .filter_map(|word| CString::new(word).ok())
        .collect();
    let program = words.first().ok_or_else(invalid)?;
    let mut text = Vec::new();
    for _ in 0..20 {
        let (reader, writer) = std::io::pipe()?;
        // SAFETY: between fork and exec only functions that are safe after a fork are called.
        let ForkResult::Parent { child } = (unsafe { fork() })? else {
            // SAFETY: both descriptors are open.
            unsafe { libc::dup2(writer.as_raw_fd(), 1) };
            let _ = execv(program, &words);
            // SAFETY: ends this process alone.
            unsafe { libc::_exit(127) };
        };
        drop(writer);
        let since = Instant::now();
        while waitpid(child, Some(WaitPidFlag::WNOHANG))? == WaitStatus::StillAlive {
            let _ = kill(child, Signal::SIGCONT);
            if since.elapsed() > Duration::from_millis(100) {
                kill(child, Signal::SIGKILL)?;
                waitpid(child, None)?;
                break;
            }
        }
        let mut reader = reader;
        reader.read_to_end(&mut text)?;
    }
    Ok(format!("said {:?}", String::from_utf8_lossy(&text)))
}

/// Threads that each connect to an address, and one that only counts; all of them have to come to an end.
fn threads(addresses: &str) -> std::io::Result<String> {
    let counts = thread::spawn(|| {
        for _ in 0..20 {
            sleep(Duration::from_millis(5));
        }
    });
    let connects: Vec<_> = addresses
        .split(',')
        .map(|address| {
            let address = address.to_owned();
            thread::spawn(move || TcpStream::connect(address).map(drop))
        })
        .collect();
    let mut good = 0;
    for connects in connects {
        connects.join().map_err(|_| invalid())??;
        good += 1;
    }
    counts.join().map_err(|_| invalid())?;
    Ok(good.to_string())
}

/// Connects a socket that does not block, and says what that came to at once.
fn connect_later(address: &str) -> std::io::Result<String> {
    let socket = without_blocking()?;
    begin(&socket, address)?;
    // Asked again, the kernel says how the first one is getting on.
    begin(&socket, address)?;
    Ok("in progress".to_owned())
}

/// Connects to one address, tries to lead that to another, and connects to the other when the first is undone.
fn connect_elsewhere(addresses: &str) -> std::io::Result<String> {
    let (first, second) = addresses.split_once(',').ok_or_else(invalid)?;
    let socket = without_blocking()?;
    begin(&socket, first)?;
    begin(&socket, second)?;
    let peer = loop {
        match getpeername::<SockaddrStorage>(socket.as_raw_fd()) {
            Err(Errno::ENOTCONN) => std::thread::sleep(Duration::from_millis(10)),
            peer => break peer?,
        }
    };
    if peer.to_string() != first {
        return Ok(format!("reached {peer}"));
    }
    let nowhere = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    // SAFETY: an address of that length.
    Errno::result(unsafe {
        let length = size_of_val(&nowhere) as libc::socklen_t;
        libc::connect(socket.as_raw_fd(), &raw const nowhere, length)
    })?;
    begin(&socket, second)?;
    Ok("in progress".to_owned())
}

fn without_blocking() -> std::io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK,
        None,
    )?)
}

/// Begins to connect, or hears that a connect has begun.
fn begin(socket: &OwnedFd, address: &str) -> std::io::Result<()> {
    let address: SocketAddr = address.parse().map_err(|_| invalid())?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EALREADY | Errno::EISCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Runs a command line under a shell with job control on a terminal of its own, and gives what that shows.
fn terminal(script: &str) -> std::io::Result<String> {
    // SAFETY: between fork and exec only functions that are safe after a fork are called.
    let ForkptyResult::Parent { child, master } = (unsafe { forkpty(None, None) })? else {
        let words = [c"/bin/sh", c"-m", c"-c"];
        let script = std::ffi::CString::new(script).unwrap_or_default();
        let words: Vec<&std::ffi::CStr> = words.into_iter().chain([script.as_c_str()]).collect();
        let _ = nix::unistd::execv(words[0], &words);
        std::process::exit(127);
    };
    // SAFETY: the descriptor is ours, and given away.
    let mut master = fs::File::from(unsafe { OwnedFd::from_raw_fd(master.into_raw_fd()) });
    let mut text = Vec::new();
    // The end of a terminal whose other side is closed is EIO.
    let _ = master.read_to_end(&mut text);
    waitpid(child, None)?;
    Ok(String::from_utf8_lossy(&text).replace("\r\n", " "))
}

/// Connects as the first process of a pid namespace.
fn first_of_its_kind(address: &str) -> std::io::Result<String> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)?;
    let output = Command::new(std::env::current_exe()?)
        .args(["do", "/dev/null", "is-first"])
        .arg(format!("connect:{address}"))
        .output()?;
    Ok(said(&output.stdout, output.status))
}
