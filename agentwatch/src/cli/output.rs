//! What every command's output has in common: colours only where a person looks, foreign text made harmless, columns
//! that line up, and a quiet end when the reader of a pipe is gone.
//!
//! Nothing that an agent chose (paths, arguments, names) may reach a terminal but through [`escape`].

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, BufWriter, IsTerminal as _, StdoutLock, Write},
    process::ExitCode,
};

use anyhow::Result;
use unicode_width::UnicodeWidthStr as _;

/// Standard output for data.
pub struct Output {
    out: BufWriter<StdoutLock<'static>>,
    pub style: Style,
}

/// Whether to colour.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    colour: bool,
}

/// What a colour means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Refused, lost.
    Bad,
    /// Would have been refused; waits.
    Warn,
    /// In order.
    Good,
    /// A title.
    Title,
    /// Beside the point.
    Dim,
}

impl Output {
    /// Standard output, coloured if it is a terminal and `NO_COLOR` is not set.
    #[must_use]
    pub fn stdout() -> Self {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let stdout = io::stdout();
        let colour = stdout.is_terminal() && !forbidden;
        Self {
            out: BufWriter::new(stdout.lock()),
            style: Style { colour },
        }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn line(&mut self, line: &str) -> io::Result<()> {
        self.out.write_all(line.as_bytes())?;
        self.out.write_all(b"\n")
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Style {
    /// Never a colour.
    #[must_use]
    pub const fn plain() -> Self {
        Self { colour: false }
    }

    /// `text` in the colour of `tone`. The text must have been escaped.
    #[must_use]
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Bad => "1;31",
            Tone::Warn => "33",
            Tone::Good => "32",
            Tone::Title => "1",
            Tone::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The exit code of a command whose output went to a pipe: that nobody reads any more is no failure.
///
/// # Errors
/// Every other error, unchanged.
pub fn finish(result: Result<()>) -> Result<ExitCode> {
    match result {
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

/// Foreign text for a terminal: whatever moves the cursor, hides, reorders or breaks lines is shown as an escape, and a
/// backslash is doubled, so that two different texts never look the same.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text
        .chars()
        .any(|character| character == '\\' || is_treacherous(character))
    {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            other if is_treacherous(other) && u32::from(other) < 0x80 => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "\\x{:02x}", u32::from(other));
            }
            other if is_treacherous(other) => {
                let _ = write!(escaped, "\\u{{{:x}}}", u32::from(other));
            }
            other => escaped.push(other),
        }
    }
    Cow::Owned(escaped)
}

/// Arguments as a shell would take them, escaped.
#[must_use]
pub fn command_line(argv: &[String]) -> String {
    let mut line = String::new();
    for argument in argv {
        if !line.is_empty() {
            line.push(' ');
        }
        let plain = !argument.is_empty()
            && argument
                .chars()
                .all(|character| character.is_alphanumeric() || "-_./=:,+@%^~".contains(character));
        if plain {
            line.push_str(&escape(argument));
        } else {
            line.push('\'');
            line.push_str(&escape(argument).replace('\'', "'\\''"));
            line.push('\'');
        }
    }
    line
}

/// `text`, already escaped, followed by the spaces that bring it to `width` columns.
#[must_use]
pub fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.width());
    let mut padded = String::with_capacity(text.len() + missing);
    padded.push_str(text);
    padded.extend(std::iter::repeat_n(' ', missing));
    padded
}

/// Rows under titles, each column as wide as its widest cell. Cells must have been escaped.
pub struct Table {
    titles: Vec<String>,
    rows: Vec<Vec<(String, Option<Tone>)>>,
}

impl Table {
    #[must_use]
    pub fn new(titles: &[&'static str]) -> Self {
        Self::titled(titles.iter().map(|title| (*title).to_owned()).collect())
    }

    /// A table whose titles come from outside; they must have been escaped.
    #[must_use]
    pub fn titled(titles: Vec<String>) -> Self {
        Self {
            titles,
            rows: Vec::new(),
        }
    }

    /// Adds a row: as many cells as there are titles, each with its tone.
    pub fn row(&mut self, cells: Vec<(String, Option<Tone>)>) {
        self.rows.push(cells);
    }

    /// Writes the table.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn write(&self, out: &mut Output) -> io::Result<()> {
        let widths: Vec<usize> = self
            .titles
            .iter()
            .enumerate()
            .map(|(column, title)| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells
                    .map(|(text, _)| text.width())
                    .chain([title.width()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let style = out.style;
        let line = |cells: Vec<(&str, Option<Tone>)>| {
            let last = cells.len().saturating_sub(1);
            let mut line = String::new();
            for (column, ((text, tone), width)) in cells.into_iter().zip(&widths).enumerate() {
                // Padding is not coloured, and the last column needs none.
                let padding = if column == last {
                    0
                } else {
                    width.saturating_sub(text.width()) + 2
                };
                line.push_str(
                    &tone.map_or_else(|| text.to_owned(), |tone| style.paint(tone, text)),
                );
                line.extend(std::iter::repeat_n(' ', padding));
            }
            line.trim_end().to_owned()
        };
        out.line(&line(
            self.titles
                .iter()
                .map(|title| (title.as_str(), Some(Tone::Title)))
                .collect(),
        ))?;
        for row in &self.rows {
            out.line(&line(
                row.iter()
                    .map(|(text, tone)| (text.as_str(), *tone))
                    .collect(),
            ))?;
        }
        Ok(())
    }
}

/// Whether a character changes what its neighbours look like, or cannot be seen at all.
fn is_treacherous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            // Direction: Arabic letter mark, marks, embeddings, overrides, isolates.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Line and paragraph separators.
            | '\u{2028}' | '\u{2029}'
            // Invisible: soft hyphen, fillers, zero width, word joiner and operators, byte order mark, tags, variation selectors.
            | '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause
            .downcast_ref::<serde_json::Error>()
            .and_then(serde_json::Error::io_error_kind);
        let csv = cause
            .downcast_ref::<csv::Error>()
            .and_then(|error| match error.kind() {
                csv::ErrorKind::Io(error) => Some(error.kind()),
                _ => None,
            });
        [io, json, csv].contains(&Some(io::ErrorKind::BrokenPipe))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_harmless_stays_as_it_is() {
        for text in ["/usr/bin/cat", "naïve", "日本語", "a b", ""] {
            assert!(matches!(escape(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn treacherous_characters_are_shown() {
        for (text, shown) in [
            ("\x1b[2Jgone", "\\x1b[2Jgone"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{202e}txt.exe", "\\u{202e}txt.exe"),
            ("zero\u{200b}width", "zero\\u{200b}width"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("back\\x1b", "back\\\\x1b"),
            ("\u{e0041}", "\\u{e0041}"),
            ("\0", "\\x00"),
        ] {
            assert_eq!(escape(text), shown);
        }
    }

    #[test]
    fn arguments_are_quoted_where_a_shell_would_need_it() {
        let argv = ["sh", "-c", "echo 'hi' > /tmp/x", "", "a=b"].map(str::to_owned);
        assert_eq!(
            command_line(&argv),
            r"sh -c 'echo '\''hi'\'' > /tmp/x' '' a=b"
        );
    }

    #[test]
    fn width_counts_columns_of_a_terminal() {
        assert_eq!(pad("日本", 6), "日本  ");
        assert_eq!(pad("long", 2), "long");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let error =
            anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("write");
        assert!(finish(Err(error)).is_ok());
        assert!(finish(Err(anyhow::anyhow!("other"))).is_err());
    }
}
