//! What a compiled policy says about one action, and why. The kernel answers the same question with its own look-ups
//! (a walk from the file upwards, a longest-prefix match); this must give the same answer for every input, because on
//! kernels that can't judge an action itself user space judges its events with it. Pure: no I/O.

use std::{
    cmp::Ordering,
    net::IpAddr,
    path::{Component, Path},
};

use ipnet::IpNet;
use serde::Serialize;

use super::{
    model::{
        Access, Compiled, Decision, Effect, FILES_DEFAULT, LISTEN_DEFAULT, NETWORK_DEFAULT, NetOp,
        Place, Prefix, Rule, RuleIndex,
    },
    network::canonical,
};

/// What is decided for a path. The path has to be absolute and clean, as the kernel reports it; for any other the
/// default rule answers, which denies.
pub fn decide_file(compiled: &Compiled, access: Access, path: &Path) -> Decision {
    find_place(compiled, path).map_or(
        Decision {
            effect: Effect::Deny,
            rule: FILES_DEFAULT,
        },
        |place| place.decisions[access as usize],
    )
}

/// What is decided for an address. IPv4 in IPv6 clothes (`::ffff:192.0.2.7`) is judged as IPv4.
pub fn decide_net(compiled: &Compiled, op: NetOp, address: IpAddr, port: u16) -> Decision {
    longest_prefix(compiled, op, IpNet::from(canonical(address)))
        .and_then(|prefix| {
            prefix
                .ports
                .iter()
                .find(|rule| rule.first <= port && port <= rule.last)
        })
        .map_or_else(|| default_of(op), |rule| rule.decision)
}

/// One rule that has a say, and where it has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link<'a> {
    /// The path or prefix that the rule stands at; absent for a built-in rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    pub effect: Effect,
    pub rule: &'a Rule,
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer<'a> {
    pub decision: Decision,
    /// The rule that decides, first, and then what decides further out, up to the built-in rule.
    pub chain: Vec<Link<'a>>,
}

/// Explains a right on a path. See [`decide_file`] for the path's form.
pub fn explain_file<'a>(compiled: &'a Compiled, access: Access, path: &Path) -> Answer<'a> {
    let mut chain = Chain::new(compiled);
    let mut next = find_place(compiled, path);
    while let Some(place) = next {
        chain.push(
            place.decisions[access as usize],
            Some(place.path.display().to_string()),
        );
        next = place
            .path
            .parent()
            .and_then(|parent| find_place(compiled, parent));
    }
    chain.push(
        Decision {
            effect: Effect::Deny,
            rule: FILES_DEFAULT,
        },
        None,
    );
    Answer {
        decision: decide_file(compiled, access, path),
        chain: chain.links,
    }
}

/// Explains an operation on an address and port.
pub fn explain_net<'a>(
    compiled: &'a Compiled,
    op: NetOp,
    address: IpAddr,
    port: u16,
) -> Answer<'a> {
    let mut chain = Chain::new(compiled);
    let mut next = longest_prefix(compiled, op, IpNet::from(canonical(address)));
    while let Some(prefix) = next {
        for rule in prefix
            .ports
            .iter()
            .filter(|rule| rule.first <= port && port <= rule.last)
        {
            chain.push(rule.decision, Some(prefix.net.to_string()));
        }
        next = enclosing_prefix(compiled, op, prefix.net);
    }
    chain.push(default_of(op), None);
    Answer {
        decision: decide_net(compiled, op, address, port),
        chain: chain.links,
    }
}

/// The nearest place at or above a path.
pub fn find_place<'a>(compiled: &'a Compiled, path: &Path) -> Option<&'a Place> {
    let clean = path.is_absolute()
        && path
            .components()
            .all(|component| component != Component::ParentDir);
    if !clean {
        return None;
    }
    let mut target = path;
    loop {
        // Paths compare by component, so what encloses the target stands before it, and the last place that is not
        // behind the target either encloses it or shares with it everything that the answer can have.
        let behind = compiled
            .places
            .partition_point(|place| place.path.as_path() <= target);
        let candidate = compiled.places[..behind].last()?;
        if target.starts_with(&candidate.path) {
            return Some(candidate);
        }
        target = common(target, &candidate.path);
    }
}

/// The place at exactly this prefix.
pub(super) fn find_prefix(compiled: &Compiled, op: NetOp, net: IpNet) -> Option<&Prefix> {
    let found = compiled
        .prefixes
        .binary_search_by(|prefix| (prefix.op, prefix.net).cmp(&(op, net)));
    found.ok().map(|index| &compiled.prefixes[index])
}

/// The longest prefix that holds another one and is not that one.
pub(super) fn enclosing_prefix(compiled: &Compiled, op: NetOp, net: IpNet) -> Option<&Prefix> {
    let wider = IpNet::new(net.addr(), net.prefix_len().checked_sub(1)?).ok()?;
    longest_prefix(compiled, op, wider.trunc())
}

/// The longest prefix that holds a network.
fn longest_prefix(compiled: &Compiled, op: NetOp, net: IpNet) -> Option<&Prefix> {
    let mut target = net;
    loop {
        // The same reasoning as for places: prefixes compare by address, then by length.
        let behind = compiled.prefixes.partition_point(|prefix| {
            (prefix.op, prefix.net).cmp(&(op, target)) != Ordering::Greater
        });
        let candidate = compiled.prefixes[..behind].last()?;
        if candidate.op != op {
            return None;
        }
        if candidate.net.contains(&target) {
            return Some(candidate);
        }
        let shared = shared_bits(candidate.net, target)?;
        target = IpNet::new(target.addr(), shared).ok()?.trunc();
    }
}

/// How many leading bits two networks share; nothing for different families.
fn shared_bits(left: IpNet, right: IpNet) -> Option<u8> {
    let bits = match (left.addr(), right.addr()) {
        (IpAddr::V4(left), IpAddr::V4(right)) => (left.to_bits() ^ right.to_bits()).leading_zeros(),
        (IpAddr::V6(left), IpAddr::V6(right)) => (left.to_bits() ^ right.to_bits()).leading_zeros(),
        _ => return None,
    };
    Some((bits as u8).min(left.prefix_len()).min(right.prefix_len()))
}

/// The part of a path that it shares with another.
fn common<'p>(path: &'p Path, other: &Path) -> &'p Path {
    let length = path.components().count();
    let shared = path
        .components()
        .zip(other.components())
        .take_while(|(path, other)| path == other)
        .count();
    path.ancestors()
        .nth(length - shared)
        .unwrap_or(Path::new("/"))
}

fn default_of(op: NetOp) -> Decision {
    let rule = match op {
        NetOp::Connect => NETWORK_DEFAULT,
        NetOp::Listen => LISTEN_DEFAULT,
    };
    Decision {
        effect: Effect::Deny,
        rule,
    }
}

struct Chain<'a> {
    compiled: &'a Compiled,
    /// The rule of each link.
    seen: Vec<RuleIndex>,
    links: Vec<Link<'a>>,
}

impl<'a> Chain<'a> {
    fn new(compiled: &'a Compiled) -> Self {
        Self {
            compiled,
            seen: Vec::new(),
            links: Vec::new(),
        }
    }

    /// Adds what a place further out says.
    fn push(&mut self, decision: Decision, at: Option<String>) {
        // What is inherited from the built-in rule is its word wherever it is heard.
        let at = at.filter(|_| decision.rule >= super::compile::FILES_BASE);
        if let Some(known) = self.seen.iter().position(|rule| *rule == decision.rule) {
            // Further in it was inherited; the outermost place is where the rule stands.
            self.links[known].at = at.or(self.links[known].at.take());
        } else if let Some(rule) = self.compiled.rules.get(decision.rule as usize) {
            self.seen.push(decision.rule);
            self.links.push(Link {
                at,
                effect: decision.effect,
                rule,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{load, model::Context};

    fn chain(answer: &Answer<'_>) -> Vec<String> {
        let text = |link: &Link<'_>| {
            format!(
                "{:?} {} {}",
                link.effect,
                link.rule.id,
                link.at.as_deref().unwrap_or("-")
            )
        };
        answer.chain.iter().map(text).collect()
    }

    #[test]
    fn the_chain_names_who_comes_next() {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
        };
        let text = "[files]\nread = [\"/w/ro\"]\nwrite = [\"/w\"]\nexec = [\"/w/ro/bin\"]\ndeny = [\"/w/ro/bin/x\"]\n\
            [network]\nallow = [\"10.0.0.0/8\", \"10.1.0.0/16:80\", \"*\"]\ndeny = [\"10.1.2.0/24\"]\n";
        let compiled = load("p.toml", text.as_bytes(), &context).unwrap();
        assert_eq!(
            chain(&explain_file(
                &compiled,
                Access::Write,
                Path::new("/w/ro/bin/x/y")
            )),
            [
                "Deny files.deny[0] /w/ro/bin/x",
                "Deny files.read[0] /w/ro",
                "Allow files.write[0] /w",
                "Deny files.default -"
            ]
        );
        assert_eq!(
            chain(&explain_file(
                &compiled,
                Access::Read,
                Path::new("/elsewhere")
            )),
            ["Deny files.default -"]
        );
        assert_eq!(
            chain(&explain_net(
                &compiled,
                NetOp::Connect,
                "10.1.2.3".parse().unwrap(),
                80
            )),
            [
                "Deny network.deny[0] 10.1.2.0/24",
                "Allow network.allow[1] 10.1.0.0/16",
                "Allow network.allow[0] 10.0.0.0/8",
                "Allow network.allow[2] 0.0.0.0/0",
                "Deny network.default -"
            ]
        );
    }
}
