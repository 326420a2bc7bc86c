//! Whether every numbered event of a session has arrived: made = delivered + folded + lost.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// How long a number may be missing before it counts as lost: a program that was preempted between taking a number and
/// writing its record is never away for as long.
pub const GRACE: Duration = Duration::from_secs(1);

/// The numbers of one session that have arrived.
#[derive(Debug, Default)]
pub struct Account {
    /// Everything up to here has arrived or has been declared lost.
    settled: u64,
    /// What arrived beyond a gap.
    ahead: BTreeSet<u64>,
    /// The highest number that the kernel had given when it was last asked, and when that was first seen missing.
    waiting: Option<(u64, Instant)>,
    pub delivered: u64,
    pub lost: u64,
}

impl Account {
    /// Whether a number has arrived or been given up.
    pub fn is_settled(&self, seq: u64) -> bool {
        seq <= self.settled || self.ahead.contains(&seq)
    }

    pub fn arrived(&mut self, seq: u64) {
        // One that was given up before stays counted as lost.
        if seq <= self.settled {
            return;
        }
        self.delivered += 1;
        self.ahead.insert(seq);
        while self.ahead.remove(&(self.settled + 1)) {
            self.settled += 1;
        }
    }

    /// The gaps that are old enough to be losses, given the kernel's last number. `at_once` is for a session that has ended
    /// and rings that are empty.
    pub fn lost(&mut self, last: u64, now: Instant, at_once: bool) -> Vec<RangeInclusive<u64>> {
        if last <= self.settled {
            self.waiting = None;
            return Vec::new();
        }
        match self.waiting {
            _ if at_once => {}
            Some((up_to, since)) if self.settled < up_to => {
                if now.duration_since(since) < GRACE {
                    return Vec::new();
                }
            }
            _ => {
                self.waiting = Some((last, now));
                return Vec::new();
            }
        }
        let up_to = if at_once {
            last
        } else {
            self.waiting.map_or(last, |(up_to, _)| up_to)
        };
        self.waiting = None;
        let mut gaps = Vec::new();
        let mut next = self.settled + 1;
        for seq in self.ahead.range(..=up_to).copied().chain([up_to + 1]) {
            if next < seq {
                gaps.push(next..=seq - 1);
                self.lost += seq - next;
            }
            next = seq + 1;
        }
        self.settled = up_to;
        self.ahead = self.ahead.split_off(&(up_to + 1));
        while self.ahead.remove(&(self.settled + 1)) {
            self.settled += 1;
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_order_is_no_loss() {
        let mut account = Account::default();
        for seq in [2, 1, 4, 3] {
            account.arrived(seq);
        }
        assert!(account.lost(4, Instant::now(), true).is_empty());
        assert_eq!(account.delivered, 4);
    }

    #[test]
    fn gaps_are_declared_after_the_grace() {
        let mut account = Account::default();
        for seq in [1, 4, 5, 9] {
            account.arrived(seq);
        }
        let start = Instant::now();
        assert!(account.lost(10, start, false).is_empty());
        assert!(account.lost(10, start + GRACE / 2, false).is_empty());
        let gaps = account.lost(12, start + GRACE, false);
        assert_eq!(gaps, [2..=3, 6..=8, 10..=10]);
        assert_eq!(account.lost, 6);
        account.arrived(11);
        account.arrived(12);
        assert!(account.lost(12, start + GRACE * 3, false).is_empty());
        assert_eq!(account.lost(14, start, true), [13..=14]);
    }
}
