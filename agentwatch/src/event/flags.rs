//! Names of open flags.

/// The flags of open(2) that are set, but for the access mode.
pub fn open_flags(flags: u32) -> Vec<String> {
    // O_SYNC holds O_DSYNC's bit, O_TMPFILE holds O_DIRECTORY's: the wider one is looked for first.
    const NAMES: [(i32, &str); 15] = [
        (libc::O_CREAT, "O_CREAT"),
        (libc::O_EXCL, "O_EXCL"),
        (libc::O_NOCTTY, "O_NOCTTY"),
        (libc::O_TRUNC, "O_TRUNC"),
        (libc::O_APPEND, "O_APPEND"),
        (libc::O_NONBLOCK, "O_NONBLOCK"),
        (libc::O_SYNC, "O_SYNC"),
        (libc::O_DSYNC, "O_DSYNC"),
        (libc::O_ASYNC, "O_ASYNC"),
        (libc::O_DIRECT, "O_DIRECT"),
        (libc::O_TMPFILE, "O_TMPFILE"),
        (libc::O_DIRECTORY, "O_DIRECTORY"),
        (libc::O_NOFOLLOW, "O_NOFOLLOW"),
        (libc::O_CLOEXEC, "O_CLOEXEC"),
        (libc::O_PATH, "O_PATH"),
    ];
    let mut left = flags.cast_signed();
    let mut names = Vec::new();
    for (bit, name) in NAMES {
        if left & bit == bit {
            names.push(name.to_owned());
            left &= !bit;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_flags_come_first() {
        assert_eq!(open_flags(libc::O_SYNC.cast_unsigned()), ["O_SYNC"]);
        assert_eq!(open_flags(libc::O_DSYNC.cast_unsigned()), ["O_DSYNC"]);
        assert_eq!(
            open_flags((libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC).cast_unsigned()),
            ["O_CREAT", "O_CLOEXEC"]
        );
    }
}
