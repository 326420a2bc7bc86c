//! Real work under the presets, in a fresh home and workspace: nothing that it needs is denied. What is on this host is tried;
//! a tool or a registry that is not says so.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::harness::*;

struct Bench {
    place: Place,
    _daemon: Daemon,
    home: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let place = Place::new();
        let home = place.path().join("home");
        // Landlock grants what is there when a session starts.
        for directory in [
            ".cargo",
            ".npm",
            ".cache/pip",
            ".cache/go-build",
            ".cache/ccache",
            "go",
        ] {
            fs::create_dir_all(home.join(directory)).expect("a directory");
        }
        fs::write(
            home.join(".gitconfig"),
            "[user]\nname = a\nemail = a@example.org\n[init]\ndefaultBranch = main\n",
        )
        .expect("a setting");
        let daemon = place.daemon();
        Self {
            place,
            _daemon: daemon,
            home,
        }
    }

    /// Runs a script under a preset and write access to the workspace; `more` is added to the policy. Where the kernel cannot
    /// hold rules on names, the session starts without them.
    fn run(&self, preset: &str, more: &str, path: &str, script: &str) -> Output {
        let policy = self.place.write(
            "task.toml",
            &format!("extends = ['preset:{preset}']\n[files]\nwrite = ['${{workspace}}']\n{more}"),
        );
        self.place
            .command()
            .env("HOME", &self.home)
            .env("PATH", path)
            .env_remove("CARGO_HOME")
            .env_remove("RUSTUP_TOOLCHAIN")
            .args(["run", "--accept-degraded", "--name", preset, "--policy"])
            .arg(policy)
            .args(["--", "/bin/sh", "-euc", script])
            .output()
            .expect("run agentwatch")
    }

    /// Makes sure that the work was done and that nothing was denied meanwhile.
    fn done(&self, preset: &str, output: &Output) {
        let denied: Vec<String> = self
            .place
            .ended(preset)
            .into_iter()
            .filter(|event| event["verdict"] == "denied")
            .map(|event| told(&event))
            .collect();
        assert!(
            output.status.success(),
            "{preset}: {:?}\n{}\n{}\ndenied:\n{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr),
            denied.join("\n")
        );
        assert!(denied.is_empty(), "{preset}: {}", denied.join("\n"));
    }
}

fn told(event: &Value) -> String {
    format!(
        "{} {} {} {} by {}",
        event["kind"], event["process"]["exe"], event["file"], event["net"], event["rule"]["id"]
    )
}

const SYSTEM: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a command prints, if it can be run.
fn says(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| text(&output.stdout).trim().to_owned())
}

/// Whether a program is where every user finds it.
fn there(program: &str) -> bool {
    let found = SYSTEM
        .split(':')
        .any(|directory| Path::new(directory).join(program).exists());
    if !found {
        eprintln!("skipped: {program} is not installed on this host");
    }
    found
}

/// Whether a registry answers; where it does not, the work with it is left out.
fn reachable(what: &str, command: &mut Command) -> bool {
    let answers = command.output().is_ok_and(|output| output.status.success());
    if !answers {
        eprintln!("skipped: {what} cannot be reached from this host");
    }
    answers
}

const ANYWHERE: &str = "[network]\nallow = ['*']\n";

#[test]
fn git_clones_commits_and_rebases() {
    if !possible() || !there("git") {
        return;
    }
    let bench = Bench::new();
    let output = bench.run(
        "git",
        "",
        SYSTEM,
        "git init -q a; cd a; echo 1 > f; git add f; git commit -qm one; git branch side; echo 2 >> f; git commit -qam two; \
         cd ..; git clone -q a b; cd b; git checkout -q -b mine origin/side; echo 3 > g; git add g; git commit -qm three; \
         git rebase -q origin/main; git log --oneline | wc -l | grep -qx 3; git status --short; git gc -q",
    );
    bench.done("git", &output);
}

#[test]
fn make_builds_and_runs() {
    if !possible() || !there("gcc") || !there("make") {
        return;
    }
    let bench = Bench::new();
    bench.place.write(
        "work/main.c",
        "#include <stdio.h>\nint main(void) { puts(\"built\"); return 0; }\n",
    );
    bench.place.write(
        "work/Makefile",
        "run: prog\n\t./prog\nprog: main.o\n\t$(CC) -o $@ $^\n",
    );
    let output = bench.run("c", "", SYSTEM, "make -j2");
    bench.done("c", &output);
    assert!(text(&output.stdout).contains("built"));
}

#[test]
fn cargo_builds_and_tests() {
    if !possible() || !there("gcc") {
        return;
    }
    let Some(sysroot) = says("rustc", &["--print", "sysroot"]) else {
        eprintln!("skipped: rustc is not installed on this host");
        return;
    };
    let bench = Bench::new();
    // A tool chain outside of the fresh home.
    let tools = format!("read = ['{sysroot}']\nexec = ['{sysroot}']\n");
    let path = format!("{sysroot}/bin:{SYSTEM}");
    let online = reachable(
        "the registry of cargo",
        Command::new("/bin/sh")
            .current_dir(bench.place.path())
            .args(["-c", "cargo new -q probe && cd probe && cargo add -q itoa"]),
    );
    let (more, add) = if online {
        (format!("{tools}{ANYWHERE}"), "cargo add -q itoa ryu;")
    } else {
        (tools, "")
    };
    let script =
        format!("cargo new -q one; cd one; {add} cargo build -q; cargo test -q; cargo run -q");
    let output = bench.run("rust", &more, &path, &script);
    bench.done("rust", &output);
    assert!(text(&output.stdout).contains("Hello, world!"));
}

#[test]
fn npm_installs_and_runs() {
    if !possible() || !there("node") || !there("npm") {
        return;
    }
    let bench = Bench::new();
    let online = reachable("the registry of npm", Command::new("npm").args(["ping"]));
    let install = if online { "npm install is-odd;" } else { "" };
    let test = if online {
        "require('is-odd')(3)"
    } else {
        "true"
    };
    let script = format!(
        "npm init -y; {install} npm pkg set 'scripts.try=node try.js'; echo \"console.log('ran', {test})\" > try.js; npm run try"
    );
    let output = bench.run("node", ANYWHERE, SYSTEM, &script);
    bench.done("node", &output);
    assert!(text(&output.stdout).contains("ran true"));
}

#[test]
fn python_installs_and_tests() {
    let Some(base) = says("python3", &["-c", "import sys; print(sys.base_prefix)"]) else {
        eprintln!("skipped: python3 is not installed on this host");
        return;
    };
    if !possible() {
        return;
    }
    let bench = Bench::new();
    let tools = format!("read = ['{base}']\nexec = ['{base}']\n");
    let online = reachable(
        "the index of pip",
        Command::new("python3")
            .args(["-m", "pip", "download", "-q", "--no-deps", "-d"])
            .arg(bench.place.path())
            .arg("iniconfig"),
    );
    let install = if online {
        "v/bin/pip install -q pytest; v/bin/pytest -q"
    } else {
        "v/bin/python -m unittest -q test_it"
    };
    bench.place.write(
        "work/test_it.py",
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n        self.assertTrue(True)\n",
    );
    let path = format!("{base}/bin:{SYSTEM}");
    let script = format!("python3 -m venv v; {install}");
    let output = bench.run("python", &format!("{tools}{ANYWHERE}"), &path, &script);
    bench.done("python", &output);
}

#[test]
fn go_builds_and_tests() {
    if !possible() || !there("go") {
        return;
    }
    let bench = Bench::new();
    bench.place.write(
        "work/main.go",
        "package main\nfunc main() { println(\"built\") }\n",
    );
    bench.place.write(
        "work/main_test.go",
        "package main\nimport \"testing\"\nfunc TestIt(t *testing.T) {}\n",
    );
    let output = bench.run(
        "go",
        "",
        SYSTEM,
        // The fresh home is below /tmp: Landlock grants nothing that is made beside it later.
        "mkdir t; export GOTMPDIR=$PWD/t; go mod init example.org/one; go build .; go test ./...; go run .",
    );
    bench.done("go", &output);
}
