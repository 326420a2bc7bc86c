//! This host, as events name it, its clocks, and the events that we make ourselves.

use std::sync::LazyLock;

use agentwatch_common::event::Fold;
use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};

use super::model::{Event, Kind, Mode, SCHEMA_VERSION, SessionRef, Verdict};

/// Which host and which boot of it an event comes from.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub name: String,
    pub boot_id: String,
}

impl Host {
    pub fn read() -> Result<Self> {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .with_context(|| format!("read {path}; hint: /proc must be mounted"))
        };
        Ok(Self {
            name: read("/proc/sys/kernel/hostname")?,
            boot_id: read("/proc/sys/kernel/random/boot_id")?,
        })
    }

    /// An event of now that no record of the kernel stands behind.
    pub fn event(&self, session: &SessionRef, kind: Kind) -> Event {
        Event {
            v: SCHEMA_VERSION,
            id: uuid::Uuid::now_v7().to_string(),
            seq: 0,
            time: Timestamp::now(),
            ktime_ns: boottime_ns(),
            host: self.name.clone(),
            boot_id: self.boot_id.clone(),
            session: session.clone(),
            kind,
            verdict: Verdict::Allowed,
            errno: None,
            count: 1,
            fold: None,
            rule: None,
            process: None,
            file: None,
            target: None,
            net: None,
            guard: None,
            approval: None,
            exit: None,
            lifecycle: None,
            loss: None,
        }
    }
}

/// The session of events that belong to none: it has no id, and only root and the collector's user see it.
pub fn no_session() -> SessionRef {
    SessionRef {
        id: String::new(),
        name: String::new(),
        policy: String::new(),
        mode: Mode::Enforce,
    }
}

/// Nanoseconds of CLOCK_BOOTTIME.
pub fn boottime_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    time.map_or(0, |time| {
        time.tv_sec()
            .cast_unsigned()
            .saturating_mul(1_000_000_000)
            .saturating_add(time.tv_nsec().cast_unsigned())
    })
}

/// When the last of folded actions happened, in nanoseconds of CLOCK_BOOTTIME; of opens that were not decided again, as exact as a tick
/// of the kernel, 1 to 10 ms. Ticks do not count while the host is suspended: such an open after that seems to be older by as long.
pub fn last(fold: &Fold) -> u64 {
    static TICK_NS: LazyLock<u64> = LazyLock::new(|| {
        // The clock that is read without the hardware's counter moves by ticks.
        nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
            .map_or(0, |tick| tick.tv_nsec().cast_unsigned())
    });
    let ticks = fold.last_tick.saturating_sub(fold.at_tick);
    fold.at_ns.saturating_add(ticks.saturating_mul(*TICK_NS))
}

/// The wall time of a moment of CLOCK_BOOTTIME, by how far the two are apart now.
pub fn wall(ktime: u64) -> Timestamp {
    let now = boottime_ns();
    let apart = |a: u64, b: u64| {
        SignedDuration::from_nanos(i64::try_from(a.saturating_sub(b)).unwrap_or(i64::MAX))
    };
    Timestamp::now()
        .checked_sub(apart(now, ktime))
        .and_then(|time| time.checked_add(apart(ktime, now)))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}
