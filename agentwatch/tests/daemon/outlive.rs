//! Sessions go on without a daemon: what is denied stays denied, and the next daemon takes over without losing anything
//! that it does not declare.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
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
    let child = place
        .session(&policy(), name)
        .args(["/bin/bash", "-c", STORM])
        .stdout(Stdio::null())
        .spawn()
        .expect("start a session");
    eventually("the storm has begun", || {
        place.work().join("started").exists().then_some(())
    });
    child
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
    // A machine that has other work may be without a daemon for so long that the ring fills; nothing else is lost.
    let losses: Vec<&Value> = events
        .iter()
        .filter(|event| event["kind"] == "loss" && event["loss"]["reason"] != "ring_full")
        .collect();
    assert!(losses.is_empty(), "a stop loses nothing: {losses:?}");
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
