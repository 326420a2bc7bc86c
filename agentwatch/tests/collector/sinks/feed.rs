//! Which events a sink gets, whatever its target is: from where it begins, which sessions, and what is gone.

use agentwatch::wire::collector::{Answer, Batch, Question};
use nix::sys::signal::Signal;

use super::setup::*;
use crate::harness::*;

#[tokio::test]
async fn a_new_sink_begins_where_it_is_told_and_one_that_was_there_goes_on() {
    let place = Place::new();
    let collector = place.start().await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch(1, 100)).await;
    drop((connection, collector));
    let sink = |name: &str, from: &str| {
        let path = place.path(name);
        format!("[[sink]]\nname = {name:?}\nfrom = {from:?}\n[sink.file]\npath = {path:?}\n")
    };
    let both = sink("old", "start") + &sink("new", "now");
    let collector = place.start_with(&both).await;
    place.delivered("old").await;
    place.delivered("new").await;
    let mut connection = place.ingest().await;
    let second = Batch {
        number: 1,
        ..batch(2, 100)
    };
    store(&mut connection, &second).await;
    place.sink("old", |sink| sink.delivered == 200).await;
    place.sink("new", |sink| sink.delivered == 100).await;
    // Stopped in order, nothing comes twice.
    collector.signal(Signal::SIGTERM);
    let mut collector = collector;
    collector.child.wait().expect("it ends");
    let _collector = place.start_with(&both).await;
    place.delivered("old").await;
    assert_eq!(json_ids(&place.path("old")).len(), 200);
    assert_eq!(json_ids(&place.path("new")).len(), 100);
}

#[tokio::test]
async fn a_sink_takes_the_sessions_that_it_names() {
    let place = Place::new();
    let sink = |name: &str, sessions: &str| {
        let path = place.path(name);
        format!(
            "[[sink]]\nname = {name:?}\nsessions = [{sessions}]\n[sink.file]\npath = {path:?}\n"
        )
    };
    let sinks = sink("by-name", "\"ci-*\", \"docs\"") + &sink("by-id", "\"id-2\"");
    let _collector = place.start_with(&sinks).await;
    let mut connection = place.ingest().await;
    let mut events = batch(1, 60).events;
    for (n, event) in events.iter_mut().enumerate() {
        event.session.id = format!("id-{}", n % 4);
        event.session.name = ["ci-lint", "ci-test", "docs", "agent"][n % 4].to_owned();
    }
    let of = |wanted: &[usize]| -> Vec<String> {
        let wanted = events
            .iter()
            .enumerate()
            .filter(|(n, _)| wanted.contains(&(n % 4)));
        wanted.map(|(_, event)| event.id.clone()).collect()
    };
    let (by_name, by_id) = (of(&[0, 1, 2]), of(&[2]));
    store(
        &mut connection,
        &Batch {
            number: 1,
            events: events.clone(),
        },
    )
    .await;
    for (name, wanted) in [("by-name", by_name), ("by-id", by_id)] {
        place.delivered(name).await;
        assert_eq!(json_ids(&place.path(name)), wanted, "{name}");
    }
}

#[tokio::test]
async fn what_was_let_go_of_before_it_was_sent_is_told() {
    let Some(http) = Http::new() else { return };
    let place = &http.place;
    let sinks = format!(
        "[collector]\nkeep_bytes = 200000\n[[sink]]\nname = \"late\"\n[sink.http]\nurl = \"http://127.0.0.1:{}\"\n",
        http.port
    );
    let _collector = place.start_with(&sinks).await;
    let mut connection = place.ingest().await;
    for number in 1..=10 {
        store(&mut connection, &batch(number, 500)).await;
    }
    // Sealed, and then too much.
    let mut asked = place.ask(&Question::Seal).await;
    assert!(matches!(next(&mut asked).await, Answer::End));
    store(&mut connection, &batch(11, 10)).await;
    let _receiver = http.receiver().await;
    place.sink("late", |sink| sink.delivered > 0).await;
    let sink = place.delivered("late").await;
    let arrived = http
        .received()
        .iter()
        .filter(|id| id.starts_with("event-"))
        .count() as u64;
    assert!(sink.lost > 0, "{sink:?}");
    assert_eq!(arrived + sink.lost, 5010, "{sink:?}");
    assert_eq!(
        http.received().len() as u64,
        arrived + 1,
        "and one word of it"
    );
}
