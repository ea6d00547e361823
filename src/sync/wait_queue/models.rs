//! Models of the wait queue: every waiter is woken, in all tried orders of steps. Each model also detects a fault that
//! is put into it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use super::{Role, WaitQueue, Waiter, Woken};
use crate::sync::models::{ANY_TIME, NEVER, always_holds, fails, holds};
use crate::sync::{Mutex, thread};
use crate::types::clock::deadline;

const KEY: u32 = 7;
/// The message of shuttle if tasks wait for ever.
const DEADLOCK: &str = "deadlock";

/// A fault in a caller.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    LooksBeforeEntering,
    /// Drops its waiter too early, so that its hand-over or wake-up is lost.
    LeavesBeforeParking,
    WakesBeforeCommitting,
    KeepsItsHandOver,
    DoesNotReportItsClaim,
    WakesAtCloseOnly,
    ForgetsTheSuccessor,
    LooksOnce,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Owned,
    Free,
    Ended,
}

#[derive(Debug, PartialEq, Eq)]
enum Got {
    Claimed,
    Released,
    Ended,
    TimedOut,
    Closed,
}

/// A record of one key. The record changes as in `protocol`: the commit decides, the wait queue only waits.
#[derive(Default)]
struct Record {
    wait_queue: WaitQueue<u32>,
    state: Mutex<State>,
    /// The number of changes. Written under the lock of the state.
    revision: AtomicU32,
    owners: AtomicU32,
}

impl Record {
    fn look(&self) -> (State, u32) {
        let state = self.state.lock();
        (*state, self.revision.load(SeqCst))
    }

    /// Commits a begin. Returns the state before; if it was free, the caller owns the key now.
    fn begin(&self) -> State {
        let mut state = self.state.lock();
        let found = *state;
        if found == State::Free {
            *state = State::Owned;
            self.revision.fetch_add(1, SeqCst);
            assert_eq!(self.owners.fetch_add(1, SeqCst), 0, "two owners");
        }
        found
    }

    fn commit(&self, becomes: State) {
        let mut state = self.state.lock();
        self.owners.store(0, SeqCst);
        *state = becomes;
        self.revision.fetch_add(1, SeqCst);
    }

    fn end(&self, fault: Fault) {
        if fault == Fault::WakesBeforeCommitting {
            self.wait_queue.wake_all(&KEY);
            return self.commit(State::Ended);
        }
        self.commit(State::Ended);
        self.wait_queue.wake_all(&KEY);
    }

    fn give_up(&self) {
        self.commit(State::Free);
        self.wait_queue.hand_over(&KEY);
    }

    /// Does the same as `Protocol::begin_or_wait`.
    fn begin_or_wait(&self, patience: Duration, fault: Fault) -> Got {
        let deadline = deadline(patience);
        let early = (fault == Fault::LooksBeforeEntering).then(|| self.begin());
        let mut waiter = self.wait_queue.enter(KEY, Role::Successor);
        let (mut overtaken, mut timed_out, mut early) = (false, false, early);
        loop {
            match early.take().unwrap_or_else(|| self.begin()) {
                State::Free => {
                    if fault != Fault::DoesNotReportItsClaim {
                        waiter.claimed();
                    }
                    return Got::Claimed;
                }
                State::Ended => return Got::Ended,
                State::Owned if timed_out => {
                    return if fault == Fault::KeepsItsHandOver { keep(waiter) } else { Got::TimedOut };
                }
                State::Owned => {}
            }
            if overtaken {
                waiter.rejoin();
                overtaken = false;
                continue;
            }
            if fault == Fault::LeavesBeforeParking {
                drop(waiter);
                waiter = self.wait_queue.enter(KEY, Role::Successor);
            }
            match waiter.park(deadline) {
                Woken::Changed | Woken::HandedOver => overtaken = true,
                Woken::TimedOut => timed_out = true,
                Woken::Closed => return Got::Closed,
            }
        }
    }

    /// Does the same as `Protocol::wait`.
    fn wait(&self, patience: Duration) -> Got {
        self.wait_or(patience, Fault::None)
    }

    fn wait_or(&self, patience: Duration, fault: Fault) -> Got {
        let deadline = deadline(patience);
        let mut waiter = self.wait_queue.enter(KEY, Role::Observer);
        let ended = || {
            let mut read = self.look();
            loop {
                return match read.0 {
                    State::Free if fault == Fault::ForgetsTheSuccessor => Some(Got::Released),
                    State::Free if self.wait_queue.has_successor(&KEY) => None,
                    State::Free => {
                        let again = self.look();
                        if again == read || fault == Fault::LooksOnce {
                            return Some(Got::Released);
                        }
                        read = again;
                        continue;
                    }
                    State::Ended => Some(Got::Ended),
                    State::Owned => None,
                };
            }
        };
        loop {
            if let Some(ended) = ended() {
                return ended;
            }
            match waiter.park(deadline) {
                Woken::Changed | Woken::HandedOver => {
                    if let Some(ended) = ended() {
                        return ended;
                    }
                    waiter.rejoin();
                }
                Woken::TimedOut => return Got::TimedOut,
                Woken::Closed => return Got::Closed,
            }
        }
    }
}

/// Leaks the waiter, so that its drop does not run.
fn keep(waiter: Waiter<'_, u32>) -> Got {
    std::mem::forget(waiter);
    Got::TimedOut
}

fn all_waiters_learn_of_an_ending(fault: Fault) {
    let record = &Record::default();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || assert_eq!(record.begin_or_wait(NEVER, fault), Got::Ended));
        }
        scope.spawn(|| assert_eq!(record.wait(NEVER), Got::Ended));
        scope.spawn(|| {
            let got = record.begin_or_wait(ANY_TIME, Fault::None);
            assert!(matches!(got, Got::Ended | Got::TimedOut), "{got:?}");
        });
        record.end(fault);
    });
    assert!(record.wait_queue.is_empty());
}

#[test]
fn an_ending_wakes_all_waiters() {
    holds(|| all_waiters_learn_of_an_ending(Fault::None));
    fails(|| all_waiters_learn_of_an_ending(Fault::LooksBeforeEntering), DEADLOCK);
    fails(|| all_waiters_learn_of_an_ending(Fault::LeavesBeforeParking), DEADLOCK);
    fails(|| all_waiters_learn_of_an_ending(Fault::WakesBeforeCommitting), DEADLOCK);
}

fn one_waits(begins: bool, fault: Fault) {
    let record = &Record::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            let got = if begins { record.begin_or_wait(NEVER, fault) } else { record.wait(NEVER) };
            assert_eq!(got, Got::Ended);
        });
        record.end(fault);
    });
}

#[test]
fn an_ending_wakes_its_waiter_in_every_order() {
    always_holds(|| one_waits(true, Fault::None));
    always_holds(|| one_waits(false, Fault::None));
    fails(|| one_waits(true, Fault::LooksBeforeEntering), DEADLOCK);
}

/// Owners give up, newcomers overtake, some waiters time out: every patient waiter gets its turn.
fn every_patient_waiter_gets_its_turn(fault: Fault) {
    let record = &Record::default();
    thread::scope(|scope| {
        for patience in [NEVER, NEVER, ANY_TIME] {
            scope.spawn(move || match record.begin_or_wait(patience, fault) {
                Got::Claimed => record.give_up(),
                other => assert_eq!((other, patience), (Got::TimedOut, ANY_TIME)),
            });
        }
        scope.spawn(|| {
            if record.begin() == State::Free {
                record.give_up();
            }
        });
        record.give_up();
    });
    assert!(fault == Fault::KeepsItsHandOver || record.wait_queue.is_empty());
}

#[test]
fn a_release_always_wakes_a_successor() {
    holds(|| every_patient_waiter_gets_its_turn(Fault::None));
    fails(|| every_patient_waiter_gets_its_turn(Fault::KeepsItsHandOver), DEADLOCK);
}

/// An owner gives up beside a successor. The observer learns the result of the successor, or that it has left.
fn an_observer_beside_a_successor(patience: Duration, fault: Fault) {
    let record = &Record::default();
    let mut waiter = record.wait_queue.enter(KEY, Role::Successor);
    thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                if record.begin() == State::Free {
                    waiter.claimed();
                    return record.end(Fault::None);
                }
                match waiter.park(deadline(patience)) {
                    Woken::TimedOut if fault == Fault::KeepsItsHandOver => std::mem::forget(waiter),
                    Woken::TimedOut => drop(waiter),
                    _ => {
                        waiter.rejoin();
                        continue;
                    }
                }
                return;
            }
        });
        scope.spawn(move || {
            let got = record.wait_or(NEVER, fault);
            assert!(
                got == Got::Ended || patience == ANY_TIME && got == Got::Released,
                "not what the successor made: {got:?}"
            );
        });
        record.give_up();
    });
    assert!(fault == Fault::KeepsItsHandOver || record.wait_queue.is_empty());
}

#[test]
fn an_observer_learns_the_outcome_of_the_successor() {
    holds(|| an_observer_beside_a_successor(NEVER, Fault::None));
    holds(|| an_observer_beside_a_successor(ANY_TIME, Fault::None));
    fails(|| an_observer_beside_a_successor(NEVER, Fault::ForgetsTheSuccessor), "not what the successor made");
    fails(|| an_observer_beside_a_successor(NEVER, Fault::LooksOnce), "not what the successor made");
    fails(|| an_observer_beside_a_successor(ANY_TIME, Fault::KeepsItsHandOver), DEADLOCK);
}

/// One of three successors is handed the key. Without a pass-on it stays with that one.
fn one_of_three(fault: Fault) {
    let (wait_queue, turns) = (&WaitQueue::default(), &AtomicU32::new(0));
    let waiters = [(); 3].map(|()| wait_queue.enter(KEY, Role::Successor));
    thread::scope(|scope| {
        for mut waiter in waiters {
            scope.spawn(move || match waiter.park(None) {
                Woken::HandedOver => {
                    turns.fetch_add(1, SeqCst);
                    if fault != Fault::DoesNotReportItsClaim {
                        waiter.claimed();
                    }
                }
                other => assert_eq!(other, Woken::Closed),
            });
        }
        wait_queue.hand_over(&KEY);
        wait_queue.close();
    });
    assert_eq!(turns.load(SeqCst), 1, "successors");
}

#[test]
fn a_hand_over_goes_to_exactly_one_successor() {
    holds(|| one_of_three(Fault::None));
    fails(|| one_of_three(Fault::DoesNotReportItsClaim), "successors");
}

/// The first successor is handed the key, or times out, or panics. In the end the second gets it.
fn a_hand_over_given_on(patience: Duration, panics: bool, fault: Fault) {
    let wait_queue = &WaitQueue::default();
    let [mut first, mut second] = [(); 2].map(|()| wait_queue.enter(KEY, Role::Successor));
    thread::scope(|scope| {
        scope.spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(move || {
                let woken = first.park(deadline(patience));
                if fault == Fault::KeepsItsHandOver {
                    std::mem::forget(first);
                    return;
                }
                if panics {
                    resume_unwind(Box::new(woken));
                }
                drop(first);
            }));
            assert_eq!(ended.is_err(), panics);
        });
        scope.spawn(|| wait_queue.hand_over(&KEY));
        assert_eq!(second.park(None), Woken::HandedOver);
    });
    second.claimed();
    assert!(wait_queue.is_empty());
}

#[test]
fn a_hand_over_during_a_time_out_goes_to_the_next() {
    holds(|| a_hand_over_given_on(ANY_TIME, false, Fault::None));
    fails(|| a_hand_over_given_on(ANY_TIME, false, Fault::KeepsItsHandOver), DEADLOCK);
}

#[test]
fn a_hand_over_during_a_panic_goes_to_the_next() {
    holds(|| a_hand_over_given_on(NEVER, true, Fault::None));
    holds(|| a_hand_over_given_on(ANY_TIME, true, Fault::None));
    fails(|| a_hand_over_given_on(NEVER, false, Fault::KeepsItsHandOver), DEADLOCK);
}

fn a_close(fault: Fault) {
    let record = &Record::default();
    thread::scope(|scope| {
        for patience in [NEVER, NEVER, ANY_TIME] {
            scope.spawn(move || {
                let got = record.begin_or_wait(patience, Fault::None);
                assert!(got == Got::Closed || (got == Got::TimedOut && patience == ANY_TIME), "{got:?}");
            });
        }
        scope.spawn(|| assert_eq!(record.wait(NEVER), Got::Closed));
        // A hand-over that is under way does not hide the close from a successor.
        record.wait_queue.hand_over(&KEY);
        if fault == Fault::WakesAtCloseOnly { record.wait_queue.wake_all(&KEY) } else { record.wait_queue.close() }
    });
    assert!(record.wait_queue.is_empty());
}

#[test]
fn a_close_wakes_all_parked_waiters() {
    holds(|| a_close(Fault::None));
    fails(|| a_close(Fault::WakesAtCloseOnly), DEADLOCK);
}
