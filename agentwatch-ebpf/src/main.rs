//! The kernel programs. ARCHITECTURE.md has the map; hooks/ holds the entry points, a family a file.
#![no_std]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "atomic operations: see session.rs")]
#![no_main]

mod emit;
mod hold;
mod hooks;
mod kernel;
mod maps;
mod memory;
mod session;
mod verdict;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers used here are for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
