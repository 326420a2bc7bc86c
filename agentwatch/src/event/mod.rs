//! Events: the published model, and the way from kernel bytes to it.

pub mod model;
pub mod names;
pub mod samples;
pub mod schema;

pub use model::{Event, Kind, Mode, Verdict};
