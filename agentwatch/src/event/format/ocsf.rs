//! OCSF 1.8: <https://schema.ocsf.io/1.8.0>, with the profiles `host` and `security_control`.
//!
//! An action and its refusal are the same class; `action_id` and `disposition_id` say what became of it. `unmapped` has what the
//! schema has no attribute for, under our own names.

use serde_json::{Value, json};

use super::{command_line, directory, errno, name, object, plain, process_id};
use crate::event::model::{Event, File, Kind, Lifecycle, Net, Process, Verdict};

/// Version of the schema.
pub const VERSION: &str = "1.8.0";

/// Class, and the activity in it.
struct Class {
    uid: u64,
    activity: u64,
    /// What `activity` 99 stands for.
    other: Option<&'static str>,
}

const FILE: u64 = 1001;
const KERNEL: u64 = 1003;
const PROCESS: u64 = 1007;
const EVENT_LOG: u64 = 1008;
const NETWORK: u64 = 4001;
const DNS: u64 = 4003;
const LIFECYCLE: u64 = 6002;
const API: u64 = 6003;

/// `Other`, which a name goes with.
const OTHER: u64 = 99;

pub(super) fn value(event: &Event) -> Value {
    let class = class(event);
    let refused = matches!(event.verdict, Verdict::Denied | Verdict::Held);
    let mut value = object([
        ("class_uid", json!(class.uid)),
        ("category_uid", json!(class.uid / 1000)),
        ("activity_id", json!(class.activity)),
        ("activity_name", plain(&class.other)),
        ("type_uid", json!(class.uid * 100 + class.activity)),
        ("time", json!(event.time.as_millisecond())),
        ("severity_id", json!(severity(event))),
        (
            "status_id",
            json!(if refused || event.errno.is_some() {
                2
            } else {
                1
            }),
        ),
        ("status_code", plain(&errno(event))),
        ("count", json!(event.count)),
        ("metadata", metadata(event)),
        (
            "device",
            json!({"hostname": event.host, "name": event.host, "uid": event.host, "type_id": 0}),
        ),
        ("actor", actor(event)),
        ("action_id", json!(action(event.verdict))),
        ("disposition_id", json!(disposition(event.verdict))),
        (
            "is_alert",
            if event.verdict == Verdict::Allowed {
                Value::Null
            } else {
                json!(true)
            },
        ),
        (
            "policy",
            object([
                ("uid", json!(event.session.policy)),
                (
                    "is_applied",
                    if event.session.policy.is_empty() {
                        Value::Null
                    } else {
                        json!(true)
                    },
                ),
            ]),
        ),
        ("authorizations", authorizations(event)),
        ("unmapped", unmapped(event)),
    ]);
    if let Value::Object(fields) = &mut value {
        for (name, part) in of_class(event, &class) {
            if !super::is_nothing(&part) {
                fields.insert(name.to_owned(), part);
            }
        }
        // Without a rule or a digest there is no policy to name.
        if event.session.policy.is_empty() {
            fields.remove("policy");
        }
    }
    value
}

fn class(event: &Event) -> Class {
    let known = |uid, activity| Class {
        uid,
        activity,
        other: None,
    };
    let other = |uid, name| Class {
        uid,
        activity: OTHER,
        other: Some(name),
    };
    let writes = event.file.as_ref().is_some_and(|file| {
        file.access
            .iter()
            .any(|access| matches!(access.as_str(), "write" | "append" | "truncate"))
    });
    match event.kind {
        Kind::Session => match &event.lifecycle {
            Some(Lifecycle::Started { .. }) => known(LIFECYCLE, 3),
            Some(Lifecycle::Ended { .. }) => known(LIFECYCLE, 4),
            Some(Lifecycle::Resumed { .. }) => known(LIFECYCLE, 5),
            _ => known(LIFECYCLE, 8),
        },
        Kind::Exec => known(PROCESS, 1),
        Kind::Exit => known(PROCESS, 2),
        Kind::Open if writes => known(FILE, 3),
        Kind::Open => known(FILE, 14),
        Kind::Create => known(FILE, 1),
        Kind::Delete => known(FILE, 4),
        Kind::Rename => known(FILE, 5),
        Kind::Link => other(FILE, "Link"),
        Kind::Attr => known(FILE, 6),
        Kind::Connect if matches!(event.verdict, Verdict::Denied | Verdict::Held) => {
            known(NETWORK, 5)
        }
        Kind::Connect if event.errno.is_some_and(|errno| errno != libc::EINPROGRESS) => {
            known(NETWORK, 4)
        }
        Kind::Connect => known(NETWORK, 1),
        Kind::Bind => known(NETWORK, 7),
        Kind::Dns => known(DNS, 1),
        Kind::Guard => known(KERNEL, 4),
        Kind::Approval => other(API, "Approval"),
        Kind::ToolCall => other(API, "Tool Call"),
        Kind::Loss => other(EVENT_LOG, "Loss"),
    }
}

/// What only this class has.
fn of_class(event: &Event, class: &Class) -> Vec<(&'static str, Value)> {
    match class.uid {
        FILE => vec![
            (
                "file",
                event
                    .file
                    .as_ref()
                    .map_or_else(|| json!({"name": "unknown", "type_id": 0}), file),
            ),
            (
                "file_result",
                event.target.as_ref().map_or(Value::Null, file),
            ),
        ],
        PROCESS => vec![
            ("process", acted(event)),
            (
                "exit_code",
                plain(&event.exit.as_ref().and_then(|exit| exit.code)),
            ),
            (
                "duration",
                event
                    .exit
                    .as_ref()
                    .map_or(Value::Null, |exit| json!(exit.duration_ns / 1_000_000)),
            ),
            (
                "launch_type_id",
                if event.kind == Kind::Exec {
                    json!(3)
                } else {
                    Value::Null
                },
            ),
        ],
        NETWORK => {
            let place = event
                .net
                .as_ref()
                .map_or_else(|| json!({"name": "unknown"}), endpoint);
            let side = if event.kind == Kind::Bind {
                "src_endpoint"
            } else {
                "dst_endpoint"
            };
            vec![
                (side, place),
                (
                    "connection_info",
                    event
                        .net
                        .as_ref()
                        .map_or(Value::Null, |net| connection(net, event.kind)),
                ),
                ("firewall_rule", rule(event)),
            ]
        }
        DNS => vec![
            (
                "query",
                object([(
                    "hostname",
                    plain(&event.net.as_ref().and_then(|net| net.domain.as_ref())),
                )]),
            ),
            ("query_time", json!(event.time.as_millisecond())),
            (
                "dst_endpoint",
                event.net.as_ref().map_or(Value::Null, endpoint),
            ),
            ("firewall_rule", rule(event)),
        ],
        KERNEL => {
            let operation = event
                .guard
                .as_ref()
                .map_or("unknown", |guard| guard.operation.as_str());
            vec![("kernel", json!({"name": operation, "type_id": 0}))]
        }
        LIFECYCLE => vec![(
            "app",
            json!({"name": event.session.name, "uid": event.session.id, "vendor_name": "agentwatch"}),
        )],
        API => vec![
            (
                "api",
                json!({"operation": event.kind.name(), "service": {"name": "agentwatch"}}),
            ),
            ("src_endpoint", json!({"name": event.host})),
        ],
        EVENT_LOG => vec![
            ("log_name", json!("agentwatch")),
            ("log_type_id", json!(2)),
            (
                "status_detail",
                plain(
                    &event
                        .loss
                        .as_ref()
                        .map(|loss| format!("{} events: {}", loss.events, loss.reason)),
                ),
            ),
        ],
        _ => Vec::new(),
    }
}

fn severity(event: &Event) -> u64 {
    match (event.verdict, event.kind) {
        (Verdict::Denied, _) => 4,
        (Verdict::Held | Verdict::Audited, _) | (_, Kind::Loss) => 3,
        _ => 1,
    }
}

/// Allowed, denied, observed.
fn action(verdict: Verdict) -> u64 {
    match verdict {
        Verdict::Allowed => 1,
        Verdict::Denied | Verdict::Held => 2,
        Verdict::Audited => 3,
    }
}

/// Allowed, blocked, logged; `Delayed` is what a held action is.
fn disposition(verdict: Verdict) -> u64 {
    match verdict {
        Verdict::Allowed => 1,
        Verdict::Denied => 2,
        Verdict::Held => 14,
        Verdict::Audited => 17,
    }
}

fn metadata(event: &Event) -> Value {
    object([
        ("version", json!(VERSION)),
        (
            "product",
            json!({"name": "agentwatch", "vendor_name": "agentwatch", "version": env!("CARGO_PKG_VERSION")}),
        ),
        ("profiles", json!(["host", "security_control"])),
        ("uid", json!(event.id)),
        ("sequence", json!(event.seq)),
        ("correlation_uid", json!(event.session.id)),
        ("log_name", json!("agentwatch")),
        ("original_time", json!(event.time.to_string())),
    ])
}

fn actor(event: &Event) -> Value {
    let uid = match (&event.process, &event.lifecycle) {
        (Some(process), _) => Some(process.uid),
        (None, Some(Lifecycle::Started { uid, .. } | Lifecycle::Reloaded { uid, .. })) => {
            Some(*uid)
        }
        _ => None,
    };
    object([
        (
            "process",
            event
                .process
                .as_ref()
                .map_or(Value::Null, |process| self::process(event, process)),
        ),
        (
            "user",
            uid.map_or(Value::Null, |uid| json!({"uid": uid.to_string()})),
        ),
        ("session", object([("uid", json!(event.session.id))])),
        // One of these is asked for; what we make ourselves is ours.
        (
            "app_name",
            if event.process.is_none() {
                json!("agentwatch")
            } else {
                Value::Null
            },
        ),
    ])
}

fn process(event: &Event, process: &Process) -> Value {
    let parent = if process.ppid == 0 {
        Value::Null
    } else {
        object([
            ("pid", json!(process.ppid)),
            (
                "uid",
                if process.parent_start_ns == 0 {
                    Value::Null
                } else {
                    json!(process_id(event, process.ppid, process.parent_start_ns))
                },
            ),
        ])
    };
    let exe = if process.exe.is_empty() {
        Value::Null
    } else {
        json!({"name": name(&process.exe), "path": process.exe, "type_id": 1})
    };
    object([
        ("pid", json!(process.pid)),
        ("ptid", json!(process.tid)),
        (
            "uid",
            json!(process_id(event, process.pid, process.start_ns)),
        ),
        ("name", json!(name(&process.exe))),
        ("cmd_line", json!(command_line(&process.argv))),
        (
            "created_time",
            plain(&process.start.map(|start| start.as_millisecond())),
        ),
        ("working_directory", json!(process.cwd)),
        ("file", exe),
        ("user", json!({"uid": process.uid.to_string()})),
        ("parent_process", parent),
        ("session", object([("uid", json!(event.session.id))])),
    ])
}

/// The process that an exec made, or would have made; the one that ended.
fn acted(event: &Event) -> Value {
    let Some(own) = &event.process else {
        return json!({"pid": 0, "name": "unknown"});
    };
    let mut value = process(event, own);
    if let (Kind::Exec, Some(wanted), Value::Object(fields)) = (event.kind, &event.file, &mut value)
    {
        fields.insert("file".to_owned(), file(wanted));
        fields.insert("name".to_owned(), json!(name(&wanted.path)));
    }
    if let (Some(exit), Value::Object(fields)) = (&event.exit, &mut value) {
        fields.insert(
            "terminated_time".to_owned(),
            json!(event.time.as_millisecond()),
        );
        if let Some(signal) = exit.signal {
            fields.insert("xattributes".to_owned(), json!({"signal": signal}));
        }
    }
    value
}

fn file(file: &File) -> Value {
    object([
        (
            "name",
            json!(if file.path.is_empty() {
                "unknown"
            } else {
                name(&file.path)
            }),
        ),
        ("path", json!(file.path)),
        ("parent_folder", json!(directory(&file.path))),
        ("type_id", json!(0)),
        (
            "uid",
            if file.inode == 0 {
                Value::Null
            } else {
                json!(format!("{}:{}", file.dev, file.inode))
            },
        ),
    ])
}

fn endpoint(net: &Net) -> Value {
    let mut place = object([
        ("ip", plain(&net.addr)),
        ("port", plain(&net.port)),
        ("hostname", plain(&net.domain)),
        ("name", plain(&net.path)),
    ]);
    if super::is_nothing(&place) {
        place = json!({"name": net.family});
    }
    place
}

fn connection(net: &Net, kind: Kind) -> Value {
    let ip = net.family.starts_with("inet");
    let protocol = match (ip, net.socket_type.as_str()) {
        (true, "stream") => json!(6),
        (true, "dgram") => json!(17),
        _ => Value::Null,
    };
    object([
        (
            "direction_id",
            json!(if kind == Kind::Bind { 1 } else { 2 }),
        ),
        ("protocol_num", protocol),
        (
            "protocol_name",
            json!(if ip { "" } else { net.family.as_str() }),
        ),
        (
            "protocol_ver_id",
            match net.family.as_str() {
                "inet" => json!(4),
                "inet6" => json!(6),
                _ => Value::Null,
            },
        ),
    ])
}

fn rule(event: &Event) -> Value {
    event.rule.as_ref().map_or(Value::Null, |rule| {
        object([("uid", json!(rule.id)), ("name", json!(rule.source))])
    })
}

fn authorizations(event: &Event) -> Value {
    event.rule.as_ref().map_or(Value::Null, |rule| {
        json!([{
            "decision": event.verdict.name(),
            "policy": object([("uid", json!(rule.id)), ("name", json!(rule.source)), ("type", json!(rule.layer.name()))]),
        }])
    })
}

fn unmapped(event: &Event) -> Value {
    let file = event.file.as_ref();
    object([
        ("agentwatch_kind", json!(event.kind.name())),
        ("agentwatch_verdict", json!(event.verdict.name())),
        ("session_name", json!(event.session.name)),
        ("session_mode", plain(&event.session.mode)),
        ("ktime_ns", json!(event.ktime_ns)),
        ("boot_id", json!(event.boot_id)),
        ("fold", plain(&event.fold)),
        ("errno", plain(&event.errno)),
        (
            "argv",
            plain(&event.process.as_ref().map(|process| &process.argv)),
        ),
        (
            "comm",
            plain(&event.process.as_ref().map(|process| &process.comm)),
        ),
        (
            "gid",
            plain(&event.process.as_ref().map(|process| process.gid)),
        ),
        (
            "cgroup",
            plain(&event.process.as_ref().map(|process| &process.cgroup)),
        ),
        ("file_access", plain(&file.map(|file| &file.access))),
        ("file_flags", plain(&file.map(|file| &file.flags))),
        ("guard", plain(&event.guard)),
        ("approval", plain(&event.approval)),
        ("lifecycle", plain(&event.lifecycle)),
        ("loss", plain(&event.loss)),
    ])
}
