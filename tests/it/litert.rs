//! The ten defects of `@litert/idempotency` 0.1.0. Each test fails on the behaviour of that library.

use std::sync::Barrier;

use oncekey::{
    Begin, CallOptions, ErrorKind, ExecuteError, FOREVER, Manager, ManagerOptions, OnError, Status, Value,
    admin::Resolution,
};

use crate::common::*;

// "isFailureStorable -> false: nothing is written, the record stays PENDING until its TTL."
#[test]
fn litert_1_an_unstorable_failure_does_not_strand_the_key() {
    let (manager, _) = fresh();
    let manager = manager.on_error(|_| OnError::Release);
    let failed = manager.execute("k", |_| Err("the network is down".to_owned())).unwrap_err();
    assert!(matches!(failed, ExecuteError::Failed { replayed: false, .. }), "{failed:?}");
    assert_eq!(status(&manager, "k"), Some(Status::Released));
    // No time has passed, and the retry runs.
    let done = manager.execute_with("k", CallOptions::new().wait(MS), |_| Ok("paid".to_owned())).unwrap();
    assert_eq!((done.value().as_str(), done.replayed(), done.info().attempt()), ("paid", false, 2));
}

// The by-key calls can also give up a key that `initiate` took.
#[test]
fn litert_1_a_key_taken_by_initiate_can_be_given_up() {
    let (manager, _) = fresh();
    let token = manager.initiate("k").unwrap().unwrap();
    manager.release("k", token).unwrap();
    assert!(manager.initiate("k").unwrap().is_some());
}

// "`success` is inside the `try`: its own error reaches `catch` and is stored as the operation's failure."
#[test]
fn litert_2_a_success_that_cannot_be_stored_is_not_a_failure() {
    let (engine, _) = engine();
    let manager: Manager<Ambiguous, String> = engine.manager("m").unwrap();
    let error = manager.execute("k", |_| Ok(Ambiguous::Signed(1))).unwrap_err();
    let ExecuteError::NotStored { outcome, error } = error else { panic!("{error:?}") };
    assert_eq!((outcome, error.kind()), (Ok(Ambiguous::Signed(1)), ErrorKind::Codec));
    assert_eq!(status(&manager, "k"), Some(Status::InProgress));
    drop(error);
    assert_eq!(status(&manager, "k"), Some(Status::Interrupted));

    let token = manager.initiate("by key").unwrap().unwrap();
    assert_eq!(manager.success("by key", token, &Ambiguous::Signed(1)).unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!(status(&manager, "by key"), Some(Status::InProgress));
}

// "`success`/`fail` on an absent or expired key *creates* a record; success after fail and fail after success are
// accepted."
#[test]
fn litert_3_an_ending_never_creates_a_record_nor_overwrites_one() {
    let (manager, clock) = fresh();
    let (yes, no) = ("yes".to_owned(), "no".to_owned());
    let refused = |result: oncekey::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::ClaimLost);
    let token = manager.initiate("absent").unwrap().unwrap();
    manager.release("absent", token).unwrap();
    manager.remove("absent").unwrap();
    refused(manager.success("absent", token, &yes));
    refused(manager.fail("absent", token, &no));
    refused(manager.release("absent", token));
    assert!(manager.get("absent").unwrap().is_none());

    let token = manager.initiate("won").unwrap().unwrap();
    manager.success("won", token, &yes).unwrap();
    manager.success("won", token, &yes).unwrap();
    refused(manager.fail("won", token, &no));
    refused(manager.success("won", token, &no));
    assert_eq!(outcome(&manager, "won"), Some(Ok(yes.clone())));

    let token = manager.initiate("lost").unwrap().unwrap();
    manager.fail("lost", token, &no).unwrap();
    refused(manager.success("lost", token, &yes));
    refused(manager.release("lost", token));
    assert_eq!(outcome(&manager, "lost"), Some(Err(no.clone())));

    clock.advance(DAY);
    refused(manager.success("lost", token, &yes));
    assert!(manager.get("lost").unwrap().is_none());
}

// "Crash while PENDING: blocked for the full result TTL."
#[test]
fn litert_4_a_dead_owner_is_detected_at_once() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    let first = open(dir.path(), &clock);
    let dead = claim(&resuming(&first), "k");
    first.crash();
    let second = open(dir.path(), &clock);
    let successor = claim(&resuming(&second), "k");
    assert_eq!((successor.attempt(), successor.interruption()), (2, Some(oncekey::Interruption::ProcessEnded)));
    assert!(successor.token() > dead.token());

    // "... and the zombie then overwrites the new owner's record."
    let dead = dead.succeed(&"zombie".to_owned()).unwrap_err();
    assert_eq!(dead.kind(), ErrorKind::Closed);
    drop(dead);
    successor.succeed(&"successor".to_owned()).unwrap();
    assert_eq!(outcome(&resuming(&second), "k"), Some(Ok("successor".to_owned())));
}

// "PENDING and results share one TTL: too short, and a slow live owner is overrun."
#[test]
fn litert_4_a_slow_live_owner_is_never_overrun() {
    let (engine, clock) = engine();
    let short = ManagerOptions::new().success_ttl(MS).failure_ttl(MS).released_ttl(MS).interrupted_ttl(MS);
    let manager = texts_with(&engine, short);
    let slow = claim(&manager, "k");
    clock.advance(100 * YEAR);
    assert_eq!(engine.compact_now().unwrap().removed, 0);
    assert_eq!(answer(&manager, "k"), "in progress");
    slow.succeed(&"late".to_owned()).unwrap();
    assert_eq!(outcome(&manager, "k"), Some(Ok("late".to_owned())));
}

// "`create` = false, then `get` = null, because it expired in between: the hook is called with null."
#[test]
fn litert_5_a_rejection_contains_the_record() {
    let (engine, clock) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().success_ttl(5 * MS));
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    for passed in 0..5 {
        match manager.begin("k").unwrap() {
            Begin::Replay(done) => assert_eq!(done.outcome(), Ok(&"v".to_owned()), "after {passed} ms"),
            other => panic!("after {passed} ms: {other:?}"),
        }
        assert!(manager.initiate("k").unwrap().is_none() && manager.get("k").unwrap().is_some(), "after {passed} ms");
        clock.advance(MS);
    }
    assert!(manager.initiate("k").unwrap().is_some());
}

// "`beforeWaiting` also runs for SUCCESS and FAILED: it is really the hook for other arguments."
#[test]
fn litert_6_in_progress_and_mismatch_are_different_answers() {
    let (manager, _) = fresh();
    claimed(manager.begin_with("done", same("a")).unwrap()).succeed(&"v".to_owned()).unwrap();
    claimed(manager.begin_with("failed", same("a")).unwrap()).fail(&"no".to_owned()).unwrap();
    let _owner = claimed(manager.begin_with("live", same("a")).unwrap());
    for key in ["done", "failed", "live"] {
        // An endless wait would hang the test: another request is answered at once in any state.
        let other = manager.begin_with(key, same("b").wait(FOREVER)).unwrap();
        let Begin::Mismatch(info) = other else { panic!("{key}: {other:?}") };
        assert_eq!(info.key().as_str(), Some(key));
    }
    for key in ["done", "failed"] {
        assert_eq!(arm(&manager.begin_with(key, same("a").wait(FOREVER)).unwrap()), "replay", "{key}");
    }
    assert_eq!(arm(&manager.begin_with("live", same("a").wait(MS)).unwrap()), "in progress");
}

// "`E_SERIALIZATION_FAILED` never reaches callers: it is wrapped as `E_STORAGE_FAILED`."
#[test]
fn litert_7_a_codec_error_is_not_a_storage_error() {
    let (engine, _) = engine();
    let writes: Manager<Holed, Holed> = engine.manager("writes").unwrap();
    let bad = Holed { note: None, cents: 1 };
    assert_eq!(claim(&writes, "k").succeed(&bad).unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!(claim(&writes, "l").fail(&bad).unwrap_err().kind(), ErrorKind::Codec);

    let reads: Manager<(u64, String), String> = engine.manager("reads").unwrap();
    drop(claim(&reads, "k"));
    engine.raw("reads").unwrap().resolve("k", Resolution::Succeed(Value::from("?"))).unwrap();
    assert_eq!(reads.get("k").unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!(reads.begin("k").unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!(reads.wait("k", MS).unwrap_err().kind(), ErrorKind::Codec);
    let ran = std::cell::Cell::new(false);
    let error = reads.execute("k", |_| {
        ran.set(true);
        Ok((1, String::new()))
    });
    assert!(matches!(error, Err(ExecuteError::Engine(error)) if error.kind() == ErrorKind::Codec));
    assert!(!ran.get());
}

// "`create` treats `validUntil == now` as expired, `get` as alive: at that millisecond the key is both."
#[test]
fn litert_8_at_its_expiry_a_key_is_absent_for_all_readers() {
    let (engine, clock) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().success_ttl(SECOND));
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    clock.advance(just_before(SECOND));
    assert_eq!((status(&manager, "k"), answer(&manager, "k")), (Some(Status::Succeeded), "replay"));
    clock.advance(MS);
    assert_eq!(status(&manager, "k"), None);
    assert_eq!(claim(&manager, "k").attempt(), 1);
}

// "The guide's own example ignores `initiate`'s boolean: a double run under concurrency."
#[test]
fn litert_9_only_one_caller_gets_the_claim() {
    let (manager, _) = fresh();
    let start = Barrier::new(8);
    let claims: Vec<_> = std::thread::scope(|scope| {
        let begin = || {
            start.wait();
            manager.begin("k").unwrap().into_claim().ok()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(begin)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(claims.len(), 1);
    // A caller without the claim cannot end it either.
    let token = token(claims[0].token());
    assert_eq!(manager.success("k", token, &"v".to_owned()).unwrap_err().kind(), ErrorKind::OwnedByClaim);
    assert_eq!(manager.fail("k", token, &"v".to_owned()).unwrap_err().kind(), ErrorKind::OwnedByClaim);
    assert_eq!(manager.release("k", token).unwrap_err().kind(), ErrorKind::OwnedByClaim);
    assert_eq!(status(&manager, "k"), Some(Status::InProgress));
}

// "No payload fingerprint; a mismatch only if the user writes context and a hook."
#[test]
fn litert_10_another_payload_under_the_same_key_is_a_mismatch() {
    let (manager, _) = fresh();
    let pay = |cents: u64| {
        let options = CallOptions::new().fingerprint(oncekey::Fingerprint::of(&cents).unwrap());
        manager.execute_with("k", options, |_| Ok(format!("paid {cents}")))
    };
    assert!(!pay(1).unwrap().replayed());
    assert!(pay(1).unwrap().replayed());
    assert!(matches!(pay(2), Err(ExecuteError::Mismatch(_))));
}
