//! The processes of all sessions: what a record cannot carry each time (executable, arguments, directory) is kept here
//! from their start to their end.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

/// Names a process for as long as the host runs.
pub type ProcessKey = (u32, u64);

/// What is known of a process.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub exe: Arc<str>,
    pub argv: Arc<[String]>,
    pub argv_truncated: bool,
    pub cwd: Arc<str>,
}

/// Processes that are kept at the most; beyond, those that no longer run are looked for and dropped.
const MOST: usize = 1 << 16;

#[derive(Default)]
pub struct Processes {
    known: HashMap<ProcessKey, Known>,
}

impl Processes {
    pub fn get(&self, key: ProcessKey) -> Option<&Known> {
        self.known.get(&key)
    }

    /// A process was made: it runs what its maker runs.
    pub fn forked(&mut self, child: ProcessKey, parent: ProcessKey) {
        let known = self.known_or_read(parent).clone();
        self.insert(child, known);
    }

    pub fn executed(&mut self, key: ProcessKey, known: Known) {
        self.insert(key, known);
    }

    pub fn ended(&mut self, key: ProcessKey) -> Option<Known> {
        self.known.remove(&key)
    }

    /// What is known of a process that lives, by its number alone.
    pub fn living(&self, pid: u32) -> Known {
        let key = self
            .known
            .keys()
            .filter(|(number, _)| *number == pid)
            .max_by_key(|(_, start)| *start);
        key.and_then(|key| self.known.get(key))
            .cloned()
            .unwrap_or_else(|| read(pid))
    }

    /// What is known of a process that acts. A verdict can arrive before word of the process that met it: then it is what
    /// its parent is.
    pub fn acting(&mut self, key: ProcessKey, parent: ProcessKey) -> &Known {
        if !self.known.contains_key(&key)
            && let Some(known) = self.known.get(&parent).cloned()
        {
            self.insert(key, known);
        }
        self.known_or_read(key)
    }

    /// What is known of a process, or what /proc says of it: a session may begin after its processes.
    fn known_or_read(&mut self, key: ProcessKey) -> &Known {
        self.known.entry(key).or_insert_with(|| read(key.0))
    }

    fn insert(&mut self, key: ProcessKey, known: Known) {
        if self.known.len() >= MOST {
            self.known
                .retain(|(pid, _), _| PathBuf::from(format!("/proc/{pid}")).exists());
        }
        self.known.insert(key, known);
    }
}

fn read(pid: u32) -> Known {
    let Ok(process) = procfs::process::Process::new(pid.cast_signed()) else {
        return Known::default();
    };
    let text = |path: Result<PathBuf, _>| {
        path.map_or_else(
            |_| Arc::from(""),
            |path: PathBuf| Arc::from(path.to_string_lossy()),
        )
    };
    Known {
        exe: text(process.exe()),
        argv: process.cmdline().unwrap_or_default().into(),
        argv_truncated: false,
        cwd: text(process.cwd()),
    }
}
