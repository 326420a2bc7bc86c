//! Proves coverage: puts a canary into a session that may do nothing, and hears what was not refused.

use std::{
    fs,
    io::{IoSlice, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};

use super::Engine;
use crate::{
    kernel::load::Backend,
    policy::{self, model},
    session::{canary, cgroup},
};

/// How long a proof holds.
pub(super) const FRESH: Duration = Duration::from_secs(60);
/// How long the canary may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was found when it was last tried.
#[derive(Default)]
pub struct Proof {
    pub at: Option<Instant>,
    /// What is not refused, a sentence each; empty where everything is.
    pub failures: Vec<String>,
}

impl Engine {
    /// Proves coverage, if the last proof is old.
    pub(super) fn prove(&mut self) {
        if self.proof.at.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        let failures = match self.try_everything() {
            Ok(failures) => failures,
            Err(error) => vec![format!("coverage is not proven: {error:#}")],
        };
        for failure in &failures {
            tracing::error!("{failure}");
        }
        if failures.is_empty() {
            tracing::debug!("the canary was refused everything");
        }
        self.proof = Proof {
            at: Some(Instant::now()),
            failures,
        };
    }

    fn try_everything(&mut self) -> Result<Vec<String>> {
        let dir = self.canary.clone();
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join(canary::DIRECTORY))
            .with_context(|| format!("make {}", dir.display()))?;
        fs::write(dir.join(canary::FILE), "canary\n").context("make the canary's file")?;
        let socket = listen(&dir)?;
        let number = self.next_number()?;
        let context = model::Context {
            cwd: "/".into(),
            home: "/".into(),
            tmp: "/tmp".into(),
            uid: 0,
        };
        let nothing = policy::load("canary", b"", &context)
            .map_err(|error| anyhow::anyhow!("the empty policy: {error}"))?;
        let bound = self
            .kernel
            .insert_policy(number, number, &nothing, Arc::default())?;
        let path = cgroup::create(
            &self.kernel.cgroup_root,
            &format!("canary-{}-{number}", std::process::id()),
        );
        let heard = path
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))
            .and_then(|path| {
                self.kernel.maps.open_session(number, number, 0)?;
                self.kernel.maps.insert_cgroup(cgroup::id(path)?, number)?;
                hear(path, &dir, self.kernel.file_backend == Backend::BpfLsm)
            });
        let closed = self.kernel.maps.close_session(number);
        self.kernel.maps.remove_cgroups(number);
        self.kernel.maps.remove_policy(&bound);
        self.kernel.maps.remove_folds(number);
        if let Ok(path) = path {
            cgroup::remove(&path);
        }
        drop(socket);
        let _ = fs::remove_dir_all(&dir);
        closed.and(heard)
    }
}

/// The socket that the canary is to be kept from. Its path may be too long for an address, so it is bound by another name.
fn listen(dir: &Path) -> Result<UnixListener> {
    let handle = fs::File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    let path = format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), canary::SOCKET);
    UnixListener::bind(path).context("listen for the canary")
}

/// Starts the canary, moves it into the cgroup, and hears what it met.
fn hear(cgroup: &Path, dir: &Path, all: bool) -> Result<Vec<String>> {
    let program = std::env::current_exe().context("find our own executable")?;
    let mut command = Command::new(program);
    command.arg("canary").arg(dir);
    if all {
        command.arg("--all");
    }
    let (ours, theirs) = UnixStream::pair().context("make the canary's input")?;
    let mut child = command
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("start the canary")?;
    let heard = (|| {
        let mut output = child.stdout.take().context("the canary's output")?;
        let deadline = Instant::now() + PATIENCE;
        let mut text = String::new();
        until(&mut output, &mut text, canary::READY, deadline)?;
        cgroup::enter(cgroup, child.id())?;
        tell(&ours, dir).context("let the canary begin")?;
        until(&mut output, &mut text, canary::END, deadline)?;
        Ok(text
            .lines()
            .filter(|line| *line != canary::READY.trim() && *line != canary::END.trim())
            .map(|line| format!("the canary was not refused by {line}"))
            .collect())
    })();
    let _ = child.kill();
    let _ = child.wait();
    heard
}

/// Gives the word to begin, and with it a descriptor that the canary is to be kept from.
fn tell(canary: &UnixStream, dir: &Path) -> Result<()> {
    let file = fs::File::open(dir.join(canary::FILE)).context("open the canary's file")?;
    let descriptors = [file.as_raw_fd()];
    sendmsg::<()>(
        canary.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Hears what the canary says up to a word.
fn until(output: &mut ChildStdout, text: &mut String, word: &str, deadline: Instant) -> Result<()> {
    while !text.ends_with(word) {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the canary did not come to an end");
        let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut ready, timeout).context("wait for the canary")?;
        let mut bytes = [0; 4096];
        let len = output.read(&mut bytes).context("hear the canary")?;
        ensure!(len > 0, "the canary ended before it had tried everything");
        text.push_str(&String::from_utf8_lossy(&bytes[..len]));
    }
    Ok(())
}
