//! Tests of `retry_pause`: a released key cannot be claimed again at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use oncekey::{
    Begin, CallOptions, Engine, ExecuteError, FOREVER, ManagerOptions, OnError, Waited, admin::Resolution,
    clock::ManualClock,
};

use crate::common::*;

fn pausing(engine: &Engine) -> Texts {
    texts_with(engine, ManagerOptions::new().retry_pause(SECOND))
}

/// Returns how long the key cannot be claimed.
fn paused(manager: &Texts, key: &str) -> Option<std::time::Duration> {
    match manager.begin(key).unwrap() {
        Begin::Paused(info) => info.retry_after(),
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn a_released_key_can_be_claimed_exactly_when_its_pause_ends() {
    let (engine, clock) = engine();
    let manager = pausing(&engine);
    claim(&manager, "k").release().unwrap();
    assert_eq!(paused(&manager, "k"), Some(SECOND));
    clock.advance(just_before(SECOND));
    assert_eq!(paused(&manager, "k"), Some(MS));
    assert_eq!(manager.get("k").unwrap().unwrap().info().retry_after(), Some(MS));
    clock.advance(MS);
    assert_eq!(manager.get("k").unwrap().unwrap().info().retry_after(), None);
    assert_eq!(claim(&manager, "k").attempt(), 2);
}

#[test]
fn only_a_release_by_an_owner_starts_a_pause() {
    let (engine, _) = engine();
    let manager = pausing(&engine).on_error(|_| OnError::Release);
    let failed = manager.execute("execute", |_| Err("busy".to_owned()));
    assert!(matches!(failed, Err(ExecuteError::Failed { .. })));
    let mut dropped = claim(&manager, "drop");
    dropped.release_on_drop(true);
    drop(dropped);
    let token = manager.initiate("by key").unwrap().unwrap();
    manager.release("by key", token).unwrap();
    for key in ["execute", "drop", "by key"] {
        assert_eq!(paused(&manager, key), Some(SECOND), "{key}");
        assert_eq!(manager.initiate(key).unwrap(), None, "{key}");
        assert!(matches!(manager.execute(key, |_| panic!("it has run")), Err(ExecuteError::Paused(_))), "{key}");
    }
    // A resolution starts no pause: the operator wants the operation to run now.
    drop(claim(&manager, "held"));
    manager.resolve("held", Resolution::Retry).unwrap();
    assert_eq!(claim(&manager, "held").attempt(), 2);
    // Without the option there is no pause.
    claim(&texts(&engine), "k").release().unwrap();
    assert_eq!(claim(&manager, "k").attempt(), 2);
}

#[test]
fn waiters_do_not_run_a_failing_operation_one_after_the_other() {
    let (engine, _) = engine();
    let manager = pausing(&engine).on_error(|_| OnError::Release);
    let (owner, runs) = (claim(&manager, "k"), AtomicU32::new(0));
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    manager.execute_with("k", CallOptions::new().wait(FOREVER), |_| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        Err("busy".to_owned())
                    })
                })
            })
            .collect();
        let observer = scope.spawn(|| manager.wait("k", FOREVER));
        while engine.stats().waiting < 9 {
            thread::yield_now();
        }
        owner.release().unwrap();
        for waiter in waiters {
            let answer = waiter.join().unwrap();
            assert!(
                matches!(&answer, Err(ExecuteError::Paused(info)) if info.retry_after() == Some(SECOND)),
                "{answer:?}"
            );
        }
        assert!(matches!(observer.join().unwrap().unwrap(), Waited::Released));
    });
    assert_eq!(runs.into_inner(), 0);
}

#[test]
fn a_pause_continues_after_a_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open_local(dir.path(), &clock);
    claim(&pausing(&first), "k").release().unwrap();
    clock.advance(just_before(SECOND));
    first.close().unwrap();
    let second = open_local(dir.path(), &clock);
    assert_eq!(paused(&texts(&second), "k"), Some(MS));
    clock.advance(MS);
    assert_eq!(claim(&texts(&second), "k").attempt(), 2);
}

#[test]
fn another_payload_is_not_paused_if_there_was_no_effect() {
    let (engine, _) = engine();
    let manager = pausing(&engine);
    claimed(manager.begin_with("k", same("a")).unwrap()).release().unwrap();
    assert_eq!(answer_with(&manager, "k", same("a")), "paused");
    assert_eq!(claimed(manager.begin_with("k", same("b")).unwrap()).attempt(), 1);
    // After an effect id, the key accepts only its first payload, paused or not.
    let bound = claimed(manager.begin_with("bound", same("a")).unwrap());
    let _charged = bound.effect_id("charge");
    bound.release().unwrap();
    assert_eq!(answer_with(&manager, "bound", same("b")), "mismatch");
    assert_eq!(answer_with(&manager, "bound", CallOptions::new()), "mismatch");
}

#[cfg(feature = "http")]
#[test]
fn http_clients_get_retry_after() {
    use http::StatusCode;
    use oncekey::http::{NewRequest, RequestPatch, Response};

    let (engine, clock) = engine();
    let options = ManagerOptions::new().retry_pause(SECOND + MS);
    let requests = engine.requests_with("r", options).unwrap();
    let request = http::Request::post("/").header("idempotency-key", "k").body("20 EUR").unwrap();
    let busy = requests.handle(&request, |_, _| Err(Response::new(StatusCode::BAD_GATEWAY)));
    assert_eq!(busy.status(), 502);
    let again = requests.handle(&request, |_, _| panic!("it has run"));
    assert_eq!(
        (again.status(), &again.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"2".parse().unwrap())
    );
    assert!(String::from_utf8_lossy(again.body()).contains("\"code\":\"paused\""));
    // The same by key. A change of the record does not restart the pause.
    assert_eq!(arm(&requests.lock("k").unwrap()), "paused");
    clock.advance(SECOND);
    let info = requests.update("k", RequestPatch::new().checkpoint("c")).unwrap();
    assert_eq!(info.retry_after(), Some(MS));
    clock.advance(MS);
    assert_eq!(claimed(requests.lock("k").unwrap()).attempt(), 2);
    // A request that was created and never begun has no pause.
    let created = requests.create(NewRequest::new("POST", "/")).unwrap();
    assert_eq!(arm(&requests.lock(created.key()).unwrap()), "claimed");
}
