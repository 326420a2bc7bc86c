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

/// What a result line begins with; the step's index and its outcome follow.
pub const RESULT_MARK: &str = "@step";

/// Performs the steps in order and writes one line for each.
pub fn perform_all(steps: &[Step], mut results: impl Write) -> std::io::Result<()> {
    for (index, step) in steps.iter().enumerate() {
        let outcome = process::in_child(|| perform_step(step));
        process::reap_strays();
        writeln!(results, "{RESULT_MARK} {index} {}", outcome_text(&outcome))?;
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

/// The index and the outcome that a result line tells.
pub fn parse_result(line: &str) -> Option<(usize, &str)> {
    let (index, outcome) = line
        .strip_prefix(RESULT_MARK)?
        .trim_start()
        .split_once(' ')?;
    Some((index.parse().ok()?, outcome))
}
