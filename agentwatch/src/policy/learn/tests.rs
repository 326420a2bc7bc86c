//! Policies learned from events, and held against them.

use super::*;
use crate::{
    event::{
        model::{File, Kind, Net},
        samples::sample,
    },
    policy::replay::Backtest,
};

fn context() -> Context {
    Context::of_tests("/home/u/project")
}

fn file(kind: Kind, path: &str, access: &[&str]) -> Event {
    let mut event = sample(kind);
    event.file = Some(File {
        path: path.to_owned(),
        access: access.iter().map(|word| (*word).to_owned()).collect(),
        ..File::default()
    });
    event.verdict = Verdict::Allowed;
    event.errno = None;
    event.rule = None;
    event
}

fn net(kind: Kind, addr: &str, port: u16) -> Event {
    let mut event = file(kind, "", &[]);
    event.file = None;
    event.net = Some(Net {
        family: "inet".into(),
        addr: Some(addr.into()),
        port: Some(port),
        ..Net::default()
    });
    event
}

#[test]
fn what_was_approved_is_asked_about_again() {
    let approved = |mut event: Event, rule: &str| {
        event.rule = Some(crate::event::model::RuleRef {
            id: rule.to_owned(),
            layer: crate::event::model::Layer::Task,
            source: "task.toml:3".to_owned(),
        });
        event
    };
    let run = |words: &[&str]| {
        let mut event = file(Kind::Exec, "/usr/bin/git", &["exec"]);
        if let Some(process) = &mut event.process {
            process.exe = "/usr/bin/git".to_owned();
            process.argv = words.iter().map(|word| (*word).to_owned()).collect();
        }
        event
    };
    let mut gh = file(Kind::Exec, "/usr/bin/gh", &["exec"]);
    gh.process = None;
    let mut waiting = file(Kind::Open, "/srv/waits", &["read"]);
    waiting.verdict = Verdict::Held;
    let events = [
        file(Kind::Open, "/home/u/project/a", &["write"]),
        approved(
            file(Kind::Open, "/home/u/project/Cargo.lock", &["write"]),
            "files.approve[0]",
        ),
        file(Kind::Open, "/home/u/project/Cargo.lock", &["read"]),
        approved(
            file(Kind::Open, "/srv/report", &["read"]),
            "files.approve[1]",
        ),
        run(&["git", "commit"]),
        run(&["git", "push", "--dry-run"]),
        approved(run(&["git", "push", "origin", "main"]), "exec.approve[0]"),
        approved(gh, "exec.approve[1]"),
        net(Kind::Connect, "10.0.0.1", 443),
        approved(net(Kind::Connect, "192.0.2.7", 443), "network.default"),
        waiting,
    ];
    let mut learner = Learner::default();
    events.iter().for_each(|event| learner.see(event));
    let learned = learner.learn(&["s".to_owned()], &context());
    for expected in [
        "{ path = \"/home/u/project/Cargo.lock\", access = [\"write\"] }, # seen",
        "    \"/srv/report\", # seen",
        "[\"/usr/bin/git\", \"push\", \"origin\"], # seen",
        "    \"/usr/bin/gh\", # seen",
        "approve = [\n    \"192.0.2.7:443\", # seen",
    ] {
        assert!(
            learned.text.contains(expected),
            "{expected} is missing in\n{}",
            learned.text
        );
    }
    assert!(!learned.text.contains("waits"), "{}", learned.text);
    let policy = load("learned.toml", learned.text.as_bytes(), &context()).unwrap();
    let mut backtest = Backtest::default();
    events
        .iter()
        .for_each(|event| backtest.judge(&policy, event));
    backtest.finish(&policy);
    let objects = |list: &[crate::policy::replay::Difference]| -> Vec<String> {
        list.iter().map(|one| one.object.clone()).collect()
    };
    assert_eq!(objects(&backtest.newly_denied), ["/srv/waits"]);
    assert!(backtest.newly_held.is_empty() && backtest.newly_allowed.is_empty());
}

#[test]
fn a_session_is_generalised_and_replays_without_a_denial() {
    let mut events = vec![
        file(Kind::Exec, "/usr/bin/cat", &["exec"]),
        file(Kind::Open, "/usr/lib/x/libc.so", &["read"]),
        file(Kind::Open, "/etc/ld.so.cache", &["read"]),
        file(Kind::Open, "/etc/ssl/certs/a.pem", &["read"]),
        file(Kind::Open, "/home/u/project/src/main.c", &["read"]),
        file(Kind::Create, "/home/u/project/target/x.o", &["create"]),
        file(Kind::Exec, "/home/u/project/target/x", &["exec"]),
        file(Kind::Open, "/tmp/cc12345.s", &["write"]),
        file(Kind::Open, "/dev/null", &["write"]),
        file(
            Kind::Open,
            "/home/u/.cargo/registry/index/a",
            &["read", "write"],
        ),
        file(Kind::Open, "/home/u/.gitconfig", &["read"]),
        file(Kind::Open, "/srv/data/set/1/a*b", &["read"]),
        net(Kind::Connect, "127.0.0.1", 40123),
        net(Kind::Connect, "192.0.2.7", 443),
        net(Kind::Bind, "127.0.0.1", 0),
    ];
    for number in 1..20 {
        events.push(net(Kind::Connect, &format!("198.51.100.{number}"), 8443));
    }
    let mut learner = Learner::default();
    events.iter().for_each(|event| learner.see(event));
    // What was denied, and what is a secret.
    let mut denied = file(Kind::Open, "/srv/closed", &["read"]);
    denied.verdict = Verdict::Denied;
    learner.see(&denied);
    learner.see(&file(Kind::Open, "/home/u/.ssh/id_rsa", &["read"]));
    learner.see(&file(Kind::Open, "/home/u/project/.env", &["read"]));

    let learned = learner.learn(&["one".to_owned()], &context());
    let text = &learned.text;
    for expected in [
        "read = [\n    \"${home}/.gitconfig\", # seen once, by cat",
        "    \"${workspace}\", # seen ",
        "    \"${home}/.cargo/registry\", # seen ",
        "    \"/etc/ssl\", # seen ",
        "    \"/usr\", # seen ",
        "    \"/tmp\", # seen ",
        "    \"127.0.0.1\", # seen ",
        "    \"192.0.2.7:443\", # seen ",
        "    \"*:8443\", # seen 19 times",
        "# Left out: reading of /home/u/.ssh/id_rsa",
        "    \"**/.env\", # denied by the base preset",
    ] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
    assert_eq!(learned.left_out.len(), 2);
    assert!(!text.contains("/srv/closed"), "{text}");
    let compiled = load("learned.toml", text.as_bytes(), &context())
        .unwrap_or_else(|error| panic!("{text}\n{error}"));
    let mut backtest = Backtest::default();
    events
        .iter()
        .for_each(|event| backtest.judge(&compiled, event));
    backtest.finish(&compiled);
    assert!(
        backtest.newly_denied.is_empty(),
        "{:?}\n{text}",
        backtest.newly_denied
    );
    let decide = |path: &str| decide_file(&compiled, Access::Read, Path::new(path)).effect;
    for path in [
        "/home/u/.ssh/id_rsa",
        "/home/u/project/.env",
        "/srv/closed",
        "/etc/shadow",
        "/home/u/.bashrc",
    ] {
        assert_eq!(decide(path), Effect::Deny, "{path}");
    }
}

proptest::proptest! {
    /// Whatever was done: what is learned can be read, and replays without a denial but for what it says it left out.
    #[test]
    fn what_is_learned_replays(
        paths in proptest::collection::vec(("(/(usr|etc|home|u|\\.ssh|a\\*|\\$\\{x\\}|é|\"|w|\\.env)){1,6}", 0..4), 1..12),
    ) {
        let events: Vec<Event> = paths
            .iter()
            .map(|(path, kind)| match kind {
                0 => file(Kind::Open, path, &["read"]),
                1 => file(Kind::Open, path, &["write"]),
                2 => file(Kind::Exec, path, &["exec"]),
                _ => file(Kind::Delete, path, &["delete"]),
            })
            .collect();
        let mut learner = Learner::default();
        events.iter().for_each(|event| learner.see(event));
        let learned = learner.learn(&["s".to_owned()], &context());
        let compiled = load("learned.toml", learned.text.as_bytes(), &context());
        proptest::prop_assert!(compiled.is_ok(), "{}", learned.text);
        let formatted = crate::policy::format::format(&learned.text).expect("TOML");
        proptest::prop_assert_eq!(&formatted, &learned.text);
        let compiled = compiled.unwrap();
        let mut backtest = Backtest::default();
        events.iter().for_each(|event| backtest.judge(&compiled, event));
        backtest.finish(&compiled);
        for denied in &backtest.newly_denied {
            let said = learned.left_out.iter().any(|sentence| sentence.contains(&denied.object));
            proptest::prop_assert!(said, "{:?}\n{}", denied, learned.text);
        }
    }
}
