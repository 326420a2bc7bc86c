//! Another daemon, which has an administrator's floor, on a kernel that has switched its kprobes off. Loading its programs takes most of
//! the time, so it has both.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use super::{Place, expect, field, steps};
use crate::{
    act::script::Step,
    harness::{agentwatch::Daemon, capability::Doctor},
};

pub(super) fn daemon(place: &Place<'_>) -> Result<()> {
    let floor = Floor::lay(place)?;
    let debugfs = Path::new("/sys/kernel/debug");
    let none = None::<&str>;
    mount(none, debugfs, Some("debugfs"), MsFlags::empty(), none).context("mount debugfs")?;
    let switch = debugfs.join("kprobes/enabled");
    fs::write(&switch, "0").context("switch kprobes off")?;
    let tried = floor.start(place).and_then(|daemon| {
        let place = Place {
            name: place.name,
            dir: place.dir.clone(),
            daemon: &daemon,
            stage: place.stage,
        };
        floor.holds(&place)?;
        failed_opens(&place)
    });
    fs::write(&switch, "1").context("switch kprobes on again")?;
    umount2(debugfs, MntFlags::MNT_DETACH)?;
    tried
}

/// What the floor denies stays denied although the session's policy names that very file and that very port. Under a daemon without
/// that floor the same policy allows both.
struct Floor {
    file: String,
    policy: std::path::PathBuf,
    script: Vec<Step>,
    kept: String,
    secret: String,
    closed: TcpListener,
    /// Is connected to.
    _open: TcpListener,
}

impl Floor {
    /// Shows that all of it works without the floor.
    fn lay(place: &Place<'_>) -> Result<Self> {
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
        Ok(Self {
            file: place.path("daemon/managed.d/10-floor.toml"),
            policy,
            script,
            kept,
            secret,
            closed,
            _open: open,
        })
    }

    fn start(&self, place: &Place<'_>) -> Result<Daemon> {
        let root = place.dir.join("daemon");
        let managed = root.join("managed.d");
        fs::create_dir_all(&managed)?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
        let port = self.closed.local_addr()?.port();
        fs::write(
            &self.file,
            format!(
                "[files]\ndeny = ['{}']\n[network]\ndeny = ['127.0.0.1:{port}']\n",
                self.kept
            ),
        )?;
        // Others than root may not write it.
        fs::set_permissions(&self.file, fs::Permissions::from_mode(0o644))?;
        let config = root.join("daemon.toml");
        fs::write(&config, format!("managed_dir = '{}'\n", managed.display()))?;
        let arguments = vec!["--config".to_owned(), config.display().to_string()];
        Daemon::start_with(&place.daemon.agentwatch.binary, &root, arguments)
    }

    fn holds(&self, place: &Place<'_>) -> Result<()> {
        let within = place
            .actor()
            .perform(place.held(&self.policy), &self.script)?;
        expect(&within, &["EACCES", "EACCES", "ok", "EPERM", "ok"])?;
        let events = place.events(false)?;
        let denied = |what: &str, is: &dyn Fn(&Value) -> bool| -> Result<()> {
            let event = events
                .iter()
                .find(|event| field(event, "/verdict") == "denied" && is(event))
                .with_context(|| format!("no event tells that {what} was refused"))?;
            ensure!(
                field(event, "/rule/layer") == "managed"
                    && field(event, "/rule/source").starts_with(&format!("{}:", self.file)),
                "{what} was refused by another rule than the floor's: {event}"
            );
            Ok(())
        };
        let port = self.closed.local_addr()?.port();
        denied("the file", &|event| {
            field(event, "/file/path") == self.secret
        })?;
        denied("the new file", &|event| {
            field(event, "/file/path") == format!("{}/new", self.kept)
        })?;
        denied("the connect", &|event| {
            event.pointer("/net/port") == Some(&port.into())
        })
    }
}

/// Where nothing can be attached to what only failed opens pass, all opens are looked at, and the record is the same.
fn failed_opens(place: &Place<'_>) -> Result<()> {
    let doctor = Doctor::ask(&place.daemon.agentwatch)?;
    let check = doctor
        .checks
        .iter()
        .find(|check| check.name == "failed-opens");
    let detail = check.map_or("nothing", |check| check.detail.as_str());
    println!("  {detail}");
    ensure!(
        detail.starts_with("looked at where any open of the host ends"),
        "doctor says of failed opens: {detail}"
    );
    let place = Place {
        name: "failed_opens",
        dir: place.dir.clone(),
        daemon: place.daemon,
        stage: place.stage,
    };
    let policy = place.policy("")?;
    let missing = ["open", "openat2", "io_uring"].map(|way| place.path(&format!("in/by-{way}")));
    let script = steps(&[
        format!("open-by-open {}", missing[0]),
        format!("openat2 {}", missing[1]),
        format!("io_uring-openat {}", missing[2]),
    ]);
    expect(
        &place.actor().perform(place.held(&policy), &script)?,
        &["ENOENT"; 3],
    )?;
    let events = place.events(false)?;
    for path in &missing {
        let told = events
            .iter()
            .any(|event| field(event, "/file/path") == path && event["errno"] == libc::ENOENT);
        ensure!(told, "{path} is in no event");
    }
    Ok(())
}
