//! What is sealed answers as what is not, survives a stop at any point, and shows when it was touched.

use std::fs::File;

use parquet::file::reader::{FileReader as _, SerializedFileReader};

use super::{tampering::checked, *};

/// A few sessions of two boots, all kinds, in an order that no segment keeps.
pub(super) fn mixed(count: u64) -> Vec<Event> {
    let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Session);
    let mut events: Vec<Event> = kinds
        .cycle()
        .zip(1..=count)
        .map(|(kind, n)| {
            let mut event = event(&format!("s{}", n % 5), n, kind);
            event.id = format!("s{}-{n}", n % 5);
            if n % 7 == 0 {
                event.boot_id = "earlier".to_owned();
                event.time -= SignedDuration::from_hours(48);
            }
            event
        })
        .collect();
    events.extend((0..5).map(|n| started(&format!("s{n}"), 1000 + n)));
    let half = events.len() / 2;
    events.rotate_left(half);
    events
}

fn ids(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.id.as_str()).collect()
}

#[test]
fn sealed_and_unsealed_answer_alike() {
    let events = mixed(2000);
    let (plain, mut unsealed) = store();
    unsealed.insert_events(&events).expect("stored");
    let (other, mut sealed) = store();
    for part in events.chunks(300) {
        sealed.insert_events(part).expect("stored");
        sealed.seal_all().expect("sealed");
    }
    // The last part stays in the tail.
    let (third, mut halves) = store();
    halves.insert_events(&events[..1200]).expect("stored");
    halves.seal_all().expect("sealed");
    halves.insert_events(&events[1200..]).expect("stored");

    let questions = [
        Filter::default(),
        filter("s3"),
        Filter {
            kinds: vec![Kind::Open, Kind::Exit],
            ..filter("s1")
        },
        Filter {
            verdicts: vec![Verdict::Denied],
            ..Filter::default()
        },
        Filter {
            since: events.get(900).map(|event| event.time),
            ..Filter::default()
        },
    ];
    for question in &questions {
        for viewer in [Viewer::All, Viewer::User(1003)] {
            let asked = |directory: &Path| all(directory, viewer, question);
            match (
                asked(plain.path()),
                asked(other.path()),
                asked(third.path()),
            ) {
                (Ok(first), Ok(second), Ok(third)) => {
                    assert!(
                        first == second,
                        "{question:?} {viewer:?}: {} {}",
                        first.len(),
                        second.len()
                    );
                    assert!(
                        first == third,
                        "{question:?} {viewer:?}: {} {}",
                        first.len(),
                        third.len()
                    );
                }
                (Err(first), Err(_), Err(_)) => {
                    assert!(first.to_string().contains("no session"), "{first}");
                }
                _ => panic!("{question:?} {viewer:?}"),
            }
        }
    }
    for statement in [
        "SELECT count(*), sum(count), min(time_ns), max(ktime_ns) FROM events",
        "SELECT id, json FROM events WHERE session_id = 's2' ORDER BY id",
        "SELECT kind, verdict, count(*) FROM events GROUP BY kind, verdict ORDER BY 1, 2",
        "SELECT id FROM events WHERE path = '/etc/shadow' ORDER BY id",
        "SELECT id FROM events WHERE path = '/etc/shado' ORDER BY id",
        "SELECT id FROM events WHERE kind IN ('rename', 'bind') AND session_id <> 's1' ORDER BY id",
        "SELECT session_id, path, sum(count) FROM files WHERE session_id = 's4' GROUP BY 1, 2 ORDER BY 1, 2",
        "SELECT * FROM destinations ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12",
        "SELECT * FROM denials ORDER BY id",
        "SELECT pid, exe, exit_code, events FROM processes WHERE session_id = 's0'",
        "SELECT count(*) FROM approvals",
        "SELECT s.name, count(*) FROM sessions s JOIN events e ON e.session_id = s.id GROUP BY 1 ORDER BY 1",
        "SELECT id, events, denied FROM sessions ORDER BY id",
        "SELECT id FROM events WHERE time_ns > (SELECT max(time_ns) - 50000000 FROM events) ORDER BY id",
    ] {
        let first = sql(plain.path(), statement).expect(statement);
        assert!(
            !first.is_empty() || statement.contains("shado'"),
            "{statement}"
        );
        assert_eq!(
            first,
            sql(other.path(), statement).expect(statement),
            "{statement}"
        );
        assert_eq!(
            first,
            sql(third.path(), statement).expect(statement),
            "{statement}"
        );
    }
}

/// What is sealed together is in memory together, so that long texts make small segments of small row groups.
#[test]
fn long_texts_are_sealed_a_part_at_a_time() {
    let (directory, mut store) = store();
    let long = "x".repeat(12 << 10);
    // Arguments that nobody else has, and a path that is said again behind each event without one.
    let events: Vec<Event> = (1..=4000)
        .map(|n| {
            let kind = [Kind::Open, Kind::Exit][usize::from(n % 2 == 0)];
            let mut event = event("s", n, kind);
            if let Some(process) = &mut event.process {
                process.argv = if n < 3000 {
                    vec![format!("{n}{long}")]
                } else {
                    Vec::new()
                };
            }
            if let Some(file) = &mut event.file {
                file.path = format!("/{long}");
            }
            event
        })
        .collect();
    for events in events.chunks(100) {
        store.insert_events(events).expect("stored");
    }
    assert!(events.len() < store.segment_events);
    let order = store.order(false).expect("asked").expect("enough bytes");
    let sealed = Sealer::new(store.key())
        .and_then(|mut sealer| sealer.build(&order))
        .expect("built");
    store.enter(&sealed).expect("entered");
    assert!((1000..2000).contains(&store.unsealed()));
    assert!(store.order(false).expect("asked").is_none());
    store.seal_all().expect("sealed");
    let path = super::super::segment::path(directory.path(), 1);
    let file = File::open(path).expect("a file");
    let groups = SerializedFileReader::new(file).expect("a segment");
    assert!(groups.num_row_groups() > 1);
    let found = all(directory.path(), Viewer::All, &filter("s")).expect("answered");
    assert_eq!(found, events);
    let report = checked(directory.path());
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn what_is_sealed_is_not_stored_again() {
    let events = mixed(500);
    let (directory, mut store) = store();
    store.insert_events(&events).expect("stored");
    store.seal_all().expect("sealed");
    store.insert_events(&events).expect("stored again");
    drop(store);
    // Another collector knows of the segments only what it reads.
    let (mut store, _) = Store::open(directory.path(), &host()).expect("opened");
    store.insert_events(&events).expect("stored again");
    let found = all(directory.path(), Viewer::All, &Filter::default()).expect("read");
    assert_eq!(found.len(), events.len());
    let rows = sql(directory.path(), "SELECT sum(events) FROM sessions").expect("rows");
    assert_eq!(rows, [[json!(505)]]);
}

#[test]
fn a_stop_between_the_steps_of_sealing_loses_and_doubles_nothing() {
    let events = mixed(700);
    let (directory, mut store) = store();
    store.insert_events(&events).expect("stored");
    let order = store
        .order(true)
        .expect("an order")
        .expect("something is there");
    // Built and not entered; and half a file of another attempt.
    let _ = Sealer::new(store.key())
        .and_then(|mut sealer| sealer.build(&order))
        .expect("built");
    std::fs::write(
        directory.path().join("segments/0000000002.parquet.tmp"),
        b"PAR1",
    )
    .expect("written");
    drop(store);
    let (mut store, _) = Store::open(directory.path(), &host()).expect("opened");
    assert_eq!(
        std::fs::read_dir(directory.path().join("segments"))
            .expect("a directory")
            .count(),
        0
    );
    assert_eq!(
        all(directory.path(), Viewer::All, &Filter::default())
            .expect("read")
            .len(),
        705
    );
    store.seal_all().expect("sealed");
    assert_eq!(
        all(directory.path(), Viewer::All, &Filter::default())
            .expect("read")
            .len(),
        705
    );
    assert!(checked(directory.path()).findings.is_empty());
}

#[test]
fn a_walk_goes_on_while_its_events_are_sealed() {
    let (directory, mut store) = store();
    let events: Vec<Event> = (1..=1700).map(|n| event("s", n, Kind::Open)).collect();
    store.insert_events(&events).expect("stored");
    let reader = Reader::open(directory.path(), Viewer::All).expect("a reader");
    let mut scan = reader.scan(&Filter::default()).expect("a walk");
    let mut found = reader.page(&mut scan).expect("a page").unpacked();
    store.seal_all().expect("sealed");
    let later: Vec<Event> = (1701..=1800).map(|n| event("s", n, Kind::Open)).collect();
    store.insert_events(&later).expect("stored");
    loop {
        let page = reader.page(&mut scan).expect("a page");
        found.extend(page.unpacked());
        if page.last {
            break;
        }
    }
    assert_eq!(ids(&found), ids(&events));
    store.seal_all().expect("sealed");
    let mut newer = Vec::new();
    loop {
        let page = reader.newer(&mut scan).expect("newer");
        newer.extend(page.unpacked());
        if page.last {
            break;
        }
    }
    assert_eq!(ids(&newer), ids(&later));
}

#[test]
fn whole_segments_are_let_go_of_by_age_and_by_size() {
    let (directory, mut store) = store();
    for round in 0..3u64 {
        let events: Vec<Event> = (1..=200)
            .map(|n| {
                let mut event = event("s", round * 200 + n, Kind::Open);
                event.time = Timestamp::now() - SignedDuration::from_hours(72 - 24 * round as i64);
                event
            })
            .collect();
        store.insert_events(&events).expect("stored");
        store.seal_all().expect("sealed");
    }
    let count = || {
        all(directory.path(), Viewer::All, &Filter::default())
            .expect("read")
            .len()
    };
    assert_eq!(count(), 600);
    let age = Retention {
        age: Some(Duration::from_secs(60 * 3600)),
        bytes: None,
    };
    assert_eq!(store.retain(&age).expect("let go"), 1);
    assert_eq!(count(), 400);
    assert_eq!(
        sql(directory.path(), "SELECT count(*) FROM denials").expect("rows"),
        [[json!(400)]]
    );
    let report = checked(directory.path());
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!((report.retired, report.segments), (1, 2));
    let size = Retention {
        age: None,
        bytes: Some(1),
    };
    assert_eq!(store.retain(&size).expect("let go"), 2);
    assert_eq!(count(), 0);
    store
        .insert_events(&[event("t", 1, Kind::Open)])
        .expect("it goes on");
    store.seal_all().expect("sealed");
    assert!(checked(directory.path()).findings.is_empty());
    assert_eq!(count(), 1);
}

/// A daemon that takes the session over asks which of its numbers have come.
#[test]
fn what_was_let_go_of_still_counts() {
    let (directory, mut store) = store();
    let mut events = vec![started("s", 1)];
    events.extend((1..=600).filter(|n| *n != 7).map(|n| {
        let mut event = event("s", n, Kind::Open);
        event.id = format!("s-{n}");
        event
    }));
    let mut fold = event("s", 0, Kind::Open);
    (fold.fold, fold.count) = (Some("s-5".to_owned()), 40);
    events.push(fold);
    for event in &mut events {
        event.boot_id = host().boot_id;
    }
    for part in events.chunks(200) {
        store.insert_events(part).expect("stored");
        store.seal_all().expect("sealed");
    }
    let account = |directory: &Path| {
        let parts = Reader::open(directory, Viewer::All)
            .and_then(|reader| reader.account("s"))
            .expect("an account");
        let arrived: Vec<_> = parts.iter().flat_map(|part| part.arrived.clone()).collect();
        let told: Vec<_> = parts.iter().flat_map(|part| part.told.clone()).collect();
        (arrived, told)
    };
    let before = account(directory.path());
    assert_eq!(before, (vec![(1, 6), (8, 600)], vec![(5, 40)]));
    let size = Retention {
        age: None,
        bytes: Some(1),
    };
    assert_eq!(store.retain(&size).expect("let go"), 4);
    assert_eq!(account(directory.path()), before);
    // What comes once more is not stored once more.
    store.insert_events(&events[1..50]).expect("taken");
    assert_eq!(store.unsealed(), 0);
}

#[test]
fn a_segment_that_is_gone_is_declared_and_the_rest_answers() {
    let (directory, mut store) = store();
    for part in mixed(600).chunks(300) {
        store.insert_events(part).expect("stored");
        store.seal_all().expect("sealed");
    }
    drop(store);
    std::fs::remove_file(directory.path().join("segments/0000000001.parquet")).expect("removed");
    let (_store, _) = Store::open(directory.path(), &host()).expect("opened");
    let found = all(directory.path(), Viewer::All, &Filter::default()).expect("read");
    let losses: Vec<_> = found
        .iter()
        .filter_map(|event| event.loss.as_ref())
        .filter(|loss| loss.reason == "segment_missing")
        .collect();
    assert_eq!((losses.len(), losses[0].events), (1, 300));
    assert!(
        checked(directory.path())
            .findings
            .iter()
            .any(|finding| finding.what == "missing")
    );
}

#[test]
fn flipped_bytes_end_in_words_never_in_a_panic() {
    let (directory, mut store) = store();
    store.insert_events(&mixed(800)).expect("stored");
    store.seal_all().expect("sealed");
    let path = directory.path().join("segments/0000000001.parquet");
    let content = std::fs::read(&path).expect("the file");
    for at in (0..content.len()).step_by(content.len() / 60) {
        let mut damaged = content.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, &damaged).expect("written");
        // It may read as something else, which is what verify is for.
        if let Err(error) = all(directory.path(), Viewer::All, &Filter::default()) {
            assert!(
                error.to_string().contains("hint: `agentwatch verify`"),
                "{error}"
            );
        }
        let _ = sql(
            directory.path(),
            "SELECT count(*), max(path), max(argv) FROM events",
        );
        let report = checked(directory.path());
        assert!(!report.findings.is_empty(), "byte {at}");
    }
}

/// Wall time may jump back; order, numbers and the chain go by kernel time and by what came.
#[test]
fn a_clock_that_jumps_back_disorders_nothing() {
    let (directory, mut store) = store();
    let events: Vec<Event> = (1..=900)
        .map(|n| {
            let mut event = event("s", n, Kind::Open);
            if n > 300 {
                event.time -= jiff::SignedDuration::from_hours(3);
            }
            event
        })
        .collect();
    for part in events.chunks(150) {
        store.insert_events(part).expect("stored");
        store.seal_all().expect("sealed");
    }
    let found = all(directory.path(), Viewer::All, &filter("s")).expect("read");
    assert_eq!(ids(&found), ids(&events));
    // What is asked by time is found by the time that an event says.
    let since = Filter {
        since: Some(events[0].time),
        ..Filter::default()
    };
    let found = all(directory.path(), Viewer::All, &since).expect("read");
    assert_eq!(ids(&found), ids(&events[..300]));
    let asked = format!(
        "SELECT count(*) FROM events WHERE time_ns < {}",
        events[0].time.as_nanosecond()
    );
    assert_eq!(sql(directory.path(), &asked).expect("rows")[0][0], 600);
    assert!(checked(directory.path()).findings.is_empty());
    // Nothing is too old because the clock was, and nothing twice because it is told again.
    store.insert_events(&events[200..400]).expect("stored");
    assert_eq!(store.unsealed(), 0);
}

/// A directory as it could be after the power was cut: a copy of files, for a change to what was not on disk yet.
fn copied(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("a temporary directory");
    for part in ["", "segments"] {
        std::fs::create_dir_all(to.path().join(part)).expect("made");
        for entry in std::fs::read_dir(from.join(part)).expect("a directory") {
            let entry = entry.expect("an entry");
            // The index of the log is memory that is shared, and made anew.
            let index = entry.file_name().to_string_lossy().ends_with("-shm");
            if entry.path().is_file() && !index {
                let there = to.path().join(part).join(entry.file_name());
                std::fs::copy(entry.path(), there).expect("copied");
            }
        }
    }
    to
}

/// Opens what a power cut left: which events are there, with the chain unbroken.
fn after_cut(directory: &Path, what: &str) -> Vec<String> {
    let (store, aside) = Store::open(directory, &host()).expect(what);
    assert_eq!(aside, None, "{what}: nothing is set aside");
    let report = checked(directory);
    assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
    let found = all(directory, Viewer::All, &Filter::default()).expect(what);
    drop(store);
    let mut found: Vec<String> = found.into_iter().map(|event| event.id).collect();
    found.sort();
    found
}

/// What was acknowledged is there, whatever a power cut made of what was written after it: cut at any byte, zeroes, or other bytes.
#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    let (directory, mut store) = store();
    let log = |directory: &Path| directory.join("history.db-wal");
    let events = mixed(900);
    store.insert_events(&events[..300]).expect("stored");
    store.seal_all().expect("sealed");
    store.insert_events(&events[300..600]).expect("stored");
    let mut acknowledged: Vec<String> =
        events[..600].iter().map(|event| event.id.clone()).collect();
    acknowledged.sort();
    let kept = std::fs::metadata(log(directory.path()))
        .expect("a log")
        .len();

    // In the middle of storing more.
    store.insert_events(&events[600..]).expect("stored");
    let written = std::fs::read(log(directory.path())).expect("the log");
    let kept = usize::try_from(kept).expect("small");
    assert!(written.len() > kept + 10_000, "the log only grew");
    for cut in (kept..written.len()).step_by((written.len() - kept) / 12) {
        for fill in [None, Some(0u8), Some(0xa5)] {
            let there = copied(directory.path());
            let mut torn = written.clone();
            match fill {
                None => torn.truncate(cut),
                Some(byte) => torn[cut..].fill(byte),
            }
            // The end of a page can be zeroes by itself.
            if torn == written {
                continue;
            }
            std::fs::write(log(there.path()), torn).expect("written");
            let found = after_cut(there.path(), &format!("cut at {cut}, {fill:?}"));
            assert_eq!(found, acknowledged, "cut at {cut}, {fill:?}");
        }
    }

    // In the middle of sealing: the segment and its manifest, one of them, half of them, none.
    let order = store.order(true).expect("an order").expect("something");
    let sealed = Sealer::new(store.key())
        .and_then(|mut sealer| sealer.build(&order))
        .expect("built");
    let mut whole: Vec<String> = events.iter().map(|event| event.id.clone()).collect();
    whole.sort();
    for (segment, manifest) in [(0, 0), (50, 0), (100, 0), (100, 50), (0, 100), (100, 100)] {
        let there = copied(directory.path());
        for (name, part) in [
            ("0000000002.parquet", segment),
            ("0000000002.json", manifest),
        ] {
            let path = there.path().join("segments").join(name);
            let content = std::fs::read(&path).expect("built");
            std::fs::write(&path, &content[..content.len() * part / 100]).expect("written");
        }
        let what = format!("segment {segment} %, manifest {manifest} %");
        assert_eq!(after_cut(there.path(), &what), whole, "{what}");
    }

    // In the middle of moving the log into the file: any of its pages may be the old or the new one, or torn.
    store.enter(&sealed).expect("entered");
    let there = copied(directory.path());
    store.close().expect("closed");
    let old = std::fs::read(there.path().join(FILE)).expect("the file");
    let new = std::fs::read(directory.path().join(FILE)).expect("the file");
    for pattern in 0..6usize {
        let there = copied(there.path());
        let mut mixed_up = new.clone();
        for (number, page) in mixed_up.chunks_mut(4096).enumerate() {
            let was = old.get(number * 4096..number * 4096 + page.len());
            match ((number * 7 + pattern) % 3, was) {
                (0, Some(was)) => page.copy_from_slice(was),
                (1, Some(was)) => page[..512].copy_from_slice(&was[..512]),
                _ => {}
            }
        }
        std::fs::write(there.path().join(FILE), mixed_up).expect("written");
        let what = format!("pages mixed, {pattern}");
        assert_eq!(after_cut(there.path(), &what), whole, "{what}");
    }
}

#[test]
fn what_is_counted_is_what_sqlite_would_count() {
    let events = mixed(1500);
    let (directory, mut store) = store();
    store.insert_events(&events[..1000]).expect("stored");
    store.seal_all().expect("sealed");
    store.insert_events(&events[1000..]).expect("stored");
    let ask = |statement: &str| sql(directory.path(), statement).expect(statement);
    // With a number in it that has many values, SQLite sorts and counts.
    for (rest, columns) in [
        ("GROUP BY 1, 2", "kind, verdict"),
        ("GROUP BY 1, 2 ORDER BY 1, 2", "verdict, kind"),
        ("GROUP BY 1, 2 ORDER BY 1 DESC, 2 DESC", "verdict, kind"),
        ("GROUP BY 1, 2", "kind, 1"),
        (
            "WHERE kind IN ('open', 'exec') GROUP BY 1, 2",
            "kind, verdict",
        ),
        ("WHERE verdict = 'denied' GROUP BY 1, 2", "verdict, kind"),
        ("WHERE kind = 'nonsense' GROUP BY 1, 2", "verdict, kind"),
    ] {
        let counted = ask(&format!("SELECT {columns}, count(*) FROM events {rest}"));
        let sorted = ask(&format!(
            "SELECT {columns}, sum(seq IS NOT NULL) FROM events {rest}"
        ));
        assert_eq!(counted, sorted, "{columns} {rest}");
    }
    let plan =
        "EXPLAIN QUERY PLAN SELECT kind, verdict, count(*) FROM events GROUP BY kind, verdict";
    let plan = format!("{:?}", ask(plan));
    assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    let mut kinds = ask("SELECT DISTINCT kind FROM events");
    kinds.sort_by_key(|row| row[0].to_string());
    assert_eq!(
        kinds,
        ask("SELECT kind FROM events WHERE seq IS NOT NULL GROUP BY kind")
    );
    let joined = "SELECT d.kind, (SELECT count(*) FROM event_rows e WHERE e.kind = d.kind GROUP BY e.kind) FROM
        (SELECT DISTINCT kind FROM denials) d ORDER BY 1";
    for row in ask(joined) {
        let alone = ask(&format!(
            "SELECT count(seq) FROM events WHERE kind = {}",
            row[0].to_string().replace('"', "'")
        ));
        assert_eq!(row[1], alone[0][0], "{row:?}");
    }
}
