//! File rules by Landlock, where the kernel refuses BPF LSM: the command of a `run` session confines itself before it
//! becomes the agent, with a rule set that it cannot take off.
//!
//! Landlock only adds rights going down a tree. A place that takes rights away is made by granting its neighbours
//! instead of the tree above it, which holds for what exists at the start; where the tree above is writable that would
//! keep new files from being made, so such a place cannot be had and is reported as missing.
//!
//! Landlock cannot hold anything either. What is read or written with approval only is refused, which is said and takes
//! nothing from what the policy keeps closed; what is executed so is granted, and held by the kernel's programs at the end of
//! exec, but for scripts, whose interpreter is all that they see there.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope, make_bitflags,
};

use crate::policy::model::{Access, Compiled, Decision, Effect, SETTINGS};

/// What Landlock is to grant, and what it cannot hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub grants: Vec<Grant>,
    /// What of the policy is not enforced, a sentence each.
    pub missing: Vec<String>,
    /// What is refused although the policy would ask, a sentence each.
    pub notes: Vec<String>,
}

/// One right on a tree.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    pub path: PathBuf,
    pub access: Access,
    /// Places below that do not have the right.
    pub except: Vec<PathBuf>,
    /// Whether the kernel's programs hold what is executed: a script at `path` itself is not granted.
    pub held: bool,
}

/// What is decided at a place, but that the kernel's settings are decided as what is around them: Landlock takes nothing away inside a
/// tree, and there they are left to what the user may do anyway.
fn beside_settings(policy: &Compiled, index: usize, access: Access) -> Decision {
    let place = &policy.places[index];
    let decided = place.decisions[access as usize];
    if decided.rule != SETTINGS {
        return decided;
    }
    // Places are in the order of their paths: those around one come before it.
    let around = policy.places[..index]
        .iter()
        .rev()
        .filter(|around| place.path.starts_with(&around.path))
        .map(|around| around.decisions[access as usize])
        .find(|around| around.rule != SETTINGS);
    around.unwrap_or(decided)
}

/// Works out the grants. Pure: looks at nothing but the policy.
pub fn plan(policy: &Compiled) -> Plan {
    let mut plan = Plan::default();
    for access in Access::ALL {
        let allowed = |index: usize| {
            let Decision { effect, .. } = beside_settings(policy, index, access);
            effect == Effect::Allow || effect == Effect::Approve && access == Access::Exec
        };
        for (index, place) in policy.places.iter().enumerate() {
            if !allowed(index) {
                continue;
            }
            // The places below that say otherwise, up to where one of them grants again.
            let except: Vec<PathBuf> = policy
                .places
                .iter()
                .enumerate()
                .filter(|(below, other)| {
                    !allowed(*below)
                        && other.path != place.path
                        && other.path.starts_with(&place.path)
                })
                .map(|(_, other)| other.path.clone())
                .collect();
            let mut enforced = except.clone();
            if access == Access::Write && !except.is_empty() {
                enforced.clear();
                for (path, rule) in policy
                    .places
                    .iter()
                    .filter(|other| except.contains(&other.path))
                    .map(|other| {
                        let rule = other.decisions[access as usize].rule as usize;
                        (&other.path, &policy.rules[rule].id)
                    })
                {
                    plan.missing.push(format!(
                        "{rule} ({}) takes writing away inside the writable {}: Landlock cannot",
                        path.display(),
                        place.path.display()
                    ));
                }
            }
            // A writable tree grants reading too, so reading cannot be taken away inside it either.
            if access == Access::Read
                && place.decisions[Access::Write as usize].effect == Effect::Allow
                && !except.is_empty()
            {
                for path in &except {
                    let sentence = format!(
                        "{} inside the writable {} stays readable: Landlock cannot close it",
                        path.display(),
                        place.path.display()
                    );
                    plan.missing.push(sentence);
                }
                enforced.clear();
            }
            plan.grants.push(Grant {
                path: place.path.clone(),
                access,
                except: enforced,
                held: place.decisions[access as usize].effect == Effect::Approve,
            });
        }
    }
    let writable = |path: &Path| {
        policy.places.iter().any(|around| {
            around.decisions[Access::Write as usize].effect == Effect::Allow
                && path.starts_with(&around.path)
        })
    };
    // Inside a writable tree it cannot be refused, which is said above.
    let refused = policy.places.iter().filter(|place| !writable(&place.path));
    let held = refused.flat_map(|place| {
        [Access::Read, Access::Write]
            .map(|access| place.decisions[access as usize])
            .into_iter()
            .filter(|decision| decision.effect == Effect::Approve)
    });
    for decision in held {
        let rule = &policy.rules[decision.rule as usize];
        plan.notes.push(format!(
            "{} ({}): this kernel cannot hold files: refused instead",
            rule.id, rule.text
        ));
    }
    // Wherever something is allowed a file of that name can be, or be made.
    if !plan.grants.is_empty() {
        let names: Vec<String> = policy
            .names
            .iter()
            .map(|name| {
                let decision = (name.decisions.iter())
                    .max_by_key(|decision| decision.effect)
                    .unwrap_or(&name.decisions[0]);
                let rule = &policy.rules[decision.rule as usize];
                format!("{} ({})", rule.id, rule.text)
            })
            .collect();
        if !names.is_empty() {
            plan.missing.push(format!(
                "{} closes a name wherever it stands: Landlock cannot",
                names.join(", ")
            ));
        }
    }
    plan.missing.sort();
    plan.missing.dedup();
    plan.notes.sort();
    plan.notes.dedup();
    plan
}

/// Confines the calling thread, and everything that it becomes, for good.
pub fn apply(plan: &Plan) -> Result<()> {
    let abi = ABI::V6;
    let all = AccessFs::from_all(abi);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .context("handle file accesses")?
        .scope(Scope::Signal | Scope::AbstractUnixSocket)
        .context("scope signals")?
        .create()
        .context("make a Landlock rule set")?;
    for grant in &plan.grants {
        if grant.held && is_script(&grant.path) {
            continue;
        }
        for path in expand(&grant.path, &grant.except) {
            let Ok(file) = PathFd::new(&path) else {
                continue;
            };
            let mut rights = rights(grant.access, abi);
            if !path.is_dir() {
                rights &= AccessFs::from_file(abi);
            }
            rules = rules
                .add_rule(PathBeneath::new(file, rights))
                .with_context(|| format!("grant {:?} on {}", grant.access, path.display()))?;
        }
    }
    let status = rules
        .restrict_self()
        .context("enforce the Landlock rule set")?;
    anyhow::ensure!(
        status.ruleset != RulesetStatus::NotEnforced,
        "the kernel does not enforce Landlock; hint: add landlock to lsm= on the kernel's command line"
    );
    Ok(())
}

/// Whether a file is run by an interpreter that it names; also where that cannot be told.
fn is_script(path: &Path) -> bool {
    let mut beginning = [0; 2];
    let program = fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut beginning))
        .is_ok_and(|()| beginning != *b"#!");
    path.is_file() && !program
}

fn rights(access: Access, abi: ABI) -> BitFlags<AccessFs> {
    match access {
        Access::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
        Access::Write => AccessFs::from_write(abi),
        // Executing is reading too for Landlock (`get_required_file_open_access` in security/landlock/fs.c).
        Access::Exec => make_bitflags!(AccessFs::{Execute | ReadFile}),
    }
}

/// The parts of a tree that together are all of it but the exceptions.
fn expand(path: &Path, except: &[PathBuf]) -> Vec<PathBuf> {
    // By what they name: a rule on a link is a rule on its target.
    let targets: Vec<PathBuf> = except
        .iter()
        .map(|path| path.canonicalize().unwrap_or_else(|_| path.clone()))
        .collect();
    let start = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut parts = Vec::new();
    split(&start, &targets, &mut parts);
    parts
}

fn split(path: &Path, except: &[PathBuf], parts: &mut Vec<PathBuf>) {
    if except.iter().any(|target| target == path) {
        return;
    }
    if !except.iter().any(|target| target.starts_with(path)) {
        parts.push(path.to_owned());
        return;
    }
    let Ok(entries) = fs::read_dir(path) else {
        return;
    };
    for entry in entries.flatten() {
        // A link grants nothing of its own; what it names is granted, or not, where it is.
        if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
            split(&entry.path(), except, parts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{load, model::Context};

    fn planned(text: &str) -> Plan {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
            ..Default::default()
        };
        plan(&load("test.toml", text.as_bytes(), &context).unwrap())
    }

    #[test]
    fn a_denied_part_of_a_readable_tree_is_left_out() {
        let plan = planned("[files]\nread = ['/etc']\ndeny = ['/etc/shadow']\n");
        assert!(plan.missing.is_empty());
        assert_eq!(
            plan.grants,
            [Grant {
                path: "/etc".into(),
                access: Access::Read,
                except: vec!["/etc/shadow".into()],
                held: false,
            }]
        );
    }

    #[test]
    fn a_rule_on_names_is_missing() {
        let plan = planned("[files]\nread = ['/usr']\ndeny = ['**/.env', '/usr/x']\n");
        assert_eq!(
            plan.missing,
            ["files.deny[0] (**/.env) closes a name wherever it stands: Landlock cannot"]
        );
        assert!(planned("[files]\ndeny = ['**/.env']\n").missing.is_empty());
    }

    #[test]
    fn what_needs_approval_is_refused_but_for_executing() {
        let plan = planned(
            "[files]\nread = ['/usr']\nexec = ['/usr']\napprove = ['/srv', {path = '/usr/share', access = ['write']}]\n[exec]\napprove = ['/usr/bin/gh', ['git', 'push']]\n",
        );
        assert!(plan.missing.is_empty(), "{:?}", plan.missing);
        assert_eq!(
            plan.notes,
            [
                "files.approve[0] (/srv): this kernel cannot hold files: refused instead",
                "files.approve[1] (/usr/share): this kernel cannot hold files: refused instead"
            ]
        );
        let granted: Vec<_> = plan
            .grants
            .iter()
            .map(|grant| (grant.path.to_str().unwrap(), grant.access, grant.held))
            .collect();
        assert_eq!(
            granted,
            [
                ("/usr", Access::Read, false),
                ("/usr/bin/gh", Access::Read, false),
                ("/usr/share", Access::Read, false),
                ("/usr", Access::Exec, false),
                ("/usr/bin/gh", Access::Exec, true),
                ("/usr/share", Access::Exec, false),
            ]
        );
        let directory = tempfile::tempdir().unwrap();
        let (script, program) = (directory.path().join("s"), directory.path().join("p"));
        fs::write(&script, "#!/bin/sh\n").unwrap();
        fs::write(&program, "\x7fELF").unwrap();
        assert!(is_script(&script) && !is_script(&program) && !is_script(directory.path()));
    }

    #[test]
    fn a_closed_part_of_a_writable_tree_is_missing() {
        let plan = planned("[files]\nwrite = ['/w']\ndeny = ['/w/secret']\n");
        assert_eq!(plan.missing.len(), 2, "{:?}", plan.missing);
    }
}
