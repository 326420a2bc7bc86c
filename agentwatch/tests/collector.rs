//! The collector over its real sockets: in this process where limits are shortened, as the real binary where it is
//! killed or where two of them meet.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use agentwatch::{
    collector::{Config, Limits, run_until},
    event::{Event, Kind, model::Lifecycle, samples::sample},
    wire::{
        Connection,
        collector::{Answer, Batch, BatchAnswer, Filter, INGEST_SOCKET, QUERY_SOCKET, Question},
    },
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Longest wait for what must happen at once, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn runtime(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.runtime().join("collector").join(name)
    }

    /// The real binary, listening.
    async fn start(&self) -> Running {
        let mut child = self.command().spawn().expect("the binary starts");
        let until = Instant::now() + PATIENCE;
        while StdStream::connect(self.socket(QUERY_SOCKET)).is_err() {
            assert!(
                child.try_wait().expect("its state").is_none(),
                "the collector ended"
            );
            assert!(Instant::now() < until, "the collector does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        Running { child }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentwatch"));
        command
            .arg("collector")
            .arg("--state-dir")
            .arg(self.state())
            .arg("--runtime-dir")
            .arg(self.runtime());
        command
    }

    /// A command that reads the history.
    fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentwatch"));
        command
            .args(arguments)
            .arg("--runtime-dir")
            .arg(self.runtime())
            .output()
            .expect("the binary runs")
    }

    /// The collector in this process.
    async fn serve(&self, limits: Limits) -> Serving {
        let config = Config {
            state_dir: self.state(),
            runtime_dir: self.runtime(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(run_until(config, limits, async move {
            let _ = stopped.await;
        }));
        let until = Instant::now() + PATIENCE;
        while StdStream::connect(self.socket(QUERY_SOCKET)).is_err() {
            assert!(!task.is_finished(), "the collector ended: {:?}", task.await);
            assert!(Instant::now() < until, "the collector does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        Serving { stop, task }
    }

    async fn ingest(&self) -> Connection {
        Connection::new(
            UnixStream::connect(self.socket(INGEST_SOCKET))
                .await
                .expect("the ingest socket"),
        )
    }

    async fn ask(&self, question: &Question) -> Connection {
        let mut connection = Connection::new(
            UnixStream::connect(self.socket(QUERY_SOCKET))
                .await
                .expect("the query socket"),
        );
        connection.send(question).await.expect("asked");
        connection
    }

    async fn events(&self) -> Vec<Event> {
        let mut connection = self
            .ask(&Question::Events {
                filter: Filter::default(),
                follow: false,
            })
            .await;
        let mut all = Vec::new();
        loop {
            match next(&mut connection).await {
                Answer::Events { events } => all.extend(events),
                Answer::End => return all,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A child that does not outlive its test.
struct Running {
    child: Child,
}

impl Running {
    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("the child is there");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Serving {
    async fn stop(self) {
        let _ = self.stop.send(());
        timeout(PATIENCE, self.task)
            .await
            .expect("it stops")
            .expect("without a panic")
            .expect("in order");
    }
}

fn event(n: u64) -> Event {
    let mut event = sample(Kind::Open);
    event.id = format!("event-{n}");
    event.seq = n;
    event.ktime_ns += n;
    event
}

fn batch(number: u64, size: u64) -> Batch {
    Batch {
        number,
        events: (0..size).map(|n| event(number * 10_000 + n)).collect(),
    }
}

async fn next(connection: &mut Connection) -> Answer {
    timeout(PATIENCE, connection.receive())
        .await
        .expect("an answer in time")
        .expect("an answer")
        .expect("no end yet")
}

async fn answer(connection: &mut Connection) -> BatchAnswer {
    timeout(PATIENCE, connection.receive())
        .await
        .expect("an answer in time")
        .expect("an answer")
        .expect("no end yet")
}

async fn store(connection: &mut Connection, batch: &Batch) {
    connection.send(batch).await.expect("sent");
    let answer = answer(connection).await;
    assert!(
        matches!(answer, BatchAnswer::Ack { number } if number == batch.number),
        "{answer:?}"
    );
}

/// Whether the other end hangs up.
async fn hangs_up(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .is_ok()
}

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
                .send(&Batch { number, events })
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
        connection.send(&batch(number, 20)).await.expect("sent");
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
    let frame = serde_json::to_vec(&batch(7, 3)).expect("JSON");
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
        match timeout(PATIENCE, follower.receive::<Answer>())
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
        match timeout(Duration::from_millis(200), follower.receive::<Answer>()).await {
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
        connection.send(&batch(number, 200)).await.expect("sent");
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
    drop(collector);
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn commands_show_the_history_and_no_control_characters() {
    let place = Place::new();
    let _collector = place.start().await;
    let mut connection = place.ingest().await;
    let mut events: Vec<Event> = Kind::ALL.into_iter().map(sample).collect();
    for event in &mut events {
        if let Some(process) = &mut event.process {
            process.argv.push("\x1b]0;owned\x07\u{202e}".to_owned());
        }
    }
    store(
        &mut connection,
        &Batch {
            number: 1,
            events: events.clone(),
        },
    )
    .await;

    let text = |output: &Output| String::from_utf8(output.stdout.clone()).expect("UTF-8");
    let jsonl = place.cli(&["events", "fix-parser", "--format", "jsonl"]);
    assert!(jsonl.status.success());
    let mut printed: Vec<String> = text(&jsonl).lines().map(str::to_owned).collect();
    let mut stored: Vec<String> = events
        .iter()
        .map(|event| serde_json::to_string(event).expect("JSON"))
        .collect();
    printed.sort();
    stored.sort();
    assert_eq!(printed, stored);

    for arguments in [
        &["events"][..],
        &["events", "--kind", "exec,open", "--verdict", "denied"],
        &["timeline", "fix-parser"],
        &["sessions"],
        &["query", "SELECT argv, kind FROM events"],
    ] {
        let output = place.cli(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = text(&output);
        assert!(text.lines().count() > 1, "{arguments:?}: {text}");
        let wild = text.chars().find(|character| {
            (character.is_control() && *character != '\n') || *character == '\u{202e}'
        });
        assert_eq!(wild, None, "{arguments:?}: {text:?}");
    }
    let timeline = text(&place.cli(&["timeline", "fix-parser"]));
    for part in [
        "DENIED",
        "/etc/shadow",
        "files.deny[2]",
        "exit 1 after 1.2s",
        "connect  192.0.2.7:443 (example.org)",
        "42 events",
    ] {
        assert!(timeline.contains(part), "{part}: {timeline}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&place.cli(&["timeline", "fix-parser", "--json"]).stdout)
            .expect("JSON");
    assert_eq!(json.pointer("/processes/0/pid"), Some(&4711.into()));
    let sessions: serde_json::Value =
        serde_json::from_slice(&place.cli(&["sessions", "--json"]).stdout).expect("JSON");
    assert_eq!(sessions.pointer("/0/name"), Some(&"fix-parser".into()));
    let csv = text(&place.cli(&[
        "query",
        "SELECT '=1+1' AS a, 'x\"y' AS b, 3 AS c",
        "--format",
        "csv",
    ]));
    assert_eq!(csv, "a,b,c\r\n'=1+1,\"x\"\"y\",3\r\n");

    let refused = place.cli(&["query", "DELETE FROM event_rows"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("can only be read"));
    let unknown = place.cli(&["timeline", "nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("hint:"));
}

#[test]
fn without_a_collector_the_commands_say_so() {
    let place = Place::new();
    let output = place.cli(&["sessions"]);
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("no collector answers at") && message.contains("hint: agentwatch daemon"),
        "{message}"
    );
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_failure() {
    let place = Place::new();
    let _collector = place.start().await;
    let mut connection = place.ingest().await;
    store(&mut connection, &batch(1, 5000)).await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_agentwatch"))
        .args(["events", "--format", "jsonl", "--runtime-dir"])
        .arg(place.runtime())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output())
        .await
        .expect("no panic")
        .expect("its end");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// Another user, where this one may become it: sees own sessions, asks no SQL, brings no events.
#[tokio::test]
async fn a_stranger_sees_only_what_is_theirs() {
    use std::os::unix::process::CommandExt as _;

    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let _collector = place.start().await;
    let mut connection = place.ingest().await;
    let mut events = Vec::new();
    for (session, owner) in [("mine", 54_321), ("theirs", 12_345)] {
        let mut event = sample(Kind::Session);
        event.id = session.to_owned();
        event.session.id = session.to_owned();
        event.session.name = session.to_owned();
        if let Some(Lifecycle::Started { uid, .. }) = &mut event.lifecycle {
            *uid = owner;
        }
        events.push(event);
    }
    store(&mut connection, &Batch { number: 1, events }).await;
    // A copy, since the build directory may not be open to everyone.
    let binary = place.directory.path().join("agentwatch");
    fs::copy(env!("CARGO_BIN_EXE_agentwatch"), &binary).expect("copied");
    let stranger = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .arg("--runtime-dir")
            .arg(place.runtime())
            .uid(54_321)
            .gid(54_321)
            .current_dir("/");
        command.output().expect("the binary runs")
    };
    let sessions = String::from_utf8_lossy(&stranger(&["sessions", "--json"]).stdout).into_owned();
    assert!(
        sessions.contains("\"mine\"") && !sessions.contains("\"theirs\""),
        "{sessions}"
    );
    let events =
        String::from_utf8_lossy(&stranger(&["events", "--format", "jsonl"]).stdout).into_owned();
    assert_eq!(events.lines().count(), 1, "{events}");
    assert!(!stranger(&["timeline", "theirs"]).status.success());
    let sql = stranger(&["query", "SELECT * FROM events"]);
    assert!(
        String::from_utf8_lossy(&sql.stderr).contains("only root"),
        "{sql:?}"
    );

    // Even with the socket open to all, the peer's uid decides.
    fs::set_permissions(
        place.socket(INGEST_SOCKET),
        fs::Permissions::from_mode(0o666),
    )
    .expect("set");
    let path = place.socket(INGEST_SOCKET);
    let refused = tokio::task::spawn_blocking(move || as_stranger(&path))
        .await
        .expect("no panic");
    assert!(refused, "a stranger's batch was answered");
    assert_eq!(place.events().await.len(), 2);
}

/// Sends a batch from a thread with another effective uid; whether it was hung up on.
fn as_stranger(path: &Path) -> bool {
    // The system call, unlike libc's function, changes this thread only.
    // SAFETY: setresuid takes three numbers and touches no memory.
    let changed = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, 54_321, -1) };
    assert_eq!(changed, 0, "root may change its effective uid");
    let stream = StdStream::connect(path);
    // SAFETY: as above; the saved uid is still 0, so this thread becomes root again.
    let restored = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, 0, -1) };
    assert_eq!(restored, 0, "the saved uid is root's");
    let mut stream = stream.expect("the socket is open to all");
    let frame = serde_json::to_vec(&batch(1, 1)).expect("JSON");
    let length = u32::try_from(frame.len()).expect("small").to_be_bytes();
    // The collector may have hung up already.
    let _ = stream
        .write_all(&length)
        .and_then(|()| stream.write_all(&frame));
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut byte = [0];
    !matches!(std::io::Read::read(&mut stream, &mut byte), Ok(1))
}
