//! Counters of what was asked and how it was decided, for `agentwatch status --json`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::event::model::{Approval, DeciderKind, Step};

/// Upper ends of the buckets of [`Histogram`], in seconds; one more is for everything beyond.
pub const BUCKETS: [f64; 8] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0];

/// How long requests waited for a decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Decisions up to each of [`BUCKETS`], each counted in its bucket alone, and those beyond.
    pub buckets: [u64; BUCKETS.len() + 1],
    pub count: u64,
    /// Seconds, all together.
    pub sum: f64,
}

impl Histogram {
    pub fn observe(&mut self, waited: Duration) {
        let seconds = waited.as_secs_f64();
        let bucket = BUCKETS
            .iter()
            .position(|end| seconds <= *end)
            .unwrap_or(BUCKETS.len());
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum += seconds;
    }
}

/// What became of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub requested: u64,
    pub approved: u64,
    pub rejected: u64,
    pub expired: u64,
    pub withdrawn: u64,
    pub resumed: u64,
    pub escalated: u64,
    pub revoked: u64,
    /// Denied because there were too many.
    pub over_limit: u64,
    /// Of those that were decided: by the reviewer.
    pub by_reviewer: u64,
    /// Tasks that went on by themselves and were stopped again.
    pub bypass_attempts: u64,
    pub repeated_after_rejection: u64,
    pub review_seconds: Histogram,
}

/// All of it, and the same by policy and rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    #[serde(flatten)]
    pub all: Counts,
    /// Requests that wait now.
    pub pending: u64,
    /// Grants that hold now.
    pub grants: u64,
    /// By the policy's digest, then by the rule's id.
    pub by_rule: BTreeMap<String, BTreeMap<String, Counts>>,
}

/// Pairs of policy and rule that are counted apart.
const RULES: usize = 1024;

impl Metrics {
    /// Counts a step.
    pub fn count(&mut self, policy: &str, rule: &str, step: &Approval) {
        add(&mut self.all, step);
        let rules: usize = self.by_rule.values().map(BTreeMap::len).sum();
        let known = self
            .by_rule
            .get(policy)
            .is_some_and(|rules| rules.contains_key(rule));
        if known || rules < RULES {
            let of_policy = self.by_rule.entry(policy.to_owned()).or_default();
            add(of_policy.entry(rule.to_owned()).or_default(), step);
        }
    }
}

fn add(counts: &mut Counts, step: &Approval) {
    let decider = step.by.as_ref().map(|by| by.kind);
    match step.step {
        Step::Requested => counts.requested += 1,
        Step::Shown => {}
        Step::Escalated => counts.escalated += 1,
        Step::Approved => counts.approved += 1,
        Step::Rejected if decider == Some(DeciderKind::Limit) => counts.over_limit += 1,
        Step::Rejected => counts.rejected += 1,
        Step::Expired => counts.expired += 1,
        Step::Withdrawn => counts.withdrawn += 1,
        Step::Resumed => counts.resumed += 1,
        Step::Revoked => counts.revoked += 1,
    }
    if matches!(step.step, Step::Approved | Step::Rejected | Step::Expired) {
        if decider == Some(DeciderKind::Reviewer) {
            counts.by_reviewer += 1;
        }
        if decider != Some(DeciderKind::Limit) {
            counts
                .review_seconds
                .observe(Duration::from_nanos(step.waited_ns));
        }
    }
    match step.finding.as_deref() {
        Some("bypass_attempt") => counts.bypass_attempts += 1,
        Some("repeated_after_rejection") => counts.repeated_after_rejection += 1,
        _ => {}
    }
}
