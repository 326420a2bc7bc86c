//! The administrator's floor under BPF LSM.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Place, expect, field, steps};
use crate::harness::agentwatch::Daemon;

/// What the floor denies stays denied although the session's policy names that very file and that very port. Under a daemon without
/// that floor the same policy allows both.
pub(super) fn holds(place: &Place<'_>) -> Result<()> {
    let (kept, free) = (place.path("in/kept"), place.path("in/free"));
    let secret = format!("{kept}/secret");
    fs::create_dir(&kept)?;
    fs::write(&secret, "secret")?;
    let (closed, open) = (
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    );
    let (closed_port, open_port) = (closed.local_addr()?.port(), open.local_addr()?.port());
    let policy = place.policy(&format!(
        "read = ['{secret}']\n[network]\nallow = ['127.0.0.1:{closed_port}', '127.0.0.1:{open_port}']\n"
    ))?;
    let script = steps(&[
        format!("open-read {secret}"),
        format!("creat {kept}/new"),
        format!("creat {free}"),
        format!("connect-tcp 127.0.0.1 {closed_port}"),
        format!("connect-tcp 127.0.0.1 {open_port}"),
    ]);
    expect(&place.actor().perform(place.unheld(), &script)?, &["ok"; 5])
        .context("without agentwatch")?;
    let without = place.actor().perform(place.held(&policy), &script)?;
    expect(&without, &["ok"; 5]).context("without the floor")?;
    place.events(false)?;

    let root = place.dir.join("daemon");
    let managed = root.join("managed.d");
    fs::create_dir_all(&managed)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    let floor = managed.join("10-floor.toml");
    fs::write(
        &floor,
        format!("[files]\ndeny = ['{kept}']\n[network]\ndeny = ['127.0.0.1:{closed_port}']\n"),
    )?;
    // Others than root may not write it.
    fs::set_permissions(&floor, fs::Permissions::from_mode(0o644))?;
    let config = root.join("daemon.toml");
    fs::write(&config, format!("managed_dir = '{}'\n", managed.display()))?;
    let arguments = vec!["--config".to_owned(), config.display().to_string()];
    let daemon = Daemon::start_with(&place.daemon.agentwatch.binary, &root, arguments)?;
    let place = Place {
        name: place.name,
        dir: place.dir.clone(),
        daemon: &daemon,
        stage: place.stage,
    };
    let within = place.actor().perform(place.held(&policy), &script)?;
    expect(&within, &["EACCES", "EACCES", "ok", "EPERM", "ok"])?;
    let events = place.events(false)?;
    let denied = |what: &str, is: &dyn Fn(&Value) -> bool| -> Result<()> {
        let event = events
            .iter()
            .find(|event| field(event, "/verdict") == "denied" && is(event))
            .with_context(|| format!("no event tells that {what} was refused"))?;
        let source = format!("{}:", floor.display());
        ensure!(
            field(event, "/rule/layer") == "managed"
                && field(event, "/rule/source").starts_with(&source),
            "{what} was refused by another rule than the floor's: {event}"
        );
        Ok(())
    };
    denied("the file", &|event| field(event, "/file/path") == secret)?;
    denied("the new file", &|event| {
        field(event, "/file/path") == format!("{kept}/new")
    })?;
    denied("the connect", &|event| {
        event.pointer("/net/port") == Some(&closed_port.into())
    })
}
