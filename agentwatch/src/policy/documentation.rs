//! Holds docs/policy.md to its word: every policy in it loads, and every refusal in it reads as shown.

use std::path::Path;

use super::{
    decide_file, decide_net, load,
    model::{Access, Compiled, Context, Effect, NetOp},
};

const PAGE: &str = include_str!("../../../docs/policy.md");

/// The fenced blocks of the page: what stands after the fence, and the text.
fn blocks() -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((info, text.join("\n")));
        }
    }
    blocks
}

#[test]
fn every_guard_and_family_is_on_the_page() {
    use agentwatch_common::policy::guard;
    for (name, about) in guard::NAMES.iter().zip(guard::ABOUT) {
        let row = format!("| `{name}` | {about} |");
        assert!(PAGE.contains(&row), "{row}");
    }
    for family in super::surface::families() {
        assert!(PAGE.contains(&format!("`{family}`")), "{family}");
    }
}

#[test]
fn every_policy_on_the_page_means_what_it_says() {
    let context = Context {
        cwd: "/home/u/project".into(),
        home: "/home/u".into(),
        ..Default::default()
    };
    let blocks = blocks();
    let mut loaded = 0;
    for (place, (info, text)) in blocks.iter().enumerate() {
        match *info {
            "toml" => {
                let compiled = load("task.toml", text.as_bytes(), &context)
                    .unwrap_or_else(|error| panic!("{text}\n{error}"));
                assert!(
                    compiled.warnings.is_empty(),
                    "{text}\n{}",
                    compiled.warnings.join("\n")
                );
                loaded += 1;
            }
            "toml refused" => {
                let error = load("task.toml", text.as_bytes(), &context).expect_err(text);
                let shown = blocks
                    .get(place + 1)
                    .filter(|(info, _)| *info == "text")
                    .map(|(_, shown)| shown.as_str());
                assert_eq!(Some(error.to_string().as_str()), shown, "{text}");
                loaded += 1;
            }
            "toml warned" => {
                let compiled = load("task.toml", text.as_bytes(), &context)
                    .unwrap_or_else(|error| panic!("{text}\n{error}"));
                let shown = blocks
                    .get(place + 1)
                    .filter(|(info, _)| *info == "text")
                    .map(|(_, shown)| shown.as_str());
                assert_eq!(
                    Some(compiled.warnings.join("\n\n").as_str()),
                    shown,
                    "{text}"
                );
                loaded += 1;
            }
            "toml managed" => {
                let managed = [super::sources::Managed {
                    path: "/etc/agentwatch/managed.d/10-floor.toml".into(),
                    text: text.clone(),
                }];
                let sources = super::Sources {
                    managed: &managed,
                    ..super::Sources::alone("task.toml", b"", &context)
                };
                let examined = super::examine_all(&sources);
                assert_eq!(
                    examined.report.errors(),
                    0,
                    "{}",
                    examined.report.render(false)
                );
                loaded += 1;
            }
            "" | "text" | "console" => {}
            other => panic!("nobody checks blocks marked {other:?}"),
        }
    }
    assert!(loaded >= 8, "the page has lost its examples");
}

/// The tables below a policy say what it decides: `| `/path` | yes | no | no |` for reading, writing and executing, and
/// `| `192.0.2.7:80` | allowed by `rule` |` for connecting.
#[test]
fn every_expectation_on_the_page_is_met() {
    let context = Context {
        cwd: "/home/u/project".into(),
        home: "/home/u".into(),
        ..Default::default()
    };
    let mut asked = 0;
    for (info, text) in blocks() {
        if info != "toml" {
            continue;
        }
        let mut examined = super::examine("task.toml", text.as_bytes(), &context);
        let Some(compiled) = examined.compiled.take() else {
            panic!("{text}");
        };
        asked += examined.expect.len();
        let failed = super::expect::test(&examined.expect, &compiled, &mut examined.report);
        assert_eq!(failed, 0, "{}", examined.report.render(false));
    }
    assert_eq!(asked, 12, "the page has lost expectations");
}

#[test]
fn every_preset_is_on_the_page() {
    for preset in super::preset::PRESETS {
        assert!(
            PAGE.contains(&format!("| `{}` |", preset.name)),
            "{}",
            preset.name
        );
    }
}

#[test]
fn every_table_of_answers_is_true() {
    let context = Context {
        cwd: "/home/u/project".into(),
        home: "/home/u".into(),
        ..Default::default()
    };
    let mut policy: Option<Compiled> = None;
    let mut answers = 0;
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if line == "```toml" {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            policy = load("task.toml", text.join("\n").as_bytes(), &context).ok();
            continue;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (Some(compiled), ["", object, answer @ .., ""]) = (&policy, cells.as_slice()) else {
            continue;
        };
        let object = object.trim_matches('`');
        if let [read, write, exec] = answer
            && object.starts_with('/')
        {
            for (access, said) in [
                (Access::Read, read),
                (Access::Write, write),
                (Access::Exec, exec),
            ] {
                let allowed =
                    decide_file(compiled, access, Path::new(object)).effect == Effect::Allow;
                assert_eq!(
                    *said,
                    if allowed { "yes" } else { "no" },
                    "{access:?} {line}"
                );
            }
            answers += 1;
        } else if let (Ok(address), [said]) = (object.parse::<std::net::SocketAddr>(), answer)
            && said.contains(" by `")
        {
            let decision = decide_net(compiled, NetOp::Connect, address.ip(), address.port());
            let word = if decision.effect == Effect::Allow {
                "allowed"
            } else {
                "denied"
            };
            let expected = format!("{word} by `{}`", compiled.rules[decision.rule as usize].id);
            assert!(said.starts_with(&expected), "{line}: {expected}");
            answers += 1;
        }
    }
    assert_eq!(
        answers, 22,
        "the page has lost answers, or writes them differently"
    );
}
