//! Starting, seeing and ending sessions.

use std::{fs, os::unix::process::CommandExt as _};

use crate::harness::*;

#[test]
fn run_keeps_the_exit_code_and_the_directory() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let output = place.run(&policy(), "seven", "pwd; exit 7");
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stdout).trim(),
        place.work().to_str().expect("UTF-8")
    );
    assert_eq!(
        place
            .run(&policy(), "signal", "kill -TERM $$")
            .status
            .code(),
        Some(128 + 15)
    );

    let file = place.write("policy.toml", &policy());
    let file = file.to_str().expect("UTF-8");
    let missing = place.cli(&[
        "run",
        "--policy",
        file,
        "--",
        "/bin/there-is-no-such-program",
    ]);
    assert_eq!(missing.status.code(), Some(127));
    let script = place.write("work/not-executable", "echo no\n");
    let refused = place.cli(&[
        "run",
        "--policy",
        file,
        "--",
        script.to_str().expect("UTF-8"),
    ]);
    assert_eq!(refused.status.code(), Some(126));

    let events = place.ended("seven");
    assert!(
        events
            .iter()
            .any(|event| event["lifecycle"]["exit_code"] == 7)
    );
    assert!(
        events
            .iter()
            .any(|event| event["kind"] == "exit" && event["exit"]["code"] == 7)
    );
}

#[test]
fn executions_are_recorded_with_their_arguments() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let output = place.run(
        &policy(),
        "arguments",
        "mkdir d; cd d; /bin/true $(printf '%06000d' 0); /bin/cat /dev/null 'two words'; true",
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let events = place.ended("arguments");
    let exec = |program: &str| {
        events
            .iter()
            .find(|event| event["kind"] == "exec" && event["process"]["argv"][0] == program)
            .unwrap_or_else(|| panic!("no execution of {program}: {events:#?}"))
    };
    let long = &exec("/bin/true")["process"];
    assert_eq!(long["argv_truncated"], true);
    let kept: usize = long["argv"]
        .as_array()
        .expect("arguments")
        .iter()
        .map(|a| a.as_str().expect("text").len() + 1)
        .sum();
    assert!((4000..=4096 + 1).contains(&kept), "{kept}");
    let cat = &exec("/bin/cat")["process"];
    assert_eq!(
        cat["argv"],
        serde_json::json!(["/bin/cat", "/dev/null", "two words"])
    );
    assert_eq!(cat["cwd"], *place.work().join("d").to_string_lossy());
    assert_eq!(cat["uid"], 0);
    let shell = &exec("/bin/sh")["process"];
    assert_eq!(cat["ppid"], shell["pid"]);
    assert_eq!(cat["parent_start_ns"], shell["start_ns"]);
}

#[test]
fn a_process_of_a_session_may_not_change_sessions() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let binary = env!("CARGO_BIN_EXE_agentwatch");
    let directory = std::path::Path::new(binary)
        .parent()
        .expect("a directory")
        .display();
    let policy = format!(
        "{}[exec]\n",
        policy()
            .replace(
                "'/proc']",
                &format!("'/proc', '/etc', '/sys', '{directory}', '..']")
            )
            .replace("'/bin']\nwrite", &format!("'/bin', '{directory}']\nwrite"))
    );
    let script = format!(
        "{binary} detach $AGENTWATCH_SESSION; {binary} run -- /bin/true; cat ../secret && exit 1; exit 0"
    );
    let output = place.run(&policy, "inside", &script);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let refusals = text(&output.stderr)
        .matches("may not start, change or end sessions")
        .count();
    assert_eq!(refusals, 2, "{}", text(&output.stderr));
    let events = place.ended("inside");
    assert!(
        events
            .iter()
            .any(|event| event["lifecycle"]["reason"] == "exited"),
        "{events:?}"
    );
}

#[test]
fn run_passes_signals_on() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let script = "trap 'exit 3' TERM; echo > ready; while :; do sleep 0.1; done";
    let mut run = place
        .session(&policy(), "signals")
        .args(["/bin/sh", "-c", script])
        .spawn()
        .expect("start a session");
    eventually("the command is ready", || {
        place.work().join("ready").exists().then_some(())
    });
    let pid = nix::unistd::Pid::from_raw(run.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal it");
    assert_eq!(run.wait().expect("reap it").code(), Some(3));
    place.ended("signals");
}

#[test]
fn without_a_daemon_run_fails_with_125_and_a_hint() {
    let place = Place::new();
    let output = place.cli(&["run", "--", "/bin/true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("agentwatch daemon"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_broken_policy_is_shown_with_its_line() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let output = place.run("[files]\nraed = ['/usr']\n", "broken", "true");
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    for part in ["policy.toml:2", "raed", "read"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(text(&place.cli(&["sessions", "--json"]).stdout).trim() == "[]");
}

#[test]
fn what_is_outside_is_refused_and_recorded_with_its_rule() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    fs::write(place.path().join("secret"), "s").expect("a file");
    let output = place.run(
        &policy(),
        "outside",
        "cat ../secret; echo x > ../made; echo done",
    );
    assert_eq!(text(&output.stdout), "done\n", "{}", text(&output.stderr));
    assert!(!place.path().join("made").exists());
    let events = place.ended("outside");
    let denied: Vec<_> = events
        .iter()
        .filter(|event| event["verdict"] == "denied")
        .collect();
    for name in ["secret", "made"] {
        let path = place.path().join(name);
        assert!(
            denied.iter().any(
                |event| event["file"]["path"] == path.to_str().expect("UTF-8")
                    && event["rule"]["id"] == "files.default"
                    && event["process"]["exe"] != ""
            ),
            "{name}: {denied:?}"
        );
    }
}

#[test]
fn a_user_sees_and_ends_only_their_own_sessions() {
    if !possible() {
        return;
    }
    const USER: u32 = 54_321;
    let place = Place::new();
    let _daemon = place.daemon();
    let mut sleeper = place
        .command()
        .args([
            "run",
            "--mode",
            "monitor",
            "--name",
            "roots",
            "--",
            "/bin/sleep",
            "300",
        ])
        .spawn()
        .expect("start a session");
    let row = eventually("the session is there", || {
        let rows: serde_json::Value =
            serde_json::from_slice(&place.cli(&["sessions", "--json"]).stdout).ok()?;
        rows.as_array()?
            .iter()
            .find(|row| row["name"] == "roots" && row["state"] == "running")
            .cloned()
    });
    let id = row["id"].as_str().expect("an id").to_owned();
    let as_user = |arguments: &[&str]| {
        place
            .command()
            .args(arguments)
            .uid(USER)
            .gid(USER)
            .output()
            .expect("run as the user")
    };
    assert_eq!(text(&as_user(&["sessions", "--json"]).stdout).trim(), "[]");
    let refused = as_user(&["detach", &id]);
    assert!(!refused.status.success());
    assert!(
        text(&refused.stderr).contains("no session"),
        "{}",
        text(&refused.stderr)
    );
    assert!(!as_user(&["query", "SELECT 1"]).status.success());
    assert!(
        !as_user(&["attach", "--cgroup", "/x", "--policy", "/dev/null"])
            .status
            .success()
    );

    assert!(place.cli(&["detach", &id]).status.success());
    place.ended("roots");
    sleeper.kill().expect("end the sleeper");
    let _ = sleeper.wait();
    for pid in processes(&["/bin/sleep", "300"]) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

#[test]
fn a_cgroup_can_be_attached_and_detached() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let cgroup = Cgroup::new("agentwatch-attach");
    let named = cgroup.path().to_str().expect("UTF-8");
    let file = place.write(
        "policy.toml",
        "mode = 'monitor'\n[files]\nread = ['/usr', '/lib', '/lib64', '/bin']\n",
    );
    let file = file.to_str().expect("UTF-8");
    let missing = place.cli(&["attach", "--cgroup", "/there/is/none", "--policy", file]);
    assert!(!missing.status.success());
    assert!(
        text(&missing.stderr).contains("there is no cgroup"),
        "{}",
        text(&missing.stderr)
    );

    let attached = place.cli(&[
        "attach", "--cgroup", named, "--policy", file, "--name", "attached",
    ]);
    assert!(attached.status.success(), "{}", text(&attached.stderr));
    assert!(cgroup.run("cat /etc/hostname > /dev/null").success());
    let again = place.cli(&["attach", "--cgroup", named, "--policy", file]);
    assert!(!again.status.success());
    place.events_until("attached", "what it did is recorded", |events| {
        events
            .iter()
            .any(|event| event["verdict"] == "audited" && event["file"]["path"] == "/etc/hostname")
    });
    assert!(place.cli(&["detach", "attached"]).status.success());
    place.ended("attached");
}

#[test]
fn an_attached_cgroup_is_held() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let cgroup = Cgroup::new("agentwatch-held");
    let named = cgroup.path().to_str().expect("UTF-8");
    let file = place.write("policy.toml", "[files]\nread = ['/']\nexec = ['/']\n");
    let file = file.to_str().expect("UTF-8");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let connect = format!("bash -c ': < /dev/tcp/127.0.0.1/{port}' 2>/dev/null");
    assert!(cgroup.run(&connect).success(), "it works unconfined");

    let attach = [
        "attach", "--cgroup", named, "--policy", file, "--name", "held",
    ];
    let plain = place.cli(&attach);
    if !plain.status.success() {
        // Without BPF LSM files of an attached cgroup cannot be held, and that is said.
        let said = text(&plain.stderr);
        assert!(said.contains("without BPF LSM"), "{said}");
        let degraded = place.cli(&[&attach[..], &["--accept-degraded"]].concat());
        assert!(degraded.status.success(), "{}", text(&degraded.stderr));
    }
    assert!(!cgroup.run(&connect).success(), "it is refused");
    place.events_until("held", "the refusal is recorded", |events| {
        events.iter().any(|event| {
            event["kind"] == "connect"
                && event["verdict"] == "denied"
                && event["net"]["port"] == port
                && event["rule"]["id"] == "network.default"
        })
    });
    assert!(place.cli(&["detach", "held"]).status.success());
    place.ended("held");
}

#[test]
fn a_watched_cgroup_becomes_a_session_and_ends_with_its_processes() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let policy = place.write(
        "watched.toml",
        "mode = 'monitor'\n[files]\nread = ['/']\nexec = ['/']\n",
    );
    let pattern = format!("/agentwatch-watch-{}", std::process::id());
    let config = place.write(
        "daemon.toml",
        &format!(
            "[[watch]]\ncgroup = '{pattern}'\npolicy = '{}'\nname = 'watched'\n",
            policy.display()
        ),
    );
    let _daemon = place.daemon_with(&["--config", config.to_str().expect("UTF-8")]);
    let cgroup = Cgroup::new("agentwatch-watch");
    assert!(cgroup.run("sleep 2; ls / > /dev/null").success());
    let events = place.ended("watched");
    assert!(
        events
            .iter()
            .any(|event| event["lifecycle"]["origin"] == "watch")
    );
    assert!(
        events.iter().any(|event| event["kind"] == "exec"),
        "{events:?}"
    );
}
