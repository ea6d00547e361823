//! Who takes lanes gets them, under every order that is tried.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use super::{LaneSet, Lanes, Taken};
use crate::sync::models::{ANY_TIME, NEVER, fails, holds};
use crate::sync::thread;

fn set(numbers: impl IntoIterator<Item = usize>) -> LaneSet {
    numbers.into_iter().collect()
}

fn take(lanes: &Lanes, set: LaneSet) -> Taken<'_> {
    let mut taken = lanes.none();
    taken.widen(&set);
    taken
}

/// Each two of them meet in a lane. The fault: one lane after the other, in the order of the caller.
fn three_meet(patience: Duration, in_order: bool) {
    let (lanes, inside) = (&Lanes::new(patience), &AtomicU32::new(0));
    thread::scope(|scope| {
        for numbers in [[1, 2], [2, 3], [3, 1]] {
            scope.spawn(move || {
                let taken = if in_order {
                    vec![take(lanes, set(numbers))]
                } else {
                    numbers.map(|number| take(lanes, set([number]))).into()
                };
                let count: usize = taken.iter().map(|taken| taken.guards.len()).sum();
                assert!(count == 2 || patience != NEVER, "went without a lane");
                if count == 2 {
                    assert_eq!(inside.fetch_add(1, SeqCst), 0, "two in one lane");
                    thread::yield_now();
                    inside.fetch_sub(1, SeqCst);
                }
            });
        }
    });
    assert!(!lanes.is_taken(&set([1, 2])) && !lanes.is_taken(&set([2, 3])));
}

#[test]
fn who_takes_lanes_has_them_alone_and_nobody_waits_in_a_ring() {
    holds(|| three_meet(NEVER, true));
    holds(|| three_meet(ANY_TIME, true));
    fails(|| three_meet(NEVER, false), "deadlock");
}

/// Each has a lane that the other passes. The fault: it waits there with its own.
fn two_pass_each_other(keeps_its_own: bool) {
    let lanes = &Lanes::new(NEVER);
    thread::scope(|scope| {
        for (mine, other) in [(1, 2), (2, 1)] {
            scope.spawn(move || {
                let mut taken = take(lanes, set([mine]));
                thread::yield_now();
                if keeps_its_own {
                    lanes.pass(&set([other]));
                } else {
                    taken.give_way(&set([3]), &set([mine, other]));
                    assert!(lanes.is_taken(&set([mine])), "it has its own again");
                }
            });
        }
    });
    assert!(!lanes.is_taken(&set([1, 2, 3])));
}

#[test]
fn who_passes_each_other_s_lanes_does_not_wait_in_a_ring() {
    holds(|| two_pass_each_other(false));
    fails(|| two_pass_each_other(true), "deadlock");
}
