//! Sessions go on without a daemon: what is denied stays denied, and the next daemon takes over without losing anything
//! that it does not declare.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::harness::*;

/// Opens, execs and forks without an end, until there is a file `enough`; says what was let through that may not be.
const STORM: &str = "
echo > started
while [ ! -e enough ]; do
  cat ../secret 2> /dev/null && echo secret >> wrong
  (ls / ; (cat ../secret && echo forked >> wrong)) > /dev/null 2>&1
  echo > made/$RANDOM
done
exit 7
";

fn storm(place: &Place, name: &str) -> Child {
    fs::write(place.path().join("secret"), "s").expect("a file");
    fs::create_dir_all(place.work().join("made")).expect("a directory");
    let _ = fs::remove_file(place.work().join("enough"));
    let _ = fs::remove_file(place.work().join("started"));
    let file = place.write("policy.toml", &policy());
    let child = place
        .command()
        .args([
            "run",
            "--policy",
            file.to_str().expect("UTF-8"),
            "--name",
            name,
        ])
        .args(["--", "/bin/bash", "-c", STORM])
        .stdout(Stdio::null())
        .spawn()
        .expect("start a session");
    eventually("the storm has begun", || {
        place.work().join("started").exists().then_some(())
    });
    child
}

fn calm(place: &Place) {
    fs::write(place.work().join("enough"), "").expect("a file");
}

fn wrong(place: &Place) -> String {
    fs::read_to_string(place.work().join("wrong")).unwrap_or_default()
}

fn lifecycles(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .filter_map(|event| event["lifecycle"]["state"].as_str())
        .map(str::to_owned)
        .collect()
}

fn pins(place: &Place) -> PathBuf {
    let digest = Sha256::digest(place.runtime().as_os_str().as_encoded_bytes());
    Path::new("/sys/fs/bpf/agentwatch").join(hex::encode(&digest[..8]))
}

/// The one file in which a session is written down.
fn record(place: &Place) -> PathBuf {
    let mut files: Vec<PathBuf> = fs::read_dir(place.state().join("sessions"))
        .expect("list")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "session"))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn a_killed_daemon_is_taken_over_under_load() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let mut run = storm(&place, "storm");
    std::thread::sleep(Duration::from_secs(1));
    daemon.kill();
    assert!(
        pins(&place).join("current").is_symlink(),
        "everything stays"
    );
    // Nobody is there, and what may not be is not.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(wrong(&place), "");

    let begun = Instant::now();
    let daemon = place.daemon();
    println!(
        "taken over and answering after {} ms",
        begun.elapsed().as_millis()
    );
    assert!(place.log().contains("programs=Adopted"), "{}", place.log());
    let sessions = text(&place.cli(&["sessions", "--json"]).stdout);
    assert!(sessions.contains("\"running\""), "{sessions}");
    std::thread::sleep(Duration::from_secs(1));
    calm(&place);
    assert_eq!(
        run.wait().expect("reap it").code(),
        Some(7),
        "the exit code is kept"
    );
    let events = place.ended("storm");
    assert_eq!(wrong(&place), "");
    accounted(&events);
    assert_eq!(lifecycles(&events), ["started", "resumed", "ended"]);
    let end = events.last().expect("events");
    assert_eq!(end["lifecycle"]["reason"], "exited");
    assert_eq!(end["lifecycle"]["exit_code"], 7);
    daemon.stop();
    assert!(!pins(&place).exists(), "nothing stays without a session");
}

#[test]
fn what_a_killed_daemon_had_in_memory_is_declared() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let collector = place.collector();
    let mut run = storm(&place, "lossy");
    // What is sent to one that does not read waits in memory.
    kill(collector, Signal::SIGSTOP).expect("stop the collector");
    std::thread::sleep(Duration::from_millis(700));
    daemon.kill();
    kill(collector, Signal::SIGCONT).expect("let it go on");
    let daemon = place.daemon();
    calm(&place);
    assert_eq!(run.wait().expect("reap it").code(), Some(7));
    let events = place.ended("lossy");
    accounted(&events);
    let reasons: Vec<&Value> = events
        .iter()
        .filter(|event| event["kind"] == "loss")
        .map(|event| &event["loss"]["reason"])
        .collect();
    println!("losses: {reasons:?}");
    // Where the machine has other work, the storm can be faster than the daemon.
    assert!(
        reasons
            .iter()
            .all(|reason| *reason == "daemon_killed" || *reason == "ring_full"),
        "{reasons:?}"
    );
    daemon.stop();
}

#[test]
fn a_daemon_killed_again_and_again_tells_everything_once() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let mut daemon = place.daemon();
    let mut run = storm(&place, "again");
    for pause in [0, 50, 200, 600, 1500] {
        daemon.kill();
        daemon = place.daemon();
        std::thread::sleep(Duration::from_millis(pause));
    }
    calm(&place);
    assert_eq!(run.wait().expect("reap it").code(), Some(7));
    let events = place.ended("again");
    assert_eq!(wrong(&place), "");
    accounted(&events);
    daemon.stop();
}

#[test]
fn a_stopped_daemon_leaves_its_sessions_in_force() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let mut run = storm(&place, "kept");
    daemon.stop();
    assert!(
        place.log().contains("stay enforced without a daemon"),
        "{}",
        place.log()
    );
    assert!(pins(&place).exists());
    // Its command ends while nobody is there, and is waited for.
    calm(&place);
    std::thread::sleep(Duration::from_millis(500));
    let daemon = place.daemon();
    assert_eq!(run.wait().expect("reap it").code(), Some(7));
    let events = place.ended("kept");
    accounted(&events);
    assert!(
        !events.iter().any(|event| event["kind"] == "loss"),
        "a stop loses nothing"
    );
    assert_eq!(events.last().expect("events")["lifecycle"]["exit_code"], 7);
    daemon.stop();
    assert!(!pins(&place).exists());
}

#[test]
fn release_ends_everything() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let mut run = storm(&place, "first");
    let released = place.cli(&["release"]);
    assert!(released.status.success(), "{}", text(&released.stderr));
    assert!(!pins(&place).exists());
    calm(&place);
    assert_eq!(run.wait().expect("reap it").code(), Some(7));
    daemon.reap();

    let daemon = place.daemon();
    let events = place.ended("first");
    accounted(&events);
    assert_eq!(
        events.last().expect("events")["lifecycle"]["reason"],
        "released"
    );

    // The same without a daemon.
    let mut run = storm(&place, "second");
    daemon.kill();
    let released = place.cli(&["release"]);
    assert!(released.status.success(), "{}", text(&released.stderr));
    assert!(!pins(&place).exists());
    calm(&place);
    let _daemon = place.daemon();
    assert_eq!(run.wait().expect("reap it").code(), Some(7));
    let events = place.ended("second");
    assert_eq!(
        events
            .iter()
            .find(|event| event["lifecycle"]["state"] == "ended")
            .expect("an end")["lifecycle"]["reason"],
        "released"
    );
}

#[test]
fn a_session_whose_record_is_damaged_stays_enforced() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let mut run = storm(&place, "damaged");
    // What only the record knows is gone with it.
    eventually("its beginning is in the history", || {
        let output = place.cli(&[
            "events", "damaged", "--kind", "session", "--format", "jsonl",
        ]);
        (!output.stdout.is_empty()).then_some(())
    });
    daemon.kill();
    let file = record(&place);
    let mut bytes = fs::read(&file).expect("the record");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).expect("damage it");

    let daemon = place.daemon();
    assert!(file.with_extension("damaged").exists());
    assert!(
        place.log().contains("does not have the digest"),
        "{}",
        place.log()
    );
    assert_eq!(place.status()["kernel"]["unknown_sessions"], 1);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(wrong(&place), "");
    eventually("the damage is in the history", || {
        let output = place.cli(&["events", "--kind", "loss", "--format", "jsonl"]);
        text(&output.stdout)
            .contains("record_damaged")
            .then_some(())
    });
    // The history is told that nobody knows how it ended.
    let events = place.ended("damaged");
    assert_eq!(
        events.last().expect("events")["lifecycle"]["reason"],
        "lost"
    );
    calm(&place);
    assert_eq!(run.wait().expect("reap it").code(), Some(7));
    eventually("nothing of it is left in the kernel", || {
        (place.status()["kernel"]["unknown_sessions"] == 0).then_some(())
    });
    // Numbers go on above its own.
    assert!(place.run(&policy(), "next", "true").status.success());
    place.ended("next");
    daemon.stop();
    assert!(!pins(&place).exists());
}

#[test]
fn sessions_of_another_boot_have_ended() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let mut run = storm(&place, "rebooted");
    std::thread::sleep(Duration::from_millis(500));
    daemon.kill();
    let file = record(&place);
    let content = fs::read_to_string(&file).expect("the record");
    let (_, json) = content.split_once('\n').expect("a digest first");
    let mut value: Value = serde_json::from_str(json).expect("JSON");
    value["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
    let json = value.to_string();
    fs::write(
        &file,
        format!("{}\n{json}", hex::encode(Sha256::digest(&json))),
    )
    .expect("another boot's");
    // And with the boot the kernel's side is gone.
    fs::remove_dir_all(pins(&place)).expect("unpin");
    calm(&place);
    let _daemon = place.daemon();
    let _ = run.wait();
    let events = place.ended("rebooted");
    let end = events
        .iter()
        .find(|event| event["lifecycle"]["state"] == "ended")
        .expect("an end");
    assert_eq!(end["lifecycle"]["reason"], "host_restarted");
    let unknown = events
        .iter()
        .find(|event| event["loss"]["reason"] == "host_restarted");
    assert_eq!(
        unknown.expect("what came after is declared")["loss"]["events"],
        0
    );
    assert!(!file.exists());
}

#[test]
fn other_programs_take_the_place_of_those_of_before() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let mut run = storm(&place, "upgraded");
    daemon.kill();
    // What is attached says that it comes from another build.
    let current = pins(&place).join("current");
    let text = fs::read_link(&current).expect("what is attached");
    let mut parts: Vec<&str> = text.to_str().expect("text").split(':').collect();
    parts[1] = "00";
    fs::remove_file(&current).expect("unlink");
    std::os::unix::fs::symlink(parts.join(":"), &current).expect("write");
    let daemon = place.daemon();
    assert!(place.log().contains("programs=Replaced"), "{}", place.log());
    let links = fs::read_dir(pins(&place))
        .expect("list")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("links_"))
        .count();
    assert_eq!(links, 1, "the old programs are gone");
    std::thread::sleep(Duration::from_secs(1));
    calm(&place);
    assert_eq!(run.wait().expect("reap it").code(), Some(7));
    assert_eq!(wrong(&place), "");
    accounted(&place.ended("upgraded"));
    daemon.stop();
    assert!(!pins(&place).exists());
}

#[test]
fn maps_of_another_form_are_not_taken_over_and_stay_in_force() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let mut run = storm(&place, "old");
    daemon.kill();
    let pins = pins(&place);
    let current = pins.join("current");
    let text = fs::read_link(&current).expect("what is attached");
    let mut parts: Vec<&str> = text.to_str().expect("text").split(':').collect();
    parts[1] = "00";
    fs::remove_file(&current).expect("unlink");
    std::os::unix::fs::symlink(parts.join(":"), &current).expect("write");
    // A map with keys of another size under that name.
    let maps = pins.join("maps");
    fs::rename(maps.join("CGROUPS"), maps.join("KEPT")).expect("rename");
    fs::hard_link(maps.join("PROCESSES"), maps.join("CGROUPS")).expect("link");
    let refused = place.cli(&["daemon"]);
    assert!(!refused.status.success());
    let said = text_of(&refused);
    assert!(
        said.contains("CGROUPS") && said.contains("agentwatch release"),
        "{said}"
    );
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(wrong(&place), "", "it stays in force");
    let released = place.cli(&["release"]);
    assert!(released.status.success(), "{}", text_of(&released));
    assert!(!pins.exists());
    calm(&place);
    let _daemon = place.daemon();
    assert_eq!(run.wait().expect("reap it").code(), Some(7));
    place.ended("old");
}

fn text_of(output: &std::process::Output) -> String {
    text(&output.stderr)
}

#[test]
fn what_a_daemon_without_directories_left_is_swept() {
    if !possible() {
        return;
    }
    let gone = {
        let place = Place::new();
        place.daemon().kill();
        place.leave();
        let pins = pins(&place);
        assert!(pins.exists());
        pins
    };
    let place = Place::new();
    let _daemon = place.daemon();
    assert!(!gone.exists());
}

/// Connects to ports in turn from many threads and processes, as root inside the session.
const CONNECT: &str = r#"
import os, socket, sys, threading
ports, enough = [int(p) for p in sys.argv[1].split(',')], sys.argv[2]
out = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def work():
    while not os.path.exists(enough):
        for port in ports:
            try:
                socket.create_connection(('127.0.0.1', port), 2).close()
                os.write(out, f'{port} yes\n'.encode())
            except PermissionError:
                os.write(out, f'{port} no\n'.encode())
            except OSError:
                pass
if os.fork() == 0:
    os.setsid()
    work()
    os._exit(0)
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os.wait()
"#;

/// Listeners on ports of their own, that take what comes.
fn listeners(n: usize) -> Vec<u16> {
    (0..n)
        .map(|_| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
            let port = listener.local_addr().expect("an address").port();
            std::thread::spawn(move || listener.incoming().for_each(drop));
            port
        })
        .collect()
}

fn attach(place: &Place, cgroup: &Cgroup, name: &str, policy: &str) {
    let named = cgroup.path().to_str().expect("UTF-8");
    let file = place.write(&format!("{name}.toml"), policy);
    let attached = place.cli(&[
        "attach",
        "--cgroup",
        named,
        "--policy",
        file.to_str().expect("UTF-8"),
        "--name",
        name,
        "--accept-degraded",
    ]);
    assert!(attached.status.success(), "{}", text(&attached.stderr));
}

fn python() -> bool {
    Path::new("/usr/bin/python3").exists()
}

fn connector(place: &Place, cgroup: &Cgroup, ports: &[u16]) -> Child {
    let script = place.write("connect.py", CONNECT);
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let command = format!(
        "echo $$ > {}/cgroup.procs; exec /usr/bin/python3 {} {} {} {}",
        cgroup.path().display(),
        script.display(),
        ports.join(","),
        place.work().join("enough").display(),
        place.work().join("connects").display()
    );
    std::process::Command::new("/bin/sh")
        .args(["-c", &command])
        .spawn()
        .expect("start it")
}

fn connects(place: &Place) -> Vec<(u16, bool)> {
    fs::read_to_string(place.work().join("connects"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(port, answer)| Some((port.parse().ok()?, answer == "yes")))
        .collect()
}

/// Waits until the client, which may be slow to start, has met with this after it had tried `before` times.
fn tried_anew(place: &Place, before: usize, (port, passed): (u16, bool)) {
    eventually(&format!("a connect to {port}, passed: {passed}"), || {
        connects(place)[before..]
            .contains(&(port, passed))
            .then_some(())
    });
}

#[test]
fn an_attached_cgroup_is_held_without_a_daemon() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let cgroup = Cgroup::new("agentwatch-outlive");
    let ports = listeners(2);
    let (open, closed) = (ports[0], ports[1]);
    attach(
        &place,
        &cgroup,
        "orphan",
        &format!(
            "[files]\nread = ['/']\nexec = ['/']\nwrite = ['/']\n[network]\nallow = ['127.0.0.1:{open}']\n"
        ),
    );
    let mut client = connector(&place, &cgroup, &ports);
    eventually("it connects", || {
        (connects(&place).len() > 100).then_some(())
    });
    daemon.kill();
    let before = connects(&place).len();
    eventually("it goes on", || {
        (connects(&place).len() > before + 200).then_some(())
    });
    // A process that leaves the cgroup stays in the session, with nobody watching.
    let root = agentwatch::kernel::probe::cgroup2().expect("cgroup2");
    let left = cgroup.run(&format!(
        "echo $$ > {}/cgroup.procs; bash -c ': < /dev/tcp/127.0.0.1/{closed}' 2>/dev/null",
        root.display()
    ));
    assert!(!left.success(), "the tag stays");
    let daemon = place.daemon();
    let before = connects(&place).len();
    eventually("it goes on", || {
        (connects(&place).len() > before + 200).then_some(())
    });
    calm(&place);
    assert!(client.wait().expect("reap it").success());
    for (port, passed) in connects(&place) {
        assert_eq!(passed, port == open, "{port}");
    }
    assert!(place.cli(&["detach", "orphan"]).status.success());
    accounted(&place.ended("orphan"));
    daemon.stop();
}

#[test]
fn policies_are_exchanged_whole() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let cgroup = Cgroup::new("agentwatch-reload");
    let ports = listeners(4);
    let [always, never, first, second] = ports[..] else {
        panic!("{ports:?}");
    };
    // The rules that both have stand at different indexes.
    let files = "[files]\nread = ['/']\nexec = ['/']\nwrite = ['/']\n[network]\nallow = ";
    let a = format!("{files}['127.0.0.1:{always}', '127.0.0.1:{first}']\n");
    let b = format!("{files}['192.0.2.0/24', '127.0.0.1:{second}', '127.0.0.1:{always}']\n");
    attach(&place, &cgroup, "reloaded", &a);
    let (a, b) = (place.write("a.toml", &a), place.write("b.toml", &b));
    let mut client = connector(&place, &cgroup, &ports);
    let probe = |port: u16| {
        cgroup
            .run(&format!(
                "bash -c ': < /dev/tcp/127.0.0.1/{port}' 2>/dev/null"
            ))
            .success()
    };
    let mut daemon = Some(daemon);
    let rounds = 60;
    for round in 0..rounds {
        let (file, yes, no) = if round % 2 == 0 {
            (&b, second, first)
        } else {
            (&a, first, second)
        };
        let before = connects(&place).len();
        let output = place.cli(&[
            "reload",
            "reloaded",
            "--policy",
            file.to_str().expect("UTF-8"),
            "--accept-degraded",
        ]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        if round % 10 == 0 {
            // In force as soon as it has been said so.
            assert!(probe(yes), "round {round}");
            assert!(!probe(no), "round {round}");
        }
        tried_anew(&place, before, (yes, true));
        tried_anew(&place, before, (no, false));
        if round == rounds / 2 {
            daemon.take().expect("a daemon").kill();
            daemon = Some(place.daemon());
            assert!(probe(yes) && !probe(no), "it stays after a restart");
        }
    }
    calm(&place);
    assert!(client.wait().expect("reap it").success());
    let tried = connects(&place);
    println!("{} connects in {rounds} exchanges", tried.len());
    for (port, passed) in &tried {
        if *port == always {
            assert!(passed, "what both policies allow");
        }
        if *port == never {
            assert!(!passed, "what neither policy allows");
        }
    }
    assert!(place.cli(&["detach", "reloaded"]).status.success());
    let events = place.ended("reloaded");
    accounted(&events);
    let exchanges: Vec<&Value> = events
        .iter()
        .filter(|event| event["lifecycle"]["state"] == "reloaded")
        .collect();
    assert_eq!(exchanges.len(), rounds);
    assert_eq!(exchanges[0]["lifecycle"]["uid"], 0);
    // By its own word, each action was judged by a policy that says just that.
    let of_b = exchanges[0]["lifecycle"]["policy"].clone();
    let of_a = exchanges[1]["lifecycle"]["policy"].clone();
    assert_ne!(of_a, of_b);
    for event in events
        .iter()
        .filter(|event| event["kind"] == "connect" && event["net"]["port"].is_u64())
    {
        let port = event["net"]["port"].as_u64().expect("a port") as u16;
        if !ports.contains(&port) {
            continue;
        }
        let policy = &event["session"]["policy"];
        assert!(*policy == of_a || *policy == of_b, "{event}");
        let rule = if port == always {
            if *policy == of_a {
                "network.allow[0]"
            } else {
                "network.allow[2]"
            }
        } else if port == first && *policy == of_a || port == second && *policy == of_b {
            "network.allow[1]"
        } else {
            "network.default"
        };
        assert_eq!(event["rule"]["id"], rule, "{event}");
        assert_eq!(
            event["verdict"] == "denied",
            rule == "network.default",
            "{event}"
        );
    }
    daemon.expect("a daemon").stop();
}

#[test]
fn modes_are_exchanged_and_strangers_may_not() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let cgroup = Cgroup::new("agentwatch-mode");
    let port = listeners(1)[0];
    let connect = format!("bash -c ': < /dev/tcp/127.0.0.1/{port}' 2>/dev/null");
    attach(
        &place,
        &cgroup,
        "mode",
        "[files]\nread = ['/']\nexec = ['/']\nwrite = ['/dev/null']\n",
    );
    assert!(!cgroup.run(&connect).success());
    assert!(
        place
            .cli(&["reload", "mode", "--mode", "monitor"])
            .status
            .success()
    );
    assert!(cgroup.run(&connect).success());
    assert!(
        place
            .cli(&["reload", "mode", "--mode", "enforce", "--accept-degraded"])
            .status
            .success()
    );
    assert!(!cgroup.run(&connect).success());
    // Neither without a change, nor by whom it does not belong to.
    assert!(!place.cli(&["reload", "mode"]).status.success());
    let other = {
        use std::os::unix::process::CommandExt as _;
        place
            .command()
            .args(["reload", "mode", "--mode", "monitor"])
            .uid(54_321)
            .output()
            .expect("run as another user")
    };
    assert!(!other.status.success());
    assert!(!cgroup.run(&connect).success());
    assert!(place.cli(&["detach", "mode"]).status.success());
    let events = place.ended("mode");
    let modes: Vec<&Value> = events
        .iter()
        .filter(|event| event["lifecycle"]["state"] == "reloaded")
        .map(|event| &event["lifecycle"]["mode"])
        .collect();
    assert_eq!(modes, ["monitor", "enforce"]);
}

#[test]
fn modes_are_exchanged_whole() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let cgroup = Cgroup::new("agentwatch-modes");
    let ports = listeners(2);
    let (open, closed) = (ports[0], ports[1]);
    attach(
        &place,
        &cgroup,
        "modes",
        &format!(
            "[files]\nread = ['/']\nexec = ['/']\nwrite = ['/']\n[network]\nallow = ['127.0.0.1:{open}']\n"
        ),
    );
    let mut client = connector(&place, &cgroup, &ports);
    let rounds = 20;
    for round in 0..rounds {
        let mode = if round % 2 == 0 { "monitor" } else { "enforce" };
        let before = connects(&place).len();
        let output = place.cli(&["reload", "modes", "--mode", mode, "--accept-degraded"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let probe = format!("bash -c ': < /dev/tcp/127.0.0.1/{closed}' 2>/dev/null");
        assert_eq!(
            cgroup.run(&probe).success(),
            mode == "monitor",
            "in force as soon as it has been said so: round {round}"
        );
        tried_anew(&place, before, (closed, mode == "monitor"));
    }
    calm(&place);
    assert!(client.wait().expect("reap it").success());
    assert!(!connects(&place).contains(&(open, false)));
    assert!(place.cli(&["detach", "modes"]).status.success());
    let events = place.ended("modes");
    accounted(&events);
    // By its own word, each action was judged in one mode, by the same rule in both. A connect that stands on both sides of an
    // exchange was let through under the mode before, which has its event; that it came through is told besides.
    let judged: Vec<&Value> = events
        .iter()
        .filter(|event| event["kind"] == "connect" && event["net"]["port"] == closed)
        .collect();
    assert!(judged.len() >= rounds, "{}", judged.len());
    let mut on_both_sides = 0;
    for event in judged {
        assert_eq!(event["rule"]["id"], "network.default", "{event}");
        match (event["session"]["mode"].as_str(), event["verdict"].as_str()) {
            (Some("monitor"), Some("audited")) | (Some("enforce"), Some("denied")) => {}
            (Some("enforce"), Some("allowed")) => on_both_sides += 1,
            _ => panic!("{event}"),
        }
    }
    let tasks = 4;
    assert!(on_both_sides <= rounds / 2 * tasks, "{on_both_sides}");
}

#[test]
fn a_process_of_hundreds_of_threads_can_be_attached() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let cgroup = Cgroup::new("agentwatch-threads");
    let port = listeners(1)[0];
    let script = place.write(
        "threads.py",
        r#"
import os, socket, sys, threading, time
port, go, out = int(sys.argv[1]), sys.argv[2], open(sys.argv[3], 'w')
passed = []
def work():
    while not os.path.exists(go):
        time.sleep(0.02)
    try:
        socket.create_connection(('127.0.0.1', port), 5).close()
        passed.append('yes')
    except PermissionError:
        passed.append('no')
threads = [threading.Thread(target=work) for _ in range(400)]
[t.start() for t in threads]
open(sys.argv[3] + '.ready', 'w').close()
[t.join() for t in threads]
out.write(' '.join(passed))
"#,
    );
    let (go, out) = (place.work().join("go"), place.work().join("out"));
    let mut process = std::process::Command::new("/usr/bin/python3")
        .arg(script)
        .arg(port.to_string())
        .args([&go, &out])
        .spawn()
        .expect("start it");
    eventually("all threads run", || {
        out.with_extension("ready").exists().then_some(())
    });
    fs::write(cgroup.path().join("cgroup.procs"), process.id().to_string()).expect("move it");
    attach(
        &place,
        &cgroup,
        "threads",
        "[files]\nread = ['/']\nexec = ['/']\nwrite = ['/']\n",
    );
    fs::write(&go, "").expect("a file");
    assert!(process.wait().expect("reap it").success());
    let said = fs::read_to_string(&out).expect("what it says");
    assert_eq!(said.split(' ').count(), 400);
    assert!(!said.contains("yes"), "every thread is held");
    assert!(place.cli(&["detach", "threads"]).status.success());
    accounted(&place.ended("threads"));
}

/// Anonymous memory of a process, in KiB.
fn memory(pid: i32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            line.strip_prefix("RssAnon:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

#[test]
fn a_bounded_fork_bomb_does_not_make_the_daemon_grow() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let bomb = "
import os, sys, time
open('begun', 'w').close()
end = time.time() + float(sys.argv[1])
alive = 0
while time.time() < end:
    try:
        if os.fork() == 0:
            os._exit(0)
        alive += 1
    except OSError:
        pass
    while alive > 100:
        os.wait()
        alive -= 1
";
    let script = place.write("work/bomb.py", bomb);
    let file = place.write(
        "policy.toml",
        &policy().replace("'/proc']", "'/proc', '/etc']"),
    );
    let mut run = place
        .command()
        .args([
            "run",
            "--policy",
            file.to_str().expect("UTF-8"),
            "--name",
            "bomb",
            "--",
        ])
        .args(["/usr/bin/python3", script.to_str().expect("UTF-8"), "14"])
        .spawn()
        .expect("start a session");
    eventually("it has begun", || {
        place.work().join("begun").exists().then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    daemon.kill();
    let daemon = place.daemon();
    std::thread::sleep(Duration::from_secs(2));
    let before = memory(daemon.pid());
    std::thread::sleep(Duration::from_secs(5));
    let after = memory(daemon.pid());
    println!("anonymous memory: {before} KiB, then {after} KiB");
    assert!(after < before + 8192, "{before} {after}");
    assert!(run.wait().expect("reap it").success());
    let events = place.ended("bomb");
    accounted(&events);
    println!(
        "{} events, memory at the end {} KiB",
        events.len(),
        memory(daemon.pid())
    );
    daemon.stop();
}

#[test]
fn ten_thousand_rules_start_and_stop() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let rules = place.path().join("rules");
    let mut read = vec!["'/usr', '/lib', '/lib64', '/bin'".to_owned()];
    for index in 0..10_000 {
        let dir = rules.join(format!("d{}", index / 500));
        fs::create_dir_all(&dir).expect("a directory");
        let file = dir.join(format!("f{index}"));
        fs::write(&file, "").expect("a file");
        read.push(format!("'{}'", file.display()));
    }
    // Landlock may hold fewer rules than BPF LSM: the session only records what it does.
    let policy = format!(
        "mode = 'monitor'\n[files]\nread = [{}]\nexec = ['/usr', '/lib', '/lib64', '/bin']\nwrite = ['.', '/dev/null']\n",
        read.join(", ")
    );
    let begun = Instant::now();
    let script = format!("cat {0}/d3/f1501; cat {0}/d3/f1502", rules.display());
    let output = place.run(&policy, "many", &script);
    assert!(output.status.success(), "{}", text(&output.stderr));
    println!(
        "10 000 rules: started, run and ended after {} ms",
        begun.elapsed().as_millis()
    );
    let events = place.ended("many");
    println!(
        "and its end was told after {} ms",
        begun.elapsed().as_millis()
    );
    accounted(&events);
    assert!(begun.elapsed() < Duration::from_secs(30));

    // And they can be taken over.
    let file = place.write("many.toml", &policy);
    let mut run = place
        .command()
        .args([
            "run",
            "--policy",
            file.to_str().expect("UTF-8"),
            "--name",
            "taken",
            "--",
        ])
        .args([
            "/bin/sh",
            "-c",
            "echo > begun; while [ ! -e enough ]; do sleep 0.1; done; exit 5",
        ])
        .spawn()
        .expect("start a session");
    // Not before: a daemon that is killed while it lets a command in cannot tell it so.
    eventually("it runs", || {
        place.work().join("begun").exists().then_some(())
    });
    daemon.kill();
    let begun = Instant::now();
    let daemon = place.daemon();
    println!("taken over after {} ms", begun.elapsed().as_millis());
    calm(&place);
    assert_eq!(run.wait().expect("reap it").code(), Some(5));
    accounted(&place.ended("taken"));
    daemon.stop();
}

#[test]
fn a_denial_arrives_although_the_ring_is_full() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    fs::write(place.path().join("secret"), "s").expect("a file");
    // What does not exist cannot be folded: each attempt is an event of its own, some hundred bytes long.
    let flood = "
import os
for i in range(60000):
    try:
        os.open(f'nowhere-{i}-' + 'x' * 150, os.O_RDONLY)
    except OSError:
        pass
open('flooded', 'w').close()
try:
    open('../secret')
    print('it was let through')
except PermissionError:
    pass
open('denied', 'w').close()
";
    place.write("work/flood.py", flood);
    let file = place.write(
        "policy.toml",
        &policy().replace("'/proc']", "'/proc', '/etc']"),
    );
    let mut run = place
        .command()
        .args([
            "run",
            "--policy",
            file.to_str().expect("UTF-8"),
            "--name",
            "flood",
            "--",
        ])
        .args([
            "/bin/sh",
            "-c",
            "echo > ready; while [ ! -e go ]; do sleep 0.05; done; /usr/bin/python3 flood.py",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start a session");
    eventually("it is in its session", || {
        place.work().join("ready").exists().then_some(())
    });
    let pid = Pid::from_raw(daemon.pid());
    kill(pid, Signal::SIGSTOP).expect("stop the daemon");
    fs::write(place.work().join("go"), "").expect("a file");
    eventually("it was denied", || {
        place.work().join("denied").exists().then_some(())
    });
    kill(pid, Signal::SIGCONT).expect("let it go on");
    assert!(run.wait().expect("reap it").success());
    let events = place.ended("flood");
    accounted(&events);
    let secret = place.path().join("secret");
    assert!(
        events.iter().any(|event| event["verdict"] == "denied"
            && event["file"]["path"] == *secret.to_string_lossy()),
        "the denial is there"
    );
    let lost: u64 = events
        .iter()
        .filter(|event| event["loss"]["reason"] == "ring_full")
        .filter_map(|event| event["loss"]["events"].as_u64())
        .sum();
    println!("{lost} events found the ring full");
    assert!(lost > 0, "the ring did overflow");
    daemon.stop();
}
