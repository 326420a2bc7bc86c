//! Operations that go through io_uring: the same acts without the system calls that usually carry them.

use std::{ffi::CString, os::fd::FromRawFd, os::fd::OwnedFd};

use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;

use super::{Failure, Operation, Outcome, arguments};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "io_uring-openat",
        usage: "PATH (for reading)",
        run: |args| openat(args, libc::O_RDONLY),
    },
    Operation {
        name: "io_uring-creat",
        usage: "PATH",
        run: |args| openat(args, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC),
    },
    Operation {
        name: "io_uring-unlink",
        usage: "PATH",
        run: unlink,
    },
];

fn openat(args: &[String], flags: i32) -> Outcome {
    let [path] = arguments(args)?;
    let path = CString::new(path).map_err(|error| Failure::Usage(error.to_string()))?;
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(flags | libc::O_CLOEXEC)
        .mode(0o644)
        .build();
    let fd = submit(&entry)?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

fn unlink(args: &[String]) -> Outcome {
    let [path] = arguments(args)?;
    let path = CString::new(path).map_err(|error| Failure::Usage(error.to_string()))?;
    submit(&opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build()).map(drop)
}

/// Submits one entry and waits for its result. What the entry points to must outlive the call.
fn submit(entry: &squeue::Entry) -> Result<i32, Failure> {
    let mut ring = IoUring::new(2)?;
    // SAFETY: the callers keep the paths that the entry points to alive until this function returns, and it
    // returns only after the completion.
    unsafe { ring.submission().push(entry) }.map_err(|error| Failure::Usage(error.to_string()))?;
    ring.submit_and_wait(1)?;
    let Some(completion) = ring.completion().next() else {
        return Err(Failure::Usage(
            "io_uring ended the wait without a completion".to_owned(),
        ));
    };
    match completion.result() {
        result if result < 0 => Err(Errno::from_raw(-result).into()),
        result => Ok(result),
    }
}
