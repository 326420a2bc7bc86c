//! What is asked of glibc's allocator; nothing where the C library is another.

/// For processes whose threads take turns more than they run at once. With an arena for each thread, each keeps what it has used once; and
/// where large blocks are mapped and unmapped each time, a tenth of what the collector does is taking page faults.
pub fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets parameters, to values of their ranges.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 20);
    }
}

/// Gives free memory back to the kernel: to be called where much was used that is not needed again soon.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only gives free memory back.
    unsafe {
        libc::malloc_trim(0);
    }
}
