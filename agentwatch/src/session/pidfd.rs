//! Processes by descriptors, which name one process for good.

use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// A descriptor of the process that has a number now.
pub fn open(pid: u32) -> nix::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: the kernel gave it to us, and nobody else has it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A descriptor of the process that connected a socket, whose number was `pid`; `None` where it is gone. Before 6.5 the kernel knows the
/// number only.
pub fn of_peer(socket: &impl std::os::fd::AsFd, pid: u32) -> Option<OwnedFd> {
    /// include/uapi/asm-generic/socket.h.
    const SO_PEERPIDFD: i32 = 77;
    let mut fd: i32 = -1;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `fd`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    match Errno::result(result) {
        // SAFETY: as in `open`.
        Ok(_) => Some(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(Errno::ENOPROTOOPT) => open(pid).ok(),
        Err(_) => None,
    }
}

/// Whether a process has ended, though perhaps nobody has asked how.
pub fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    // What cannot be asked is as good as gone.
    poll(&mut polled, PollTimeout::ZERO).map_or(true, |ended| ended > 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_process_that_is_gone_is_not_found_by_its_socket() {
        let (one, _other) = UnixStream::pair().unwrap();
        let process = of_peer(&one, std::process::id()).unwrap();
        assert!(!has_ended(&process));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = open(child.id()).unwrap();
        while !has_ended(&process) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(has_ended(&process));
        assert_eq!(open(child.id()).unwrap_err(), Errno::ESRCH);
    }
}
