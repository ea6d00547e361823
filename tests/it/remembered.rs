//! Tests of `ManagerOptions::remember_expired`: a key is not run again after its answer has expired.

use http::StatusCode;
use oncekey::{
    CallOptions, Engine, ErrorKind, ExecuteError, FOREVER, Fingerprint, ManagerOptions, Status, admin::RecordFilter,
    clock::ManualClock, http::Response, stage::Next,
};

use crate::common::*;

fn remembering() -> ManagerOptions {
    ManagerOptions::new().success_ttl(MINUTE).failure_ttl(MINUTE).released_ttl(MINUTE).remember_expired(DAY)
}

fn remembers(engine: &Engine) -> Texts {
    texts_with(engine, remembering())
}

/// Returns the kind of the error of `begin`, if it returns one.
fn refused(manager: &Texts, key: &str) -> Option<ErrorKind> {
    manager.begin(key).map(drop).err().map(|error| error.kind())
}

fn finish(manager: &Texts) {
    claim(manager, "won").succeed(&MARKER.repeat(1000)).unwrap();
    claim(manager, "lost").fail(&"e".to_owned()).unwrap();
}

#[test]
fn a_remembered_key_returns_expired_until_its_time_ends() {
    for passes in [false, true] {
        let (engine, clock) = engine();
        let manager = remembers(&engine);
        finish(&manager);
        clock.advance(just_before(MINUTE));
        assert_eq!((answer(&manager, "won"), answer(&manager, "lost")), ("replay", "replay"));
        clock.advance(MS);
        for step in [MS, DAY / 2, just_before(just_before(DAY / 2))] {
            if passes {
                engine.compact_now().unwrap();
            }
            assert_eq!(
                ["won", "lost", "new"].map(|key| refused(&manager, key)),
                [Some(ErrorKind::Expired), Some(ErrorKind::Expired), None]
            );
            let late = manager.execute("won", |_| unreachable!("it is remembered"));
            assert!(
                matches!(late, Err(ExecuteError::Engine(error)) if error.to_string() == "key won of m has expired: it was used, and its answer is not kept any more")
            );
            // For all other calls the record is absent.
            assert_eq!((status(&manager, "won"), manager.extend("won", DAY).unwrap()), (None, false));
            let listed = engine.records(RecordFilter::new().status(Status::Succeeded)).unwrap();
            assert_eq!(listed.count(), 0);
            manager.remove("new").unwrap();
            clock.advance(step);
        }
        assert_eq!(refused(&manager, "won"), Some(ErrorKind::Expired));
        clock.advance(MS);
        if passes {
            engine.compact_now().unwrap();
        }
        assert_eq!((answer(&manager, "won"), answer(&manager, "lost")), ("claimed", "claimed"));
        assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new());
    }
}

#[test]
fn a_pass_deletes_the_outcome_and_counts_it_once() {
    let (engine, clock) = engine();
    let manager = remembers(&engine);
    finish(&manager);
    clock.advance(MINUTE);
    let pass = engine.compact_now().unwrap();
    assert!(pass.removed == 2 && pass.bytes > 9_000, "{pass:?}");
    assert_eq!(engine.compact_now().unwrap().removed, 0);
    clock.advance(DAY);
    assert_eq!((engine.compact_now().unwrap().removed, refused(&manager, "won")), (0, None));
}

#[test]
fn a_key_is_remembered_across_opens_and_crashes() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    finish(&remembers(&first));
    first.crash();
    open(dir.path(), &clock).close().unwrap();
    let second = open(dir.path(), &clock);
    clock.advance(MINUTE);
    assert_eq!(refused(&remembers(&second), "won"), Some(ErrorKind::Expired));
    // The records are in the record store now, which is rewritten without their outcomes.
    let pass = second.compact_now().unwrap();
    assert!(pass.removed == 2 && pass.bytes > 9_000, "{pass:?}");
    assert_eq!(refused(&remembers(&second), "won"), Some(ErrorKind::Expired));
    second.close().unwrap();
    let third = open(dir.path(), &clock);
    assert_eq!(refused(&remembers(&third), "won"), Some(ErrorKind::Expired));
    third.crash();
    let fourth = open(dir.path(), &clock);
    // The options of the current manager do not matter: the time was fixed when the generation started.
    assert_eq!(refused(&texts(&fourth), "lost"), Some(ErrorKind::Expired));
    assert_eq!(fourth.verify().unwrap().problems, Vec::<String>::new());
    clock.advance(DAY);
    assert_eq!(answer(&texts(&fourth), "lost"), "claimed");
}

#[test]
fn forget_remove_and_erase_end_the_memory() {
    for passes in [false, true] {
        let (engine, clock) = engine();
        let manager = remembers(&engine);
        let ada = manager.scoped("ada").unwrap();
        for handle in [&manager, &ada] {
            finish(handle);
        }
        clock.advance(MINUTE);
        if passes {
            engine.compact_now().unwrap();
        }
        assert!(manager.forget("won").unwrap() && manager.remove("lost").unwrap());
        assert_eq!(ada.erase().unwrap().removed, 2);
        for handle in [&manager, &ada] {
            assert_eq!((answer(handle, "won"), answer(handle, "lost")), ("claimed", "claimed"));
        }
    }
}

#[test]
fn only_outcomes_are_remembered() {
    let (engine, clock) = engine();
    let manager = remembers(&engine);
    claim(&manager, "released").release().unwrap();
    clock.advance(MINUTE);
    assert_eq!(answer(&manager, "released"), "claimed");
}

#[test]
fn stages_batches_and_other_requests_get_expired_too() {
    let (engine, clock) = engine();
    let manager = remembers(&engine);
    let same = |text: &str| CallOptions::new().fingerprint(Fingerprint::of(text).unwrap());
    let mut staged = claimed(manager.begin_with("staged", same("one")).unwrap());
    staged.keep_for(2 * MINUTE).unwrap();
    staged.work_stage(|_| Ok::<_, oncekey::Error>(Next::Succeed("v".to_owned()))).unwrap();
    clock.advance(2 * MINUTE);
    let answers = manager.execute_many([("staged", ()), ("new", ())], |_, ()| Ok("v".to_owned()));
    assert!(matches!(&answers[0], Err(ExecuteError::Engine(error)) if error.kind() == ErrorKind::Expired));
    assert!(answers[1].is_ok());
    // No fingerprint is left, so another request gets the same answer.
    assert_eq!(manager.begin_with("staged", same("two")).unwrap_err().kind(), ErrorKind::Expired);
}

#[test]
fn a_key_can_be_remembered_for_ever_and_a_request_gets_410() {
    let (engine, clock) = engine();
    let options = ManagerOptions::new().success_ttl(MINUTE).remember_expired(FOREVER);
    let requests = engine.requests_with("orders", options).unwrap();
    let post = || {
        let request = http::Request::post("/orders").header("idempotency-key", "k").body("two apples").unwrap();
        requests.handle(&request, |_, _| Ok(Response::new(StatusCode::CREATED)))
    };
    assert_eq!(post().status(), 201);
    clock.advance(MINUTE);
    for _ in 0..3 {
        let gone = post();
        assert_eq!(gone.status(), 410);
        let body: serde_json::Value = serde_json::from_slice(gone.body()).unwrap();
        assert_eq!(body["code"], "expired", "{body}");
        engine.compact_now().unwrap();
        clock.advance(100 * YEAR);
    }
}
