//! The command line: each command parses, asks, and renders.

pub mod ask;
pub mod collector;
pub mod events;
pub mod output;
pub mod query;
pub mod render;
pub mod sessions;
pub mod timeline;
