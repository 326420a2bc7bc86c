//! What differs in a segment that is not the one that was signed, down to a few rows.

use std::{collections::BTreeMap, path::Path};

use super::{
    super::{
        StoreError,
        columns::{ALL, C, Row as _},
        hash::Groups,
        segment::Segment,
    },
    Check,
};
use crate::collector::chain::{self, Manifest};

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
        let segment = Segment::open(path)?;
        let rows = segment.rows();
        let mut groups = Groups::default();
        let mut named: Vec<Named> = Vec::with_capacity(rows);
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
        let no = manifest.segment;
        let mut numbers: Vec<i64> = named.iter().map(|row| row.no).collect();
        numbers.sort_unstable();
        let mut gone: Vec<i64> = Vec::new();
        let mut next = manifest.first_no;
        for number in &numbers {
            gone.extend(next.max(manifest.first_no)..(*number).min(manifest.last_no + 1));
            next = next.max(number + 1);
        }
        gone.extend(next..=manifest.last_no);
        if !gone.is_empty() {
            self.find(
                "removed",
                no,
                format!(
                    "{} of segment {no}: {}",
                    count(gone.len(), "event was removed", "events were removed"),
                    listed(&gone)
                ),
            );
        }
        let strange: Vec<i64> = numbers
            .windows(2)
            .filter(|pair| pair[0] == pair[1])
            .map(|pair| pair[0])
            .chain(
                numbers
                    .iter()
                    .copied()
                    .filter(|number| !(manifest.first_no..=manifest.last_no).contains(number)),
            )
            .collect();
        if !strange.is_empty() {
            self.find(
                "added",
                no,
                format!(
                    "{} to segment {no}: {}",
                    count(strange.len(), "event was added", "events were added"),
                    listed(&strange)
                ),
            );
        }
        let disordered: Vec<i64> = named
            .windows(2)
            .filter(|pair| {
                let (first, second) = (&pair[0], &pair[1]);
                first.allowed == second.allowed
                    && first.session == second.session
                    && first.boot == second.boot
                    && (first.ktime, first.no) > (second.ktime, second.no)
            })
            .map(|pair| pair[1].no)
            .collect();
        if !disordered.is_empty() {
            self.find(
                "reordered",
                no,
                format!(
                    "{} in segment {no}: {}",
                    count(
                        disordered.len(),
                        "event is out of its order",
                        "events are out of their order"
                    ),
                    listed(&disordered)
                ),
            );
        }
        // With all rows in their places, the group hashes say where one was changed.
        if gone.is_empty() && strange.is_empty() && manifest.v == chain::VERSION {
            let found = groups.finish();
            let (was, is) = (manifest.groups.as_bytes(), found.as_bytes());
            for (index, (was, is)) in was.chunks(64).zip(is.chunks(64)).enumerate() {
                if was == is {
                    continue;
                }
                let first = index * manifest.group_rows.max(1);
                let of: Vec<&Named> = named.iter().skip(first).take(manifest.group_rows).collect();
                let numbers: Vec<i64> = of.iter().map(|row| row.no).collect();
                let sessions: BTreeMap<&str, (i64, i64)> =
                    of.iter().fold(BTreeMap::new(), |mut all, row| {
                        let range = all
                            .entry(row.session.as_str())
                            .or_insert((row.seq, row.seq));
                        *range = (range.0.min(row.seq), range.1.max(row.seq));
                        all
                    });
                let sessions: Vec<String> = sessions
                    .into_iter()
                    .map(|(session, (first, last))| {
                        format!("session {session}, numbers {first} to {last}")
                    })
                    .collect();
                self.find(
                    "changed",
                    no,
                    format!(
                        "rows {first} to {} of segment {no} were changed: one or more of events {} ({})",
                        first + of.len().saturating_sub(1),
                        listed(&numbers),
                        sessions.join("; ")
                    ),
                );
            }
        }
        Ok(())
    }
}

struct Named {
    no: i64,
    ktime: i64,
    seq: i64,
    session: String,
    boot: String,
    allowed: bool,
}

fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Numbers as ranges, the first few of them.
fn listed(numbers: &[i64]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, last)) if number <= *last + 1 => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let mut text: Vec<String> = ranges
        .iter()
        .take(NAMED)
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first} to {last}")
            }
        })
        .collect();
    if ranges.len() > NAMED {
        text.push(format!("and {} more", ranges.len() - NAMED));
    }
    text.join(", ")
}
