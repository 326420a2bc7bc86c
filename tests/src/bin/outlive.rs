//! Kills the daemon under load and looks at what goes on without it, and exchanges policies under load: on a line each
//! `PASS` or `FAIL`, and the line for machines. Needs root; meant for kernels with BPF LSM, where the daemon's own tests do
//! not run. The same program is the load, inside the session.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use agentwatch_tests::harness::agentwatch::Agentwatch;
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, setsid},
};
use serde_json::{Value, json};

/// How long anything that must happen may take, under emulation.
const PATIENCE: Duration = Duration::from_secs(300);

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
    /// The load: opens, forks and reports until there is a file `enough`
    Load { dir: PathBuf },
}

fn main() -> ExitCode {
    match Options::parse().what {
        What::Load { dir } => load(&dir),
        What::All { agentwatch, only } => {
            let cases: [(&str, Case); 4] = [
                ("outlive_killed_under_load", killed_under_load),
                ("outlive_other_programs", other_programs),
                ("outlive_stopped_and_released", stopped_and_released),
                ("outlive_policies_exchanged_whole", exchanged),
            ];
            let mut good = true;
            for (name, case) in cases {
                if !name.contains(&only) {
                    continue;
                }
                let result = Place::new(&agentwatch)
                    .and_then(|place| case(&place).inspect_err(|_| println!("{}", place.log())));
                let (status, reason) = match result {
                    Ok(()) => ("pass", String::new()),
                    Err(error) if error.is::<Skipped>() => ("skip", error.to_string()),
                    Err(error) => ("fail", format!("{error:#}")),
                };
                good &= status != "fail";
                println!("{} {name} {reason}", status.to_uppercase());
                println!(
                    "@result {}",
                    json!({"name": name, "status": status, "reason": reason})
                );
            }
            if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// A case that this kernel cannot show.
#[derive(Debug)]
struct Skipped;

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("without BPF LSM files are held by Landlock, which stays for good")
    }
}

impl std::error::Error for Skipped {}

/// Looks at one thing on a place of its own.
type Case = fn(&Place) -> Result<()>;

/// What the load did: how often each of its files was opened and refused, a line a round.
fn load(dir: &Path) -> ExitCode {
    let report = dir.join("work/report");
    let tell = |text: &str| {
        use std::io::Write as _;
        let file = fs::File::options().create(true).append(true).open(&report);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("the report can be written");
    };
    let open = |name: &str| match fs::read(dir.join(name)) {
        Ok(_) => 'y',
        Err(error) if error.kind() == ErrorKind::PermissionDenied => 'n',
        Err(_) => '?',
    };
    while !dir.join("work/enough").exists() {
        let round = || -> String {
            ["always", "never", "first", "second"]
                .map(open)
                .iter()
                .collect()
        };
        tell(&format!("{}\n", round()));
        // SAFETY: no other thread exists.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                let _ = setsid();
                tell(&format!("{}\n", round()));
                std::process::exit(0);
            }
            Ok(ForkResult::Parent { child }) => {
                let _ = waitpid(child, None);
            }
            Err(_) => {}
        }
    }
    ExitCode::from(7)
}

struct Place {
    dir: tempfile::TempDir,
    agentwatch: Agentwatch,
}

impl Place {
    fn new(binary: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("agentwatch-outlive-")
            .tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        for name in ["work", "run", "state"] {
            fs::create_dir(dir.path().join(name))?;
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755))?;
        }
        for name in ["always", "never", "first", "second"] {
            fs::write(dir.path().join(name), name)?;
        }
        let agentwatch = Agentwatch {
            binary: binary.canonicalize()?,
            runtime_dir: dir.path().join("run"),
        };
        Ok(Self { dir, agentwatch })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    fn daemon(&self) -> Result<Child> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path().join("log"))?;
        let child = self
            .agentwatch
            .command(&["daemon", "--state-dir"])
            .arg(self.path().join("state"))
            .env("NO_COLOR", "1")
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = u64::from(child.id());
        eventually("the daemon answers", || {
            let status = self.agentwatch.status().ok()?;
            (status["pid"] == pid && status["collector"] == "connected").then_some(())
        })?;
        Ok(child)
    }

    /// Files that may be read besides what the load itself needs.
    fn policy(&self, name: &str, read: &[&str]) -> Result<PathBuf> {
        let own = std::env::current_exe()?;
        let own = own.parent().context("a directory")?;
        let quoted: Vec<String> = read
            .iter()
            .map(|name| format!("'{}'", self.path().join(name).display()))
            .collect();
        let path = self.path().join(name);
        fs::write(
            &path,
            format!(
                "[files]\nread = ['/proc', '/usr', '/lib', '/lib64', '/etc/ld.so.cache', {}]\nexec = ['/usr', '/lib', '/lib64', '{}']\nwrite = ['{}/work']\n",
                quoted.join(", "),
                own.display(),
                self.path().display()
            ),
        )?;
        Ok(path)
    }

    fn needs_lsm(&self) -> Result<()> {
        let backends = self.agentwatch.status()?["backends"].clone();
        let has = backends
            .as_array()
            .is_some_and(|names| names.iter().any(|name| name == "bpf-lsm"));
        if has { Ok(()) } else { Err(Skipped.into()) }
    }

    fn load(&self, name: &str, policy: &Path) -> Result<Child> {
        let _ = fs::remove_file(self.path().join("work/enough"));
        let _ = fs::remove_file(self.path().join("work/report"));
        let child = self
            .agentwatch
            .command(&["run", "--name", name, "--policy"])
            .arg(policy)
            .arg("--")
            .arg(std::env::current_exe()?)
            .arg("load")
            .arg(self.path())
            .current_dir(self.path().join("work"))
            .stdout(Stdio::null())
            .spawn()?;
        self.go_on(20)?;
        Ok(child)
    }

    fn report(&self) -> Vec<String> {
        fs::read_to_string(self.path().join("work/report"))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Waits for so many further rounds of the load.
    fn go_on(&self, rounds: usize) -> Result<()> {
        let before = self.report().len();
        eventually("the load goes on", || {
            (self.report().len() >= before + rounds).then_some(())
        })
    }

    fn calm(&self, load: &mut Child) -> Result<()> {
        fs::write(self.path().join("work/enough"), "")?;
        let status = load.wait()?;
        ensure!(
            status.code() == Some(7),
            "the command's exit code: {status}"
        );
        Ok(())
    }

    fn ended(&self, session: &str) -> Result<Vec<Value>> {
        let events = eventually("the session ends", || {
            let events = self.agentwatch.events(session).ok()?;
            events
                .iter()
                .any(|event| event["lifecycle"]["state"] == "ended")
                .then_some(events)
        })?;
        accounted(&events)?;
        Ok(events)
    }

    /// Where this daemon's pins are.
    fn pins(&self) -> Option<PathBuf> {
        fs::read_dir("/sys/fs/bpf/agentwatch")
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .find(|dir| {
                fs::read_link(dir.join("runtime"))
                    .is_ok_and(|runtime| runtime == self.path().join("run"))
            })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::write(self.path().join("work/enough"), "");
        let _ = self
            .agentwatch
            .command(&["release", "--state-dir"])
            .arg(self.path().join("state"))
            .output();
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(start.elapsed() < PATIENCE, "it never came to this: {what}");
        sleep(Duration::from_millis(50));
    }
}

fn end(daemon: &mut Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(daemon.id().cast_signed()), signal)?;
    daemon.wait()?;
    Ok(())
}

/// Every number of the session is stored or declared, once, and every repetition was told once.
fn accounted(events: &[Value]) -> Result<()> {
    let counts = events
        .iter()
        .find(|event| event["lifecycle"]["state"] == "ended")
        .context("it has ended")?["lifecycle"]["counts"]
        .clone();
    let count = |name: &str| counts[name].as_u64().unwrap_or(u64::MAX);
    let stored = events.iter().filter(|event| event["seq"] != 0).count() as u64;
    let sum =
        |values: &mut dyn Iterator<Item = &Value>| values.filter_map(Value::as_u64).sum::<u64>();
    let lost = sum(&mut events.iter().map(|event| &event["loss"]["events"]));
    let told = sum(&mut events
        .iter()
        .filter(|event| !event["fold"].is_null())
        .map(|event| &event["count"]));
    ensure!(
        count("made") == count("delivered") + count("folded") + count("lost")
            && (stored, lost, told) == (count("delivered"), count("lost"), count("folded")),
        "stored {stored}, declared lost {lost}, told repetitions {told}: {counts}"
    );
    println!("  account: {counts}");
    Ok(())
}

fn only(place: &Place, expected: &[&str]) -> Result<()> {
    let report = place.report();
    for line in &report {
        ensure!(
            expected.contains(&line.as_str()),
            "the load reports {line:?} (always, never, first, second)"
        );
    }
    println!("  {} rounds", report.len());
    Ok(())
}

fn killed_under_load(place: &Place) -> Result<()> {
    let mut daemon = place.daemon()?;
    let policy = place.policy("a.toml", &["always", "first"])?;
    let mut load = place.load("killed", &policy)?;
    for _ in 0..2 {
        end(&mut daemon, Signal::SIGKILL)?;
        place.go_on(100)?;
        only(place, &["ynyn"])?;
        let begun = Instant::now();
        daemon = place.daemon()?;
        println!(
            "  taken over and answering after {} ms",
            begun.elapsed().as_millis()
        );
        ensure!(
            place.log().contains("programs=Adopted"),
            "the programs were not adopted"
        );
        place.go_on(50)?;
    }
    place.calm(&mut load)?;
    let events = place.ended("killed")?;
    only(place, &["ynyn"])?;
    let last = events.last().context("events")?;
    ensure!(last["lifecycle"]["exit_code"] == 7, "{last}");
    ensure!(
        events
            .iter()
            .any(|event| event["verdict"] == "denied" && event["rule"]["id"] == "files.default"),
        "denials are in the record"
    );
    end(&mut daemon, Signal::SIGTERM)?;
    ensure!(place.pins().is_none(), "nothing stays without a session");
    Ok(())
}

/// A daemon with other programs takes over: no moment is left open.
fn other_programs(place: &Place) -> Result<()> {
    let mut daemon = place.daemon()?;
    let policy = place.policy("a.toml", &["always", "first"])?;
    let mut load = place.load("replaced", &policy)?;
    end(&mut daemon, Signal::SIGKILL)?;
    // What is attached says that it comes from another build.
    let current = place.pins().context("pins")?.join("current");
    let text = fs::read_link(&current)?;
    let text = text.to_str().context("text")?;
    let mut parts: Vec<&str> = text.split(':').collect();
    ensure!(parts.len() == 4, "{text}");
    parts[1] = "00";
    fs::remove_file(&current)?;
    std::os::unix::fs::symlink(parts.join(":"), &current)?;
    let mut daemon = place.daemon()?;
    ensure!(
        place.log().contains("programs=Replaced"),
        "the programs were not replaced"
    );
    place.go_on(50)?;
    place.calm(&mut load)?;
    only(place, &["ynyn"])?;
    place.ended("replaced")?;
    end(&mut daemon, Signal::SIGTERM)
}

fn stopped_and_released(place: &Place) -> Result<()> {
    let mut daemon = place.daemon()?;
    place.needs_lsm()?;
    let policy = place.policy("a.toml", &["always", "first"])?;
    let mut load = place.load("stopped", &policy)?;
    end(&mut daemon, Signal::SIGTERM)?;
    place.go_on(50)?;
    only(place, &["ynyn"])?;
    let daemon = place.daemon()?;
    let released = place.agentwatch.command(&["release"]).output()?;
    ensure!(released.status.success(), "{released:?}");
    ensure!(place.pins().is_none(), "everything is gone");
    place.go_on(10)?;
    place.calm(&mut load)?;
    ensure!(
        place.report().iter().any(|line| line == "yyyy"),
        "nothing is held any more"
    );
    drop(daemon);
    let mut daemon = place.daemon()?;
    let events = place.ended("stopped")?;
    let reason = &events.last().context("events")?["lifecycle"]["reason"];
    ensure!(reason == "released", "{reason}");
    end(&mut daemon, Signal::SIGTERM)
}

fn exchanged(place: &Place) -> Result<()> {
    let mut daemon = place.daemon()?;
    place.needs_lsm()?;
    let a = place.policy("a.toml", &["always", "first"])?;
    let b = place.policy("b.toml", &["second", "always"])?;
    let mut load = place.load("exchanged", &a)?;
    let rounds = 20;
    for round in 0..rounds {
        let policy = if round % 2 == 0 { &b } else { &a };
        let output = place
            .agentwatch
            .command(&["reload", "exchanged", "--policy"])
            .arg(policy)
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        if round == rounds / 2 {
            end(&mut daemon, Signal::SIGKILL)?;
            daemon = place.daemon()?;
        }
        place.go_on(2)?;
    }
    place.calm(&mut load)?;
    // One round can stand on both sides of an exchange; what both policies say of a file holds in each.
    only(place, &["ynyn", "ynny", "ynyy", "ynnn"])?;
    let report = place.report();
    for whole in ["ynyn", "ynny"] {
        ensure!(
            report.iter().any(|line| line == whole),
            "{whole} was never so"
        );
    }
    let events = place.ended("exchanged")?;
    let exchanges: Vec<&Value> = events
        .iter()
        .filter(|event| event["lifecycle"]["state"] == "reloaded")
        .collect();
    ensure!(
        exchanges.len() == rounds,
        "{} exchanges are in the record",
        exchanges.len()
    );
    let (of_b, of_a) = (
        &exchanges[0]["lifecycle"]["policy"],
        &exchanges[1]["lifecycle"]["policy"],
    );
    let mut judged = 0;
    for event in &events {
        let path = event["file"]["path"].as_str().unwrap_or_default();
        let Some(name) = Path::new(path).file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if event["kind"] != "open" || Path::new(path).parent() != Some(place.path()) {
            continue;
        }
        let policy = &event["session"]["policy"];
        let may = match name {
            "always" => true,
            "never" => false,
            "first" => policy == of_a,
            "second" => policy == of_b,
            _ => continue,
        };
        judged += 1;
        if policy != of_a && policy != of_b || may != (event["verdict"] == "allowed") {
            bail!("judged by neither policy: {event}");
        }
    }
    println!("  {judged} verdicts in {rounds} exchanges, each of one policy");
    end(&mut daemon, Signal::SIGTERM)
}
