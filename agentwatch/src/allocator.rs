//! What is asked of glibc's allocator; nothing where the C library is another.

/// For a process that is to be small and whose threads take turns more than they run at once: they share one arena, because each would keep
/// what has been used once, and large blocks go back to the kernel. To be called before there are threads.
pub fn be_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets parameters, to values of their ranges.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

/// For a process with a thread for each question.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
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
