//! What is asked of glibc's allocator, nothing where the C library is another; and which memory is given back to the kernel.

use std::{ptr, slice};

use libc::{c_int, c_void, dl_phdr_info};

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

/// For a process with a thread for each question. What is large goes back to the kernel when it is freed: without a word, glibc comes to
/// keep ever larger blocks.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
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

/// Gives free memory back, and what was touched of our own code: where much was done that is not done again soon, as after a start.
pub fn give_back_code() {
    give_back();
    // SAFETY: the function is for this, and takes no data.
    unsafe {
        libc::dl_iterate_phdr(Some(let_go_of_code), ptr::null_mut());
    }
}

/// Lets go of the pages of our executable that nobody writes to. They stay in the page cache, and come back from there when they are used.
unsafe extern "C" fn let_go_of_code(
    object: *mut dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the C library hands out an object, with as many headers as it says. It begins with the executable.
    let (base, headers) = unsafe {
        let object = &*object;
        let headers = slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
        (object.dlpi_addr, headers)
    };
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Some(page) = u64::try_from(page)
        .ok()
        .filter(|page| page.is_power_of_two())
    else {
        return 1;
    };
    // What the loader writes to for addresses stands in segments that can be written to, until it is done.
    let constant = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for header in constant {
        let start = base.wrapping_add(header.p_vaddr);
        let end = start.saturating_add(header.p_memsz) & !(page - 1);
        let start = start.next_multiple_of(page);
        if start < end {
            // SAFETY: whole pages of a file's private mapping that nobody has written to: they hold the same when they are read again.
            unsafe {
                libc::madvise(
                    ptr::with_exposed_provenance_mut(start as usize),
                    (end - start) as usize,
                    libc::MADV_DONTNEED,
                );
            }
        }
    }
    // No further object.
    1
}

#[cfg(test)]
mod tests {
    #[test]
    fn code_and_constants_are_what_they_were() {
        static TEXT: &str = include_str!("allocator.rs");
        let before = blake3::hash(TEXT.as_bytes());
        super::give_back_code();
        assert_eq!(blake3::hash(TEXT.as_bytes()), before);
    }
}
