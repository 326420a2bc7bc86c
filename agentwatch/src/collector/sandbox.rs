//! The collector's own confinement: nothing but its two directories, no network, no new privileges.
//!
//! Best effort, since kernels differ; what is really enforced goes to the log. It must be entered by the thread that
//! starts all others, after what lies outside has been read.

use std::path::Path;

use anyhow::{Context as _, Result};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, RestrictionStatus,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope, path_beneath_rules,
};

/// The newest Landlock interface whose rights are all handled here; older kernels enforce what they know of it.
const NEWEST: ABI = ABI::V6;

/// Confines the calling thread, and every thread that it starts from now on, to `directories`; returns whether Landlock
/// enforces that, at least in part.
pub(super) fn enter(directories: &[&Path]) -> bool {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!(%error, "the collector could not give up new privileges");
    }
    match restrict(directories).map(|status| status.ruleset) {
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

fn restrict(directories: &[&Path]) -> Result<RestrictionStatus> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        // No rule follows for these: no TCP port can be connected to or bound, nothing outside signalled.
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(directories, AccessFs::from_all(NEWEST)))?
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
                if !enter(&[inside.path()]) {
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
