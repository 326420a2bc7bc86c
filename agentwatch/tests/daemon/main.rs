//! The daemon as its users meet it: the real binary, real sockets, the running kernel. What goes wrong around it (garbage,
//! a full disk, a dead collector, a second daemon) must be said clearly, lose nothing silently and open nothing.
//!
//! Needs root: the daemon loads programs. Without it, each test makes sure that the daemon says so, and ends.

mod attached;
mod bounds;
mod coverage;
mod decisions;
mod evidence;
mod faults;
mod harness;
mod layers;
mod metrics;
mod outlive;
mod presets;
mod sessions;
mod storms;
mod why;
mod workloads;
