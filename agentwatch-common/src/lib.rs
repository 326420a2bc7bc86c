//! What the kernel programs and user space share: record layouts, map keys and values, struct members whose
//! offsets are looked up at load time, and limits.
//!
//! Everything here is `repr(C)` with explicit padding and integers only: tags that come from the kernel are decoded
//! with a checked match, never transmuted.
#![no_std]

pub mod event;
pub mod hold;
pub mod limits;
pub mod offsets;
pub mod opens;
pub mod policy;
pub mod stats;

/// Marks shared types as plain old data for aya.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($t:ty),+ $(,)?) => {
        // SAFETY: each is repr(C), made of integers and arrays of them, and has no implicit padding
        // (asserted by its size next to its definition).
        $(unsafe impl aya::Pod for $t {})+
    };
}
#[cfg(not(feature = "user"))]
macro_rules! pod {
    ($($t:ty),+ $(,)?) => {};
}
pub(crate) use pod;
