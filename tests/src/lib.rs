//! What the test binaries share: the actor's operations and the scenario harness.
//!
//! `act` performs single operations, so that a scenario can say what a hostile process tries; `harness` runs
//! scenarios against a daemon that was started for them. Neither may link agentwatch itself: tests see what users see.

pub mod act;
pub mod harness;
pub mod vm;
