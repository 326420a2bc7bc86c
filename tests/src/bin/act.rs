//! The actor: performs one operation (`act open-read /etc/passwd`) or, with `--script`, the steps that it reads as
//! JSON from standard input (each for 40 seconds at most, or as many as follow). Prints `ok` or the errno's name; exits 0 where all went well, 1 where it did not and 2
//! where it was called wrongly. With `--outside DIR` it is the process outside that conformance cases act upon, with `--neighbour DIR` the same
//! in a session of its own; with `--container CGROUP ROOT VOLUME LAYERS UID` it reads its steps as the first process of a container.

use std::{io::Read, process::ExitCode};

use agentwatch_tests::act::{self, Failure, script};
use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        None | Some("--help") => {
            for operation in act::operations() {
                println!("{:16} {}", operation.name, operation.usage);
            }
            ExitCode::SUCCESS
        }
        Some("--script") => match words.get(1).map_or(Ok(script::STEP), |word| word.parse()) {
            Ok(seconds) => run_script(seconds),
            Err(error) => {
                eprintln!("act: --script takes seconds: {error}");
                ExitCode::from(2)
            }
        },
        Some("--container") => match enter_container(&words[1..]) {
            Ok(()) => run_script(script::STEP),
            Err(error) => {
                eprintln!("act: {error:#}");
                ExitCode::from(2)
            }
        },
        Some(word @ ("--outside" | "--neighbour")) => {
            let dir = words.get(1).map_or(".", |dir| dir);
            match act::outside::serve(dir.as_ref(), word == "--neighbour") {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("act: {error:#}");
                    ExitCode::from(2)
                }
            }
        }
        Some(_) => {
            let outcome = act::perform(&words);
            println!("{}", act::outcome_text(&outcome));
            match outcome {
                Ok(()) => ExitCode::SUCCESS,
                Err(Failure::Usage(_)) => ExitCode::from(2),
                Err(_) => ExitCode::FAILURE,
            }
        }
    }
}

fn enter_container(words: &[String]) -> Result<()> {
    let [cgroup, root, volume, layers, uid] = words else {
        bail!("--container takes CGROUP ROOT VOLUME LAYERS UID");
    };
    act::container::enter(&act::container::Plan {
        cgroup: cgroup.as_ref(),
        root: root.as_ref(),
        volume: volume.as_ref(),
        layers: layers.as_ref(),
        uid: uid.parse().context("a uid")?,
    })
}

fn run_script(seconds: u32) -> ExitCode {
    let mut text = String::new();
    let done = std::io::stdin()
        .read_to_string(&mut text)
        .map_err(anyhow::Error::from)
        .and_then(|_| Ok(serde_json::from_str::<Vec<script::Step>>(&text)?))
        .and_then(|steps| Ok(script::perform_all(&steps, seconds, std::io::stdout())?));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("act: {error:#}");
            ExitCode::from(2)
        }
    }
}
