//! Tests that operations that may have happened are held, and that temporary errors are never stored as answers.

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;
use oncekey::{
    Begin, CallOptions, Claim, Engine, Error, ErrorKind, ExecuteError, Failure, Manager, ManagerOptions, OnError,
    OnInterrupted, Status,
    admin::{RecordFilter, Resolution},
    http::{Requests, Response},
    stage::{DriveError, Next, PhaseError, STARTED, Stages},
};

use crate::common::*;
use crate::requests::ok;

type Numbers = Manager<u64>;

fn numbers(options: ManagerOptions) -> (Engine, Numbers) {
    let (engine, _) = engine();
    let manager = engine.manager_with("n", options).unwrap();
    (engine, manager)
}

fn resuming() -> ManagerOptions {
    ManagerOptions::new().on_interrupted(OnInterrupted::Resume)
}

#[derive(Debug, PartialEq)]
enum StageError {
    Declined,
    TimedOut,
    Engine(ErrorKind),
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        Self::Engine(error.kind())
    }
}

fn failing(error: fn() -> StageError) -> Stages<'static, u64, Failure, StageError> {
    Stages::new()
        .stage(STARTED, move |_: &mut Claim<u64>| Err(error()))
        .nothing_happened(|error| *error == StageError::Declined)
}

fn drive<X: From<Error>>(
    manager: &Numbers,
    key: &str,
    stages: &Stages<'_, u64, Failure, X>,
) -> Result<u64, DriveError<u64, Failure, X>> {
    manager.drive(key, CallOptions::new().wait(Duration::ZERO), stages).map(oncekey::Executed::into_value)
}

#[test]
fn a_stage_error_under_hold_interrupts_unless_nothing_happened() {
    let (_engine, manager) = numbers(ManagerOptions::new());
    let stages = failing(|| StageError::TimedOut);
    assert!(matches!(drive(&manager, "k", &stages), Err(DriveError::Stage { error: StageError::TimedOut, .. })));
    assert_eq!(status(&manager, "k"), Some(Status::Interrupted));
    let again = drive(&manager, "k", &stages);
    assert!(matches!(again, Err(DriveError::Execute(ExecuteError::Interrupted(_)))), "{again:?}");

    let declined = failing(|| StageError::Declined);
    assert!(drive(&manager, "declined", &declined).is_err());
    assert_eq!(status(&manager, "declined"), Some(Status::Released));
}

#[test]
fn an_engine_error_after_the_effect_interrupts_under_hold() {
    let (_engine, manager) = numbers(ManagerOptions::new());
    let too_large = vec![0; (1 << 20) + 1];
    let stages = Stages::new().stage(STARTED, |claim: &mut Claim<u64>| {
        claim.work_stage(|tx| {
            tx.table("orders")?.insert("1", &too_large)?;
            Ok::<_, Error>(Next::Succeed(1))
        })
    });
    assert!(drive(&manager, "k", &stages).is_err());
    assert_eq!(status(&manager, "k"), Some(Status::Interrupted));
    // A stalled stage has run too.
    let stalls: Stages<'_, u64> = Stages::new().stage(STARTED, |_| Ok(()));
    assert!(drive(&manager, "stalls", &stalls).is_err());
    assert_eq!(status(&manager, "stalls"), Some(Status::Interrupted));
    // At an unknown recovery point no stage has run.
    let none: Stages<'_, u64> = Stages::new();
    assert!(drive(&manager, "none", &none).is_err());
    assert_eq!(status(&manager, "none"), Some(Status::Released));
}

#[test]
fn a_stage_error_under_resume_releases() {
    let (_engine, manager) = numbers(resuming());
    assert!(drive(&manager, "k", &failing(|| StageError::TimedOut)).is_err());
    assert_eq!(status(&manager, "k"), Some(Status::Released));
}

#[test]
fn execute_rejects_a_record_on_which_a_stage_has_committed() {
    let (_engine, manager) = numbers(resuming());
    let mut claim = claim(&manager, "k");
    claim.work_stage(|_| Ok::<_, Error>(Next::advance("charged"))).unwrap();
    claim.release().unwrap();
    let refused = manager.execute("k", |_| unreachable!("it would charge again")).unwrap_err();
    let ExecuteError::Engine(error) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), ErrorKind::UnknownRecoveryPoint);
    assert!(error.to_string().contains("charged"), "{error}");
    let record = manager.get("k").unwrap().unwrap();
    assert_eq!((record.status(), record.info().attempt()), (Status::Released, 1));
    // A checkpoint at the first recovery point counts like a later recovery point.
    let mut claim = crate::common::claim(&manager, "l");
    claim.work_stage(|_| Ok::<_, Error>(Next::advance_with(STARTED, "half"))).unwrap();
    drop(claim);
    assert!(matches!(manager.execute("l", |_| Ok(1)), Err(ExecuteError::Engine(_))));
    // A caller that knows the stages continues.
    let stages =
        Stages::new().stage("charged", |claim: &mut Claim<u64>| claim.work_stage(|_| Ok::<_, Error>(Next::Succeed(7))));
    assert_eq!(drive(&manager, "k", &stages).unwrap(), 7);
    assert_eq!(manager.execute("k", |_| Ok(1)).unwrap().into_value(), 7);
}

#[test]
fn an_operation_that_kills_its_owner_each_time_is_held_after_max_attempts() {
    let (engine, manager) = numbers(resuming().max_attempts(NonZeroU32::new(3).unwrap()));
    for attempt in 1..=3 {
        let claim = claim(&manager, "pill");
        assert_eq!(claim.attempt(), attempt);
    }
    assert_eq!(arm(&manager.begin("pill").unwrap()), "interrupted");
    assert!(matches!(manager.execute("pill", |_| Ok(1)), Err(ExecuteError::Interrupted(_))));
    assert_eq!(engine.interrupted().unwrap().count(), 1);
    // `Retry` allows one more attempt.
    manager.resolve("pill", Resolution::Retry).unwrap();
    assert_eq!(claim(&manager, "pill").attempt(), 4);
    assert_eq!(arm(&manager.begin("pill").unwrap()), "interrupted");

    let requests = engine.requests_with("r", resuming().max_attempts(NonZeroU32::MIN)).unwrap();
    let created = requests.create(oncekey::http::NewRequest::new("POST", "/")).unwrap();
    drop(claimed(requests.lock(created.info().key()).unwrap()));
    assert_eq!(arm(&requests.lock(created.info().key()).unwrap()), "interrupted");
}

#[test]
fn released_attempts_do_not_count_against_max_attempts() {
    let (_engine, manager) = numbers(resuming().max_attempts(NonZeroU32::new(2).unwrap()));
    for _ in 0..5 {
        claim(&manager, "k").release().unwrap();
    }
    drop(claim(&manager, "k"));
    let again = claim(&manager, "k");
    assert_eq!(again.attempt(), 7);
    drop(again);
    assert_eq!(arm(&manager.begin("k").unwrap()), "interrupted");
}

#[test]
fn waiters_get_interrupted_after_max_attempts() {
    crate::threads::within(crate::threads::LATE, || {
        let (engine, manager) = numbers(resuming().max_attempts(NonZeroU32::MIN));
        let owner = claim(&manager, "pill");
        std::thread::scope(|scope| {
            let wait = || manager.begin_with("pill", CallOptions::new().wait(crate::threads::LATE)).unwrap();
            let waiters: Vec<_> = (0..8).map(|_| scope.spawn(wait)).collect();
            crate::threads::until("all wait", || engine.stats().waiting == 8);
            drop(owner);
            for waiter in waiters {
                assert_eq!(arm(&waiter.join().unwrap()), "interrupted");
            }
        });
    });
}

#[test]
fn an_effect_id_or_a_committed_stage_turns_release_on_drop_off() {
    let (_engine, manager) = numbers(ManagerOptions::new());
    let panicking = |key: &str, work: &dyn Fn(&mut Claim<u64>)| {
        let mut claim = claim(&manager, key);
        claim.release_on_drop(true);
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            work(&mut claim);
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        status(&manager, key).unwrap()
    };
    assert_eq!(panicking("nothing", &|_| {}), Status::Released);
    assert_eq!(panicking("effect", &|claim| drop(claim.effect_id("charge"))), Status::Interrupted);
    let stage = |claim: &mut Claim<u64>| claim.work_stage(|_| Ok::<_, Error>(Next::advance("charged"))).unwrap();
    assert_eq!(panicking("stage", &stage), Status::Interrupted);
    // A stage that returns `Stay` may have written rows.
    let stays = |claim: &mut Claim<u64>| claim.work_stage(|_| Ok::<_, Error>(Next::Stay)).unwrap();
    assert_eq!(panicking("stays", &stays), Status::Interrupted);
    // A call of `release_on_drop` after the effect id turns it on again.
    let again = |claim: &mut Claim<u64>| {
        drop(claim.effect_id("charge"));
        claim.release_on_drop(true);
    };
    assert_eq!(panicking("again", &again), Status::Released);
}

#[test]
fn a_failure_has_the_status_of_the_record() {
    let (engine, _) = engine();
    let manager: Manager<u64, String> = engine.manager("m").unwrap();
    let manager = manager.on_error(|error| match error.as_str() {
        "again" => OnError::Release,
        "unknown" => OnError::Interrupt,
        _ => OnError::Store,
    });
    for (error, expected) in [("final", Status::Failed), ("again", Status::Released), ("unknown", Status::Interrupted)]
    {
        let failed = manager.execute(error, |_| Err(error.to_owned())).unwrap_err();
        let ExecuteError::Failed { status: told, replayed: false, .. } = failed else { panic!("{failed:?}") };
        assert_eq!((told, status(&manager, error)), (expected, Some(expected)));
    }
    let replayed = manager.execute("final", |_| unreachable!("it has run")).unwrap_err();
    assert!(matches!(replayed, ExecuteError::Failed { status: Status::Failed, replayed: true, .. }));
}

#[test]
fn engine_errors_are_never_stored_as_a_failure() {
    let (engine, manager) = numbers(ManagerOptions::new());
    let table = engine.table("t").unwrap();
    let too_large = vec![0; (1 << 20) + 1];
    let failed = manager.execute("row", |_| {
        table.insert("row", &too_large)?;
        Ok(1)
    });
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Interrupted, .. })), "{failed:?}");
    // As a type of the user's that does not show its origin.
    let own: Manager<u64, String> = engine.manager("own").unwrap();
    let own = own.on_error(|_| OnError::Store);
    let failed = own.execute("row", |_| table.insert("row", &too_large).map(|()| 1).map_err(|_| "no".to_owned()));
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Interrupted, .. })), "{failed:?}");

    // An inner operation that finds another owner or an interrupted record.
    let _owner = claim(&manager, "at work");
    drop(claim(&manager, "held"));
    for inner in ["at work", "held"] {
        let failed = manager.execute(format!("around {inner}"), |_| {
            let part = manager.execute_with(inner, CallOptions::new().wait(Duration::ZERO), |_| Ok(1))?;
            Ok(part.into_value() + 1)
        });
        assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Interrupted, .. })), "{failed:?}");
    }

    // The operation's own failure is stored as before. So is a failure after a conflict that was resolved by a new run.
    let failed = manager.execute("declined", |_| Err(Failure::new("declined")));
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Failed, .. })));
    let failed = manager.execute("conflict", |_| {
        let runs = std::cell::Cell::new(0);
        engine.atomic_phase(|tx| {
            let rows = tx.table("t")?;
            rows.get("contended")?;
            if runs.replace(runs.get() + 1) == 0 {
                std::thread::scope(|scope| scope.spawn(|| table.insert("contended", "x").unwrap()).join().unwrap());
                rows.get("another")?;
            }
            rows.insert("contended", "y")
        })?;
        assert_eq!(runs.get(), 2);
        Err(Failure::new("declined"))
    });
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Failed, .. })), "{failed:?}");
}

#[test]
fn an_engine_error_of_another_thread_is_not_stored_either() {
    let (engine, manager) = numbers(ManagerOptions::new());
    let table = engine.table("t").unwrap();
    let too_large = vec![0; (1 << 20) + 1];
    let failed = manager.execute("k", |_| {
        std::thread::scope(|scope| scope.spawn(|| table.insert("row", &too_large)).join().unwrap())?;
        Ok(1)
    });
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Interrupted, .. })), "{failed:?}");
}

#[test]
fn an_operation_that_waits_for_all_operations_gets_deadlock_at_once() {
    let (engine, manager) = numbers(ManagerOptions::new());
    let done = manager.execute("k", |_| {
        let refused = engine.clone().close_when_idle(Duration::MAX).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Deadlock);
        Ok(1)
    });
    assert_eq!(done.unwrap().into_value(), 1);
    assert!(manager.execute("another", |_| Ok(2)).is_ok(), "nothing has changed");
}

#[test]
fn an_answer_made_from_an_engine_error_is_not_stored_as_ok_or_err() {
    let (engine, manager) = numbers(ManagerOptions::new());
    let _owner = claim(&manager, "at work");
    let requests = engine.requests("r").unwrap();
    for (key, is_ok) in [("ok", true), ("err", false)] {
        let answer = requests.handle(&request(key), |_, _| {
            let wait = CallOptions::new().wait(Duration::ZERO);
            assert!(manager.execute_with("at work", wait, |_| Ok(1)).is_err());
            let busy = Response::new(StatusCode::CONFLICT);
            if is_ok { Ok(busy) } else { Err(busy) }
        });
        assert_eq!(
            (answer.status(), status(requests.manager(), key)),
            (StatusCode::CONFLICT, Some(Status::Interrupted))
        );
    }
}

fn request(key: &str) -> http::Request<&'static str> {
    http::Request::post("/pay").header("idempotency-key", key).body("20 EUR").unwrap()
}

/// The work of the operation before its response.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    NamesAnEffect,
    CommitsAStage,
}

#[test]
fn the_default_rule_treats_ok_and_err_responses_alike() {
    use Before::{CommitsAStage, NamesAnEffect, Nothing};
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap();
    for (nth, (status_code, before, expected)) in [
        (201, Nothing, Status::Succeeded),
        (400, Nothing, Status::Succeeded),
        (429, Nothing, Status::Succeeded),
        (402, NamesAnEffect, Status::Succeeded),
        (503, Nothing, Status::Released),
        (500, NamesAnEffect, Status::Interrupted),
        (504, CommitsAStage, Status::Interrupted),
    ]
    .into_iter()
    .enumerate()
    {
        for is_ok in [true, false] {
            let key = format!("{nth} {is_ok}");
            let response = Response::new(StatusCode::from_u16(status_code).unwrap());
            let answer = requests.handle(&request(&key), |_, claim| {
                match before {
                    Nothing => {}
                    NamesAnEffect => drop(claim.effect_id("charge")),
                    CommitsAStage => claim.work_stage(|_| Ok::<_, Error>(Next::advance("charged"))).unwrap(),
                }
                if is_ok { Ok(response.clone()) } else { Err(response.clone()) }
            });
            assert_eq!(answer.status(), status_code);
            let expected = if expected == Status::Succeeded && !is_ok { Status::Failed } else { expected };
            assert_eq!(status(requests.manager(), &key), Some(expected), "{status_code} {before:?}");
            let mut ran = false;
            let again = requests.handle(&request(&key), |_, _| {
                ran = true;
                Ok(Response::new(StatusCode::CREATED))
            });
            let retried = match expected {
                Status::Released => 201,
                Status::Interrupted => 409,
                _ => status_code,
            };
            assert_eq!((again.status().as_u16(), ran), (retried, expected == Status::Released), "{status_code}");
        }
    }
}

#[test]
fn a_request_rejected_before_any_effect_can_be_corrected_under_the_same_key() {
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap().on_error(|response| match response.status().as_u16() {
        400 | 409 | 429 | 500.. => OnError::ReleaseUnlessEffect,
        _ => OnError::Store,
    });
    let pay = |key: &str, cents: &'static str| {
        let request = http::Request::post("/pay").header("idempotency-key", key).body(cents).unwrap();
        requests.handle(&request, |request, claim| {
            if *request.body() == "-1" {
                return Err(Response::new(StatusCode::BAD_REQUEST));
            }
            let _charge = claim.effect_id("charge");
            if *request.body() == "13" { Ok(Response::new(StatusCode::CONFLICT)) } else { Ok(ok("paid")) }
        })
    };
    assert_eq!((pay("k", "-1").status(), pay("k", "1").status()), (StatusCode::BAD_REQUEST, StatusCode::OK));
    assert_eq!(pay("k", "-1").status(), StatusCode::UNPROCESSABLE_ENTITY);
    // The same status after an effect id does not release the key.
    assert_eq!(pay("l", "13").status(), StatusCode::CONFLICT);
    assert_eq!(status(requests.manager(), "l"), Some(Status::Interrupted));
}

#[test]
fn release_unless_effect_works_for_managers_of_all_types() {
    let (engine, _) = engine();
    let manager: Manager<u64, String> = engine.manager("m").unwrap();
    let manager = manager.on_error(|_| OnError::ReleaseUnlessEffect);
    for (key, names_effect, expected) in [("before", false, Status::Released), ("after", true, Status::Interrupted)] {
        let error = manager.execute(key, |claim| {
            if names_effect {
                drop(claim.effect_id("charge"));
            }
            Err("the connection is lost".to_owned())
        });
        assert!(matches!(error, Err(ExecuteError::Failed { status, .. }) if status == expected), "{key}");
    }
}

#[test]
fn an_ok_or_err_response_is_classified_once() {
    let (engine, _) = engine();
    let classified = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&classified);
    let requests = engine.requests("r").unwrap().on_error(move |response| {
        counter.fetch_add(1, Ordering::SeqCst);
        match response.status().as_u16() {
            503 => OnError::Release,
            500 => OnError::Interrupt,
            _ => OnError::Store,
        }
    });
    let expected = [(200, Status::Succeeded, Status::Failed), (503, Status::Released, Status::Released)];
    for (code, of_ok, of_err) in expected.into_iter().chain([(500, Status::Interrupted, Status::Interrupted)]) {
        for (is_ok, expected) in [(true, of_ok), (false, of_err)] {
            let key = format!("{code} {is_ok}");
            let response = Response::new(StatusCode::from_u16(code).unwrap());
            requests.handle(&request(&key), |_, _| if is_ok { Ok(response) } else { Err(response) });
            assert_eq!(status(requests.manager(), &key), Some(expected), "{key}");
            assert_eq!(classified.swap(0, Ordering::SeqCst), 1, "{key}");
        }
    }
}

#[test]
fn interrupted_requests_are_held_and_only_driven_ones_resume() {
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap();
    let begin = |key| requests.initialize_request(Some(key), "POST", &7, "/orders").unwrap();
    drop(claimed(begin("k")));
    assert!(matches!(begin("k"), Begin::Interrupted(_)));
    let created = requests.create(oncekey::http::NewRequest::new("POST", "/orders")).unwrap();
    drop(claimed(requests.lock(created.info().key()).unwrap()));
    assert!(matches!(requests.lock(created.info().key()).unwrap(), Begin::Interrupted(_)));

    let stages =
        Stages::new().stage(STARTED, |_: &mut Claim<Response, Response>| Err::<(), _>(PhaseError::<&str>::User("no")));
    assert!(requests.drive(Some("driven"), "POST", &7, "/orders", &stages).is_err());
    let record = requests.retrieve("driven").unwrap().unwrap();
    assert_eq!((record.status(), record.info().policy()), (Status::Released, OnInterrupted::Resume));
}

fn all(requests: &Requests) -> Vec<Status> {
    requests.find(RecordFilter::new()).unwrap().map(|info| info.unwrap().status()).collect()
}

#[test]
fn a_request_without_a_key_keeps_its_record_after_an_effect() {
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap();
    let fails = |names_effect: bool| {
        Stages::new().stage(STARTED, move |claim: &mut Claim<Response, Response>| {
            if names_effect {
                drop(claim.effect_id("charge"));
            }
            Err::<(), _>(PhaseError::<&str>::User("the provider timed out"))
        })
    };
    let removed = engine.stats().commits;
    assert!(requests.drive(None, "POST", &7, "/orders", &fails(false)).is_err());
    assert!(all(&requests).is_empty());
    // A begin and a removal: the record is never released in between.
    assert_eq!(engine.stats().commits - removed, 2);
    assert!(requests.drive(None, "POST", &7, "/orders", &fails(true)).is_err());
    // Also under `Resume`: a released record would be deleted after a day, and its effect id with it.
    assert_eq!(all(&requests), [Status::Interrupted]);
    let succeeds = Stages::new().stage(STARTED, |claim: &mut Claim<Response, Response>| {
        claim.work_stage(|_| Ok::<_, Error>(Next::Succeed(ok("x"))))
    });
    assert!(requests.drive(None, "POST", &7, "/orders", &succeeds).is_ok());
}
