//! Tests of HTTP requests that are read by the options, then claimed, driven or created.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};
use oncekey::{
    Begin, Error, ErrorKind, ExecuteError, Fingerprint,
    http::{HandleOptions, NewRequest, Problem, Requests, Response, SameRequest},
    stage::{DriveError, Next, STARTED, Stages},
};

use crate::common::*;
use crate::http::{created, never};

const ADA: &str = r#"{"to":"ada","cents":1999}"#;
const ADA_AGAIN: &str = r#"{ "cents": 1999.0, "to": "ada" }"#;
const EVE: &str = r#"{"to":"eve","cents":1999}"#;

fn by_content() -> Requests {
    let options = HandleOptions::new().same_request(SameRequest::by_content());
    engine().0.requests("r").unwrap().with_handling(options)
}

fn json(key: &'static str, body: &str) -> http::Request<String> {
    let mut request = http::Request::post("/payments").body(body.to_owned()).unwrap();
    let headers = request.headers_mut();
    headers.insert("idempotency-key", HeaderValue::from_static(key));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

fn begin(requests: &Requests, request: &http::Request<String>) -> Begin<Response, Response> {
    requests.begin(requests.read(request).unwrap()).unwrap()
}

#[test]
fn a_request_is_claimed_by_the_rule_of_the_options() {
    let requests = by_content();
    let claim = claimed(begin(&requests, &json("k", ADA)));
    assert_eq!((claim.context().text("method"), claim.context().text("path")), (Some("POST"), Some("/payments")));
    assert_eq!(arm(&begin(&requests, &json("k", ADA_AGAIN))), "in progress");
    assert_eq!(arm(&begin(&requests, &json("k", EVE))), "mismatch");
    claim.succeed(&Response::new(StatusCode::CREATED)).unwrap();
    assert_eq!(arm(&begin(&requests, &json("k", ADA_AGAIN))), "replay");
    // `handle` recognises the same request.
    assert_eq!(requests.handle(&json("k", ADA), never).headers()["idempotent-replayed"], "true");
    requests.handle(&json("l", ADA), created);
    assert_eq!(arm(&begin(&requests, &json("l", ADA_AGAIN))), "replay");
}

#[test]
fn a_request_is_driven_by_the_rule_of_the_options_and_does_not_wait_by_default() {
    let requests = by_content();
    let stages = Stages::new().stage(STARTED, |claim| {
        // Another driver, while this one runs. By the options it does not wait.
        let second = requests.drive_new(requests.read(&json("k", ADA_AGAIN)).unwrap(), &Stages::new());
        let second: Result<_, DriveError<_, _, Error>> = second;
        assert!(matches!(second, Err(DriveError::Execute(ExecuteError::InProgress(_)))), "{second:?}");
        claim.work_stage(|_tx| Ok::<_, Error>(Next::Succeed(Response::new(StatusCode::CREATED))))
    });
    let drive = |body| requests.drive_new(requests.read(&json("k", body)).unwrap(), &stages);
    assert!(!drive(ADA).unwrap().replayed());
    assert!(drive(ADA_AGAIN).unwrap().replayed());
    assert!(matches!(drive(EVE), Err(DriveError::Execute(ExecuteError::Mismatch(_)))));
    // A wait that was set is used: for an own claim it is a deadlock, and for another owner it ends.
    let own = Stages::new().stage(STARTED, |_claim| {
        let request = requests.read(&json("own", ADA)).unwrap().wait(Duration::from_secs(60));
        let second: Result<_, DriveError<_, _, Error>> = requests.drive_new(request, &Stages::new());
        match second {
            Err(DriveError::Execute(ExecuteError::Engine(error))) => Err(error),
            other => panic!("{other:?}"),
        }
    });
    let error = requests.drive_new(requests.read(&json("own", ADA)).unwrap(), &own).unwrap_err();
    assert!(matches!(error, DriveError::Stage { error, .. } if error.kind() == ErrorKind::Deadlock));
}

#[test]
fn a_request_is_created_by_the_rule_of_the_options_in_transactions_too() {
    let requests = by_content();
    let create = |key, body| requests.create(requests.read(&json(key, body)).unwrap());
    assert!(create("k", ADA).unwrap().is_new() && !create("k", ADA_AGAIN).unwrap().is_new());
    assert_eq!(create("k", EVE).unwrap_err().kind(), ErrorKind::Mismatch);
    let inside = |body| {
        let request = requests.read(&json("inside", body)).unwrap();
        requests.manager().engine().atomic_phase(|tx| requests.with_transaction(tx).create(request.clone()))
    };
    assert!(inside(ADA).unwrap().is_new() && !inside(ADA_AGAIN).unwrap().is_new());
    let Begin::Claimed(claim) = requests.lock("k").unwrap() else { panic!("it is free") };
    assert_eq!(arm(&begin(&requests, &json("k", ADA_AGAIN))), "in progress");
    drop(claim);
}

#[test]
fn older_rules_are_accepted_when_a_request_is_read() {
    let requests = engine().0.requests("r").unwrap();
    let claim = claimed(begin(&requests, &json("k", ADA)));
    claim.succeed(&Response::new(StatusCode::CREATED)).unwrap();
    requests.create(requests.read(&json("created", ADA)).unwrap()).unwrap();
    let newest = HandleOptions::new().same_request(SameRequest::by_content()).or_older_rule(SameRequest::by_bytes());
    let after = requests.with_handling(newest);
    assert_eq!(arm(&begin(&after, &json("k", ADA))), "replay");
    assert_eq!(arm(&begin(&after, &json("k", ADA_AGAIN))), "mismatch");
    assert!(!after.create(after.read(&json("created", ADA)).unwrap()).unwrap().is_new());
}

#[track_caller]
fn refused(read: Result<NewRequest, Problem>) -> (u16, &'static str) {
    let problem = read.unwrap_err();
    assert!(!problem.is_fault());
    (problem.status().as_u16(), problem.code())
}

#[test]
fn an_unreadable_request_is_a_problem_of_the_client() {
    let rule = SameRequest::by(|request| Ok(Fingerprint::of_json(request.body())?));
    let options = HandleOptions::new().same_request(rule).problem_type("urn:problem:");
    let requests = engine().0.requests("r").unwrap().with_handling(options);
    let mut request = json("k", "{}");
    request.headers_mut().remove("idempotency-key");
    assert_eq!(refused(requests.read(&request)), (400, "missing_key"));
    let told = requests.read(&request).unwrap_err().response();
    assert!(String::from_utf8_lossy(told.body()).contains("\"urn:problem:missing_key\""));
    assert_eq!(refused(requests.read(&json("\"k", "{}"))), (400, "invalid_key"));
    assert_eq!(refused(requests.read(&json("k", "{"))), (400, "bad_content"));
    let mut asterisk = json("k", "{}");
    *asterisk.uri_mut() = "*".parse().unwrap();
    assert_eq!(refused(requests.read(&asterisk)), (400, "bad_target"));
}

#[test]
fn a_request_that_needs_no_key_gets_a_generated_one() {
    let name = HeaderName::from_static("x-key");
    let options = HandleOptions::new().key_required(false).key_header(name.clone());
    let requests = engine().0.requests("r").unwrap().with_handling(options);
    let keyless = json("not the header", ADA);
    let (first, second) = (claimed(begin(&requests, &keyless)), claimed(begin(&requests, &keyless)));
    assert_ne!(first.key(), second.key());
    let mut keyed = json("not the header", ADA);
    keyed.headers_mut().insert(name, HeaderValue::from_static("\"k\""));
    assert_eq!(claimed(begin(&requests, &keyed)).key().to_string(), "k");
    // Safe methods need no key either.
    let strict = requests.with_handling(HandleOptions::new());
    assert!(strict.read(&http::Request::get("/balance").body("").unwrap()).is_ok());
}

#[test]
fn the_query_is_stored_only_with_keep_params() {
    let requests = engine().0.requests("r").unwrap();
    let mut request = json("k", ADA);
    *request.uri_mut() = "/payments?tip=2".parse().unwrap();
    let claim = claimed(begin(&requests, &request));
    assert!(claim.context().get("params").is_none());
    request.headers_mut().insert("idempotency-key", HeaderValue::from_static("kept"));
    let keeping = requests.keep_params(true);
    let claim = claimed(begin(&keeping, &request));
    assert_eq!(claim.context().decode::<String>("params").unwrap().as_deref(), Some("tip=2"));
}
