//! Times single actions with the monotonic clock.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    hint::black_box,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::{OFlag, open},
    sys::{stat::Mode, wait::waitpid},
    time::{ClockId, clock_gettime},
    unistd::{ForkResult, fork},
};
use serde::{Deserialize, Serialize};

use super::{DENIED, DIR};

/// What a result line begins with.
pub const MARK: &str = "@cost";

/// The cost of one action under one configuration, in nanoseconds of the clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    pub config: String,
    pub action: String,
    /// The cheapest batch's mean: the action's own path, undisturbed.
    pub least: u64,
    /// The mean of all batches: with whatever else ran on the processor because of it, such as the daemon.
    pub mean: u64,
}

/// Measures every action and prints a line for each. `effort` scales the number of repetitions, 100 being the usual.
pub fn all(config: &str, effort: u64) -> Result<()> {
    let dir = Path::new(DIR);
    fs::create_dir_all(dir)?;
    let scaled = |number: u64| scaled(number, effort);
    let measure = |action: &str,
                   times: u64,
                   batches: u64,
                   work: &mut dyn FnMut() -> Result<()>|
     -> Result<()> {
        let cost = batch(config, action, scaled(times), scaled(batches), work)
            .with_context(|| action.to_owned())?;
        print(&cost)
    };
    for depth in [4, 12, 24] {
        let path = CString::new(deep_file(dir, depth)?.to_string_lossy().as_bytes())?;
        measure(
            &format!("open + close, depth {depth}"),
            300,
            30,
            &mut || {
                drop(read_only(&path)?);
                Ok(())
            },
        )?;
    }
    let (times, batches) = (50, 20);
    // Names as long under every configuration: a look-up costs what there is to compare.
    let fresh_dir = dir.join("first");
    if fresh_dir.exists() {
        fs::remove_dir_all(&fresh_dir)?;
    }
    fs::create_dir(&fresh_dir)?;
    let mut fresh = Vec::new();
    for number in 0..scaled(times) * (scaled(batches) + 1) {
        let path = fresh_dir.join(number.to_string());
        fs::write(&path, "x")?;
        fresh.push(CString::new(path.to_string_lossy().as_bytes())?);
    }
    measure("first open + close of a file", times, batches, &mut || {
        let path = fresh.pop().context("there are as many files as opens")?;
        drop(read_only(&path)?);
        Ok(())
    })?;
    // Denied in sessions that enforce; elsewhere it is opened.
    let denied = CString::new(dir.join(DENIED).to_string_lossy().as_bytes())?;
    measure("open of a denied file", 300, 30, &mut || {
        drop(read_only(&denied));
        Ok(())
    })?;
    let file_path = deep_file(dir, 4)?;
    measure("stat", 300, 30, &mut || {
        black_box(nix::sys::stat::stat(&file_path)?);
        Ok(())
    })?;
    let file = File::open(&file_path)?;
    let mut byte = [0];
    measure("read", 300, 30, &mut || {
        black_box(file.read_at(&mut byte, 0)?);
        Ok(())
    })?;
    // In a process of its own that is alike under every configuration: of what this one has in its memory and its environment, a fork
    // copies the pages and an execution the strings.
    let status = Command::new(std::env::current_exe()?)
        .args(["executions", "--config", config])
        .args(["--effort", &effort.to_string()])
        .env_clear()
        .status()
        .context("measure executions")?;
    ensure!(status.success(), "measuring executions ended with {status}");
    let listener = TcpListener::bind("127.0.0.1:7001")?;
    let peer = listener.local_addr()?;
    measure("TCP connect + accept + close", 30, 20, &mut || {
        let client = TcpStream::connect(peer)?;
        drop(listener.accept()?);
        drop(client);
        Ok(())
    })?;
    let receiver = UdpSocket::bind("127.0.0.1:7002")?;
    let sender = UdpSocket::bind("127.0.0.1:7003")?;
    let mut buffer = [0; 16];
    measure("UDP sendto + recv", 100, 20, &mut || {
        sender.send_to(b"hello", "127.0.0.1:7002")?;
        black_box(receiver.recv(&mut buffer)?);
        Ok(())
    })
}

/// Measures executions and prints their line.
pub fn executions(config: &str, effort: u64) -> Result<()> {
    // One at a time: a timer's tick, what is freed late and what the daemon does meanwhile are not the action's own path, and a tick
    // falls into every third of them.
    let batches = scaled(300, effort);
    let cost = batch(config, "fork + exec + wait", 1, batches, &mut || {
        spawn(c"/bin/true")
    })?;
    print(&cost)
}

/// Of so many repetitions, what an effort asks for: 100 is the usual.
fn scaled(number: u64, effort: u64) -> u64 {
    (number * effort / 100).max(2)
}

fn print(cost: &Cost) -> Result<()> {
    println!("{MARK} {}", serde_json::to_string(cost)?);
    Ok(())
}

fn read_only(path: &CStr) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// A file so many components below the root of the tmpfs.
fn deep_file(dir: &Path, depth: usize) -> Result<PathBuf> {
    // The measured directory is the first component, the file the last.
    let below = (0..depth.saturating_sub(2))
        .fold(dir.to_owned(), |path, level| path.join(format!("d{level}")));
    fs::create_dir_all(&below)?;
    let path = below.join("file");
    if !path.exists() {
        fs::write(&path, "x")?;
    }
    Ok(path)
}

fn spawn(program: &CStr) -> Result<()> {
    let arguments = [program];
    // SAFETY: this program has one thread, and the child only executes or ends.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let _ = nix::unistd::execv(program, &arguments);
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
            Ok(())
        }
    }
}

fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

/// Runs the batches; what an empty loop costs is taken off.
fn batch(
    config: &str,
    action: &str,
    times: u64,
    batches: u64,
    work: &mut dyn FnMut() -> Result<()>,
) -> Result<Cost> {
    let time = |work: &mut dyn FnMut() -> Result<()>| -> Result<u64> {
        let start = now()?;
        for _ in 0..times {
            black_box(&mut *work)()?;
        }
        Ok(now()? - start)
    };
    // The first of each only warms caches up.
    time(work)?;
    time(&mut || Ok(()))?;
    let empty = time(&mut || Ok(()))?;
    let each = (0..batches)
        .map(|_| Ok(time(work)?.saturating_sub(empty)))
        .collect::<Result<Vec<u64>>>()?;
    let least = each.iter().min().copied().unwrap_or(0);
    Ok(Cost {
        config: config.to_owned(),
        action: action.to_owned(),
        least: least / times,
        mean: each.iter().sum::<u64>() / (times * batches),
    })
}
