//! Packs events.

use std::collections::HashMap;

use serde::Serialize;

use super::{
    Actor, Batch, Ended, Listed, Object, Peer, Record, Rule, Session, Text, clamp, is_usual_id,
    nanoseconds,
};
use crate::event::model::{Event, File, Net, Process, RuleRef, SessionRef};

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
