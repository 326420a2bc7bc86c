//! Boots a kernel in QEMU without KVM and carries one command's output and exit code out of it.
//!
//! The kernel's console goes to a file, the command has the second serial port to itself: kernel messages never
//! mix with results. A VM that does not end by itself is killed, and the end of its console is shown.

use std::{
    fmt, fs,
    io::{IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    build::{self, Guest},
    initramfs::{Image, Job},
    kernels::{self, Kernel},
    process, setup, tools,
};

#[derive(Args)]
pub struct Options {
    /// Series of the kernel: 6.1, 6.12, 7.2.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Killed after so many seconds; 0: never. The default is 600 for a command and never for a shell.
    #[arg(long)]
    timeout: Option<u64>,
    /// Keep the kernel's console in this file.
    #[arg(long)]
    console: Option<PathBuf>,
    /// With agentwatch as `cargo build` makes it: sooner there, slower in use.
    #[arg(long)]
    debug: bool,
    /// On a disk with git, make, gcc, python, cargo, go and npm.
    #[arg(long)]
    tools: bool,
    /// One processor, whose clock counts instructions.
    #[arg(long)]
    count_instructions: bool,
    /// Also take this program of the host along, with its libraries.
    #[arg(long)]
    with: Vec<PathBuf>,
    /// The command; a shell where there is none.
    #[arg(last = true)]
    command: Vec<String>,
}

/// What a VM's init agrees with us to mark the exit code by (`tests/src/vm.rs`).
const EXIT_MARK: &str = "agentwatch-vm-exit ";

/// The byte before the mark.
const RECORD_SEPARATOR: u8 = 0x1e;

/// The LSMs that Debian's kernels have built in, with `bpf` switched on.
const LSMS: &str = "landlock,lockdown,yama,integrity,apparmor,bpf";
const WITHOUT_BPF: &str = "landlock,lockdown,yama,integrity,apparmor";

/// How the machine is to be.
#[derive(Clone, Debug)]
pub struct Machine {
    pub cpus: u32,
    pub memory_mib: u32,
    /// One guest nanosecond is one instruction.
    pub count_instructions: bool,
    pub timeout: Option<Duration>,
    /// An ext4 image that its root is on. What is written there is gone with the VM.
    pub disk: Option<PathBuf>,
    /// BPF is not among its LSMs: programs load and attach there, and are never asked.
    pub without_bpf_lsm: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Machine {
            cpus: 2,
            memory_mib: 1536,
            count_instructions: false,
            timeout: Some(Duration::from_secs(600)),
            disk: None,
            without_bpf_lsm: false,
        }
    }
}

/// The guest's kernel died of a breakpoint of its own: it stands in its code while that is changed (a static key, a tracepoint, a
/// trampoline), and another processor ran it after it had been taken back. Real processors cannot; QEMU's can, each in a thread of its
/// own, rarely (multipath-tcp/mptcp_net-next issue 471 has the same). It says nothing of what was being tested.
#[derive(Debug)]
pub struct StaleCode(String);

impl StaleCode {
    /// What the console says then: nothing else puts a breakpoint into this kernel.
    const SIGN: &str = "int3: 0000";
}

impl fmt::Display for StaleCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for StaleCode {}

/// `cargo xtask vm`.
pub fn run(options: &Options) -> Result<ExitCode> {
    let kernel = kernels::fetch(&options.kernel)?;
    let image = image(&options.with, !options.debug)?;
    let interactive = options.command.is_empty();
    let mut job = if interactive {
        println!("a shell on {} (Ctrl-D ends it)", kernel.version);
        Job::new(&["/bin/sh", "-l"])
    } else {
        Job::new(
            &options
                .command
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>(),
        )
    };
    job.interactive = interactive;
    let timeout = match options.timeout {
        Some(0) => None,
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => (!interactive).then_some(Duration::from_secs(600)),
    };
    let code = boot(
        &kernel,
        &image,
        &job,
        Machine {
            cpus: if options.count_instructions { 1 } else { 2 },
            count_instructions: options.count_instructions,
            timeout,
            disk: options.tools.then(tools::disk).transpose()?,
            ..Machine::default()
        },
        options.console.as_deref(),
        &mut |bytes| {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            Ok(out.flush()?)
        },
    )?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Builds what goes into a VM.
pub fn image(host_programs: &[PathBuf], release: bool) -> Result<Image> {
    setup::for_testing()?;
    let agentwatch = build::agentwatch(release)?;
    Image::gather(&agentwatch, &Guest::build()?, host_programs)
}

/// Runs the job, gives its output to `sink` as it comes, and returns its exit code.
pub fn boot(
    kernel: &Kernel,
    image: &Image,
    job: &Job,
    machine: Machine,
    console: Option<&Path>,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<i32> {
    let scratch = tempfile::tempdir()?;
    let initramfs = scratch.path().join("initramfs");
    let job = Job {
        disk: machine.disk.is_some(),
        ..job.clone()
    };
    image.write(&initramfs, kernel, &job)?;
    let log = console.map_or_else(|| scratch.path().join("console"), Path::to_owned);
    let stdin = if job.interactive {
        Stdio::inherit()
    } else {
        Stdio::null()
    };
    let mut command = qemu(kernel, &initramfs, &log, &machine, job.interactive);
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run `{}`", process::line(&command)))?;
    let outcome = follow(&mut child, machine.timeout, sink);
    // Whatever happened, no VM stays behind.
    let _ = child.kill();
    let status = child.wait()?;
    if job.interactive && std::io::stdin().is_terminal() {
        // A QEMU that was killed leaves the terminal raw.
        let _ = Command::new("stty").arg("sane").status();
    }
    let code = outcome.and_then(|code| {
        code.with_context(|| format!("the VM ended ({status}) before its command did"))
    });
    code.map_err(|error| {
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let is_stale = text.contains(StaleCode::SIGN);
        let lines: Vec<&str> = text.lines().collect();
        let tail = match &lines[lines.len().saturating_sub(40)..] {
            [] => "is empty".to_owned(),
            tail => format!("ends with:\n{}", tail.join("\n")),
        };
        let told = format!("VM with {}: {error:#}; its console {tail}", kernel.version);
        if is_stale {
            StaleCode(told).into()
        } else {
            anyhow::Error::msg(told)
        }
    })
}

fn qemu(
    kernel: &Kernel,
    initramfs: &Path,
    console: &Path,
    machine: &Machine,
    interactive: bool,
) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-M",
        "q35",
        "-cpu",
        "max",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-monitor",
        "none",
        "-no-reboot",
    ]);
    if machine.count_instructions {
        command.args([
            "-accel",
            "tcg,thread=single",
            "-icount",
            "shift=0,sleep=off",
        ]);
    } else {
        command.args(["-accel", "tcg,thread=multi"]);
    }
    if let Some(disk) = &machine.disk {
        command.arg("-drive").arg(format!(
            "if=virtio,format=raw,snapshot=on,file={}",
            disk.display()
        ));
    }
    command.arg("-smp").arg(machine.cpus.to_string());
    command.arg("-m").arg(machine.memory_mib.to_string());
    command
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs);
    command.arg("-append").arg(format!(
        "console=ttyS0 panic=-1 quiet lsm={}",
        if machine.without_bpf_lsm {
            WITHOUT_BPF
        } else {
            LSMS
        }
    ));
    command
        .arg("-chardev")
        .arg(format!("file,id=console,path={}", console.display()));
    command.args(["-serial", "chardev:console"]);
    // In a shell, Ctrl-C belongs to the guest.
    command.arg("-chardev").arg(format!(
        "stdio,id=port,signal={}",
        if interactive { "off" } else { "on" }
    ));
    command.args(["-serial", "chardev:port"]);
    command
}

/// Passes the output on until it ends or time is up; the exit code, where its mark came.
fn follow(
    child: &mut Child,
    timeout: Option<Duration>,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Option<i32>> {
    let mut stdout = child.stdout.take().context("standard output is piped")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let deadline = timeout.map(|limit| Instant::now() + limit);
    let mut filter = Filter::default();
    loop {
        let received = match deadline {
            None => receiver
                .recv()
                .map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            Some(deadline) => {
                receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            }
        };
        match received {
            Ok(bytes) => {
                let passed = filter.pass(&bytes);
                if !passed.is_empty() {
                    sink(&passed)?;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(filter.code),
            // QEMU may linger after the guest is done: the code is what counts.
            Err(mpsc::RecvTimeoutError::Timeout) if filter.code.is_some() => return Ok(filter.code),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!(
                    "still running after {} s: killed",
                    timeout.unwrap_or_default().as_secs()
                )
            }
        }
    }
}

/// Takes the line with the exit code out of the stream.
#[derive(Default)]
struct Filter {
    held: Vec<u8>,
    holding: bool,
    code: Option<i32>,
}

impl Filter {
    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if !self.holding && *byte == RECORD_SEPARATOR {
                self.holding = true;
            } else if !self.holding {
                out.push(*byte);
            } else if *byte == b'\n' {
                let line = String::from_utf8_lossy(&self.held).into_owned();
                match line
                    .strip_prefix(EXIT_MARK)
                    .and_then(|code| code.trim().parse().ok())
                {
                    Some(code) => self.code = Some(code),
                    // Somebody else's record: it is output like any other.
                    None => {
                        out.push(RECORD_SEPARATOR);
                        out.append(&mut self.held);
                        out.push(b'\n');
                    }
                }
                self.held.clear();
                self.holding = false;
            } else {
                self.held.push(*byte);
            }
        }
        out
    }
}

/// Collects a VM's output into lines.
#[derive(Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The lines that these bytes complete, without their ends.
    pub fn complete(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            lines.push(
                String::from_utf8_lossy(&line)
                    .trim_end_matches(['\r', '\n'])
                    .to_owned(),
            );
        }
        lines
    }
}

/// The series of a list such as `6.1,7.2`, checked.
pub fn series(name: &str) -> Result<&str> {
    ensure!(
        name.split('.').count() == 2 && name.split('.').all(|part| part.parse::<u32>().is_ok()),
        "{name} is no kernel series: give one like {}, or `native`",
        kernels::SERIES[1]
    );
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_taken_out_wherever_the_pieces_end() {
        let stream = b"hello\n\n\x1eagentwatch-vm-exit 7\nrest";
        for cut in 0..stream.len() {
            let mut filter = Filter::default();
            let mut out = filter.pass(&stream[..cut]);
            out.extend(filter.pass(&stream[cut..]));
            assert_eq!(
                (out.as_slice(), filter.code),
                (&b"hello\n\nrest"[..], Some(7)),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn other_records_pass() {
        let mut filter = Filter::default();
        assert_eq!(filter.pass(b"a\x1eb\nc"), b"a\x1eb\nc");
        assert_eq!(filter.code, None);
    }

    #[test]
    fn only_series_are_series() {
        assert!(series("6.12").is_ok());
        assert!(series("6").is_err());
        assert!(series("latest").is_err());
    }
}
