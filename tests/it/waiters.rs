//! Tests of waiting for another owner: which waiters wake, at which event, in which order. No waiter is ever left
//! behind.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Barrier, Mutex};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use http::StatusCode;
use oncekey::{
    Begin, CallOptions, Claim, Durability, Engine, Error, ErrorKind, Interruption, Manager, ManagerOptions,
    OnInterrupted, Status, Waited,
    http::{RequestPatch, Response},
    stage::Next,
};

use crate::threads::{LATE, Rng, Sleeper, patient, until, within};

pub(crate) const KEY: &str = "key";
pub(crate) const FOR_EVER: Duration = Duration::MAX;

pub(crate) type Ops = Manager<u64, u64>;

pub(crate) fn ops(engine: &Engine, policy: OnInterrupted) -> Ops {
    engine.manager_with("ops", ManagerOptions::new().on_interrupted(policy)).unwrap()
}

pub(crate) fn claim(ops: &Ops) -> Claim<u64, u64> {
    ops.begin(KEY).unwrap().into_claim().unwrap()
}

pub(crate) fn begin_or_wait(ops: &Ops, timeout: Duration) -> oncekey::Result<Begin<u64, u64>> {
    ops.begin_with(KEY, CallOptions::new().wait(timeout))
}

/// Starts a thread that runs `call`. Returns when it is parked: the engine counts one more waiter, and the thread
/// sleeps.
pub(crate) fn parked<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    ops: &'scope Ops,
    call: impl FnOnce(&Ops) -> R + Send + 'scope,
) -> ScopedJoinHandle<'scope, R> {
    let waiting = ops.engine().stats().waiting;
    let (sender, receiver) = channel();
    let handle = scope.spawn(move || {
        sender.send(Sleeper::me()).unwrap();
        call(ops)
    });
    let sleeper = receiver.recv().unwrap();
    until("it is parked", || ops.engine().stats().waiting == waiting + 1 && sleeper.sleeps());
    handle
}

pub(crate) fn assert_no_waiters(engine: &Engine) {
    let stats = engine.stats();
    assert_eq!((stats.waiting, stats.in_progress), (0, 0));
}

/// Set `ONCEKEY_WAITERS=10000` for more waiters.
#[test]
fn a_thousand_waiters_get_one_outcome_of_one_execution() {
    let waiters: u64 = std::env::var("ONCEKEY_WAITERS").map_or(1_000, |n| n.parse().unwrap());
    within(LATE * 2, move || {
        let limit = usize::try_from(waiters).unwrap();
        let engine = Engine::options().max_waiting_per_key(limit).max_waiting(limit).temporary().unwrap();
        let ops = &ops(&engine, OnInterrupted::Hold);
        let runs = &AtomicUsize::new(0);
        thread::scope(|scope| {
            let all: Vec<_> = (0..=waiters)
                .map(|me| {
                    let call = move || {
                        let run = || {
                            runs.fetch_add(1, SeqCst);
                            // The first owner keeps the key until all others wait.
                            until("all wait", || ops.engine().stats().waiting == waiters);
                            Ok(me)
                        };
                        // Use both ways to wait in one queue.
                        if me % 2 == 0 || runs.load(SeqCst) == 0 {
                            return ops.execute_with(KEY, patient(), |_| run()).unwrap().into_value();
                        }
                        match ops.wait(KEY, LATE).unwrap() {
                            Waited::Finished(done) => done.into_outcome().unwrap(),
                            other => panic!("{other:?}"),
                        }
                    };
                    thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, call).unwrap()
                })
                .collect();
            let values: Vec<u64> = all.into_iter().map(|one| one.join().unwrap()).collect();
            assert!(values.iter().all(|value| Some(value) == values.first()));
        });
        assert_eq!(runs.load(SeqCst), 1);
        assert_no_waiters(&engine);
    });
}

#[test]
fn successors_take_over_in_order_of_arrival() {
    const SUCCESSORS: usize = 24;
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops = &ops(&engine, OnInterrupted::Resume);
        let order = &Mutex::new(Vec::new());
        thread::scope(|scope| {
            let owner = claim(ops);
            let successors: Vec<_> = (0..SUCCESSORS)
                .map(|me| {
                    parked(scope, ops, move |ops| {
                        let claim = begin_or_wait(ops, FOR_EVER).unwrap().into_claim().unwrap();
                        order.lock().unwrap().push((me, claim.attempt()));
                        // Use the three ways to give up a key in turn.
                        match me % 3 {
                            0 => drop(claim.release().unwrap()),
                            1 => drop(claim.interrupt().unwrap()),
                            _ => drop(claim),
                        }
                    })
                })
                .collect();
            owner.release().unwrap();
            for successor in successors {
                successor.join().unwrap();
            }
        });
        let in_order: Vec<_> = (0..SUCCESSORS).map(|me| (me, u32::try_from(me).unwrap() + 2)).collect();
        assert_eq!(*order.lock().unwrap(), in_order);
        assert_no_waiters(&engine);
    });
}

/// Starts successors that send their claims to the test.
fn successors<'scope>(
    scope: &'scope Scope<'scope, '_>,
    ops: &'scope Ops,
    n: usize,
) -> Receiver<(usize, Begin<u64, u64>)> {
    let (send, claims) = channel();
    for me in 0..n {
        let send = send.clone();
        parked(scope, ops, move |ops| send.send((me, begin_or_wait(ops, FOR_EVER).unwrap())).unwrap());
    }
    claims
}

#[test]
fn a_released_key_goes_to_one_successor_and_the_others_stay_parked() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops = &ops(&engine, OnInterrupted::Hold);
        thread::scope(|scope| {
            let mut owner = claim(ops);
            let answers = successors(scope, ops, 8);
            for turn in 0..8 {
                owner.release().unwrap();
                let (successor, begun) = answers.recv().unwrap();
                let waiting = ops.engine().stats().waiting;
                assert_eq!((successor, waiting), (turn, 7 - turn as u64));
                owner = begun.into_claim().unwrap();
                assert_eq!(owner.attempt() as usize, turn + 2);
                // No other waiter has an answer: it would have arrived while two more commits became durable.
                ops.begin("other").unwrap().into_claim().unwrap().release().unwrap();
                assert!(answers.try_recv().is_err());
            }
            owner.succeed(&7).unwrap();
        });
        assert_no_waiters(&engine);
    });
}

/// Drops the claim in a panic.
fn panics_with(claim: Claim<u64, u64>) {
    let panicking = std::panic::AssertUnwindSafe(|| {
        let _claim = claim;
        // Skip the panic hook, which would print the message.
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    std::panic::catch_unwind(panicking).unwrap_err();
}

#[test]
fn under_resume_a_dropped_and_a_panicked_claim_hand_over() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops = &ops(&engine, OnInterrupted::Resume);
        thread::scope(|scope| {
            let first = claim(ops);
            let answers = successors(scope, ops, 3);
            drop(first);
            let (successor, begun) = answers.recv().unwrap();
            let second = begun.into_claim().unwrap();
            assert_eq!((successor, second.interruption()), (0, Some(Interruption::Dropped)));
            panics_with(second);
            let (successor, begun) = answers.recv().unwrap();
            let mut third = begun.into_claim().unwrap();
            assert_eq!((successor, third.interruption()), (1, Some(Interruption::Panicked)));
            third.release_on_drop(true);
            panics_with(third);
            let (successor, begun) = answers.recv().unwrap();
            assert_eq!(successor, 2);
            begun.into_claim().unwrap().succeed(&1).unwrap();
        });
        assert_no_waiters(&engine);
    });
}

#[test]
fn under_hold_a_dropped_and_a_panicked_claim_wake_all_waiters() {
    within(LATE, || {
        for panics in [false, true] {
            let engine = Engine::temporary().unwrap();
            let ops = &ops(&engine, OnInterrupted::Hold);
            thread::scope(|scope| {
                let owner = claim(ops);
                let successors: Vec<_> =
                    (0..8).map(|_| parked(scope, ops, |ops| begin_or_wait(ops, FOR_EVER))).collect();
                let others: Vec<_> = (0..8).map(|_| parked(scope, ops, |ops| ops.wait(KEY, FOR_EVER))).collect();
                if panics {
                    panics_with(owner);
                } else {
                    drop(owner);
                }
                for successor in successors {
                    let Begin::Interrupted(info) = successor.join().unwrap().unwrap() else {
                        panic!("not interrupted")
                    };
                    let cause = if panics { Interruption::Panicked } else { Interruption::Dropped };
                    assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(cause)));
                }
                for other in others {
                    assert!(matches!(other.join().unwrap().unwrap(), Waited::Interrupted));
                }
            });
            assert_no_waiters(&engine);
        }
    });
}

// The commit of a stage wakes the waiters by a path of its own.
#[test]
fn a_stage_that_ends_a_claim_wakes_all() {
    for fails in [false, true] {
        within(LATE, move || {
            let engine = Engine::temporary().unwrap();
            let ops = &ops(&engine, OnInterrupted::Hold);
            let mut claim = claim(ops);
            thread::scope(|scope| {
                let looks: Vec<_> =
                    (0..2).map(|_| parked(scope, ops, |ops| ops.wait(KEY, FOR_EVER).unwrap())).collect();
                let successors: Vec<_> =
                    (0..2).map(|_| parked(scope, ops, |ops| begin_or_wait(ops, FOR_EVER).unwrap())).collect();
                claim.work_stage(|_| Ok::<_, Error>(Next::advance("on"))).unwrap();
                assert_eq!(engine.stats().waiting, 4, "an advance is no end");
                claim.work_stage(|_| Ok::<_, Error>(if fails { Next::Fail(7) } else { Next::Succeed(7) })).unwrap();
                let expected = if fails { Err(7) } else { Ok(7) };
                for look in looks {
                    let Waited::Finished(done) = look.join().unwrap() else { panic!("it has ended") };
                    assert_eq!(done.into_outcome(), expected);
                }
                for successor in successors {
                    let Begin::Replay(done) = successor.join().unwrap() else { panic!("it has ended") };
                    assert_eq!(done.into_outcome(), expected);
                }
            });
            assert_no_waiters(&engine);
        });
    }
}

// While a waiter is parked the key has an owner, and an update is rejected. So the update must come between a release
// and the claim of a successor.
#[test]
fn an_update_in_a_transaction_ends_a_record_that_successors_wait_for() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let requests = &engine.requests("r").unwrap();
        let manager = requests.manager();
        for round in 0..50 {
            let key = &format!("k{round}");
            let claim = manager.begin(key).unwrap().into_claim().unwrap();
            thread::scope(|scope| {
                let successors: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| match manager.begin_with(key, CallOptions::new().wait(FOR_EVER)).unwrap() {
                            Begin::Claimed(claim) => drop(claim.release().unwrap()),
                            Begin::Replay(done) => assert_eq!(done.into_outcome().unwrap().status(), StatusCode::GONE),
                            other => panic!("{other:?}"),
                        })
                    })
                    .collect();
                until("all wait", || engine.stats().waiting == 4);
                claim.release().unwrap();
                let gone = || RequestPatch::new().response(Response::new(StatusCode::GONE));
                let update = || engine.atomic_phase(|tx| requests.with_transaction(tx).update(key, gone()));
                // A successor may own it for a moment.
                until("it has no owner", || update().is_ok());
                for successor in successors {
                    successor.join().unwrap();
                }
            });
            assert_eq!(manager.get(key).unwrap().unwrap().status(), Status::Succeeded);
        }
        assert_no_waiters(&engine);
    });
}

#[test]
fn revoking_a_record_begun_by_key_wakes_all() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops = &ops(&engine, OnInterrupted::Hold);
        assert!(ops.initiate(KEY).unwrap().is_some());
        thread::scope(|scope| {
            let others: Vec<_> = (0..8).map(|_| parked(scope, ops, |ops| ops.wait(KEY, FOR_EVER))).collect();
            ops.revoke(KEY).unwrap();
            for other in others {
                assert!(matches!(other.join().unwrap().unwrap(), Waited::Interrupted));
            }
            assert!(ops.remove(KEY).unwrap());
            assert!(ops.initiate(KEY).unwrap().is_some());
            let answers = successors(scope, ops, 8);
            ops.revoke(KEY).unwrap();
            for _ in 0..8 {
                let (_, begun) = answers.recv().unwrap();
                assert!(matches!(begun, Begin::Interrupted(_)));
            }
        });
        assert_no_waiters(&engine);
    });
}

/// In each round, several waiters time out at about the time of an ending, and one patient waiter must get the key. The
/// time-outs sweep over the duration of an ending.
fn time_out_at_an_ending(engine: &Engine, rounds: u32, sweep: Duration) -> [u64; 2] {
    let ops = &ops(engine, OnInterrupted::Resume);
    let counts = [AtomicU64::new(0), AtomicU64::new(0)];
    let [taken, missed] = &counts;
    for round in 0..rounds {
        let owner = claim(ops);
        let line = &Barrier::new(4);
        thread::scope(|scope| {
            for nth in 0..2 {
                scope.spawn(move || {
                    line.wait();
                    match begin_or_wait(ops, sweep * (round % 50 + nth) / 50).unwrap() {
                        Begin::Claimed(claim) => {
                            taken.fetch_add(1, SeqCst);
                            drop(claim);
                        }
                        Begin::InProgress(_) => drop(missed.fetch_add(1, SeqCst)),
                        other => panic!("round {round}: {other:?}"),
                    }
                });
            }
            scope.spawn(move || {
                line.wait();
                let claim = begin_or_wait(ops, FOR_EVER).unwrap().into_claim().unwrap();
                if round % 2 == 0 { drop(claim) } else { drop(claim.release().unwrap()) }
            });
            line.wait();
            if round % 3 == 0 { drop(owner) } else { drop(owner.release().unwrap()) }
        });
        // All waiters are gone, and none has kept a hand-over.
        let start = Instant::now();
        let next = begin_or_wait(ops, LATE).unwrap().into_claim().unwrap();
        assert!(start.elapsed() < LATE / 4, "round {round}: a hand-over was lost");
        next.release().unwrap();
        assert_no_waiters(engine);
    }
    counts.map(AtomicU64::into_inner)
}

#[test]
fn a_timeout_during_an_ending_loses_no_hand_over() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let start = Instant::now();
        claim(&ops(&engine, OnInterrupted::Resume)).release().unwrap();
        let sweep = start.elapsed();
        let [taken, missed] = time_out_at_an_ending(&engine, 200, sweep);
        // Without a disk the two events are hundreds of times closer.
        let eventual = Engine::options().durability(Durability::Eventual { interval: LATE }).temporary().unwrap();
        let [also, not] = time_out_at_an_ending(&eventual, 1_000, Duration::from_micros(100));
        println!("durable: {taken} took over, {missed} timed out; eventual: {also}, {not}");
        assert!(taken.min(missed).min(also).min(not) > 0, "only one side of the race was met");
    });
}

#[test]
fn an_observer_that_times_out_during_an_ending_sees_the_state_before_or_after() {
    within(LATE, || {
        let eventual = Engine::options().durability(Durability::Eventual { interval: LATE });
        let engine = eventual.temporary().unwrap();
        let ops = &ops(&engine, OnInterrupted::Hold);
        let mut rng = Rng::new(1);
        for round in 0..500_u64 {
            let key = &format!("key-{round}");
            let owner = ops.begin(key).unwrap().into_claim().unwrap();
            let (line, timeout) = (&Barrier::new(2), Duration::from_micros(rng.below(200)));
            thread::scope(|scope| {
                scope.spawn(move || {
                    line.wait();
                    match ops.wait(key, timeout).unwrap() {
                        Waited::Finished(done) => assert_eq!(done.outcome(), Ok(&round)),
                        Waited::TimedOut => {}
                        other => panic!("{other:?}"),
                    }
                });
                line.wait();
                owner.succeed(&round).unwrap();
            });
            let Waited::Finished(done) = ops.wait(key, Duration::ZERO).unwrap() else { panic!("round {round}") };
            assert_eq!(done.outcome(), Ok(&round));
        }
        assert_no_waiters(&engine);
    });
}

#[test]
fn a_wait_for_a_key_without_an_owner_returns_at_once() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops = &ops(&engine, OnInterrupted::Hold);
        assert!(matches!(ops.wait(KEY, FOR_EVER).unwrap(), Waited::Absent));
        claim(ops).release().unwrap();
        assert!(matches!(ops.wait(KEY, FOR_EVER).unwrap(), Waited::Released));
        claim(ops).succeed(&1).unwrap();
        assert!(matches!(ops.wait(KEY, FOR_EVER).unwrap(), Waited::Finished(done) if done.outcome() == Ok(&1)));
        assert!(ops.remove(KEY).unwrap());
        claim(ops).fail(&2).unwrap();
        assert!(matches!(ops.wait(KEY, FOR_EVER).unwrap(), Waited::Finished(done) if done.outcome() == Err(&2)));
        assert!(ops.remove(KEY).unwrap());
        drop(claim(ops));
        assert!(matches!(ops.wait(KEY, FOR_EVER).unwrap(), Waited::Interrupted));
        assert!(matches!(begin_or_wait(ops, FOR_EVER).unwrap(), Begin::Interrupted(_)));
        assert_no_waiters(&engine);
    });
}

#[test]
fn an_endless_wait_ends_at_the_ending_and_a_short_one_times_out() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops = &ops(&engine, OnInterrupted::Hold);
        let owner = claim(ops);
        // A claim of this thread is waited for like any other.
        assert!(matches!(ops.wait(KEY, Duration::from_millis(5)).unwrap(), Waited::TimedOut));
        let Begin::InProgress(pending) = begin_or_wait(ops, Duration::from_millis(5)).unwrap() else { panic!() };
        assert!(matches!(pending.wait(Duration::ZERO).unwrap(), Waited::TimedOut));
        thread::scope(|scope| {
            let observer = parked(scope, ops, |ops| ops.wait(KEY, FOR_EVER));
            let successor = parked(scope, ops, |ops| begin_or_wait(ops, FOR_EVER));
            let holder = parked(scope, ops, |_| pending.wait(FOR_EVER));
            assert!(!observer.is_finished() && !successor.is_finished() && !holder.is_finished());
            owner.succeed(&9).unwrap();
            for waited in [observer, holder] {
                assert!(matches!(waited.join().unwrap().unwrap(), Waited::Finished(done) if done.outcome() == Ok(&9)));
            }
            assert!(matches!(successor.join().unwrap().unwrap(), Begin::Replay(done) if done.outcome() == Ok(&9)));
        });
        assert_no_waiters(&engine);
    });
}

#[test]
fn close_wakes_all_waiters() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops = &ops(&engine, OnInterrupted::Hold);
        thread::scope(|scope| {
            let owner = claim(ops);
            let observers: Vec<_> = (0..8).map(|_| parked(scope, ops, |ops| ops.wait(KEY, FOR_EVER))).collect();
            let successors: Vec<_> = (0..8).map(|_| parked(scope, ops, |ops| begin_or_wait(ops, FOR_EVER))).collect();
            assert_eq!(engine.clone().close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
            for observer in observers {
                assert!(matches!(observer.join().unwrap().unwrap(), Waited::Closed));
            }
            for successor in successors {
                assert_eq!(successor.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
            }
            owner.succeed(&1).unwrap();
        });
        assert_eq!(engine.stats().waiting, 0);
        assert_eq!(ops.wait(KEY, FOR_EVER).unwrap_err().kind(), ErrorKind::Closed);
    });
}
