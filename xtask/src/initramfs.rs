//! The VM's whole file system: a cpio archive with our init, busybox, agentwatch and the test programs.
//!
//! Written here rather than by cpio(1), so that it needs no root for owners and device nodes and comes out the same every
//! time. The job that it carries is read by `tests/src/vm.rs`.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    build::Guest,
    kernels::{Kernel, MODULES},
    paths, process, setup,
};

/// Where the test programs lie in the VM.
pub const PROGRAMS: &str = "/usr/lib/agentwatch-tests";

/// Where the scenarios lie in the VM.
pub const SCENARIOS: &str = "/usr/share/agentwatch-tests/scenarios";

/// Where the conformance families lie in the VM.
pub const CONFORMANCE: &str = "/usr/share/agentwatch-tests/conformance";

/// This machine's own tools: what sessions are tried with, and what stands in for applets, because busybox runs those without executing
/// anything, and scenarios count executions.
const HOST_TOOLS: [&str; 13] = [
    "dash",
    "git",
    "cat",
    "tr",
    "wc",
    "head",
    "unshare",
    "mount",
    "bwrap",
    "make",
    "tcc",
    "mkfs.btrfs",
    "btrfs",
];

/// The job as `tests/src/vm.rs` reads it.
#[derive(Clone, Debug, Serialize)]
pub struct Job {
    pub command: Vec<String>,
    pub modules: Vec<String>,
    pub interactive: bool,
    /// Whether the root is the first disk.
    pub disk: bool,
    pub env: std::collections::BTreeMap<String, String>,
}

impl Job {
    /// A job with a command and nothing else out of the ordinary.
    pub fn new(command: &[&str]) -> Job {
        Job {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            modules: MODULES.map(str::to_owned).to_vec(),
            interactive: false,
            disk: false,
            env: Default::default(),
        }
    }
}

/// Everything but the kernel's modules and the job, gathered once for several VMs.
pub struct Image {
    base: Archive,
}

impl Image {
    /// Gathers the programs. `host_programs` are dynamic ones of this machine that come along with their libraries.
    pub fn gather(agentwatch: &Path, guest: &Guest, host_programs: &[PathBuf]) -> Result<Image> {
        let mut base = Archive::default();
        for dir in [
            "etc",
            "usr/bin",
            "usr/lib/modules",
            "usr/lib64",
            "proc",
            "sys",
            "dev",
            "tmp",
            "run",
            "var/lib",
            "home",
            "mnt",
        ] {
            base.dir(dir, 0o755, 0);
        }
        base.dir("root", 0o700, 0);
        base.dir("home/user", 0o755, 1000);
        for (link, to) in [
            ("bin", "usr/bin"),
            ("sbin", "usr/bin"),
            ("usr/sbin", "bin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            base.symlink(link, to);
        }
        // The kernel opens this for init before anything is mounted.
        base.character_device("dev/console", 5, 1);
        base.file("init", &fs::read(guest.program("init"))?, 0o755);
        base.tree("etc", &paths::repository().join("tests/fixtures/vm/etc"))?;
        base.file(
            "etc/shadow",
            &fs::read(paths::repository().join("tests/fixtures/vm/etc/shadow"))?,
            0o600,
        );

        for name in HOST_TOOLS {
            let program =
                process::find(name).with_context(|| format!("this machine has no {name}"))?;
            base.program(&format!("usr/bin/{name}"), &program)?;
        }
        // What a clone asks for by its own name.
        base.symlink("usr/bin/git-upload-pack", "git");
        let busybox = setup::busybox()?;
        base.file("usr/bin/busybox", &fs::read(&busybox)?, 0o755);
        for applet in process::output(Command::new(&busybox).arg("--list"))?
            .lines()
            .filter(|name| *name != "busybox")
        {
            base.symlink(&format!("usr/bin/{applet}"), "busybox");
        }
        for name in ["act", "scenarios", "cost", "landlocked", "outlive", "holds"] {
            base.program(&format!("{}/{name}", &PROGRAMS[1..]), &guest.program(name))?;
        }
        for (inside, folder) in [(SCENARIOS, "scenarios"), (CONFORMANCE, "conformance")] {
            base.tree(
                &inside[1..],
                &paths::repository().join("tests").join(folder),
            )?;
        }
        base.program("usr/bin/agentwatch", agentwatch)?;
        for program in host_programs {
            let name = program
                .file_name()
                .context("a program has a name")?
                .to_string_lossy();
            base.program(&format!("usr/bin/{name}"), program)?;
        }
        Ok(Image { base })
    }

    /// Writes the archive for one VM.
    pub fn write(&self, to: &Path, kernel: &Kernel, job: &Job) -> Result<()> {
        let mut archive = self.base.clone();
        for module in &kernel.modules {
            let name = module
                .file_name()
                .context("a module has a name")?
                .to_string_lossy();
            archive.file(
                &format!("usr/lib/modules/{name}"),
                &fs::read(module)?,
                0o644,
            );
        }
        archive.file("etc/agentwatch-vm.json", &serde_json::to_vec(job)?, 0o644);
        fs::write(to, archive.finish()).with_context(|| format!("write {}", to.display()))
    }
}

/// A cpio archive in the "newc" form that the kernel unpacks.
#[derive(Clone, Default)]
struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    fn dir(&mut self, name: &str, mode: u32, owner: u32) {
        self.make_parents(name);
        if self.names.insert(name.to_owned()) {
            self.entry(name, 0o040_000 | mode, owner, (0, 0), &[]);
        }
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) {
        self.make_parents(name);
        // The last of several entries with one name stays: that is how a file is replaced.
        self.names.insert(name.to_owned());
        self.entry(name, 0o100_000 | mode, 0, (0, 0), content);
    }

    /// Nothing is done where the name is taken: an applet must not hide a program.
    fn symlink(&mut self, name: &str, to: &str) {
        self.make_parents(name);
        if self.names.insert(name.to_owned()) {
            self.entry(name, 0o120_777, 0, (0, 0), to.as_bytes());
        }
    }

    fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.names.insert(name.to_owned());
        self.entry(name, 0o020_600, 0, (major, minor), &[]);
    }

    /// The files of a directory of this machine, one level after the other.
    fn tree(&mut self, name: &str, from: &Path) -> Result<()> {
        self.dir(name, 0o755, 0);
        let mut entries = fs::read_dir(from)
            .with_context(|| format!("read {}", from.display()))?
            .collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let inside = format!("{name}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.tree(&inside, &entry.path())?;
            } else {
                let mode = entry.metadata()?.permissions().mode() & 0o777;
                self.file(&inside, &fs::read(entry.path())?, mode);
            }
        }
        Ok(())
    }

    /// A program without its debug information, and the shared libraries that it asks for.
    fn program(&mut self, name: &str, from: &Path) -> Result<()> {
        let stripped = tempfile::NamedTempFile::new()?;
        process::run(
            Command::new("strip")
                .arg("--strip-debug")
                .arg("-o")
                .arg(stripped.path())
                .arg(from),
        )?;
        // A link of this name (an applet of busybox) would be written through: unlike a file, it is not replaced.
        self.file(name, &fs::read(stripped.path())?, 0o755);
        // A static program makes ldd fail, and needs nothing.
        let needed = process::output(Command::new("ldd").arg(from)).unwrap_or_default();
        for line in needed.lines() {
            let path = line.split_whitespace().find(|word| word.starts_with('/'));
            if let Some(path) = path {
                // `lib` and `lib64` are links to the ones below `usr` here as there.
                let inside = if path.starts_with("/usr/") {
                    path[1..].to_owned()
                } else {
                    format!("usr{path}")
                };
                if !self.names.contains(&inside) {
                    self.file(&inside, &fs::read(path)?, 0o755);
                }
            }
        }
        Ok(())
    }

    fn make_parents(&mut self, name: &str) {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.dir(parent, 0o755, 0);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, owner: u32, device: (u32, u32), content: &[u8]) {
        let inode = self.names.len() as u32;
        // Fields: inode, mode, uid, gid, links, time, size, device of the file system (2), device (2), length of the name, checksum.
        let fields = [
            inode,
            mode,
            owner,
            owner,
            1,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_parents_come_first() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"12345", 0o644);
        archive.symlink("a/b/c", "elsewhere");
        assert_eq!(archive.bytes.len() % 4, 0);
        assert_eq!(
            archive.names.iter().map(String::as_str).collect::<Vec<_>>(),
            ["a", "a/b", "a/b/c"]
        );
        let text = String::from_utf8_lossy(&archive.bytes).into_owned();
        assert_eq!(
            text.matches("070701").count(),
            3,
            "the link must not hide the file"
        );
        let order: Vec<usize> = ["a\0", "a/b\0", "a/b/c\0"]
            .iter()
            .map(|name| text.find(name).unwrap())
            .collect();
        assert!(order.is_sorted());
    }
}
