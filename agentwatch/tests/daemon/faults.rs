//! What goes wrong around the daemon.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    process::Stdio,
    time::Duration,
};

use crate::harness::*;

#[test]
fn a_second_daemon_refuses() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let second = place.cli(&["daemon"]);
    assert!(!second.status.success());
    assert!(
        text(&second.stderr).contains("another daemon runs"),
        "{}",
        text(&second.stderr)
    );
    assert!(place.cli(&["status"]).status.success());
}

#[test]
fn a_stale_socket_is_replaced() {
    if !possible() {
        return;
    }
    let place = Place::new();
    place.daemon().kill();
    assert!(place.runtime().join("control.sock").exists());
    let daemon = place.daemon();
    assert!(place.run(&policy(), "after", "true").status.success());
    place.ended("after");
    daemon.stop();
}

#[test]
fn garbage_and_silence_on_the_control_socket_harm_nobody() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let socket = place.runtime().join("control.sock");
    for garbage in [
        &b"\xff\xff\xff\xff"[..],
        b"\0\0\0\x05{\"a\":",
        b"\0\0\0\x02{}",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = UnixStream::connect(&socket).expect("connect");
        stream.write_all(garbage).expect("write");
        stream.shutdown(std::net::Shutdown::Write).expect("end");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    // Asks again and again, and never reads.
    let mut greedy = UnixStream::connect(&socket).expect("connect");
    greedy
        .set_write_timeout(Some(Duration::from_secs(1)))
        .expect("a timeout");
    let ask = b"{\"request\":\"status\"}";
    let mut frame = u32::try_from(ask.len())
        .expect("short")
        .to_be_bytes()
        .to_vec();
    frame.extend_from_slice(ask);
    for _ in 0..20_000 {
        if greedy.write_all(&frame).is_err() {
            break;
        }
    }
    let silent: Vec<UnixStream> = (0..50)
        .map(|_| UnixStream::connect(&socket).expect("connect"))
        .collect();
    assert!(place.run(&policy(), "still", "true").status.success());
    place.ended("still");
    drop(silent);
}

/// Holds as many connections to the control socket as it can, and says nothing.
const CROWD: &str = "
import socket, sys, time
held = []
for _ in range(700):
    one = socket.socket(socket.AF_UNIX)
    one.connect(sys.argv[1])
    held.append(one)
print('held', flush=True)
sys.stdin.read()
";

#[test]
fn a_session_cannot_keep_others_from_the_control_socket() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let script = place.write("work/crowd.py", CROWD);
    let mut crowd = place
        .session(&policy(), "crowd")
        .args(["/usr/bin/python3".as_ref(), script.as_os_str()])
        .arg(place.runtime().join("control.sock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut told = [0; 4];
    let output = crowd.stdout.as_mut().expect("its output");
    output.read_exact(&mut told).expect("it holds them");
    assert!(place.run(&policy(), "other", "true").status.success());
    place.ended("other");
    drop(crowd.stdin.take());
    assert!(crowd.wait().expect("ended").success());
    place.ended("crowd");
}

#[test]
fn nothing_is_lost_while_the_collector_is_away() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let state = place.state();
    let collector = processes(&["collector", state.to_str().expect("UTF-8")]);
    assert_eq!(collector.len(), 1, "{collector:?}");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(collector[0]),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("kill the collector");
    let output = place.run(
        &policy(),
        "meanwhile",
        "for i in 1 2 3 4 5; do ls > /dev/null; done; cat /etc/shadow",
    );
    assert!(!output.status.success());
    let events = place.ended("meanwhile");
    assert!(
        events
            .iter()
            .any(|event| event["verdict"] == "denied" && event["file"]["path"] == "/etc/shadow")
    );
    assert!(
        !events.iter().any(|event| event["kind"] == "loss"),
        "{events:?}"
    );
    assert!(
        place.log().contains("the collector is away"),
        "{}",
        place.log()
    );
}

#[test]
fn a_damaged_spool_is_put_aside_and_declared() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let spool = place.state().join("spool");
    fs::create_dir_all(&spool).expect("a directory");
    fs::write(spool.join("spool.sqlite"), vec![b'x'; 5000]).expect("garbage");
    let _daemon = place.daemon();
    eventually("the loss is in the history", || {
        let output = place.cli(&["events", "--kind", "loss", "--format", "jsonl"]);
        text(&output.stdout).contains("spool_corrupt").then_some(())
    });
    let aside = fs::read_dir(&spool).expect("list").flatten().any(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("spool.damaged-")
    });
    assert!(aside);
}

#[test]
fn a_full_disk_is_declared_and_opens_nothing() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let state = place.state();
    fs::create_dir(&state).expect("a directory");
    nix::mount::mount(
        Some("tmpfs"),
        &state,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=32m,mode=755"),
    )
    .expect("a small file system");
    let daemon = place.daemon();
    let filler = state.join("filler");
    let mut file = fs::File::create(&filler).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);

    // What does not exist cannot be folded: each is an event of its own.
    let script = "i=0; while [ $i -lt 3000 ]; do [ -e x ] < /nowhere/$i; i=$((i+1)); done 2>/dev/null; cat /etc/shadow";
    let output = place.run(&policy(), "full", script);
    assert!(!output.status.success(), "reading /etc/shadow was refused");
    eventually("something is lost or waits", || {
        let status = place.status();
        let count = |name: &str| status[name].as_u64().unwrap_or(0);
        (count("events_lost") + count("spooled") + count("queued") > 0).then_some(())
    });
    fs::remove_file(&filler).expect("make room");
    eventually("nothing waits any more", || {
        let status = place.status();
        (status["spooled"] == 0 && status["queued"] == 0 && status["collector"] == "connected")
            .then_some(())
    });
    let lost = place.status()["events_lost"].as_u64().expect("a count");
    if lost > 0 {
        eventually("the loss is declared", || {
            let output = place.cli(&["events", "--kind", "loss", "--format", "jsonl"]);
            text(&output.stdout).contains("spool_full").then_some(())
        });
    }
    assert!(place.run(&policy(), "after", "true").status.success());
    place.ended("after");
    daemon.stop();
    nix::mount::umount(&state).expect("unmount");
}

/// Asks by a connection that a process made that is gone since.
const BY_THE_DEAD: &str = "
import json, os, socket, struct, sys
s = socket.socket(socket.AF_UNIX)
child = os.fork()
if child == 0:
    s.connect(sys.argv[1])
    os._exit(0)
os.waitpid(child, 0)
def ask(request):
    text = json.dumps(request).encode()
    try:
        s.sendall(struct.pack('>I', len(text)) + text)
        head = s.recv(4, socket.MSG_WAITALL)
        print(s.recv(struct.unpack('>I', head)[0], socket.MSG_WAITALL).decode())
    except (OSError, struct.error):
        print('turned away')
session = os.environ['AGENTWATCH_SESSION']
ask({'request': 'detach', 'session': session, 'now': True})
ask({'request': 'release', 'now': True})
ask({'request': 'why', 'session': session, 'after': 0})
ask({'request': 'sessions'})
try:
    open(sys.argv[2])
except PermissionError:
    print('still held')
";

#[test]
fn who_is_gone_says_nothing_of_who_asks() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let script = place.write("work/dead.py", BY_THE_DEAD);
    let secret = place.write("secret", "s");
    let socket = place.runtime().join("control.sock");
    let command = format!(
        "/usr/bin/python3 {} {} {}",
        script.display(),
        socket.display(),
        secret.display()
    );
    let output = place.run(&policy(), "dead", &command);
    let told = text(&output.stdout);
    // Who had gone before the daemon took the connection has none.
    let refused = told
        .matches("may not start, change or end sessions")
        .count()
        + told.matches("who asks is gone").count()
        + told.matches("turned away").count();
    assert_eq!(refused, 4, "{told} {}", text(&output.stderr));
    assert!(told.contains("still held"), "{told}");
    place.ended("dead");
}
