//! Actions that wait for a person, each from the outside: begun in a session, found waiting, decided, and looked at again. On a line
//! each `PASS`, `SKIP` or `FAIL`, and the line for machines. Needs root. The same program is what runs inside the sessions.

mod cases;
mod inside;
mod latency;
mod place;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use cases::{actions::*, deciders::*, processes::*, reviewer::*, signals, volume::*};
use clap::{Parser, Subcommand};
use place::Place;
use serde_json::json;

/// How long anything that must happen may take, under emulation.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long is watched that something does not happen.
const CALM: Duration = Duration::from_millis(400);

/// The name of this program.
const NAME: &str = "holds";

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Runs the cases
    All {
        /// The agentwatch binary
        #[arg(long)]
        agentwatch: PathBuf,
        /// Only cases whose name contains this
        #[arg(long, default_value = "")]
        only: String,
        /// How often what is repeated is repeated; as many wait at the same time, and 300 at most
        #[arg(long, default_value_t = 1000)]
        rounds: u32,
        /// How often each case is run: what fails now and then is found by it
        #[arg(long, default_value_t = 1)]
        repeat: u32,
    },
    /// Measures the time from an approval to the end of the system call that waited for it
    Latency {
        /// The agentwatch binary
        #[arg(long)]
        agentwatch: PathBuf,
        #[arg(long, default_value_t = 200)]
        rounds: u32,
    },
    /// Does things one after the other, inside a session, and reports each on a line of a file
    Do {
        report: PathBuf,
        /// Such as `read:/a/file`, `connect:127.0.0.1:80`, `sleep:100`
        actions: Vec<String>,
    },
}

fn main() -> ExitCode {
    // Under any other name it says what it was given.
    let mut arguments = std::env::args();
    let is_copy = arguments.next().is_some_and(|name| {
        Path::new(&name)
            .file_name()
            .is_some_and(|name| name != NAME)
    });
    if is_copy {
        println!("{}", arguments.collect::<Vec<_>>().join(" "));
        return ExitCode::SUCCESS;
    }
    match Options::parse().what {
        What::Do { report, actions } => inside::perform(&report, &actions),
        What::All {
            agentwatch,
            only,
            rounds,
            repeat,
        } => run(&agentwatch, &only, rounds, repeat),
        What::Latency { agentwatch, rounds } => match latency::measure(&agentwatch, rounds) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

type Case = fn(&Place) -> Result<()>;

/// What a case needs of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Lsm,
    /// That it has no BPF LSM.
    NoLsm,
    /// Users whose names the host knows.
    Users,
}

impl Needs {
    /// Why a case cannot be tried here, where that is so.
    fn lacks(self, place: &Place) -> Option<&'static str> {
        match self {
            Self::Lsm if !place.has_lsm => {
                Some("without BPF LSM files are held by Landlock: what needs approval is denied")
            }
            Self::NoLsm if place.has_lsm => Some("is about kernels without BPF LSM"),
            Self::Users if !knows_users() => Some("this host does not know nobody, games and mail"),
            _ => None,
        }
    }
}

const CASES: &[(&str, Needs, Case)] = &[
    ("hold_connect_approved", Needs::Nothing, connect_approved),
    ("hold_connect_rejected", Needs::Nothing, connect_rejected),
    ("hold_datagram_approved", Needs::Nothing, datagram_approved),
    ("hold_command_approved", Needs::Nothing, command_approved),
    ("hold_command_rejected", Needs::Nothing, command_rejected),
    (
        "hold_command_by_arguments",
        Needs::Nothing,
        command_by_arguments,
    ),
    ("hold_command_script", Needs::Nothing, command_script),
    ("hold_grant_for_a_time", Needs::Nothing, grant_for_a_time),
    (
        "hold_grant_for_the_session",
        Needs::Nothing,
        grant_for_the_session,
    ),
    (
        "hold_grant_of_one_session",
        Needs::Nothing,
        grant_of_one_session,
    ),
    ("hold_grant_of_one_access", Needs::Lsm, grant_of_one_access),
    (
        "hold_grant_not_of_children",
        Needs::Nothing,
        grant_not_of_children,
    ),
    ("hold_nobody_decides", Needs::Nothing, nobody_decides),
    (
        "hold_going_on_by_itself",
        Needs::Nothing,
        going_on_by_itself,
    ),
    ("hold_killed", Needs::Nothing, killed),
    (
        "hold_signal_ends_a_connect",
        Needs::Nothing,
        signals::ends_a_connect,
    ),
    (
        "hold_signal_ends_a_command",
        Needs::Nothing,
        signals::ends_a_command,
    ),
    (
        "hold_signal_ends_an_open",
        Needs::Lsm,
        signals::ends_an_open,
    ),
    (
        "hold_signal_heard_in_a_connect",
        Needs::Nothing,
        signals::heard_in_a_connect,
    ),
    (
        "hold_signal_heard_in_an_open",
        Needs::Lsm,
        signals::heard_in_an_open,
    ),
    ("hold_signal_ignored", Needs::Nothing, signals::ignored),
    ("hold_session_detached", Needs::Nothing, session_detached),
    (
        "hold_same_is_one_request",
        Needs::Nothing,
        same_is_one_request,
    ),
    ("hold_too_many", Needs::Nothing, too_many),
    (
        "hold_not_decided_from_inside",
        Needs::Nothing,
        not_from_inside,
    ),
    ("hold_file_read", Needs::Lsm, file_read),
    ("hold_file_library", Needs::Lsm, file_library),
    ("hold_file_changes", Needs::Lsm, file_changes),
    ("hold_file_rejected", Needs::Lsm, file_rejected),
    ("hold_file_made_once", Needs::Lsm, file_made_once),
    ("hold_threads", Needs::Nothing, threads),
    (
        "hold_threads_one_by_one",
        Needs::Nothing,
        threads_one_by_one,
    ),
    ("hold_spawned", Needs::Nothing, spawned),
    (
        "hold_timeout_ends_a_connect",
        Needs::Nothing,
        timeout_ends_a_connect,
    ),
    (
        "hold_timeout_ends_a_command",
        Needs::Nothing,
        timeout_ends_a_command,
    ),
    (
        "hold_shell_with_job_control",
        Needs::Nothing,
        shell_with_job_control,
    ),
    (
        "hold_told_to_go_on_at_once",
        Needs::Nothing,
        told_to_go_on_at_once,
    ),
    (
        "hold_told_to_go_on_from_the_first",
        Needs::Nothing,
        told_to_go_on_from_the_first,
    ),
    (
        "hold_first_of_a_pid_namespace",
        Needs::Nothing,
        first_of_a_pid_namespace,
    ),
    (
        "hold_connect_without_blocking",
        Needs::Nothing,
        connect_without_blocking,
    ),
    ("hold_connect_undone", Needs::Nothing, connect_undone),
    (
        "hold_not_a_file_without_lsm",
        Needs::NoLsm,
        file_without_lsm,
    ),
    (
        "hold_not_what_cannot_wait",
        Needs::Nothing,
        what_cannot_wait,
    ),
    ("hold_not_an_open_of_io_uring", Needs::Lsm, open_of_io_uring),
    (
        "hold_escapes_are_shown_escaped",
        Needs::Nothing,
        escapes_are_shown_escaped,
    ),
    (
        "hold_unknown_destination",
        Needs::Nothing,
        unknown_destination,
    ),
    ("hold_followed", Needs::Nothing, followed),
    ("hold_owner_decides", Needs::Nothing, owner_decides),
    (
        "hold_owner_of_a_file_session",
        Needs::Lsm,
        owner_decides_on_files,
    ),
    (
        "hold_users_and_groups_decide",
        Needs::Users,
        users_and_groups_decide,
    ),
    (
        "hold_too_many_in_an_hour",
        Needs::Nothing,
        too_many_in_an_hour,
    ),
    ("hold_many", Needs::Nothing, many),
    ("hold_more_than_a_share", Needs::Nothing, more_than_a_share),
    (
        "hold_one_after_the_other",
        Needs::Nothing,
        one_after_the_other,
    ),
    (
        "hold_one_after_the_other_on_files",
        Needs::Lsm,
        one_after_the_other_on_files,
    ),
    ("hold_daemon_killed", Needs::Nothing, daemon_killed),
    // From here on with a daemon that has a reviewer.
    ("hold_reviewer", Needs::Nothing, reviewer),
];

fn run(binary: &Path, only: &str, rounds: u32, repeat: u32) -> ExitCode {
    let mut place = match Place::new(binary, rounds) {
        Ok(place) => place,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut good = true;
    let wanted = CASES.iter().filter(|(name, ..)| name.contains(only));
    for (name, needs, case) in wanted.flat_map(|case| std::iter::repeat_n(case, repeat as usize)) {
        let mut milliseconds = 0;
        let (status, reason) = if let Some(reason) = needs.lacks(&place) {
            ("skip", reason.to_owned())
        } else {
            place.clean();
            let since = Instant::now();
            let outcome = case(&place);
            milliseconds = since.elapsed().as_millis();
            match outcome {
                Ok(()) => ("pass", String::new()),
                Err(error) => {
                    println!("{}\n{}", place.log(), place.record());
                    ("fail", format!("{error:#}"))
                }
            }
        };
        good &= status != "fail";
        let tail = match reason.as_str() {
            "" => format!("{milliseconds} ms"),
            reason => reason.to_owned(),
        };
        println!("{} {name} {tail}", status.to_uppercase());
        println!(
            "@result {}",
            json!({"name": name, "status": status, "reason": reason})
        );
    }
    place.stop();
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
