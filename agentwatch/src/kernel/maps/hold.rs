//! Rules on commands, tasks that wait, and what was granted.

use std::path::{Path, PathBuf};

use agentwatch_common::{
    hold::{Grant, GrantKey, Hold},
    limits,
    policy::{BY_NAME, COMMAND_BASE, Command, CommandKey, effect},
};
use anyhow::{Result, ensure};
use aya::maps::lpm_trie::Key;

use super::{Bound, Maps, enter, slot};
use crate::{
    kernel::bind::{self, Looked, PlaceAt},
    policy::{
        command::USUAL_DIRECTORIES,
        model::{CommandRule, Compiled, Decision, Effect, Program},
    },
};

impl Maps {
    /// Enters rules on commands by the programs that they name.
    pub(super) fn enter_commands(&mut self, policy: &Compiled, bound: &mut Bound) -> Result<()> {
        for rule in &policy.commands {
            let bytes: Vec<u8> = rule
                .arguments
                .iter()
                .flat_map(|argument| argument.bytes().chain([0]))
                .collect();
            ensure!(
                bytes.len() <= limits::COMMAND_RULE,
                "{}: its arguments are {} bytes long, more than the {} that the kernel compares",
                enter::ids(policy, [rule.decision.rule]),
                bytes.len(),
                limits::COMMAND_RULE
            );
            let mut found = false;
            if let Program::Name(name) = &rule.program {
                // Wherever it stands.
                found = self.enter_command_by_name(policy, name, &bytes, rule.decision, bound)?;
            }
            found |= self.enter_command_by_file(policy, rule, &bytes, bound)?;
            // Without LSM programs a script is known by its name alone: the rule holds whatever has that name.
            if let Program::Path(path) = &rule.program
                && self.host.lsm == 0
                && let Some(name) = path.file_name().and_then(|name| name.to_str())
            {
                self.enter_command_by_name(policy, name, &bytes, rule.decision, bound)?;
            }
            if !found && rule.decision.effect != Effect::Allow {
                bound.notes.push(format!(
                    "{}: there is no such program on this host now; one that is installed later is not known to the rule",
                    enter::ids(policy, [rule.decision.rule])
                ));
            }
        }
        Ok(())
    }

    /// Whether there is such a program.
    fn enter_command_by_file(
        &mut self,
        policy: &Compiled,
        rule: &CommandRule,
        arguments: &[u8],
        bound: &mut Bound,
    ) -> Result<bool> {
        let candidates: Vec<PathBuf> = match &rule.program {
            Program::Path(path) => vec![path.clone()],
            Program::Name(name) => USUAL_DIRECTORIES
                .iter()
                .map(|dir| Path::new(dir).join(name))
                .collect(),
        };
        let mut found = false;
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
            found = true;
            let at = (seen.identity.dev, seen.identity.inode);
            let (len, key) = command_key(bound.number, at, arguments);
            if !bound.commands.contains(&(len, key)) {
                self.enter_command(policy, len, key, rule.decision)?;
                bound.commands.push((len, key));
            }
        }
        Ok(found)
    }

    fn enter_command_by_name(
        &mut self,
        policy: &Compiled,
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
        let (len, key) = command_key(bound.number, (BY_NAME, 0), &whole);
        // Of two rules that come to one name the stricter holds.
        let known = bound.commands.contains(&(len, key));
        if known && decision.effect != Effect::Deny {
            return Ok(true);
        }
        self.enter_command(policy, len, key, decision)?;
        if !known {
            bound.commands.push((len, key));
        }
        Ok(true)
    }

    fn enter_command(
        &mut self,
        policy: &Compiled,
        len: u32,
        key: CommandKey,
        decision: Decision,
    ) -> Result<()> {
        let value = Command {
            effect: u32::from(bind::effect_of(decision.effect)),
            rule: decision.rule,
        };
        let entered = self.commands.insert(&Key::new(len, key), value, 0);
        enter::COMMANDS.entered(entered, || enter::ids(policy, [decision.rule]))
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
        let Some(hold) = self.hold(tid) else {
            return;
        };
        // It may be gone with its task, which the programs have counted then.
        if self.holds.remove(&tid).is_ok() {
            self.held.one_less(slot(hold.key.session));
        }
    }

    /// Lets tasks pass, or tells them that they may not.
    pub fn grant(&mut self, key: &GrantKey, grant: Grant) -> Result<()> {
        let entered = self.grants.insert(key, grant, 0);
        enter::GRANTS.entered(entered, || "a decision".to_owned())
    }

    /// What is granted, if anything is.
    pub fn granted(&self, key: &GrantKey) -> Option<Grant> {
        let grant = self.grants.get(key, 0).ok()?;
        (grant.effect == u32::from(effect::ALLOW)).then_some(grant)
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
            self.forget_hold(task);
        }
    }
}

/// The key of a rule on a command and its length. `arguments` are no more than a key has room for.
fn command_key(policy: u32, (dev, inode): PlaceAt, arguments: &[u8]) -> (u32, CommandKey) {
    let mut key = CommandKey {
        policy,
        dev,
        inode,
        arguments: [0; limits::COMMAND_RULE],
    };
    key.arguments[..arguments.len()].copy_from_slice(arguments);
    (COMMAND_BASE + 8 * arguments.len() as u32, key)
}
