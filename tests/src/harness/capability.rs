//! What this kernel can enforce, as `agentwatch doctor` says, and what the harness itself can see of it.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde::Deserialize;

use super::agentwatch::Agentwatch;

/// What `doctor --json` prints; more than this may be there.
#[derive(Clone, Debug, Deserialize)]
pub struct Doctor {
    pub backends: BTreeSet<String>,
    #[serde(default)]
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Deserialize)]
pub struct Check {
    pub name: String,
    pub state: String,
    #[serde(default)]
    pub detail: String,
}

impl Doctor {
    pub fn ask(agentwatch: &Agentwatch) -> Result<Doctor> {
        let text = agentwatch.output(&["doctor", "--json"])?;
        serde_json::from_str(&text)
            .with_context(|| format!("`agentwatch doctor --json` printed {text:?}"))
    }

    /// The needs that are not met, each with what is known about it.
    pub fn missing(&self, needs: &[String]) -> Vec<String> {
        needs
            .iter()
            .filter(|need| {
                !need
                    .split('|')
                    .any(|name| self.backends.contains(name.trim()))
            })
            .map(
                |need| match self.checks.iter().find(|check| need.contains(&check.name)) {
                    Some(check) => format!("{need} ({}: {})", check.state, check.detail),
                    None => need.clone(),
                },
            )
            .collect()
    }

    /// Backends that the doctor does not list although the kernel shows that they could be there. Only what can be seen from
    /// here without loading programs is judged: a false "missing" would hide a scenario.
    pub fn wrongly_missing(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        // Where LSM hooks decide on files, Landlock has no part in it.
        let files_by_lsm = self.backends.contains("bpf-lsm");
        if !files_by_lsm && !self.backends.contains("landlock") && landlock_abi().is_ok() {
            wrong.push("landlock answers with an ABI, and doctor does not list it".to_owned());
        }
        if self.backends.contains("bpf-lsm")
            && let Ok(active) = fs::read_to_string("/sys/kernel/security/lsm")
            && !active.split(',').any(|name| name.trim() == "bpf")
        {
            wrong.push(format!(
                "doctor lists bpf-lsm, and the active LSMs are {}",
                active.trim()
            ));
        }
        wrong
    }
}

/// The Landlock ABI of this kernel, or the errno that says that there is none.
fn landlock_abi() -> nix::Result<i64> {
    const CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no attributes and only answers with a number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    Errno::result(abi)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_several_capabilities_will_do() {
        let doctor = Doctor {
            backends: BTreeSet::from(["landlock".to_owned()]),
            checks: Vec::new(),
        };
        assert!(doctor.missing(&["bpf-lsm|landlock".to_owned()]).is_empty());
        assert_eq!(doctor.missing(&["bpf-lsm".to_owned()]), ["bpf-lsm"]);
    }
}
