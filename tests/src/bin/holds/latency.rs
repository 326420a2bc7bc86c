//! How long it takes from an approval to the return of the system call that waited for it.

use std::{net::TcpListener, path::Path, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::place::{Place, eventually};

/// Lets connects wait one after the other, and compares when the daemon took the
/// decision up with when the connect was through.
pub(super) fn measure(binary: &Path, rounds: u32) -> Result<()> {
    let mut place = Place::new(binary, rounds)?;
    let outcome = latencies(&place, rounds);
    place.stop();
    let mut waited = outcome?;
    waited.sort_unstable();
    let at = |share: usize| waited[(waited.len() * share / 100).min(waited.len() - 1)];
    println!(
        "@latency {}",
        json!({"rounds": waited.len(), "p50_us": at(50) / 1000, "p99_us": at(99) / 1000})
    );
    Ok(())
}

fn latencies(place: &Place, rounds: u32) -> Result<Vec<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?.to_string();
    let rule = format!("[network]\napprove = ['{address}']\n[approvals]\nmax_per_hour = 100000\n");
    let doing = place.session("latency", &rule, &[&format!("stamps:{rounds}:{address}")])?;
    let mut last = String::new();
    for _ in 0..rounds {
        let id = eventually("the next one waits", || {
            while listener.accept().is_ok() {}
            let id = place.approvals().ok()?.first()?["id"].as_str()?.to_owned();
            (id != last).then_some(id)
        })?;
        // It has been stopped for a while, as by a person's time.
        sleep(Duration::from_millis(20));
        place.agentwatch.output(&["approve", &id])?;
        last = id;
    }
    let said = doing.outcome(0)?;
    let stamps = said.rsplit(' ').next().unwrap_or_default();
    let through: Vec<u64> = stamps
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("the connects came to {said:?}"))?;
    doing.end()?;
    let decided = eventually("the history is whole", || {
        let events = place.agentwatch.events("latency").ok()?;
        let numbers = |which: &dyn Fn(&Value) -> Option<u64>| -> Option<Vec<u64>> {
            let found: Vec<u64> = events.iter().filter_map(which).collect();
            (found.len() == through.len()).then_some(found)
        };
        let held = numbers(&|event| {
            (event["kind"] == "connect" && event["verdict"] == "held")
                .then(|| event["ktime_ns"].as_u64())?
        })?;
        let waited = numbers(&|event| {
            (event["kind"] == "approval" && event["approval"]["step"] == "approved")
                .then(|| event["approval"]["waited_ns"].as_u64())?
        })?;
        Some(
            held.iter()
                .zip(&waited)
                .map(|(since, waited)| since + waited)
                .collect::<Vec<_>>(),
        )
    })?;
    Ok(through
        .iter()
        .zip(&decided)
        .map(|(through, decided)| through.saturating_sub(*decided))
        .collect())
}
