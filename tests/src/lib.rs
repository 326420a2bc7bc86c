//! What the test binaries share: the actor's operations, the scenario harness, the measurements.
//!
//! `act` performs single operations, so that a scenario can say what a hostile process tries; `harness` runs
//! scenarios against a daemon that was started for them; `cost` measures what agentwatch adds. None may link
//! agentwatch itself: tests see what users see.

pub mod act;
pub mod cost;
pub mod harness;
pub mod trials;
pub mod vm;
