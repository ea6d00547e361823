//! Locks for transactions that conflicted too often, so that they run one after the other.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::types::clock::{deadline, monotonic};

/// The number of locks, at one byte each. With this number, different keys rarely share one. The models create the
/// table for every schedule, so theirs is small.
const LOCKS: usize = if cfg!(all(test, oncekey_shuttle)) { 1 << 4 } else { 1 << 16 };

/// A set of locks, in order.
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
    /// Maps any number to one of the locks.
    fn from_iter<I: IntoIterator<Item = usize>>(numbers: I) -> Self {
        Self(numbers.into_iter().map(|number| number % LOCKS).collect())
    }
}

/// A table of locks that stand for keys and ranges. Only progress depends on them: each commit is still checked for
/// conflicts.
pub(crate) struct KeyLocks {
    locks: Box<[Mutex<()>]>,
    /// The number of locks that are held or waited for.
    wanted: AtomicUsize,
    patience: Duration,
}

impl fmt::Debug for KeyLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyLocks").field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// Held locks. On drop, each goes to the thread that has waited longest.
#[derive(Debug)]
pub(crate) struct HeldLocks<'a> {
    locks: &'a KeyLocks,
    /// The time at which the owner first took or waited for locks. The deadline of all its waits counts from here.
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
        self.locks.wanted.fetch_sub(self.guards.len(), Ordering::Relaxed);
        self.guards.drain(..).for_each(MutexGuard::unlock_fair);
    }

    fn until(&mut self) -> Option<Instant> {
        self.since.get_or_insert_with(monotonic).checked_add(self.locks.patience)
    }

    /// Locks these too, until the deadline. Unlocks the held ones first, so that all are locked in order.
    pub(crate) fn lock_more(&mut self, more: &LockSet) {
        self.give_back();
        self.wanted.0.extend(&more.0);
        let until = self.until();
        self.locks.wanted.fetch_add(self.wanted.0.len(), Ordering::Relaxed);
        self.guards = self.locks.lock(&self.wanted, until);
        self.locks.wanted.fetch_sub(self.wanted.0.len() - self.guards.len(), Ordering::Relaxed);
    }

    /// Locks these and no others, until the deadline. If these are locked already, they stay locked. Otherwise a
    /// waiting thread could lock one in between, and change its key once more.
    pub(crate) fn lock_only(&mut self, set: &LockSet) {
        if self.wanted != *set {
            self.clear();
            self.lock_more(set);
        }
    }

    /// Unlocks all and empties the set. The deadline stays.
    pub(crate) fn clear(&mut self) {
        self.give_back();
        self.wanted = LockSet::default();
    }

    /// Returns true if the deadline has passed. A transaction may not continue then.
    pub(crate) fn is_overdue(&self) -> bool {
        // With a patience of zero there are no waits, so there is no deadline.
        let until = self.since.and_then(|since| since.checked_add(self.locks.patience));
        !self.locks.patience.is_zero() && until.is_some_and(|until| until <= monotonic())
    }

    /// Does nothing if no other thread holds one of these locks. Otherwise waits, because that thread has conflicted
    /// too often and goes first.
    ///
    /// After the wait, the locks of `set` are held. Those of `passed` only had to become free.
    pub(crate) fn yield_to(&mut self, set: &LockSet, passed: &LockSet) {
        if self.others_have(passed) {
            // Unlock the held locks first. Two threads that wait for each other's locks would otherwise both time out.
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
    /// Creates the table. No wait lasts longer than `patience`.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            locks: std::iter::repeat_with(Mutex::default).take(LOCKS).collect(),
            wanted: AtomicUsize::new(0),
            patience,
        }
    }

    /// Returns an empty set of held locks.
    pub(crate) fn none(&self) -> HeldLocks<'_> {
        HeldLocks { locks: self, since: None, wanted: LockSet::default(), guards: Vec::new() }
    }

    /// Returns true if any thread holds one of these locks.
    pub(crate) fn is_taken(&self, set: &LockSet) -> bool {
        self.chosen(set).any(Mutex::is_locked)
    }

    /// Locks these in order, so that no two threads wait for each other. Skips locks that are not free at the deadline.
    fn lock(&self, set: &LockSet, until: Option<Instant>) -> Vec<MutexGuard<'_, ()>> {
        self.chosen(set).filter_map(|mutex| lock_until(mutex, until)).collect()
    }

    /// Waits until each of these locks has been free once, at most for the patience. The caller must hold none. `set` is
    /// called only if a lock is held or waited for, which is rare.
    pub(crate) fn pass(&self, set: impl FnOnce() -> LockSet) {
        // Relaxed, because only progress depends on it: a change that comes too early makes a transaction run again.
        if self.wanted.load(Ordering::Relaxed) == 0 {
            return;
        }
        let set = set();
        if self.is_taken(&set) {
            self.wait(&set, deadline(self.patience));
        }
    }

    fn wait(&self, set: &LockSet, until: Option<Instant>) {
        for lock in self.chosen(set).filter(|lock| lock.is_locked()) {
            // Unlock without fairness. A fair hand-over would make newcomers queue for as long as there are any.
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
    fn a_lock_is_taken_until_it_is_unlocked() {
        let locks = KeyLocks::new(Duration::ZERO);
        let mut taken = take(&locks, &[1, LOCKS + 2]);
        assert!(locks.is_taken(&set(&[LOCKS + 1])) && locks.is_taken(&set(&[2, 3])), "any number stands for one");
        assert!(!locks.is_taken(&set(&[3])) && !locks.is_taken(&LockSet::default()));
        assert_eq!(take(&locks, &[1, 2, 3]).guards.len(), 1, "locks that are not free are skipped");
        let wanted = || locks.wanted.load(Ordering::Relaxed);
        assert_eq!(wanted(), 2);
        taken.lock_more(&set(&[3]));
        assert_eq!((taken.guards.len(), wanted()), (3, 3), "the earlier locks are locked again");
        taken.lock_only(&set(&[4]));
        assert_eq!(wanted(), 1);
        drop(taken);
        assert_eq!(wanted(), 0);
        locks.pass(|| panic!("no lock is wanted"));
        assert!(!locks.is_taken(&set(&[1, 2, 3])));
    }

    #[test]
    fn own_locks_do_not_block() {
        let locks = KeyLocks::new(Duration::ZERO);
        let (mine, _others) = (take(&locks, &[1, 2]), take(&locks, &[3]));
        assert!(mine.others_have(&set(&[1, 3])) && locks.none().others_have(&set(&[1])));
        assert!(!mine.others_have(&set(&[1, 2, 4])));
    }

    #[test]
    fn all_waits_of_one_holder_share_one_deadline() {
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
        // The first wait used the whole deadline. Otherwise each of the others would take as long again.
        taken.lock_more(&set(&[4]));
        assert_eq!(taken.guards.len(), 1, "a free lock is locked even after the deadline");
    }

    #[test]
    fn pass_waits_and_locks_nothing() {
        let locks = KeyLocks::new(crate::types::clock::FOREVER);
        let passed = std::sync::atomic::AtomicBool::new(false);
        let has_passed = || passed.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::scope(|scope| {
            let held = take(&locks, &[1]);
            scope.spawn(|| {
                locks.pass(|| set(&[1, 2]));
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

    // Between two runs of a transaction, a waiting writer once got the lock and changed the key in the next run.
    #[test]
    fn locks_that_stay_wanted_are_not_unlocked_in_between() {
        let locks = KeyLocks::new(crate::types::clock::FOREVER);
        let mut held = take(&locks, &[1]);
        let passed = std::sync::atomic::AtomicBool::new(false);
        let has_passed = || passed.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                locks.pass(|| set(&[1]));
                passed.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            for _ in 0..100 {
                std::thread::yield_now();
                held.lock_only(&set(&[1]));
                assert!(!has_passed());
            }
            held.lock_only(&set(&[2]));
        });
        assert!(!locks.is_taken(&set(&[1])) && locks.is_taken(&set(&[2])));
    }

    #[test]
    fn sets_in_any_order_do_not_deadlock() {
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
