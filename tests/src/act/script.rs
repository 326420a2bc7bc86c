//! Several steps, one after another, in one process tree: a whole scenario in one session.
//!
//! The script comes by standard input, because a file would itself have to be in the policy's scope. Every step runs
//! in a child of its own, so that a step that is killed, or that changes its own namespaces, leaves the next one alone.

use std::io::Write;

use serde::{Deserialize, Serialize};

use super::{Outcome, outcome_text, perform, process};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// An operation of the actor.
    Act(Vec<String>),
    /// A program and its arguments.
    Run(Vec<String>),
}

/// What a result line begins with; the step's index, its begin, its end and its outcome follow.
pub const RESULT_MARK: &str = "@step";

/// No step takes longer than this, in seconds, where nothing else is said: one that hangs is killed, and the next one goes on.
pub const STEP: u32 = 40;

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub outcome: String,
    /// Nanoseconds of CLOCK_BOOTTIME, as events have them: what happened in between was this step.
    pub begin: u64,
    pub end: u64,
}

/// Performs the steps in order, each for so many seconds at most, and writes one line for each.
pub fn perform_all(steps: &[Step], seconds: u32, mut results: impl Write) -> std::io::Result<()> {
    for (index, step) in steps.iter().enumerate() {
        let begin = boot_time();
        let outcome = process::in_child(|| {
            // SAFETY: only sets a timer of this process.
            unsafe { libc::alarm(seconds) };
            perform_step(step)
        });
        process::reap_strays();
        let (end, outcome) = (boot_time(), outcome_text(&outcome));
        writeln!(results, "{RESULT_MARK} {index} {begin} {end} {outcome}")?;
        results.flush()?;
    }
    Ok(())
}

fn perform_step(step: &Step) -> Outcome {
    process::send_stdout_to(&std::io::stderr())?;
    match step {
        Step::Act(words) => perform(words),
        Step::Run(words) => process::execute(words),
    }
}

fn boot_time() -> u64 {
    let Ok(time) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME) else {
        return 0;
    };
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// What a result line tells.
pub fn parse_result(line: &str) -> Option<Done> {
    let mut words = line.strip_prefix(RESULT_MARK)?.trim_start().splitn(4, ' ');
    words.next()?;
    let (begin, end) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Done {
        outcome: words.next()?.to_owned(),
        begin,
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_as_they_are_written() {
        let mut text = Vec::new();
        let steps = [Step::Act(vec!["stat".into(), "/".into()])];
        perform_all(&steps, STEP, &mut text).unwrap();
        let done = parse_result(String::from_utf8(text).unwrap().trim()).unwrap();
        assert_eq!(done.outcome, "ok");
        assert!(done.begin > 0 && done.end > done.begin);
    }
}
