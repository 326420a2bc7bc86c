//! Many requests: at once, one after the other, and more than a policy lets a session make.

use std::{net::TcpListener, thread::sleep, time::Instant};

use anyhow::{Context as _, Result, ensure};

use super::actions::server;
use crate::{
    CALM,
    place::{Place, eventually},
};

pub(crate) fn too_many(place: &Place) -> Result<()> {
    let rule = "[network]\napprove = ['127.0.0.1:20000-20100']\n[approvals]\nmax_pending = 3\n";
    let doing = place.session("many", rule, &["ports:5:127.0.0.1:20000"])?;
    eventually("three wait", || {
        (place.approvals().ok()?.len() == 3).then_some(())
    })?;
    place.step("many", |step| step["finding"] == "max_pending")?;
    sleep(CALM);
    ensure!(place.approvals()?.len() == 3, "more than three wait");
    place.agentwatch.output(&["detach", "many"])?;
    doing.expect(0, "ok")?;
    doing.end()
}

pub(crate) fn too_many_in_an_hour(place: &Place) -> Result<()> {
    let listeners: Vec<TcpListener> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()?;
    let addresses: Vec<String> = listeners
        .iter()
        .map(|it| Ok(it.local_addr()?.to_string()))
        .collect::<Result<_>>()?;
    let actions: Vec<String> = addresses
        .iter()
        .map(|address| format!("connect:{address}"))
        .collect();
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    let rule = format!(
        "[network]\napprove = ['{}']\n[approvals]\nmax_per_hour = 2\n",
        addresses.join("', '")
    );
    let doing = place.session("hour", &rule, &actions)?;
    for n in 0..2 {
        place.approve(&[])?;
        doing.expect(n, "ok")?;
    }
    doing.expect(2, &format!("error {}", libc::EPERM))?;
    doing.end()?;
    let step = place.step("hour", |step| step["finding"] == "max_per_hour")?;
    ensure!(step["approval"]["step"] == "rejected", "{step}");
    ensure!(step["approval"]["by"]["kind"] == "limit", "{step}");
    place.nothing_waits()
}

pub(crate) fn many(place: &Place) -> Result<()> {
    let many = place.rounds.min(300) as usize;
    let rule = "[network]\napprove = ['127.0.0.1:20000-29999']\n[approvals]\nmax_pending = 1000\nmax_per_hour = 10000\n";
    let listeners: Vec<TcpListener> = (0..many as u16)
        .map(|n| TcpListener::bind(("127.0.0.1", 20_000 + n)))
        .collect::<std::io::Result<_>>()?;
    let doing = place.session("hundred", rule, &[&format!("ports:{many}:127.0.0.1:20000")])?;
    let requests = eventually("all of them wait", || {
        let requests = place.approvals().ok()?;
        (requests.len() == many).then_some(requests)
    })?;
    for request in requests {
        let id = request["id"].as_str().context("a request has an id")?;
        place.agentwatch.output(&["approve", id])?;
    }
    doing.expect(0, &format!("ok {many}"))?;
    doing.end()?;
    drop(listeners);
    place.nothing_waits()
}

/// One session has so many tasks wait that another one's would find no room: it is refused what goes beyond its share, and that is
/// recorded.
pub(crate) fn more_than_a_share(place: &Place) -> Result<()> {
    /// `limits::HOLD_SHARE`.
    const SHARE: u64 = 1024;
    const BEYOND: u64 = 20;
    let (_listener, address, rule) = server()?;
    let crowd = format!("crowd:{}:{address}", SHARE + BEYOND);
    let doing = place.session("crowd", &rule, &[&crowd])?;
    let waiting = || {
        Some(
            place.approvals().ok()?.first()?["tasks"]
                .as_u64()
                .unwrap_or(0),
        )
    };
    eventually("its share waits", || {
        waiting().filter(|tasks| *tasks == SHARE)
    })?;
    let refused = || {
        let steps = place.agentwatch.events("crowd").ok()?;
        let unasked = steps
            .iter()
            .filter(|event| event["kind"] == "connect" && event["approval"]["step"] == "unasked");
        Some(
            unasked
                .map(|event| event["count"].as_u64().unwrap_or(1))
                .sum(),
        )
    };
    eventually("what goes beyond is refused", || {
        refused().filter(|count: &u64| *count == BEYOND)
    })?;
    // Another session waits beside it as ever.
    let other = place.session("beside-crowd", &rule, &[&format!("connect:{address}")])?;
    eventually("another session waits", || {
        (place.approvals().ok()?.len() == 2).then_some(())
    })?;
    place.agentwatch.output(&["detach", "crowd"])?;
    place.approve(&[])?;
    other.expect(0, "ok")?;
    other.end()?;
    drop(doing);
    place.nothing_waits()
}

/// Connects, one after the other.
pub(crate) fn one_after_the_other(place: &Place) -> Result<()> {
    let (listener, address, rule) = server()?;
    listener.set_nonblocking(true)?;
    let repeat = format!("repeat:{}:{address}", place.rounds);
    in_a_row(place, "row", &rule, &repeat, || {
        // What connects is taken in, so that the queue does not run full.
        while listener.accept().is_ok() {}
    })?;
    // A session after it is none the worse for it.
    let doing = place.session("row-after", &rule, &[&format!("connect:{address}")])?;
    place.approve(&[])?;
    doing.expect(0, "ok")?;
    doing.end()
}

/// Files that are opened and written, one after the other.
pub(crate) fn one_after_the_other_on_files(place: &Place) -> Result<()> {
    let file = place.work().join("held");
    std::fs::write(&file, "")?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    let repeat = format!("repeat-append:{}:{}", place.rounds, file.display());
    in_a_row(place, "row-on-files", &rule, &repeat, || ())?;
    let written = std::fs::metadata(&file)?.len();
    ensure!(
        written == u64::from(place.rounds) * 4,
        "{written} bytes were written"
    );
    Ok(())
}

/// Every one of many waits, is approved and happens; nothing of them is left.
fn in_a_row(place: &Place, name: &str, rule: &str, repeat: &str, between: impl Fn()) -> Result<()> {
    let rounds = place.rounds;
    let rule = format!("{rule}[approvals]\nmax_per_hour = 100000\n");
    let before = place.metrics()?;
    let since = Instant::now();
    let doing = place.session(name, &rule, &[repeat])?;
    let mut last = String::new();
    for _ in 0..rounds {
        let id = eventually("the next one waits", || {
            between();
            let id = place.approvals().ok()?.first()?["id"].as_str()?.to_owned();
            (id != last).then_some(id)
        })?;
        place.agentwatch.output(&["approve", &id])?;
        last = id;
    }
    doing.expect(0, &format!("ok {rounds}"))?;
    doing.end()?;
    place.nothing_waits()?;
    for name in ["requested", "approved", "resumed"] {
        // The last record may be on its way.
        let grown = || {
            let now = place.metrics().ok()?[name].as_u64()?;
            Some(now - before[name].as_u64().unwrap_or(0))
        };
        eventually("every step is counted", || {
            grown().filter(|count| *count >= u64::from(rounds))
        })
        .and_then(|count| {
            ensure!(count == u64::from(rounds), "{count}");
            Ok(())
        })
        .with_context(|| format!("{name} grew by {:?} in {rounds} rounds", grown()))?;
    }
    eventually("nothing is left in the kernel", || {
        let kernel = place.agentwatch.status().ok()?["kernel"].clone();
        (kernel["tasks_that_wait"] == 0 && kernel["decisions"] == 0).then_some(())
    })?;
    println!(
        "  {rounds} in {:.1} s: none lost, none left",
        since.elapsed().as_secs_f64()
    );
    Ok(())
}
