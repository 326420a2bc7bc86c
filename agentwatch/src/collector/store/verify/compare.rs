//! What differs in a segment that is not the one that was signed, down to a few rows.

use std::{collections::BTreeMap, ops::RangeInclusive, path::Path};

use super::{
    super::{
        StoreError,
        columns::{ALL, C, Row as _},
        hash::Groups,
        segment::Segment,
    },
    Check,
};
use crate::{
    collector::chain::{self, Manifest},
    event::account::Numbers,
};

/// Events that a finding names one by one.
const NAMED: usize = 10;

impl Check<'_> {
    /// Says what differs in a segment that is not what it was.
    pub(super) fn compare(&mut self, manifest: &Manifest, path: &Path) {
        let no = manifest.segment;
        let before = self.report.findings.len();
        if let Err(error) = self.compare_rows(manifest, path) {
            self.find(
                "unreadable",
                no,
                format!("the file of segment {no}, events {} to {}, was changed and cannot be read: {error}", manifest.first_no, manifest.last_no),
            );
        }
        if self.report.findings.len() == before {
            self.find(
                "changed",
                no,
                format!("the file of segment {no} is not the one that was signed, though all its events are"),
            );
        }
    }

    fn compare_rows(&mut self, manifest: &Manifest, path: &Path) -> Result<(), StoreError> {
        let (named, groups) = read_rows(path)?;
        let held = held(manifest, &named);
        let (disordered, out_of_order) = disordered(&named);
        let no = manifest.segment;
        for (what, events, one, many, runs) in [
            (
                "removed",
                held.missing,
                "event was removed of",
                "events were removed of",
                listed(held.gone.iter().cloned()),
            ),
            (
                "added",
                held.strangers,
                "event was added to",
                "events were added to",
                listed(held.strange.runs()),
            ),
            (
                "reordered",
                out_of_order,
                "event is out of its order in",
                "events are out of their order in",
                listed(disordered.runs()),
            ),
        ] {
            if events > 0 {
                let said = if events == 1 { one } else { many };
                self.find(what, no, format!("{events} {said} segment {no}: {runs}"));
            }
        }
        // With all rows in their places, the group hashes say where one was changed.
        if held.missing == 0 && held.strangers == 0 && manifest.v == chain::VERSION {
            self.compare_groups(manifest, &named, &groups.finish());
        }
        Ok(())
    }

    /// Says which groups of rows are not what they were.
    fn compare_groups(&mut self, manifest: &Manifest, named: &[Named], found: &str) {
        let no = manifest.segment;
        let (was, is) = (manifest.groups.as_bytes(), found.as_bytes());
        for (index, (was, is)) in was.chunks(64).zip(is.chunks(64)).enumerate() {
            if was == is {
                continue;
            }
            let first = index.saturating_mul(manifest.group_rows.max(1));
            let of: Vec<&Named> = named.iter().skip(first).take(manifest.group_rows).collect();
            let mut numbers = Numbers::default();
            for row in &of {
                numbers.insert(row.no.cast_unsigned()..=row.no.cast_unsigned());
            }
            self.find(
                "changed",
                no,
                format!(
                    "rows {first} to {} of segment {no} were changed: one or more of events {} ({})",
                    first.saturating_add(of.len().saturating_sub(1)),
                    listed(numbers.runs()),
                    sessions(&of)
                ),
            );
        }
    }
}

/// What names each row of a segment, and the hashes of their groups.
fn read_rows(path: &Path) -> Result<(Vec<Named>, Groups), StoreError> {
    let segment = Segment::open(path)?;
    let rows = segment.rows();
    let mut groups = Groups::default();
    let mut named: Vec<Named> = Vec::new();
    let mut from = 0;
    while from < rows {
        let to = rows.min(from + 8192);
        let chunk = segment.read_range(ALL, from, to)?;
        for index in 0..chunk.rows {
            let row = chunk.row(index);
            groups.add(&row);
            named.push(Named {
                no: row.number(C::No).unwrap_or_default(),
                ktime: row.number(C::Ktime).unwrap_or_default(),
                seq: row.number(C::Seq).unwrap_or_default(),
                session: row.text(C::SessionId).unwrap_or_default().to_owned(),
                boot: row.text(C::BootId).unwrap_or_default().to_owned(),
                allowed: row.text(C::Verdict) == Some("allowed"),
            });
        }
        from = to;
    }
    Ok((named, groups))
}

/// The numbers of rows, beside those that their segment had.
struct Held {
    gone: Vec<RangeInclusive<u64>>,
    /// How many are gone.
    missing: u64,
    /// Numbers that do not belong, or are there twice.
    strange: Numbers,
    /// How many rows have them.
    strangers: u64,
}

fn held(manifest: &Manifest, named: &[Named]) -> Held {
    // Whatever numbers somebody has written: they are counted in runs. The first event of a history is number 1.
    let (first, last) = (manifest.first_no.max(1), manifest.last_no);
    let (mut held, mut strange, mut strangers) = (Numbers::default(), Numbers::default(), 0);
    for row in named {
        let number = row.no.cast_unsigned();
        let belongs = (first..=last).contains(&row.no);
        if !belongs || held.insert(number..=number) == 0 {
            strange.insert(number..=number);
            strangers += 1;
        }
    }
    let gone = if first <= last {
        held.gaps(first.cast_unsigned(), last.cast_unsigned())
    } else {
        Vec::new()
    };
    let missing = gone
        .iter()
        .map(|run| (run.end() - run.start()).saturating_add(1))
        .fold(0, u64::saturating_add);
    Held {
        gone,
        missing,
        strange,
        strangers,
    }
}

/// The numbers of rows that come too late in their session, and how many rows that are.
fn disordered(named: &[Named]) -> (Numbers, u64) {
    let (mut disordered, mut out_of_order) = (Numbers::default(), 0);
    for pair in named.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        if before.allowed == after.allowed
            && before.session == after.session
            && before.boot == after.boot
            && (before.ktime, before.no) > (after.ktime, after.no)
        {
            let number = after.no.cast_unsigned();
            disordered.insert(number..=number);
            out_of_order += 1;
        }
    }
    (disordered, out_of_order)
}

/// The sessions of some rows, and which of their numbers.
fn sessions(rows: &[&Named]) -> String {
    let sessions: BTreeMap<&str, (i64, i64)> = rows.iter().fold(BTreeMap::new(), |mut all, row| {
        let range = all
            .entry(row.session.as_str())
            .or_insert((row.seq, row.seq));
        *range = (range.0.min(row.seq), range.1.max(row.seq));
        all
    });
    let sessions: Vec<String> = sessions
        .into_iter()
        .map(|(session, (first, last))| format!("session {session}, numbers {first} to {last}"))
        .collect();
    sessions.join("; ")
}

struct Named {
    no: i64,
    ktime: i64,
    seq: i64,
    session: String,
    boot: String,
    allowed: bool,
}

/// Runs of numbers, the first few of them.
fn listed(runs: impl Iterator<Item = RangeInclusive<u64>>) -> String {
    let mut text: Vec<String> = Vec::new();
    let mut more = 0;
    for run in runs {
        let (first, last) = run.into_inner();
        if text.len() == NAMED {
            more += 1;
        } else if first == last {
            text.push(first.to_string());
        } else {
            text.push(format!("{first} to {last}"));
        }
    }
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    text.join(", ")
}
