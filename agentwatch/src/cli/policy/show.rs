//! `agentwatch policy show` and `agentwatch policy presets`: what stands in a policy, word by word.

use std::{io::Write, path::Path, process::ExitCode};

use clap::Args;
use serde_json::json;

use super::{history, print, unusable};
use crate::policy::{
    diagnostic::{Visible, quote},
    preset,
};

#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// Session id, a unique beginning of one, or a name (then the newest of that name)
    session: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct PresetsArgs {
    /// Print the text of this preset
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

pub(super) fn show(
    args: &ShowArgs,
    runtime_dir: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let (session, policy) = match history::policy(runtime_dir, &args.session) {
        Ok(found) => found,
        Err(error) => return Ok(unusable(&error)),
    };
    if args.json {
        let whole = json!({ "session": session, "policy": policy });
        print(out, &serde_json::to_string_pretty(&whole)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = vec![
        format!("session {} ({})", session.id, Visible(&session.name)),
        format!("policy  {}", session.policy),
        format!("mode    {}", session.mode.name()),
    ];
    let task = &policy.task;
    for (name, text) in [
        ("goal", &task.goal),
        ("owner", &task.owner),
        ("ticket", &task.ticket),
    ] {
        if let Some(text) = text {
            lines.push(format!("{name:<7} {}", Visible(text)));
        }
    }
    for command in &task.acceptance {
        lines.push(format!("accept  {}", Visible(command)));
    }
    let limits = policy.limits;
    for (name, value) in [
        ("pids", limits.pids.map(|pids| pids.to_string())),
        (
            "memory",
            limits.memory.map(|bytes| format!("{bytes} bytes")),
        ),
        (
            "cpu",
            limits
                .cpu
                .map(|thousandths| format!("{} processors", f64::from(thousandths) / 1000.0)),
        ),
        (
            "time",
            limits.wall_time.map(|seconds| format!("{seconds} s")),
        ),
    ] {
        if let Some(value) = value {
            lines.push(format!("{name:<7} {value}"));
        }
    }
    for rule in &policy.rules {
        lines.push(format!(
            "  {:<8} {:<20} {}  {}",
            rule.layer.name(),
            rule.id,
            Visible(&rule.text),
            Visible(&rule.source)
        ));
    }
    if policy.left_out > 0 {
        lines.push(format!("  and {} more", policy.left_out));
    }
    print(out, &lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn presets(args: &PresetsArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let Some(name) = &args.name else {
        for preset in preset::PRESETS {
            print(out, &format!("{:<8} {}", preset.name, preset.about()))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let name = name.strip_prefix("preset:").unwrap_or(name);
    match preset::find(name) {
        Some(preset) => {
            print(out, preset.text.trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        None => Ok(unusable(&anyhow::anyhow!(
            "there is no preset {}; hint: `agentwatch policy presets` lists them",
            quote(name)
        ))),
    }
}
