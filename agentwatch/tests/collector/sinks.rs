//! Sinks against receivers, real ones where there are packages of them: stopped, restarted, refusing, slow, and the collector killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use agentwatch::{
    event::{Event, Kind, Verdict, samples::sample},
    sinks::SinkStatus,
    wire::collector::{Answer, Batch, Question},
};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::harness::*;

/// A receiver that does not outlive its test.
struct Receiver(Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Receiver {
    /// Ends it in its own way.
    fn end(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it is there");
        let _ = self.0.wait();
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

async fn listens(port: u16) {
    let until = Instant::now() + PATIENCE;
    while tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .is_err()
    {
        assert!(Instant::now() < until, "nobody listens on {port}");
        sleep(Duration::from_millis(20)).await;
    }
}

impl Place {
    /// The real binary with sinks.
    async fn start_with(&self, sinks: &str) -> Running {
        let config = self.directory.path().join("daemon.toml");
        std::fs::write(&config, sinks).expect("written");
        let mut command = self.command();
        command.arg("--config").arg(&config);
        let child = command.spawn().expect("the binary starts");
        let until = Instant::now() + PATIENCE;
        while tokio::net::UnixStream::connect(self.socket("query.sock"))
            .await
            .is_err()
        {
            assert!(Instant::now() < until, "the collector does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        Running { child }
    }

    async fn sinks(&self) -> BTreeMap<String, SinkStatus> {
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
    async fn sink(&self, name: &str, wanted: impl Fn(&SinkStatus) -> bool) -> SinkStatus {
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

    async fn delivered(&self, name: &str) -> SinkStatus {
        self.sink(name, |sink| sink.behind == 0 && sink.state == "idle")
            .await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn ids(events: impl IntoIterator<Item = u64>) -> BTreeSet<String> {
    events.into_iter().map(|n| format!("event-{n}")).collect()
}

/// The events of some batches.
fn of_batches(batches: std::ops::RangeInclusive<u64>, size: u64) -> BTreeSet<String> {
    ids(batches.flat_map(|number| (0..size).map(move |n| number * 10_000 + n)))
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(ToOwned::to_owned).collect()
}

fn found(path: &Path) -> BTreeSet<String> {
    lines(path).into_iter().collect()
}

/// The ids of JSON Lines, which must all be whole.
fn json_ids(path: &Path) -> Vec<String> {
    lines(path)
        .iter()
        .map(|line| {
            let event: Event = serde_json::from_str(line).expect("an event");
            event.id
        })
        .collect()
}

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

fn rsyslog(program: &Path, place: &Place, input: &str) -> Receiver {
    let config = place.path("rsyslog.conf");
    let text = format!(
        "global(workDirectory=\"{0}\" maxMessageSize=\"256k\")\n{input}\n\
         template(name=\"sent\" type=\"string\" string=\"%structured-data%\\t%msg%\\n\")\n\
         ruleset(name=\"all\") {{ action(type=\"omfile\" file=\"{0}/syslog.out\" template=\"sent\") }}\n",
        place.directory.path().display()
    );
    std::fs::write(&config, text).expect("written");
    let child = Command::new(program)
        .args(["-n", "-f"])
        .arg(&config)
        .arg("-i")
        .arg(place.path("rsyslog.pid"))
        .stderr(Stdio::null())
        .spawn()
        .expect("rsyslogd starts");
    Receiver(child)
}

/// What rsyslog made of it: the id in the structured data, and the same in the message.
fn received(place: &Place) -> BTreeSet<String> {
    lines(&place.path("syslog.out"))
        .iter()
        .map(|line| {
            let (data, message) = line.split_once('\t').expect("two parts");
            let event: Event = serde_json::from_str(message.trim_start()).expect("an event");
            assert!(data.contains(&format!("id=\"{}\"", event.id)), "{data}");
            event.id
        })
        .collect()
}

#[tokio::test]
async fn rsyslog_is_stopped_and_restarted_under_load_and_has_everything() {
    let Some(program) = program("rsyslogd") else {
        return;
    };
    let place = Place::new();
    let port = free_port();
    let input = format!(
        "module(load=\"imtcp\")\ninput(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"all\")"
    );
    let sinks = format!(
        "[[sink]]\nname = \"syslog\"\n[sink.syslog]\naddress = \"tcp://127.0.0.1:{port}\"\n"
    );
    let _collector = place.start_with(&sinks).await;
    let mut connection = place.ingest().await;
    let mut number = 0;
    // It is away at first.
    for round in 0..4 {
        for _ in 0..6 {
            number += 1;
            store(&mut connection, &batch(number, 200)).await;
        }
        if round == 0 {
            let sink = place.sink("syslog", |sink| sink.retries > 0).await;
            assert_eq!((sink.state.as_str(), sink.behind), ("retrying", 1200));
            assert!(
                sink.error
                    .expect("an error")
                    .contains("connect to 127.0.0.1")
            );
        }
        let receiver = rsyslog(&program, &place, &input);
        listens(port).await;
        for _ in 0..6 {
            number += 1;
            store(&mut connection, &batch(number, 200)).await;
        }
        sleep(Duration::from_millis(round * 400)).await;
        receiver.end();
    }
    let _receiver = rsyslog(&program, &place, &input);
    let sink = place.delivered("syslog").await;
    assert_eq!((sink.refused, sink.lost), (0, 0));
    let until = Instant::now() + PATIENCE;
    while received(&place).len() < 9600 && Instant::now() < until {
        sleep(Duration::from_millis(100)).await;
    }
    assert!(
        received(&place) == of_batches(1..=48, 200),
        "{}",
        received(&place).len()
    );
}

#[tokio::test]
async fn rsyslog_takes_datagrams_too() {
    let Some(program) = program("rsyslogd") else {
        return;
    };
    let place = Place::new();
    let (port, log) = (free_port(), place.path("log.sock"));
    let input = format!(
        "module(load=\"imudp\")\ninput(type=\"imudp\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"all\")\n\
         module(load=\"imuxsock\" SysSock.Use=\"off\")\ninput(type=\"imuxsock\" socket={log:?} ruleset=\"all\" useSpecialParser=\"off\" parseHostname=\"on\")"
    );
    let _receiver = rsyslog(&program, &place, &input);
    let until = Instant::now() + PATIENCE;
    while !log.exists() {
        assert!(Instant::now() < until, "rsyslog does not listen");
        sleep(Duration::from_millis(20)).await;
    }
    let sinks = format!(
        "[[sink]]\nname = \"udp\"\nkinds = [\"open\"]\n[sink.syslog]\naddress = \"udp://127.0.0.1:{port}\"\n\
         [[sink]]\nname = \"local\"\nkinds = [\"exec\"]\n[sink.syslog]\naddress = \"unix:{}\"\nfacility = \"daemon\"\n",
        log.display()
    );
    let _collector = place.start_with(&sinks).await;
    let mut connection = place.ingest().await;
    let mut events = batch(1, 20).events;
    for n in 0..20 {
        let mut event = sample(Kind::Exec);
        event.id = format!("exec-{n}");
        events.push(event);
    }
    store(&mut connection, &Batch { number: 1, events }).await;
    let until = Instant::now() + PATIENCE;
    while received(&place).len() < 40 {
        assert!(Instant::now() < until, "{:?}", received(&place));
        sleep(Duration::from_millis(50)).await;
    }
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

/// An authority, and certificates of a server and a client by it: the files by their names.
fn authority(place: &Place, openssl: &Path) {
    let run = |arguments: &[&str]| {
        let made = Command::new(openssl)
            .current_dir(place.directory.path())
            .args(arguments)
            .output()
            .expect("openssl runs");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{arguments:?}: {said}");
    };
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let mut arguments = vec!["req", "-x509", "-days", "2", "-subj", "/CN=authority"];
    arguments.extend(key);
    arguments.extend(["-keyout", "ca.key", "-out", "ca.pem"]);
    run(&arguments);
    for (name, alternative) in [
        ("server", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ("client", "subjectAltName=DNS:agentwatch.example"),
    ] {
        let (secret, request) = (format!("{name}.key"), format!("{name}.csr"));
        let (subject, extension) = (format!("/CN={name}"), format!("{name}.ext"));
        std::fs::write(place.path(&extension), alternative).expect("written");
        let mut arguments = vec!["req", "-subj", &subject];
        arguments.extend(key);
        arguments.extend(["-keyout", &secret, "-out", &request]);
        run(&arguments);
        let certificate = format!("{name}.pem");
        run(&[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            &extension,
            "-out",
            &certificate,
        ]);
    }
}

#[tokio::test]
async fn rsyslog_over_tls_wants_our_certificate_and_we_want_its() {
    let (Some(program), Some(openssl)) = (program("rsyslogd"), program("openssl")) else {
        return;
    };
    let driver = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|target| format!("/usr/lib/{target}/rsyslog/lmnsd_gtls.so"));
    if !driver.iter().any(|path| Path::new(path).exists()) {
        println!("SKIP: rsyslog-gnutls is not installed");
        return;
    }
    let place = Place::new();
    authority(&place, &openssl);
    let port = free_port();
    let file = |name: &str| place.path(name).display().to_string();
    let input = format!(
        "global(defaultNetstreamDriver=\"gtls\" defaultNetstreamDriverCAFile=\"{}\" defaultNetstreamDriverCertFile=\"{}\" defaultNetstreamDriverKeyFile=\"{}\")\n\
         module(load=\"imtcp\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\" streamDriver.authMode=\"x509/name\" permittedPeer=[\"agentwatch.example\"])\n\
         input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"all\")",
        file("ca.pem"),
        file("server.pem"),
        file("server.key"),
    );
    let sinks = |tls: &str| {
        format!(
            "[[sink]]\nname = \"tls\"\n[sink.syslog]\naddress = \"tls://localhost:{port}\"\nsd_id = \"watch@4711.1\"\ntls = {{ {tls} }}\n"
        )
    };
    let receiver = rsyslog(&program, &place, &input);
    listens(port).await;
    // An authority that we do not know, and a client without a certificate: nothing goes over.
    for (tls, said) in [
        (String::new(), Some("certificate")),
        (format!("ca_file = {:?}", file("ca.pem")), None),
    ] {
        let collector = place.start_with(&sinks(&tls)).await;
        let mut connection = place.ingest().await;
        store(&mut connection, &batch(1, 50)).await;
        let sink = place.sink("tls", |sink| sink.retries > 0).await;
        let error = sink.error.expect("an error");
        assert!(said.is_none_or(|said| error.contains(said)), "{error}");
        assert_eq!(sink.delivered, 0);
        drop((connection, collector));
    }
    assert!(received(&place).is_empty());
    let tls = format!(
        "ca_file = {:?}, cert_file = {:?}, key_file = {:?}",
        file("ca.pem"),
        file("client.pem"),
        file("client.key")
    );
    let _collector = place.start_with(&sinks(&tls)).await;
    let mut connection = place.ingest().await;
    store(
        &mut connection,
        &Batch {
            number: 1,
            ..batch(2, 50)
        },
    )
    .await;
    place.delivered("tls").await;
    // It goes away, and comes back.
    receiver.end();
    store(
        &mut connection,
        &Batch {
            number: 2,
            ..batch(3, 50)
        },
    )
    .await;
    place.sink("tls", |sink| sink.state == "retrying").await;
    let _receiver = rsyslog(&program, &place, &input);
    let sink = place.delivered("tls").await;
    assert_eq!((sink.refused, sink.lost), (0, 0));
    let until = Instant::now() + PATIENCE;
    while received(&place) != of_batches(1..=3, 50) {
        assert!(Instant::now() < until, "{}", received(&place).len());
        sleep(Duration::from_millis(50)).await;
    }
    let lines = lines(&place.path("syslog.out"));
    assert!(lines.iter().all(|line| line.starts_with("[watch@4711.1 ")));
}

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
        let child = place
            .command()
            .arg("--config")
            .arg(&config)
            .stdout(file)
            .spawn()
            .expect("the binary starts");
        let collector = Running { child };
        let until = Instant::now() + PATIENCE;
        while tokio::net::UnixStream::connect(place.socket("query.sock"))
            .await
            .is_err()
        {
            assert!(Instant::now() < until, "the collector does not listen");
            sleep(Duration::from_millis(20)).await;
        }
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

struct Http {
    place: Place,
    port: u16,
    arguments: Vec<String>,
}

impl Http {
    fn new() -> Option<Self> {
        program("python3")?;
        let http = Self {
            place: Place::new(),
            port: free_port(),
            arguments: Vec::new(),
        };
        http.mode("ok");
        Some(http)
    }

    fn mode(&self, mode: &str) {
        let path = self.place.path("mode");
        std::fs::write(path.with_extension("new"), mode).expect("written");
        std::fs::rename(path.with_extension("new"), path).expect("renamed");
    }

    async fn receiver(&self) -> Receiver {
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

    fn received(&self) -> BTreeSet<String> {
        found(&self.place.path("received"))
    }
}

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
