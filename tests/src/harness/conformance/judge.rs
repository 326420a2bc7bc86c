//! What is wrong with a case, by what it ended with in both halves and by what the record has of its time.

use std::collections::BTreeMap;

use serde_json::Value;

use super::family::Case;
use crate::{
    act::script::Done,
    harness::{compare, run, scenario::ExpectedEvent},
};

pub(super) fn wrong_without(case: &Case, done: &Done) -> Option<String> {
    (done.outcome != case.unconfined).then(|| {
        format!(
            "without agentwatch: {} instead of {} ({})",
            done.outcome, case.unconfined, case.act
        )
    })
}

/// What is wrong with each case, `None` where nothing is.
pub(super) fn judge(
    cases: &[Case],
    without: &[Done],
    within: &[Done],
    events: &[Value],
) -> Vec<Option<String>> {
    // A repetition is folded into its first event: then there is none in a later case's time, and the first one's count tells of it.
    let mut alike: BTreeMap<String, u64> = BTreeMap::new();
    let key = |event: &ExpectedEvent| serde_json::to_string(event).unwrap_or_default();
    for (case, done) in cases.iter().zip(within) {
        if let Some(event) = case
            .event
            .as_ref()
            .filter(|_| run::is_expected(&case.confined, &done.outcome))
        {
            *alike.entry(key(event)).or_default() += 1;
        }
    }
    let during = |event: &Value, done: &Done| {
        event
            .get("ktime_ns")
            .and_then(Value::as_u64)
            .is_some_and(|time| (done.begin..=done.end).contains(&time))
    };
    cases
        .iter()
        .zip(without)
        .zip(within)
        .map(|((case, without), within)| {
            if let Some(wrong) = wrong_without(case, without) {
                return Some(wrong);
            }
            let own: Vec<&Value> = events
                .iter()
                .filter(|event| during(event, within))
                .collect();
            if !run::is_expected(&case.confined, &within.outcome) {
                return Some(format!(
                    "in the session: {} instead of {} ({}){}",
                    within.outcome,
                    case.confined,
                    case.act,
                    refusals(&own)
                ));
            }
            let refused = refusals(&own);
            if case.confined == "ok" && !refused.is_empty() {
                return Some(format!("it ended well, yet the record has{refused}"));
            }
            let event = case.event.as_ref()?;
            if own.iter().any(|found| compare::matches(event, found)) {
                return None;
            }
            let matching = events.iter().filter(|found| compare::matches(event, found));
            let actions: u64 = matching
                .map(|found| found.get("count").and_then(Value::as_u64).unwrap_or(1))
                .sum();
            let needed = alike.get(&key(event)).copied().unwrap_or(1);
            (actions < needed).then(|| {
                format!(
                    "{actions} actions in the record instead of {needed}: {}; in its time: {}",
                    compare::describe(event),
                    own.iter()
                        .map(|event| brief(event))
                        .collect::<Vec<_>>()
                        .join(", ")
                )
            })
        })
        .collect()
}

fn refusals(events: &[&Value]) -> String {
    events
        .iter()
        .filter(|event| event.get("verdict").and_then(Value::as_str) == Some("denied"))
        .map(|event| format!("; denied: {}", brief(event)))
        .collect()
}

/// An event in a few words.
fn brief(event: &Value) -> String {
    [
        "/kind",
        "/verdict",
        "/rule/id",
        "/file/path",
        "/file/access",
        "/target/path",
        "/net/addr",
        "/net/port",
        "/net/path",
        "/guard/operation",
        "/errno",
    ]
    .into_iter()
    .filter_map(|pointer| event.pointer(pointer))
    .map(|value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    })
    .collect::<Vec<_>>()
    .join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::harness::conformance::family::ok;

    fn case(confined: &str, event: Option<ExpectedEvent>) -> Case {
        Case {
            id: "x".into(),
            act: "stat /".into(),
            users: None,
            since: None,
            until: None,
            unconfined: ok(),
            confined: confined.into(),
            event,
            files: Vec::new(),
        }
    }

    fn done(outcome: &str, begin: u64, end: u64) -> Done {
        Done {
            outcome: outcome.into(),
            begin,
            end,
        }
    }

    fn denied_open() -> ExpectedEvent {
        ExpectedEvent {
            kind: "open".into(),
            verdict: Some("denied".into()),
            ..Default::default()
        }
    }

    #[test]
    fn what_fails_without_agentwatch_proves_nothing() {
        let cases = [case("EACCES", Some(denied_open()))];
        let event = json!({"kind": "open", "verdict": "denied", "ktime_ns": 15, "count": 1});
        let within = [done("EACCES", 10, 20)];
        let judged = |without: &str| {
            judge(
                &cases,
                &[done(without, 1, 2)],
                &within,
                std::slice::from_ref(&event),
            )
        };
        assert_eq!(judged("ok"), [None]);
        assert!(judged("EACCES")[0].as_ref().unwrap().contains("without"));
    }

    #[test]
    fn a_folded_refusal_is_told_by_the_count_of_the_first() {
        let cases = [
            case("EACCES", Some(denied_open())),
            case("EACCES", Some(denied_open())),
        ];
        let without = [done("ok", 1, 2), done("ok", 2, 3)];
        let within = [done("EACCES", 10, 20), done("EACCES", 20, 30)];
        let event = |count: u64| json!({"kind": "open", "verdict": "denied", "ktime_ns": 15, "count": count});
        assert_eq!(judge(&cases, &without, &within, &[event(2)]), [None, None]);
        let judged = judge(&cases, &without, &within, &[event(1)]);
        assert!(judged[0].is_none() && judged[1].is_some());
    }

    #[test]
    fn what_is_allowed_has_no_refusal_in_its_time() {
        let cases = [case("ok", None)];
        let event = json!({"kind": "open", "verdict": "denied", "ktime_ns": 15});
        let judged = judge(&cases, &[done("ok", 1, 2)], &[done("ok", 10, 20)], &[event]);
        assert!(judged[0].is_some());
    }
}
