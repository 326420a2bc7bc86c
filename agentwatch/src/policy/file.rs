//! The form of a policy file: which keys there are and what stands in them. This is the only place that knows TOML; it
//! must not know what a path or an address means. A fault never hides the next one: everything that can be read is read.

use std::ops::Range;

use schemars::JsonSchema;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::diagnostic::{Diagnostic, Report, quote};
use crate::event::model::Mode;

/// A policy file: what a session may read, write, execute and connect to. What is not named is denied.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(title = "agentwatch policy", deny_unknown_fields, default)]
pub struct PolicyFile {
    /// Name for people.
    #[schemars(with = "Option<String>")]
    pub name: Option<Spanned<String>>,
    /// Whether what is forbidden is refused (`enforce`) or only recorded (`monitor`).
    pub mode: Mode,
    /// Rights on files and directories. A rule holds from its path down to the next path that a rule names.
    pub files: FilesTable,
    /// Rights on IP addresses and ports.
    pub network: NetworkTable,
    /// Rules on executables.
    pub exec: ExecTable,
    /// Operations on the host around the session.
    pub guard: GuardTable,
}

/// A list of rules, each with its place in the text.
pub type Entries = Vec<Spanned<String>>;

/// The `[files]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct FilesTable {
    /// Paths that may be read and listed, and not written.
    #[schemars(with = "Vec<String>")]
    pub read: Entries,
    /// Paths that may be read, listed and written.
    #[schemars(with = "Vec<String>")]
    pub write: Entries,
    /// Paths whose files may be executed.
    #[schemars(with = "Vec<String>")]
    pub exec: Entries,
    /// Paths that may not be used at all, and names that may not be wherever they stand: `**/.env`, `**/*.pem`, `**/id_*`.
    #[schemars(with = "Vec<String>")]
    pub deny: Entries,
}

/// The `[network]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct NetworkTable {
    /// Addresses that may be connected to and sent to.
    #[schemars(with = "Vec<String>")]
    pub allow: Entries,
    /// Addresses that may not be connected to, inside what `allow` names.
    #[schemars(with = "Vec<String>")]
    pub deny: Entries,
    /// Local addresses that may be bound.
    #[schemars(with = "Vec<String>")]
    pub listen: Entries,
    /// UNIX sockets that may be connected to: paths, `@NAME` and `@BEGINNING*`.
    #[schemars(with = "Vec<String>")]
    pub unix: Entries,
    /// Families of sockets that may be made besides UNIX, TCP, UDP and netlink.
    #[schemars(with = "Vec<String>")]
    pub families: Entries,
}

/// The `[exec]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct ExecTable {
    /// Executables, by path, that may not be executed.
    #[schemars(with = "Vec<String>")]
    pub deny: Entries,
}

/// The `[guard]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields, default)]
pub struct GuardTable {
    /// Guarded operations that are allowed, by name.
    #[schemars(with = "Vec<String>")]
    pub allow: Entries,
}

/// The JSON Schema of policy files, for editors.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(PolicyFile)
}

/// Reads the text; what is wrong with it goes into the report.
pub fn read(text: &str, report: &mut Report) -> PolicyFile {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in errors {
            // The parser reports the end of the text as an empty span.
            report.push(Diagnostic::error(
                format!("not valid TOML: {}", error.message()),
                error.span(),
            ));
        }
        // What was recovered from broken text need not be what its author meant: say nothing about it.
        return PolicyFile::default();
    }
    let mut file = PolicyFile::default();
    for (key, value) in table.get_ref() {
        match key.get_ref().as_ref() {
            "name" => file.name = string(key, value, report),
            "mode" => {
                if let Some(text) = string(key, value, report) {
                    match text.get_ref().as_str() {
                        "enforce" => file.mode = Mode::Enforce,
                        "monitor" => file.mode = Mode::Monitor,
                        other => report.push(
                            Diagnostic::error(
                                format!("there is no mode {}", quote(other)),
                                text.span(),
                            )
                            .help(suggestion(
                                other,
                                &["enforce", "monitor"],
                                "the modes are",
                            )),
                        ),
                    }
                }
            }
            "files" => {
                let FilesTable {
                    read,
                    write,
                    exec,
                    deny,
                } = &mut file.files;
                let lists = &mut [
                    ("read", read),
                    ("write", write),
                    ("exec", exec),
                    ("deny", deny),
                ];
                section(&FILES, key, value, lists, report);
            }
            "network" => {
                let NetworkTable {
                    allow,
                    deny,
                    listen,
                    unix,
                    families,
                } = &mut file.network;
                let lists = &mut [
                    ("allow", allow),
                    ("deny", deny),
                    ("listen", listen),
                    ("unix", unix),
                    ("families", families),
                ];
                section(&NETWORK, key, value, lists, report);
            }
            "exec" => section(
                &EXEC,
                key,
                value,
                &mut [("deny", &mut file.exec.deny)],
                report,
            ),
            "guard" => section(
                &GUARD,
                key,
                value,
                &mut [("allow", &mut file.guard.allow)],
                report,
            ),
            unknown => report.push(unknown_key(&TOP, unknown, key.span())),
        }
    }
    file
}

/// The keys of one table.
struct Keys {
    /// Name of the table; empty for the top level.
    table: &'static str,
    known: &'static [&'static str],
    /// Keys that the language will have. They are named so that a policy written for a later agentwatch is refused with
    /// a reason, and never understood by half.
    planned: &'static [&'static str],
}

const TOP: Keys = Keys {
    table: "",
    known: &["name", "mode", "files", "network", "exec", "guard"],
    planned: &[
        "extends", "layer", "limits", "trace", "redact", "approval", "commands", "managed",
    ],
};
const FILES: Keys = Keys {
    table: "files",
    known: &["read", "write", "exec", "deny"],
    planned: &["approve", "names", "limits"],
};
const NETWORK: Keys = Keys {
    table: "network",
    known: &["allow", "deny", "listen", "unix", "families"],
    planned: &["approve", "domains", "dns", "sni"],
};
const EXEC: Keys = Keys {
    table: "exec",
    known: &["deny"],
    planned: &["allow", "approve", "argv"],
};

const GUARD: Keys = Keys {
    table: "guard",
    known: &["allow"],
    planned: &["approve"],
};

type Key<'i> = Spanned<std::borrow::Cow<'i, str>>;

/// Reads one table of lists.
fn section(
    keys: &Keys,
    key: &Key<'_>,
    value: &Spanned<DeValue<'_>>,
    lists: &mut [(&str, &mut Entries)],
    report: &mut Report,
) {
    let Some(table) = value.get_ref().as_table() else {
        let wrong = kind(value.get_ref());
        report.push(
            Diagnostic::error(
                format!("`{}` must be a table, and this is {wrong}", keys.table),
                here(key.span(), value),
            )
            .help(format!("begin it with a line `[{}]`", keys.table)),
        );
        return;
    };
    for (key, value) in table {
        match lists.iter_mut().find(|(name, _)| name == key.get_ref()) {
            Some((_, entries)) => **entries = strings(keys.table, key, value, report),
            None => report.push(unknown_key(keys, key.get_ref(), key.span())),
        }
    }
}

fn strings(
    table: &str,
    key: &Key<'_>,
    value: &Spanned<DeValue<'_>>,
    report: &mut Report,
) -> Entries {
    let name = format!("{table}.{}", key.get_ref());
    let Some(array) = value.get_ref().as_array() else {
        let mut fault = Diagnostic::error(
            format!(
                "`{name}` must be a list of strings, and this is {}",
                kind(value.get_ref())
            ),
            here(key.span(), value),
        );
        if let Some(text) = value.get_ref().as_str() {
            fault = fault.help(format!(
                "put it in brackets: {} = [{:?}]",
                key.get_ref(),
                shorten(text)
            ));
        }
        report.push(fault);
        return Entries::new();
    };
    let mut entries = Entries::with_capacity(array.len());
    for element in array.iter() {
        match element.get_ref().as_str() {
            Some(text) => entries.push(Spanned::new(element.span(), text.to_owned())),
            None => report.push(Diagnostic::error(
                format!(
                    "`{name}` holds strings, and this is {}",
                    kind(element.get_ref())
                ),
                element.span(),
            )),
        }
    }
    entries
}

fn string(
    key: &Key<'_>,
    value: &Spanned<DeValue<'_>>,
    report: &mut Report,
) -> Option<Spanned<String>> {
    match value.get_ref().as_str() {
        Some(text) => Some(Spanned::new(value.span(), text.to_owned())),
        None => {
            report.push(Diagnostic::error(
                format!(
                    "`{}` must be a string, and this is {}",
                    key.get_ref(),
                    kind(value.get_ref())
                ),
                here(key.span(), value),
            ));
            None
        }
    }
}

/// Where a value of the wrong kind stands. Tables are spread over the text, so their key is shown.
fn here(key: Range<usize>, value: &Spanned<DeValue<'_>>) -> Range<usize> {
    if value.get_ref().is_table() {
        key
    } else {
        value.span()
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn unknown_key(keys: &Keys, key: &str, span: Range<usize>) -> Diagnostic {
    let full = if keys.table.is_empty() {
        key.to_owned()
    } else {
        format!("{}.{key}", keys.table)
    };
    if keys.planned.contains(&key) {
        return Diagnostic::error(format!("`{full}` is not yet supported"), span)
            .help("leave it out; until then, what no rule allows is denied");
    }
    let fault = Diagnostic::error(format!("there is no key {}", quote(&full)), span);
    // A key that belongs to a table and stands at the top is more often misplaced than misspelt.
    if keys.table.is_empty()
        && let Some(home) = [&FILES, &NETWORK, &EXEC, &GUARD]
            .into_iter()
            .find(|table| table.known.contains(&key))
    {
        return fault.help(format!("`{key}` stands below a line `[{}]`", home.table));
    }
    let intro = if keys.table.is_empty() {
        "the keys here are".to_owned()
    } else {
        format!("the keys of [{}] are", keys.table)
    };
    fault.help(suggestion(key, keys.known, &intro))
}

/// "did you mean" where a known word is near, and the list of them where none is.
pub(super) fn suggestion(word: &str, known: &[&str], intro: &str) -> String {
    let near = known
        .iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance < candidate.len())
        .min();
    match near {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None => format!("{intro} `{}`", known.join("`, `")),
    }
}

/// Edit distance where a swap of neighbours counts as one; far for words that are much longer than any key.
fn distance(left: &str, right: &str) -> usize {
    const LONGEST: usize = 32;
    if left.len() > LONGEST || right.len() > LONGEST {
        return usize::MAX;
    }
    let left: Vec<char> = left.to_lowercase().chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in 0..=left.len() {
        for j in 0..=right.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = usize::from(left[i - 1] != right[j - 1]);
                let mut best = (rows[i - 1][j] + 1)
                    .min(rows[i][j - 1] + 1)
                    .min(rows[i - 1][j - 1] + changed);
                if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[left.len()][right.len()]
}

fn shorten(text: &str) -> &str {
    text.char_indices()
        .nth(60)
        .map_or(text, |(at, _)| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        let mut report = Report::new("p.toml", text);
        read(text, &mut report);
        report.render(false)
    }

    #[test]
    fn everything_is_read() {
        let text = "name = \"n\"\nmode = \"monitor\"\n[files]\nread = [\"/r\"]\n[network]\nlisten = [\"*\"]\n[exec]\ndeny = [\"/x\"]";
        let mut report = Report::new("p.toml", text);
        let file = read(text, &mut report);
        assert_eq!(report.render(false), "");
        assert_eq!(file.mode, Mode::Monitor);
        assert_eq!(
            file.name.as_ref().map(|name| name.get_ref().as_str()),
            Some("n")
        );
        assert_eq!(file.files.read[0].get_ref(), "/r");
        assert_eq!(&text[file.files.read[0].span()], "\"/r\"");
        assert_eq!(file.network.listen[0].get_ref(), "*");
        assert_eq!(file.exec.deny[0].get_ref(), "/x");
    }

    #[test]
    fn unknown_keys_are_all_found_and_get_a_suggestion() {
        assert_eq!(
            faults("mdoe = \"enforce\"\n[files]\nwrit = []\n[network]\nfoo = []\n"),
            "\
error: there is no key `mdoe`
 --> p.toml:1:1
  |
1 | mdoe = \"enforce\"
  | ^^^^
  |
  = help: did you mean `mode`?

error: there is no key `files.writ`
 --> p.toml:3:1
  |
3 | writ = []
  | ^^^^
  |
  = help: did you mean `write`?

error: there is no key `network.foo`
 --> p.toml:5:1
  |
5 | foo = []
  | ^^^
  |
  = help: the keys of [network] are `allow`, `deny`, `listen`, `unix`, `families`"
        );
    }

    #[test]
    fn planned_and_misplaced_keys_say_so() {
        let planned = faults("extends = \"base\"\n[files]\napprove = []\n");
        assert!(
            planned.contains("`extends` is not yet supported"),
            "{planned}"
        );
        assert!(
            planned.contains("`files.approve` is not yet supported"),
            "{planned}"
        );
        assert!(faults("read = []").contains("`read` stands below a line `[files]`"));
    }

    #[test]
    fn wrong_kinds_are_named() {
        let text = faults(
            "name = 1\nmode = \"enforced\"\nnetwork = []\n[files]\nread = \"/usr\"\nwrite = [\"/a\", 2, {}]\n",
        );
        for expected in [
            "`name` must be a string, and this is an integer",
            "there is no mode `enforced`",
            "did you mean `enforce`?",
            "`network` must be a table, and this is a list",
            "put it in brackets: read = [\"/usr\"]",
            "`files.write` holds strings, and this is an integer",
            "`files.write` holds strings, and this is a table",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn broken_toml_points_at_the_place() {
        let text = faults("[files\nread = [\"/usr\"\n");
        assert!(text.starts_with("error: not valid TOML: "), "{text}");
        assert!(text.contains("p.toml:1:"), "{text}");
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        for text in [
            "x=".to_owned() + &"[".repeat(200_000),
            "x=".to_owned() + &"{a=".repeat(100_000),
            "a.".repeat(200_000),
        ] {
            assert!(faults(&text).contains("not valid TOML"));
        }
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read() {
        let schema = serde_json::to_value(schema()).unwrap();
        let keys = |pointer: &str| -> Vec<String> {
            let mut keys: Vec<String> = schema
                .pointer(pointer)
                .unwrap()
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect();
            keys.sort();
            keys
        };
        for (pointer, table) in [
            ("/properties", &TOP),
            ("/$defs/FilesTable/properties", &FILES),
            ("/$defs/NetworkTable/properties", &NETWORK),
            ("/$defs/ExecTable/properties", &EXEC),
            ("/$defs/GuardTable/properties", &GUARD),
        ] {
            let mut known = table.known.to_vec();
            known.sort_unstable();
            assert_eq!(keys(pointer), known);
        }
        assert_eq!(
            schema.pointer("/additionalProperties"),
            Some(&serde_json::Value::Bool(false))
        );
    }
}
