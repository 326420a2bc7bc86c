//! What a compiled policy says about one action, and why. The kernel answers the same question with its own look-ups
//! (a walk from the file upwards, a longest-prefix match); this must give the same answer for every input, because on
//! kernels that can't judge an action itself user space judges its events with it. Pure: no I/O.

use std::{
    cmp::Ordering,
    net::IpAddr,
    path::{Component, Path},
};

use agentwatch_common::policy::rule;
use ipnet::IpNet;
use serde::Serialize;

use super::{
    command,
    model::{
        Access, Compiled, Decision, Effect, FAMILIES_DEFAULT, FILES_DEFAULT, LISTEN_DEFAULT,
        NETWORK_DEFAULT, Name, NetOp, Place, Prefix, Rule, RuleIndex, UNIX_DEFAULT, UnixTarget,
    },
    name::{each_name, names_over, under_names},
    network::canonical,
};
use crate::event::model::Layer;

/// What is decided for a path. The path has to be absolute and clean, as the kernel reports it; for any other the
/// default rule answers, which denies.
///
/// The nearest place decides, and the rules on names between there and the file take away from it.
pub fn decide_file(compiled: &Compiled, access: Access, path: &Path) -> Decision {
    let place = find_place(compiled, path);
    let around = place.map_or(NOTHING, |place| place.decisions[access as usize]);
    if !is_clean(path) {
        return around;
    }
    let above = place.map(|place| place.path.as_path());
    under_names(
        names_over(&compiled.names, path, above)[access as usize],
        around,
    )
}

/// What decides where no place is.
const NOTHING: Decision = Decision {
    effect: Effect::Deny,
    rule: FILES_DEFAULT,
};

/// What the administrator denies or has approved at a path, right by right, whatever the policy says there.
pub fn managed_over(compiled: &Compiled, path: &Path) -> [Option<Decision>; 3] {
    let managed = |decision: &Decision| {
        compiled
            .rules
            .get(decision.rule as usize)
            .is_some_and(|rule| rule.layer == Layer::Managed)
    };
    // Every place below what the administrator says so of says so itself.
    let place = find_place(compiled, path);
    // Of rules on names only the administrator's count: those of a task could hide them.
    let own: Vec<Name> = compiled
        .names
        .iter()
        .filter(|name| name.decisions.iter().any(managed))
        .cloned()
        .collect();
    let names = names_over(&own, path, None);
    Access::ALL.map(|access| {
        let by_place = place.map(|place| place.decisions[access as usize]);
        let by_place =
            by_place.filter(|decision| managed(decision) && decision.effect > Effect::Allow);
        let by_name = names[access as usize].filter(managed);
        match (by_place, by_name) {
            (Some(place), name) => Some(under_names(name, place)),
            (None, name) => name,
        }
    })
}

/// What is decided for executing a program with arguments: by its place, and by the rules on commands where that does not
/// deny it.
pub fn decide_command<S: AsRef<str>>(
    compiled: &Compiled,
    path: &Path,
    arguments: &[S],
) -> Decision {
    command::settle(
        compiled,
        decide_file(compiled, Access::Exec, path),
        command::decide(compiled, |program| program.is(path), arguments),
    )
}

/// The other end of a UNIX socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnixPeer<'a> {
    /// The socket's file. Absolute and clean, as for [`decide_file`].
    Path(&'a Path),
    /// The abstract name, without the NUL before it.
    Abstract(&'a [u8]),
}

/// What is decided for connecting to a UNIX socket that the session did not make.
pub fn decide_unix(compiled: &Compiled, peer: UnixPeer<'_>) -> Decision {
    let named = match peer {
        UnixPeer::Path(path) => compiled
            .unix
            .iter()
            .find(|rule| matches!(&rule.target, UnixTarget::Path(target) if target == path))
            .map(|rule| rule.decision)
            .or_else(|| {
                let write = decide_file(compiled, Access::Write, path);
                // What closes the file closes the socket; what only grants less says nothing of sockets.
                let closed = decide_file(compiled, Access::Read, path).effect == Effect::Deny
                    && write.rule != FILES_DEFAULT;
                (write.effect == Effect::Allow || closed).then_some(write)
            }),
        UnixPeer::Abstract(name) => compiled
            .unix
            .iter()
            .filter_map(|rule| match &rule.target {
                UnixTarget::Abstract(whole) if whole.as_bytes() == name => {
                    Some((whole.len() + 1, rule))
                }
                UnixTarget::AbstractPrefix(beginning) if name.starts_with(beginning.as_bytes()) => {
                    Some((beginning.len(), rule))
                }
                _ => None,
            })
            .max_by_key(|(length, _)| *length)
            .map(|(_, rule)| rule.decision),
    };
    named.unwrap_or(Decision {
        effect: Effect::Deny,
        rule: UNIX_DEFAULT,
    })
}

/// What is decided for making a socket of a family, by its bit (`agentwatch_common::policy::family`); for families that every
/// policy has it is not asked.
pub fn decide_family(compiled: &Compiled, bit: u32) -> Decision {
    compiled
        .families
        .iter()
        .find(|family| family.bit == bit)
        .map_or(
            Decision {
                effect: Effect::Deny,
                rule: FAMILIES_DEFAULT,
            },
            |family| Decision {
                effect: Effect::Allow,
                rule: family.rule,
            },
        )
}

/// What is decided for an operation on the host around the session, by its index (`agentwatch_common::policy::guard`).
pub fn decide_guard(compiled: &Compiled, operation: u32) -> Decision {
    compiled
        .guards
        .iter()
        .find(|guard| guard.operation == operation)
        .map_or(
            Decision {
                effect: Effect::Deny,
                rule: rule::GUARDS + operation,
            },
            |guard| Decision {
                effect: Effect::Allow,
                rule: guard.rule,
            },
        )
}

/// What is decided for an address. IPv4 in IPv6 clothes (`::ffff:192.0.2.7`) is judged as IPv4, connecting to 0.0.0.0 or `::` as
/// connecting to loopback.
pub fn decide_net(compiled: &Compiled, op: NetOp, address: IpAddr, port: u16) -> Decision {
    longest_prefix(compiled, op, IpNet::from(canonical(op, address)))
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
    chain.push_file(access, path);
    Answer {
        decision: decide_file(compiled, access, path),
        chain: chain.links,
    }
}

/// Whether a rule is about this very path, and not only about what is around it. One on names does not do: it only takes away.
pub fn is_named(compiled: &Compiled, path: &Path) -> bool {
    find_place(compiled, path).is_some_and(|place| place.path == path)
}

/// Explains opening a block device that no rule names.
pub fn explain_unnamed_device(compiled: &Compiled) -> Answer<'_> {
    let mut chain = Chain::new(compiled);
    chain.push(NOTHING, None);
    Answer {
        decision: NOTHING,
        chain: chain.links,
    }
}

/// Explains executing a program with arguments; see [`decide_command`].
pub fn explain_command<'a, S: AsRef<str>>(
    compiled: &'a Compiled,
    path: &Path,
    arguments: &[S],
) -> Answer<'a> {
    let decision = decide_command(compiled, path, arguments);
    let mut chain = Chain::new(compiled);
    let place = decide_file(compiled, Access::Exec, path);
    if decision == place {
        chain.push_file(Access::Exec, path);
    } else {
        // From the longest rule that matches to the shortest.
        for length in (0..=arguments.len()).rev() {
            let own = command::decide(compiled, |program| program.is(path), &arguments[..length]);
            if let Some(own) = own {
                chain.push(own, Some(path.display().to_string()));
            }
        }
        chain.push_file(Access::Exec, path);
    }
    Answer {
        decision,
        chain: chain.links,
    }
}

/// Explains connecting to a UNIX socket.
pub fn explain_unix<'a>(compiled: &'a Compiled, peer: UnixPeer<'_>) -> Answer<'a> {
    let mut chain = Chain::new(compiled);
    let decision = decide_unix(compiled, peer);
    match peer {
        UnixPeer::Path(path) => {
            chain.push(decision, Some(path.display().to_string()));
            let write = decide_file(compiled, Access::Write, path);
            if write.effect == Effect::Allow {
                chain.push(write, Some(path.display().to_string()));
            }
        }
        UnixPeer::Abstract(name) => {
            chain.push(
                decision,
                Some(format!("@{}", String::from_utf8_lossy(name))),
            );
        }
    }
    chain.push(
        Decision {
            effect: Effect::Deny,
            rule: UNIX_DEFAULT,
        },
        None,
    );
    Answer {
        decision,
        chain: chain.links,
    }
}

/// Explains making a socket of a family; see [`decide_family`].
pub fn explain_family(compiled: &Compiled, bit: u32) -> Answer<'_> {
    let default = Decision {
        effect: Effect::Deny,
        rule: FAMILIES_DEFAULT,
    };
    explain_short(compiled, decide_family(compiled, bit), default)
}

/// Explains an operation on the host; see [`decide_guard`].
pub fn explain_guard(compiled: &Compiled, operation: u32) -> Answer<'_> {
    let default = Decision {
        effect: Effect::Deny,
        rule: rule::GUARDS + operation,
    };
    explain_short(compiled, decide_guard(compiled, operation), default)
}

fn explain_short(compiled: &Compiled, decision: Decision, default: Decision) -> Answer<'_> {
    let mut chain = Chain::new(compiled);
    chain.push(decision, None);
    chain.push(default, None);
    Answer {
        decision,
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
    let mut next = longest_prefix(compiled, op, IpNet::from(canonical(op, address)));
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
    if !is_clean(path) {
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

fn is_clean(path: &Path) -> bool {
    path.is_absolute()
        && path
            .components()
            .all(|component| component != Component::ParentDir)
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

    /// Adds everything that has a say on a path, from the file upwards.
    fn push_file(&mut self, access: Access, path: &Path) {
        let mut rest = is_clean(path).then_some(path);
        while let Some(from) = rest {
            let place = find_place(self.compiled, from);
            let above = place.map(|place| place.path.as_path());
            let around = place.map_or(NOTHING, |place| place.decisions[access as usize]);
            // What takes nothing away has no say.
            let mut names: Vec<(&Path, Decision)> = each_name(&self.compiled.names, from, above)
                .map(|(at, decisions)| (at, decisions[access as usize]))
                .filter(|(_, name)| name.effect > Effect::Allow && name.effect >= around.effect)
                .collect();
            // The strictest first, and of those the nearest.
            names.sort_by_key(|(_, name)| std::cmp::Reverse(name.effect));
            for (at, name) in names {
                if !self.seen.contains(&name.rule) {
                    self.push(name, Some(at.display().to_string()));
                }
            }
            if let Some(place) = place {
                self.push(
                    place.decisions[access as usize],
                    Some(place.path.display().to_string()),
                );
            }
            rest = place.and_then(|place| place.path.parent());
        }
        self.push(
            Decision {
                effect: Effect::Deny,
                rule: FILES_DEFAULT,
            },
            None,
        );
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

    fn compiled(text: &str) -> Compiled {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
            ..Default::default()
        };
        load("p.toml", text.as_bytes(), &context).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn names_and_places_meet_in_the_chain() {
        let compiled =
            compiled("[files]\nwrite = [\"/w\", \"/w/a.d/in\"]\ndeny = [\"**/*.d\", \"**/x*\"]\n");
        for (path, expected) in [
            (
                "/w/a.d/in/x/b.d/f",
                &[
                    "Deny files.deny[0] /w/a.d/in/x/b.d",
                    "Deny files.deny[1] /w/a.d/in/x",
                    "Allow files.write[1] /w/a.d/in",
                    "Allow files.write[0] /w",
                    "Deny files.default -",
                ][..],
            ),
            (
                "/w/a.d/out",
                &[
                    "Deny files.deny[0] /w/a.d",
                    "Allow files.write[0] /w",
                    "Deny files.default -",
                ],
            ),
            ("/x", &["Deny files.deny[1] /x", "Deny files.default -"]),
            ("x", &["Deny files.default -"]),
        ] {
            let answer = explain_file(&compiled, Access::Read, Path::new(path));
            assert_eq!(chain(&answer), expected, "{path}");
            assert_eq!(
                compiled.rules[answer.decision.rule as usize].id,
                answer.chain[0].rule.id
            );
        }
    }

    #[test]
    fn sockets_families_and_operations_are_explained() {
        let compiled = compiled(
            "[files]\nwrite = [\"/w\"]\nread = [\"/run\"]\ndeny = [\"/run/no\"]\n[network]\nunix = [\"/run/x\", \"@a*\", \"@ab\", \"/run/no\"]\nfamilies = [\"packet\"]\n[guard]\nallow = [\"ptrace\"]\n",
        );
        let path = |path| UnixPeer::Path(Path::new(path));
        for (peer, expected) in [
            (
                path("/run/x"),
                &[
                    "Allow network.unix[0] /run/x",
                    "Deny network.unix.default -",
                ][..],
            ),
            (path("/run/x/y"), &["Deny network.unix.default -"]),
            (
                path("/run/no"),
                &["Deny files.deny[0] /run/no", "Deny network.unix.default -"],
            ),
            (
                path("/w/s"),
                &["Allow files.write[0] /w/s", "Deny network.unix.default -"],
            ),
            (
                UnixPeer::Abstract(b"ab"),
                &["Allow network.unix[2] @ab", "Deny network.unix.default -"],
            ),
            (
                UnixPeer::Abstract(b"abc"),
                &["Allow network.unix[1] @abc", "Deny network.unix.default -"],
            ),
            (UnixPeer::Abstract(b"b"), &["Deny network.unix.default -"]),
        ] {
            assert_eq!(chain(&explain_unix(&compiled, peer)), expected, "{peer:?}");
        }
        assert_eq!(
            chain(&explain_family(&compiled, libc::AF_PACKET as u32)),
            [
                "Allow network.families[0] -",
                "Deny network.families.default -"
            ]
        );
        assert_eq!(
            chain(&explain_family(&compiled, 40)),
            ["Deny network.families.default -"]
        );
        use agentwatch_common::policy::guard;
        assert_eq!(
            chain(&explain_guard(&compiled, guard::PTRACE)),
            ["Allow guard.allow[0] -", "Deny guard.ptrace -"]
        );
        assert_eq!(
            chain(&explain_guard(&compiled, guard::BPF)),
            ["Deny guard.bpf -"]
        );
    }

    #[test]
    fn the_chain_names_who_comes_next() {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
            ..Default::default()
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
