//! Actions that wait in the kernel until a person decides: requests, decisions, grants. Knows neither the kernel nor a clock: the
//! daemon's engine tells it what waits and what time it is, and carries out what it says (`daemon/engine/approve.rs`).

mod desk;
pub mod metrics;
pub mod model;
mod opinion;
mod pending;
mod told;

pub use desk::{Answer, Asked, Desk, Filed, Given, Papers};
pub use opinion::Opinion;
pub use pending::{About, Pending, Waiting, summary};
pub use told::Told;

/// The longest reason that a decision may have, in bytes.
pub const LONGEST_REASON: usize = 1024;
