//! What stands outside the session for its cases to act upon: a process, perhaps in a session of its own, and a cgroup.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::harness::{
    agentwatch::Agentwatch,
    run::{self, Stage},
    scenario::Values,
};

/// A process outside the session: see `act::outside`.
pub(super) struct Outside {
    child: Child,
}

/// The session that the process outside is in.
pub(super) struct Neighbour<'a> {
    pub(super) agentwatch: &'a Agentwatch,
    pub(super) policy: PathBuf,
}

impl Outside {
    pub(super) fn start(
        stage: &Stage,
        dir: &Path,
        uid: u32,
        neighbour: Option<&Neighbour>,
        values: &mut Values,
    ) -> Result<Outside> {
        let mut command = match neighbour {
            None => Command::new(&stage.act),
            Some(neighbour) => {
                let mut command = neighbour.agentwatch.command(&["run", "--policy"]);
                command.arg(&neighbour.policy).arg("--").arg(&stage.act);
                command
            }
        };
        command
            .arg(if neighbour.is_some() {
                "--neighbour"
            } else {
                "--outside"
            })
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        run::become_user(&mut command, uid);
        let mut child = command.spawn().context("start the process outside")?;
        let output = child.stdout.take().context("standard output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let outside = Outside { child };
        let told: BTreeMap<String, String> =
            serde_json::from_str(&line).context("what the process outside says")?;
        values.extend(told);
        Ok(outside)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It ends with its input, and takes away what it made.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A cgroup beside the session's.
pub(super) struct OutsideCgroup {
    pub(super) path: String,
}

impl OutsideCgroup {
    pub(super) fn make(name: Option<&String>) -> Result<OutsideCgroup> {
        let Some(name) = name else {
            return Ok(OutsideCgroup {
                path: String::new(),
            });
        };
        let path = format!("/sys/fs/cgroup/outside-{name}");
        fs::create_dir_all(&path).with_context(|| format!("make {path}"))?;
        Ok(OutsideCgroup { path })
    }

    /// Takes away what a case has made in it.
    pub(super) fn clear(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            // Only directories are removed so: the files of a cgroup are its own.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

impl Drop for OutsideCgroup {
    fn drop(&mut self) {
        self.clear();
        if !self.path.is_empty() {
            let _ = fs::remove_dir(&self.path);
        }
    }
}
