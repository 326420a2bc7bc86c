//! What the host mounts: before a session begins, and while it runs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{Place, actions, expect, field, steps};

const NONE: Option<&str> = None;

/// A part of what is outside that the host shows inside the scope stays outside, and a part of the scope that it shows elsewhere stays in
/// it, but for what a rule denies there. A file system that it mounts in the scope while the session runs is closed at first, and holds what the policy says there once the
/// daemon has seen it, also what is denied below; when it is gone, the next one with its number holds nothing of that.
pub(super) fn made_by_the_host(place: &Place<'_>) -> Result<()> {
    let host = Host {
        late: place.dir.join("in/late"),
        elsewhere: place.dir.join("out/late"),
        place,
    };
    for dir in [
        "in/late",
        "in/part",
        "in/kept",
        "in/shown",
        "in/closed/part",
        "in/tmp",
        "out/late",
        "out/part",
        "out/kept",
    ] {
        fs::create_dir_all(place.dir.join(dir))?;
    }
    for file in ["out/part/a", "in/kept/a", "in/shown/a"] {
        fs::write(place.dir.join(file), file)?;
    }
    let (secret, closed) = (host.secret(), place.path("in/closed"));
    let policy = place.policy(&format!("deny = ['{}', '{closed}']\n", secret.display()))?;
    let acts = [
        ("open-read in/part/a", "EACCES"),
        ("open-rdwr out/kept/a", "ok"),
        ("open-rdwr in/kept/a", "ok"),
        ("open-read in/closed/part/a", "EACCES"),
        ("open-read in/shown/a", "EACCES"),
        ("write-text in/tmp/begun x", "ok"),
        ("await in/tmp/mounted", "ok"),
        ("open-read in/late/a", "EACCES"),
        ("open-write in/late/a", "EACCES"),
        ("write-text in/tmp/tried x", "ok"),
        ("await in/tmp/seen", "ok"),
        ("open-read in/late/a", "ok"),
        ("open-write in/late/a", "ok"),
        ("creat in/late/new", "ok"),
        ("open-read in/late/secret/a", "EACCES"),
        ("rename in/late/secret in/late/moved", "EACCES"),
        ("write-text in/tmp/used x", "ok"),
        ("await in/tmp/replaced", "ok"),
        ("open-read out/late/a", "EACCES"),
        ("open-write out/late/a", "EACCES"),
        ("write-text in/tmp/end x", "ok"),
    ];
    let script = steps(&acts.map(|(act, _)| {
        let words: Vec<String> = act
            .split(' ')
            .map(|word| match word.split_once('/') {
                Some(_) => place.path(word),
                None => word.to_owned(),
            })
            .collect();
        words.join(" ")
    }));
    let bound = [
        ("out/part", "in/part"),
        ("in/kept", "out/kept"),
        ("in/shown", "in/closed/part"),
    ];
    for (from, to) in bound {
        let (from, to) = (place.dir.join(from), place.dir.join(to));
        mount(Some(&from), &to, NONE, MsFlags::MS_BIND, NONE).context("bind")?;
    }
    let tried = [false, true]
        .into_iter()
        .try_for_each(|in_session| -> Result<()> {
            fs::remove_dir_all(place.dir.join("in/tmp"))?;
            fs::create_dir(place.dir.join("in/tmp"))?;
            let command = if in_session {
                place.held(&policy)
            } else {
                place.unheld()
            };
            let over = AtomicBool::new(false);
            let (done, mounted) = thread::scope(|scope| {
                let mounting = scope.spawn(|| host.mounts(in_session, &over));
                let done = place.actor().perform(command, &script);
                over.store(true, Ordering::SeqCst);
                (done, mounting.join())
            });
            for dir in [&host.late, &host.elsewhere] {
                let _ = umount2(dir, MntFlags::MNT_DETACH);
            }
            let expected = if in_session {
                acts.map(|(_, outcome)| outcome)
            } else {
                ["ok"; 21]
            };
            let told = format!("in a session: {in_session}");
            expect(&done?, &expected).with_context(|| told.clone())?;
            mounted
                .map_err(|_| anyhow::anyhow!("the host's part panicked"))?
                .context(told)
        });
    for (_, to) in bound {
        umount2(&place.dir.join(to), MntFlags::MNT_DETACH)?;
    }
    tried?;
    let events = place.events(false)?;
    for (path, times) in [
        (host.late.join("a"), 2),
        (secret.join("a"), 1),
        (place.dir.join("in/shown/a"), 2),
        (place.dir.join("out/part/a"), 1),
    ] {
        let told = actions(&events, "denied", &path.to_string_lossy());
        ensure!(
            told == times,
            "{told} refusals of {times} at {} are in the record",
            path.display()
        );
    }
    Ok(())
}

/// What happens on the host meanwhile.
struct Host<'a> {
    place: &'a Place<'a>,
    late: PathBuf,
    elsewhere: PathBuf,
}

impl Host<'_> {
    fn secret(&self) -> PathBuf {
        self.late.join("secret")
    }

    fn mounts(&self, in_session: bool, over: &AtomicBool) -> Result<()> {
        let daemon = Pid::from_raw(self.place.daemon.pid().cast_signed());
        let stand_still = |signal| match in_session {
            true => kill(daemon, signal),
            false => Ok(()),
        };
        let mark = |name: &str| fs::write(self.place.dir.join("in/tmp").join(name), "x");
        self.wait("begun", over)?;
        // It is not to see the mount yet.
        stand_still(Signal::SIGSTOP)?;
        let told = (|| -> Result<()> {
            fill(&self.late)?;
            mark("mounted")?;
            self.wait("tried", over)
        })();
        stand_still(Signal::SIGCONT)?;
        told?;
        if in_session {
            self.wait_for_event(over, |event| {
                field(event, "/lifecycle/state") == "mounts_changed"
                    && field(event, "/lifecycle/mounted/0") == self.late.to_string_lossy()
            })?;
        }
        mark("seen")?;
        self.wait("used", over)?;
        if in_session {
            // It is named by a mount that is there.
            let secret = self.secret().join("a");
            self.wait_for_event(over, |event| {
                field(event, "/file/path") == secret.to_string_lossy()
            })?;
        }
        stand_still(Signal::SIGSTOP)?;
        let told = (|| -> Result<()> {
            let device = device(&self.late)?;
            umount2(&self.late, MntFlags::empty()).context("unmount")?;
            fill(&self.elsewhere)?;
            ensure!(
                device == self::device(&self.elsewhere)?,
                "the device's number was not used again"
            );
            mark("replaced")?;
            self.wait("end", over)
        })();
        stand_still(Signal::SIGCONT)?;
        told
    }

    fn wait(&self, name: &str, over: &AtomicBool) -> Result<()> {
        let file = self.place.dir.join("in/tmp").join(name);
        while !file.exists() {
            ensure!(
                !over.load(Ordering::SeqCst),
                "{name} was not come to in the session"
            );
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until such an event is in the record.
    fn wait_for_event(&self, over: &AtomicBool, is: impl Fn(&Value) -> bool) -> Result<()> {
        let begin = Instant::now();
        while !over.load(Ordering::SeqCst) && begin.elapsed() < Duration::from_secs(100) {
            let events = self.place.daemon.agentwatch.events(self.place.name);
            if events.unwrap_or_default().iter().any(&is) {
                return Ok(());
            }
            sleep(Duration::from_millis(100));
        }
        bail!("the record has no such event")
    }
}

/// Mounts a file system with files in it.
fn fill(dir: &Path) -> Result<()> {
    mount(NONE, dir, Some("tmpfs"), MsFlags::empty(), NONE).context("mount a tmpfs")?;
    fs::create_dir(dir.join("secret"))?;
    fs::write(dir.join("secret/a"), "a")?;
    Ok(fs::write(dir.join("a"), "a")?)
}

fn device(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata(dir)?.dev())
}
