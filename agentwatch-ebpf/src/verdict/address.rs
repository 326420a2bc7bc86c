//! Internet addresses, by the longest prefix that has a rule.

use agentwatch_common::policy::{OP_INET6, PREFIX_BASE, PrefixKey, effect, net, rule};
use aya_ebpf::btf_maps::lpm_trie::Key;

use super::Decision;
use crate::maps::PREFIXES;

/// Decides on listening at an address: IPv4 as v4-mapped, the port in host byte order.
#[inline(always)]
pub fn listen(policy: u32, addr: [u8; 16], port: u16) -> Decision {
    address(policy, net::LISTEN, addr, port, rule::LISTEN_DEFAULT)
}

#[inline(always)]
fn address(policy: u32, op: u32, addr: [u8; 16], port: u16, default: u32) -> Decision {
    let key = Key::new(
        PREFIX_BASE + 128,
        PrefixKey {
            policy,
            op: op | family_of(&addr),
            addr,
        },
    );
    let none = Decision {
        effect: effect::DENY,
        rule: default,
    };
    let Some(prefix) = PREFIXES.get(&key) else {
        return none;
    };
    for (i, ports) in prefix.ports.iter().enumerate() {
        if i as u32 >= prefix.len {
            return none;
        }
        if ports.first <= port && port <= ports.last {
            return Decision {
                effect: ports.effect,
                rule: ports.rule,
            };
        }
    }
    none
}

/// The family whose rules hold for an address.
#[inline(always)]
fn family_of(addr: &[u8; 16]) -> u32 {
    let [a, b, c, _] = to_words(addr);
    if is_mapped(a, b, c) { 0 } else { OP_INET6 }
}

/// Whether an address is 0.0.0.0 or `::`.
#[inline(always)]
pub fn is_unspecified(addr: &[u8; 16]) -> bool {
    let [a, b, c, d] = to_words(addr);
    a | b | d == 0 && (c == 0 || c == MAPPED)
}

/// Decides on connecting to an address that may be none, and says which one to tell: what was asked for, or what is meant. To none the
/// kernel goes to the host itself: for `::` to loopback, that of IPv4 where the socket is bound to such an address; for 0.0.0.0 to the
/// address of the sender, or of the device that it is bound to, or to 127.0.0.1 (tcp_v6_connect and __ip6_datagram_connect,
/// ip_route_output_key_hash_rcu). Where it can be told which (`exact`), that one is decided on; else every one of them has to be
/// allowed, and 0.0.0.0 by that name.
#[inline(always)]
pub fn peer(policy: u32, addr: [u8; 16], port: u16, own: Own) -> (Decision, [u8; 16]) {
    let decide = |addr| address(policy, net::CONNECT, addr, port, rule::NETWORK_DEFAULT);
    if !is_unspecified(&addr) {
        return (decide(addr), addr);
    }
    let loopback = mapped(0x7f00_0001_u32.to_be());
    if family_of(&addr) == OP_INET6 {
        if own.is_mapped {
            return (decide(loopback), loopback);
        }
        return (decide(from_words([0, 0, 0, 1_u32.to_be()])), addr);
    }
    let own_addr = mapped(own.inet4);
    match (own.exact, own.inet4) {
        (true, 0) => (decide(loopback), addr),
        (true, _) => (decide(own_addr), own_addr),
        (false, 0) => (decide(loopback).stricter(decide(addr)), addr),
        (false, _) => {
            let decision = decide(loopback).stricter(decide(own_addr));
            (decision.stricter(decide(addr)), addr)
        }
    }
}

/// What is known of the address that a connection comes from.
pub struct Own {
    /// The IPv4 address, in network order; 0 where there is none yet.
    pub inet4: u32,
    /// Whether an IPv6 socket has an IPv4 address.
    pub is_mapped: bool,
    /// Whether the kernel goes to that address for 0.0.0.0, or to 127.0.0.1 where it is none, and to no other.
    pub exact: bool,
}

impl Own {
    /// Of a stream that is bound to nothing.
    pub const NONE: Self = Self {
        inet4: 0,
        is_mapped: false,
        exact: true,
    };
    pub const UNKNOWN: Self = Self {
        exact: false,
        ..Self::NONE
    };
}

/// What stands before an IPv4 address in IPv6 clothes, in network order.
const MAPPED: u32 = 0xffff_u32.to_be();

/// Whether these are the first three words, in network order, of an IPv4 address.
#[inline(always)]
pub fn is_mapped(a: u32, b: u32, c: u32) -> bool {
    a | b == 0 && c == MAPPED
}

/// An IPv4 address, in network order, as v4-mapped.
#[inline(always)]
pub fn mapped(addr: u32) -> [u8; 16] {
    from_words([0, 0, MAPPED, addr])
}

/// An IPv6 address from its words, in network order.
#[inline(always)]
pub fn from_words(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are sixteen plain bytes.
    unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) }
}

#[inline(always)]
fn to_words(addr: &[u8; 16]) -> [u32; 4] {
    // SAFETY: as above.
    unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(*addr) }
}
