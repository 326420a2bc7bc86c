//! `agentwatch run`: a command in a session of its own.
//!
//! The child asks for the session, is moved into it by the daemon, confines itself where Landlock holds the files, and becomes
//! the command; the parent stays outside, passes signals on and reports how it ended. All of it before any thread exists.

use std::{
    ffi::OsString,
    io::Read as _,
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, pthread_sigmask, raise, signal},
        signalfd::SignalFd,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

use super::{
    control,
    notes::{self, Notes},
    output::escape,
};
use crate::{
    event::Mode,
    session::landlock,
    wire::control::{Request, Response},
};

/// agentwatch itself failed.
const FAILED: u8 = 125;
/// The command may not be executed.
const NOT_EXECUTABLE: i32 = 126;
/// The command is not found.
const NOT_FOUND: i32 = 127;
/// How long a daemon may be away before the end of the command is kept from it.
const DAEMON_RESTARTS: Duration = Duration::from_secs(10);
/// What is handed on to the command when somebody sends it to us.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// Run a command in a session of its own
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Policy file; `-` is standard input. Without one: the built-in default policy
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Name of the session
    #[arg(long)]
    name: Option<String>,
    /// Enforce the policy, or only record what it would deny
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Start although this kernel cannot enforce all of the policy
    #[arg(long)]
    accept_degraded: bool,
    /// Say nothing on the terminal of what is refused while the command runs
    #[arg(long)]
    quiet: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum ModeArg {
    Enforce,
    Monitor,
}

impl ModeArg {
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Enforce => Mode::Enforce,
            Self::Monitor => Mode::Monitor,
        }
    }
}

impl RunArgs {
    /// Runs the command and gives back its exit code.
    pub fn run(self, runtime_dir: &Path) -> ExitCode {
        match self.try_run(runtime_dir) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("agentwatch: {error:#}");
                ExitCode::from(FAILED)
            }
        }
    }

    fn try_run(self, runtime_dir: &Path) -> Result<u8> {
        let policy = control::policy_text(self.policy.as_deref())?;
        let request = Request::Run {
            policy,
            name: self.name,
            mode: self.mode.map(ModeArg::mode),
            accept_degraded: self.accept_degraded,
            command: self.command.clone(),
        };
        // Looked at before the fork, so that a missing daemon is reported by one process.
        drop(control::connect(runtime_dir)?);

        let (mut tell, mut hear) = {
            let (hear, tell) = std::io::pipe().context("make a pipe")?;
            (tell, hear)
        };
        // Whoever started us may have ignored it, and then the kernel tells of no child.
        // SAFETY: the default action is no function.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }.context("listen for the child")?;
        let mut signals = SigSet::empty();
        for signal in PASSED_ON.into_iter().chain([Signal::SIGCHLD]) {
            signals.add(signal);
        }
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before))
            .context("block signals")?;
        // SAFETY: no other thread exists yet (main starts none before a command that needs them).
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                drop(hear);
                let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
                let code = become_command(runtime_dir, &request, &self.command, &mut tell);
                std::process::exit(code);
            }
            ForkResult::Parent { child } => {
                drop(tell);
                let mut session = String::new();
                hear.read_to_string(&mut session)
                    .context("hear from the child")?;
                let notes = (!self.quiet).then(|| Notes::on_terminal(runtime_dir, &session));
                let code = attend(child, &signals, notes.flatten())?;
                if !session.is_empty() {
                    report(runtime_dir, &Request::Exited { session, code });
                }
                Ok(u8::try_from(code).unwrap_or(u8::MAX))
            }
        }
    }
}

/// Tells the daemon how the command ended. One that is being restarted is waited for.
fn report(runtime_dir: &Path, exited: &Request) {
    let since = Instant::now();
    loop {
        let told = control::connect(runtime_dir).and_then(|stream| control::ask(&stream, exited));
        match told {
            Ok(_) => return,
            // A refusal is an answer.
            Err(error) if error.is::<control::Refused>() || since.elapsed() > DAEMON_RESTARTS => {
                eprintln!("agentwatch: the end of the command could not be reported: {error:#}");
                return;
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Enters the session and becomes the command; gives back an exit code where that fails.
fn become_command(
    runtime_dir: &Path,
    request: &Request,
    command: &[String],
    tell: &mut impl std::io::Write,
) -> i32 {
    let prepared = (|| -> Result<(String, Vec<OsString>)> {
        let stream = control::connect(runtime_dir)?;
        let answer = control::ask(&stream, request)?;
        let Response::Ready {
            session,
            warnings,
            environment,
            landlock,
            ..
        } = answer
        else {
            return Err(control::other_answer(request, &answer));
        };
        for warning in warnings {
            eprintln!("agentwatch: {}", escape(&warning));
        }
        tell.write_all(session.as_bytes())
            .context("tell the parent")?;
        if let Some(policy) = landlock {
            let plan = landlock::plan(&policy);
            for note in &plan.notes {
                eprintln!("agentwatch: {}", escape(note));
            }
            landlock::apply(&plan)?;
        }
        // From here on the session sees what this process does.
        let enter = Request::Enter {
            session: session.clone(),
        };
        control::ask(&stream, &enter)?;
        let dropped: Vec<OsString> = std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| !environment.passes(name.as_bytes()))
            .collect();
        Ok((session, dropped))
    })();
    let (session, dropped) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("agentwatch: {error:#}");
            return i32::from(FAILED);
        }
    };
    let Some((program, arguments)) = command.split_first() else {
        return i32::from(FAILED);
    };
    shed();
    if !dropped.is_empty() {
        let names: Vec<_> = dropped.iter().map(|name| name.to_string_lossy()).collect();
        eprintln!(
            "agentwatch: not passed on: {}; hint: [env] pass in the policy",
            escape(&names.join(", "))
        );
    }
    let mut command = Command::new(program);
    for name in &dropped {
        command.env_remove(name);
    }
    // The pipe closes with the program's start: it is close-on-exec.
    let error = command
        .args(arguments)
        .env("AGENTWATCH_SESSION", &session)
        .exec();
    eprintln!("agentwatch: cannot execute {}: {error}", escape(program));
    if error.kind() == std::io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    }
}

/// Lets go of what the command is not to have from whoever started us: descriptors but for the first three, and the keys of the
/// session keyring.
fn shed() {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: neither call takes a pointer. Both may fail where the kernel has them not: then nothing was to be shed, or the
    // kernel's own decisions on descriptors and keys stand alone.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0usize);
    }
}

/// Waits for a signal; whether one has come.
fn wait_for(descriptor: &SignalFd, pause: Duration) -> Result<bool> {
    let mut waiting = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    let pause = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
    match poll(&mut waiting, pause) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context("wait for a signal"),
    }
}

/// Waits for the command, passing signals on; gives back its exit code, 128 and the signal where one ended it.
fn attend(child: Pid, signals: &SigSet, mut notes: Option<Notes>) -> Result<i32> {
    let descriptor = SignalFd::new(signals).context("listen for signals")?;
    loop {
        let status = waitpid(child, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED));
        match status {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            // Waiting for a person stops it too, and is nobody's job control.
            Ok(WaitStatus::Stopped(_, Signal::SIGSTOP)) => {}
            Ok(WaitStatus::Stopped(..)) => {
                // The shell that started us is to see its job stopped.
                raise(Signal::SIGSTOP).context("stop with the command")?;
                let _ = kill(child, Signal::SIGCONT);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for the command"),
        }
        if let Some(notes) = &mut notes
            && !wait_for(&descriptor, notes::PAUSE)?
        {
            notes.look();
            continue;
        }
        let Some(info) = descriptor.read_signal().context("wait for a signal")? else {
            continue;
        };
        let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else {
            continue;
        };
        // What a terminal sends reaches the command by itself: it is in the same foreground group.
        let from_kernel = info.ssi_code > 0;
        if signal != Signal::SIGCHLD && !from_kernel {
            let _ = kill(child, signal);
        }
    }
}
