//! `agentwatch policy fmt`.

use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;

use super::{INVALID, complain, print, read_policy};
use crate::{
    event::model::Layer,
    policy::{self, Report, diagnostic::Visible, file::MAX_TEXT},
};

#[derive(Clone, Debug, Args)]
pub struct FormatArgs {
    /// Policy files, which are rewritten; `-` reads standard input and prints
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Change nothing: name the files that have another layout, and exit with code 1 if there is one
    #[arg(long)]
    check: bool,
}

pub fn run(args: &FormatArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut good = true;
    for file in &args.files {
        let (name, bytes) = read_policy(file)?;
        anyhow::ensure!(
            bytes.len() <= MAX_TEXT,
            "{} is longer than {MAX_TEXT} bytes",
            Visible(&name)
        );
        let text = String::from_utf8(bytes)
            .with_context(|| std::format!("{} is not UTF-8", Visible(&name)))?;
        let mut report = Report::new(&name, &text);
        policy::file::read(&text, Layer::Task, 0, &mut report);
        let Ok(formatted) = policy::format::format(&text) else {
            complain(&report);
            good = false;
            continue;
        };
        let is_same = formatted == text;
        if args.check {
            good &= is_same;
            if !is_same {
                print(out, &name)?;
            }
        } else if file.as_os_str() == "-" {
            out.write_all(formatted.as_bytes())?;
        } else if !is_same {
            fs::write(file, formatted).with_context(|| std::format!("write {}", Visible(&name)))?;
        }
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(INVALID)
    })
}
