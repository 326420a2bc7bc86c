//! What was changed shows, and what is damaged is told of and kept.

use super::{segments::mixed, *};
use crate::collector::store::verify::{Expected, Report, export, verify};

pub(super) fn checked(directory: &Path) -> Report {
    verify(directory, &Expected::default()).expect("it can be checked")
}

/// A history of three segments and a tail.
fn chained() -> (tempfile::TempDir, Store) {
    let (directory, mut store) = store();
    for part in mixed(900).chunks(240) {
        store.insert_events(part).expect("stored");
        if part.len() == 240 {
            store.seal_all().expect("sealed");
        }
    }
    (directory, store)
}

/// Writes a segment anew with other rows, as somebody would who edits it.
fn rewritten(directory: &Path, no: i64, edit: impl FnOnce(&mut Vec<(i64, Event)>)) {
    let path = super::super::segment::path(directory, no);
    let segment = super::super::segment::Segment::open(&path).expect("a segment");
    let chunk = segment
        .read_range(super::super::columns::ALL, 0, segment.rows())
        .expect("its rows");
    let mut rows: Vec<(i64, Event)> = (0..chunk.rows)
        .map(|index| {
            use super::super::columns::{C, Row as _, event};
            let row = chunk.row(index);
            (
                row.number(C::No).expect("a number"),
                event(&row).expect("an event"),
            )
        })
        .collect();
    edit(&mut rows);
    let frames: Vec<(i64, Vec<u8>)> = rows
        .iter()
        .map(|(no, event)| (*no, pack(std::slice::from_ref(event))))
        .collect();
    let batches: Vec<_> = frames
        .iter()
        .map(|(no, frame)| {
            (
                *no,
                crate::wire::batch::Batch::decode(frame).expect("a batch"),
            )
        })
        .collect();
    let unsealed: Vec<_> = batches
        .iter()
        .map(|(no, batch)| super::super::columns::Unsealed {
            batch,
            record: &batch.records[0],
            no: *no,
        })
        .collect();
    super::super::segment::Writer::new()
        .and_then(|mut writer| writer.write(&path, &unsealed))
        .expect("written");
}

fn found(report: &Report, what: &str, segment: i64, detail: &str) {
    assert!(
        report.findings.iter().any(|finding| finding.what == what
            && finding.segment == segment
            && finding.detail.contains(detail)),
        "{what} {segment} {detail}: {:#?}",
        report.findings
    );
}

#[test]
fn an_untouched_history_and_its_export_verify() {
    let (directory, mut store) = chained();
    let report = checked(directory.path());
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(
        (report.segments, report.events, report.unsealed),
        (3, 720, 185)
    );
    store.seal_all().expect("sealed");
    let out = tempfile::tempdir().expect("a temporary directory");
    let out = out.path().join("export");
    assert_eq!(export(directory.path(), &out).expect("exported"), 4);
    let report = checked(&out);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!((report.segments, report.events), (4, 905));
    let text = report.head.expect("a head");
    let (segment, link) = text.split_once(':').expect("two parts");
    let mut hash = [0; 32];
    hex::decode_to_slice(link, &mut hash).expect("a hash");
    let noted = Expected {
        key: None,
        head: Some((segment.parse().expect("a number"), hash)),
    };
    assert!(verify(&out, &noted).expect("checked").findings.is_empty());
    let noted = Expected {
        key: None,
        head: Some((3, [7; 32])),
    };
    found(&verify(&out, &noted).expect("checked"), "cut", 3, "noted");
    let other = Expected {
        key: Some([9; 32]),
        head: None,
    };
    found(
        &verify(&out, &other).expect("checked"),
        "signature",
        1,
        "another key",
    );
}

#[test]
fn an_edited_segment_says_which_events() {
    type Edit = fn(&mut Vec<(i64, Event)>);
    let cases: [(Edit, &str, &str); 4] = [
        (
            |rows| drop(rows.remove(100)),
            "removed",
            "1 event was removed",
        ),
        (|rows| rows.swap(100, 101), "reordered", "out of"),
        (
            |rows| rows[130].1.host = "another".to_owned(),
            "changed",
            "rows 128 to 191 of segment 2",
        ),
        (
            |rows| {
                let row = rows[3].clone();
                rows.insert(4, row);
            },
            "added",
            "1 event was added",
        ),
    ];
    for (edit, what, detail) in cases {
        let (directory, _store) = chained();
        rewritten(directory.path(), 2, edit);
        found(&checked(directory.path()), what, 2, detail);
    }
}

#[test]
fn missing_cut_and_exchanged_segments_are_named() {
    let path = |directory: &Path, name: &str| directory.join("segments").join(name);
    let (directory, _store) = chained();
    std::fs::remove_file(path(directory.path(), "0000000002.parquet")).expect("removed");
    found(&checked(directory.path()), "missing", 2, "is gone");
    std::fs::remove_file(path(directory.path(), "0000000002.json")).expect("removed");
    found(
        &checked(directory.path()),
        "missing",
        2,
        "nothing says that this was on purpose",
    );

    let (directory, _store) = chained();
    for name in ["0000000003.parquet", "0000000003.json"] {
        std::fs::remove_file(path(directory.path(), name)).expect("removed");
    }
    found(&checked(directory.path()), "cut", 2, "cut off");

    let (directory, _store) = chained();
    std::fs::copy(
        path(directory.path(), "0000000001.parquet"),
        path(directory.path(), "0000000003.parquet"),
    )
    .expect("copied");
    found(
        &checked(directory.path()),
        "exchanged",
        3,
        "that of segment 1",
    );

    // A manifest that is made to fit is not signed.
    let (directory, _store) = chained();
    let manifest = path(directory.path(), "0000000002.json");
    let text = std::fs::read_to_string(&manifest).expect("a manifest");
    std::fs::write(&manifest, text.replace("\"rows\":240", "\"rows\":239")).expect("written");
    found(&checked(directory.path()), "signature", 2, "edited");

    // One with a key of its own.
    let (directory, _store) = chained();
    let (other, _other_store) = chained();
    for name in ["0000000002.parquet", "0000000002.json"] {
        std::fs::copy(path(other.path(), name), path(directory.path(), name)).expect("copied");
    }
    found(&checked(directory.path()), "signature", 2, "another key");
}

#[test]
fn an_edited_tail_is_seen() {
    for (statement, what) in [
        (
            "DELETE FROM tail_rows WHERE no = (SELECT max(no) FROM tail_rows)",
            "cut",
        ),
        (
            "DELETE FROM tail_rows WHERE no = (SELECT min(no) FROM tail_rows)",
            "removed",
        ),
        (
            "UPDATE tail_rows SET frame = frame || x'00' WHERE no = (SELECT min(no) FROM tail_rows)",
            "changed",
        ),
    ] {
        let (directory, mut store) = chained();
        store
            .insert_events(&[event("s1", 5000, Kind::Open)])
            .expect("stored");
        store.connection.execute(statement, []).expect("edited");
        let report = checked(directory.path());
        assert!(
            report.findings.iter().any(|finding| finding.what == what),
            "{statement}: {:?}",
            report.findings
        );
    }
    let (directory, store) = chained();
    store
        .connection
        .execute(
            "UPDATE head_row SET json = replace(json, '\"newest\":9', '\"newest\":8')",
            [],
        )
        .expect("edited");
    found(&checked(directory.path()), "signature", 0, "not signed");
}

#[test]
fn a_tail_is_anchored_before_anything_is_sealed() {
    let (directory, mut store) = store();
    for part in mixed(300).chunks(100) {
        store.insert_events(part).expect("stored");
    }
    let delete = |statement: &str| store.connection.execute(statement, []).expect("edited");
    delete("DELETE FROM tail_rows WHERE no = 1");
    found(
        &checked(directory.path()),
        "removed",
        0,
        "1 to 100 are gone",
    );
    delete("DELETE FROM tail_rows");
    found(&checked(directory.path()), "cut", 0, "up to 0 are there");
}

#[test]
fn what_was_edited_before_it_was_sealed_is_said_by_its_manifest() {
    for (statement, detail) in [
        (
            "DELETE FROM tail_rows WHERE no = 181",
            "events 181 to 360 were gone",
        ),
        (
            "DELETE FROM tail_rows WHERE no = 541",
            "events 541 to 720 were gone",
        ),
        (
            "DELETE FROM tail_rows WHERE no = 721",
            "what stood after event 720 does not go on from it",
        ),
        (
            "UPDATE tail_rows SET frame = (SELECT frame FROM tail_rows WHERE no = 361) WHERE no = 541",
            "the batch of events 541 to 720 was changed",
        ),
        (
            "UPDATE tail_rows SET hash = 'x' WHERE no = 541",
            "the batch of events 541 to 720 was changed",
        ),
        (
            "UPDATE tail_rows SET previous = zeroblob(32) WHERE no = 181",
            "the batch of events 181 to 360 did not follow the one before it",
        ),
    ] {
        let (directory, mut store) = store();
        for (part, events) in mixed(895).chunks(180).enumerate() {
            store.insert_events(events).expect("stored");
            if part == 0 {
                store.seal_all().expect("sealed");
            }
        }
        assert!(checked(directory.path()).findings.is_empty());
        store.connection.execute(statement, []).expect("edited");
        store.seal_all().expect("sealed");
        found(&checked(directory.path()), "changed", 2, detail);
        let to = tempfile::tempdir().expect("a directory");
        export(directory.path(), to.path()).expect("exported");
        found(&checked(to.path()), "changed", 2, detail);
        // The note is signed.
        let manifest = to.path().join("segments/0000000002.json");
        let text = std::fs::read_to_string(&manifest).expect("a manifest");
        std::fs::write(
            &manifest,
            text.replace("\"broken\":\"", "\"broken\":\"not "),
        )
        .expect("written");
        found(&checked(to.path()), "signature", 2, "edited");
    }
}

#[test]
fn files_that_are_no_part_of_it_are_named() {
    let (directory, mut store) = chained();
    let size = Retention {
        age: None,
        bytes: Some(1),
    };
    let to = tempfile::tempdir().expect("a directory");
    export(directory.path(), to.path()).expect("exported");
    assert!(checked(to.path()).findings.is_empty());
    let segments = to.path().join("segments");
    for name in [
        "evil.parquet",
        "1.parquet",
        "0000000001.x.parquet",
        "0000000002.parquet.parquet",
        "notes.txt",
        "0000000009.parquet",
    ] {
        let path = segments.join(name);
        std::fs::copy(segments.join("0000000001.parquet"), &path).expect("copied");
        let report = checked(to.path());
        assert!(
            report
                .findings
                .iter()
                .any(|finding| finding.what == "added"),
            "{name}: {:?}",
            report.findings
        );
        std::fs::remove_file(path).expect("removed");
    }
    // In the place of one that was retired.
    let kept = std::fs::read(segments.join("0000000002.parquet")).expect("a segment");
    assert_eq!(store.retain(&size).expect("let go"), 3);
    assert!(checked(directory.path()).findings.is_empty());
    std::fs::write(directory.path().join("segments/0000000001.parquet"), kept).expect("written");
    found(
        &checked(directory.path()),
        "added",
        1,
        "another file has its name",
    );
}

#[test]
fn tables_that_do_not_tell_of_everything_are_seen() {
    for statement in [
        "DELETE FROM segment_rows WHERE no = 2",
        "DELETE FROM run_rows WHERE segment = 2 AND first_row = 0",
        "DELETE FROM refusal_rows WHERE no = (SELECT min(no) FROM refusal_rows WHERE no > 240)",
    ] {
        let (directory, store) = chained();
        store.connection.execute(statement, []).expect("edited");
        found(
            &checked(directory.path()),
            "removed",
            2,
            "do not tell of all",
        );
    }
    // An old end of the chain beside a history that lives says nothing.
    let (directory, store) = chained();
    let to = tempfile::tempdir().expect("a directory");
    export(directory.path(), to.path()).expect("exported");
    std::fs::copy(
        to.path().join("head.json"),
        directory.path().join("head.json"),
    )
    .expect("copied");
    store
        .connection
        .execute("DELETE FROM tail_rows", [])
        .expect("edited");
    found(
        &checked(directory.path()),
        "cut",
        0,
        "the head of the chain says",
    );
}

#[test]
fn segments_without_their_tables_are_kept_and_told_of() {
    let (directory, store) = chained();
    drop(store);
    for name in ["history.db", "history.db-wal", "history.db-shm"] {
        let _ = std::fs::remove_file(directory.path().join(name));
    }
    let (mut store, _) = Store::open(directory.path(), &host()).expect("begun anew");
    store
        .insert_events(&[event("t", 1, Kind::Open)])
        .expect("it goes on");
    store.seal_all().expect("sealed");
    let aside = std::fs::read_dir(directory.path())
        .expect("a directory")
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().ends_with(".segments"))
        .expect("they were set aside");
    assert_eq!(std::fs::read_dir(aside.path()).expect("kept").count(), 6);
    let losses = |directory: &Path| {
        all(directory, Viewer::All, &Filter::default())
            .expect("read")
            .iter()
            .filter(|event| {
                event
                    .loss
                    .as_ref()
                    .is_some_and(|loss| loss.reason == "store_corrupt")
            })
            .count()
    };
    assert_eq!(losses(directory.path()), 1);
    drop(store);
    let (_store, _) = Store::open(directory.path(), &host()).expect("opened");
    assert_eq!(losses(directory.path()), 1, "once");
    assert!(checked(directory.path()).findings.is_empty());
}

#[test]
fn a_damaged_segment_does_not_keep_new_events_out() {
    let (directory, mut store) = chained();
    drop(store);
    let path = directory.path().join("segments/0000000002.parquet");
    let mut content = std::fs::read(&path).expect("a segment");
    let middle = content.len() / 2;
    content[middle] ^= 0x10;
    std::fs::write(&path, &content).expect("written");
    (store, _) = Store::open(directory.path(), &host()).expect("opened");
    let count = || {
        all(directory.path(), Viewer::All, &Filter::default())
            .expect("read")
            .len()
    };
    let mut next = event("s1", 5000, Kind::Open);
    next.id = "s1-5000".to_owned();
    store.insert_events(&[next]).expect("stored");
    // All but what was in the damaged one, and the loss.
    assert_eq!(count(), 905 - 240 + 2);
    assert_eq!(std::fs::read(&path).expect("kept"), content);
    found(&checked(directory.path()), "changed", 2, "");
}

#[test]
fn a_segment_of_another_history_is_not_entered() {
    let (directory, mut store) = store();
    store.insert_events(&mixed(100)).expect("stored");
    let order = store
        .order(true)
        .expect("asked")
        .expect("there is something");
    let sealed = Sealer::new(store.key())
        .and_then(|mut sealer| sealer.build(&order))
        .expect("built");
    std::fs::remove_file(directory.path().join("segments/0000000001.parquet")).expect("removed");
    store.enter(&sealed).expect_err("it is gone");
    assert_eq!(store.unsealed(), 105);
    store.seal_all().expect("sealed");
    store.enter(&sealed).expect_err("it was entered");
    assert!(checked(directory.path()).findings.is_empty());
}

/// Writes a field of a file of JSON anew.
fn set(path: &Path, field: &str, value: impl Into<serde_json::Value>) {
    let text = std::fs::read_to_string(path).expect("a file");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json[field] = value.into();
    std::fs::write(path, json.to_string()).expect("written");
}

#[test]
fn numbers_beyond_reason_are_findings() {
    let (directory, store) = chained();
    drop(store);
    let manifest = super::super::seal::manifest_path(directory.path(), 2);
    // Each event of it is looked at for itself.
    rewritten(directory.path(), 2, |rows| {
        rows[3].0 = i64::MAX;
        rows[4].0 = i64::MIN;
    });
    let whole = std::fs::read(&manifest).expect("a manifest");
    for (field, numbers) in [
        ("first_no", vec![i64::MIN, -1, i64::MAX]),
        ("last_no", vec![i64::MIN, -1, i64::MAX]),
        ("rows", vec![0, i64::MAX]),
        ("group_rows", vec![0, 1, i64::MAX]),
    ] {
        for number in numbers {
            set(&manifest, field, number);
            let report = checked(directory.path());
            found(&report, "signature", 2, "the manifest of segment 2");
            found(&report, "added", 2, " added to segment 2");
            std::fs::write(&manifest, &whole).expect("written");
        }
    }
    let report = checked(directory.path());
    found(
        &report,
        "removed",
        2,
        "2 events were removed of segment 2: ",
    );

    // In the tables of a history.
    let connection =
        rusqlite::Connection::open(directory.path().join(super::super::FILE)).expect("opened");
    for table in ["tail_rows", "segment_rows", "run_rows"] {
        let columns: Vec<String> = connection
            .prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))
            .and_then(|mut names| names.query_map([], |row| row.get(0))?.collect())
            .expect("its columns");
        for column in columns {
            for value in [
                "9223372036854775807",
                "-9223372036854775808",
                "'x'",
                "x'00'",
            ] {
                connection.execute_batch("SAVEPOINT before").expect("begun");
                // What the table itself refuses needs no finding.
                let written = connection.execute(
                    &format!("UPDATE {table} SET {column} = {value} WHERE rowid = (SELECT max(rowid) FROM {table})"),
                    [],
                );
                connection.execute_batch("RELEASE before").expect("ended");
                if written.is_ok() {
                    assert!(!checked(directory.path()).findings.is_empty());
                }
            }
        }
    }
}

#[test]
fn a_footer_cannot_tell_of_billions() {
    use parquet::{
        data_type::Int64Type, file::writer::SerializedFileWriter,
        schema::parser::parse_message_type,
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("0000000001.parquet");
    let schema = parse_message_type("message event { optional int64 no; }").expect("a schema");
    let file = std::fs::File::create(&path).expect("created");
    let mut writer =
        SerializedFileWriter::new(file, schema.into(), Default::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    let mut column = group
        .next_column()
        .expect("a column")
        .expect("the only one");
    // Nothing but what is absent, which takes no room.
    column
        .typed::<Int64Type>()
        .write_batch(&[], Some(&vec![0; 1 << 21]), None)
        .expect("written");
    column.close().expect("closed");
    group.close().expect("closed");
    writer.close().expect("closed");
    assert!(std::fs::metadata(&path).expect("there").len() < 10_000);
    let error = super::super::segment::Segment::open(&path).map(drop);
    let error = error.expect_err("it is no segment").to_string();
    assert!(error.contains("2097152 rows"), "{error}");
}
