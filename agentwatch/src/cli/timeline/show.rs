//! The timeline for people: what was refused first, then the tree.

use std::collections::BTreeMap;

use anyhow::Result;
use jiff::Timestamp;

use super::gather::{Exec, FileUse, Node, Refusal, Timeline};
use crate::{
    cli::{
        output::{Output, Style, Tone, command_line, escape},
        render, sessions,
    },
    event::model::{Coverage, Kind, Verdict},
};

/// Directories of the system: what is read there is counted per directory, since it says little one by one.
const SYSTEM: [&str; 11] = [
    "/usr/lib",
    "/usr/lib64",
    "/usr/share",
    "/usr/bin",
    "/usr/include",
    "/usr/local",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/dev",
];
/// More files than this in one directory are shown as their number.
const LISTED: usize = 8;
/// Deeper processes are not indented further, so that a long chain of forks stays readable.
const DEEPEST: usize = 24;

/// Writes the whole timeline.
pub(super) fn show(out: &mut Output, timeline: &Timeline) -> Result<()> {
    head(out, timeline)?;
    if !timeline.refusals.is_empty() {
        out.line("")?;
        out.line(&out.style.paint(Tone::Title, "not allowed"))?;
        for refusal in &timeline.refusals {
            let line = format!(
                "  {}  {}",
                render::time(refusal.time),
                refusal_line(refusal, true, out.style)
            );
            out.line(&line)?;
        }
    }
    if !timeline.losses.is_empty() {
        out.line("")?;
        out.line(&out.style.paint(Tone::Bad, "missing from the record"))?;
        for lost in &timeline.losses {
            let range = format!(
                "{} events ({} to {})",
                lost.loss.events, lost.loss.from, lost.loss.to
            );
            out.line(&format!(
                "  {}  {range}: {}",
                render::time(lost.time),
                escape(&lost.loss.reason)
            ))?;
        }
    }
    if !timeline.processes.is_empty() {
        out.line("")?;
        out.line(&out.style.paint(Tone::Title, "processes"))?;
    }
    for node in &timeline.processes {
        process(out, timeline, node)?;
    }
    Ok(())
}

fn head(out: &mut Output, timeline: &Timeline) -> Result<()> {
    let (session, style) = (&timeline.session, out.style);
    let coverage = match session.coverage {
        Coverage::Enforcing => Tone::Good,
        Coverage::Degraded => Tone::Bad,
        Coverage::Off => Tone::Warn,
    };
    out.line(&format!(
        "{} {}  {}, {}",
        style.paint(Tone::Title, &escape(&session.name)),
        escape(&session.id),
        session.mode.name(),
        style.paint(coverage, session.coverage.name())
    ))?;
    if !session.command.is_empty() {
        out.line(&format!("  command  {}", command_line(&session.command)))?;
    }
    out.line(&format!("  policy   {}", escape(&session.policy)))?;
    out.line(&format!(
        "  uid {}, started {}, {}, lasted {}",
        sessions::uid(session.uid),
        render::time(session.started),
        sessions::state(session),
        sessions::lasted(session, Timestamp::now())
    ))?;
    let folded = timeline.counts.map(|counts| {
        format!(
            "; the kernel saw {} actions: {} delivered, {} folded, {} lost",
            counts.made, counts.delivered, counts.folded, counts.lost
        )
    });
    out.line(&format!(
        "  {} events, {} denied{}",
        session.events,
        session.denied,
        folded.unwrap_or_default()
    ))?;
    for missing in &session.missing {
        out.line(&format!(
            "  {} {}",
            style.paint(Tone::Bad, "not enforced:"),
            escape(missing)
        ))?;
    }
    Ok(())
}

fn process(out: &mut Output, timeline: &Timeline, node: &Node) -> Result<()> {
    let style = out.style;
    let indent = "  ".repeat(node.depth.min(DEEPEST) + 1);
    let deep = if node.depth > DEEPEST {
        format!("(depth {}) ", node.depth)
    } else {
        String::new()
    };
    let mut programs = node.execs.iter();
    // A process that executed nothing itself is a fork of its parent; one that did is named by its first program.
    let (name, argv) = match programs.clone().find(|exec| exec.errno.is_none()) {
        Some(first) if node.execs.first().is_some_and(|exec| exec.errno.is_none()) => {
            programs.next();
            (&first.exe, &first.argv)
        }
        _ => (&node.exe, &node.argv),
    };
    let title = format!("{}[{}]", escape(render::basename(name)), node.pid);
    let arguments = if argv.is_empty() {
        escape(name).into_owned()
    } else {
        command_line(argv)
    };
    let end = node.exit.as_ref().map(|exit| {
        let good = exit.signal.is_none() && exit.code.unwrap_or(0) == 0;
        format!(
            "  {}",
            style.paint(
                if good { Tone::Dim } else { Tone::Warn },
                &render::exit(exit)
            )
        )
    });
    out.line(&format!(
        "{indent}{deep}{}  {arguments}{}",
        style.paint(Tone::Title, &title),
        end.unwrap_or_default()
    ))?;

    let indent = format!("{indent}    ");
    for exec in programs {
        out.line(&format!("{indent}exec     {}", exec_line(exec)))?;
    }
    for refusal in node
        .refusals
        .iter()
        .filter_map(|index| timeline.refusals.get(*index))
    {
        out.line(&format!("{indent}{}", refusal_line(refusal, false, style)))?;
    }
    for line in files(&node.files, true) {
        out.line(&format!("{indent}write    {line}"))?;
    }
    for destination in &node.destinations {
        let verb = match destination.kind {
            Kind::Bind => "bind",
            Kind::Dns => "resolve",
            _ => "connect",
        };
        // Escaped where it was made.
        let line = format!(
            "{}{}",
            destination.destination,
            counted(destination.count, destination.failed)
        );
        out.line(&format!("{indent}{verb:<8} {line}"))?;
    }
    for other in &node.others {
        let line = format!("{indent}{:<8} {}", other.kind.name(), other.what);
        out.line(line.trim_end())?;
    }
    for line in files(&node.files, false) {
        out.line(&format!(
            "{indent}{}",
            style.paint(Tone::Dim, &format!("read     {line}"))
        ))?;
    }
    Ok(())
}

fn exec_line(exec: &Exec) -> String {
    let failed = exec
        .errno
        .map(|errno| format!(" ({})", render::errno_name(errno)))
        .unwrap_or_default();
    if exec.argv.is_empty() || exec.errno.is_some() {
        format!("{}{failed}", escape(&exec.exe))
    } else {
        format!("{}: {}", escape(&exec.exe), command_line(&exec.argv))
    }
}

fn refusal_line(refusal: &Refusal, with_process: bool, style: Style) -> String {
    let verdict = match refusal.verdict {
        Verdict::Denied => "DENIED",
        Verdict::Held => "HELD",
        Verdict::Audited => "AUDITED",
        Verdict::Allowed => "ALLOWED",
    };
    let mut line = style.paint(render::tone(refusal.verdict), &format!("{verdict:<8}"));
    if let Some(process) = refusal.process.as_ref().filter(|_| with_process) {
        line.push_str(&format!(" {process}"));
    }
    // `process` and `what` were escaped where they were made.
    line.push_str(format!(" {} {}", refusal.kind.name(), refusal.what).trim_end());
    if let Some(errno) = refusal.errno {
        line.push_str(&format!(" {}", render::errno_name(errno)));
    }
    if let Some(rule) = &refusal.rule {
        line.push_str(&format!("  {} [{}]", escape(&rule.id), rule.layer.name()));
        if !rule.source.is_empty() {
            line.push_str(&format!(" {}", escape(&rule.source)));
        }
    }
    line.push_str(&counted(refusal.count, 0));
    line
}

/// One line a file, or one a directory where there are many or where the directory is the system's.
fn files(files: &[FileUse], writes: bool) -> Vec<String> {
    let mut directories: BTreeMap<&str, Vec<&FileUse>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.writes == writes) {
        let system = SYSTEM
            .into_iter()
            .find(|system| !writes && below(&file.path, system));
        directories
            .entry(system.unwrap_or_else(|| directory(&file.path)))
            .or_default()
            .push(file);
    }
    let mut lines = Vec::new();
    for (directory, files) in directories {
        if files.len() > LISTED || (!writes && SYSTEM.contains(&directory)) {
            let (count, failed) = files.iter().fold((0, 0), |(count, failed), file| {
                (count + file.count, failed + file.failed)
            });
            let noun = if files.len() == 1 { "file" } else { "files" };
            lines.push(format!(
                "{}/: {} {noun}{}",
                escape(directory.trim_end_matches('/')),
                files.len(),
                counted(count, failed)
            ));
        } else {
            lines.extend(files.into_iter().map(file_line));
        }
    }
    lines
}

fn file_line(file: &FileUse) -> String {
    let mut line = escape(&file.path).into_owned();
    if let Some(target) = &file.target {
        line.push_str(&format!(" → {}", escape(target)));
    }
    let kinds: Vec<&str> = file
        .kinds
        .iter()
        .filter(|kind| **kind != Kind::Open)
        .map(|kind| kind.name())
        .collect();
    if !kinds.is_empty() {
        line.push_str(&format!(" ({})", kinds.join(", ")));
    }
    line + &counted(file.count, file.failed)
}

fn counted(count: u64, failed: u64) -> String {
    let mut text = String::new();
    if count > 1 {
        text.push_str(&format!(" ×{count}"));
    }
    if failed > 0 {
        text.push_str(
            if failed >= count {
                ", failed".to_owned()
            } else {
                format!(", {failed} failed")
            }
            .as_str(),
        );
    }
    text
}

fn directory(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(slash) => path.get(..slash).unwrap_or(path),
    }
}

fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(path: &str, writes: bool) -> FileUse {
        FileUse {
            path: path.to_owned(),
            writes,
            count: 2,
            ..FileUse::default()
        }
    }

    #[test]
    fn reads_of_the_system_are_counted_and_others_listed() {
        let mut all = vec![
            used("/usr/lib/a.so", false),
            used("/usr/lib/x/b.so", false),
            used("/w/main.rs", false),
            used("/w/out", true),
        ];
        assert_eq!(
            files(&all, false),
            ["/usr/lib/: 2 files ×4", "/w/main.rs ×2"]
        );
        assert_eq!(files(&all, true), ["/w/out ×2"]);
        all.extend((0..20).map(|number| used(&format!("/w/t/{number}"), true)));
        assert_eq!(files(&all, true), ["/w/out ×2", "/w/t/: 20 files ×40"]);
    }

    #[test]
    fn a_neighbour_of_a_system_directory_is_not_below_it() {
        assert!(below("/lib/x", "/lib"));
        assert!(!below("/library/x", "/lib"));
    }
}
