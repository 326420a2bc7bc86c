//! Events: the published model, and the way from kernel bytes to it.

pub mod account;
pub mod decode;
pub mod enrich;
pub mod flags;
pub mod format;
pub mod host;
pub mod model;
pub mod names;
pub mod process;
pub mod redact;
pub mod samples;
pub mod schema;

pub use model::{Event, Kind, Mode, Verdict};
