//! Elastic Common Schema 9: what it has fields for under its names, everything else below `agentwatch`.

use serde_json::{Value, json};

use super::{command_line, directory, errno, name, object, plain, process_id};
use crate::event::model::{Event, File, Kind, Lifecycle, Verdict};

/// Version of the schema.
pub const VERSION: &str = "9.0.0";

pub(super) fn value(event: &Event) -> Value {
    let rule = event.rule.as_ref();
    let net = event.net.as_ref();
    object([
        ("@timestamp", json!(event.time.to_string())),
        ("ecs", json!({"version": VERSION})),
        ("event", categories(event)),
        (
            "host",
            json!({"name": event.host, "hostname": event.host, "boot": {"id": event.boot_id}}),
        ),
        ("process", process(event)),
        (
            "user",
            plain(&user(event).map(|uid| json!({"id": uid.to_string()}))),
        ),
        (
            "group",
            plain(
                &event
                    .process
                    .as_ref()
                    .map(|process| json!({"id": process.gid.to_string()})),
            ),
        ),
        ("file", event.file.as_ref().map_or(Value::Null, file)),
        (
            if event.kind == Kind::Bind {
                "source"
            } else {
                "destination"
            },
            net.map_or(Value::Null, |net| {
                let address = net
                    .addr
                    .as_ref()
                    .or(net.domain.as_ref())
                    .or(net.path.as_ref());
                object([
                    ("ip", plain(&net.addr)),
                    ("port", plain(&net.port)),
                    ("domain", plain(&net.domain)),
                    ("address", plain(&address)),
                ])
            }),
        ),
        (
            "network",
            net.map_or(Value::Null, |net| {
                let ip = net.family.starts_with("inet");
                object([
                    (
                        "type",
                        json!(match net.family.as_str() {
                            "inet" => "ipv4",
                            "inet6" => "ipv6",
                            other => other,
                        }),
                    ),
                    (
                        "transport",
                        json!(match (ip, net.socket_type.as_str()) {
                            (true, "stream") => "tcp",
                            (true, "dgram") => "udp",
                            _ => "",
                        }),
                    ),
                    (
                        "direction",
                        json!(if event.kind == Kind::Bind {
                            "ingress"
                        } else {
                            "egress"
                        }),
                    ),
                ])
            }),
        ),
        (
            "dns",
            match (event.kind, net.and_then(|net| net.domain.as_ref())) {
                (Kind::Dns, Some(domain)) => json!({"question": {"name": domain}}),
                _ => Value::Null,
            },
        ),
        (
            "rule",
            rule.map_or(Value::Null, |rule| {
                object([
                    ("id", json!(rule.id)),
                    ("name", json!(rule.source)),
                    ("ruleset", json!(event.session.policy)),
                    ("category", json!(rule.layer.name())),
                ])
            }),
        ),
        (
            "error",
            errno(event).map_or(Value::Null, |code| json!({"code": code})),
        ),
        ("agentwatch", own(event)),
    ])
}

fn categories(event: &Event) -> Value {
    let (category, mut kinds): (&[&str], Vec<&str>) = match event.kind {
        Kind::Session => (
            &["session"],
            vec![match &event.lifecycle {
                Some(Lifecycle::Started { .. }) => "start",
                Some(Lifecycle::Ended { .. }) => "end",
                _ => "info",
            }],
        ),
        Kind::Exec => (&["process"], vec!["start"]),
        Kind::Exit => (&["process"], vec!["end"]),
        Kind::Open => (&["file"], vec!["access"]),
        Kind::Create => (&["file"], vec!["creation"]),
        Kind::Delete => (&["file"], vec!["deletion"]),
        Kind::Rename | Kind::Link | Kind::Attr => (&["file"], vec!["change"]),
        Kind::Connect => (&["network"], vec!["connection", "start"]),
        Kind::Bind => (&["network"], vec!["info"]),
        Kind::Dns => (&["network"], vec!["protocol"]),
        Kind::Guard => (&["process"], vec!["info"]),
        Kind::Approval => (&["configuration"], vec!["info"]),
        Kind::ToolCall => (&["api"], vec!["info"]),
        Kind::Loss => (&[], vec!["error"]),
    };
    match (category, event.verdict) {
        (&["network"], Verdict::Allowed) => kinds.push("allowed"),
        (&["network" | "api"], Verdict::Denied | Verdict::Held) => kinds.push("denied"),
        _ => {}
    }
    let refused = matches!(event.verdict, Verdict::Denied | Verdict::Held);
    object([
        ("id", json!(event.id)),
        (
            "kind",
            json!(match (event.kind, event.verdict) {
                (Kind::Loss, _) => "pipeline_error",
                (_, Verdict::Allowed) => "event",
                _ => "alert",
            }),
        ),
        ("category", json!(category)),
        ("type", json!(kinds)),
        ("action", json!(event.kind.name())),
        (
            "outcome",
            json!(if refused || event.errno.is_some() {
                "failure"
            } else {
                "success"
            }),
        ),
        (
            "reason",
            plain(
                &event
                    .rule
                    .as_ref()
                    .filter(|_| event.verdict != Verdict::Allowed)
                    .map(|rule| &rule.id),
            ),
        ),
        ("sequence", json!(event.seq)),
        (
            "duration",
            plain(&event.exit.as_ref().map(|exit| exit.duration_ns)),
        ),
        (
            "severity",
            json!(match event.verdict {
                Verdict::Denied => 73,
                Verdict::Held | Verdict::Audited => 47,
                Verdict::Allowed => 21,
            }),
        ),
        ("module", json!("agentwatch")),
        ("dataset", json!("agentwatch.events")),
        ("provider", json!("kernel")),
    ])
}

fn user(event: &Event) -> Option<u32> {
    match (&event.process, &event.lifecycle) {
        (Some(process), _) => Some(process.uid),
        (None, Some(Lifecycle::Started { uid, .. } | Lifecycle::Reloaded { uid, .. })) => {
            Some(*uid)
        }
        _ => None,
    }
}

fn process(event: &Event) -> Value {
    let Some(process) = &event.process else {
        return Value::Null;
    };
    let parent = if process.ppid == 0 {
        Value::Null
    } else {
        object([
            ("pid", json!(process.ppid)),
            (
                "entity_id",
                if process.parent_start_ns == 0 {
                    Value::Null
                } else {
                    json!(process_id(event, process.ppid, process.parent_start_ns))
                },
            ),
        ])
    };
    object([
        ("pid", json!(process.pid)),
        (
            "entity_id",
            json!(process_id(event, process.pid, process.start_ns)),
        ),
        ("executable", json!(process.exe)),
        ("name", json!(name(&process.exe))),
        ("args", plain(&process.argv)),
        (
            "args_count",
            if process.argv.is_empty() || process.argv_truncated {
                Value::Null
            } else {
                json!(process.argv.len())
            },
        ),
        ("command_line", json!(command_line(&process.argv))),
        ("working_directory", json!(process.cwd)),
        (
            "start",
            plain(&process.start.map(|start| start.to_string())),
        ),
        ("thread", json!({"id": process.tid, "name": process.comm})),
        ("parent", parent),
        (
            "exit_code",
            plain(&event.exit.as_ref().and_then(|exit| exit.code)),
        ),
        (
            "end",
            if event.kind == Kind::Exit {
                json!(event.time.to_string())
            } else {
                Value::Null
            },
        ),
    ])
}

fn file(file: &File) -> Value {
    let extension = name(&file.path)
        .rsplit_once('.')
        .filter(|(stem, _)| !stem.is_empty());
    object([
        ("path", json!(file.path)),
        ("name", json!(name(&file.path))),
        ("directory", json!(directory(&file.path))),
        (
            "extension",
            plain(&extension.map(|(_, extension)| extension)),
        ),
        (
            "inode",
            if file.inode == 0 {
                Value::Null
            } else {
                json!(file.inode.to_string())
            },
        ),
    ])
}

fn own(event: &Event) -> Value {
    let file = event.file.as_ref();
    object([
        ("session", plain(&event.session)),
        ("verdict", json!(event.verdict.name())),
        ("count", json!(event.count)),
        ("fold", plain(&event.fold)),
        ("errno", plain(&event.errno)),
        ("ktime_ns", json!(event.ktime_ns)),
        (
            "cgroup",
            plain(&event.process.as_ref().map(|process| &process.cgroup)),
        ),
        ("dev", plain(&file.map(|file| file.dev))),
        ("access", plain(&file.map(|file| &file.access))),
        ("flags", plain(&file.map(|file| &file.flags))),
        ("target", plain(&event.target)),
        ("socket", plain(&event.net)),
        ("guard", plain(&event.guard)),
        (
            "signal",
            plain(&event.exit.as_ref().and_then(|exit| exit.signal)),
        ),
        ("approval", plain(&event.approval)),
        ("lifecycle", plain(&event.lifecycle)),
        ("loss", plain(&event.loss)),
    ])
}
