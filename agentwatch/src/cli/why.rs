//! `agentwatch why`: the last actions that were refused, and what to do about each. Meant for the agent inside as much as for
//! the person outside.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;

use super::{
    control,
    output::{self, Output, escape},
    render,
};
use crate::{
    event::{Event, model::Verdict},
    wire::control::{Refused, Request, Response},
};

/// How many are shown.
const SHOWN: usize = 5;

/// Say why the last actions of a session were refused, and how to ask; inside a session: of that one
#[derive(Args, Debug)]
pub struct WhyArgs {
    /// Session id, a unique beginning of one, or a name. Inside a session it can be left out
    session: Option<String>,
    /// How many to show, the newest last; 32 are kept
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = SHOWN)]
    number: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl WhyArgs {
    /// Asks and prints.
    ///
    /// # Errors
    /// When no daemon answers, when the asker is in no session and names none, or may not see the one that is named.
    pub fn run(self, runtime_dir: &Path) -> Result<ExitCode> {
        let request = Request::Why {
            session: self.session,
            after: 0,
        };
        let answer = control::ask(&control::connect(runtime_dir)?, &request)?;
        let Response::Why {
            session,
            name,
            count,
            refused,
        } = answer
        else {
            return Err(control::other_answer(&request, &answer));
        };
        let shown = &refused[refused.len().saturating_sub(self.number)..];
        let mut out = Output::stdout();
        let written = (|| -> Result<()> {
            if self.json {
                let whole = json!({
                    "session": session,
                    "name": name,
                    "count": count,
                    "refused": shown,
                });
                let text = serde_json::to_string_pretty(&whole).context("encode the answer")?;
                out.line(&text)?;
                return Ok(());
            }
            if refused.is_empty() {
                out.line(&format!("nothing was refused in {}", escape(&name)))?;
            }
            for refused in shown {
                for line in lines(refused, &out) {
                    out.line(&line)?;
                }
            }
            Ok(())
        })();
        output::finish(written.and_then(|()| Ok(std::io::Write::flush(&mut out)?)))
    }
}

/// What happened, which rule, what to do.
fn lines(refused: &Refused, out: &Output) -> Vec<String> {
    let event = &refused.event;
    let verdict = out
        .style
        .paint(render::tone(event.verdict), word(event.verdict));
    let errno = event.errno.map_or(String::new(), |errno| {
        format!(", {}", render::errno_name(errno))
    });
    let mut lines = vec![format!(
        "{verdict}: {} by {} at {}{errno}",
        what(event),
        by(event),
        render::time(event.time)
    )];
    if let Some(rule) = &event.rule {
        let mut line = format!("  rule   {}", escape(&rule.id));
        if !rule.source.is_empty() {
            line.push_str(&format!(", {}", escape(&rule.source)));
        }
        if !refused.text.is_empty() {
            line.push_str(&format!(": {}", escape(&refused.text)));
        }
        lines.push(line);
    }
    lines.push(format!("  to do  {}", escape(&refused.advice.text)));
    if let Some(entry) = &refused.advice.entry {
        for (number, line) in entry.lines().enumerate() {
            let lead = if number == 0 { "entry" } else { "" };
            lines.push(format!("  {lead:<6} {}", escape(line)));
        }
    }
    lines
}

/// What was refused, for a line: kind and object.
pub(super) fn what(event: &Event) -> String {
    let kind = match (&event.guard, event.kind.name()) {
        (Some(guard), _) => format!("guard {}", escape(&guard.operation)),
        (None, kind) => kind.to_owned(),
    };
    let object = render::what(event);
    if object.is_empty() {
        kind
    } else {
        format!("{kind} {object}")
    }
}

/// Who tried.
pub(super) fn by(event: &Event) -> String {
    event
        .process
        .as_ref()
        .map_or_else(|| "a process".to_owned(), render::process_name)
}

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "allowed",
        Verdict::Denied => "denied",
        Verdict::Held => "held for approval",
        Verdict::Audited => "would be denied",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Kind, samples::sample},
        policy::advice::advise,
    };

    #[test]
    fn a_refusal_says_what_why_and_what_to_do() {
        let mut event = sample(Kind::Open);
        event.verdict = Verdict::Denied;
        event.errno = Some(13);
        if let Some(file) = &mut event.file {
            file.path = "/etc/\u{1b}(0x".to_owned();
            file.access = vec!["read".to_owned()];
        }
        if let Some(rule) = &mut event.rule {
            rule.id = "files.default".to_owned();
            rule.layer = crate::event::model::Layer::Default;
            rule.source = String::new();
        }
        let refused = Refused {
            number: 1,
            text: String::new(),
            advice: advise(&event),
            event,
        };
        let text = lines(&refused, &Output::stdout()).join("\n");
        assert!(!text.contains('\u{1b}'), "{text}");
        for expected in [
            "denied: open /etc/",
            ", EACCES\n  rule   files.default\n  to do  the task's policy does not name it",
            "\n  entry  [files]\n         read = [\"/etc/",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }
}
