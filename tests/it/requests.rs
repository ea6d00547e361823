//! Tests of requests: their fingerprint, how they start, and the calls that change them.

use std::collections::HashMap;
use std::sync::Barrier;

use http::{HeaderValue, StatusCode, header};
use oncekey::{
    Begin, Context, Error, ErrorKind, Interruption, Key, ManagerOptions, OnInterrupted, Status,
    admin::RecordFilter,
    http::{NewRequest, RequestPatch, Requests, Response},
    stage::STARTED,
};
use serde::{Serialize, Serializer};

use crate::common::*;

pub(crate) fn requests() -> Requests {
    engine().0.requests("r").unwrap()
}

/// Returns the request that most tests make.
pub(crate) fn post(requests: &Requests, key: &str) -> Begin<Response, Response> {
    requests.initialize_request(Some(key), "POST", &7, "/orders").unwrap()
}

pub(crate) fn new(key: &str) -> NewRequest {
    NewRequest::new("POST", "/orders").key(key.parse().unwrap()).params(&7).unwrap()
}

pub(crate) fn ok(body: &str) -> Response {
    Response::new(StatusCode::OK).body(body)
}

pub(crate) fn to(point: &str) -> RequestPatch {
    RequestPatch::new().recovery_point(point)
}

#[track_caller]
pub(crate) fn is<T>(result: Result<T, Error>, kind: ErrorKind, named: &str) {
    let error = result.err().unwrap();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(named), "{error} does not name {named}");
}

pub(crate) fn status_of(requests: &Requests, key: &str) -> Option<Status> {
    requests.retrieve(key).unwrap().map(|record| record.status())
}

/// Returns a listing, to check that nothing changed.
pub(crate) fn state(requests: &Requests) -> (u64, usize) {
    let engine = requests.manager().engine();
    (engine.stats().commits, engine.records(RecordFilter::new()).unwrap().count())
}

struct Refusing;

impl Serialize for Refusing {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("the lock is poisoned"))
    }
}

#[test]
fn a_request_is_its_method_path_and_params() {
    let requests = requests();
    let claim = claimed(post(&requests, "k"));
    assert_eq!(claim.context().text("method"), Some("POST"));
    assert_eq!(claim.context().text("path"), Some("/orders"));
    assert!(claim.context().get("params").is_none());
    for (method, params, path) in [("PUT", 7, "/orders"), ("POST", 8, "/orders"), ("POST", 7, "/carts")] {
        let begin = requests.initialize_request(Some("k"), method, &params, path).unwrap();
        assert_eq!(arm(&begin), "mismatch", "{method} {path} {params}");
    }
    assert_eq!(arm(&post(&requests, "k")), "in progress");
    claim.succeed(&ok("done")).unwrap();
    assert_eq!(arm(&requests.initialize_request(Some("k"), "POST", &8, "/orders").unwrap()), "mismatch");
    let Begin::Replay(done) = post(&requests, "k") else { panic!("no replay") };
    assert_eq!(done.into_outcome().unwrap(), ok("done"));
}

/// bincode cannot write this type's map, whose length serde does not know.
#[derive(Serialize)]
struct Flat {
    id: u8,
    #[serde(flatten)]
    rest: HashMap<String, u8>,
}

#[test]
fn params_of_any_size_and_type_are_compared_and_not_stored() {
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap();
    let large = MARKER.repeat(1 << 16);
    let flat = Flat { id: 1, rest: HashMap::from([("a".to_owned(), 2)]) };
    let claim = claimed(requests.initialize_request(Some("large"), "POST", &large, "/orders").unwrap());
    let _flat = claimed(requests.initialize_request(Some("flat"), "POST", &flat, "/orders").unwrap());
    let other = format!("{large}x");
    assert_eq!(arm(&requests.initialize_request(Some("large"), "POST", &other, "/orders").unwrap()), "mismatch");
    let new = NewRequest::new("POST", "/orders").key("new".parse().unwrap());
    requests.create(new.clone().params(&large).unwrap()).unwrap();
    is(requests.create(new.params(&other).unwrap()), ErrorKind::Mismatch, "new");
    let driven = NewRequest::new("POST", "/orders").key("inside".parse().unwrap()).params(&large).unwrap();
    engine.atomic_phase(|tx| requests.with_transaction(tx).create(driven.clone())).unwrap();
    claim.succeed(&ok("done")).unwrap();
    // No record contains any of the parameters.
    let found: Vec<_> = requests.find(RecordFilter::new()).unwrap().map(Result::unwrap).collect();
    assert_eq!(found.len(), 4);
    for info in found {
        assert_eq!(info.context().iter().map(|(name, _)| name).collect::<Vec<_>>(), ["method", "path"]);
    }
}

#[test]
fn params_are_stored_with_keep_params() {
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap().keep_params(true).scoped("ada").unwrap();
    let claim = claimed(post(&requests, "k"));
    assert_eq!(claim.context().decode::<i32>("params").unwrap(), Some(7));
    requests.create(new("l")).unwrap();
    engine.atomic_phase(|tx| requests.with_transaction(tx).create(new("m"))).unwrap();
    let as_kept = claim.context().get("params").unwrap();
    let found = requests.find(RecordFilter::new().context("params", as_kept)).unwrap();
    assert_eq!(found.count(), 3);
    // Storing the parameters does not change the fingerprint.
    let other = requests.clone().keep_params(false);
    assert_eq!(arm(&post(&other, "k")), "in progress");
}

#[test]
fn the_order_of_a_map_in_params_does_not_count() {
    let requests = requests();
    let map = || (0..50).map(|i| (i, i)).collect::<HashMap<u32, u32>>();
    let _claim = claimed(requests.initialize_request(Some("k"), "POST", &map(), "/").unwrap());
    assert_eq!(arm(&requests.initialize_request(Some("k"), "POST", &map(), "/").unwrap()), "in progress");
}

#[test]
fn requests_without_a_key_get_different_keys() {
    let requests = requests().scoped("ada").unwrap();
    let first = claimed(requests.initialize_request(None, "POST", &(), "/orders").unwrap());
    let second = claimed(requests.initialize_request(None, "POST", &(), "/orders").unwrap());
    assert_ne!(first.key(), second.key());
    let key = std::str::from_utf8(first.key().parts()[1]).unwrap();
    assert_eq!(key.len(), 36, "{key}");
    assert_eq!(&key[14..15], "7", "a UUID of version 7: {key}");
    // The client can be sent this key, and then finds its request by it.
    assert_eq!(arm(&requests.initialize_request(Some(key), "POST", &(), "/orders").unwrap()), "in progress");
}

#[test]
fn a_header_key_is_parsed_like_the_header() {
    let requests = requests();
    let claim = claimed(post(&requests, "\"k\\\"1\""));
    assert_eq!(claim.key().as_str(), Some("k\"1"));
    assert_eq!(arm(&post(&requests, " \"k\\\"1\" ")), "in progress");
    let before = state(&requests);
    let long = "k".repeat(513);
    let malformed =
        [("\"k", "quote"), ("k\u{e9}", "ASCII"), ("k\n", "ASCII"), ("\0\0\x01k", "ASCII"), ("a, b", "comma")];
    for (key, named) in [("", "empty"), ("\"\"", "empty"), (&*long, "513")].into_iter().chain(malformed) {
        let refused = requests.initialize_request(Some(key), "POST", &7, "/orders");
        is(refused.map(|_| ()), ErrorKind::InvalidKey, named);
    }
    assert_eq!(state(&requests), before);
}

#[test]
fn bad_requests_are_rejected_and_leave_nothing() {
    let requests = requests();
    let before = state(&requests);
    let refused = |method: &str, path: &str, named: &str| {
        is(requests.initialize_request(Some("k"), method, &7, path).map(|_| ()), ErrorKind::InvalidOptions, named);
        is(requests.create(NewRequest::new(method, path)), ErrorKind::InvalidOptions, named);
    };
    refused("/orders", "POST", "\"/orders\" is not an HTTP method");
    refused("", "/orders", "method");
    refused("PO ST", "/orders", "\"PO ST\"");
    refused("P\u{d6}ST", "/orders", "method");
    refused("POST\r\n", "/orders", "method");
    refused("POST", "", "path");
    refused("POST", "orders", "\"orders\" is not a path");
    refused("POST", "http://host/orders", "path");
    let long = "x".repeat(100_000);
    refused(&format!("/{long}"), "/orders", "method");

    is(
        requests.initialize_request(Some("k"), "POST", &Refusing, "/").map(|_| ()),
        ErrorKind::Codec,
        "the lock is poisoned",
    );
    is(NewRequest::new("POST", "/").params(&Refusing), ErrorKind::Codec, "the lock is poisoned");
    let large = vec![0_u8; Context::MAX_BYTES];
    let keeping = requests.clone().keep_params(true);
    is(keeping.initialize_request(Some("k"), "POST", &large, "/").map(|_| ()), ErrorKind::TooLarge, "params");
    is(keeping.create(NewRequest::new("POST", "/").params(&large).unwrap()), ErrorKind::TooLarge, "params");
    is(requests.create(NewRequest::new("POST", format!("/{long}"))), ErrorKind::TooLarge, "context");
    // Any other HTTP token is a method.
    drop(claimed(requests.initialize_request(Some("k2"), "X-LOCK~", &7, "/").unwrap()).release());
    assert_eq!(state(&requests).1, before.1 + 1);
    assert_eq!(requests.retrieve("k").unwrap().map(|record| record.status()), None);
}

#[test]
fn names_are_checked_and_types_are_responses() {
    let (engine, _) = engine();
    is(engine.requests("Not a name"), ErrorKind::InvalidName, "Not a name");
    is(
        engine.requests_with("r", ManagerOptions::new().success_ttl(std::time::Duration::ZERO)),
        ErrorKind::InvalidOptions,
        "success_ttl",
    );
    let _numbers = engine.manager::<u64, u64>("numbers").unwrap();
    is(engine.requests("numbers"), ErrorKind::TypeMismatch, "numbers");
    let same: oncekey::Manager<Response, Response> = {
        engine.requests("r").unwrap();
        engine.manager("r").unwrap()
    };
    assert_eq!(same.name(), "r");
}

#[test]
fn an_interrupted_request_is_held_unless_the_options_resume_it() {
    let (engine, _) = engine();
    let resuming = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
    let resumes = engine.requests_with("r", resuming).unwrap();
    drop(claimed(post(&resumes, "k")));
    let again = claimed(post(&resumes, "k"));
    assert_eq!((again.attempt(), again.interruption()), (2, Some(Interruption::Dropped)));
    assert_eq!(resumes.create(new("c")).unwrap().into_info().policy(), OnInterrupted::Resume);

    let holds = engine.requests("r").unwrap();
    drop(claimed(post(&holds, "held")));
    assert_eq!(arm(&post(&holds, "held")), "interrupted");
    assert_eq!(arm(&holds.lock("held").unwrap()), "interrupted");
    assert_eq!(holds.create(new("d")).unwrap().into_info().policy(), OnInterrupted::Hold);
    let begun = claimed(holds.manager().begin("m").unwrap()).release().unwrap();
    assert_eq!(begun.policy(), OnInterrupted::Hold);
}

#[test]
fn a_created_request_waits_for_its_first_owner() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    let first = open(dir.path(), &clock);
    let requests = first.requests("r").unwrap();
    let info = requests.create(new("k")).unwrap().into_info();
    assert_eq!((info.status(), info.attempt(), info.recovery_point()), (Status::Released, 0, STARTED));
    assert_eq!((info.interruption(), info.outcome_bytes(), info.expires_at().is_some()), (None, 0, true));
    first.close().unwrap();

    let second = open(dir.path(), &clock);
    let requests = second.requests("r").unwrap();
    let found = requests.retrieve("k").unwrap().unwrap();
    assert_eq!((found.status(), found.info().generation()), (Status::Released, info.generation()));
    assert_eq!(second.interrupted().unwrap().count(), 0);
    let claim = claimed(requests.lock("k").unwrap());
    assert_eq!((claim.attempt(), claim.generation()), (1, info.generation()));
    assert!(claim.token() > info.generation());
    assert_eq!(arm(&post(&requests, "k")), "in progress", "the same request, by its content too");
}

#[test]
fn creating_twice_returns_the_first_and_rejects_another_request() {
    let requests = requests();
    let first = requests.create(new("k")).unwrap().into_info();
    let again = requests.create(new("k")).unwrap().into_info();
    assert_eq!((again.generation(), again.updated_at()), (first.generation(), first.updated_at()));
    claimed(requests.lock("k").unwrap()).succeed(&ok("done")).unwrap();
    let before = state(&requests);
    assert_eq!(requests.create(new("k")).unwrap().into_info().status(), Status::Succeeded);
    let other = NewRequest::new("PUT", "/orders").key("k".parse().unwrap());
    is(requests.create(other.clone()), ErrorKind::Mismatch, "key k of r");
    assert_eq!(state(&requests), before);
    requests.manager().remove("k").unwrap();
    assert_eq!(requests.create(other).unwrap().into_info().status(), Status::Released);
}

#[test]
fn a_created_request_expires_like_a_released_one() {
    let (engine, clock) = engine();
    let requests =
        engine.requests_with("r", ManagerOptions::new().released_ttl(MINUTE).interrupted_ttl(MINUTE)).unwrap();
    requests.create(new("k")).unwrap();
    clock.advance(just_before(MINUTE));
    // A change does not extend its time.
    requests.update("k", to("paid")).unwrap();
    assert_eq!(status_of(&requests, "k"), Some(Status::Released));
    clock.advance(MS);
    assert_eq!(status_of(&requests, "k"), None);
    is(requests.lock("k").map(|_| ()), ErrorKind::NotFound, "key k of r");
    is(requests.update("k", to("paid")), ErrorKind::NotFound, "key k of r");
    assert_eq!(engine.compact_now().unwrap().removed, 1);
}

#[test]
fn a_lock_creates_nothing_and_answers_like_begin() {
    let requests = requests();
    let before = state(&requests);
    is(requests.lock("k").map(|_| ()), ErrorKind::NotFound, "key k of r has no record");
    is(requests.lock("").map(|_| ()), ErrorKind::InvalidKey, "empty");
    assert_eq!(state(&requests), before);
    requests.create(new("k")).unwrap();
    let claim = claimed(requests.lock("k").unwrap());
    assert_eq!(arm(&requests.lock("k").unwrap()), "in progress");
    claim.fail(&ok("failed")).unwrap();
    let Begin::Replay(done) = requests.lock("k").unwrap() else { panic!("no replay") };
    assert_eq!(done.into_outcome().unwrap_err(), ok("failed"));
}

#[test]
fn one_of_many_locks_gets_the_claim() {
    let requests = requests();
    for round in 0..50 {
        let key = format!("k{round}");
        requests.create(new(&key)).unwrap();
        let start = Barrier::new(4);
        let claims: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        // Keep the answer until all threads have asked.
                        let begin = requests.lock(&key).unwrap();
                        start.wait();
                        usize::from(matches!(begin, Begin::Claimed(_)))
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(claims, 1);
    }
}

#[test]
fn find_stays_in_the_name_and_the_scope() {
    let (engine, _) = engine();
    let (all, other) = (engine.requests("r").unwrap(), engine.requests("other").unwrap());
    let (ada, eve) = (all.scoped("ada").unwrap(), all.scoped("eve").unwrap());
    let inner = ada.scoped("cart").unwrap();
    for (requests, key) in [(&all, "k1"), (&other, "k2"), (&ada, "k3"), (&eve, "k4"), (&inner, "k5"), (&ada, "l6")] {
        requests.create(new(key)).unwrap();
    }
    let found = |requests: &Requests, filter| keys(requests.find(filter).unwrap());
    assert_eq!(found(&all, RecordFilter::new()), ["k1", "/ada/k3", "/ada/l6", "/ada/cart/k5", "/eve/k4"]);
    assert_eq!(found(&other, RecordFilter::new()), ["k2"]);
    assert_eq!(found(&ada, RecordFilter::new()), ["/ada/k3", "/ada/l6"]);
    assert_eq!(found(&inner, RecordFilter::new()), ["/ada/cart/k5"]);
    assert_eq!(found(&eve, RecordFilter::new().manager("r").status(Status::Released)), ["/eve/k4"]);
    assert_eq!(found(&ada, RecordFilter::new().key_prefix("l")), ["/ada/l6"]);
    assert_eq!(found(&ada, RecordFilter::new().key_prefix("cart")), Vec::<String>::new());
    assert_eq!(found(&all, RecordFilter::new().key_prefix("k")), ["k1"]);
    assert_eq!(found(&ada, RecordFilter::new().context("path", "/carts")), Vec::<String>::new());
    is(ada.find(RecordFilter::new().manager("other")).map(|_| ()), ErrorKind::InvalidOptions, "other");
    is(ada.retrieve_one(RecordFilter::new().manager("other")), ErrorKind::InvalidOptions, "other");
    is(all.find(RecordFilter::new().manager("N\n")).map(|_| ()), ErrorKind::InvalidOptions, "N\\n");
}

#[test]
fn retrieve_one_returns_one_none_or_ambiguous() {
    let requests = requests();
    let ada = requests.scoped("ada").unwrap();
    requests.scoped("eve").unwrap().create(new("k")).unwrap();
    assert!(ada.retrieve_one(RecordFilter::new()).unwrap().is_none());
    claimed(post(&ada, "k")).succeed(&ok("ada's")).unwrap();
    let one = ada.retrieve_one(RecordFilter::new()).unwrap().unwrap();
    assert_eq!(one.into_outcome(), Some(Ok(ok("ada's"))));
    ada.create(new("l")).unwrap();
    is(ada.retrieve_one(RecordFilter::new()), ErrorKind::Ambiguous, "/ada/k and /ada/l");
    let one = ada.retrieve_one(RecordFilter::new().status(Status::Released)).unwrap().unwrap();
    assert_eq!(one.info().key().parts()[1], b"l");
    assert!(ada.retrieve_one(RecordFilter::new().recovery_point("paid")).unwrap().is_none());
}

#[test]
fn a_retrieved_request_matches_even_if_it_changes_meanwhile() {
    let requests = requests();
    requests.create(new("k")).unwrap();
    std::thread::scope(|scope| {
        let updates = scope.spawn(|| {
            for round in 0..300 {
                requests.update("k", to(if round % 2 == 0 { "one" } else { "two" })).unwrap();
            }
        });
        while !updates.is_finished() {
            if let Some(record) = requests.retrieve_one(RecordFilter::new().recovery_point("one")).unwrap() {
                assert_eq!(record.info().recovery_point(), "one");
            }
        }
    });
}

#[test]
fn scopes_are_separate_and_the_whole_key_works_without_a_scope() {
    let requests = requests();
    let (ada, eve) = (requests.scoped("ada").unwrap(), requests.scoped("eve").unwrap());
    let info = ada.create(new("k")).unwrap().into_info();
    assert_eq!(info.key(), &Key::from_parts(["ada", "k"]).unwrap());
    is(eve.lock("k").map(|_| ()), ErrorKind::NotFound, "eve/k");
    is(eve.update("k", to("paid")), ErrorKind::NotFound, "eve/k");
    assert_eq!(requests.update(info.key(), to("paid")).unwrap().recovery_point(), "paid");
    assert_eq!(claimed(ada.lock("k").unwrap()).recovery_point(), "paid");
    is(requests.scoped(""), ErrorKind::InvalidKey, "empty");
    is(ada.create(new(&"k".repeat(510))), ErrorKind::InvalidKey, "512");
}

#[test]
fn a_response_survives_a_restart_byte_for_byte() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    // Larger than a value that is stored in one piece.
    let body: Vec<u8> = (0..300_000_u32).map(|i| i.to_le_bytes()[usize::from(i % 7 == 0)]).collect();
    let response = Response::new(StatusCode::from_u16(299).unwrap())
        .header(header::VARY, HeaderValue::from_static("b=2"))
        .header(header::VARY, HeaderValue::from_static("a=1"))
        .header("x-name".parse().unwrap(), HeaderValue::from_bytes(b"\xffr\xc3\xa9").unwrap())
        .body(body);
    let first = open(dir.path(), &clock);
    claimed(post(&first.requests("r").unwrap(), "k")).succeed(&response).unwrap();
    first.close().unwrap();
    let second = open(dir.path(), &clock);
    let Begin::Replay(done) = post(&second.requests("r").unwrap(), "k") else { panic!("no replay") };
    let read = done.into_outcome().unwrap();
    assert_eq!(read, response);
    assert!(read.headers().iter().eq(response.headers().iter()));
}

#[test]
fn handles_are_shared_between_threads_and_show_no_payload() {
    fn shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    let requests = requests();
    shared(&requests);
    shared(&ok(""));
    let new = NewRequest::new("POST", "/orders").params(&MARKER).unwrap();
    let patch = to("paid").checkpoint(MARKER).response(ok(MARKER));
    for text in [format!("{new:?}"), format!("{patch:?}"), format!("{requests:?}"), format!("{:?}", ok(MARKER))] {
        assert!(!text.contains(MARKER), "{text}");
        assert!(text.len() > 20, "{text}");
    }
}
