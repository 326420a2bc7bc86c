//! Actions of all kinds that wait, and every way in which that ends.

use std::{
    fs,
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    PATIENCE,
    place::{Place, eventually},
};

/// A server that takes connections, and the rule that holds them.
pub(crate) fn server() -> Result<(TcpListener, String, String)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let rule = format!("[network]\napprove = ['{address}']\n");
    Ok((listener, address, rule))
}

pub(crate) fn connect_approved(place: &Place) -> Result<()> {
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

pub(crate) fn connect_rejected(place: &Place) -> Result<()> {
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

pub(crate) fn datagram_approved(place: &Place) -> Result<()> {
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

pub(crate) fn command_approved(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "held")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    let action = format!("exec:{program} hello");
    let doing = place.session("command", &rule, &[&action])?;
    let request = place.request()?;
    ensure!(request["action"] == "exec", "{request}");
    ensure!(
        request["process"]["argv"] == json!([program, "hello"]),
        "{request}"
    );
    ensure!(
        request["ancestry"]
            .as_array()
            .is_some_and(|above| !above.is_empty()),
        "{request}"
    );
    doing.is_waiting(0)?;
    place.approve(&[])?;
    doing.expect(0, "ok hello")?;
    doing.end()?;
    place.nothing_waits()
}

pub(crate) fn command_rejected(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "held")?;
    let rule = format!("[exec]\napprove = ['{program}']\n");
    let action = format!("exec:{program} hello");
    let doing = place.session("no-command", &rule, &[&action])?;
    place.reject()?;
    doing.expect(0, "ok killed")?;
    doing.end()
}

pub(crate) fn command_by_arguments(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "tool")?;
    let rule = format!(
        "[exec]\napprove = [['{program}', 'push']]\ndeny = [['{program}', 'push', '--force']]\n"
    );
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

pub(crate) fn command_script(place: &Place) -> Result<()> {
    let script = place.work().join("publish-it");
    fs::write(&script, "#!/bin/sh -e\necho done \"$@\"\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    for (name, said) in [
        ("script", "publish-it".to_owned()),
        ("script-by-path", script.display().to_string()),
    ] {
        script_held(place, name, &script, &said)?;
    }
    Ok(())
}

fn script_held(place: &Place, name: &str, script: &Path, said: &str) -> Result<()> {
    let rule = format!("[exec]\napprove = [['{said}', 'now']]\n");
    let actions = [
        format!("exec:{} later", script.display()),
        format!("exec:{} now x", script.display()),
    ];
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    let doing = place.session(name, &rule, &actions)?;
    doing.expect(0, "ok done later")?;
    place.request()?;
    doing.is_waiting(1)?;
    place.approve(&[])?;
    doing.expect(1, "ok done now x")?;
    doing.end()
}

/// A program that is nobody else's, so that a rule on it holds nothing else.
pub(crate) fn copy_of_echo(place: &Place, name: &str) -> Result<String> {
    let to = place.work().join(name);
    fs::copy(std::env::current_exe()?, &to)?;
    Ok(to.display().to_string())
}

pub(crate) fn grant_for_a_time(place: &Place) -> Result<()> {
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

pub(crate) fn grant_for_the_session(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let action = format!("connect:{address}");
    let doing = place.session("session", &rule, &[&action, &action, "sleep:2000", &action])?;
    place.approve(&["--session"])?;
    doing.expect(1, "ok")?;
    let grants: Value = serde_json::from_str(&place.agentwatch.output(&["grants", "--json"])?)?;
    let id = grants[0]["id"].as_str().context("a grant has an id")?;
    place
        .agentwatch
        .output(&["revoke", id, "--reason", "enough"])?;
    // Taken back, it is asked for again.
    place.request()?;
    doing.is_waiting(3)?;
    place.reject()?;
    doing.expect(3, &format!("error {}", libc::EPERM))?;
    doing.end()?;
    place
        .step("session", |step| step["step"] == "revoked")
        .map(drop)
}

/// What one session was granted no other has, and a grant to read is none to write.
pub(crate) fn grant_of_one_session(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let connect = format!("connect:{address}");
    let doing = place.session("has-it", &rule, &[&connect, &connect, "sleep:3000"])?;
    place.approve(&["--session"])?;
    doing.expect(1, "ok")?;
    let other = place.session("has-it-not", &rule, &[&connect])?;
    place.request()?;
    other.is_waiting(0)?;
    place.reject()?;
    other.expect(0, &format!("error {}", libc::EPERM))?;
    other.end()?;
    doing.end()
}

pub(crate) fn grant_of_one_access(place: &Place) -> Result<()> {
    let file = place.dir.path().join("granted");
    fs::write(&file, "content")?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    let (read, append) = (
        format!("read:{}", file.display()),
        format!("append:{}", file.display()),
    );
    let doing = place.session("reads", &rule, &[&read, &read, &append, &read])?;
    place.approve(&["--session"])?;
    doing.expect(1, "ok content")?;
    let request = place.request()?;
    let access = request["file"]["access"].to_string();
    ensure!(
        access.contains("write") && !access.contains("read"),
        "{request}"
    );
    doing.is_waiting(2)?;
    place.reject()?;
    doing.expect(2, &format!("error {}", libc::EACCES))?;
    doing.expect(3, "ok content")?;
    doing.end()
}

/// A granted command is no grant for what it does: its children are judged by the policy.
pub(crate) fn grant_not_of_children(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let script = place.work().join("publish");
    let own = place.own()?;
    fs::write(
        &script,
        format!("#!/bin/sh -e\n{own} do /dev/null connect:{address}\n"),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let rule = format!("{rule}[exec]\napprove = [['publish', 'now']]\n");
    let publish = format!("exec:{} now", script.display());
    let doing = place.session("publishes", &rule, &[&publish, &publish])?;
    ensure!(place.request()?["action"] == "exec", "the command waits");
    place.approve(&["--session"])?;
    for n in 0..2 {
        // The command is granted by now, and what it starts waits by itself.
        let request = place.requests("its child connects", |waiting| {
            waiting.first().is_some_and(|it| it["action"] == "connect")
        })?;
        ensure!(
            request[0]["ancestry"].to_string().contains("publish"),
            "{request:?}"
        );
        doing.is_waiting(n)?;
        place.reject()?;
        doing.expect(n, "code 1")?;
    }
    doing.end()
}

pub(crate) fn nobody_decides(place: &Place) -> Result<()> {
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

pub(crate) fn going_on_by_itself(place: &Place) -> Result<()> {
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

pub(crate) fn killed(place: &Place) -> Result<()> {
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

pub(crate) fn session_detached(place: &Place) -> Result<()> {
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

pub(crate) fn same_is_one_request(place: &Place) -> Result<()> {
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
        format!(
            "#!/bin/sh\nfor i in 1 2 3; do {own} do /dev/null connect:{address} & done\nwait\n"
        ),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let doing = place.session("same-b", &rule, &[&format!("exec:{}", script.display())])?;
    let requests = eventually("three tasks wait", || {
        let requests = place.approvals().ok()?;
        (requests
            .iter()
            .map(|it| it["tasks"].as_u64().unwrap_or(0))
            .sum::<u64>()
            == 3)
            .then_some(requests)
    })?;
    ensure!(requests.len() == 1, "{requests:?}");
    place.approve(&[])?;
    doing.expect(0, "ok")?;
    doing.end()
}

pub(crate) fn not_from_inside(place: &Place) -> Result<()> {
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

pub(crate) fn file_read(place: &Place) -> Result<()> {
    let file = place.dir.path().join("secret");
    fs::write(&file, "content")?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    let read = format!("read:{}", file.display());
    let doing = place.session("read", &rule, &[&read, &read, &read])?;
    let request = place.request()?;
    ensure!(
        request["file"]["path"] == file.display().to_string(),
        "{request}"
    );
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

/// A library is opened, and mapped as code when that was approved. To be run as a command it is denied at once: nobody is asked for that.
pub(crate) fn file_library(place: &Place) -> Result<()> {
    let file = place.dir.path().join("library");
    fs::copy(std::env::current_exe()?, &file)?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    let load = format!("act:mmap-exec {}", file.display());
    let run = format!("exec:{}", file.display());
    let doing = place.session("library", &rule, &[&load, &load, &run])?;
    doing.is_waiting(0)?;
    place.approve(&["--once"])?;
    doing.expect(0, "ok ok")?;
    place.request()?;
    place.reject()?;
    doing.expect(1, "ok EACCES")?;
    doing.expect(2, &format!("error {}", libc::EACCES))?;
    doing.end()?;
    place.nothing_waits()
}

/// Landlock cannot wait: what needs approval is denied, and `run` says so.
pub(crate) fn file_without_lsm(place: &Place) -> Result<()> {
    let file = place.dir.path().join("secret");
    fs::write(&file, "content")?;
    fs::read(&file).context("unconfined")?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    let read = format!("read:{}", file.display());
    let doing = place.session("read-without", &rule, &[&read])?;
    doing.expect(0, &format!("error {}", libc::EACCES))?;
    doing.end()?;
    place.nothing_waits()?;
    let told = place.log();
    let note = format!(
        "files.approve[0] ({}): this kernel cannot hold files: refused instead",
        file.display()
    );
    ensure!(told.contains(&note), "`run` does not say so: {told}");
    Ok(())
}

pub(crate) fn file_rejected(place: &Place) -> Result<()> {
    let file = place.dir.path().join("secret");
    fs::write(&file, "content")?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    let read = format!("read:{}", file.display());
    let doing = place.session("read-not", &rule, &[&read])?;
    place.reject()?;
    doing.expect(0, &format!("error {}", libc::EACCES))?;
    doing.end()
}

pub(crate) fn file_changes(place: &Place) -> Result<()> {
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
        doing
            .expect(n, "ok")
            .with_context(|| format!("for {name}"))?;
    }
    doing.end()?;
    ensure!(fs::read_to_string(at("new"))? == "written", "new");
    ensure!(fs::read_to_string(at("old"))? == "written", "old");
    ensure!(Path::new(&at("here")).exists(), "here");
    ensure!(!Path::new(&at("gone")).exists(), "gone");
    let _ = fs::remove_dir_all(&held);
    place.nothing_waits()
}

pub(crate) fn file_made_once(place: &Place) -> Result<()> {
    let held = place.dir.path().join("made");
    fs::create_dir_all(&held)?;
    let file = held.join("new");
    let rule = format!("[files]\napprove = ['{}']\n", held.display());
    let create = format!("create:{}", file.display());
    let doing = place.session("made", &rule, &[&create, &create])?;
    place.request()?;
    doing.is_waiting(0)?;
    ensure!(!file.exists(), "it is there before it was approved");
    place.approve(&[])?;
    // O_EXCL finds no file that its own first try has made.
    doing.expect(0, "ok")?;
    doing.expect(1, &format!("error {}", libc::EEXIST))?;
    doing.end()?;
    fs::remove_dir_all(&held)?;
    place.nothing_waits()
}

pub(crate) fn daemon_killed(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "patient")?;
    let (_listener, address, _) = server()?;
    let (_other, rejected, _) = server()?;
    let rule = format!(
        "[network]\napprove = ['{address}', '{rejected}']\n[exec]\napprove = ['{program}']\n"
    );
    let rejected = format!("connect:{rejected}");
    let actions = [&rejected, &format!("connect:{address}"), &rejected];
    let actions: Vec<&str> = actions.into_iter().map(String::as_str).collect();
    let doing = place.session("patient", &rule, &actions)?;
    place.reject()?;
    doing.expect(0, "error")?;
    place.request()?;
    let command = place.session("patient-command", &rule, &[&format!("exec:{program} x")])?;
    let ids = |requests: &[Value]| -> Vec<String> {
        let ids = requests.iter().filter_map(|it| it["id"].as_str());
        ids.map(str::to_owned).collect()
    };
    let before = ids(&place.requests("both wait", |waiting| waiting.len() == 2)?);
    place.kill_daemon()?;
    doing.is_waiting(1)?;
    command.is_waiting(0)?;
    place.start()?;
    doing.is_waiting(1)?;
    command.is_waiting(0)?;
    let mut again = ids(&place.requests("both wait", |waiting| waiting.len() == 2)?);
    ensure!(
        again.iter().all(|id| before.contains(id)),
        "they are other requests now: {again:?}, and were {before:?}"
    );
    for id in again.drain(..) {
        place.agentwatch.output(&["approve", &id])?;
    }
    doing.expect(1, "ok")?;
    command.expect(0, "ok")?;
    command.end()?;
    // What was rejected under the other daemon is known to this one.
    let request = place.request()?;
    ensure!(
        request["finding"] == "repeated_after_rejection",
        "{request}"
    );
    place.reject()?;
    doing.expect(2, "error")?;
    doing.end()
}
