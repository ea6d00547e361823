//! Tests of the options of `handle`: replayed headers, methods that pass through, and the comparison of requests.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use oncekey::{
    Claim, Error, ErrorKind, Fingerprint, Status,
    admin::{RecordFilter, Resolution},
    http::{HandleOptions, NewRequest, Problem, RequestPatch, Requests, Response, SameRequest},
    stage::{Next, STARTED, Stages},
};

use crate::common::*;
use crate::http::{created, never};
use crate::threads::{LATE, until, within};

type Request = http::Request<String>;
type Answer = http::Response<Vec<u8>>;

fn requests(options: HandleOptions) -> Requests {
    engine().0.requests("r").unwrap().with_handling(options)
}

fn post(body: &str) -> Request {
    http::Request::post("/payments").header("idempotency-key", "k").body(body.to_owned()).unwrap()
}

fn of_kind(kind: &'static str, body: &str) -> Request {
    let mut request = post(body);
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    request
}

#[track_caller]
fn is_replay(answer: &Answer) {
    assert_eq!(answer.headers()["idempotent-replayed"], "true");
}

#[track_caller]
fn is_new(answer: &Answer) {
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(!answer.headers().contains_key("idempotent-replayed"));
}

#[track_caller]
fn is_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status(), status);
    let details: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(details["code"], code);
}

fn records(requests: &Requests) -> usize {
    requests.find(RecordFilter::new()).unwrap().count()
}

const KEPT: [&str; 3] = ["content-type", "location", "x-request-id"];
const OF_ONE_ANSWER: [&str; 15] = [
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
    "x-hop",
    "x-skip",
];

/// A response with every header of one answer only, each twice, and with headers that are stored.
fn upstream() -> Response {
    let mut response = Response::new(StatusCode::CREATED).body("b");
    for name in OF_ONE_ANSWER.into_iter().chain(KEPT) {
        for value in ["x", "y"] {
            let value = if name == "connection" { "close, X-Hop , x-skip,, (" } else { value };
            response = response.header(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
    }
    response
}

#[test]
fn headers_of_one_connection_are_not_replayed_on_another() {
    let requests = requests(HandleOptions::new());
    let first = requests.handle(&post(""), |_, _| Ok(upstream()));
    assert_eq!(Response::from(first), upstream());
    let again = requests.handle(&post(""), never);
    is_replay(&again);
    for name in OF_ONE_ANSWER {
        assert!(!again.headers().contains_key(name), "{name}");
    }
    for name in KEPT {
        assert_eq!(again.headers().get_all(name).iter().count(), 2, "{name}");
    }
    let mut failed = post("");
    failed.headers_mut().insert("idempotency-key", HeaderValue::from_static("failed"));
    assert_eq!(Response::from(requests.handle(&failed, |_, _| Err(upstream()))), upstream());
    assert!(!requests.handle(&failed, never).headers().contains_key("set-cookie"));
    for key in ["k", "failed"] {
        assert_eq!(stored_names(&requests, key), KEPT, "{key}");
    }
}

/// Returns the sorted names of the headers in a record.
fn stored_names(requests: &Requests, key: &str) -> Vec<String> {
    let (Ok(stored) | Err(stored)) = requests.retrieve(key).unwrap().unwrap().into_outcome().unwrap();
    let mut names: Vec<_> = stored.headers().keys().map(ToString::to_string).collect();
    names.sort();
    names
}

// The same for each call that stores a response.
#[test]
fn headers_of_one_answer_are_not_stored_by_stages_claims_updates_and_resolutions() {
    let requests = requests(HandleOptions::new());
    let stage = |claim: &mut Claim<Response, Response>| claim.work_stage(|_| Ok(Next::Succeed(upstream())));
    requests.handle(&post(""), |_, claim| stage(claim).map(|()| upstream()).map_err(|_: Error| upstream()));
    requests.drive(Some("driven"), "POST", &7, "/orders", &Stages::new().stage(STARTED, stage)).unwrap();
    for key in ["by hand", "resolved"] {
        let claim = claimed(requests.initialize_request(Some(key), "POST", &7, "/orders").unwrap());
        if key == "by hand" {
            claim.succeed(&upstream()).unwrap();
        } else {
            drop(claim);
            requests.manager().resolve(key, Resolution::Fail(upstream())).unwrap();
        }
    }
    requests.create(NewRequest::new("POST", "/orders").key("updated".parse().unwrap())).unwrap();
    requests.update("updated", RequestPatch::new().response(upstream())).unwrap();
    for key in ["k", "driven", "by hand", "resolved", "updated"] {
        assert_eq!(stored_names(&requests, key), KEPT, "{key}");
    }
}

fn limited(options: HandleOptions) -> Requests {
    let clock = oncekey::clock::ManualClock::new();
    let engine = crate::common::options(&clock).max_value_bytes(2_000).temporary_store().unwrap();
    engine.requests("r").unwrap().with_handling(options)
}

fn large() -> Response {
    upstream().body("b".repeat(5_000))
}

#[test]
fn a_response_over_the_limit_is_stored_without_its_body_and_marked() {
    let requests = limited(HandleOptions::new());
    for is_ok in [true, false] {
        let mut request = post("");
        request.headers_mut().insert("idempotency-key", HeaderValue::from_static(if is_ok { "ok" } else { "err" }));
        let first = requests.handle(&request, |_, _| if is_ok { Ok(large()) } else { Err(large()) });
        assert_eq!(first.extensions().get::<Error>().unwrap().kind(), ErrorKind::TooLarge);
        assert!(!first.headers().contains_key("idempotent-body-omitted"));
        assert_eq!(Response::from(first), large());
        let again = requests.handle(&request, never);
        is_replay(&again);
        assert_eq!((again.status(), again.body().len()), (StatusCode::CREATED, 0));
        assert_eq!(again.headers()["idempotent-body-omitted"], "5000");
        assert!(again.headers().contains_key("location") && !again.headers().contains_key("content-type"));
    }
    // If the headers alone are too large, they are left out too.
    let mut request = post("");
    request.headers_mut().insert("idempotency-key", HeaderValue::from_static("headers"));
    let value = HeaderValue::from_str(&"h".repeat(5_000)).unwrap();
    let headers = large().header(HeaderName::from_static("x-large"), value);
    assert_eq!(Response::from(requests.handle(&request, |_, _| Ok(headers.clone()))), headers);
    let again = requests.handle(&request, never);
    is_replay(&again);
    assert_eq!((again.status(), again.headers().len()), (StatusCode::CREATED, 2));
    assert_eq!(again.headers()["idempotent-body-omitted"], "5000");
}

#[test]
fn an_upstreams_mark_of_an_omitted_body_is_never_sent() {
    let requests = requests(HandleOptions::new());
    let marked = || upstream().without_body();
    assert!(marked().headers().contains_key("idempotent-body-omitted"));
    let first = requests.handle(&post(""), |_, _| Ok(marked()));
    let again = requests.handle(&post(""), never);
    for answer in [first, again] {
        assert!(!answer.headers().contains_key("idempotent-body-omitted"));
    }
}

#[test]
fn a_response_that_could_be_too_large_is_rejected_before_the_operation_runs() {
    let requests = limited(HandleOptions::new().response_bytes(2_001));
    let answer = requests.handle(&post(""), never);
    is_problem(&answer, 500, "response_too_large");
    assert_eq!(answer.extensions().get::<Error>().unwrap().kind(), ErrorKind::TooLarge);
    // The key is free, even for another request.
    let fitting = HandleOptions::new().response_bytes(2_000);
    is_new(&requests.handle_with(&post("corrected"), &fitting, created));
    // A stored response is replayed, whatever size is announced now.
    is_replay(&requests.handle(&post("corrected"), never));
}

#[test]
fn the_service_chooses_the_headers_that_are_not_replayed_except_those_of_the_connection() {
    let names = [HeaderName::from_static("x-request-id"), header::LOCATION];
    let requests = requests(HandleOptions::new().not_replayed(names));
    requests.handle(&post(""), |_, _| Ok(upstream()));
    let again = requests.handle(&post(""), never);
    for name in ["date", "set-cookie", "www-authenticate", "content-type"] {
        assert!(again.headers().contains_key(name), "{name}");
    }
    for name in ["x-request-id", "location", "connection", "content-length", "transfer-encoding", "x-hop"] {
        assert!(!again.headers().contains_key(name), "{name}");
    }
}

#[test]
fn an_upstreams_own_mark_is_never_sent() {
    let requests = requests(HandleOptions::new());
    let marked = || {
        Response::new(StatusCode::CREATED)
            .header(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("upstream"))
    };
    is_new(&requests.handle(&post(""), |_, _| Ok(marked())));
    let again = requests.handle(&post(""), never);
    assert_eq!(again.headers().get_all("idempotent-replayed").iter().collect::<Vec<_>>(), ["true"]);
}

#[test]
fn safe_methods_pass_through_without_a_key_and_are_never_stored() {
    let requests = requests(HandleOptions::new());
    for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
        for key in [None, Some("k"), Some("\"malformed"), Some("")] {
            let mut request =
                http::Request::builder().method(method.clone()).uri("/balance").body(String::new()).unwrap();
            if let Some(key) = key {
                request.headers_mut().insert("idempotency-key", HeaderValue::from_static(key));
            }
            let first = requests.handle(&request, created);
            let second = requests.handle(&request, created);
            is_new(&first);
            is_new(&second);
            assert_ne!(first.body(), second.body(), "{method} {key:?}");
            let failed = requests.handle(&request, |_, _| Err(Response::new(StatusCode::NOT_FOUND)));
            assert_eq!(failed.status(), StatusCode::NOT_FOUND);
        }
    }
    assert_eq!(records(&requests), 0);
    let asterisk = http::Request::options("*").body(String::new()).unwrap();
    is_new(&requests.handle(&asterisk, created));
    // Like every other method.
    for method in [Method::POST, Method::PATCH, Method::PUT, Method::DELETE] {
        let request = http::Request::builder().method(method).uri("/balance").body(String::new()).unwrap();
        is_problem(&requests.handle(&request, never), 400, "missing_key");
    }
}

#[test]
fn a_claim_without_a_record_cannot_store_anything() {
    let requests = requests(HandleOptions::new());
    let get = http::Request::get("/balance").body(String::new()).unwrap();
    let answer = requests.handle(&get, |_, claim| {
        assert_eq!((claim.token(), claim.attempt(), claim.interruption()), (0, 1, None));
        let lost = claim.work_stage(|_tx| Ok::<_, Error>(Next::advance("further"))).unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::ClaimLost);
        claim.release_on_drop(true);
        Ok(Response::new(StatusCode::CREATED))
    });
    is_new(&answer);
    assert_eq!(records(&requests), 0);
    // A request that passes through works even if the store does not: a balance can be read while no payment can be made.
    requests.manager().engine().clone().close().unwrap();
    is_new(&requests.handle(&get, created));
    is_problem(&requests.handle(&post(""), never), 503, "unavailable");
    // It also works if the scope leaves no room for a key.
    let scoped = self::requests(HandleOptions::new()).scoped("s".repeat(500)).unwrap();
    is_new(&scoped.handle(&get, created));
}

#[test]
fn put_and_delete_pass_through_if_configured() {
    let requests = requests(HandleOptions::new().without_key([Method::PUT, Method::DELETE]));
    for method in [Method::PUT, Method::DELETE] {
        let request = http::Request::builder().method(method).uri("/carts/17").body(String::new()).unwrap();
        is_new(&requests.handle(&request, created));
        is_new(&requests.handle(&request, created));
    }
    let get = http::Request::get("/carts/17").body(String::new()).unwrap();
    is_problem(&requests.handle(&get, never), 400, "missing_key");
}

#[test]
fn the_service_sets_the_key_s_header_and_whether_a_key_is_required() {
    let name = HeaderName::from_static("x-request-key");
    let requests = requests(HandleOptions::new().key_required(false).key_header(name.clone()));
    // The default header is ignored here.
    is_new(&requests.handle(&post(""), created));
    is_new(&requests.handle(&post(""), created));
    assert_eq!(records(&requests), 0);
    let mut request = post("");
    request.headers_mut().insert(name.clone(), HeaderValue::from_static("\"l\""));
    is_new(&requests.handle(&request, created));
    is_replay(&requests.handle(&request, never));
    assert_eq!(keys(requests.find(RecordFilter::new()).unwrap()), ["l"]);
    let strict = HandleOptions::new().key_header(name.clone());
    let answer = requests.handle_with(&post(""), &strict, never);
    is_problem(&answer, 400, "missing_key");
    assert!(String::from_utf8_lossy(answer.body()).contains("x-request-key"));
    // A key that is present is still checked, and the answer names its header.
    request.headers_mut().insert(name, HeaderValue::from_static("\"l"));
    let answer = requests.handle(&request, never);
    is_problem(&answer, 400, "invalid_key");
    assert!(String::from_utf8_lossy(answer.body()).contains("x-request-key"));
}

#[test]
fn the_options_of_a_call_replace_those_of_the_service() {
    let requests = requests(HandleOptions::new().key_required(false));
    let keyless = http::Request::post("/payments").body(String::new()).unwrap();
    is_new(&requests.handle(&keyless, created));
    is_problem(&requests.handle_with(&keyless, &HandleOptions::new(), never), 400, "missing_key");
    is_new(&requests.scoped("ada").unwrap().on_error(|_| oncekey::OnError::Release).handle(&keyless, created));
}

#[test]
fn a_second_request_waits_for_the_first_up_to_its_deadline() {
    let requests = requests(HandleOptions::new());
    let patient = HandleOptions::new().wait(Duration::from_secs(60));
    let (owned, ended) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            requests.handle(&post(""), |request, claim| {
                owned.wait();
                // Without a wait the answer comes at once.
                is_problem(&requests.handle(request, never), 409, "in_progress");
                ended.wait();
                created(request, claim)
            })
        });
        owned.wait();
        let second = scope.spawn(|| requests.handle_with(&post(""), &patient, never));
        ended.wait();
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        is_new(&first);
        is_replay(&second);
        assert_eq!(first.body(), second.body());
    });
    let short = HandleOptions::new().wait(Duration::from_millis(20));
    let claim = claimed(requests.manager().begin("held").unwrap());
    let mut held = post("");
    held.headers_mut().insert("idempotency-key", HeaderValue::from_static("held"));
    let asked = Instant::now();
    is_problem(&requests.handle_with(&held, &short, never), 409, "in_progress");
    assert!(asked.elapsed() >= Duration::from_millis(20));
    drop(claim);
}

#[test]
fn a_waiting_request_over_the_limit_gets_409_at_once() {
    within(LATE, || {
        let engine = oncekey::Engine::options().max_waiting_per_key(1).temporary_store().unwrap();
        let requests = engine.requests("r").unwrap().with_handling(HandleOptions::new().wait(LATE));
        let claim = claimed(requests.manager().begin("k").unwrap());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| requests.handle(&post(""), never));
            until("it waits", || engine.stats().waiting == 1);
            let refused = requests.handle(&post(""), never);
            is_problem(&refused, 409, "in_progress");
            assert!(refused.headers().contains_key("retry-after"));
            claim.succeed(&Response::new(StatusCode::CREATED)).unwrap();
            is_replay(&waiting.join().unwrap());
        });
    });
}

#[test]
fn json_in_another_order_is_the_same_request_under_by_content() {
    let by_content = HandleOptions::new().same_request(SameRequest::by_content());
    let requests = requests(by_content);
    is_new(&requests.handle(&of_kind("application/json", r#"{"to":"ada","cents":1999}"#), created));
    is_replay(
        &requests.handle(&of_kind("application/json; charset=utf-8", r#"{"cents":1999.0, "to":"\u0061da"}"#), never),
    );
    for (kind, body) in [
        ("application/json", r#"{"to":"ada","cents":2999}"#),
        ("application/json", r#"{"to":"ada","cents":1999,"note":null}"#),
        ("text/plain", r#"{"to":"ada","cents":1999}"#),
    ] {
        is_problem(&requests.handle(&of_kind(kind, body), never), 422, "mismatch");
    }
    // Every rule compares the method, the path and the query.
    for target in ["/refunds", "/payments?x"] {
        let mut other = of_kind("application/json", r#"{"to":"ada","cents":1999}"#);
        *other.uri_mut() = target.parse().unwrap();
        is_problem(&requests.handle(&other, never), 422, "mismatch");
    }
}

#[test]
fn a_closure_chooses_the_members_that_are_compared() {
    let by_amount = SameRequest::by(|request| {
        assert_eq!((request.method(), request.headers()["idempotency-key"].as_bytes()), (&Method::POST, &b"k"[..]));
        let envelope: serde_json::Value = serde_json::from_slice(request.body())?;
        Ok(Fingerprint::of_json(envelope["payment"].to_string())?)
    });
    let requests = requests(HandleOptions::new().same_request(by_amount));
    is_new(&requests.handle(&post(r#"{"attempt":"a1","payment":{"cents":1}}"#), created));
    is_replay(&requests.handle(&post(r#"{"payment":{"cents":1.0},"attempt":"a2"}"#), never));
    is_problem(&requests.handle(&post(r#"{"attempt":"a1","payment":{"cents":2}}"#), never), 422, "mismatch");
    // A request that the closure cannot read is rejected before anything runs.
    let mut junk = post("junk");
    let answer = requests.handle(&junk, never);
    is_problem(&answer, 400, "bad_content");
    assert!(answer.extensions().get::<Error>().is_none(), "it is the client's mistake");
    assert_eq!(answer.extensions().get::<Problem>().unwrap().error().unwrap().kind(), ErrorKind::Codec);
    // The path is compared, whatever the closure returns.
    *junk.body_mut() = r#"{"payment":{"cents":1}}"#.to_owned();
    *junk.uri_mut() = "/refunds".parse().unwrap();
    is_problem(&requests.handle(&junk, never), 422, "mismatch");
}

#[test]
fn retries_after_a_deploy_with_another_rule_are_not_mismatches() {
    let (engine, _) = engine();
    let before = engine.requests("r").unwrap();
    let body = r#"{"to":"ada","cents":1999}"#;
    let first = before.handle(&of_kind("application/json", body), created);
    let newest = HandleOptions::new().same_request(SameRequest::by_content());
    let abrupt = before.clone().with_handling(newest.clone());
    is_problem(&abrupt.handle(&of_kind("application/json", body), never), 422, "mismatch");
    let failing = SameRequest::by(|_| Ok(Fingerprint::of_json("junk")?));
    let after = before.clone().with_handling(newest.or_older_rule(failing).or_older_rule(SameRequest::by_bytes()));
    let again = after.handle(&of_kind("application/json", body), never);
    is_replay(&again);
    assert_eq!(again.body(), first.body());
    // The older rule compares bytes only. New records are stored under the newest rule.
    is_problem(&after.handle(&of_kind("application/json", r#"{"cents":1999,"to":"ada"}"#), never), 422, "mismatch");
    before.manager().remove("k").unwrap();
    is_new(&after.handle(&of_kind("application/json", body), created));
    is_replay(&after.handle(&of_kind("application/json", r#"{"cents":1999,"to":"ada"}"#), never));
    assert_eq!(after.retrieve("k").unwrap().unwrap().status(), Status::Succeeded);
}
