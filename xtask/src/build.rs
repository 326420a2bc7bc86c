//! Builds agentwatch, and the test programs as static binaries that run in the VM as they run here.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{paths, process, setup};

/// The target of the test programs; named, so that its flags do not reach build scripts and proc macros.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds agentwatch with its kernel programs and gives the binary's path.
pub fn agentwatch(release: bool) -> Result<PathBuf> {
    setup::for_building()?;
    let mut command = process::cargo(paths::repository());
    command.args(["build", "--quiet", "--package", "agentwatch"]);
    if release {
        command.arg("--release");
    }
    process::run(&mut command).context("build agentwatch")?;
    Ok(paths::target()
        .join(if release { "release" } else { "debug" })
        .join("agentwatch"))
}

/// The programs of the tests crate.
pub struct Guest {
    dir: PathBuf,
}

impl Guest {
    /// Builds them: static, because the VM's file system is nothing but what we put there.
    pub fn build() -> Result<Guest> {
        let mut command = process::cargo(paths::repository());
        command
            .args([
                "build",
                "--quiet",
                "--release",
                "--package",
                "agentwatch-tests",
                "--bins",
                "--target",
                GUEST_TARGET,
            ])
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-C target-feature=+crt-static",
            );
        // Flags from outside would win over the ones above.
        command
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        process::run(&mut command).context("build the test programs")?;
        Ok(Guest {
            dir: paths::target().join(GUEST_TARGET).join("release"),
        })
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
