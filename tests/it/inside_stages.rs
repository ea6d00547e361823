//! Tests of requests inside transactions: stages by key, and `find`.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use http::StatusCode;
use oncekey::{
    Engine, Error, ErrorKind, Key, ManagerOptions, OnInterrupted, Status,
    admin::RecordFilter,
    http::{NewRequest, RequestPatch, Requests, Response},
    stage::{Next, PhaseError, STARTED},
};

use crate::common::*;

fn new(key: &str) -> NewRequest {
    NewRequest::new("POST", "/orders").key(key.parse().unwrap())
}

fn created() -> Response {
    Response::new(StatusCode::CREATED)
}

fn requests(engine: &Engine) -> Requests {
    engine.requests_with("r", ManagerOptions::new().on_interrupted(OnInterrupted::Resume)).unwrap()
}

// If `create` returned only the key, the program would write the outbox once for each retry of the client.
#[test]
fn create_returns_whether_the_request_is_new() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    let order = || {
        engine.atomic_phase(|tx| {
            let order = requests.with_transaction(tx).create(new("k"))?;
            if order.is_new() {
                tx.table("outbox")?.insert(Key::generate().as_bytes(), order.key().as_bytes())?;
            }
            Ok::<_, Error>(order.is_new())
        })
    };
    assert!(order().unwrap());
    assert!(!order().unwrap());
    assert!(!requests.create(new("k")).unwrap().is_new());
    claimed(requests.lock("k").unwrap()).succeed(&created()).unwrap();
    assert!(!order().unwrap());
    assert_eq!(engine.table("outbox").unwrap().len().unwrap(), 1);
}

#[test]
fn a_request_is_initialized_inside_a_transaction_once() {
    let (engine, _) = engine();
    let requests = requests(&engine).scoped("ada").unwrap();
    let initialize = |method: &str| {
        engine.atomic_phase(|tx| requests.with_transaction(tx).initialize_request(Some("\"k\""), method, &1, "/orders"))
    };
    let first = initialize("POST").unwrap();
    assert!(first.is_new() && !initialize("POST").unwrap().is_new());
    assert_eq!((first.key().parts(), first.info().status()), (vec![&b"ada"[..], b"k"], Status::Released));
    assert_eq!(initialize("PUT").unwrap_err().kind(), ErrorKind::Mismatch);
    assert_eq!(initialize("P T").unwrap_err().kind(), ErrorKind::InvalidOptions);
    // Outside a transaction, the same arguments claim the same request.
    claimed(requests.initialize_request(Some("\"k\""), "POST", &1, "/orders").unwrap()).release().unwrap();
}

#[test]
fn a_stage_by_key_is_committed_with_the_rest_of_the_transaction() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    requests.create(new("k")).unwrap();
    let (stock, log) = (engine.table("stock").unwrap(), engine.table("log").unwrap());
    let stage = |next: fn() -> Next<Response, Response>, fails: bool| {
        engine.atomic_phase(|tx| {
            tx.table("log")?.insert(Key::generate().as_bytes(), "tried")?;
            let info = requests.with_transaction(tx).work_stage("k", |info| {
                tx.table("stock")?.insert(info.recovery_point(), "x")?;
                Ok::<_, PhaseError<&str>>(next())
            })?;
            if fails { Err(PhaseError::User("no")) } else { Ok(info.recovery_point().to_owned()) }
        })
    };
    let reserve = || Next::advance_with("reserved", "r_1");
    assert!(stage(reserve, true).is_err());
    assert_eq!((stock.len().unwrap(), log.len().unwrap()), (0, 0));
    assert_eq!(requests.retrieve("k").unwrap().unwrap().info().recovery_point(), STARTED);

    assert_eq!(stage(reserve, false).unwrap(), "reserved");
    let record = requests.retrieve("k").unwrap().unwrap();
    assert_eq!((record.status(), record.info().checkpoint()), (Status::Released, Some(&b"r_1"[..])));
    assert_eq!(stage(|| Next::Stay, false).unwrap(), "reserved");
    stage(|| Next::advance("paid"), false).unwrap();
    assert_eq!(
        requests.retrieve("k").unwrap().unwrap().info().checkpoint(),
        None,
        "what an earlier stage left is gone"
    );
    stage(|| Next::Fail(Response::new(StatusCode::PAYMENT_REQUIRED)), false).unwrap();
    let record = requests.retrieve("k").unwrap().unwrap();
    assert_eq!((record.status(), record.info().attempt()), (Status::Failed, 0));
    assert_eq!((stock.len().unwrap(), log.len().unwrap()), (3, 4));
    assert!(
        matches!(stage(|| Next::Stay, false), Err(PhaseError::Engine(error)) if error.kind() == ErrorKind::NotInProgress)
    );
}

#[test]
fn a_failed_stage_by_key_does_not_undo_the_rest_of_the_transaction() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    requests.create(new("k")).unwrap();
    engine
        .atomic_phase(|tx| {
            tx.table("t")?.insert("before", "x")?;
            let failed = requests.with_transaction(tx).work_stage("k", |_info| {
                tx.table("t")?.insert("inside", "x")?;
                Err(PhaseError::User("no"))
            });
            assert!(matches!(failed, Err(PhaseError::User("no"))));
            Ok::<_, Error>(())
        })
        .unwrap();
    let table = engine.table("t").unwrap();
    assert!(table.contains("before").unwrap() && !table.contains("inside").unwrap());
}

#[test]
fn a_stage_by_key_rejects_owned_held_and_missing_requests() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    let held = engine.requests_with("r", ManagerOptions::new().on_interrupted(OnInterrupted::Hold)).unwrap();
    for key in ["owned", "held", "moved", "name"] {
        held.create(new(key)).unwrap();
    }
    let _owner = claimed(requests.lock("owned").unwrap());
    claimed(requests.lock("held").unwrap()).interrupt().unwrap();
    let stage = |key: &str, next: fn() -> Next<Response, Response>, moves: bool| {
        let ended = engine.atomic_phase(|tx| {
            let inside = requests.with_transaction(tx);
            inside.work_stage(key, |_info| {
                if moves {
                    inside.update(key, RequestPatch::new().recovery_point("elsewhere"))?;
                }
                Ok::<_, Error>(next())
            })
        });
        ended.unwrap_err().kind()
    };
    assert_eq!(stage("owned", || Next::Stay, false), ErrorKind::OwnedByClaim);
    assert_eq!(stage("held", || Next::Stay, false), ErrorKind::NotInProgress);
    assert_eq!(stage("none", || Next::Stay, false), ErrorKind::NotFound);
    assert_eq!(stage("moved", || Next::Stay, true), ErrorKind::NotInProgress);
    assert_eq!(stage("name", || Next::advance(""), false), ErrorKind::InvalidName);
    assert_eq!(stage("", || Next::Stay, false), ErrorKind::InvalidKey);
}

// In Medusa, two drivers of one key both ran the stage, and one failed at its commit. Here the second runs again and finds
// the stage done.
#[test]
fn the_second_of_two_transactions_finds_the_stage_by_key_done() {
    let (engine, _) = engine();
    let requests = requests(&engine);
    requests.create(new("k")).unwrap();
    let (both, runs) = (Barrier::new(2), AtomicU32::new(0));
    let drive = || {
        engine.atomic_phase(|tx| {
            let first = runs.fetch_add(1, Ordering::SeqCst) < 2;
            requests.with_transaction(tx).work_stage("k", |info| {
                let at = info.recovery_point().to_owned();
                if first {
                    both.wait();
                }
                if at != STARTED {
                    return Ok(Next::Stay);
                }
                let stock = tx.table("stock")?;
                let left = stock.get("apple")?.map_or(9, |left| left.first().copied().unwrap());
                stock.insert("apple", [left - 1])?;
                Ok::<_, Error>(Next::advance("reserved"))
            })
        })
    };
    std::thread::scope(|scope| {
        for driver in [scope.spawn(drive), scope.spawn(drive)] {
            assert_eq!(driver.join().unwrap().unwrap().recovery_point(), "reserved");
        }
    });
    assert_eq!(engine.table("stock").unwrap().get("apple").unwrap().as_deref(), Some(&[8][..]));
    assert_eq!(runs.into_inner(), 3);
}

#[test]
fn find_inside_includes_own_writes_and_is_validated_as_a_range() {
    let (engine, _) = local_engine();
    let ada = requests(&engine).scoped("ada").unwrap();
    requests(&engine).scoped("eve").unwrap().create(new("x")).unwrap();
    ada.create(new("a")).unwrap();
    let runs = AtomicU32::new(0);
    let found = engine.atomic_phase(|tx| {
        let inside = ada.with_transaction(tx);
        inside.create(new("b"))?;
        inside.update("a", RequestPatch::new().response(created()))?;
        let keys = |filter| Ok::<_, Error>(inside.find(filter)?.iter().map(|info| info.key().parts()[1].to_vec()).collect());
        let (all, ended): (Vec<Vec<u8>>, Vec<Vec<u8>>) =
            (keys(RecordFilter::new())?, keys(RecordFilter::new().status(Status::Succeeded))?);
        assert_eq!(ended, [b"a"]);
        let is_created = |record: &oncekey::Record<Response, Response>| {
            matches!(record.outcome(), Some(Ok(response)) if response.status() == StatusCode::CREATED)
        };
        let by_response = inside.retrieve_where(RecordFilter::new(), is_created)?;
        assert_eq!(by_response.map(|record| record.info().key().parts()[1].to_vec()), Some(b"a".to_vec()));
        let by_field = inside.retrieve_one(RecordFilter::new().matching(|info| info.recovery_point() == STARTED));
        if all.len() == 2 {
            assert!(by_field?.is_some());
        } else {
            assert_eq!(by_field.unwrap_err().kind(), ErrorKind::Ambiguous);
        }
        if runs.fetch_add(1, Ordering::SeqCst) == 0 {
            // A request of another user does not conflict; one of the same user does.
            let elsewhere = || requests(&engine).scoped("eve").unwrap().create(new("y"));
            std::thread::scope(|scope| scope.spawn(elsewhere).join().unwrap())?;
            assert_eq!(inside.find(RecordFilter::new())?.len(), 2);
            std::thread::scope(|scope| scope.spawn(|| ada.create(new("c"))).join().unwrap())?;
        }
        Ok::<_, Error>(all)
    });
    assert_eq!(found.unwrap(), [b"a", b"b", b"c"]);
    assert_eq!(runs.into_inner(), 2);
}
