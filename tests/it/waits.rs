//! What a wait is told, and when.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

use oncekey::{
    Engine, Manager, Waited,
    clock::{BootTime, Clock, SystemClock},
    http::NewRequest,
};

use crate::common::*;
use crate::threads::{LATE, until, within};

#[test]
fn an_observer_is_told_what_the_heir_made_of_a_released_key() {
    within(LATE, || {
        let (engine, _clock) = engine();
        let ops: &Manager<u64> = &engine.manager("m").unwrap();
        for n in 0..50 {
            let key = &format!("k{n}");
            let owner = ops.begin(key).unwrap().into_claim().unwrap();
            thread::scope(|scope| {
                let heir = scope.spawn(|| ops.execute(key, |_| Ok(7)));
                let observer = scope.spawn(|| ops.wait(key, LATE));
                until("both wait", || engine.stats().waiting == 2);
                owner.release().unwrap();
                heir.join().unwrap().unwrap();
                let told = observer.join().unwrap().unwrap();
                assert!(matches!(&told, Waited::Finished(done) if done.outcome().unwrap() == &7), "{told:?}");
            });
        }
    });
}

#[test]
fn a_request_that_was_created_is_waited_for() {
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

/// A clock that looks at the engine whose clock it is.
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
fn a_clock_is_asked_with_no_lock_held() {
    within(LATE, || {
        let clock = Nosy::default();
        let engine = Engine::options().clock(clock.clone()).temporary().unwrap();
        clock.0.set(engine.clone()).unwrap();
        let ops: &Manager<u64> = &engine.manager("m").unwrap();
        ops.execute("k", |_| Ok(1)).unwrap();
        assert!(ops.extend("k", DAY * 2).unwrap());
        engine.atomic_phase(|tx| tx.table("t")?.insert("a", "b")).unwrap();
        engine.compact_now().unwrap();
        engine.close().unwrap();
    });
}
