//! Tests of `oncekey web`, without a browser: refused requests, the content of the pages, changes, and the cost of hostile clients.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use oncekey::{Engine, Failure, Key, Manager, Status, Value, http::Response};

use crate::common::*;
use crate::pages::{Site, command, encode};
use crate::threads::{LATE, within};

/// A key, a context and an outcome that would be markup if they were not escaped.
const MARKUP: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;";

fn is_secret(shown: &str) -> bool {
    !shown.contains("payments") && !shown.contains("order") && !shown.contains("oncekey.test")
}

#[test]
fn a_request_without_the_token_or_under_another_name_sees_nothing() {
    within(LATE, || {
        let dir = tempfile::Builder::new().suffix("oncekey.test").tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let payments: Manager<String> = engine.manager("payments").unwrap();
        drop(claim(&payments, "order-1"));
        let site = Site::start(dir.path(), &[]);
        let token = site.root.trim_matches('/').to_owned();
        assert!(token.len() >= 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
        let ask = |path: &str, host: &str| site.raw(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let host = site.host();
        let mut wrong = token.clone().into_bytes();
        wrong[63] = if wrong[63] == b'0' { b'1' } else { b'0' };
        let wrong = String::from_utf8(wrong).unwrap();
        let paths = [
            "/".to_owned(),
            "/records".to_owned(),
            format!("/{wrong}/"),
            format!("/{}/", &token[..63]),
            format!("/{token}0/"),
        ];
        for path in paths {
            let shown = ask(&path, &host);
            assert!(shown.status == 403 && is_secret(&shown.body), "{path}: {shown:?}");
            assert!(!shown.body.contains(&token) && !shown.head.contains(&token), "{path}: {shown:?}");
        }
        for host in ["evil.example", &format!("evil.example:{}", site.port), "127.0.0.1", "localhost:1", ""] {
            let shown = ask(&format!("{}records", site.root), host);
            assert!(shown.status == 421 && is_secret(&shown.body), "{host}: {shown:?}");
        }
        let twice = format!("GET {} HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n", site.root);
        assert_eq!(site.raw(&twice).status, 400);
        assert_eq!(site.raw(&format!("GET {} HTTP/1.1\r\n\r\n", site.root)).status, 421);
        for host in [host, format!("localhost:{}", site.port), format!("[::1]:{}", site.port)] {
            assert_eq!(ask(&format!("{}records", site.root), &host).status, 200, "{host}");
        }
    });
}

#[test]
fn a_form_of_another_page_changes_nothing() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let payments: Manager<String> = engine.manager("payments").unwrap();
        drop(claim(&payments, "order-1"));
        let site = Site::start(dir.path(), &[]);
        let revision = engine.raw("payments").unwrap().get("order-1").unwrap().unwrap().info().revision().to_string();
        let fields = [
            ("do", "release"),
            ("manager", "payments"),
            ("key", "order-1"),
            ("revision", &revision),
            ("confirmed", "yes"),
        ];
        let own = format!("Origin: http://{}\r\n", site.host());
        for headers in [
            String::new(),
            "Origin: null\r\n".to_owned(),
            "Origin: http://evil.example\r\n".to_owned(),
            format!("Origin: https://{}\r\n", site.host()),
            "Origin: http://localhost\r\n".to_owned(),
            format!("{own}Sec-Fetch-Site: cross-site\r\n"),
            format!("{own}Sec-Fetch-Site: same-site\r\n"),
        ] {
            let shown = site.post_from(&headers, &fields);
            assert!(shown.status == 403 && shown.body.contains("Nothing was changed"), "{headers}: {shown:?}");
        }
        assert_eq!(site.query("act", &fields).status, 200, "a link asks only");
        let head = format!("HEAD {}act?{} HTTP/1.1\r\nHost: {}\r\n\r\n", site.root, encode(&fields), site.host());
        assert_eq!((site.raw(&head).status, site.raw(&head).bytes.len()), (200, 0));
        assert_eq!(status(&payments, "order-1"), Some(Status::Interrupted));
        let stale = [&fields[..3], &[("revision", "1"), ("confirmed", "yes")]].concat();
        site.post(&stale).contains(&["Nothing was changed", "has changed"]);
        assert_eq!(status(&payments, "order-1"), Some(Status::Interrupted));
        assert_eq!(site.post_from(&format!("{own}Sec-Fetch-Site: same-origin\r\n"), &fields).status, 303);
        assert_eq!(status(&payments, "order-1"), Some(Status::Released));
        // The same form again, as after a double click.
        assert_eq!(site.post(&fields).status, 409);
    });
}

#[test]
fn keys_contexts_outcomes_and_fields_are_never_markup() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let payments: Manager<String> = engine.manager("payments").unwrap();
        let begun = payments.begin_with(MARKUP, same("r").context(about("user", MARKUP))).unwrap();
        claimed(begun).succeed(&MARKUP.to_owned()).unwrap();
        drop(claim(&payments.scoped(MARKUP).unwrap(), MARKUP));
        let bytes: Vec<u8> = (0..=255).collect();
        drop(claimed(payments.begin(Key::from_bytes(&bytes).unwrap()).unwrap()));
        let site = Site::start(dir.path(), &[]);
        let mut pages =
            vec!["./".to_owned(), "records".to_owned(), format!("records?{}", encode(&[("contains", MARKUP)]))];
        pages.extend(
            ["manager", "status", "older-than", "scope", "context", "sort", "page"]
                .map(|name| format!("records?{}", encode(&[(name, MARKUP)]))),
        );
        for info in engine.records(oncekey::admin::RecordFilter::new()).unwrap() {
            let key = info.unwrap().key().to_string();
            let at = [
                ("manager", "payments"),
                ("key", key.as_str()),
                ("effect", MARKUP),
                ("do", "resolve"),
                ("done", MARKUP),
            ];
            pages.extend([format!("record?{}", encode(&at)), format!("act?{}", encode(&at))]);
        }
        pages.extend(
            ["record", "act", "outcome"]
                .map(|page| format!("{page}?{}", encode(&[("manager", MARKUP), ("key", MARKUP), ("do", "resolve")]))),
        );
        for page in &pages {
            let shown = site.get(page.trim_start_matches("./"));
            assert!([200, 400, 404, 409].contains(&shown.status), "{page}: {shown:?}");
            // One script, the page's own; no handler, and no element but those of the page.
            assert_eq!(shown.body.matches("<script").count(), 1, "{page}: {}", shown.body);
            shown.contains(&["<script src=\"script.js\" defer></script>"]).lacks(&["<img src=x", "\"'>"]);
            let policy = shown.header("content-security-policy").unwrap();
            assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
            assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
            assert_eq!(shown.header("cache-control"), Some("no-store"));
            assert_eq!(shown.header("x-content-type-options"), Some("nosniff"));
        }
        // Bytes that a browser could take for a page are only stored.
        let key = Key::new(MARKUP).unwrap().to_string();
        let outcome = site.query("outcome", &[("manager", "payments"), ("key", &key)]);
        assert_eq!(outcome.header("content-type"), Some("application/octet-stream"));
        assert!(outcome.header("content-disposition").unwrap().starts_with("attachment"));
        let stored = engine.raw("payments").unwrap().get(MARKUP).unwrap().unwrap().into_outcome().unwrap().unwrap();
        assert_eq!(Value::from(outcome.bytes), stored);
    });
}

/// Opens a store with 123 records of two managers.
fn filled(store: &Path) -> (Engine, Manager<String>) {
    let engine = Engine::open(store).unwrap();
    let payments: Manager<String> = engine.manager("payments").unwrap();
    for n in 0..120 {
        claim(&payments, &format!("order-{n:03}")).succeed(&"receipt".to_owned()).unwrap();
    }
    claim(&payments, "lost").fail(&Failure::new("declined")).unwrap();
    drop(claim(&payments.scoped("user-7").unwrap(), "order"));
    let requests: Manager<Response> = engine.manager("requests").unwrap();
    let response = Response::new(http::StatusCode::CREATED)
        .header(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"))
        .body(r#"{"id":7}"#);
    claim(&requests, "create").succeed(&response).unwrap();
    (engine, payments)
}

#[test]
fn the_pages_count_and_list_records() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let (_engine, payments) = filled(dir.path());
        let site = Site::start(dir.path(), &[]);

        let overview = site.get("");
        overview.contains(&[
            "in use by a service",
            "payments",
            "120",
            "records?manager=payments&amp;status=interrupted",
        ]);
        overview.contains(&["<noscript><a href=\"./?refresh=on\">"]).lacks(&["http-equiv=\"refresh\""]);
        site.get("?refresh=on").contains(&["<noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>"]);
        let seen = overview.body.split("data-seen=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        assert_eq!(site.query("counts", &[("seen", &seen)]).status, 204);
        claim(&payments, "order-200").succeed(&"receipt".to_owned()).unwrap();
        let again = site.query("counts", &[("seen", &seen)]);
        assert_eq!(again.status, 200);
        again.contains(&["121"]).lacks(&["<html", "<script"]);

        let keys = |query: &str| site.get(&format!("records?{query}")).body.matches("class=\"key\"").count();
        assert_eq!([keys(""), keys("page=2"), keys("page=3"), keys("page=4")], [50, 50, 24, 0]);
        assert_eq!([keys("page=0"), keys("page=x"), keys("page=-1")], [50; 3]);
        site.get("records?page=2").contains(&["Records 51 to 100", "rel=\"prev\"", "rel=\"next\""]);
        site.get("records?page=3").lacks(&["rel=\"next\""]);
        assert_eq!(keys("contains=order-11&status=succeeded&manager=payments"), 10);
        assert_eq!(keys("contains=&status=&manager=&older-than=&sort="), 50, "empty fields of a form");
        assert_eq!(keys("status=failed&status=interrupted"), 2);
        assert_eq!([keys("scope=user-7"), keys("newer-than=1h&manager=requests"), keys("older-than=1h")], [1, 1, 0]);
        let last = site.get("records?sort=changed&reverse=on");
        assert!(last.body.find("order-200") < last.body.find("order-119"), "{}", last.body);
        let wrong = site.get("records?older-than=soon");
        assert_eq!(wrong.status, 400);
        wrong.contains(&["invalid value &#39;soon&#39; for &quot;Not changed for&quot;: ", "value=\"soon\""]);
        site.get("records?contains=nothing").contains(&["No record matches"]);
    });
}

#[test]
fn a_record_is_shown_in_full() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let (engine, payments) = filled(dir.path());
        claim(&payments, "twice").release().unwrap();
        claim(&payments, "twice").succeed(&"receipt".to_owned()).unwrap();
        let site = Site::start(dir.path(), &[]);
        let twice = site.query("record", &[("manager", "payments"), ("key", "twice")]);
        twice.contains(&["attempt 1: claimed", ", released", "2, of generation"]);
        let failed = site.query("record", &[("manager", "payments"), ("key", "lost")]);
        failed.contains(&[
            "failure: declined",
            "attempt",
            "1, of generation",
            "revision",
            "created",
            "expires",
            "Failed",
        ]);
        let created = site.query("record", &[("manager", "requests"), ("key", "create")]);
        created.contains(&["HTTP 201 Created", "content-type: application/json", "&quot;id&quot;: 7"]);
        let dropped = site.query("record", &[("manager", "payments"), ("key", "/user-7/order"), ("effect", "charge")]);
        let key = Key::from_parts(["user-7", "order"]).unwrap();
        let effect = engine.raw("payments").unwrap().get(&key).unwrap().unwrap().info().effect_id("charge");
        dropped
            .contains(&[&effect, "Dropped", "Release the key", "Store an outcome"])
            .lacks(&["Take it from its owner"]);
        for (page, fields) in [
            ("record", [("manager", "payments"), ("key", "none")]),
            ("outcome", [("manager", "payments"), ("key", "none")]),
        ] {
            let missing = site.query(page, &fields);
            assert_eq!(missing.status, 404);
            missing.contains(&["There is no such record", "key none of payments has no record"]);
        }
        assert_eq!(site.get("nothing").status, 404);
    });
}

#[test]
fn an_operator_acts_on_a_running_store_through_the_page() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let payments: Manager<String> = engine.manager("payments").unwrap();
        claim(&payments, "order-0").succeed(&"receipt".to_owned()).unwrap();
        for key in ["order-1", "order-2", "order-3"] {
            drop(claim(&payments, key));
        }
        let held = claim(&payments, "order-4");
        let requests: Manager<Response> = engine.manager("requests").unwrap();
        claim(&requests, "first").succeed(&Response::new(http::StatusCode::OK)).unwrap();
        drop(claim(&requests, "second"));
        let site = Site::start(dir.path(), &[]);

        site.act("payments", "order-1", "release", &[]).contains(&["The key is released", "Released"]);
        assert_eq!(status(&payments, "order-1"), Some(Status::Released));
        site.act("payments", "order-1", "undo", &[]).contains(&["The resolution is undone", "Interrupted"]);
        assert_eq!(status(&payments, "order-1"), Some(Status::Interrupted));

        let resolved = site.act(
            "payments",
            "order-2",
            "resolve",
            &[("how", "succeed"), ("form", "text"), ("content", "paid\r\ntwice")],
        );
        resolved.contains(&["The outcome is stored", "Succeeded"]);
        assert_eq!(outcome(&payments, "order-2").unwrap().unwrap(), "paid\ntwice");
        site.act("payments", "order-3", "resolve", &[("how", "fail"), ("content", "declined"), ("unchecked", "yes")]);
        assert_eq!(outcome(&payments, "order-3").unwrap().unwrap_err().message(), "declined");
        let response = [("how", "response"), ("code", "201"), ("headers", "X-Id: 7"), ("content", "{}")];
        site.act("requests", "second", "resolve", &response).contains(&["HTTP 201 Created", "x-id: 7"]);

        site.act("payments", "order-4", "revoke", &[]).contains(&["The owner has lost the key", "Revoked"]);
        assert!(held.succeed(&"late".to_owned()).is_err());

        // An outcome that does not fit is asked for again, with the typed text.
        let revision = engine.raw("payments").unwrap().get("order-4").unwrap().unwrap().info().revision().to_string();
        let at = [("do", "resolve"), ("manager", "payments"), ("key", "order-4"), ("revision", revision.as_str())];
        let unfit = site.post(&[&at[..], &[("how", "succeed"), ("form", "json"), ("content", "{not json")]].concat());
        assert_eq!(unfit.status, 400);
        unfit.contains(&["the outcome: ", "{not json</textarea>", "value=\"json\" checked"]).lacks(&["confirmed"]);
        for (form, why) in [("text", "paid"), ("json", "{}")] {
            let kind = site.post(
                &[&at[..], &[("how", "response"), ("form", form), ("code", "999999"), ("content", why)]].concat(),
            );
            assert_eq!(kind.status, 400);
            kind.contains(&["status &quot;999999&quot;"]);
        }
        assert_eq!(status(&payments, "order-4"), Some(Status::Interrupted));
        // An act that the state does not allow.
        let late = [
            ("do", "revoke"),
            ("manager", "payments"),
            ("key", "order-4"),
            ("revision", revision.as_str()),
            ("confirmed", "yes"),
        ];
        assert_eq!(site.post(&late).status, 409);
        assert_eq!(site.query("act", &[("do", "undo"), ("manager", "payments"), ("key", "order-4")]).status, 409);
        assert_eq!(site.query("act", &[("do", "remove"), ("manager", "payments"), ("key", "order-4")]).status, 400);
    });
}

#[test]
fn a_closed_store_is_shown_changed_and_left_free() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let payments: Manager<String> = engine.manager("payments").unwrap();
        claim(&payments, "order-0").succeed(&"receipt".to_owned()).unwrap();
        drop(claim(&payments, "order-1"));
        drop(claim(&payments, "order-2"));
        drop(payments);
        engine.close().unwrap();
        let site = Site::start(dir.path(), &[]);
        site.get("").contains(&[
            "not in use",
            "Nothing changes while no process has the store open",
            "data-seen=\"closed\"",
        ]);
        assert_eq!(site.get("records").body.matches("class=\"key\"").count(), 3);
        site.act("payments", "order-1", "release", &[]).contains(&["The key is released"]);
        site.act("payments", "order-2", "resolve", &[("how", "succeed"), ("content", "paid")])
            .contains(&["The outcome is stored"]);
        assert_eq!(site.get("counts?seen=closed").status, 204);

        // A service opens the store between two views, and closes it again.
        let engine = Engine::open(dir.path()).unwrap();
        let payments: Manager<String> = engine.manager("payments").unwrap();
        assert_eq!(status(&payments, "order-1"), Some(Status::Released));
        assert_eq!(outcome(&payments, "order-2").unwrap().unwrap(), "paid");
        assert_eq!(site.get("counts?seen=closed").status, 200);
        site.get("").contains(&["in use by a service"]);
        drop(payments);
        engine.close().unwrap();
        let closed = site.get("counts?seen=1.0.0.0");
        assert_eq!(closed.status, 503);
        closed.contains(&["The service has closed the store. Reload the page"]);
        site.get("").contains(&["not in use"]);
    });
}

#[test]
fn a_store_that_goes_away_gets_a_clear_page() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let engine = Engine::options().admin(false).open(&path).unwrap();
        engine.close().unwrap();
        let site = Site::start(&path, &[]);
        let engine = Engine::options().admin(false).open(&path).unwrap();
        let held = site.get("records");
        assert_eq!(held.status, 503);
        held.contains(&["The store cannot be reached", "is open already", "cannot ask its owner"]);
        engine.close().unwrap();
        assert_eq!(site.get("records").status, 200);
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        for page in ["", "records", "record?manager=m&key=k", "act?manager=m&key=k&do=release"] {
            let gone = site.get(page);
            assert_eq!(gone.status, 503, "{page}");
            gone.contains(&["The store cannot be reached", "there is no store in", "Go to the overview"]);
        }
        assert_eq!(site.get("counts?seen=closed").status, 503);
        assert!(!path.exists(), "looking creates nothing");
    });
}

#[test]
fn a_page_for_looking_changes_nothing() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let payments: Manager<String> = engine.manager("payments").unwrap();
        drop(claim(&payments, "order-1"));
        let site = Site::start(dir.path(), &["--read-only"]);
        let at = [("manager", "payments"), ("key", "order-1")];
        site.query("record", &at).contains(&["read only", "Interrupted"]).lacks(&["Release", "act?"]);
        let fields = [&at[..], &[("do", "release"), ("revision", "1"), ("confirmed", "yes")]].concat();
        for shown in [site.query("act", &fields), site.post(&fields)] {
            assert_eq!(shown.status, 403);
            shown.contains(&["--read-only"]);
        }
        assert_eq!(status(&payments, "order-1"), Some(Status::Interrupted));
    });
}

#[test]
fn slow_and_hostile_clients_cost_only_their_own_connection() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::options().max_value_bytes(Value::MAX_BYTES).open(dir.path()).unwrap();
        let texts: Manager<String> = engine.manager("m").unwrap();
        claim(&texts, "large").succeed(&"x".repeat(12 << 20)).unwrap();
        let site = Site::start(dir.path(), &[]);

        // Clients that ask for much and never read.
        let large = format!("GET {}outcome?manager=m&key=large HTTP/1.1\r\nHost: {}\r\n\r\n", site.root, site.host());
        let mut never_read = Vec::new();
        for _ in 0..4 {
            let mut stream = site.connect();
            stream.write_all(large.as_bytes()).unwrap();
            never_read.push(stream);
        }
        assert_eq!(site.get("records").status, 200);

        // Many clients that send nothing, half a head, or half a form.
        let half_head = format!("GET {} HTTP/1.1\r\nHost: ", site.root);
        let half_form = format!(
            "POST {}act HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000000\r\n\r\na=",
            site.root,
            site.host()
        );
        let mut silent = Vec::new();
        for n in 0..1_000 {
            let mut stream = site.connect();
            // Ignore the result: the connection may be gone already.
            let _ = stream.write_all([b"", half_head.as_bytes(), half_form.as_bytes()][n % 3]);
            silent.push(stream);
            if n % 100 == 0 {
                assert_eq!(site.get("records").status, 200, "beside {n} clients");
            }
        }
        assert_eq!(site.get("records").status, 200);
        // The oldest ones were closed.
        let mut first = silent.swap_remove(0);
        assert!(matches!(first.read(&mut [0; 1]), Ok(0) | Err(_)));
        drop((silent, never_read));

        let head = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", site.root, site.host());
        let long = format!("{head}X: {}\r\n\r\n", "x".repeat(900_000));
        assert_eq!(site.raw(&long).status, 431);
        assert_eq!(site.raw(&format!("{head}{}\r\n", "x: y\r\n".repeat(1_000))).status, 431);
        assert_eq!(site.raw(&format!("{}\r\n\r\n", "x".repeat(900_000))).status, 431);
        let form = "x".repeat((1 << 20) + 1);
        let own = format!("Origin: http://{}\r\n", site.host());
        let shown = site.post_from(&own, &[("content", &form)]);
        assert_eq!(shown.status, 413);
        shown.contains(&["oncekey resolve"]);
        for bytes in [
            "PUT / HTTP/1.1\r\n\r\n",
            "DELETE / HTTP/1.1\r\n\r\n",
            "\0\0\0\0",
            "GET / HTTP/9\r\n\r\n",
            "\r\n\r\n\r\nx y z\r\n\r\n",
        ] {
            assert!([400, 405].contains(&site.raw(bytes).status), "{bytes:?}");
        }
        assert_eq!(site.get("records").status, 200);
    });
}

#[test]
fn a_port_in_use_and_a_missing_store_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let ran = |args: &[&str]| {
        let Output { status, stdout, stderr } = command(args).output().unwrap();
        assert!(stdout.is_empty());
        (status.code().unwrap(), String::from_utf8(stderr).unwrap())
    };
    let (status, message) = ran(&[store.to_str().unwrap()]);
    assert!(status == 2 && message.contains("there is no store in"), "{status}: {message}");
    assert!(!store.exists());
    Engine::open(&store).unwrap().close().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (status, message) = ran(&[store.to_str().unwrap(), "--port", &port]);
    assert!(status == 5 && message.contains(&format!("listen on 127.0.0.1:{port}: ")), "{status}: {message}");
}
