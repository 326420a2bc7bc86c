//! What people decide, as others are told of it: notifications, the reviewer and reports have names and reasons, and no secrets.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::harness::*;

const SECRET: &str = "hunter2hunter2";

/// A web hook: hands on what is posted to it.
fn web_hook() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!(
        "http://{}/hook",
        listener.local_addr().expect("its address")
    );
    let (told, posts) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
            while let Ok(n @ 1..) = stream.read(&mut part) {
                bytes.extend_from_slice(&part[..n]);
                let text = String::from_utf8_lossy(&bytes);
                // A request is whole when its JSON is.
                if let Some((_, body)) = text.split_once("\r\n\r\n")
                    && serde_json::from_str::<Value>(body).is_ok()
                {
                    let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
                    let _ = stream.write_all(answer);
                    if told.send(body.to_owned()).is_err() {
                        return;
                    }
                    break;
                }
            }
        }
    });
    (url, posts)
}

#[test]
fn decisions_are_told_with_names_and_reasons_and_without_secrets() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let told = place.path().join("told");
    fs::create_dir(&told).expect("a directory");
    // The commands are nobody's in particular.
    fs::set_permissions(&told, fs::Permissions::from_mode(0o777)).expect("open it");
    let (url, posts) = web_hook();
    let config = place.write(
        "daemon.toml",
        &format!(
            "[approvals.notify]\ncommand = ['/bin/sh', '-c', 'cat >> {0}/notified']\nwebhook = '{url}'\n\
             [approvals.reviewer]\ncommand = ['/bin/sh', '-c', 'cat >> {0}/reviewed; echo \"{{\\\"verdict\\\":\\\"escalate\\\",\\\"reason\\\":\\\"look at it\\\"}}\"']\n",
            told.display()
        ),
    );
    let daemon = place.daemon_with(&["--config", config.to_str().expect("UTF-8")]);
    let policy = format!("{}[exec]\napprove = [['env', 'A=1']]\n", policy());
    let command = format!("env A=1 true --password {SECRET}");
    let policy = place.write("policy.toml", &policy);
    let mut session = place
        .command()
        .args(["run", "--name", "decided", "--policy"])
        .arg(policy)
        .args(["--", "/bin/sh", "-c"])
        .arg(format!("{command}; {command}; true"))
        .spawn()
        .expect("start a session");
    for (verb, reason) in [
        ("approve", "ticket T-1 says so"),
        ("reject", "once is enough"),
    ] {
        let id = eventually("something waits for a person", || {
            let output = place.cli(&["approvals", "--json"]);
            let requests: Value = serde_json::from_slice(&output.stdout).ok()?;
            let request = requests.as_array()?.first()?;
            // The reviewer was asked about it; a person decides.
            request["review"]
                .is_string()
                .then(|| request["id"].as_str().map(str::to_owned))?
        });
        let output = place.cli(&[verb, &id, "--reason", reason]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert!(session.wait().expect("reap it").success());
    place.ended("decided");

    // Requested, escalated and approved; requested, escalated and rejected.
    let mut payloads: Vec<String> = (0..6)
        .map(|_| {
            posts
                .recv_timeout(Duration::from_secs(60))
                .expect("the web hook is told")
        })
        .collect();
    eventually("the command is told", || {
        let text = fs::read_to_string(told.join("notified")).ok()?;
        (text.matches("\"step\":").count() >= 6).then_some(())
    });
    for name in ["notified", "reviewed"] {
        payloads.push(fs::read_to_string(told.join(name)).expect("it was told"));
    }
    for payload in &payloads {
        assert!(payload.contains("[redacted:value:"), "{payload}");
        assert!(!payload.contains(SECRET), "{payload}");
    }

    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .expect("users can be looked up")
        .expect("we are one");
    let who = format!("{} (uid {})", user.name, user.uid);
    for format in ["text", "md", "html"] {
        let output = place.cli(&["report", "decided", "--format", format]);
        let page = text(&output.stdout).replace('\\', "");
        for part in [
            who.as_str(),
            "ticket T-1 says so",
            "once is enough",
            "look at it",
        ] {
            assert!(page.contains(part), "{format}: {part}: {page}");
        }
        assert!(!page.contains(SECRET), "{format}: {page}");
    }
    let output = place.cli(&["report", "decided", "--format", "json"]);
    assert!(!text(&output.stdout).contains(SECRET));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report is JSON");
    let steps = report["approvals"].as_array().expect("a list");
    for (step, reason) in [
        ("approved", "ticket T-1 says so"),
        ("rejected", "once is enough"),
    ] {
        let found = steps
            .iter()
            .find(|it| it["step"] == step)
            .unwrap_or_else(|| panic!("{step}: {steps:#?}"));
        assert_eq!(found["reason"], reason);
        assert_eq!(found["by"]["kind"], "user");
        assert_eq!(found["by"]["name"], user.name.as_str());
        assert_eq!(found["by"]["uid"], user.uid.as_raw());
    }
    daemon.stop();
}
