//! What xtask and the VM's init agree on: where the job lies in the initramfs and how its result is marked.
//!
//! xtask writes these files without linking this crate, so a change here needs one there
//! (`xtask/src/initramfs.rs`, `xtask/src/vm.rs`).

use std::collections::BTreeMap;

use serde::Deserialize;

/// The job in the initramfs.
pub const JOB: &str = "/etc/agentwatch-vm.json";

/// Kernel modules in the initramfs, uncompressed.
pub const MODULES: &str = "/usr/lib/modules";

/// What the line that carries the exit code begins with. A record separator keeps it apart from what people print.
pub const EXIT_MARK: &str = "\u{1e}agentwatch-vm-exit ";

/// What the VM is there for.
#[derive(Debug, Deserialize)]
pub struct Job {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Modules to load first, by name, where the initramfs has them.
    pub modules: Vec<String>,
    /// Whether a person sits at the other end of the port: it then keeps echo and line editing.
    pub interactive: bool,
    /// Whether the root is the first disk, with our own programs bound into it.
    pub disk: bool,
    /// Added to the command's environment.
    pub env: BTreeMap<String, String>,
}
