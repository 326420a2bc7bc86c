//! Much at once: a fork bomb, ten thousand rules, more records than a ring holds.

use std::{
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::*;

/// What Python needs.
fn with_etc() -> String {
    policy().replace("'/proc']", "'/proc', '/etc']")
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
    let mut run = place
        .session(&with_etc(), "bomb")
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
    let mut run = place
        .session(&policy, "taken")
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
    let mut run = place
        .session(&with_etc(), "flood")
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

/// What a process executed stands in one ring and what it is refused in the other. Nobody gets ahead of their own record by filling both.
#[test]
fn what_is_refused_has_its_program_however_much_comes_at_once() {
    const PORT: u64 = 9;
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let flood = format!(
        "
import os, socket
for i in range(3000):
    try:
        os.open(f'nowhere-{{i}}', os.O_RDONLY)
    except OSError:
        pass
for port in range(1000, 2500):
    try:
        socket.socket().connect(('127.0.0.1', port))
    except OSError:
        pass
os.execv('/bin/bash', ['bash', '-c', ': > /dev/tcp/127.0.0.1/{PORT}; echo > tried'])
"
    );
    place.write("work/flood.py", &flood);
    let mut run = place
        .session(&with_etc(), "hurried")
        .args([
            "/bin/sh",
            "-c",
            "echo > ready; while [ ! -e go ]; do sleep 0.05; done; exec /usr/bin/python3 flood.py",
        ])
        .stderr(Stdio::null())
        .spawn()
        .expect("start a session");
    eventually("it is in its session", || {
        place.work().join("ready").exists().then_some(())
    });
    let pid = Pid::from_raw(daemon.pid());
    kill(pid, Signal::SIGSTOP).expect("stop the daemon");
    fs::write(place.work().join("go"), "").expect("a file");
    eventually("it was refused", || {
        place.work().join("tried").exists().then_some(())
    });
    kill(pid, Signal::SIGCONT).expect("let it go on");
    run.wait().expect("reap it");
    let events = place.ended("hurried");
    accounted(&events);
    let lost = events
        .iter()
        .filter(|event| event["kind"] == "loss")
        .count();
    assert_eq!(lost, 0, "all of it has room");
    let refused: Vec<_> = events
        .iter()
        .filter(|event| event["verdict"] == "denied" && event["net"]["port"] == PORT)
        .collect();
    assert!(!refused.is_empty());
    for event in refused {
        let program = event["process"]["exe"].as_str().unwrap_or_default();
        assert!(program.ends_with("/bash"), "{event}");
    }
    daemon.stop();
}

/// Makes as many children as it is told right into the root of all cgroups, and waits until each is where its maker is, or dead.
const ELSEWHERE: &str = "
import ctypes, os, struct, sys, time
root = next(line.split()[1] for line in open('/proc/mounts') if line.split()[2] == 'cgroup2')
def cgroup(pid):
    return next(line for line in open(f'/proc/{pid}/cgroup') if line.startswith('0::'))
own = cgroup('self')
fd = os.open(root, os.O_PATH)
CLONE_INTO_CGROUP, SIGCHLD = 1 << 33, 17
args = struct.pack('<11Q', CLONE_INTO_CGROUP, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, fd)
clone = ctypes.CDLL(None, use_errno=True).syscall
children = []
for _ in range(int(sys.argv[1])):
    child = clone(435, args, len(args))
    if child == 0:
        time.sleep(60)
        os._exit(0)
    assert child > 0, os.strerror(ctypes.get_errno())
    children.append(child)
back = dead = 0
for child in children:
    for _ in range(200):
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            dead += 1
            break
        if cgroup(child) == own:
            back += 1
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.05)
print(f'{back} put back, {dead} killed')
";

#[test]
fn who_is_made_in_another_cgroup_is_put_back() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let script = place.write("work/elsewhere.py", ELSEWHERE);
    let command = format!("/usr/bin/python3 {} 1", script.display());
    let output = place.run(&policy(), "elsewhere", &command);
    let told = text(&output.stdout);
    assert!(
        told.contains("1 put back, 0 killed"),
        "{told} {}",
        text(&output.stderr)
    );
    let events = place.ended("elsewhere");
    let event = events
        .iter()
        .find(|event| event["guard"]["operation"] == "cgroup")
        .expect("it is told");
    assert_eq!(event["verdict"], "denied");
    assert_eq!(event["rule"]["id"], "files.default");
}

/// Moving a process takes the kernel milliseconds: a session must not keep the daemon busy with it.
#[test]
fn a_session_that_makes_many_elsewhere_loses_them() {
    if !possible() || !python() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    let script = place.write("work/elsewhere.py", ELSEWHERE);
    let command = format!("/usr/bin/python3 {} 100", script.display());
    let output = place.run(&policy(), "many", &command);
    let told = text(&output.stdout);
    let numbers: Vec<usize> = told
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    let [back, killed] = numbers[..] else {
        panic!("{told} {}", text(&output.stderr));
    };
    assert_eq!(back + killed, 100, "{told}");
    assert!(back >= 8 && killed >= 1, "{told}");
    let events = place.ended("many");
    let told = events
        .iter()
        .filter(|event| event["guard"]["operation"] == "cgroup");
    assert_eq!(told.count(), 100);
}
