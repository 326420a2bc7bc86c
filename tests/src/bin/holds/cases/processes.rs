//! What waits as part of something larger: threads, children, shells, `timeout`, namespaces; and what cannot wait at all.

use std::{net::TcpListener, time::Instant};

use anyhow::{Context as _, Result, ensure};

use super::actions::{copy_of_echo, server};
use crate::place::{Place, eventually};

pub(crate) fn threads(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let doing = place.session("threads", &rule, &[&format!("threads:{address}")])?;
    place.request()?;
    // The thread that only counts stands still with the other.
    doing.is_waiting(0)?;
    place.approve(&[])?;
    doing.expect(0, "ok 1")?;
    doing.end()?;
    place.nothing_waits()
}

pub(crate) fn threads_one_by_one(place: &Place) -> Result<()> {
    let (_one, first, _) = server()?;
    let (_two, second, _) = server()?;
    let rule = format!("[network]\napprove = ['{first}', '{second}']\n");
    let doing = place.session(
        "two-threads",
        &rule,
        &[&format!("threads:{first},{second}")],
    )?;
    // The first to wait stops them both; the other comes to wait when they go on.
    let request = place.requests("a thread waits", |waiting| !waiting.is_empty())?;
    let id = request[0]["id"].as_str().context("an id")?.to_owned();
    place.agentwatch.output(&["approve", &id])?;
    place.requests("the other thread waits", |waiting| {
        waiting.len() == 1 && waiting[0]["id"] != id.as_str()
    })?;
    doing.is_waiting(0)?;
    place.approve(&[])?;
    doing.expect(0, "ok 2")?;
    doing.end()?;
    let events = place.agentwatch.events("two-threads")?;
    ensure!(
        !events
            .iter()
            .any(|event| event["approval"]["finding"] == "bypass_attempt"),
        "going on with the other thread was taken for an attempt"
    );
    place.nothing_waits()
}

pub(crate) fn spawned(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "child")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    let spawn = format!("spawn:{program} hello");
    let doing = place.session("spawned", &rule, &[&spawn, "wait"])?;
    place.request()?;
    // Its parent has gone on, and waits for it.
    doing.expect(0, "ok")?;
    doing.is_waiting(1)?;
    place.approve(&[])?;
    doing.expect(1, "ok hello")?;
    doing.end()?;
    place.nothing_waits()
}

pub(crate) fn timeout_ends_a_connect(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let own = place.own()?;
    let action = format!("exec:/usr/bin/timeout 2 {own} do /dev/null connect:{address}");
    let doing = place.session("timeout", &rule, &[&action])?;
    place.request()?;
    // Busybox becomes what it starts, and its signal ends that.
    let outcome = doing.outcome(0)?;
    ensure!(
        outcome.contains("code 124") || outcome.contains("killed"),
        "{outcome}"
    );
    doing.end()?;
    place.step("timeout", |step| step["step"] == "withdrawn")?;
    place.nothing_waits()
}

pub(crate) fn timeout_ends_a_command(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "slow")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    let action = format!("exec:/usr/bin/timeout 2 {program} x");
    let since = Instant::now();
    let doing = place.session("timeout-command", &rule, &[&action])?;
    place.request()?;
    // A command that has a deadly signal is killed where it waits; under busybox it is what was started.
    let outcome = doing.outcome(0)?;
    ensure!(
        outcome.contains("code 137") || outcome.contains("killed"),
        "{outcome}"
    );
    ensure!(since.elapsed().as_secs() >= 2, "it did not wait");
    doing.end()?;
    place.step("timeout-command", |step| step["step"] == "withdrawn")?;
    place.nothing_waits()
}

pub(crate) fn shell_with_job_control(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "job")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    let go = place.work().join("go");
    // The shell takes it for a job that was stopped by SIGSTOP (128 + 19), and `wait` for one that has not ended.
    let script = format!(
        "terminal:{program} hello; echo status $?; until [ -e {} ]; do sleep 1; done; jobs; echo over",
        go.display()
    );
    let doing = place.session("job-control", &rule, &[&script])?;
    place.request()?;
    doing.is_waiting(0)?;
    place.approve(&[])?;
    place.step("job-control", |step| step["step"] == "resumed")?;
    std::fs::write(&go, "")?;
    let outcome = doing.outcome(0)?;
    for said in ["status 147", "hello", "over"] {
        ensure!(outcome.contains(said), "{outcome:?} does not say {said:?}");
    }
    doing.end()?;
    place.nothing_waits()
}

/// A shell that tells the stopped job to go on at once gains nothing by it: no instruction of the program is done before it is stopped
/// again, and there is no third time.
pub(crate) fn told_to_go_on_at_once(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "eager")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    let script = format!(
        "terminal:{program} hello; echo status $?; for i in 1 2 3 4 5 6 7 8; do kill -CONT %1; done; fg; fg; echo over; kill -KILL %1"
    );
    let doing = place.session("eager", &rule, &[&script])?;
    let outcome = eventually("the shell is at its end, or waits", || {
        if let Some(id) = place
            .approvals()
            .ok()?
            .first()
            .and_then(|it| it["id"].as_str())
        {
            // Frozen by now: `fg` waits for a person.
            place.agentwatch.output(&["reject", id]).ok()?;
        }
        doing.lines().first().cloned()
    })?;
    ensure!(outcome.contains("status 147"), "{outcome:?}");
    // The shell shows its command line with `fg`, and never on a line of its own what the program would say.
    ensure!(!outcome.contains(" hello hello"), "it has run: {outcome:?}");
    doing.end()?;
    place.nothing_waits()
}

/// The same by signals without a pause, from before there is anything to stop.
pub(crate) fn told_to_go_on_from_the_first(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "urged")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    let doing = place.session("urged", &rule, &[&format!("urge:{program} hello")])?;
    doing.expect(0, "ok said \"\"")?;
    doing.end()?;
    place.step("urged", |step| step["step"] == "withdrawn")?;
    eventually("nothing waits", || {
        place.approvals().ok()?.is_empty().then_some(())
    })
}

pub(crate) fn first_of_a_pid_namespace(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let doing = place.session("first", &rule, &[&format!("first:{address}")])?;
    place.request()?;
    doing.is_waiting(0)?;
    place.approve(&[])?;
    let outcome = doing.outcome(0)?;
    ensure!(outcome.ends_with("ok "), "{outcome:?}");
    doing.end()?;
    place.nothing_waits()
}

pub(crate) fn connect_without_blocking(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let doing = place.session("later", &rule, &[&format!("connect-later:{address}")])?;
    place.request()?;
    doing.is_waiting(0)?;
    place.approve(&[])?;
    doing.expect(0, "ok in progress")?;
    doing.end()?;
    place.nothing_waits()
}

/// A connect that has begun leads nowhere else, and a socket that is free again is asked about again.
pub(crate) fn connect_undone(place: &Place) -> Result<()> {
    let (_one, first, _) = server()?;
    let (_two, second, _) = server()?;
    let rule = format!("[network]\napprove = ['{first}', '{second}']\n");
    let action = format!("connect-elsewhere:{first},{second}");
    let doing = place.session("undone", &rule, &[&action])?;
    let request = place.request()?;
    ensure!(request.to_string().contains(&first), "{request}");
    place.approve(&[])?;
    let request = place.request()?;
    ensure!(request.to_string().contains(&second), "{request}");
    doing.is_waiting(0)?;
    place.reject()?;
    doing.expect(0, &format!("error {}", nix::libc::EPERM))?;
    doing.end()?;
    place.nothing_waits()
}

pub(crate) fn what_cannot_wait(place: &Place) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let rule = format!("[network]\napprove = ['127.0.0.1:{port}']\nlisten = ['127.0.0.1']\n");
    let actions = [
        format!("act:udp-sendmmsg 127.0.0.1 {port}"),
        format!("act:io_uring-connect 127.0.0.1 {port}"),
    ];
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    let doing = place.session("no-waiting", &rule, &actions)?;
    doing.expect(0, "EPERM")?;
    let connect = doing.outcome(1)?;
    doing.end()?;
    let unasked = |how_many: usize| {
        eventually("the record says that it could not wait", || {
            let events = place.agentwatch.events("no-waiting").ok()?;
            let found = events
                .iter()
                .filter(|event| {
                    event["verdict"] == "denied" && event["approval"]["step"] == "unasked"
                })
                .count();
            (found >= how_many).then_some(())
        })
    };
    // Where the host has no io_uring there is nothing to hold.
    if connect.contains("ENOSYS") {
        unasked(1)?;
    } else {
        ensure!(connect.contains("EPERM"), "{connect}");
        unasked(2)?;
    }
    place.nothing_waits()
}

pub(crate) fn open_of_io_uring(place: &Place) -> Result<()> {
    let file = place.dir.path().join("secret");
    std::fs::write(&file, "content")?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    // By itself, and when its task is in another system call.
    for (name, operation) in [
        ("ring", "io_uring-openat"),
        ("linked", "io_uring-openat-linked"),
    ] {
        let action = format!("act:{operation} {}", file.display());
        let doing = place.session(name, &rule, &[&action])?;
        doing.expect(0, "EACCES")?;
        doing.end()?;
        eventually("the record says that it could not wait", || {
            let events = place.agentwatch.events(name).ok()?;
            events
                .iter()
                .any(|event| event["kind"] == "open" && event["approval"]["step"] == "unasked")
                .then_some(())
        })?;
    }
    place.nothing_waits()
}

pub(crate) fn escapes_are_shown_escaped(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "pretty")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    // A title for the window, a colour, and letters from right to left.
    let action = format!("exec:{program} \u{1b}]0;title\u{7}\u{1b}[32mfine\u{202e}txt");
    let doing = place.session("pretty", &rule, &[&action])?;
    place.request()?;
    let shown = place.agentwatch.output(&["approvals"])?;
    ensure!(
        !shown.contains(['\u{1b}', '\u{7}', '\u{202e}']),
        "what is shown is not escaped: {shown:?}"
    );
    ensure!(shown.contains("title"), "{shown}");
    ensure!(shown.contains("look out"), "{shown}");
    place.reject()?;
    doing.expect(0, "ok killed")?;
    doing.end()
}
