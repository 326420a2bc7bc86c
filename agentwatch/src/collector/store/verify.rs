//! Checking a history, or an export of one, against its chain: what was removed, reordered, changed, cut or exchanged.
//!
//! Everything that is read here may have been made by somebody else, so nothing is believed before it is checked, and every
//! disagreement becomes a finding that says where and what; only a directory that cannot be read is an error.

mod compare;
mod export;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use rusqlite::{OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use super::{FILE, StoreError, connect, insert, seal, segment};
use crate::{
    collector::chain::{self, Hash, Head, Manifest, PUBLIC_KEY},
    event::Verdict,
};

pub use export::export;

/// File name of the end of the chain in an export.
pub const HEAD: &str = "head.json";

/// What was found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Segments that are there and agree with the chain, and their events.
    pub segments: u64,
    pub events: u64,
    /// Segments that were deleted on purpose, with a signed note.
    pub retired: u64,
    /// Events that are not in a segment, and agree with the chain.
    pub unsealed: u64,
    /// Public key that signed it.
    pub key: Option<String>,
    /// Where the chain ends: to be noted elsewhere, and asked for later.
    pub head: Option<String>,
    pub findings: Vec<Finding>,
}

/// One disagreement.
#[derive(Debug, Serialize, Deserialize)]
pub struct Finding {
    /// `missing`, `changed`, `removed`, `reordered`, `added`, `exchanged`, `cut`, `signature`, `unreadable`.
    pub what: String,
    /// Segment, 0 for what is not in one.
    pub segment: i64,
    pub detail: String,
}

/// What is known from elsewhere.
#[derive(Debug, Default)]
pub struct Expected {
    pub key: Option<Hash>,
    /// A head that was noted: segment, link.
    pub head: Option<(i64, Hash)>,
}

/// Checks the history or export in `directory`.
///
/// # Errors
/// When the directory cannot be read.
pub fn verify(directory: &Path, expected: &Expected) -> Result<Report, StoreError> {
    let mut check = Check {
        directory,
        key: expected.key.or_else(|| public_key(directory)),
        report: Report::default(),
        manifests: BTreeMap::new(),
        head: None,
    };
    // Of a history that lives, what is sealed from now on is left to the next time.
    check.read_head()?;
    check.read_manifests()?;
    check.report.key = check.key.map(hex::encode);
    let last = check.chain();
    check.files()?;
    check.end(last)?;
    if let Some((segment, link)) = expected.head
        && segment != 0
        && check.manifests.get(&segment).map(|manifest| manifest.link) != Some(link)
    {
        check.find(
            "cut",
            segment,
            "the head that was noted is not in this chain: it was cut and made anew".to_owned(),
        );
    }
    Ok(check.report)
}

/// The public key beside a history.
#[must_use]
pub fn public_key(directory: &Path) -> Option<Hash> {
    let text = fs::read_to_string(directory.join(PUBLIC_KEY)).ok()?;
    hex::decode(text.trim()).ok()?.try_into().ok()
}

struct Check<'a> {
    directory: &'a Path,
    key: Option<Hash>,
    report: Report,
    manifests: BTreeMap<i64, Manifest>,
    head: Option<End>,
}

/// The end of the chain, as it is stored.
#[derive(Clone)]
struct End {
    head: Head,
    /// Whether it is that of a history, with its tail, and not of an export.
    live: bool,
}

impl Check<'_> {
    fn find(&mut self, what: &str, segment: i64, detail: String) {
        self.report.findings.push(Finding {
            what: what.to_owned(),
            segment,
            detail,
        });
    }

    fn read_manifests(&mut self) -> Result<(), StoreError> {
        let limit = self.limit();
        for no in self.numbers("json")? {
            if no > limit {
                continue;
            }
            match seal::read_manifest(&seal::manifest_path(self.directory, no)) {
                Ok(manifest) if manifest.segment == no => {
                    self.manifests.insert(no, manifest);
                }
                Ok(manifest) => self.find(
                    "exchanged",
                    no,
                    format!("its manifest is that of segment {}", manifest.segment),
                ),
                Err(error) => self.find("unreadable", no, error.to_string()),
            }
        }
        if self.key.is_none() {
            self.key = self.manifests.values().next().map(|manifest| manifest.key);
        }
        Ok(())
    }

    fn numbers(&self, extension: &str) -> Result<Vec<i64>, StoreError> {
        let directory = self.directory.join(segment::DIRECTORY);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Question(format!(
                    "{} has no directory {}: it is neither a history nor an export\nhint: name the directory that holds it",
                    self.directory.display(),
                    segment::DIRECTORY
                )));
            }
            Err(error) => return Err(error.into()),
        };
        let mut numbers: Vec<i64> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let name = name.to_str()?;
                let no = number(name)?;
                (Path::new(name).extension()? == extension).then_some(no)
            })
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The last segment that is looked at.
    fn limit(&self) -> i64 {
        match &self.head {
            Some(End { head, live: true }) => head.segment,
            _ => i64::MAX,
        }
    }

    /// Files that are no segment and no manifest: who asks all of them at once would take them for events.
    fn strangers(&mut self) -> Result<(), StoreError> {
        let live = matches!(&self.head, Some(known) if known.live);
        let names: Vec<std::ffi::OsString> = fs::read_dir(self.directory.join(segment::DIRECTORY))?
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        // Looked at after that, so that what was listed is known, or the one that is in the making.
        let beyond = match live {
            true => insert::head(&connect::bare(self.directory)?)?
                .segment
                .saturating_add(1),
            false => i64::MAX,
        };
        for name in names {
            let is_half = live && Path::new(&name).extension().is_some_and(|end| end == "tmp");
            let no = name.to_str().and_then(number);
            if !is_half && no.is_none_or(|no| no > beyond) {
                self.find(
                    "added",
                    no.unwrap_or(0),
                    format!("{name:?} is no part of this history"),
                );
            }
        }
        Ok(())
    }

    /// Follows the links; returns the last manifest that belongs to the history.
    fn chain(&mut self) -> Option<Manifest> {
        let manifests: Vec<Manifest> = self.manifests.values().cloned().collect();
        let mut before: Option<&Manifest> = None;
        for manifest in &manifests {
            let no = manifest.segment;
            if let Some(objection) = manifest.objection(self.key.as_ref()) {
                self.find(
                    "signature",
                    no,
                    format!("the manifest of segment {no}: {objection}"),
                );
            }
            let (next, link) = before.map_or((1, chain::GENESIS), |before| {
                (before.segment.saturating_add(1), before.link)
            });
            if no > next {
                let gone = if no == next.saturating_add(1) {
                    format!("segment {next} is")
                } else {
                    format!("segments {next} to {} are", no - 1)
                };
                self.find(
                    "missing",
                    next,
                    format!(
                        "{gone} gone, with the manifest; nothing says that this was on purpose"
                    ),
                );
            } else if manifest.previous != link
                || before
                    .is_some_and(|before| manifest.first_no != before.last_no.saturating_add(1))
                || (before.is_none() && manifest.first_no != 1)
            {
                self.find(
                    "exchanged",
                    no,
                    format!(
                        "segment {no} does not follow segment {}: one of them is not the original",
                        next - 1
                    ),
                );
            }
            if let Some(broken) = &manifest.broken {
                self.find(
                    "changed",
                    no,
                    format!(
                        "when segment {no} was sealed, its events were not what had come: {broken}"
                    ),
                );
            }
            before = Some(manifest);
        }
        manifests.last().cloned()
    }

    fn files(&mut self) -> Result<(), StoreError> {
        self.strangers()?;
        let limit = self.limit();
        for no in &self.numbers("parquet")? {
            if *no <= limit && !self.manifests.contains_key(no) {
                self.find("added", *no, format!("segment {no} has no manifest"));
            }
        }
        for manifest in self.manifests.values().cloned().collect::<Vec<_>>() {
            let no = manifest.segment;
            let path = segment::path(self.directory, no);
            let hash = chain::file(&path);
            let is_gone = matches!(&hash, Err(error) if error.kind() == io::ErrorKind::NotFound);
            if is_gone && self.is_retired(&manifest) {
                self.report.retired += 1;
                continue;
            }
            let hash = match hash {
                Ok(hash) => hash,
                Err(_) if is_gone => {
                    self.find(
                        "missing",
                        no,
                        format!(
                            "segment {no}, events {} to {}, is gone",
                            manifest.first_no, manifest.last_no
                        ),
                    );
                    continue;
                }
                Err(error) => {
                    self.find("unreadable", no, format!("{}: {error}", path.display()));
                    continue;
                }
            };
            if hash == manifest.file {
                self.report.segments += 1;
                self.report.events = self.report.events.saturating_add(manifest.rows);
                continue;
            }
            if manifest.retired.is_some() {
                self.find(
                    "added",
                    no,
                    format!("segment {no} was retired, and another file has its name"),
                );
                continue;
            }
            let original = self
                .manifests
                .values()
                .find(|other| other.file == hash)
                .map(|other| other.segment);
            match original {
                Some(other) => self.find(
                    "exchanged",
                    no,
                    format!("the file of segment {no} is that of segment {other}"),
                ),
                None => self.compare(&manifest, &path),
            }
        }
        Ok(())
    }

    /// Whether a segment was retired, if only since its manifest was read.
    fn is_retired(&self, manifest: &Manifest) -> bool {
        let is_noted = |manifest: &Manifest| manifest.retired.is_some();
        is_noted(manifest)
            || seal::read_manifest(&seal::manifest_path(self.directory, manifest.segment))
                .is_ok_and(|now| {
                    is_noted(&now)
                        && now.link == manifest.link
                        && now.objection(self.key.as_ref()).is_none()
                })
    }

    /// Reads where the chain ends: beside a history in its tables, beside an export in a file.
    fn read_head(&mut self) -> Result<(), StoreError> {
        let exported = self.directory.join(HEAD);
        let database = self.directory.join(FILE);
        let read = if database.exists() {
            connect::bare(self.directory)
                .and_then(|connection| insert::head(&connection))
                .map(|head| End { head, live: true })
                .map_err(|error| format!("{}: {error}", database.display()))
        } else if exported.exists() {
            serde_json::from_slice(&fs::read(&exported)?)
                .map(|head| End { head, live: false })
                .map_err(|error| format!("{}: {error}", exported.display()))
        } else {
            self.find(
                "cut",
                0,
                format!("neither {HEAD} nor {FILE} is there, so nothing says where the chain ends"),
            );
            return Ok(());
        };
        match read {
            Ok(known) => self.head = Some(known),
            Err(error) => self.find("unreadable", 0, error),
        }
        Ok(())
    }

    /// The end of the chain: what the signed head says against what is there.
    fn end(&mut self, last: Option<Manifest>) -> Result<(), StoreError> {
        let Some(End { head, live }) = self.head.clone() else {
            return Ok(());
        };
        if head.newest == 0 && head.signature.is_empty() && last.is_none() {
            return Ok(());
        }
        if !head.is_signed() || self.key.is_some_and(|key| key != head.key) {
            self.find(
                "signature",
                0,
                "the head of the chain is not signed by its key".to_owned(),
            );
        }
        self.report.head = Some(format!("{}:{}", head.segment, hex::encode(head.link)));
        match last {
            Some(last) if last.segment == head.segment && last.link == head.link => {}
            Some(last) if last.segment < head.segment => self.find(
                "cut",
                last.segment,
                format!(
                    "the chain ends with segment {} and its head says {}: the end was cut off",
                    last.segment, head.segment
                ),
            ),
            None if head.segment == 0 => {}
            None => self.find(
                "cut",
                0,
                format!(
                    "no segment is there, and the head of the chain says {}",
                    head.segment
                ),
            ),
            Some(last) => self.find(
                "exchanged",
                last.segment,
                "the last segment is not the one that the head of the chain names".to_owned(),
            ),
        }
        if live {
            self.index()?;
            self.tail(&head)?;
        }
        Ok(())
    }

    /// What the tables say of the segments: by it questions are answered.
    fn index(&mut self) -> Result<(), StoreError> {
        let connection = connect::bare(self.directory)?;
        let transaction = connection.unchecked_transaction()?;
        let mut entered = transaction
            .prepare("SELECT first_no, last_no, events, link FROM segment_rows WHERE no = ?")?;
        let mut runs = transaction.prepare(
            "SELECT total(rows), total(CASE WHEN verdicts & ? THEN rows END) FROM run_rows WHERE segment = ?",
        )?;
        let mut refusals =
            transaction.prepare("SELECT count(*) FROM refusal_rows WHERE no BETWEEN ? AND ?")?;
        let allowed = 1i64 << (Verdict::Allowed as u8);
        let mut findings = Vec::new();
        for manifest in self.manifests.values() {
            let (no, first, last) = (manifest.segment, manifest.first_no, manifest.last_no);
            if manifest.retired.is_some() || self.is_retired(manifest) {
                continue;
            }
            let rows = i64::try_from(manifest.rows).unwrap_or(i64::MAX);
            let row: Option<(i64, i64, i64, Hash)> = entered
                .query_row([no], |row| {
                    Ok((
                        number_in(row, 0)?,
                        number_in(row, 1)?,
                        number_in(row, 2)?,
                        seal::hash_in(row, 3)?,
                    ))
                })
                .optional()?;
            let told = row == Some((first, last, rows, manifest.link));
            let (held, unrefused) = runs.query_row(params![allowed, no], |row| {
                Ok((number_in(row, 0)?, number_in(row, 1)?))
            })?;
            let refused: i64 = refusals.query_row([first, last], |row| row.get(0))?;
            let not_allowed = rows.saturating_sub(unrefused);
            if !told || held != rows || refused != not_allowed {
                findings.push((
                    no,
                    format!(
                        "the tables do not tell of all {rows} events of segment {no}: they know {held}, and {refused} refused ones of {}; \
                         questions are answered without the rest",
                        not_allowed
                    ),
                ));
            }
        }
        for (no, detail) in findings {
            self.find("removed", no, detail);
        }
        Ok(())
    }

    fn tail(&mut self, head: &Head) -> Result<(), StoreError> {
        let connection = connect::bare(self.directory)?;
        let transaction = connection.unchecked_transaction()?;
        // The head may have moved since; within one transaction all agrees.
        let head = &insert::head(&transaction).unwrap_or_else(|_| head.clone());
        // Where the sealed events end, and what goes on from there, is signed.
        let sealed = match head.segment {
            0 => Some((0, chain::GENESIS)),
            segment => self
                .manifests
                .get(&segment)
                .cloned()
                .or_else(|| seal::read_manifest(&seal::manifest_path(self.directory, segment)).ok())
                .map(|manifest| (manifest.last_no, manifest.tail)),
        };
        let mut statement = transaction
            .prepare("SELECT no, events, previous, hash, frame FROM tail_rows ORDER BY no")?;
        let mut rows = statement.query([])?;
        let mut next = sealed.map(|(last, _)| last.saturating_add(1));
        let mut hash: Option<Hash> = sealed.map(|(_, tail)| tail);
        let mut findings = Vec::new();
        let mut unsealed = 0u64;
        while let Some(row) = rows.next()? {
            // Whatever somebody has written there: it is compared as numbers, and as bytes.
            let (no, events) = (number_in(row, 0)?, number_in(row, 1)?);
            let last = no.saturating_add(events).saturating_sub(1);
            let (previous, stored) = (seal::hash_in(row, 2)?, seal::hash_in(row, 3)?);
            let frame = seal::bytes_in(row, 4)?;
            if let Some(next) = next
                && no != next
            {
                findings.push((
                    "removed",
                    format!(
                        "unsealed events {next} to {} are gone",
                        no.saturating_sub(1)
                    ),
                ));
            }
            if hash.is_some_and(|hash| hash != previous) {
                findings.push((
                    "reordered",
                    format!(
                        "the unsealed batch of events {no} to {last} does not follow the one before it"
                    ),
                ));
            }
            if chain::batch(&previous, frame) == stored {
                unsealed = u64::try_from(events)
                    .map_or(unsealed, |events| unsealed.saturating_add(events));
            } else {
                findings.push((
                    "changed",
                    format!("the unsealed batch of events {no} to {last} was changed"),
                ));
            }
            (next, hash) = (Some(last.saturating_add(1)), Some(stored));
        }
        if next.is_some_and(|next| next != head.newest.saturating_add(1)) {
            findings.push((
                "cut",
                format!(
                    "events up to {} are there, and the head of the chain says {}",
                    next.unwrap_or(1).saturating_sub(1),
                    head.newest
                ),
            ));
        }
        if hash.is_some_and(|hash| hash != head.tail) {
            findings.push((
                "changed",
                "the last unsealed batch is not the one that the head of the chain names"
                    .to_owned(),
            ));
        }
        self.report.unsealed = unsealed;
        for (what, detail) in findings {
            self.find(what, 0, detail);
        }
        Ok(())
    }
}

/// A number as it is stored, 0 where somebody has made it something else.
fn number_in(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<i64> {
    use rusqlite::types::ValueRef;
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => number,
        // Of a sum, which may be too large for an integer.
        ValueRef::Real(number) => number as i64,
        _ => 0,
    })
}

/// The number in a segment's file name.
fn number(name: &str) -> Option<i64> {
    let (stem, extension) = name.split_once('.')?;
    let no: i64 = stem.parse().ok()?;
    // As it is written, and in no other way.
    (matches!(extension, "parquet" | "json") && stem == format!("{no:010}")).then_some(no)
}

/// Where a history is that `agentwatch daemon --state-dir` keeps.
#[must_use]
pub fn of_daemon(state: &Path) -> PathBuf {
    state.join("collector")
}
