//! The figures and their names, by Prometheus' conventions: base units, `_total` for what only grows, labels for what is counted apart.
//! What only grows begins anew with the process that counts it.

use std::{collections::BTreeMap, fmt::Error};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Unit,
};

use crate::{
    approval::metrics::{BUCKETS, Counts, Histogram},
    wire::{collector::StoreStatus, control::Status},
};

/// What there is to tell.
#[derive(Debug)]
pub(super) struct Figures {
    /// Absent where it does not answer; so is `history`.
    pub(super) daemon: Option<Status>,
    pub(super) history: Option<StoreStatus>,
    /// Resident bytes of our processes.
    pub(super) memory: Vec<(&'static str, u64)>,
}

/// Resident bytes of a process, where its files can be read.
pub(super) fn resident(pid: u32) -> Option<u64> {
    let statm = procfs::process::Process::new(pid.cast_signed())
        .ok()?
        .statm()
        .ok()?;
    Some(statm.resident * procfs::page_size())
}

type Labels<'a> = &'a [(&'a str, &'a str)];

/// One metric, with or without labels.
struct Family<'a>(MetricEncoder<'a>);

impl Family<'_> {
    fn counter(&mut self, labels: Labels<'_>, value: u64) -> Result<(), Error> {
        let none: Option<&Exemplar<NoLabelSet, f64>> = None;
        if labels.is_empty() {
            return self.0.encode_counter(&value, none);
        }
        self.0.encode_family(&labels)?.encode_counter(&value, none)
    }

    fn seconds(&mut self, labels: Labels<'_>, value: f64) -> Result<(), Error> {
        let none: Option<&Exemplar<NoLabelSet, f64>> = None;
        self.0.encode_family(&labels)?.encode_counter(&value, none)
    }

    fn gauge(&mut self, labels: Labels<'_>, value: u64) -> Result<(), Error> {
        // As a float where it would not fit a signed number.
        let value = value as f64;
        if labels.is_empty() {
            return self.0.encode_gauge(&value);
        }
        self.0.encode_family(&labels)?.encode_gauge(&value)
    }

    fn moment(&mut self, labels: Labels<'_>, value: jiff::Timestamp) -> Result<(), Error> {
        let seconds = value.as_duration().as_secs_f64();
        self.0.encode_family(&labels)?.encode_gauge(&seconds)
    }

    fn histogram(&mut self, labels: Labels<'_>, value: &Histogram) -> Result<(), Error> {
        let ends = BUCKETS.into_iter().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = ends.zip(value.buckets).collect();
        let none: Option<&std::collections::HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;
        if labels.is_empty() {
            return self
                .0
                .encode_histogram(value.sum, value.count, &buckets, none);
        }
        self.0
            .encode_family(&labels)?
            .encode_histogram(value.sum, value.count, &buckets, none)
    }
}

/// Where metrics are written, by their names.
struct Page<'e, 'w>(&'e mut DescriptorEncoder<'w>);

impl Page<'_, '_> {
    fn counter(&mut self, name: &'static str, help: &str) -> Result<Family<'_>, Error> {
        let metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        Ok(Family(metric))
    }

    fn gauge(&mut self, name: &'static str, help: &str) -> Result<Family<'_>, Error> {
        let metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        Ok(Family(metric))
    }

    fn bytes(&mut self, name: &'static str, help: &str) -> Result<Family<'_>, Error> {
        let metric = self
            .0
            .encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
        Ok(Family(metric))
    }

    fn seconds(
        &mut self,
        name: &'static str,
        help: &str,
        kind: MetricType,
    ) -> Result<Family<'_>, Error> {
        let metric = self
            .0
            .encode_descriptor(name, help, Some(&Unit::Seconds), kind)?;
        Ok(Family(metric))
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut page = Page(&mut encoder);
        page.gauge("daemon_up", "Whether the daemon answers")?
            .gauge(&[], self.daemon.is_some().into())?;
        page.gauge("collector_up", "Whether the collector answers")?
            .gauge(&[], self.history.is_some().into())?;
        if !self.memory.is_empty() {
            let mut family = page.bytes(
                "process_resident_memory",
                "Resident memory of our processes",
            )?;
            for (process, bytes) in &self.memory {
                family.gauge(&[("process", process)], *bytes)?;
            }
        }
        if let Some(status) = &self.daemon {
            daemon(&mut page, status)?;
            approvals(&mut page, status)?;
        }
        if let Some(history) = &self.history {
            store(&mut page, history)?;
            sinks(&mut page, history)?;
        }
        Ok(())
    }
}

fn daemon(page: &mut Page<'_, '_>, status: &Status) -> Result<(), Error> {
    let Status {
        version,
        pid: _,
        backends,
        sessions: _,
        coverage,
        events,
        events_delivered,
        events_folded,
        events_lost,
        spooled,
        queued,
        collector,
        approvals: _,
        kernel,
        costs,
    } = status;
    // A gauge, because readers of the format of before OpenMetrics know no `info`.
    page.gauge("build_info", "The daemon's version")?
        .gauge(&[("version", version)], 1)?;
    let mut family = page.gauge("backend_active", "What enforces on this kernel")?;
    for backend in ["bpf-lsm", "cgroup", "landlock"] {
        let active = backends.iter().any(|active| active == backend);
        family.gauge(&[("backend", backend)], active.into())?;
    }
    let mut family = page.gauge("sessions", "Sessions that live, by coverage and mode")?;
    for known in ["enforcing", "degraded", "off"] {
        for mode in ["enforce", "monitor"] {
            let count = coverage
                .get(known)
                .and_then(|modes| modes.get(mode))
                .copied();
            family.gauge(&[("coverage", known), ("mode", mode)], count.unwrap_or(0))?;
        }
    }
    let mut family = page.counter(
        "events",
        "Events since the daemon began, repetitions not counted",
    )?;
    for (kind, verdicts) in events {
        for (verdict, count) in verdicts {
            family.counter(&[("kind", kind), ("verdict", verdict)], *count)?;
        }
    }
    page.counter("events_delivered", "Events that came out of the kernel")?
        .counter(&[], *events_delivered)?;
    page.counter(
        "events_folded",
        "Repetitions that are counted in other events",
    )?
    .counter(&[], *events_folded)?;
    page.counter("events_lost", "Events that were declared lost")?
        .counter(&[], *events_lost)?;
    let mut family = page.gauge("events_waiting", "Events on their way to the collector")?;
    family.gauge(&[("place", "memory")], *queued)?;
    family.gauge(&[("place", "disk")], *spooled)?;
    page.gauge(
        "collector_connected",
        "Whether the daemon reaches its collector",
    )?
    .gauge(&[], (collector == "connected").into())?;
    // What waits and holds now is not a count of what happened.
    let now = |name: &str| matches!(name, "tasks_that_wait" | "decisions" | "unknown_sessions");
    let mut family = page.counter(
        "kernel_incidents",
        "Drops and failures of the kernel programs, by place",
    )?;
    for (place, count) in kernel.iter().filter(|(name, _)| !now(name)) {
        family.counter(&[("place", place)], *count)?;
    }
    let tasks = kernel.get("tasks_that_wait").copied().unwrap_or(0);
    page.gauge(
        "tasks_waiting",
        "Tasks that wait in the kernel for a decision",
    )?
    .gauge(&[], tasks)?;
    if !costs.is_empty() {
        let mut family = page.counter("program_runs", "How often each kernel program ran")?;
        for (program, (runs, _)) in costs {
            family.counter(&[("program", program)], *runs)?;
        }
        let help = "Time in each kernel program, while kernel.bpf_stats_enabled is set";
        let mut family = page.seconds("program", help, MetricType::Counter)?;
        for (program, (_, nanoseconds)) in costs {
            family.seconds(&[("program", program)], *nanoseconds as f64 / 1e9)?;
        }
    }
    Ok(())
}

/// Counts by what became of requests.
fn outcomes(counts: &Counts) -> [(&'static str, u64); 10] {
    [
        ("requested", counts.requested),
        ("approved", counts.approved),
        ("rejected", counts.rejected),
        ("expired", counts.expired),
        ("withdrawn", counts.withdrawn),
        ("resumed", counts.resumed),
        ("escalated", counts.escalated),
        ("revoked", counts.revoked),
        ("unasked", counts.unasked),
        ("over_limit", counts.over_limit),
    ]
}

fn approvals(page: &mut Page<'_, '_>, status: &Status) -> Result<(), Error> {
    let metrics = &status.approvals;
    page.gauge("approvals_pending", "Requests that wait for a decision")?
        .gauge(&[], metrics.pending)?;
    page.gauge("grants", "Grants that hold")?
        .gauge(&[], metrics.grants)?;
    let mut family = page.counter("approvals", "Requests, by what became of them")?;
    for (outcome, count) in outcomes(&metrics.all) {
        family.counter(&[("outcome", outcome)], count)?;
    }
    page.counter("approvals_by_reviewer", "Decisions of the reviewer")?
        .counter(&[], metrics.all.by_reviewer)?;
    let mut family = page.counter("approval_findings", "Attempts to get by a decision")?;
    for (finding, count) in [
        ("bypass_attempt", metrics.all.bypass_attempts),
        (
            "repeated_after_rejection",
            metrics.all.repeated_after_rejection,
        ),
    ] {
        family.counter(&[("finding", finding)], count)?;
    }
    let mut family = page.counter("notifications", "Notifications of approvals")?;
    for (outcome, count) in [
        ("sent", metrics.notifications.sent),
        ("failed", metrics.notifications.failed),
        ("dropped", metrics.notifications.dropped),
    ] {
        family.counter(&[("outcome", outcome)], count)?;
    }
    page.seconds(
        "approval_review",
        "How long requests waited for a decision",
        MetricType::Histogram,
    )?
    .histogram(&[], &metrics.all.review_seconds)?;
    let rules = || each_rule(&metrics.by_rule);
    let mut family = page.counter("rule_approvals", "Requests by policy and rule")?;
    for (policy, rule, counts) in rules() {
        for (outcome, count) in outcomes(counts).into_iter().filter(|(_, count)| *count > 0) {
            let labels = [("policy", policy), ("rule", rule), ("outcome", outcome)];
            family.counter(&labels, count)?;
        }
    }
    let help = "How long requests waited for a decision, by policy and rule";
    let mut family = page.seconds("rule_approval_review", help, MetricType::Histogram)?;
    for (policy, rule, counts) in rules().filter(|(_, _, counts)| counts.review_seconds.count > 0) {
        family.histogram(
            &[("policy", policy), ("rule", rule)],
            &counts.review_seconds,
        )?;
    }
    Ok(())
}

fn each_rule(
    by_rule: &BTreeMap<String, BTreeMap<String, Counts>>,
) -> impl Iterator<Item = (&str, &str, &Counts)> {
    by_rule.iter().flat_map(|(policy, rules)| {
        rules
            .iter()
            .map(move |(rule, counts)| (policy.as_str(), rule.as_str(), counts))
    })
}

fn store(page: &mut Page<'_, '_>, history: &StoreStatus) -> Result<(), Error> {
    let mut family = page.gauge("history_events", "Events of the history")?;
    let sealed = history.events.saturating_sub(history.unsealed);
    family.gauge(&[("place", "segments")], sealed)?;
    family.gauge(&[("place", "tail")], history.unsealed)?;
    page.gauge("history_sessions", "Sessions of the history")?
        .gauge(&[], history.sessions)?;
    page.gauge("history_segments", "Segments of the history")?
        .gauge(&[], history.segments)?;
    page.bytes("history_size", "The history on disk")?
        .gauge(&[], history.bytes)
}

fn sinks(page: &mut Page<'_, '_>, history: &StoreStatus) -> Result<(), Error> {
    if history.sinks.is_empty() {
        return Ok(());
    }
    let mut family = page.gauge(
        "sink_healthy",
        "Whether a sink delivers, or has nothing to deliver",
    )?;
    for sink in &history.sinks {
        family.gauge(&[("sink", &sink.name)], sink.error.is_none().into())?;
    }
    let mut family = page.gauge(
        "sink_behind_events",
        "Events that a sink has yet to look at",
    )?;
    for sink in &history.sinks {
        family.gauge(&[("sink", &sink.name)], sink.behind)?;
    }
    let mut family = page.counter("sink_events", "Events of a sink, by what became of them")?;
    for sink in &history.sinks {
        for (outcome, count) in [
            ("delivered", sink.delivered),
            ("refused", sink.refused),
            ("lost", sink.lost),
        ] {
            family.counter(&[("sink", &sink.name), ("outcome", outcome)], count)?;
        }
    }
    let mut family = page.counter("sink_retries", "Deliveries that were tried again")?;
    for sink in &history.sinks {
        family.counter(&[("sink", &sink.name)], sink.retries)?;
    }
    let help = "When a sink last delivered, in seconds since 1970";
    let mut family = page.seconds("sink_last_delivery_timestamp", help, MetricType::Gauge)?;
    for sink in &history.sinks {
        if let Some(last) = sink.last {
            family.moment(&[("sink", &sink.name)], last)?;
        }
    }
    Ok(())
}
