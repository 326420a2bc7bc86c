//! Policies: from a file's text to what the kernel is given. Pure: nothing below here needs a kernel, opens a file or
//! reads a clock, so that a policy means the same on the host that wrote it and on the host that enforces it.
//!
//! The way is `file` (TOML) → `check` (rules) → `compile` (places and prefixes) → `explain` (answers); `examine` goes it
//! from a text to what is compiled, in one step.

pub mod advice;
pub mod approvals;
pub mod check;
pub mod command;
pub mod compile;
pub mod default;
pub mod diagnostic;
pub mod examine;
pub mod expect;
pub mod explain;
pub mod file;
pub mod format;
pub mod learn;
pub mod limits;
mod lint;
pub mod model;
pub mod name;
pub mod network;
pub mod path;
pub mod preset;
pub mod replay;
pub mod sources;
mod suggest;
pub mod surface;
pub mod without_lsm;

#[cfg(test)]
mod documentation;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod layers;
#[cfg(test)]
mod properties;

pub use default::default_policy;
pub use diagnostic::{Diagnostic, PolicyError, Report};
pub use examine::{Examined, examine, examine_all, load};
pub use explain::{decide_family, decide_file, decide_guard, decide_net, decide_unix};
pub use sources::Sources;
