//! Asking the daemon.

use std::{
    fmt,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    policy::{default, model::Context, sources},
    wire::{
        blocking,
        control::{CONTROL_SOCKET, PolicyText, Request, Response},
    },
};

/// What the daemon refused, with what to do about it.
#[derive(Debug)]
pub struct Refused {
    message: String,
    hint: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refused {}

/// Connects to the daemon.
pub fn connect(runtime_dir: &Path) -> Result<UnixStream> {
    let path = runtime_dir.join(CONTROL_SOCKET);
    UnixStream::connect(&path).with_context(|| {
        format!(
            "no daemon answers at {}; hint: sudo agentwatch daemon",
            path.display()
        )
    })
}

/// Asks one thing.
pub fn ask(stream: &UnixStream, request: &Request) -> Result<Response> {
    blocking::send(stream, request).context("ask the daemon")?;
    match blocking::receive(stream).context("hear the daemon")? {
        Response::Error { message, hint } => Err(Refused { message, hint }.into()),
        response => Ok(response),
    }
}

/// What is wrong when the daemon answers to another question than was asked.
pub fn other_answer(asked: &Request, got: &Response) -> anyhow::Error {
    anyhow::anyhow!(
        "the daemon answered {} to {}; it is probably of another version; hint: restart it",
        tag(got, "response"),
        tag(asked, "request")
    )
}

/// What a message is called on the socket.
fn tag(message: &impl Serialize, of: &str) -> String {
    serde_json::to_value(message)
        .ok()
        .and_then(|value| Some(value.get(of)?.as_str()?.to_owned()))
        .unwrap_or_else(|| format!("an unknown {of}"))
}

/// How long the daemon may take to learn what an earlier one had told of its sessions.
const RECKONING: Duration = Duration::from_secs(10);

/// Asks for the end of sessions, again where the daemon is not ready for it yet.
pub fn end(runtime_dir: &Path, request: impl Fn(bool) -> Request) -> Result<()> {
    let since = Instant::now();
    loop {
        let now = since.elapsed() > RECKONING;
        match ask(&connect(runtime_dir)?, &request(now))? {
            Response::Later => std::thread::sleep(Duration::from_millis(100)),
            _ => return Ok(()),
        }
    }
}

/// The text of a policy and of what it extends, read with the asker's own rights; the default one where none is named.
pub fn policy_text(file: Option<&Path>) -> Result<PolicyText> {
    let cwd = std::env::current_dir().context("the working directory is gone")?;
    let context = Context {
        cwd,
        home: home(),
        tmp: std::env::temp_dir(),
        uid: nix::unistd::getuid().as_raw(),
    };
    let Some(file) = file else {
        return Ok(PolicyText {
            file: String::new(),
            text: default::TEXT.to_owned(),
            directory: context.cwd.clone(),
            included: Vec::new(),
            context,
        });
    };
    let (name, text) = super::policy::read_policy(file)?;
    let text = String::from_utf8(text).map_err(|error| {
        anyhow::anyhow!(
            "{name} is not UTF-8 at byte {}; hint: a policy is a text file",
            error.utf8_error().valid_up_to()
        )
    })?;
    let directory = super::policy::directory_of(file, &context.cwd);
    let included = sources::gather(&text, &directory, &context, super::policy::read_included);
    Ok(PolicyText {
        file: name,
        text,
        context,
        directory,
        included,
    })
}

/// `$HOME`, or what the password file says.
fn home() -> std::path::PathBuf {
    std::env::var_os("HOME")
        .map(std::path::PathBuf::from)
        .filter(|home| home.is_absolute())
        .or_else(|| {
            nix::unistd::User::from_uid(nix::unistd::getuid())
                .ok()
                .flatten()
                .map(|user| user.dir)
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_answer_is_named_with_its_question() {
        assert_eq!(
            other_answer(&Request::Status, &Response::Done).to_string(),
            "the daemon answered done to status; it is probably of another version; hint: restart it"
        );
    }
}
