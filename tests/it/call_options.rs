//! Tests of `CallOptions`, the options of every call that begins an operation.

use std::cell::Cell;
use std::thread;
use std::time::Duration;

use oncekey::{
    Begin, CallOptions, Error, ErrorKind, ExecuteError, Executed, Fingerprint, Manager, Status,
    http::NewRequest,
    stage::{DriveError, STARTED, Stages},
};

use crate::common::*;
use crate::requests::ok;
use crate::threads::{LATE, until, within};

fn word(answer: &Result<Executed<String>, ExecuteError<String, String>>) -> &'static str {
    match answer {
        Ok(done) if done.replayed() => "replay",
        Ok(_) => "ran",
        Err(ExecuteError::Mismatch(_)) => "mismatch",
        Err(ExecuteError::InProgress(_)) => "in progress",
        Err(ExecuteError::Engine(error)) if error.kind() == ErrorKind::InvalidOptions => "invalid",
        Err(other) => panic!("{other:?}"),
    }
}

/// Returns the answers of `begin_with`, `execute_with`, `execute_many_with` and `drive` for a key that none of them can
/// claim.
fn each_call(manager: &Manager<String, String>, key: &str, options: &CallOptions) -> [&'static str; 4] {
    let begun = arm(&manager.begin_with(key, options.clone()).unwrap());
    let executed = manager.execute_with(key, options.clone(), |_| panic!("it has run"));
    let many = manager.execute_many_with([(key, options.clone(), ())], |_, ()| panic!("it has run"));
    let stages = Stages::<_, _, Error>::new().stage(STARTED, |_| panic!("it has run"));
    let driven = manager.drive(key, options.clone(), &stages).map_err(|error| match error {
        DriveError::Execute(error) => error,
        other @ DriveError::Stage { .. } => panic!("{other:?}"),
    });
    [begun, word(&executed), word(&many[0]), word(&driven)]
}

#[test]
fn every_call_that_begins_compares_the_fingerprint() {
    let (manager, _) = fresh();
    claimed(manager.begin_with("k", same("a")).unwrap()).succeed(&"v".to_owned()).unwrap();
    assert_eq!(each_call(&manager, "k", &same("a")), ["replay"; 4]);
    assert_eq!(each_call(&manager, "k", &same("b").also_accept(Fingerprint::of("a").unwrap())), ["replay"; 4]);
    assert_eq!(each_call(&manager, "k", &same("b")), ["mismatch"; 4]);
    assert_eq!(each_call(&manager, "k", &CallOptions::new()), ["mismatch"; 4]);
}

#[test]
fn a_wait_of_zero_answers_at_once_in_every_call() {
    let (manager, _) = fresh();
    let _owner = claim(&manager, "k");
    assert_eq!(each_call(&manager, "k", &CallOptions::new().wait(Duration::ZERO)), ["in progress"; 4]);
    assert_eq!(manager.initiate_with("k", CallOptions::new().wait(Duration::ZERO)).unwrap(), None);
    // Zero is the default of these two calls.
    assert_eq!(arm(&manager.begin("k").unwrap()), "in progress");
    assert_eq!(manager.initiate("k").unwrap(), None);
}

#[test]
fn an_initiate_keeps_its_fingerprint_context_and_ttl() {
    let (manager, clock) = fresh();
    let day = Duration::from_secs(86_400);
    let options = same("a").context(about("user", "ada")).success_ttl(2 * day);
    let token = manager.initiate_with("k", options).unwrap().unwrap();
    assert_eq!(arm(&manager.begin_with("k", same("b")).unwrap()), "mismatch");
    assert_eq!(arm(&manager.begin_with("k", same("a")).unwrap()), "in progress");
    assert_eq!(manager.initiate_with("k", same("b")).unwrap(), None);
    manager.success("k", token, &"v".to_owned()).unwrap();
    let record = manager.get("k").unwrap().unwrap();
    assert_eq!(record.info().fingerprint(), Some(Fingerprint::of("a").unwrap()));
    assert_eq!(record.info().context().text("user"), Some("ada"));
    assert_eq!(arm(&manager.begin_with("k", same("b")).unwrap()), "mismatch");
    clock.advance(day);
    assert_eq!(status(&manager, "k"), Some(Status::Succeeded));
    clock.advance(day);
    assert_eq!(status(&manager, "k"), None);
}

#[test]
fn an_initiate_with_a_wait_takes_the_key_over() {
    within(LATE, || {
        let (manager, _) = fresh();
        let owner = claim(&manager, "k");
        thread::scope(|scope| {
            let successor = scope.spawn(|| manager.initiate_with("k", CallOptions::new().wait(Duration::MAX)).unwrap());
            until("it waits", || manager.engine().stats().waiting == 1);
            owner.release().unwrap();
            let token = successor.join().unwrap().unwrap();
            manager.success("k", token, &"v".to_owned()).unwrap();
        });
        assert_eq!(outcome(&manager, "k"), Some(Ok("v".to_owned())));
    });
}

#[test]
fn an_item_of_a_batch_with_a_wait_is_invalid() {
    let (manager, _) = fresh();
    let (ran, options) = (Cell::new(0), CallOptions::new);
    let items = [("a", options().wait(MS), ()), ("b", options().wait(Duration::ZERO), ()), ("c", options(), ())];
    let answers = manager.execute_many_with(items, |_, ()| {
        ran.set(ran.get() + 1);
        Ok(String::new())
    });
    assert_eq!(answers.iter().map(word).collect::<Vec<_>>(), ["invalid", "ran", "ran"]);
    assert_eq!((ran.get(), status(&manager, "a")), (2, None));
}

#[test]
fn a_request_with_a_wait_takes_the_key_over_and_without_one_is_in_progress() {
    within(LATE, || {
        let (engine, _) = engine();
        let requests = engine.requests("r").unwrap();
        let request = NewRequest::new("POST", "/orders").key("k".parse().unwrap());
        let owner = claimed(requests.begin(request.clone()).unwrap());
        assert_eq!(arm(&requests.begin(request.clone()).unwrap()), "in progress");
        thread::scope(|scope| {
            let successor = scope.spawn(|| requests.begin(request.wait(Duration::MAX)).unwrap());
            until("it waits", || engine.stats().waiting == 1);
            owner.release().unwrap();
            let Begin::Claimed(claim) = successor.join().unwrap() else { panic!("it has the key") };
            claim.succeed(&ok("done")).unwrap();
        });
    });
}
