//! Tests of requests inside transactions: committed together with rows, or not at all.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;
use oncekey::{
    Engine, Error, ErrorKind, ManagerOptions, RecordInfo, Status, Waited,
    admin::{Event, Resolution},
    http::{NewRequest, RequestPatch, Requests, Response},
    stage::{PhaseError, STARTED},
};

use crate::common::*;

fn new(key: &str) -> NewRequest {
    NewRequest::new("POST", "/orders").key(key.parse().unwrap())
}

fn gone() -> RequestPatch {
    RequestPatch::new().response(Response::new(StatusCode::GONE))
}

fn requests(engine: &Engine) -> Requests {
    engine.requests("r").unwrap()
}

fn state(requests: &Requests, key: &str) -> Option<Status> {
    requests.retrieve(key).unwrap().map(|record| record.status())
}

#[test]
fn a_request_and_a_row_are_created_together() {
    let (engine, _) = engine();
    let requests = requests(&engine).scoped("ada").unwrap();
    let key = engine
        .atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            assert!(inside.retrieve("k")?.is_none());
            let key = inside.create(new("k"))?.key().clone();
            assert_eq!(inside.retrieve("k")?.unwrap().status(), Status::Released, "it reads what it has written");
            inside.update("k", RequestPatch::new().recovery_point("paid").checkpoint("ch_1"))?;
            assert_eq!(inside.retrieve("k")?.unwrap().info().recovery_point(), "paid");
            tx.table("carts")?.insert("17", key.as_bytes())?;
            Ok::<_, Error>(key)
        })
        .unwrap();
    assert_eq!(key.parts(), [&b"ada"[..], b"k"]);
    let info = requests.retrieve("k").unwrap().unwrap().info().clone();
    assert_eq!((info.recovery_point(), info.checkpoint(), info.attempt()), ("paid", Some(&b"ch_1"[..]), 0));
    assert!(info.generation() > 0);
    let claim = claimed(requests.lock("k").unwrap());
    assert_eq!((claim.recovery_point(), claim.generation()), ("paid", info.generation()));
    claim.release().unwrap();
    assert_eq!(engine.table("carts").unwrap().get("17").unwrap().as_deref(), Some(key.as_bytes()));
}

#[test]
fn the_creating_transaction_sees_no_numbers_and_the_commit_gives_them() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    let numbers = |info: &RecordInfo| (info.generation(), info.revision());
    let created = engine
        .atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            let created = inside.create(new("k"))?.into_info();
            assert_eq!(numbers(&created), (0, 0));
            assert_eq!(numbers(inside.retrieve("k")?.unwrap().info()), (0, 0));
            Ok::<_, Error>(created)
        })
        .unwrap();
    let committed = requests.retrieve("k").unwrap().unwrap().info().clone();
    assert!(committed.generation() > 0 && committed.revision() == committed.generation());
    // The record as it was before the commit differs from the stored one.
    assert_eq!(numbers(&created), (0, 0));
    let refused = requests.manager().resolve_if_unchanged(&created, Resolution::Retry).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Changed);
    // A later transaction sees them, until it changes the record.
    engine
        .atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            assert_eq!(numbers(inside.retrieve("k")?.unwrap().info()), numbers(&committed));
            inside.update("k", RequestPatch::new().recovery_point("paid"))?;
            assert_eq!(numbers(inside.retrieve("k")?.unwrap().info()), (committed.generation(), 0));
            Ok::<_, Error>(())
        })
        .unwrap();
    assert!(requests.retrieve("k").unwrap().unwrap().info().revision() > committed.revision());
}

#[test]
fn the_creating_transaction_sees_the_final_effect_ids() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    let phase = |keys: &[&str]| {
        engine.atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            let named = |key: &&str| {
                let created = inside.create(new(key))?.info().effect_id("charge");
                assert_eq!(inside.retrieve(*key)?.unwrap().info().effect_id("charge"), created);
                Ok(created)
            };
            keys.iter().map(named).collect::<Result<Vec<_>, Error>>()
        })
    };
    let later = |key: &str| requests.retrieve(key).unwrap().unwrap().info().effect_id("charge");
    let first = phase(&["a", "b"]).unwrap();
    assert_eq!(first, [later("a"), later("b")]);
    assert_ne!(first[0], first[1], "each generation has its own");
    assert_eq!(claimed(requests.lock("a").unwrap()).effect_id("charge"), first[0]);
    // The next generation of the key in the same transaction is another operation.
    let manager = requests.manager();
    assert!(manager.remove("a").unwrap() && manager.remove("b").unwrap());
    let second = phase(&["a", "b"]).unwrap();
    assert_eq!(second, [later("a"), later("b")]);
    assert!(first.iter().all(|id| !second.contains(id)));
}

#[test]
fn a_rolled_back_request_never_existed() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    requests.create(new("old")).unwrap();
    let refused: Result<(), _> = engine.atomic_phase(|tx| {
        let inside = requests.with_transaction(tx);
        inside.create(new("new"))?;
        inside.update("old", gone())?;
        assert_eq!(inside.retrieve("old")?.unwrap().status(), Status::Succeeded);
        Err(PhaseError::User("no"))
    });
    assert!(matches!(refused, Err(PhaseError::User("no"))));
    assert_eq!((state(&requests, "new"), state(&requests, "old")), (None, Some(Status::Released)));
    assert_eq!(requests.retrieve("old").unwrap().unwrap().info().recovery_point(), STARTED);
}

#[test]
fn an_ending_inside_a_transaction_is_reported_at_the_commit() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    let key = requests.create(new("k")).unwrap().key().clone();
    let claim = claimed(requests.lock(&key).unwrap());
    let events = engine.events();
    claim.release().unwrap();
    engine.atomic_phase(|tx| requests.with_transaction(tx).update(&key, gone())).unwrap();
    let ended: Vec<Status> = events
        .ready()
        .filter_map(|event| if let Event::Ended(info) = event { Some(info.status()) } else { None })
        .collect();
    assert_eq!(ended, [Status::Released, Status::Succeeded]);
    let Waited::Finished(done) = requests.manager().wait(&key, Duration::ZERO).unwrap() else { panic!("ended") };
    assert_eq!(done.outcome().unwrap().status(), StatusCode::GONE);
    assert_eq!((engine.stats().in_progress, engine.stats().interrupted), (0, 0));
}

#[test]
fn the_rules_of_requests_hold_inside() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    requests.create(new("k")).unwrap();
    let held = claimed(requests.lock("k").unwrap());
    let refused = |work: &dyn Fn(&oncekey::http::TransactionRequests<'_>) -> oncekey::Result<()>| {
        engine.atomic_phase(|tx| work(&requests.with_transaction(tx))).unwrap_err().kind()
    };
    assert_eq!(refused(&|inside| inside.update("k", gone())), ErrorKind::OwnedByClaim);
    assert_eq!(refused(&|inside| inside.update("none", gone())), ErrorKind::NotFound);
    assert_eq!(refused(&|inside| inside.update("k", RequestPatch::new())), ErrorKind::InvalidOptions);
    let other = || NewRequest::new("POST", "/carts").key("k".parse().unwrap());
    assert_eq!(refused(&|inside| inside.create(other()).map(|_| ())), ErrorKind::Mismatch);
    assert_eq!(refused(&|inside| inside.retrieve("").map(|_| ())), ErrorKind::InvalidKey);
    held.succeed(&Response::new(StatusCode::OK)).unwrap();
    assert_eq!(refused(&|inside| inside.update("k", gone())), ErrorKind::NotInProgress);

    let elsewhere = Engine::options().temporary_store().unwrap();
    let wrong = elsewhere.atomic_phase(|tx| requests.with_transaction(tx).create(new("x")).map(|_| ()));
    assert_eq!(wrong.unwrap_err().kind(), ErrorKind::InvalidOptions);
    assert_eq!(state(&requests, "x"), None);
}

#[test]
fn a_phase_runs_again_if_a_request_that_it_read_changed() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    requests.create(new("k")).unwrap();
    let runs = std::sync::atomic::AtomicU32::new(0);
    let seen = engine.atomic_phase(|tx| {
        let found = requests.with_transaction(tx).retrieve("k")?.map(|record| record.status());
        if runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            let remove = || requests.manager().remove("k");
            assert!(std::thread::scope(|scope| scope.spawn(remove).join().unwrap())?);
        }
        tx.table("t")?.insert("seen", format!("{found:?}"))?;
        Ok::<_, Error>(found)
    });
    assert_eq!((seen.unwrap(), runs.into_inner()), (None, 2));
}

#[test]
fn a_phase_runs_again_if_a_request_that_it_read_expires() {
    let (engine, clock) = local_engine();
    let options = ManagerOptions::new().released_ttl(MINUTE).interrupted_ttl(MINUTE);
    let requests = engine.requests_with("r", options).unwrap();
    // A request that is read twice.
    requests.create(new("read")).unwrap();
    let runs = AtomicU32::new(0);
    engine
        .atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            let first = inside.retrieve("read")?.is_some();
            assert_eq!(first, runs.load(Ordering::Relaxed) == 0);
            if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                clock.advance(MINUTE);
            }
            assert_eq!(inside.retrieve("read")?.is_some(), first, "two states at once");
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 2);

    // A request that is changed: another caller may rely on having seen it expired.
    requests.create(new("changed")).unwrap();
    let runs = AtomicU32::new(0);
    let changed = engine.atomic_phase(|tx| {
        let changed = requests.with_transaction(tx).update("changed", RequestPatch::new().checkpoint("x"));
        if runs.fetch_add(1, Ordering::Relaxed) == 0 {
            clock.advance(MINUTE);
            std::thread::scope(|scope| scope.spawn(|| assert_eq!(state(&requests, "changed"), None)).join().unwrap());
        }
        changed
    });
    assert_eq!(state(&requests, "changed"), None);
    assert_eq!(changed.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn the_ttl_of_a_request_made_in_a_slow_phase_starts_at_the_commit() {
    let (engine, clock) = engine();
    let requests = engine
        .requests_with("r", ManagerOptions::new().released_ttl(MINUTE).interrupted_ttl(MINUTE).success_ttl(MINUTE))
        .unwrap();
    engine
        .atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            inside.create(new("made"))?;
            clock.advance(MINUTE);
            assert!(inside.retrieve("made")?.is_some(), "it reads what it has written");
            inside.update("made", gone())
        })
        .unwrap();
    clock.advance(just_before(MINUTE));
    assert_eq!(state(&requests, "made"), Some(Status::Succeeded));
    clock.advance(MS);
    assert_eq!(state(&requests, "made"), None);
}

// A patch of an older record does not extend its time, not even by the duration of the phase.
#[test]
fn a_patch_in_a_slow_phase_does_not_extend_the_ttl() {
    let (engine, clock) = engine();
    let requests = engine
        .requests_with("r", ManagerOptions::new().released_ttl(MINUTE).interrupted_ttl(MINUTE).success_ttl(MINUTE))
        .unwrap();
    let half = MINUTE / 2;
    let patch = || RequestPatch::new().recovery_point("paid");
    requests.create(new("patched")).unwrap();
    requests.create(new("ended")).unwrap();
    engine
        .atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            inside.update("patched", patch())?;
            inside.update("patched", patch())?;
            inside.update("ended", patch())?;
            inside.update("ended", gone())?;
            inside.create(new("made"))?;
            inside.update("made", patch())?;
            clock.advance(half);
            Ok::<_, Error>(())
        })
        .unwrap();
    clock.advance(just_before(half));
    assert_eq!(state(&requests, "patched"), Some(Status::Released));
    clock.advance(MS);
    assert_eq!(state(&requests, "patched"), None, "a minute after it was made");
    // The TTL of a request created or ended inside starts at the commit.
    clock.advance(just_before(half));
    assert_eq!(
        (state(&requests, "made"), state(&requests, "ended")),
        (Some(Status::Released), Some(Status::Succeeded))
    );
    clock.advance(MS);
    assert_eq!((state(&requests, "made"), state(&requests, "ended")), (None, None));
}
