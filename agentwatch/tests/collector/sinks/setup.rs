//! What the trials of all sinks need: receivers, a collector with sinks, and what has arrived.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use agentwatch::{
    event::Event,
    sinks::SinkStatus,
    wire::collector::{Answer, Question},
};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::harness::*;

/// A receiver that does not outlive its test.
pub struct Receiver(pub Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Receiver {
    /// Ends it in its own way.
    pub fn end(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it is there");
        let _ = self.0.wait();
    }
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

pub async fn listens(port: u16) {
    let until = Instant::now() + PATIENCE;
    while tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .is_err()
    {
        assert!(Instant::now() < until, "nobody listens on {port}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A receiver over HTTP, which answers as it is told to.
pub struct Http {
    pub place: Place,
    pub port: u16,
    pub arguments: Vec<String>,
}

impl Http {
    pub fn new() -> Option<Self> {
        program("python3")?;
        let http = Self {
            place: Place::new(),
            port: free_port(),
            arguments: Vec::new(),
        };
        http.mode("ok");
        Some(http)
    }

    pub fn mode(&self, mode: &str) {
        let path = self.place.path("mode");
        std::fs::write(path.with_extension("new"), mode).expect("written");
        std::fs::rename(path.with_extension("new"), path).expect("renamed");
    }

    pub async fn receiver(&self) -> Receiver {
        let child = Command::new("python3")
            .arg(fixture("http_receiver.py"))
            .arg(self.port.to_string())
            .args([self.place.path("received"), self.place.path("mode")])
            .args(&self.arguments)
            .stderr(Stdio::null())
            .spawn()
            .expect("python starts");
        let receiver = Receiver(child);
        listens(self.port).await;
        receiver
    }

    pub fn received(&self) -> BTreeSet<String> {
        found(&self.place.path("received"))
    }
}

impl Place {
    /// The real binary with sinks.
    pub async fn start_with(&self, sinks: &str) -> Running {
        let config = self.directory.path().join("daemon.toml");
        std::fs::write(&config, sinks).expect("written");
        let mut command = self.command();
        command.arg("--config").arg(&config);
        self.listening(&mut command).await
    }

    pub async fn sinks(&self) -> BTreeMap<String, SinkStatus> {
        let mut connection = self.ask(&Question::Status).await;
        match next(&mut connection).await {
            Answer::Status { status } => status
                .sinks
                .into_iter()
                .map(|sink| (sink.name.clone(), sink))
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a sink is as wanted.
    pub async fn sink(&self, name: &str, wanted: impl Fn(&SinkStatus) -> bool) -> SinkStatus {
        let until = Instant::now() + PATIENCE * 2;
        loop {
            let mut sinks = self.sinks().await;
            let sink = sinks.remove(name).expect("the sink");
            if wanted(&sink) {
                return sink;
            }
            assert!(Instant::now() < until, "{sink:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn delivered(&self, name: &str) -> SinkStatus {
        self.sink(name, |sink| sink.behind == 0 && sink.state == "idle")
            .await
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

pub fn ids(events: impl IntoIterator<Item = u64>) -> BTreeSet<String> {
    events.into_iter().map(|n| format!("event-{n}")).collect()
}

/// The events of some batches.
pub fn of_batches(batches: std::ops::RangeInclusive<u64>, size: u64) -> BTreeSet<String> {
    ids(batches.flat_map(|number| (0..size).map(move |n| number * 10_000 + n)))
}

pub fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(ToOwned::to_owned).collect()
}

pub fn found(path: &Path) -> BTreeSet<String> {
    lines(path).into_iter().collect()
}

/// The ids of JSON Lines, which must all be whole.
pub fn json_ids(path: &Path) -> Vec<String> {
    lines(path)
        .iter()
        .map(|line| {
            let event: Event = serde_json::from_str(line).expect("an event");
            event.id
        })
        .collect()
}
