//! The command line: each command parses, asks, and renders.

pub mod approvals;
pub mod ask;
pub mod attach;
pub mod canary;
pub mod collector;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod events;
pub mod metrics;
mod notes;
pub mod output;
pub mod policy;
pub mod query;
pub mod release;
pub mod reload;
pub mod render;
pub mod report;
pub mod run;
pub mod sessions;
pub mod status;
pub mod timeline;
pub mod verify;
pub mod webhook;
pub mod why;
