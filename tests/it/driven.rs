//! Tests of requests that are driven in stages.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use oncekey::{
    Error, ErrorKind, ExecuteError, Key, OnInterrupted, Status,
    admin::RecordFilter,
    clock::ManualClock,
    http::{Requests, Response},
    stage::{DriveError, Next, PhaseError, STARTED, Stages},
};

use crate::common::*;
use crate::requests::{ok, requests, state, status_of};
use crate::threads::{LATE, until, within};

/// Stages of which the second fails as long as the flag is set.
fn stages(fails: &AtomicBool) -> Stages<'_, Response, Response, Error> {
    Stages::new().stage(STARTED, |claim| claim.work_stage(|_| Ok(Next::advance_with("paid", "ch_1")))).stage(
        "paid",
        |claim| {
            if fails.load(Ordering::Relaxed) {
                return Err(Key::new("").unwrap_err());
            }
            let charge = String::from_utf8(claim.checkpoint().unwrap_or_default().to_vec()).unwrap();
            claim.work_stage(|_| Ok(Next::Succeed(ok(&charge))))
        },
    )
}

fn drive(
    requests: &Requests,
    key: &str,
    path: &str,
    fails: &AtomicBool,
) -> Result<oncekey::Executed<Response>, DriveError<Response, Response, Error>> {
    requests.drive(Some(key), http::Method::POST, &7, path, &stages(fails))
}

#[test]
fn a_driven_request_continues_where_it_stopped_and_is_replayed() {
    let (requests, fails) = (requests(), AtomicBool::new(true));
    let failed = drive(&requests, "\"k\"", "/orders", &fails).unwrap_err();
    assert!(matches!(failed, DriveError::Stage { error, .. } if error.kind() == ErrorKind::InvalidKey));
    let record = requests.retrieve("k").unwrap().unwrap();
    assert_eq!((record.status(), record.info().recovery_point()), (Status::Interrupted, "paid"));
    assert_eq!(record.info().policy(), OnInterrupted::Resume);
    fails.store(false, Ordering::Relaxed);
    let done = drive(&requests, "k", "/orders", &fails).unwrap();
    assert_eq!((done.value(), done.replayed(), done.info().attempt()), (&ok("ch_1"), false, 2));
    assert!(drive(&requests, "k", "/orders", &fails).unwrap().replayed());
}

#[test]
fn bad_and_mismatched_requests_are_not_driven() {
    let (requests, fails) = (requests(), AtomicBool::new(false));
    let before = state(&requests);
    for (key, path, kind) in [("\"k", "/orders", ErrorKind::InvalidKey), ("k", "POST", ErrorKind::InvalidOptions)] {
        let refused = drive(&requests, key, path, &fails).unwrap_err();
        assert!(matches!(refused, DriveError::Execute(ExecuteError::Engine(error)) if error.kind() == kind));
    }
    assert_eq!(state(&requests), before);
    assert_eq!(status_of(&requests, "k"), None);
    drive(&requests, "k", "/orders", &fails).unwrap();
    let DriveError::Execute(other) = drive(&requests, "k", "/carts", &fails).unwrap_err() else { panic!("no answer") };
    assert_eq!(other.problem().unwrap().status(), 422);
}

#[test]
fn a_request_without_a_key_that_fails_leaves_no_unreachable_record() {
    let (requests, fails) = (requests(), AtomicBool::new(true));
    let all = || requests.find(RecordFilter::new()).unwrap().map(Result::unwrap).collect::<Vec<_>>();
    // The first stage has stored nothing, so the record is removed.
    let first = Stages::new().stage(STARTED, |claim: &mut oncekey::Claim<Response, Response>| {
        claim.work_stage(|tx| {
            tx.table("t")?.insert("row", "x")?;
            Err(PhaseError::User("no"))
        })
    });
    for _ in 0..2 {
        let failed = requests.drive(None, "POST", &7, "/orders", &first);
        assert!(matches!(failed, Err(DriveError::Stage { error: PhaseError::User("no"), .. })));
        assert!(all().is_empty());
    }
    // The client knows this key.
    assert!(requests.drive(Some("known"), "POST", &7, "/orders", &first).is_err());
    assert_eq!(status_of(&requests, "known"), Some(Status::Released));
    requests.manager().remove("known").unwrap();
    // The first stage has committed, so the record stays and can be found.
    assert!(requests.drive(None, "POST", &7, "/orders", &stages(&fails)).is_err());
    let [left] = &all()[..] else { panic!("one is left") };
    assert_eq!((left.status(), left.recovery_point()), (Status::Interrupted, "paid"));
    fails.store(false, Ordering::Relaxed);
    let key = left.key().as_str().unwrap();
    assert_eq!(requests.drive(Some(key), "POST", &7, "/orders", &stages(&fails)).unwrap().value(), &ok("ch_1"));
}

// After a panic it is not known what happened, so the record stays.
#[test]
fn a_request_without_a_key_that_panics_stays_interrupted() {
    let requests = requests();
    let panics: Stages<'_, Response, Response> = Stages::new().stage(STARTED, |_| panic!("on purpose"));
    let drive = || requests.drive(None, "POST", &7, "/orders", &panics);
    assert!(catch_unwind(AssertUnwindSafe(drive)).is_err());
    let left: Vec<_> = requests.find(RecordFilter::new()).unwrap().map(|info| info.unwrap().status()).collect();
    assert_eq!(left, [Status::Interrupted]);
}

/// Returns another key at each call, so that a row written twice occurs twice.
fn claim_number(tx: &oncekey::Transaction) -> oncekey::Result<Vec<u8>> {
    let counters = tx.table("counters")?;
    let number = counters.get("next")?.map_or(0, |value| u32::from_be_bytes(value.as_ref().try_into().unwrap()));
    counters.insert("next", (number + 1).to_be_bytes())?;
    Ok(number.to_be_bytes().to_vec())
}

// "Two drivers of the same key both run a stage; one loses at commit, after foreign effects."
#[test]
fn medusa_6_one_of_two_concurrent_drivers_runs_the_stages_and_both_get_the_response() {
    within(LATE, || {
        let requests = requests();
        let waiting = || requests.manager().engine().stats().waiting;
        let effects = [AtomicU32::new(0), AtomicU32::new(0)];
        let stages = Stages::new()
            .stage(STARTED, |claim| {
                effects[0].fetch_add(1, Ordering::Relaxed);
                until("the other driver has come", || waiting() == 1);
                claim.work_stage(|_| Ok(Next::advance("paid")))
            })
            .stage("paid", |claim| {
                effects[1].fetch_add(1, Ordering::Relaxed);
                claim.work_stage(|tx| {
                    tx.table("orders")?.insert(claim_number(tx)?, "x")?;
                    Ok::<_, Error>(Next::Succeed(ok("order")))
                })
            });
        let drive = || requests.drive(Some("k"), "POST", &7, "/orders", &stages).unwrap();
        let (one, two) = std::thread::scope(|scope| {
            let (one, two) = (scope.spawn(drive), scope.spawn(drive));
            (one.join().unwrap(), two.join().unwrap())
        });
        assert_eq!((one.value(), two.value()), (&ok("order"), &ok("order")));
        assert_ne!(one.replayed(), two.replayed());
        assert_eq!(effects.each_ref().map(|effect| effect.load(Ordering::Relaxed)), [1, 1]);
        assert_eq!(requests.manager().engine().table("orders").unwrap().len().unwrap(), 1);
    });
}

// "Stage output is not stored: later stages re-find their objects by columns in business tables."
#[test]
fn medusa_10_the_checkpoint_of_a_stage_survives_a_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let charges = AtomicU32::new(0);
    let broken = AtomicBool::new(true);
    let stages = Stages::new()
        .stage(STARTED, |claim| {
            let charge = format!("ch_{}", charges.fetch_add(1, Ordering::Relaxed) + 1);
            claim.work_stage(|_| Next::advance_encoded("payment_authorized", &(charge.clone(), 1999_u64)))?;
            Ok(())
        })
        .stage("payment_authorized", |claim| {
            if broken.load(Ordering::Relaxed) {
                return Err(PhaseError::User("no answer"));
            }
            let (charge, cents): (String, u64) = claim.decode_checkpoint()?.unwrap();
            claim.work_stage(|_| Ok(Next::Succeed(ok(&format!("{charge}: {cents}")))))
        });
    let first = open(dir.path(), &clock);
    let failed = first.requests("carts").unwrap().drive(Some("k"), "POST", &7, "/carts", &stages);
    assert!(matches!(failed, Err(DriveError::Stage { error: PhaseError::User("no answer"), .. })));
    first.close().unwrap();
    broken.store(false, Ordering::Relaxed);
    let second = open(dir.path(), &clock);
    let done = second.requests("carts").unwrap().drive(Some("k"), "POST", &7, "/carts", &stages).unwrap();
    assert_eq!((done.value(), charges.load(Ordering::Relaxed)), (&ok("ch_1: 1999"), 1));
}

// #2212, #2761, #1262: tax lines were duplicated or left over, because their cleanup was outside the stage.
#[test]
fn medusa_11_a_stage_that_fails_after_its_inserts_leaves_one_set_of_rows() {
    let (engine, _) = engine();
    let requests = engine.requests("carts").unwrap();
    let attempts = AtomicU32::new(0);
    let stages = Stages::new()
        .stage(STARTED, |claim| {
            let attempt = attempts.fetch_add(1, Ordering::Relaxed);
            claim.work_stage(|tx| {
                for line in 0..3 {
                    tx.table("tax_lines")?.insert(format!("{attempt}-{line}"), claim_number(tx)?)?;
                }
                match attempt {
                    0 => Err(PhaseError::User("the tax provider is down")),
                    1 => panic!("on purpose"),
                    _ => Ok(Next::advance("tax_lines_created")),
                }
            })
        })
        .stage("tax_lines_created", |claim| claim.work_stage(|_| Ok(Next::Succeed(ok("order")))));
    let drive = || requests.drive(Some("k"), "POST", &7, "/carts", &stages);
    let rows = || -> Vec<_> { engine.table("tax_lines").unwrap().iter().unwrap().map(Result::unwrap).collect() };
    assert!(matches!(drive(), Err(DriveError::Stage { error: PhaseError::User(_), .. })));
    assert!(rows().is_empty());
    assert!(catch_unwind(AssertUnwindSafe(drive)).is_err());
    assert!(rows().is_empty());
    assert_eq!(drive().unwrap().value(), &ok("order"));
    assert!(drive().unwrap().replayed());
    let expected = (0..3_u32).map(|line| (format!("2-{line}").as_str().into(), (&line.to_be_bytes()).into()));
    assert_eq!(rows(), expected.collect::<Vec<_>>());
}

/// The error alone tells whether the failure is final, retryable or unknown.
#[test]
fn the_error_of_drive_has_the_status_of_the_record() {
    let (engine, _) = engine();
    let orders = texts(&engine);
    for policy in [OnInterrupted::Hold, OnInterrupted::Resume] {
        for (named, certain) in [(false, false), (false, true), (true, false), (true, true)] {
            let key = format!("{policy:?} {named} {certain}");
            let stages = Stages::new()
                .stage(STARTED, |claim| {
                    if named {
                        let _charged = claim.effect_id("charge");
                    }
                    Err(PhaseError::User("no"))
                })
                .nothing_happened(|_: &PhaseError<&str>| certain);
            let options = oncekey::CallOptions::new().on_interrupted(policy);
            let Err(DriveError::Stage { status: answered, .. }) = orders.drive(&key, options, &stages) else {
                panic!("{key}")
            };
            let released = certain || !named && policy == OnInterrupted::Resume;
            assert_eq!(answered, if released { Status::Released } else { Status::Interrupted }, "{key}");
            assert_eq!(status(&orders, &key), Some(answered), "{key}");
        }
    }
    let fails =
        Stages::new().stage(STARTED, |claim| claim.work_stage(|_| Ok::<_, Error>(Next::Fail("sold out".into()))));
    for replay in [false, true] {
        let failed = orders.drive("final", oncekey::CallOptions::new(), &fails).unwrap_err();
        assert!(
            matches!(&failed, DriveError::Execute(ExecuteError::Failed { status: Status::Failed, replayed, .. }) if *replayed == replay),
            "{failed:?}"
        );
    }
    // The caller does not know the key of this request, and its record is removed.
    let requests = engine.requests("carts").unwrap();
    let stages = Stages::new().stage(STARTED, |_| Err(PhaseError::User("no")));
    let failed = requests.drive(None, "POST", &7, "/orders", &stages);
    assert!(matches!(failed, Err(DriveError::Stage { status: Status::Released, .. })), "{failed:?}");
}
