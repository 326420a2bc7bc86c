//! The commands that read the history, and who may.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdStream},
    path::Path,
    process::{Command, Output, Stdio},
};

use agentwatch::{
    event::{Event, Kind, model::Lifecycle, samples::sample},
    wire::collector::{Batch, INGEST_SOCKET},
};

use crate::harness::*;

#[tokio::test]
async fn commands_show_the_history_and_no_control_characters() {
    let place = Place::new();
    let _collector = place.start().await;
    let mut connection = place.ingest().await;
    let mut events: Vec<Event> = Kind::ALL.into_iter().map(sample).collect();
    for event in &mut events {
        if let Some(process) = &mut event.process {
            process.argv.push("\x1b]0;owned\x07\u{202e}".to_owned());
        }
    }
    store(
        &mut connection,
        &Batch {
            number: 1,
            events: events.clone(),
        },
    )
    .await;

    let text = |output: &Output| String::from_utf8(output.stdout.clone()).expect("UTF-8");
    let jsonl = place.cli(&["events", "fix-parser", "--format", "jsonl"]);
    assert!(jsonl.status.success());
    let mut printed: Vec<String> = text(&jsonl).lines().map(str::to_owned).collect();
    let mut stored: Vec<String> = events
        .iter()
        .map(|event| serde_json::to_string(event).expect("JSON"))
        .collect();
    printed.sort();
    stored.sort();
    assert_eq!(printed, stored);

    for arguments in [
        &["events"][..],
        &["events", "--kind", "exec,open", "--verdict", "denied"],
        &["timeline", "fix-parser"],
        &["sessions"],
        &["query", "SELECT argv, kind FROM events"],
    ] {
        let output = place.cli(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = text(&output);
        assert!(text.lines().count() > 1, "{arguments:?}: {text}");
        let wild = text.chars().find(|character| {
            (character.is_control() && *character != '\n') || *character == '\u{202e}'
        });
        assert_eq!(wild, None, "{arguments:?}: {text:?}");
    }
    let timeline = text(&place.cli(&["timeline", "fix-parser"]));
    for part in [
        "DENIED",
        "/etc/shadow",
        "files.deny[2]",
        "exit 1 after 1.2s",
        "connect  192.0.2.7:443 (example.org)",
        "42 events",
    ] {
        assert!(timeline.contains(part), "{part}: {timeline}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&place.cli(&["timeline", "fix-parser", "--json"]).stdout)
            .expect("JSON");
    assert_eq!(json.pointer("/processes/0/pid"), Some(&4711.into()));
    let sessions: serde_json::Value =
        serde_json::from_slice(&place.cli(&["sessions", "--json"]).stdout).expect("JSON");
    assert_eq!(sessions.pointer("/0/name"), Some(&"fix-parser".into()));
    let csv = text(&place.cli(&[
        "query",
        "SELECT '=1+1' AS a, 'x\"y' AS b, 3 AS c",
        "--format",
        "csv",
    ]));
    assert_eq!(csv, "a,b,c\r\n'=1+1,\"x\"\"y\",3\r\n");

    let refused = place.cli(&["query", "DELETE FROM event_rows"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("can only be read"));
    let unknown = place.cli(&["timeline", "nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("hint:"));
}

#[test]
fn without_a_collector_the_commands_say_so() {
    let place = Place::new();
    let output = place.cli(&["sessions"]);
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("no collector answers at") && message.contains("hint: agentwatch daemon"),
        "{message}"
    );
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_failure() {
    let place = Place::new();
    let _collector = place.start().await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch(1, 5000)).await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_agentwatch"))
        .args(["events", "--format", "jsonl", "--runtime-dir"])
        .arg(place.runtime())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output())
        .await
        .expect("no panic")
        .expect("its end");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// Another user, where this one may become it: sees own sessions, asks no SQL, brings no events.
#[tokio::test]
async fn a_stranger_sees_only_what_is_theirs() {
    use std::os::unix::process::CommandExt as _;

    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let _collector = place.start().await;
    let mut connection = place.ingest().await;
    let mut events = Vec::new();
    for (session, owner) in [("mine", 54_321), ("theirs", 12_345)] {
        let mut event = sample(Kind::Session);
        event.id = session.to_owned();
        event.session.id = session.to_owned();
        event.session.name = session.to_owned();
        if let Some(Lifecycle::Started { uid, .. }) = &mut event.lifecycle {
            *uid = owner;
        }
        events.push(event);
    }
    store(&mut connection, &Batch { number: 1, events }).await;
    // A copy, since the build directory may not be open to everyone.
    let binary = place.directory.path().join("agentwatch");
    fs::copy(env!("CARGO_BIN_EXE_agentwatch"), &binary).expect("copied");
    let stranger = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .arg("--runtime-dir")
            .arg(place.runtime())
            .uid(54_321)
            .gid(54_321)
            .current_dir("/");
        loop {
            match command.output() {
                // A process that another test started while the copy was written has it open for a moment.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                output => return output.expect("the binary runs"),
            }
        }
    };
    let sessions = String::from_utf8_lossy(&stranger(&["sessions", "--json"]).stdout).into_owned();
    assert!(
        sessions.contains("\"mine\"") && !sessions.contains("\"theirs\""),
        "{sessions}"
    );
    let events =
        String::from_utf8_lossy(&stranger(&["events", "--format", "jsonl"]).stdout).into_owned();
    assert_eq!(events.lines().count(), 1, "{events}");
    assert!(!stranger(&["timeline", "theirs"]).status.success());
    let sql = stranger(&["query", "SELECT * FROM events"]);
    assert!(
        String::from_utf8_lossy(&sql.stderr).contains("only root"),
        "{sql:?}"
    );

    // Even with the socket open to all, the peer's uid decides.
    fs::set_permissions(
        place.socket(INGEST_SOCKET),
        fs::Permissions::from_mode(0o666),
    )
    .expect("set");
    let path = place.socket(INGEST_SOCKET);
    let refused = tokio::task::spawn_blocking(move || as_stranger(&path))
        .await
        .expect("no panic");
    assert!(refused, "a stranger's batch was answered");
    assert_eq!(place.events().await.len(), 2);
}

/// Sends a batch from a thread with another effective uid; whether it was hung up on.
fn as_stranger(path: &Path) -> bool {
    // The system call, unlike libc's function, changes this thread only.
    // SAFETY: setresuid takes three numbers and touches no memory.
    let changed = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, 54_321, -1) };
    assert_eq!(changed, 0, "root may change its effective uid");
    let stream = StdStream::connect(path);
    // SAFETY: as above; the saved uid is still 0, so this thread becomes root again.
    let restored = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, 0, -1) };
    assert_eq!(restored, 0, "the saved uid is root's");
    let mut stream = stream.expect("the socket is open to all");
    let frame = batch(1, 1).frame();
    let length = u32::try_from(frame.len()).expect("small").to_be_bytes();
    // The collector may have hung up already.
    let _ = stream
        .write_all(&length)
        .and_then(|()| stream.write_all(&frame));
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut byte = [0];
    !matches!(std::io::Read::read(&mut stream, &mut byte), Ok(1))
}
