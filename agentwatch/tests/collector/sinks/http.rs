//! Batches over HTTP, to a receiver that fails in every way it is told to.

use std::{collections::BTreeSet, path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::setup::*;
use crate::harness::*;

#[tokio::test]
async fn batches_survive_errors_outages_and_silence() {
    let Some(http) = Http::new() else { return };
    let place = &http.place;
    let port = http.port;
    let sinks = format!(
        "[[sink]]\nname = \"elastic\"\nformat = \"ecs\"\n[sink.http]\nurl = \"http://127.0.0.1:{port}\"\nshape = \"elasticsearch\"\nindex = \"logs-agentwatch\"\n"
    );
    let collector = place.start_with(&sinks).await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch(1, 300)).await;
    place.sink("elastic", |sink| sink.state == "retrying").await;
    http.mode("503");
    let receiver = http.receiver().await;
    let sink = place
        .sink("elastic", |sink| {
            sink.error
                .as_ref()
                .is_some_and(|error| error.contains("503"))
        })
        .await;
    assert_eq!((sink.delivered, sink.behind), (0, 300));
    http.mode("429");
    place
        .sink("elastic", |sink| {
            sink.error
                .as_ref()
                .is_some_and(|error| error.contains("429"))
        })
        .await;
    // One event is never taken: it is found, counted and told of, and the others arrive.
    http.mode("refuse:event-10007");
    place.sink("elastic", |sink| sink.refused == 1).await;
    place.delivered("elastic").await;
    assert_eq!(
        http.received().len(),
        300,
        "299 and the word that one is missing"
    );
    assert!(!http.received().contains("event-10007"));
    http.mode("ok");
    for number in 2..=5 {
        store(&mut connection, &batch(number, 300)).await;
    }
    receiver.end();
    for number in 6..=8 {
        store(&mut connection, &batch(number, 300)).await;
    }
    // And the collector too is stopped in the middle of it.
    collector.signal(Signal::SIGKILL);
    drop(collector);
    let _collector = place.start_with(&sinks).await;
    let _receiver = http.receiver().await;
    let sink = place.delivered("elastic").await;
    assert_eq!((sink.refused, sink.lost), (1, 0));
    let mut expected = of_batches(1..=8, 300);
    expected.remove("event-10007");
    // The word that one is missing may have come twice, as an event may.
    let events = http
        .received()
        .into_iter()
        .filter(|id| id.starts_with("event-"));
    assert!(events.collect::<BTreeSet<_>>() == expected);
}

#[tokio::test]
async fn splunk_is_asked_whether_it_has_indexed() {
    let Some(http) = Http::new() else { return };
    let place = &http.place;
    std::fs::write(place.path("token"), "wrong\n").expect("written");
    let sinks = format!(
        "[[sink]]\nname = \"splunk\"\n[sink.http]\nurl = \"http://127.0.0.1:{}\"\nshape = \"splunk\"\nindexer_acknowledgement = true\ntoken_file = {:?}\n",
        http.port,
        place.path("token")
    );
    let _receiver = http.receiver().await;
    let collector = place.start_with(&sinks).await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch(1, 50)).await;
    // What is wrong with the token is not taken as wrong with the events.
    let sink = place.sink("splunk", |sink| sink.retries > 1).await;
    assert!(sink.error.expect("an error").contains("Invalid token"));
    assert_eq!((sink.delivered, sink.refused), (0, 0));
    drop((connection, collector));
    std::fs::write(place.path("token"), "s3cret\n").expect("written");
    http.mode("noack");
    let _collector = place.start_with(&sinks).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(place.sinks().await["splunk"].delivered, 0);
    http.mode("ok");
    let sink = place.delivered("splunk").await;
    assert_eq!(sink.delivered, 50);
    assert_eq!(http.received(), of_batches(1..=1, 50));
}

fn certificate(place: &Place, openssl: &Path) -> (String, String) {
    let (certificate, key) = (place.path("cert.pem"), place.path("key.pem"));
    let made = Command::new(openssl)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=receiver",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl runs");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    (certificate.display().to_string(), key.display().to_string())
}

#[tokio::test]
async fn tls_that_does_not_verify_delivers_nothing() {
    let Some(openssl) = program("openssl") else {
        return;
    };
    let Some(mut http) = Http::new() else { return };
    let (certificate, key) = certificate(&http.place, &openssl);
    http.arguments = vec![certificate.clone(), key];
    let place = &http.place;
    let sinks = |ca: &str| {
        format!(
            "[[sink]]\nname = \"tls\"\n[sink.http]\nurl = \"https://localhost:{}\"\n{ca}\n",
            http.port
        )
    };
    let _receiver = http.receiver().await;
    let collector = place.start_with(&sinks("")).await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch(1, 10)).await;
    let sink = place.sink("tls", |sink| sink.retries > 0).await;
    assert!(
        sink.error
            .as_ref()
            .expect("an error")
            .contains("certificate"),
        "{sink:?}"
    );
    assert!(http.received().is_empty());
    drop((connection, collector));
    let _collector = place
        .start_with(&sinks(&format!("tls = {{ ca_file = {certificate:?} }}")))
        .await;
    place.delivered("tls").await;
    assert_eq!(http.received(), of_batches(1..=1, 10));
}
