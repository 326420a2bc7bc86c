//! What a session, and whoever looks on, is told of refusals.

use std::{fs::File, io::Read as _, os::fd::OwnedFd, process::Stdio};

use serde_json::Value;

use crate::harness::*;

const BINARY: &str = env!("CARGO_BIN_EXE_agentwatch");

/// The usual policy, and the command line for the session to ask with.
fn asking() -> String {
    let policy = policy().replace("exec = [", &format!("exec = ['{BINARY}', "));
    let policy = policy.replace("read = [", &format!("read = ['{BINARY}', "));
    format!("{policy}[exec]\ndeny = ['/usr/bin/yes']\n")
}

#[test]
fn a_session_learns_why_it_was_refused() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let secret = place.write("secret\u{1b}(0", "s");
    let _daemon = place.daemon();
    let other = place.run(&policy(), "other", "cat /etc/shadow");
    assert_eq!(other.status.code(), Some(1));
    let script = format!(
        "export LC_ALL=C; cat '{}' 2>/dev/null; /usr/bin/yes 2>/dev/null; {BINARY} why; {BINARY} why --json >&2; {BINARY} why other",
        secret.display()
    );
    let output = place.run(&asking(), "asks", &script);
    let told = text(&output.stdout);
    for expected in [
        "denied: open ",
        "secret\\x1b(0 (read) by cat[",
        ", EACCES\n  rule   files.default\n  to do  the task's policy does not name it",
        "denied: exec /usr/bin/yes by ",
        "  rule   exec.deny[0], ",
        "policy.toml:6: /usr/bin/yes\n  to do  the task's policy says so (",
    ] {
        assert!(told.contains(expected), "{expected} is missing in\n{told}");
    }
    assert!(!told.contains('\u{1b}'), "{told}");
    assert!(!told.contains("shadow"), "{told}");
    let errors = text(&output.stderr);
    assert!(
        errors.contains("a process of a session is told of its own session alone"),
        "{errors}"
    );
    let json = &errors[errors.find('{').expect("JSON")..=errors.rfind('}').expect("JSON")];
    let answer: Value = serde_json::from_str(json).expect("JSON");
    assert_eq!(answer["name"], "asks");
    let refused = answer["refused"].as_array().expect("a list");
    let decider = |of: usize| &refused[of]["advice"]["decider"];
    assert_eq!((decider(0), decider(1)), (&"owner".into(), &"owner".into()));
    assert_eq!(refused[1]["event"]["rule"]["id"], "exec.deny[0]");
    assert_eq!(refused[1]["text"], "/usr/bin/yes");

    // Outside, a session is named, and has to live.
    place.ended("asks");
    for (arguments, expected) in [
        (&["why"][..], "this process is in no session"),
        (&["why", "asks"], "no session asks is running"),
    ] {
        let output = place.cli(arguments);
        assert_eq!(output.status.code(), Some(1));
        let told = text(&output.stderr);
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn the_terminal_of_a_session_is_told_in_a_line() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let file = place.write("policy.toml", &policy());
    let script = "cat /etc/shadow 2>/dev/null; cat /etc/gshadow 2>/dev/null; sleep 2.5";
    let run = |more: &[&str]| {
        let terminal = nix::pty::openpty(None, None).expect("a terminal");
        let slave: OwnedFd = terminal.slave;
        let mut child = place
            .command()
            .args([
                "run",
                "--policy",
                file.to_str().expect("UTF-8"),
                "--name",
                "told",
            ])
            .args(more)
            .args(["--", "/bin/sh", "-c", script])
            .env("LC_ALL", "C")
            .stdout(Stdio::null())
            .stderr(Stdio::from(slave))
            .spawn()
            .expect("run agentwatch");
        assert!(child.wait().expect("reap it").success());
        let mut shown = Vec::new();
        // The end of a terminal's other side reads as an error.
        let _ = File::from(terminal.master).read_to_end(&mut shown);
        text(&shown)
    };
    let shown = run(&[]);
    let notes: Vec<&str> = shown
        .lines()
        .filter(|line| line.contains("denied"))
        .collect();
    let [note] = notes.as_slice() else {
        panic!("{shown:?}");
    };
    assert!(
        note.contains("agentwatch: denied by files.default: open /etc/gshadow (read), cat["),
        "{note}"
    );
    assert!(
        note.contains(", and 1 more; hint: agentwatch why"),
        "{note}"
    );
    assert!(!run(&["--quiet"]).contains("denied"));
}
