//! Operations by name: each does one thing to the system and says how it ended.
//!
//! Scenarios name these operations instead of shell commands, because a shell hides errno behind a sentence and
//! does much more than it was asked. An operation must not swallow an error, retry, or fall back.

pub mod container;
mod descriptor;
mod file;
mod host;
mod ipc;
mod load;
mod net;
mod other;
pub mod outside;
mod place;
mod process;
pub mod script;
mod unix;
mod uring;

use std::{ffi::CString, fmt};

use nix::errno::Errno;

/// Why an operation did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The kernel said no, or could not.
    Errno(Errno),
    /// A process that the operation started ended with this code.
    Exit(i32),
    /// A process that the operation started was ended by this signal.
    Signal(i32),
    /// The operation was called wrongly, or the actor itself is at fault.
    Usage(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // `Errno` has its kernel name as debug text.
            Failure::Errno(errno) => write!(f, "{errno:?}"),
            Failure::Exit(code) => write!(f, "exit:{code}"),
            Failure::Signal(signal) => write!(f, "signal:{signal}"),
            Failure::Usage(message) => write!(f, "usage:{message}"),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Errno(errno)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) => Failure::Errno(Errno::from_raw(code)),
            None => Failure::Usage(error.to_string()),
        }
    }
}

/// How an operation ended.
pub type Outcome = Result<(), Failure>;

/// One operation.
pub struct Operation {
    pub name: &'static str,
    pub usage: &'static str,
    pub run: fn(&[String]) -> Outcome,
}

/// All operations, a table a family.
pub fn operations() -> impl Iterator<Item = &'static Operation> {
    [
        file::OPERATIONS,
        descriptor::OPERATIONS,
        place::OPERATIONS,
        net::OPERATIONS,
        unix::OPERATIONS,
        process::OPERATIONS,
        other::OPERATIONS,
        host::OPERATIONS,
        ipc::OPERATIONS,
        load::OPERATIONS,
        uring::OPERATIONS,
    ]
    .into_iter()
    .flatten()
}

/// Performs the operations that `words` name, with a word `;` between them. What comes before the last one only prepares: where
/// that fails, the operation in question was never tried, and this is no errno of its own.
pub fn perform(words: &[String]) -> Outcome {
    let parts: Vec<&[String]> = words.split(|word| word == ";").collect();
    let Some((last, before)) = parts.split_last() else {
        return Err(Failure::Usage("no operation was named".to_owned()));
    };
    for part in before {
        perform_one(part)
            .map_err(|failure| Failure::Usage(format!("`{}`: {failure}", part.join(" "))))?;
    }
    perform_one(last)
}

fn perform_one(words: &[String]) -> Outcome {
    let Some((name, args)) = words.split_first() else {
        return Err(Failure::Usage("no operation was named".to_owned()));
    };
    match operations().find(|operation| operation.name == name) {
        Some(operation) => (operation.run)(args),
        None => Err(Failure::Usage(format!("there is no operation {name}"))),
    }
}

/// `ok`, or why not, as the scenarios spell it.
pub fn outcome_text(outcome: &Outcome) -> String {
    match outcome {
        Ok(()) => "ok".to_owned(),
        Err(failure) => failure.to_string(),
    }
}

/// Exactly `N` arguments, or a usage failure.
fn arguments<const N: usize>(args: &[String]) -> Result<[&str; N], Failure> {
    let list: Vec<&str> = args.iter().map(String::as_str).collect();
    <[&str; N]>::try_from(list).map_err(|list| {
        Failure::Usage(format!(
            "{N} arguments are needed, {} were given",
            list.len()
        ))
    })
}

/// A path or a name as the kernel takes it.
fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|error| Failure::Usage(error.to_string()))
}

/// Makes a system call through libc. What its arguments point to must live across the call, and be as large as the call takes it
/// to be; every use below passes locals of the call's own types.
macro_rules! sys {
    ($call:expr) => {
        // SAFETY: see the macro.
        nix::errno::Errno::result(unsafe { $call }).map_err($crate::act::Failure::from)
    };
}
use sys;

/// An argument that must be a number.
fn number<T: std::str::FromStr>(text: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|_| Failure::Usage(format!("{text} is not a number that fits")))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let mut seen = HashSet::new();
        for operation in operations() {
            assert!(
                seen.insert(operation.name),
                "{} stands twice",
                operation.name
            );
        }
    }

    #[test]
    fn outcomes_are_spelled_as_scenarios_spell_them() {
        assert_eq!(outcome_text(&Ok(())), "ok");
        assert_eq!(outcome_text(&Err(Errno::EACCES.into())), "EACCES");
        assert_eq!(outcome_text(&Err(Failure::Signal(9))), "signal:9");
        let prepared = perform(&["open-read", "/nonexistent", ";", "stat", "/"].map(str::to_owned));
        assert_eq!(
            outcome_text(&prepared),
            "usage:`open-read /nonexistent`: ENOENT"
        );
        let missing = perform(&["open-read".to_owned(), "/nonexistent".to_owned()]);
        assert_eq!(outcome_text(&missing), "ENOENT");
    }
}
