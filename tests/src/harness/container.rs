//! A container as runtimes make one: an overlay that the host mounts, and a process that stands in it before a session is attached.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;

use super::{
    agentwatch::{Agentwatch, said},
    run::{Actor, Stage},
};
use crate::act::{
    container::READY,
    script::{Done, Step},
};

/// The session that a container is to be held in.
pub struct Attached<'a> {
    pub agentwatch: &'a Agentwatch,
    pub name: &'a str,
    pub policy: &'a Path,
}

/// A container below a family's directory: `lower`, `upper` and `layer-work` are shown at `merged`, `volume` is bound.
pub struct Container<'a> {
    pub stage: &'a Stage,
    pub dir: &'a Path,
    pub uid: u32,
    pub seconds: u64,
}

impl Container<'_> {
    /// Mounts the root, lets the steps be done in it, and gives each step's result. Nothing of it stays but the mount, which the
    /// host sees.
    pub fn perform(&self, steps: &[Step], session: Option<&Attached<'_>>) -> Result<Vec<Done>> {
        self.mount().context("mount the container's root")?;
        let cgroup = Cgroup::make(&format!("container-{}", self.uid))?;
        let mut command = Command::new(&self.stage.act);
        command
            .arg("--container")
            .args([
                &cgroup.0,
                &self.dir.join("merged"),
                &self.dir.join("volume"),
                self.dir,
            ])
            .arg(self.uid.to_string());
        let actor = Actor {
            dir: self.dir,
            home: self.dir,
            uid: 0,
            seconds: self.seconds,
        };
        let done = actor.perform_when(command, steps, READY, || {
            let Some(session) = session else {
                return Ok(());
            };
            let mut command = session
                .agentwatch
                .command(&["attach", "--name", session.name]);
            command.arg("--cgroup").arg(&cgroup.0);
            command.arg("--policy").arg(session.policy);
            let output = command.output().context("run `agentwatch attach`")?;
            ensure!(output.status.success(), "attach: {}", said(&output));
            Ok(())
        });
        if let Some(session) = session {
            session.agentwatch.output(&["detach", session.name])?;
        }
        done
    }

    fn mount(&self) -> Result<()> {
        for name in ["upper", "layer-work", "merged"] {
            let path = self.dir.join(name);
            fs::create_dir_all(&path)?;
            chown(&path, Some(self.uid), Some(self.uid))?;
        }
        let at = |name: &str| self.dir.join(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            at("lower"),
            at("upper"),
            at("layer-work")
        );
        let (kind, merged) = (Some("overlay"), self.dir.join("merged"));
        nix::mount::mount(kind, &merged, kind, MsFlags::empty(), Some(&*options))?;
        Ok(())
    }
}

/// A cgroup that goes with this value.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(name: &str) -> Result<Cgroup> {
        let path = Path::new("/sys/fs/cgroup").join(name);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Cgroup(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
