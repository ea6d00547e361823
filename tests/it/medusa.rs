//! The defects of Medusa v1's `IdempotencyKeyService` that concern claims. Each test fails on the behaviour of that
//! service. The defects of its stages are tested beside the stages.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use http::StatusCode;
use oncekey::{
    Begin, CallOptions, ErrorKind, ExecuteError, Manager, ManagerOptions, OnError, Status,
    admin::RecordFilter,
    clock::ManualClock,
    http::{NewRequest, RequestPatch, Requests, Response},
    stage::{FINISHED, PhaseError, STARTED},
};

use crate::common::*;
use crate::threads::patient;

fn requests() -> Requests {
    engine().0.requests("carts").unwrap()
}

fn start(requests: &Requests, key: &str) -> Begin<Response, Response> {
    requests.initialize_request(Some(key), "POST", &("cart", 17), "/carts").unwrap()
}

fn order(body: &str) -> Response {
    Response::new(StatusCode::OK).body(body)
}

// "An unknown client key is silently replaced by a server uuid": after a lost response the client cannot find its own.
#[test]
fn medusa_1_the_client_key_is_kept() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let key = "client's key \u{e9}\u{0} 1";
    let first = open(dir.path(), &clock);
    let done = texts(&first).execute(key, |claim| Ok(claim.key().as_str().unwrap().to_owned())).unwrap();
    assert_eq!((done.value().as_str(), done.info().key().as_str()), (key, Some(key)));
    // The response is lost, and the server restarts.
    first.close().unwrap();
    let second = open(dir.path(), &clock);
    let again = texts(&second).execute(key, |_| Ok("again".to_owned())).unwrap();
    assert_eq!((again.value().as_str(), again.replayed()), (key, true));
    assert_eq!(second.records(RecordFilter::new()).unwrap().count(), 1);
}

// The same with the service's own method: `create({method, params, path})` ignored the key of the header.
#[test]
fn medusa_1_initialize_request_keeps_the_client_key() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    let claim = claimed(start(&first.requests("carts").unwrap(), "client-key-1"));
    assert_eq!(claim.key().as_str(), Some("client-key-1"));
    claim.succeed(&order("order 1")).unwrap();
    // The response is lost, and the server restarts.
    first.close().unwrap();
    let second = open(dir.path(), &clock);
    let requests = second.requests("carts").unwrap();
    let Begin::Replay(done) = start(&requests, "client-key-1") else { panic!("no replay") };
    assert_eq!(done.into_outcome().unwrap(), order("order 1"));
    assert_eq!(keys(requests.find(RecordFilter::new()).unwrap()), ["client-key-1"]);
}

// "`lock()` has zero call sites: there is no in-progress exclusion at all." If it were called, the lock would end after
// 1 s.
#[test]
fn medusa_2_a_key_in_progress_excludes_all_others_without_a_time_limit() {
    let (manager, clock) = fresh();
    let owner = claim(&manager, "k");
    let ran = AtomicU32::new(0);
    for passed in [MS, SECOND, MINUTE, DAY, 10 * YEAR] {
        clock.advance(passed);
        assert_eq!(answer(&manager, "k"), "in progress");
        assert!(manager.initiate("k").unwrap().is_none());
        let refused = manager.execute_with("k", CallOptions::new().wait(MS), |_| {
            ran.fetch_add(1, Ordering::Relaxed);
            Ok(String::new())
        });
        assert!(matches!(refused, Err(ExecuteError::InProgress(_))));
    }
    assert_eq!(ran.into_inner(), 0);
    owner.succeed(&"mine".to_owned()).unwrap();
}

// "Nothing ever clears `locked_at`": our lock ends with the claim.
#[test]
fn medusa_2_an_ending_frees_the_key_at_once() {
    let (engine, _) = engine();
    let manager = resuming(&engine);
    claim(&manager, "k").release().unwrap();
    claim(&manager, "k").interrupt().unwrap();
    drop(claim(&manager, "k"));
    assert_eq!(claim(&manager, "k").attempt(), 4);
}

// "Check-then-save at default isolation is not atomic": two threads that lock a request both held it.
#[test]
fn medusa_2_a_lock_excludes_the_other_thread() {
    let requests = requests();
    requests.create(NewRequest::new("POST", "/carts").key("k".parse().unwrap())).unwrap();
    for round in 1..=100 {
        let (start, asked) = (Barrier::new(2), Barrier::new(2));
        let lock = || {
            start.wait();
            let begin = requests.lock("k").unwrap();
            asked.wait();
            begin
        };
        let (one, two) = std::thread::scope(|scope| {
            let (one, two) = (scope.spawn(lock), scope.spawn(lock));
            (one.join().unwrap(), two.join().unwrap())
        });
        let (claim, other) = if arm(&one) == "claimed" { (one, two) } else { (two, one) };
        assert_eq!((arm(&claim), arm(&other)), ("claimed", "in progress"));
        let claim = claimed(claim);
        assert_eq!(claim.attempt(), round);
        claim.release().unwrap();
    }
}

// "`initializeIdempotencyRequest` opens no transaction, SERIALIZABLE is ignored; check-then-save is not atomic."
#[test]
fn medusa_3_only_one_of_many_first_requests_begins() {
    let (manager, _) = fresh();
    let (start, ran) = (Barrier::new(8), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                let done = manager.execute_with("k", patient(), |_| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    Ok("once".to_owned())
                });
                assert_eq!(done.unwrap().value(), "once");
            });
        }
    });
    assert_eq!(ran.into_inner(), 1);
}

#[test]
fn medusa_3_only_one_of_many_first_creations_succeeds() {
    let requests = requests();
    let start = Barrier::new(8);
    let made: Vec<u64> = std::thread::scope(|scope| {
        let create = || {
            start.wait();
            let info =
                requests.create(NewRequest::new("POST", "/carts").key("k".parse().unwrap())).unwrap().into_info();
            info.generation()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(made.iter().all(|generation| *generation == made[0]), "{made:?}");
}

// "Keys are not scoped by path": a key of another operation was used as if it belonged to this one.
#[test]
fn medusa_4_the_same_key_in_two_managers_is_two_records() {
    let (engine, _) = engine();
    let carts: Manager<String, String> = engine.manager("carts").unwrap();
    let items: Manager<u64, String> = engine.manager("items").unwrap();
    carts.execute("k", |_| Ok("cart".to_owned())).unwrap();
    assert!(items.get("k").unwrap().is_none());
    assert!(!items.execute("k", |_| Ok(7)).unwrap().replayed());
    assert_eq!(outcome(&carts, "k"), Some(Ok("cart".to_owned())));
}

// "Keys are not scoped by path": here the key is rejected for another path, and its record does not change.
#[test]
fn medusa_4_a_key_of_another_path_is_rejected() {
    let requests = requests();
    requests.create(NewRequest::new("POST", "/carts").key("k".parse().unwrap())).unwrap();
    requests.update("k", RequestPatch::new().recovery_point("tax_lines_created")).unwrap();
    let items = requests.initialize_request(Some("k"), "POST", &(), "/line-items").unwrap();
    assert_eq!(arm(&items), "mismatch");
    let record = requests.retrieve("k").unwrap().unwrap();
    assert_eq!((record.info().recovery_point(), record.info().attempt()), ("tax_lines_created", 0));
}

// "Non-terminal answers terminate the key: retries replay a stale cart."
#[test]
fn medusa_5_a_released_operation_does_not_finish_the_key() {
    let (manager, _) = fresh();
    let manager =
        manager.on_error(|error: &String| if error == "requires_more" { OnError::Release } else { OnError::Store });
    let more = manager.execute("k", |_| Err("requires_more".to_owned())).unwrap_err();
    assert!(matches!(more, ExecuteError::Failed { replayed: false, .. }), "{more:?}");
    assert_eq!(manager.get("k").unwrap().unwrap().info().recovery_point(), STARTED);
    let done = manager.execute("k", |_| Ok("order".to_owned())).unwrap();
    assert_eq!((done.value().as_str(), done.replayed()), ("order", false));
}

// A payment with status "requires more" was answered with a 200, which finished the key.
#[test]
fn medusa_5_a_non_final_response_is_sent_but_not_stored() {
    let requests = requests().on_error(|response| match response.body_bytes() {
        b"requires_more" => OnError::Release,
        _ => OnError::Store,
    });
    let request = http::Request::post("/carts/17/complete").header("idempotency-key", "k").body("").unwrap();
    let more = requests.handle(&request, |_, _| Err(order("requires_more")));
    assert_eq!((more.status(), more.body().as_slice()), (StatusCode::OK, &b"requires_more"[..]));
    let done = requests.handle(&request, |_, _| Ok(order("order")));
    assert_eq!(done.body().as_slice(), b"order");
    assert!(!done.headers().contains_key("idempotent-replayed"));
    let again = requests.handle(&request, |_, _| panic!("it has run"));
    assert_eq!(
        (again.body().as_slice(), &again.headers()["idempotent-replayed"]),
        (&b"order"[..], &"true".parse().unwrap())
    );
}

// "No guard that the key is unfinished: `workStage` may run after `finished`."
#[test]
fn medusa_6_a_finished_key_is_never_ended_again() {
    let (manager, _) = fresh();
    for (key, ends_well) in [("won", true), ("lost", false)] {
        let claim = claim(&manager, key);
        let token = token(claim.token());
        let finished = if ends_well { claim.succeed(&"v".to_owned()) } else { claim.fail(&"e".to_owned()) }.unwrap();
        assert_eq!(finished.info().recovery_point(), FINISHED);
        let before = manager.get(key).unwrap().unwrap();
        // No call returns a claim or writes.
        assert_eq!(answer(&manager, key), "replay");
        assert!(manager.initiate(key).unwrap().is_none());
        assert_eq!(manager.success(key, token, &"w".to_owned()).unwrap_err().kind(), ErrorKind::ClaimLost);
        assert_eq!(manager.fail(key, token, &"w".to_owned()).unwrap_err().kind(), ErrorKind::ClaimLost);
        assert_eq!(manager.release(key, token).unwrap_err().kind(), ErrorKind::ClaimLost);
        let resolved = manager.resolve(key, oncekey::admin::Resolution::Succeed("w".to_owned()));
        assert_eq!(resolved.unwrap_err().kind(), ErrorKind::NotInterrupted);
        let after = manager.get(key).unwrap().unwrap();
        assert_eq!(before.outcome(), after.outcome());
        assert_eq!(before.info().updated_at(), after.info().updated_at());
    }
}

// "`update(key, patch)`: field-by-field overwrite, no invariants."
#[test]
fn medusa_6_a_finished_request_takes_no_patch_and_no_lock() {
    let requests = requests();
    claimed(start(&requests, "k")).succeed(&order("order 1")).unwrap();
    let patches = [
        RequestPatch::new().recovery_point("started"),
        RequestPatch::new().checkpoint("c"),
        RequestPatch::new().response(order("order 2")),
    ];
    for patch in patches {
        assert_eq!(requests.update("k", patch).unwrap_err().kind(), ErrorKind::NotInProgress);
    }
    assert_eq!(arm(&requests.lock("k").unwrap()), "replay");
    let record = requests.retrieve("k").unwrap().unwrap();
    assert_eq!(record.info().recovery_point(), FINISHED);
    assert_eq!(record.into_outcome(), Some(Ok(order("order 1"))));
}

// "Two drivers of the same key both run a stage; one loses at commit, after foreign effects."
#[test]
fn medusa_6_a_second_driver_does_not_run_and_each_claim_has_a_larger_token() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    let manager = resuming(&first);
    let driver = claim(&manager, "k");
    assert_eq!(answer(&manager, "k"), "in progress");
    let mut last = driver.token();
    driver.interrupt().unwrap();
    for _ in 0..3 {
        let next = claim(&manager, "k");
        assert!(next.token() > last, "a token that does not grow fences off no owner");
        last = next.token();
        next.release().unwrap();
    }
    first.close().unwrap();
    let second = open(dir.path(), &clock);
    assert!(claim(&resuming(&second), "k").token() > last);
    assert!(claim(&resuming(&second), "other").token() > last);
}

// "`recovery_point: \"\"` is stored *and* the response is": the record is finished and unfinished at once.
#[test]
fn medusa_8_a_record_is_finished_if_and_only_if_it_has_an_outcome() {
    let (manager, _) = fresh();
    claim(&manager, "won").succeed(&"v".to_owned()).unwrap();
    claim(&manager, "lost").fail(&"e".to_owned()).unwrap();
    claim(&manager, "released").release().unwrap();
    drop(claim(&manager, "dropped"));
    let _live = claim(&manager, "live");
    for key in ["won", "lost", "released", "dropped", "live"] {
        let record = manager.get(key).unwrap().unwrap();
        let finished = matches!(record.status(), Status::Succeeded | Status::Failed);
        assert_eq!(record.outcome().is_some(), finished, "{key}");
        assert_eq!(record.info().recovery_point() == FINISHED, finished, "{key}");
        assert_eq!(record.info().outcome_bytes() > 0, finished, "{key}");
    }
}

#[test]
fn medusa_8_a_recovery_point_has_a_name_and_excludes_a_response() {
    let requests = requests();
    requests.create(NewRequest::new("POST", "/carts").key("k".parse().unwrap())).unwrap();
    let point = |point: &str| RequestPatch::new().recovery_point(point);
    for (patch, kind) in [
        (point(""), ErrorKind::InvalidName),
        (point("").response(order("order 1")), ErrorKind::InvalidOptions),
        (point("paid").response(order("order 1")), ErrorKind::InvalidOptions),
        (point(FINISHED), ErrorKind::InvalidOptions),
    ] {
        assert_eq!(requests.update("k", patch).unwrap_err().kind(), kind);
        let record = requests.retrieve("k").unwrap().unwrap();
        assert_eq!((record.info().recovery_point(), record.outcome()), (STARTED, None));
    }
}

// "Shared mutable `manager_` on singleton services": settings of one caller affected calls of others.
#[test]
fn medusa_9_options_of_a_clone_do_not_change_the_original() {
    let (original, _) = fresh();
    let releasing = original.clone().on_error(|_| OnError::Release);
    let scoped = original.scoped("tenant").unwrap();
    let _ = original.execute("k", |_| Err("e".to_owned())).unwrap_err();
    assert_eq!(status(&original, "k"), Some(Status::Failed));
    let _ = releasing.execute("l", |_| Err("e".to_owned())).unwrap_err();
    assert_eq!(status(&original, "l"), Some(Status::Released));
    assert_eq!(status(&scoped, "k"), None);
}

// The same defect: a service bound to the transaction of one caller was also used by another caller.
#[test]
fn medusa_9_concurrent_phases_of_one_service_are_independent() {
    let (engine, _) = engine();
    let requests = engine.requests("carts").unwrap();
    let both = Barrier::new(2);
    let phase = |key: &str, other: Option<&str>| {
        engine.atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            inside.create(NewRequest::new("POST", "/carts").key(key.parse()?))?;
            both.wait();
            // Both threads are in their transactions now, and use the shared service.
            inside.update(key, RequestPatch::new().recovery_point(key))?;
            tx.table("carts")?.insert(key, "x")?;
            assert_eq!(inside.retrieve(key)?.unwrap().info().recovery_point(), key);
            if let Some(other) = other {
                assert!(inside.retrieve(other)?.is_none() && !tx.table("carts")?.contains(other)?);
            }
            both.wait();
            if other.is_some() { Ok(()) } else { Err(PhaseError::User("rolled back")) }
        })
    };
    let (kept, dropped) = std::thread::scope(|scope| {
        let (kept, dropped) = (scope.spawn(|| phase("kept", Some("dropped"))), scope.spawn(|| phase("dropped", None)));
        (kept.join().unwrap(), dropped.join().unwrap())
    });
    assert!(kept.is_ok() && matches!(dropped, Err(PhaseError::User("rolled back"))));
    assert_eq!(keys(requests.find(RecordFilter::new()).unwrap()), ["kept"]);
    assert_eq!(engine.table("carts").unwrap().len().unwrap(), 1);
}

// "Stage output is not stored: later stages re-find their objects by columns in business tables."
#[test]
fn medusa_10_the_result_of_a_stage_is_kept_for_the_next() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    let requests = first.requests("carts").unwrap();
    claimed(start(&requests, "k")).release().unwrap();
    requests.update("k", RequestPatch::new().recovery_point("payment_authorized").checkpoint("ch_1")).unwrap();
    first.close().unwrap();
    let second = open(dir.path(), &clock);
    let claim = claimed(start(&second.requests("carts").unwrap(), "k"));
    assert_eq!((claim.recovery_point(), claim.checkpoint()), ("payment_authorized", Some(&b"ch_1"[..])));
}

// "Any error of `retrieve` is swallowed, and a new row is created" (and #4025: created only if it throws).
#[test]
fn medusa_11_a_read_error_is_not_treated_as_a_new_key() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    let before = manager.get("k").unwrap().unwrap();
    let other_schema = texts_with(&engine, ManagerOptions::new().schema(2));
    assert_eq!(other_schema.begin("k").unwrap_err().kind(), ErrorKind::TypeMismatch);
    let refused = other_schema.execute("k", |_| panic!("it has run"));
    assert!(matches!(refused, Err(ExecuteError::Engine(error)) if error.kind() == ErrorKind::TypeMismatch));
    let after = manager.get("k").unwrap().unwrap();
    assert_eq!(before.info().generation(), after.info().generation());
    engine.close().unwrap();
    assert_eq!(manager.begin("k").unwrap_err().kind(), ErrorKind::Closed);
    assert!(matches!(manager.execute("k", |_| panic!("it has run")), Err(ExecuteError::Engine(_))));
}

#[test]
fn medusa_11_an_unreadable_request_is_not_created_again() {
    let (engine, _) = engine();
    let requests = engine.requests("carts").unwrap();
    claimed(start(&requests, "k")).succeed(&order("order 1")).unwrap();
    let other_schema = engine.requests_with("carts", ManagerOptions::new().schema(2)).unwrap();
    let refused = other_schema.initialize_request(Some("k"), "POST", &("cart", 17), "/carts");
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(other_schema.lock("k").unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(other_schema.retrieve_one(RecordFilter::new()).unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(keys(requests.find(RecordFilter::new()).unwrap()), ["k"]);
    assert_eq!(requests.retrieve("k").unwrap().unwrap().info().attempt(), 1);
}

// "Method, path and params are stored, never compared."
#[test]
fn medusa_a_stored_request_is_compared() {
    let (manager, _) = fresh();
    let owner = claimed(manager.begin_with("k", same("POST /carts")).unwrap());
    assert_eq!(answer_with(&manager, "k", same("POST /orders")), "mismatch");
    owner.succeed(&"v".to_owned()).unwrap();
    assert_eq!(answer_with(&manager, "k", same("POST /orders")), "mismatch");
    assert_eq!(answer_with(&manager, "k", same("POST /carts")), "replay");
}

// "`update(key, patch)`: field by field, no invariants." A retry changes no fact that was fixed at the start.
#[test]
fn medusa_a_retry_does_not_patch_the_record() {
    let (manager, _) = fresh();
    let first = CallOptions::new().context(about("user", "ada"));
    claimed(manager.begin_with("k", first).unwrap()).succeed(&"v".to_owned()).unwrap();
    let second = CallOptions::new().context(about("user", "eve"));
    let Begin::Replay(done) = manager.begin_with("k", second).unwrap() else { panic!("no replay") };
    assert_eq!(done.info().context().text("user"), Some("ada"));
}

// "No TTL column, no delete, no collection: rows live for ever."
#[test]
fn medusa_finished_records_expire() {
    let (engine, clock) = engine();
    let manager = texts(&engine);
    for n in 0..20 {
        claim(&manager, &format!("k{n}")).succeed(&"v".to_owned()).unwrap();
    }
    assert_eq!(engine.compact_now().unwrap().removed, 0);
    clock.advance(DAY);
    assert_eq!(engine.compact_now().unwrap().removed, 20);
    assert_eq!(engine.managers().unwrap(), Vec::<String>::new());
}
