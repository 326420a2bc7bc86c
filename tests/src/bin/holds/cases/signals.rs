//! Signals to what waits: those that end it, those that it has a handler for, and timers. Whatever comes, nothing has happened before
//! somebody approved.

use std::{fs, net::TcpListener, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::actions::{copy_of_echo, server};
use crate::place::{Place, eventually};

fn pid_of(request: &Value) -> Result<Pid> {
    let pid = request["process"]["pid"].as_i64().context("a process")?;
    Ok(Pid::from_raw(pid.try_into()?))
}

fn nobody_came(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    ensure!(listener.accept().is_err(), "it connected");
    Ok(())
}

/// A child waits, has a signal, and ends by it; its request closes by itself.
fn ends(place: &Place, name: &str, rule: &str, command: &str, signal: Signal) -> Result<()> {
    let doing = place.session(name, rule, &[command])?;
    kill(pid_of(&place.request()?)?, signal)?;
    doing
        .expect(0, "killed")
        .with_context(|| format!("by {signal}"))?;
    doing.end()?;
    place.step(name, |step| step["step"] == "withdrawn")?;
    place.nothing_waits()
}

const ENDING: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGALRM,
    Signal::SIGKILL,
];

pub(crate) fn ends_a_connect(place: &Place) -> Result<()> {
    let (listener, address, rule) = server()?;
    let command = format!("exec:{} do /dev/null connect:{address}", place.own()?);
    for signal in ENDING {
        ends(
            place,
            &format!("connect-{signal}").to_lowercase(),
            &rule,
            &command,
            signal,
        )?;
    }
    nobody_came(&listener)
}

pub(crate) fn ends_a_command(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "ended")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    for signal in ENDING {
        ends(
            place,
            &format!("command-{signal}").to_lowercase(),
            &rule,
            &format!("exec:{program} x"),
            signal,
        )?;
    }
    Ok(())
}

pub(crate) fn ends_an_open(place: &Place) -> Result<()> {
    let file = place.work().join("made");
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    let command = format!(
        "exec:{} do /dev/null create:{}",
        place.own()?,
        file.display()
    );
    for signal in ENDING {
        ends(
            place,
            &format!("open-{signal}").to_lowercase(),
            &rule,
            &command,
            signal,
        )?;
    }
    ensure!(!file.exists(), "the file was made");
    Ok(())
}

/// A process with a handler waits: the handler runs meanwhile, and the call waits on; after approval it succeeds as if there had been
/// no signal.
fn hears(place: &Place, name: &str, rule: &str, prepare: &str, action: &str) -> Result<()> {
    let heard = place.work().join(format!("{name}.heard"));
    let prepare = format!("{prepare}:{}", heard.display());
    let doing = place.session(name, rule, &[&prepare, action])?;
    let request = place.request()?;
    doing.expect(0, "ok")?;
    let how_often = || fs::metadata(&heard).map_or(0, |file| file.len());
    for times in 1..=3 {
        if !prepare.starts_with("timer") {
            kill(pid_of(&request)?, Signal::SIGUSR1)?;
        }
        eventually("the handler runs", || (how_often() >= times).then_some(()))?;
        doing.is_waiting(1)?;
    }
    ensure!(
        place.request()?["id"] == request["id"],
        "it is another request now"
    );
    place.approve(&[])?;
    doing.expect(1, "ok")?;
    doing.end()?;
    let events = place.agentwatch.events(name)?;
    ensure!(
        !events
            .iter()
            .any(|event| event["approval"]["finding"] == "bypass_attempt"),
        "a signal was taken for an attempt to get by"
    );
    place.nothing_waits()
}

/// With and without SA_RESTART, and a timer that goes on ringing.
const PREPARATIONS: [(&str, &str); 3] = [
    ("restart", "catch-restart"),
    ("interrupt", "catch"),
    ("timer", "timer"),
];

pub(crate) fn heard_in_a_connect(place: &Place) -> Result<()> {
    let (listener, address, rule) = server()?;
    for (name, prepare) in PREPARATIONS {
        let name = format!("connect-{name}");
        hears(place, &name, &rule, prepare, &format!("connect:{address}"))?;
    }
    for _ in PREPARATIONS {
        listener.accept()?;
    }
    nobody_came(&listener)
}

pub(crate) fn heard_in_an_open(place: &Place) -> Result<()> {
    for (name, prepare) in PREPARATIONS {
        let name = format!("open-{name}");
        let file = place.work().join(&name);
        let rule = format!("[files]\napprove = ['{}']\n", file.display());
        hears(
            place,
            &name,
            &rule,
            prepare,
            &format!("create:{}", file.display()),
        )?;
        ensure!(file.exists(), "the file was not made");
    }
    Ok(())
}

/// What is ignored or blocked changes nothing.
pub(crate) fn ignored(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let doing = place.session("ignored", &rule, &["ignore", &format!("connect:{address}")])?;
    let request = place.request()?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        kill(pid_of(&request)?, signal)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    doing.is_waiting(1)?;
    ensure!(
        place.request()?["tries"] == 0,
        "it was told to go on by what it does not hear"
    );
    place.approve(&[])?;
    doing.expect(1, "ok")?;
    doing.end()
}
