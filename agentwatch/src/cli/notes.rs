//! Notes on the terminal of a session: a line when something was refused, so that whoever looks on knows why the agent
//! stumbles. At most one a second, and nothing at all where no person reads.

use std::{
    io::{IsTerminal as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{control, output::escape, why};
use crate::{
    event::model::Verdict,
    wire::control::{Refused, Request, Response},
};

/// How often the daemon is asked.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How long it may take to answer; signals wait meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);

/// What has been told of one session.
pub(super) struct Notes {
    runtime_dir: PathBuf,
    session: String,
    daemon: Option<UnixStream>,
    /// Number of the last refusal that was told.
    told: u64,
    next: Instant,
}

impl Notes {
    /// Where there is a terminal to tell on.
    pub(super) fn on_terminal(runtime_dir: &Path, session: &str) -> Option<Self> {
        (!session.is_empty() && std::io::stderr().is_terminal()).then(|| Self {
            runtime_dir: runtime_dir.to_owned(),
            session: session.to_owned(),
            daemon: None,
            told: 0,
            next: Instant::now() + PAUSE,
        })
    }

    /// Tells what is new, if it is time to.
    pub(super) fn look(&mut self) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + PAUSE;
        // A daemon that is away is asked again the next time.
        let Some(refused) = self.ask() else {
            self.daemon = None;
            return;
        };
        if let Some(line) = note(&refused, self.told) {
            // The command may have the terminal in raw mode: a line begins and ends by itself. Where it is gone, nobody reads.
            let _ = write!(std::io::stderr(), "\r{line}\r\n");
        }
        self.told = refused.last().map_or(self.told, |last| last.number);
    }

    fn ask(&mut self) -> Option<Vec<Refused>> {
        let stream = match self.daemon.take() {
            Some(stream) => stream,
            None => {
                let stream = control::connect(&self.runtime_dir).ok()?;
                stream.set_read_timeout(Some(PATIENCE)).ok()?;
                stream.set_write_timeout(Some(PATIENCE)).ok()?;
                stream
            }
        };
        let request = Request::Why {
            session: Some(self.session.clone()),
            after: self.told,
        };
        let Ok(Response::Why { refused, .. }) = control::ask(&stream, &request) else {
            return None;
        };
        self.daemon = Some(stream);
        Some(refused)
    }
}

/// The newest of them that is not only recorded, in a line, and how many there were besides.
fn note(refused: &[Refused], told: u64) -> Option<String> {
    let last = refused
        .iter()
        .rev()
        .find(|refused| refused.event.verdict != Verdict::Audited)?;
    let newest = refused.last().map_or(0, |newest| newest.number);
    let besides = newest.saturating_sub(told).saturating_sub(1);
    let event = &last.event;
    let rule = event.rule.as_ref().map_or(String::new(), |rule| {
        let at = if rule.source.is_empty() {
            String::new()
        } else {
            format!(" ({})", escape(&rule.source))
        };
        format!(" by {}{at}", escape(&rule.id))
    });
    let more = match besides {
        0 => String::new(),
        besides => format!(", and {besides} more"),
    };
    Some(format!(
        "agentwatch: {}{rule}: {}, {}{more}; hint: agentwatch why",
        why::word(event.verdict),
        why::what(event),
        why::by(event),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Kind, samples::sample},
        policy::advice::advise,
    };

    #[test]
    fn a_note_is_one_line() {
        let refused = |number, verdict| {
            let mut event = sample(Kind::Open);
            event.verdict = verdict;
            if let Some(file) = &mut event.file {
                file.path = "/a\nb\u{1b}[31m".to_owned();
            }
            Refused {
                number,
                text: String::new(),
                advice: advise(&event),
                event,
            }
        };
        assert_eq!(note(&[], 0), None);
        assert_eq!(note(&[refused(1, Verdict::Audited)], 0), None);
        let line = note(
            &[refused(7, Verdict::Denied), refused(8, Verdict::Denied)],
            3,
        )
        .unwrap();
        assert!(line.starts_with("agentwatch: denied by "), "{line}");
        assert!(
            line.contains(", and 4 more; hint: agentwatch why"),
            "{line}"
        );
        assert!(!line.chars().any(char::is_control), "{line}");
        let line = note(&[refused(1, Verdict::Held)], 0).unwrap();
        assert!(line.starts_with("agentwatch: held for approval"), "{line}");
    }
}
