//! agentwatch: see ARCHITECTURE.md for the map.

pub mod cli;
pub mod collector;
pub mod event;
pub mod policy;
pub mod wire;
