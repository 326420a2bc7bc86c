//! The history as evidence: killed while it seals, exported, checked, read by others.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use agentwatch::{
    event::{Event, Kind, Verdict, model::Lifecycle, samples::sample},
    wire::collector::{Batch, BatchAnswer, Question},
};
use tokio::time::sleep;

use crate::harness::*;

/// Event `n` of a session, as the daemon numbers them.
fn numbered(session: &str, n: u64, kind: Kind) -> Event {
    let mut event = sample(kind);
    event.session.id = session.to_owned();
    event.session.name = session.to_owned();
    event.id = format!("{session}-{n}");
    event.seq = n;
    event.ktime_ns += n * 1000;
    event
}

fn batch_of(number: u64, from: u64, count: u64) -> Batch {
    let kinds = [
        Kind::Open,
        Kind::Exec,
        Kind::Connect,
        Kind::Exit,
        Kind::Rename,
    ];
    let events = (from..from + count)
        .zip(kinds.into_iter().cycle())
        .map(|(n, kind)| numbered(&format!("s{}", n % 3), n, kind))
        .collect();
    Batch { number, events }
}

/// Killed at moments that fall into commits, into the building of a segment and into its entering, and started again: every
/// acknowledged event is there once, whatever of it was sealed, and the chain holds.
#[tokio::test]
async fn nothing_is_lost_or_doubled_when_killed_while_sealing() {
    let place = Place::new();
    let (mut sent, mut acknowledged) = (1u64, 1u64);
    for round in 0..12u64 {
        let collector = place.start().await;
        let mut connection = place.ingest().await;
        // What was not acknowledged comes again, as it would from the spool.
        sent = sent.min(acknowledged);
        let mut ends = Vec::new();
        for number in 1..=8 {
            connection
                .send_frame(batch_of(number, sent, 170).frame())
                .await
                .expect("sent");
            sent += 170;
            ends.push(sent);
        }
        // A different moment each time.
        let answers = 1 + (round % 8) as usize;
        for end in ends.into_iter().take(answers) {
            let answer = answer(&mut connection).await;
            assert!(matches!(answer, BatchAnswer::Ack { .. }), "{answer:?}");
            acknowledged = end;
        }
        sleep(Duration::from_millis(round * 7)).await;
        collector.signal(nix::sys::signal::Signal::SIGKILL);
        drop(collector);
    }
    let _collector = place.start().await;
    let events = place.events().await;
    let mut numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
    numbers.sort_unstable();
    let doubled = numbers.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert_eq!(doubled, 0);
    let missing = (1..acknowledged)
        .filter(|number| numbers.binary_search(number).is_err())
        .count();
    assert_eq!(missing, 0, "of {acknowledged}");
    // What the kills left to be sealed is sealed by the last collector, in its own time.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let status = place.cli(&[
            "query",
            "SELECT count(*) AS n FROM segments",
            "--format",
            "csv",
        ]);
        let segments: u64 = String::from_utf8_lossy(&status.stdout)
            .lines()
            .last()
            .and_then(|line| line.parse().ok())
            .expect("a number");
        if segments > 3 {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{segments} segments, and {} events",
            events.len()
        );
        sleep(Duration::from_millis(100)).await;
    }
    let verified = verify(&place.state());
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stdout)
    );
}

fn verify(directory: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_agentwatch"))
        .arg("verify")
        .arg(directory)
        .output()
        .expect("the binary runs")
}

/// An export of some thousand events, and the collector that holds them.
async fn exported(place: &Place) -> PathBuf {
    let mut connection = place.ingest().await;
    for number in 1..=10 {
        store(&mut connection, &batch_of(number, number * 300, 300)).await;
    }
    let to = place.directory.path().join("export");
    let output = place.cli(&[
        "export",
        &to.to_string_lossy(),
        "--state-dir",
        &place.directory.path().to_string_lossy(),
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    to
}

#[tokio::test]
async fn an_export_is_whole_and_shows_when_it_is_touched() {
    let place = Place::new_as_daemon();
    let _collector = place.start().await;
    let to = exported(&place).await;
    let output = verify(&to);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("3000 events") && text.contains("verified"),
        "{text}"
    );
    let key = Command::new(env!("CARGO_BIN_EXE_agentwatch"))
        .arg("verify")
        .arg(&to)
        .arg("--print-key")
        .output()
        .expect("the binary runs");
    assert_eq!(key.stdout.len(), 65);

    let segment = to.join("segments/0000000002.parquet");
    let mut content = std::fs::read(&segment).expect("a segment");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&segment, content).expect("written");
    let output = verify(&to);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(
        text.contains("segment 2") && text.contains("NOT VERIFIED"),
        "{text}"
    );
}

/// The format is open: others read what was exported, and find the same.
#[tokio::test]
async fn others_read_the_segments() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = python();
    if !python.exists() {
        println!(
            "SKIP: {} is not there: no Python with duckdb, chdb and pyiceberg",
            python.display()
        );
        return;
    }
    let place = Place::new_as_daemon();
    let _collector = place.start().await;
    let to = exported(&place).await;
    let ours = place.cli(&[
        "query",
        "SELECT kind, count(*), sum(count), min(seq), max(seq), max(path) FROM events GROUP BY kind ORDER BY kind",
        "--format",
        "jsonl",
    ]);
    let ours: Vec<Vec<serde_json::Value>> = String::from_utf8_lossy(&ours.stdout)
        .lines()
        .map(|line| {
            let object: serde_json::Map<_, _> = serde_json::from_str(line).expect("JSON");
            object.into_values().collect()
        })
        .collect();
    assert_eq!(ours.len(), 5);
    for reader in ["duckdb", "chdb", "pyiceberg"] {
        let has = Command::new(&python)
            .args(["-c", &format!("import {reader}")])
            .output()
            .expect("python runs");
        if !has.status.success() {
            println!("SKIP {reader}: {} does not have it", python.display());
            continue;
        }
        let output = Command::new(&python)
            .arg(repository.join("tests/fixtures/readers.py"))
            .arg(reader)
            .arg(&to)
            .output()
            .expect("python runs");
        assert!(
            output.status.success(),
            "{reader}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let theirs: Vec<Vec<serde_json::Value>> =
            serde_json::from_slice(&output.stdout).expect("JSON");
        // Columns of ours are in the order of their names in JSON objects; so both are compared as sets.
        let sorted = |rows: &[Vec<serde_json::Value>]| -> Vec<Vec<String>> {
            rows.iter()
                .map(|row| {
                    let mut row: Vec<String> = row.iter().map(ToString::to_string).collect();
                    row.sort();
                    row
                })
                .collect()
        };
        assert_eq!(sorted(&theirs), sorted(&ours), "{reader}");
        println!("{reader} reads the segments");
    }
}

#[tokio::test]
async fn a_report_in_every_form() {
    let place = Place::new();
    let _collector = place.start().await;
    let mut connection = place.ingest().await;
    let file = place.directory.path().join("made by the session");
    std::fs::write(&file, "text").expect("written");
    let mut events: Vec<Event> = Kind::ALL.into_iter().map(sample).collect();
    let mut created = sample(Kind::Create);
    created.id = "created".to_owned();
    created.verdict = Verdict::Allowed;
    created.time = jiff::Timestamp::now();
    if let Some(held) = &mut created.file {
        held.path = file
            .canonicalize()
            .expect("a path")
            .to_string_lossy()
            .into_owned();
    }
    events.push(created);
    for event in &mut events {
        if let Some(Lifecycle::Started { uid, .. }) = &mut event.lifecycle {
            *uid = nix::unistd::getuid().as_raw();
        }
    }
    store(&mut connection, &Batch { number: 1, events }).await;
    let text = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1";
    for (format, parts) in [
        (
            "text",
            &["Session fix-parser", "Files changed", "DENIED", text][..],
        ),
        (
            "md",
            &["# Session fix", "## Files changed", "| **created** |", text],
        ),
        ("html", &["<!DOCTYPE html>", "<h2>Files changed</h2>", text]),
        ("json", &["\"files_changed\"", "\"sha256\"", text]),
    ] {
        let output = place.cli(&["report", "fix-parser", "--format", format]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let page = String::from_utf8(output.stdout).expect("UTF-8");
        for part in parts {
            assert!(
                page.to_lowercase().contains(&part.to_lowercase()),
                "{format}: {part}: {page}"
            );
        }
    }
    let without = place.cli(&["report", "fix-parser", "--hash-limit", "0"]);
    assert!(!String::from_utf8_lossy(&without.stdout).contains(text));
}

/// What a browser makes of a page: its document as it is once scripts have run, and what the console says.
fn browsed(chromium: &Path, page: &Path) -> (String, String) {
    let profile = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new(chromium)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--disable-background-networking",
            "--no-first-run",
            "--virtual-time-budget=3000",
        ])
        .args(["--enable-logging=stderr", "--log-level=0", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("chromium runs");
    let console: Vec<String> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.contains("CONSOLE"))
        .map(ToOwned::to_owned)
        .collect();
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        console.join("\n"),
    )
}

/// A session whose agent has done what it can to be more than text in a report.
#[tokio::test]
async fn a_browser_shows_a_report_and_runs_nothing_of_it() {
    let Some(chromium) = program("chromium") else {
        return;
    };
    let place = Place::new();
    let _collector = place.start().await;
    let mut connection = place.ingest().await;
    let script = "<script>document.title='ran'</script>";
    let mut events: Vec<Event> = Kind::ALL.into_iter().map(sample).collect();
    for (n, name) in [
        script,
        "<img src=x onerror=\"document.title='ran'\">",
        "\"><svg onload=document.title='ran'>",
        "</code></td></table><iframe src=\"javascript:parent.document.title='ran'\">",
        "&lt;b&gt; \u{202e} \u{0} \u{1b}[31m",
    ]
    .into_iter()
    .enumerate()
    {
        let mut created = sample(Kind::Create);
        created.id = format!("created-{n}");
        created.seq = 1000 + n as u64;
        if let Some(file) = &mut created.file {
            file.path = format!("/work/{name}");
        }
        if let Some(process) = &mut created.process {
            process.argv = vec![name.to_owned(), script.to_owned()];
        }
        events.push(created);
    }
    for event in &mut events {
        event.session.name = format!("fix {script}");
        if let Some(Lifecycle::Started { uid, policy, .. }) = &mut event.lifecycle {
            *uid = nix::unistd::getuid().as_raw();
            if let Some(policy) = policy {
                policy.task.goal = Some(format!("goal {script}"));
                policy.task.acceptance = vec![format!("make {script}")];
            }
        }
    }
    store(&mut connection, &Batch { number: 1, events }).await;
    let id = sample(Kind::Open).session.id;
    let output = place.cli(&["report", &id, "--format", "html"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let page = place.directory.path().join("report.html");
    std::fs::write(&page, &output.stdout).expect("written");
    let (document, console) = browsed(&chromium, &page);
    assert_eq!(
        console, "",
        "the page asks for nothing that its policy forbids"
    );
    assert!(document.contains("<h2>Files changed</h2>"), "{document}");
    assert!(
        document.contains("/work/&lt;script&gt;document.title='ran'&lt;/script&gt;"),
        "{document}"
    );
    assert!(document.contains("goal &lt;script&gt;"), "{document}");
    assert!(!document.contains("<title>ran"), "{document}");
    for element in ["<script", "<img", "<svg", "<iframe", "<b>"] {
        assert!(!document.contains(element), "{element}: {document}");
    }
    // The browser is one that would have.
    std::fs::write(&page, format!("<!DOCTYPE html><title>x</title>{script}")).expect("written");
    assert!(browsed(&chromium, &page).0.contains("<title>ran</title>"));
}

/// Sealing may be asked for by the privileged only.
#[tokio::test]
async fn sealing_on_request_is_answered_when_it_is_done() {
    let place = Place::new();
    let _collector = place.start().await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch_of(1, 1, 100)).await;
    let mut asked = place.ask(&Question::Seal).await;
    let answer = next(&mut asked).await;
    assert!(
        matches!(answer, agentwatch::wire::collector::Answer::End),
        "{answer:?}"
    );
    let rows = place.cli(&["query", "SELECT events FROM segments", "--format", "csv"]);
    assert_eq!(String::from_utf8_lossy(&rows.stdout), "events\r\n100\r\n");
}
