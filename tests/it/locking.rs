//! Tests of `lock` inside a transaction: the commit makes the claim, or there is none.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use oncekey::{
    Engine, Error, ErrorKind, Interruption, Manager, ManagerOptions, OnInterrupted, Status,
    http::{Locked, Locking, NewRequest, RequestPatch, Requests, Response},
};

use crate::common::*;
use crate::requests::ok;

/// Returns requests with one request, `k`.
fn created() -> (Engine, Requests) {
    created_in(engine().0)
}

fn created_in(engine: Engine) -> (Engine, Requests) {
    let requests = engine.requests("r").unwrap();
    requests.create(NewRequest::new("POST", "/orders").key("k".parse().unwrap())).unwrap();
    (engine, requests)
}

fn locked(locking: Locking) -> Locked {
    match locking {
        Locking::Locked(locked) => locked,
        other => panic!("{other:?}"),
    }
}

fn state(requests: &Requests) -> (Status, u32) {
    let record = requests.retrieve("k").unwrap().unwrap();
    (record.status(), record.info().attempt())
}

#[test]
fn the_commit_makes_the_claim_together_with_the_rows() {
    let (engine, requests) = created();
    let lock = locked(
        engine
            .atomic_phase(|tx| {
                tx.table("workers")?.insert("k", "worker 7")?;
                requests.with_transaction(tx).lock("k")
            })
            .unwrap(),
    );
    assert_eq!((lock.info().status(), lock.info().attempt()), (Status::InProgress, 1));
    assert_eq!(arm(&requests.lock("k").unwrap()), "in progress");
    assert_eq!(engine.clone().close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
    let claim = lock.into_claim().unwrap();
    assert_eq!((claim.attempt(), claim.context().text("path")), (1, Some("/orders")));
    assert!(claim.token() > 0 && claim.effect_id("charge").len() == 32);
    claim.succeed(&ok("done")).unwrap();
}

#[test]
fn without_a_commit_nothing_is_locked() {
    let (engine, requests) = created();
    let kept = RefCell::new(None);
    let lock = |tx: &oncekey::Transaction| -> Result<(), Error> {
        tx.table("workers")?.insert("k", "worker 7")?;
        *kept.borrow_mut() = Some(locked(requests.with_transaction(tx).lock("k")?));
        Ok(())
    };
    let into_claim = || kept.take().unwrap().into_claim().map_err(|error| error.kind()).map(drop);
    let failed = engine.atomic_phase(|tx| lock(tx).and(Err::<(), _>(refusal())));
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(into_claim(), Err(ErrorKind::ClaimLost));

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        engine.atomic_phase(|tx| -> Result<(), Error> {
            lock(tx)?;
            panic!("after the lock")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(into_claim(), Err(ErrorKind::ClaimLost));

    // A nested phase that fails, in a transaction that commits.
    engine
        .atomic_phase(|tx| {
            tx.table("workers")?.insert("other", "x")?;
            let part = engine.atomic_phase(|tx| lock(tx).and(Err::<(), _>(refusal())));
            assert!(part.is_err());
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(into_claim(), Err(ErrorKind::ClaimLost));

    // Not yet.
    let early = engine.atomic_phase(|tx| {
        let lock = locked(requests.with_transaction(tx).lock("k")?);
        Ok::<_, Error>(lock.into_claim().map(drop).unwrap_err().kind())
    });
    assert_eq!(early.unwrap(), ErrorKind::ClaimLost);
    // This run was committed, and its claim was dropped.
    assert_eq!(state(&requests), (Status::Interrupted, 1));
    assert_eq!(engine.table("workers").unwrap().get("k").unwrap(), None);
}

fn refusal() -> Error {
    oncekey::Key::new("").unwrap_err()
}

#[test]
fn a_dropped_lock_interrupts_like_a_dropped_claim() {
    for inside in [true, false] {
        let (engine, requests) = created();
        let lock = engine.atomic_phase(|tx| {
            let locking = requests.with_transaction(tx).lock("k")?;
            Ok::<_, Error>(if inside { None } else { Some(locking) })
        });
        drop(lock.unwrap());
        let record = requests.retrieve("k").unwrap().unwrap();
        assert_eq!(record.info().interruption(), Some(Interruption::Dropped), "{inside}");
        engine.close().unwrap();
    }
}

#[test]
fn only_the_committed_run_gets_a_claim() {
    let (engine, requests) = created_in(local_engine().0);
    let (runs, first) = (Cell::new(0), RefCell::new(None));
    let lock = engine
        .atomic_phase(|tx| {
            let seen = tx.table("t")?.get("a")?;
            let lock = locked(requests.with_transaction(tx).lock("k")?);
            runs.set(runs.get() + 1);
            if runs.get() == 1 {
                // Another thread changes a row that was read.
                let table = engine.table("t")?;
                std::thread::scope(|scope| scope.spawn(|| table.insert("a", "b")).join().unwrap())?;
                *first.borrow_mut() = Some(lock);
                return Ok(None);
            }
            assert!(seen.is_some());
            Ok::<_, Error>(Some(lock))
        })
        .unwrap();
    assert_eq!(runs.get(), 2);
    assert_eq!(first.take().unwrap().into_claim().unwrap_err().kind(), ErrorKind::ClaimLost);
    lock.unwrap().into_claim().unwrap().release().unwrap();
    assert_eq!(state(&requests), (Status::Released, 1));
}

#[test]
fn a_locked_request_is_in_progress_for_the_rest_of_the_transaction() {
    let (engine, requests) = created();
    let lock = engine
        .atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            let lock = locked(inside.lock("k")?);
            assert_eq!(inside.retrieve("k")?.unwrap().status(), Status::InProgress);
            assert!(matches!(inside.lock("k")?, Locking::InProgress(_)));
            let patch = inside.update("k", RequestPatch::new().checkpoint("c"));
            assert_eq!(patch.unwrap_err().kind(), ErrorKind::OwnedByClaim);
            Ok::<_, Error>(lock)
        })
        .unwrap();
    lock.into_claim().unwrap().succeed(&ok("done")).unwrap();
    assert_eq!(state(&requests), (Status::Succeeded, 1));
}

#[test]
fn a_lock_inside_a_transaction_answers_like_lock() {
    let (engine, _) = engine();
    let options = ManagerOptions::new().retry_pause(SECOND).on_interrupted(OnInterrupted::Hold);
    let requests = engine.requests_with("r", options).unwrap();
    let new = |key: &str| claim(requests.manager(), key);
    let manager: &Manager<Response, Response> = requests.manager();
    new("done").succeed(&ok("done")).unwrap();
    let _live = claim(manager, "live");
    drop(new("held"));
    new("paused").release().unwrap();
    let answer = |key: &str| engine.atomic_phase(|tx| requests.with_transaction(tx).lock(key));
    assert!(matches!(answer("done").unwrap(), Locking::Replay(done) if done.outcome() == Ok(&ok("done"))));
    assert!(matches!(answer("live").unwrap(), Locking::InProgress(_)));
    assert!(matches!(answer("held").unwrap(), Locking::Interrupted(_)));
    assert!(matches!(answer("paused").unwrap(), Locking::Paused(info) if info.retry_after() == Some(SECOND)));
    assert_eq!(answer("absent").unwrap_err().kind(), ErrorKind::NotFound);
}
