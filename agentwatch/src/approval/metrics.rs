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
    /// Denied because they cannot wait.
    pub unasked: u64,
    /// Denied because there were too many.
    pub over_limit: u64,
    /// Of those that were decided: by the reviewer.
    pub by_reviewer: u64,
    /// Tasks that went on by themselves and were stopped again.
    pub bypass_attempts: u64,
    pub repeated_after_rejection: u64,
    pub review_seconds: Histogram,
}

/// What became of notifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notifications {
    pub sent: u64,
    /// The command or the web hook failed, or was not done in time.
    pub failed: u64,
    /// Too many waited.
    pub dropped: u64,
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
    pub notifications: Notifications,
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
        Step::Unasked => counts.unasked += 1,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, model::Decider};

    fn step(step: Step, by: Option<DeciderKind>, seconds: u64, finding: Option<&str>) -> Approval {
        Approval {
            id: "1".to_owned(),
            step,
            action: Kind::Connect,
            by: by.map(|kind| Decider {
                kind,
                uid: None,
                name: None,
            }),
            scope: None,
            until: None,
            reason: None,
            finding: finding.map(str::to_owned),
            waited_ns: seconds * 1_000_000_000,
            tasks: 1,
            tries: 0,
        }
    }

    #[test]
    fn times_fall_into_their_buckets() {
        let mut histogram = Histogram::default();
        for seconds in [0.0, 1.0, 1.5, 15.0, 15.1, 14_400.0, 14_401.0, 1e6] {
            histogram.observe(Duration::from_secs_f64(seconds));
        }
        assert_eq!(histogram.buckets, [2, 1, 1, 1, 0, 0, 0, 1, 2]);
        assert_eq!(histogram.count, 8);
        assert_eq!(histogram.buckets.iter().sum::<u64>(), histogram.count);
    }

    #[test]
    fn steps_are_counted_by_what_they_are() {
        use DeciderKind::{Limit, Reviewer, Session, Timeout, User};
        let mut metrics = Metrics::default();
        for (policy, rule, step) in [
            ("a", "r1", step(Step::Requested, None, 0, None)),
            ("a", "r1", step(Step::Shown, Some(User), 1, None)),
            ("a", "r1", step(Step::Approved, Some(User), 2, None)),
            ("a", "r1", step(Step::Resumed, None, 2, None)),
            (
                "a",
                "r2",
                step(Step::Requested, None, 0, Some("repeated_after_rejection")),
            ),
            ("a", "r2", step(Step::Escalated, Some(Reviewer), 1, None)),
            ("a", "r2", step(Step::Rejected, Some(User), 3, None)),
            (
                "b",
                "r1",
                step(Step::Requested, None, 0, Some("bypass_attempt")),
            ),
            ("b", "r1", step(Step::Approved, Some(Reviewer), 1, None)),
            ("b", "r1", step(Step::Revoked, Some(User), 0, None)),
            (
                "b",
                "r1",
                step(Step::Rejected, Some(Limit), 0, Some("max_pending")),
            ),
            ("b", "r1", step(Step::Rejected, Some(Session), 9, None)),
            ("b", "r1", step(Step::Expired, Some(Timeout), 900, None)),
            ("b", "r1", step(Step::Withdrawn, None, 1, None)),
            ("b", "r1", step(Step::Unasked, None, 0, None)),
        ] {
            metrics.count(policy, rule, &step);
        }
        let all = &metrics.all;
        assert_eq!((all.approved, all.rejected, all.over_limit), (2, 2, 1));
        assert_eq!((all.expired, all.withdrawn, all.resumed), (1, 1, 1));
        assert_eq!((all.escalated, all.revoked, all.by_reviewer), (1, 1, 1));
        assert_eq!((all.bypass_attempts, all.repeated_after_rejection), (1, 1));
        assert_eq!(all.unasked, 1);
        // What no one thought about says nothing of how long that takes.
        assert_eq!(all.review_seconds.count, 5);
        assert_eq!(metrics.by_rule["a"]["r1"].approved, 1);
        assert_eq!(metrics.by_rule["a"]["r2"].rejected, 1);
        assert_eq!(metrics.by_rule["b"]["r1"].expired, 1);
    }

    #[test]
    fn rules_beyond_the_bound_are_counted_in_all_alone() {
        let mut metrics = Metrics::default();
        for n in 0..=RULES {
            metrics.count("p", &n.to_string(), &step(Step::Requested, None, 0, None));
        }
        metrics.count("p", "0", &step(Step::Requested, None, 0, None));
        assert_eq!(metrics.all.requested, RULES as u64 + 2);
        assert_eq!(metrics.by_rule["p"].len(), RULES);
        assert_eq!(metrics.by_rule["p"]["0"].requested, 2);
    }

    #[test]
    fn an_older_daemon_s_figures_are_read() {
        let metrics: Metrics = serde_json::from_str(r#"{"requested":3}"#).unwrap();
        assert_eq!(metrics.all.requested, 3);
        let json = serde_json::to_value(&metrics).unwrap();
        assert_eq!(json["requested"], 3);
        assert_eq!(json["notifications"]["dropped"], 0);
    }
}
