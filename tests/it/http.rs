//! Tests of `handle`: HTTP requests with an `Idempotency-Key`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use http::{HeaderValue, StatusCode, header};
use oncekey::{
    CallOptions, Claim, Engine, Error, ErrorKind, ExecuteError, Fingerprint, Key, Manager, ManagerOptions, OnError,
    OnInterrupted, Status,
    admin::{RecordFilter, Resolution},
    http::{HandleOptions, Problem, Requests, Response},
};
use serde_json::Value as Json;

use crate::common::*;

type Request = http::Request<Vec<u8>>;
type Answer = http::Response<Vec<u8>>;

fn requests() -> Requests {
    engine().0.requests("r").unwrap()
}

fn request(key: &str) -> Request {
    of("POST", "/payments", key, "20 EUR")
}

fn of(method: &str, target: &str, key: &str, body: &str) -> Request {
    http::Request::builder().method(method).uri(target).header("idempotency-key", key).body(body.into()).unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "it is an operation")]
pub(crate) fn created<B>(_: &http::Request<B>, claim: &mut Claim<Response, Response>) -> Result<Response, Response> {
    Ok(Response::new(StatusCode::CREATED).body(claim.effect_id("charge")))
}

pub(crate) fn never<B>(_: &http::Request<B>, _: &mut Claim<Response, Response>) -> Result<Response, Response> {
    panic!("it has run")
}

/// Returns the status and the code of a problem. Checks everything that all problems have in common.
#[track_caller]
fn problem(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/problem+json");
    assert!(!answer.headers().contains_key("idempotent-replayed"));
    let details: Json = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(details["status"], answer.status().as_u16());
    assert_eq!(details["type"], "about:blank");
    assert_eq!(details["title"], answer.status().canonical_reason().unwrap());
    assert!(details["detail"].as_str().unwrap().ends_with('.'), "{details}");
    assert!(!details.to_string().contains(MARKER), "{details}");
    let retry = answer.headers().get(header::RETRY_AFTER).map(HeaderValue::as_bytes);
    let passes = ["in_progress", "unavailable"].map(Json::from).contains(&details["code"]);
    assert_eq!(retry.is_some(), passes, "{details}");
    assert!(retry.is_none_or(|seconds| seconds == b"1"));
    // The extensions contain the same problem, and an error only for a fault.
    let told = answer.extensions().get::<Problem>().expect("it is in the extensions");
    assert_eq!((told.status(), told.code()), (answer.status(), details["code"].as_str().unwrap()));
    assert_eq!(told.retry_after().is_some(), passes);
    assert_eq!(told.is_fault(), answer.status().is_server_error());
    let faulty = answer.extensions().get::<Error>().map(Error::kind);
    assert_eq!(faulty, told.error().filter(|_| told.is_fault()).map(Error::kind));
    (answer.status().as_u16(), details["code"].as_str().unwrap().to_owned())
}

#[track_caller]
fn is(answer: &Answer, status: u16, code: &str) {
    assert_eq!(problem(answer), (status, code.to_owned()));
}

#[track_caller]
fn fault(answer: &Answer) -> ErrorKind {
    answer.extensions().get::<Error>().expect("no error for the log").kind()
}

/// Returns the kind of the error in a client's mistake. The `Error` itself is not in the extensions.
#[track_caller]
fn mistake(answer: &Answer) -> ErrorKind {
    assert!(answer.extensions().get::<Error>().is_none(), "it is no fault");
    answer.extensions().get::<Problem>().unwrap().error().expect("no error for the log").kind()
}

fn is_replayed(answer: &Answer) -> bool {
    answer.headers().get("idempotent-replayed").is_some_and(|value| value == "true")
}

fn none(requests: &Requests) -> bool {
    requests.manager().engine().records(RecordFilter::new()).unwrap().next().is_none()
}

#[test]
fn an_answer_is_replayed_byte_for_byte_and_marked() {
    let requests = requests();
    let full = Response::new(StatusCode::IM_A_TEAPOT)
        .header(header::VARY, HeaderValue::from_static("b"))
        .header(header::VARY, HeaderValue::from_static("a"))
        .header("x-name".parse().unwrap(), HeaderValue::from_bytes(b"\xff\xc3\xa9").unwrap())
        .body([0, 0xff, b'\n']);
    let first = requests.handle(&request("k"), |_, _| Ok(full.clone()));
    assert_eq!(Response::from(first.clone()), full);
    let again = requests.handle(&request("\"k\""), never);
    assert_eq!((again.status(), again.body()), (first.status(), first.body()));
    assert_eq!(again.headers().get_all("idempotent-replayed").iter().collect::<Vec<_>>(), ["true"]);
    assert_eq!(again.headers().len(), first.headers().len() + 1);
    for name in ["vary", "x-name"] {
        assert!(again.headers().get_all(name).iter().eq(first.headers().get_all(name)), "{name}");
    }
    assert!(again.extensions().get::<Error>().is_none());
}

#[test]
fn a_missing_key_is_400_and_nothing_runs() {
    let requests = requests();
    let without = http::Request::post("/payments").body(Vec::new()).unwrap();
    let answer = requests.handle(&without, never);
    is(&answer, 400, "missing_key");
    assert!(answer.extensions().get::<Error>().is_none(), "it is no fault");
    assert!(none(&requests));
}

#[test]
fn a_malformed_key_is_400_and_nothing_runs() {
    let requests = requests();
    let long = "k".repeat(513);
    let bad = [
        &b""[..],
        b"\"\"",
        b"\"k",
        b"k\"",
        b"\"k\" l",
        b"\"\\k\"",
        b"k, l",
        b"k\xc3\xa9",
        b"k\tl",
        b"\xff",
        long.as_bytes(),
    ];
    for value in bad {
        let mut request = request("k");
        request.headers_mut().insert("idempotency-key", HeaderValue::from_bytes(value).unwrap());
        let answer = requests.handle(&request, never);
        is(&answer, 400, "invalid_key");
        assert_eq!(mistake(&answer), ErrorKind::InvalidKey);
    }
    let mut twice = request("k");
    twice.headers_mut().append("idempotency-key", HeaderValue::from_static("k"));
    is(&requests.handle(&twice, never), 400, "invalid_key");
    // The key is short enough alone, but not with its scope.
    let scoped = requests.scoped("s".repeat(300)).unwrap();
    is(&scoped.handle(&request(&"k".repeat(300)), never), 400, "invalid_key");
    assert!(none(&requests));
}

#[test]
fn a_target_that_is_not_a_path_is_400_and_a_huge_one_413() {
    let requests = requests();
    for (method, target) in [("POST", "*"), ("CONNECT", "example.com:443")] {
        let answer = requests.handle(&of(method, target, "k", ""), never);
        is(&answer, 400, "bad_target");
        assert_eq!(mistake(&answer), ErrorKind::InvalidOptions);
    }
    let keeping = requests.clone().keep_params(true);
    for target in [format!("/{}", "p".repeat(20_000)), format!("/?{}", "q".repeat(20_000))] {
        let answer = keeping.handle(&of("POST", &target, "k", ""), never);
        is(&answer, 413, "too_large");
        assert_eq!(mistake(&answer), ErrorKind::TooLarge);
    }
    assert!(none(&requests));
    // A query that is not stored may have any length.
    assert_eq!(requests.handle(&of("POST", &format!("/?{}", "q".repeat(20_000)), "q", ""), created).status(), 201);
    // A target in absolute form has a path.
    assert_eq!(requests.handle(&of("POST", "http://example.com/payments", "k", ""), created).status(), 201);
}

#[test]
fn another_request_under_the_key_is_422_before_any_other_answer() {
    let requests = requests();
    let others = || {
        [
            of("PUT", "/payments", "k", MARKER),
            of("POST", "/refunds", "k", MARKER),
            of("POST", "/payments?tip=1", "k", MARKER),
            of("POST", "/payments", "k", "21 EUR"),
            of("POST", "/payments", "k", ""),
        ]
    };
    let same = || of("POST", "/payments", "k", MARKER);
    let first = requests.handle(&same(), |_, _| {
        for other in others() {
            is(&requests.handle(&other, never), 422, "mismatch");
        }
        Err(Response::new(StatusCode::PAYMENT_REQUIRED).body(MARKER))
    });
    assert_eq!((first.status(), first.body()), (StatusCode::PAYMENT_REQUIRED, &MARKER.as_bytes().to_vec()));
    for other in others() {
        is(&requests.handle(&other, never), 422, "mismatch");
    }
    assert!(is_replayed(&requests.handle(&same(), never)));
}

#[test]
fn a_request_in_progress_is_409_at_once() {
    let requests = requests();
    let first = requests.handle(&request("k"), |inner, claim| {
        let asked = Instant::now();
        let second = requests.handle(inner, never);
        assert!(asked.elapsed() < 20 * SECOND, "it has waited for the 30 s of an `execute`");
        is(&second, 409, "in_progress");
        created(inner, claim)
    });
    assert_eq!((first.status(), is_replayed(&first)), (StatusCode::CREATED, false));
}

#[test]
fn an_interrupted_request_is_held_with_409_until_it_is_resolved() {
    let requests = requests();
    let panicked = catch_unwind(AssertUnwindSafe(|| requests.handle(&request("k"), |_, _| panic!("half done"))));
    assert!(panicked.is_err(), "the panic continues");
    for _ in 0..2 {
        is(&requests.handle(&request("k"), never), 409, "interrupted");
    }
    let resolved = Response::new(StatusCode::ACCEPTED).body("found at the provider");
    requests.manager().resolve("k", Resolution::Succeed(resolved.clone())).unwrap();
    let answer = requests.handle(&request("k"), never);
    assert_eq!((answer.status(), answer.body().as_slice()), (StatusCode::ACCEPTED, resolved.body_bytes()));
    assert!(is_replayed(&answer));
}

#[test]
fn the_options_can_make_an_interrupted_request_resume() {
    let (engine, _) = engine();
    let options = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
    let requests = engine.requests_with("r", options).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| requests.handle(&request("k"), |_, _| panic!("half done"))));
    assert!(panicked.is_err());
    let answer =
        requests.handle(&request("k"), |_, claim| Ok(Response::new(StatusCode::OK).body(claim.attempt().to_string())));
    assert_eq!(answer.body(), b"2");
}

#[test]
fn on_error_decides_whether_failures_are_stored() {
    let requests = requests().on_error(|response| match response.status() {
        StatusCode::SERVICE_UNAVAILABLE => OnError::Release,
        StatusCode::GATEWAY_TIMEOUT => OnError::Interrupt,
        _ => OnError::Store,
    });
    let failing = |status: StatusCode| move |_: &Request, _: &mut Claim<_, _>| Err(Response::new(status).body("e"));
    let declined = requests.handle(&request("stored"), failing(StatusCode::PAYMENT_REQUIRED));
    assert_eq!((declined.status(), is_replayed(&declined)), (StatusCode::PAYMENT_REQUIRED, false));
    let again = requests.handle(&request("stored"), never);
    assert_eq!((again.status(), again.body(), is_replayed(&again)), (declined.status(), declined.body(), true));

    let busy = requests.handle(&request("released"), failing(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!((busy.status(), is_replayed(&busy)), (StatusCode::SERVICE_UNAVAILABLE, false));
    assert_eq!(requests.handle(&request("released"), created).status(), StatusCode::CREATED);

    assert_eq!(requests.handle(&request("unknown"), failing(StatusCode::GATEWAY_TIMEOUT)).status(), 504);
    is(&requests.handle(&request("unknown"), never), 409, "interrupted");
}

#[test]
fn a_response_that_cannot_be_stored_is_not_sent_and_the_record_is_held() {
    let clock = oncekey::clock::ManualClock::new();
    // The limit leaves no room for a status either.
    let requests = options(&clock).max_value_bytes(30).temporary_store().unwrap().requests("r").unwrap();
    for (key, succeeds) in [("ok", true), ("failed", false)] {
        let large = Response::new(StatusCode::OK).body(MARKER.repeat(1_000));
        let answer = requests.handle(&request(key), |_, _| if succeeds { Ok(large) } else { Err(large) });
        is(&answer, 500, "not_stored");
        assert_eq!(fault(&answer), ErrorKind::TooLarge);
        let record = requests.retrieve(key).unwrap().unwrap();
        assert_eq!((record.status(), record.info().attempt()), (Status::Interrupted, 1));
        is(&requests.handle(&request(key), never), 409, "interrupted");
    }
}

/// A client that got this answer for a processed request would send it again under another key.
#[track_caller]
fn says_nothing_of_what_was_processed(answer: &http::Response<Vec<u8>>) {
    let text = String::from_utf8_lossy(answer.body()).into_owned();
    assert!(!text.contains("not processed") && !text.contains("Nothing was"), "{text}");
}

#[test]
fn the_error_of_a_fault_is_in_the_extensions_only() {
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap();
    requests.handle(&request("k"), created);
    // A response stored with another layout.
    let later = engine.requests_with("r", ManagerOptions::new().schema(2)).unwrap();
    let answer = later.handle(&request("k"), never);
    is(&answer, 500, "unreadable");
    assert_eq!(fault(&answer), ErrorKind::TypeMismatch);
    says_nothing_of_what_was_processed(&answer);
    let path = engine.path().display().to_string();
    engine.close().unwrap();
    let answer = requests.handle(&request("k"), never);
    is(&answer, 503, "unavailable");
    assert_eq!(fault(&answer), ErrorKind::Closed);
    says_nothing_of_what_was_processed(&answer);
    assert!(!String::from_utf8_lossy(answer.body()).contains(&path));
    // The response of an operation whose claim was lost is not sent.
    let (engine, _) = crate::common::engine();
    let requests = engine.requests("r").unwrap();
    let answer = requests.handle(&request("k"), |request, claim| {
        requests.manager().revoke("k").unwrap();
        created(request, claim)
    });
    is(&answer, 500, "not_stored");
    assert_eq!(fault(&answer), ErrorKind::ClaimLost);
}

#[test]
fn the_record_has_the_method_and_path_the_query_if_kept_and_no_body() {
    let requests = requests().keep_params(true);
    requests.handle(&of("POST", "/payments?tip=2&to=ada", "k", MARKER), created);
    let record = requests.retrieve("k").unwrap().unwrap();
    let context = record.info().context();
    assert_eq!((context.text("method"), context.text("path")), (Some("POST"), Some("/payments")));
    assert_eq!(context.decode::<String>("params").unwrap().as_deref(), Some("tip=2&to=ada"));
    assert!(context.iter().all(|(_, value)| !String::from_utf8_lossy(value).contains(MARKER)));
    let found = requests.find(RecordFilter::new().context("path", "/payments")).unwrap();
    assert_eq!(keys(found), ["k"]);
    requests.handle(&of("POST", "/payments", "l", ""), created);
    assert!(requests.retrieve("l").unwrap().unwrap().info().context().get("params").is_none());
    let by_default = self::requests();
    by_default.handle(&of("POST", "/payments?token=secret", "k", MARKER), created);
    let record = by_default.retrieve("k").unwrap().unwrap();
    assert_eq!(record.info().context().iter().map(|(name, _)| name).collect::<Vec<_>>(), ["method", "path"]);
}

#[test]
fn keys_of_two_users_are_separate() {
    let requests = requests();
    let (ada, eve) = (requests.scoped("ada").unwrap(), requests.scoped("eve").unwrap());
    let first = ada.handle(&request("k"), created);
    let second = eve.handle(&request("k"), created);
    assert!(!is_replayed(&second) && first.body() != second.body());
    assert!(is_replayed(&ada.handle(&request("k"), never)));
    // A client cannot name a key of a scope.
    let forged = Key::from_parts(["ada", "k"]).unwrap();
    assert!(HeaderValue::from_bytes(forged.as_bytes()).is_err());
}

/// A type that implements only the traits needed to be stored.
#[derive(serde::Serialize, serde::Deserialize)]
struct Plain(String);

#[test]
fn every_error_of_execute_except_a_failure_has_a_problem() {
    let (engine, _) = engine();
    let manager: Manager<Plain, Plain> = engine.manager_with("m", ManagerOptions::new()).unwrap();
    let ask = |key: &str, request: &str| {
        let options = CallOptions::new().fingerprint(Fingerprint::of(request).unwrap()).wait(Duration::ZERO);
        manager.execute_with(key, options, |_| Err(Plain(MARKER.to_owned())))
    };
    let refused = |key: &str, request: &str| ask(key, request).err().unwrap().problem().map(Problem::response);
    assert!(refused("failed", "a").is_none() && refused("failed", "a").is_none());
    is(&refused("failed", "b").unwrap(), 422, "mismatch");
    let claim = claimed(manager.begin_with(MARKER, same("a")).unwrap());
    is(&refused(MARKER, "a").unwrap(), 409, "in_progress");
    drop(claim);
    is(&refused(MARKER, "a").unwrap(), 409, "interrupted");
    is(&refused("", "a").unwrap(), 400, "invalid_key");
    is(&refused(&MARKER.repeat(100), "a").unwrap(), 400, "invalid_key");

    let options = CallOptions::new().context(about("user", &MARKER.repeat(5_000)));
    let error = manager.execute_with("k", options, |_| panic!("it has run")).err().unwrap();
    is(&error.problem().unwrap().response(), 413, "too_large");
    let options = CallOptions::new().success_ttl(Duration::ZERO);
    let error = manager.execute_with("k", options, |_| panic!("it has run")).err().unwrap();
    is(&error.problem().unwrap().response(), 500, "internal");
    let error = manager.execute("k", |_| Ok(Plain(MARKER.repeat(1 << 18)))).err().unwrap();
    assert!(matches!(error, ExecuteError::NotStored { .. }));
    is(&error.problem().unwrap().response(), 500, "not_stored");
    drop(error);
    engine.close().unwrap();
    is(&refused("k", "a").unwrap(), 503, "unavailable");
}

#[test]
fn every_answer_of_begin_except_a_claim_and_a_replay_has_a_problem() {
    let (engine, _) = engine();
    let manager: Manager<Plain, Plain> = engine.manager("m").unwrap();
    let ask = |request: &str| manager.begin_with(MARKER, same(request)).unwrap();
    let begin = ask("a");
    assert!(begin.problem().is_none());
    is(&ask("a").problem().unwrap().response(), 409, "in_progress");
    is(&ask("b").problem().unwrap().into(), 422, "mismatch");
    drop(begin);
    is(&ask("a").problem().unwrap().response(), 409, "interrupted");
    manager.resolve(MARKER, Resolution::Succeed(Plain(MARKER.to_owned()))).unwrap();
    assert!(ask("a").problem().is_none());
    is(&Problem::missing_key(&header::HeaderName::from_static("x-key")).response(), 400, "missing_key");
    is(&Problem::from(manager.begin("").unwrap_err()).response(), 400, "invalid_key");
}

#[test]
fn the_service_sets_the_uris_of_problem_types() {
    let options = HandleOptions::new().problem_type("https://example.com/problems/");
    let requests = requests().with_handling(options);
    let details = |answer: &Answer| -> [String; 2] {
        let details: Json = serde_json::from_slice(answer.body()).unwrap();
        ["type", "title"].map(|member| details[member].as_str().unwrap().to_owned())
    };
    let without = http::Request::post("/payments").body(Vec::new()).unwrap();
    let missing = requests.handle(&without, never);
    assert_eq!(details(&missing), ["https://example.com/problems/missing_key", "missing key"]);
    let malformed = requests.handle(&request("\"k"), never);
    assert_eq!(details(&malformed), ["https://example.com/problems/invalid_key", "invalid key"]);
    requests.handle(&request("k"), |inner, claim| {
        let second = requests.handle(inner, never);
        assert_eq!(details(&second), ["https://example.com/problems/in_progress", "in progress"]);
        created(inner, claim)
    });
    let default = requests.handle_with(&without, &HandleOptions::new(), never);
    assert_eq!(details(&default), ["about:blank", "Bad Request"]);
}

// A `HeaderMap` panics if it has no room for one more.
#[test]
fn a_response_whose_headers_are_full_is_replayed_without_the_mark() {
    let engine = Engine::options().max_value_bytes(4 << 20).temporary_store().unwrap();
    let requests = engine.requests("r").unwrap();
    let first = requests.handle(&request("k"), |_, _| {
        let mut full = http::Response::new(Vec::new());
        let mut name = 0;
        while full
            .headers_mut()
            .try_insert(format!("x-{name}").parse::<header::HeaderName>().unwrap(), 1.into())
            .is_ok()
        {
            name += 1;
        }
        Ok(full.into())
    });
    let again = requests.handle(&request("k"), never);
    assert!(first.headers().len() > 20_000);
    assert_eq!((again.status(), again.headers()), (StatusCode::OK, first.headers()));
    // All others have it.
    requests.handle(&request("l"), created);
    assert!(requests.handle(&request("l"), never).headers().contains_key("idempotent-replayed"));
}
