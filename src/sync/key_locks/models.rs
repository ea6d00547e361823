//! Models of key locks: all threads get their locks, in all tried orders of steps.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use super::{HeldLocks, KeyLocks, LockSet};
use crate::sync::models::{ANY_TIME, NEVER, fails, holds};
use crate::sync::thread;

fn set(numbers: impl IntoIterator<Item = usize>) -> LockSet {
    numbers.into_iter().collect()
}

fn take(locks: &KeyLocks, set: LockSet) -> HeldLocks<'_> {
    let mut taken = locks.none();
    taken.lock_more(&set);
    taken
}

/// Three threads whose sets overlap in pairs. Fault: they lock in the caller's order.
fn three_meet(patience: Duration, in_order: bool) {
    let (locks, inside) = (&KeyLocks::new(patience), &AtomicU32::new(0));
    thread::scope(|scope| {
        for numbers in [[1, 2], [2, 3], [3, 1]] {
            scope.spawn(move || {
                let taken = if in_order {
                    vec![take(locks, set(numbers))]
                } else {
                    numbers.map(|number| take(locks, set([number]))).into()
                };
                let count: usize = taken.iter().map(|taken| taken.guards.len()).sum();
                assert!(count == 2 || patience != NEVER, "skipped a lock");
                if count == 2 {
                    assert_eq!(inside.fetch_add(1, SeqCst), 0, "two in one lock");
                    thread::yield_now();
                    inside.fetch_sub(1, SeqCst);
                }
            });
        }
    });
    assert!(!locks.is_taken(&set([1, 2])) && !locks.is_taken(&set([2, 3])));
}

#[test]
fn locks_are_exclusive_and_do_not_deadlock() {
    holds(|| three_meet(NEVER, true));
    holds(|| three_meet(ANY_TIME, true));
    fails(|| three_meet(NEVER, false), "deadlock");
}

/// Two threads each hold a lock that the other passes. Fault: a thread keeps its own lock while it waits.
fn two_pass_each_other(keeps_its_own: bool) {
    let locks = &KeyLocks::new(NEVER);
    thread::scope(|scope| {
        for (mine, other) in [(1, 2), (2, 1)] {
            scope.spawn(move || {
                let mut taken = take(locks, set([mine]));
                thread::yield_now();
                if keeps_its_own {
                    locks.pass(|| set([other]));
                } else {
                    taken.yield_to(&set([3]), &set([mine, other]));
                    assert!(locks.is_taken(&set([mine])), "its own lock is locked again");
                }
            });
        }
    });
    assert!(!locks.is_taken(&set([1, 2, 3])));
}

#[test]
fn passing_each_others_locks_does_not_deadlock() {
    holds(|| two_pass_each_other(false));
    fails(|| two_pass_each_other(true), "deadlock");
}
