//! Files.

use std::{collections::BTreeSet, time::Duration};

use agentwatch::event::{Kind, Verdict, samples::sample};
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::setup::*;
use crate::harness::*;

#[tokio::test]
async fn a_file_has_everything_however_often_the_collector_is_killed() {
    let place = Place::new();
    let out = place.path("out.jsonl");
    let sinks = format!(
        "[[sink]]\nname = \"all\"\n[sink.file]\npath = {out:?}\n\
         [[sink]]\nname = \"denied\"\nverdicts = [\"denied\"]\nkinds = [\"bind\"]\nformat = \"ecs\"\n[sink.file]\npath = {:?}\n",
        place.path("denied.jsonl")
    );
    for round in 1..=8u64 {
        let collector = place.start_with(&sinks).await;
        let mut connection = place.ingest().await;
        for number in 1..=3 {
            let mut batch = batch(round * 10 + number, 150);
            batch.number = number;
            if number == 2 {
                let mut denied = sample(Kind::Bind);
                denied.verdict = Verdict::Denied;
                denied.id = format!("denied-{round}");
                batch.events.push(denied);
            }
            store(&mut connection, &batch).await;
        }
        sleep(Duration::from_millis(round * 11 % 60)).await;
        collector.signal(Signal::SIGKILL);
    }
    let _collector = place.start_with(&sinks).await;
    place.delivered("all").await;
    place.delivered("denied").await;
    let found: BTreeSet<String> = json_ids(&out).into_iter().collect();
    for round in 1..=8u64 {
        for number in 1..=3 {
            for n in 0..150 {
                let id = format!("event-{}", (round * 10 + number) * 10_000 + n);
                assert!(found.contains(&id), "{id}");
            }
        }
    }
    let denied: BTreeSet<String> = lines(&place.path("denied.jsonl"))
        .iter()
        .map(|line| {
            let document: serde_json::Value = serde_json::from_str(line).expect("JSON");
            document["event"]["id"].as_str().expect("an id").to_owned()
        })
        .collect();
    assert_eq!(denied, (1..=8).map(|n| format!("denied-{n}")).collect());
}
