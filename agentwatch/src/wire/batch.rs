//! Batches of events between the daemon and the collector: what repeats stands once.
//!
//! As JSON an event costs more to read than to store, so a batch is a table of strings, sessions, processes and rules, and
//! records that point into them, in postcard's encoding. The collector keeps batches as they came until they are
//! sealed, so this is also the form of the history's unsealed tail: a change of any type here raises [`VERSION`]. It answers
//! with batches too, which [`Tables`] make without a detour by events.

use std::collections::HashMap;

use indexmap::IndexSet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::event::model::{
    Event, Exit, File, Kind, Layer, Mode, Net, Process, RuleRef, SessionRef, Verdict,
};

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

impl Session {
    fn each_text(&mut self, mut change: impl FnMut(&mut Text)) {
        for text in [
            &mut self.host,
            &mut self.boot_id,
            &mut self.id,
            &mut self.name,
            &mut self.policy,
        ] {
            change(text);
        }
    }
}

impl Actor {
    fn each_text(&mut self, mut change: impl FnMut(&mut Text)) {
        for text in [&mut self.exe, &mut self.cwd, &mut self.cgroup] {
            change(text);
        }
    }
}

impl Rule {
    fn each_text(&mut self, mut change: impl FnMut(&mut Text)) {
        for text in [&mut self.id, &mut self.layer, &mut self.source] {
            change(text);
        }
    }
}

impl Record {
    fn each_text(&mut self, mut change: impl FnMut(&mut Text)) {
        for text in [
            &mut self.id,
            &mut self.fold,
            &mut self.comm,
            &mut self.argv,
            &mut self.guard,
            &mut self.approval,
            &mut self.lifecycle,
            &mut self.loss,
        ] {
            change(text);
        }
        for object in self.file.iter_mut().chain(self.target.as_deref_mut()) {
            for text in [&mut object.path, &mut object.access, &mut object.flags] {
                change(text);
            }
        }
        if let Some(peer) = &mut self.net {
            for text in [
                &mut peer.family,
                &mut peer.socket_type,
                &mut peer.addr,
                &mut peer.path,
                &mut peer.domain,
            ] {
                change(text);
            }
        }
    }
}

/// What records point into, with strings of its own: batches are made of it by those who have no events at hand. Times of its records
/// are relative to nothing.
#[derive(Default)]
pub struct Tables {
    texts: IndexSet<Box<str>>,
    sessions: Listed<Session>,
    processes: Listed<Actor>,
    rules: Listed<Rule>,
    bytes: usize,
}

impl Tables {
    pub fn text(&mut self, text: &str) -> Text {
        let index = match self.texts.get_index_of(text) {
            Some(index) => index,
            None => {
                self.bytes += text.len();
                self.texts.insert_full(text.into()).0
            }
        };
        index as Text + 1
    }

    /// Whether a text is this.
    #[must_use]
    pub fn is(&self, text: Text, bytes: &[u8]) -> bool {
        self.get(text).is_some_and(|text| text.as_bytes() == bytes)
    }

    pub fn session(&mut self, session: Session) -> u32 {
        self.sessions.index(session)
    }

    pub fn process(&mut self, process: Actor) -> u32 {
        self.processes.index(process) + 1
    }

    pub fn rule(&mut self, rule: Rule) -> u32 {
        self.rules.index(rule) + 1
    }

    /// Bytes of all texts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A record of a batch, with all that it points to.
    pub fn take(&mut self, batch: &Batch<'_>, record: &Record) -> Record {
        let mut text = |index: &mut Text| {
            *index = batch.text(*index).map_or(0, |text| self.text(text));
        };
        let mut taken = record.clone();
        taken.each_text(&mut text);
        let session = batch.session(record).cloned().map(|mut session| {
            session.each_text(&mut text);
            session
        });
        let process = batch.process(record).cloned().map(|mut process| {
            process.each_text(&mut text);
            process
        });
        let rule = batch.rule(record).cloned().map(|mut rule| {
            rule.each_text(&mut text);
            rule
        });
        taken.session = session.map_or(0, |session| self.session(session));
        taken.process = process.map_or(0, |process| self.process(process));
        taken.rule = rule.map_or(0, |rule| self.rule(rule));
        taken.time = batch.base_time_ns.wrapping_add(record.time);
        taken.ktime = batch.base_ktime_ns.wrapping_add(record.ktime);
        taken
    }

    /// Bytes of the texts of a record.
    #[must_use]
    pub fn weight(&self, record: &Record) -> usize {
        let texts = [
            record.argv,
            record.guard,
            record.approval,
            record.lifecycle,
            record.loss,
            record.file.as_ref().map_or(0, |file| file.path),
            record.target.as_ref().map_or(0, |file| file.path),
        ];
        let length = |text| self.get(text).map_or(0, str::len);
        size_of::<Record>() + texts.into_iter().map(length).sum::<usize>()
    }

    /// Packs some of the records, with what they point to and nothing else.
    #[must_use]
    pub fn pack(&self, records: &[Record]) -> Vec<u8> {
        let mut part = Part {
            tables: self,
            strings: Vec::new(),
            texts: vec![0; self.texts.len() + 1],
        };
        let base = records
            .first()
            .map_or((0, 0), |first| (first.time, first.ktime));
        let (mut sessions, mut processes, mut rules) = (
            Kept::of(&self.sessions),
            Kept::of(&self.processes),
            Kept::of(&self.rules),
        );
        let records = records
            .iter()
            .map(|record| {
                let mut record = record.clone();
                record.each_text(|text| part.text(text));
                record.time = record.time.wrapping_sub(base.0);
                record.ktime = record.ktime.wrapping_sub(base.1);
                record.session = sessions.index(record.session, |session| {
                    session.each_text(|text| part.text(text))
                });
                if record.process > 0 {
                    record.process = 1 + processes.index(record.process - 1, |process| {
                        process.each_text(|text| part.text(text));
                    });
                }
                if record.rule > 0 {
                    record.rule = 1 + rules.index(record.rule - 1, |rule| {
                        rule.each_text(|text| part.text(text))
                    });
                }
                record
            })
            .collect();
        Batch {
            strings: part.strings,
            sessions: sessions.list,
            processes: processes.list,
            rules: rules.list,
            base_time_ns: base.0,
            base_ktime_ns: base.1,
            records,
        }
        .encode()
    }

    fn get(&self, text: Text) -> Option<&str> {
        let text = self.texts.get_index((text as usize).checked_sub(1)?)?;
        Some(text)
    }
}

/// Strings of a part of the records, each once.
struct Part<'t> {
    tables: &'t Tables,
    strings: Vec<&'t str>,
    /// What each text of the tables has become; 0 where it is not in the part.
    texts: Vec<Text>,
}

impl Part<'_> {
    fn text(&mut self, text: &mut Text) {
        let Some(place) = self.texts.get_mut(*text as usize) else {
            return;
        };
        if *place == 0
            && let Some(string) = self.tables.get(*text)
        {
            self.strings.push(string);
            *place = self.strings.len() as Text;
        }
        *text = *place;
    }
}

/// Those of a list that a part of the records points to.
struct Kept<'t, T> {
    from: &'t [T],
    list: Vec<T>,
    places: Vec<Option<u32>>,
}

impl<'t, T: Clone> Kept<'t, T> {
    fn of(from: &'t Listed<T>) -> Self {
        Self {
            from: &from.list,
            list: Vec::new(),
            places: vec![None; from.list.len()],
        }
    }

    /// The place of what is at `index` of the whole list; `change` is called when it is kept.
    fn index(&mut self, index: u32, change: impl FnOnce(&mut T)) -> u32 {
        let (Some(place), Some(value)) = (
            self.places.get_mut(index as usize),
            self.from.get(index as usize),
        ) else {
            return 0;
        };
        *place.get_or_insert_with(|| {
            let mut value = value.clone();
            change(&mut value);
            self.list.push(value);
            self.list.len() as u32 - 1
        })
    }
}

/// Packs events.
#[must_use]
pub fn pack(events: &[Event]) -> Vec<u8> {
    // Made beforehand, because the table of strings borrows.
    let made: Vec<Made> = events.iter().map(Made::of).collect();
    let mut packer = Packer::default();
    let base = events
        .first()
        .map(|event| (nanoseconds(event.time), clamp(event.ktime_ns)))
        .unwrap_or_default();
    let records = events
        .iter()
        .zip(&made)
        .map(|(event, made)| packer.record(event, made, base))
        .collect();
    Batch {
        strings: packer.strings,
        sessions: packer.sessions.list,
        processes: packer.processes.list,
        rules: packer.rules.list,
        base_time_ns: base.0,
        base_ktime_ns: base.1,
        records,
    }
    .encode()
}

/// Strings that an event does not hold as they are stored.
#[derive(Default)]
struct Made {
    argv: Option<String>,
    file: (String, String),
    target: (String, String),
    guard: Option<String>,
    approval: Option<String>,
    lifecycle: Option<String>,
    loss: Option<String>,
}

impl Made {
    fn of(event: &Event) -> Self {
        let joined = |file: &Option<File>| {
            file.as_ref().map_or_else(Default::default, |file| {
                (file.access.join(","), file.flags.join(","))
            })
        };
        let argv = event.process.as_ref().map(|process| &process.argv);
        Self {
            argv: argv.filter(|argv| !argv.is_empty()).and_then(json),
            file: joined(&event.file),
            target: joined(&event.target),
            guard: event.guard.as_ref().and_then(json),
            approval: event.approval.as_ref().and_then(json),
            lifecycle: event.lifecycle.as_ref().and_then(json),
            loss: event.loss.as_ref().and_then(json),
        }
    }
}

/// JSON of a type of the model, which always serialises.
fn json<T: Serialize + ?Sized>(value: &T) -> Option<String> {
    serde_json::to_string(value).ok()
}

#[derive(Default)]
struct Packer<'a> {
    strings: Vec<&'a str>,
    known: HashMap<&'a str, Text>,
    sessions: Listed<Session>,
    processes: Listed<Actor>,
    rules: Listed<Rule>,
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

impl<T: Clone + Eq + std::hash::Hash> Listed<T> {
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

impl<'a> Packer<'a> {
    fn text(&mut self, text: &'a str) -> Text {
        let next = self.strings.len() as u32 + 1;
        let strings = &mut self.strings;
        *self.known.entry(text).or_insert_with(|| {
            strings.push(text);
            next
        })
    }

    fn optional(&mut self, text: Option<&'a str>) -> Text {
        text.map_or(0, |text| self.text(text))
    }

    /// Absent where it is empty.
    fn filled(&mut self, text: &'a str) -> Text {
        if text.is_empty() { 0 } else { self.text(text) }
    }

    fn record(&mut self, event: &'a Event, made: &'a Made, base: (i64, i64)) -> Record {
        // Every field by name, so that a new one cannot be forgotten here.
        let Event {
            v,
            id,
            seq,
            time,
            ktime_ns,
            host,
            boot_id,
            session,
            kind,
            verdict,
            errno,
            count,
            fold,
            rule,
            process,
            file,
            target,
            net,
            guard: _,
            approval: _,
            exit,
            lifecycle: _,
            loss: _,
        } = event;
        let (time, ktime) = (nanoseconds(*time), clamp(*ktime_ns));
        let session_index = self.session(session, host, boot_id, *v);
        let rule = rule.as_ref().map_or(0, |rule| self.rule(rule));
        let actor = process.as_ref().map_or(0, |process| self.process(process));
        let start_delta = process.as_ref().and_then(|process| {
            let usual = time
                .wrapping_sub(ktime)
                .wrapping_add(clamp(process.start_ns));
            process
                .start
                .map(|start| nanoseconds(start).wrapping_sub(usual))
        });
        Record {
            session: session_index,
            process: actor,
            rule,
            kind: *kind as u8,
            verdict: *verdict as u8,
            seq: *seq,
            time: time.wrapping_sub(base.0),
            ktime: ktime.wrapping_sub(base.1),
            count: *count,
            errno: *errno,
            id: if is_usual_id(id, &session.id, *seq) {
                0
            } else {
                self.text(id)
            },
            fold: self.optional(fold.as_deref()),
            tid: process.as_ref().map_or(0, |process| process.tid),
            comm: self.optional(process.as_ref().map(|process| process.comm.as_str())),
            argv: self.optional(made.argv.as_deref()),
            argv_truncated: process
                .as_ref()
                .is_some_and(|process| process.argv_truncated),
            start_delta,
            file: file.as_ref().map(|file| self.object(file, &made.file)),
            target: target
                .as_ref()
                .map(|file| Box::new(self.object(file, &made.target))),
            net: net.as_ref().map(|net| Box::new(self.peer(net))),
            exit: exit.as_ref().map(|exit| {
                Box::new(Ended {
                    code: exit.code,
                    signal: exit.signal,
                    core: exit.core,
                    duration_ns: exit.duration_ns,
                })
            }),
            guard: self.optional(made.guard.as_deref()),
            approval: self.optional(made.approval.as_deref()),
            lifecycle: self.optional(made.lifecycle.as_deref()),
            loss: self.optional(made.loss.as_deref()),
        }
    }

    fn session(&mut self, session: &'a SessionRef, host: &'a str, boot_id: &'a str, v: u32) -> u32 {
        let session = Session {
            host: self.text(host),
            boot_id: self.text(boot_id),
            id: self.text(&session.id),
            name: self.text(&session.name),
            policy: self.text(&session.policy),
            monitor: session.mode == crate::event::Mode::Monitor,
            v,
        };
        self.sessions.index(session)
    }

    fn rule(&mut self, rule: &'a RuleRef) -> u32 {
        let rule = Rule {
            id: self.text(&rule.id),
            layer: self.text(rule.layer.name()),
            source: self.text(&rule.source),
        };
        self.rules.index(rule) + 1
    }

    fn process(&mut self, process: &'a Process) -> u32 {
        let actor = Actor {
            pid: process.pid,
            ppid: process.ppid,
            start_ns: process.start_ns,
            parent_start_ns: process.parent_start_ns,
            exe: self.text(&process.exe),
            cwd: self.filled(&process.cwd),
            cgroup: self.filled(&process.cgroup),
            uid: process.uid,
            gid: process.gid,
        };
        self.processes.index(actor) + 1
    }

    fn object(&mut self, file: &'a File, (access, flags): &'a (String, String)) -> Object {
        Object {
            path: self.text(&file.path),
            truncated: file.path_truncated,
            dev: file.dev,
            inode: file.inode,
            access: self.filled(access),
            flags: self.filled(flags),
        }
    }

    fn peer(&mut self, net: &'a Net) -> Peer {
        Peer {
            family: self.text(&net.family),
            socket_type: self.filled(&net.socket_type),
            addr: self.optional(net.addr.as_deref()),
            port: net.port,
            path: self.optional(net.path.as_deref()),
            domain: self.optional(net.domain.as_deref()),
        }
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
