//! Events and their parts in words, for the table and the timeline. Everything foreign is escaped here.

use std::net::IpAddr;

use jiff::Timestamp;

use super::output::{Tone, command_line, escape};
use crate::event::model::{Event, Exit, File, Kind, Lifecycle, Net, Process, Verdict};

/// Colour of a verdict.
#[must_use]
pub fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Allowed => Tone::Good,
        Verdict::Denied => Tone::Bad,
        Verdict::Held | Verdict::Audited => Tone::Warn,
    }
}

/// RFC 3339 in UTC, with milliseconds.
#[must_use]
pub fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// Name of the executable and the process id.
#[must_use]
pub fn process_name(process: &Process) -> String {
    format!("{}[{}]", escape(basename(&process.exe)), process.pid)
}

/// What the action was done to, in a few words.
#[must_use]
pub fn what(event: &Event) -> String {
    match event.kind {
        Kind::Session => event.lifecycle.as_ref().map(lifecycle).unwrap_or_default(),
        Kind::Exec => exec(event),
        Kind::Exit => event.exit.as_ref().map(exit).unwrap_or_default(),
        Kind::Loss => event.loss.as_ref().map_or_else(String::new, |loss| {
            if loss.from == 0 && loss.to == 0 {
                format!("events lost: {}", escape(&loss.reason))
            } else {
                format!(
                    "{} events lost, {} to {}: {}",
                    loss.events,
                    loss.from,
                    loss.to,
                    escape(&loss.reason)
                )
            }
        }),
        _ => object(event),
    }
}

/// Why it ended as it did: error name and rule, as far as they apply. Rules of allowed actions are left out.
#[must_use]
pub fn why(event: &Event) -> String {
    let mut parts = Vec::new();
    if let Some(errno) = event.errno {
        parts.push(errno_name(errno));
    }
    if let Some(rule) = event
        .rule
        .as_ref()
        .filter(|_| event.verdict != Verdict::Allowed)
    {
        parts.push(escape(&rule.id).into_owned());
        if !rule.source.is_empty() {
            parts.push(format!("({})", escape(&rule.source)));
        }
    }
    parts.join(" ")
}

/// How a process ended.
#[must_use]
pub fn exit(exit: &Exit) -> String {
    let how = match (exit.code, exit.signal) {
        (_, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal)
                .map_or_else(|_| format!("signal {signal}"), |known| known.to_string());
            format!(
                "killed by {name}{}",
                if exit.core { ", core dumped" } else { "" }
            )
        }
        (Some(code), None) => format!("exit {code}"),
        (None, None) => "ended".to_owned(),
    };
    format!("{how} after {}", duration(exit.duration_ns))
}

/// A span of nanoseconds with a unit that fits.
#[must_use]
pub fn duration(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    match seconds {
        0 => format!("{}ms", nanoseconds / 1_000_000),
        1..60 => format!("{seconds}.{}s", nanoseconds / 100_000_000 % 10),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Address and port, socket path, domain: what a socket talks to.
#[must_use]
pub fn destination(net: &Net) -> String {
    let mut text = String::new();
    if let Some(path) = &net.path {
        text.push_str(&escape(path));
    }
    if let Some(addr) = &net.addr {
        let v6 = addr.parse::<IpAddr>().is_ok_and(|addr| addr.is_ipv6()) && net.port.is_some();
        text.push_str(&if v6 {
            format!("[{}]", escape(addr))
        } else {
            escape(addr).into_owned()
        });
    }
    if let Some(port) = net.port {
        text.push_str(&format!(":{port}"));
    }
    match &net.domain {
        Some(domain) if text.is_empty() => text.push_str(&escape(domain)),
        Some(domain) => text.push_str(&format!(" ({})", escape(domain))),
        None => {}
    }
    if text.is_empty() {
        text.push_str(&format!("{} socket", escape(&net.family)));
    }
    text
}

/// The error's name in errno(3), or its number.
#[must_use]
pub fn errno_name(errno: i32) -> String {
    let name = nix::errno::Errno::from_raw(errno.saturating_abs());
    if name == nix::errno::Errno::UnknownErrno {
        format!("errno {errno}")
    } else {
        format!("{name:?}")
    }
}

/// What follows the last slash.
#[must_use]
pub fn basename(path: &str) -> &str {
    path.rsplit('/')
        .find(|part| !part.is_empty())
        .unwrap_or(path)
}

fn exec(event: &Event) -> String {
    let argv = event
        .process
        .as_ref()
        .map(|process| process.argv.as_slice())
        .unwrap_or_default();
    let file = event.file.as_ref().filter(|file| !file.path.is_empty());
    match (file, argv) {
        // A refused exec: the arguments are still those of the image that asked for it.
        (Some(file), _) if event.verdict == Verdict::Denied || event.errno.is_some() => path(file),
        (_, [_, ..]) => command_line(argv),
        (Some(file), []) => path(file),
        (None, []) => event
            .process
            .as_ref()
            .map(|process| escape(&process.exe).into_owned())
            .unwrap_or_default(),
    }
}

fn object(event: &Event) -> String {
    if let Some(file) = &event.file {
        let mut text = path(file);
        if let Some(target) = &event.target {
            text.push_str(" → ");
            text.push_str(&path(target));
        }
        if !file.access.is_empty() {
            text.push_str(&format!(" ({})", escape(&file.access.join(","))));
        }
        return text;
    }
    event.net.as_ref().map(destination).unwrap_or_default()
}

fn path(file: &File) -> String {
    format!(
        "{}{}",
        if file.path_truncated { "…" } else { "" },
        escape(&file.path)
    )
}

fn lifecycle(lifecycle: &Lifecycle) -> String {
    match lifecycle {
        Lifecycle::Started {
            coverage,
            missing,
            command,
            cgroup,
            ..
        } => {
            let subject = if command.is_empty() {
                escape(cgroup).into_owned()
            } else {
                command_line(command)
            };
            let missing = if missing.is_empty() {
                String::new()
            } else {
                format!(" (missing: {})", escape(&missing.join("; ")))
            };
            format!("started, {}{missing}: {subject}", coverage.name())
        }
        Lifecycle::Resumed { coverage } => format!("resumed, {}", coverage.name()),
        Lifecycle::Reloaded {
            policy,
            mode,
            coverage,
            uid,
            ..
        } => format!(
            "reloaded by user {uid}: {} in {} mode, {}",
            escape(policy.get(..19).unwrap_or(policy)),
            mode.name(),
            coverage.name()
        ),
        Lifecycle::MountsChanged {
            mounted,
            unmounted,
            coverage,
        } => {
            let list = |what, points: &[String]| match points {
                [] => String::new(),
                points => format!(", {what} {}", escape(&points.join(", "))),
            };
            format!(
                "mounts of the host changed{}{}; {}",
                list("mounted", mounted),
                list("unmounted", unmounted),
                coverage.name()
            )
        }
        Lifecycle::Ended {
            reason,
            exit_code,
            counts,
        } => {
            let code = exit_code
                .map(|code| format!(" with {code}"))
                .unwrap_or_default();
            format!(
                "ended: {}{code}; {} actions, {} lost",
                escape(reason),
                counts.made,
                counts.lost
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_that_fits() {
        for (nanoseconds, text) in [
            (0, "0ms"),
            (999_999_999, "999ms"),
            (1_250_000_000, "1.2s"),
            (61_000_000_000, "1m01s"),
            (3_660_000_000_000, "1h01m"),
            (90_000_000_000_000, "1d01h"),
        ] {
            assert_eq!(duration(nanoseconds), text);
        }
    }

    #[test]
    fn destinations_name_what_is_known() {
        let net = |addr: &str, port, domain: Option<&str>| Net {
            family: "inet".into(),
            addr: (!addr.is_empty()).then(|| addr.to_owned()),
            port,
            domain: domain.map(str::to_owned),
            ..Net::default()
        };
        assert_eq!(
            destination(&net("192.0.2.7", Some(443), Some("example.org"))),
            "192.0.2.7:443 (example.org)"
        );
        assert_eq!(
            destination(&net("2001:db8::1", Some(443), None)),
            "[2001:db8::1]:443"
        );
        assert_eq!(
            destination(&net("", None, Some("example.org"))),
            "example.org"
        );
        assert_eq!(destination(&net("", None, None)), "inet socket");
    }

    #[test]
    fn errors_have_their_names() {
        assert_eq!(errno_name(13), "EACCES");
        assert_eq!(errno_name(-1), "EPERM");
        assert_eq!(errno_name(99_999), "errno 99999");
        assert_eq!(errno_name(i32::MIN), format!("errno {}", i32::MIN));
    }
}
