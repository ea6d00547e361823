//! Where those that met others too often go one after the other.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::sync::{Mutex, MutexGuard};
use crate::types::clock::{deadline, monotonic};

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
    /// When it took lanes first, or waited for some: all its waits end so long after that as anybody's.
    since: Option<Instant>,
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

    fn until(&mut self) -> Option<Instant> {
        self.since.get_or_insert_with(monotonic).checked_add(self.lanes.patience)
    }

    /// Waits for these too. What it has is given back first, so that all are taken at once and in order.
    pub(crate) fn widen(&mut self, more: &LaneSet) {
        self.give_back();
        self.wanted.0.extend(&more.0);
        let until = self.until();
        self.guards = self.lanes.lock(&self.wanted, until);
    }

    /// Gives all back, to begin with none again. Its deadline stays.
    pub(crate) fn clear(&mut self) {
        self.give_back();
        self.wanted = LaneSet::default();
    }

    /// Whether it has taken lanes, or waited for some, so long ago that it may not go on.
    pub(crate) fn is_overdue(&self) -> bool {
        // Where nobody waits there is nothing to end.
        let until = self.since.and_then(|since| since.checked_add(self.lanes.patience));
        !self.lanes.patience.is_zero() && until.is_some_and(|until| until <= monotonic())
    }

    /// Waits only if somebody else has one of them: whoever has met others too often goes first. `set` is taken then, `passed`
    /// only waited for.
    pub(crate) fn give_way(&mut self, set: &LaneSet, passed: &LaneSet) {
        if self.others_have(passed) {
            // With none of its own: two that wait for each other's would both wait in vain.
            self.give_back();
            let until = self.until();
            self.lanes.wait(&passed.without(&self.wanted), until);
            self.widen(set);
        } else if self.others_have(set) {
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
        Taken { lanes: self, since: None, wanted: LaneSet::default(), guards: Vec::new() }
    }

    /// Whether anyone has one of them.
    pub(crate) fn is_taken(&self, set: &LaneSet) -> bool {
        self.chosen(set).any(Mutex::is_locked)
    }

    /// Waits for all of them, in order, so that no two wait for each other. Goes without those that it does not get in time.
    fn lock(&self, set: &LaneSet, until: Option<Instant>) -> Vec<MutexGuard<'_, ()>> {
        self.chosen(set).filter_map(|lane| lock_until(lane, until)).collect()
    }

    /// For who has none: waits until each has been free, at most as long as anybody waits.
    pub(crate) fn pass(&self, set: &LaneSet) {
        if self.is_taken(set) {
            self.wait(set, deadline(self.patience));
        }
    }

    fn wait(&self, set: &LaneSet, until: Option<Instant>) {
        for lane in self.chosen(set).filter(|lane| lane.is_locked()) {
            // Not handed on: then newcomers would have to queue for as long as there are any.
            drop(lock_until(lane, until));
        }
    }

    fn chosen<'a>(&'a self, set: &LaneSet) -> impl Iterator<Item = &'a Mutex<()>> {
        set.0.iter().filter_map(|lane| self.lanes.get(*lane))
    }
}

fn lock_until(lane: &Mutex<()>, until: Option<Instant>) -> Option<MutexGuard<'_, ()>> {
    match until {
        Some(until) => lane.try_lock_until(until),
        None => Some(lane.lock()),
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
    fn all_waits_of_one_have_one_deadline() {
        let lanes = Lanes::new(Duration::from_millis(50));
        let _others = take(&lanes, &[1, 2, 3]);
        let mut taken = lanes.none();
        assert!(!taken.is_overdue());
        let began = monotonic();
        for numbers in [[1, 2], [2, 3], [3, 4]] {
            taken.widen(&set(&numbers));
            taken.give_way(&set(&[5]), &set(&numbers));
            taken.clear();
        }
        assert!(taken.is_overdue() && monotonic() >= began + Duration::from_millis(50));
        // The first wait took all of it: each of the others would have taken it again.
        taken.widen(&set(&[4]));
        assert_eq!(taken.guards.len(), 1, "what is free is had all the same");
    }

    #[test]
    fn who_passes_waits_and_takes_nothing() {
        let lanes = Lanes::new(crate::types::clock::FOREVER);
        let passed = std::sync::atomic::AtomicBool::new(false);
        let has_passed = || passed.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::scope(|scope| {
            let held = take(&lanes, &[1]);
            scope.spawn(|| {
                lanes.pass(&set(&[1, 2]));
                passed.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            for _ in 0..100 {
                std::thread::yield_now();
                assert!(!has_passed());
            }
            drop(held);
        });
        assert!(has_passed() && !lanes.is_taken(&set(&[1, 2])));
        let mut one = take(&lanes, &[3]);
        one.give_way(&set(&[4]), &set(&[3]));
        assert_eq!(one.guards.len(), 1, "nothing was in the way");
    }

    #[test]
    fn two_that_want_the_same_lanes_in_any_order_do_not_wait_for_each_other() {
        let lanes = Lanes::new(crate::types::clock::FOREVER);
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
