//! Actions that wait for a person, each from the outside: begun in a session, found waiting, decided, and looked at again. On a line
//! each `PASS`, `SKIP` or `FAIL`, and the line for machines. Needs root. The same program is what runs inside the sessions.

use std::{
    fs,
    io::Write as _,
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use agentwatch_tests::harness::agentwatch::Agentwatch;
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// How long anything that must happen may take, under emulation.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long is watched that something does not happen.
const CALM: Duration = Duration::from_millis(400);

/// The name of this program.
const NAME: &str = "holds";

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Runs the cases
    All {
        /// The agentwatch binary
        #[arg(long)]
        agentwatch: PathBuf,
        /// Only cases whose name contains this
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Does things one after the other, inside a session, and reports each on a line of a file
    Do {
        report: PathBuf,
        /// Such as `read:/a/file`, `connect:127.0.0.1:80`, `sleep:100`
        actions: Vec<String>,
    },
}

fn main() -> ExitCode {
    // Under any other name it says what it was given.
    let mut arguments = std::env::args();
    let is_copy = arguments
        .next()
        .is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name != NAME));
    if is_copy {
        println!("{}", arguments.collect::<Vec<_>>().join(" "));
        return ExitCode::SUCCESS;
    }
    match Options::parse().what {
        What::Do { report, actions } => perform(&report, &actions),
        What::All { agentwatch, only } => run(&agentwatch, &only),
    }
}

type Case = fn(&Place) -> Result<()>;

/// What a case needs of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Lsm,
}

const CASES: &[(&str, Needs, Case)] = &[
    ("hold_connect_approved", Needs::Nothing, connect_approved),
    ("hold_connect_rejected", Needs::Nothing, connect_rejected),
    ("hold_datagram_approved", Needs::Nothing, datagram_approved),
    ("hold_command_approved", Needs::Nothing, command_approved),
    ("hold_command_rejected", Needs::Nothing, command_rejected),
    ("hold_command_by_arguments", Needs::Nothing, command_by_arguments),
    ("hold_command_script", Needs::Nothing, command_script),
    ("hold_grant_for_a_time", Needs::Nothing, grant_for_a_time),
    ("hold_grant_for_the_session", Needs::Nothing, grant_for_the_session),
    ("hold_nobody_decides", Needs::Nothing, nobody_decides),
    ("hold_going_on_by_itself", Needs::Nothing, going_on_by_itself),
    ("hold_killed", Needs::Nothing, killed),
    ("hold_session_detached", Needs::Nothing, session_detached),
    ("hold_same_is_one_request", Needs::Nothing, same_is_one_request),
    ("hold_too_many", Needs::Nothing, too_many),
    ("hold_not_decided_from_inside", Needs::Nothing, not_from_inside),
    ("hold_file_read", Needs::Lsm, file_read),
    ("hold_file_changes", Needs::Lsm, file_changes),
    ("hold_file_rejected", Needs::Lsm, file_rejected),
    ("hold_many", Needs::Nothing, many),
    ("hold_daemon_killed", Needs::Nothing, daemon_killed),
];

fn run(binary: &Path, only: &str) -> ExitCode {
    let mut place = match Place::new(binary) {
        Ok(place) => place,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut good = true;
    for (name, needs, case) in CASES {
        if !name.contains(only) {
            continue;
        }
        let (status, reason) = if *needs == Needs::Lsm && !place.has_lsm {
            (
                "skip",
                "without BPF LSM files are held by Landlock: what needs approval is denied"
                    .to_owned(),
            )
        } else {
            place.clean();
            match case(&place) {
                Ok(()) => ("pass", String::new()),
                Err(error) => {
                    println!("{}", place.log());
                    ("fail", format!("{error:#}"))
                }
            }
        };
        good &= status != "fail";
        println!("{} {name} {reason}", status.to_uppercase());
        println!(
            "@result {}",
            json!({"name": name, "status": status, "reason": reason})
        );
    }
    place.stop();
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

// Inside the session.

fn perform(report: &Path, actions: &[String]) -> ExitCode {
    let mut failed = false;
    for action in actions {
        let since = Instant::now();
        let result = act(action);
        failed |= result.is_err();
        let line = match result {
            Ok(said) => format!("{action} ok {said}"),
            Err(error) => format!("{action} error {}", error.raw_os_error().unwrap_or(-1)),
        };
        let told = fs::File::options()
            .create(true)
            .append(true)
            .open(report)
            .and_then(|mut file| writeln!(file, "{line} {}", since.elapsed().as_millis()));
        if told.is_err() {
            return ExitCode::from(99);
        }
    }
    ExitCode::from(u8::from(failed))
}

fn act(action: &str) -> std::io::Result<String> {
    let (verb, object) = action.split_once(':').unwrap_or((action, ""));
    let done = |result: std::io::Result<()>| result.map(|()| "-".to_owned());
    match verb {
        "read" => fs::read_to_string(object),
        "write" => done(fs::write(object, "written")),
        "append" => done(
            fs::File::options()
                .append(true)
                .open(object)
                .and_then(|mut file| file.write_all(b"more")),
        ),
        "delete" => done(fs::remove_file(object)),
        "mkdir" => done(fs::create_dir(object)),
        "rename" => {
            let (from, to) = object.split_once('>').unwrap_or((object, ""));
            done(fs::rename(from, to))
        }
        "chmod" => done(fs::set_permissions(
            object,
            fs::Permissions::from_mode(0o640),
        )),
        "connect" => TcpStream::connect(object).map(|_| "-".to_owned()),
        "send" => UdpSocket::bind("127.0.0.1:0")
            .and_then(|socket| socket.send_to(b"x", object))
            .map(|_| "-".to_owned()),
        "exec" => {
            let mut words = object.split(' ');
            let program = words.next().unwrap_or_default();
            let output = Command::new(program).args(words).output()?;
            Ok(format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout).trim(),
                match output.status.code() {
                    Some(0) => String::new(),
                    Some(code) => format!("code {code}"),
                    None => "killed".to_owned(),
                }
            ))
        }
        "sleep" => {
            sleep(Duration::from_millis(object.parse().unwrap_or(0)));
            Ok("-".to_owned())
        }
        // Many of one kind: `ports:N:ADDRESS` connects to N ports from the address's on.
        "ports" => {
            let (count, address) = object.split_once(':').unwrap_or(("0", object));
            let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
            let first: u16 = port.parse().unwrap_or(0);
            let children: Vec<Child> = (0..count.parse().unwrap_or(0))
                .map(|n| {
                    Command::new(std::env::current_exe()?)
                        .arg("do")
                        .arg("/dev/null")
                        .arg(format!("connect:{host}:{}", first + n))
                        .spawn()
                })
                .collect::<std::io::Result<_>>()?;
            let mut refused = 0;
            for mut child in children {
                refused += u32::from(child.wait()?.success());
            }
            Ok(refused.to_string())
        }
        _ => Err(std::io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

// Outside.

struct Place {
    dir: tempfile::TempDir,
    agentwatch: Agentwatch,
    daemon: std::cell::RefCell<Option<Child>>,
    has_lsm: bool,
}

/// A session whose actions are being watched.
struct Doing {
    child: Child,
    report: PathBuf,
}

impl Doing {
    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.report)
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// What came of the `n`th action, when it is over.
    fn outcome(&self, n: usize) -> Result<String> {
        eventually("an action is over", || {
            let line = self.lines().get(n)?.clone();
            // Without the time that it took.
            Some(line.rsplit_once(' ')?.0.to_owned())
        })
    }

    fn expect(&self, n: usize, said: &str) -> Result<()> {
        let outcome = self.outcome(n)?;
        ensure!(
            outcome.contains(said),
            "action {n} came to {outcome:?}, and not to {said:?}"
        );
        Ok(())
    }

    fn is_waiting(&self, n: usize) -> Result<()> {
        sleep(CALM);
        ensure!(
            self.lines().len() == n,
            "something went on that should wait: {:?}",
            self.lines()
        );
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let since = Instant::now();
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            ensure!(since.elapsed() < PATIENCE, "the session does not end");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Place {
    fn new(binary: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("agentwatch-holds-")
            .tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        for name in ["work", "run", "state"] {
            fs::create_dir(dir.path().join(name))?;
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755))?;
        }
        let agentwatch = Agentwatch {
            binary: binary.canonicalize()?,
            runtime_dir: dir.path().join("run"),
        };
        let mut place = Self {
            dir,
            agentwatch,
            daemon: None.into(),
            has_lsm: false,
        };
        place.start()?;
        let backends = place.agentwatch.status()?["backends"].clone();
        place.has_lsm = backends
            .as_array()
            .is_some_and(|names| names.iter().any(|name| name == "bpf-lsm"));
        Ok(place)
    }

    fn start(&self) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))?;
        let child = self
            .agentwatch
            .command(&["daemon", "--state-dir"])
            .arg(self.dir.path().join("state"))
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = u64::from(child.id());
        *self.daemon.borrow_mut() = Some(child);
        eventually("the daemon answers", || {
            let status = self.agentwatch.status().ok()?;
            (status["pid"] == pid && status["collector"] == "connected").then_some(())
        })
    }

    fn kill_daemon(&self) -> Result<()> {
        if let Some(mut child) = self.daemon.borrow_mut().take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        let _ = self.agentwatch.output(&["release"]);
        if let Some(mut child) = self.daemon.borrow_mut().take() {
            let since = Instant::now();
            while since.elapsed() < Duration::from_secs(10) {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    return;
                }
                sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Nothing of the case before is left.
    fn clean(&self) {
        if let Ok(sessions) = self.agentwatch.output(&["sessions", "--json"])
            && let Ok(Value::Array(sessions)) = serde_json::from_str(&sessions)
        {
            for session in sessions {
                if session["state"] == "running"
                    && let Some(id) = session["id"].as_str()
                {
                    let _ = self.agentwatch.output(&["detach", id]);
                }
            }
        }
        let work = self.work();
        let _ = fs::remove_dir_all(&work);
        let _ = fs::create_dir(&work);
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn own(&self) -> Result<String> {
        Ok(std::env::current_exe()?.display().to_string())
    }

    /// Starts a session that does things under a policy whose further parts are given.
    fn session(&self, name: &str, further: &str, actions: &[&str]) -> Result<Doing> {
        let own = std::env::current_exe()?;
        let beside = own.parent().context("a directory")?;
        let policy = self.dir.path().join(format!("{name}.toml"));
        fs::write(
            &policy,
            format!(
                "[files]\nread = ['/proc', '/usr', '/lib', '/lib64', '/etc/ld.so.cache']\nexec = ['/usr', '/lib', '/lib64', '{}', '{}']\nwrite = ['{}', '/dev/null']\n{further}",
                beside.display(),
                self.work().display(),
                self.work().display(),
            )
            .replace("\n[files]\n", "\n")
        )?;
        let report = self.work().join(format!("{name}.report"));
        let child = self
            .agentwatch
            .command(&["run", "--accept-degraded", "--name", name, "--policy"])
            .arg(&policy)
            .arg("--")
            .arg(&own)
            .arg("do")
            .arg(&report)
            .args(actions)
            .current_dir(self.work())
            .stdout(Stdio::null())
            .stderr(
                fs::File::options()
                    .create(true)
                    .append(true)
                    .open(self.dir.path().join("log"))?,
            )
            .spawn()?;
        Ok(Doing { child, report })
    }

    fn approvals(&self) -> Result<Vec<Value>> {
        match serde_json::from_str(&self.agentwatch.output(&["approvals", "--json"])?)? {
            Value::Array(requests) => Ok(requests),
            other => bail!("approvals are {other}"),
        }
    }

    /// The one request that waits, when it does.
    fn request(&self) -> Result<Value> {
        let requests = eventually("an action waits", || {
            let requests = self.approvals().ok()?;
            (!requests.is_empty()).then_some(requests)
        })?;
        ensure!(requests.len() == 1, "{} actions wait", requests.len());
        Ok(requests[0].clone())
    }

    fn id(&self) -> Result<String> {
        Ok(self.request()?["id"]
            .as_str()
            .context("a request has an id")?
            .to_owned())
    }

    fn approve(&self, extent: &[&str]) -> Result<()> {
        let id = self.id()?;
        let arguments: Vec<&str> = ["approve", id.as_str()]
            .into_iter()
            .chain(extent.iter().copied())
            .collect();
        self.agentwatch.output(&arguments).map(drop)
    }

    fn reject(&self) -> Result<()> {
        let id = self.id()?;
        self.agentwatch
            .output(&["reject", &id, "--reason", "not today"])
            .map(drop)
    }

    /// Waits for a step in the history of a session.
    fn step(&self, session: &str, which: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually("a step is in the history", || {
            let events = self.agentwatch.events(session).ok()?;
            events
                .into_iter()
                .find(|event| event["kind"] == "approval" && which(&event["approval"]))
        })
    }

    fn nothing_waits(&self) -> Result<()> {
        let requests = self.approvals()?;
        ensure!(requests.is_empty(), "something waits: {requests:?}");
        Ok(())
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(since.elapsed() < PATIENCE, "it does not happen that {what}");
        sleep(Duration::from_millis(20));
    }
}

/// A server that takes connections, and the rule that holds them.
fn server() -> Result<(TcpListener, String, String)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let rule = format!("[network]\napprove = ['{address}']\n");
    Ok((listener, address, rule))
}

fn connect_approved(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    TcpStream::connect(&address).context("unconfined")?;
    let action = format!("connect:{address}");
    let doing = place.session("connect", &rule, &[&action])?;
    let request = place.request()?;
    ensure!(request["action"] == "connect", "{request}");
    ensure!(request["rule"]["id"] == "network.approve[0]", "{request}");
    doing.is_waiting(0)?;
    place.approve(&["--reason", "looks right"])?;
    doing.expect(0, "ok")?;
    doing.end()?;
    let step = place.step("connect", |step| step["step"] == "approved")?;
    ensure!(step["approval"]["by"]["kind"] == "user", "{step}");
    ensure!(step["approval"]["reason"] == "looks right", "{step}");
    place.step("connect", |step| step["step"] == "requested")?;
    place.step("connect", |step| step["step"] == "shown")?;
    place.step("connect", |step| step["step"] == "resumed")?;
    place.nothing_waits()
}

fn connect_rejected(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let action = format!("connect:{address}");
    let doing = place.session("refused", &rule, &[&action, &action])?;
    place.reject()?;
    doing.expect(0, &format!("error {}", libc::EPERM))?;
    // Once more: that is a finding.
    let request = place.request()?;
    ensure!(
        request["finding"] == "repeated_after_rejection",
        "{request}"
    );
    place.reject()?;
    doing.expect(1, &format!("error {}", libc::EPERM))?;
    doing.end()?;
    let step = place.step("refused", |step| step["step"] == "rejected")?;
    ensure!(step["approval"]["reason"] == "not today", "{step}");
    Ok(())
}

fn datagram_approved(place: &Place) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let address = socket.local_addr()?;
    let rule = format!("[network]\napprove = ['{address}']\nlisten = ['127.0.0.1']\n");
    let action = format!("send:{address}");
    let doing = place.session("datagram", &rule, &[&action])?;
    place.request()?;
    doing.is_waiting(0)?;
    place.approve(&[])?;
    doing.expect(0, "ok")?;
    ensure!(socket.recv(&mut [0; 8])? == 1, "the datagram is gone");
    doing.end()
}

fn command_approved(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "held")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    let action = format!("exec:{program} hello");
    let doing = place.session("command", &rule, &[&action])?;
    let request = place.request()?;
    ensure!(request["action"] == "exec", "{request}");
    ensure!(request["process"]["argv"] == json!([program, "hello"]), "{request}");
    ensure!(
        request["ancestry"].as_array().is_some_and(|above| !above.is_empty()),
        "{request}"
    );
    doing.is_waiting(0)?;
    place.approve(&[])?;
    doing.expect(0, "ok hello")?;
    doing.end()?;
    place.nothing_waits()
}

fn command_rejected(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "held")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    let action = format!("exec:{program} hello");
    let doing = place.session("no-command", &rule, &[&action])?;
    place.reject()?;
    doing.expect(0, "ok killed")?;
    doing.end()
}

fn command_by_arguments(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "tool")?;
    let rule =
        format!("[exec]\napprove = [['{program}', 'push']]\ndeny = [['{program}', 'push', '--force']]\n");
    let actions = [
        format!("exec:{program} pull"),
        format!("exec:{program} push origin"),
        format!("exec:{program} push --force"),
    ];
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    let doing = place.session("arguments", &rule, &actions)?;
    doing.expect(0, "ok pull")?;
    let request = place.request()?;
    ensure!(
        request["process"]["argv"] == json!([program, "push", "origin"]),
        "{request}"
    );
    doing.is_waiting(1)?;
    place.approve(&[])?;
    doing.expect(1, "ok push origin")?;
    doing.expect(2, "ok killed")?;
    doing.end()
}

fn command_script(place: &Place) -> Result<()> {
    let script = place.work().join("publish-it");
    fs::write(&script, "#!/bin/sh -e\necho done \"$@\"\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let rule = "[exec]\napprove = [['publish-it', 'now']]\n";
    let actions = [
        format!("exec:{} later", script.display()),
        format!("exec:{} now x", script.display()),
    ];
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    let doing = place.session("script", rule, &actions)?;
    doing.expect(0, "ok done later")?;
    place.request()?;
    doing.is_waiting(1)?;
    place.approve(&[])?;
    doing.expect(1, "ok done now x")?;
    doing.end()
}

/// A program that is nobody else's, so that a rule on it holds nothing else.
fn copy_of_echo(place: &Place, name: &str) -> Result<String> {
    let to = place.work().join(name);
    fs::copy(std::env::current_exe()?, &to)?;
    Ok(to.display().to_string())
}

fn grant_for_a_time(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let action = format!("connect:{address}");
    let doing = place.session("time", &rule, &[&action, &action, "sleep:6000", &action])?;
    place.approve(&["--for", "5s"])?;
    doing.expect(0, "ok")?;
    doing.expect(1, "ok")?;
    doing.expect(2, "ok")?;
    // It is over: it is asked for again.
    place.approve(&[])?;
    doing.expect(3, "ok")?;
    doing.end()
}

fn grant_for_the_session(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let action = format!("connect:{address}");
    let doing = place.session(
        "session",
        &rule,
        &[&action, &action, "sleep:2000", &action],
    )?;
    place.approve(&["--session"])?;
    doing.expect(1, "ok")?;
    let grants: Value = serde_json::from_str(&place.agentwatch.output(&["grants", "--json"])?)?;
    let id = grants[0]["id"].as_str().context("a grant has an id")?;
    place.agentwatch.output(&["revoke", id, "--reason", "enough"])?;
    // Taken back, it is asked for again.
    place.request()?;
    doing.is_waiting(3)?;
    place.reject()?;
    doing.expect(3, &format!("error {}", libc::EPERM))?;
    doing.end()?;
    place.step("session", |step| step["step"] == "revoked").map(drop)
}

fn nobody_decides(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let action = format!("connect:{address}");
    let deny = format!("{rule}[approvals]\ntimeout = '2s'\n");
    let doing = place.session("late", &deny, &[&action])?;
    doing.expect(0, &format!("error {}", libc::EPERM))?;
    doing.end()?;
    let step = place.step("late", |step| step["step"] == "expired")?;
    ensure!(step["approval"]["by"]["kind"] == "timeout", "{step}");
    let allow = format!("{rule}[approvals]\ntimeout = '2s'\non_timeout = 'allow'\n");
    let doing = place.session("late-allowed", &allow, &[&action])?;
    doing.expect(0, "ok")?;
    doing.end()
}

fn going_on_by_itself(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "stubborn")?;
    let (_listener, address, rule) = server()?;
    let rule = format!("{rule}[exec]\napprove = ['{program}']\n");
    let actions = [format!("connect:{address}"), format!("exec:{program} x")];
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    let doing = place.session("stubborn", &rule, &actions)?;
    for n in 0..2 {
        let request = place.request()?;
        let pid = Pid::from_raw(
            request["process"]["pid"]
                .as_i64()
                .context("a process")?
                .try_into()?,
        );
        for _ in 0..200 {
            let _ = kill(pid, Signal::SIGCONT);
            sleep(Duration::from_millis(2));
        }
        doing.is_waiting(n)?;
        ensure!(
            place.request()?["id"] == request["id"],
            "it is another request now"
        );
        place.step("stubborn", |step| {
            step["finding"] == "bypass_attempt" && step["id"] == request["id"]
        })?;
        place.approve(&[])?;
        doing.expect(n, "ok")?;
    }
    doing.end()
}

fn killed(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let action = format!("connect:{address}");
    let doing = place.session("killed", &rule, &[&action])?;
    let request = place.request()?;
    let pid = request["process"]["pid"].as_i64().context("a process")?;
    kill(Pid::from_raw(pid.try_into()?), Signal::SIGKILL)?;
    doing.end()?;
    place.step("killed", |step| step["step"] == "withdrawn")?;
    place.nothing_waits()
}

fn session_detached(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let action = format!("connect:{address}");
    let doing = place.session("detached", &rule, &[&action])?;
    place.request()?;
    place.agentwatch.output(&["detach", "detached"])?;
    doing.expect(0, &format!("error {}", libc::EPERM))?;
    doing.end()?;
    let step = place.step("detached", |step| step["step"] == "rejected")?;
    ensure!(step["approval"]["by"]["kind"] == "session", "{step}");
    place.nothing_waits()
}

fn same_is_one_request(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let own = place.own()?;
    let connect = format!("exec:{own} do /dev/null connect:{address}");
    let doing = place.session("same-a", &rule, &[&connect])?;
    place.request()?;
    doing.is_waiting(0)?;
    place.approve(&[])?;
    doing.expect(0, "ok")?;
    doing.end()?;
    // Three processes that wait for the same address.
    let script = place.work().join("three");
    fs::write(
        &script,
        format!("#!/bin/sh\nfor i in 1 2 3; do {own} do /dev/null connect:{address} & done\nwait\n"),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let doing = place.session("same-b", &rule, &[&format!("exec:{}", script.display())])?;
    let requests = eventually("three tasks wait", || {
        let requests = place.approvals().ok()?;
        (requests.iter().map(|it| it["tasks"].as_u64().unwrap_or(0)).sum::<u64>() == 3)
            .then_some(requests)
    })?;
    ensure!(requests.len() == 1, "{requests:?}");
    place.approve(&[])?;
    doing.expect(0, "ok")?;
    doing.end()
}

fn too_many(place: &Place) -> Result<()> {
    let rule = "[network]\napprove = ['127.0.0.1:20000-20100']\n[approvals]\nmax_pending = 3\n";
    let doing = place.session("many", rule, &["ports:5:127.0.0.1:20000"])?;
    eventually("three wait", || {
        (place.approvals().ok()?.len() == 3).then_some(())
    })?;
    place.step("many", |step| step["finding"] == "max_pending")?;
    sleep(CALM);
    ensure!(place.approvals()?.len() == 3, "more than three wait");
    place.agentwatch.output(&["detach", "many"])?;
    doing.expect(0, "ok")?;
    doing.end()
}

fn not_from_inside(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let binary = place.agentwatch.binary.display().to_string();
    let runtime = place.agentwatch.runtime_dir.display().to_string();
    let rule = format!("{rule}unix = ['{runtime}/control.sock']\n");
    let tool = place.work().join("agentwatch");
    fs::copy(&binary, &tool)?;
    let ask = format!("exec:{} --runtime-dir {runtime} approvals", tool.display());
    let doing = place.session("inside", &rule, &[&ask, &format!("connect:{address}")])?;
    doing.expect(0, "ok code 1")?;
    place.reject()?;
    doing.end()
}

fn file_read(place: &Place) -> Result<()> {
    let file = place.dir.path().join("secret");
    fs::write(&file, "content")?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    let read = format!("read:{}", file.display());
    let doing = place.session("read", &rule, &[&read, &read, &read])?;
    let request = place.request()?;
    ensure!(request["file"]["path"] == file.display().to_string(), "{request}");
    ensure!(request["rule"]["id"] == "files.approve[0]", "{request}");
    doing.is_waiting(0)?;
    place.approve(&["--once"])?;
    doing.expect(0, "ok content")?;
    place.approve(&["--session"])?;
    doing.expect(1, "ok content")?;
    doing.expect(2, "ok content")?;
    doing.end()?;
    place.nothing_waits()
}

fn file_rejected(place: &Place) -> Result<()> {
    let file = place.dir.path().join("secret");
    fs::write(&file, "content")?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    let read = format!("read:{}", file.display());
    let doing = place.session("read-not", &rule, &[&read])?;
    place.reject()?;
    doing.expect(0, &format!("error {}", libc::EACCES))?;
    doing.end()
}

fn file_changes(place: &Place) -> Result<()> {
    let held = place.dir.path().join("changes");
    fs::create_dir_all(&held)?;
    let at = |name: &str| held.join(name).display().to_string();
    for name in ["old", "gone", "moved", "mode", "appended"] {
        fs::write(at(name), "before")?;
    }
    let rule = format!("[files]\napprove = ['{}']\n", held.display());
    // Each with how often a person is asked.
    let actions = [
        (format!("write:{}", at("new")), 1),
        (format!("write:{}", at("old")), 1),
        (format!("append:{}", at("appended")), 1),
        (format!("delete:{}", at("gone")), 1),
        (format!("mkdir:{}", at("directory")), 1),
        (format!("rename:{}>{}", at("moved"), at("here")), 2),
        (format!("chmod:{}", at("mode")), 1),
    ];
    let names: Vec<&str> = actions.iter().map(|(name, _)| name.as_str()).collect();
    let doing = place.session("changes", &rule, &names)?;
    for (n, (name, times)) in actions.iter().enumerate() {
        for _ in 0..*times {
            place.request().with_context(|| format!("for {name}"))?;
            doing.is_waiting(n)?;
            place.approve(&[])?;
        }
        doing.expect(n, "ok").with_context(|| format!("for {name}"))?;
    }
    doing.end()?;
    ensure!(fs::read_to_string(at("new"))? == "written", "new");
    ensure!(fs::read_to_string(at("old"))? == "written", "old");
    ensure!(Path::new(&at("here")).exists(), "here");
    ensure!(!Path::new(&at("gone")).exists(), "gone");
    let _ = fs::remove_dir_all(&held);
    place.nothing_waits()
}

fn many(place: &Place) -> Result<()> {
    const MANY: usize = 100;
    let rule = "[network]\napprove = ['127.0.0.1:20000-29999']\n[approvals]\nmax_pending = 1000\nmax_per_hour = 10000\n";
    let listeners: Vec<TcpListener> = (0..MANY as u16)
        .map(|n| TcpListener::bind(("127.0.0.1", 20_000 + n)))
        .collect::<std::io::Result<_>>()?;
    let doing = place.session("hundred", rule, &[&format!("ports:{MANY}:127.0.0.1:20000")])?;
    let requests = eventually("all of them wait", || {
        let requests = place.approvals().ok()?;
        (requests.len() == MANY).then_some(requests)
    })?;
    for request in requests {
        let id = request["id"].as_str().context("a request has an id")?;
        place.agentwatch.output(&["approve", id])?;
    }
    doing.expect(0, &format!("ok {MANY}"))?;
    doing.end()?;
    drop(listeners);
    place.nothing_waits()
}

fn daemon_killed(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "patient")?;
    let (_listener, address, rule) = server()?;
    let rule = format!("{rule}[exec]\napprove = ['{program}']\n");
    let actions = [format!("connect:{address}"), format!("exec:{program} x")];
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    let doing = place.session("patient", &rule, &actions)?;
    for n in 0..2 {
        let request = place.request()?;
        place.kill_daemon()?;
        doing.is_waiting(n)?;
        place.start()?;
        doing.is_waiting(n)?;
        let again = place.request()?;
        ensure!(
            again["id"] == request["id"],
            "it is another request now: {again}, and was {request}"
        );
        place.approve(&[])?;
        doing.expect(n, "ok")?;
    }
    doing.end()
}
