//! `agentwatch collector`: runs the history store. The daemon starts it by itself.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{collector, daemon::config::Config};

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
    /// The daemon's configuration file, for retention and sinks; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Days for which the history is kept; 0 is for ever
    #[arg(long, value_name = "DAYS")]
    pub keep_days: Option<u64>,
    /// Bytes of history that are kept at the most; 0 is without limit
    #[arg(long, value_name = "BYTES")]
    pub keep_bytes: Option<u64>,
    /// Events of a segment; for tests
    #[arg(long, hide = true, value_name = "EVENTS", default_value_t = collector::store::SEGMENT_EVENTS,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1 << 19))]
    pub segment_events: usize,
}

impl CollectorArgs {
    /// Runs until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When the collector cannot run.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let file = match self.config.as_deref() {
            None => Config::default(),
            Some(path) if path == Path::new("-") => {
                let text = std::io::read_to_string(std::io::stdin())
                    .context("read the configuration from standard input")?;
                Config::parse(&text).context("in the configuration on standard input")?
            }
            named => Config::load(named)?,
        };
        let keep_days = self.keep_days.unwrap_or(file.collector.keep_days);
        let keep_bytes = self.keep_bytes.unwrap_or(file.collector.keep_bytes);
        let config = collector::Config {
            state_dir: self.state_dir,
            runtime_dir: runtime_dir.to_owned(),
            retention: collector::store::Retention {
                age: (keep_days > 0)
                    .then(|| Duration::from_secs(keep_days.saturating_mul(24 * 3600))),
                bytes: (keep_bytes > 0).then_some(keep_bytes),
            },
            sinks: file.sink,
            segment_events: self.segment_events,
        };
        collector::run(config).await?;
        Ok(ExitCode::SUCCESS)
    }
}
