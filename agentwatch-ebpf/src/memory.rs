//! Memory, eight bytes at a time: what the compiler makes of a longer assignment is a loop over single bytes.

/// Zeroes a value that zeroes are valid for, and whose size and alignment are eight bytes' multiples.
#[inline(always)]
pub fn zero<T>(place: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: inside the value.
        unsafe { place.cast::<u64>().add(word).write_volatile(0) };
    }
}

/// Copies a value, word by word, as [`zero`] writes it.
///
/// # Safety
/// Both are valid for a value of this type.
#[inline(always)]
pub unsafe fn copy<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: inside both values.
        unsafe {
            to.cast::<u64>()
                .add(word)
                .write_volatile(from.cast::<u64>().add(word).read_volatile());
        }
    }
}
