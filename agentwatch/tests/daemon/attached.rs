//! Attached cgroups whose processes connect without an end: they are held without a daemon, and policies and modes are exchanged under
//! them.

use std::{fs, net::TcpListener, process::Child};

use serde_json::Value;

use crate::harness::*;

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
