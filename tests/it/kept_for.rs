//! Tests of `Claim::keep_for`: the operation decides how long its answer is kept.

use std::time::Duration;

use http::StatusCode;
use oncekey::{ErrorKind, FOREVER, ManagerOptions, Status, http::Response, stage::Next};

use crate::common::*;

/// Asserts that the record exists until the end of this time, and not after it.
#[track_caller]
fn lasts(manager: &Texts, clock: &oncekey::clock::ManualClock, key: &str, ttl: Duration) {
    clock.advance(just_before(ttl));
    assert!(status(manager, key).is_some(), "{key} has expired early");
    clock.advance(MS);
    assert_eq!(status(manager, key), None, "{key} is kept too long");
}

#[test]
fn a_success_and_a_failure_are_kept_for_their_own_times() {
    let (manager, clock) = fresh();
    for ttl in [MINUTE, 30 * DAY] {
        let kept = |key: &str, ok: bool| {
            let done = manager.execute(key, |claim| {
                claim.keep_for(DAY * 3).unwrap();
                claim.keep_for(ttl).unwrap();
                if ok { Ok("v".to_owned()) } else { Err("e".to_owned()) }
            });
            assert_eq!(done.is_ok(), ok);
        };
        kept("won", true);
        lasts(&manager, &clock, "won", ttl);
        kept("lost", false);
        lasts(&manager, &clock, "lost", ttl);
    }
    // Other records are kept for the manager's TTL.
    claim(&manager, "plain").succeed(&"v".to_owned()).unwrap();
    lasts(&manager, &clock, "plain", DAY);
}

#[test]
fn a_kept_for_of_for_ever_and_of_zero() {
    let (manager, clock) = fresh();
    let mut claim = claim(&manager, "k");
    assert_eq!(claim.keep_for(Duration::ZERO).unwrap_err().kind(), ErrorKind::InvalidOptions);
    claim.keep_for(FOREVER).unwrap();
    assert_eq!(claim.succeed(&"v".to_owned()).unwrap().info().expires_at(), None);
    clock.advance(100 * YEAR);
    assert_eq!(status(&manager, "k"), Some(Status::Succeeded));
}

#[test]
fn an_attempt_without_an_outcome_leaves_no_kept_for() {
    let (engine, clock) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().released_ttl(2 * DAY));
    let mut first = claim(&manager, "k");
    first.keep_for(MINUTE).unwrap();
    first.release().unwrap();
    clock.advance(just_before(2 * DAY));
    assert_eq!(status(&manager, "k"), Some(Status::Released));
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    lasts(&manager, &clock, "k", DAY);
    // An interrupted record is kept as long as others.
    let mut dropped = claim(&manager, "held");
    dropped.keep_for(MINUTE).unwrap();
    drop(dropped);
    clock.advance(YEAR);
    assert_eq!(status(&manager, "held"), Some(Status::Interrupted));
}

#[test]
fn stages_and_batches_can_set_kept_for() {
    let (manager, clock) = fresh();
    let mut staged = claim(&manager, "staged");
    staged.keep_for(MINUTE).unwrap();
    staged.work_stage(|_| Ok::<_, oncekey::Error>(Next::advance("half"))).unwrap();
    staged.work_stage(|_| Ok::<_, oncekey::Error>(Next::Succeed("v".to_owned()))).unwrap();
    lasts(&manager, &clock, "staged", MINUTE);
    let answers = manager.execute_many([("a", 1), ("b", 2), ("c", 0)], |claim, minutes| {
        if minutes > 0 {
            claim.keep_for(minutes * MINUTE).unwrap();
        }
        Ok("v".to_owned())
    });
    assert!(answers.iter().all(Result::is_ok));
    let there = || ["a", "b", "c"].map(|key| status(&manager, key).is_some());
    clock.advance(MINUTE);
    assert_eq!(there(), [false, true, true]);
    clock.advance(MINUTE);
    assert_eq!(there(), [false, false, true]);
    clock.advance(DAY);
    assert_eq!(there(), [false; 3]);
}

#[test]
fn a_kept_for_survives_an_open_and_ends_with_deletion() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    let first = open(dir.path(), &clock);
    let mut kept = claim(&texts(&first), "k");
    kept.keep_for(2 * DAY).unwrap();
    kept.succeed(&"v".to_owned()).unwrap();
    let mut short = claim(&texts(&first), "short");
    short.keep_for(MINUTE).unwrap();
    short.succeed(&"v".to_owned()).unwrap();
    first.crash();
    let second = open(dir.path(), &clock);
    clock.advance(MINUTE);
    assert_eq!(second.compact_now().unwrap().removed, 1);
    clock.advance(just_before(2 * DAY).checked_sub(MINUTE).unwrap());
    assert_eq!((second.compact_now().unwrap().removed, status(&texts(&second), "k").is_some()), (0, true));
    clock.advance(MS);
    assert_eq!((second.compact_now().unwrap().removed, status(&texts(&second), "k")), (1, None));
}

#[test]
fn an_operation_of_handle_sets_how_long_its_response_is_replayed() {
    let (engine, clock) = engine();
    let requests = engine.requests("orders").unwrap();
    let post = |key: &str, body: &'static str| {
        let request = http::Request::post("/orders").header("idempotency-key", key).body(body).unwrap();
        requests.handle(&request, |request, claim| {
            if *request.body() == "unknown" {
                claim.keep_for(MINUTE).unwrap();
                return Ok(Response::new(StatusCode::NOT_FOUND));
            }
            Ok(Response::new(StatusCode::CREATED))
        })
    };
    let replayed = |key, body| post(key, body).headers().contains_key("idempotent-replayed");
    assert!(!replayed("a", "unknown") && !replayed("b", "known"));
    assert!(replayed("a", "unknown") && replayed("b", "known"));
    clock.advance(MINUTE);
    assert!(!replayed("a", "unknown") && replayed("b", "known"));
}
