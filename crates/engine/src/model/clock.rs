//! Stamps, and the wall-clock time at which each was taken.

use std::{collections::VecDeque, time::Duration};

use kubefledged_api_types::Timestamp;

use crate::ids::Stamp;

/// Most marks that are kept. They cover many check intervals.
const MAX_MARKS: usize = 4096;

/// Hands out stamps and remembers when, to a sixty-fourth of the check interval.
#[derive(Debug, Default)]
pub struct Clock {
    last: Option<Stamp>,
    marks: VecDeque<Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The first stamp that was taken at or after `at`.
    from: Stamp,
    at: Timestamp,
}

impl Clock {
    /// A stamp later than every one before.
    pub fn next(&mut self, now: Timestamp, check_interval: Duration) -> Stamp {
        let stamp = self.after(0);
        self.last = Some(stamp);
        self.mark(stamp, now, check_interval);
        stamp
    }

    /// The stamp that [`Self::next`] hands out after so many others.
    pub fn after(&self, others: u32) -> Stamp {
        self.last
            .map_or(Stamp::FIRST.plus(others), |last| last.plus(others + 1))
    }

    /// The last stamp that will be handed out after so many more; `None`: none was and none will be.
    pub fn last_after(&self, more: u32) -> Option<Stamp> {
        more.checked_sub(1)
            .map_or(self.last, |others| Some(self.after(others)))
    }

    fn mark(&mut self, from: Stamp, at: Timestamp, check_interval: Duration) {
        let step = i64::try_from(check_interval.as_secs() / 64)
            .unwrap_or(0)
            .max(1);
        if self
            .marks
            .back()
            .is_some_and(|last| at.0 < last.at.0 + step)
        {
            return;
        }
        if self.marks.len() == MAX_MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back(Mark { from, at });
    }

    /// When a stamp was taken: this time or a little later. `None` before the first mark.
    pub fn at(&self, stamp: Stamp) -> Option<Timestamp> {
        let after = self.marks.partition_point(|mark| mark.from <= stamp);
        let mark = self.marks.get(after.saturating_sub(1))?;
        Some(mark.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_stamp_is_never_later_than_the_stamp() {
        let mut clock = Clock::default();
        assert_eq!(clock.at(Stamp::FIRST), None);
        for number in 1..100 {
            let stamp = clock.next(Timestamp(number * 2), Duration::from_secs(640));
            assert_eq!(i64::from(stamp.get()), number);
        }
        let at = |number: u32| clock.at(Stamp::FIRST.plus(number - 1));
        assert_eq!(at(1), Some(Timestamp(2)));
        assert_eq!(at(5), Some(Timestamp(2)));
        assert_eq!(at(6), Some(Timestamp(12)));
        assert_eq!(at(99), Some(Timestamp(192)));
    }

    #[test]
    fn a_stamp_can_be_told_before_it_is_handed_out() {
        let mut clock = Clock::default();
        let second = clock.after(1);
        clock.next(Timestamp(1), Duration::ZERO);
        assert_eq!(clock.next(Timestamp(1), Duration::ZERO), second);
    }
}
