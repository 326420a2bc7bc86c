//! What a network entry of a policy names: address prefixes and ports. It must never ask a resolver: a name means
//! whatever its owner says at that moment, and a compiled policy has to mean the same everywhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{diagnostic::quote, model::NetOp, path::Fault};

/// Ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    /// Every port, and 0: what is asked for with it (a free port to bind, a socket without ports) is covered by
    /// entries that name no port.
    pub const ALL: Ports = Ports {
        first: 0,
        last: u16::MAX,
    };

    pub fn covers(self, other: Ports) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    pub fn overlaps(self, other: Ports) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// An entry, read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// One prefix, or both families' whole for `*`.
    pub nets: Vec<IpNet>,
    pub ports: Ports,
}

/// Reads the text of a network rule.
pub fn parse(text: &str) -> Result<Endpoint, Fault> {
    if text.trim().is_empty() {
        return Err(Fault::new(
            "the address is empty",
            "write `*` for every address",
        ));
    }
    if text.contains("://") {
        return Err(Fault::new(
            format!("{} is a URL, and rules name addresses", quote(text)),
            "write the IP address and, after a colon, the port",
        ));
    }
    let (address, ports) = split(text)?;
    let ports = ports.map_or(Ok(Ports::ALL), parse_ports)?;
    let nets = if address == "*" {
        vec![Ipv4Net::default().into(), Ipv6Net::default().into()]
    } else {
        vec![parse_net(address)?]
    };
    Ok(Endpoint { nets, ports })
}

/// The address as the kernel side compares it: an IPv4 address in IPv6 clothes is that IPv4 address, and connecting to no address is
/// connecting to loopback (see `peer` in agentwatch-ebpf/src/verdict/address.rs for sockets that are bound to something).
pub fn canonical(op: NetOp, address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        address if op == NetOp::Listen || !address.is_unspecified() => address,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Splits off the ports. IPv6 addresses hold colons, so they need brackets where a port follows.
fn split(text: &str) -> Result<(&str, Option<&str>), Fault> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else {
            return Err(Fault::new(
                format!("the bracket is not closed: {}", quote(text)),
                "write `[::1]:443` or `[2001:db8::/32]:443`",
            ));
        };
        if !address.contains(':') {
            return Err(Fault::new(
                format!("brackets are for IPv6 addresses: {}", quote(text)),
                "write an IPv4 address without them, such as `127.0.0.1:443`",
            ));
        }
        return match after.strip_prefix(':') {
            Some(ports) => Ok((address, Some(ports))),
            None if after.is_empty() => Ok((address, None)),
            None if after.starts_with('/') => Err(Fault::new(
                format!(
                    "the prefix length stands outside the brackets: {}",
                    quote(text)
                ),
                "write it inside, such as `[2001:db8::/32]:443`",
            )),
            None => Err(Fault::new(
                format!("{} follows the bracket", quote(after)),
                "after the bracket comes nothing, or a colon and the port",
            )),
        };
    }
    match text.matches(':').count() {
        0 => Ok((text, None)),
        1 => Ok(text
            .split_once(':')
            .map_or((text, None), |(address, ports)| (address, Some(ports)))),
        _ => Ok((text, None)),
    }
}

fn parse_ports(text: &str) -> Result<Ports, Fault> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (parse_port(first)?, parse_port(last)?),
        None => {
            let port = parse_port(text)?;
            (port, port)
        }
    };
    if first > last {
        return Err(Fault::new(
            format!("the range of ports {} ends before it begins", quote(text)),
            format!("write `{last}-{first}`"),
        ));
    }
    Ok(Ports { first, last })
}

fn parse_port(text: &str) -> Result<u16, Fault> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(0) if digits => Err(Fault::new(
            "port 0 is not a port",
            "leave the port out to name all of them, the free port that the kernel picks included",
        )),
        Ok(port) if digits => Ok(port),
        _ => Err(Fault::new(
            format!("{} is not a port", quote(text)),
            "write a number from 1 to 65535, or a range such as `8000-8999`",
        )),
    }
}

fn parse_net(text: &str) -> Result<IpNet, Fault> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address = parse_address(address, text)?;
    let longest: u8 = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => longest,
        Some(length) => length
            .parse::<u8>()
            .ok()
            .filter(|number| *number <= longest && length.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| wrong_length(length, longest))?,
    };
    let net =
        IpNet::new(address, length).map_err(|_| wrong_length(&length.to_string(), longest))?;
    if net.trunc() != net {
        return Err(Fault::new(
            format!("{} has bits set after its first {length}", quote(text)),
            format!(
                "write `{}` for the network, or `{address}` for this one address",
                net.trunc()
            ),
        ));
    }
    // ::ffff:0:0/96 and what is inside it are IPv4 addresses.
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        return Ipv4Net::new(v4, v6.prefix_len() - 96)
            .map(IpNet::V4)
            .map_err(|_| wrong_length(&length.to_string(), longest));
    }
    Ok(net)
}

fn wrong_length(length: &str, longest: u8) -> Fault {
    if let Some((_, port)) = length.split_once(':') {
        return Fault::new(
            format!("{} is not a prefix length", quote(length)),
            format!(
                "an IPv6 prefix needs brackets where a port follows, such as `[2001:db8::/32]:{}`",
                short(port)
            ),
        );
    }
    Fault::new(
        format!("{} is not a prefix length", quote(length)),
        format!("write a number from 0 to {longest}"),
    )
}

fn parse_address(address: &str, whole: &str) -> Result<IpAddr, Fault> {
    if let Ok(address) = address.parse::<Ipv4Addr>() {
        return Ok(address.into());
    }
    if let Ok(address) = address.parse::<Ipv6Addr>() {
        return Ok(address.into());
    }
    if address.eq_ignore_ascii_case("localhost") {
        return Err(Fault::new(
            "`localhost` is a name, and rules name addresses",
            "write `127.0.0.1` and `::1`, each as a rule",
        ));
    }
    if address.contains('%') {
        return Err(Fault::new(
            format!("{} holds the name of an interface", quote(whole)),
            "write the address without `%` and what follows",
        ));
    }
    if address.contains(':') {
        return Err(Fault::new(
            format!("{} is not an IPv6 address", quote(whole)),
            "write an address such as `::1`, a prefix such as `2001:db8::/32`, and brackets where a port follows: \
             `[::1]:443`",
        ));
    }
    if address
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(Fault::new(
            format!("{} is not an IPv4 address", quote(whole)),
            "write four numbers from 0 to 255 without leading zeros, such as `192.0.2.7`",
        ));
    }
    let name = |text: &str| {
        !text.is_empty()
            && text.chars().all(|character| {
                character.is_alphanumeric() || matches!(character, '.' | '-' | '_' | '*')
            })
    };
    if name(address) {
        return Err(Fault::new(
            format!("domain names are not yet supported: {}", quote(whole)),
            "write the IP addresses, or the prefix, that the name stands for",
        ));
    }
    Err(Fault::new(
        format!("{} is not an address", quote(whole)),
        "write an address, a prefix such as `10.0.0.0/8`, or `*`, and a colon and ports if they matter",
    ))
}

fn short(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_graphic)
        .take(20)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        for (text, nets, ports) in [
            ("192.0.2.7", &["192.0.2.7/32"][..], (0, 65535)),
            ("10.0.0.0/8", &["10.0.0.0/8"], (0, 65535)),
            ("127.0.0.1:8080", &["127.0.0.1/32"], (8080, 8080)),
            ("10.0.0.0/8:443", &["10.0.0.0/8"], (443, 443)),
            ("10.0.0.0/8:1000-2000", &["10.0.0.0/8"], (1000, 2000)),
            ("[::1]:443", &["::1/128"], (443, 443)),
            ("[::1]", &["::1/128"], (0, 65535)),
            ("[2001:db8::/32]:443", &["2001:db8::/32"], (443, 443)),
            ("2001:db8::/32", &["2001:db8::/32"], (0, 65535)),
            ("::1", &["::1/128"], (0, 65535)),
            ("*", &["0.0.0.0/0", "::/0"], (0, 65535)),
            ("*:443", &["0.0.0.0/0", "::/0"], (443, 443)),
            ("*:1-65535", &["0.0.0.0/0", "::/0"], (1, 65535)),
            ("0.0.0.0/0", &["0.0.0.0/0"], (0, 65535)),
            ("::/0", &["::/0"], (0, 65535)),
            ("::ffff:192.0.2.7", &["192.0.2.7/32"], (0, 65535)),
            ("[::ffff:10.0.0.0/104]:80", &["10.0.0.0/8"], (80, 80)),
            ("::ffff:0:0/96", &["0.0.0.0/0"], (0, 65535)),
        ] {
            let endpoint = parse(text).unwrap_or_else(|fault| panic!("{text}: {fault:?}"));
            let read: Vec<String> = endpoint.nets.iter().map(ToString::to_string).collect();
            assert_eq!(read, nets, "{text}");
            assert_eq!((endpoint.ports.first, endpoint.ports.last), ports, "{text}");
        }
    }

    #[test]
    fn what_is_no_entry_says_why() {
        for (text, message, help) in [
            ("", "empty", "`*`"),
            ("10.0.0.1/8", "bits set after its first 8", "`10.0.0.0/8`"),
            ("2001:db8::1/32", "bits set", "`2001:db8::/32`"),
            ("10.0.0.0/33", "prefix length", "0 to 32"),
            ("10.0.0.0/+8", "prefix length", "0 to 32"),
            ("10.0.0.0/", "prefix length", "0 to 32"),
            ("::/129", "prefix length", "0 to 128"),
            ("2001:db8::/32:443", "prefix length", "[2001:db8::/32]:443"),
            ("127.0.0.1:0", "port 0", "leave the port out"),
            (
                "127.0.0.1:2000-1000",
                "ends before it begins",
                "`1000-2000`",
            ),
            ("127.0.0.1:70000", "not a port", "1 to 65535"),
            ("127.0.0.1:", "not a port", "1 to 65535"),
            ("127.0.0.1:+80", "not a port", "1 to 65535"),
            (
                "localhost",
                "`localhost` is a name",
                "`127.0.0.1` and `::1`",
            ),
            (
                "localhost:80",
                "`localhost` is a name",
                "`127.0.0.1` and `::1`",
            ),
            (
                "crates.io:443",
                "domain names are not yet supported",
                "IP addresses",
            ),
            ("https://192.0.2.7", "is a URL", "IP address"),
            (
                "*.github.com",
                "domain names are not yet supported",
                "IP addresses",
            ),
            ("010.0.0.1", "not an IPv4 address", "leading zeros"),
            ("10.0.0", "not an IPv4 address", "four numbers"),
            ("fe80::1%eth0", "interface", "without `%`"),
            ("[::1", "not closed", "[::1]:443"),
            ("[::1]443", "follows the bracket", "colon"),
            ("[2001:db8::]/32", "outside the brackets", "inside"),
            ("[127.0.0.1]:80", "brackets are for IPv6", "without them"),
            ("::1::2", "not an IPv6 address", "brackets"),
            ("10.0.0.0 /8", "not an address", "prefix"),
        ] {
            let fault = parse(text).expect_err(text);
            assert!(fault.message.contains(message), "{text}: {}", fault.message);
            assert!(fault.help.contains(help), "{text}: {}", fault.help);
        }
    }
}
