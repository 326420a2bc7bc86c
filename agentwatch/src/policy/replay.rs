//! Judging what has been recorded by another policy: which questions an event is, and how the answers differ from what was
//! decided then. Pure: the history is handed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::Serialize;

use super::{
    expect::Question,
    model::{Access, Compiled, Effect, NetOp, Place, RuleIndex},
};
use crate::event::model::{Event, Kind, RuleRef, Verdict};

/// The questions that an event is to a policy. None for what no policy decides, for what failed by itself, and for what was
/// recorded in part.
pub fn questions(event: &Event) -> Vec<Question> {
    if event.verdict == Verdict::Allowed && event.errno.is_some() && event.kind != Kind::Connect {
        return Vec::new();
    }
    let path = |file: &Option<crate::event::model::File>| {
        file.as_ref()
            .filter(|file| !file.path_truncated && file.path.starts_with('/'))
            .map(|file| PathBuf::from(&file.path))
    };
    let mut asked = Vec::new();
    match event.kind {
        Kind::Open => {
            let Some(target) = path(&event.file) else {
                return Vec::new();
            };
            let access = event
                .file
                .iter()
                .flat_map(|file| &file.access)
                .map(String::as_str);
            let access: BTreeSet<&str> = access.collect();
            let writes = ["write", "append", "truncate", "create", "delete", "attr"];
            if writes.iter().any(|word| access.contains(word)) {
                asked.push(Question::File(Access::Write, target.clone()));
            }
            if access.contains("exec") {
                asked.push(Question::File(Access::Exec, target.clone()));
            }
            if access.contains("read") || access.contains("list") {
                asked.push(Question::File(Access::Read, target));
            }
        }
        Kind::Exec => {
            asked.extend(path(&event.file).map(|path| Question::File(Access::Exec, path)))
        }
        Kind::Create | Kind::Delete | Kind::Attr | Kind::Rename | Kind::Link => {
            for file in [&event.file, &event.target] {
                asked.extend(path(file).map(|path| Question::File(Access::Write, path)));
            }
        }
        Kind::Connect | Kind::Bind => {
            let Some(net) = &event.net else {
                return Vec::new();
            };
            let op = if event.kind == Kind::Bind {
                NetOp::Listen
            } else {
                NetOp::Connect
            };
            match (&net.path, &net.addr) {
                (Some(name), _) if name.starts_with('@') && op == NetOp::Connect => {
                    asked.push(Question::Abstract(name[1..].to_owned()));
                }
                (Some(path), _) if path.starts_with('/') => asked.push(match op {
                    NetOp::Connect => Question::Unix(path.into()),
                    NetOp::Listen => Question::File(Access::Write, path.into()),
                }),
                (None, Some(addr)) => {
                    if let Ok(addr) = addr.parse::<IpAddr>() {
                        let address = SocketAddr::new(addr, net.port.unwrap_or(0));
                        asked.push(Question::Net(op, address));
                    }
                }
                _ => {}
            }
        }
        _ => {}
    }
    asked
}

/// A policy as it is bound to the files of this host: a rule on a path that leads through links holds at what the path
/// names too, as `resolve` tells it.
pub fn bound(
    compiled: &Compiled,
    mut resolve: impl FnMut(&std::path::Path) -> Option<PathBuf>,
) -> Compiled {
    let mut places: BTreeMap<PathBuf, Place> = compiled
        .places
        .iter()
        .map(|place| (place.path.clone(), place.clone()))
        .collect();
    for place in &compiled.places {
        let Some(target) = resolve(&place.path).filter(|target| *target != place.path) else {
            continue;
        };
        let named = places.entry(target.clone()).or_insert_with(|| Place {
            path: target,
            decisions: place.decisions,
        });
        // Of two places that are one file the stricter one holds.
        for (own, other) in named.decisions.iter_mut().zip(place.decisions) {
            if other.effect > own.effect {
                *own = other;
            }
        }
    }
    Compiled {
        places: places.into_values().collect(),
        ..compiled.clone()
    }
}

/// One way in which a policy differs from what was decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    pub session: String,
    /// Session's name.
    pub name: String,
    pub action: &'static str,
    pub object: String,
    /// Rule of the new policy that decides, and where it is written.
    pub rule: String,
    pub source: String,
    /// Rule that decided then, where one is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// How often it happened.
    pub count: u64,
}

/// What a history is under another policy.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Backtest {
    pub sessions: BTreeSet<String>,
    /// Events that were judged, and those that no policy decides or that were recorded in part.
    pub judged: u64,
    pub passed_over: u64,
    pub newly_denied: Vec<Difference>,
    pub newly_allowed: Vec<Difference>,
    #[serde(skip)]
    differences: BTreeMap<(bool, String, &'static str, String), Difference>,
    #[serde(skip)]
    used: BTreeSet<RuleIndex>,
}

impl Backtest {
    /// Judges one more event.
    pub fn judge(&mut self, policy: &Compiled, event: &Event) {
        if matches!(event.kind, Kind::Session | Kind::Loss | Kind::Exit) {
            return;
        }
        self.sessions.insert(event.session.id.clone());
        let questions = questions(event);
        if questions.is_empty() {
            self.passed_over += 1;
            return;
        }
        self.judged += 1;
        let then_allowed = event.verdict == Verdict::Allowed;
        let decided: Vec<_> = questions
            .iter()
            .map(|question| (question, question.answer(policy).decision))
            .collect();
        self.used
            .extend(decided.iter().map(|(_, decision)| decision.rule));
        let now_allowed = decided
            .iter()
            .all(|(_, decision)| decision.effect == Effect::Allow);
        if now_allowed == then_allowed {
            return;
        }
        let shown = decided
            .iter()
            .find(|(_, decision)| (decision.effect == Effect::Allow) == now_allowed);
        let Some((question, decision)) = shown else {
            return;
        };
        let rule = &policy.rules[decision.rule as usize];
        let (action, object) = (question.action(), question.object());
        let key = (
            now_allowed,
            event.session.id.clone(),
            action,
            object.clone(),
        );
        self.differences
            .entry(key)
            .or_insert_with(|| Difference {
                session: event.session.id.clone(),
                name: event.session.name.clone(),
                action,
                object,
                rule: rule.id.clone(),
                source: rule.source.clone(),
                then: event.rule.as_ref().map(|RuleRef { id, .. }| id.clone()),
                count: 0,
            })
            .count += event.count;
    }

    /// Closes the account; gives back the rules that decided nothing.
    pub fn finish<'p>(&mut self, policy: &'p Compiled) -> Vec<&'p super::model::Rule> {
        for ((allowed, ..), difference) in std::mem::take(&mut self.differences) {
            if allowed {
                self.newly_allowed.push(difference);
            } else {
                self.newly_denied.push(difference);
            }
        }
        policy
            .rules
            .iter()
            .zip(0..)
            .skip(super::model::DEFAULT_RULES.len())
            .filter(|(_, index)| !self.used.contains(index))
            .map(|(rule, _)| rule)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{model::File, samples::sample},
        policy::{load, model::Context},
    };

    fn compiled(text: &str) -> Compiled {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
            ..Context::default()
        };
        load("new.toml", text.as_bytes(), &context).unwrap()
    }

    fn open(path: &str, access: &str, verdict: Verdict) -> Event {
        let mut event = sample(Kind::Open);
        event.file = Some(File {
            path: path.to_owned(),
            access: vec![access.to_owned()],
            ..File::default()
        });
        event.verdict = verdict;
        event.errno = (verdict == Verdict::Denied).then_some(13);
        event.count = 2;
        event
    }

    #[test]
    fn a_history_is_judged_anew() {
        let policy = compiled("[files]\nread = [\"/lib\", \"/idle\"]\nwrite = [\"/w\"]\n");
        let policy = bound(&policy, |path| {
            (path == std::path::Path::new("/lib")).then(|| "/usr/lib".into())
        });
        let mut backtest = Backtest::default();
        for event in [
            open("/usr/lib/x", "read", Verdict::Allowed),
            open("/etc/x", "read", Verdict::Allowed),
            open("/etc/x", "read", Verdict::Allowed),
            open("/w/x", "write", Verdict::Denied),
            open("/w/y", "write", Verdict::Audited),
            open("/nowhere", "read", Verdict::Denied),
            sample(Kind::Session),
        ] {
            backtest.judge(&policy, &event);
        }
        // It failed by itself.
        let mut failed = open("/etc/none", "read", Verdict::Allowed);
        failed.errno = Some(2);
        backtest.judge(&policy, &failed);
        let unused: Vec<&str> = backtest
            .finish(&policy)
            .iter()
            .map(|rule| rule.id.as_str())
            .collect();
        assert_eq!(unused, ["files.read[1]"]);
        assert_eq!((backtest.judged, backtest.passed_over), (6, 1));
        let denied: Vec<_> = backtest
            .newly_denied
            .iter()
            .map(|one| {
                (
                    one.action,
                    one.object.as_str(),
                    one.rule.as_str(),
                    one.count,
                )
            })
            .collect();
        assert_eq!(denied, [("read", "/etc/x", "files.default", 4)]);
        let allowed: Vec<_> = backtest
            .newly_allowed
            .iter()
            .map(|one| one.object.as_str())
            .collect();
        assert_eq!(allowed, ["/w/x", "/w/y"]);
    }

    #[test]
    fn every_kind_is_a_question_or_is_not() {
        for (kind, expected) in [
            (Kind::Open, 1),
            (Kind::Exec, 1),
            (Kind::Create, 1),
            (Kind::Delete, 1),
            (Kind::Rename, 2),
            (Kind::Attr, 1),
            (Kind::Connect, 1),
            (Kind::Bind, 1),
            (Kind::Exit, 0),
            (Kind::Loss, 0),
        ] {
            assert_eq!(questions(&sample(kind)).len(), expected, "{kind:?}");
        }
    }
}
