//! A report for a terminal.

use anyhow::Result;

use super::document::{Block, Document, Grade, Span};
use crate::cli::output::{Output, Style, Table, Tone};

/// Writes it.
pub(super) fn write(out: &mut Output, document: &Document) -> Result<()> {
    let style = out.style;
    out.line(&style.paint(Tone::Title, &document.title))?;
    let (grade, text) = &document.verdict;
    out.line(&graded(style, *grade, text))?;
    out.line("")?;
    for block in &document.blocks {
        match block {
            Block::Heading(text) => {
                out.line("")?;
                out.line(&style.paint(Tone::Title, text))?;
            }
            Block::Note(grade, text) => out.line(&format!("  {}", graded(style, *grade, text)))?,
            Block::Facts(facts) => {
                for (name, spans) in facts {
                    let text: String = spans.iter().map(|span| painted(style, span)).collect();
                    out.line(&format!("  {name:<11} {text}"))?;
                }
            }
            Block::Table { titles, rows } => {
                let mut table = Table::new(titles);
                for row in rows {
                    let cells = row.iter().map(|spans| {
                        let tone = spans.iter().find_map(|span| match span {
                            Span::Graded(grade, _) => tone(*grade),
                            _ => None,
                        });
                        (spans.iter().map(plain).collect::<String>(), tone)
                    });
                    table.row(cells.collect());
                }
                table.write(out)?;
            }
            Block::Tree(lines) => {
                for line in lines {
                    out.line(&format!("  {line}"))?;
                }
            }
        }
    }
    Ok(())
}

fn plain(span: &Span) -> &str {
    match span {
        Span::Word(text) | Span::Graded(_, text) | Span::Code(text) => text,
    }
}

fn painted(style: Style, span: &Span) -> String {
    match span {
        Span::Graded(grade, text) => graded(style, *grade, text),
        Span::Word(text) | Span::Code(text) => text.clone(),
    }
}

fn graded(style: Style, grade: Grade, text: &str) -> String {
    tone(grade).map_or_else(|| text.to_owned(), |tone| style.paint(tone, text))
}

fn tone(grade: Grade) -> Option<Tone> {
    match grade {
        Grade::Good => Some(Tone::Good),
        Grade::Warn => Some(Tone::Warn),
        Grade::Bad => Some(Tone::Bad),
        Grade::Plain => None,
    }
}
