//! What a policy may open beyond files and internet addresses: UNIX sockets, other socket families, and operations on the
//! host around the session. Names to numbers only; it must not decide anything.

use agentwatch_common::policy::{family, guard};

use super::{
    diagnostic::quote,
    model::{Context, UnixTarget},
    name,
    path::{self, Fault},
    suggest::suggestion,
};

/// The longest abstract name: `sun_path` of include/uapi/linux/un.h without its first byte.
pub const LONGEST_ABSTRACT: usize = 107;

/// Socket families by the names that policies write, with their bits in the kernel's mask.
const FAMILIES: [(&str, u32); 20] = [
    ("raw", family::RAW),
    ("other", family::OTHER_PROTOCOL),
    ("packet", libc::AF_PACKET as u32),
    ("vsock", libc::AF_VSOCK as u32),
    ("alg", libc::AF_ALG as u32),
    ("bluetooth", libc::AF_BLUETOOTH as u32),
    ("can", libc::AF_CAN as u32),
    ("key", libc::AF_KEY as u32),
    ("tipc", libc::AF_TIPC as u32),
    ("xdp", libc::AF_XDP as u32),
    ("rds", libc::AF_RDS as u32),
    ("pppox", libc::AF_PPPOX as u32),
    ("llc", libc::AF_LLC as u32),
    ("x25", libc::AF_X25 as u32),
    ("ax25", libc::AF_AX25 as u32),
    ("rxrpc", libc::AF_RXRPC as u32),
    ("phonet", libc::AF_PHONET as u32),
    ("ieee802154", libc::AF_IEEE802154 as u32),
    ("nfc", libc::AF_NFC as u32),
    ("caif", libc::AF_CAIF as u32),
];

/// The names of all families that can be allowed.
pub fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// Reads an entry of `network.families`: its bit.
pub fn parse_family(text: &str) -> Result<u32, Fault> {
    if let Some((_, bit)) = FAMILIES.iter().find(|(name, _)| *name == text) {
        return Ok(*bit);
    }
    Err(match text {
        "unix" | "inet" | "inet6" | "netlink" | "tcp" | "udp" | "mptcp" => Fault::new(
            format!("{} needs no rule here", quote(text)),
            "sockets of UNIX, TCP, UDP and netlink can always be made; what they reach is said by `network.unix`, \
             `network.allow` and `network.listen`",
        ),
        "icmp" | "ping" | "sctp" | "dccp" | "udplite" => Fault::new(
            format!("{} cannot be allowed alone", quote(text)),
            "write `other` for all protocols of the internet families but TCP and UDP: ping, SCTP, DCCP and UDP-Lite together",
        ),
        _ => Fault::new(
            format!("there is no socket family {}", quote(text)),
            suggestion(text, &FAMILIES.map(|(name, _)| name), "the families are"),
        ),
    })
}

/// Reads an entry of `guard.allow`: its index in `agentwatch_common::policy::guard`.
pub fn parse_guard(text: &str) -> Result<u32, Fault> {
    guard::NAMES
        .iter()
        .zip(0..)
        .find(|(name, _)| **name == text)
        .map(|(_, index)| index)
        .ok_or_else(|| {
            Fault::new(
                format!("there is no guarded operation {}", quote(text)),
                suggestion(text, &guard::NAMES, "the operations are"),
            )
        })
}

/// Reads an entry of `network.unix`, or what `explain` was asked about: a path, `@NAME` or `@BEGINNING*`.
pub fn parse_unix(text: &str, context: &Context) -> Result<UnixTarget, Fault> {
    let Some(abstract_name) = text.strip_prefix('@') else {
        if name::is_pattern(text) {
            return Err(Fault::new(
                format!(
                    "{} is a pattern, and a socket is named by its path",
                    quote(text)
                ),
                "write the socket's path; only abstract names may end in `*`, such as `@app-*`",
            ));
        }
        return path::parse(text, context).map(UnixTarget::Path);
    };
    let (part, prefix) = match abstract_name.strip_suffix('*') {
        Some(part) => (part, true),
        None => (abstract_name, false),
    };
    if part.contains('*') || part.contains('\0') {
        return Err(Fault::new(
            format!("{} is not an abstract name", quote(text)),
            "write `@NAME`, or `@BEGINNING*` for all names that begin so",
        ));
    }
    if part.is_empty() && !prefix {
        return Err(Fault::new(
            "the abstract name is empty",
            "write `@NAME`, or `@*` for every abstract name",
        ));
    }
    if part.len() > LONGEST_ABSTRACT {
        return Err(Fault::new(
            format!(
                "the abstract name has {} bytes, more than the {LONGEST_ABSTRACT} that Linux takes",
                part.len()
            ),
            "no socket can have such a name: correct it",
        ));
    }
    Ok(if prefix {
        UnixTarget::AbstractPrefix(part.to_owned())
    } else {
        UnixTarget::Abstract(part.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context::of_tests("/w")
    }

    #[test]
    fn sockets_are_named() {
        for (text, expected) in [
            ("/run/x.sock", UnixTarget::Path("/run/x.sock".into())),
            ("~/s", UnixTarget::Path("/home/u/s".into())),
            ("s", UnixTarget::Path("/w/s".into())),
            ("@x", UnixTarget::Abstract("x".into())),
            ("@x/*", UnixTarget::AbstractPrefix("x/".into())),
            ("@*", UnixTarget::AbstractPrefix(String::new())),
        ] {
            assert_eq!(parse_unix(text, &context()), Ok(expected), "{text}");
        }
        let long = format!("@{}", "n".repeat(LONGEST_ABSTRACT + 1));
        for (text, message) in [
            ("", "empty"),
            ("@", "empty"),
            ("@a*b", "not an abstract name"),
            ("/run/*.sock", "is a pattern"),
            (&long, "108"),
        ] {
            let fault = parse_unix(text, &context()).expect_err(text);
            assert!(fault.message.contains(message), "{text}: {}", fault.message);
        }
    }

    #[test]
    fn families_and_operations_are_named() {
        assert_eq!(parse_family("packet"), Ok(17));
        assert_eq!(parse_family("raw"), Ok(family::RAW));
        assert_eq!(parse_guard("ptrace"), Ok(guard::PTRACE));
        for (text, help) in [
            ("packte", "`packet`?"),
            ("inet", "always"),
            ("icmp", "`other`"),
        ] {
            let fault = parse_family(text).expect_err(text);
            assert!(fault.help.contains(help), "{text}: {}", fault.help);
        }
        assert!(parse_guard("ptrce").unwrap_err().help.contains("`ptrace`?"));
        // A bit each, and none that every policy has.
        let mut bits: Vec<u32> = FAMILIES.iter().map(|(_, bit)| *bit).collect();
        bits.sort_unstable();
        bits.dedup();
        assert_eq!(bits.len(), FAMILIES.len());
        assert!(
            bits.iter()
                .all(|bit| *bit < 64 && ![1, 2, 10, 16].contains(bit))
        );
    }
}
