//! A reviewer that decides before people do, and what is told of decisions.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::actions::server;
use crate::{
    PATIENCE,
    place::{Doing, Place, eventually},
};

/// Decides by the name of the session.
const REVIEWER: &str = r#"#!/bin/sh
request=$(cat)
says() { case $request in *"\"session_name\":\"$1\""*) true;; *) false;; esac; }
if says r-approve; then echo '{"verdict":"approve","reason":"a known mirror"}'
elif says r-for; then echo '{"verdict":"approve","scope":"for","seconds":60}'
elif says r-longer; then echo '{"verdict":"approve","scope":"for","seconds":61}'
elif says r-session; then echo '{"verdict":"approve","scope":"session"}'
elif says r-reject; then echo '{"verdict":"reject","reason":"never"}'
elif says r-again; then echo '{"verdict":"reject"}'
elif says r-garbage; then echo 'approve, I think'
elif says r-much; then yes '{"verdict":"approve"}'
elif says r-crash; then kill -9 $$
elif says r-fails; then echo '{"verdict":"approve"}'; exit 1
elif says r-slow; then sleep 60; echo '{"verdict":"approve"}'
elif says r-root; then [ -w / ] && echo '{"verdict":"approve"}'
elif says r-managed; then echo '{"verdict":"approve"}'
else echo '{"verdict":"escalate","reason":"look at it"}'
fi
"#;

/// What a managed rule holds.
const MANAGED: &str = "127.0.0.1:19998";

/// A web hook: says what was posted to it.
fn web_hook() -> Result<(String, mpsc::Receiver<Value>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    let (told, posts) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let mut bytes = Vec::new();
            let mut part = [0; 4096];
            // A request is whole when its JSON is.
            while let Ok(n @ 1..) = stream.read(&mut part) {
                bytes.extend_from_slice(&part[..n]);
                let text = String::from_utf8_lossy(&bytes);
                if let Some((head, body)) = text.split_once("\r\n\r\n")
                    && let Ok(json) = serde_json::from_str::<Value>(body)
                {
                    let good = head.starts_with("POST /hook ")
                        && head.to_ascii_lowercase().contains("application/json");
                    let _ =
                        stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
                    if !good || told.send(json).is_err() {
                        return;
                    }
                    break;
                }
            }
        }
    });
    Ok((url, posts))
}

struct Review<'a> {
    place: &'a Place,
    address: String,
    rule: String,
}

impl Review<'_> {
    fn begin(&self, name: &str) -> Result<Doing> {
        let action = format!("connect:{}", self.address);
        self.place.session(name, &self.rule, &[&action])
    }

    /// It decides by itself: what the record says.
    fn decides(&self, name: &str, outcome: &str) -> Result<Value> {
        let doing = self.begin(name)?;
        doing.expect(0, outcome)?;
        doing.end()?;
        let step = self.place.step(name, |step| {
            step["step"] == "approved" || step["step"] == "rejected"
        })?;
        ensure!(step["approval"]["by"]["kind"] == "reviewer", "{step}");
        Ok(step)
    }

    /// It leaves it to a person, who lets it happen: the reason that it gives.
    fn escalates(&self, name: &str) -> Result<String> {
        let doing = self.begin(name)?;
        let requests = self.place.requests("it is left to a person", |requests| {
            requests.first().is_some_and(|it| it["review"].is_string())
        })?;
        let reason = requests[0]["review"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        doing.is_waiting(0)?;
        self.place.approve(&[])?;
        doing.expect(0, "ok")?;
        doing.end()?;
        let step = self.place.step(name, |step| step["step"] == "escalated")?;
        ensure!(step["approval"]["by"]["kind"] == "reviewer", "{step}");
        ensure!(step["approval"]["reason"] == reason.as_str(), "{step}");
        let step = self.place.step(name, |step| step["step"] == "approved")?;
        ensure!(step["approval"]["by"]["kind"] == "user", "{step}");
        Ok(reason)
    }
}

pub(crate) fn reviewer(place: &Place) -> Result<()> {
    let (url, posts) = web_hook()?;
    let script = place.dir.path().join("review");
    fs::write(&script, REVIEWER)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let told = place.dir.path().join("told");
    fs::write(&told, "")?;
    fs::set_permissions(&told, fs::Permissions::from_mode(0o666))?;
    let managed = place.dir.path().join("managed.d");
    fs::create_dir_all(&managed)?;
    fs::write(
        managed.join("10-hold.toml"),
        format!("[network]\napprove = ['{MANAGED}']\n"),
    )?;
    place.configure(&format!(
        "managed_dir = '{}'\n[approvals.reviewer]\ncommand = ['{}']\ndeadline = '{}s'\nlongest = '1m'\nmax_per_minute = 600\n\
         [approvals.notify]\ncommand = ['/bin/sh', '-c', 'cat >> {}; echo >> {}']\nwebhook = '{url}'\ndeadline = '60s'\n",
        managed.display(),
        script.display(),
        if place.is_emulated() { 10 } else { 3 },
        told.display(),
        told.display(),
    ))?;
    let (_listener, address, rule) = server()?;
    let review = Review {
        place,
        address,
        rule,
    };
    let before = place.metrics()?;

    let step = review.decides("r-approve", "ok")?;
    ensure!(step["approval"]["scope"] == "once", "{step}");
    ensure!(step["approval"]["reason"] == "a known mirror", "{step}");
    ensure!(
        step["approval"]["by"]["name"] == script.display().to_string(),
        "{step}"
    );
    let step = review.decides("r-for", "ok")?;
    ensure!(step["approval"]["scope"] == "for", "{step}");
    ensure!(step["approval"]["until"].is_string(), "{step}");
    let step = review.decides("r-reject", &format!("error {}", libc::EPERM))?;
    ensure!(step["approval"]["reason"] == "never", "{step}");
    for (name, says) in [
        ("r-longer", "1 to 60 seconds"),
        ("r-session", "answer is none"),
        ("r-garbage", "answer is none"),
        ("r-much", "more than 65536 bytes"),
        ("r-crash", "signal: 9"),
        ("r-fails", "exit status: 1"),
        ("r-slow", "not done within"),
        ("r-root", "exit status: 1"),
        ("r-other", "look at it"),
    ] {
        let reason = review.escalates(name).with_context(|| name.to_owned())?;
        ensure!(reason.contains(says), "{name}: {reason}");
    }

    // Asked again after it was rejected, it is left to a person.
    let action = format!("connect:{}", review.address);
    let doing = place.session("r-again", &review.rule, &[&action, &action])?;
    doing.expect(0, &format!("error {}", libc::EPERM))?;
    let request = place.request()?;
    ensure!(
        request["review"] == "the same was rejected before",
        "{request}"
    );
    place.reject()?;
    doing.expect(1, &format!("error {}", libc::EPERM))?;
    doing.end()?;

    // What a managed rule holds is never shown to it.
    let listener = TcpListener::bind(MANAGED)?;
    let doing = place.session(
        "r-managed",
        &format!("[network]\nallow = ['{MANAGED}']\n"),
        &[&format!("connect:{MANAGED}")],
    )?;
    let request = place.request()?;
    ensure!(request["rule"]["layer"] == "managed", "{request}");
    doing.is_waiting(0)?;
    ensure!(place.request()?["review"].is_null(), "it was asked");
    place.approve(&[])?;
    doing.expect(0, "ok")?;
    doing.end()?;
    drop(listener);
    let step = place.step("r-managed", |step| step["step"] == "approved")?;
    ensure!(step["approval"]["by"]["kind"] == "user", "{step}");

    let now = place.metrics()?;
    let grown = |name: &str| now[name].as_u64().unwrap_or(0) - before[name].as_u64().unwrap_or(0);
    ensure!(grown("by_reviewer") == 4, "by_reviewer: {now}");
    ensure!(grown("escalated") == 10, "escalated: {now}");
    notified(place, &told, &posts)
}

/// Command and web hook have been told the same.
fn notified(place: &Place, told: &std::path::Path, posts: &mpsc::Receiver<Value>) -> Result<()> {
    let wanted = |event: &Value, step: &str| {
        event["kind"] == "approval"
            && event["session"]["name"] == "r-managed"
            && event["approval"]["step"] == step
    };
    for step in ["requested", "approved"] {
        eventually("the command is told", || {
            fs::read_to_string(told)
                .ok()?
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .any(|event| wanted(&event, step))
                .then_some(())
        })?;
    }
    let since = Instant::now();
    let mut missing = vec!["requested", "approved"];
    while !missing.is_empty() {
        let Ok(event) = posts.recv_timeout(Duration::from_secs(30)) else {
            bail!("the web hook is not told of {missing:?}");
        };
        missing.retain(|step| !wanted(&event, step));
        ensure!(since.elapsed() < PATIENCE, "{missing:?}");
    }
    let figures = place.metrics()?["notifications"].clone();
    ensure!(figures["sent"].as_u64() > Some(0), "{figures}");
    ensure!(
        figures["failed"] == 0 && figures["dropped"] == 0,
        "{figures}"
    );
    place.nothing_waits()
}
