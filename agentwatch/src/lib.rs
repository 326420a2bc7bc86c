//! agentwatch: see ARCHITECTURE.md for the map.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "agentwatch runs on x86-64 Linux: its programs know that architecture's system calls by number"
);

pub mod allocator;
pub mod approval;
pub mod cli;
pub mod collector;
pub mod daemon;
pub mod event;
pub mod kernel;
pub mod policy;
pub mod session;
pub mod sinks;
pub mod wire;
