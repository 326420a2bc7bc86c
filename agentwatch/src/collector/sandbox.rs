//! The collector's own confinement: nothing but its two directories and what sinks name, no other TCP port, no new privileges.
//!
//! Best effort, since kernels differ; what is really enforced goes to the log. It must be entered by the thread that
//! starts all others, after what lies outside has been read.

use std::path::Path;

use anyhow::{Context as _, Result};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, NetPort,
    RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

use crate::sinks::Needs;

/// The newest Landlock interface whose rights are all handled here; older kernels enforce what they know of it.
const NEWEST: ABI = ABI::V6;

/// What the C library reads to look names up, and the port of what it asks when an answer is long.
const NAMES: [&str; 8] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/run/systemd/resolve",
    "/lib",
    "/usr/lib",
];
const DNS: u16 = 53;

/// Confines the calling thread, and every thread that it starts from now on, to `directories` and what sinks need; returns
/// whether Landlock enforces that, at least in part.
pub(super) fn enter(directories: &[&Path], needs: &Needs) -> bool {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!(%error, "the collector could not give up new privileges");
    }
    match restrict(directories, needs).map(|status| status.ruleset) {
        Ok(RulesetStatus::FullyEnforced) => {
            tracing::info!("the collector is sandboxed by Landlock");
            true
        }
        Ok(RulesetStatus::PartiallyEnforced) => {
            tracing::info!("the collector is sandboxed by Landlock, as far as this kernel can");
            true
        }
        Ok(RulesetStatus::NotEnforced) => {
            tracing::warn!("this kernel has no Landlock: the collector is not sandboxed");
            false
        }
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "the collector is not sandboxed"
            );
            false
        }
    }
}

fn restrict(directories: &[&Path], needs: &Needs) -> Result<RestrictionStatus> {
    let names: &[&str] = if needs.names { &NAMES } else { &[] };
    let ports = needs.ports.iter().chain(needs.names.then_some(&DNS));
    let ports = ports.map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp)));
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        // No TCP port can be bound, or connected to but those of sinks; nothing outside can be signalled.
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(directories, AccessFs::from_all(NEWEST)))?
        .add_rules(path_beneath_rules(
            &needs.directories,
            AccessFs::from_all(NEWEST),
        ))?
        .add_rules(path_beneath_rules(names, AccessFs::from_read(NEWEST)))?
        .add_rules(ports)?
        .restrict_self()
        .context("restrict the collector by Landlock")
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::ErrorKind,
        thread,
    };

    use super::*;

    #[test]
    fn threads_reach_their_directories_and_nothing_else() {
        let inside = tempfile::tempdir().expect("a temporary directory");
        let outside = tempfile::tempdir().expect("a temporary directory");
        fs::write(outside.path().join("file"), "text").expect("written");
        // A thread of its own: what it gives up, the other tests keep.
        thread::scope(|scope| {
            scope.spawn(|| {
                if !enter(&[inside.path()], &Needs::default()) {
                    let landlock = fs::read_to_string("/sys/kernel/security/lsm")
                        .unwrap_or_default()
                        .contains("landlock");
                    assert!(!landlock, "this kernel has Landlock");
                    return;
                }
                let child = thread::Builder::new().spawn_scoped(scope, || {
                    fs::write(inside.path().join("file"), "text").expect("inside can be written");
                    let refused = File::open(outside.path().join("file"))
                        .expect_err("outside cannot be read");
                    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
                });
                child.expect("a thread").join().expect("no panic");
            });
        });
    }
}
