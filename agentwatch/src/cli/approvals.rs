//! `agentwatch approvals`, `approve`, `reject`, `grants`, `revoke`: what waits for a person, and what a person says.

use std::{
    collections::BTreeSet, io::Write as _, path::Path, process::ExitCode, thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use jiff::{SignedDuration, Timestamp};

use super::{
    control,
    output::{self, Output, Table, Tone, command_line, escape},
    render,
};
use crate::{
    approval::model::{GrantRow, Request as Asked},
    event::{Kind, model::Scope},
    wire::control::{Extent, Request, Response},
};

/// How often the daemon is asked for what is new.
const INTERVAL: Duration = Duration::from_millis(200);

/// Show what waits for a person's decision
#[derive(Args, Debug)]
pub struct ApprovalsArgs {
    /// Print a JSON array; with --follow, an object a line
    #[arg(long)]
    json: bool,
    /// Go on, and show what comes to wait
    #[arg(long)]
    follow: bool,
}

impl ApprovalsArgs {
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let mut out = Output::stdout();
        let result = if self.follow {
            self.follow(&mut out, runtime_dir)
        } else {
            let requests = waiting(runtime_dir)?;
            if self.json {
                json(&mut out, &requests)
            } else if requests.is_empty() {
                out.line("nothing waits").map_err(Into::into)
            } else {
                requests.iter().try_for_each(|it| show(&mut out, it))
            }
        };
        output::finish(result.and_then(|()| out.flush().context("write to standard output")))
    }

    fn follow(&self, out: &mut Output, runtime_dir: &Path) -> Result<()> {
        let mut known = BTreeSet::new();
        loop {
            let requests = waiting(runtime_dir)?;
            for request in &requests {
                if known.contains(&request.id) {
                    continue;
                }
                if self.json {
                    serde_json::to_writer(&mut *out, request)?;
                    out.line("")?;
                } else {
                    show(out, request)?;
                }
            }
            out.flush().context("write to standard output")?;
            known = requests.into_iter().map(|request| request.id).collect();
            sleep(INTERVAL);
        }
    }
}

fn waiting(runtime_dir: &Path) -> Result<Vec<Asked>> {
    match control::ask(&control::connect(runtime_dir)?, &Request::Approvals)? {
        Response::Approvals { requests } => Ok(requests),
        other => Err(control::other_answer(&Request::Approvals, &other)),
    }
}

fn json<T: serde::Serialize>(out: &mut Output, rows: &[T]) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, rows)?;
    out.line("")?;
    Ok(())
}

fn show(out: &mut Output, request: &Asked) -> Result<()> {
    let now = Timestamp::now();
    let mut fields: Vec<(&str, String)> = Vec::new();
    let goal = request
        .goal
        .as_ref()
        .map(|goal| format!(", to {}", escape(goal)))
        .unwrap_or_default();
    fields.push((
        "session",
        format!(
            "{} ({}) of user {}{goal}",
            escape(&request.session_name),
            escape(&request.session),
            request.uid
        ),
    ));
    if let Some(rule) = &request.rule {
        let place = if rule.source.is_empty() {
            String::new()
        } else {
            format!(" at {}", escape(&rule.source))
        };
        let text = if request.rule_text.is_empty() {
            String::new()
        } else {
            format!(" \"{}\"", escape(&request.rule_text))
        };
        fields.push(("rule", format!("{}{text}{place}", escape(&rule.id))));
    }
    if let Some(process) = &request.process {
        fields.push((
            "process",
            format!(
                "{} as user {}{}",
                render::process_name(process),
                process.uid,
                if process.argv.is_empty() {
                    String::new()
                } else {
                    format!(": {}", command_line(&process.argv))
                }
            ),
        ));
    }
    for ancestor in &request.ancestry {
        fields.push((
            "under",
            format!("[{}] {}", ancestor.pid, command_line(&ancestor.argv)),
        ));
    }
    for line in &request.before {
        fields.push(("before", escape(line).into_owned()));
    }
    for line in &request.decided {
        fields.push(("decided", escape(line).into_owned()));
    }
    if let Some(finding) = &request.finding {
        fields.push(("finding", escape(finding).into_owned()));
    }
    if let Some(reason) = &request.review {
        fields.push(("review", format!("left to you: {}", escape(reason))));
    }
    if request.tries > 0 {
        fields.push((
            "finding",
            format!(
                "it went on by itself {} times, and was stopped again",
                request.tries
            ),
        ));
    }
    let what = about(request);
    if let Some(letters) = foreign_letters(request) {
        fields.push((
            "look out",
            format!("not all of these letters are what they seem: {letters}"),
        ));
    }
    let left = request.deadline.duration_since(now);
    fields.push((
        "waits",
        format!(
            "{}, {} more, then {}; {}",
            span(now.duration_since(request.since)),
            span(left),
            if request.on_timeout == "allow" {
                "it may"
            } else {
                "it is denied"
            },
            match request.tasks {
                1 => "1 task".to_owned(),
                tasks => format!("{tasks} tasks"),
            }
        ),
    ));
    let extents = match &request.once_only {
        Some(why) => format!(" (once only: {})", escape(why)),
        None => " [--once | --for 10m | --session]".to_owned(),
    };
    fields.push((
        "decide",
        format!(
            "agentwatch approve {0}{extents}, agentwatch reject {0}",
            escape(&request.id)
        ),
    ));
    out.line(&format!("{}  {what}", escape(&request.id)))?;
    for (name, text) in fields {
        out.line(&format!("  {name:<8} {text}"))?;
    }
    out.line("")?;
    Ok(())
}

/// What is asked for, escaped.
fn about(request: &Asked) -> String {
    let mut text = request.action.name().to_owned();
    if request.action == Kind::Exec
        && let Some(process) = &request.process
        && !process.argv.is_empty()
    {
        text.push(' ');
        text.push_str(&command_line(&process.argv));
        return text;
    }
    if let Some(file) = &request.file {
        text.push(' ');
        text.push_str(&escape(&file.path));
        if file.path_truncated {
            text.push_str(" (its path is not known in full)");
        }
        if let Some(target) = &request.target {
            text.push_str(" to ");
            text.push_str(&escape(&target.path));
        }
        if !file.access.is_empty() {
            text.push_str(&format!(" ({})", escape(&file.access.join(", "))));
        }
    }
    if let Some(net) = &request.net {
        text.push(' ');
        text.push_str(&render::destination(net));
    }
    text
}

/// Letters outside ASCII in what is asked for: some look like others.
fn foreign_letters(request: &Asked) -> Option<String> {
    let argv = request
        .process
        .iter()
        .filter(|_| request.action == Kind::Exec)
        .flat_map(|process| process.argv.iter());
    let paths = request
        .file
        .iter()
        .chain(&request.target)
        .map(|file| &file.path);
    let letters: BTreeSet<char> = argv
        .chain(paths)
        .flat_map(|text| text.chars())
        .filter(|letter| !letter.is_ascii())
        .take(16)
        .collect();
    (!letters.is_empty()).then(|| {
        letters
            .iter()
            .map(|letter| format!("U+{:04X}", u32::from(*letter)))
            .collect::<Vec<_>>()
            .join(" ")
    })
}

fn span(duration: SignedDuration) -> String {
    render::duration(u64::try_from(duration.as_nanos()).unwrap_or(0))
}

/// Let an action that waits happen
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("extent").args(["once", "for_", "session"])))]
pub struct ApproveArgs {
    /// Id of the request, or the beginning of one
    id: String,
    /// This once, for every task that waits for it (the default)
    #[arg(long)]
    once: bool,
    /// And for a time (90s, 10m, 1h)
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    for_: Option<u64>,
    /// And until the session ends
    #[arg(long)]
    session: bool,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl ApproveArgs {
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let extent = match (self.for_, self.session) {
            (Some(seconds), _) => Extent::For { seconds },
            (None, true) => Extent::Session,
            (None, false) => Extent::Once,
        };
        decide(runtime_dir, self.id, Some(extent), self.reason)
    }
}

/// Refuse an action that waits
#[derive(Args, Debug)]
pub struct RejectArgs {
    /// Id of the request, or the beginning of one
    id: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl RejectArgs {
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        decide(runtime_dir, self.id, None, self.reason)
    }
}

fn decide(
    runtime_dir: &Path,
    id: String,
    extent: Option<Extent>,
    reason: Option<String>,
) -> Result<ExitCode> {
    let request = Request::Decide { id, extent, reason };
    control::ask(&control::connect(runtime_dir)?, &request)?;
    Ok(ExitCode::SUCCESS)
}

/// Whole seconds of a span such as `90s`, `10m`, `1h30m`.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = |_| format!("{text:?} is no time: write 90s, 10m or 1h");
    let span: jiff::Span = text.parse().map_err(wrong)?;
    let duration = SignedDuration::try_from(span).map_err(wrong)?;
    u64::try_from(duration.as_secs())
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| format!("{text:?} is less than a second"))
}

/// Show what has been approved beyond once
#[derive(Args, Debug)]
pub struct GrantsArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

impl GrantsArgs {
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let answer = control::ask(&control::connect(runtime_dir)?, &Request::Grants)?;
        let Response::Grants { grants } = answer else {
            return Err(control::other_answer(&Request::Grants, &answer));
        };
        let mut out = Output::stdout();
        let result = if self.json {
            json(&mut out, &grants)
        } else {
            table(&mut out, &grants)
        };
        output::finish(result.and_then(|()| out.flush().context("write to standard output")))
    }
}

fn table(out: &mut Output, grants: &[GrantRow]) -> Result<()> {
    let mut table = Table::new(&["ID", "SESSION", "UNTIL", "BY", "WHAT", "REASON"]);
    for grant in grants {
        let until = match (grant.scope, grant.until) {
            (Scope::For, Some(until)) => render::time(until),
            _ => "the session ends".to_owned(),
        };
        let by = grant
            .by
            .name
            .clone()
            .or(grant.by.uid.map(|uid| uid.to_string()))
            .unwrap_or_default();
        table.row(vec![
            (escape(&grant.id).into_owned(), None),
            (escape(&grant.session_name).into_owned(), None),
            (until, None),
            (escape(&by).into_owned(), None),
            (escape(&grant.about).into_owned(), Some(Tone::Warn)),
            (
                escape(grant.reason.as_deref().unwrap_or_default()).into_owned(),
                None,
            ),
        ]);
    }
    table.write(out)?;
    Ok(())
}

/// Take back what has been approved beyond once
#[derive(Args, Debug)]
pub struct RevokeArgs {
    /// Id of the grant, or the beginning of one
    id: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl RevokeArgs {
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let request = Request::Revoke {
            id: self.id,
            reason: self.reason,
        };
        control::ask(&control::connect(runtime_dir)?, &request)?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spans() {
        assert_eq!(seconds("10m"), Ok(600));
        assert_eq!(seconds("1h30m"), Ok(5400));
        assert!(seconds("0s").is_err());
        assert!(seconds("soon").is_err());
    }
}
