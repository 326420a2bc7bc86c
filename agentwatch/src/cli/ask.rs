//! Asking the collector. Its answers are handed on part by part; nothing is kept here.

use std::{io::ErrorKind, path::Path};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::net::UnixStream;

use crate::wire::{
    Connection,
    collector::{Answer, QUERY_SOCKET, Question},
};

/// Asks one question and calls `each` for every part of the answer, until it is complete.
///
/// # Errors
/// When no collector answers, when it answers with an error, when it goes away before the answer is complete, and
/// what `each` returns.
pub async fn ask(
    runtime_dir: &Path,
    question: &Question,
    mut each: impl FnMut(Answer) -> Result<()>,
) -> Result<()> {
    let path = runtime_dir.join("collector").join(QUERY_SOCKET);
    let stream = UnixStream::connect(&path)
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow!(
                    "no collector answers at {}: is the daemon running?\nhint: agentwatch daemon",
                    path.display()
                )
            }
            _ => anyhow!("connect to the collector at {}: {error}", path.display()),
        })?;
    let mut connection = Connection::new(stream);
    connection
        .send(question)
        .await
        .context("ask the collector")?;
    loop {
        match connection
            .receive_answer()
            .await
            .context("read the collector's answer")?
        {
            Some(Answer::End) => return Ok(()),
            Some(Answer::Error { message }) => bail!(message),
            Some(part) => each(part)?,
            None => bail!(
                "the collector at {} went away before the answer was complete\nhint: agentwatch status",
                path.display()
            ),
        }
    }
}
