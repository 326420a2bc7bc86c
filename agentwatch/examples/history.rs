//! Measures the history: `cargo run --release -p agentwatch --example history -- [EVENTS] [SESSIONS] [DIRECTORY]`.
//!
//! A real collector, held on one processor, is sent packed batches over its socket, as the daemon sends them; making
//! and packing the events is not its work and is done on another. Its processor time is taken from its clock, its
//! memory is the highest that the kernel saw. Then it is asked, over its socket, what responders ask: how long that takes
//! here until the answer is whole, how much processor time of the collector's, and how long reading it takes the asker. Results are lines of JSON.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agentwatch::{
    event::{Event, Kind, Verdict, model::*, samples::sample},
    wire::{
        Connection,
        batch::pack,
        collector::{Answer, BatchAnswer, Filter, INGEST_SOCKET, QUERY_SOCKET, Question},
    },
};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::net::UnixStream;

const BATCH: usize = 512;
/// Batches under way, as the daemon has them.
const WINDOW: u64 = 16;
/// Sessions that live at the same time.
const ALIVE: u64 = 16;
/// Mean time between two events of the host.
const APART_NS: u64 = 3_600_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let events: u64 = arguments.next().map_or(Ok(10_000_000), |n| n.parse())?;
    let sessions: u64 = arguments.next().map_or(Ok(1000), |n| n.parse())?;
    let scratch = tempfile::tempdir()?;
    let directory = arguments
        .next()
        .map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(events, sessions, &directory))
}

async fn run(events: u64, sessions: u64, directory: &Path) -> Result<()> {
    let mut collector = Collector::start(directory)?;
    let cpu_before = collector.cpu()?;
    let begun = Instant::now();
    let (mut generating, mut bytes) = (Duration::ZERO, 0u64);
    let mut ingest = Connection::new(connect(&collector.socket(INGEST_SOCKET)).await?);
    let mut host = Host::new(events, sessions);
    let (mut number, mut acknowledged) = (0, 0);
    loop {
        let made = Instant::now();
        let batch: Vec<Event> = (&mut host).take(BATCH).collect();
        if batch.is_empty() {
            break;
        }
        number += 1;
        let packed = pack(&batch);
        let mut frame = BytesMut::with_capacity(8 + packed.len());
        frame.put_u64(number);
        frame.put_slice(&packed);
        bytes += frame.len() as u64;
        generating += made.elapsed();
        ingest.send_frame(frame.freeze()).await?;
        while number - acknowledged >= WINDOW {
            acknowledged = acknowledge(&mut ingest).await?;
        }
    }
    while acknowledged < number {
        acknowledged = acknowledge(&mut ingest).await?;
    }
    collector.ask(&Question::Seal).await?;
    let wall = begun.elapsed();
    let cpu = collector.cpu()? - cpu_before;
    let size = size(&directory.join("state"))?;
    println!(
        "{}",
        json!({
            "what": "ingest", "events": events, "sessions": sessions,
            "events_per_cpu_second": (events as f64 / cpu.as_secs_f64()).round(),
            "cpu_seconds": cpu.as_secs_f64(), "wall_seconds": wall.as_secs_f64(),
            "making_events_seconds": generating.as_secs_f64(),
            "wire_bytes_per_event": bytes as f64 / events as f64,
            "disk_bytes_per_event": size as f64 / events as f64,
            "memory_mib": collector.memory()?,
        })
    );

    let session = format!("{:08x}-bench", sessions / 2);
    let hour = (Timestamp::now() - SignedDuration::from_hours(1)).as_nanosecond();
    let questions = [
        ("timeline of one session", Question::Timeline { session: session.clone() }),
        ("denied in the last hour", sql(format!("SELECT * FROM denials WHERE time_ns > {hour}"))),
        (
            "denied in the last hour, as events",
            Question::Events {
                filter: Filter {
                    since: Some(Timestamp::now() - SignedDuration::from_hours(1)),
                    verdicts: vec![Verdict::Denied],
                    ..Filter::default()
                },
                follow: false,
            },
        ),
        (
            "top destinations",
            sql("SELECT addr, port, sum(count) AS n, count(DISTINCT session_id) FROM destinations GROUP BY addr, port ORDER BY n DESC LIMIT 20".to_owned()),
        ),
        ("files of one session", sql(format!("SELECT path, sum(count) FROM files WHERE session_id = '{session}' GROUP BY path ORDER BY 2 DESC LIMIT 20"))),
        ("processes of one session", sql(format!("SELECT pid, exe, exit_code FROM processes WHERE session_id = '{session}'"))),
        ("who touched one file", sql("SELECT session_id, time, exe FROM events WHERE path = '/usr/lib/x86_64-linux-gnu/lib17.so.1'".to_owned())),
        ("substring in path", sql("SELECT count(*) FROM events WHERE path LIKE '%module_7/file_11%'".to_owned())),
        ("count by kind", sql("SELECT kind, verdict, count(*) FROM events GROUP BY kind, verdict".to_owned())),
        ("sessions", Question::Sessions),
    ];
    for (what, question) in questions {
        let mut times = Vec::new();
        let (mut rows, mut reading) = (0, Duration::ZERO);
        let cpu_before = collector.cpu()?;
        for _ in 0..5 {
            let answered;
            (rows, answered, reading) = collector.ask(&question).await?;
            times.push(answered);
        }
        let cpu = (collector.cpu()? - cpu_before) / 5;
        times.sort();
        println!(
            "{}",
            json!({
                "what": what, "rows": rows, "median_ms": times[2].as_secs_f64() * 1e3, "cpu_ms": cpu.as_secs_f64() * 1e3, "most_ms": times[4].as_secs_f64() * 1e3,
                "reading_ms": reading.as_secs_f64() * 1e3,
                "memory_mib": collector.memory()?,
            })
        );
    }
    let cli = Instant::now();
    let output = Command::new(binary()?)
        .args(["timeline", &session, "--runtime-dir"])
        .arg(directory.join("run"))
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!(
        "{}",
        json!({"what": "agentwatch timeline, the whole command", "bytes": output.stdout.len(), "median_ms": cli.elapsed().as_secs_f64() * 1e3})
    );
    collector.stop();
    Ok(())
}

fn sql(sql: String) -> Question {
    Question::Sql { sql }
}

async fn acknowledge(connection: &mut Connection) -> Result<u64> {
    match connection.receive::<BatchAnswer>().await? {
        Some(BatchAnswer::Ack { number }) => Ok(number),
        other => bail!("{other:?}"),
    }
}

async fn connect(path: &Path) -> Result<UnixStream> {
    for _ in 0..200 {
        if let Ok(stream) = UnixStream::connect(path).await {
            return Ok(stream);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("nobody listens at {}", path.display())
}

/// The command, built beside this example.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.parent().and_then(Path::parent).context("a directory")?;
    let binary = beside.join("agentwatch");
    ensure!(
        binary.exists(),
        "{} is not there; hint: cargo build --release -p agentwatch",
        binary.display()
    );
    Ok(binary)
}

struct Collector {
    child: Child,
    runtime: PathBuf,
}

impl Collector {
    fn start(directory: &Path) -> Result<Self> {
        let runtime = directory.join("run");
        let child = Command::new("taskset")
            .args(["-c", "0"])
            .arg(binary()?)
            .arg("collector")
            .arg("--state-dir")
            .arg(directory.join("state"))
            .arg("--runtime-dir")
            .arg(&runtime)
            .args(["--keep-bytes", "0"])
            .stdout(Stdio::null())
            .spawn()
            .context("start a collector; hint: taskset is in util-linux")?;
        Ok(Self { child, runtime })
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.runtime.join("collector").join(name)
    }

    /// Processor time of all its threads so far.
    fn cpu(&self) -> Result<Duration> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        Ok(nix::time::ClockId::pid_cpu_clock_id(pid)?.now()?.into())
    }

    /// The most that it ever had, in MiB.
    fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("VmHWM")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib / 1024)
    }

    /// Asks and takes the whole answer in: its rows, how long it took to come, and how long it then takes the asker to read it.
    async fn ask(&self, question: &Question) -> Result<(usize, Duration, Duration)> {
        let begun = Instant::now();
        let mut connection = Connection::new(connect(&self.socket(QUERY_SOCKET)).await?);
        connection.send(question).await?;
        let mut frames: Vec<Bytes> = Vec::new();
        let mut rows = 0;
        // Frames are looked at afterwards, so that reading them costs the collector no time.
        loop {
            let frame = connection
                .receive_frame()
                .await?
                .context("an answer")?
                .freeze();
            let last = frame.starts_with(b"{\"answer\":\"end\"")
                || frame.starts_with(b"{\"answer\":\"error\"");
            frames.push(frame);
            if last {
                break;
            }
        }
        let answered = begun.elapsed();
        for frame in frames {
            match Answer::read(&frame)? {
                Answer::Events { events } => rows += events.len(),
                Answer::Rows { rows: some } => rows += some.len(),
                Answer::Sessions { sessions } => rows += sessions.len(),
                Answer::Error { message } => bail!(message),
                _ => {}
            }
        }
        Ok((rows, answered, begun.elapsed() - answered))
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
    }
}

fn size(directory: &Path) -> Result<u64> {
    let mut all = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        all += if entry.file_type()?.is_dir() {
            size(&entry.path())?
        } else {
            entry.metadata()?.len()
        };
    }
    Ok(all)
}

/// A host with build jobs: what agents' sessions look like once repetitions are folded. Most events are opens of files
/// that the program had not opened before; a process makes a dozen.
struct Host {
    left: u64,
    sessions: u64,
    events_each: u64,
    random: u64,
    now_ns: u64,
    wall: Timestamp,
    alive: Vec<Session>,
    next_session: u64,
    base: Event,
}

struct Session {
    number: u64,
    seq: u64,
    left: u64,
    process: Process,
    actions: u64,
    waiting: Option<Event>,
}

impl Host {
    fn new(events: u64, sessions: u64) -> Self {
        let mut base = sample(Kind::Open);
        base.verdict = Verdict::Allowed;
        base.errno = None;
        Self {
            left: events,
            sessions,
            events_each: events / sessions.max(1),
            random: 0x9e37_79b9_7f4a_7c15,
            now_ns: 86_400_000_000_000,
            wall: Timestamp::now() - SignedDuration::from_nanos((events * APART_NS) as i64),
            alive: Vec::new(),
            next_session: 0,
            base,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        // xorshift64*: the same events in every run.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    fn event(&mut self, session: &mut Session, kind: Kind) -> Event {
        let mut event = self.base.clone();
        session.seq += 1;
        event.kind = kind;
        event.seq = session.seq;
        event.session.id = format!("{:08x}-bench", session.number);
        event.session.name = format!("task {}", session.number % 50);
        event.id = format!("{}-{}", event.session.id, event.seq);
        event.ktime_ns = self.now_ns;
        // The two clocks are read one after the other, so their difference is never quite the same.
        event.time = self.wall
            + SignedDuration::from_nanos(
                (self.now_ns - 86_400_000_000_000 + self.random(200)) as i64,
            );
        event.rule = Some(RuleRef {
            id: format!("files.allow[{}]", self.random(6)),
            layer: Layer::Task,
            source: "task.toml:7".into(),
        });
        let mut process = session.process.clone();
        process.start = Some(
            event.time - SignedDuration::from_nanos((event.ktime_ns - process.start_ns) as i64),
        );
        if kind != Kind::Exec {
            process.argv.clear();
        }
        event.process = Some(process);
        event.file = None;
        event
    }

    fn path(&mut self, session: u64) -> String {
        match self.random(100) {
            0..25 => format!("/usr/lib/x86_64-linux-gnu/lib{}.so.1", self.random(2500)),
            25..40 => format!(
                "/home/dev/project-{session}/target/debug/deps/lib{}-{:016x}.rmeta",
                self.random(400),
                self.random
            ),
            _ => format!(
                "/home/dev/project-{session}/src/module_{}/file_{}.rs",
                self.random(60),
                self.random(70)
            ),
        }
    }

    fn file(&mut self, session: u64, access: &[&str]) -> File {
        let path = self.path(session);
        let inode = path.bytes().fold(7u64, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(byte.into())
        }) % 4_000_000;
        File {
            path,
            dev: 8 << 20 | 1,
            inode,
            access: access.iter().map(|name| (*name).to_owned()).collect(),
            flags: vec!["O_CLOEXEC".into()],
            ..File::default()
        }
    }

    fn execute(&mut self, session: &mut Session) -> Event {
        let program = self.random(40);
        let pid = 1000 + self.random(4_000_000) as u32;
        let parent = session.process.clone();
        session.process = Process {
            pid,
            tid: pid,
            ppid: parent.pid,
            start_ns: self.now_ns.saturating_sub(300_000),
            parent_start_ns: parent.start_ns,
            exe: format!("/usr/bin/tool-{program}"),
            comm: format!("tool-{program}"),
            argv: vec![
                format!("tool-{program}"),
                "--edition=2024".into(),
                "--out-dir".into(),
                format!("/home/dev/project-{}/target", session.number),
                format!("crate_{}", self.random(3000)),
            ],
            cwd: format!("/home/dev/project-{}", session.number),
            uid: 1000,
            gid: 1000,
            cgroup: format!("/agentwatch/{:08x}-bench", session.number),
            ..Process::default()
        };
        session.actions = 4 + self.random(18);
        let mut event = self.event(session, Kind::Exec);
        event.file = Some(File {
            path: format!("/usr/bin/tool-{program}"),
            dev: 8 << 20 | 1,
            inode: 2000 + program,
            access: vec!["exec".into()],
            ..File::default()
        });
        event
    }

    fn act(&mut self, session: &mut Session) -> Event {
        let number = session.number;
        let kind = self.random(1000);
        let mut event = match kind {
            0..40 => {
                let mut event = self.event(session, Kind::Connect);
                // A few destinations are met by everybody, most by few.
                let spread = 1 + self.random(300);
                let which = self.random(spread);
                event.net = Some(Net {
                    family: "inet".into(),
                    socket_type: "stream".into(),
                    addr: Some(format!("198.51.{}.{}", which / 250, which % 250)),
                    port: Some(443),
                    ..Net::default()
                });
                event
            }
            40..90 => {
                let mut event = self.event(session, Kind::Create);
                event.file = Some(self.file(number, &["create", "write"]));
                event
            }
            90..110 => {
                let mut event = self.event(session, Kind::Delete);
                event.file = Some(self.file(number, &["delete"]));
                event
            }
            110..125 => {
                let mut event = self.event(session, Kind::Rename);
                event.file = Some(self.file(number, &["write"]));
                event.target = Some(self.file(number, &["create"]));
                event
            }
            _ => {
                let mut event = self.event(session, Kind::Open);
                event.file = Some(self.file(number, &["read"]));
                if self.random(8) == 0 {
                    event.errno = Some(2);
                }
                event
            }
        };
        if self.random(100) == 0 {
            event.verdict = Verdict::Denied;
            event.errno = Some(13);
            event.rule = Some(RuleRef {
                id: "files.deny[2]".into(),
                layer: Layer::Task,
                source: "task.toml:12".into(),
            });
        }
        event
    }
}

impl Iterator for &mut Host {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        self.now_ns += 1 + self.random(2 * APART_NS);
        while (self.alive.len() as u64) < ALIVE && self.next_session < self.sessions {
            let number = self.next_session;
            self.next_session += 1;
            let mut started = sample(Kind::Session);
            started.id = format!("start-{number}");
            started.session.id = format!("{number:08x}-bench");
            started.session.name = format!("task {}", number % 50);
            started.ktime_ns = self.now_ns;
            started.time =
                self.wall + SignedDuration::from_nanos((self.now_ns - 86_400_000_000_000) as i64);
            self.alive.push(Session {
                number,
                seq: 0,
                left: self.events_each,
                process: Process {
                    pid: 900,
                    start_ns: self.now_ns,
                    ..Process::default()
                },
                actions: 0,
                waiting: Some(started),
            });
        }
        if self.alive.is_empty() {
            return None;
        }
        let index = self.random(self.alive.len() as u64) as usize;
        let mut session = self.alive.swap_remove(index);
        session.left = session.left.saturating_sub(1);
        let event = if let Some(event) = session.waiting.take() {
            event
        } else if session.actions == 0 {
            self.execute(&mut session)
        } else {
            session.actions -= 1;
            if session.actions == 0 {
                let mut event = self.event(&mut session, Kind::Exit);
                event.exit = Some(Exit {
                    code: Some(0),
                    duration_ns: 1 + self.random(90_000_000),
                    ..Exit::default()
                });
                event
            } else {
                self.act(&mut session)
            }
        };
        if session.left > 0 {
            self.alive.push(session);
        }
        Some(event)
    }
}
