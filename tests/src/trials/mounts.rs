//! What the host mounts while a session runs.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Place, actions, expect, steps};

/// It is closed to the session, also where the policy opens what is around it, until the policy is exchanged.
pub(super) fn made_by_the_host(place: &Place<'_>) -> Result<()> {
    let at = place.dir.join("in/late");
    fs::create_dir_all(&at)?;
    let file = at.join("a").to_string_lossy().into_owned();
    let act = place.stage.act.to_string_lossy();
    let policy = place.stage.root.join(format!("{}.toml", place.name));
    fs::write(
        &policy,
        format!(
            "[files]\nexec = ['{act}', '/usr', '/bin']\nwrite = ['{}', '/dev']\n",
            place.path("in")
        ),
    )?;
    let policy = policy.to_string_lossy();
    let wait = ["dash", "-c", "echo ready; exec $0 --script", &act];
    let script = steps(&[format!("open-read {file}"), format!("open-write {file}")]);
    for (in_session, is_exchanged, expected) in [
        (false, false, ["ok", "ok"]),
        (true, false, ["EACCES", "EACCES"]),
        (true, true, ["ok", "ok"]),
    ] {
        let run = ["run", "--policy", &policy, "--name", place.name, "--"];
        let command = if in_session {
            place.daemon.agentwatch.command(&[&run[..], &wait].concat())
        } else {
            let mut command = Command::new(wait[0]);
            command.args(&wait[1..]);
            command
        };
        let done = place.actor().perform_when(command, &script, "ready", || {
            mount_at(&at)?;
            fs::write(&file, "a")?;
            if is_exchanged {
                place
                    .daemon
                    .agentwatch
                    .output(&["reload", place.name, "--policy", &policy])?;
            }
            Ok(())
        });
        umount2(&at, MntFlags::MNT_DETACH)?;
        expect(&done?, &expected)
            .with_context(|| format!("in a session: {in_session}, exchanged: {is_exchanged}"))?;
        if in_session && !is_exchanged {
            let events = place.events(false)?;
            let told = actions(&events, "denied", &file);
            ensure!(told == 2, "{told} refusals of 2 are in the record");
        }
    }
    Ok(())
}

fn mount_at(at: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(none, at, Some("tmpfs"), MsFlags::empty(), none).context("mount a tmpfs")
}
