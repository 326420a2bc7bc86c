//! Commands of the administrator that the daemon starts: the reviewer, and what is told of approvals.
//!
//! They see what an agent wrote, so they are not root unless the configuration says so by name. Each is a process group of its own,
//! gets JSON on standard input, and is killed with its group when its time is over or its answer is too long. What it says on
//! standard error goes to the log.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, User},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

/// The longest answer, in bytes.
pub const ANSWER: usize = 64 << 10;
/// What is kept of its standard error, in bytes.
const COMPLAINT: usize = 4 << 10;
/// Who it is where nobody is named: a number that Debian assigns to nobody (policy 9.2.2), and that no other part of us has.
const UNASSIGNED: u32 = 61_112;
/// The longest time that a command may be given.
const LONGEST: Duration = Duration::from_secs(3600);

pub struct Hook {
    program: String,
    arguments: Vec<String>,
    uid: u32,
    gid: u32,
    home: String,
    deadline: Duration,
    /// What it is told beside its arguments, which everybody may read.
    variables: Vec<(&'static str, String)>,
}

impl Hook {
    /// # Errors
    /// Where the command has no absolute path, the user is not known, or the time makes no sense. `key` names the place in the
    /// configuration.
    pub fn new(
        key: &str,
        command: &[String],
        user: Option<&str>,
        deadline: jiff::SignedDuration,
    ) -> Result<Self> {
        let Some((program, arguments)) = command.split_first() else {
            bail!("{key}.command is empty; hint: name a program and its arguments");
        };
        ensure!(
            Path::new(program).is_absolute(),
            "{key}.command: {program:?} is no absolute path; hint: the daemon looks programs up nowhere"
        );
        let deadline = Duration::try_from(deadline)
            .ok()
            .filter(|time| (Duration::from_millis(100)..=LONGEST).contains(time))
            .with_context(|| {
                format!("{key}.deadline is to be from 100ms to 1h, such as \"30s\"")
            })?;
        let (uid, gid, home) = match user {
            None => (UNASSIGNED, UNASSIGNED, "/".to_owned()),
            Some(name) => {
                let user = User::from_name(name)
                    .with_context(|| format!("look up {name:?} of {key}.user"))?
                    .with_context(|| {
                        format!(
                            "{key}.user: there is no user {name:?}; hint: adduser --system {name}"
                        )
                    })?;
                (
                    user.uid.as_raw(),
                    user.gid.as_raw(),
                    user.dir.display().to_string(),
                )
            }
        };
        Ok(Self {
            program: program.clone(),
            arguments: arguments.to_vec(),
            uid,
            gid,
            home,
            deadline,
            variables: Vec::new(),
        })
    }

    /// With a variable in its environment.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// What it is called in events and in the log.
    pub fn name(&self) -> &str {
        &self.program
    }

    /// Starts it, gives it the input, and takes what it says until it ends.
    ///
    /// # Errors
    /// Where it does not start, fails, says more than [`ANSWER`] bytes, or is not done in time or before the daemon stops; it and its
    /// process group are killed then.
    pub async fn run(&self, input: &[u8], stopped: &mut watch::Receiver<bool>) -> Result<Vec<u8>> {
        ensure!(!*stopped.borrow(), "the daemon stops");
        let mut child = self
            .spawn()
            .with_context(|| format!("start {}", self.name()))?;
        let outcome = tokio::select! {
            outcome = timeout(self.deadline, converse(&mut child, input)) => outcome
                .unwrap_or_else(|_| Err(anyhow::anyhow!("it was not done within {:?}", self.deadline))),
            _ = stopped.changed() => Err(anyhow::anyhow!("the daemon stops")),
        };
        if outcome.is_err() {
            // It has not been waited for, so that the number is still its own.
            if let Some(pid) = child.id() {
                let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            let _ = child.wait().await;
        }
        outcome.with_context(|| self.name().to_owned())
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.home)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if self.uid != 0 {
            // This also lets go of all further groups.
            command.uid(self.uid).gid(self.gid);
        }
        command.spawn()
    }
}

async fn converse(child: &mut Child, input: &[u8]) -> Result<Vec<u8>> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async {
        if let Some(mut stdin) = stdin
            && let Err(error) = stdin.write_all(input).await
            // One that knows enough need not read on.
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            return Err(error).context("write to it");
        }
        Ok(())
    };
    let listen = async {
        let (answer, whole) = first(stdout, ANSWER).await?;
        ensure!(whole, "it said more than {ANSWER} bytes");
        Ok(answer)
    };
    let complaint = async {
        let Some(mut stderr) = stderr else {
            return Ok(Vec::new());
        };
        let (text, _) = first(Some(&mut stderr), COMPLAINT).await?;
        tokio::io::copy(&mut stderr, &mut tokio::io::sink())
            .await
            .context("read from it")?;
        Ok(text)
    };
    let ((), answer, complaint) = tokio::try_join!(tell, listen, complaint)?;
    let status = child.wait().await.context("wait for it")?;
    if !complaint.is_empty() {
        tracing::warn!(said = ?String::from_utf8_lossy(&complaint), "a command of the configuration complains");
    }
    ensure!(status.success(), "it ended with {status}");
    Ok(answer)
}

/// The beginning of what comes, and whether that was all.
async fn first(from: Option<impl AsyncRead + Unpin>, most: usize) -> Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(most as u64 + 1)
            .read_to_end(&mut bytes)
            .await
            .context("read from it")?;
    }
    let whole = bytes.len() <= most;
    bytes.truncate(most);
    Ok((bytes, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, milliseconds: i64) -> Hook {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let mut hook = Hook::new(
            "test",
            &command,
            None,
            jiff::SignedDuration::from_millis(milliseconds),
        )
        .unwrap();
        if !nix::unistd::geteuid().is_root() {
            // Who is not root cannot become somebody else.
            hook.uid = 0;
        }
        hook
    }

    async fn run(hook: &Hook, input: &[u8]) -> Result<Vec<u8>> {
        let (_stop, mut stopped) = watch::channel(false);
        hook.run(input, &mut stopped).await
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_as_somebody_else() {
        let input = vec![b'x'; 60_000];
        assert_eq!(run(&hook("cat", 10_000), &input).await.unwrap(), input);
        let who = run(&hook("echo complains >&2; id -u; id -G", 10_000), b"")
            .await
            .unwrap();
        if nix::unistd::geteuid().is_root() {
            assert_eq!(who, b"61112\n61112\n");
        }
    }

    #[tokio::test]
    async fn one_that_does_not_read_may_answer() {
        let input = vec![b'x'; 1 << 20];
        assert_eq!(
            run(&hook("echo no", 10_000), &input).await.unwrap(),
            b"no\n"
        );
    }

    #[tokio::test]
    async fn whatever_goes_wrong_is_an_error() {
        for (script, says) in [
            ("exit 3", "exit status: 3"),
            ("kill -9 $$", "signal: 9"),
            ("yes", "more than"),
            ("sleep 60", "within"),
        ] {
            let error = run(&hook(script, 2_000), b"").await.unwrap_err();
            assert!(format!("{error:#}").contains(says), "{script}: {error:#}");
        }
        let nowhere = Hook::new(
            "test",
            &["/nowhere/at/all".to_owned()],
            None,
            jiff::SignedDuration::from_secs(1),
        )
        .unwrap();
        assert!(run(&nowhere, b"").await.is_err());
    }

    #[tokio::test]
    async fn its_whole_group_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("pid");
        std::fs::write(&told, "").unwrap();
        std::fs::set_permissions(&told, std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .unwrap();
        std::fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let script = format!("sleep 61 & echo $! > {}; wait", told.display());
        assert!(run(&hook(&script, 500), b"").await.is_err());
        let pid = std::fs::read_to_string(&told).unwrap();
        let status = format!("/proc/{}/stat", pid.trim());
        let since = std::time::Instant::now();
        // It may stay as a zombie where nobody takes orphans in.
        while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z")) {
            assert!(since.elapsed() < Duration::from_secs(5), "{pid} lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn it_ends_with_the_daemon() {
        let (stop, mut stopped) = watch::channel(false);
        let hook = hook("sleep 60", 50_000);
        let since = std::time::Instant::now();
        let (outcome, ()) = tokio::join!(hook.run(b"", &mut stopped), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stop.send(true).unwrap();
        });
        assert!(outcome.is_err());
        assert!(since.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn wrong_configurations_say_why() {
        let seconds = jiff::SignedDuration::from_secs;
        let of = |command: &[&str], user: Option<&str>, deadline| {
            let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
            match Hook::new("approvals.reviewer", &command, user, deadline) {
                Ok(_) => String::new(),
                Err(error) => format!("{error:#}"),
            }
        };
        assert!(of(&[], None, seconds(1)).contains("command is empty"));
        assert!(of(&["cat"], None, seconds(1)).contains("absolute"));
        assert!(of(&["/bin/cat"], Some("nobody-at-all"), seconds(1)).contains("no user"));
        assert!(of(&["/bin/cat"], None, seconds(0)).contains("deadline"));
        assert!(of(&["/bin/cat"], None, seconds(-1)).contains("deadline"));
        assert_eq!(of(&["/bin/cat"], Some("root"), seconds(1)), "");
    }
}
