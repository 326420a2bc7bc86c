//! The collector's own confinement: nothing but its two directories, no network, no new privileges.
//!
//! Best effort, since kernels differ; what is really enforced goes to the log. It must be entered by the thread that
//! starts all others, after what lies outside has been read.

use std::path::Path;

use anyhow::{Context as _, Result};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, RestrictionStatus, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope, path_beneath_rules,
};

/// The newest Landlock interface whose rights are all handled here; older kernels enforce what they know of it.
const NEWEST: ABI = ABI::V6;

/// Confines the calling thread, and every thread that it starts from now on, to `directories`.
pub(super) fn enter(directories: &[&Path]) {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::warn!(%error, "the collector could not give up new privileges");
    }
    match restrict(directories) {
        Ok(status) => match status.ruleset {
            RulesetStatus::FullyEnforced => tracing::info!("the collector is sandboxed by Landlock"),
            RulesetStatus::PartiallyEnforced => {
                tracing::info!("the collector is sandboxed by Landlock, as far as this kernel can");
            }
            RulesetStatus::NotEnforced => tracing::warn!("this kernel has no Landlock: the collector is not sandboxed"),
        },
        Err(error) => tracing::warn!(error = format!("{error:#}"), "the collector is not sandboxed"),
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
