//! Tests of `Engine::crash`: the effects of a process's death, without a child process.

use std::thread;
use std::time::Duration;

use oncekey::{
    CallOptions, Durability, Engine, EngineOptions, ErrorKind, ExecuteError, FOREVER, Interruption, Status, Waited,
    admin::Event,
};

use crate::common::*;
use crate::threads::{LATE, until, within};

fn values(engine: &Engine, keys: u32) -> Vec<u32> {
    let manager = texts(engine);
    (0..keys).filter(|n| outcome(&manager, &n.to_string()).is_some()).collect()
}

fn eventual() -> EngineOptions {
    Engine::options().durability(Durability::Eventual { interval: Duration::from_secs(3600) })
}

#[test]
fn acknowledged_commits_survive_and_the_stop_is_unclean() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let manager = texts(&engine);
    thread::scope(|scope| {
        for me in 0..8 {
            let manager = &manager;
            scope.spawn(move || {
                (0..10).for_each(|n| drop(manager.execute((me * 10 + n).to_string(), |_| Ok("v".into()))));
            });
        }
    });
    engine.table("rows").unwrap().insert("a", "1").unwrap();
    engine.crash();
    // The directory is unlocked at once.
    let engine = Engine::open(dir.path()).unwrap();
    assert_eq!((engine.opened().clean, engine.opened().interrupted), (false, 0));
    assert_eq!(values(&engine, 80).len(), 80);
    assert_eq!(engine.table("rows").unwrap().get("a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new());
}

#[test]
fn under_eventual_the_newest_unsynced_commits_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let engine = eventual().open(dir.path()).unwrap();
    let manager = texts(&engine);
    let run = |keys: std::ops::Range<u32>| keys.for_each(|n| drop(manager.execute(n.to_string(), |_| Ok("v".into()))));
    run(0..5);
    engine.sync().unwrap();
    run(5..10);
    engine.crash();
    let engine = eventual().open(dir.path()).unwrap();
    assert_eq!(values(&engine, 10), [0, 1, 2, 3, 4]);
    // After a close, everything is kept.
    let manager = texts(&engine);
    (5..10).for_each(|n| drop(manager.execute(n.to_string(), |_| Ok("v".into()))));
    engine.close().unwrap();
    assert_eq!(values(&Engine::open(dir.path()).unwrap(), 10).len(), 10);
}

#[test]
fn a_crash_inside_an_operation_interrupts_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let manager = texts(&engine);
    let by_hand = claim(&manager, "by hand");
    let lost = manager.execute("k", |claim| {
        let effect = claim.effect_id("charge");
        engine.clone().crash();
        Ok(effect)
    });
    let Err(ExecuteError::NotStored { outcome: Ok(effect), error }) = lost else { panic!("{lost:?}") };
    assert_eq!(error.kind(), ErrorKind::Closed);
    drop(error.claim);
    assert_eq!(by_hand.succeed(&"late".to_owned()).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(manager.begin("other").unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(engine.table("rows").unwrap().insert("a", "1").unwrap_err().kind(), ErrorKind::Closed);

    let engine = Engine::open(dir.path()).unwrap();
    assert_eq!(engine.opened().interrupted, 2);
    let manager = texts(&engine);
    for key in ["k", "by hand"] {
        let info = manager.get(key).unwrap().unwrap().info().clone();
        assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::ProcessEnded)));
    }
    // The next attempt gets the same effect id.
    assert_eq!(manager.get("k").unwrap().unwrap().info().effect_id("charge"), effect);
    // Handles of the crashed engine do not affect the new one.
    assert_eq!(answer(&manager, "new"), "claimed");
}

#[test]
fn a_crash_in_a_batch_interrupts_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let answers = texts(&engine).execute_many(["a", "b", "c"].map(|key| (key, key)), |_, key| {
        if key == "b" {
            engine.clone().crash();
        }
        Ok(key.to_owned())
    });
    assert!(answers.iter().all(|answer| matches!(answer, Err(ExecuteError::NotStored { .. }))), "{answers:?}");
    let engine = Engine::open(dir.path()).unwrap();
    let manager = texts(&engine);
    assert_eq!(["a", "b", "c"].map(|key| status(&manager, key)), [Some(Status::Interrupted); 3]);
}

#[test]
fn waiters_get_an_answer_and_subscribers_do_not() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let manager = texts(&engine);
        let events = engine.events();
        let _owner = claim(&manager, "k");
        thread::scope(|scope| {
            let waits = scope.spawn(|| manager.wait("k", FOREVER).unwrap());
            let begins =
                scope.spawn(|| manager.execute_with("k", CallOptions::new().wait(FOREVER), |_| unreachable!()));
            until("both wait", || engine.stats().waiting == 2);
            engine.clone().crash();
            assert!(matches!(waits.join().unwrap(), Waited::Closed));
            let Err(ExecuteError::Engine(error)) = begins.join().unwrap() else { panic!("no thread runs it") };
            assert_eq!(error.kind(), ErrorKind::Closed);
        });
        let told: Vec<_> = events.collect();
        assert!(matches!(told.as_slice(), [Event::Began(_)]), "{told:?}");
    });
}

#[test]
fn a_crash_after_a_close_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    drop(texts(&engine).execute("0", |_| Ok("v".into())));
    engine.clone().close().unwrap();
    engine.clone().crash();
    engine.crash();
    let engine = Engine::open(dir.path()).unwrap();
    assert!(engine.opened().clean);
    engine.clone().crash();
    engine.clone().crash();
    // Closing a crashed engine is an error.
    let _ = engine.close();
    assert!(!Engine::open(dir.path()).unwrap().opened().clean);
}
