//! Metrics, as Prometheus takes them: the real one, and its tools.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::harness::*;

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.exists());
    if found.is_none() {
        println!("SKIP: {name} is not installed; `cargo xtask setup` installs it");
    }
    found
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// What an HTTP server answers to a request without a body.
fn http(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Ends with its test.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What Prometheus answers to a query.
fn answered(port: u16, query: &str) -> Option<Value> {
    let query: String = query
        .bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    let answer = http(port, &format!("GET /api/v1/query?query={query}"))?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    // It may come in chunks: the JSON is what is between the first and the last brace.
    let json = body.get(body.find('{')?..=body.rfind('}')?)?;
    serde_json::from_str(json).ok()
}

/// The value of the one sample that a query selects.
fn asked(port: u16, query: &str) -> Option<f64> {
    let answer = answered(port, query)?;
    answer["data"]["result"][0]["value"][1]
        .as_str()?
        .parse()
        .ok()
}

fn beside_prometheus(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/prometheus")
        .join(file)
}

/// What the dashboard asks, as Grafana puts it to Prometheus.
fn questions_of_the_dashboard() -> Vec<String> {
    let text = fs::read_to_string(beside_prometheus("dashboard.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
        .map(|target| target["expr"].as_str().expect("a query"))
        .map(|query| {
            query
                .replace("$__rate_interval", "1m")
                .replace("$instance", ".*")
        })
        .collect()
}

/// Grafana's own kit for dashboards, made from its schemas, knows everything that ours says.
#[test]
fn grafana_knows_the_dashboard() {
    let python = std::env::var_os("AGENTWATCH_READERS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/readers/bin/python"),
        PathBuf::from,
    );
    let has = Command::new(&python)
        .args(["-c", "import grafana_foundation_sdk"])
        .output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!(
            "SKIP: {} has no grafana-foundation-sdk; `cargo xtask setup` installs it",
            python.display()
        );
        return;
    }
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/dashboard.py");
    let output = Command::new(&python)
        .arg(fixture)
        .arg(beside_prometheus("dashboard.json"))
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn prometheus_scrapes_what_there_is_to_tell() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let port = free_port();
    let config = place.write(
        "daemon.toml",
        &format!(
            "[metrics]\nlisten = '127.0.0.1:{port}'\n[[sink]]\nname = 'gone'\n[sink.http]\nurl = 'http://127.0.0.1:1'\n"
        ),
    );
    let daemon = place.daemon_with(&["--config", config.to_str().expect("UTF-8")]);
    let output = place.run(&policy(), "measured", "cat ../log; ls / ; true");
    assert!(output.status.success(), "{}", text(&output.stderr));
    place.ended("measured");
    let page = eventually("metrics are served, with the denial and the sink", || {
        let page = http(port, "GET /metrics")?;
        (page.contains("verdict=\"denied\"")
            && page.contains("agentwatch_sink_healthy{sink=\"gone\"} 0"))
        .then_some(page)
    });
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("application/openmetrics-text; version=1.0.0"));
    assert!(
        page.contains("agentwatch_daemon_up 1") && page.contains("agentwatch_collector_up 1"),
        "{page}"
    );
    assert!(page.trim_end().ends_with("# EOF"), "{page}");
    let other = http(port, "GET /").expect("an answer");
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");
    let post = http(port, "POST /metrics").expect("an answer");
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    // Who serves is not root.
    let port_text = port.to_string();
    let serving = processes(&["agentwatch metrics", &port_text]);
    let status = fs::read_to_string(format!("/proc/{}/status", serving[0])).expect("it runs");
    assert!(!status.contains("Uid:\t0\t"), "{status}");

    // The same without HTTP, and when nobody is there.
    let file = place.path().join("agentwatch.prom");
    let output = place.cli(&["metrics", "--output", file.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = fs::read_to_string(&file).expect("the file");
    assert!(
        written.contains("agentwatch_sessions{coverage=\"enforcing\",mode=\"enforce\"}"),
        "{written}"
    );

    if let Some(promtool) = program("promtool") {
        let mut check = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool starts");
        let mut stdin = check.stdin.take().expect("a pipe");
        stdin.write_all(written.as_bytes()).expect("written");
        drop(stdin);
        let checked = check.wait_with_output().expect("promtool ends");
        // It reads the format of before OpenMetrics, as node_exporter does, and would have other names of counters there (3).
        assert_ne!(checked.status.code(), Some(1), "{}", text(&checked.stderr));
        let rules = beside_prometheus("");
        for arguments in [
            ["check", "rules", "alerts.yml"],
            ["test", "rules", "alerts_test.yml"],
        ] {
            let output = Command::new(&promtool)
                .args(arguments)
                .current_dir(&rules)
                .output()
                .expect("promtool runs");
            assert!(
                output.status.success(),
                "{arguments:?}: {}{}",
                text(&output.stdout),
                text(&output.stderr)
            );
        }
    }
    if let Some(prometheus) = program("prometheus") {
        let own = free_port();
        let scraped = place.write(
            "prometheus.yml",
            &format!(
                "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: agentwatch\n    static_configs: [{{ targets: ['127.0.0.1:{port}'] }}]\n"
            ),
        );
        let child = Command::new(prometheus)
            .arg(format!("--config.file={}", scraped.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                place.path().join("tsdb").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{own}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus starts");
        let _prometheus = Prometheus(child);
        for (query, wanted) in [
            ("up{job=\"agentwatch\"}", 1.0),
            ("agentwatch_daemon_up", 1.0),
            ("agentwatch_sink_healthy", 0.0),
            ("agentwatch_approval_review_seconds_count", 0.0),
        ] {
            let value = eventually(&format!("prometheus has {query}"), || asked(own, query));
            assert_eq!(value, wanted, "{query}");
        }
        let denied = asked(own, "sum(agentwatch_events_total{verdict=\"denied\"})");
        assert!(denied >= Some(1.0), "{denied:?}");
        let questions = questions_of_the_dashboard();
        assert!(questions.len() > 10);
        for question in questions {
            // Nothing was dropped, nobody was asked, and the kernel counts no run unless it is told to.
            let may_be_none = ["incidents", "rule_approvals", "program_seconds"]
                .iter()
                .any(|name| question.contains(name));
            eventually(&format!("prometheus answers {question}"), || {
                let answer = answered(own, &question)?;
                assert_eq!(answer["status"], "success", "{question}: {answer}");
                let series = answer["data"]["result"].as_array()?;
                (may_be_none || !series.is_empty()).then_some(())
            });
        }
    }
    daemon.stop();
    let page = text(&place.cli(&["metrics"]).stdout);
    assert!(
        page.contains("agentwatch_daemon_up 0") && page.contains("agentwatch_collector_up 0"),
        "{page}"
    );
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "it ends with the daemon"
    );
}

#[test]
fn metrics_are_served_on_a_unix_socket() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let socket = place.path().join("metrics.sock");
    let mut serving = place
        .command()
        .args(["metrics", "--listen"])
        .arg(format!("unix:{}", socket.display()))
        .spawn()
        .expect("it starts");
    let page = eventually("metrics are served", || {
        let mut stream = UnixStream::connect(&socket).ok()?;
        let head = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    });
    assert!(page.contains("agentwatch_daemon_up 1"), "{page}");
    let pid = nix::unistd::Pid::from_raw(serving.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it is there");
    assert!(serving.wait().expect("reap it").success());
    let refused = place.cli(&["metrics", "--listen", "0.0.0.0:9464"]);
    assert!(text(&refused.stderr).contains("hint: 127.0.0.1:9464"));
    daemon.stop();
}
