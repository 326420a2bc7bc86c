//! Rules on commands, tasks that wait, and what was granted.

use std::path::{Path, PathBuf};

use agentwatch_common::{
    hold::{Grant, GrantKey, Hold},
    limits,
    policy::{BY_NAME, COMMAND_BASE, Command, CommandKey, effect},
};
use anyhow::{Context as _, Result, ensure};
use aya::maps::lpm_trie::Key;

use super::{Bound, Maps};
use crate::{
    kernel::bind::{self, Looked},
    policy::{
        command::USUAL_DIRECTORIES,
        model::{Compiled, Decision, Effect, Program},
    },
};

impl Maps {
    /// Enters rules on commands by the programs that they name.
    pub(super) fn enter_commands(
        &mut self,
        number: u32,
        policy: &Compiled,
        bound: &mut Bound,
    ) -> Result<()> {
        for rule in &policy.commands {
            let candidates: Vec<PathBuf> = match &rule.program {
                Program::Path(path) => vec![path.clone()],
                Program::Name(name) => USUAL_DIRECTORIES
                    .iter()
                    .map(|dir| Path::new(dir).join(name))
                    .collect(),
            };
            let mut arguments = [0; limits::COMMAND_RULE];
            let bytes: Vec<u8> = rule
                .arguments
                .iter()
                .flat_map(|argument| argument.bytes().chain([0]))
                .collect();
            ensure!(
                bytes.len() <= arguments.len(),
                "the arguments of a rule on a command are too long"
            );
            arguments[..bytes.len()].copy_from_slice(&bytes);
            let len = COMMAND_BASE + 8 * bytes.len() as u32;
            let mut found = false;
            if let Program::Name(name) = &rule.program {
                // Wherever it stands.
                found = self.enter_command_by_name(number, name, &bytes, rule.decision, bound)?;
            }
            for path in candidates {
                let Ok(Some(seen)) = Looked::new(policy, &self.identifier).seen(&path) else {
                    continue;
                };
                // A rule that lets a command go on does so for the program that it names, and not for where a link leads that a session
                // could have made.
                if let (Effect::Allow, Some(led)) = (rule.decision.effect, &seen.led) {
                    bound.notes.push(led.told(&path));
                    continue;
                }
                let identity = seen.identity;
                found = true;
                let key = CommandKey {
                    policy: number,
                    dev: identity.dev,
                    inode: identity.inode,
                    arguments,
                };
                if bound.commands.contains(&(len, key)) {
                    continue;
                }
                let value = Command {
                    effect: u32::from(bind::effect_of(rule.decision.effect)),
                    rule: rule.decision.rule,
                };
                self.commands.insert(&Key::new(len, key), value, 0).context(
                    "enter a rule on a command into the kernel; hint: too many rules on this host?",
                )?;
                bound.commands.push((len, key));
            }
            // Without LSM programs a script is known by its name alone: the rule holds whatever has that name.
            if let Program::Path(path) = &rule.program
                && self.host.lsm == 0
                && let Some(name) = path.file_name().and_then(|name| name.to_str())
            {
                self.enter_command_by_name(number, name, &bytes, rule.decision, bound)?;
            }
            let allows = rule.decision.effect == Effect::Allow;
            if !found && !allows {
                let id = policy
                    .rules
                    .get(rule.decision.rule as usize)
                    .map_or("", |rule| rule.id.as_str());
                bound.notes.push(format!(
                    "{id}: there is no such program on this host now; one that is installed later is not known to the rule"
                ));
            }
        }
        Ok(())
    }

    fn enter_command_by_name(
        &mut self,
        number: u32,
        name: &str,
        arguments: &[u8],
        decision: Decision,
        bound: &mut Bound,
    ) -> Result<bool> {
        let whole: Vec<u8> = name
            .bytes()
            .chain([0])
            .chain(arguments.iter().copied())
            .collect();
        if whole.len() > limits::COMMAND_RULE || decision.effect == Effect::Allow {
            return Ok(false);
        }
        let mut key = CommandKey {
            policy: number,
            dev: BY_NAME,
            inode: 0,
            arguments: [0; limits::COMMAND_RULE],
        };
        key.arguments[..whole.len()].copy_from_slice(&whole);
        let len = COMMAND_BASE + 8 * whole.len() as u32;
        // Of two rules that come to one name the stricter holds.
        let known = bound.commands.contains(&(len, key));
        if known && decision.effect != Effect::Deny {
            return Ok(true);
        }
        let value = Command {
            effect: u32::from(bind::effect_of(decision.effect)),
            rule: decision.rule,
        };
        self.commands
            .insert(&Key::new(len, key), value, 0)
            .context(
                "enter a rule on a command into the kernel; hint: too many rules on this host?",
            )?;
        if !known {
            bound.commands.push((len, key));
        }
        Ok(true)
    }

    pub(super) fn has_commands(&self, policy: u32) -> bool {
        self.commands
            .keys()
            .flatten()
            .any(|key| key.data().policy == policy)
    }

    /// Whether a policy has an address that a person is asked for.
    pub(super) fn holds_connections(&self, policy: u32) -> bool {
        self.prefixes.iter().flatten().any(|(key, prefix)| {
            key.data().policy == policy
                && prefix
                    .ports
                    .iter()
                    .take(prefix.len as usize)
                    .any(|ports| ports.effect == effect::HOLD)
        })
    }

    /// What a task waits for.
    pub fn hold(&self, tid: u32) -> Option<Hold> {
        self.holds.get(&tid, 0).ok()
    }

    pub fn holds(&self) -> Vec<Hold> {
        self.holds.iter().flatten().map(|(_, hold)| hold).collect()
    }

    /// How many tasks wait, and how many decisions there are for tasks and sessions to go by.
    pub fn count_holds(&self) -> (u64, u64) {
        (
            self.holds.keys().flatten().count() as u64,
            self.grants.keys().flatten().count() as u64,
        )
    }

    /// The task is not taken to wait any more.
    pub fn forget_hold(&mut self, tid: u32) {
        // It may be gone with its task.
        let _ = self.holds.remove(&tid);
    }

    /// Lets tasks pass, or tells them that they may not.
    pub fn grant(&mut self, key: &GrantKey, grant: Grant) -> Result<()> {
        self.grants
            .insert(key, grant, 0)
            .context("enter a decision into the kernel; hint: too many grants on this host?")
    }

    /// Whether any operation has passed by a task's grant.
    pub fn is_used(&self, key: &GrantKey) -> bool {
        self.grants.get(key, 0).is_ok_and(|grant| grant.used != 0)
    }

    pub fn revoke(&mut self, key: &GrantKey) {
        // It may never have been entered.
        let _ = self.grants.remove(key);
    }

    /// Takes away what was granted to a session.
    pub fn revoke_all(&mut self, session: u32) {
        let keys: Vec<GrantKey> = self
            .grants
            .keys()
            .flatten()
            .filter(|key| key.session == session)
            .collect();
        for key in keys {
            let _ = self.grants.remove(&key);
        }
        let tasks: Vec<u32> = self
            .holds()
            .into_iter()
            .filter(|hold| hold.key.session == session)
            .map(|hold| hold.tid)
            .collect();
        for task in tasks {
            let _ = self.holds.remove(&task);
        }
    }
}
