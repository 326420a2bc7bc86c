mod segments;
mod sql;
mod tampering;

use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, atomic::AtomicBool},
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::{
    event::{
        Kind, Verdict,
        model::Lifecycle,
        samples::{ended, sample},
    },
    wire::{batch::pack, collector::Filter},
};

fn host() -> Host {
    Host {
        name: "build-7".into(),
        boot_id: "this boot".into(),
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (store, aside) = Store::open(directory.path(), &host()).expect("a new store");
    assert_eq!(aside, None);
    (directory, store)
}

/// Event number `n` of a session, a millisecond after the one before.
fn event(session: &str, n: u64, kind: Kind) -> Event {
    let mut event = sample(kind);
    event.id = format!("{session}-{}-{n}-{}", event.boot_id, kind.name());
    event.session.id = session.to_owned();
    event.session.name = format!("name of {session}");
    event.seq = n;
    event.ktime_ns += n * 1_000_000;
    event.time += SignedDuration::from_millis(n as i64);
    event
}

fn started(session: &str, owner: u32) -> Event {
    let mut event = event(session, 0, Kind::Session);
    if let Some(Lifecycle::Started { uid, .. }) = &mut event.lifecycle {
        *uid = owner;
    }
    event
}

fn all(directory: &Path, viewer: Viewer, filter: &Filter) -> Result<Vec<Event>, StoreError> {
    let reader = Reader::open(directory, viewer)?;
    let mut scan = reader.scan(filter)?;
    let mut events = Vec::new();
    loop {
        let page = reader.page(&mut scan)?;
        let found = page.read().map_err(StoreError::Segment)?;
        assert!(found.len() <= 500);
        events.extend(found);
        if page.last {
            return Ok(events);
        }
    }
}

fn sql(directory: &Path, sql: &str) -> Result<Vec<Vec<Value>>, StoreError> {
    let limits = SqlLimits {
        time: Duration::from_secs(3),
        cancelled: Arc::new(AtomicBool::new(false)),
    };
    let mut all = Vec::new();
    run_sql(directory, sql, &limits, |part| {
        if let Part::Rows(rows) = part {
            let rows: Vec<Vec<Value>> = serde_json::from_slice(&rows).expect("JSON");
            all.extend(rows);
        }
        true
    })?;
    Ok(all)
}

fn filter(session: &str) -> Filter {
    Filter {
        session: Some(session.to_owned()),
        ..Filter::default()
    }
}

#[test]
fn events_come_back_unchanged_and_once() {
    let (directory, mut store) = store();
    let events: Vec<Event> = Kind::ALL
        .into_iter()
        .zip(1..)
        .map(|(kind, n)| event("s", n, kind))
        .collect();
    store.insert_events(&events).expect("stored");
    store
        .insert(&[&pack(&events), &pack(&events)])
        .expect("stored again");
    assert_eq!(
        all(directory.path(), Viewer::All, &Filter::default()).expect("read"),
        events
    );
    let row = Reader::open(directory.path(), Viewer::All)
        .and_then(|reader| reader.session("s"))
        .expect("a session");
    assert_eq!((row.events, row.denied), (16, 3));
}

#[test]
fn the_files_are_private() {
    let (directory, mut store) = store();
    store.insert_events(&[started("s", 1)]).expect("stored");
    for name in ["history.db", "history.db-wal", "history.db-shm"] {
        let mode = directory
            .path()
            .join(name)
            .metadata()
            .expect("the file is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn order_is_kernel_time_within_a_boot_over_many_pages() {
    let (directory, mut store) = store();
    let mut events: Vec<Event> = (1..=1700).map(|n| event("s", n, Kind::Open)).collect();
    let mut later = event("t", 1, Kind::Open);
    later.boot_id = "another boot".into();
    later.id = "later".into();
    later.ktime_ns = 5;
    later.time += SignedDuration::from_hours(1);
    let shuffled: Vec<Event> = std::iter::once(&later)
        .chain(events.iter().rev())
        .cloned()
        .collect();
    store.insert_events(&shuffled).expect("stored");
    events.push(later);
    let found = all(directory.path(), Viewer::All, &Filter::default()).expect("read");
    assert_eq!(found.len(), 1701);
    assert!(
        found == events,
        "{:?}",
        found.iter().map(|event| &event.id).collect::<Vec<_>>()
    );
    assert_eq!(
        all(directory.path(), Viewer::All, &filter("s"))
            .expect("read")
            .len(),
        1700
    );
}

#[test]
fn large_events_make_small_pages() {
    let (directory, mut store) = store();
    let mut events: Vec<Event> = (1..=5).map(|n| event("s", n, Kind::Open)).collect();
    for event in &mut events {
        event.file.as_mut().expect("an open has a file").path = "x".repeat(700_000);
    }
    store.insert_events(&events).expect("stored");
    let reader = Reader::open(directory.path(), Viewer::All).expect("a reader");
    let mut scan = reader.scan(&Filter::default()).expect("a walk");
    assert_eq!(reader.page(&mut scan).expect("a page").unpacked().len(), 1);
    assert_eq!(
        all(directory.path(), Viewer::All, &Filter::default()).expect("read"),
        events
    );
}

#[test]
fn filters_restrict() {
    let (directory, mut store) = store();
    let events: Vec<Event> = (1..=10)
        .flat_map(|n| [event("s", n, Kind::Open), event("s", n, Kind::Exec)])
        .collect();
    store.insert_events(&events).expect("stored");
    let count = |filter: Filter| {
        all(directory.path(), Viewer::All, &filter)
            .expect("read")
            .len()
    };
    assert_eq!(
        count(Filter {
            kinds: vec![Kind::Exec],
            ..Filter::default()
        }),
        10
    );
    assert_eq!(
        count(Filter {
            verdicts: vec![Verdict::Denied],
            ..Filter::default()
        }),
        10
    );
    assert_eq!(
        count(Filter {
            verdicts: vec![Verdict::Denied, Verdict::Held],
            ..filter("s")
        }),
        10
    );
    assert_eq!(
        count(Filter {
            kinds: vec![Kind::Exec],
            verdicts: vec![Verdict::Denied],
            ..Filter::default()
        }),
        0
    );
    let since = events.get(10).map(|event| event.time);
    assert_eq!(
        count(Filter {
            since,
            ..Filter::default()
        }),
        10
    );
    assert_eq!(
        count(Filter {
            since: Some(Timestamp::MAX),
            ..Filter::default()
        }),
        0
    );
    assert_eq!(
        count(Filter {
            since: Some(Timestamp::MIN),
            ..Filter::default()
        }),
        20
    );
}

#[test]
fn a_user_sees_own_sessions_only() {
    let (directory, mut store) = store();
    let orphan = event("c", 1, Kind::Open);
    let batch = [
        started("a", 1000),
        event("a", 1, Kind::Open),
        started("b", 1001),
        event("b", 1, Kind::Open),
        orphan,
    ];
    store.insert_events(&batch).expect("stored");
    let seen = |viewer| -> Vec<String> {
        let events = all(directory.path(), viewer, &Filter::default()).expect("read");
        events.into_iter().map(|event| event.session.id).collect()
    };
    assert_eq!(seen(Viewer::User(1000)), ["a", "a"]);
    assert_eq!(seen(Viewer::User(1002)), [""; 0]);
    // Nobody's session: its start is missing. No uid, not even the invalid one, owns it.
    assert_eq!(seen(Viewer::User(u32::MAX)), [""; 0]);
    assert_eq!(seen(Viewer::All).len(), 5);

    let reader = Reader::open(directory.path(), Viewer::User(1000)).expect("a reader");
    let (sessions, next) = reader.sessions(None).expect("sessions");
    assert_eq!(
        sessions
            .iter()
            .map(|row| row.id.as_str())
            .collect::<Vec<_>>(),
        ["a"]
    );
    assert_eq!(next, None);
    for foreign in ["b", "name of b", "c"] {
        assert!(reader.session(foreign).is_err(), "{foreign}");
        assert!(
            all(directory.path(), Viewer::User(1000), &filter(foreign)).is_err(),
            "{foreign}"
        );
    }
    let mut scan = reader.scan(&Filter::default()).expect("a walk");
    store
        .insert_events(&[event("b", 2, Kind::Open), event("a", 2, Kind::Open)])
        .expect("stored");
    let page = reader.newer(&mut scan).expect("newer");
    assert_eq!(
        page.unpacked()
            .iter()
            .map(|event| event.session.id.as_str())
            .collect::<Vec<_>>(),
        ["a"]
    );
    assert!(reader.newer(&mut scan).expect("newer").events.is_none());
}

#[test]
fn sessions_are_named_by_id_beginning_or_name() {
    let (directory, mut store) = store();
    store
        .insert_events(&[started("abc1", 1), started("abd2", 1), started("xyz%", 1)])
        .expect("stored");
    let reader = Reader::open(directory.path(), Viewer::All).expect("a reader");
    let named = |wanted: &str| reader.session(wanted).map(|row| row.id);
    assert_eq!(named("abc1").expect("by id"), "abc1");
    assert_eq!(named("abd").expect("by a beginning"), "abd2");
    assert_eq!(named("name of abd2").expect("by name"), "abd2");
    assert!(
        named("ab")
            .expect_err("two of them")
            .to_string()
            .contains("several sessions")
    );
    assert!(
        named("%")
            .expect_err("no pattern")
            .to_string()
            .contains("no session of yours")
    );
    assert!(named("").is_err());
}

#[test]
fn sessions_and_processes_are_derived() {
    let (directory, mut store) = store();
    let mut end = ended();
    end.id = "end".into();
    end.session.id = "s".into();
    end.time += SignedDuration::from_secs(9);
    let mut failed = event("s", 3, Kind::Exec);
    failed.errno = Some(2);
    failed.process.as_mut().expect("an exec has a process").exe = "/nowhere".into();
    // The end comes first, as it may from a spool.
    let batch = [
        end,
        event("s", 1, Kind::Open),
        event("s", 2, Kind::Exec),
        failed,
        event("s", 4, Kind::Exit),
        started("s", 7),
    ];
    store.insert_events(&batch).expect("stored");
    let row = Reader::open(directory.path(), Viewer::All)
        .and_then(|reader| reader.session("s"))
        .expect("a session");
    assert_eq!(
        (row.state.as_str(), row.uid, row.exit_code),
        ("ended", 7, Some(0))
    );
    assert_eq!(row.counts.expect("counts").made, 100);
    assert_eq!(row.command, ["agent", "--task", "fix the parser"]);
    let rows = sql(
        directory.path(),
        "SELECT pid, exe, argv, exit_code, duration_ns FROM processes",
    )
    .expect("rows");
    assert_eq!(
        rows,
        [[
            json!(4711),
            json!("/usr/bin/cat"),
            json!("[\"cat\",\"/etc/shadow\"]"),
            json!(1),
            json!(1_250_000_000)
        ]]
    );
}

#[test]
fn a_session_of_an_earlier_boot_is_over() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (mut store, _) = Store::open(
        directory.path(),
        &Host {
            boot_id: started("s", 1).boot_id,
            ..host()
        },
    )
    .expect("a new store");
    store.insert_events(&[started("s", 1)]).expect("stored");
    let state = || {
        let row = Reader::open(directory.path(), Viewer::All)
            .and_then(|reader| reader.session("s"))
            .expect("a session");
        (row.state, row.reason)
    };
    assert_eq!(state(), ("running".to_owned(), None));
    drop(store);
    let _later = Store::open(
        directory.path(),
        &Host {
            boot_id: "next".into(),
            ..host()
        },
    )
    .expect("opened again");
    assert_eq!(
        state(),
        ("ended".to_owned(), Some("host_restarted".to_owned()))
    );
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let (directory, mut store) = store();
    let batch = |from: u64| {
        (from..from + 1000)
            .map(|n| event("s", n, Kind::Open))
            .collect::<Vec<Event>>()
    };
    store.limit_pages(200);
    let mut stored = 0;
    let error = loop {
        match store.insert_events(&batch(stored)) {
            Ok(_) => stored += 1000,
            Err(error) => break error,
        }
        assert!(stored < 100_000, "the limit does not hold");
    };
    assert!(matches!(error, StoreError::Full), "{error}");
    let count = || {
        all(directory.path(), Viewer::All, &Filter::default())
            .expect("read")
            .len() as u64
    };
    assert_eq!(count(), stored, "nothing of the refused batch is there");
    store.limit_pages(1 << 20);
    store
        .insert_events(&batch(stored))
        .expect("there is room again");
    assert_eq!(count(), stored + 1000);
}

#[test]
fn a_damaged_file_is_set_aside_and_the_loss_recorded() {
    for damage in [b"not a database at all".repeat(100), vec![0u8; 5000]] {
        let (directory, mut store) = store();
        store.insert_events(&[started("s", 1)]).expect("stored");
        store.close().expect("closed");
        let path = directory.path().join(FILE);
        let mut content = std::fs::read(&path).expect("the file");
        let at = if damage.first() == Some(&0) { 4096 } else { 0 };
        content[at..at + damage.len()].copy_from_slice(&damage);
        std::fs::write(&path, &content).expect("damaged");

        let (mut store, aside) = Store::open(directory.path(), &host()).expect("begun anew");
        let aside = aside.expect("the damaged file has a new name");
        assert_eq!(std::fs::read(&aside).expect("it is kept"), content);
        let events = all(directory.path(), Viewer::All, &Filter::default()).expect("read");
        let losses: Vec<_> = events
            .iter()
            .filter_map(|event| event.loss.as_ref())
            .collect();
        assert_eq!(losses.len(), 1);
        assert_eq!(
            (losses[0].from, losses[0].to, losses[0].reason.as_str()),
            (0, 0, "store_corrupt")
        );
        store.insert_events(&[started("s", 1)]).expect("it goes on");
    }
}

#[test]
fn damage_that_shows_while_running_begins_anew() {
    let (directory, mut store) = store();
    let aside = store
        .replace(&StoreError::Corrupt("seen by the writer".into()))
        .expect("replaced")
        .expect("set aside");
    assert!(aside.exists());
    store.insert_events(&[started("s", 1)]).expect("it goes on");
    assert_eq!(
        all(directory.path(), Viewer::All, &Filter::default())
            .expect("read")
            .len(),
        2
    );
}

#[test]
fn a_newer_history_is_left_alone() {
    let (directory, store) = store();
    store
        .connection
        .pragma_update(None, "user_version", 99)
        .expect("set");
    drop(store);
    assert!(matches!(
        Store::open(directory.path(), &host()),
        Err(StoreError::Newer { found: 99 })
    ));
    assert!(directory.path().join(FILE).exists());
}
