//! Tests of the answers that a wait returns.

use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

use oncekey::{
    Begin, Engine, ExecuteError, Manager, OnInterrupted, Waited,
    clock::{BootTime, Clock, SystemClock},
    http::NewRequest,
};

use crate::common::*;
use crate::threads::{LATE, patient, until, within};
use crate::waiters::{FOR_EVER, KEY, assert_no_waiters, begin_or_wait, claim, ops, parked};

#[test]
fn an_observer_gets_the_outcome_of_the_successor() {
    within(LATE, || {
        let (engine, _clock) = engine();
        let ops: &Manager<u64> = &engine.manager("m").unwrap();
        for n in 0..50 {
            let key = &format!("k{n}");
            let owner = ops.begin(key).unwrap().into_claim().unwrap();
            thread::scope(|scope| {
                let successor = scope.spawn(|| ops.execute_with(key, patient(), |_| Ok(7)));
                let observer = scope.spawn(|| ops.wait(key, LATE));
                until("both wait", || engine.stats().waiting == 2);
                owner.release().unwrap();
                successor.join().unwrap().unwrap();
                let answer = observer.join().unwrap().unwrap();
                assert!(matches!(&answer, Waited::Finished(done) if done.outcome().unwrap() == &7), "{answer:?}");
            });
        }
    });
}

#[test]
fn wait_waits_for_a_created_request() {
    within(LATE, || {
        let (engine, _clock) = engine();
        let requests = &engine.requests("r").unwrap();
        let created = requests.create(NewRequest::new("POST", "/orders")).unwrap();
        let key = created.key();
        assert!(matches!(requests.manager().wait(key, Duration::ZERO).unwrap(), Waited::TimedOut));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| requests.manager().wait(key, LATE).unwrap());
            until("it waits", || engine.stats().waiting == 1);
            assert!(requests.manager().remove(key).unwrap());
            assert!(matches!(waiting.join().unwrap(), Waited::Absent));
        });
    });
}

#[test]
fn events_of_a_closed_engine_end() {
    let (engine, _clock) = engine();
    let other = engine.clone();
    let before = other.events();
    engine.close().unwrap();
    for events in [before, other.events()] {
        assert_eq!(events.count(), 0);
    }
}

/// A clock that calls the engine that uses it.
#[derive(Clone, Debug, Default)]
struct Nosy(Arc<OnceLock<Engine>>);

impl Clock for Nosy {
    fn wall(&self) -> SystemTime {
        SystemClock.wall()
    }

    fn boot(&self) -> Option<BootTime> {
        if let Some(engine) = self.0.get() {
            let _ = engine.stats();
        }
        SystemClock.boot()
    }
}

#[test]
fn the_clock_is_read_with_no_lock_held() {
    within(LATE, || {
        let clock = Nosy::default();
        let engine = Engine::options().clock(clock.clone()).temporary_store().unwrap();
        clock.0.set(engine.clone()).unwrap();
        let ops: &Manager<u64> = &engine.manager("m").unwrap();
        ops.execute("k", |_| Ok(1)).unwrap();
        assert!(ops.extend("k", DAY * 2).unwrap());
        engine.atomic_phase(|tx| tx.table("t")?.insert("a", "b")).unwrap();
        engine.compact_now().unwrap();
        engine.close().unwrap();
    });
}

/// Asserts the answer to a call that may not wait.
#[track_caller]
fn is_refused(begin: &oncekey::Result<Begin<u64, u64>>) {
    assert!(matches!(begin, Ok(Begin::InProgress(_))), "{begin:?}");
}

#[test]
fn calls_over_the_limit_of_one_key_return_at_once_and_other_keys_wait() {
    within(LATE, || {
        let engine = Engine::options().max_waiting_per_key(2).max_waiting(3).temporary_store().unwrap();
        let ops = &ops(&engine, OnInterrupted::Hold);
        let other = &engine.manager::<u64, u64>("other").unwrap();
        let (owner, owner_of_other) = (claim(ops), claim(other));
        thread::scope(|scope| {
            let waiters = [(); 2].map(|()| parked(scope, ops, |ops| begin_or_wait(ops, FOR_EVER)));
            is_refused(&begin_or_wait(ops, FOR_EVER));
            assert!(matches!(ops.execute_with(KEY, patient(), |_| Ok(1)), Err(ExecuteError::InProgress(_))));
            // Waiters of this key take no place of another key.
            let third = parked(scope, other, |other| begin_or_wait(other, FOR_EVER));
            is_refused(&begin_or_wait(other, FOR_EVER));
            // Observers are not counted.
            let observer = parked(scope, ops, |ops| ops.wait(KEY, FOR_EVER));
            owner.succeed(&7).unwrap();
            for waiter in waiters {
                assert!(matches!(waiter.join().unwrap(), Ok(Begin::Replay(_))));
            }
            assert!(matches!(observer.join().unwrap(), Ok(Waited::Finished(_))));
            // Their places are free again.
            let fourth = parked(scope, other, |other| begin_or_wait(other, FOR_EVER));
            owner_of_other.succeed(&7).unwrap();
            assert!([third, fourth].into_iter().all(|one| matches!(one.join().unwrap(), Ok(Begin::Replay(_)))));
        });
        assert_no_waiters(&engine);
    });
}

#[test]
fn a_timeout_a_hand_over_and_a_panic_free_the_place_of_a_waiter() {
    within(LATE, || {
        let engine = Engine::options().max_waiting_per_key(1).temporary_store().unwrap();
        let ops = &ops(&engine, OnInterrupted::Resume);
        let owner = claim(ops);
        for _ in 0..3 {
            is_refused(&begin_or_wait(ops, Duration::from_millis(1)));
        }
        thread::scope(|scope| {
            let successor = parked(scope, ops, |ops| begin_or_wait(ops, FOR_EVER));
            is_refused(&begin_or_wait(ops, FOR_EVER));
            owner.release().unwrap();
            let owner = successor.join().unwrap().unwrap().into_claim().unwrap();
            let panics =
                parked(scope, ops, |ops| ops.execute_with(KEY, patient(), |_| resume_unwind(Box::new("on purpose"))));
            is_refused(&begin_or_wait(ops, FOR_EVER));
            owner.release().unwrap();
            assert!(panics.join().is_err());
            let owner = claim(ops);
            let last = parked(scope, ops, |ops| begin_or_wait(ops, FOR_EVER));
            owner.succeed(&7).unwrap();
            assert!(matches!(last.join().unwrap(), Ok(Begin::Replay(_))));
        });
        assert_no_waiters(&engine);
    });
}
