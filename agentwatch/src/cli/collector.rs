//! `agentwatch collector`: runs the history store. The daemon starts it by itself.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::Args;

use crate::collector;

/// Run the history store (the daemon starts it by itself)
#[derive(Args, Debug)]
pub struct CollectorArgs {
    /// Directory that holds the history
    #[arg(
        long,
        value_name = "DIR",
        env = "AGENTWATCH_STATE_DIR",
        default_value = "/var/lib/agentwatch"
    )]
    pub state_dir: PathBuf,
    /// Days for which the history is kept; 0 is for ever
    #[arg(long, value_name = "DAYS", default_value_t = 90)]
    pub keep_days: u64,
    /// Bytes of history that are kept at the most; 0 is without limit
    #[arg(long, value_name = "BYTES", default_value_t = 20 << 30)]
    pub keep_bytes: u64,
    /// Events of a segment; for tests
    #[arg(long, hide = true, value_name = "EVENTS", default_value_t = collector::store::SEGMENT_EVENTS)]
    pub segment_events: usize,
}

impl CollectorArgs {
    /// Runs until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When the collector cannot run.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let config = collector::Config {
            state_dir: self.state_dir,
            runtime_dir: runtime_dir.to_owned(),
            retention: collector::store::Retention {
                age: (self.keep_days > 0)
                    .then(|| Duration::from_secs(self.keep_days.saturating_mul(24 * 3600))),
                bytes: (self.keep_bytes > 0).then_some(self.keep_bytes),
            },
            segment_events: self.segment_events,
        };
        collector::run(config).await?;
        Ok(ExitCode::SUCCESS)
    }
}
