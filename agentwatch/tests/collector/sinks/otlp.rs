//! OpenTelemetry, to what its own messages are made for.

use std::{collections::BTreeSet, process::Command};

use super::setup::*;
use crate::harness::*;

#[tokio::test]
async fn opentelemetry_receives_over_http_and_grpc() {
    let python = python();
    for protocol in ["http", "grpc"] {
        let modules = if protocol == "http" {
            "opentelemetry.proto"
        } else {
            "grpc, opentelemetry.proto"
        };
        let has = Command::new(&python)
            .args(["-c", &format!("import {modules}")])
            .output();
        if !has.is_ok_and(|has| has.status.success()) {
            println!("SKIP {protocol}: {} has no {modules}", python.display());
            continue;
        }
        let place = Place::new();
        let port = free_port();
        let out = place.path("received");
        let receiver = || {
            let child = Command::new(&python)
                .arg(fixture("otlp_receiver.py"))
                .args([protocol, &port.to_string()])
                .arg(&out)
                .spawn()
                .expect("python starts");
            Receiver(child)
        };
        let sinks = format!(
            "[[sink]]\nname = \"otel\"\n[sink.otlp]\nurl = \"http://127.0.0.1:{port}\"\nprotocol = \"{protocol}\"\n"
        );
        let _collector = place.start_with(&sinks).await;
        let mut connection = place.ingest().await;
        let first = receiver();
        listens(port).await;
        store(&mut connection, &batch(1, 700)).await;
        place.delivered("otel").await;
        first.end();
        store(&mut connection, &batch(2, 700)).await;
        place.sink("otel", |sink| sink.state == "retrying").await;
        let _second = receiver();
        let sink = place.delivered("otel").await;
        assert_eq!((sink.delivered, sink.refused), (1400, 0), "{protocol}");
        let records: Vec<serde_json::Value> = lines(&out)
            .iter()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let ids: BTreeSet<String> = records
            .iter()
            .map(|record| {
                record["attributes"]["log.record.uid"]
                    .as_str()
                    .expect("an id")
                    .to_owned()
            })
            .collect();
        assert!(ids == of_batches(1..=2, 700), "{protocol}: {}", ids.len());
        let record = &records[0];
        assert_eq!(record["name"], "agentwatch.open");
        assert_eq!(record["resource"]["service.name"], "agentwatch");
        assert_eq!(record["body"]["file"]["path"], "/etc/shadow");
        assert_eq!(record["attributes"]["file.path"], "/etc/shadow");
        println!("{protocol}: OpenTelemetry's own messages read what was sent");
    }
}
