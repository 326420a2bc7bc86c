//! What is said to the collector: batches of events from the daemon, questions from the command line.
//!
//! Two sockets in the collector's runtime directory. [`INGEST_SOCKET`] is the daemon's: batches in, acknowledgements
//! out, in order. [`QUERY_SOCKET`] is anyone's: one question per connection, answers until `End` or `Error`.

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::batch::unpack;
use crate::{
    event::model::{Counts, Coverage, Event, Kind, Loss, Mode, Verdict},
    sinks::SinkStatus,
};

/// Name of the ingest socket below `RUNTIME_DIR/collector`.
pub const INGEST_SOCKET: &str = "ingest.sock";
/// Name of the query socket below `RUNTIME_DIR/collector`.
pub const QUERY_SOCKET: &str = "query.sock";

/// Events on their way to the store. Its frame is the number, eight bytes, and what [`super::batch::pack`] makes.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Number of the batch on this connection, from 1.
    pub number: u64,
    pub events: Vec<Event>,
}

impl Batch {
    #[must_use]
    pub fn frame(&self) -> bytes::Bytes {
        frame(self.number, &self.events)
    }

    /// The number of a frame, and what is packed in it.
    ///
    /// # Errors
    /// When it is too short to have a number.
    pub fn open(frame: bytes::BytesMut) -> anyhow::Result<(u64, bytes::Bytes)> {
        let mut frame = frame.freeze();
        anyhow::ensure!(frame.len() >= 8, "a frame is not a batch: it has no number");
        let packed = frame.split_off(8);
        let number = frame
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
        Ok((number, packed))
    }
}

/// The frame of a batch.
#[must_use]
pub fn frame(number: u64, events: &[Event]) -> bytes::Bytes {
    let packed = super::batch::pack(events);
    let mut frame = bytes::BytesMut::with_capacity(8 + packed.len());
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend_from_slice(&packed);
    frame.freeze()
}

/// The collector's answer to a batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum BatchAnswer {
    /// Every batch up to this one is committed to disk.
    Ack { number: u64 },
    /// The batch could not be stored (a full disk, say); it may be sent again later.
    Refused { number: u64, error: String },
}

/// Which events a question is about. An empty list, or an absent bound, does not restrict.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Filter {
    /// Session id, a unique beginning of one, or a name (then the newest of that name).
    pub session: Option<String>,
    pub since: Option<Timestamp>,
    pub kinds: Vec<Kind>,
    pub verdicts: Vec<Verdict>,
}

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    /// Events, oldest first; with `follow`, then everything that comes, until the asker hangs up.
    Events { filter: Filter, follow: bool },
    /// All sessions that the asker may see, newest first.
    Sessions,
    /// One session with all its events, for the timeline.
    Timeline { session: String },
    /// Read-only SQL. Root and the collector's own user only.
    Sql { sql: String },
    /// What the store has of the session with this id, for a daemon that takes it over. Root and the collector's own
    /// user only.
    Account { session: String },
    /// Has everything sealed that is stored now; answered when that is done. Root and the collector's own user only.
    Seal,
    /// Figures about the store.
    Status,
}

/// A part of an answer. Its frame is JSON, or a packed batch of events ([`super::batch`]), which begins with another byte.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    #[serde(skip)]
    Events {
        events: Vec<Event>,
    },
    Sessions {
        sessions: Vec<SessionRow>,
    },
    Columns {
        columns: Vec<String>,
    },
    Rows {
        rows: Vec<Vec<serde_json::Value>>,
    },
    Account {
        part: AccountPart,
    },
    Status {
        status: StoreStatus,
    },
    /// The answer is complete.
    End,
    /// It could not be given.
    Error {
        message: String,
    },
}

impl Answer {
    /// Reads a frame.
    ///
    /// # Errors
    /// When it is no answer that is known here.
    pub fn read(frame: &[u8]) -> anyhow::Result<Self> {
        if frame.first() == Some(&b'{') {
            return serde_json::from_slice(frame)
                .context("a frame is not an answer that is known here");
        }
        match unpack(frame) {
            Ok(events) => Ok(Self::Events { events }),
            Err(error) => bail!("events in the answer cannot be read: {error}"),
        }
    }

    /// The frame of `Rows` whose list is JSON already.
    #[must_use]
    pub fn rows_frame(rows: &[u8]) -> bytes::Bytes {
        [br#"{"answer":"rows","rows":"#, rows, b"}"].concat().into()
    }
}

/// A session as the history knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionRow {
    pub id: String,
    pub name: String,
    pub uid: u32,
    pub policy: String,
    pub mode: Mode,
    pub coverage: Coverage,
    pub missing: Vec<String>,
    pub backends: Vec<String>,
    pub cgroup: String,
    pub command: Vec<String>,
    /// `run`, `attach`, `watch`.
    pub origin: String,
    /// `running` or `ended`.
    pub state: String,
    pub started: Timestamp,
    pub ended: Option<Timestamp>,
    pub reason: Option<String>,
    pub exit_code: Option<i32>,
    /// Stored events, and how many of them were denials.
    pub events: u64,
    pub denied: u64,
    pub counts: Option<Counts>,
}

/// Figures about the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StoreStatus {
    pub events: u64,
    pub sessions: u64,
    /// Of the history as a whole: segments and what is not sealed yet.
    pub bytes: u64,
    /// Sealed segments, and events that are not in one yet.
    pub segments: u64,
    pub unsealed: u64,
    pub schema_version: u32,
    /// How the sinks are; told to root and the collector's own user only.
    #[serde(default)]
    pub sinks: Vec<SinkStatus>,
}

/// A part of a session's account: parts add up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AccountPart {
    /// Sequence numbers that are stored: first and last of each run.
    pub arrived: Vec<(u64, u64)>,
    /// Losses that were declared.
    pub lost: Vec<Loss>,
    /// Sequence number of a first event, and how many repetitions of it have been told since.
    pub told: Vec<(u64, u64)>,
    /// Stored events of the session, and how many of them are denials.
    pub events: u64,
    pub denied: u64,
}
