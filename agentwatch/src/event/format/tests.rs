//! Every sample in every format; OCSF against the published schema.

use std::{io::Write as _, path::Path, process::Command};

use super::*;
use crate::event::{
    Kind, Verdict,
    model::{Lifecycle, Net},
    samples::{ended, sample},
};

/// Every kind, with every verdict, and what is odd.
fn all() -> Vec<Event> {
    let mut events: Vec<Event> = Kind::ALL.into_iter().map(sample).collect();
    for verdict in Verdict::ALL {
        for kind in Kind::ALL {
            let mut event = sample(kind);
            event.verdict = verdict;
            event.rule = sample(Kind::Open).rule;
            events.push(event);
        }
    }
    events.push(ended());
    let mut bare = sample(Kind::Connect);
    bare.net = Some(Net {
        family: "unix".into(),
        ..Net::default()
    });
    events.push(bare.clone());
    bare.net = Some(Net {
        family: "inet6".into(),
        socket_type: "dgram".into(),
        addr: Some("2001:db8::1".into()),
        port: Some(53),
        ..Net::default()
    });
    events.push(bare);
    let mut odd = sample(Kind::Open);
    odd.process = None;
    odd.session.id.clear();
    odd.session.policy.clear();
    if let Some(file) = &mut odd.file {
        file.path = "/".to_owned();
    }
    events.push(odd.clone());
    odd.file = None;
    odd.errno = Some(99_999);
    events.push(odd);
    let mut resumed = sample(Kind::Session);
    resumed.lifecycle = Some(Lifecycle::Resumed {
        coverage: crate::event::model::Coverage::Enforcing,
    });
    events.push(resumed);
    events
}

#[test]
fn ocsf_is_what_the_published_schema_asks_for() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/ocsf");
    if let Err(error) = Command::new("python3").arg("--version").output() {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        println!("SKIP: the validator needs python3, which is not here");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut files = Vec::new();
    for (index, event) in all().iter().enumerate() {
        let path = directory
            .path()
            .join(format!("{index:03}-{}.json", event.kind.name()));
        let mut file = std::fs::File::create(&path).expect("made");
        file.write_all(&Format::Ocsf.line(event)).expect("written");
        files.push(path);
    }
    let validate = |files: &[std::path::PathBuf]| {
        Command::new("python3")
            .arg(fixtures.join("validate_ocsf.py"))
            .arg(fixtures.join("ocsf-1.8.0.json.gz"))
            .args(files)
            .output()
            .expect("the validator runs")
    };
    let output = validate(&files);
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("    w "), "{text}");
    // And it does see what is wrong.
    let broken = directory.path().join("broken.json");
    let mut value = Format::Ocsf.value(&sample(Kind::Open));
    value["file"]["type_id"] = serde_json::json!("x");
    std::fs::write(&broken, value.to_string()).expect("written");
    assert!(!validate(&[broken]).status.success());
}

#[test]
fn what_a_siem_alerts_on_is_there() {
    let event = sample(Kind::Open);
    let ocsf = Format::Ocsf.value(&event);
    assert_eq!(ocsf["type_uid"], 100_114);
    assert_eq!(
        (&ocsf["action_id"], &ocsf["disposition_id"]),
        (&2.into(), &2.into())
    );
    assert_eq!(ocsf["file"]["path"], "/etc/shadow");
    assert_eq!(ocsf["authorizations"][0]["policy"]["uid"], "files.deny[2]");
    assert_eq!(ocsf["metadata"]["uid"], event.id.as_str());
    assert_eq!(ocsf["status_code"], "EACCES");
    let ecs = Format::Ecs.value(&event);
    assert_eq!(ecs["event"]["kind"], "alert");
    assert_eq!(ecs["event"]["category"][0], "file");
    assert_eq!(ecs["event"]["outcome"], "failure");
    assert_eq!(ecs["file"]["directory"], "/etc");
    assert_eq!(ecs["rule"]["id"], "files.deny[2]");
    assert_eq!(
        ecs["agentwatch"]["session"]["id"],
        event.session.id.as_str()
    );
    assert_eq!(
        Format::Ecs.value(&sample(Kind::Connect))["destination"]["ip"],
        "192.0.2.7"
    );
    assert_eq!(
        Format::Native.line(&event),
        serde_json::to_vec(&event).expect("JSON")
    );
}

#[test]
fn an_event_is_one_line_whatever_an_agent_put_into_it() {
    let mut event = sample(Kind::Exec);
    if let Some(process) = &mut event.process {
        process.argv = vec![
            "a\nb".into(),
            "\u{0}\u{1b}[2J\u{2028}".into(),
            "'\"`$(x)".into(),
        ];
    }
    for format in [Format::Native, Format::Ocsf, Format::Ecs] {
        let line = format.line(&event);
        assert!(!line.iter().any(|byte| *byte < 0x20), "{format:?}");
        let value: Value = serde_json::from_slice(&line).expect("JSON");
        assert!(value.to_string().contains("2J"));
    }
}
