//! Standard output.

use std::{collections::BTreeSet, time::Duration};

use agentwatch::wire::collector::Batch;
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::setup::*;
use crate::harness::*;

#[tokio::test]
async fn standard_output_has_everything_however_the_collector_ends() {
    let place = Place::new();
    let config = place.path("daemon.toml");
    std::fs::write(
        &config,
        "[[sink]]\nname = \"out\"\nformat = \"ocsf\"\n[sink.stdout]\n",
    )
    .expect("written");
    let mut wanted = BTreeSet::new();
    for round in 1..=4u64 {
        // Each process has a stream of its own, as under a service manager.
        let out = place.path(&format!("stdout-{round}"));
        let file = std::fs::File::create(out).expect("a file");
        let mut command = place.command();
        command.arg("--config").arg(&config).stdout(file);
        let collector = place.listening(&mut command).await;
        let mut connection = place.ingest().await;
        let batch = Batch {
            number: 1,
            ..batch(round, 300)
        };
        wanted.extend(batch.events.iter().map(|event| event.id.clone()));
        store(&mut connection, &batch).await;
        if round == 4 {
            place.delivered("out").await;
        } else {
            sleep(Duration::from_millis(round * 15)).await;
            collector.signal(Signal::SIGKILL);
        }
    }
    let mut found = BTreeSet::new();
    for round in 1..=4u64 {
        let lines = lines(&place.path(&format!("stdout-{round}")));
        for (index, line) in lines.iter().enumerate() {
            match serde_json::from_str::<serde_json::Value>(line) {
                Ok(document) => {
                    found.extend(document["metadata"]["uid"].as_str().map(str::to_owned));
                }
                // The line that a kill interrupted comes again.
                Err(error) => assert!(round < 4 && index + 1 == lines.len(), "{error}: {line}"),
            }
        }
    }
    assert!(found.is_superset(&wanted), "{}", found.len());
}
