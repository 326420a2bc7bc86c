//! From events to the timeline's shape: pure, one event at a time.
//!
//! A process is its boot, pid and start; its parent is found by the same three. Events say what they know, so every
//! part may be missing, and a parent that is named by no event leaves its child at the root.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    cli::render,
    event::model::{Counts, Event, Exit, Kind, Lifecycle, Loss, Process, RuleRef, Verdict},
    wire::collector::SessionRow,
};

/// A whole session.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Timeline {
    pub(in crate::cli) session: SessionRow,
    /// What was denied, held, or would have been denied; repetitions are folded.
    pub(in crate::cli) refusals: Vec<Refusal>,
    /// What is missing from the record.
    pub(in crate::cli) losses: Vec<Lost>,
    /// Every process, parents before their children, siblings by their first event.
    pub(in crate::cli) processes: Vec<Node>,
    /// What the kernel counted, once the session has ended.
    pub(in crate::cli) counts: Option<Counts>,
}

/// One process.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Node {
    pub(in crate::cli) pid: u32,
    pub(in crate::cli) start_ns: u64,
    pub(in crate::cli) ppid: u32,
    /// Index of the parent in the list.
    pub(in crate::cli) parent: Option<usize>,
    /// How many ancestors it has in the list.
    pub(in crate::cli) depth: usize,
    pub(in crate::cli) first: Timestamp,
    pub(in crate::cli) uid: u32,
    /// The executable and arguments as first seen.
    pub(in crate::cli) exe: String,
    pub(in crate::cli) argv: Vec<String>,
    /// The programs that it executed, in order.
    pub(in crate::cli) execs: Vec<Exec>,
    pub(in crate::cli) files: Vec<FileUse>,
    pub(in crate::cli) destinations: Vec<Destination>,
    /// Other actions (mounts, signals, approvals, tool calls), in order.
    pub(in crate::cli) others: Vec<Other>,
    /// Indexes of its refusals.
    pub(in crate::cli) refusals: Vec<usize>,
    pub(in crate::cli) exit: Option<Exit>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Exec {
    pub(in crate::cli) time: Timestamp,
    pub(in crate::cli) exe: String,
    pub(in crate::cli) argv: Vec<String>,
    pub(in crate::cli) errno: Option<i32>,
}

/// What a process did with one file, allowed by the policy.
#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct FileUse {
    pub(in crate::cli) path: String,
    /// Where a rename or a link went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) target: Option<String>,
    pub(in crate::cli) kinds: BTreeSet<Kind>,
    pub(in crate::cli) access: BTreeSet<String>,
    /// Whether anything of it changes the file or its name.
    pub(in crate::cli) writes: bool,
    pub(in crate::cli) count: u64,
    /// How many of them failed, for reasons of the system's.
    pub(in crate::cli) failed: u64,
}

/// What a process connected to, listened on or looked up, allowed by the policy.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Destination {
    pub(in crate::cli) kind: Kind,
    pub(in crate::cli) destination: String,
    pub(in crate::cli) count: u64,
    pub(in crate::cli) failed: u64,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Other {
    pub(in crate::cli) time: Timestamp,
    pub(in crate::cli) kind: Kind,
    pub(in crate::cli) what: String,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Refusal {
    pub(in crate::cli) time: Timestamp,
    pub(in crate::cli) last: Timestamp,
    pub(in crate::cli) verdict: Verdict,
    pub(in crate::cli) kind: Kind,
    pub(in crate::cli) process: Option<String>,
    pub(in crate::cli) what: String,
    pub(in crate::cli) rule: Option<RuleRef>,
    pub(in crate::cli) errno: Option<i32>,
    pub(in crate::cli) count: u64,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Lost {
    pub(in crate::cli) time: Timestamp,
    #[serde(flatten)]
    pub(in crate::cli) loss: Loss,
}

/// A timeline that is not complete yet.
#[derive(Default)]
pub(in crate::cli) struct Gathering {
    pub(in crate::cli) session: Option<SessionRow>,
    refusals: Vec<Refusal>,
    known_refusals: HashMap<(Option<usize>, Kind, Verdict, String), usize>,
    losses: Vec<Lost>,
    drafts: Vec<Draft>,
    by_key: HashMap<Key, usize>,
    counts: Option<Counts>,
}

/// Boot id, pid, start.
type Key = (String, u32, u64);

struct Draft {
    node: Node,
    boot_id: String,
    parent_start_ns: u64,
    files: BTreeMap<(String, Option<String>), FileUse>,
    destinations: BTreeMap<(Kind, String), Destination>,
}

impl Gathering {
    /// Adds one event; they come in their order.
    pub(in crate::cli) fn add(&mut self, event: &Event) {
        let process = event
            .process
            .as_ref()
            .map(|process| self.process(event, process));
        match (&event.lifecycle, &event.loss) {
            (Some(Lifecycle::Ended { counts, .. }), _) => self.counts = Some(*counts),
            (_, Some(loss)) => self.losses.push(Lost {
                time: event.time,
                loss: loss.clone(),
            }),
            _ => {}
        }
        if event.verdict != Verdict::Allowed {
            self.refuse(event, process);
            // What is only audited did happen, so it goes on to the process as well.
            if event.verdict != Verdict::Audited {
                return;
            }
        }
        if let Some(draft) = process.and_then(|index| self.drafts.get_mut(index)) {
            draft.add(event);
        }
    }

    /// The timeline, `None` if no session was named.
    pub(in crate::cli) fn finish(self) -> Option<Timeline> {
        let session = self.session?;
        let parents: Vec<Option<usize>> = (0..self.drafts.len())
            .map(|index| {
                self.drafts
                    .get(index)
                    .and_then(|draft| parent(&self.drafts, &self.by_key, draft))
            })
            .collect();
        let order = order(&parents);
        let mut place = vec![0; order.len()];
        for (position, (index, _)) in order.iter().enumerate() {
            if let Some(slot) = place.get_mut(*index) {
                *slot = position;
            }
        }
        let mut drafts: Vec<Option<Draft>> = self.drafts.into_iter().map(Some).collect();
        let processes = order
            .iter()
            .filter_map(|(index, depth)| {
                let draft = drafts.get_mut(*index)?.take()?;
                // At depth 0 the parent is unknown, or is one of the node's own descendants, which no tree can show.
                let parent = parents
                    .get(*index)
                    .copied()
                    .flatten()
                    .filter(|_| *depth > 0);
                let parent = parent.and_then(|parent| place.get(parent).copied());
                Some(Node {
                    parent,
                    depth: *depth,
                    files: draft.files.into_values().collect(),
                    destinations: draft.destinations.into_values().collect(),
                    ..draft.node
                })
            })
            .collect();
        Some(Timeline {
            session,
            refusals: self.refusals,
            losses: self.losses,
            processes,
            counts: self.counts,
        })
    }

    fn process(&mut self, event: &Event, process: &Process) -> usize {
        let key = (event.boot_id.clone(), process.pid, process.start_ns);
        if let Some(index) = self.by_key.get(&key) {
            return *index;
        }
        let index = self.drafts.len();
        self.drafts.push(Draft {
            node: Node {
                pid: process.pid,
                start_ns: process.start_ns,
                ppid: process.ppid,
                parent: None,
                depth: 0,
                first: event.time,
                uid: process.uid,
                exe: process.exe.clone(),
                argv: process.argv.clone(),
                execs: Vec::new(),
                files: Vec::new(),
                destinations: Vec::new(),
                others: Vec::new(),
                refusals: Vec::new(),
                exit: None,
            },
            boot_id: event.boot_id.clone(),
            parent_start_ns: process.parent_start_ns,
            files: BTreeMap::new(),
            destinations: BTreeMap::new(),
        });
        self.by_key.insert(key, index);
        index
    }

    fn refuse(&mut self, event: &Event, process: Option<usize>) {
        let rule = event
            .rule
            .as_ref()
            .map(|rule| rule.id.as_str())
            .unwrap_or_default();
        let what = render::what(event);
        let key = (process, event.kind, event.verdict, format!("{rule} {what}"));
        if let Some(known) = self
            .known_refusals
            .get(&key)
            .and_then(|index| self.refusals.get_mut(*index))
        {
            known.count += event.count;
            known.last = event.time;
            return;
        }
        let index = self.refusals.len();
        self.known_refusals.insert(key, index);
        self.refusals.push(Refusal {
            time: event.time,
            last: event.time,
            verdict: event.verdict,
            kind: event.kind,
            process: event.process.as_ref().map(render::process_name),
            what,
            rule: event.rule.clone(),
            errno: event.errno,
            count: event.count,
        });
        if let Some(draft) = process.and_then(|process| self.drafts.get_mut(process)) {
            draft.node.refusals.push(index);
        }
    }
}

impl Draft {
    fn add(&mut self, event: &Event) {
        let failed = if event.errno.is_some() {
            event.count
        } else {
            0
        };
        match event.kind {
            Kind::Session | Kind::Loss => {}
            Kind::Exec => {
                let process = event.process.as_ref();
                let asked = event
                    .file
                    .as_ref()
                    .filter(|_| event.errno.is_some())
                    .map(|file| &file.path);
                self.node.execs.push(Exec {
                    time: event.time,
                    exe: asked
                        .or(process.map(|process| &process.exe))
                        .cloned()
                        .unwrap_or_default(),
                    argv: process
                        .map(|process| process.argv.clone())
                        .unwrap_or_default(),
                    errno: event.errno,
                });
            }
            Kind::Exit => self.node.exit = event.exit.clone(),
            Kind::Open | Kind::Create | Kind::Delete | Kind::Rename | Kind::Link | Kind::Attr => {
                let Some(file) = &event.file else { return };
                let target = event.target.as_ref().map(|target| target.path.clone());
                let entry = self
                    .files
                    .entry((file.path.clone(), target.clone()))
                    .or_insert_with(|| FileUse {
                        path: file.path.clone(),
                        target,
                        ..FileUse::default()
                    });
                entry.kinds.insert(event.kind);
                entry.access.extend(file.access.iter().cloned());
                entry.writes |= event.kind != Kind::Open
                    || file
                        .access
                        .iter()
                        .any(|access| !matches!(access.as_str(), "read" | "list" | "exec"));
                entry.count += event.count;
                entry.failed += failed;
            }
            Kind::Connect | Kind::Bind | Kind::Dns => {
                let destination = event
                    .net
                    .as_ref()
                    .map(render::destination)
                    .unwrap_or_default();
                let entry = self
                    .destinations
                    .entry((event.kind, destination.clone()))
                    .or_insert(Destination {
                        kind: event.kind,
                        destination,
                        count: 0,
                        failed: 0,
                    });
                entry.count += event.count;
                entry.failed += failed;
            }
            Kind::Guard | Kind::Approval | Kind::ToolCall => {
                self.node.others.push(Other {
                    time: event.time,
                    kind: event.kind,
                    what: render::what(event),
                });
            }
        }
    }
}

/// The parent's index: by its start where that is known, else the newest process of that pid that is older.
fn parent(drafts: &[Draft], by_key: &HashMap<Key, usize>, draft: &Draft) -> Option<usize> {
    if draft.node.ppid == 0 {
        return None;
    }
    if draft.parent_start_ns != 0 {
        return by_key
            .get(&(
                draft.boot_id.clone(),
                draft.node.ppid,
                draft.parent_start_ns,
            ))
            .copied();
    }
    drafts
        .iter()
        .enumerate()
        .filter(|(_, other)| {
            other.node.pid == draft.node.ppid
                && other.boot_id == draft.boot_id
                && other.node.start_ns < draft.node.start_ns
        })
        .max_by_key(|(_, other)| other.node.start_ns)
        .map(|(index, _)| index)
}

/// Indexes with their depths, parents before children. Nodes that hang in a circle become roots: events come from
/// several rings, and a forged or reused pair of numbers must neither hide a process nor loop.
fn order(parents: &[Option<usize>]) -> Vec<(usize, usize)> {
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); parents.len()];
    let mut roots = Vec::new();
    for (index, parent) in parents.iter().enumerate() {
        match parent.and_then(|parent| children.get_mut(parent)) {
            Some(siblings) => siblings.push(index),
            None => roots.push(index),
        }
    }
    let mut seen = vec![false; parents.len()];
    let mut ordered = Vec::with_capacity(parents.len());
    // Real roots first, then whatever they did not lead to. A stack of our own: chains of forks can be very long.
    for root in roots.into_iter().chain(0..parents.len()) {
        let mut stack = vec![(root, 0)];
        while let Some((index, depth)) = stack.pop() {
            let Some(seen) = seen.get_mut(index).filter(|seen| !**seen) else {
                continue;
            };
            *seen = true;
            ordered.push((index, depth));
            let below = children.get(index).into_iter().flatten();
            stack.extend(below.rev().map(|child| (*child, depth + 1)));
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_their_children() {
        assert_eq!(
            order(&[None, Some(0), Some(1), Some(0)]),
            [(0, 0), (1, 1), (2, 2), (3, 1)]
        );
        assert_eq!(order(&[Some(1), None]), [(1, 0), (0, 1)]);
    }

    #[test]
    fn a_circle_neither_loops_nor_hides() {
        assert_eq!(
            order(&[Some(1), Some(0), Some(2), None]),
            [(3, 0), (0, 0), (1, 1), (2, 0)]
        );
    }

    #[test]
    fn a_very_long_chain_is_walked() {
        let parents: Vec<Option<usize>> = (0..200_000)
            .map(|index: usize| index.checked_sub(1))
            .collect();
        assert_eq!(order(&parents).last(), Some(&(199_999, 199_999)));
    }
}
