//! Where those that met others too often go one after the other.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::sync::{Mutex, MutexGuard};
use crate::types::clock::{deadline, monotonic};

/// A byte each, and so many that two things seldom share one: who has a lock stops nobody else. A model makes a table for every
/// schedule.
const LOCKS: usize = if cfg!(all(test, oncekey_shuttle)) { 1 << 4 } else { 1 << 16 };

/// Some of the locks, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LockSet(BTreeSet<usize>);

impl LockSet {
    pub(crate) fn add(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    fn without(&self, others: &Self) -> Self {
        Self(self.0.difference(&others.0).copied().collect())
    }
}

impl FromIterator<usize> for LockSet {
    /// Any number stands for a lock.
    fn from_iter<I: IntoIterator<Item = usize>>(numbers: I) -> Self {
        Self(numbers.into_iter().map(|number| number % LOCKS).collect())
    }
}

/// Who takes a lock keeps others off the things that stand for it. Nothing but progress depends on that: what is committed is
/// checked all the same.
pub(crate) struct KeyLocks {
    locks: Box<[Mutex<()>]>,
    patience: Duration,
}

impl fmt::Debug for KeyLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyLocks").field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// Locks that are given, when this is dropped, to whoever has waited longest.
#[derive(Debug)]
pub(crate) struct HeldLocks<'a> {
    locks: &'a KeyLocks,
    /// When it took locks first, or waited for some: all its waits end so long after that as anybody's.
    since: Option<Instant>,
    wanted: LockSet,
    guards: Vec<MutexGuard<'a, ()>>,
}

impl Drop for HeldLocks<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl HeldLocks<'_> {
    fn give_back(&mut self) {
        self.guards.drain(..).for_each(MutexGuard::unlock_fair);
    }

    fn until(&mut self) -> Option<Instant> {
        self.since.get_or_insert_with(monotonic).checked_add(self.locks.patience)
    }

    /// Waits for these too. What it has is given back first, so that all are taken at once and in order.
    pub(crate) fn lock_more(&mut self, more: &LockSet) {
        self.give_back();
        self.wanted.0.extend(&more.0);
        let until = self.until();
        self.guards = self.locks.lock(&self.wanted, until);
    }

    /// Gives all back, to begin with none again. Its deadline stays.
    pub(crate) fn clear(&mut self) {
        self.give_back();
        self.wanted = LockSet::default();
    }

    /// Whether it has taken locks, or waited for some, so long ago that it may not go on.
    pub(crate) fn is_overdue(&self) -> bool {
        // Where nobody waits there is nothing to end.
        let until = self.since.and_then(|since| since.checked_add(self.locks.patience));
        !self.locks.patience.is_zero() && until.is_some_and(|until| until <= monotonic())
    }

    /// Waits only if somebody else has one of them: whoever has met others too often goes first. `set` is taken then, `passed`
    /// only waited for.
    pub(crate) fn yield_to(&mut self, set: &LockSet, passed: &LockSet) {
        if self.others_have(passed) {
            // With none of its own: two that wait for each other's would both wait in vain.
            self.give_back();
            let until = self.until();
            self.locks.wait(&passed.without(&self.wanted), until);
            self.lock_more(set);
        } else if self.others_have(set) {
            self.lock_more(set);
        }
    }

    fn others_have(&self, set: &LockSet) -> bool {
        self.locks.is_taken(&set.without(&self.wanted))
    }
}

impl KeyLocks {
    /// Nobody waits longer than `patience`.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { locks: std::iter::repeat_with(Mutex::default).take(LOCKS).collect(), patience }
    }

    /// None yet.
    pub(crate) fn none(&self) -> HeldLocks<'_> {
        HeldLocks { locks: self, since: None, wanted: LockSet::default(), guards: Vec::new() }
    }

    /// Whether anyone has one of them.
    pub(crate) fn is_taken(&self, set: &LockSet) -> bool {
        self.chosen(set).any(Mutex::is_locked)
    }

    /// Waits for all of them, in order, so that no two wait for each other. Goes without those that it does not get in time.
    fn lock(&self, set: &LockSet, until: Option<Instant>) -> Vec<MutexGuard<'_, ()>> {
        self.chosen(set).filter_map(|mutex| lock_until(mutex, until)).collect()
    }

    /// For who has none: waits until each has been free, at most as long as anybody waits.
    pub(crate) fn pass(&self, set: &LockSet) {
        if self.is_taken(set) {
            self.wait(set, deadline(self.patience));
        }
    }

    fn wait(&self, set: &LockSet, until: Option<Instant>) {
        for lock in self.chosen(set).filter(|lock| lock.is_locked()) {
            // Not handed on: then newcomers would have to queue for as long as there are any.
            drop(lock_until(lock, until));
        }
    }

    fn chosen<'a>(&'a self, set: &LockSet) -> impl Iterator<Item = &'a Mutex<()>> {
        set.0.iter().filter_map(|lock| self.locks.get(*lock))
    }
}

fn lock_until(lock: &Mutex<()>, until: Option<Instant>) -> Option<MutexGuard<'_, ()>> {
    match until {
        Some(until) => lock.try_lock_until(until),
        None => Some(lock.lock()),
    }
}

#[cfg(all(test, oncekey_shuttle))]
mod models;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> LockSet {
        numbers.iter().copied().collect()
    }

    fn take<'a>(locks: &'a KeyLocks, numbers: &[usize]) -> HeldLocks<'a> {
        let mut taken = locks.none();
        taken.lock_more(&set(numbers));
        taken
    }

    #[test]
    fn a_lane_is_taken_until_it_is_given_back() {
        let locks = KeyLocks::new(Duration::ZERO);
        let mut taken = take(&locks, &[1, LOCKS + 2]);
        assert!(locks.is_taken(&set(&[LOCKS + 1])) && locks.is_taken(&set(&[2, 3])), "any number stands for one");
        assert!(!locks.is_taken(&set(&[3])) && !locks.is_taken(&LockSet::default()));
        assert_eq!(take(&locks, &[1, 2, 3]).guards.len(), 1, "goes without");
        taken.lock_more(&set(&[3]));
        assert_eq!(taken.guards.len(), 3, "those it had, too");
        drop(taken);
        assert!(!locks.is_taken(&set(&[1, 2, 3])));
    }

    #[test]
    fn nobody_is_in_his_own_way() {
        let locks = KeyLocks::new(Duration::ZERO);
        let (mine, _others) = (take(&locks, &[1, 2]), take(&locks, &[3]));
        assert!(mine.others_have(&set(&[1, 3])) && locks.none().others_have(&set(&[1])));
        assert!(!mine.others_have(&set(&[1, 2, 4])));
    }

    #[test]
    fn all_waits_of_one_have_one_deadline() {
        let locks = KeyLocks::new(Duration::from_millis(50));
        let _others = take(&locks, &[1, 2, 3]);
        let mut taken = locks.none();
        assert!(!taken.is_overdue());
        let began = monotonic();
        for numbers in [[1, 2], [2, 3], [3, 4]] {
            taken.lock_more(&set(&numbers));
            taken.yield_to(&set(&[5]), &set(&numbers));
            taken.clear();
        }
        assert!(taken.is_overdue() && monotonic() >= began + Duration::from_millis(50));
        // The first wait took all of it: each of the others would have taken it again.
        taken.lock_more(&set(&[4]));
        assert_eq!(taken.guards.len(), 1, "what is free is had all the same");
    }

    #[test]
    fn who_passes_waits_and_takes_nothing() {
        let locks = KeyLocks::new(crate::types::clock::FOREVER);
        let passed = std::sync::atomic::AtomicBool::new(false);
        let has_passed = || passed.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::scope(|scope| {
            let held = take(&locks, &[1]);
            scope.spawn(|| {
                locks.pass(&set(&[1, 2]));
                passed.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            for _ in 0..100 {
                std::thread::yield_now();
                assert!(!has_passed());
            }
            drop(held);
        });
        assert!(has_passed() && !locks.is_taken(&set(&[1, 2])));
        let mut one = take(&locks, &[3]);
        one.yield_to(&set(&[4]), &set(&[3]));
        assert_eq!(one.guards.len(), 1, "nothing was in the way");
    }

    #[test]
    fn two_that_want_the_same_lanes_in_any_order_do_not_wait_for_each_other() {
        let locks = KeyLocks::new(crate::types::clock::FOREVER);
        let count = Mutex::new(0);
        std::thread::scope(|scope| {
            for numbers in [[1, 2], [2, 1], [2, 3], [3, 1]] {
                let (locks, count) = (&locks, &count);
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let _taken = take(locks, &numbers);
                        *count.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*count.lock(), 4000);
    }
}
