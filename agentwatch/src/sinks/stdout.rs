//! JSON Lines on standard output.

use tokio::io::AsyncWriteExt as _;

use super::{Failure, Sink};
use crate::event::{Event, format::Format};

pub(crate) struct Stdout {
    format: Format,
}

impl Stdout {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }
}

impl Sink for Stdout {
    async fn deliver(&mut self, events: &[Event]) -> Result<u64, Failure> {
        let mut out = tokio::io::stdout();
        out.write_all(&self.format.lines(events)).await?;
        out.flush().await?;
        Ok(0)
    }
}
