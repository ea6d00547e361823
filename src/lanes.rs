//! Where those that met others too often go one after the other.

use std::fmt;
use std::time::Duration;

use crate::clock::deadline;
use crate::sync::{Mutex, MutexGuard};

/// As many as a [`LaneSet`] has bits.
const LANES: usize = 64;

/// Some of the lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneSet(u64);

impl LaneSet {
    /// Any number stands for a lane.
    pub(crate) fn add(&mut self, number: usize) {
        self.0 |= 1 << (number % LANES);
    }

    fn has(self, lane: usize) -> bool {
        self.0 & (1 << lane) != 0
    }
}

/// Who takes a lane keeps others off the things that stand for it. Nothing but progress depends on that: what is committed is
/// checked all the same.
pub(crate) struct Lanes {
    lanes: [Mutex<()>; LANES],
    patience: Duration,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// Lanes that are given, when this is dropped, to whoever has waited longest.
#[derive(Debug)]
pub(crate) struct Taken<'a>(Vec<MutexGuard<'a, ()>>);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.drain(..).for_each(MutexGuard::unlock_fair);
    }
}

impl Lanes {
    /// Nobody waits longer than `patience`.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { lanes: [(); LANES].map(Mutex::new), patience }
    }

    /// Whether anyone has one of them.
    pub(crate) fn is_taken(&self, set: LaneSet) -> bool {
        set != LaneSet::default() && self.chosen(set).any(Mutex::is_locked)
    }

    /// Waits for all of them, in order, so that no two wait for each other. Goes without those that it does not get in time.
    pub(crate) fn take(&self, set: LaneSet) -> Taken<'_> {
        let until = deadline(self.patience);
        let taken = self.chosen(set).filter_map(|lane| match until {
            Some(until) => lane.try_lock_until(until),
            None => Some(lane.lock()),
        });
        Taken(taken.collect())
    }

    fn chosen(&self, set: LaneSet) -> impl Iterator<Item = &Mutex<()>> {
        self.lanes.iter().enumerate().filter(move |(lane, _)| set.has(*lane)).map(|(_, mutex)| mutex)
    }
}

#[cfg(all(test, oncekey_shuttle))]
mod models;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> LaneSet {
        let mut set = LaneSet::default();
        for number in numbers {
            set.add(*number);
        }
        set
    }

    #[test]
    fn a_lane_is_taken_until_it_is_given_back() {
        let lanes = Lanes::new(Duration::ZERO);
        let taken = lanes.take(set(&[1, 66]));
        assert!(lanes.is_taken(set(&[65])) && lanes.is_taken(set(&[2, 3])), "any number stands for one");
        assert!(!lanes.is_taken(set(&[3])) && !lanes.is_taken(LaneSet::default()));
        assert_eq!(lanes.take(set(&[1, 2])).0.len(), 0, "goes without");
        drop(taken);
        assert!(!lanes.is_taken(set(&[1, 2])));
    }

    #[test]
    fn two_that_want_the_same_lanes_in_any_order_do_not_wait_for_each_other() {
        let lanes = Lanes::new(crate::clock::FOREVER);
        let count = Mutex::new(0);
        std::thread::scope(|scope| {
            for numbers in [[1, 2], [2, 1], [2, 3], [3, 1]] {
                let (lanes, count) = (&lanes, &count);
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let _taken = lanes.take(set(&numbers));
                        *count.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*count.lock(), 4000);
    }
}
