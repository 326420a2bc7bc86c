//! Where a kernel keeps what an open was about at the moment when it has failed.
//!
//! An open that fails gives back the descriptor that it had taken (`put_unused_fd`), and few others do: a program there costs nobody
//! anything who opens what is there. What the open was about stands then in registers and on the stack of who calls, where the
//! compiler of this kernel has put it. The daemon finds out where by opens of its own that fail in ways that it knows.

use crate::{limits, pod};

/// Halves of the registers that a call leaves alone, from r15 down to rbx.
pub const REGISTERS: usize = 12;
/// Those, and what lies on the stack from the return address on, four bytes each; a power of two.
pub const WORDS: usize = 64;

/// Where a call keeps what it is about: indexes into [`Opens::words`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Where it goes on behind the call; 0 while it is not known.
    pub at: u64,
    /// The negated error.
    pub error: u32,
    /// Address of the `struct filename`, in two words.
    pub name: u32,
    pub flags: u32,
    pub _pad: u32,
}
const _: () = assert!(size_of::<Site>() == 24);

/// What is known of it, and what an open of the daemon's showed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Opens {
    pub site: Site,
    /// The thread whose opens are shown; 0 for none.
    pub learner: u32,
    /// How many were.
    pub shown: u32,
    /// The first bytes of the name that the next one gives.
    pub expected: u64,
    /// Of the last: a bit for each word that is, with the next, the address of a `struct filename` that begins so.
    pub names: u64,
    pub words: [u32; WORDS],
}
const _: () = assert!(size_of::<Opens>() == 48 + 4 * WORDS && WORDS <= u64::BITS as usize);

/// An open that io_uring has in hand.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UringOpen {
    pub fd: i32,
    pub flags: u32,
    pub name: [u8; limits::ARGV],
}
const _: () = assert!(size_of::<UringOpen>() <= limits::DATA);

pod!(Opens, UringOpen);
