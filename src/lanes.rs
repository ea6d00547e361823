//! Where those that met others too often go one after the other.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::clock::deadline;
use crate::sync::{Mutex, MutexGuard};

/// A byte each, and so many that two things seldom share one: who has a lane stops nobody else. A model makes a table for every
/// schedule.
const LANES: usize = if cfg!(all(test, oncekey_shuttle)) { 1 << 4 } else { 1 << 16 };

/// Some of the lanes, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneSet(BTreeSet<usize>);

impl LaneSet {
    pub(crate) fn add(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    fn without(&self, others: &Self) -> Self {
        Self(self.0.difference(&others.0).copied().collect())
    }
}

impl FromIterator<usize> for LaneSet {
    /// Any number stands for a lane.
    fn from_iter<I: IntoIterator<Item = usize>>(numbers: I) -> Self {
        Self(numbers.into_iter().map(|number| number % LANES).collect())
    }
}

/// Who takes a lane keeps others off the things that stand for it. Nothing but progress depends on that: what is committed is
/// checked all the same.
pub(crate) struct Lanes {
    lanes: Box<[Mutex<()>]>,
    patience: Duration,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// Lanes that are given, when this is dropped, to whoever has waited longest.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    lanes: &'a Lanes,
    wanted: LaneSet,
    guards: Vec<MutexGuard<'a, ()>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Taken<'_> {
    fn give_back(&mut self) {
        self.guards.drain(..).for_each(MutexGuard::unlock_fair);
    }

    /// Waits for these too. What it has is given back first, so that all are taken at once and in order.
    pub(crate) fn widen(&mut self, more: &LaneSet) {
        self.give_back();
        self.wanted.0.extend(&more.0);
        self.guards = self.lanes.lock(&self.wanted);
    }

    /// Waits for them only if somebody else has one: whoever has met others too often goes first.
    pub(crate) fn give_way(&mut self, set: &LaneSet) {
        if self.others_have(set) {
            self.widen(set);
        }
    }

    fn others_have(&self, set: &LaneSet) -> bool {
        self.lanes.is_taken(&set.without(&self.wanted))
    }
}

impl Lanes {
    /// Nobody waits longer than `patience`.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { lanes: std::iter::repeat_with(Mutex::default).take(LANES).collect(), patience }
    }

    /// None yet.
    pub(crate) fn none(&self) -> Taken<'_> {
        Taken { lanes: self, wanted: LaneSet::default(), guards: Vec::new() }
    }

    /// Whether anyone has one of them.
    pub(crate) fn is_taken(&self, set: &LaneSet) -> bool {
        self.chosen(set).any(Mutex::is_locked)
    }

    /// Waits for all of them, in order, so that no two wait for each other. Goes without those that it does not get in time.
    fn lock(&self, set: &LaneSet) -> Vec<MutexGuard<'_, ()>> {
        let until = deadline(self.patience);
        let taken = self.chosen(set).filter_map(|lane| match until {
            Some(until) => lane.try_lock_until(until),
            None => Some(lane.lock()),
        });
        taken.collect()
    }

    fn chosen<'a>(&'a self, set: &LaneSet) -> impl Iterator<Item = &'a Mutex<()>> {
        set.0.iter().filter_map(|lane| self.lanes.get(*lane))
    }
}

#[cfg(all(test, oncekey_shuttle))]
mod models;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> LaneSet {
        numbers.iter().copied().collect()
    }

    fn take<'a>(lanes: &'a Lanes, numbers: &[usize]) -> Taken<'a> {
        let mut taken = lanes.none();
        taken.widen(&set(numbers));
        taken
    }

    #[test]
    fn a_lane_is_taken_until_it_is_given_back() {
        let lanes = Lanes::new(Duration::ZERO);
        let mut taken = take(&lanes, &[1, LANES + 2]);
        assert!(lanes.is_taken(&set(&[LANES + 1])) && lanes.is_taken(&set(&[2, 3])), "any number stands for one");
        assert!(!lanes.is_taken(&set(&[3])) && !lanes.is_taken(&LaneSet::default()));
        assert_eq!(take(&lanes, &[1, 2, 3]).guards.len(), 1, "goes without");
        taken.widen(&set(&[3]));
        assert_eq!(taken.guards.len(), 3, "those it had, too");
        drop(taken);
        assert!(!lanes.is_taken(&set(&[1, 2, 3])));
    }

    #[test]
    fn nobody_is_in_his_own_way() {
        let lanes = Lanes::new(Duration::ZERO);
        let (mine, _others) = (take(&lanes, &[1, 2]), take(&lanes, &[3]));
        assert!(mine.others_have(&set(&[1, 3])) && lanes.none().others_have(&set(&[1])));
        assert!(!mine.others_have(&set(&[1, 2, 4])));
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
                        let _taken = take(lanes, &numbers);
                        *count.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*count.lock(), 4000);
    }
}
