//! How long ago a stream had got how far: how far behind another site is, in time.

use crate::base::{FixedQueue, Nanos, UpdateNumber};

/// Points kept.
const POINTS_MAX: usize = 128;

/// Numbers that came within so much are one point, or within a share of all the time that points reach back. Beyond that the two that are
/// closest are made one: an age is right to a sixty-fourth of the longest, however long nothing came in between.
const SPACING_MIN: Nanos = Nanos::from_millis(1);

/// Oldest first: from when on the stream got to a number, beyond the one before it.
#[derive(Debug)]
pub(super) struct Ages {
    points: FixedQueue<(Nanos, UpdateNumber)>,
    newest: UpdateNumber,
}

impl Ages {
    pub fn new() -> Ages {
        Ages { points: FixedQueue::new(POINTS_MAX), newest: UpdateNumber::NONE }
    }

    /// It is another stream from here on.
    pub fn forget(&mut self) {
        while self.points.pop().is_some() {}
        self.newest = UpdateNumber::NONE;
    }

    /// The stream is at `newest`, and nobody asks any more for what is up to `had`.
    pub fn note(&mut self, now: Nanos, newest: UpdateNumber, had: UpdateNumber) {
        while self.points.front().is_some_and(|(_, number)| *number <= had) {
            self.points.pop();
        }
        if newest <= self.newest {
            return;
        }
        self.newest = newest;
        if newest <= had {
            return;
        }
        let reach = self.points.front().map_or(Nanos(0), |(since, _)| now.since(*since));
        let spacing = SPACING_MIN.max(Nanos(reach.0 / POINTS_MAX as u64));
        match self.points.back_mut() {
            Some((since, number)) if now.since(*since) < spacing => *number = newest,
            _ => {
                self.thin();
                self.points.push((now, newest));
            }
        }
    }

    /// Makes room for a point.
    fn thin(&mut self) {
        if self.points.room() > 0 {
            return;
        }
        let since = |index: usize| self.points.get(index).expect("it is full").0;
        let closest = (1..POINTS_MAX).min_by_key(|&index| since(index).since(since(index - 1)));
        for index in 0..POINTS_MAX {
            let (since, number) = self.points.pop().expect("it is full");
            match self.points.back_mut().filter(|_| Some(index) == closest) {
                Some((_, before)) => *before = number,
                None => self.points.push((since, number)),
            }
        }
    }

    /// How long the stream has been beyond `had`, at most.
    pub fn beyond(&self, now: Nanos, had: UpdateNumber) -> Nanos {
        let point = self.points.iter().find(|(_, number)| *number > had);
        point.map_or(Nanos(0), |(since, _)| now.since(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn an_age_is_right_to_a_sixty_fourth_however_long_it_is() {
        let mut ages = Ages::new();
        // A number a millisecond, of which nobody has any.
        for at in 1..=100_000u64 {
            ages.note(Nanos(at * MS), UpdateNumber(at), UpdateNumber::NONE);
        }
        let now = Nanos(100_000 * MS);
        for had in [0, 1, 999, 31_234, 99_000] {
            let (age, is) = (ages.beyond(now, UpdateNumber(had)).0, (100_000 - had - 1) * MS);
            assert!(age >= is && age <= is + 100_000 * MS / 48, "{age} for {is} after #{had}");
        }
        assert_eq!(ages.beyond(now, UpdateNumber(100_000)), Nanos(0));
    }

    #[test]
    fn a_long_silence_is_nobodys_age() {
        const DAY: u64 = 86_400_000 * MS;
        let mut ages = Ages::new();
        ages.note(Nanos(MS), UpdateNumber(1), UpdateNumber::NONE);
        for at in 0..1_000u64 {
            ages.note(Nanos(DAY + at * MS), UpdateNumber(2 + at), UpdateNumber::NONE);
        }
        let now = Nanos(DAY + 2_000 * MS);
        assert_eq!(ages.beyond(now, UpdateNumber::NONE), Nanos(DAY + 1_999 * MS));
        let age = ages.beyond(now, UpdateNumber(1));
        assert!(age >= Nanos(2_000 * MS) && age <= Nanos(DAY / 64), "{age:?}");
    }

    #[test]
    fn what_is_had_is_forgotten_and_short_lags_are_told_to_a_millisecond_again() {
        let mut ages = Ages::new();
        for at in 1..=10_000u64 {
            ages.note(Nanos(at * MS), UpdateNumber(at), UpdateNumber::NONE);
        }
        ages.note(Nanos(10_000 * MS), UpdateNumber(10_000), UpdateNumber(10_000));
        assert_eq!(ages.beyond(Nanos(20_000 * MS), UpdateNumber(10_000)), Nanos(0));
        ages.note(Nanos(20_000 * MS), UpdateNumber(10_001), UpdateNumber(10_000));
        ages.note(Nanos(20_003 * MS), UpdateNumber(10_002), UpdateNumber(10_000));
        let age = |had| ages.beyond(Nanos(20_005 * MS), UpdateNumber(had));
        assert_eq!((age(10_000), age(10_001), age(10_002)), (Nanos(5 * MS), Nanos(2 * MS), Nanos(0)));
    }
}
