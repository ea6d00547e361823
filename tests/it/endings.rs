//! Tests of the endings of claims, and of results that cannot be stored.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use oncekey::{
    Begin, CallOptions, Claim, EndError, Engine, ErrorKind, ExecuteError, FOREVER, Fingerprint, Interruption, Manager,
    ManagerOptions, OnError, Status, Waited, admin::Resolution, clock::ManualClock, stage::Next,
};

use crate::common::*;

#[test]
fn each_of_the_four_endings_sets_its_status() {
    let (manager, _) = fresh();
    let won = claim(&manager, "won").succeed(&"v".to_owned()).unwrap();
    assert_eq!((won.outcome(), won.info().status()), (Ok(&"v".to_owned()), Status::Succeeded));
    let lost = claim(&manager, "lost").fail(&"e".to_owned()).unwrap();
    assert_eq!((lost.outcome(), lost.info().status()), (Err(&"e".to_owned()), Status::Failed));
    let released = claim(&manager, "released").release().unwrap();
    assert_eq!((released.status(), released.interruption()), (Status::Released, None));
    let reported = claim(&manager, "reported").interrupt().unwrap();
    assert_eq!((reported.status(), reported.interruption()), (Status::Interrupted, Some(Interruption::Reported)));
    // The stored records agree with the answers.
    assert_eq!(outcome(&manager, "won"), Some(Ok("v".to_owned())));
    assert_eq!(outcome(&manager, "lost"), Some(Err("e".to_owned())));
    assert_eq!(status(&manager, "released"), Some(Status::Released));
    assert_eq!(status(&manager, "reported"), Some(Status::Interrupted));
}

#[test]
fn dropping_an_ended_claim_changes_nothing() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let events = engine.events();
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    claim(&manager, "l").release().unwrap();
    assert_eq!(events.ready().count(), 4, "one began and one ended each");
    assert_eq!((status(&manager, "k"), status(&manager, "l")), (Some(Status::Succeeded), Some(Status::Released)));
    assert_eq!(engine.stats().drops_not_recorded, 0);
}

#[test]
fn a_claim_keeps_the_store_locked_after_close_until_it_ends() {
    for (key, ends) in [("succeeds", 0), ("stays", 1), ("drops", 2), ("stage", 3)] {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let first = open_local(dir.path(), &clock);
        let (mut claim, other) = (claim(&resuming(&first), key), claim(&resuming(&first), "other"));
        let error = first.clone().close().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ClaimsAlive);
        assert!(error.to_string().starts_with("2 claims are alive"), "{error}");
        assert_eq!(resuming(&first).begin("new").unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(Engine::open(dir.path()).unwrap_err().kind(), ErrorKind::StoreInUse);
        other.release().unwrap();
        assert_eq!(Engine::open(dir.path()).unwrap_err().kind(), ErrorKind::StoreInUse);
        match ends {
            0 => drop(claim.succeed(&"v".to_owned()).unwrap()),
            1 => drop(claim.interrupt().unwrap()),
            2 => drop(claim),
            _ => claim.work_stage(|_| Ok::<_, oncekey::Error>(Next::Succeed("v".to_owned()))).unwrap(),
        }
        let second = open_local(dir.path(), &clock);
        assert!(second.opened().clean);
        let expected = if ends % 3 == 0 { Status::Succeeded } else { Status::Interrupted };
        assert_eq!(status(&resuming(&second), key), Some(expected), "{key}");
        first.close().unwrap();
    }
}

#[test]
fn close_when_idle_lets_running_operations_end() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let engine = open(dir.path(), &clock);
    let manager = texts(&engine);
    let (started, draining) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            manager.execute("k", |_| {
                started.wait();
                draining.wait();
                // Calls that the running operation needs still work.
                manager.engine().table("t").unwrap().insert("a", "b").unwrap();
                manager.execute("inner", |_| Ok("in".to_owned())).unwrap();
                Ok("v".to_owned())
            })
        });
        started.wait();
        let closing = scope.spawn(|| engine.clone().close_when_idle(Duration::from_secs(600)));
        // New claims are rejected while the engine waits for the running ones.
        let refused = (0..).find_map(|n| texts(&engine).begin(format!("new-{n}")).err()).unwrap();
        assert_eq!(refused.kind(), ErrorKind::Closed);
        draining.wait();
        assert_eq!(running.join().unwrap().unwrap().value(), "v");
        closing.join().unwrap().unwrap();
    });
    let second = open(dir.path(), &clock);
    assert_eq!(outcome(&texts(&second), "k"), Some(Ok("v".to_owned())));
    assert_eq!(outcome(&texts(&second), "inner"), Some(Ok("in".to_owned())));
}

#[test]
fn revoke_takes_a_key_from_a_claim_that_hangs() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let engine = open(dir.path(), &clock);
    let manager = texts(&engine);
    let mut hung = claim(&manager, "k");
    std::mem::forget(claim(&manager, "forgotten"));
    let by_key = manager.initiate("by key").unwrap().unwrap();
    for key in ["k", "forgotten", "by key"] {
        let info = manager.revoke(key).unwrap();
        assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::Revoked)), "{key}");
        assert_eq!(manager.revoke(key).unwrap_err().kind(), ErrorKind::NotInProgress);
    }
    assert_eq!(engine.raw("m").unwrap().revoke("absent").unwrap_err().kind(), ErrorKind::NotFound);
    let staged = hung.work_stage(|tx| tx.table("t")?.insert("a", "b").map(|()| Next::Stay));
    assert_eq!(staged.unwrap_err().kind(), ErrorKind::ClaimLost);
    assert_eq!(engine.table("t").unwrap().get("a").unwrap(), None);
    assert_eq!(hung.succeed(&"old".to_owned()).unwrap_err().kind(), ErrorKind::ClaimLost);
    assert_eq!(manager.success("by key", by_key, &"old".to_owned()).unwrap_err().kind(), ErrorKind::ClaimLost);
    manager.resolve("k", Resolution::Retry).unwrap();
    claim(&manager, "k").succeed(&"new".to_owned()).unwrap();
    // A revoked claim does not keep the store locked.
    engine.close().unwrap();
}

#[test]
fn revoking_the_last_claim_after_a_close_frees_the_store() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let engine = open_local(dir.path(), &clock);
    let (manager, raw) = (texts(&engine), engine.raw("m").unwrap());
    let lost = claim(&manager, "lost");
    std::mem::forget(claim(&manager, "forgotten"));
    claim(&manager, "done").succeed(&"v".to_owned()).unwrap();
    let error = engine.close().unwrap_err();
    assert_eq!((error.kind(), error.to_string().split(' ').next()), (ErrorKind::ClaimsAlive, Some("2")));
    assert_eq!(manager.get("lost").unwrap_err().kind(), ErrorKind::Closed, "it is closed for everything else");
    assert_eq!(manager.revoke("done").unwrap_err().kind(), ErrorKind::NotInProgress);
    assert_eq!(manager.revoke("lost").unwrap().interruption(), Some(Interruption::Revoked));
    assert_eq!(Engine::open(dir.path()).unwrap_err().kind(), ErrorKind::StoreInUse);
    raw.revoke("forgotten").unwrap();
    // The store closes with the last claim.
    assert_eq!(raw.revoke("forgotten").unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(lost.succeed(&"old".to_owned()).unwrap_err().kind(), ErrorKind::Closed);
    let second = open_local(dir.path(), &clock);
    for key in ["lost", "forgotten"] {
        let record = texts(&second).get(key).unwrap().unwrap();
        assert_eq!(record.info().interruption(), Some(Interruption::Revoked), "{key}");
    }
    assert!(second.opened().clean);
}

#[test]
fn an_operation_that_waits_for_its_own_key_gets_deadlock_at_once() {
    let (manager, _) = fresh();
    let done = manager.execute("k", |_| {
        let Err(ExecuteError::Engine(error)) = manager.execute("k", |_| panic!("it runs")) else { panic!("no error") };
        assert_eq!(error.kind(), ErrorKind::Deadlock);
        assert_eq!(manager.wait("k", FOREVER).unwrap_err().kind(), ErrorKind::Deadlock);
        let begun = manager.begin_with("k", CallOptions::new().wait(FOREVER));
        assert_eq!(begun.unwrap_err().kind(), ErrorKind::Deadlock);
        // A wait for another key, or for an equal key of another manager, is not a deadlock.
        manager.execute("l", |_| Ok("l".to_owned())).unwrap();
        manager.engine().manager::<String, String>("other").unwrap().execute("k", |_| Ok("o".to_owned())).unwrap();
        Ok("v".to_owned())
    });
    assert_eq!(done.unwrap().value(), "v");
    assert!(matches!(manager.wait("k", FOREVER).unwrap(), Waited::Finished(_)));
}

#[test]
fn an_exchanged_claim_stores_no_outcome_under_the_wrong_key() {
    let (manager, _) = fresh();
    let mut kept = None;
    let answer = manager.execute("a", |lent| {
        let mut other = claim(&manager, "b");
        std::mem::swap(lent, &mut other);
        kept = Some(other);
        Ok("a's".to_owned())
    });
    assert!(matches!(answer, Err(ExecuteError::Engine(error)) if error.kind() == ErrorKind::ClaimLost));
    assert_eq!((status(&manager, "a"), status(&manager, "b")), (Some(Status::Interrupted), Some(Status::Interrupted)));
    assert_eq!(kept.unwrap().succeed(&"a's".to_owned()).unwrap_err().kind(), ErrorKind::ClaimLost);
}

#[test]
fn a_leaked_exchanged_claim_does_not_keep_the_store() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let engine = open(dir.path(), &clock);
    let manager = texts(&engine);
    let answer = manager.execute("a", |lent| {
        let mut other = claim(&manager, "b");
        std::mem::swap(lent, &mut other);
        std::mem::forget(other);
        Ok("a's".to_owned())
    });
    assert!(matches!(answer, Err(ExecuteError::Engine(error)) if error.kind() == ErrorKind::ClaimLost));
    engine.close().unwrap();
    assert_eq!(open(dir.path(), &clock).opened().interrupted, 2);
}

#[test]
fn a_key_released_before_any_effect_accepts_another_payload() {
    let (manager, _) = fresh();
    let print = |n: u8| CallOptions::new().fingerprint(Fingerprint::of(&n).unwrap());
    let begin = |n| manager.begin_with("k", print(n)).unwrap();
    begin(1).into_claim().unwrap().release().unwrap();
    let second = begin(2).into_claim().unwrap();
    assert_eq!(second.attempt(), 1);
    let _ = second.effect_id("charge");
    second.release().unwrap();
    assert!(matches!(begin(3), Begin::Mismatch(_)));
    begin(2).into_claim().unwrap().succeed(&"v".to_owned()).unwrap();
}

#[test]
fn strict_fingerprint_rejects_a_payload_for_a_record_without_one() {
    let (engine, _) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().strict_fingerprint(true));
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    let begun = manager.begin_with("k", CallOptions::new().fingerprint(Fingerprint::of(&1).unwrap())).unwrap();
    assert!(matches!(begun, Begin::Mismatch(_)));
    assert!(matches!(manager.begin("k").unwrap(), Begin::Replay(_)));
}

#[test]
fn a_token_of_an_earlier_generation_cannot_end_a_later_one() {
    let (manager, _) = fresh();
    let old = manager.initiate("k").unwrap().unwrap();
    let is_lost = |key| {
        let (success, failure) = (&"old".to_owned(), &"old".to_owned());
        let all = [manager.success(key, old, success), manager.fail(key, old, failure), manager.release(key, old)];
        assert_eq!(all.map(|ended| ended.unwrap_err().kind()), [ErrorKind::ClaimLost; 3]);
    };
    assert_eq!(manager.remove("k").unwrap_err().kind(), ErrorKind::OwnedByClaim);
    manager.revoke("k").unwrap();
    is_lost("k");
    assert!(manager.remove("k").unwrap());
    is_lost("k");
    let by_key = manager.initiate("k").unwrap().unwrap();
    is_lost("k");
    assert_eq!(status(&manager, "k"), Some(Status::InProgress));
    manager.release("k", by_key).unwrap();
    let later = claim(&manager, "k");
    is_lost("k");
    later.succeed(&"new".to_owned()).unwrap();
    is_lost("k");
    assert_eq!(outcome(&manager, "k"), Some(Ok("new".to_owned())));
}

#[test]
fn a_token_of_an_earlier_attempt_cannot_end_a_later_one() {
    let (manager, _) = fresh();
    let first = manager.initiate("k").unwrap().unwrap();
    manager.release("k", first).unwrap();
    let second = manager.initiate("k").unwrap().unwrap();
    assert!(second > first && second.get() > first.get());
    assert_eq!(manager.success("k", first, &"first".to_owned()).unwrap_err().kind(), ErrorKind::ClaimLost);
    // The token after a round trip through a message.
    let carried: oncekey::Token = serde_json::from_str(&serde_json::to_string(&second).unwrap()).unwrap();
    assert_eq!((carried, second.to_string().parse()), (second, Ok(second)));
    manager.success("k", carried, &"second".to_owned()).unwrap();
    assert_eq!(outcome(&manager, "k"), Some(Ok("second".to_owned())));
}

#[test]
fn a_by_key_owner_that_died_cannot_end_its_record() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    let token = texts(&first).initiate("k").unwrap().unwrap();
    first.close().unwrap();
    let second = open(dir.path(), &clock);
    let manager = texts(&second);
    assert_eq!(manager.success("k", token, &"v".to_owned()).unwrap_err().kind(), ErrorKind::ClaimLost);
    let info = manager.get("k").unwrap().unwrap().info().clone();
    assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::ProcessEnded)));
}

#[test]
fn dropping_a_claim_interrupts_the_record() {
    let (manager, _) = fresh();
    drop(claim(&manager, "k"));
    let info = manager.get("k").unwrap().unwrap().info().clone();
    assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::Dropped)));
}

#[test]
fn unwinding_through_a_claim_interrupts_the_record_and_the_panic_continues() {
    let (manager, _) = fresh();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _claim = claim(&manager, "begun");
        panic!("on purpose");
    }));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"on purpose"));
    let panic = catch_unwind(AssertUnwindSafe(|| manager.execute("executed", |_| panic!("on purpose")).is_ok()));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"on purpose"));
    for key in ["begun", "executed"] {
        let info = manager.get(key).unwrap().unwrap().info().clone();
        assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::Panicked)), "{key}");
    }
}

#[test]
fn dropping_a_claim_of_an_ended_engine_neither_blocks_nor_panics_and_is_counted() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    let late = claim(&texts(&first), "k");
    first.clone().crash();
    drop(late);
    assert_eq!(first.stats().drops_not_recorded, 1);
    let second = open(dir.path(), &clock);
    assert_eq!(second.opened().interrupted, 1);
    let info = texts(&second).get("k").unwrap().unwrap().info().clone();
    assert_eq!(info.interruption(), Some(Interruption::ProcessEnded));
}

#[test]
fn a_stored_failure_is_replayed_like_a_success() {
    let (manager, _) = fresh();
    let first = manager.execute("k", |_| Err("declined".to_owned())).unwrap_err();
    assert!(matches!(first, ExecuteError::Failed { replayed: false, .. }));
    let again = manager.execute("k", |_| panic!("it has run")).unwrap_err();
    let ExecuteError::Failed { error, replayed: true, .. } = again else { panic!("{again:?}") };
    assert_eq!(error, "declined");
    let Begin::Replay(done) = manager.begin("k").unwrap() else { panic!("no replay") };
    assert_eq!(done.into_outcome(), Err("declined".to_owned()));
}

#[test]
fn a_released_operation_runs_again() {
    let (engine, _) = engine();
    // Also under `Hold`.
    let manager = texts_with(&engine, ManagerOptions::new());
    let first = claim(&manager, "k");
    let (generation, effect) = (first.generation(), first.effect_id("charge"));
    first.release().unwrap();
    assert_eq!(waited(&manager.wait("k", oncekey::FOREVER).unwrap()), "released");
    let done = manager.execute("k", |claim| Ok(claim.effect_id("charge"))).unwrap();
    assert_eq!((done.info().generation(), done.info().attempt()), (generation, 2));
    assert_eq!(*done.value(), effect);
}

// A failure to store a result never becomes a stored failure, and the caller gets the value back.

/// The returned claim is alive: nothing was stored, the key is not free, and another value can be stored.
#[track_caller]
fn comes_back_alive<T: Stored, E: Stored>(
    manager: &Manager<T, E>,
    error: EndError<Claim<T, E>>,
    kind: ErrorKind,
    value: &T,
) {
    let EndError { error, claim } = error;
    let key = claim.key().to_string();
    assert_eq!(error.kind(), kind);
    assert!(error.to_string().contains(&format!("key {key} of m")), "{error}");
    assert_eq!(status(manager, &key), Some(Status::InProgress));
    assert_eq!(answer(manager, &key), "in progress");
    claim.succeed(value).unwrap();
    assert_eq!(status(manager, &key), Some(Status::Succeeded));
}

#[test]
fn a_result_that_cannot_be_read_back_returns_codec_and_the_value() {
    let (engine, _) = engine();
    let manager: Manager<Holed, Holed> = engine.manager("m").unwrap();
    let (bad, good) = (Holed { note: None, cents: 1 }, Holed { note: Some("x".to_owned()), cents: 1 });
    comes_back_alive(&manager, claim(&manager, "won").succeed(&bad).unwrap_err(), ErrorKind::Codec, &good);
    comes_back_alive(&manager, claim(&manager, "lost").fail(&bad).unwrap_err(), ErrorKind::Codec, &good);
    for (key, result) in [("ok", Ok(bad.clone())), ("err", Err(bad.clone()))] {
        let answer = manager.execute(key, |_| result.clone()).unwrap_err();
        let ExecuteError::NotStored { outcome, error } = answer else { panic!("{answer:?}") };
        assert_eq!(outcome, result);
        comes_back_alive(&manager, error, ErrorKind::Codec, &good);
    }
}

#[test]
fn a_result_that_bincode_reads_back_differently_is_stored_and_replayed() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    let manager: Manager<Shifted, String> = first.manager("m").unwrap();
    let done = claim(&manager, "k").succeed(&Shifted::Declined(1)).unwrap();
    assert_eq!(done.into_outcome(), Ok(Shifted::Declined(1)));
    let json: Manager<serde_json::Value> = first.manager("json").unwrap();
    json.execute("k", |_| Ok(serde_json::json!({ "a": [1, null] }))).unwrap();
    drop((manager, json));
    first.close().unwrap();
    let second = open(dir.path(), &clock);
    assert_eq!(outcome(&second.manager::<Shifted, String>("m").unwrap(), "k"), Some(Ok(Shifted::Declined(1))));
    let json: Manager<serde_json::Value> = second.manager("json").unwrap();
    assert_eq!(json.execute("k", |_| unreachable!()).unwrap().value()["a"][0], 1);
}

#[test]
fn a_result_over_the_limit_returns_too_large_and_the_value() {
    let clock = ManualClock::new();
    let engine = options(&clock).max_value_bytes(64).temporary_store().unwrap();
    let manager = texts(&engine);
    // The overhead: the codec (1), the digest of the shape (8), and the quotes or the length.
    let (fits, over) = ("x".repeat(53), "x".repeat(54));
    comes_back_alive(&manager, claim(&manager, "won").succeed(&over).unwrap_err(), ErrorKind::TooLarge, &fits);
    comes_back_alive(&manager, claim(&manager, "lost").fail(&over).unwrap_err(), ErrorKind::TooLarge, &fits);
    let answer = manager.execute("k", |_| Ok(over.clone())).unwrap_err();
    let ExecuteError::NotStored { outcome, error } = answer else { panic!("{answer:?}") };
    assert_eq!(outcome, Ok(over.clone()));
    comes_back_alive(&manager, error, ErrorKind::TooLarge, &fits);

    let token = manager.initiate("by key").unwrap().unwrap();
    assert_eq!(manager.success("by key", token, &over).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(manager.fail("by key", token, &over).unwrap_err().kind(), ErrorKind::TooLarge);
    manager.success("by key", token, &fits).unwrap();

    drop(claim(&manager, "held"));
    let resolved = manager.resolve("held", Resolution::Succeed(over.clone())).unwrap_err();
    assert_eq!(resolved.kind(), ErrorKind::TooLarge);
    let raw = engine.raw("m").unwrap().resolve("held", Resolution::Succeed(vec![0; 65].into())).unwrap_err();
    assert_eq!(raw.kind(), ErrorKind::TooLarge);
    assert_eq!(status(&manager, "held"), Some(Status::Interrupted));
}

#[test]
fn an_operation_that_closes_the_engine_is_stored_unless_it_fails() {
    for (fails, on_error) in [(false, OnError::Store), (true, OnError::Store), (true, OnError::Release)] {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let first = open(dir.path(), &clock);
        let answer = texts(&first).on_error(move |_| on_error).execute("k", |_| {
            assert_eq!(first.clone().close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
            if fails { Err("declined".to_owned()) } else { Ok("v".to_owned()) }
        });
        assert_eq!(answer.is_err(), fails);
        let second = open(dir.path(), &clock);
        // The operation received an engine error, so its failure may be made from it.
        let expected = if fails { Status::Interrupted } else { Status::Succeeded };
        assert_eq!(status(&texts(&second), "k"), Some(expected));
    }
}

#[test]
fn every_caller_gets_the_stored_value() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    // Larger than every size at which values are stored in another way.
    let values = [0, 1, 4_000, 4_100, 70_000, 1_000_000].map(|len| "x".repeat(len));
    let first = open(dir.path(), &clock);
    for value in &values {
        let key = format!("k{}", value.len());
        let done = texts(&first).execute(&key, |_| Ok(value.clone())).unwrap();
        assert_eq!(done.value(), value);
        assert_eq!(done.info().outcome_bytes(), value.len() as u64 + 17);
        assert!(texts(&first).extend(&key, 2 * DAY).unwrap());
    }
    first.close().unwrap();
    let second = open(dir.path(), &clock);
    clock.advance(DAY + MINUTE);
    for value in &values {
        let again = texts(&second).execute(format!("k{}", value.len()), |_| panic!("it has run")).unwrap();
        assert!(again.replayed() && again.value() == value);
    }
}

#[test]
fn the_gauge_of_interrupted_records_is_right_after_an_open_that_finds_expired_ones() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let open = || Engine::options().clock(clock.clone()).open(dir.path()).unwrap();
    let options = ManagerOptions::new().interrupted_ttl(Duration::from_millis(30));
    let engine = open();
    drop(claim(&engine.manager_with::<u64, String>("m", options.clone()).unwrap(), "dropped"));
    assert_eq!(engine.stats().interrupted, 1);
    engine.close().unwrap();
    clock.advance(Duration::from_millis(50));
    let engine = open();
    assert_eq!((engine.stats().interrupted, engine.compact_now().unwrap().removed), (0, 1));
    drop(claim(&engine.manager_with::<u64, String>("m", options).unwrap(), "another"));
    assert_eq!((engine.stats().interrupted, engine.interrupted().unwrap().count()), (1, 1));
}
