//! A report in words, before it is known how they are written down. Everything foreign is marked as such, so that each form can make
//! it harmless in its own way.

use super::{
    acceptance::{Acceptance, Outcome},
    compose::{Report, What},
    content::Content,
};
use crate::{
    cli::{
        output::{command_line, escape},
        render, sessions,
    },
    event::model::{Coverage, Kind, Scope, Verdict},
};

/// Rows of a table that are shown; JSON has all of them.
const MOST_ROWS: usize = 500;
/// Processes that are shown.
const MOST_PROCESSES: usize = 1000;

/// A whole report.
pub(super) struct Document {
    pub(super) title: String,
    /// What one must know first.
    pub(super) verdict: (Grade, String),
    pub(super) blocks: Vec<Block>,
}

/// How something is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grade {
    Good,
    Warn,
    Bad,
    Plain,
}

impl Grade {
    fn worse(self, other: Self) -> Self {
        let rank = |grade| match grade {
            Grade::Plain | Grade::Good => 0,
            Grade::Warn => 1,
            Grade::Bad => 2,
        };
        if rank(other) > rank(self) {
            other
        } else {
            self
        }
    }
}

pub(super) enum Block {
    Heading(String),
    /// A sentence of ours.
    Note(Grade, String),
    /// Names and what they are.
    Facts(Vec<(&'static str, Vec<Span>)>),
    Table {
        titles: Vec<&'static str>,
        rows: Vec<Vec<Vec<Span>>>,
    },
    /// Lines that keep their form.
    Tree(Vec<String>),
}

/// A piece of a line.
#[derive(Clone, Debug)]
pub(super) enum Span {
    /// Ours.
    Word(String),
    /// Ours, with a grade.
    Graded(Grade, String),
    /// Foreign, already without control characters.
    Code(String),
}

fn word(text: impl Into<String>) -> Span {
    Span::Word(text.into())
}

fn code(text: &str) -> Span {
    Span::Code(escape(text).into_owned())
}

/// For what `render` has made harmless already.
fn shown(text: &str) -> Span {
    Span::Code(text.to_owned())
}

/// Puts a report into words.
pub(super) fn of(report: &Report) -> Document {
    let session = &report.timeline.session;
    let mut blocks = vec![Block::Facts(facts(report))];
    for missing in &session.missing {
        blocks.push(Block::Note(
            Grade::Bad,
            format!("Not enforced: {}", escape(missing)),
        ));
    }
    if !report.timeline.losses.is_empty() {
        blocks.push(Block::Heading("Missing from the record".to_owned()));
        let rows = report.timeline.losses.iter().map(|lost| {
            vec![
                vec![word(render::time(lost.time))],
                vec![word(lost.loss.events.to_string())],
                vec![word(format!("{} to {}", lost.loss.from, lost.loss.to))],
                vec![code(&lost.loss.reason)],
            ]
        });
        table(&mut blocks, vec!["when", "events", "numbers", "why"], rows);
    }
    acceptance(&mut blocks, report);
    refusals(&mut blocks, report);
    approvals(&mut blocks, report);
    files(&mut blocks, report);
    destinations(&mut blocks, report);
    processes(&mut blocks, report);
    rules(&mut blocks, report);
    life(&mut blocks, report);
    Document {
        title: format!("Session {}", escape(&session.name)),
        verdict: verdict(report),
        blocks,
    }
}

fn verdict(report: &Report) -> (Grade, String) {
    let session = &report.timeline.session;
    let lost: u64 = report
        .timeline
        .losses
        .iter()
        .map(|lost| lost.loss.events)
        .sum();
    let count = |verdict: Verdict| -> u64 {
        report
            .timeline
            .refusals
            .iter()
            .filter(|refusal| refusal.verdict == verdict)
            .map(|refusal| refusal.count)
            .sum()
    };
    let (denied, audited) = (count(Verdict::Denied), count(Verdict::Audited));
    let held = match session.coverage {
        Coverage::Enforcing => "The policy was enforced as a whole",
        Coverage::Degraded => "Only part of the policy was enforced",
        Coverage::Off => "The policy was recorded and not enforced",
    };
    let refused = match (denied, audited) {
        (0, 0) => "nothing was refused".to_owned(),
        (denied, 0) => format!("{denied} actions were denied"),
        (0, audited) => format!("{audited} actions went beyond it"),
        (denied, audited) => format!("{denied} actions were denied, {audited} went beyond it"),
    };
    let complete = if report.timeline.losses.is_empty() {
        "the record is complete".to_owned()
    } else if lost == 0 {
        "parts of the record are missing".to_owned()
    } else {
        format!("{lost} events are missing from the record")
    };
    let grade = if session.coverage == Coverage::Degraded || !report.timeline.losses.is_empty() {
        Grade::Bad
    } else if session.coverage == Coverage::Off || denied + audited > 0 {
        Grade::Warn
    } else {
        Grade::Good
    };
    let still = if session.state == "running" {
        " The session still runs."
    } else {
        ""
    };
    let (grade, accepted) = match accepted(report) {
        None => (grade, String::new()),
        Some((of_commands, text)) => (grade.worse(of_commands), format!("; {text}")),
    };
    (
        grade,
        format!("{held}; {refused}; {complete}{accepted}.{still}"),
    )
}

/// How the acceptance commands are to be taken as a whole; `None` where the task names none.
fn accepted(report: &Report) -> Option<(Grade, String)> {
    let all = report.acceptance.len();
    if all == 0 {
        return None;
    }
    let of = |outcome| {
        let found = report.acceptance.iter();
        found.filter(|command| command.outcome == outcome).count()
    };
    let passed = of(Outcome::Passed);
    let doubted = report
        .acceptance
        .iter()
        .any(|command| command.written_after_count > 0 || command.program_changed);
    let grade = match (of(Outcome::Failed), passed == all, doubted) {
        (0, true, false) => Grade::Good,
        (0, ..) => Grade::Warn,
        _ => Grade::Bad,
    };
    let doubt = match (passed > 0, doubted) {
        (true, true) => ", with reservations",
        _ => "",
    };
    Some((
        grade,
        format!("{passed} of {all} acceptance commands passed{doubt}"),
    ))
}

fn acceptance(blocks: &mut Vec<Block>, report: &Report) {
    blocks.push(Block::Heading("Acceptance".to_owned()));
    if report.acceptance.is_empty() {
        blocks.push(Block::Note(
            Grade::Plain,
            "The session's policy names no acceptance commands.".to_owned(),
        ));
        return;
    }
    let rows = report.acceptance.iter().map(|command| {
        let grade = match command.outcome {
            Outcome::Passed => Grade::Good,
            Outcome::Failed => Grade::Bad,
            Outcome::NotRun | Outcome::Unknown => Grade::Warn,
        };
        let mut outcome = vec![Span::Graded(grade, command.outcome.name().to_owned())];
        let mut ran = Vec::new();
        if let Some(run) = command.runs.last() {
            match (run.exit_code, run.signal) {
                (Some(code), _) => outcome.push(word(format!(", exit code {code}"))),
                (None, Some(signal)) => outcome.push(word(format!(", ended by signal {signal}"))),
                (None, None) => {}
            }
            ran.push(word(render::time(run.started)));
            ran.extend([word(" as "), code(&run.exe)]);
        }
        if command.program_changed {
            ran.push(Span::Graded(
                Grade::Bad,
                ", which the session itself had changed".to_owned(),
            ));
        }
        vec![
            vec![code(&command.command)],
            outcome,
            vec![word(command.times.to_string())],
            ran,
            written_after(command),
        ]
    });
    table(
        blocks,
        vec![
            "command",
            "outcome",
            "runs",
            "last run",
            "written afterwards",
        ],
        rows,
    );
    blocks.push(Block::Note(
        Grade::Plain,
        "A run is an exec of exactly these words that the kernel saw, with the exit that it saw; what a tool says about itself does not count. Written          afterwards is what anything but an acceptance command changed after the last run had passed."
            .to_owned(),
    ));
}

fn written_after(command: &Acceptance) -> Vec<Span> {
    if command.outcome != Outcome::Passed {
        return Vec::new();
    }
    if command.written_after_count == 0 {
        return vec![Span::Graded(Grade::Good, "nothing".to_owned())];
    }
    let mut spans = vec![Span::Graded(
        Grade::Warn,
        match command.written_after_count {
            1 => "1 file: ".to_owned(),
            count => format!("{count} files: "),
        },
    )];
    for (index, path) in command.written_after.iter().enumerate() {
        if index > 0 {
            spans.push(word(", "));
        }
        spans.push(code(path));
    }
    if command.written_after_count > command.written_after.len() as u64 {
        spans.push(word(", …"));
    }
    spans
}

/// What the policy said that was last in force.
fn rules(blocks: &mut Vec<Block>, report: &Report) {
    let Some(policy) = report
        .policy
        .as_ref()
        .filter(|policy| !policy.rules.is_empty())
    else {
        return;
    };
    blocks.push(Block::Heading("Policy".to_owned()));
    let rows = policy.rules.iter().map(|rule| {
        vec![
            vec![code(&rule.id)],
            vec![word(rule.layer.name())],
            vec![code(&rule.text)],
            vec![code(&rule.source)],
        ]
    });
    table(
        blocks,
        vec!["rule", "layer", "what", "where it is written"],
        rows,
    );
    if policy.left_out > 0 {
        blocks.push(Block::Note(
            Grade::Warn,
            format!("{} more rules are not in the record.", policy.left_out),
        ));
    }
}

fn facts(report: &Report) -> Vec<(&'static str, Vec<Span>)> {
    let session = &report.timeline.session;
    let mut facts = vec![("session", vec![code(&session.id)])];
    if let Some(task) = report.policy.as_ref().map(|policy| &policy.task) {
        for (name, text) in [
            ("goal", &task.goal),
            ("owner", &task.owner),
            ("ticket", &task.ticket),
        ] {
            if let Some(text) = text {
                facts.push((name, vec![code(text)]));
            }
        }
    }
    if !session.command.is_empty() {
        facts.push(("command", vec![shown(&command_line(&session.command))]));
    }
    let mut who = vec![word(format!("uid {}", sessions::uid(session.uid)))];
    if let Some(user) = &report.user {
        who.extend([word(" "), code(user)]);
    }
    who.extend([
        word(", by "),
        code(&session.origin),
        word(", on "),
        code(&report.host),
    ]);
    facts.push(("started by", who));
    facts.push((
        "when",
        vec![word(format!(
            "{}, {}, lasted {}",
            render::time(session.started),
            sessions::state(session),
            sessions::lasted(session, report.written)
        ))],
    ));
    facts.push((
        "policy",
        vec![
            code(&session.policy),
            word(format!(", {}", session.mode.name())),
        ],
    ));
    let grade = match session.coverage {
        Coverage::Enforcing => Grade::Good,
        Coverage::Degraded => Grade::Bad,
        Coverage::Off => Grade::Warn,
    };
    let mut coverage = vec![Span::Graded(grade, session.coverage.name().to_owned())];
    if !session.backends.is_empty() {
        coverage.extend([word(" by "), code(&session.backends.join(", "))]);
    }
    facts.push(("coverage", coverage));
    facts.push(("cgroup", vec![code(&session.cgroup)]));
    let kernel = report.timeline.counts.map(|counts| {
        format!(
            "; the kernel saw {} actions: {} delivered, {} folded, {} lost",
            counts.made, counts.delivered, counts.folded, counts.lost
        )
    });
    facts.push((
        "record",
        vec![word(format!(
            "{} events, {} denied{}",
            session.events,
            session.denied,
            kernel.unwrap_or_default()
        ))],
    ));
    facts.push((
        "written",
        vec![word(format!(
            "{} by agentwatch {}",
            render::time(report.written),
            env!("CARGO_PKG_VERSION")
        ))],
    ));
    facts
}

fn refusals(blocks: &mut Vec<Block>, report: &Report) {
    blocks.push(Block::Heading(
        "Denied, held or beyond the policy".to_owned(),
    ));
    if report.timeline.refusals.is_empty() {
        blocks.push(Block::Note(Grade::Good, "Nothing.".to_owned()));
        return;
    }
    let rows = report.timeline.refusals.iter().map(|refusal| {
        let grade = if refusal.verdict == Verdict::Denied {
            Grade::Bad
        } else {
            Grade::Warn
        };
        let rule = refusal.rule.as_ref().map_or_else(Vec::new, |rule| {
            let mut spans = vec![code(&rule.id)];
            if !rule.source.is_empty() {
                spans.extend([word(" "), code(&rule.source)]);
            }
            spans
        });
        vec![
            vec![word(render::time(refusal.time))],
            vec![Span::Graded(grade, refusal.verdict.name().to_owned())],
            vec![
                word(format!("{} ", refusal.kind.name())),
                shown(&refusal.what),
            ],
            refusal
                .process
                .as_deref()
                .map_or_else(Vec::new, |process| vec![shown(process)]),
            rule,
            vec![word(refusal.count.to_string())],
        ]
    });
    table(
        blocks,
        vec!["when", "verdict", "what", "process", "rule", "times"],
        rows,
    );
}

fn approvals(blocks: &mut Vec<Block>, report: &Report) {
    if report.approvals.is_empty() {
        return;
    }
    blocks.push(Block::Heading("Approvals".to_owned()));
    let rows = report.approvals.iter().map(|approval| {
        let maybe = |text: Option<&str>| text.map_or_else(Vec::new, |text| vec![code(text)]);
        let mut step = approval.step.name().to_owned();
        match (approval.scope, approval.until) {
            (_, Some(until)) => step.push_str(&format!(" until {}", render::time(until))),
            (Some(Scope::Session), None) => step.push_str(" for the session"),
            _ => {}
        }
        vec![
            vec![word(render::time(approval.time))],
            vec![word(approval.request.clone())],
            vec![word(step)],
            vec![shown(&approval.what)],
            approval
                .rule
                .as_deref()
                .map_or_else(Vec::new, |rule| vec![code(rule)]),
            maybe(approval.who().as_deref()),
            maybe(approval.reason.as_deref().or(approval.finding.as_deref())),
        ]
    });
    table(
        blocks,
        vec!["when", "request", "step", "what", "rule", "by", "reason"],
        rows,
    );
}

fn files(blocks: &mut Vec<Block>, report: &Report) {
    blocks.push(Block::Heading("Files changed".to_owned()));
    if report.files_changed.is_empty() {
        blocks.push(Block::Note(Grade::Plain, "None.".to_owned()));
    } else {
        let of = |what: What| {
            let count = report
                .files_changed
                .iter()
                .filter(|change| change.change == what)
                .count();
            (count > 0).then(|| format!("{count} {}", what.name()))
        };
        let summary: Vec<String> = [
            What::Created,
            What::Modified,
            What::Deleted,
            What::Attributes,
            What::Temporary,
        ]
        .into_iter()
        .filter_map(of)
        .collect();
        blocks.push(Block::Note(
            Grade::Plain,
            format!(
                "{}. Sizes and hashes are those of the files when this report was written, read with the rights of whoever asked for it; the record itself holds no content.",
                summary.join(", ")
            ),
        ));
        let rows = report.files_changed.iter().map(|change| {
            let grade = if change.change == What::Deleted {
                Grade::Warn
            } else {
                Grade::Plain
            };
            let mut path = vec![code(&change.path)];
            if let Some(from) = &change.from {
                path.extend([word(" from "), code(from)]);
            }
            vec![
                vec![Span::Graded(grade, change.change.name().to_owned())],
                path,
                vec![code(&change.programs.join(", "))],
                now(&change.now),
            ]
        });
        table(blocks, vec!["change", "file", "by", "now"], rows);
    }
    blocks.push(Block::Note(
        Grade::Plain,
        format!("{} files were read.", report.files_read),
    ));
}

fn now(content: &Content) -> Vec<Span> {
    match content {
        Content::NotLookedAt => Vec::new(),
        Content::Absent => vec![word("not there")],
        Content::Other => vec![word("no regular file")],
        Content::Unreadable { why } => vec![word("cannot be read: "), code(why)],
        Content::File {
            size,
            sha256,
            changed_since,
            note,
        } => {
            let mut spans = vec![word(format!("{size} bytes"))];
            if let Some(sha256) = sha256 {
                spans.extend([word(", sha256 "), code(sha256)]);
            }
            if let Some(note) = note {
                spans.push(word(format!(", {note}")));
            }
            if *changed_since {
                spans.push(Span::Graded(Grade::Warn, ", changed since".to_owned()));
            }
            spans
        }
    }
}

fn destinations(blocks: &mut Vec<Block>, report: &Report) {
    blocks.push(Block::Heading("Destinations".to_owned()));
    if report.destinations.is_empty() {
        blocks.push(Block::Note(Grade::Plain, "None.".to_owned()));
        return;
    }
    let rows = report.destinations.iter().map(|reached| {
        let verb = match reached.kind {
            Kind::Bind => "listened on",
            Kind::Dns => "looked up",
            _ => "connected to",
        };
        let mut times = reached.count.to_string();
        if reached.failed > 0 {
            times.push_str(&format!(", {} failed", reached.failed));
        }
        vec![
            vec![word(verb)],
            vec![shown(&reached.destination)],
            vec![code(&reached.programs.join(", "))],
            vec![word(times)],
        ]
    });
    table(blocks, vec!["", "destination", "by", "times"], rows);
}

fn processes(blocks: &mut Vec<Block>, report: &Report) {
    blocks.push(Block::Heading("Processes".to_owned()));
    let all = &report.timeline.processes;
    if all.is_empty() {
        blocks.push(Block::Note(Grade::Plain, "None.".to_owned()));
        return;
    }
    let mut lines = Vec::new();
    for node in all.iter().take(MOST_PROCESSES) {
        let indent = "  ".repeat(node.depth.min(24));
        let executed = node.execs.iter().rfind(|exec| exec.errno.is_none());
        let (exe, argv) = executed.map_or((&node.exe, &node.argv), |exec| (&exec.exe, &exec.argv));
        let command = if argv.is_empty() {
            escape(exe).into_owned()
        } else {
            command_line(argv)
        };
        let end = node
            .exit
            .as_ref()
            .map(|exit| format!("  ({})", render::exit(exit)))
            .unwrap_or_default();
        lines.push(format!(
            "{indent}{}[{}] {command}{end}",
            escape(render::basename(exe)),
            node.pid
        ));
    }
    if all.len() > MOST_PROCESSES {
        lines.push(format!("… and {} more", all.len() - MOST_PROCESSES));
    }
    blocks.push(Block::Tree(lines));
}

fn life(blocks: &mut Vec<Block>, report: &Report) {
    if report.life.is_empty() {
        return;
    }
    blocks.push(Block::Heading("The session's life".to_owned()));
    let rows = report.life.iter().map(|step| {
        vec![
            vec![word(render::time(step.time))],
            vec![code(&step.what)],
            vec![code(&step.policy)],
        ]
    });
    table(blocks, vec!["when", "what", "policy"], rows);
}

fn table(
    blocks: &mut Vec<Block>,
    titles: Vec<&'static str>,
    rows: impl ExactSizeIterator<Item = Vec<Vec<Span>>>,
) {
    let count = rows.len();
    blocks.push(Block::Table {
        titles,
        rows: rows.take(MOST_ROWS).collect(),
    });
    if count > MOST_ROWS {
        blocks.push(Block::Note(
            Grade::Plain,
            format!(
                "{} more are in the JSON form of this report.",
                count - MOST_ROWS
            ),
        ));
    }
}
