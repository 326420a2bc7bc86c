//! The columns of a stored event: one table that the segments' layout, the SQL table, the record hashes and the way back
//! to an event are all made from.
//!
//! A column is a number or a text, and may be absent. Names are part of the history's format: a new column goes to the end,
//! and none changes its meaning. Columns stand in parts; the name that a part has in a row (`Same`) must cover all that its columns are
//! made from.

use crate::{
    event::model::{Event, Kind, Mode, Verdict},
    wire::batch::{
        Actor, Batch, Ended, Object, Peer, Record, Rule, Session, Tables, Text, clamp, unpack,
    },
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

    /// A text that is not checked yet.
    fn bytes(&self, column: C) -> Option<&[u8]> {
        self.text(column).map(str::as_bytes)
    }
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

/// What takes rows column by column, in the order of the table.
pub(super) trait Take<'a> {
    fn number(&mut self, column: C, value: Option<i64>);
    fn text(&mut self, column: C, value: Option<&'a str>);

    /// A part begins. True where what was told of it for the row before was under the same name, and holds for this row too: then
    /// its columns are not told again.
    fn begin(&mut self, part: Part, same: Same) -> bool;

    /// The part that began last is told.
    fn end(&mut self, part: Part);
}

/// Rows in which a part has the same name say the same in its columns.
pub(super) type Same = Option<[u64; 4]>;

macro_rules! columns {
    (@Number $row:ident $to:ident $id:ident $get:expr) => {
        let get: fn(&Unsealed<'_>) -> Option<i64> = $get;
        $to.number(C::$id, get($row));
    };
    (@Text $row:ident $to:ident $id:ident $get:expr) => {
        let get: for<'b> fn(&'b Unsealed<'_>) -> Option<&'b str> = $get;
        $to.text(C::$id, get($row));
    };
    ($($part:ident $same:expr => { $($id:ident $name:literal $type:ident $get:expr;)* })*) => {
        /// A column, by its place.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub(super) enum C { $($($id),*),* }

        pub(super) const ALL: &[C] = &[$($(C::$id),*),*];

        pub(super) static COLUMNS: [Column; ALL.len()] =
            [$($(Column { name: $name, get: Get::$type($get) }),*),*];

        /// Columns that follow each other and often say together what they said in the row before.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub(super) enum Part { $($part),* }

        impl Part {
            pub(super) const ALL: &[Self] = &[$(Self::$part),*];
        }

        /// The columns of each part.
        pub(super) static PARTS: [&[C]; Part::ALL.len()] = [$(&[$(C::$id),*]),*];

        impl<'a> Unsealed<'a> {
            /// Hands every column on. Written out, because a call for each column of each row is what sealing costs most.
            pub(super) fn each(&'a self, to: &mut impl Take<'a>) {
                $(
                    let same: fn(&Unsealed<'_>) -> Same = $same;
                    if !to.begin(Part::$part, same(self)) {
                        $(columns!(@$type self to $id $get);)*
                        to.end(Part::$part);
                    }
                )*
            }
        }
    };
}

/// An identity: the same bits, so that equal stays equal; the rare one above 2^63 shows as negative.
fn bits(value: u64) -> Option<i64> {
    Some(value.cast_signed())
}

fn flag(set: bool) -> Option<i64> {
    Some(i64::from(set))
}

/// Where a part is absent, it is as in every other row without it.
fn absent(is: bool) -> Same {
    is.then_some([0; 4])
}

columns! {
    Place |_| None => {
        No "no" Number |r| Some(r.no);
        Time "time_ns" Number |r| Some(r.time());
        Ktime "ktime_ns" Number |r| Some(r.ktime());
        Seq "seq" Number |r| bits(r.record.seq);
    }
    Whose |r| r.shared(r.record.session) => {
        SessionId "session_id" Text |r| r.session_text(|s| s.id);
        Session "session" Text |r| r.session_text(|s| s.name);
        Policy "policy" Text |r| r.session_text(|s| s.policy);
        Mode "mode" Text |r| Some(if r.batch.session(r.record)?.monitor { "monitor" } else { "enforce" });
        Host "host" Text |r| r.session_text(|s| s.host);
        BootId "boot_id" Text |r| r.session_text(|s| s.boot_id);
        V "v" Number |r| Some(r.batch.session(r.record)?.v.into());
    }
    What |_| None => {
        Id "id" Text |r| r.text_at(r.record.id);
        Kind "kind" Text |r| Some(r.kind().name());
        Verdict "verdict" Text |r| Some(r.verdict().name());
        Errno "errno" Number |r| r.record.errno.map(i64::from);
        Count "count" Number |r| Some(clamp(r.record.count));
        Fold "fold" Text |r| r.text_at(r.record.fold);
    }
    Rule |r| absent(r.record.rule == 0).or_else(|| r.shared(r.record.rule)) => {
        RuleId "rule_id" Text |r| r.text_at(r.batch.rule(r.record)?.id);
        RuleLayer "rule_layer" Text |r| r.text_at(r.batch.rule(r.record)?.layer);
        RuleSource "rule_source" Text |r| r.text_at(r.batch.rule(r.record)?.source);
    }
    Who |r| r.actor() => {
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
    }
    File |r| absent(r.record.file.is_none()) => {
        Path "path" Text |r| r.text_at(r.record.file.as_ref()?.path);
        PathTruncated "path_truncated" Number |r| r.record.file.as_ref()?.truncated.then_some(1);
        Dev "dev" Number |r| bits(r.record.file.as_ref()?.dev);
        Inode "inode" Number |r| bits(r.record.file.as_ref()?.inode);
        Access "access" Text |r| r.text_at(r.record.file.as_ref()?.access);
        Flags "flags" Text |r| r.text_at(r.record.file.as_ref()?.flags);
    }
    Target |r| absent(r.record.target.is_none()) => {
        TargetPath "target_path" Text |r| r.text_at(r.target()?.path);
        TargetTruncated "target_truncated" Number |r| r.target()?.truncated.then_some(1);
        TargetDev "target_dev" Number |r| bits(r.target()?.dev);
        TargetInode "target_inode" Number |r| bits(r.target()?.inode);
        TargetAccess "target_access" Text |r| r.text_at(r.target()?.access);
        TargetFlags "target_flags" Text |r| r.text_at(r.target()?.flags);
    }
    Net |r| absent(r.record.net.is_none()) => {
        Family "family" Text |r| r.text_at(r.record.net.as_ref()?.family);
        SockType "sock_type" Text |r| r.text_at(r.record.net.as_ref()?.socket_type);
        Addr "addr" Text |r| r.text_at(r.record.net.as_ref()?.addr);
        Port "port" Number |r| r.record.net.as_ref()?.port.map(i64::from);
        SockPath "sock_path" Text |r| r.text_at(r.record.net.as_ref()?.path);
        Domain "domain" Text |r| r.text_at(r.record.net.as_ref()?.domain);
    }
    Exit |r| absent(r.record.exit.is_none()) => {
        ExitCode "exit_code" Number |r| r.record.exit.as_ref()?.code.map(i64::from);
        ExitSignal "exit_signal" Number |r| r.record.exit.as_ref()?.signal.map(i64::from);
        ExitCore "exit_core" Number |r| flag(r.record.exit.as_ref()?.core);
        Duration "duration_ns" Number |r| Some(clamp(r.record.exit.as_ref()?.duration_ns));
    }
    Rest |r| absent(r.rest() == [0; 4]) => {
        Guard "guard" Text |r| r.text_at(r.record.guard);
        Approval "approval" Text |r| r.text_at(r.record.approval);
        Lifecycle "lifecycle" Text |r| r.text_at(r.record.lifecycle);
        Loss "loss" Text |r| r.text_at(r.record.loss);
    }
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

    /// Touches the memory of what is particular to a record; the value means nothing.
    pub(super) fn warm(&self) -> u64 {
        let touched = |index| self.text_at(index).and_then(|text| text.bytes().next());
        let process = self.batch.process(self.record);
        let exe = process.and_then(|process| touched(process.exe));
        let path = self
            .record
            .file
            .as_ref()
            .and_then(|file| touched(file.path));
        let ends = self.record.seq.wrapping_add(self.record.loss.into());
        ends.wrapping_add(exe.map_or(0, u64::from) + path.map_or(0, u64::from))
    }

    /// The name of what stands once in a batch, for all its records. No two batches that are there at the same time have an address.
    fn shared(&self, index: u32) -> Same {
        let batch = std::ptr::from_ref(self.batch).addr() as u64;
        Some([batch, index.into(), 0, 0])
    }

    /// The name of who acted. What differs between the actions of one process is a part of it.
    fn actor(&self) -> Same {
        let record = self.record;
        if record.argv_truncated {
            return None;
        }
        let [process, tid, comm, argv] =
            [record.process, record.tid, record.comm, record.argv].map(u64::from);
        let batch = std::ptr::from_ref(self.batch).addr() as u64;
        let delta = record.start_delta?.cast_unsigned();
        Some([batch, process << 32 | tid, comm << 32 | argv, delta])
    }

    fn rest(&self) -> [Text; 4] {
        let record = self.record;
        [record.guard, record.approval, record.lifecycle, record.loss]
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
    let mut tables = Tables::default();
    let record = Packing::new(&mut tables).record(row)?;
    match unpack(&tables.pack(&[record]))?.pop() {
        Some(event) => Ok(event),
        None => Err("there is none".to_owned()),
    }
}

/// Makes records of rows, which resemble the rows before them.
pub(super) struct Packing<'t> {
    pub(super) tables: &'t mut Tables,
    /// The text that each column had last.
    last: [Text; ALL.len()],
}

impl<'t> Packing<'t> {
    pub(super) fn new(tables: &'t mut Tables) -> Self {
        Self {
            tables,
            last: [0; ALL.len()],
        }
    }

    /// The record of a row; what is wrong with it in words, where it is none.
    pub(super) fn record(&mut self, row: &impl Row) -> Result<Record, String> {
        let number = |column: C| row.number(column);
        let named = |column: C| {
            row.bytes(column)
                .ok_or_else(|| format!("its {} is missing", COLUMNS[column as usize].name))
        };
        let there = |column: C| {
            row.number(column)
                .ok_or_else(|| format!("its {} is missing", COLUMNS[column as usize].name))
        };
        let session = Session {
            host: self.text(row, C::Host),
            boot_id: self.text(row, C::BootId),
            id: self.text(row, C::SessionId),
            name: self.text(row, C::Session),
            policy: self.text(row, C::Policy),
            monitor: known(&Mode::ALL, named(C::Mode)?, Mode::name)? == Mode::Monitor,
            v: narrow(there(C::V)?)?,
        };
        if session.id == 0 {
            named(C::SessionId)?;
        }
        let rule = if row.bytes(C::RuleId).is_some() {
            let rule = Rule {
                id: self.text(row, C::RuleId),
                layer: self.text(row, C::RuleLayer),
                source: self.text(row, C::RuleSource),
            };
            self.tables.rule(rule)
        } else {
            0
        };
        let process = match number(C::Pid) {
            Some(pid) => {
                let number = |column: C| number(column).unwrap_or_default();
                let actor = Actor {
                    pid: narrow(pid)?,
                    ppid: narrow(number(C::Ppid))?,
                    start_ns: number(C::Start).cast_unsigned(),
                    parent_start_ns: number(C::ParentStart).cast_unsigned(),
                    exe: self.text(row, C::Exe),
                    cwd: self.text(row, C::Cwd),
                    cgroup: self.text(row, C::Cgroup),
                    uid: narrow(number(C::Uid))?,
                    gid: narrow(number(C::Gid))?,
                };
                self.tables.process(actor)
            }
            None => 0,
        };
        let kind = known(&Kind::ALL, named(C::Kind)?, Kind::name)?;
        let verdict = known(&Verdict::ALL, named(C::Verdict)?, Verdict::name)?;
        Ok(Record {
            session: self.tables.session(session),
            process,
            rule,
            kind: kind as u8,
            verdict: verdict as u8,
            seq: there(C::Seq)?.cast_unsigned(),
            time: there(C::Time)?,
            ktime: there(C::Ktime)?,
            count: there(C::Count)?.cast_unsigned(),
            errno: number(C::Errno).map(narrow).transpose()?,
            id: self.text(row, C::Id),
            fold: self.text(row, C::Fold),
            tid: narrow(number(C::Tid).unwrap_or_default())?,
            comm: self.text(row, C::Comm),
            argv: self.text(row, C::Argv),
            argv_truncated: number(C::ArgvTruncated) == Some(1),
            start_delta: number(C::StartDelta),
            file: self.object(row, FILE),
            target: self.object(row, TARGET).map(Box::new),
            net: match row.bytes(C::Family) {
                Some(_) => Some(Box::new(Peer {
                    family: self.text(row, C::Family),
                    socket_type: self.text(row, C::SockType),
                    addr: self.text(row, C::Addr),
                    port: number(C::Port).map(narrow).transpose()?,
                    path: self.text(row, C::SockPath),
                    domain: self.text(row, C::Domain),
                })),
                None => None,
            },
            exit: match number(C::Duration) {
                Some(duration) => Some(Box::new(Ended {
                    code: number(C::ExitCode).map(narrow).transpose()?,
                    signal: number(C::ExitSignal).map(narrow).transpose()?,
                    core: number(C::ExitCore) == Some(1),
                    duration_ns: duration.cast_unsigned(),
                })),
                None => None,
            },
            guard: self.text(row, C::Guard),
            approval: self.text(row, C::Approval),
            lifecycle: self.text(row, C::Lifecycle),
            loss: self.text(row, C::Loss),
        })
    }

    fn text(&mut self, row: &impl Row, column: C) -> Text {
        let Some(bytes) = row.bytes(column) else {
            return 0;
        };
        let last = &mut self.last[column as usize];
        if !self.tables.is(*last, bytes) {
            *last = row.text(column).map_or(0, |text| self.tables.text(text));
        }
        *last
    }

    fn object(&mut self, row: &impl Row, columns: [C; 6]) -> Option<Object> {
        let [path, truncated, dev, inode, access, flags] = columns;
        let bits = |column| row.number(column).unwrap_or_default().cast_unsigned();
        row.bytes(path)?;
        Some(Object {
            path: self.text(row, path),
            truncated: row.number(truncated) == Some(1),
            dev: bits(dev),
            inode: bits(inode),
            access: self.text(row, access),
            flags: self.text(row, flags),
        })
    }
}

const FILE: [C; 6] = [
    C::Path,
    C::PathTruncated,
    C::Dev,
    C::Inode,
    C::Access,
    C::Flags,
];
const TARGET: [C; 6] = [
    C::TargetPath,
    C::TargetTruncated,
    C::TargetDev,
    C::TargetInode,
    C::TargetAccess,
    C::TargetFlags,
];

fn known<T: Copy>(all: &[T], wanted: &[u8], name: fn(T) -> &'static str) -> Result<T, String> {
    all.iter()
        .copied()
        .find(|value| name(*value).as_bytes() == wanted)
        .ok_or_else(|| format!("{:?} is not known here", String::from_utf8_lossy(wanted)))
}

fn narrow<T: TryFrom<i64>>(value: i64) -> Result<T, String> {
    T::try_from(value).map_err(|_| format!("{value} is out of range"))
}
