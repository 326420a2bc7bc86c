//! Signals to processes that are known by their number and their start, so that no other one gets them.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use nix::{errno::Errno, sys::signal::Signal};

use super::pidfd;

/// Sends a signal. False where the process is gone.
pub fn send(pid: u32, start_ns: u64, signal: Signal) -> Result<bool> {
    let fd = match pidfd::open(pid) {
        Ok(fd) => fd,
        Err(Errno::ESRCH) => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("look at process {pid}")),
    };
    // Now that the descriptor names it for good, is it the one that is meant?
    if !is(pid, start_ns) {
        return Ok(false);
    }
    // SAFETY: the descriptor is open, and no further information is given.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal as i32,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match Errno::result(sent) {
        Ok(_) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("send {signal} to process {pid}")),
    }
}

/// Stops a process that is to be stopped and is not. Whether it was not.
pub fn stop_again(pid: u32, start_ns: u64) -> bool {
    let stat = procfs::process::Process::new(pid.cast_signed()).and_then(|it| it.stat());
    // Stopped, or stopped for who traces it, or at its end.
    let runs = stat.is_ok_and(|stat| !matches!(stat.state, 'T' | 't' | 'Z' | 'X'));
    runs && send(pid, start_ns, Signal::SIGSTOP).unwrap_or(false)
}

/// Whether a process that has just been executed has a signal that will end it, and that reaches it only when it goes on.
///
/// It has no handlers yet: what it neither blocks nor ignores does what is usual.
pub fn is_doomed(pid: u32, start_ns: u64) -> bool {
    let status = procfs::process::Process::new(pid.cast_signed()).and_then(|it| it.status());
    status.is_ok_and(|status| {
        let reaches = (status.sigpnd | status.shdpnd) & !status.sigblk & !status.sigign;
        reaches & deadly() != 0
    }) && is(pid, start_ns)
}

/// Threads of one process that are looked at beside the one that waits: a process may have tens of thousands.
const THREADS: usize = 64;

/// Whether a stopped process has a signal, for itself or one of its threads, that it neither blocks nor ignores, and that it hears only
/// when it goes on. What stops it is none: going on would undo that. `tid` is the thread that waits; of the others the first are looked
/// at, as long as `looks` are left.
pub fn is_called(pid: u32, tid: u32, start_ns: u64, looks: &mut usize) -> bool {
    let called = |status: procfs::process::Status| {
        let reaches = (status.sigpnd | status.shdpnd) & !status.sigblk & !status.sigign;
        reaches & !stops() != 0
    };
    let Ok(process) = procfs::process::Process::new(pid.cast_signed()) else {
        return false;
    };
    let waiting = process.task_from_tid(tid.cast_signed());
    let is_called = waiting.and_then(|thread| thread.status()).is_ok_and(called)
        || process.tasks().is_ok_and(|threads| {
            threads
                .flatten()
                .take(THREADS.min(*looks))
                .inspect(|_| *looks -= 1)
                .filter_map(|thread| thread.status().ok())
                .any(called)
        });
    is_called && is(pid, start_ns)
}

/// Signals that stop a process or let it go on, as a bit each.
fn stops() -> u64 {
    bits([
        Signal::SIGCONT,
        Signal::SIGSTOP,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ])
}

fn bits<const N: usize>(signals: [Signal; N]) -> u64 {
    signals
        .into_iter()
        .fold(0, |bits, signal| bits | 1 << (signal as i32 - 1))
}

/// Signals that end a process by themselves, as a bit each: signal(7), "Standard signals".
fn deadly() -> u64 {
    !(stops() | bits([Signal::SIGCHLD, Signal::SIGURG, Signal::SIGWINCH]))
}

/// Whether the process with a number is the one that started then.
fn is(pid: u32, start_ns: u64) -> bool {
    let Ok(stat) = procfs::process::Process::new(pid.cast_signed()).and_then(|it| it.stat()) else {
        return false;
    };
    // proc(5) counts in ticks; what is within one is the same.
    let tick = 1_000_000_000 / procfs::ticks_per_second().max(1);
    (start_ns / tick).abs_diff(stat.starttime) <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadly_signal_is_seen_while_it_waits() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        let process = procfs::process::Process::new(pid.as_raw()).unwrap();
        let start =
            process.stat().unwrap().starttime * (1_000_000_000 / procfs::ticks_per_second());
        let stopped = || process.stat().unwrap().state == 'T';
        nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
        while !stopped() {
            std::thread::yield_now();
        }
        assert!(!is_doomed(child.id(), start) && !is_called(child.id(), child.id(), start, &mut 1));
        // What it ignores by itself does not end it.
        nix::sys::signal::kill(pid, Signal::SIGWINCH).unwrap();
        assert!(!is_doomed(child.id(), start));
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        assert!(is_doomed(child.id(), start));
        assert!(!is_doomed(child.id(), 1), "another process");
        assert!(is_called(child.id(), child.id(), start, &mut 1));
        assert!(
            !is_called(child.id(), child.id(), 1, &mut 1),
            "another process"
        );
        assert!(stopped());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn another_process_with_the_number_gets_nothing() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(!send(child.id(), 1, Signal::SIGKILL).unwrap());
        assert!(child.try_wait().unwrap().is_none());
        let stat = procfs::process::Process::new(child.id().cast_signed())
            .unwrap()
            .stat()
            .unwrap();
        let start = stat.starttime * (1_000_000_000 / procfs::ticks_per_second());
        assert!(send(child.id(), start, Signal::SIGKILL).unwrap());
        child.wait().unwrap();
        assert!(!send(child.id(), start, Signal::SIGKILL).unwrap());
    }
}
