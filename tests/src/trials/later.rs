//! Races for a path that is denied before it exists.

use std::{
    fs, io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::{Place, expect, field, steps};

/// Less than a step may take.
const RACE: Duration = Duration::from_secs(5);

/// Others make the file and take it away: by making it, by a rename of the file, and by a rename of its directory.
pub(super) fn made_by_others(place: &Place<'_>) -> Result<()> {
    let (secret, out) = (place.dir.join("in/secret"), place.dir.join("out"));
    fs::create_dir(&out)?;
    let mut turn = 0_u32;
    race(place, None, || {
        turn = turn.wrapping_add(1);
        match turn % 3 {
            0 => {
                fs::create_dir(&secret)?;
                fs::write(secret.join("key"), "key")?;
            }
            1 => {
                fs::create_dir(&secret)?;
                fs::write(out.join("key"), "key")?;
                fs::rename(out.join("key"), secret.join("key"))?;
            }
            _ => {
                fs::create_dir(out.join("secret"))?;
                fs::write(out.join("secret/key"), "key")?;
                fs::rename(out.join("secret"), &secret)?;
            }
        }
        take_away(&secret)
    })
}

/// The session makes it, as far as it may: a directory with such a file in it is renamed to where the rule waits for it. To take that
/// away it needs others.
pub(super) fn made_by_the_session(place: &Place<'_>) -> Result<()> {
    let secret = place.dir.join("in/secret");
    race(place, Some(place.path("in/made")), || {
        if secret.exists() {
            take_away(&secret)?;
        }
        Ok(())
    })
}

/// Lets those who wait for the file open it, and takes it away with its directory.
fn take_away(dir: &Path) -> io::Result<()> {
    sleep(Duration::from_micros(300));
    fs::remove_file(dir.join("key"))?;
    fs::remove_dir(dir)
}

/// The actor opens what `turn`, called again and again, makes and takes away: without agentwatch each time, in a session never.
fn race(
    place: &Place<'_>,
    made: Option<String>,
    mut turn: impl FnMut() -> io::Result<()> + Send,
) -> Result<()> {
    let (secret, key) = (place.path("in/secret"), place.path("in/secret/key"));
    let policy = place.policy(&format!("deny = ['{key}']\n"))?;
    let (made, begun) = (made.unwrap_or_default(), place.path("in/begun"));
    let script = steps(&[
        format!("write-text {begun} x"),
        format!("race-made {} {secret} key {made}", RACE.as_millis()),
    ]);
    for (command, outcome) in [(place.unheld(), "ok"), (place.held(&policy), "EACCES")] {
        let done = AtomicBool::new(false);
        let results = std::thread::scope(|scope| {
            let maker = scope.spawn(|| -> io::Result<()> {
                while !done.load(Ordering::SeqCst) {
                    // When the session begins, there is nothing yet.
                    if Path::new(&begun).exists() {
                        turn()?;
                    }
                    sleep(Duration::from_micros(100));
                }
                Ok(())
            });
            let results = place.actor().perform(command, &script);
            done.store(true, Ordering::SeqCst);
            match maker.join() {
                Ok(made) => made?,
                Err(_) => bail!("the thread that makes the file panicked"),
            }
            results
        })?;
        expect(&results, &["ok", outcome])?;
        fs::remove_file(&begun)?;
        for left in [&secret, &made] {
            if Path::new(left).exists() {
                fs::remove_dir_all(left)?;
            }
        }
    }
    // Each time it is another file, so there is an event for each.
    let events = place.events(true)?;
    let is_open = |event: &Value, verdict: &str| {
        field(event, "/kind") == "open"
            && field(event, "/verdict") == verdict
            && field(event, "/file/path") == key
    };
    let refused = events
        .iter()
        .filter(|event| is_open(event, "denied") && field(event, "/rule/id") == "files.deny[0]");
    let refused = refused.count();
    ensure!(refused > 0, "no refusal is in the record");
    // One that found nothing is told too.
    let wrong = events
        .iter()
        .find(|event| is_open(event, "allowed") && event["errno"].is_null());
    ensure!(wrong.is_none(), "told as allowed: {wrong:?}");
    println!("  {refused} refusals are in the record");
    Ok(())
}
