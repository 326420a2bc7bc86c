//! The columns of a stored event: one table that the segments' layout, the SQL table, the record hashes and the way back
//! to an event are all made from.
//!
//! A column is a number or a text, and may be absent. Names are part of the history's format: a new column goes to the end,
//! and none changes its meaning.

use crate::{
    event::model::{
        Event, Exit, File, Kind, Layer, Mode, Net, Process, RuleRef, SessionRef, Verdict,
    },
    wire::batch::{Batch, Object, Record, clamp},
};

/// How a column gets its value from a record that is not sealed yet.
#[derive(Clone, Copy)]
pub(super) enum Get {
    Number(fn(&Unsealed<'_>) -> Option<i64>),
    Text(for<'a> fn(&'a Unsealed<'_>) -> Option<&'a str>),
}

pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) get: Get,
}

impl Column {
    pub(super) fn is_text(&self) -> bool {
        matches!(self.get, Get::Text(_))
    }
}

/// A record of a batch that is not sealed yet.
pub(super) struct Unsealed<'a> {
    pub(super) batch: &'a Batch<'a>,
    pub(super) record: &'a Record,
    pub(super) no: i64,
}

/// What can be read column by column.
pub(super) trait Row {
    fn number(&self, column: C) -> Option<i64>;
    fn text(&self, column: C) -> Option<&str>;
}

impl Row for Unsealed<'_> {
    fn number(&self, column: C) -> Option<i64> {
        match COLUMNS[column as usize].get {
            Get::Number(get) => get(self),
            Get::Text(_) => None,
        }
    }

    fn text(&self, column: C) -> Option<&str> {
        match COLUMNS[column as usize].get {
            Get::Number(_) => None,
            Get::Text(get) => get(self),
        }
    }
}

macro_rules! columns {
    ($($id:ident $name:literal $type:ident $get:expr;)*) => {
        /// A column, by its place.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub(super) enum C { $($id),* }

        pub(super) const ALL: &[C] = &[$(C::$id),*];

        pub(super) static COLUMNS: [Column; ALL.len()] = [$(Column { name: $name, get: Get::$type($get) }),*];
    };
}

/// An identity: the same bits, so that equal stays equal; the rare one above 2^63 shows as negative.
fn bits(value: u64) -> Option<i64> {
    Some(value.cast_signed())
}

fn flag(set: bool) -> Option<i64> {
    Some(i64::from(set))
}

columns! {
    No "no" Number |r| Some(r.no);
    Time "time_ns" Number |r| Some(r.time());
    Ktime "ktime_ns" Number |r| Some(r.ktime());
    Seq "seq" Number |r| bits(r.record.seq);
    SessionId "session_id" Text |r| r.session_text(|s| s.id);
    Session "session" Text |r| r.session_text(|s| s.name);
    Policy "policy" Text |r| r.session_text(|s| s.policy);
    Mode "mode" Text |r| Some(if r.batch.session(r.record)?.monitor { "monitor" } else { "enforce" });
    Host "host" Text |r| r.session_text(|s| s.host);
    BootId "boot_id" Text |r| r.session_text(|s| s.boot_id);
    V "v" Number |r| Some(r.batch.session(r.record)?.v.into());
    Id "id" Text |r| r.text_at(r.record.id);
    Kind "kind" Text |r| Some(r.kind().name());
    Verdict "verdict" Text |r| Some(r.verdict().name());
    Errno "errno" Number |r| r.record.errno.map(i64::from);
    Count "count" Number |r| Some(clamp(r.record.count));
    Fold "fold" Text |r| r.text_at(r.record.fold);
    RuleId "rule_id" Text |r| r.text_at(r.batch.rule(r.record)?.id);
    RuleLayer "rule_layer" Text |r| r.text_at(r.batch.rule(r.record)?.layer);
    RuleSource "rule_source" Text |r| r.text_at(r.batch.rule(r.record)?.source);
    Pid "pid" Number |r| Some(r.batch.process(r.record)?.pid.into());
    Tid "tid" Number |r| r.batch.process(r.record).map(|_| r.record.tid.into());
    Ppid "ppid" Number |r| Some(r.batch.process(r.record)?.ppid.into());
    Start "start_ns" Number |r| Some(clamp(r.batch.process(r.record)?.start_ns));
    StartDelta "start_delta_ns" Number |r| r.record.start_delta;
    ParentStart "parent_start_ns" Number |r| Some(clamp(r.batch.process(r.record)?.parent_start_ns));
    Exe "exe" Text |r| r.text_at(r.batch.process(r.record)?.exe);
    Comm "comm" Text |r| r.text_at(r.record.comm);
    Argv "argv" Text |r| r.text_at(r.record.argv);
    ArgvTruncated "argv_truncated" Number |r| r.record.argv_truncated.then_some(1);
    Cwd "cwd" Text |r| r.text_at(r.batch.process(r.record)?.cwd);
    Uid "uid" Number |r| Some(r.batch.process(r.record)?.uid.into());
    Gid "gid" Number |r| Some(r.batch.process(r.record)?.gid.into());
    Cgroup "cgroup" Text |r| r.text_at(r.batch.process(r.record)?.cgroup);
    Path "path" Text |r| r.text_at(r.record.file.as_ref()?.path);
    PathTruncated "path_truncated" Number |r| r.record.file.as_ref()?.truncated.then_some(1);
    Dev "dev" Number |r| bits(r.record.file.as_ref()?.dev);
    Inode "inode" Number |r| bits(r.record.file.as_ref()?.inode);
    Access "access" Text |r| r.text_at(r.record.file.as_ref()?.access);
    Flags "flags" Text |r| r.text_at(r.record.file.as_ref()?.flags);
    TargetPath "target_path" Text |r| r.text_at(r.target()?.path);
    TargetTruncated "target_truncated" Number |r| r.target()?.truncated.then_some(1);
    TargetDev "target_dev" Number |r| bits(r.target()?.dev);
    TargetInode "target_inode" Number |r| bits(r.target()?.inode);
    TargetAccess "target_access" Text |r| r.text_at(r.target()?.access);
    TargetFlags "target_flags" Text |r| r.text_at(r.target()?.flags);
    Family "family" Text |r| r.text_at(r.record.net.as_ref()?.family);
    SockType "sock_type" Text |r| r.text_at(r.record.net.as_ref()?.socket_type);
    Addr "addr" Text |r| r.text_at(r.record.net.as_ref()?.addr);
    Port "port" Number |r| r.record.net.as_ref()?.port.map(i64::from);
    SockPath "sock_path" Text |r| r.text_at(r.record.net.as_ref()?.path);
    Domain "domain" Text |r| r.text_at(r.record.net.as_ref()?.domain);
    ExitCode "exit_code" Number |r| r.record.exit.as_ref()?.code.map(i64::from);
    ExitSignal "exit_signal" Number |r| r.record.exit.as_ref()?.signal.map(i64::from);
    ExitCore "exit_core" Number |r| flag(r.record.exit.as_ref()?.core);
    Duration "duration_ns" Number |r| Some(clamp(r.record.exit.as_ref()?.duration_ns));
    Guard "guard" Text |r| r.text_at(r.record.guard);
    Approval "approval" Text |r| r.text_at(r.record.approval);
    Lifecycle "lifecycle" Text |r| r.text_at(r.record.lifecycle);
    Loss "loss" Text |r| r.text_at(r.record.loss);
}

impl Unsealed<'_> {
    pub(super) fn time(&self) -> i64 {
        self.batch.base_time_ns.wrapping_add(self.record.time)
    }

    pub(super) fn ktime(&self) -> i64 {
        self.batch.base_ktime_ns.wrapping_add(self.record.ktime)
    }

    pub(super) fn kind(&self) -> Kind {
        // Checked when the batch was read.
        Kind::ALL[usize::from(self.record.kind).min(Kind::ALL.len() - 1)]
    }

    pub(super) fn verdict(&self) -> Verdict {
        Verdict::ALL[usize::from(self.record.verdict).min(Verdict::ALL.len() - 1)]
    }

    fn text_at(&self, index: u32) -> Option<&str> {
        self.batch.text(index)
    }

    fn session_text(&self, field: fn(&crate::wire::batch::Session) -> u32) -> Option<&str> {
        self.batch.text(field(self.batch.session(self.record)?))
    }

    fn target(&self) -> Option<&Object> {
        self.record.target.as_deref()
    }
}

/// The event that a row holds; what is wrong with it in words, where it holds none.
pub(super) fn event(row: &impl Row) -> Result<Event, String> {
    let needed = |column: C| {
        row.text(column)
            .ok_or_else(|| format!("its {} is missing", COLUMNS[column as usize].name))
    };
    let number = |column: C| {
        row.number(column)
            .ok_or_else(|| format!("its {} is missing", COLUMNS[column as usize].name))
    };
    let text = |column: C| row.text(column).map(str::to_owned);
    let filled = |column: C| text(column).unwrap_or_default();
    let session = SessionRef {
        id: needed(C::SessionId)?.to_owned(),
        name: filled(C::Session),
        policy: filled(C::Policy),
        mode: known(&Mode::ALL, needed(C::Mode)?, Mode::name)?,
    };
    let (time, ktime) = (number(C::Time)?, number(C::Ktime)?);
    let seq = number(C::Seq)?.cast_unsigned();
    Ok(Event {
        v: narrow(number(C::V)?)?,
        id: match row.text(C::Id) {
            Some(id) => id.to_owned(),
            None => format!("{}-{seq}", session.id),
        },
        seq,
        time: timestamp(time),
        ktime_ns: ktime.cast_unsigned(),
        host: filled(C::Host),
        boot_id: filled(C::BootId),
        session,
        kind: known(&Kind::ALL, needed(C::Kind)?, Kind::name)?,
        verdict: known(&Verdict::ALL, needed(C::Verdict)?, Verdict::name)?,
        errno: row.number(C::Errno).map(narrow).transpose()?,
        count: number(C::Count)?.cast_unsigned(),
        fold: text(C::Fold),
        rule: match row.text(C::RuleId) {
            Some(id) => Some(RuleRef {
                id: id.to_owned(),
                layer: known(
                    &[Layer::Managed, Layer::Task, Layer::Default],
                    needed(C::RuleLayer)?,
                    Layer::name,
                )?,
                source: filled(C::RuleSource),
            }),
            None => None,
        },
        process: row
            .number(C::Pid)
            .map(|pid| process(row, pid, time, ktime))
            .transpose()?,
        file: file(
            row,
            C::Path,
            C::PathTruncated,
            C::Dev,
            C::Inode,
            C::Access,
            C::Flags,
        ),
        target: file(
            row,
            C::TargetPath,
            C::TargetTruncated,
            C::TargetDev,
            C::TargetInode,
            C::TargetAccess,
            C::TargetFlags,
        ),
        net: match row.text(C::Family) {
            Some(family) => Some(Net {
                family: family.to_owned(),
                socket_type: filled(C::SockType),
                addr: text(C::Addr),
                port: row.number(C::Port).map(narrow).transpose()?,
                path: text(C::SockPath),
                domain: text(C::Domain),
            }),
            None => None,
        },
        guard: json(row.text(C::Guard))?,
        exit: match row.number(C::Duration) {
            Some(duration) => Some(Exit {
                code: row.number(C::ExitCode).map(narrow).transpose()?,
                signal: row.number(C::ExitSignal).map(narrow).transpose()?,
                core: row.number(C::ExitCore) == Some(1),
                duration_ns: duration.cast_unsigned(),
            }),
            None => None,
        },
        approval: json(row.text(C::Approval))?,
        lifecycle: json(row.text(C::Lifecycle))?,
        loss: json(row.text(C::Loss))?,
    })
}

fn process(row: &impl Row, pid: i64, time: i64, ktime: i64) -> Result<Process, String> {
    let filled = |column: C| row.text(column).unwrap_or_default().to_owned();
    let number = |column: C| row.number(column).unwrap_or_default();
    let start = number(C::Start);
    Ok(Process {
        pid: narrow(pid)?,
        tid: narrow(number(C::Tid))?,
        ppid: narrow(number(C::Ppid))?,
        start_ns: start.cast_unsigned(),
        start: row.number(C::StartDelta).map(|delta| {
            timestamp(
                time.wrapping_sub(ktime)
                    .wrapping_add(start)
                    .wrapping_add(delta),
            )
        }),
        parent_start_ns: number(C::ParentStart).cast_unsigned(),
        exe: filled(C::Exe),
        comm: filled(C::Comm),
        argv: json(row.text(C::Argv))?.unwrap_or_default(),
        argv_truncated: row.number(C::ArgvTruncated) == Some(1),
        cwd: filled(C::Cwd),
        uid: narrow(number(C::Uid))?,
        gid: narrow(number(C::Gid))?,
        cgroup: filled(C::Cgroup),
    })
}

fn file(
    row: &impl Row,
    path: C,
    truncated: C,
    dev: C,
    inode: C,
    access: C,
    flags: C,
) -> Option<File> {
    let split = |column: C| {
        row.text(column).map_or_else(Vec::new, |text| {
            text.split(',').map(str::to_owned).collect::<Vec<_>>()
        })
    };
    Some(File {
        path: row.text(path)?.to_owned(),
        path_truncated: row.number(truncated) == Some(1),
        dev: row.number(dev).unwrap_or_default().cast_unsigned(),
        inode: row.number(inode).unwrap_or_default().cast_unsigned(),
        access: split(access),
        flags: split(flags),
    })
}

fn known<T: Copy>(all: &[T], wanted: &str, name: fn(T) -> &'static str) -> Result<T, String> {
    all.iter()
        .copied()
        .find(|value| name(*value) == wanted)
        .ok_or_else(|| format!("{wanted:?} is not known here"))
}

fn json<T: serde::de::DeserializeOwned>(text: Option<&str>) -> Result<Option<T>, String> {
    text.map(|text| serde_json::from_str(text).map_err(|error| error.to_string()))
        .transpose()
}

fn narrow<T: TryFrom<i64>>(value: i64) -> Result<T, String> {
    T::try_from(value).map_err(|_| format!("{value} is out of range"))
}

pub(super) fn timestamp(nanoseconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default()
}
