//! Rules on addresses as prefixes: the ports of each, in the order in which they are asked, those of the prefixes around
//! it included. The kernel then only looks for the longest one.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::operation;
use crate::{
    event::model::Layer,
    policy::{
        check::{NetList, NetRule, Rules},
        diagnostic::{Diagnostic, Report, quote},
        model::{
            Decision, Effect, MAX_PORT_RULES, NETWORK_DEFAULT, NetOp, PortRule, Prefix, RuleIndex,
        },
        network::Ports,
    },
};

/// The prefixes of a policy, each before everything inside it. Where one has more rules on ports than the kernel asks, the
/// report says so.
pub(super) fn prefixes(all: &Rules, base: RuleIndex, report: &mut Report) -> Vec<Prefix> {
    let written = Written {
        rules: &all.network,
        base,
    };
    let unknown = unknown(all);
    let own = own_rules(written.rules, unknown.is_some());
    // Prefixes compare by address, then by length, so a prefix comes before everything inside it.
    let mut enclosing: Vec<((NetOp, IpNet), Around)> = Vec::new();
    let mut prefixes: Vec<Prefix> = Vec::with_capacity(own.len());
    for ((op, net), own) in own {
        while enclosing
            .last()
            .is_some_and(|((around_op, around), _)| *around_op != op || !around.contains(&net))
        {
            enclosing.pop();
        }
        let around = enclosing.last().map(|(_, around)| around);
        let whole = net.prefix_len() == 0 && op == NetOp::Connect;
        let here = ports_of(
            &own,
            around.unwrap_or(&Around::default()),
            unknown.filter(|_| whole),
            &written,
        );
        if let Some(beyond) = here.beyond {
            report.push(too_many(net, &own, beyond, &written));
        }
        enclosing.push(((op, net), here.around));
        prefixes.push(Prefix {
            op,
            net,
            ports: here.ports,
        });
    }
    prefixes
}

/// What becomes of connections that nothing else decides on, where the policy says more of them than the default rule.
fn unknown(all: &Rules) -> Option<PortRule> {
    (all.unknown == Some(true) && all.unknown_denied.is_none()).then_some(PortRule {
        first: Ports::ALL.first,
        last: Ports::ALL.last,
        decision: Decision {
            effect: Effect::Approve,
            rule: NETWORK_DEFAULT,
        },
    })
}

/// The rules on addresses as they are written.
struct Written<'a> {
    rules: &'a [NetRule],
    /// The first one's number among all rules.
    base: RuleIndex,
}

impl Written<'_> {
    /// Which of them a rule on ports is of; none for the default rule.
    fn index_of(&self, port: &PortRule) -> Option<usize> {
        let index = port.decision.rule.checked_sub(self.base)?;
        Some(index as usize)
    }

    fn is_managed(&self, port: &PortRule) -> bool {
        self.index_of(port)
            .and_then(|index| self.rules.get(index))
            .is_some_and(|rule| rule.layer == Layer::Managed)
    }

    fn port_rule(&self, index: usize) -> PortRule {
        let rule = &self.rules[index];
        PortRule {
            first: rule.target.ports.first,
            last: rule.target.ports.last,
            decision: Decision {
                effect: match rule.list {
                    NetList::Deny => Effect::Deny,
                    NetList::Approve => Effect::Approve,
                    NetList::Allow | NetList::Listen => Effect::Allow,
                },
                rule: self.base + index as RuleIndex,
            },
        }
    }
}

/// The rules of one prefix, as indexes into the list of rules on addresses.
#[derive(Default)]
struct Own {
    managed: Vec<usize>,
    managed_approves: Vec<usize>,
    denies: Vec<usize>,
    approves: Vec<usize>,
    allows: Vec<usize>,
}

impl Own {
    fn all(&self) -> impl DoubleEndedIterator<Item = usize> + Clone {
        (self.denies.iter())
            .chain(&self.approves)
            .chain(&self.allows)
            .chain(&self.managed)
            .chain(&self.managed_approves)
            .copied()
    }
}

/// The rules of each prefix. What nothing else decides is decided by the prefixes that hold every address: `with_whole` has
/// them be there without a rule of their own.
fn own_rules(rules: &[NetRule], with_whole: bool) -> BTreeMap<(NetOp, IpNet), Own> {
    let mut own: BTreeMap<(NetOp, IpNet), Own> = BTreeMap::new();
    for (index, rule) in rules.iter().enumerate() {
        for net in &rule.target.nets {
            let entry = own.entry((operation(rule.list), *net)).or_default();
            let managed = rule.layer == Layer::Managed;
            let list = match rule.list {
                NetList::Deny if managed => &mut entry.managed,
                NetList::Approve if managed => &mut entry.managed_approves,
                NetList::Deny => &mut entry.denies,
                NetList::Approve => &mut entry.approves,
                NetList::Allow | NetList::Listen => &mut entry.allows,
            };
            list.push(index);
        }
    }
    if with_whole {
        for net in [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())] {
            own.entry((NetOp::Connect, net)).or_default();
        }
    }
    own
}

/// What holds in a prefix and is inherited by what is inside it.
#[derive(Default)]
struct Around {
    /// Without what the administrator has approved.
    ports: Vec<PortRule>,
    /// What he has, the nearest first.
    approves: Vec<PortRule>,
}

/// What is decided in one prefix.
struct Here {
    ports: Vec<PortRule>,
    /// What it hands on.
    around: Around,
    /// A rule that found no room.
    beyond: Option<PortRule>,
}

/// The rules on ports of one prefix, in the order in which they are asked. `last` is asked after all others.
fn ports_of(own: &Own, around: &Around, last: Option<PortRule>, written: &Written<'_>) -> Here {
    let ports_in = |indexes: &[usize]| -> Vec<PortRule> {
        let indexes = indexes.iter();
        indexes.map(|index| written.port_rule(*index)).collect()
    };
    let (managed_around, other_around): (Vec<PortRule>, Vec<PortRule>) =
        (around.ports.iter()).partition(|port| written.is_managed(port));
    // The administrator's denials come before all others, those of enclosing prefixes too.
    let ports = (ports_in(&own.managed).into_iter())
        .chain(managed_around)
        .chain(ports_in(&own.denies))
        .chain(ports_in(&own.approves))
        .chain(ports_in(&own.allows))
        .chain(other_around)
        .chain(last);
    let mut approves = PortList::default();
    let mut beyond = (ports_in(&own.managed_approves).into_iter())
        .chain(around.approves.iter().copied())
        .find(|approve| !approves.push(*approve));
    let mut inherited = PortList::default();
    let mut list = PortList::default();
    for port in ports {
        let fits =
            inherited.push(port) && under_approvals(port, &approves.0).all(|part| list.push(part));
        if !fits {
            beyond = Some(port);
            break;
        }
    }
    Here {
        ports: list.0,
        around: Around {
            ports: inherited.0,
            approves: approves.0,
        },
        beyond,
    }
}

fn too_many(net: IpNet, own: &Own, beyond: PortRule, written: &Written<'_>) -> Diagnostic {
    // The rule that is too many may stand further out: then the last one here is shown.
    let index = written.index_of(&beyond);
    let here = own.all();
    let shown = (here.clone().find(|own| Some(*own) == index)).or(here.last());
    Diagnostic::error(
        format!(
            "at {} there are more than {MAX_PORT_RULES} rules on ports, those around it included",
            quote(&net.to_string())
        ),
        shown.map(|index| written.rules[index].span.clone()),
    )
    .help("join ports into ranges such as `8000-8999`")
}

/// A rule on ports, and before it what of it the administrator has approved.
fn under_approvals(port: PortRule, approves: &[PortRule]) -> impl Iterator<Item = PortRule> {
    let parts: Vec<PortRule> = approves
        .iter()
        .filter(|_| port.decision.effect != Effect::Deny)
        .map(|approve| PortRule {
            first: approve.first.max(port.first),
            last: approve.last.min(port.last),
            decision: approve.decision,
        })
        .filter(|part| part.first <= part.last)
        .collect();
    parts.into_iter().chain([port])
}

/// Port rules in the order in which they are asked.
#[derive(Default)]
struct PortList(Vec<PortRule>);

impl PortList {
    /// Appends a rule unless an earlier one leaves it nothing. False where the list is full.
    fn push(&mut self, rule: PortRule) -> bool {
        let ports = |rule: &PortRule| Ports {
            first: rule.first,
            last: rule.last,
        };
        if self
            .0
            .iter()
            .any(|earlier| ports(earlier).covers(ports(&rule)))
        {
            return true;
        }
        if self.0.len() == MAX_PORT_RULES {
            return false;
        }
        self.0.push(rule);
        true
    }
}
