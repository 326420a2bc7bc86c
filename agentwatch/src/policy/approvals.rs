//! What a policy says of approvals as such: how long an action waits, and how many may. Texts to values only; whoever holds the
//! actions applies them.

use std::time::Duration;

use toml::Spanned;

use super::{
    diagnostic::{Diagnostic, Report, quote},
    file::ApprovalsTable,
    model::{ApprovalBounds, Approvals, OnTimeout},
    suggest::suggestion,
};

/// The longest time that an action may wait, in seconds: a week.
pub const LONGEST: u64 = 7 * 24 * 3600;

/// What a policy and its bases say; what none of them says is the default of [`Approvals`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub timeout: Option<u64>,
    pub on_timeout: Option<OnTimeout>,
    pub max_pending: Option<u32>,
    pub max_per_hour: Option<u32>,
}

/// Reads `[approvals]` of a task: what is there already stays.
pub fn asked(table: &ApprovalsTable, report: &mut Report, asked: &mut Asked) {
    let read = Read::of(table, report);
    asked.timeout = asked.timeout.or(read.timeout);
    asked.on_timeout = asked.on_timeout.or(read.on_timeout);
    asked.max_pending = asked.max_pending.or(read.max_pending);
    asked.max_per_hour = asked.max_per_hour.or(read.max_per_hour);
}

/// Reads `[approvals]` of a managed file: of two the stricter one holds.
pub fn bounds(table: &ApprovalsTable, report: &mut Report, bounds: &mut ApprovalBounds) {
    let read = Read::of(table, report);
    tighten(&mut bounds.timeout, read.timeout, &table.timeout, report);
    let pending = &table.max_pending;
    tighten(&mut bounds.max_pending, read.max_pending, pending, report);
    let per_hour = &table.max_per_hour;
    tighten(
        &mut bounds.max_per_hour,
        read.max_per_hour,
        per_hour,
        report,
    );
    let Some(written) = &table.on_timeout else {
        return;
    };
    match read.on_timeout {
        Some(OnTimeout::Deny) => {
            let place = report.place(written.span().start);
            bounds.denies_on_timeout.get_or_insert(place);
        }
        Some(OnTimeout::Allow) => report.push(
            Diagnostic::error(
                "a managed file may not say `approvals.on_timeout = \"allow\"`",
                written.span(),
            )
            .help("it only takes away: write \"deny\", which no task changes"),
        ),
        None => {}
    }
}

fn tighten<N: Copy + Ord, T>(
    bound: &mut Option<(N, String)>,
    read: Option<N>,
    written: &Option<Spanned<T>>,
    report: &Report,
) {
    if let (Some(number), Some(written)) = (read, written)
        && bound.as_ref().is_none_or(|(bound, _)| number < *bound)
    {
        *bound = Some((number, report.place(written.span().start)));
    }
}

/// What holds, and what of the task's wishes does not, a sentence each.
pub fn bounded(asked: &Asked, bounds: &ApprovalBounds) -> (Approvals, Vec<String>) {
    let default = Approvals::default();
    let mut changed = Vec::new();
    let mut at_most = |key: &str, asked: Option<u64>, default: u64, bound: Option<(u64, &str)>| {
        let wanted = asked.unwrap_or(default);
        let Some((most, source)) = bound.filter(|(most, _)| *most < wanted) else {
            return wanted;
        };
        if asked.is_some() {
            let seconds = if key == "timeout" { " s" } else { "" };
            changed.push(format!(
                "`approvals.{key}` of {wanted}{seconds} changes nothing: {source} makes it {most}{seconds} at most"
            ));
        }
        most
    };
    let short = |bound: &Option<(u32, String)>| -> Option<(u64, String)> {
        bound
            .as_ref()
            .map(|(number, source)| (u64::from(*number), source.clone()))
    };
    let (pending, per_hour) = (short(&bounds.max_pending), short(&bounds.max_per_hour));
    fn borrowed(bound: &Option<(u64, String)>) -> Option<(u64, &str)> {
        bound
            .as_ref()
            .map(|(number, source)| (*number, source.as_str()))
    }
    let timeout = at_most(
        "timeout",
        asked.timeout,
        default.timeout,
        borrowed(&bounds.timeout),
    );
    // Each bound was a `u32`, and so was what was asked.
    let max_pending = at_most(
        "max_pending",
        asked.max_pending.map(u64::from),
        default.max_pending.into(),
        borrowed(&pending),
    ) as u32;
    let max_per_hour = at_most(
        "max_per_hour",
        asked.max_per_hour.map(u64::from),
        default.max_per_hour.into(),
        borrowed(&per_hour),
    ) as u32;
    let mut on_timeout = asked.on_timeout.unwrap_or_default();
    if let Some(source) = &bounds.denies_on_timeout
        && on_timeout == OnTimeout::Allow
    {
        on_timeout = OnTimeout::Deny;
        changed.push(format!(
            "`approvals.on_timeout` changes nothing: {source} makes it `deny`"
        ));
    }
    let approvals = Approvals {
        timeout,
        on_timeout,
        max_pending,
        max_per_hour,
    };
    (approvals, changed)
}

/// One table, read.
struct Read {
    timeout: Option<u64>,
    on_timeout: Option<OnTimeout>,
    max_pending: Option<u32>,
    max_per_hour: Option<u32>,
}

impl Read {
    fn of(table: &ApprovalsTable, report: &mut Report) -> Self {
        Self {
            timeout: table
                .timeout
                .as_ref()
                .and_then(|text| timeout(text, report)),
            on_timeout: table
                .on_timeout
                .as_ref()
                .and_then(|text| on_timeout(text, report)),
            max_pending: table
                .max_pending
                .as_ref()
                .and_then(|number| count(number, report)),
            max_per_hour: table
                .max_per_hour
                .as_ref()
                .and_then(|number| count(number, report)),
        }
    }
}

fn timeout(text: &Spanned<String>, report: &mut Report) -> Option<u64> {
    let time = text
        .get_ref()
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|time| Duration::try_from(time).ok())
        .map(|time| time.as_secs())
        .filter(|seconds| (1..=LONGEST).contains(seconds));
    if time.is_none() {
        report.push(
            Diagnostic::error(
                format!("{} is not a time to wait", quote(text.get_ref())),
                text.span(),
            )
            .help("write a time from a second to seven days, such as `90s`, `15m` or `8h`"),
        );
    }
    time
}

fn on_timeout(text: &Spanned<String>, report: &mut Report) -> Option<OnTimeout> {
    match text.get_ref().as_str() {
        "deny" => Some(OnTimeout::Deny),
        "allow" => Some(OnTimeout::Allow),
        other => {
            report.push(
                Diagnostic::error(
                    format!("{} does not say what becomes of the action", quote(other)),
                    text.span(),
                )
                .help(suggestion(other, &["deny", "allow"], "write one of")),
            );
            None
        }
    }
}

fn count(number: &Spanned<i64>, report: &mut Report) -> Option<u32> {
    match u32::try_from(*number.get_ref()) {
        Ok(count @ 1..) => Some(count),
        _ => {
            report.push(
                Diagnostic::error(
                    format!("{} is not a number of requests", number.get_ref()),
                    number.span(),
                )
                .help("write a number from 1 on; where nothing is to be approved, leave `approve` rules out"),
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Examined, Sources, examine_all, model::Context, sources::Managed};

    fn examined(text: &str, managed: &str) -> Examined {
        let context = Context {
            cwd: "/w".into(),
            home: "/home/u".into(),
            ..Context::default()
        };
        let managed = [Managed {
            path: "/m.toml".into(),
            text: managed.to_owned(),
        }];
        examine_all(&Sources {
            managed: &managed,
            ..Sources::alone("p.toml", text.as_bytes(), &context)
        })
    }

    #[test]
    fn approvals_are_read_and_bounded() {
        let text = "[files]\nread = [\"/usr\"]\n[approvals]\ntimeout = \"1h\"\non_timeout = \"allow\"\nmax_pending = 3\n";
        let own = examined(text, "").compiled.unwrap().approvals;
        let expected = Approvals {
            timeout: 3600,
            on_timeout: OnTimeout::Allow,
            max_pending: 3,
            ..Approvals::default()
        };
        assert_eq!(own, expected);
        let bounded = examined(
            text,
            "[approvals]\ntimeout = \"5m\"\non_timeout = \"deny\"\nmax_pending = 8\nmax_per_hour = 10\n",
        )
        .compiled
        .unwrap();
        let expected = Approvals {
            timeout: 300,
            on_timeout: OnTimeout::Deny,
            max_pending: 3,
            max_per_hour: 10,
        };
        assert_eq!(bounded.approvals, expected);
        let warnings = bounded.warnings.join("\n");
        for expected in [
            "`approvals.timeout` of 3600 s changes nothing: /m.toml:2 makes it 300 s at most",
            "`approvals.on_timeout` changes nothing: /m.toml:3 makes it `deny`",
        ] {
            assert!(
                warnings.contains(expected),
                "{expected} is missing in\n{warnings}"
            );
        }
        // What a task did not ask for is bounded without a word.
        assert_eq!(bounded.warnings.len(), 2, "{warnings}");
        let none = examined("[files]\nread = [\"/usr\"]\n", "");
        assert_eq!(none.compiled.unwrap().approvals, Approvals::default());
    }

    #[test]
    fn what_is_no_approval_says_why() {
        for (text, managed, expected) in [
            ("timeout = \"soon\"", "", "is not a time to wait"),
            ("timeout = \"0s\"", "", "is not a time to wait"),
            ("timeout = \"8d\"", "", "is not a time to wait"),
            ("timeout = \"200h\"", "", "is not a time to wait"),
            ("on_timeout = \"alow\"", "", "did you mean `allow`?"),
            ("max_pending = 0", "", "is not a number of requests"),
            ("max_per_hour = -1", "", "is not a number of requests"),
            ("", "on_timeout = \"allow\"", "it only takes away"),
            ("", "timeot = \"1s\"", "did you mean `timeout`?"),
        ] {
            let examined = examined(
                &format!("[approvals]\n{text}\n"),
                &format!("[approvals]\n{managed}\n"),
            );
            assert!(examined.compiled.is_none(), "{text}");
            let shown = examined.report.render(false);
            assert!(shown.contains(expected), "{text}: {shown}");
        }
    }
}
