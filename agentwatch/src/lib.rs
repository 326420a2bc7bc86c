//! agentwatch: see ARCHITECTURE.md for the map.

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
