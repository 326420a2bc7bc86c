//! How much memory daemon and collector have together, at the most.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Looks until it is asked.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    /// Looks at the daemon of this runtime directory and its collector.
    pub(super) fn start(runtime_dir: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let runtime_dir = runtime_dir.to_owned();
        let thread = thread::spawn(move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                most = most.max(resident(&runtime_dir));
                thread::sleep(PAUSE);
            }
            most
        });
        Self { stop, thread }
    }

    /// The most bytes that both had resident at a time.
    pub(super) fn most(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn resident(runtime_dir: &Path) -> u64 {
    let Ok(processes) = fs::read_dir("/proc") else {
        return 0;
    };
    processes
        .flatten()
        .filter(|process| is_ours(&process.path(), runtime_dir))
        .filter_map(|process| status(process.path().join("status")))
        .sum()
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

/// `VmRSS`, in bytes.
fn status(path: PathBuf) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
