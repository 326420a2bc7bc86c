//! Questions and their answers. Who asks decides what is seen; that comes from the kernel's word on the peer, never from
//! what a question says.
//!
//! A follower is told that something came and reads it from the store itself, so no queue grows for it and nobody who
//! stores events waits for it.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    Limits,
    store::{self, Page, Part, Reader, Scan, SqlLimits, StoreError, Viewer},
    writer::Job,
};
use crate::{
    sinks::SinkStatus,
    wire::{
        Connection,
        collector::{Answer, Filter, Question},
    },
};

/// Time for one who is turned away, to ask and again to read why.
const TURN_AWAY: Duration = Duration::from_secs(1);

/// What all connections that ask share.
pub(super) struct Shared {
    pub(super) state_dir: PathBuf,
    pub(super) limits: Limits,
    /// The number of the newest event, told after each commit.
    pub(super) newest: watch::Receiver<i64>,
    /// The writer, for whoever wants everything sealed.
    pub(super) jobs: mpsc::WeakSender<Job>,
    /// How the sinks are.
    pub(super) sinks: Vec<Arc<Mutex<SinkStatus>>>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) uid: u32,
    /// Root, or the collector's own user.
    pub(super) privileged: bool,
}

impl Asker {
    fn viewer(self) -> Viewer {
        if self.privileged {
            Viewer::All
        } else {
            Viewer::User(self.uid)
        }
    }
}

/// Answers the one question of a connection.
pub(super) async fn serve(stream: UnixStream, asker: Asker, shared: &Arc<Shared>) -> Result<()> {
    let mut connection = Connection::new(stream);
    let question = match timeout(
        shared.limits.first_question,
        connection.receive::<Question>(),
    )
    .await
    {
        Ok(Ok(Some(question))) => question,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => {
            // Said for whoever speaks another version; one who sent garbage may not read it.
            let message = format!("the question was not understood: {error:#}");
            return send(
                &mut connection,
                &Answer::Error { message },
                shared.limits.unread_part,
            )
            .await;
        }
        Err(_) => bail!("no question came in time"),
    };
    let result = match question {
        Question::Events { filter, follow } => {
            events(&mut connection, filter, follow, asker, shared).await
        }
        Question::Timeline { session } => timeline(&mut connection, session, asker, shared).await,
        Question::Sessions => sessions(&mut connection, asker, shared).await,
        Question::Sql { sql } => self::sql(&mut connection, sql, asker, shared).await,
        Question::Account { session } => account(&mut connection, session, asker, shared).await,
        Question::Seal => seal(asker, shared).await,
        Question::Status => status(&mut connection, asker, shared).await,
    };
    let last = match result {
        Ok(()) => Answer::End,
        Err(Failure::Connection(error)) => return Err(error),
        Err(Failure::Store(error)) => {
            if !matches!(error, StoreError::Question(_)) {
                tracing::error!(%error, "the history could not be read");
            }
            Answer::Error {
                message: error.to_string(),
            }
        }
    };
    send(&mut connection, &last, shared.limits.unread_part).await
}

/// Tells one more asker than there is room for. The question is awaited for a moment, because an asker that still writes
/// when the connection closes would see that and not the words.
pub(super) async fn turn_away(stream: UnixStream) -> Result<()> {
    let mut connection = Connection::new(stream);
    timeout(TURN_AWAY, connection.receive::<IgnoredAny>())
        .await
        .context("no question came in time")??;
    let message = "too many questions are being answered\nhint: end some of those that --follow, or try again";
    let answer = Answer::Error {
        message: message.to_owned(),
    };
    send(&mut connection, &answer, TURN_AWAY).await
}

/// Why an answer ended early.
enum Failure {
    /// The asker is gone, or does not read.
    Connection(anyhow::Error),
    /// The asker is to be told.
    Store(StoreError),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Connection(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Store(error)
    }
}

async fn events(
    connection: &mut Connection,
    filter: Filter,
    follow: bool,
    asker: Asker,
    shared: &Arc<Shared>,
) -> Result<(), Failure> {
    // Taken before the walk begins, so that no commit falls between the two.
    let mut newest = shared.newest.clone();
    newest.mark_unchanged();
    let directory = shared.state_dir.clone();
    let (reader, scan) = blocking(move || {
        let reader = Reader::open(&directory, asker.viewer())?;
        let scan = reader.scan(&filter)?;
        Ok((reader, scan))
    })
    .await?;
    let unread = if follow {
        shared.limits.unread_part
    } else {
        shared.limits.unread_answer
    };
    let (mut reader, mut scan) = walk(connection, reader, scan, unread).await?;
    if !follow {
        return Ok(());
    }
    loop {
        let (back, passed, page) = newer(reader, scan).await?;
        (reader, scan) = (back, passed);
        let Page { events, last } = page;
        if let Some(events) = events {
            pass(connection, events, unread).await?;
        }
        if !last {
            continue;
        }
        tokio::select! {
            changed = newest.changed() => {
                if changed.is_err() {
                    // The writer is gone: the collector stops.
                    return Ok(());
                }
            }
            // A question has no second part: the asker hung up, or says what nobody asked for.
            _ = connection.receive::<IgnoredAny>() => return Err(anyhow::anyhow!("the follower hung up").into()),
        }
    }
}

async fn timeline(
    connection: &mut Connection,
    session: String,
    asker: Asker,
    shared: &Arc<Shared>,
) -> Result<(), Failure> {
    let directory = shared.state_dir.clone();
    let (reader, scan, row) = blocking(move || {
        let reader = Reader::open(&directory, asker.viewer())?;
        let row = reader.session(&session)?;
        let scan = reader.scan(&Filter {
            session: Some(row.id.clone()),
            ..Filter::default()
        })?;
        Ok((reader, scan, row))
    })
    .await?;
    send(
        connection,
        &Answer::Sessions {
            sessions: vec![row],
        },
        shared.limits.unread_part,
    )
    .await?;
    walk(connection, reader, scan, shared.limits.unread_answer).await?;
    Ok(())
}

async fn sessions(
    connection: &mut Connection,
    asker: Asker,
    shared: &Arc<Shared>,
) -> Result<(), Failure> {
    let directory = shared.state_dir.clone();
    let mut reader = blocking(move || Reader::open(&directory, asker.viewer())).await?;
    let mut before = None;
    loop {
        let (back, sessions, next) = blocking(move || {
            let (sessions, next) = reader.sessions(before)?;
            Ok((reader, sessions, next))
        })
        .await?;
        reader = back;
        send(
            connection,
            &Answer::Sessions { sessions },
            shared.limits.unread_answer,
        )
        .await?;
        match next {
            Some(_) => before = next,
            None => return Ok(()),
        }
    }
}

async fn sql(
    connection: &mut Connection,
    sql: String,
    asker: Asker,
    shared: &Arc<Shared>,
) -> Result<(), Failure> {
    if !asker.privileged {
        let question = "SQL sees every session, so only root and the collector's own user may ask it\n\
            hint: `agentwatch events` and `agentwatch timeline` show your own sessions";
        return Err(StoreError::Question(question.to_owned()).into());
    }
    let wanted = Wanted::default();
    let limits = SqlLimits {
        time: shared.limits.sql,
        cancelled: Arc::clone(&wanted.cancelled),
    };
    let directory = shared.state_dir.clone();
    // Two parts ahead at most: a slow asker slows the statement, and one that is gone ends it.
    let (sender, mut parts) = mpsc::channel(2);
    let run = spawn_blocking(move || {
        store::run_sql(&directory, &sql, &limits, |part| {
            sender.blocking_send(part).is_ok()
        })
    });
    loop {
        let part = tokio::select! {
            part = parts.recv() => part,
            _ = connection.receive::<IgnoredAny>() => return Err(anyhow::anyhow!("the asker hung up").into()),
        };
        let Some(part) = part else { break };
        match part {
            Part::Columns(columns) => {
                let answer = Answer::Columns { columns };
                send(connection, &answer, shared.limits.unread_part).await?;
            }
            Part::Rows(rows) => {
                let frame = Answer::rows_frame(&rows);
                pass(connection, frame, shared.limits.unread_part).await?;
            }
        }
    }
    run.await.context("the statement ended in a panic")??;
    Ok(())
}

/// Stops a statement whose answer nobody waits for any more, however the waiting ended.
#[derive(Default)]
struct Wanted {
    cancelled: Arc<AtomicBool>,
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

async fn status(
    connection: &mut Connection,
    asker: Asker,
    shared: &Arc<Shared>,
) -> Result<(), Failure> {
    let directory = shared.state_dir.clone();
    let mut status = blocking(move || Reader::open(&directory, asker.viewer())?.status()).await?;
    // Where events go is not for everybody.
    if asker.privileged {
        let newest = *shared.newest.borrow();
        let sinks = shared.sinks.iter();
        status.sinks = sinks
            .map(|sink| {
                let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner).clone();
                sink.behind = u64::try_from(newest - sink.position).unwrap_or(0);
                sink
            })
            .collect();
    }
    Ok(send(
        connection,
        &Answer::Status { status },
        shared.limits.unread_part,
    )
    .await?)
}

/// Has everything sealed that is stored now.
async fn seal(asker: Asker, shared: &Arc<Shared>) -> Result<(), Failure> {
    if !asker.privileged {
        return Err(StoreError::Question(
            "only root and the collector's own user may have the history sealed".to_owned(),
        )
        .into());
    }
    let (reply, outcome) = oneshot::channel();
    let jobs = shared.jobs.upgrade().context("the collector stops")?;
    jobs.send(Job::Seal { reply })
        .await
        .ok()
        .context("the writer is gone")?;
    drop(jobs);
    match outcome.await.context("the collector stops")? {
        Ok(()) => Ok(()),
        Err(error) => Err(StoreError::Question(error).into()),
    }
}

async fn account(
    connection: &mut Connection,
    session: String,
    asker: Asker,
    shared: &Arc<Shared>,
) -> Result<(), Failure> {
    let directory = shared.state_dir.clone();
    let parts =
        blocking(move || Reader::open(&directory, asker.viewer())?.account(&session)).await?;
    for part in parts {
        send(
            connection,
            &Answer::Account { part },
            shared.limits.unread_part,
        )
        .await?;
    }
    Ok(())
}

/// Sends a whole walk, page by page.
async fn walk(
    connection: &mut Connection,
    mut reader: Reader,
    mut scan: Scan,
    unread: Duration,
) -> Result<(Reader, Scan), Failure> {
    loop {
        let (back, passed, page) = blocking(move || {
            let page = reader.page(&mut scan)?;
            Ok((reader, scan, page))
        })
        .await?;
        (reader, scan) = (back, passed);
        let Page { events, last } = page;
        if let Some(events) = events {
            pass(connection, events, unread).await?;
        }
        if last {
            return Ok((reader, scan));
        }
    }
}

async fn newer(reader: Reader, mut scan: Scan) -> Result<(Reader, Scan, Page), Failure> {
    blocking(move || {
        let page = reader.newer(&mut scan)?;
        Ok((reader, scan, page))
    })
    .await
}

/// Work on the store, which blocks, away from the threads that serve connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Failure> {
    let result = spawn_blocking(work)
        .await
        .context("reading the history ended in a panic")?;
    Ok(result?)
}

async fn pass(connection: &mut Connection, frame: Bytes, unread: Duration) -> Result<()> {
    timeout(unread, connection.send_frame(frame))
        .await
        .context("the asker does not read the answer")?
}

async fn send(connection: &mut Connection, answer: &Answer, unread: Duration) -> Result<()> {
    timeout(unread, connection.send(answer))
        .await
        .context("the asker does not read the answer")?
}
