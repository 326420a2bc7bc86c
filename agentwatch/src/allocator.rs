//! What is asked of glibc's allocator; nothing where the C library is another. Our processes' threads take turns more than they run at
//! once, so that they share one arena: with one for each thread, each keeps what it has used once.

/// For a process that is to be small: large blocks go back to the kernel at once.
pub fn be_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets parameters, to values of their ranges.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

/// For a process that often needs large blocks: a tenth of what sealing costs was to map them and to take their page faults.
pub fn be_fast() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets parameters, to values of their ranges.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 20);
    }
}

/// Gives free memory back to the kernel: where much was used that is not needed again soon.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only gives free memory back.
    unsafe {
        libc::malloc_trim(0);
    }
}
