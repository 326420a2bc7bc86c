//! `agentwatch query`: read-only SQL over the history, for responders and their scripts.

use std::{
    io::{IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::{
    ask::ask,
    output::{self, Output, Table, escape},
};
use crate::wire::collector::{Answer, Question};

/// Ask the history in SQL (root and the collector's own user)
///
/// SQL is SQLite's, and only reads. These views are kept stable:
///
///   events        id, session_id, session (its name), seq, time, time_ns, ktime_ns, boot_id,
///                 kind, verdict, errno, count, rule_id, rule_layer, rule_source, pid, tid,
///                 ppid, start_ns, exe, comm, argv, cwd, uid, gid, cgroup, path, dev, inode,
///                 access, target_path, family, sock_type, addr, port, sock_path, domain, json
///   denials       time, time_ns, session_id, session, kind, path, addr, port, domain, access,
///                 rule_id, rule_layer, rule_source, errno, count, pid, start_ns, exe, argv,
///                 uid, id
///   files         session_id, session, path, kind, access, verdict, exe, count, first_ns,
///                 last_ns
///   destinations  session_id, session, kind, family, sock_type, addr, port, sock_path, domain,
///                 verdict, exe, count, first_ns, last_ns
///   processes     session_id, session, boot_id, pid, start_ns, ppid, parent_start_ns, exe,
///                 argv, cwd, uid, gid, first_ns, exit_ns, exit_code, exit_signal, duration_ns
///   sessions      id, name, uid, policy, mode, coverage, missing, backends, cgroup, command,
///                 origin, state, started_ns, ended_ns, reason, exit_code, events, denied,
///                 counts, boot_id
///
/// Times ending in _ns are nanoseconds since 1970, but for ktime_ns, start_ns and
/// parent_start_ns, which count from the boot. argv, command, missing, backends, counts and json
/// are JSON. Denials of the last hour:
///
///   SELECT time, session, path, rule_id FROM denials
///   WHERE time_ns > (unixepoch() - 3600) * 1000000000
///
/// In CSV a cell that a spreadsheet would take for a formula (it begins with = + - @, a tab or a
/// line break, and is no number) gets a leading apostrophe, since agents choose paths and
/// arguments. Use jsonl where text must stay exact.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct QueryArgs {
    /// One statement that reads
    #[arg(value_name = "SQL")]
    pub sql: String,
    /// How to show the rows
    #[arg(long, value_enum, default_value_t)]
    pub format: RowFormat,
}

/// How rows are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RowFormat {
    /// Columns for people
    #[default]
    Table,
    /// One JSON object a row
    Jsonl,
    /// Comma-separated, with a line of titles, for spreadsheets
    Csv,
}

impl QueryArgs {
    /// Asks and prints.
    ///
    /// # Errors
    /// When the collector does not answer or refuses the statement, or when standard output cannot be written.
    pub async fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let mut rows = Rows::new(self.format);
        let result = ask(
            runtime_dir,
            &Question::Sql { sql: self.sql },
            |answer| match answer {
                Answer::Columns { columns } => rows.begin(columns),
                Answer::Rows { rows: more } => more.into_iter().try_for_each(|row| rows.row(row)),
                _ => Ok(()),
            },
        )
        .await;
        output::finish(result.and_then(|()| rows.end()))
    }
}

/// Rows on their way out. Only a table is held back, because its widths need all rows.
struct Rows {
    format: RowFormat,
    columns: Vec<String>,
    held: Vec<Vec<Value>>,
    out: Output,
}

impl Rows {
    fn new(format: RowFormat) -> Self {
        Self {
            format,
            columns: Vec::new(),
            held: Vec::new(),
            out: Output::stdout(),
        }
    }

    fn begin(&mut self, columns: Vec<String>) -> Result<()> {
        self.columns = columns;
        if self.format == RowFormat::Csv {
            let titles = self
                .columns
                .iter()
                .map(|title| neutral(title.clone()))
                .collect::<Vec<_>>();
            self.record(&titles)?;
        }
        Ok(())
    }

    fn row(&mut self, row: Vec<Value>) -> Result<()> {
        match self.format {
            RowFormat::Table => self.held.push(row),
            RowFormat::Jsonl => {
                let object: Map<String, Value> =
                    unique(&self.columns).into_iter().zip(row).collect();
                serde_json::to_writer(&mut self.out, &object)?;
                self.out.write_all(b"\n")?;
            }
            RowFormat::Csv => {
                let cells = row.iter().map(csv_cell).collect::<Vec<_>>();
                self.record(&cells)?;
            }
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        if self.format == RowFormat::Table {
            let mut table = Table::titled(
                self.columns
                    .iter()
                    .map(|title| escape(title).into_owned())
                    .collect(),
            );
            for row in &self.held {
                table.row(row.iter().map(|value| (table_cell(value), None)).collect());
            }
            table.write(&mut self.out)?;
            if std::io::stderr().is_terminal() {
                eprintln!("{} rows", self.held.len());
            }
        }
        self.out.flush().context("write to standard output")
    }

    fn record(&mut self, cells: &[String]) -> Result<()> {
        // A writer for each record: it holds a buffer that would otherwise be flushed only at the end.
        let mut writer = csv::WriterBuilder::new()
            .terminator(csv::Terminator::CRLF)
            .from_writer(&mut self.out);
        writer.write_record(cells)?;
        writer.flush().context("write to standard output")
    }
}

/// Column names of which no two are equal, so that an object keeps all of them: `path`, `path_2`.
fn unique(columns: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(columns.len());
    for column in columns {
        let mut name = column.clone();
        for number in 2.. {
            if !names.contains(&name) {
                break;
            }
            name = format!("{column}_{number}");
        }
        names.push(name);
    }
    names
}

fn table_cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escape(text).into_owned(),
        other => other.to_string(),
    }
}

fn csv_cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => neutral(text.clone()),
        other => other.to_string(),
    }
}

/// Text that a spreadsheet shows and does not run (OWASP, CSV injection).
fn neutral(text: String) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']);
    if formula && text.parse::<f64>().is_err() {
        format!("'{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_made_text_and_numbers_stay_numbers() {
        for (text, cell) in [
            ("=HYPERLINK(\"http://x\")", "'=HYPERLINK(\"http://x\")"),
            ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
            ("-2+3", "'-2+3"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\tx", "'\tx"),
            ("-17", "-17"),
            ("/usr/bin", "/usr/bin"),
            ("", ""),
        ] {
            assert_eq!(csv_cell(&Value::from(text)), cell);
        }
        assert_eq!(csv_cell(&Value::from(-5)), "-5");
        assert_eq!(csv_cell(&Value::Null), "");
    }

    #[test]
    fn equal_column_names_are_told_apart() {
        let columns = ["a", "b", "a", "a"].map(str::to_owned);
        assert_eq!(unique(&columns), ["a", "b", "a_2", "a_3"]);
    }
}
