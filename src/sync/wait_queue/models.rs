//! Whoever waits for a key is woken, under every order that is tried; and each model shows the fault that is put into it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use super::{Role, WaitQueue, Waiter, Woken};
use crate::sync::models::{ANY_TIME, NEVER, always_holds, fails, holds};
use crate::sync::{Mutex, thread};
use crate::types::clock::deadline;

const KEY: u32 = 7;
/// What shuttle says of tasks that wait for ever.
const LEFT_BEHIND: &str = "deadlock";

/// A fault in a caller.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    LooksBeforeEntering,
    /// A slot dropped early: what it was there for is lost.
    LeavesBeforeParking,
    WakesBeforeCommitting,
    KeepsItsTurn,
    DoesNotSayItClaimed,
    WakesAtCloseOnly,
    ForgetsTheHeir,
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

/// A record of one key, changed as `protocol` changes it: the commit decides, the wait queue only waits.
#[derive(Default)]
struct Record {
    wait_queue: WaitQueue<u32>,
    state: Mutex<State>,
    /// Counts changes, under the lock of the state.
    revision: AtomicU32,
    owners: AtomicU32,
}

impl Record {
    fn look(&self) -> (State, u32) {
        let state = self.state.lock();
        (*state, self.revision.load(SeqCst))
    }

    /// One commit: either somebody owns it, or the caller does from now on.
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

    /// As `Protocol::begin_or_wait`.
    fn begin_or_wait(&self, patience: Duration, fault: Fault) -> Got {
        let deadline = deadline(patience);
        let early = (fault == Fault::LooksBeforeEntering).then(|| self.begin());
        let mut waiter = self.wait_queue.enter(KEY, Role::Successor);
        let (mut overtaken, mut timed_out, mut early) = (false, false, early);
        loop {
            match early.take().unwrap_or_else(|| self.begin()) {
                State::Free => {
                    if fault != Fault::DoesNotSayItClaimed {
                        waiter.claimed();
                    }
                    return Got::Claimed;
                }
                State::Ended => return Got::Ended,
                State::Owned if timed_out => {
                    return if fault == Fault::KeepsItsTurn { keep(waiter) } else { Got::TimedOut };
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

    /// As `Protocol::wait`.
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
                    State::Free if fault == Fault::ForgetsTheHeir => Some(Got::Released),
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

/// A waiter that nobody drops.
fn keep(waiter: Waiter<'_, u32>) -> Got {
    std::mem::forget(waiter);
    Got::TimedOut
}

fn everybody_learns_of_an_ending(fault: Fault) {
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
fn an_ending_leaves_nobody_behind() {
    holds(|| everybody_learns_of_an_ending(Fault::None));
    fails(|| everybody_learns_of_an_ending(Fault::LooksBeforeEntering), LEFT_BEHIND);
    fails(|| everybody_learns_of_an_ending(Fault::LeavesBeforeParking), LEFT_BEHIND);
    fails(|| everybody_learns_of_an_ending(Fault::WakesBeforeCommitting), LEFT_BEHIND);
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
fn an_ending_leaves_one_who_waits_behind_in_no_order_at_all() {
    always_holds(|| one_waits(true, Fault::None));
    always_holds(|| one_waits(false, Fault::None));
    fails(|| one_waits(true, Fault::LooksBeforeEntering), LEFT_BEHIND);
}

/// Owners give up, newcomers overtake, the impatient leave: every patient one has its go.
fn everybody_has_a_go(fault: Fault) {
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
    assert!(fault == Fault::KeepsItsTurn || record.wait_queue.is_empty());
}

#[test]
fn a_release_never_loses_the_turn() {
    holds(|| everybody_has_a_go(Fault::None));
    fails(|| everybody_has_a_go(Fault::KeepsItsTurn), LEFT_BEHIND);
}

/// An owner gives up beside a successor: whoever only waits is told what the successor has made of it, or that it has left.
fn an_observer_beside_an_heir(patience: Duration, fault: Fault) {
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
                    Woken::TimedOut if fault == Fault::KeepsItsTurn => std::mem::forget(waiter),
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
    assert!(fault == Fault::KeepsItsTurn || record.wait_queue.is_empty());
}

#[test]
fn an_observer_learns_what_the_heir_made_of_it() {
    holds(|| an_observer_beside_an_heir(NEVER, Fault::None));
    holds(|| an_observer_beside_an_heir(ANY_TIME, Fault::None));
    fails(|| an_observer_beside_an_heir(NEVER, Fault::ForgetsTheHeir), "not what the successor made");
    fails(|| an_observer_beside_an_heir(NEVER, Fault::LooksOnce), "not what the successor made");
    fails(|| an_observer_beside_an_heir(ANY_TIME, Fault::KeepsItsTurn), LEFT_BEHIND);
}

/// A hand-over for one of three; what it does not give on stays its own.
fn one_of_three(fault: Fault) {
    let (wait_queue, turns) = (&WaitQueue::default(), &AtomicU32::new(0));
    let waiters = [(); 3].map(|()| wait_queue.enter(KEY, Role::Successor));
    thread::scope(|scope| {
        for mut waiter in waiters {
            scope.spawn(move || match waiter.park(None) {
                Woken::HandedOver => {
                    turns.fetch_add(1, SeqCst);
                    if fault != Fault::DoesNotSayItClaimed {
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
fn an_owner_who_gives_up_has_exactly_one_heir() {
    holds(|| one_of_three(Fault::None));
    fails(|| one_of_three(Fault::DoesNotSayItClaimed), "successors");
}

/// The first successor gets the hand-over, or its deadline passes, or it panics: the second has it in the end.
fn a_hand_over_given_on(patience: Duration, panics: bool, fault: Fault) {
    let wait_queue = &WaitQueue::default();
    let [mut first, mut second] = [(); 2].map(|()| wait_queue.enter(KEY, Role::Successor));
    thread::scope(|scope| {
        scope.spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(move || {
                let woken = first.park(deadline(patience));
                if fault == Fault::KeepsItsTurn {
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
fn a_hand_over_that_meets_a_time_out_goes_to_the_next() {
    holds(|| a_hand_over_given_on(ANY_TIME, false, Fault::None));
    fails(|| a_hand_over_given_on(ANY_TIME, false, Fault::KeepsItsTurn), LEFT_BEHIND);
}

#[test]
fn a_hand_over_that_meets_a_panic_goes_to_the_next() {
    holds(|| a_hand_over_given_on(NEVER, true, Fault::None));
    holds(|| a_hand_over_given_on(ANY_TIME, true, Fault::None));
    fails(|| a_hand_over_given_on(NEVER, false, Fault::KeepsItsTurn), LEFT_BEHIND);
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
        // A hand-over on its way does not keep a successor from learning of the close.
        record.wait_queue.hand_over(&KEY);
        if fault == Fault::WakesAtCloseOnly { record.wait_queue.wake_all(&KEY) } else { record.wait_queue.close() }
    });
    assert!(record.wait_queue.is_empty());
}

#[test]
fn a_close_leaves_nobody_parked() {
    holds(|| a_close(Fault::None));
    fails(|| a_close(Fault::WakesAtCloseOnly), LEFT_BEHIND);
}
