//! The administrator's floor, and policies that build on others, in sessions.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use crate::harness::*;

/// A directory for the administrator's policies, and the configuration that names it.
fn floor(place: &Place, text: &str) -> (PathBuf, PathBuf) {
    let directory = place.path().join("managed.d");
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join("10-floor.toml"), text).expect("a floor");
    let config = place.write(
        "daemon.toml",
        &format!("managed_dir = '{}'\n", directory.display()),
    );
    (directory, config)
}

#[test]
fn the_floor_holds_in_every_session() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let secret = place.write("secret", "s");
    let (directory, config) = floor(
        &place,
        &format!(
            "mode = 'enforce'\n[files]\ndeny = ['{}']\n",
            secret.display()
        ),
    );
    let _daemon = place.daemon_with(&["--config", config.to_str().expect("UTF-8")]);
    // The task names the very file, and asks for a mode that enforces nothing.
    let task = policy().replace("'/proc']", &format!("'/proc', '{}']", secret.display()));
    let task = format!("mode = 'monitor'\n{task}");
    let output = place.run(&task, "floor", &format!("cat {}", secret.display()));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let told = text(&output.stderr);
    assert!(told.contains("mode `monitor` changes nothing"), "{told}");
    assert!(!text(&output.stdout).contains('s'));
    let events = place.ended("floor");
    assert_eq!(events[0]["session"]["mode"], "enforce");
    let rules = events
        .iter()
        .find_map(|event| event["lifecycle"]["policy"]["rules"].as_array())
        .expect("the policy is in the record");
    let managed: Vec<_> = rules
        .iter()
        .filter(|rule| rule["layer"] == "managed")
        .collect();
    assert_eq!(managed.len(), 1);
    let source = format!("{}/10-floor.toml:3", directory.display());
    assert_eq!(managed[0]["source"], *source);
    assert!(rules.iter().any(|rule| {
        rule["source"]
            .as_str()
            .is_some_and(|at| at.contains("policy.toml:"))
    }));

    let shown = place.cli(&["policy", "show", "floor"]);
    let shown = text(&shown.stdout);
    assert!(shown.contains("managed  files.deny[0]"), "{shown}");
    assert!(shown.contains(&source), "{shown}");
    assert!(shown.contains("mode    enforce"), "{shown}");
}

#[test]
fn a_link_does_not_lead_around_the_floor() {
    if !possible() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path().join("closed")).expect("a directory");
    let secret = place.write("closed/secret", "s");
    let (_, config) = floor(
        &place,
        &format!(
            "[files]\ndeny = ['{}']\n",
            place.path().join("closed").display()
        ),
    );
    let link = place.path().join("link");
    std::os::unix::fs::symlink(&secret, &link).expect("a link");
    let _daemon = place.daemon_with(&["--config", config.to_str().expect("UTF-8")]);
    let task = policy().replace("'/proc']", &format!("'/proc', '{}']", link.display()));
    let output = place.run(
        &task,
        "link",
        &format!("cat {0}; cat {1}", secret.display(), link.display()),
    );
    assert!(!output.status.success());
    assert!(text(&output.stdout).is_empty(), "{}", text(&output.stdout));
}

#[test]
fn a_floor_that_cannot_be_used_stops_every_session() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let (directory, config) = floor(&place, "[files]\nraed = []\n");
    let _daemon = place.daemon_with(&["--config", config.to_str().expect("UTF-8")]);
    let refused = |what: &str| {
        let output = place.run(&policy(), "none", "echo ran");
        assert_eq!(output.status.code(), Some(125));
        let told = text(&output.stderr);
        assert!(told.contains(what), "{told}");
        assert!(!text(&output.stdout).contains("ran"));
    };
    refused("there is no key `files.raed`");
    let file = directory.join("10-floor.toml");
    fs::write(&file, "mode = 'enforce'\n").expect("a floor");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("open it");
    refused("can be written by others than root");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("close it");
    let output = place.run(&policy(), "some", "echo ran");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_floor_says_who_and_how_well() {
    use std::os::unix::process::CommandExt as _;
    if !possible() {
        return;
    }
    let place = Place::new();
    let (directory, config) = floor(
        &place,
        "accept_degraded = false\n[sessions]\nusers = ['65533']\n",
    );
    let _daemon = place.daemon_with(&["--config", config.to_str().expect("UTF-8")]);
    fs::set_permissions(place.work(), fs::Permissions::from_mode(0o777)).expect("open it");
    let file = place.write("policy.toml", &policy());
    let as_user = |uid: u32| {
        place
            .command()
            .args([
                "run",
                "--policy",
                file.to_str().expect("UTF-8"),
                "--",
                "/bin/sh",
                "-c",
                "echo ran",
            ])
            .env("HOME", "/")
            .uid(uid)
            .gid(uid)
            .output()
            .expect("run agentwatch")
    };
    let refused = as_user(65532);
    assert_eq!(refused.status.code(), Some(125));
    let told = text(&refused.stderr);
    assert!(told.contains("user 65532 may not start sessions"), "{told}");
    assert!(told.contains("10-floor.toml:3"), "{told}");
    let admitted = as_user(65533);
    assert!(admitted.status.success(), "{}", text(&admitted.stderr));

    // What cannot be held in full does not start at all, where something cannot be held.
    let names = policy().replace("write = [", "deny = ['**/.env']\nwrite = [");
    let file = place.write("names.toml", &names);
    let output = place.cli(&[
        "run",
        "--accept-degraded",
        "--policy",
        file.to_str().expect("UTF-8"),
        "--",
        "/bin/true",
    ]);
    if !output.status.success() {
        let told = text(&output.stderr);
        assert!(
            told.contains("10-floor.toml:1 forbids sessions that are held in part"),
            "{told}"
        );
        assert!(told.contains("(**/.env)"), "{told}");
    }
    drop(directory);
}

#[test]
fn a_policy_builds_on_files_and_presets() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    place.write("base.toml", &policy());
    let secret = place.write("work/secret", "s");
    let task = "extends = ['base.toml']\n[task]\ngoal = 'see'\n[limits]\nwall_time = '1h'\n";
    let output = place.run(task, "built", &format!("cat {}", secret.display()));
    assert_eq!(text(&output.stdout), "s", "{}", text(&output.stderr));
    let events = place.ended("built");
    let started = &events
        .iter()
        .find(|event| event["lifecycle"]["state"] == "started")
        .expect("it started")["lifecycle"]["policy"];
    assert_eq!(started["task"]["goal"], "see");
    assert_eq!(started["limits"]["wall_time"], 3600);

    let output = place.run("extends = ['none.toml']\n", "broken", "true");
    assert_eq!(output.status.code(), Some(125));
    let told = text(&output.stderr);
    assert!(
        told.contains("none.toml` cannot be read: No such file"),
        "{told}"
    );
}

#[test]
fn secrets_of_the_environment_stay_outside() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let run = |policy: &str| {
        let file = place.write("policy.toml", policy);
        let output = place
            .command()
            .args(["run", "--policy", file.to_str().expect("UTF-8"), "--"])
            .args([
                "/bin/sh",
                "-c",
                "echo ${MY_API_KEY-none} ${OTHER_TOKEN-none} ${PLAIN-none}",
            ])
            .envs([("MY_API_KEY", "k"), ("OTHER_TOKEN", "t"), ("PLAIN", "p")])
            .output()
            .expect("run agentwatch");
        (text(&output.stdout), text(&output.stderr))
    };
    let (out, told) = run(&policy());
    assert_eq!(out.trim(), "none none p", "{told}");
    assert!(
        told.contains("not passed on: MY_API_KEY, OTHER_TOKEN")
            || told.contains("not passed on: OTHER_TOKEN, MY_API_KEY"),
        "{told}"
    );
    let (out, told) = run(&format!(
        "{}[env]\npass = ['MY_*']\ndrop = ['PLAIN']\n",
        policy()
    ));
    assert_eq!(out.trim(), "k none none", "{told}");
}

#[test]
fn a_session_ends_when_its_time_is_over() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let limited = format!("{}[limits]\nwall_time = '2s'\n", policy());
    let output = place.run(&limited, "long", "sleep 300 & sleep 300");
    assert_eq!(
        output.status.code(),
        Some(128 + 9),
        "{}",
        text(&output.stderr)
    );
    let events = place.ended("long");
    assert!(
        events
            .iter()
            .any(|event| event["lifecycle"]["reason"] == "wall_time"),
        "{events:#?}"
    );
    // One that is done before is not.
    assert!(place.run(&limited, "short", "true").status.success());
    let events = place.ended("short");
    assert!(
        events
            .iter()
            .any(|event| event["lifecycle"]["reason"] == "exited")
    );
}

#[test]
fn limits_are_held_or_said_to_be_missing() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let limited = format!(
        "{}[limits]\npids = 5\nmemory = '64MiB'\ncpu = 0.5\n",
        policy()
    );
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait";
    let output = place.run(&limited, "few", script);
    let told = text(&output.stderr);
    if output.status.code() == Some(125) {
        for limit in [
            "limits.pids: the controller pids",
            "limits.memory: the controller memory",
            "limits.cpu: the controller cpu",
        ] {
            assert!(told.contains(limit), "{told}");
        }
        let mode = format!("mode = 'monitor'\n{limited}");
        assert!(
            place.run(&mode, "watched", "true").status.success(),
            "in this mode nothing is held"
        );
        return;
    }
    assert!(
        told.contains("fork") || told.contains("Resource temporarily unavailable"),
        "{told}"
    );
}

#[test]
fn a_policy_is_learned_and_judges_the_history() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let script = "mkdir -p out; cat /etc/hostname > out/a; mv out/a out/b; cp /bin/true out/prog; ./out/prog; rm -r out";
    let monitor = place.run("mode = 'monitor'\n", "watched", script);
    assert!(monitor.status.success(), "{}", text(&monitor.stderr));
    place.ended("watched");

    let work = place.work();
    let from = work.to_str().expect("UTF-8");
    let learned = place.cli(&["policy", "learn", "watched", "--from", from]);
    let told = text(&learned.stderr);
    assert!(learned.status.success(), "{told}");
    assert!(!told.contains("still denied"), "{told}");
    let learned = text(&learned.stdout);
    assert!(learned.contains("\"${workspace}\", # seen"), "{learned}");

    // Under it the same work is done, and nothing is denied.
    let file = place.write("learned.toml", &learned);
    let path = file.to_str().expect("UTF-8");
    let again = place.cli(&[
        "run",
        "--accept-degraded",
        "--policy",
        path,
        "--name",
        "again",
        "--",
        "/bin/sh",
        "-c",
        script,
    ]);
    assert!(again.status.success(), "{}\n{learned}", text(&again.stderr));
    let denied: Vec<_> = place
        .ended("again")
        .into_iter()
        .filter(|event| event["verdict"] == "denied")
        .collect();
    assert!(denied.is_empty(), "{denied:#?}\n{learned}");

    let judged = place.cli(&[
        "policy",
        "backtest",
        path,
        "--json",
        "--sessions",
        "again,watched",
    ]);
    assert_eq!(judged.status.code(), Some(0), "{}", text(&judged.stdout));
    let judged: serde_json::Value = serde_json::from_slice(&judged.stdout).expect("JSON");
    assert_eq!(judged["sessions"].as_array().map(Vec::len), Some(2));
    assert!(judged["judged"].as_u64() > Some(5), "{judged}");

    let narrow = place.write(
        "narrow.toml",
        "[files]\nread = ['/usr', '/never']\nexec = ['/usr']\n",
    );
    let judged = place.cli(&[
        "policy",
        "backtest",
        narrow.to_str().expect("UTF-8"),
        "--since",
        "1h",
    ]);
    assert_eq!(judged.status.code(), Some(1));
    let out = text(&judged.stdout);
    assert!(out.contains("by files.default, session again"), "{out}");
    assert!(out.contains("files.read[1] /never"), "{out}");
    let unknown = place.cli(&["policy", "backtest", path, "--sessions", "nobody"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", text(&unknown.stdout));
}
