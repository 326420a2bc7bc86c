//! Internet addresses, by the longest prefix that has a rule.

use agentwatch_common::policy::{OP_INET6, PREFIX_BASE, PrefixKey, effect, net};
use aya_ebpf::btf_maps::lpm_trie::Key;

use super::Decision;
use crate::maps::PREFIXES;

/// Decides on an address: IPv4 as v4-mapped, the port in host byte order.
#[inline(always)]
pub fn address(policy: u32, op: u32, addr: [u8; 16], port: u16, default: u32) -> Decision {
    let (addr, family) = canonical(op, addr);
    let key = Key::new(
        PREFIX_BASE + 128,
        PrefixKey {
            policy,
            op: op | family,
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

/// The address that is meant, and the family whose rules hold. Connecting to the unspecified address reaches loopback.
#[inline(always)]
fn canonical(op: u32, addr: [u8; 16]) -> ([u8; 16], u32) {
    // SAFETY: both are sixteen plain bytes.
    let mut words = unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(addr) };
    let inet4 = words[0] == 0 && words[1] == 0 && words[2] == 0xffff_u32.to_be();
    let mut family = OP_INET6;
    if inet4 {
        family = 0;
        if words[3] == 0 && op == net::CONNECT {
            words[3] = 0x7f00_0001_u32.to_be();
        }
    } else if words[0] == 0 && words[1] == 0 && words[2] == 0 && words[3] == 0 && op == net::CONNECT
    {
        words[3] = 1_u32.to_be();
    }
    // SAFETY: as above.
    (
        unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) },
        family,
    )
}
