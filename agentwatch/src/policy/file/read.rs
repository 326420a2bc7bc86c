//! Reads a policy file's text into its form. A fault never hides the next one: everything that can be read is read.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    super::{
        diagnostic::{Diagnostic, Report, quote},
        suggest::suggestion,
    },
    keys::*,
    *,
};

/// Reads the text, which begins at `base` in the report; what is wrong with it goes there too.
pub fn read(text: &str, layer: Layer, base: usize, report: &mut Report) -> PolicyFile {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader {
        layer,
        base,
        report,
    };
    if !errors.is_empty() {
        for error in errors {
            // The parser reports the end of the text as an empty span.
            reader.report.push(Diagnostic::error(
                format!("not valid TOML: {}", error.message()),
                error.span().map(|span| reader.shift(span)),
            ));
        }
        // What was recovered from broken text need not be what its author meant: say nothing about it.
        return PolicyFile::default();
    }
    reader.file(table.get_ref())
}

type Key<'i> = Spanned<std::borrow::Cow<'i, str>>;
type Value<'i> = Spanned<DeValue<'i>>;

struct Reader<'r> {
    layer: Layer,
    base: usize,
    report: &'r mut Report,
}

impl Reader<'_> {
    fn file(&mut self, table: &DeTable<'_>) -> PolicyFile {
        let mut file = PolicyFile::default();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if !self.is_known(&TOP, name) {
                self.unknown(&TOP, key);
                continue;
            }
            match name {
                "name" => file.name = self.string("", key, value),
                "mode" => file.mode = self.mode(key, value),
                "extends" => file.extends = self.strings("", key, value),
                "accept_degraded" => file.accept_degraded = self.boolean("", key, value),
                "task" => self.task(key, value, &mut file.task),
                "files" => self.files(key, value, &mut file.files),
                "network" => self.network(key, value, &mut file.network),
                "exec" => self.exec(key, value, &mut file.exec),
                "approvals" => self.approvals(key, value, &mut file.approvals),
                "guard" => self.guard(key, value, &mut file.guard),
                "limits" => self.limits(key, value, &mut file.limits),
                "env" => self.env(key, value, &mut file.env),
                "trace" => self.section(&TRACE, key, value, |reader, _, key, value| {
                    file.trace.opens = reader.string("trace", key, value);
                }),
                "sessions" => self.sessions(key, value, &mut file.sessions),
                _ => self.expectations(key, value, &mut file.expect),
            }
        }
        file
    }

    fn task(&mut self, key: &Key<'_>, value: &Value<'_>, table: &mut TaskTable) {
        self.section(&TASK, key, value, |reader, name, key, value| match name {
            "goal" => table.goal = reader.string("task", key, value),
            "owner" => table.owner = reader.string("task", key, value),
            "ticket" => table.ticket = reader.string("task", key, value),
            _ => table.acceptance = reader.strings("task", key, value),
        });
    }

    fn files(&mut self, key: &Key<'_>, value: &Value<'_>, table: &mut FilesTable) {
        self.section(&FILES, key, value, |reader, name, key, value| {
            if name == "approve" {
                table.approve = reader.approve(key, value);
                return;
            }
            let entries = reader.strings("files", key, value);
            match name {
                "read" => table.read = entries,
                "write" => table.write = entries,
                "exec" => table.exec = entries,
                _ => table.deny = entries,
            }
        });
    }

    fn network(&mut self, key: &Key<'_>, value: &Value<'_>, table: &mut NetworkTable) {
        self.section(&NETWORK, key, value, |reader, name, key, value| {
            if name == "unknown" {
                table.unknown = reader.string("network", key, value);
                return;
            }
            let entries = reader.strings("network", key, value);
            match name {
                "allow" => table.allow = entries,
                "deny" => table.deny = entries,
                "approve" => table.approve = entries,
                "listen" => table.listen = entries,
                "unix" => table.unix = entries,
                _ => table.families = entries,
            }
        });
    }

    fn exec(&mut self, key: &Key<'_>, value: &Value<'_>, table: &mut ExecTable) {
        self.section(&EXEC, key, value, |reader, name, key, value| {
            let entries = reader.commands(key, value);
            match name {
                "allow" => table.allow = entries,
                "deny" => table.deny = entries,
                _ => table.approve = entries,
            }
        });
    }

    fn approvals(&mut self, key: &Key<'_>, value: &Value<'_>, table: &mut ApprovalsTable) {
        self.section(
            &APPROVALS,
            key,
            value,
            |reader, name, key, value| match name {
                "timeout" => table.timeout = reader.string("approvals", key, value),
                "on_timeout" => table.on_timeout = reader.string("approvals", key, value),
                "max_pending" => table.max_pending = reader.integer("approvals", key, value),
                _ => table.max_per_hour = reader.integer("approvals", key, value),
            },
        );
    }

    fn guard(&mut self, key: &Key<'_>, value: &Value<'_>, table: &mut GuardTable) {
        self.section(&GUARD, key, value, |reader, name, key, value| {
            let entries = reader.strings("guard", key, value);
            match name {
                "allow" => table.allow = entries,
                _ => table.deny = entries,
            }
        });
    }

    fn limits(&mut self, key: &Key<'_>, value: &Value<'_>, table: &mut LimitsTable) {
        self.section(&LIMITS, key, value, |reader, name, key, value| match name {
            "pids" => table.pids = reader.integer("limits", key, value),
            "memory" => table.memory = reader.string("limits", key, value),
            "cpu" => table.cpu = reader.number("limits", key, value),
            _ => table.wall_time = reader.string("limits", key, value),
        });
    }

    fn env(&mut self, key: &Key<'_>, value: &Value<'_>, table: &mut EnvTable) {
        self.section(&ENV, key, value, |reader, name, key, value| {
            let entries = reader.strings("env", key, value);
            match name {
                "pass" => table.pass = entries,
                _ => table.drop = entries,
            }
        });
    }

    fn sessions(&mut self, key: &Key<'_>, value: &Value<'_>, table: &mut SessionsTable) {
        self.section(&SESSIONS, key, value, |reader, name, key, value| {
            if name == "max_per_user" {
                table.max_per_user = reader.integer("sessions", key, value);
                return;
            }
            let entries = reader.strings("sessions", key, value);
            let entries = Some(reader.keep(value, entries));
            match name {
                "users" => table.users = entries,
                _ => table.groups = entries,
            }
        });
    }

    fn shift(&self, span: Range<usize>) -> Range<usize> {
        span.start + self.base..span.end + self.base
    }

    fn keep<T>(&self, value: &Value<'_>, kept: T) -> Spanned<T> {
        Spanned::new(self.shift(value.span()), kept)
    }

    fn known(&self, keys: &Keys) -> &'static [&'static str] {
        match self.layer {
            Layer::Managed => keys.managed,
            Layer::Task | Layer::Default => keys.known,
        }
    }

    fn is_known(&self, keys: &Keys, name: &str) -> bool {
        self.known(keys).contains(&name)
    }

    fn mode(&mut self, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<Mode>> {
        let text = self.string("", key, value)?;
        match text.get_ref().as_str() {
            "enforce" => Some(self.keep(value, Mode::Enforce)),
            "monitor" => Some(self.keep(value, Mode::Monitor)),
            other => {
                self.report.push(
                    Diagnostic::error(format!("there is no mode {}", quote(other)), text.span())
                        .help(suggestion(other, &["enforce", "monitor"], "the modes are")),
                );
                None
            }
        }
    }

    /// Reads one table, key by key.
    fn section(
        &mut self,
        keys: &Keys,
        key: &Key<'_>,
        value: &Value<'_>,
        mut each: impl FnMut(&mut Self, &str, &Key<'_>, &Value<'_>),
    ) {
        let Some(table) = value.get_ref().as_table() else {
            let wrong = kind(value.get_ref());
            self.report.push(
                Diagnostic::error(
                    format!("`{}` must be a table, and this is {wrong}", keys.table),
                    self.shift(here(key.span(), value)),
                )
                .help(format!("begin it with a line `[{}]`", keys.table)),
            );
            return;
        };
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if self.is_known(keys, name) {
                each(self, name, key, value);
            } else {
                self.unknown(keys, key);
            }
        }
    }

    fn expectations(&mut self, key: &Key<'_>, value: &Value<'_>, expect: &mut Vec<ExpectTable>) {
        let tables = value.get_ref().as_array();
        let Some(tables) =
            tables.filter(|tables| tables.iter().all(|table| table.get_ref().is_table()))
        else {
            self.report.push(
                Diagnostic::error(
                    "`expect` must be a list of tables",
                    self.shift(here(key.span(), value)),
                )
                .help("begin each with a line `[[expect]]`"),
            );
            return;
        };
        for table in tables.iter() {
            let mut one = ExpectTable {
                span: self.shift(table.span()),
                ..ExpectTable::default()
            };
            self.section(&EXPECT, key, table, |reader, name, key, value| {
                if name == "exec" {
                    one.exec = reader.command("expect.exec", value);
                    return;
                }
                let text = reader.string("expect", key, value);
                match name {
                    "read" => one.read = text,
                    "write" => one.write = text,
                    "connect" => one.connect = text,
                    "listen" => one.listen = text,
                    "verdict" => one.verdict = text,
                    _ => one.rule = text,
                }
            });
            expect.push(one);
        }
    }

    fn strings(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Entries {
        let name = full(table, key.get_ref());
        self.list(&name, "a list of strings", key, value, |reader, element| {
            reader.text_in(&name, element)
        })
    }

    fn approve(&mut self, key: &Key<'_>, value: &Value<'_>) -> Vec<ApproveEntry> {
        let name = full(FILES.table, key.get_ref());
        self.list(&name, "a list", key, value, |reader, element| {
            if let Some(text) = element.get_ref().as_str() {
                return Some(ApproveEntry {
                    path: reader.keep(element, text.to_owned()),
                    access: None,
                });
            }
            if !element.get_ref().is_table() {
                reader.wrong_element(
                    &name,
                    "strings and tables with `path` and `access`",
                    element,
                );
                return None;
            }
            let (mut path, mut access) = (None, None);
            reader.section(&APPROVE, key, element, |reader, name, key, value| {
                if name == "path" {
                    path = reader.string(APPROVE.table, key, value);
                } else {
                    let entries = reader.strings(APPROVE.table, key, value);
                    access = Some(reader.keep(value, entries));
                }
            });
            if path.is_none() {
                reader.report.push(
                    Diagnostic::error("the entry has no path", reader.shift(element.span()))
                        .help("write `{ path = \"…\", access = [\"write\"] }`"),
                );
            }
            Some(ApproveEntry {
                path: path?,
                access,
            })
        })
    }

    fn commands(&mut self, key: &Key<'_>, value: &Value<'_>) -> Vec<ExecEntry> {
        let name = full(EXEC.table, key.get_ref());
        self.list(&name, "a list", key, value, |reader, element| {
            reader.command(&name, element)
        })
    }

    /// A path, or a list of a program and its arguments.
    fn command(&mut self, name: &str, value: &Value<'_>) -> Option<ExecEntry> {
        if let Some(text) = value.get_ref().as_str() {
            return Some(ExecEntry::Program(self.keep(value, text.to_owned())));
        }
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_element(name, "strings and lists of strings", value);
            return None;
        };
        let words = array.iter().map(|word| self.text_in(name, word));
        // All of them, so that every fault is told.
        let words: Vec<Option<Spanned<String>>> = words.collect();
        let words: Entries = words.into_iter().collect::<Option<_>>()?;
        Some(ExecEntry::Command(self.keep(value, words)))
    }

    fn list<T>(
        &mut self,
        name: &str,
        what: &str,
        key: &Key<'_>,
        value: &Value<'_>,
        mut each: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(array) = value.get_ref().as_array() else {
            let mut fault = self.wrong_kind(name, what, key, value);
            if let Some(text) = value.get_ref().as_str() {
                fault = fault.help(format!(
                    "put it in brackets: {} = [{:?}]",
                    key.get_ref(),
                    shorten(text)
                ));
            }
            self.report.push(fault);
            return Vec::new();
        };
        let elements = array.iter();
        elements.filter_map(|element| each(self, element)).collect()
    }

    fn text_in(&mut self, name: &str, element: &Value<'_>) -> Option<Spanned<String>> {
        let Some(text) = element.get_ref().as_str() else {
            self.wrong_element(name, "strings", element);
            return None;
        };
        Some(self.keep(element, text.to_owned()))
    }

    fn wrong_element(&mut self, name: &str, what: &str, element: &Value<'_>) {
        self.report.push(Diagnostic::error(
            format!(
                "`{name}` holds {what}, and this is {}",
                kind(element.get_ref())
            ),
            self.shift(element.span()),
        ));
    }

    fn string(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<String>> {
        let text = value.get_ref().as_str().map(str::to_owned);
        self.one(table, "a string", key, value, text)
    }

    fn boolean(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<bool>> {
        let truth = match value.get_ref() {
            DeValue::Boolean(truth) => Some(*truth),
            _ => None,
        };
        self.one(table, "true or false", key, value, truth)
    }

    fn integer(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<i64>> {
        let number = match value.get_ref() {
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        self.one(table, "a whole number", key, value, number)
    }

    fn number(&mut self, table: &str, key: &Key<'_>, value: &Value<'_>) -> Option<Spanned<f64>> {
        let number = match value.get_ref() {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .ok()
                .map(|number| number as f64),
            _ => None,
        };
        self.one(table, "a number", key, value, number)
    }

    fn one<T>(
        &mut self,
        table: &str,
        what: &str,
        key: &Key<'_>,
        value: &Value<'_>,
        read: Option<T>,
    ) -> Option<Spanned<T>> {
        match read {
            Some(read) => Some(self.keep(value, read)),
            None => {
                let fault = self.wrong_kind(&full(table, key.get_ref()), what, key, value);
                self.report.push(fault);
                None
            }
        }
    }

    fn wrong_kind(&self, name: &str, what: &str, key: &Key<'_>, value: &Value<'_>) -> Diagnostic {
        Diagnostic::error(
            format!(
                "`{name}` must be {what}, and this is {}",
                kind(value.get_ref())
            ),
            self.shift(here(key.span(), value)),
        )
    }

    fn unknown(&mut self, keys: &Keys, key: &Key<'_>) {
        let fault = self.unknown_key(keys, key.get_ref(), self.shift(key.span()));
        self.report.push(fault);
    }

    fn unknown_key(&self, keys: &Keys, key: &str, span: Range<usize>) -> Diagnostic {
        let name = full(keys.table, key);
        if keys.planned.contains(&key) {
            return Diagnostic::error(format!("`{name}` is not yet supported"), span)
                .help("leave it out; until then, what no rule allows is denied");
        }
        let (known, other) = match self.layer {
            Layer::Managed => (keys.managed, keys.known),
            Layer::Task | Layer::Default => (keys.known, keys.managed),
        };
        if other.contains(&key) {
            return if self.layer == Layer::Managed {
                Diagnostic::error(format!("a managed file may not say `{name}`"), span)
                    .help("it only takes away; what is allowed is said by the policy of the task")
            } else {
                Diagnostic::error(format!("only a managed file may say `{name}`"), span)
                    .help("it is for the administrator, in /etc/agentwatch/managed.d")
            };
        }
        let fault = Diagnostic::error(format!("there is no key {}", quote(&name)), span);
        // A key that belongs to a table and stands at the top is more often misplaced than misspelt.
        if keys.table.is_empty()
            && let Some(home) = TABLES.into_iter().find(|table| self.is_known(table, key))
        {
            return fault.help(format!("`{key}` stands below a line `[{}]`", home.table));
        }
        let intro = if keys.table.is_empty() {
            "the keys here are".to_owned()
        } else {
            format!("the keys of [{}] are", keys.table)
        };
        fault.help(suggestion(key, known, &intro))
    }
}

fn full(table: &str, key: &str) -> String {
    if table.is_empty() {
        key.to_owned()
    } else {
        format!("{table}.{key}")
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

fn shorten(text: &str) -> &str {
    text.char_indices()
        .nth(60)
        .map_or(text, |(at, _)| &text[..at])
}
