//! The daemon's side: batches in, acknowledgements out, in order.
//!
//! A batch is handed to the writer as it comes, so that batches that a sender does not wait for share a commit. An `Ack`
//! means everything up to it, so after a refusal nothing later is acknowledged until the refused batch comes again.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{serve::stopped, writer::Job};
use crate::wire::{
    Connection,
    collector::{Batch, BatchAnswer},
};

/// Batches of one connection that may wait for their commit: as many as the daemon has under way.
pub(super) const PIPELINE: usize = 16;
/// Time for which a sender may leave an answer unread.
const UNREAD: Duration = Duration::from_secs(30);

/// Serves one sender until it hangs up, or until the collector stops and what it has sent is answered.
pub(super) async fn serve(
    stream: UnixStream,
    jobs: mpsc::Sender<Job>,
    mut stopping: watch::Receiver<bool>,
) -> Result<()> {
    let mut connection = Connection::new(stream);
    let mut pending = VecDeque::new();
    let mut refused: Option<u64> = None;
    let mut reading = true;
    while reading || !pending.is_empty() {
        let room = reading && pending.len() < PIPELINE;
        tokio::select! {
            // Answers first: the sender waits for them.
            biased;
            (number, outcome) = next_outcome(&mut pending) => {
                let answer = match outcome {
                    Ok(()) if refused.is_none() => BatchAnswer::Ack { number },
                    Ok(()) => out_of_turn(number, refused),
                    Err(error) => {
                        refused.get_or_insert(number);
                        BatchAnswer::Refused { number, error }
                    }
                };
                send(&mut connection, &answer).await?;
            }
            () = stopped(&mut stopping), if reading => reading = false,
            frame = connection.receive_frame(), if room => {
                let Some(frame) = frame? else {
                    reading = false;
                    continue;
                };
                let (number, frame) = Batch::open(frame)?;
                match refused {
                    Some(first) if number > first => {
                        send(&mut connection, &out_of_turn(number, refused)).await?;
                        return Ok(());
                    }
                    _ => refused = None,
                }
                let (reply, outcome) = oneshot::channel();
                jobs.send(Job::Store { frame, reply }).await.ok().context("the writer is gone")?;
                pending.push_back((number, outcome));
            }
        }
    }
    Ok(())
}

type Pending = VecDeque<(u64, oneshot::Receiver<Result<(), String>>)>;

/// The outcome of the oldest batch; never, while there is none.
async fn next_outcome(pending: &mut Pending) -> (u64, Result<(), String>) {
    let Some((number, outcome)) = pending.front_mut() else {
        return std::future::pending().await;
    };
    let number = *number;
    let outcome = outcome
        .await
        .unwrap_or_else(|_| Err("the collector stopped before the batch was stored".to_owned()));
    pending.pop_front();
    (number, outcome)
}

fn out_of_turn(number: u64, refused: Option<u64>) -> BatchAnswer {
    let first = refused.unwrap_or(number);
    BatchAnswer::Refused {
        number,
        error: format!("batch {first} was refused and must come again before batch {number}"),
    }
}

async fn send(connection: &mut Connection, answer: &BatchAnswer) -> Result<()> {
    timeout(UNREAD, connection.send(answer))
        .await
        .context("the sender does not read its answers")?
}
