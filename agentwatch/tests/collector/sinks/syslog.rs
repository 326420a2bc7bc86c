//! Syslog, to rsyslog.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use agentwatch::{
    event::{Event, Kind, samples::sample},
    wire::collector::Batch,
};
use tokio::time::{Instant, sleep};

use super::setup::*;
use crate::harness::*;

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
