//! Sessions: their cgroups, what they are held by where the kernel has no BPF LSM, and the rules that watch for them.

pub mod canary;
pub mod cgroup;
pub mod landlock;
pub mod managed;
pub mod pidfd;
pub mod signal;
pub mod watch;
