//! Storms of opens, short processes and connects at the same time, in peace, with a collector that stands still, and with a daemon that is
//! killed in the middle: what was made is delivered, folded or declared lost, and what the storm says it did is in the record.
//! `cargo xtask bench --only storm` does the same with ten times as much.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv6Addr, TcpListener, UdpSocket},
    process::{Child, Stdio},
    thread::{self, sleep},
    time::Duration,
};

use agentwatch_common::event::FoldKey;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::harness::*;

const OPENS: u64 = 20_000;
const FILES: u64 = 500;
const DENIALS: u64 = 100;
const PROCESSES: u64 = 1_000;
const CONNECTS: u64 = 5_000;

/// Bash opens and connects by itself, without a process for each.
fn script(port: u16) -> String {
    format!(
        "(i=0; while [ $i -lt {OPENS} ]; do : < data/$((i % {FILES})); i=$((i + 1)); done) &\n\
         (i=0; while [ $i -lt {DENIALS} ]; do {{ : < ../secret; }} 2> /dev/null && echo > wrong; i=$((i + 1)); done) &\n\
         (i=0; while [ $i -lt {PROCESSES} ]; do /usr/bin/true; i=$((i + 1)); done) &\n\
         (i=0; while [ $i -lt {CONNECTS} ]; do : > /dev/tcp/127.0.0.1/{port}; i=$((i + 1)); done) &\n\
         echo > started; wait; exit 7\n"
    )
}

struct Storm {
    run: Child,
    port: u16,
}

fn begin(place: &Place, name: &str) -> Storm {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    // Ends with the tests' process.
    thread::spawn(move || listener.incoming().for_each(drop));
    fs::write(place.path().join("secret"), "s").expect("a file");
    fs::create_dir(place.work().join("data")).expect("a directory");
    for n in 0..FILES {
        fs::write(place.work().join("data").join(n.to_string()), "").expect("a file");
    }
    let policy = format!("{}[network]\nallow = ['127.0.0.1:{port}']\n", policy());
    let policy = place.write("policy.toml", &policy);
    let run = place
        .command()
        .args(["run", "--name", name, "--policy"])
        .arg(policy)
        .args(["--", "/bin/bash", "-c", &script(port)])
        .stdout(Stdio::null())
        .spawn()
        .expect("start a session");
    eventually("the storm has begun", || {
        place.work().join("started").exists().then_some(())
    });
    Storm { run, port }
}

/// Waits for the end of a storm, and checks its account against what it did.
fn settle(place: &Place, name: &str, mut storm: Storm) -> u64 {
    assert_eq!(storm.run.wait().expect("reap it").code(), Some(7));
    assert!(
        !place.work().join("wrong").exists(),
        "a denied file was opened"
    );
    eventually("the session's end is in the record", || {
        let output = place.cli(&["events", name, "--kind", "session", "--format", "jsonl"]);
        text(&output.stdout).contains("\"ended\"").then_some(())
    });
    let events = place.ended(name);
    accounted(&events);
    let lost: u64 = events
        .iter()
        .filter_map(|event| event["loss"]["events"].as_u64())
        .sum();
    let by_id: HashMap<&str, &Value> = events
        .iter()
        .filter_map(|event| Some((event["id"].as_str()?, event)))
        .collect();
    // A daemon that took over tells of what was folded before by the first event's id alone; that event may be lost.
    let mut orphans = 0;
    for event in &events {
        if event["fold"]
            .as_str()
            .is_some_and(|first| !by_id.contains_key(first))
        {
            orphans += event["count"].as_u64().unwrap_or_default();
        }
    }
    let of = |wanted: &dyn Fn(&Value) -> bool| -> u64 {
        events
            .iter()
            .filter(|event| {
                let first = event["fold"].as_str().and_then(|first| by_id.get(first));
                wanted(event) || first.is_some_and(|first| wanted(first))
            })
            .filter_map(|event| event["count"].as_u64())
            .sum()
    };
    let under = |event: &Value, part: &str| {
        event["file"]["path"]
            .as_str()
            .is_some_and(|path| path.contains(part))
    };
    for (what, did, told) in [
        (
            "opens",
            OPENS,
            of(&|event| event["kind"] == "open" && under(event, "/work/data/")),
        ),
        (
            "denials",
            DENIALS,
            of(&|event| event["verdict"] == "denied" && under(event, "/secret")),
        ),
        (
            "processes",
            PROCESSES,
            of(&|event| event["kind"] == "exec" && under(event, "/true")),
        ),
        (
            "connects",
            CONNECTS,
            of(&|event| event["kind"] == "connect" && event["net"]["port"] == storm.port),
        ),
    ] {
        println!(
            "{name}: {what}: did {did}, told {told}; lost {lost}, repetitions of what was lost {orphans}"
        );
        assert!(
            told <= did && told + lost + orphans >= did,
            "{what}: did {did}, told {told}, lost {lost}, repetitions of what was lost {orphans}"
        );
    }
    lost
}

#[test]
fn a_storm_is_accounted_for() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let storm = begin(&place, "storm");
    settle(&place, "storm", storm);
    daemon.stop();
}

#[test]
fn a_storm_is_accounted_for_when_the_collector_stands_still() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let collector = place.collector();
    let storm = begin(&place, "still");
    kill(collector, Signal::SIGSTOP).expect("stop the collector");
    sleep(Duration::from_secs(10));
    kill(collector, Signal::SIGCONT).expect("let it go on");
    settle(&place, "still", storm);
    daemon.stop();
}

#[test]
fn a_storm_is_accounted_for_when_the_daemon_is_killed() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let storm = begin(&place, "killed");
    sleep(Duration::from_millis(700));
    daemon.kill();
    sleep(Duration::from_millis(300));
    let daemon = place.daemon();
    settle(&place, "killed", storm);
    daemon.stop();
}

/// The kernel finds what it folds by a mark: of two actions that share one, the second is recorded each time, and counted for itself.
#[test]
fn addresses_of_one_mark_are_told_apart() {
    const TIMES: u64 = 5;
    if !possible() || UdpSocket::bind("[::1]:0").is_err() {
        return;
    }
    let one: Ipv6Addr = "2001:db8::1".parse().expect("an address");
    let other: Ipv6Addr = "2001:db8:100::eb83:b581".parse().expect("an address");
    let spot = |address: Ipv6Addr| {
        let word = |at: usize| {
            u64::from_ne_bytes(
                address.octets()[at..at + 8]
                    .try_into()
                    .expect("eight bytes"),
            )
        };
        FoldKey {
            session: 77,
            image: 1 << 40,
            object: [word(0), word(8), 53],
            ..FoldKey::default()
        }
        .spot()
    };
    assert_eq!(spot(one), spot(other));
    let place = Place::new();
    let _daemon = place.daemon();
    let script = format!(
        "i=0; while [ $i -lt {TIMES} ]; do for a in {one} {other}; do : > /dev/udp/$a/53; done; i=$((i + 1)); done; exit 7"
    );
    let run = place.run(
        &policy(),
        "digest",
        &format!("/bin/bash -c '{script}' 2> /dev/null"),
    );
    assert_eq!(run.status.code(), Some(7), "{}", text(&run.stderr));
    let events = place.ended("digest");
    accounted(&events);
    let of = |address: Ipv6Addr| -> Vec<u64> {
        events
            .iter()
            .filter(|event| {
                event["kind"] == "connect" && event["net"]["addr"] == address.to_string()
            })
            .map(|event| event["count"].as_u64().expect("a count"))
            .collect()
    };
    assert_eq!(of(one).iter().sum::<u64>(), TIMES);
    assert_eq!(of(other), [1; TIMES as usize], "none is folded");
}
