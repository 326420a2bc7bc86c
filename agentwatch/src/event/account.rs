//! Whether every numbered event of a session has arrived: made = delivered + folded + lost.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// How long a number may be missing before it counts as lost: a program that was preempted between taking a number and
/// writing its record is never away for as long.
pub const GRACE: Duration = Duration::from_secs(1);

/// A set of numbers that mostly follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// First and last of each run; runs neither overlap nor touch.
    runs: BTreeMap<u64, u64>,
}

impl Numbers {
    pub fn contains(&self, number: u64) -> bool {
        self.runs
            .range(..=number)
            .next_back()
            .is_some_and(|(_, last)| number <= *last)
    }

    /// The next number of it beyond one that is not in it, `u64::MAX` where there is none.
    pub fn after(&self, number: u64) -> u64 {
        self.runs
            .range(number.saturating_add(1)..)
            .next()
            .map_or(u64::MAX, |(first, _)| *first)
    }

    /// Adds a run; gives back how many of its numbers are new.
    pub fn insert(&mut self, run: RangeInclusive<u64>) -> u64 {
        let (mut first, mut last) = run.into_inner();
        if first > last {
            return 0;
        }
        let mut added = last - first + 1;
        // Everything that overlaps it or touches it becomes part of it.
        while let Some((start, end)) = self
            .runs
            .range(..=last.saturating_add(1))
            .next_back()
            .map(|(start, end)| (*start, *end))
            .filter(|(_, end)| end.saturating_add(1) >= first)
        {
            self.runs.remove(&start);
            let overlap = end
                .min(last)
                .saturating_add(1)
                .saturating_sub(start.max(first));
            added -= overlap.min(added);
            first = first.min(start);
            last = last.max(end);
        }
        self.runs.insert(first, last);
        added
    }

    pub fn runs(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        self.runs.iter().map(|(first, last)| *first..=*last)
    }

    /// What is not in it, from `first` to `last`.
    pub fn gaps(&self, first: u64, last: u64) -> Vec<RangeInclusive<u64>> {
        let mut gaps = Vec::new();
        let mut next = first;
        for (start, end) in &self.runs {
            if *start > last {
                break;
            }
            if next < *start {
                gaps.push(next..=*start - 1);
            }
            next = next.max(end.saturating_add(1));
        }
        if next <= last {
            gaps.push(next..=last);
        }
        gaps
    }

    /// The highest number, 0 where there is none.
    pub fn last(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(_, last)| *last)
    }
}

/// What the kernel says of a session's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// The highest that it has given.
    pub last: u64,
    /// How many of them went to a ring that was full.
    pub dropped: u64,
}

/// The numbers of one session that have arrived.
#[derive(Debug, Default)]
pub struct Account {
    /// What has arrived or has been declared lost.
    settled: Numbers,
    /// What the kernel said when numbers were first seen missing, and when that was.
    waiting: Option<(Given, Instant)>,
    pub delivered: u64,
    pub lost: u64,
    /// Of those lost, what a full ring may have refused.
    refused: u64,
}

/// Numbers that are given up, and the reason that their `loss` event tells.
pub type Loss = (RangeInclusive<u64>, &'static str);

impl Account {
    /// Whether a number has arrived or been given up.
    pub fn is_settled(&self, seq: u64) -> bool {
        self.settled.contains(seq)
    }

    pub fn arrived(&mut self, seq: u64) {
        self.arrived_before(seq..=seq);
    }

    /// These arrived, here or at a daemon that is gone. One that was given up before stays counted as lost.
    pub fn arrived_before(&mut self, run: RangeInclusive<u64>) {
        self.delivered += self.settled.insert(run);
    }

    /// These were declared lost by a daemon that is gone. Which of them a ring refused, it could not always tell: rather too much is said
    /// to have gone with a daemon than too little.
    pub fn lost_before(&mut self, run: RangeInclusive<u64>) {
        let lost = self.settled.insert(run);
        self.lost += lost;
        self.refused += lost;
    }

    /// What is missing for so long that it is lost, with reasons. The kernel counts what its rings refused: where that is all that is
    /// missing, nothing else happened to it. Otherwise what was numbered up to `before` a daemon was killed with. `at_once` is for a
    /// session that has ended and rings that are empty.
    pub fn losses(&mut self, given: Given, before: u64, now: Instant, at_once: bool) -> Vec<Loss> {
        let Some(given) = self.due(given, now, at_once) else {
            return Vec::new();
        };
        let gaps = self.give_up(given.last);
        let missing: u64 = gaps.iter().map(|gap| gap.end() - gap.start() + 1).sum();
        let before = if missing <= given.dropped.saturating_sub(self.refused) {
            0
        } else {
            before
        };
        self.refused = given.dropped.min(self.refused.saturating_add(missing));
        gaps.into_iter()
            .flat_map(|gap| {
                let (from, to) = gap.into_inner();
                [
                    (from..=to.min(before), "daemon_killed"),
                    (from.max(before + 1)..=to, "ring_full"),
                ]
            })
            .filter(|(run, _)| !run.is_empty())
            .collect()
    }

    /// What the kernel had said when all that is missing of it has been so for long enough, if it has.
    fn due(&mut self, given: Given, now: Instant, at_once: bool) -> Option<Given> {
        if self.settled.gaps(1, given.last).is_empty() {
            self.waiting = None;
            return None;
        }
        match self.waiting {
            _ if at_once => Some(given),
            Some((then, since)) if !self.settled.gaps(1, then.last).is_empty() => {
                (now.duration_since(since) >= GRACE).then_some(then)
            }
            _ => {
                self.waiting = Some((given, now));
                None
            }
        }
    }

    /// Declares what is missing up to a number lost.
    pub fn give_up(&mut self, last: u64) -> Vec<RangeInclusive<u64>> {
        self.waiting = None;
        let gaps = self.settled.gaps(1, last);
        for gap in &gaps {
            self.lost += self.settled.insert(gap.clone());
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
        assert!(account.give_up(4).is_empty());
        assert_eq!(account.delivered, 4);
    }

    #[test]
    fn gaps_are_declared_after_the_grace() {
        let mut account = Account::default();
        for seq in [1, 4, 5, 9] {
            account.arrived(seq);
        }
        let start = Instant::now();
        let lost = |account: &mut Account, last, now, at_once| -> Vec<RangeInclusive<u64>> {
            let losses = account.losses(Given { last, dropped: 0 }, 0, now, at_once);
            losses.into_iter().map(|(run, _)| run).collect()
        };
        assert!(lost(&mut account, 10, start, false).is_empty());
        assert!(lost(&mut account, 10, start + GRACE / 2, false).is_empty());
        let gaps = lost(&mut account, 12, start + GRACE, false);
        assert_eq!(gaps, [2..=3, 6..=8, 10..=10]);
        assert_eq!(account.lost, 6);
        account.arrived(11);
        account.arrived(12);
        assert!(lost(&mut account, 12, start + GRACE * 3, false).is_empty());
        assert_eq!(lost(&mut account, 14, start, true), [13..=14]);
    }

    #[test]
    fn what_a_dead_daemon_had_and_what_it_declared_is_not_lost_again() {
        let mut account = Account::default();
        account.arrived(9);
        account.arrived_before(1..=4);
        account.arrived_before(8..=10);
        account.lost_before(5..=5);
        assert_eq!((account.delivered, account.lost), (7, 1));
        assert_eq!(account.give_up(10), [6..=7]);
        assert_eq!((account.delivered, account.lost), (7, 3));
    }

    #[test]
    fn what_a_ring_refused_was_not_lost_by_a_daemon() {
        let now = Instant::now();
        let mut account = Account::default();
        account.arrived_before(1..=4);
        account.arrived_before(8..=10);
        // Three are missing that an earlier daemon could have had, and the kernel says that it had no room for them.
        let given = |last, dropped| Given { last, dropped };
        assert_eq!(
            account.losses(given(10, 3), 10, now, true),
            [(5..=7, "ring_full")]
        );
        // The kernel's count is used up; what is missing now was somewhere else.
        assert_eq!(
            account.losses(given(14, 3), 12, now, true),
            [(11..=12, "daemon_killed"), (13..=14, "ring_full")]
        );
        assert_eq!(account.lost, 7);
    }

    #[test]
    fn what_a_ring_refuses_later_does_not_excuse_what_a_daemon_was_killed_with() {
        let now = Instant::now();
        let mut account = Account::default();
        account.arrived_before(1..=100);
        let given = |last, dropped| Given { last, dropped };
        assert!(account.losses(given(140, 0), 140, now, false).is_empty());
        // Refused since then, and not yet old enough to be a loss.
        assert_eq!(
            account.losses(given(240, 100), 140, now + GRACE, false),
            [(101..=140, "daemon_killed")]
        );
        assert_eq!(
            account.losses(given(240, 100), 140, now + GRACE, true),
            [(141..=240, "ring_full")]
        );
    }

    #[test]
    fn what_was_refused_before_one_daemon_was_killed_does_not_excuse_the_next() {
        let now = Instant::now();
        let given = |last, dropped| Given { last, dropped };
        let mut second = Account::default();
        // A hundred were refused, and one went with the first daemon.
        assert_eq!(
            second.losses(given(101, 100), 101, now, true),
            [(1..=101, "daemon_killed")]
        );
        assert_eq!(
            second.losses(given(181, 100), 181, now, true),
            [(102..=181, "daemon_killed")]
        );
        let mut third = Account::default();
        third.lost_before(1..=101);
        assert_eq!(
            third.losses(given(181, 100), 181, now, true),
            [(102..=181, "daemon_killed")]
        );
    }

    proptest::proptest! {
        #[test]
        fn runs_are_sets(runs in proptest::collection::vec((1u64..60, 0u64..9), 0..40)) {
            let mut numbers = Numbers::default();
            let mut model = std::collections::BTreeSet::new();
            for (first, more) in runs {
                let new = (first..=first + more).filter(|number| model.insert(*number)).count() as u64;
                proptest::prop_assert_eq!(numbers.insert(first..=first + more), new);
            }
            for number in 0..80 {
                proptest::prop_assert_eq!(numbers.contains(number), model.contains(&number));
                if !model.contains(&number) {
                    let after = model.range(number..).next().copied().unwrap_or(u64::MAX);
                    proptest::prop_assert_eq!(numbers.after(number), after);
                }
            }
            let missing: Vec<u64> = numbers.gaps(1, 75).into_iter().flatten().collect();
            let expected: Vec<u64> = (1..=75).filter(|number| !model.contains(number)).collect();
            proptest::prop_assert_eq!(missing, expected);
        }
    }
}
