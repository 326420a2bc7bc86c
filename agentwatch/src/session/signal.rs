//! Signals to processes that are known by their number and their start, so that no other one gets them.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::{errno::Errno, sys::signal::Signal};

/// Sends a signal. False where the process is gone.
pub fn send(pid: u32, start_ns: u64, signal: Signal) -> Result<bool> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = match Errno::result(fd) {
        // SAFETY: the kernel gave it to us, and nobody else has it.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd as i32) },
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
