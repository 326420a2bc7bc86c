//! `agentwatch policy learn` and `agentwatch policy backtest`: policies and the history.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use serde_json::json;

use super::{INVALID, PolicySource, complain, context, examine, history, print, unusable};
use crate::{
    cli::events::since,
    policy::{
        diagnostic::Visible,
        learn::{Learned, Learner},
        load,
        replay::{self, Backtest, Difference},
    },
    wire::collector::Filter,
};

/// Differences that a table shows.
const SHOWN: usize = 50;

#[derive(Clone, Debug, Args)]
pub struct LearnArgs {
    /// Sessions to learn from: ids, unique beginnings of ids, or names (then the newest of that name)
    #[arg(required = true, value_name = "SESSION")]
    sessions: Vec<String>,
    /// Directory that the sessions worked in, written as `${workspace}` [default: that of their first process]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Home directory of their user, written as `${home}`
    #[arg(long, value_name = "DIR", env = "HOME", hide_env_values = true)]
    home: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct BacktestArgs {
    #[command(flatten)]
    source: PolicySource,
    /// Sessions to judge [default: all that may be seen]
    #[arg(long, value_name = "SESSION", num_args = 1.., value_delimiter = ',')]
    sessions: Vec<String>,
    /// Only what happened since: a span until now (90s, 1h, 7d) or a time (2026-11-20T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
}

pub(super) fn learn(
    args: &LearnArgs,
    runtime_dir: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    match try_learn(args, runtime_dir) {
        Ok((learned, replay, seen)) => {
            print(out, learned.text.trim_end())?;
            for sentence in &learned.left_out {
                eprintln!("left out: {sentence}");
            }
            eprintln!("learned from {seen} actions");
            for denied in &replay {
                eprintln!("still denied: {}", line(denied));
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Ok(unusable(&error)),
    }
}

fn try_learn(
    args: &LearnArgs,
    runtime_dir: &Path,
) -> anyhow::Result<(Learned, Vec<Difference>, u64)> {
    let mut learner = Learner::default();
    let mut from = args.from.clone();
    let mut ids = Vec::new();
    for session in &args.sessions {
        let mut id = None;
        walk(runtime_dir, Some(session), None, |event| {
            if from.is_none()
                && let Some(process) = &event.process
                && process.cwd.starts_with('/')
            {
                from = Some(PathBuf::from(&process.cwd));
            }
            learner.see(event);
            id.get_or_insert_with(|| event.session.id.clone());
        })?;
        ids.push(id.with_context(|| {
            format!("the history has no events of session {session}; hint: agentwatch sessions")
        })?);
    }
    let context = crate::policy::model::Context {
        cwd: super::absolute(from.unwrap_or_else(|| PathBuf::from("/")))?,
        home: match &args.home {
            Some(home) if !home.as_os_str().is_empty() => super::absolute(home.clone())?,
            _ => PathBuf::from("/nonexistent"),
        },
        ..Default::default()
    };
    let learned = learner.learn(&args.sessions, &context);
    // A learned policy is to allow what it was learned from: what it does not is said.
    let policy = load("learned policy", learned.text.as_bytes(), &context)
        .context("the learned policy cannot be used; this is a fault of agentwatch")?;
    let mut backtest = Backtest::default();
    for id in &ids {
        walk(runtime_dir, Some(id), None, |event| {
            backtest.judge(&policy, event);
        })?;
    }
    backtest.finish(&policy);
    Ok((learned, backtest.newly_denied, learner.seen()))
}

pub(super) fn backtest(
    args: &BacktestArgs,
    runtime_dir: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let asked = context(&args.source).and_then(|context| examine(&args.source, &context));
    let (file, examined) = match asked {
        Ok(asked) => asked,
        Err(error) => return Ok(unusable(&error)),
    };
    complain(&examined.report);
    let Some(policy) = examined.compiled else {
        return Ok(ExitCode::from(INVALID));
    };
    let policy = replay::bound(&policy, |path| path.canonicalize().ok());
    let mut backtest = Backtest::default();
    let all = [None];
    let named: Vec<Option<&String>> = args.sessions.iter().map(Some).collect();
    let sessions: &[Option<&String>] = if named.is_empty() { &all } else { &named };
    for session in sessions {
        let walked = walk(
            runtime_dir,
            session.map(String::as_str),
            args.since,
            |event| {
                backtest.judge(&policy, event);
            },
        );
        if let Err(error) = walked {
            return Ok(unusable(&error));
        }
    }
    let unused = backtest.finish(&policy);
    if args.source.json {
        let whole = json!({
            "file": file,
            "policy": policy.digest,
            "sessions": backtest.sessions,
            "judged": backtest.judged,
            "passed_over": backtest.passed_over,
            "newly_denied": backtest.newly_denied,
            "newly_allowed": backtest.newly_allowed,
            "unused_rules": unused,
        });
        print(out, &serde_json::to_string_pretty(&whole)?)?;
    } else {
        let mut lines = vec![format!(
            "{}: {} events of {} sessions judged, {} passed over",
            Visible(&file),
            backtest.judged,
            backtest.sessions.len(),
            backtest.passed_over
        )];
        for (title, differences) in [
            ("newly denied", &backtest.newly_denied),
            ("newly allowed", &backtest.newly_allowed),
        ] {
            lines.push(format!("{title}: {}", differences.len()));
            lines.extend(
                differences
                    .iter()
                    .take(SHOWN)
                    .map(|one| format!("  {}", line(one))),
            );
            if differences.len() > SHOWN {
                lines.push(format!(
                    "  and {} more: --json has all",
                    differences.len() - SHOWN
                ));
            }
        }
        lines.push(format!("rules that decided nothing: {}", unused.len()));
        for rule in unused.iter().take(SHOWN) {
            lines.push(format!(
                "  {} {} ({})",
                rule.id,
                Visible(&rule.text),
                Visible(&rule.source)
            ));
        }
        print(out, &lines.join("\n"))?;
    }
    Ok(if backtest.newly_denied.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(INVALID)
    })
}

fn line(one: &Difference) -> String {
    let source = if one.source.is_empty() {
        String::new()
    } else {
        format!(" ({})", Visible(&one.source))
    };
    let name = if one.name.is_empty() {
        &one.session
    } else {
        &one.name
    };
    format!(
        "{} {} × {} by {}{source}, session {}",
        one.action,
        Visible(&one.object),
        one.count,
        one.rule,
        Visible(name)
    )
}

fn walk(
    runtime_dir: &Path,
    session: Option<&str>,
    since: Option<Timestamp>,
    mut each: impl FnMut(&crate::event::model::Event),
) -> anyhow::Result<()> {
    let filter = Filter {
        session: session.map(str::to_owned),
        since,
        ..Filter::default()
    };
    history::events(runtime_dir, filter, |event| {
        each(&event);
        Ok(())
    })
}
