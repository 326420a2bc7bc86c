//! How well a session is held is told: before it begins, in its start event, while it lives and in the history.

use serde_json::Value;

use crate::harness::*;

/// What says how well a session is held: its start event, and its rows in the daemon's figures and in the history.
fn told(place: &Place, name: &str) -> (String, Vec<String>) {
    let events = place.events_until(name, "its start is in the record", |events| {
        events.iter().any(|event| event["kind"] == "session")
    });
    let started = &events
        .iter()
        .find(|event| event["lifecycle"]["state"] == "started")
        .expect("a session begins with its start")["lifecycle"];
    let missing = |of: &Value| -> Vec<String> {
        serde_json::from_value(of["missing"].clone()).expect("a list of sentences")
    };
    let (coverage, gaps) = (&started["coverage"], missing(started));

    let listed = place.cli(&["sessions", "--json"]);
    let rows: Vec<Value> = serde_json::from_slice(&listed.stdout).expect("JSON");
    let row = rows
        .iter()
        .find(|row| row["name"] == name)
        .expect("the session is listed");
    assert_eq!((&row["coverage"], missing(row)), (coverage, gaps.clone()));

    let sql = format!("SELECT coverage, missing FROM sessions WHERE name = '{name}'");
    let asked = place.cli(&["query", &sql, "--format", "jsonl"]);
    let asked: Value = serde_json::from_slice(&asked.stdout).expect("one row");
    assert_eq!(&asked["coverage"], coverage, "{asked}");
    for gap in &gaps {
        let kept = asked["missing"].to_string();
        assert!(kept.contains(gap.trim()), "{kept}: {gap}");
    }

    let reported = place.cli(&["report", name, "--format", "json"]);
    let reported: Value = serde_json::from_slice(&reported.stdout).expect("JSON");
    assert_eq!(&reported["session"]["coverage"], coverage, "{reported}");
    let coverage = coverage.as_str().expect("a word").to_owned();
    (coverage, gaps)
}

/// The sessions that live, by coverage, as the daemon counts them.
fn living(place: &Place, coverage: &str) -> u64 {
    let of_coverage = place.status()["coverage"][coverage].clone();
    let modes = of_coverage.as_object().into_iter().flatten();
    modes.filter_map(|(_, count)| count.as_u64()).sum()
}

/// The limits of a cgroup of others are not ours to set, so a policy with `[limits]` has a gap on every kernel.
#[test]
fn what_cannot_be_held_is_told() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let cgroup = Cgroup::new("agentwatch-coverage");
    let named = cgroup.path().to_str().expect("UTF-8");
    let file = place.write(
        "policy.toml",
        "[files]\nread = ['/']\nexec = ['/']\n[limits]\npids = 100\n",
    );
    let file = file.to_str().expect("UTF-8");
    let attach = [
        "attach", "--cgroup", named, "--policy", file, "--name", "part",
    ];
    let refused = place.cli(&attach);
    assert!(!refused.status.success());
    let said = text(&refused.stderr);
    for part in [
        "cannot hold the whole policy",
        "limits: they hold for what `agentwatch run` starts",
        "--accept-degraded",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(
        text(&place.cli(&["sessions", "--json"]).stdout).trim(),
        "[]"
    );
    assert_eq!(living(&place, "degraded"), 0);

    let accepted = place.cli(&[&attach[..], &["--accept-degraded"]].concat());
    assert!(accepted.status.success(), "{}", text(&accepted.stderr));
    let (coverage, gaps) = told(&place, "part");
    assert_eq!(coverage, "degraded");
    // What the refusal said is what the record says.
    assert!(
        gaps.iter().any(|gap| gap.starts_with("limits: ")),
        "{gaps:?}"
    );
    for gap in &gaps {
        assert!(said.contains(gap.as_str()), "{said}: {gap}");
    }
    assert_eq!(living(&place, "degraded"), 1);
    assert!(place.cli(&["detach", "part"]).status.success());
    place.ended("part");
    assert_eq!(told(&place, "part"), (coverage, gaps));
    assert_eq!(living(&place, "degraded"), 0);
}

#[test]
fn a_rule_that_the_kernel_cannot_hold_is_told() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let names = policy().replace("write = [", "deny = ['**/.env']\nwrite = [");
    let plain = place.run(&names, "plain", "true");
    if plain.status.success() {
        // With BPF LSM names are held.
        assert_eq!(told(&place, "plain"), ("enforcing".to_owned(), Vec::new()));
        return;
    }
    assert_eq!(plain.status.code(), Some(125));
    let said = text(&plain.stderr);
    for part in ["files.deny[0] (**/.env)", "--accept-degraded"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let file = place.write("policy.toml", &names);
    let output = place.cli(&[
        "run",
        "--accept-degraded",
        "--policy",
        file.to_str().expect("UTF-8"),
        "--name",
        "part",
        "--",
        "/bin/true",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (coverage, gaps) = told(&place, "part");
    assert_eq!(coverage, "degraded");
    assert!(gaps.iter().any(|gap| gap.contains("**/.env")), "{gaps:?}");
}

#[test]
fn what_is_held_and_what_is_only_watched_is_told() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let whole = place.run(&policy(), "whole", "true");
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    assert_eq!(told(&place, "whole"), ("enforcing".to_owned(), Vec::new()));

    // What no kernel holds in full for it is not missing where nothing is to be held.
    let watched = format!("mode = 'monitor'\n{}", policy());
    let names = watched.replace("write = [", "deny = ['**/.env']\nwrite = [");
    let output = place.run(&names, "watched", "true");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(told(&place, "watched"), ("off".to_owned(), Vec::new()));
    let events = place.ended("watched");
    let started = events
        .iter()
        .find(|event| event["lifecycle"]["state"] == "started")
        .expect("it began");
    assert_eq!(started["lifecycle"]["backends"], serde_json::json!([]));
}
