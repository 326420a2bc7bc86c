//! agentwatch: see ARCHITECTURE.md for the map.

pub mod cli;
pub mod event;
pub mod kernel;
pub mod policy;
pub mod wire;
