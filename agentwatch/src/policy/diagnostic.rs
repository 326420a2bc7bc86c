//! What is wrong with a policy's text, said so that its author can mend it: the place, the reason, and what to write
//! instead. Policies come from anyone who may start a session, so nothing here trusts them: control characters never
//! reach a terminal, and a text full of faults yields a bounded report.

use std::{borrow::Cow, fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str};
use serde::{Deserialize, Serialize};

/// The most errors, and the most warnings, that one report holds. The rest is counted.
pub const MAX_REPORTED: usize = 50;

/// Longest piece of a line, in bytes, that is shown before and after what is underlined.
const EXCERPT: usize = 2048;

/// How grave a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The policy can't be used.
    Error,
    /// The policy can be used, and probably does not mean what its author meant.
    Warning,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// Where, in bytes of the text; absent where it is about the whole.
    pub span: Option<Range<usize>>,
    /// A word below the underlined place; may be empty.
    pub label: String,
    /// A second place that explains the first, with its word.
    pub related: Option<(Range<usize>, String)>,
    /// What to write instead.
    pub help: Option<String>,
}

impl Diagnostic {
    pub fn error(message: impl Into<String>, span: impl Into<Option<Range<usize>>>) -> Self {
        Self::new(Severity::Error, message, span)
    }

    pub fn warning(message: impl Into<String>, span: impl Into<Option<Range<usize>>>) -> Self {
        Self::new(Severity::Warning, message, span)
    }

    fn new(
        severity: Severity,
        message: impl Into<String>,
        span: impl Into<Option<Range<usize>>>,
    ) -> Self {
        Self {
            severity,
            message: message.into(),
            span: span.into(),
            label: String::new(),
            related: None,
            help: None,
        }
    }

    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    pub fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related = Some((span, label.into()));
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// One text. The texts of a report stand one behind the other, so that a place in any of them is one number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Source {
    name: String,
    text: String,
    /// Where it begins.
    base: usize,
    /// Where each line begins, in bytes of this text.
    lines: Vec<usize>,
}

/// The diagnostics of one policy, together with the texts that they point into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    sources: Vec<Source>,
    diagnostics: Vec<Diagnostic>,
    errors: usize,
    warnings: usize,
}

impl Report {
    pub fn new(file_name: impl Into<String>, text: impl Into<String>) -> Self {
        let mut report = Self::default();
        report.add(file_name, text);
        report
    }

    /// Adds another text, and says where it begins: what is to be added to each place in it.
    pub fn add(&mut self, file_name: impl Into<String>, text: impl Into<String>) -> usize {
        let text = text.into();
        let lines = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        // One apart, so that the end of a text is not the beginning of the next.
        let base = self
            .sources
            .last()
            .map_or(0, |last| last.base + last.text.len() + 1);
        self.sources.push(Source {
            name: file_name.into(),
            text,
            base,
            lines,
        });
        base
    }

    /// Which of the texts a place is in, from 0.
    pub fn file(&self, at: usize) -> usize {
        self.sources
            .partition_point(|source| source.base <= at)
            .saturating_sub(1)
    }

    /// `FILE:LINE` of a place.
    pub fn place(&self, at: usize) -> String {
        let name = self
            .sources
            .get(self.file(at))
            .map_or("", |source| &source.name);
        format!("{name}:{}", self.line(at))
    }

    pub fn push(&mut self, diagnostic: Diagnostic) {
        let count = match diagnostic.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count <= MAX_REPORTED {
            self.diagnostics.push(diagnostic);
        }
    }

    /// How many errors there are, those that are counted only included.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// How many warnings there are, those that are counted only included.
    pub fn warnings(&self) -> usize {
        self.warnings
    }

    /// What is held, errors first, then by place.
    pub fn diagnostics(&self) -> Vec<&Diagnostic> {
        let mut sorted: Vec<&Diagnostic> = self.diagnostics.iter().collect();
        sorted.sort_by_key(|diagnostic| {
            (
                diagnostic.severity,
                diagnostic.span.as_ref().map_or(0, |span| span.start),
            )
        });
        sorted
    }

    /// Line of a place in its text, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.sources
            .get(self.file(at))
            .map_or(1, |source| source.line(at.saturating_sub(source.base)))
    }

    /// Column of a place in its text, in characters from 1.
    pub fn column(&self, at: usize) -> usize {
        let Some(source) = self.sources.get(self.file(at)) else {
            return 1;
        };
        let at = at.saturating_sub(source.base);
        let start = source.lines[source.line(at) - 1];
        source
            .text
            .get(start..source.floor(at))
            .map_or(0, |before| before.chars().count())
            + 1
    }

    /// Drops every warning.
    pub fn without_warnings(mut self) -> Self {
        self.diagnostics
            .retain(|diagnostic| diagnostic.severity != Severity::Warning);
        self.warnings = 0;
        self
    }

    /// Each diagnostic of one severity as a person reads it.
    pub fn render_each(&self, severity: Severity, colour: bool) -> Vec<String> {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let mut rendered: Vec<String> = self
            .diagnostics()
            .into_iter()
            .filter(|diagnostic| diagnostic.severity == severity)
            .map(|diagnostic| self.render_one(diagnostic, &renderer))
            .collect();
        let (total, noun) = match severity {
            Severity::Error => (self.errors, "error"),
            Severity::Warning => (self.warnings, "warning"),
        };
        let more = total.saturating_sub(MAX_REPORTED);
        if more > 0 {
            rendered.push(format!("{noun}: {more} more of these are not shown"));
        }
        rendered
    }

    /// Everything as a person reads it, errors first.
    pub fn render(&self, colour: bool) -> String {
        let mut all = self.render_each(Severity::Error, colour);
        all.extend(self.render_each(Severity::Warning, colour));
        all.join("\n\n")
    }

    fn render_one(&self, diagnostic: &Diagnostic, renderer: &Renderer) -> String {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(clean(&diagnostic.message)));
        match &diagnostic.span {
            Some(span) => {
                group =
                    group.element(self.snippet(span, AnnotationKind::Primary, &diagnostic.label));
                if let Some((span, label)) = &diagnostic.related {
                    group = group.element(self.snippet(span, AnnotationKind::Context, label));
                }
            }
            None => {
                if let Some(source) = self
                    .sources
                    .first()
                    .filter(|source| !source.name.is_empty())
                {
                    group = group.element(annotate_snippets::Origin::path(
                        clean(&source.name).into_owned(),
                    ));
                }
            }
        }
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(normalize_untrusted_str(&clean(help))));
        }
        renderer.render(&[group])
    }

    /// Only the lines that a span touches are handed on, and of a very long line only what is near it: what it costs to
    /// show a fault must not depend on how long the text is.
    fn snippet<'a>(
        &'a self,
        span: &Range<usize>,
        kind: AnnotationKind,
        label: &'a str,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let Some(file) = self.sources.get(self.file(span.start)) else {
            return Snippet::source("").annotation(kind.span(0..0));
        };
        let start = file.floor(span.start.saturating_sub(file.base));
        let first_line = file.line(start);
        let line_start = file.lines[first_line - 1];
        let line_end = file
            .lines
            .get(first_line)
            .map_or(file.text.len(), |next| next - 1);
        let from = file.floor(line_start.max(start.saturating_sub(EXCERPT)));
        let to = file.floor(line_end.min(start.saturating_add(EXCERPT)));
        // A span over several lines (a table) is shown by its first.
        let end = file
            .floor(span.end.saturating_sub(file.base))
            .clamp(start.min(to), to);
        let source = harmless(file.text.get(from..to).unwrap_or_default());
        let mut annotation = kind.span(start.min(to) - from..end - from);
        if !label.is_empty() {
            annotation = annotation.label(clean(label).into_owned());
        }
        let mut snippet = Snippet::source(source)
            .line_start(first_line)
            .annotation(annotation);
        if !file.name.is_empty() {
            snippet = snippet.path(clean(&file.name).into_owned());
        }
        snippet
    }
}

impl Source {
    /// Line of a byte of the text, from 1.
    fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at).max(1)
    }

    /// The nearest character boundary at or before `at`.
    fn floor(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// A policy that can't be used, with every reason that was found. `Display` gives the rendered diagnostics without colour.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .report.render(false))]
pub struct PolicyError {
    report: Box<Report>,
}

impl PolicyError {
    pub(super) fn new(report: Report) -> Self {
        Self {
            report: Box::new(report),
        }
    }

    /// Everything that was found, warnings included.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The diagnostics as a person reads them, coloured for a terminal if asked.
    pub fn render(&self, colour: bool) -> String {
        self.report.render(colour)
    }
}

/// A piece of the policy's text for a message: quoted, one line, no control characters, bounded.
pub fn quote(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut quoted = String::from("`");
    for (count, character) in text.chars().enumerate() {
        if count == LONGEST {
            quoted.push('…');
            break;
        }
        push_visible(&mut quoted, character);
    }
    quoted.push('`');
    quoted
}

/// Shows text that others wrote without letting it steer the terminal.
pub struct Visible<'a>(pub &'a str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&clean(self.0))
    }
}

fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len());
    text.chars()
        .for_each(|character| push_visible(&mut cleaned, character));
    Cow::Owned(cleaned)
}

fn push_visible(to: &mut String, character: char) {
    if is_unprintable(character) {
        to.extend(character.escape_default())
    } else {
        to.push(character)
    }
}

/// A piece of the text to point into: what could steer a terminal is replaced by characters of the same length in UTF-8,
/// so that spans stay right. The renderer itself takes care of the ASCII control characters only.
fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |character: char| is_unprintable(character) && !character.is_ascii();
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let stand_in = |character: char| {
        if character.len_utf8() == 2 {
            '¿'
        } else {
            char::REPLACEMENT_CHARACTER
        }
    };
    Cow::Owned(
        text.chars()
            .map(|character| {
                if steers(character) {
                    stand_in(character)
                } else {
                    character
                }
            })
            .collect(),
    )
}

/// Control characters, and those that turn the direction of text: they would let a line show something else than it says.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_shown_with_its_line_and_help() {
        let mut report = Report::new("task.toml", "a = 1\nb = \"x\"\n");
        report.push(
            Diagnostic::error("no such thing", 10..13)
                .label("here")
                .help("write `y`"),
        );
        assert_eq!(
            report.render(false),
            "error: no such thing\n --> task.toml:2:5\n  |\n2 | b = \"x\"\n  |     ^^^ here\n  |\n  = help: write `y`"
        );
        assert_eq!((report.line(10), report.column(10)), (2, 5));
    }

    #[test]
    fn a_place_in_a_second_text_is_shown_there() {
        let mut report = Report::new("a.toml", "x = 1");
        let base = report.add("b.toml", "\ny = 2\n");
        report.push(Diagnostic::warning("two", base + 5..base + 6).related(4..5, "one"));
        report.push(Diagnostic::error("end", 5..5));
        assert_eq!((report.file(5), report.file(base)), (0, 1));
        assert_eq!(report.place(base + 1), "b.toml:2");
        let shown = report.render(false);
        assert!(shown.contains(" --> a.toml:1:6"), "{shown}");
        assert!(shown.contains(" --> b.toml:2:5"), "{shown}");
        assert!(shown.contains("::: a.toml:1:5"), "{shown}");
    }

    #[test]
    fn spans_outside_the_text_and_inside_characters_are_harmless() {
        let text = "é".repeat(10_000) + "\n\u{1b}[31m\u{9b}31m\u{202e}\n";
        let mut report = Report::new("x\u{1b}[2J", text);
        for span in [
            0..1,
            1..3,
            19_999..20_004,
            20_001..20_001,
            90_000..90_001,
            0..usize::MAX,
        ] {
            report.push(
                Diagnostic::error("\u{1b}]0;title", span.clone())
                    .related(span, "\u{7}")
                    .help("\u{1b}"),
            );
        }
        assert!(
            !report
                .render(false)
                .chars()
                .any(|character| character.is_control() && character != '\n')
        );
    }

    #[test]
    fn a_flood_is_counted() {
        let mut report = Report::new("x", "");
        for _ in 0..MAX_REPORTED + 7 {
            report.push(Diagnostic::error("e", None));
        }
        assert_eq!(report.errors(), MAX_REPORTED + 7);
        assert!(
            report
                .render(false)
                .ends_with("error: 7 more of these are not shown")
        );
    }
}
