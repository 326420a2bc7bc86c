//! What is open before a session has it: by `attach`, and as what `run` passes on.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use serde_json::Value;

use super::{Place, attach_to, expect, field, steps};
use crate::{
    act::script::Step,
    harness::{agentwatch::said, conformance},
};

/// Two listeners; a policy lets the second be listened at.
struct Listeners {
    outside: TcpListener,
    inside: TcpListener,
}

impl Listeners {
    fn open() -> Result<Self> {
        Ok(Self {
            outside: TcpListener::bind("127.0.0.1:0")?,
            inside: TcpListener::bind("127.0.0.1:0")?,
        })
    }

    fn policy(&self) -> Result<String> {
        Ok(format!(
            "[network]\nlisten = ['{}']\n",
            self.inside.local_addr()?
        ))
    }
}

/// Actions that events tell of, of an accept that was refused at a listener.
fn refused_accepts(events: &[Value], listener: &TcpListener) -> Result<u64> {
    let port = listener.local_addr()?.port();
    let refused = events.iter().filter(|event| {
        field(event, "/kind") == "bind"
            && field(event, "/verdict") == "denied"
            && field(event, "/rule/id") == "network.listen.default"
            && event.pointer("/net/port") == Some(&port.into())
            && event["errno"] == libc::EPERM
    });
    Ok(refused
        .map(|event| event["count"].as_u64().unwrap_or(1))
        .sum())
}

/// Who is attached keeps what is open: it is read, written and handed on. What is opened by it is decided, and so is an accept.
pub(super) fn attached(place: &Place<'_>) -> Result<()> {
    let secret = place.path("secret");
    fs::write(&secret, "secret")?;
    let listeners = Listeners::open()?;
    let policy = place.policy(&listeners.policy()?)?;
    let file = File::options().read(true).write(true).open(&secret)?;
    let directory = File::open(&place.dir)?;
    let handed: [(RawFd, RawFd); 4] = [
        (file.as_raw_fd(), 80),
        (directory.as_raw_fd(), 81),
        (listeners.outside.as_raw_fd(), 82),
        (listeners.inside.as_raw_fd(), 83),
    ];
    let expected = [
        ("keep 80 ; held-read", "ok"),
        ("keep 80 ; held-write", "ok"),
        ("keep 80 ; held-reopen r", "EACCES"),
        ("keep 80 ; held-chmod 600", "EACCES"),
        ("keep 81 ; held-open secret r", "EACCES"),
        ("keep 82 ; held-accept", "EPERM"),
        ("keep 83 ; held-accept", "ok"),
    ];
    let mut script = steps(&expected.map(|(act, _)| act.to_owned()));
    // The same two by a program that is executed.
    let act = place.stage.act.to_string_lossy();
    for operation in ["keep 80 ; held-read", "keep 82 ; held-accept"] {
        let words = [&*act].into_iter().chain(operation.split(' '));
        script.push(Step::Run(words.map(str::to_owned).collect()));
    }
    let cgroup = Path::new("/sys/fs/cgroup").join(place.name);
    for attach in [false, true] {
        fs::create_dir_all(&cgroup)?;
        // Nobody has to wait at either.
        let _clients = [
            TcpStream::connect(listeners.outside.local_addr()?)?,
            TcpStream::connect(listeners.outside.local_addr()?)?,
            TcpStream::connect(listeners.inside.local_addr()?)?,
        ];
        let mut command = Command::new("dash");
        let enter = "echo 0 > $1/cgroup.procs; echo ready; exec $2 --script";
        command.args(["-c", enter, "-"]);
        command.arg(&cgroup).arg(&place.stage.act);
        // SAFETY: only system calls are made between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for (from, to) in handed {
                    Errno::result(libc::dup2(from, to))?;
                }
                Ok(())
            });
        }
        let done = place
            .actor()
            .perform_when(command, &script, "ready", || match attach {
                true => attach_to(place, &cgroup, &policy),
                false => Ok(()),
            });
        let detached = match attach {
            true => place.daemon.agentwatch.output(&["detach", place.name]),
            false => Ok(String::new()),
        };
        let removed = fs::remove_dir(&cgroup);
        let done = done?;
        detached?;
        removed?;
        if attach {
            let held = expected.iter().map(|(_, outcome)| *outcome);
            let outcomes: Vec<&str> = held.chain(["ok", "exit:1"]).collect();
            expect(&done, &outcomes)?;
        } else {
            expect(&done, &["ok"; 9]).context("without a session")?;
        }
    }
    let events = place.events(false)?;
    for kind in ["open", "attr"] {
        let told = events.iter().any(|event| {
            field(event, "/kind") == kind
                && field(event, "/verdict") == "denied"
                && field(event, "/file/path") == secret
                && field(event, "/rule/id") == "files.default"
        });
        ensure!(
            told,
            "no event of kind {kind} tells that {secret} was refused"
        );
    }
    let refused = refused_accepts(&events, &listeners.outside)?;
    ensure!(
        refused == 2,
        "{refused} refused accepts of 2 are in the record"
    );
    let wrong = refused_accepts(&events, &listeners.inside)?;
    ensure!(
        wrong == 0,
        "an accept where the session may listen is told as refused"
    );
    Ok(())
}

/// A listener as standard input, as inetd passes it on: the policy decides on the accept.
pub(super) fn passed_on(place: &Place<'_>) -> Result<()> {
    let listeners = Listeners::open()?;
    let policy = place.policy(&listeners.policy()?)?;
    let (policy, act) = (policy.to_string_lossy(), place.stage.act.to_string_lossy());
    let accept = [&*act, "keep", "0", ";", "held-accept"];
    for (listener, where_, within) in [
        (&listeners.outside, "outside", "EPERM"),
        (&listeners.inside, "inside", "ok"),
    ] {
        let session = format!("{}-{where_}", place.name);
        let run = ["run", "--policy", &policy, "--name", &session, "--"];
        let mut without = Command::new(accept[0]);
        without.args(&accept[1..]);
        let held = place
            .daemon
            .agentwatch
            .command(&[&run[..], &accept].concat());
        for (mut command, outcome) in [(without, "ok"), (held, within)] {
            let _client = TcpStream::connect(listener.local_addr()?)?;
            let output = command
                .current_dir(&place.dir)
                .stdin(OwnedFd::from(listener.try_clone()?))
                .output()?;
            let found = String::from_utf8_lossy(&output.stdout);
            ensure!(
                found.trim() == outcome,
                "{where_}: {found:?} instead of {outcome}: {}",
                said(&output)
            );
        }
        let events = conformance::await_end(&session, place.daemon, place.stage, false)?;
        let (refused, wanted) = (
            refused_accepts(&events, listener)?,
            u64::from(within == "EPERM"),
        );
        ensure!(
            refused == wanted,
            "{where_}: {refused} refused accepts instead of {wanted} are in the record"
        );
    }
    Ok(())
}
