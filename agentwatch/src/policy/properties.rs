//! Properties of the whole way from text to answer, against a reference that is written from the rules' description
//! and shares no code with the compiler.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::{
    examine::{examine, load},
    explain::{decide_file, decide_net, explain_file, explain_net},
    model::{Access, Compiled, Context, Decision, Effect, NetOp},
};

/// Patterns over the same few names.
const PATTERNS: [&str; 6] = ["**/a", "*-", "**/a*", "**/b", "*a", "**/é*"];

/// Lists of a policy about files, in the order of [`FileLists`].
const LISTS: [&str; 9] = [
    "files.read",
    "files.write",
    "files.exec",
    "files.deny",
    "exec.deny",
    "files.approve",
    "files.approve",
    "files.approve",
    "exec.approve",
];
const READ: usize = 0;
const WRITE: usize = 1;
const EXEC: usize = 2;
const DENY: usize = 3;
const EXEC_DENY: usize = 4;
const APPROVE: usize = 5;
const APPROVE_READ: usize = 6;
const APPROVE_WRITE: usize = 7;
const EXEC_APPROVE: usize = 8;

fn context() -> Context {
    Context {
        cwd: "/a/b".into(),
        home: "/a".into(),
        ..Default::default()
    }
}

fn compile(text: &str) -> Compiled {
    load("p.toml", text.as_bytes(), &context()).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn rule_id(compiled: &Compiled, decision: Decision) -> &str {
    &compiled.rules[decision.rule as usize].id
}

/// Few names and small depth, so that rules meet. `a-` sorts between `a` and `a/` as text.
fn paths() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "a-", "b", "A", "é"]), 0..5)
        .prop_map(|names| format!("/{}", names.join("/")))
}

type FileLists = [Vec<String>; 9];

/// Patterns stand among the paths of what is denied and approved.
fn file_policy() -> impl Strategy<Value = FileLists> {
    let patterns = || prop::sample::subsequence(PATTERNS.to_vec(), 0..3);
    (
        prop::array::uniform9(prop::collection::vec(paths(), 0..4)),
        [patterns(), patterns(), patterns()],
    )
        .prop_map(|(mut lists, patterns)| {
            for (list, patterns) in [DENY, APPROVE, APPROVE_WRITE].into_iter().zip(patterns) {
                lists[list].extend(patterns.into_iter().map(str::to_owned));
            }
            lists
        })
}

fn file_text(lists: &FileLists) -> String {
    let part = |list: usize, access: &str| {
        let entries = lists[list].iter();
        entries
            .map(|path| format!("{{ path = {path:?}, access = [{access:?}] }}, "))
            .collect::<String>()
    };
    let plain: String = (lists[APPROVE].iter())
        .map(|path| format!("{path:?}, "))
        .collect();
    let (read, write) = (part(APPROVE_READ, "read"), part(APPROVE_WRITE, "write"));
    format!(
        "[files]\nread = {:?}\nwrite = {:?}\nexec = {:?}\ndeny = {:?}\napprove = [{plain}{read}{write}]\n[exec]\ndeny = {:?}\napprove = {:?}\n",
        lists[READ], lists[WRITE], lists[EXEC], lists[DENY], lists[EXEC_DENY], lists[EXEC_APPROVE]
    )
}

/// The id of a rule by its list and place there.
fn id(lists: &FileLists, list: usize, at: usize) -> String {
    // What needs approval stands in one list, one sort after the other.
    let before: usize = (APPROVE..list.min(EXEC_APPROVE))
        .map(|list| lists[list].len())
        .sum();
    let before = if list == EXEC_APPROVE { 0 } else { before };
    format!("{}[{}]", LISTS[list], before + at)
}

type Word = (Effect, String);

/// What names around here leave of it: of two that are as strict, the nearer one speaks.
fn under(name: Option<Word>, around: Word) -> Word {
    match name {
        Some(name) if name.0 >= around.0 => name,
        _ => around,
    }
}

/// What the patterns that fit a name say: the longest that fits its end, or a stricter one that fits its beginning.
fn reference_name(lists: &FileLists, access: Access, name: &str) -> Option<Word> {
    let longest = |ends: bool| {
        let mut found: Option<(usize, Effect, String)> = None;
        for list in [DENY, APPROVE, APPROVE_WRITE] {
            for (index, text) in lists[list].iter().enumerate() {
                if text.starts_with('/') {
                    continue;
                }
                let pattern = text.strip_prefix("**/").unwrap_or(text);
                let length = match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
                    (Some(end), _) => (ends && name.ends_with(end)).then_some(end.len()),
                    (_, Some(start)) => (!ends && name.starts_with(start)).then_some(start.len()),
                    _ => (ends && name == pattern).then_some(name.len() + 1),
                };
                let effect = match (list, access) {
                    (DENY, _) => Effect::Deny,
                    (_, Access::Exec) | (APPROVE_WRITE, Access::Read) => Effect::Allow,
                    _ => Effect::Approve,
                };
                // The same pattern in two lists: the stricter.
                if let Some(length) = length
                    && found
                        .as_ref()
                        .is_none_or(|(known, of, _)| (length, effect) > (*known, *of))
                {
                    found = Some((length, effect, id(lists, list, index)));
                }
            }
        }
        found.map(|(_, effect, rule)| (effect, rule))
    };
    let words = match (longest(true), longest(false)) {
        (Some(end), Some(beginning)) if beginning.0 > end.0 => Some(beginning),
        (end, beginning) => end.or(beginning),
    };
    words.filter(|(effect, _)| *effect > Effect::Allow)
}

/// What is decided at a path: by what stands there, or else by what is inherited.
fn reference_file(lists: &FileLists, access: Access, path: &Path) -> Word {
    let said = |list: usize| {
        lists[list]
            .iter()
            .position(|rule| Path::new(rule) == path)
            .map(|index| id(lists, list, index))
    };
    let by = |effect| move |rule| (effect, rule);
    let (allow, approve, deny) = (by(Effect::Allow), by(Effect::Approve), by(Effect::Deny));
    let states = || said(READ).or(said(WRITE));
    let inherited = || {
        let around = path.parent().map_or_else(
            || (Effect::Deny, "files.default".to_owned()),
            |parent| reference_file(lists, access, parent),
        );
        let name = path.file_name().and_then(|name| name.to_str());
        under(
            name.and_then(|name| reference_name(lists, access, name)),
            around,
        )
    };
    if let Some(rule) = said(DENY) {
        return deny(rule);
    }
    let approve_read = || said(APPROVE).or(said(APPROVE_READ));
    match access {
        Access::Read => approve_read()
            .map(approve)
            .or(states().map(allow))
            .unwrap_or_else(inherited),
        Access::Write => {
            if let Some(rule) = said(APPROVE).or(said(APPROVE_WRITE)) {
                return approve(rule);
            }
            let own = said(WRITE)
                .map(allow)
                .or(states().map(deny))
                .unwrap_or_else(inherited);
            match approve_read() {
                Some(rule) if own.0 == Effect::Allow => approve(rule),
                _ => own,
            }
        }
        Access::Exec => said(EXEC_DENY)
            .map(deny)
            .or(said(EXEC_APPROVE).map(approve))
            .or(said(EXEC).map(allow))
            .or(states().map(deny))
            .unwrap_or_else(inherited),
    }
}

/// A bit of the address space where prefixes of different lengths meet, in both families and in both clothes of IPv4.
fn addresses() -> impl Strategy<Value = IpAddr> {
    let bits = prop::sample::select(vec![
        0_u32,
        0x0a00_0000,
        0x0a00_0001,
        0x0a01_0000,
        0x0a01_0203,
        0x7f00_0001,
        0x8000_0000,
        u32::MAX,
    ]);
    (bits, 0..3).prop_map(|(bits, family)| match family {
        0 => IpAddr::V4(Ipv4Addr::from(bits)),
        1 => IpAddr::V6(Ipv4Addr::from(bits).to_ipv6_mapped()),
        _ => IpAddr::V6(Ipv6Addr::from_bits(u128::from(bits) << 96 | 1)),
    })
}

#[derive(Clone, Debug)]
struct Entry {
    net: Option<ipnet::IpNet>,
    ports: Option<(u16, u16)>,
}

impl Entry {
    fn text(&self) -> String {
        let address = match self.net {
            None => "*".to_owned(),
            Some(net @ ipnet::IpNet::V4(_)) => net.to_string(),
            Some(net) if self.ports.is_some() => format!("[{net}]"),
            Some(net) => net.to_string(),
        };
        match self.ports {
            None => address,
            Some((first, last)) if first == last => format!("{address}:{first}"),
            Some((first, last)) => format!("{address}:{first}-{last}"),
        }
    }

    /// Length of the prefix, if it holds the address.
    fn holds(&self, address: IpAddr) -> Option<u8> {
        match self.net {
            None => Some(0),
            Some(net) => net.contains(&address).then_some(net.prefix_len()),
        }
    }

    fn matches(&self, port: u16) -> bool {
        self.ports
            .is_none_or(|(first, last)| (first..=last).contains(&port))
    }
}

fn entries() -> impl Strategy<Value = Entry> {
    let net = (
        addresses(),
        prop::sample::select(vec![0_u8, 1, 7, 8, 9, 16, 31, 32, 64, 100, 128]),
    )
        .prop_map(|(address, length)| {
            let address = address.to_canonical();
            let length = if address.is_ipv4() {
                length.min(32)
            } else {
                length
            };
            ipnet::IpNet::new(address, length)
                .expect("the length fits the family")
                .trunc()
        });
    let ports = (1..6_u16, 0..4_u16).prop_map(|(first, more)| (first, first + more));
    (prop::option::weighted(0.9, net), prop::option::of(ports))
        .prop_map(|(net, ports)| Entry { net, ports })
}

/// What is allowed, denied, listened on and to be approved.
type NetLists = [Vec<Entry>; 4];

fn net_text(lists: &NetLists, unknown: bool) -> String {
    let texts = |list: &[Entry]| list.iter().map(Entry::text).collect::<Vec<_>>();
    format!(
        "[network]\nallow = {:?}\ndeny = {:?}\nlisten = {:?}\napprove = {:?}\nunknown = {:?}\n",
        texts(&lists[0]),
        texts(&lists[1]),
        texts(&lists[2]),
        texts(&lists[3]),
        if unknown { "approve" } else { "deny" }
    )
}

/// The longest prefix with a matching port decides; of one length deny before approve before allow, then the order of
/// writing.
fn reference_net(
    lists: &NetLists,
    unknown: bool,
    op: NetOp,
    address: IpAddr,
    port: u16,
) -> (Effect, String) {
    let address = match (op, address.to_canonical().to_string().as_str()) {
        (NetOp::Connect, "0.0.0.0") => "127.0.0.1".parse().unwrap(),
        (NetOp::Connect, "::") => "::1".parse().unwrap(),
        _ => address.to_canonical(),
    };
    let (asked, default): (&[(usize, &str, Effect)], &str) = match op {
        NetOp::Connect => (
            &[
                (1, "network.deny", Effect::Deny),
                (3, "network.approve", Effect::Approve),
                (0, "network.allow", Effect::Allow),
            ],
            "network.default",
        ),
        NetOp::Listen => (
            &[(2, "network.listen", Effect::Allow)],
            "network.listen.default",
        ),
    };
    let mut best: Option<(u8, Effect, String)> = None;
    for (list, name, effect) in asked {
        for (index, entry) in lists[*list].iter().enumerate() {
            if let Some(length) = entry.holds(address)
                && entry.matches(port)
                && best.as_ref().is_none_or(|(longest, ..)| length > *longest)
            {
                best = Some((length, *effect, format!("{name}[{index}]")));
            }
        }
    }
    let default_effect = if unknown && op == NetOp::Connect {
        Effect::Approve
    } else {
        Effect::Deny
    };
    best.map_or((default_effect, default.to_owned()), |(_, effect, rule)| {
        (effect, rule)
    })
}

proptest! {
    #[test]
    fn files_are_decided_as_described(lists in file_policy(), asked in prop::collection::vec(paths(), 1..8)) {
        let compiled = compile(&file_text(&lists));
        prop_assert!(compiled.places.is_sorted_by(|left, right| left.path < right.path));
        for path in asked {
            let path = PathBuf::from(path);
            for access in Access::ALL {
                let decision = decide_file(&compiled, access, &path);
                let found = (decision.effect, rule_id(&compiled, decision).to_owned());
                prop_assert_eq!(&found, &reference_file(&lists, access, &path), "{:?} {:?}", access, path);
                let answer = explain_file(&compiled, access, &path);
                prop_assert_eq!(answer.decision, decision);
                prop_assert_eq!(&answer.chain[0].rule.id, &found.1);
                prop_assert_eq!(answer.chain.last().map(|link| link.rule.id.as_str()), Some("files.default"));
            }
        }
    }

    #[test]
    fn addresses_are_decided_as_described(
        lists in prop::array::uniform4(prop::collection::vec(entries(), 0..4)), unknown in any::<bool>(),
        asked in prop::collection::vec((addresses(), 0..10_u16), 1..8),
    ) {
        let compiled = compile(&net_text(&lists, unknown));
        prop_assert!(compiled.prefixes.is_sorted_by(|left, right| (left.op, left.net) < (right.op, right.net)));
        for (address, port) in asked {
            for op in [NetOp::Connect, NetOp::Listen] {
                let decision = decide_net(&compiled, op, address, port);
                let found = (decision.effect, rule_id(&compiled, decision).to_owned());
                prop_assert_eq!(&found, &reference_net(&lists, unknown, op, address, port), "{:?} {} {}", op, address, port);
                let answer = explain_net(&compiled, op, address, port);
                prop_assert_eq!(&answer.chain[0].rule.id, &found.1);
            }
        }
    }

    #[test]
    fn no_bytes_are_fatal(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let examined = examine("p.toml", &bytes, &context());
        examined.report.render(true);
    }

    #[test]
    fn no_text_is_fatal(text in "(name|mode|extends|preset:|\\[files\\]|\\[network\\]|\\[limits\\]|\\[\\[expect\\]\\]|pids|read|allow|unix|deny|\\*\\*/|\\$\\{home\\}|=|\\[|\\]|\\{|\\}|\"|'|\"\"\"|,|\\.|~|/|:|\\*|\n|\r|[0-9a-f]|é|\u{202e}|\\PC){0,60}") {
        let examined = examine("p.toml", text.as_bytes(), &context());
        examined.report.render(true);
    }

    #[test]
    fn no_entry_is_fatal(file in any::<String>(), net in "[0-9a-f:./*\\[\\]-]{0,40}|.{0,40}") {
        let (basic_file, basic_net) = (toml::Value::from(file.as_str()), toml::Value::from(net.as_str()));
        let text = format!("[files]\nread = [{basic_file}]\n[network]\nallow = [{basic_net}]\nlisten = ['''{net}''']\n[exec]\ndeny = ['''{file}''']\n");
        let examined = examine("p.toml", text.as_bytes(), &context());
        let printed = examined.report.render(false);
        prop_assert!(!printed.chars().any(|character| character.is_control() && character != '\n'), "{printed:?}");
    }

    #[test]
    fn no_question_is_fatal(lists in file_policy(), path in any::<String>()) {
        let compiled = compile(&file_text(&lists));
        let decision = decide_file(&compiled, Access::Read, Path::new(&path));
        if !path.starts_with('/') {
            prop_assert_eq!(rule_id(&compiled, decision), "files.default");
        }
    }
}

#[test]
fn ten_thousand_rules_compile() {
    let files: Vec<String> = (0..5_000)
        .map(|n| format!("/srv/{}/{}/{n}", n % 7, n % 131))
        .collect();
    let nets: Vec<String> = (0..5_000)
        .map(|n| format!("10.{}.{}.0/24:{}", n / 256, n % 256, n + 1))
        .collect();
    let compiled = compile(&format!(
        "[files]\nread = {files:?}\n[network]\nallow = {nets:?}\n"
    ));
    assert_eq!(
        (
            compiled.places.len(),
            compiled.prefixes.len(),
            compiled.rules.len()
        ),
        (5_000, 5_000, 10_000 + super::model::DEFAULT_RULES.len())
    );
}

#[test]
fn a_hostile_text_is_answered_in_bounded_work() {
    let one_line = format!("[files]\nread = [{}]", "\"*\",".repeat(19_000));
    let same_place = format!(
        "[network]\nallow = [{}]\ndeny = [\"*\", {}]",
        "\"*:1\",".repeat(9_000),
        "\"*:2\",".repeat(9_000)
    );
    let names = format!(
        "[files]\nread = [{}]\ndeny = [{}]\n[network]\nunix = [{}]",
        (0..6_000)
            .map(|n| format!("\"/a/b/c/d/e/f/g/h/{n}\","))
            .collect::<String>(),
        (0..6_000)
            .map(|n| format!("\"**/{n}*\","))
            .collect::<String>(),
        (0..6_000)
            .map(|n| format!("\"/a/b/c/d/e/f/g/h/{n}\","))
            .collect::<String>(),
    );
    let broken = "\"".repeat(1 << 20);
    let keys = (0..100_000)
        .map(|n| format!("k{n}=1\n"))
        .collect::<String>();
    for text in [one_line, same_place, names, broken, keys] {
        let examined = examine("p.toml", text.as_bytes(), &context());
        assert!(examined.report.render(false).len() < 1 << 20);
    }
}
