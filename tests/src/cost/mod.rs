//! What agentwatch costs: `measure` times single actions, `bench` does so under every configuration, `storm` floods a session.
//!
//! Meant for a VM whose clock counts instructions (`cargo xtask bench`); elsewhere the numbers are nanoseconds.

pub mod bench;
pub mod measure;
pub mod storm;

/// Where the measured files lie: a tmpfs, so that no disk has a part in it.
pub const DIR: &str = "/tmp/agentwatch-cost";

/// The file there that the policy denies.
pub const DENIED: &str = "denied";

/// The policy of the measured sessions: wide, so that every measured action is an allowed one.
pub const POLICY: &str = r#"
[files]
read = ["/"]
write = ["/tmp/agentwatch-cost", "/dev"]
exec = ["/usr", "/tmp/agentwatch-cost"]
deny = ["/tmp/agentwatch-cost/denied"]

[network]
allow = ["127.0.0.1:7000-7999"]
listen = ["127.0.0.1:7000-7999"]
"#;
