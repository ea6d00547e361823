//! Tests that no engine error becomes the stored failure of an operation, whatever its path.

use std::time::Duration;

use http::StatusCode;
use oncekey::admin::Resolution;
use oncekey::http::{HandleOptions, Response, SameRequest};
use oncekey::{
    CallOptions, EndError, Engine, Error, ErrorKind, ExecuteError, Failure, Fingerprint, Manager, Status, stage::Next,
};

use crate::common::*;

fn numbers() -> (Engine, Manager<u64>) {
    let (engine, _) = engine();
    let manager = engine.manager("n").unwrap();
    (engine, manager)
}

#[test]
fn an_engine_error_from_before_the_operation_is_never_stored() {
    let (engine, manager) = numbers();
    let table = engine.table("t").unwrap();
    let refused = || table.insert("row", vec![0; (1 << 20) + 1]);
    let is_held = |key: &str, failed: Result<_, ExecuteError<u64, Failure>>| {
        assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Interrupted, .. })), "{key}: {failed:?}");
        assert_eq!(status(&manager, key), Some(Status::Interrupted), "{key}");
    };
    let error = refused();
    is_held("moved in", manager.execute("moved in", |_| Ok(error.map(|()| 1)?)));
    // The operation reads only the kind.
    let error = refused().unwrap_err();
    is_held("looked at", manager.execute("looked at", |_| Err(Failure::new(format!("{:?}", error.kind())))));
    // The operation does not read the error at all.
    let error = refused();
    is_held("dropped", manager.execute("dropped", move |_| error.map(|()| 1).map_err(|_| Failure::new("no"))));
    let busy = claim(&manager, "busy");
    let error = manager.execute_with("busy", CallOptions::new().wait(Duration::ZERO), |_| Ok(1)).unwrap_err();
    is_held("in progress", manager.execute("in progress", |_| Err(error.into())));
    busy.release().unwrap();
    // The error is converted into a `Failure` first.
    let failure = Failure::from(refused().unwrap_err());
    is_held("failure", manager.execute("failure", move |_| Err(failure)));
    let failure = Failure::from(std::io::Error::from(refused().unwrap_err()));
    is_held("wrapped", manager.execute("wrapped", move |_| Err(failure)));

    // The failure has a type of the user's.
    let own: Manager<u64, String> = engine.manager("own").unwrap();
    let failure = Failure::from(refused().unwrap_err());
    let failed = own.execute("k", |_| Err(failure.message().to_owned()));
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Interrupted, .. })), "{failed:?}");
    let nested: Manager<u64, Vec<Failure>> = engine.manager("nested").unwrap();
    let failure = Failure::from(refused().unwrap_err());
    let failed = nested.execute("k", move |_| Err(vec![Failure::new("declined"), failure]));
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Interrupted, .. })), "{failed:?}");

    // An error that the operation does not see does not count.
    let outside = refused();
    let failed = manager.execute("declined", |_| Err(Failure::new("declined")));
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Failed, .. })), "{failed:?}");
    assert!(outside.is_err());
}

#[test]
fn every_ending_rejects_a_failure_made_from_an_engine_error() {
    let (engine, manager) = numbers();
    let table = engine.table("t").unwrap();
    let failure = || Failure::from(table.insert("row", vec![0; (1 << 20) + 1]).unwrap_err());

    let EndError { error, claim } = claim(&manager, "claim").fail(&failure()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EngineFailure, "{error}");
    assert!(error.to_string().contains("claim"), "{error}");
    // The claim is alive, and a failure of its own is stored.
    claim.fail(&Failure::new("declined")).unwrap();
    assert_eq!(status(&manager, "claim"), Some(Status::Failed));

    let mut claim = crate::common::claim(&manager, "stage");
    let staged = claim.work_stage(|tx| {
        tx.table("orders")?.insert("1", "x")?;
        Ok::<_, Error>(Next::Fail(failure()))
    });
    assert_eq!(staged.unwrap_err().kind(), ErrorKind::EngineFailure);
    assert!(engine.table("orders").unwrap().get("1").unwrap().is_none(), "nothing of the stage is committed");
    drop(claim);
    assert_eq!(status(&manager, "stage"), Some(Status::Interrupted));
    let refused = manager.resolve("stage", Resolution::Fail(failure())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::EngineFailure);
    assert_eq!(status(&manager, "stage"), Some(Status::Interrupted));
    let executed = manager.execute("execute", |claim| {
        claim.work_stage(|_| Ok::<_, Error>(Next::Fail(failure())))?;
        Ok(1)
    });
    assert!(matches!(executed, Err(ExecuteError::Failed { status: Status::Interrupted, .. })), "{executed:?}");

    let token = manager.initiate("by key").unwrap().unwrap();
    assert_eq!(manager.fail("by key", token, &failure()).unwrap_err().kind(), ErrorKind::EngineFailure);
    assert_eq!(status(&manager, "by key"), Some(Status::InProgress));
    assert_eq!(manager.encode_outcome(Err(&failure())).unwrap_err().kind(), ErrorKind::EngineFailure);
    // Outside an operation the failure is an ordinary error.
    assert!(serde_json::to_string(&failure()).unwrap().contains("limit"));
    assert_eq!(failure(), failure());
}

/// An operation that calls `handle`, which tries older rules that cannot read this body.
#[test]
fn errors_that_the_engine_handles_itself_do_not_count() {
    let (engine, manager) = numbers();
    let failing = SameRequest::by(|_| Ok(Fingerprint::of_json("junk")?));
    let options = HandleOptions::new().same_request(SameRequest::by_content()).or_older_rule(failing);
    let requests = engine.requests("r").unwrap().with_handling(options);
    let failed = manager.execute("k", |_| {
        let part =
            http::Request::post("/pay").header("idempotency-key", "part").header("content-type", "application/json");
        let answer = requests.handle(&part.body("junk").unwrap(), |_, _| Ok(Response::new(StatusCode::CREATED)));
        assert_eq!(answer.status(), StatusCode::CREATED);
        Err(Failure::new("declined"))
    });
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Failed, .. })), "{failed:?}");
}

/// The operation of a batch may return the result of each of its items.
#[test]
fn a_success_that_contains_a_failure_of_the_engine_is_refused_by_every_ending() {
    type Items = Vec<Result<u64, Failure>>;
    let (engine, _) = engine();
    let manager: Manager<Items> = engine.manager("items").unwrap();
    let table = engine.table("t").unwrap();
    let items = || vec![Ok(1), Err(table.insert("row", vec![0; (1 << 20) + 1]).unwrap_err().into())];

    let executed = manager.execute("execute", |_| Ok(items()));
    let Err(ExecuteError::NotStored { outcome: Ok(returned), error }) = executed else { panic!("{executed:?}") };
    assert_eq!((returned.len(), error.kind()), (2, ErrorKind::EngineFailure));
    drop(error);
    assert_eq!(status(&manager, "execute"), Some(Status::Interrupted));
    assert_eq!(manager.resolve("execute", Resolution::Succeed(items())).unwrap_err().kind(), ErrorKind::EngineFailure);

    let EndError { error, claim } = claim(&manager, "claim").succeed(&items()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EngineFailure, "{error}");
    // A failure of its own is a part of the answer.
    claim.succeed(&vec![Err(Failure::new("declined"))]).unwrap();
    assert_eq!(status(&manager, "claim"), Some(Status::Succeeded));

    let mut claim = crate::common::claim(&manager, "stage");
    let staged = claim.work_stage(|_| Ok::<_, Error>(Next::Succeed(items())));
    assert_eq!(staged.unwrap_err().kind(), ErrorKind::EngineFailure);
    let token = manager.initiate("by key").unwrap().unwrap();
    assert_eq!(manager.success("by key", token, &items()).unwrap_err().kind(), ErrorKind::EngineFailure);
}
