//! Tests of patches of requests without an owner.

use http::StatusCode;
use oncekey::{
    Begin, ErrorKind, Interruption, ManagerOptions, OnInterrupted, RecordInfo, Status,
    admin::{Event, Resolution},
    http::{RequestPatch, Response},
    stage::{FINISHED, STARTED},
};

use crate::common::*;
use crate::requests::*;

fn resuming() -> ManagerOptions {
    ManagerOptions::new().on_interrupted(OnInterrupted::Resume)
}

#[test]
fn an_update_changes_a_request_without_an_owner() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    let first = open(dir.path(), &clock);
    let requests = first.requests_with("r", resuming()).unwrap();
    requests.create(new("k")).unwrap();
    let info = requests.update("k", to("paid").checkpoint("ch_1")).unwrap();
    assert_eq!((info.status(), info.recovery_point()), (Status::Released, "paid"));
    // A field that the patch does not set stays.
    let info = requests.update("k", RequestPatch::new().checkpoint([0xff])).unwrap();
    assert_eq!((info.recovery_point(), info.checkpoint()), ("paid", Some(&[0xff][..])));
    let claim = claimed(requests.lock("k").unwrap());
    assert_eq!((claim.recovery_point(), claim.checkpoint()), ("paid", Some(&[0xff][..])));
    claim.interrupt().unwrap();
    let info = requests.update("k", to("shipped")).unwrap();
    assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::Reported)));
    first.close().unwrap();
    let second = open(dir.path(), &clock);
    let claim = claimed(post(&second.requests("r").unwrap(), "k"));
    assert_eq!((claim.recovery_point(), claim.attempt()), ("shipped", 2));
}

#[test]
fn a_request_of_a_dead_owner_stays_interrupted_after_an_update() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    let holding = ManagerOptions::new().on_interrupted(OnInterrupted::Hold);
    let first = open(dir.path(), &clock);
    let claim = claimed(post(&first.requests_with("r", holding.clone()).unwrap(), "k"));
    first.crash();
    drop(claim);
    for point in ["one", "two"] {
        let engine = open(dir.path(), &clock);
        let requests = engine.requests_with("r", holding.clone()).unwrap();
        let info = requests.update("k", to(point)).unwrap();
        assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(Interruption::ProcessEnded)));
        let stats = engine.stats();
        assert_eq!((stats.in_progress, stats.interrupted), (0, 1));
        assert_eq!(engine.interrupted().unwrap().count(), 1);
        assert_eq!(arm(&requests.lock("k").unwrap()), "interrupted", "an update does not resolve a record");
        engine.close().unwrap();
    }
    let engine = open(dir.path(), &clock);
    let requests = engine.requests_with("r", holding).unwrap();
    requests.manager().resolve("k", Resolution::Retry).unwrap();
    assert_eq!(claimed(requests.lock("k").unwrap()).recovery_point(), "two");
}

#[test]
fn an_update_with_a_response_ends_the_request() {
    let (engine, clock) = engine();
    let requests = engine.requests("r").unwrap();
    let events = engine.events();
    for (key, code) in [("ok", StatusCode::CREATED), ("bad", StatusCode::BAD_GATEWAY)] {
        requests.create(new(key)).unwrap();
        requests.update(key, to("paid").checkpoint("ch_1")).unwrap();
        let info = requests.update(key, RequestPatch::new().response(Response::new(code).body("b"))).unwrap();
        assert_eq!((info.status(), info.recovery_point(), info.checkpoint()), (Status::Succeeded, FINISHED, None));
        assert!(matches!(events.try_next(), Some(Event::Ended(info)) if info.status() == Status::Succeeded));
        let Begin::Replay(done) = post(&requests, key) else { panic!("no replay") };
        assert_eq!(done.into_outcome().unwrap(), Response::new(code).body("b"));
        assert!(matches!(events.try_next(), Some(Event::Replayed(_))));
    }
    clock.advance(DAY);
    assert_eq!(status_of(&requests, "ok"), None, "its TTL is that of a success");
}

#[test]
fn an_update_rejects_owned_and_finished_requests() {
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap();
    let patches = || [to("paid"), RequestPatch::new().checkpoint("c"), RequestPatch::new().response(ok("other"))];
    let claim = claimed(post(&requests, "live"));
    requests.manager().initiate("by-key").unwrap().unwrap();
    claimed(post(&requests, "won")).succeed(&ok("won")).unwrap();
    claimed(post(&requests, "lost")).fail(&ok("lost")).unwrap();
    let before = state(&requests);
    for patch in patches() {
        is(requests.update("live", patch.clone()), ErrorKind::OwnedByClaim, "key live of r");
        is(requests.update("by-key", patch.clone()), ErrorKind::OwnedByClaim, "key by-key of r");
        is(requests.update("won", patch.clone()), ErrorKind::NotInProgress, "Succeeded");
        is(requests.update("lost", patch.clone()), ErrorKind::NotInProgress, "Failed");
        is(requests.update("none", patch.clone()), ErrorKind::NotFound, "key none of r");
        is(requests.update("", patch), ErrorKind::InvalidKey, "empty");
    }
    assert_eq!(state(&requests), before);
    assert_eq!(claim.recovery_point(), STARTED);
    claim.succeed(&ok("live")).unwrap();
}

#[test]
fn empty_contradictory_and_too_large_patches_are_rejected() {
    let clock = oncekey::clock::ManualClock::new();
    let engine = options(&clock).max_value_bytes(100).temporary_store().unwrap();
    let requests = engine.requests("r").unwrap();
    requests.create(new("k")).unwrap();
    let before = state(&requests);
    let refused = |patch: RequestPatch, kind, named: &str| is(requests.update("k", patch), kind, named);
    refused(RequestPatch::new(), ErrorKind::InvalidOptions, "empty");
    refused(to(FINISHED), ErrorKind::InvalidOptions, "response");
    refused(to("paid").response(ok("")), ErrorKind::InvalidOptions, "ends the request");
    refused(RequestPatch::new().checkpoint("c").response(ok("")), ErrorKind::InvalidOptions, "ends the request");
    refused(to(""), ErrorKind::InvalidName, "no name");
    refused(to(&"p".repeat(RecordInfo::MAX_RECOVERY_POINT_BYTES + 1)), ErrorKind::InvalidName, "129");
    refused(RequestPatch::new().checkpoint([0; 101]), ErrorKind::TooLarge, "101");
    refused(RequestPatch::new().response(ok(&"b".repeat(100))), ErrorKind::TooLarge, "key k of r");
    assert_eq!(state(&requests), before);
    let longest = "p".repeat(RecordInfo::MAX_RECOVERY_POINT_BYTES);
    let info = requests.update("k", to(&longest).checkpoint([0; 100])).unwrap();
    assert_eq!((info.recovery_point(), info.checkpoint().map(<[u8]>::len)), (&*longest, Some(100)));
    // STARTED may be set like any other recovery point.
    assert_eq!(requests.update("k", to(STARTED)).unwrap().recovery_point(), STARTED);
}
