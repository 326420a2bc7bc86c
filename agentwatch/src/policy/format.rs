//! The one layout of policy files: the order of their tables and keys, a space around `=`, lists on one line where they fit and an
//! entry a line where they don't. Comments stay with what they stand before or behind; entries of lists stay in their order, and
//! values as they are written. Formatting what is formatted changes nothing.

use toml_edit::{
    Array, Decor, DocumentMut, InlineTable, Item, Key, RawString, Table, TomlError, Value,
};

use super::file::order_of;

/// A list longer than this, with its key, has an entry a line.
const WIDTH: usize = 100;
/// What entries on lines of their own are moved in by.
const INDENT: &str = "    ";

/// Formats a policy's text.
///
/// # Errors
/// Where it is no TOML. Whether it is a policy is not asked.
pub fn format(text: &str) -> Result<String, TomlError> {
    let text = text.replace("\r\n", "\n");
    let document: DocumentMut = text.parse()?;
    let mut printer = Printer { out: String::new() };
    printer.file(&document);
    Ok(printer.out)
}

/// A comment, or the blank line between two of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line<'t> {
    Comment(&'t str),
    Blank,
}

/// What stands before something, on lines of its own. Several blank lines are one.
fn lines(raw: &str) -> Vec<Line<'_>> {
    let mut found = Vec::new();
    // What follows the last end of line is the indentation of what it stands before.
    let whole = raw.rsplit_once('\n').map_or("", |(before, _)| before);
    for line in whole.split('\n').filter(|_| raw.contains('\n')) {
        match line.trim() {
            "" if found.last() != Some(&Line::Blank) => found.push(Line::Blank),
            "" => {}
            comment => found.push(Line::Comment(comment)),
        }
    }
    found
}

fn raw(text: Option<&RawString>) -> &str {
    text.and_then(RawString::as_str).unwrap_or_default()
}

/// What stands behind something on its line, with the space before it.
fn behind(text: Option<&RawString>) -> String {
    match raw(text).lines().next().unwrap_or_default().trim() {
        "" => String::new(),
        comment => std::format!(" {comment}"),
    }
}

/// A table that has a header of its own, or all of whose keys are written out where it is named.
fn is_section(item: &Item) -> bool {
    match item {
        Item::Table(table) => !table.is_dotted(),
        Item::ArrayOfTables(_) => true,
        _ => false,
    }
}

struct Printer {
    out: String,
}

impl Printer {
    fn file(&mut self, document: &DocumentMut) {
        let root = document.as_table();
        // A comment that a blank line parts from what follows is the file's, and so is one in a file of nothing else.
        let first = first_prefix(root);
        let mut head = lines(first);
        match head.iter().rposition(|line| *line == Line::Blank) {
            Some(end) => head.truncate(end + 1),
            None => head.clear(),
        }
        let skipped = head.len();
        self.comments(&head);
        self.table(root, &[], skipped);
        let trailing = std::format!("{}\n", raw(Some(document.trailing())));
        let mut tail = lines(&trailing);
        while tail.last() == Some(&Line::Blank) {
            tail.pop();
        }
        if !tail.is_empty() {
            self.blank();
            self.comments(&tail);
        }
    }

    /// A blank line, where there is not one already and something stands above.
    fn blank(&mut self) {
        if !self.out.is_empty() && !self.out.ends_with("\n\n") {
            self.out.push('\n');
        }
    }

    fn comments(&mut self, lines: &[Line<'_>]) {
        for line in lines {
            match line {
                Line::Blank => self.blank(),
                Line::Comment(text) => {
                    self.out.push_str(text);
                    self.out.push('\n');
                }
            }
        }
    }

    /// The keys of a table, then the tables in it; of the first of all, so many lines of what stands before it are said already.
    fn table(&mut self, table: &Table, path: &[&Key], skipped: usize) {
        let names: Vec<&str> = path.iter().map(|key| key.get()).collect();
        let order = order_of(&names);
        let rank = |key: &Key| order.iter().position(|name| *name == key.get());
        let mut entries: Vec<(usize, &Key, &Item)> = table
            .iter()
            .enumerate()
            .filter_map(|(at, (name, item))| Some((at, table.key(name)?, item)))
            .collect();
        // Where they stand in the text decides about what the language does not know.
        entries.sort_by_key(|(at, key, _)| (rank(key).unwrap_or(usize::MAX), *at));
        let skip = |at: usize| if at == 0 { skipped } else { 0 };
        let mut is_first = true;
        for (at, key, item) in entries.iter().filter(|(.., item)| !is_section(item)) {
            self.entry(&mut vec![key], item, skip(*at), &mut is_first);
        }
        for (at, key, item) in entries.iter().filter(|(.., item)| is_section(item)) {
            let path: Vec<&Key> = path.iter().copied().chain([*key]).collect();
            match item {
                Item::Table(table) => {
                    if !table.is_implicit() {
                        self.header(table, &path, ["[", "]"], skip(*at));
                    }
                    self.table(
                        table,
                        &path,
                        if table.is_implicit() { skip(*at) } else { 0 },
                    );
                }
                Item::ArrayOfTables(tables) => {
                    for (n, table) in tables.iter().enumerate() {
                        self.header(
                            table,
                            &path,
                            ["[[", "]]"],
                            if n == 0 { skip(*at) } else { 0 },
                        );
                        self.table(table, &path, 0);
                    }
                }
                _ => {}
            }
        }
    }

    fn header(&mut self, table: &Table, path: &[&Key], brackets: [&str; 2], skipped: usize) {
        let decor = table.decor();
        let before = lines(raw(decor.prefix()));
        self.blank();
        self.comments(strip(&before[skipped.min(before.len())..]));
        let path: Vec<String> = path.iter().map(|key| written(key)).collect();
        let [open, close] = brackets;
        let behind = behind(decor.suffix());
        self.out
            .push_str(&std::format!("{open}{}{close}{behind}\n", path.join(".")));
    }

    /// A key with its value, or the keys that are written out below a dotted one.
    fn entry<'k>(
        &mut self,
        path: &mut Vec<&'k Key>,
        item: &'k Item,
        skipped: usize,
        is_first: &mut bool,
    ) {
        match item {
            Item::Value(value) => {
                // What stands before a dotted key is its last part's.
                let prefix = path.last().map(|key| raw(key.leaf_decor().prefix()));
                let before = lines(prefix.unwrap_or_default());
                let before = &before[skipped.min(before.len())..];
                if before.first() == Some(&Line::Blank) && !*is_first {
                    self.blank();
                }
                *is_first = false;
                self.comments(strip(before));
                let key: Vec<String> = path.iter().map(|key| written(key)).collect();
                let start = std::format!("{} = ", key.join("."));
                let text = value_text(value, start.chars().count());
                let behind = behind(value.decor().suffix());
                self.out.push_str(&std::format!("{start}{text}{behind}\n"));
            }
            Item::Table(table) => {
                for (name, item) in table {
                    if let Some(key) = table.key(name) {
                        path.push(key);
                        self.entry(path, item, skipped, is_first);
                        path.pop();
                    }
                }
            }
            _ => {}
        }
    }
}

/// What stands before the first thing of a file.
fn first_prefix(root: &Table) -> &str {
    let Some((name, item)) = root.iter().next() else {
        return "";
    };
    match item {
        Item::Table(table) if table.is_implicit() || table.is_dotted() => first_prefix(table),
        Item::Table(table) => raw(table.decor().prefix()),
        Item::ArrayOfTables(tables) => tables
            .get(0)
            .map_or("", |table| raw(table.decor().prefix())),
        _ => root
            .key(name)
            .map_or("", |key| raw(key.leaf_decor().prefix())),
    }
}

/// Without blank lines around.
fn strip<'l, 't>(mut lines: &'l [Line<'t>]) -> &'l [Line<'t>] {
    while let [Line::Blank, rest @ ..] = lines {
        lines = rest;
    }
    while let [rest @ .., Line::Blank] = lines {
        lines = rest;
    }
    lines
}

fn written(key: &Key) -> String {
    key.display_repr().into_owned()
}

/// A value that begins in a column.
fn value_text(value: &Value, column: usize) -> String {
    match value {
        Value::Array(array) => array_text(array, column),
        Value::InlineTable(table) => inline_text(table),
        scalar => scalar_text(scalar),
    }
}

/// A value as it is written, without what stands around it.
fn scalar_text(value: &Value) -> String {
    let mut bare = value.clone();
    bare.decor_mut().clear();
    bare.to_string()
}

fn inline_text(table: &InlineTable) -> String {
    // TOML 1.1 has comments in them: then it stays as it is.
    if is_commented(table) {
        return scalar_text(&Value::InlineTable(table.clone()));
    }
    fn entries(table: &InlineTable, before: &str, found: &mut Vec<String>) {
        for (name, value) in table {
            let Some(key) = table.key(name) else { continue };
            let key = std::format!("{before}{}", written(key));
            match value {
                Value::InlineTable(inner) if inner.is_dotted() => {
                    entries(inner, &std::format!("{key}."), found);
                }
                value => found.push(std::format!("{key} = {}", value_text(value, 0))),
            }
        }
    }
    let mut found = Vec::new();
    entries(table, "", &mut found);
    if found.is_empty() {
        "{}".to_owned()
    } else {
        std::format!("{{ {} }}", found.join(", "))
    }
}

fn is_commented(table: &InlineTable) -> bool {
    let comments = |text: Option<&RawString>| raw(text).contains('#');
    let around = |decor: &Decor| comments(decor.prefix()) || comments(decor.suffix());
    comments(Some(table.trailing()))
        || table.iter().any(|(name, value)| {
            around(value.decor())
                || table
                    .key(name)
                    .is_some_and(|key| around(key.leaf_decor()) || around(key.dotted_decor()))
                || value.as_inline_table().is_some_and(is_commented)
                || value
                    .as_array()
                    .is_some_and(|array| array_text(array, 0).contains('\n'))
        })
}

/// The comment behind an entry's comma, which is what the text before the next entry begins with, and the lines after it.
fn comment_behind(text: &str) -> (&str, &str) {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    let line = line.trim();
    (if line.starts_with('#') { line } else { "" }, rest)
}

fn array_text(array: &Array, column: usize) -> String {
    let entries: Vec<&Value> = array.iter().collect();
    let has_comment = |text: Option<&RawString>| raw(text).contains('#');
    let commented = has_comment(Some(array.trailing()))
        || entries.iter().any(|entry| {
            has_comment(entry.decor().prefix()) || has_comment(entry.decor().suffix())
        });
    if !commented {
        let all: Vec<String> = entries.iter().map(|entry| value_text(entry, 0)).collect();
        let line = std::format!("[{}]", all.join(", "));
        let fits = column + line.chars().count() <= WIDTH && !line.contains('\n');
        // An author's groups are kept.
        let grouped = entries
            .iter()
            .skip(1)
            .any(|entry| raw(entry.decor().prefix()).matches('\n').count() > 1);
        if entries.is_empty() || (fits && !grouped) {
            return line;
        }
    }
    let mut out = String::from("[");
    let mut open = true;
    let put = |out: &mut String, text: &str, open: &mut bool| {
        let (comment, rest) = comment_behind(text);
        if !comment.is_empty() {
            out.push_str(&std::format!(" {comment}"));
        }
        out.push('\n');
        for line in lines(rest) {
            match line {
                Line::Blank if *open => {}
                Line::Blank => out.push('\n'),
                Line::Comment(text) => {
                    out.push_str(&std::format!("{INDENT}{text}\n"));
                    *open = false;
                }
            }
        }
    };
    for entry in entries {
        put(&mut out, raw(entry.decor().prefix()), &mut open);
        let mut text = value_text(entry, INDENT.len());
        if entry.is_array() {
            text = text.replace('\n', &std::format!("\n{INDENT}"));
        }
        out.push_str(&std::format!("{INDENT}{text},"));
        // A comment between an entry and its comma.
        for line in raw(entry.decor().suffix()).lines().map(str::trim) {
            if !line.is_empty() {
                out.push_str(&std::format!(" {line}"));
            }
        }
        open = false;
    }
    put(&mut out, raw(Some(array.trailing())), &mut open);
    while out.ends_with("\n\n") {
        out.pop();
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{default, preset};

    fn formatted(text: &str) -> String {
        let once = format(text).expect("it is TOML");
        assert_eq!(format(&once).expect("it still is"), once, "twice is once");
        assert_eq!(
            toml::from_str::<toml::Table>(text).expect("TOML"),
            toml::from_str::<toml::Table>(&once).expect("TOML"),
            "it says the same:\n{once}"
        );
        let comments = |text: &str| {
            let mut found: Vec<String> = text
                .lines()
                .filter_map(|line| Some(line.split_once('#')?.1.trim().to_owned()))
                .collect();
            found.sort();
            found
        };
        assert_eq!(comments(text), comments(&once), "comments stay:\n{once}");
        once
    }

    #[test]
    fn there_is_one_layout() {
        let text = "\
# What it is.
# Two lines.

extends=['preset:base']   # behind
mode  =  \"enforce\"
# of the name
name = 'n'

# before expect
[[expect]]
verdict = 'denied'
read = '/x'


# of files
[files] # header
deny  = ['/d']
read = [ '/a', # of a
 # before b
  '/b',

  # a group
  '/c' ]
approve = [{path='/p',access=['read']}]
write = []
[task]
goal = \"g\"
# the end
";
        let wanted = "\
# What it is.
# Two lines.

# of the name
name = 'n'
mode = \"enforce\"
extends = ['preset:base'] # behind

[task]
goal = \"g\"

# of files
[files] # header
read = [
    '/a', # of a
    # before b
    '/b',

    # a group
    '/c',
]
write = []
deny = ['/d']
approve = [{ path = '/p', access = ['read'] }]

# before expect
[[expect]]
read = '/x'
verdict = 'denied'

# the end
";
        assert_eq!(formatted(text), wanted);
    }

    #[test]
    fn long_lists_have_an_entry_a_line() {
        let entry = "'/a/path/of/some/length'";
        let text = std::format!("[files]\nread = [{}]\n", [entry; 4].join(","));
        assert_eq!(
            formatted(&text),
            std::format!(
                "[files]\nread = [\n{}]\n",
                std::format!("    {entry},\n").repeat(4)
            )
        );
        let text = std::format!("[files]\nread = [\n{entry},\n{entry}]\n");
        assert_eq!(
            formatted(&text),
            std::format!("[files]\nread = [{entry}, {entry}]\n")
        );
    }

    #[test]
    fn whatever_is_toml_stays_what_it_is() {
        for text in [
            "",
            "# only a comment",
            "\n\n# one\n\n\n# two\n\n",
            "files.read = ['/a'] # dotted\n# next\nfiles.deny = []\n",
            "unknown = 1\nname = 'n'\n[other.table]\nx = 1979-05-27\n[other]\ny = 1.50\n",
            "a = [ # first\n 1, 2 # last\n , 3\n # end\n]\n",
            "a = [[1, # one\n 2], [3]]\n",
            "a = \"\"\"\nseveral\n  lines\"\"\"\n",
            "a = [\"\"\"\nseveral\n  lines\"\"\", 'b']\n",
            "a = { b.c = 1, d = [1, 2] }\n",
            "a = { b = 1, # why\n c = 2 }\n",
            "\"a.b\" = 1\n'c d'.e = 2\n",
            "name = 'n'\r\n# of files\r\n[files]\r\nread = []\r\n",
            "[[expect]]\n[[expect]]\nread = '/a'\n[files]\n",
        ] {
            formatted(text);
        }
        assert!(format("a = \n").is_err());
    }

    #[test]
    fn what_is_shipped_has_it() {
        for preset in preset::PRESETS {
            assert_eq!(formatted(preset.text), preset.text, "{}", preset.name);
        }
        assert_eq!(formatted(default::TEXT), default::TEXT);
    }

    proptest! {
        #[test]
        fn comments_and_values_stay(
            keys in prop::collection::vec(("[a-z]{1,6}", prop::collection::vec("[a-z/]{0,30}", 0..6), any::<[bool; 3]>()), 0..8),
        ) {
            let mut text = String::new();
            let mut seen = std::collections::HashSet::new();
            for (n, (key, entries, [before, behind, own_lines])) in keys.into_iter().enumerate() {
                if !seen.insert(key.clone()) {
                    continue;
                }
                if before {
                    text += &std::format!("\n# before {n}\n");
                }
                if n % 3 == 2 {
                    text += &std::format!("[{key}]\n");
                    continue;
                }
                let entries: Vec<String> = entries
                    .iter()
                    .map(|entry| if own_lines { std::format!("\n # of {entry}x\n'{entry}'") } else { std::format!("'{entry}'") })
                    .collect();
                text += &std::format!("{key} = [{}]{}\n", entries.join(","), if behind { " # behind" } else { "" });
            }
            formatted(&text);
        }
    }
}
