//! Tests that a released record with progress is kept longer than one without.

use oncekey::admin::{RecordFilter, Resolution};
use oncekey::http::{NewRequest, RequestPatch};
use oncekey::{Claim, Error, ExecuteError, OnError, Status, stage::Next};

use crate::common::*;

#[test]
fn a_released_record_that_holds_progress_is_kept_like_an_interrupted_one() {
    let (engine, clock) = engine();
    let manager = resuming(&engine);
    let stage = |claim: &mut Claim<String, String>, next: fn() -> Next<String, String>| {
        claim
            .work_stage(|tx| tx.table("rows")?.insert("a", "b").map(|()| next()))
            .map_err(|error: Error| error)
            .unwrap();
    };
    let named = claim(&manager, "effect");
    let charge = named.effect_id("charge");
    named.release().unwrap();
    let mut advanced = claim(&manager, "stage");
    stage(&mut advanced, || Next::advance("charged"));
    advanced.release().unwrap();
    let mut stayed = claim(&manager, "rows");
    stage(&mut stayed, || Next::Stay);
    stayed.release().unwrap();
    let earlier = claim(&manager, "earlier attempt");
    let _ = earlier.effect_id("charge");
    earlier.release().unwrap();
    claim(&manager, "earlier attempt").release().unwrap();
    drop(claim(&manager, "resumed"));
    claim(&manager, "resumed").release().unwrap();
    let by_execute = manager.clone().on_error(|_| OnError::Release);
    let failed = by_execute.execute("execute", |claim| Err(claim.effect_id("charge")));
    assert!(matches!(failed, Err(ExecuteError::Failed { status: Status::Released, .. })));
    let record = engine.raw("m").unwrap().get("effect").unwrap().unwrap();
    assert!(engine.raw("imported").unwrap().import(&record).unwrap());
    let held = ["effect", "stage", "rows", "earlier attempt", "resumed", "execute"];

    // These records hold no progress.
    claim(&manager, "untouched").release().unwrap();
    let token = manager.initiate("by key").unwrap().unwrap();
    manager.release("by key", token).unwrap();
    drop(claim(&texts(&engine), "resolved"));
    manager.resolve("resolved", Resolution::Retry).unwrap();

    clock.advance(just_before(DAY));
    assert_eq!(engine.records(RecordFilter::new()).unwrap().count(), held.len() + 1 + 3);
    clock.advance(100 * YEAR);
    assert_eq!(engine.compact_now().unwrap().removed, 3);
    for key in held {
        let record = manager.get(key).unwrap().unwrap();
        assert_eq!((record.status(), record.info().expires_at()), (Status::Released, None), "{key}");
    }
    let again = claim(&manager, "effect");
    assert_eq!((again.attempt(), again.effect_id("charge")), (2, charge));
    assert!(engine.raw("imported").unwrap().get("effect").unwrap().is_some());
}

#[test]
fn a_created_request_with_progress_is_kept() {
    let (engine, clock) = engine();
    let requests = engine.requests("r").unwrap();
    for key in ["noted", "plain"] {
        let new = NewRequest::new("POST", "/orders").key(key.parse().unwrap());
        requests.create(new).unwrap();
        clock.advance(SECOND);
    }
    requests.update("noted", RequestPatch::new().recovery_point("paid")).unwrap();
    clock.advance(100 * YEAR);
    assert!(requests.retrieve("plain").unwrap().is_none());
    assert_eq!(requests.retrieve("noted").unwrap().unwrap().info().recovery_point(), "paid");
}
