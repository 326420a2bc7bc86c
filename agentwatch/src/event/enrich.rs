//! From a kernel record to an event: names for numbers, the host's paths, the process's story, the rule's text.
//!
//! Where no LSM hook decided (Landlock sessions), the policy is asked here which rule it was.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    decode::{Decoded, until_nul},
    flags::open_flags,
    host::{Host, wall},
    model::{Event, Exit, File, Guard, Kind, Mode, Net, Process, SessionRef, Verdict},
    process::{Known, ProcessKey, Processes},
};
use crate::{
    kernel::files::{self, HostMounts, Mounts},
    policy::{
        explain::{decide_file, decide_net},
        model::{Access, Compiled, Effect, NetOp},
    },
};
use agentwatch_common::{
    event::{Record, access, kind, state, verdict},
    policy::guard,
};

/// What enriching needs of a session.
pub struct Subject {
    /// Key of the policy's rules in the kernel.
    pub number: u32,
    pub reference: SessionRef,
    pub policy: Arc<Compiled>,
    /// What was in force before: records can still be on their way that it decided.
    pub before: Vec<Before>,
    /// Path of a cgroup by its id, for those that have been seen.
    pub cgroups: HashMap<u64, Arc<str>>,
    /// Whether file rules are held by Landlock.
    pub landlock: bool,
    /// What only its processes had mounted when it began, named as the host would.
    pub private: Mounts,
}

/// A policy that was in force.
pub struct Before {
    pub number: u32,
    pub reference: SessionRef,
    pub policy: Arc<Compiled>,
}

/// Policies that are no longer in force and are remembered, a session.
const BEFORE: usize = 4;

impl Subject {
    /// Another policy is in force from now on.
    pub fn reload(&mut self, number: u32, reference: SessionRef, policy: Arc<Compiled>) {
        if self.before.len() >= BEFORE {
            self.before.remove(0);
        }
        self.before.push(Before {
            number: std::mem::replace(&mut self.number, number),
            reference: std::mem::replace(&mut self.reference, reference),
            policy: std::mem::replace(&mut self.policy, policy),
        });
    }

    /// The session and the policy as they were when this policy decided; `None` for one that has been forgotten.
    pub fn decided_by(&self, number: u32) -> Option<(&SessionRef, &Arc<Compiled>)> {
        if number == self.number {
            return Some((&self.reference, &self.policy));
        }
        self.before
            .iter()
            .find(|before| before.number == number)
            .map(|before| (&before.reference, &before.policy))
    }
}

/// Turns records into events.
pub struct Enricher {
    host: Host,
    mounts: HostMounts,
    processes: Processes,
    cgroup_root: PathBuf,
}

impl Enricher {
    pub fn new(cgroup_root: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            host: Host::read()?,
            mounts: HostMounts::read()?,
            processes: Processes::default(),
            cgroup_root,
        })
    }

    /// Goes by the host's mounts as they are now; to be called before the records that were taken together become events.
    pub fn refresh_mounts(&mut self) {
        if let Err(error) = self.mounts.refresh() {
            tracing::warn!(
                error = format!("{error:#}"),
                "paths are named by the mounts of before"
            );
        }
    }

    /// What is known of a process that lives.
    pub fn process_of(&self, pid: u32) -> Known {
        self.processes.living(pid)
    }

    /// The host's name of a file from its device and its path inside the file system. A file that has none is named by its device.
    fn name(&self, subject: &Subject, dev: u32, inside: &Path) -> PathBuf {
        self.mounts
            .find(dev, inside)
            .or_else(|| subject.private.find(dev, inside))
            .unwrap_or_else(|| files::name_by_device(dev, inside))
    }

    /// An event that the daemon makes itself.
    pub fn own(&self, session: &SessionRef, kind: Kind) -> Event {
        self.host.event(session, kind)
    }

    /// The event that a record tells of; `None` for what only ancestry needs, and for tags that are not known.
    pub fn event(&mut self, decoded: &Decoded<'_>, subject: &mut Subject) -> Option<Event> {
        let record = &decoded.record;
        let key: ProcessKey = (record.pid, record.start);
        if record.kind == kind::FORK {
            self.processes
                .forked(key, (record.ppid, record.parent_start));
            return None;
        }
        let kind = kind_of(record.kind)?;
        if kind == Kind::Exec && record.errno == 0 && record.verdict != verdict::DENIED {
            self.processes
                .executed(key, self.executed(decoded, subject));
        }
        let time = wall(record.ktime);
        let process = self.process(record, key, time, subject);
        let decided = subject
            .decided_by(record.policy)
            .map(|(reference, policy)| (reference.clone(), policy.clone()));
        let (reference, policy) = match decided {
            Some((reference, policy)) => (reference, Some(policy)),
            None => (subject.reference.clone(), None),
        };
        let mut event = self.own(&reference, kind);
        event.id = format!("{}-{}", reference.id, record.seq);
        event.seq = record.seq;
        event.ktime_ns = record.ktime;
        event.time = time;
        // What waits has not ended yet.
        event.errno =
            (record.errno != 0 && record.verdict != verdict::HELD).then_some(record.errno);
        event.verdict = match record.verdict {
            verdict::DENIED => Verdict::Denied,
            verdict::HELD => Verdict::Held,
            verdict::AUDITED => Verdict::Audited,
            _ => Verdict::Allowed,
        };
        event.rule = policy
            .as_ref()
            .and_then(|policy| policy.rules.get(record.rule as usize))
            .map(crate::policy::model::Rule::reference);
        match kind {
            Kind::Exit => event.exit = Some(exit_of(record)),
            Kind::Connect | Kind::Bind => {
                let mut net = net_of(decoded, &process);
                if decoded.record.inode != 0 {
                    // A UNIX socket that was found by its file.
                    let path = self.name(subject, record.dev, &decoded.path);
                    net.path = Some(path.to_string_lossy().into_owned());
                }
                event.net = Some(net);
            }
            Kind::Guard => {
                event.guard = Some(guard_of(record));
                if record.flags == agentwatch_common::event::GUARD_SOCKET {
                    // It was to be made, and has no address.
                    event.net = Some(Net {
                        addr: None,
                        port: None,
                        ..net_of(decoded, &process)
                    });
                } else if record.path_len > 0 || record.dev != 0 {
                    event.file = Some(File {
                        path: self
                            .name(subject, record.dev, &decoded.path)
                            .to_string_lossy()
                            .into_owned(),
                        ..File::default()
                    });
                }
            }
            Kind::Exec => event.file = Some(self.exec_file(decoded, subject)),
            _ => event.file = Some(self.file(decoded, subject)),
        }
        if matches!(kind, Kind::Rename | Kind::Link) {
            event.target = Some(self.target(decoded, subject));
        }
        event.process = Some(process);
        if matches!(kind, Kind::Connect | Kind::Bind) {
            judged_before(&mut event, record, subject);
        }
        if subject.landlock
            && event.file.is_some()
            && let Some(policy) = &policy
        {
            judge(&mut event, record, policy);
        }
        if kind == Kind::Exit {
            self.processes.ended(key);
        }
        Some(event)
    }

    fn executed(&self, decoded: &Decoded<'_>, subject: &Subject) -> Known {
        let record = &decoded.record;
        let argv: Vec<String> = decoded
            .name
            .strip_suffix(b"\0")
            .unwrap_or(decoded.name)
            .split(|byte| *byte == 0)
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect();
        Known {
            exe: self
                .name(subject, record.dev, &decoded.path)
                .to_string_lossy()
                .into(),
            argv: argv.into(),
            argv_truncated: record.state & state::ARGV_TRUNCATED != 0,
            cwd: self
                .name(subject, record.second_dev, &decoded.second)
                .to_string_lossy()
                .into(),
        }
    }

    fn process(
        &mut self,
        record: &Record,
        key: ProcessKey,
        time: Timestamp,
        subject: &mut Subject,
    ) -> Process {
        let known = self
            .processes
            .acting(key, (record.ppid, record.parent_start))
            .clone();
        let root = &self.cgroup_root;
        let cgroup = subject
            .cgroups
            .entry(record.cgroup)
            .or_insert_with(|| cgroup_path(root, record.cgroup).into());
        Process {
            pid: record.pid,
            tid: record.tid,
            ppid: record.ppid,
            start_ns: record.start,
            start: Some(started(time, record)),
            parent_start_ns: record.parent_start,
            exe: known.exe.to_string(),
            comm: String::from_utf8_lossy(until_nul(&record.comm)).into_owned(),
            argv: if matches!(record.kind, kind::EXEC) {
                known.argv.to_vec()
            } else {
                Vec::new()
            },
            argv_truncated: record.kind == kind::EXEC && known.argv_truncated,
            cwd: known.cwd.to_string(),
            uid: record.uid,
            gid: record.gid,
            cgroup: cgroup.to_string(),
        }
    }

    fn exec_file(&self, decoded: &Decoded<'_>, subject: &Subject) -> File {
        let mut file = self.file(decoded, subject);
        file.access = vec!["exec".to_owned()];
        file.flags.clear();
        file
    }

    fn target(&self, decoded: &Decoded<'_>, subject: &Subject) -> File {
        let record = &decoded.record;
        let found = self.name(subject, record.second_dev, &decoded.second);
        let path = if record.state & state::NAME_ONLY != 0 {
            let first = until_nul(decoded.name).len() + 1;
            named_at(&found, decoded.name.get(first..).unwrap_or_default())
        } else {
            found
        };
        File {
            path: path.to_string_lossy().into_owned(),
            dev: if record.state & state::NAME_ONLY != 0 {
                0
            } else {
                u64::from(record.second_dev)
            },
            inode: record.second_inode,
            ..File::default()
        }
    }

    fn file(&self, decoded: &Decoded<'_>, subject: &Subject) -> File {
        let record = &decoded.record;
        let found = self.name(subject, record.dev, &decoded.path);
        let only_name = record.state & state::NAME_ONLY != 0;
        let path = if only_name {
            named_at(&found, decoded.name)
        } else {
            found
        };
        File {
            path: path.to_string_lossy().into_owned(),
            path_truncated: record.state & state::PATH_TRUNCATED != 0,
            dev: if only_name { 0 } else { u64::from(record.dev) },
            inode: if only_name { 0 } else { record.inode },
            access: access_names(record),
            flags: if record.kind == kind::OPEN {
                open_flags(record.flags)
            } else {
                Vec::new()
            },
        }
    }
}

/// The wall time of a process's start, by the same look at the clocks as its action's, so that the difference of the two is
/// exactly the kernel's.
fn started(time: Timestamp, record: &Record) -> Timestamp {
    let before = i64::try_from(record.ktime.saturating_sub(record.start)).unwrap_or(i64::MAX);
    time.checked_sub(SignedDuration::from_nanos(before))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A name that starts at a directory, made absolute and clean.
fn named_at(directory: &Path, name: &[u8]) -> PathBuf {
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(until_nul(name));
    crate::policy::path::clean(&directory.join(name))
}

/// What was let through is recorded when it ends: another policy may have come in force since it was judged. One that
/// would have refused it did not judge it.
fn judged_before(event: &mut Event, record: &Record, subject: &Subject) {
    if subject.before.is_empty() || event.verdict != Verdict::Allowed {
        return;
    }
    let Some((address, port)) = event
        .net
        .as_ref()
        .and_then(|net| Some((net.addr.as_ref()?.parse::<IpAddr>().ok()?, net.port?)))
    else {
        return;
    };
    let op = if record.kind == kind::BIND {
        NetOp::Listen
    } else {
        NetOp::Connect
    };
    let allows = |policy: &Compiled| {
        let decision = decide_net(policy, op, address, port);
        (decision.effect == Effect::Allow).then_some(decision.rule)
    };
    if subject
        .decided_by(record.policy)
        .is_none_or(|(reference, policy)| {
            reference.mode == Mode::Monitor || allows(policy).is_some()
        })
    {
        return;
    }
    for before in subject.before.iter().rev() {
        if let Some(rule) = allows(&before.policy) {
            event.session = before.reference.clone();
            event.rule = before
                .policy
                .rules
                .get(rule as usize)
                .map(crate::policy::model::Rule::reference);
            return;
        }
    }
}

/// Finds the rule for a session whose files Landlock holds: it says no, and names none.
fn judge(event: &mut Event, record: &Record, policy: &Compiled) {
    let Some(file) = &event.file else { return };
    let rights: Vec<Access> = [
        (access::READ | access::LIST, Access::Read),
        (
            access::WRITE | access::CREATE | access::DELETE | access::ATTR,
            Access::Write,
        ),
        (access::EXEC, Access::Exec),
    ]
    .into_iter()
    .filter(|(bits, _)| record.access & bits != 0)
    .map(|(_, right)| right)
    .collect();
    let path = Path::new(&file.path);
    let undecided = record.verdict == verdict::UNDECIDED;
    // A link may lead elsewhere: where the name is refused, what it leads to is judged too.
    let resolved = if undecided {
        files::resolve_cached(path)
    } else {
        None
    };
    let target = event
        .target
        .as_ref()
        .map(|target| PathBuf::from(&target.path));
    let path = path.to_owned();
    for right in rights {
        for path in [Some(&path), resolved.as_ref(), target.as_ref()]
            .into_iter()
            .flatten()
        {
            let decision = decide_file(policy, right, path);
            let rule = policy
                .rules
                .get(decision.rule as usize)
                .map(crate::policy::model::Rule::reference);
            if decision.effect == Effect::Allow {
                if event.rule.is_none() {
                    event.rule = rule;
                }
                continue;
            }
            if undecided {
                event.verdict = Verdict::Denied;
                event.rule = rule;
                return;
            }
            if event.session.mode == Mode::Monitor
                && event.verdict == Verdict::Allowed
                && record.errno == 0
            {
                event.verdict = Verdict::Audited;
                event.rule = rule;
                return;
            }
        }
    }
}

/// What a fold's key says of its first event.
pub fn folded(key: &agentwatch_common::event::FoldKey) -> (Kind, Verdict) {
    let verdict = match (key.what >> 16) & 0xff {
        verdict::DENIED => Verdict::Denied,
        verdict::HELD => Verdict::Held,
        verdict::AUDITED => Verdict::Audited,
        _ => Verdict::Allowed,
    };
    (kind_of(key.what >> 24).unwrap_or(Kind::Open), verdict)
}

pub fn kind_of(tag: u32) -> Option<Kind> {
    Some(match tag {
        kind::EXEC => Kind::Exec,
        kind::EXIT => Kind::Exit,
        kind::OPEN => Kind::Open,
        kind::CREATE => Kind::Create,
        kind::DELETE => Kind::Delete,
        kind::RENAME => Kind::Rename,
        kind::LINK => Kind::Link,
        kind::ATTR => Kind::Attr,
        kind::CONNECT => Kind::Connect,
        kind::BIND => Kind::Bind,
        kind::GUARD => Kind::Guard,
        _ => return None,
    })
}

fn guard_of(record: &Record) -> Guard {
    let operation = guard::NAMES.get(record.flags as usize);
    let detail = match record.flags {
        guard::CAPABILITY => Some(capability(record.inode)),
        guard::SIGNAL | guard::BPF | guard::KEYRING => Some(record.inode.to_string()),
        _ => None,
    };
    Guard {
        operation: operation.copied().unwrap_or("socket").to_owned(),
        pid: u32::try_from(record.second_inode)
            .ok()
            .filter(|pid| *pid != 0),
        detail,
    }
}

/// A capability by its name in capabilities(7).
fn capability(number: u64) -> String {
    /// From 0 (include/uapi/linux/capability.h).
    const NAMES: [&str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];
    usize::try_from(number)
        .ok()
        .and_then(|number| NAMES.get(number))
        .map_or_else(|| number.to_string(), |name| format!("CAP_{name}"))
}

fn exit_of(record: &Record) -> Exit {
    // As wait(2) gives it: the signal in the low seven bits, then whether there is a core, then the code.
    let signal = (record.flags & 0x7f).cast_signed();
    Exit {
        code: (signal == 0).then_some(((record.flags >> 8) & 0xff).cast_signed()),
        signal: (signal != 0).then_some(signal),
        core: record.flags & 0x80 != 0,
        duration_ns: record.duration,
    }
}

fn net_of(decoded: &Decoded<'_>, process: &Process) -> Net {
    const AF_UNIX: u16 = 1;
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    let record = &decoded.record;
    let socket_type = match record.socket_type {
        0 => String::new(),
        1 => "stream".to_owned(),
        2 => "dgram".to_owned(),
        3 => "raw".to_owned(),
        5 => "seqpacket".to_owned(),
        other => other.to_string(),
    };
    let mut net = Net {
        socket_type,
        ..Net::default()
    };
    let address = Ipv6Addr::from(record.addr);
    match record.family {
        AF_INET => {
            net.family = "inet".to_owned();
            net.addr = Some(
                address
                    .to_ipv4_mapped()
                    .map_or(IpAddr::V6(address), IpAddr::V4)
                    .to_string(),
            );
            net.port = Some(record.port);
        }
        AF_INET6 => {
            net.family = "inet6".to_owned();
            // An IPv4 peer on an IPv6 socket is shown as what it is.
            net.addr = Some(address.to_canonical().to_string());
            net.port = Some(record.port);
        }
        AF_UNIX => {
            net.family = "unix".to_owned();
            net.path = Some(match decoded.name.split_first() {
                // An abstract name: its bytes after the NUL, which may hold further ones.
                Some((0, rest)) => {
                    let end = rest
                        .iter()
                        .rposition(|byte| *byte != 0)
                        .map_or(0, |last| last + 1);
                    format!("@{}", String::from_utf8_lossy(&rest[..end]))
                }
                Some(_) => {
                    let name = String::from_utf8_lossy(until_nul(decoded.name)).into_owned();
                    Path::new(&process.cwd)
                        .join(name)
                        .to_string_lossy()
                        .into_owned()
                }
                None => String::new(),
            });
        }
        other => net.family = other.to_string(),
    }
    net
}

fn access_names(record: &Record) -> Vec<String> {
    let mut names: Vec<&str> = [
        (access::READ, "read"),
        (access::WRITE, "write"),
        (access::EXEC, "exec"),
        (access::CREATE, "create"),
        (access::DELETE, "delete"),
        (access::ATTR, "attr"),
        (access::LIST, "list"),
        (access::TRUNCATE, "truncate"),
        (access::XATTR, "xattr"),
        (access::MAP, "map"),
        (access::RECEIVE, "receive"),
        (access::WATCH, "watch"),
    ]
    .into_iter()
    .filter(|(bit, _)| record.access & bit != 0)
    .map(|(_, name)| name)
    .collect();
    if record.kind == kind::OPEN {
        let flags = record.flags.cast_signed();
        if flags & libc::O_APPEND != 0 {
            names.push("append");
        }
        if flags & libc::O_TRUNC != 0 {
            names.push("truncate");
        }
    }
    names.into_iter().map(str::to_owned).collect()
}

/// The path of a cgroup below the mount, by its id; the id itself where it is gone already.
fn cgroup_path(root: &Path, id: u64) -> String {
    crate::session::cgroup::by_id(root, id).map_or_else(
        || format!("[{id}]"),
        |path| crate::session::cgroup::shown(root, &path),
    )
}
