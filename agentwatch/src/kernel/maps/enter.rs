//! Puts a policy's rules into the maps, a function for each map. An error says which rule it is about and, where a map is full, how much
//! all policies in force may have of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use agentwatch_common::{
    limits,
    policy::{
        Child, ChildKey, NAME_BASE, Name, NameKey, NamedChild, OP_INET6, PREFIX_BASE, Place,
        PlaceKey, Policy, Ports, Prefix, PrefixKey, digest, name, net,
    },
};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapError, lpm_trie::Key};
use ipnet::IpNet;

use super::{
    super::bind::{self, ChildAt, PlaceAt},
    Bound, Maps,
};
use crate::policy::model::{self, Compiled, NamePattern, NetOp, RuleIndex, UnixTarget};

/// What a map holds of all policies in force, and how much at the most.
pub(super) struct Table {
    holds: &'static str,
    limit: usize,
    /// What else helps where it is full.
    or_else: &'static str,
}

const POLICIES: Table = Table {
    holds: "policies",
    limit: limits::POLICIES,
    or_else: "",
};
pub(super) const PLACES: Table = Table {
    holds: "places of rules",
    limit: limits::PLACES,
    or_else: FEWER_FILES,
};
const CHILDREN: Table = Table {
    holds: "names of places",
    limit: limits::CHILDREN,
    or_else: FEWER_FILES,
};
const NAMES: Table = Table {
    holds: "rules on names",
    limit: limits::NAMES,
    or_else: "",
};
const PREFIXES: Table = Table {
    holds: "networks of rules",
    limit: limits::PREFIXES,
    or_else: ", or name networks instead of many addresses",
};
pub(super) const COMMANDS: Table = Table {
    holds: "rules on commands",
    limit: limits::COMMANDS,
    or_else: ", or name fewer arguments",
};
pub(super) const GRANTS: Table = Table {
    holds: "grants",
    limit: limits::GRANTS,
    or_else: "",
};

const FEWER_FILES: &str = ", or name directories instead of many files";

impl Table {
    /// Says why something was not entered, and of what that is.
    pub fn entered(
        &self,
        result: Result<(), MapError>,
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        let Err(error) = result else { return Ok(()) };
        if is_full(&error) {
            bail!(
                "{}: more than {} {} are in force on this host; \
                 hint: end sessions that are not needed (agentwatch sessions){}",
                what(),
                self.limit,
                self.holds,
                self.or_else
            );
        }
        Err(error).with_context(|| format!("enter {} into the kernel", what()))
    }
}

/// A hash map says `E2BIG`, a trie of prefixes `ENOSPC`.
fn is_full(error: &MapError) -> bool {
    let MapError::SyscallError(error) = error else {
        return false;
    };
    let errno = error.io_error.raw_os_error();
    matches!(errno, Some(libc::E2BIG | libc::ENOSPC))
}

/// The ids of rules, each once.
pub(super) fn ids(policy: &Compiled, rules: impl IntoIterator<Item = RuleIndex>) -> String {
    let mut ids: Vec<&str> = rules
        .into_iter()
        .filter_map(|rule| policy.rules.get(rule as usize))
        .map(|rule| rule.id.as_str())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.join(", ")
}

impl Maps {
    pub(super) fn enter(
        &mut self,
        session: u32,
        policy: &Compiled,
        places: HashMap<PlaceAt, Place>,
        children: BTreeMap<ChildAt, Child>,
        bound: &mut Bound,
    ) -> Result<()> {
        let beyond = Policy {
            session,
            ..beyond(policy)
        };
        let entered = self.policies.insert(bound.number, beyond, 0);
        POLICIES.entered(entered, || "the policy".to_owned())?;
        self.enter_places(policy, places, bound)?;
        self.enter_children(policy, children, bound)?;
        self.enter_names(policy, bound)?;
        self.enter_abstract_names(policy, bound)?;
        self.enter_commands(policy, bound)?;
        self.enter_prefixes(policy, bound)
    }

    fn enter_places(
        &mut self,
        policy: &Compiled,
        places: HashMap<PlaceAt, Place>,
        bound: &mut Bound,
    ) -> Result<()> {
        for ((dev, inode), place) in places {
            let key = PlaceKey {
                policy: bound.number,
                dev,
                inode,
            };
            let entered = self.places.insert(key, place, 0);
            PLACES.entered(entered, || ids(policy, place.rules))?;
            bound.places.push(key);
        }
        Ok(())
    }

    fn enter_children(
        &mut self,
        policy: &Compiled,
        children: BTreeMap<ChildAt, Child>,
        bound: &mut Bound,
    ) -> Result<()> {
        let mut entered = HashSet::new();
        for (at, child) in children {
            let text = String::from_utf8_lossy(&at.name);
            let key = ChildKey {
                policy: bound.number,
                dev: at.dev,
                inode: at.inode,
                digest: digest::of(&at.name),
            };
            let mut named = NamedChild {
                child,
                name: [0; limits::NAME],
            };
            ensure!(
                at.name.len() < limits::NAME,
                "{}: the name {text:?} is longer than any file's",
                ids(policy, child.place.rules)
            );
            named.name[..at.name.len()].copy_from_slice(&at.name);
            ensure!(
                entered.insert(key),
                "two names in one directory have the same digest, one of them {text:?}; hint: leave one of them out"
            );
            let result = self.children.insert(key, named, 0);
            CHILDREN.entered(result, || {
                format!("{} (the name {text:?})", ids(policy, child.place.rules))
            })?;
            bound.children.push(key);
        }
        Ok(())
    }

    /// Rules on the names of files.
    fn enter_names(&mut self, policy: &Compiled, bound: &mut Bound) -> Result<()> {
        for rule in &policy.names {
            let (kind, bytes, whole) = match &rule.pattern {
                NamePattern::Exact(text) => (name::SUFFIX, reversed(text), true),
                NamePattern::Suffix(text) => (name::SUFFIX, reversed(text), false),
                NamePattern::Prefix(text) => (name::PREFIX, text.as_bytes().to_vec(), false),
            };
            let place = bind::place_of(policy, &rule.decisions);
            let value = Name {
                effects: place.effects,
                rules: place.rules,
                ..Name::default()
            };
            self.enter_name(policy, kind, &bytes, whole, value, bound)?;
        }
        Ok(())
    }

    /// Rules on the names of UNIX sockets that no file has.
    fn enter_abstract_names(&mut self, policy: &Compiled, bound: &mut Bound) -> Result<()> {
        for rule in &policy.unix {
            let (text, whole) = match &rule.target {
                UnixTarget::Path(_) => continue,
                UnixTarget::Abstract(text) => (text, true),
                UnixTarget::AbstractPrefix(text) => (text, false),
            };
            let value = Name {
                effects: [bind::effect_of(rule.decision.effect); 3],
                rules: [rule.decision.rule; 3],
                ..Name::default()
            };
            self.enter_name(policy, name::ABSTRACT, text.as_bytes(), whole, value, bound)?;
        }
        Ok(())
    }

    /// Enters a rule on names; `whole` for one that matches nothing longer.
    fn enter_name(
        &mut self,
        policy: &Compiled,
        kind: u32,
        bytes: &[u8],
        whole: bool,
        value: Name,
        bound: &mut Bound,
    ) -> Result<()> {
        let mut key = NameKey {
            policy: bound.number,
            kind,
            bytes: [0; limits::NAME_RULE],
        };
        let len = bytes.len() + usize::from(whole);
        ensure!(
            len <= limits::NAME_RULE,
            "{}: a rule on names has {len} bytes, more than the {} that the kernel compares",
            ids(policy, value.rules),
            limits::NAME_RULE
        );
        key.bytes[..bytes.len()].copy_from_slice(bytes);
        if whole {
            // What no name of its kind holds: a slash is in no file's name, and this byte in no text.
            key.bytes[bytes.len()] = if kind == name::ABSTRACT { 0xff } else { b'/' };
        }
        let len = NAME_BASE + 8 * len as u32;
        let entered = self.names.insert(&Key::new(len, key), value, 0);
        NAMES.entered(entered, || ids(policy, value.rules))?;
        bound.names.push((len, key));
        Ok(())
    }

    fn enter_prefixes(&mut self, policy: &Compiled, bound: &mut Bound) -> Result<()> {
        for prefix in &policy.prefixes {
            let (len, key) = prefix_key(bound.number, prefix);
            let entered = self
                .prefixes
                .insert(&Key::new(len, key), prefix_value(prefix), 0);
            PREFIXES.entered(entered, || {
                ids(policy, prefix.ports.iter().map(|rule| rule.decision.rule))
            })?;
            bound.prefixes.push((len, key));
        }
        Ok(())
    }
}

/// What a policy says beyond files and addresses.
fn beyond(policy: &Compiled) -> Policy {
    const ALWAYS: [i32; 4] = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let mut value = Policy::default();
    for family in ALWAYS {
        value.families |= 1 << family;
    }
    for family in &policy.families {
        value.families |= 1 << family.bit;
    }
    for guard in &policy.guards {
        value.guards |= 1 << guard.operation;
        if let Some(rule) = value.guard_rules.get_mut(guard.operation as usize) {
            *rule = guard.rule;
        }
    }
    value
}

fn reversed(text: &str) -> Vec<u8> {
    text.bytes().rev().collect()
}

/// A prefix's length and key.
fn prefix_key(policy: u32, prefix: &model::Prefix) -> (u32, PrefixKey) {
    let (len, addr) = mapped(prefix.net);
    let op = match prefix.op {
        NetOp::Connect => net::CONNECT,
        NetOp::Listen => net::LISTEN,
    };
    let family = if prefix.net.network().is_ipv4() {
        0
    } else {
        OP_INET6
    };
    let key = PrefixKey {
        policy,
        op: op | family,
        addr,
    };
    (PREFIX_BASE + len, key)
}

fn prefix_value(prefix: &model::Prefix) -> Prefix {
    let mut value = Prefix::default();
    for (slot, rule) in value.ports.iter_mut().zip(&prefix.ports) {
        *slot = Ports {
            first: rule.first,
            last: rule.last,
            effect: bind::effect_of(rule.decision.effect),
            _pad: [0; 3],
            rule: rule.decision.rule,
        };
        value.len += 1;
    }
    value
}

/// A prefix over v4-mapped addresses, and its length.
fn mapped(net: IpNet) -> (u32, [u8; 16]) {
    match net.network() {
        IpAddr::V4(addr) => (
            96 + u32::from(net.prefix_len()),
            addr.to_ipv6_mapped().octets(),
        ),
        IpAddr::V6(addr) => (u32::from(net.prefix_len()), addr.octets()),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya::sys::SyscallError;

    use super::*;

    fn told(errno: i32) -> String {
        let error = MapError::SyscallError(SyscallError {
            call: "bpf_map_update_elem",
            io_error: io::Error::from_raw_os_error(errno),
        });
        let error = PLACES
            .entered(Err(error), || "files.allow[3]".to_owned())
            .expect_err("it was not entered");
        format!("{error:#}")
    }

    #[test]
    fn what_is_full_is_told_with_the_rule_and_the_limit() {
        for errno in [libc::E2BIG, libc::ENOSPC] {
            let told = told(errno);
            assert_eq!(
                told,
                "files.allow[3]: more than 262144 places of rules are in force on this host; hint: end sessions that are not needed \
                 (agentwatch sessions), or name directories instead of many files"
            );
        }
        let told = told(libc::ENOMEM);
        assert!(
            told.starts_with("enter files.allow[3] into the kernel: "),
            "{told}"
        );
        assert!(!told.contains("hint"), "{told}");
    }
}
