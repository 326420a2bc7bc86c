//! Who may decide: the owner of a session, the users and groups of the configuration, nobody else and nobody from inside.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::actions::{copy_of_echo, server};
use crate::place::{Place, eventually};

/// The owner of the sessions, and somebody else whom the configuration does not name.
const OWNER: u32 = 1000;
const STRANGER: u32 = 1001;
/// What Debian and its like call them.
const NOBODY: u32 = 65_534;
const GAMES: u32 = 5;
const MAIL: u32 = 8;

pub(crate) fn knows_users() -> bool {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    ["nobody:x:65534:", "games:x:5:", "mail:x:8:8:"]
        .iter()
        .all(|user| users.lines().any(|line| line.starts_with(user)))
}

fn id_of(request: &serde_json::Value) -> Result<String> {
    Ok(request["id"].as_str().context("an id")?.to_owned())
}

pub(crate) fn owner_decides(place: &Place) -> Result<()> {
    let program = copy_of_echo(place, "owned")?;
    let (_listener, address, rule) = server()?;
    let rule = format!("{rule}[exec]\napprove = ['{program}']\n");
    place.become_user(OWNER)?;
    let actions = [format!("connect:{address}"), format!("exec:{program} x")];
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    let doing = place.session("owned", &rule, &actions)?;
    for n in 0..2 {
        let request = place.request()?;
        ensure!(request["uid"] == OWNER, "{request}");
        let id = id_of(&request)?;
        let seen = place.as_user(STRANGER, &["approvals", "--json"])?;
        ensure!(seen.trim() == "[]", "a stranger sees {seen}");
        ensure!(
            place.as_user(STRANGER, &["approve", &id]).is_err(),
            "a stranger decides"
        );
        doing.is_waiting(n)?;
        place.as_user(OWNER, &["approve", &id, "--reason", "mine"])?;
        doing.expect(n, "ok")?;
    }
    doing.end()?;
    let step = place.step("owned", |step| step["step"] == "approved")?;
    ensure!(step["approval"]["by"]["uid"] == OWNER, "{step}");
    place.nothing_waits()
}

pub(crate) fn owner_decides_on_files(place: &Place) -> Result<()> {
    let file = place.dir.path().join("owned-secret");
    fs::write(&file, "content")?;
    let rule = format!("[files]\napprove = ['{}']\n", file.display());
    place.become_user(OWNER)?;
    let read = format!("read:{}", file.display());
    let doing = place.session("owned-file", &rule, &[&read])?;
    let id = id_of(&place.request()?)?;
    doing.is_waiting(0)?;
    place.as_user(OWNER, &["approve", &id])?;
    doing.expect(0, "ok content")?;
    doing.end()
}

/// What no rule decides on waits where the policy says so, and a person sees who wants what, why, and what was before.
pub(crate) fn unknown_destination(place: &Place) -> Result<()> {
    let (_listener, address, _) = server()?;
    let (_denied, denied, _) = server()?;
    let rule = format!(
        "[task]\ngoal = 'look around'\n[network]\ndeny = ['{denied}']\nunknown = 'approve'\n"
    );
    let connect = format!("connect:{address}");
    let doing = place.session(
        "unknown",
        &rule,
        &[&format!("connect:{denied}"), &connect, &connect],
    )?;
    doing.expect(0, &format!("error {}", libc::EPERM))?;
    let request = place.request()?;
    let says = |field: &str, what: &str| {
        let text = request[field].to_string();
        ensure!(text.contains(what), "{field} is {text}, without {what:?}");
        Ok(())
    };
    says("goal", "look around")?;
    says("session_name", "unknown")?;
    says("before", &denied)?;
    says("process", &connect)?;
    says("since", "T")?;
    says("deadline", "T")?;
    says("net", "127.0.0.1")?;
    doing.is_waiting(1)?;
    place.approve(&[])?;
    doing.expect(1, "ok")?;
    let request = place.request()?;
    ensure!(
        request["decided"][0] == format!("approved: connect {address}").as_str(),
        "{request}"
    );
    place.reject()?;
    doing.expect(2, &format!("error {}", libc::EPERM))?;
    doing.end()
}

/// `approvals --follow` shows each request once, when it comes.
pub(crate) fn followed(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let shown = place.work().join("shown");
    let mut follower = place
        .agentwatch
        .command(&["approvals", "--follow", "--json"])
        .stdout(fs::File::create(&shown)?)
        .spawn()?;
    let connect = format!("connect:{address}");
    let doing = place.session("followed", &rule, &[&connect, &connect])?;
    let seen = || fs::read_to_string(&shown).unwrap_or_default();
    let outcome = (0..2).try_for_each(|n| {
        let id = id_of(&place.request()?)?;
        eventually("it is shown", || seen().contains(&id).then_some(()))?;
        doing.is_waiting(n)?;
        place.approve(&[])?;
        doing.expect(n, "ok")
    });
    follower.kill()?;
    follower.wait()?;
    outcome?;
    ensure!(seen().lines().count() == 2, "{}", seen());
    doing.end()
}

pub(crate) fn users_and_groups_decide(place: &Place) -> Result<()> {
    let (_listener, address, rule) = server()?;
    let action = format!("connect:{address}");
    let doing = place.session("named", &rule, &[&action, &action])?;
    for (n, may) in [NOBODY, GAMES].into_iter().enumerate() {
        let id = id_of(&place.request()?)?;
        for may_not in [MAIL, STRANGER] {
            ensure!(
                place.as_user(may_not, &["approve", &id]).is_err(),
                "user {may_not} decides"
            );
        }
        doing.is_waiting(n)?;
        place.as_user(may, &["approve", &id])?;
        doing.expect(n, "ok")?;
    }
    doing.end()
}
