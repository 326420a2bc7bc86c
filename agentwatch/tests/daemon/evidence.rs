//! From the kernel to what a stranger reads: a session's acceptance commands, its secrets, its sink, its report, its chain.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::harness::*;

#[test]
fn a_session_becomes_evidence() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let out = place.path().join("out");
    fs::create_dir(&out).expect("a directory");
    // The collector has a user of its own.
    fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).expect("open it");
    let config = place.write(
        "daemon.toml",
        &format!(
            "[[redact]]\nname = 'badge'\nregex = 'badge-[0-9]+'\n\
             [[sink]]\nname = 'all'\n[sink.file]\npath = {:?}\n\
             [[sink]]\nname = 'ocsf'\nformat = 'ocsf'\nkinds = ['exec']\n[sink.file]\npath = {:?}\n",
            out.join("all.jsonl"),
            out.join("ocsf.jsonl")
        ),
    );
    let daemon = place.daemon_with(&["--config", config.to_str().expect("UTF-8")]);
    fs::write(place.work().join("check.sh"), "#!/bin/sh\nexit 0\n").expect("written");
    fs::set_permissions(
        place.work().join("check.sh"),
        fs::Permissions::from_mode(0o755),
    )
    .expect("made a program");
    let policy = format!(
        "mode = 'monitor'\n[task]\ngoal = 'show it'\nticket = 'T-1'\n\
         acceptance = ['./check.sh', 'ls /nothing', 'make never']\n[files]\nwrite = [{:?}]\nread = ['/']\nexec = ['/']\n",
        place.work()
    );
    let output = place.run(
        &policy,
        "evidence",
        "./check.sh; sh -c 'exit 0' --password=hunter2 badge-12345; ls /nothing; echo later > written; true",
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let events = place.ended("evidence");
    assert!(events.iter().any(|event| event["kind"] == "exec"));

    let report = place.cli(&["report", "evidence", "--format", "json"]);
    let report: serde_json::Value =
        serde_json::from_slice(&report.stdout).expect("a report is JSON");
    assert_eq!(report["policy"]["task"]["goal"], "show it");
    let acceptance = report["acceptance"].as_array().expect("a list");
    let of = |index: usize, key: &str| &acceptance[index][key];
    assert_eq!(of(0, "outcome"), "passed", "{acceptance:#?}");
    assert_eq!(acceptance[0]["runs"][0]["exit_code"], 0);
    assert_eq!(of(0, "written_after_count"), 1, "{acceptance:#?}");
    assert!(
        acceptance[0]["written_after"][0]
            .as_str()
            .expect("a path")
            .ends_with("/written")
    );
    assert_eq!(of(1, "outcome"), "failed", "{acceptance:#?}");
    assert_eq!(acceptance[1]["runs"][0]["exit_code"], 2);
    assert_eq!(of(2, "outcome"), "not_run");

    // Sinks have what the history has, in their forms, and no secret is anywhere.
    let status = eventually("the sinks to have everything", || {
        let status = place.status();
        let sinks = status["history"]["sinks"].as_array()?.clone();
        let done = sinks.len() == 2
            && sinks
                .iter()
                .all(|sink| sink["behind"] == 0 && sink["state"] == "idle");
        done.then_some(status)
    });
    assert!(status["history"]["events"].as_u64() > Some(5));
    let all = fs::read_to_string(out.join("all.jsonl")).expect("the sink's file");
    for event in &events {
        let id = event["id"].as_str().expect("an id");
        assert!(all.contains(id), "{id}");
    }
    let ocsf = fs::read_to_string(out.join("ocsf.jsonl")).expect("the sink's file");
    assert!(
        ocsf.lines().count() > 3 && ocsf.lines().all(|line| line.contains("\"class_uid\":1007"))
    );
    for text in [&all, &ocsf, &serde_json::to_string(&report).expect("JSON")] {
        assert!(!text.contains("hunter2") && !text.contains("badge-12345"));
    }
    assert!(all.contains("[redacted:value:") && all.contains("[redacted:badge:"));

    let export = place.path().join("export");
    let output = place.cli(&["export", export.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = place.cli(&["verify", export.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("verified"));
    daemon.stop();
}
