//! What is said of entries that are wrong.

use super::*;
use crate::policy::file;

fn checked(text: &str) -> (Rules, String) {
    let context = Context {
        cwd: "/w".into(),
        home: "/home/u".into(),
        ..Default::default()
    };
    let mut report = Report::new("p.toml", text);
    let file = file::read(text, Layer::Task, 0, &mut report);
    let mut rules = Rules::default();
    check(file, Origin::Task, &context, &mut report, &mut rules);
    (rules, report.render(false))
}

#[test]
fn every_fault_is_reported_with_its_place() {
    let (rules, faults) = checked(
        "[files]\nread = [\"/usr\", \"~bob/x\", \"\"]\nwrite = [\"src/*.rs\"]\n[network]\nallow = [\"crates.io:443\"]\n[exec]\ndeny = [\"curl\"]\n",
    );
    assert_eq!(rules.files.len(), 1);
    assert_eq!(
        faults,
        "\
error: only one's own home directory can be written with `~`: `~bob/x`
 --> p.toml:2:17
  |
2 | read = [\"/usr\", \"~bob/x\", \"\"]
  |                 ^^^^^^^^
  |
  = help: write the other user's home as an absolute path; a name that begins with `~` is written `./~…`

error: the path is empty
 --> p.toml:2:27
  |
2 | read = [\"/usr\", \"~bob/x\", \"\"]
  |                           ^^
  |
  = help: write `.` for the working directory

error: the path holds the pattern character `*`
 --> p.toml:3:10
  |
3 | write = [\"src/*.rs\"]
  |          ^^^^^^^^^^
  |
  = help: a session can give any file any name, so a name allows nothing: write the directory, and list what differs inside it as rules of their own; `files.deny` and `files.approve` take patterns of names

error: domain names are not yet supported: `crates.io`
 --> p.toml:5:10
  |
5 | allow = [\"crates.io:443\"]
  |          ^^^^^^^^^^^^^^^
  |
  = help: write the IP addresses, or the prefix, that the name stands for

error: `curl` is a bare name, and rules bind to the file that a path names
 --> p.toml:7:9
  |
7 | deny = [\"curl\"]
  |         ^^^^^^
  |
  = help: write the path, such as `/usr/bin/curl`, or `[\"curl\"]` for the command that is installed under this name"
    );
}

#[test]
fn a_rule_listed_twice_is_a_warning_however_it_is_spelt() {
    let (rules, faults) = checked(
        "[files]\nread = [\"/usr\",\n  \"/usr/./\"]\n[network]\nallow = [\"::ffff:10.0.0.1\", \"10.0.0.1/32\"]",
    );
    assert_eq!(rules.files.len(), 2);
    assert!(
        faults.contains("warning: `/usr/./` is listed twice in `files.read`"),
        "{faults}"
    );
    assert!(faults.contains("first listed here"), "{faults}");
    assert!(
        faults.contains("warning: `10.0.0.1/32` is listed twice in `network.allow`"),
        "{faults}"
    );
}

#[test]
fn names_can_be_shown() {
    for name in ["", " ", "a\\nb", &"n".repeat(MAX_NAME + 1)] {
        let (_, faults) = checked(&format!("name = \"{name}\""));
        assert!(faults.contains("is not a usable name"), "{name}: {faults}");
    }
    assert_eq!(
        checked("name = \"fix the parser\"").0.name.as_deref(),
        Some("fix the parser")
    );
}

#[test]
fn indexes_count_rules_that_are_wrong_too() {
    let (rules, _) = checked("[files]\nread = [\"*\", \"/usr\"]");
    assert_eq!(
        (rules.files[0].index, rules.files[0].text.as_str()),
        (1, "/usr")
    );
}

#[test]
fn too_many_rules_are_refused() {
    let list = |count: usize| format!("[files]\nread = [{}]", "\"/a\",".repeat(count));
    let (_, faults) = checked(&list(MAX_RULES + 1));
    assert!(
        faults.starts_with("error: the policy has 20001 rules, more than 20000"),
        "{faults}"
    );
    let (rules, _) = checked(&list(MAX_RULES));
    assert_eq!(rules.files.len(), MAX_RULES);
}
