//! Compares events with what a scenario expects: pure, so that the harness itself is tested by tables.

use nix::errno::Errno;
use serde_json::Value;

use super::scenario::ExpectedEvent;

/// What is wrong with the events, nothing where they meet the expectations. `complete` says that no more events
/// can come: only then may "there is none" be judged.
pub fn unmet(expected: &[ExpectedEvent], events: &[Value], complete: bool) -> Vec<String> {
    expected
        .iter()
        .filter_map(|expectation| judge(expectation, events, complete))
        .collect()
}

/// The numbers of a session's `ended` event, once it is there.
pub fn ended_counts(events: &[Value]) -> Option<&Value> {
    events
        .iter()
        .find(|event| {
            text(event, "/kind") == Some("session")
                && text(event, "/lifecycle/state") == Some("ended")
        })
        .and_then(|event| event.pointer("/lifecycle/counts"))
}

/// What is wrong with the session's own account: made = delivered + folded + lost, and nothing lost unless it may be.
pub fn unbalanced(counts: &Value, may_lose: bool) -> Option<String> {
    let of = |name: &str| counts.get(name).and_then(Value::as_u64);
    let (Some(made), Some(delivered), Some(folded), Some(lost)) =
        (of("made"), of("delivered"), of("folded"), of("lost"))
    else {
        return Some(format!("the ended event's counts are incomplete: {counts}"));
    };
    if made != delivered + folded + lost {
        Some(format!(
            "{made} made, but {delivered} delivered + {folded} folded + {lost} lost"
        ))
    } else if lost > 0 && !may_lose {
        Some(format!("{lost} of {made} events were lost"))
    } else {
        None
    }
}

fn judge(expected: &ExpectedEvent, events: &[Value], complete: bool) -> Option<String> {
    let matching: Vec<&Value> = events
        .iter()
        .filter(|event| matches(expected, event))
        .collect();
    let actions: u64 = matching
        .iter()
        .map(|event| event.get("count").and_then(Value::as_u64).unwrap_or(1))
        .sum();
    let what = || describe(expected);
    if expected.absent {
        return (complete && !matching.is_empty()).then(|| {
            format!(
                "{actions} actions, none expected: {}; one is {}",
                what(),
                matching[0]
            )
        });
    }
    if matching.is_empty() {
        return Some(format!(
            "no such event: {}{}",
            what(),
            nearest(expected, events)
        ));
    }
    let events = matching.len() as u64;
    if let Some(wanted) = expected.events.filter(|wanted| *wanted != events) {
        return Some(format!("{events} events instead of {wanted}: {}", what()));
    }
    if let Some(most) = expected.max_events.filter(|most| events > *most) {
        return Some(format!("{events} events, more than {most}: {}", what()));
    }
    match (expected.count, expected.min_count) {
        (Some(count), _) if count != actions => {
            Some(format!("{actions} actions instead of {count}: {}", what()))
        }
        (_, Some(least)) if actions < least => {
            Some(format!("{actions} actions, fewer than {least}: {}", what()))
        }
        _ => None,
    }
}

/// Whether the event has every field that is expected of it. A kind may be one of several with `|` between them.
pub fn matches(expected: &ExpectedEvent, event: &Value) -> bool {
    let is = |pointer: &str, wanted: &Option<String>| match wanted {
        None => true,
        Some(wanted) => text(event, pointer) == Some(wanted),
    };
    let is_number = |pointer: &str, wanted: Option<i64>| match wanted {
        None => true,
        Some(wanted) => event.pointer(pointer).and_then(Value::as_i64) == Some(wanted),
    };
    let contains = |pointer: &str, wanted: &Option<String>| match wanted {
        None => true,
        Some(wanted) => event
            .pointer(pointer)
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|entry| entry.as_str() == Some(wanted))),
    };
    text(event, "/kind").is_some_and(|kind| expected.kind.split('|').any(|one| one == kind))
        && is("/verdict", &expected.verdict)
        && rule_is(expected.rule.as_deref(), text(event, "/rule/id"))
        && (is("/file/path", &expected.path) || is("/net/path", &expected.path))
        && is("/target/path", &expected.target)
        && contains("/file/access", &expected.access)
        && is("/net/addr", &expected.addr)
        && is_number(
            "/net/port",
            expected
                .port
                .as_deref()
                .map(|port| port.parse().unwrap_or(-1)),
        )
        && is("/net/domain", &expected.domain)
        && errno_is(
            expected.errno.as_deref(),
            event.get("errno").and_then(Value::as_i64),
        )
        && is("/process/exe", &expected.exe)
        && contains("/process/argv", &expected.argument)
        && is_number("/process/uid", expected.uid.map(i64::from))
        && is_number("/exit/code", expected.code)
        && is_number("/exit/signal", expected.signal)
}

fn text<'a>(event: &'a Value, pointer: &str) -> Option<&'a str> {
    event.pointer(pointer).and_then(Value::as_str)
}

fn rule_is(expected: Option<&str>, rule: Option<&str>) -> bool {
    match expected {
        None => true,
        Some(pattern) => match pattern.strip_suffix('*') {
            Some(start) => rule.is_some_and(|rule| rule.starts_with(start)),
            None => rule == Some(pattern),
        },
    }
}

fn errno_is(expected: Option<&str>, errno: Option<i64>) -> bool {
    match expected {
        None => true,
        Some("none") => errno.is_none(),
        Some(name) => errno
            .and_then(|code| i32::try_from(code).ok())
            .is_some_and(|code| format!("{:?}", Errno::from_raw(code)) == name),
    }
}

pub(super) fn describe(expected: &ExpectedEvent) -> String {
    let fields = serde_json::to_value(expected).unwrap_or_default();
    let told = fields
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| {
            !value.is_null()
                && **value != Value::Bool(false)
                && value.as_array().is_none_or(|list| !list.is_empty())
        });
    told.map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The events of the same kind that speak of the same object: what a person looks at first.
pub(super) fn nearest(expected: &ExpectedEvent, events: &[Value]) -> String {
    let same = |event: &&Value| {
        text(event, "/kind") == Some(&expected.kind)
            && (expected.path.is_none() || text(event, "/file/path") == expected.path.as_deref())
            && (expected.port.is_none()
                || event.pointer("/net/port").map(Value::to_string) == expected.port)
    };
    match events.iter().rfind(same) {
        Some(event) => format!("; nearest of {}: {event}", events.len()),
        None => format!("; {} events, none about that", events.len()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn denied() -> Value {
        json!({"kind": "open", "verdict": "denied", "errno": 13, "count": 2, "rule": {"id": "files.deny[2]"},
               "file": {"path": "/etc/shadow", "access": ["read"]}})
    }

    fn expect(change: impl FnOnce(&mut ExpectedEvent)) -> ExpectedEvent {
        let mut expected = ExpectedEvent {
            kind: "open".to_owned(),
            ..Default::default()
        };
        change(&mut expected);
        expected
    }

    #[test]
    fn what_is_not_said_is_not_compared() {
        assert!(unmet(&[expect(|_| ())], &[denied()], true).is_empty());
    }

    #[test]
    fn every_field_that_is_said_must_agree() {
        type Change = fn(&mut ExpectedEvent);
        let table: [(Change, bool); 9] = [
            (|e| e.verdict = Some("denied".into()), true),
            (|e| e.verdict = Some("allowed".into()), false),
            (|e| e.rule = Some("files.deny*".into()), true),
            (|e| e.rule = Some("files.deny".into()), false),
            (|e| e.errno = Some("EACCES".into()), true),
            (|e| e.errno = Some("none".into()), false),
            (|e| e.access = Some("write".into()), false),
            (|e| e.count = Some(2), true),
            (|e| e.min_count = Some(3), false),
        ];
        for (index, (change, met)) in table.into_iter().enumerate() {
            assert_eq!(
                unmet(&[expect(change)], &[denied()], true).is_empty(),
                met,
                "row {index}"
            );
        }
    }

    #[test]
    fn absence_is_judged_only_when_all_events_are_there() {
        let none = [expect(|e| e.absent = true)];
        assert!(unmet(&none, &[denied()], false).is_empty());
        assert_eq!(unmet(&none, &[denied()], true).len(), 1);
    }

    #[test]
    fn accounts_must_balance() {
        let counts =
            |made: u64, lost: u64| json!({"made": made, "delivered": 3, "folded": 2, "lost": lost});
        assert_eq!(unbalanced(&counts(5, 0), false), None);
        assert!(unbalanced(&counts(6, 0), false).is_some());
        assert!(unbalanced(&counts(6, 1), false).is_some());
        assert_eq!(unbalanced(&counts(6, 1), true), None);
    }
}
