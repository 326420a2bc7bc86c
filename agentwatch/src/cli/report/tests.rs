//! What a report says, and that nothing foreign in it does anything.

use jiff::SignedDuration;

use super::{compose::What, *};
use crate::event::{
    Event, Kind, Verdict,
    model::File,
    samples::{ended, sample},
};

fn row() -> crate::wire::collector::SessionRow {
    serde_json::from_value(serde_json::json!({
        "id": "0001-x", "name": "fix <b>it</b>", "uid": 0, "policy": "sha256:00", "mode": "enforce", "coverage": "enforcing",
        "missing": [], "backends": ["bpf-lsm"], "cgroup": "/agentwatch/x", "command": ["agent", "`rm`|<script>alert(1)</script>"],
        "origin": "run", "state": "ended", "started": "2026-11-20T12:00:00Z", "ended": "2026-11-20T12:10:00Z", "reason": "exited",
        "exit_code": 0, "events": 10, "denied": 1, "counts": null
    }))
    .expect("a session")
}

fn on(kind: Kind, n: i64, path: &str, access: &[&str]) -> Event {
    let mut event = sample(kind);
    event.verdict = Verdict::Allowed;
    event.errno = None;
    event.time += SignedDuration::from_secs(n);
    event.file = Some(File {
        path: path.to_owned(),
        access: access.iter().map(|name| (*name).to_owned()).collect(),
        ..File::default()
    });
    event
}

fn rename(n: i64, from: &str, to: &str) -> Event {
    let mut event = on(Kind::Rename, n, from, &["write"]);
    event.target = Some(File {
        path: to.to_owned(),
        ..File::default()
    });
    event
}

fn composed(events: &[Event]) -> compose::Report {
    let mut composing = Composing::default();
    composing.session(vec![row()]);
    events.iter().for_each(|event| composing.add(event));
    composing.finish().expect("a session was named")
}

#[test]
fn what_became_of_each_file() {
    let report = composed(&[
        on(Kind::Create, 1, "/w/new", &["create"]),
        on(Kind::Open, 2, "/w/new", &["write"]),
        on(Kind::Open, 3, "/w/old", &["write", "truncate"]),
        on(Kind::Open, 4, "/w/only-read", &["read"]),
        on(Kind::Delete, 5, "/w/gone", &["delete"]),
        on(Kind::Create, 6, "/w/tmp", &["create"]),
        on(Kind::Delete, 7, "/w/tmp", &["delete"]),
        on(Kind::Attr, 8, "/w/run.sh", &["attr"]),
        // A program that writes beside a file and then takes its place.
        on(Kind::Open, 9, "/w/doc", &["read"]),
        on(Kind::Create, 9, "/w/doc.swp", &["create"]),
        rename(10, "/w/doc.swp", "/w/doc"),
        rename(11, "/w/before", "/w/after"),
        on(Kind::Delete, 12, "/w/again", &["delete"]),
        on(Kind::Create, 13, "/w/again", &["create"]),
        Event {
            errno: Some(13),
            verdict: Verdict::Denied,
            ..on(Kind::Open, 14, "/etc/shadow", &["write"])
        },
        Event {
            errno: Some(2),
            ..on(Kind::Open, 15, "/w/failed", &["write"])
        },
    ]);
    let found: Vec<(&str, What, Option<&str>)> = report
        .files_changed
        .iter()
        .map(|change| (change.path.as_str(), change.change, change.from.as_deref()))
        .collect();
    assert_eq!(
        found,
        [
            ("/w/after", What::Created, Some("/w/before")),
            ("/w/new", What::Created, None),
            ("/w/again", What::Modified, None),
            ("/w/doc", What::Modified, None),
            ("/w/old", What::Modified, None),
            ("/w/before", What::Deleted, None),
            ("/w/gone", What::Deleted, None),
            ("/w/run.sh", What::Attributes, None),
            ("/w/tmp", What::Temporary, None),
        ]
    );
    assert_eq!(report.files_read, 2);
}

#[test]
fn all_forms_say_the_same_and_nothing_foreign_is_markup() {
    let hostile = "/w/<img src=x onerror=alert(1)>`](javascript:x)|\x1b[2J\u{202e}&amp;";
    let mut events: Vec<Event> = Kind::ALL.into_iter().map(sample).collect();
    events.push(on(Kind::Create, 20, hostile, &["create"]));
    events.push(ended());
    for event in &mut events {
        if let Some(process) = &mut event.process {
            process
                .argv
                .push("</pre></code><script>alert(2)</script>```\n# x".to_owned());
        }
    }
    let report = composed(&events);
    let document = document::of(&report);
    let (html, markdown) = (html::of(&document), markdown::of(&document));
    for page in [&html, &markdown] {
        for part in [
            "/etc/shadow",
            "files.deny[2]",
            "192.0.2.7:443",
            "created",
            "42",
        ] {
            let plain = page.replace('\\', "");
            assert!(plain.contains(part), "{part}: {page}");
        }
        let wild = page.chars().find(|character| {
            (character.is_control() && *character != '\n') || *character == '\u{202e}'
        });
        assert_eq!(wild, None);
    }
    for forbidden in [
        "<script",
        "<img",
        "onerror=alert(1)>`](",
        "http://",
        "https://",
        "src=\"",
        "href=",
    ] {
        let page = html.replace("&lt;", "\u{1}");
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(html.contains("Content-Security-Policy"));
    // In Markdown it stands in code only: without code blocks and spans nothing of it is left.
    let mut outside = String::new();
    let mut fence: Option<usize> = None;
    for line in markdown.lines() {
        let run = line
            .chars()
            .take_while(|character| *character == '`')
            .count();
        match fence {
            Some(open) if run >= open => fence = None,
            None if run >= 3 => fence = Some(run),
            None => outside.push_str(line),
            _ => {}
        }
    }
    assert!(!outside.contains("alert(2)"), "{outside}");
    serde_json::to_value(&report).expect("a report is JSON");
}

#[test]
fn approvals_say_who_and_why_in_every_form() {
    use crate::event::model::{Decider, DeciderKind, Scope, Step};
    let by = |kind, uid, name: Option<&str>| {
        Some(Decider {
            kind,
            uid,
            name: name.map(str::to_owned),
        })
    };
    let step = |n: i64, step, by, reason: Option<&str>| {
        let mut event = on(Kind::Approval, n, "/w/Cargo.lock", &["write"]);
        let approval = event.approval.get_or_insert_with(|| {
            sample(Kind::Approval)
                .approval
                .expect("an approval has one")
        });
        approval.action = Kind::Open;
        approval.step = step;
        approval.by = by;
        approval.reason = reason.map(str::to_owned);
        approval.scope = (step == Step::Approved).then_some(Scope::Session);
        approval.until = None;
        event
    };
    let report = composed(&[
        step(1, Step::Requested, None, None),
        step(
            2,
            Step::Escalated,
            by(DeciderKind::Reviewer, None, Some("/usr/bin/review")),
            Some("look at it"),
        ),
        step(
            3,
            Step::Approved,
            by(DeciderKind::User, Some(1001), Some("alice")),
            Some("the lock file follows"),
        ),
        step(
            4,
            Step::Rejected,
            by(DeciderKind::User, Some(4_000_000), None),
            Some("not <b>this</b> one"),
        ),
        step(5, Step::Expired, by(DeciderKind::Timeout, None, None), None),
    ]);
    let document = document::of(&report);
    for page in [html::of(&document), markdown::of(&document)] {
        let page = page
            .replace('\\', "")
            .replace("&lt;", "<")
            .replace("&gt;", ">");
        for part in [
            "requested",
            "reviewer /usr/bin/review",
            "look at it",
            "approved for the session",
            "alice (uid 1001)",
            "the lock file follows",
            "uid 4000000",
            "not <b>this</b> one",
            "timeout",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
    let json = serde_json::to_value(&report).expect("a report is JSON");
    let approved = &json["approvals"][2];
    assert_eq!(approved["step"], "approved");
    assert_eq!(approved["by"]["name"], "alice");
    assert_eq!(approved["by"]["uid"], 1001);
    assert_eq!(approved["reason"], "the lock file follows");
    assert_eq!(approved["scope"], "session");
}

#[test]
fn the_first_line_is_honest() {
    let verdict = |change: fn(&mut crate::wire::collector::SessionRow), events: &[Event]| {
        let mut composing = Composing::default();
        let mut session = row();
        change(&mut session);
        composing.session(vec![session]);
        events.iter().for_each(|event| composing.add(event));
        let report = composing.finish().expect("a session");
        document::of(&report).verdict
    };
    use super::document::Grade;
    use crate::event::model::Coverage;
    let (grade, text) = verdict(|_| {}, &[]);
    assert_eq!(grade, Grade::Good);
    assert!(
        text.contains("enforced as a whole; nothing was refused; the record is complete"),
        "{text}"
    );
    assert_eq!(verdict(|_| {}, &[sample(Kind::Open)]).0, Grade::Warn);
    assert_eq!(verdict(|_| {}, &[sample(Kind::Loss)]).0, Grade::Bad);
    assert_eq!(
        verdict(|session| session.coverage = Coverage::Degraded, &[]).0,
        Grade::Bad
    );
    assert_eq!(
        verdict(|session| session.coverage = Coverage::Off, &[]).0,
        Grade::Warn
    );
}
