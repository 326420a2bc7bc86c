//! Free SQL: what it answers, and what it refuses.

use super::*;

#[test]
fn views_answer_responders() {
    let (directory, mut store) = store();
    let events: Vec<Event> = Kind::ALL
        .into_iter()
        .zip(1..)
        .map(|(kind, n)| event("s", n, kind))
        .collect();
    store.insert_events(&events).expect("stored");
    let rows = sql(
        directory.path(),
        "SELECT time, path, rule_id, access FROM denials WHERE kind = 'open'",
    )
    .expect("rows");
    assert_eq!(
        rows,
        [[
            "2026-11-20T12:00:00.127456789Z",
            "/etc/shadow",
            "files.deny[2]",
            "read"
        ]]
    );
    let rows = sql(
        directory.path(),
        "SELECT addr, port, domain, count FROM destinations WHERE kind = 'connect'",
    )
    .expect("rows");
    assert_eq!(
        rows,
        [[
            json!("192.0.2.7"),
            json!(443),
            json!("example.org"),
            json!(1)
        ]]
    );
    for view in [
        "events",
        "denials",
        "files",
        "destinations",
        "processes",
        "sessions",
    ] {
        assert!(
            !sql(directory.path(), &format!("SELECT * FROM {view}"))
                .expect("rows")
                .is_empty(),
            "{view}"
        );
    }
    let plan = "EXPLAIN QUERY PLAN SELECT path FROM denials WHERE time_ns > (unixepoch() - 3600) * 1000000000";
    let plan = format!("{:?}", sql(directory.path(), plan).expect("a plan"));
    assert!(plan.contains("refusal_time"), "{plan}");
}

#[test]
fn sql_that_is_no_reading_is_refused() {
    let (directory, mut store) = store();
    store.insert_events(&[started("s", 1)]).expect("stored");
    let other = directory.path().join("other.db");
    for statement in [
        "DELETE FROM event_rows",
        "INSERT INTO boot_rows (boot_id, max_offset) VALUES ('x', 1)",
        "UPDATE session_rows SET uid = 0",
        "DROP TABLE event_rows",
        "CREATE TEMP TABLE t (x)",
        "PRAGMA query_only = 0",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "BEGIN EXCLUSIVE",
        "VACUUM",
        &format!("VACUUM INTO '{}'", other.display()),
        &format!("ATTACH '{}' AS other", other.display()),
        "SELECT load_extension('x')",
        "REINDEX",
        "ANALYZE",
    ] {
        let error = sql(directory.path(), statement).expect_err(statement);
        assert!(
            matches!(error, StoreError::Question(_)),
            "{statement}: {error}"
        );
    }
    assert!(!other.exists());
    let error = sql(directory.path(), "DELETE FROM event_rows").expect_err("no writing");
    assert!(error.to_string().contains("can only be read"), "{error}");
    for statement in [
        "",
        "SELECT",
        "SELECT 1; SELECT 2",
        "nonsense",
        "SELECT * FROM nothing",
    ] {
        assert!(
            matches!(
                sql(directory.path(), statement),
                Err(StoreError::Question(_))
            ),
            "{statement}"
        );
    }
    assert_eq!(
        all(directory.path(), Viewer::All, &Filter::default())
            .expect("read")
            .len(),
        1
    );
}

#[test]
fn sql_is_bounded() {
    let (directory, mut store) = store();
    let endless =
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let error = sql(directory.path(), endless).expect_err("it does not end");
    assert!(error.to_string().contains("took too long"), "{error}");
    assert!(matches!(
        sql(directory.path(), "SELECT randomblob(100000000)"),
        Err(StoreError::Question(_))
    ));
    let wide = "SELECT hex(randomblob(900000)), hex(randomblob(900000)), hex(randomblob(900000))";
    let error = sql(directory.path(), wide).expect_err("a row that fits no frame");
    assert!(
        error.to_string().contains("ask for fewer columns"),
        "{error}"
    );
    assert_eq!(
        sql(directory.path(), "SELECT 1.5, NULL, x'0aff', 'ä'").expect("values"),
        [[json!(1.5), Value::Null, json!("0aff"), json!("ä")]]
    );
    // SQLite has nothing to do until the first row comes, which is far away here.
    store.insert_events(&[started("s", 1)]).expect("stored");
    let none = SqlLimits {
        time: Duration::ZERO,
        cancelled: Default::default(),
    };
    for statement in [
        "SELECT count(*) FROM events WHERE path = 'x'",
        "SELECT kind, count(*) FROM events GROUP BY kind",
    ] {
        let error = run_sql(directory.path(), statement, &none, |_| true).expect_err(statement);
        assert!(error.to_string().contains("took too long"), "{error}");
    }
}
