//! Real work under a policy that allows what it needs and nothing else: no false denial, exit codes intact, the tree complete; then
//! the same session tries what it may not.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::harness::*;

/// What the work needs. Caches and temporary files are kept in the workspace.
const POLICY: &str = "
[files]
read  = ['/usr', '/lib', '/lib64', '/bin', '/etc', '/proc', '/sys', '/dev/urandom', '~/.rustup', '~/.cargo']
exec  = ['/usr', '/lib', '/lib64', '/bin', '~/.rustup', '~/.cargo', '.']
write = ['.', '/dev/null', '/dev/tty']
";

const GIT: &str = "
set -e
export HOME=$PWD GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b.c GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b.c
git init -q repository; cd repository; echo one > file; git add file; git commit -q -m one
git clone -q . ../clone; cd ../clone; test \"$(git log --format=%s)\" = one
";

const CARGO: &str = "
set -e
export RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup} HOME=$PWD CARGO_HOME=$PWD/cargo TMPDIR=$PWD CARGO_TERM_COLOR=never CARGO_NET_OFFLINE=true
mkdir -p dependency/src crate/src
printf '[package]\\nname = \"dependency\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n' > dependency/Cargo.toml
echo 'pub fn two() -> u32 { 2 }' > dependency/src/lib.rs
printf '[package]\\nname = \"work\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[dependencies]\\ndependency = { path = \"../dependency\" }\\n[workspace]\\n' > crate/Cargo.toml
printf 'fn main() { println!(\"{}\", dependency::two()); }\\n#[test]\\nfn two() { assert_eq!(dependency::two(), 2); }\\n' > crate/src/main.rs
cd crate
cargo build -q
cargo test -q > /dev/null
test \"$(target/debug/work)\" = 2
";

const PYTHON: &str = "
set -e
/usr/bin/python3 -m venv --without-pip venv
test \"$(venv/bin/python -c 'import json, sys; print(sys.prefix != sys.base_prefix)')\" = True
";

const PIPELINE: &str = "
i=0; while [ $i -lt 50 ]; do echo $i | cat | tr 0-9 a-j | wc -c >> sizes || exit 1; i=$((i+1)); done; test $(wc -l < sizes) = 50
";

/// Reads, writes and connects where it may not; says which of it was refused.
const OUTSIDE: &str = "
cat ../secret && exit 1
echo x > ../made && exit 1
/usr/bin/python3 -c '
import socket
for family, address in ((socket.AF_INET, \"127.0.0.1\"), (socket.AF_INET6, \"::1\")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            socket.socket(family, kind).connect((address, 9))
        except PermissionError:
            continue
        raise SystemExit(1)
' || exit 1
";

fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn works(name: &str, script: &str) {
    if !possible() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon();
    std::fs::write(place.path().join("secret"), "s").expect("a file");
    let work = place.run(POLICY, name, script);
    let said = text(&work.stderr);
    let events = place.ended(name);
    let denied: Vec<&Value> = events
        .iter()
        .filter(|event| event["verdict"] == "denied")
        .collect();
    let brief: Vec<String> = denied
        .iter()
        .map(|event| {
            format!(
                "{} {} {}",
                event["process"]["comm"], event["file"], event["net"]
            )
        })
        .collect();
    assert!(denied.is_empty(), "false denials: {brief:#?}");
    assert!(work.status.success(), "{said}");
    assert!(!events.iter().any(|event| event["kind"] == "loss"));
    tree_is_complete(&events);

    let outside = place.run(POLICY, "outside", OUTSIDE);
    assert!(outside.status.success(), "{}", text(&outside.stderr));
    let events = place.ended("outside");
    refused(&events, place.path());
}

/// Every process but the first has its parent in the record, and every one that began has ended.
fn tree_is_complete(events: &[Value]) {
    let key = |event: &Value| {
        (
            event["process"]["pid"].as_u64(),
            event["process"]["start_ns"].as_u64(),
        )
    };
    let exited: Vec<_> = events
        .iter()
        .filter(|event| event["kind"] == "exit")
        .map(key)
        .collect();
    let mut strangers = 0;
    for event in events.iter().filter(|event| event["kind"] == "exec") {
        assert!(exited.contains(&key(event)), "no exit of {event}");
        let parent = (
            event["process"]["ppid"].as_u64(),
            event["process"]["parent_start_ns"].as_u64(),
        );
        if !exited.contains(&parent) {
            // The command's own parent is outside; its executions are tried along $PATH.
            strangers += usize::from(event["errno"].is_null());
        }
    }
    assert_eq!(strangers, 1, "one process comes from outside the session");
}

fn refused(events: &[Value], place: &Path) {
    let denied: Vec<&Value> = events
        .iter()
        .filter(|event| event["verdict"] == "denied")
        .collect();
    for name in ["secret", "made"] {
        let path = place.join(name);
        assert!(
            denied
                .iter()
                .any(|event| event["file"]["path"] == *path.to_string_lossy()
                    && event["rule"]["id"] == "files.default"),
            "{name}: {denied:#?}"
        );
    }
    for (address, kind) in [
        ("127.0.0.1", "stream"),
        ("127.0.0.1", "dgram"),
        ("::1", "stream"),
        ("::1", "dgram"),
    ] {
        assert!(
            denied.iter().any(|event| event["net"]["addr"] == address
                && event["net"]["type"] == kind
                && event["net"]["port"] == 9
                && event["rule"]["id"] == "network.default"),
            "{address} {kind}: {denied:#?}"
        );
    }
}

#[test]
fn git_works() {
    if has("git") {
        works("git", GIT);
    }
}

#[test]
fn cargo_works() {
    works("cargo", CARGO);
}

#[test]
fn python_works() {
    if has("/usr/bin/python3") {
        works("python", PYTHON);
    }
}

#[test]
fn pipelines_of_short_processes_work() {
    works("pipeline", PIPELINE);
}
