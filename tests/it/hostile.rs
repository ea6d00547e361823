//! Tests with hostile requests. The strings and JSON texts are from `tests/data`, which names their sources.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use http::{HeaderName, HeaderValue, StatusCode, header};
use oncekey::{
    Begin, ErrorKind, Fingerprint, Status,
    admin::RecordFilter,
    http::{HandleOptions, NewRequest, Requests, Response, SameRequest},
};
use sha2::{Digest, Sha256};

use crate::common::*;
use crate::http::{created, never};
use crate::threads::{LATE, within};

type Request = http::Request<Vec<u8>>;

/// Each string once, in order.
fn naughty_strings() -> Vec<String> {
    let strings: Vec<String> = serde_json::from_str(include_str!("../data/naughty-strings/blns.json")).unwrap();
    let mut seen = HashSet::new();
    let strings: Vec<_> = strings.into_iter().filter(|string| seen.insert(string.clone())).collect();
    assert_eq!(strings.len(), 511);
    strings
}

fn requests() -> Requests {
    engine().0.requests("r").unwrap()
}

fn post(key: &[u8], body: &[u8]) -> Request {
    let key = HeaderValue::from_bytes(key).unwrap();
    http::Request::post("/payments").header("idempotency-key", key).body(body.to_vec()).unwrap()
}

fn is_replayed(answer: &http::Response<Vec<u8>>) -> bool {
    answer.headers().contains_key("idempotent-replayed")
}

#[track_caller]
fn is_new(answer: &http::Response<Vec<u8>>) {
    assert_eq!((answer.status(), is_replayed(answer)), (StatusCode::CREATED, false));
}

#[test]
fn naughty_strings_as_keys_are_rejected_or_distinct() {
    let (mut refused, mut accepted) = (0, 0);
    for quoted in [false, true] {
        let requests = requests();
        let mut bodies = BTreeSet::new();
        for string in naughty_strings() {
            let escaped = string.replace('\\', "\\\\").replace('"', "\\\"");
            let value = if quoted { format!("\"{escaped}\"") } else { string };
            let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else { continue };
            let mut request = post(b"k", b"20 EUR");
            request.headers_mut().insert("idempotency-key", value);
            let answer = requests.handle(&request, created);
            if answer.status() == StatusCode::BAD_REQUEST {
                refused += 1;
                continue;
            }
            // White space around a bare key is ignored, so some strings are the same key.
            accepted += 1;
            assert_eq!(answer.status(), StatusCode::CREATED);
            assert_eq!(is_replayed(&answer), !bodies.insert(answer.body().clone()));
            assert!(is_replayed(&requests.handle(&request, never)));
        }
        assert_eq!(requests.find(RecordFilter::new()).unwrap().count(), bodies.len());
    }
    assert!(refused > 100 && accepted > 300, "{refused} {accepted}");
}

#[test]
fn naughty_strings_as_bodies_are_distinct_requests() {
    let strings = naughty_strings();
    for of_json in [false, true] {
        let rule = if of_json { SameRequest::by_content() } else { SameRequest::by_bytes() };
        let requests = requests().with_handling(HandleOptions::new().same_request(rule));
        let pay = |body: &str| {
            let mut request = post(b"k", body.as_bytes());
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            requests.handle(&request, created)
        };
        let body = |string: &str| {
            if of_json { serde_json::to_string(&[string]).unwrap() } else { string.to_owned() }
        };
        is_new(&pay(&body(&strings[0])));
        for string in &strings {
            let answer = pay(&body(string));
            let expected = if *string == strings[0] { StatusCode::CREATED } else { StatusCode::UNPROCESSABLE_ENTITY };
            assert_eq!(answer.status(), expected, "{string:?}");
        }
        if of_json {
            // The string is the same however it is escaped.
            for (nth, string) in strings.iter().enumerate() {
                let escaped = string.encode_utf16().fold(String::new(), |mut text, unit| {
                    write!(text, "\\u{unit:04x}").unwrap();
                    text
                });
                let one = Fingerprint::of_json(body(string)).unwrap();
                assert_eq!(one, Fingerprint::of_json(format!(" [ \"{escaped}\" ] ")).unwrap(), "{nth}: {string:?}");
            }
        }
    }
}

#[test]
fn naughty_strings_as_scopes_paths_and_params_are_read_back_unchanged() {
    let requests = requests().keep_params(true);
    for (nth, string) in naughty_strings().iter().enumerate() {
        match requests.scoped(string) {
            Ok(scoped) => is_new(&scoped.handle(&post(b"k", b"20 EUR"), created)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidKey);
                assert!(string.is_empty() || string.len() > 500, "{string:?}: {error}");
            }
        }
        let path = format!("/{string}");
        let new = NewRequest::new("POST", &path).key(format!("k{nth}").parse().unwrap()).params(string).unwrap();
        let context = requests.create(new).unwrap().into_info().context().clone();
        assert_eq!(context.text("path"), Some(&path[..]));
        assert_eq!(context.decode::<String>("params").unwrap().as_ref(), Some(string));
        let found = requests.find(RecordFilter::new().context("path", path.as_str())).unwrap();
        assert_eq!(keys(found), [format!("k{nth}")]);
    }
}

// Only bytes count. If case, width or composition were folded, one tenant could read another's answers.
#[test]
fn tenants_whose_names_collide_after_normalisation_stay_separate() {
    let tenants = [
        "ada",
        "Ada",
        "ADA",
        " ada",
        "ada ",
        "ada\0",
        "ada/",
        "a/da",
        "a\u{301}da",
        "\u{e1}da",
        "\u{ff41}da",
        "\u{430}da",
        "ad\u{200b}a",
        "stra\u{df}e",
        "strasse",
        "\u{17f}trasse",
        "STRASSE",
        "\u{130}",
        "i\u{307}",
        "I",
        "i",
        "\u{131}",
        "\u{212a}",
        "K",
        "k",
        "%61da",
    ];
    let requests = requests();
    let mut answers = BTreeSet::new();
    for tenant in tenants {
        let answer = requests.scoped(tenant).unwrap().handle(&post(b"k", b"20 EUR"), created);
        is_new(&answer);
        assert!(answers.insert(answer.into_body()), "{tenant:?} has the answer of another");
    }
    // Scopes that are equal when joined stay separate too.
    for scopes in [["ad", "a"], ["a", "da"], ["ada", "k"]] {
        let scoped = scopes.iter().try_fold(requests.clone(), |requests, scope| requests.scoped(scope)).unwrap();
        is_new(&scoped.handle(&post(b"k", b"20 EUR"), created));
    }
    for tenant in tenants {
        let again = requests.scoped(tenant).unwrap().handle(&post(b"k", b"20 EUR"), never);
        assert!(is_replayed(&again) && answers.contains(again.body()));
    }
}

#[test]
fn a_key_at_two_end_points_is_one_record_only_under_one_name() {
    let (engine, _) = engine();
    let to = |path: &str| http::Request::post(path).header("idempotency-key", "k").body("20 EUR").unwrap();
    // Under one manager name the key belongs to one request.
    let shared = engine.requests("shared").unwrap();
    is_new(&shared.handle(&to("/payments"), created));
    assert_eq!(shared.handle(&to("/refunds"), never).status(), StatusCode::UNPROCESSABLE_ENTITY);
    // Under two names it belongs to two, even while the first runs.
    let (payments, refunds) = (engine.requests("payments").unwrap(), engine.requests("refunds").unwrap());
    let first = payments.handle(&to("/payments"), |request, claim| {
        is_new(&refunds.handle(&to("/refunds"), created));
        created(request, claim)
    });
    is_new(&first);
    assert_eq!(payments.handle(&to("/payments"), never).body(), first.body());
    assert_ne!(refunds.handle(&to("/refunds"), never).body(), first.body());
}

#[test]
fn a_megabyte_of_headers_is_neither_compared_nor_stored() {
    let requests = requests();
    let megabyte = HeaderValue::from_str(&"h".repeat(1 << 20)).unwrap();
    let mut one = post(b"k", b"20 EUR");
    one.headers_mut().insert("x-large", megabyte.clone());
    is_new(&requests.handle(&one, created));
    let mut many = post(b"k", b"20 EUR");
    for nth in 0..16_000 {
        let name: HeaderName = format!("x-{nth}").parse().unwrap();
        many.headers_mut()
            .insert(name, HeaderValue::from_static("0123456789012345678901234567890123456789012345678901234567890123"));
    }
    // The headers are not compared.
    assert!(is_replayed(&requests.handle(&many, never)));
    let info = requests.retrieve("k").unwrap().unwrap();
    assert!(info.info().context().iter().all(|(_, value)| value.len() < 100));

    // A key of this size is rejected, and the answer is short.
    let mut key = post(b"k", b"20 EUR");
    key.headers_mut().insert("idempotency-key", megabyte);
    let mut keys = post(b"k", b"20 EUR");
    for _ in 0..10_000 {
        keys.headers_mut().append("idempotency-key", HeaderValue::from_static("k"));
    }
    for request in [key, keys] {
        let answer = requests.handle(&request, never);
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        assert!(answer.body().len() < 1_000, "{}", answer.body().len());
    }
    assert_eq!(requests.find(RecordFilter::new()).unwrap().count(), 1);
}

#[test]
fn a_wrong_content_length_is_not_compared() {
    let requests = requests();
    for length in ["6", "0", "7", "-1", "99999999999999999999", "6, 6", "six"] {
        let mut request = post(b"k", b"20 EUR");
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static(length));
        let answer = requests.handle(&request, created);
        assert_eq!((answer.status(), is_replayed(&answer)), (StatusCode::CREATED, length != "6"), "{length}");
    }
    // A truncated body is another body.
    assert_eq!(requests.handle(&post(b"k", b"20 E"), never).status(), StatusCode::UNPROCESSABLE_ENTITY);
}

#[test]
fn ten_thousand_different_keys_at_once_run_once_each() {
    const THREADS: usize = 50;
    const EACH: usize = 200;
    within(LATE * 2, || {
        let (requests, runs) = (&requests(), &AtomicUsize::new(0));
        thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    for nth in 0..EACH {
                        let request = post(format!("k-{thread}-{nth}").as_bytes(), b"20 EUR");
                        let first = requests.handle(&request, |request, claim| {
                            runs.fetch_add(1, SeqCst);
                            created(request, claim)
                        });
                        is_new(&first);
                        let again = requests.handle(&request, never);
                        assert!(is_replayed(&again) && again.body() == first.body());
                    }
                });
            }
        });
        assert_eq!(runs.load(SeqCst), THREADS * EACH);
        let stats = requests.manager().engine().stats();
        assert_eq!((stats.in_progress, stats.waiting), (0, 0));
    });
}

#[test]
fn a_panic_holds_its_key_and_leaves_all_others_usable() {
    let requests = requests();
    for nth in 0..20 {
        let request = post(format!("k{nth}").as_bytes(), b"20 EUR");
        let panics = |_: &Request, claim: &mut oncekey::Claim<Response, Response>| {
            let _charge = claim.effect_id("charge");
            resume_unwind(Box::new("on purpose"))
        };
        assert!(catch_unwind(AssertUnwindSafe(|| requests.handle(&request, panics))).is_err(), "the panic continues");
        let again = requests.handle(&request, never);
        assert_eq!(again.status(), StatusCode::CONFLICT);
        assert!(String::from_utf8_lossy(again.body()).contains("\"interrupted\""));
    }
    is_new(&requests.handle(&post(b"other", b"20 EUR"), created));
    assert_eq!(requests.find(RecordFilter::new().status(Status::Interrupted)).unwrap().count(), 20);
    let Begin::Interrupted(_) = requests.lock("k0").unwrap() else { panic!("it is not held") };
}

/// A text of the suite and its canonical form.
macro_rules! canonical {
    ($($name:literal),*) => {
        [$((
            $name,
            include_str!(concat!("../data/json-canonicalization/input/", $name, ".json")),
            include_str!(concat!("../data/json-canonicalization/output/", $name, ".json")),
        )),*]
    };
}

#[test]
fn json_has_the_canonical_form_of_rfc_8785() {
    for (name, input, output) in canonical!["arrays", "french", "structures", "unicode", "values", "weird"] {
        if name == "values" {
            // Programs disagree about numbers over 2^53 - 1. The suite contains one.
            assert_eq!(Fingerprint::of_json(input).unwrap_err().kind(), ErrorKind::Codec);
        }
        let (input, output) = (input.replace("1E30, ", ""), output.replace("1e+30,", ""));
        let digest = Sha256::digest(&output).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        for text in [input, output] {
            assert_eq!(Fingerprint::of_json(&text).unwrap().to_string(), digest, "{name}: {text}");
        }
    }
}
