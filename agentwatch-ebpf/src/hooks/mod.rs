//! Entry points: each gets its arguments, asks `verdict`, answers, and lets `emit` record it.
//!
//! `syscall` is for kernels that refuse BPF LSM; the loader attaches either it or `file`, `socket`, `guard` and `mount`.

mod cgroup;
mod file;
mod guard;
mod mount;
mod net;
mod process;
mod socket;
mod syscall;
