//! What to tell a program, or the person behind it, that was refused: which entry of a policy would allow it, and who may
//! write that entry. Pure, and only words: it changes nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::DEFAULT_RULES;
use crate::event::model::{Event, Kind, Layer, RuleRef, Verdict};

/// Who can change the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decider {
    /// A person who approves: the action waits, or was not approved.
    Approver,
    /// Whoever wrote the session's policy.
    Owner,
    /// The host's administrator.
    Administrator,
    /// Nobody: no policy allows it.
    Nobody,
}

/// What can be done about a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Advice {
    pub decider: Decider,
    /// A sentence for the agent.
    pub text: String,
    /// What would have to stand in the policy, as TOML; absent where no entry is known that would do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entry: Option<String>,
}

/// Says what can be done about an event that was denied, held or would have been denied.
pub fn advise(event: &Event) -> Advice {
    let advice = |decider, text: String, entry| Advice {
        decider,
        text,
        entry,
    };
    if event.verdict == Verdict::Held {
        return advice(
            Decider::Approver,
            "it waits for a person to approve it, and goes on by itself then; `agentwatch approvals` outside the session lists it".to_owned(),
            None,
        );
    }
    let Some(rule) = &event.rule else {
        return advice(
            Decider::Owner,
            "ask whoever started the session".to_owned(),
            None,
        );
    };
    if rule.id.contains(".approve[") {
        return advice(
            Decider::Approver,
            "no person approved it, in time or at all: say what it is needed for, and ask before trying again".to_owned(),
            None,
        );
    }
    match rule.layer {
        Layer::Managed => advice(
            Decider::Administrator,
            format!(
                "the host's administrator denies it ({}): no policy of a task changes that; find a way without it",
                rule.source
            ),
            None,
        ),
        Layer::Task => advice(
            Decider::Owner,
            format!(
                "the task's policy says so ({}): if it is needed, ask whoever started the session to change that line",
                rule.source
            ),
            None,
        ),
        Layer::Default => by_default(event, rule),
    }
}

fn by_default(event: &Event, rule: &RuleRef) -> Advice {
    if rule.id == DEFAULT_RULES[agentwatch_common::policy::rule::SELF as usize] {
        return Advice {
            decider: Decider::Nobody,
            text: "it belongs to agentwatch itself: no policy allows it".to_owned(),
            entry: None,
        };
    }
    let entry = entry(event, rule);
    let text = match &entry {
        Some(_) => {
            "the task's policy does not name it: if it is needed, ask whoever started the session to add the entry"
        }
        None => {
            "the task's policy does not allow it: if it is needed, ask whoever started the session"
        }
    };
    Advice {
        decider: Decider::Owner,
        text: text.to_owned(),
        entry,
    }
}

/// The entry that would allow what no rule says anything about.
fn entry(event: &Event, rule: &RuleRef) -> Option<String> {
    let written = |table: &str, key: &str, value: &str| {
        Some(format!("[{table}]\n{key} = [{}]", toml::Value::from(value)))
    };
    if let Some(operation) = rule.id.strip_prefix("guard.") {
        return written("guard", "allow", operation);
    }
    let net = event.net.as_ref();
    let address = || {
        let net = net?;
        let address: std::net::IpAddr = net.addr.as_ref()?.parse().ok()?;
        Some(match net.port {
            Some(port @ 1..) => std::net::SocketAddr::new(address, port).to_string(),
            _ => address.to_string(),
        })
    };
    match rule.id.as_str() {
        "network.default" => return written("network", "allow", &address()?),
        "network.listen.default" => return written("network", "listen", &address()?),
        "network.unix.default" => {
            return written("network", "unix", net.and_then(|net| net.path.as_deref())?);
        }
        _ => {}
    }
    if rule.id != "files.default" {
        return None;
    }
    let file = event
        .file
        .as_ref()
        .filter(|file| file.path.starts_with('/') && !file.path_truncated)?;
    let asked = |word: &str| file.access.iter().any(|access| access == word);
    let key = match event.kind {
        Kind::Exec => "exec",
        _ if asked("exec") || asked("map") => "exec",
        Kind::Open
            if !["write", "append", "truncate", "create", "delete", "attr"]
                .into_iter()
                .any(asked) =>
        {
            "read"
        }
        _ => "write",
    };
    // A policy can name what reads as a pattern only by the directory around it, which is more than was asked for.
    let nameable = !super::name::is_pattern(&file.path) && !file.path.contains("${");
    nameable.then(|| written("files", key, &file.path))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{
            model::{File, Net},
            samples::sample,
        },
        policy::{examine, model::Context},
    };

    fn event(kind: Kind, verdict: Verdict, rule: &str, layer: Layer) -> Event {
        let mut event = sample(kind);
        event.verdict = verdict;
        event.rule = Some(RuleRef {
            id: rule.to_owned(),
            layer,
            source: "task.toml:9".to_owned(),
        });
        event
    }

    #[test]
    fn who_decides_depends_on_the_rule() {
        use Verdict::{Denied, Held};
        for (verdict, rule, layer, decider) in [
            (Held, "exec.approve[0]", Layer::Task, Decider::Approver),
            (Held, "network.default", Layer::Default, Decider::Approver),
            (Denied, "exec.approve[0]", Layer::Managed, Decider::Approver),
            (
                Denied,
                "files.deny[0]",
                Layer::Managed,
                Decider::Administrator,
            ),
            (Denied, "files.read[0]", Layer::Task, Decider::Owner),
            (Denied, "files.default", Layer::Default, Decider::Owner),
            (Denied, "agentwatch.self", Layer::Default, Decider::Nobody),
        ] {
            let advice = advise(&event(Kind::Open, verdict, rule, layer));
            assert_eq!(advice.decider, decider, "{rule}");
        }
    }

    #[test]
    fn what_a_policy_cannot_name_has_no_entry() {
        let mut event = event(Kind::Open, Verdict::Denied, "files.default", Layer::Default);
        if let Some(file) = &mut event.file {
            file.path = "/srv/a*b".to_owned();
        }
        assert_eq!(advise(&event).entry, None);
        let mut event = event_of_bind();
        assert_eq!(
            advise(&event).entry.as_deref(),
            Some("[network]\nlisten = [\"::1\"]")
        );
        event.net = None;
        assert_eq!(advise(&event).entry, None);
    }

    fn event_of_bind() -> Event {
        let rule = "network.listen.default";
        let mut event = event(Kind::Bind, Verdict::Denied, rule, Layer::Default);
        event.net = Some(Net {
            addr: Some("::1".to_owned()),
            port: Some(0),
            ..Net::default()
        });
        event
    }

    #[test]
    fn entries_are_policies_and_allow_it() {
        let file = |path: &str, access: &str| {
            let mut event = event(Kind::Open, Verdict::Denied, "files.default", Layer::Default);
            event.file = Some(File {
                path: path.to_owned(),
                access: vec![access.to_owned()],
                ..File::default()
            });
            event
        };
        let net = |rule: &str, net: Net| {
            let mut event = event(Kind::Connect, Verdict::Denied, rule, Layer::Default);
            event.net = Some(net);
            event
        };
        let inet = |address: &str, port| Net {
            addr: Some(address.to_owned()),
            port: Some(port),
            ..Net::default()
        };
        for (event, expected) in [
            (file("/etc/x", "read"), "[files]\nread = [\"/etc/x\"]"),
            (file("/etc/x", "write"), "[files]\nwrite = [\"/etc/x\"]"),
            (file("/opt/x", "exec"), "[files]\nexec = [\"/opt/x\"]"),
            (
                net("network.default", inet("192.0.2.7", 443)),
                "[network]\nallow = [\"192.0.2.7:443\"]",
            ),
            (
                net(
                    "network.unix.default",
                    Net {
                        path: Some("@x".to_owned()),
                        ..Net::default()
                    },
                ),
                "[network]\nunix = [\"@x\"]",
            ),
            (
                event(Kind::Guard, Verdict::Denied, "guard.ptrace", Layer::Default),
                "[guard]\nallow = [\"ptrace\"]",
            ),
        ] {
            let advice = advise(&event);
            let entry = advice.entry.as_deref();
            assert_eq!(entry, Some(expected));
            let examined = examine("p.toml", expected.as_bytes(), &Context::default());
            let compiled = examined.compiled.unwrap();
            for question in crate::policy::replay::questions(&event) {
                let effect = question.answer(&compiled).decision.effect;
                assert_eq!(effect, crate::policy::model::Effect::Allow, "{expected}");
            }
        }
    }
}
