//! One event of every kind, as the daemon would make it: the golden samples, and what tests begin from.

use super::model::{
    Approval, Counts, Coverage, Decider, DeciderKind, Event, Exit, File, Guard, Kind, Layer,
    Lifecycle, Loss, Mode, Net, PolicyRecord, Process, RuleRef, SCHEMA_VERSION, Scope, SessionRef,
    Step, Verdict,
};
use crate::policy::model::{Rule, Task};

/// The sample of a kind.
#[must_use]
pub fn sample(kind: Kind) -> Event {
    let mut event = base(kind);
    match kind {
        Kind::Session => {
            event.seq = 0;
            event.process = None;
            event.lifecycle = Some(Lifecycle::Started {
                coverage: Coverage::Enforcing,
                missing: Vec::new(),
                backends: vec!["bpf-lsm".into(), "cgroup".into()],
                cgroup: "/agentwatch/fix-parser".into(),
                uid: 1000,
                command: vec!["agent".into(), "--task".into(), "fix the parser".into()],
                origin: "run".into(),
                policy: Some(Box::new(PolicyRecord {
                    task: Task {
                        goal: Some("fix the parser".into()),
                        ..Task::default()
                    },
                    rules: vec![Rule {
                        id: "files.deny[2]".into(),
                        layer: Layer::Task,
                        source: "task.toml:9".into(),
                        text: "/etc/shadow".into(),
                    }],
                    ..PolicyRecord::default()
                })),
            });
        }
        Kind::Exec => event.file = Some(file("/usr/bin/cat", &["exec"])),
        Kind::Exit => {
            event.exit = Some(Exit {
                code: Some(1),
                signal: None,
                core: false,
                duration_ns: 1_250_000_000,
            });
        }
        Kind::Open => {
            deny(&mut event, "files.deny[2]", "task.toml:9");
            event.file = Some(File {
                flags: vec!["O_CLOEXEC".into()],
                ..file("/etc/shadow", &["read"])
            });
        }
        Kind::Create => event.file = Some(file("/work/src/lexer.rs", &["create", "write"])),
        Kind::Delete => event.file = Some(file("/work/src/old.rs", &["delete"])),
        Kind::Rename | Kind::Link => {
            event.file = Some(file("/work/src/lexer.rs", &["write"]));
            event.target = Some(file("/work/src/tokens.rs", &["create"]));
        }
        Kind::Attr => event.file = Some(file("/work/run.sh", &["attr"])),
        Kind::Connect => event.net = Some(net("192.0.2.7", 443, Some("example.org"))),
        Kind::Bind => {
            deny(&mut event, "network.default", "");
            event.net = Some(net("127.0.0.1", 8080, None));
        }
        Kind::Dns => {
            event.net = Some(Net {
                family: "inet".into(),
                socket_type: "dgram".into(),
                domain: Some("example.org".into()),
                ..Net::default()
            });
        }
        Kind::Guard => {
            deny(&mut event, "guard.signal", "");
            event.guard = Some(Guard {
                operation: "signal".into(),
                pid: Some(812),
                detail: Some("9".into()),
            });
        }
        Kind::Approval => {
            event.verdict = Verdict::Held;
            event.rule = Some(RuleRef {
                id: "network.approve[0]".into(),
                layer: Layer::Task,
                source: "task.toml:14".into(),
            });
            event.net = Some(net("198.51.100.4", 443, Some("example.net")));
            event.approval = Some(Approval {
                id: "0a1b2c3d".into(),
                step: Step::Approved,
                action: Kind::Connect,
                by: Some(Decider {
                    kind: DeciderKind::User,
                    uid: Some(1000),
                    name: Some("user".into()),
                }),
                scope: Some(Scope::For),
                until: Some(jiff::Timestamp::constant(1_795_176_600, 0)),
                reason: Some("a known mirror".into()),
                finding: None,
                waited_ns: 12_000_000_000,
                tasks: 1,
                tries: 0,
            });
        }
        Kind::ToolCall => {}
        Kind::Loss => {
            event.seq = 0;
            event.process = None;
            event.loss = Some(Loss {
                from: 100,
                to: 141,
                reason: "ring_full".into(),
                events: 42,
            });
        }
    }
    event
}

/// How a session ends, which has no kind of its own.
#[must_use]
pub fn ended() -> Event {
    let mut event = sample(Kind::Session);
    event.lifecycle = Some(Lifecycle::Ended {
        reason: "exited".into(),
        exit_code: Some(0),
        counts: Counts {
            made: 100,
            delivered: 60,
            folded: 40,
            lost: 0,
        },
    });
    event
}

fn base(kind: Kind) -> Event {
    Event {
        v: SCHEMA_VERSION,
        id: format!("019aa0c2-7d00-7000-8000-0000000000{:02x}", kind as u8),
        seq: 42,
        // 2026-11-20T12:00:00.123456789Z, of a host that started an hour before.
        time: jiff::Timestamp::constant(1_795_176_000, 123_456_789),
        ktime_ns: 3_600_123_456_789,
        host: "build-7".into(),
        boot_id: "6f0c2f0e-3b52-4a7c-9d61-0d5a3f6f8f11".into(),
        session: SessionRef {
            id: "019aa0c2-7c00-7000-8000-000000000001".into(),
            name: "fix-parser".into(),
            policy: format!("sha256:{}", "5d".repeat(32)),
            mode: Mode::Enforce,
        },
        kind,
        verdict: Verdict::Allowed,
        errno: None,
        count: 1,
        fold: None,
        rule: None,
        process: Some(Process {
            pid: 4711,
            tid: 4711,
            ppid: 4700,
            start_ns: 3_600_000_000_000,
            start: Some(jiff::Timestamp::constant(1_795_176_000, 0)),
            parent_start_ns: 3_500_000_000_000,
            exe: "/usr/bin/cat".into(),
            comm: "cat".into(),
            argv: vec!["cat".into(), "/etc/shadow".into()],
            argv_truncated: false,
            cwd: "/work".into(),
            uid: 1000,
            gid: 1000,
            cgroup: "/agentwatch/fix-parser".into(),
        }),
        file: None,
        target: None,
        net: None,
        guard: None,
        approval: None,
        exit: None,
        lifecycle: None,
        loss: None,
    }
}

fn deny(event: &mut Event, rule: &str, source: &str) {
    let layer = if source.is_empty() {
        Layer::Default
    } else {
        Layer::Task
    };
    event.verdict = Verdict::Denied;
    event.errno = Some(13);
    event.rule = Some(RuleRef {
        id: rule.into(),
        layer,
        source: source.into(),
    });
}

fn file(path: &str, access: &[&str]) -> File {
    File {
        path: path.into(),
        dev: 8 << 20 | 1,
        inode: 1311,
        access: access.iter().map(|access| (*access).to_owned()).collect(),
        ..File::default()
    }
}

fn net(addr: &str, port: u16, domain: Option<&str>) -> Net {
    Net {
        family: "inet".into(),
        socket_type: "stream".into(),
        addr: Some(addr.into()),
        port: Some(port),
        path: None,
        domain: domain.map(str::to_owned),
    }
}
