//! What goes over the two sockets, and what happens to the process behind them.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use agentwatch::{
    collector::Limits,
    wire::collector::{Answer, Batch, BatchAnswer, Filter, INGEST_SOCKET, QUERY_SOCKET, Question},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use crate::harness::*;

#[tokio::test]
async fn what_is_acknowledged_survives_kill_9() {
    let place = Place::new();
    let mut acknowledged = 0;
    for round in 0..3u64 {
        let collector = place.start().await;
        let mut connection = place.ingest().await;
        // Several batches under way at once, and the kill in the midst of them.
        for number in 1..=6 {
            let events = (0..200)
                .map(|n| event(round * 1_000_000 + number * 1000 + n))
                .collect();
            connection
                .send_frame(Batch { number, events }.frame())
                .await
                .expect("sent");
        }
        for _ in 0..3 {
            let answer = answer(&mut connection).await;
            assert!(matches!(answer, BatchAnswer::Ack { .. }), "{answer:?}");
            acknowledged += 200;
        }
        collector.signal(nix::sys::signal::Signal::SIGKILL);
        drop(collector);
    }
    let _collector = place.start().await;
    let events = place.events().await;
    assert!(
        events.len() >= acknowledged,
        "{} of {acknowledged}",
        events.len()
    );
    for round in 0..3u64 {
        for number in 1..=3 {
            let first = event(round * 1_000_000 + number * 1000);
            assert!(events.contains(&first), "{}", first.id);
        }
    }
}

#[tokio::test]
async fn batches_sent_twice_are_stored_once_and_pipelined_ones_are_answered_in_order() {
    let place = Place::new();
    let serving = place.serve(Limits::default()).await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch(1, 50)).await;
    store(&mut connection, &batch(1, 50)).await;
    for number in 2..30 {
        connection
            .send_frame(batch(number, 20).frame())
            .await
            .expect("sent");
    }
    for expected in 2..30 {
        let answer = answer(&mut connection).await;
        assert!(
            matches!(answer, BatchAnswer::Ack { number } if number == expected),
            "{answer:?}"
        );
    }
    store(
        &mut connection,
        &Batch {
            number: 30,
            events: Vec::new(),
        },
    )
    .await;
    assert_eq!(place.events().await.len(), 50 + 28 * 20);
    serving.stop().await;
}

#[tokio::test]
async fn garbage_ends_its_connection_only() {
    let place = Place::new();
    let serving = place
        .serve(Limits {
            first_question: Duration::from_millis(300),
            ..Limits::default()
        })
        .await;
    let mut good = place.ingest().await;
    let huge = [0xff; 64];
    let nonsense = [&[0, 0, 0, 5][..], b"{\"a\":"].concat();
    let binary = [&[0, 0, 0, 4][..], &[0xff, 0xfe, 0, 1]].concat();
    let half = [0, 0, 1, 0, b'{'];
    for garbage in [&huge[..], &nonsense, &binary] {
        for socket in [INGEST_SOCKET, QUERY_SOCKET] {
            let mut stream = UnixStream::connect(place.socket(socket))
                .await
                .expect("a socket");
            stream.write_all(garbage).await.expect("sent");
            assert!(hangs_up(&mut stream).await, "{socket}");
        }
    }
    // Half a question, and none at all, are waited for only so long.
    for silence in [&half[..], &[]] {
        let mut stream = UnixStream::connect(place.socket(QUERY_SOCKET))
            .await
            .expect("a socket");
        stream.write_all(silence).await.expect("sent");
        assert!(hangs_up(&mut stream).await);
    }
    // What was sent before the garbage is stored.
    let mut mixed = UnixStream::connect(place.socket(INGEST_SOCKET))
        .await
        .expect("a socket");
    let frame = batch(7, 3).frame();
    mixed
        .write_all(&u32::try_from(frame.len()).expect("small").to_be_bytes())
        .await
        .expect("sent");
    mixed.write_all(&frame).await.expect("sent");
    let mut length = [0; 4];
    timeout(PATIENCE, mixed.read_exact(&mut length))
        .await
        .expect("in time")
        .expect("an answer");
    mixed.write_all(&huge).await.expect("sent");
    assert!(hangs_up(&mut mixed).await);
    store(&mut good, &batch(1, 2)).await;
    assert_eq!(place.events().await.len(), 5);
    serving.stop().await;
}

#[tokio::test]
async fn one_who_never_reads_is_hung_up_on_and_holds_nobody_back() {
    let place = Place::new();
    let serving = place
        .serve(Limits {
            unread_part: Duration::from_millis(500),
            ..Limits::default()
        })
        .await;
    let mut connection = place.ingest().await;
    let follower = place
        .ask(&Question::Events {
            filter: Filter::default(),
            follow: true,
        })
        .await;
    // Far more than a socket buffers.
    for number in 1..=20 {
        store(&mut connection, &batch(number, 500)).await;
    }
    sleep(Duration::from_secs(2)).await;
    let mut follower = follower;
    let mut received = 0;
    let end = loop {
        match timeout(PATIENCE, follower.receive_answer())
            .await
            .expect("an end")
        {
            Ok(Some(Answer::Events { events })) => received += events.len(),
            end => break end,
        }
    };
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    assert!(received < 10_000, "{received}");
    assert_eq!(place.events().await.len(), 10_000);
    serving.stop().await;
}

#[tokio::test]
async fn a_follower_gets_what_was_there_and_what_comes_each_once() {
    let place = Place::new();
    let serving = place.serve(Limits::default()).await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch(1, 700)).await;
    let mut follower = place
        .ask(&Question::Events {
            filter: Filter::default(),
            follow: true,
        })
        .await;
    let mut ids = Vec::new();
    for number in 2..=20 {
        store(&mut connection, &batch(number, 100)).await;
    }
    while ids.len() < 700 + 1900 {
        match next(&mut follower).await {
            Answer::Events { events } => ids.extend(events.into_iter().map(|event| event.id)),
            other => panic!("{other:?}"),
        }
    }
    let wanted: Vec<String> = std::iter::once(batch(1, 700))
        .chain((2..=20).map(|number| batch(number, 100)))
        .flat_map(|batch| batch.events)
        .map(|event| event.id)
        .collect();
    assert_eq!(ids, wanted);
    serving.stop().await;
}

#[tokio::test]
async fn there_is_room_for_so_many_questions_only() {
    let place = Place::new();
    let serving = place
        .serve(Limits {
            questions: 3,
            ..Limits::default()
        })
        .await;
    let question = Question::Events {
        filter: Filter::default(),
        follow: true,
    };
    let mut followers = Vec::new();
    // `serve` looked whether the socket is there: its connections end by themselves, soon.
    let until = Instant::now() + PATIENCE;
    while followers.len() < 3 {
        let mut follower = place.ask(&question).await;
        match timeout(Duration::from_millis(200), follower.receive_answer()).await {
            Err(_) => followers.push(follower),
            Ok(_) => assert!(Instant::now() < until, "no room for three"),
        }
    }
    let mut fourth = place.ask(&Question::Sessions).await;
    let Answer::Error { message } = next(&mut fourth).await else {
        panic!("it was answered")
    };
    assert!(message.contains("too many questions"), "{message}");
    followers.clear();
    loop {
        let mut again = place.ask(&Question::Sessions).await;
        match next(&mut again).await {
            Answer::Sessions { .. } => break,
            _ => assert!(Instant::now() < until, "the room does not come back"),
        }
    }
    serving.stop().await;
}

#[tokio::test]
async fn a_second_collector_is_refused_and_a_stale_socket_is_not() {
    let place = Place::new();
    let collector = place.start().await;
    let second = place.command().output().expect("the binary runs");
    assert!(!second.status.success());
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        message.contains("another collector uses") && message.contains("hint:"),
        "{message}"
    );
    let mode = |name| {
        fs::metadata(place.socket(name))
            .expect("the socket")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode(INGEST_SOCKET), mode(QUERY_SOCKET)), (0o600, 0o666));
    collector.signal(nix::sys::signal::Signal::SIGKILL);
    drop(collector);
    assert!(
        place.socket(QUERY_SOCKET).exists(),
        "a killed collector leaves its sockets"
    );
    let collector = place.start().await;
    assert!(place.events().await.is_empty());
    drop(collector);

    fs::remove_file(place.socket(QUERY_SOCKET)).expect("removed");
    fs::write(place.socket(QUERY_SOCKET), "not a socket").expect("written");
    let refused = place.command().output().expect("the binary runs");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not a socket"));
    assert_eq!(
        fs::read(place.socket(QUERY_SOCKET)).expect("it is kept"),
        b"not a socket"
    );
}

#[tokio::test]
async fn sigterm_ends_it_in_order() {
    let place = Place::new();
    let mut collector = place.start().await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch(1, 100)).await;
    collector.signal(nix::sys::signal::Signal::SIGTERM);
    let status = tokio::task::spawn_blocking(move || collector.child.wait())
        .await
        .expect("no panic")
        .expect("its status");
    assert!(status.success(), "{status}");
    assert!(!place.socket(INGEST_SOCKET).exists());
    let log = fs::metadata(place.state().join("history.db-wal"))
        .map(|file| file.len())
        .unwrap_or(0);
    assert_eq!(log, 0, "the log is part of the file");
    let _collector = place.start().await;
    assert_eq!(place.events().await.len(), 100);
}

#[tokio::test]
async fn a_damaged_history_is_set_aside() {
    let place = Place::new();
    fs::create_dir_all(place.state()).expect("a directory");
    fs::write(
        place.state().join("history.db"),
        "this was a history once ".repeat(500),
    )
    .expect("written");
    let _collector = place.start().await;
    let events = place.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        events[0].loss.as_ref().map(|loss| loss.reason.as_str()),
        Some("store_corrupt")
    );
    let kept = fs::read_dir(place.state())
        .expect("the directory")
        .flatten();
    assert_eq!(
        kept.filter(|entry| entry.file_name().to_string_lossy().contains(".corrupt-"))
            .count(),
        1
    );
}

/// A real full disk: a tmpfs of 4 MiB, as far as this user may mount one.
#[tokio::test]
async fn a_full_disk_refuses_then_recovers() {
    let place = Place::new();
    fs::create_dir_all(place.state()).expect("a directory");
    let mounted = nix::mount::mount(
        Some("tmpfs"),
        &place.state(),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=4m,mode=0700"),
    );
    if let Err(error) = mounted {
        assert_eq!(
            error,
            nix::errno::Errno::EPERM,
            "only a missing right may keep this test from running"
        );
        return;
    }
    let _unmount = Unmount(place.state());
    let filler = place.state().join("filler");
    fs::write(&filler, vec![1; 2 << 20]).expect("there is room");
    let collector = place.start().await;
    let mut connection = place.ingest().await;
    let (mut number, mut stored) = (1, 0);
    let error = loop {
        connection
            .send_frame(batch(number, 200).frame())
            .await
            .expect("sent");
        match answer(&mut connection).await {
            BatchAnswer::Ack { .. } => stored += 200,
            BatchAnswer::Refused {
                number: refused,
                error,
            } => {
                assert_eq!(refused, number);
                break error;
            }
        }
        number += 1;
        assert!(number < 1000, "the disk does not fill");
    };
    assert!(
        error.contains("no space") && error.contains("hint:"),
        "{error}"
    );
    assert_eq!(place.events().await.len(), stored, "reads go on");
    fs::remove_file(&filler).expect("removed");
    store(&mut connection, &batch(number, 200)).await;
    assert_eq!(place.events().await.len(), stored + 200);

    // An Ack would cover the refused batch too, so nothing after it is acknowledged before it.
    fs::write(&filler, vec![1; 1 << 20]).expect("written");
    let mut refused = number + 1;
    loop {
        connection
            .send_frame(batch(refused, 200).frame())
            .await
            .expect("sent");
        match answer(&mut connection).await {
            BatchAnswer::Ack { .. } => refused += 1,
            BatchAnswer::Refused { .. } => break,
        }
        assert!(refused < 1000, "the disk does not fill");
    }
    fs::remove_file(&filler).expect("removed");
    connection
        .send_frame(batch(refused + 1, 200).frame())
        .await
        .expect("sent");
    let later = answer(&mut connection).await;
    assert!(
        matches!(later, BatchAnswer::Refused { number, .. } if number == refused + 1),
        "{later:?}"
    );
    let end = timeout(PATIENCE, connection.receive::<BatchAnswer>())
        .await
        .expect("an end");
    assert!(matches!(end, Ok(None)), "{end:?}");
    let mut again = place.ingest().await;
    store(&mut again, &batch(1, 200)).await;
    drop(collector);
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
