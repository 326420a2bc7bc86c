//! A collector in a place of its own, and what the tests say to it.

use std::{
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::Duration,
};

use agentwatch::{
    collector::{Config, Limits, run_until},
    event::{Event, Kind, samples::sample},
    wire::{
        Connection,
        collector::{Answer, Batch, BatchAnswer, Filter, INGEST_SOCKET, QUERY_SOCKET, Question},
    },
};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// A Python with what others read segments with and receive events by: `AGENTWATCH_READERS`, or the one that `cargo xtask setup`
/// makes.
pub fn python() -> PathBuf {
    std::env::var_os("AGENTWATCH_READERS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/readers/bin/python"),
        PathBuf::from,
    )
}

/// A program, or `None` with the reason why the test is left out, which is then true.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(name))
        .find(|path| path.exists());
    if found.is_none() {
        println!("SKIP: {name} is not installed");
    }
    found
}

/// Longest wait for what must happen at once, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Place {
    pub directory: TempDir,
    /// Name of the state directory.
    state: &'static str,
}

impl Place {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            state: "state",
        }
    }

    /// Where the directory itself is a daemon's state directory.
    pub fn new_as_daemon() -> Self {
        Self {
            state: "collector",
            ..Self::new()
        }
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join(self.state)
    }

    pub fn runtime(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.runtime().join("collector").join(name)
    }

    /// The real binary, listening.
    pub async fn start(&self) -> Running {
        self.listening(&mut self.command()).await
    }

    /// The same, started as it is said.
    pub async fn listening(&self, command: &mut Command) -> Running {
        let mut child = command.spawn().expect("the binary starts");
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

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentwatch"));
        command
            .arg("collector")
            .arg("--state-dir")
            .arg(self.state())
            .arg("--runtime-dir")
            .arg(self.runtime())
            // Sealing happens in every test, between and under what it is about.
            .args(["--segment-events", "500"]);
        command
    }

    /// A command that reads the history.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentwatch"));
        command
            .args(arguments)
            .arg("--runtime-dir")
            .arg(self.runtime())
            .output()
            .expect("the binary runs")
    }

    /// The collector in this process.
    pub async fn serve(&self, limits: Limits) -> Serving {
        let config = Config {
            state_dir: self.state(),
            runtime_dir: self.runtime(),
            retention: Default::default(),
            segment_events: 1000,
            sinks: Vec::new(),
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

    pub async fn ingest(&self) -> Connection {
        Connection::new(
            UnixStream::connect(self.socket(INGEST_SOCKET))
                .await
                .expect("the ingest socket"),
        )
    }

    pub async fn ask(&self, question: &Question) -> Connection {
        let mut connection = Connection::new(
            UnixStream::connect(self.socket(QUERY_SOCKET))
                .await
                .expect("the query socket"),
        );
        connection.send(question).await.expect("asked");
        connection
    }

    pub async fn events(&self) -> Vec<Event> {
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
pub struct Running {
    pub child: Child,
}

impl Running {
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
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

pub struct Serving {
    pub stop: oneshot::Sender<()>,
    pub task: JoinHandle<anyhow::Result<()>>,
}

impl Serving {
    pub async fn stop(self) {
        let _ = self.stop.send(());
        timeout(PATIENCE, self.task)
            .await
            .expect("it stops")
            .expect("without a panic")
            .expect("in order");
    }
}

pub fn event(n: u64) -> Event {
    let mut event = sample(Kind::Open);
    event.id = format!("event-{n}");
    event.seq = n;
    event.ktime_ns += n;
    event
}

pub fn batch(number: u64, size: u64) -> Batch {
    Batch {
        number,
        events: (0..size).map(|n| event(number * 10_000 + n)).collect(),
    }
}

pub async fn next(connection: &mut Connection) -> Answer {
    timeout(PATIENCE, connection.receive_answer())
        .await
        .expect("an answer in time")
        .expect("an answer")
        .expect("no end yet")
}

pub async fn answer(connection: &mut Connection) -> BatchAnswer {
    timeout(PATIENCE, connection.receive())
        .await
        .expect("an answer in time")
        .expect("an answer")
        .expect("no end yet")
}

pub async fn store(connection: &mut Connection, batch: &Batch) {
    connection.send_frame(batch.frame()).await.expect("sent");
    let answer = answer(connection).await;
    assert!(
        matches!(answer, BatchAnswer::Ack { number } if number == batch.number),
        "{answer:?}"
    );
}

/// Whether the other end hangs up.
pub async fn hangs_up(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .is_ok()
}
