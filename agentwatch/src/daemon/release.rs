//! Ending everything that a daemon has in the kernel while no daemon runs.

use anyhow::Result;

use super::{Paths, lock, registry::Registry};
use crate::kernel::pin::Pins;

/// Takes all sessions of these directories out of the kernel; gives back how many there were. The next daemon tells of
/// their end.
pub fn release(paths: &Paths) -> Result<usize> {
    // None is running, and none starts meanwhile.
    let _lock = lock(paths)?;
    let registry = Registry::open(&paths.state)?;
    let (records, damaged) = registry.load()?;
    for found in damaged {
        tracing::error!(file = %found.path.display(), why = found.why, "what is known of a session cannot be read");
    }
    let pins = Pins::open(&paths.runtime)?;
    pins.release()?;
    let mut ended = 0;
    for mut record in records {
        if record.ended.is_none() {
            ended += 1;
            record.ended = Some("released".to_owned());
            registry.write(&record)?;
        }
    }
    Ok(ended)
}
