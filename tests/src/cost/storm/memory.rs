//! How much memory daemon and collector have together, at the most.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// What both have together, in bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Memory {
    /// Resident in each, added up: what they share counts twice, and so does what one has mapped twice, as a ring buffer is.
    pub(super) resident: u64,
    /// Each page once (`Pss`).
    pub(super) proportional: u64,
}

impl Memory {
    fn most(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            proportional: self.proportional.max(other.proportional),
        }
    }
}

/// Looks until it is asked.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Memory>,
}

impl Watch {
    /// Looks at the daemon of this runtime directory and its collector.
    pub(super) fn start(runtime_dir: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let runtime_dir = runtime_dir.to_owned();
        let thread = thread::spawn(move || {
            let mut most = Memory::default();
            while !stopped.load(Ordering::Relaxed) {
                most = most.most(memory(&runtime_dir));
                thread::sleep(PAUSE);
            }
            most
        });
        Self { stop, thread }
    }

    /// The most that both had at a time.
    pub(super) fn most(self) -> Memory {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn memory(runtime_dir: &Path) -> Memory {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Memory::default();
    };
    let ours = processes
        .flatten()
        .map(|process| process.path())
        .filter(|process| is_ours(process, runtime_dir));
    ours.fold(Memory::default(), |sum, process| {
        let text = fs::read_to_string(process.join("smaps_rollup")).unwrap_or_default();
        Memory {
            resident: sum.resident + figure(&text, "Rss:"),
            proportional: sum.proportional + figure(&text, "Pss:"),
        }
    })
}

/// Whether a process is `agentwatch daemon` or `agentwatch collector` of this runtime directory.
fn is_ours(process: &Path, runtime_dir: &Path) -> bool {
    let Ok(line) = fs::read(process.join("cmdline")) else {
        return false;
    };
    let mut arguments = line.split(|byte| *byte == 0);
    let command = arguments.nth(1);
    matches!(command, Some(b"daemon" | b"collector"))
        && arguments.any(|argument| argument == runtime_dir.as_os_str().as_encoded_bytes())
}

/// A figure of the kernel's, in bytes.
fn figure(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or_default() << 10
}
