//! Batches of events between the daemon and the collector: what repeats stands once.
//!
//! As JSON an event costs more to read than to store, so a batch is a table of strings, sessions, processes and rules, and
//! records that point into them, in postcard's encoding. The collector keeps batches as they came until they are
//! sealed, so this is also the form of the history's unsealed tail: a change of any type here raises [`VERSION`]. It answers
//! with batches too, which [`Tables`] make without a detour by events.

use std::{collections::HashMap, hash::Hash};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::event::model::{
    Event, Exit, File, Kind, Layer, Mode, Net, Process, RuleRef, SessionRef, Verdict,
};

mod pack;
mod tables;

pub use pack::pack;
pub use tables::Tables;

/// First byte of every batch.
pub const VERSION: u8 = 1;

/// An index into [`Batch::strings`], from 1; 0 is absent.
pub type Text = u32;

/// A batch, with its strings in the frame that it was read from.
#[derive(Debug, Serialize, Deserialize)]
pub struct Batch<'a> {
    #[serde(borrow)]
    pub strings: Vec<&'a str>,
    pub sessions: Vec<Session>,
    pub processes: Vec<Actor>,
    pub rules: Vec<Rule>,
    /// What the records' times are relative to.
    pub base_time_ns: i64,
    pub base_ktime_ns: i64,
    pub records: Vec<Record>,
}

/// A session on a boot of a host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Session {
    pub host: Text,
    pub boot_id: Text,
    pub id: Text,
    pub name: Text,
    pub policy: Text,
    pub monitor: bool,
    pub v: u32,
}

/// A process, but for its threads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Actor {
    pub pid: u32,
    pub ppid: u32,
    pub start_ns: u64,
    pub parent_start_ns: u64,
    pub exe: Text,
    pub cwd: Text,
    pub cgroup: Text,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    pub id: Text,
    pub layer: Text,
    pub source: Text,
}

/// One event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub session: u32,
    /// From 1; 0 is none. So is `rule`.
    pub process: u32,
    pub rule: u32,
    pub kind: u8,
    pub verdict: u8,
    pub seq: u64,
    pub time: i64,
    pub ktime: i64,
    pub count: u64,
    pub errno: Option<i32>,
    /// Absent where it is `<session>-<seq>`.
    pub id: Text,
    pub fold: Text,
    pub tid: u32,
    pub comm: Text,
    /// A JSON list.
    pub argv: Text,
    pub argv_truncated: bool,
    /// The start's wall time beyond what `time`, `ktime` and `start_ns` say.
    pub start_delta: Option<i64>,
    pub file: Option<Object>,
    pub target: Option<Box<Object>>,
    pub net: Option<Box<Peer>>,
    pub exit: Option<Box<Ended>>,
    /// JSON of the model's `guard`, `approval`, `lifecycle` and `loss`.
    pub guard: Text,
    pub approval: Text,
    pub lifecycle: Text,
    pub loss: Text,
}

/// A file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Object {
    pub path: Text,
    pub truncated: bool,
    pub dev: u64,
    pub inode: u64,
    /// Joined by commas. So is `flags`.
    pub access: Text,
    pub flags: Text,
}

/// A socket address.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub family: Text,
    pub socket_type: Text,
    pub addr: Text,
    pub port: Option<u16>,
    pub path: Text,
    pub domain: Text,
}

/// How a process ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub core: bool,
    pub duration_ns: u64,
}

impl<'a> Batch<'a> {
    /// Reads a batch.
    ///
    /// # Errors
    /// When the bytes are no batch of this version, or point outside their own tables.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, String> {
        let body = match bytes.split_first() {
            Some((&VERSION, body)) => body,
            Some((version, _)) => return Err(format!("version {version} is not known here")),
            None => return Err("it is empty".to_owned()),
        };
        let batch: Batch<'a> = postcard::from_bytes(body).map_err(|error| error.to_string())?;
        let sound = batch.records.iter().all(|record| {
            (record.session as usize) < batch.sessions.len()
                && record.process as usize <= batch.processes.len()
                && record.rule as usize <= batch.rules.len()
                && usize::from(record.kind) < Kind::ALL.len()
                && usize::from(record.verdict) < Verdict::ALL.len()
        });
        if sound {
            Ok(batch)
        } else {
            Err("a record points outside its batch".to_owned())
        }
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Only types that cannot fail, into memory that grows.
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
    }

    /// A string of the table; `None` for what is absent, or points outside.
    #[must_use]
    pub fn text(&self, index: Text) -> Option<&'a str> {
        self.strings.get((index as usize).checked_sub(1)?).copied()
    }

    #[must_use]
    pub fn session(&self, record: &Record) -> Option<&Session> {
        self.sessions.get(record.session as usize)
    }

    #[must_use]
    pub fn process(&self, record: &Record) -> Option<&Actor> {
        self.processes
            .get((record.process as usize).checked_sub(1)?)
    }

    #[must_use]
    pub fn rule(&self, record: &Record) -> Option<&Rule> {
        self.rules.get((record.rule as usize).checked_sub(1)?)
    }
}

impl Batch<'_> {
    /// The event of a record of this batch.
    ///
    /// # Errors
    /// What makes no event of it, in words.
    pub fn event(&self, record: &Record) -> Result<Event, String> {
        let owned = |index| self.text(index).map(str::to_owned);
        let filled = |index| owned(index).unwrap_or_default();
        let session = self
            .session(record)
            .ok_or("it has a session that its batch has not")?;
        let (time, ktime) = (
            self.base_time_ns.wrapping_add(record.time),
            self.base_ktime_ns.wrapping_add(record.ktime),
        );
        let id = filled(session.id);
        Ok(Event {
            v: session.v,
            id: owned(record.id).unwrap_or_else(|| format!("{id}-{}", record.seq)),
            seq: record.seq,
            time: timestamp(time),
            ktime_ns: ktime.cast_unsigned(),
            host: filled(session.host),
            boot_id: filled(session.boot_id),
            session: SessionRef {
                id,
                name: filled(session.name),
                policy: filled(session.policy),
                mode: if session.monitor {
                    Mode::Monitor
                } else {
                    Mode::Enforce
                },
            },
            kind: *Kind::ALL
                .get(usize::from(record.kind))
                .ok_or("its kind is not known here")?,
            verdict: *Verdict::ALL
                .get(usize::from(record.verdict))
                .ok_or("its verdict is not known here")?,
            errno: record.errno,
            count: record.count,
            fold: owned(record.fold),
            rule: self
                .rule(record)
                .map(|rule| self.rule_of(rule))
                .transpose()?,
            process: self
                .process(record)
                .map(|actor| self.process_of(actor, record, time.wrapping_sub(ktime)))
                .transpose()?,
            file: record.file.as_ref().map(|file| self.file_of(file)),
            target: record.target.as_ref().map(|file| self.file_of(file)),
            net: record.net.as_ref().map(|peer| Net {
                family: filled(peer.family),
                socket_type: filled(peer.socket_type),
                addr: owned(peer.addr),
                port: peer.port,
                path: owned(peer.path),
                domain: owned(peer.domain),
            }),
            guard: self.json_at(record.guard)?,
            exit: record.exit.as_ref().map(|ended| Exit {
                code: ended.code,
                signal: ended.signal,
                core: ended.core,
                duration_ns: ended.duration_ns,
            }),
            approval: self.json_at(record.approval)?,
            lifecycle: self.json_at(record.lifecycle)?,
            loss: self.json_at(record.loss)?,
        })
    }

    fn rule_of(&self, rule: &Rule) -> Result<RuleRef, String> {
        let layer = self.text(rule.layer).unwrap_or_default();
        let text = |index| self.text(index).unwrap_or_default().to_owned();
        Ok(RuleRef {
            id: text(rule.id),
            layer: [Layer::Managed, Layer::Task, Layer::Default]
                .into_iter()
                .find(|known| known.name() == layer)
                .ok_or_else(|| format!("the layer {layer:?} is not known here"))?,
            source: text(rule.source),
        })
    }

    /// `offset` is wall time less kernel time.
    fn process_of(&self, actor: &Actor, record: &Record, offset: i64) -> Result<Process, String> {
        let text = |index| self.text(index).unwrap_or_default().to_owned();
        let start = |delta| {
            timestamp(
                offset
                    .wrapping_add(actor.start_ns.cast_signed())
                    .wrapping_add(delta),
            )
        };
        Ok(Process {
            pid: actor.pid,
            tid: record.tid,
            ppid: actor.ppid,
            start_ns: actor.start_ns,
            start: record.start_delta.map(start),
            parent_start_ns: actor.parent_start_ns,
            exe: text(actor.exe),
            comm: text(record.comm),
            argv: self.json_at(record.argv)?.unwrap_or_default(),
            argv_truncated: record.argv_truncated,
            cwd: text(actor.cwd),
            uid: actor.uid,
            gid: actor.gid,
            cgroup: text(actor.cgroup),
        })
    }

    fn file_of(&self, object: &Object) -> File {
        let split = |index| {
            self.text(index).map_or_else(Vec::new, |text| {
                text.split(',').map(str::to_owned).collect()
            })
        };
        File {
            path: self.text(object.path).unwrap_or_default().to_owned(),
            path_truncated: object.truncated,
            dev: object.dev,
            inode: object.inode,
            access: split(object.access),
            flags: split(object.flags),
        }
    }

    fn json_at<T: DeserializeOwned>(&self, index: Text) -> Result<Option<T>, String> {
        self.text(index)
            .map(|text| serde_json::from_str(text).map_err(|error| error.to_string()))
            .transpose()
    }
}

/// The events of a packed batch.
///
/// # Errors
/// When it is no batch, or holds what is no event.
pub fn unpack(bytes: &[u8]) -> Result<Vec<Event>, String> {
    let batch = Batch::decode(bytes)?;
    batch
        .records
        .iter()
        .map(|record| batch.event(record))
        .collect()
}

/// Values in the order of their first appearance.
struct Listed<T> {
    list: Vec<T>,
    known: HashMap<T, u32>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            known: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Listed<T> {
    fn index(&mut self, value: T) -> u32 {
        // The same as the one before, mostly.
        if self.list.last() == Some(&value) {
            return self.list.len() as u32 - 1;
        }
        let next = self.list.len() as u32;
        *self.known.entry(value).or_insert_with_key(|value| {
            self.list.push(value.clone());
            next
        })
    }
}

/// Whether an id is the one that the session and the number make.
fn is_usual_id(id: &str, session: &str, seq: u64) -> bool {
    !session.is_empty()
        && seq != 0
        && id
            .strip_prefix(session)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|number| !number.starts_with(['0', '+']) && number.parse() == Ok(seq))
}

/// Nanoseconds since 1970, at the limits of 64 bits where a time lies outside (before 1677, after 2262).
#[must_use]
pub fn nanoseconds(time: jiff::Timestamp) -> i64 {
    let nanoseconds = time.as_nanosecond();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

/// The time that nanoseconds since 1970 say; all of them are in its range.
#[must_use]
pub fn timestamp(nanoseconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default()
}

/// At most what a signed number holds (292 years of nanoseconds).
#[must_use]
pub fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
