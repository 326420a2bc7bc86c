//! What a policy file says once, and not in lists of rules. Of the texts of one policy the first that says a thing is heard;
//! the administrator's bind them all.

use toml::Spanned;

use super::{MAX_NAME, Origin, Rules};
use crate::{
    event::model::Mode,
    policy::{
        approvals,
        diagnostic::{Diagnostic, Report, quote},
        file::{Entries, PolicyFile, SessionsTable},
        limits,
        model::{Admission, Floor},
        suggest::suggestion,
    },
};

/// Takes out of a file all that is in no list.
pub(super) fn read(file: &mut PolicyFile, origin: Origin, report: &mut Report, rules: &mut Rules) {
    if origin == Origin::Task {
        rules.name = file.name.take().and_then(|name| check_name(name, report));
        rules.expect = std::mem::take(&mut file.expect);
    }
    let unknown = file.network.unknown.take();
    let unknown = unknown.and_then(|unknown| check_unknown(unknown, report));
    match origin {
        Origin::Managed => of_managed(file, unknown, report, rules),
        Origin::Task | Origin::Base => of_task(file, unknown, report, rules),
    }
}

fn of_managed(
    file: &mut PolicyFile,
    unknown: Option<Spanned<bool>>,
    report: &mut Report,
    rules: &mut Rules,
) {
    if let Some(unknown) = unknown {
        if *unknown.get_ref() {
            report.push(
                Diagnostic::error(
                    "a managed file may not say `network.unknown = \"approve\"`",
                    unknown.span(),
                )
                .help("it only takes away: write \"deny\", which no task changes"),
            );
        } else {
            let place = || report.place(unknown.span().start);
            rules.unknown_denied.get_or_insert_with(place);
        }
    }
    approvals::bounds(&file.approvals, report, &mut rules.floor.approvals);
    floor(
        file.mode.as_ref(),
        file.accept_degraded.as_ref(),
        std::mem::take(&mut file.sessions),
        report,
        &mut rules.floor,
    );
}

/// What a policy does not say itself is said by what it extends, the first first.
fn of_task(
    file: &mut PolicyFile,
    unknown: Option<Spanned<bool>>,
    report: &mut Report,
    rules: &mut Rules,
) {
    let mode = file.mode.take().map(Spanned::into_inner);
    rules.mode = rules.mode.or(mode);
    limits::task(std::mem::take(&mut file.task), report, &mut rules.task);
    limits::limits(&file.limits, report, &mut rules.limits);
    approvals::asked(&file.approvals, report, &mut rules.approvals);
    rules.unknown = rules.unknown.or(unknown.map(Spanned::into_inner));
    limits::environment(
        std::mem::take(&mut file.env),
        report,
        &mut rules.environment,
    );
    let opens = limits::opens(file.trace.opens.take(), report);
    rules.opens = rules.opens.or(opens);
}

/// Names stand in tables and in file names of reports.
fn check_name(name: Spanned<String>, report: &mut Report) -> Option<String> {
    let text = name.get_ref();
    if text.trim().is_empty()
        || text.chars().count() > MAX_NAME
        || text.chars().any(char::is_control)
    {
        report.push(
            Diagnostic::error(format!("{} is not a usable name", quote(text)), name.span()).help(
                format!("write 1 to {MAX_NAME} characters, and no control characters among them"),
            ),
        );
        return None;
    }
    Some(name.into_inner())
}

/// Whether what nobody knows needs approval; otherwise it is denied.
fn check_unknown(unknown: Spanned<String>, report: &mut Report) -> Option<Spanned<bool>> {
    match unknown.get_ref().as_str() {
        "approve" => Some(Spanned::new(unknown.span(), true)),
        "deny" => Some(Spanned::new(unknown.span(), false)),
        other => {
            report.push(
                Diagnostic::error(
                    format!("{} does not say what becomes of them", quote(other)),
                    unknown.span(),
                )
                .help(suggestion(other, &["deny", "approve"], "write one of")),
            );
            None
        }
    }
}

/// What a managed file says of sessions as such.
fn floor(
    mode: Option<&Spanned<Mode>>,
    accept_degraded: Option<&Spanned<bool>>,
    sessions: SessionsTable,
    report: &mut Report,
    floor: &mut Floor,
) {
    if let Some(mode) = mode {
        let forced = (*mode.get_ref(), report.place(mode.span().start));
        match &floor.mode {
            // Of two the stricter one holds.
            Some((Mode::Enforce, _)) => {}
            _ => floor.mode = Some(forced),
        }
    }
    if let Some(accept) = accept_degraded
        && !accept.get_ref()
    {
        floor
            .refuses_degraded
            .get_or_insert_with(|| report.place(accept.span().start));
    }
    let max_per_user = sessions.max_per_user.and_then(|max| {
        let place = report.place(max.span().start);
        match u32::try_from(*max.get_ref()) {
            Ok(number) => Some((number, place)),
            Err(_) => {
                report.push(
                    Diagnostic::error(
                        format!("{} is not a number of sessions", max.get_ref()),
                        max.span(),
                    )
                    .help("write a number from 0 on"),
                );
                None
            }
        }
    });
    let source = sessions.users.as_ref().or(sessions.groups.as_ref());
    let source = source.map(|entries| report.place(entries.span().start));
    let names = |entries: Option<Spanned<Entries>>| {
        entries.map(|entries| -> Vec<String> {
            entries
                .into_inner()
                .into_iter()
                .map(Spanned::into_inner)
                .collect()
        })
    };
    if source.is_some() || max_per_user.is_some() {
        floor.sessions.push(Admission {
            source: source.unwrap_or_default(),
            users: names(sessions.users),
            groups: names(sessions.groups),
            max_per_user,
        });
    }
}
