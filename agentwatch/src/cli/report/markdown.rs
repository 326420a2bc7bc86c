//! A report as Markdown (GitHub's, for its tables). Foreign text only ever stands in code spans and code blocks, whose fences are longer
//! than any run of backticks in it, so that it can be neither a link, nor an image, nor HTML.

use std::fmt::Write as _;

use super::document::{Block, Document, Grade, Span};

/// The whole text.
pub(super) fn of(document: &Document) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = write!(page, "# {}\n\n", spelled(&document.title));
    let (grade, text) = &document.verdict;
    let _ = writeln!(page, "**{}** {}", mark(*grade), spelled(text));
    for block in &document.blocks {
        page.push('\n');
        match block {
            Block::Heading(text) => {
                let _ = writeln!(page, "## {}", spelled(text));
            }
            Block::Note(grade, text) => {
                let mark = if *grade == Grade::Plain {
                    ""
                } else {
                    mark(*grade)
                };
                let _ = writeln!(page, "{}", format!("{mark} {}", spelled(text)).trim_start());
            }
            Block::Facts(facts) => {
                page.push_str("| | |\n|---|---|\n");
                for (name, spans) in facts {
                    let _ = writeln!(page, "| {name} | {} |", cell(spans));
                }
            }
            Block::Table { titles, rows } => {
                let _ = writeln!(page, "| {} |", titles.join(" | "));
                let _ = writeln!(page, "|{}", "---|".repeat(titles.len()));
                for row in rows {
                    let cells: Vec<String> = row.iter().map(|spans| cell(spans)).collect();
                    let _ = writeln!(page, "| {} |", cells.join(" | "));
                }
            }
            Block::Tree(lines) => {
                let text = lines.join("\n");
                let fence = "`".repeat(longest_run(&text).max(2) + 1);
                let _ = write!(page, "{fence}text\n{text}\n{fence}\n");
            }
        }
    }
    page
}

fn mark(grade: Grade) -> &'static str {
    match grade {
        Grade::Good => "✔",
        Grade::Warn => "!",
        Grade::Bad => "✘",
        Grade::Plain => "·",
    }
}

fn cell(spans: &[Span]) -> String {
    spans
        .iter()
        .map(|span| match span {
            Span::Word(text) => spelled(text),
            Span::Graded(_, text) => format!("**{}**", spelled(text.trim_start_matches(", "))),
            Span::Code(text) => code(text),
        })
        .collect::<Vec<_>>()
        .join("")
}

/// A code span in a table: a bar would end the cell there too.
fn code(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let fence = "`".repeat(longest_run(text) + 1);
    let inner = text.replace('|', "\\|");
    // A space keeps a backtick at an end, or a text of spaces, apart from the fence.
    if inner.starts_with('`') || inner.ends_with('`') || inner.trim().is_empty() {
        format!("{fence} {inner} {fence}")
    } else {
        format!("{fence}{inner}{fence}")
    }
}

/// Words of ours, which may have a foreign word among them.
fn spelled(text: &str) -> String {
    let mut spelled = String::with_capacity(text.len());
    for character in text.chars() {
        if "\\`*_{}[]<>#|!~&$@".contains(character) {
            spelled.push('\\');
        }
        spelled.push(character);
    }
    spelled
}

fn longest_run(text: &str) -> usize {
    text.split(|character| character != '`')
        .map(str::len)
        .max()
        .unwrap_or(0)
}
