//! Texts that nobody would write, for the whole way from bytes to answers: policies of ours with pieces taken out, doubled and
//! put elsewhere. Runs for a few seconds among the tests; `AGENTWATCH_FUZZ_SECONDS` makes it longer.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{
    default,
    examine::{Examined, examine_all},
    expect, explain,
    file::MAX_TEXT,
    learn::Learner,
    model::{Access, Compiled, Context, NetOp},
    preset, replay,
    sources::{Managed, Sources, gather},
};
use crate::session::landlock;

const SECONDS: u64 = 4;

/// Words that mean something, put where they may not.
const WORDS: [&str; 44] = [
    "[files]",
    "[exec]",
    "[network]",
    "[approvals]",
    "[[expect]]",
    "[limits]",
    "[sessions]",
    "extends = ",
    "read = ",
    "write = ",
    "deny = ",
    "approve = ",
    "allow = ",
    "unknown = ",
    "timeout = ",
    "max_pending = ",
    "path = ",
    "access = ",
    "\"approve\"",
    "\"${home}\"",
    "\"${",
    "\"~",
    "\"**/*",
    "\"*\"",
    "\"::/0\"",
    "\"10.0.0.0/8:1-2\"",
    "[\"git\", \"push\"]",
    "[\"\"]",
    "{ path = \"/a\" }",
    "\"preset:base\"",
    "\"preset:git\"",
    "\"held\"",
    "[",
    "]",
    "{",
    "}",
    ",",
    "=",
    "\"",
    "'''",
    "\n",
    "\0",
    "\u{202e}",
    "99999999999999999999",
];

/// Whole policies: what comes with agentwatch, and what stands on the page about them.
fn seeds() -> Vec<String> {
    let page = include_str!("../../../docs/policy.md");
    let mut seeds: Vec<String> = page
        .split("```toml")
        .skip(1)
        .filter_map(|block| block.split_once('\n')?.1.split("```").next())
        .map(str::to_owned)
        .collect();
    seeds.extend(preset::PRESETS.iter().map(|preset| preset.text.to_owned()));
    seeds.push(default::TEXT.to_owned());
    seeds.push(String::new());
    seeds
}

#[derive(Clone, Debug)]
enum Change {
    Put(usize, &'static str),
    Take(usize, usize),
    Copy(usize, usize, usize),
    Byte(usize, u8),
    Repeat(usize, usize, u8),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let at = || any::<usize>();
    let change = prop_oneof![
        4 => (at(), prop::sample::select(WORDS.to_vec())).prop_map(|(at, word)| Change::Put(at, word)),
        2 => (at(), 0..80_usize).prop_map(|(at, length)| Change::Take(at, length)),
        2 => (at(), 0..80_usize, at()).prop_map(|(at, length, to)| Change::Copy(at, length, to)),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        1 => (at(), 0..12_usize, any::<u8>()).prop_map(|(at, length, times)| Change::Repeat(at, length, times)),
    ];
    prop::collection::vec(change, 0..8)
}

fn changed(text: &str, changes: &[Change]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for change in changes {
        let within = |at: usize, bytes: &[u8]| at % (bytes.len() + 1);
        match change {
            Change::Put(at, word) => {
                let at = within(*at, &bytes);
                bytes.splice(at..at, word.bytes());
            }
            Change::Take(at, length) => {
                let at = within(*at, &bytes);
                bytes.drain(at..(at + length).min(bytes.len()));
            }
            Change::Copy(at, length, to) => {
                let at = within(*at, &bytes);
                let piece = bytes[at..(at + length).min(bytes.len())].to_vec();
                let to = within(*to, &bytes);
                bytes.splice(to..to, piece);
            }
            Change::Byte(at, byte) => {
                let at = within(*at, &bytes);
                if let Some(slot) = bytes.get_mut(at) {
                    *slot = *byte;
                }
            }
            Change::Repeat(at, length, times) => {
                let at = within(*at, &bytes);
                let piece = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece.repeat(usize::from(*times)));
            }
        }
    }
    bytes
}

fn context() -> Context {
    Context::of_tests("/w")
}

fn examined(text: &[u8], base: &[u8], managed: Option<&[u8]>) -> Examined {
    let context = context();
    let directory = Path::new("/p");
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Whatever file it names is the same one.
    let included = gather(&lossy(text), directory, &context, |_| Ok(lossy(base)));
    let managed: Vec<Managed> = managed
        .map(|text| Managed {
            path: "/m.toml".into(),
            text: lossy(text),
        })
        .into_iter()
        .collect();
    examine_all(&Sources {
        file: "p.toml",
        text,
        directory,
        included: &included,
        context: &context,
        managed: &managed,
        managed_context: &context,
    })
}

/// Everything that can be asked of a policy is answered by one of its rules.
fn answers(policy: &Compiled) {
    let rule = |index: u32| &policy.rules[index as usize];
    let own = policy.places.iter().map(|place| place.path.as_path());
    for path in own
        .take(32)
        .chain([Path::new("/"), Path::new("/x/.env"), Path::new("")])
    {
        for access in Access::ALL {
            let answer = explain::explain_file(policy, access, path);
            assert_eq!(answer.chain[0].rule, rule(answer.decision.rule), "{path:?}");
            assert_eq!(answer.chain[0].effect, answer.decision.effect, "{path:?}");
        }
        let answer = explain::explain_command(policy, path, &["push", "--force"]);
        assert_eq!(answer.chain[0].rule, rule(answer.decision.rule), "{path:?}");
    }
    for address in ["0.0.0.0", "10.1.2.3", "::1", "::ffff:10.0.0.1"] {
        let address: IpAddr = address.parse().expect("an address");
        for (op, port) in [(NetOp::Connect, 443), (NetOp::Listen, 0)] {
            let answer = explain::explain_net(policy, op, address, port);
            assert_eq!(answer.chain[0].rule, rule(answer.decision.rule));
        }
    }
    landlock::plan(policy);
    policy.record();
    replay::bound(policy, |path| path.parent().map(Path::to_owned));
}

fn check(text: &[u8], base: &[u8], managed: Option<&[u8]>) {
    let mut one = examined(text, base, managed);
    let shown = one.report.render(true);
    assert!(
        shown.len() < MAX_TEXT,
        "{} bytes of complaints",
        shown.len()
    );
    let plain = one.report.render(false);
    let is_harmless = |letter: char| !letter.is_control() || letter == '\n';
    assert!(plain.chars().all(is_harmless), "{plain:?}");
    assert_eq!(one.compiled.is_none(), one.report.errors() > 0);
    let Some(policy) = one.compiled.take() else {
        return;
    };
    answers(&policy);
    expect::test(&one.expect, &policy, &mut one.report);
    let again = examined(text, base, managed).compiled.expect("as before");
    assert_eq!(again, policy);
}

#[test]
fn no_policy_is_fatal() {
    let seconds = std::env::var("AGENTWATCH_FUZZ_SECONDS").ok();
    let seconds = seconds
        .and_then(|text| text.parse().ok())
        .unwrap_or(SECONDS);
    let (start, limit) = (Instant::now(), Duration::from_secs(seconds));
    let seeds = seeds();
    let text = || {
        (prop::sample::select(seeds.clone()), changes())
            .prop_map(|(seed, changes)| changed(&seed, &changes))
    };
    let texts = (text(), text(), prop::option::weighted(0.3, text()));
    let mut runner = TestRunner::new(Config {
        cases: 32,
        failure_persistence: None,
        ..Config::default()
    });
    let mut tried = 0;
    while start.elapsed() < limit {
        let result = runner.run(&texts, |(text, base, managed)| {
            check(&text, &base, managed.as_deref());
            Ok(())
        });
        if let Err(error) = result {
            panic!("after {tried} policies: {error}");
        }
        tried += 32;
    }
    println!("{tried} policies in {seconds} s");
}

#[test]
fn a_mebibyte_of_garbage_is_refused_in_bounded_time() {
    let start = Instant::now();
    let mut word = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        // The sequence of Numerical Recipes; only its bytes matter.
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (word >> 24) as u8
    })
    .take(MAX_TEXT)
    .collect();
    let letters: Vec<u8> = noise.iter().map(|byte| byte % 95 + b' ').collect();
    let brackets: Vec<u8> = noise
        .iter()
        .map(|byte| b"[]{}=\",'\n#."[usize::from(*byte) % 11])
        .collect();
    for text in [
        noise,
        letters,
        brackets,
        vec![b'\n'; MAX_TEXT],
        vec![b'a'; MAX_TEXT + 1],
    ] {
        check(&text, b"", None);
    }
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn nothing_seen_is_no_policy() {
    let learned = Learner::default().learn(&[], &context());
    check(learned.text.as_bytes(), b"", None);
}
