//! Tests of `resolve` by the command line: what is checked, dry runs, several keys, and undo.

use std::fs;
use std::path::Path;

use oncekey::cli::Describers;
use oncekey::http::Response;
use oncekey::{Engine, Failure, Manager, Status};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::cli::{json, oncekey, oncekey_with, printed, process};
use crate::common::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    charge: String,
    cents: u64,
}

fn receipt() -> Receipt {
    Receipt { charge: "ch_1".to_owned(), cents: 1999 }
}

/// Creates a store with finished and interrupted records of several types.
fn store(dir: &Path) -> String {
    let path = dir.join("store");
    let engine = Engine::open(&path).unwrap();
    let receipts: Manager<Receipt> = engine.manager("receipts").unwrap();
    claim(&receipts, "done").succeed(&receipt()).unwrap();
    claim(&receipts, "declined").fail(&Failure::new("card declined")).unwrap();
    let responses: Manager<Response, Response> = engine.manager("responses").unwrap();
    let created = Response::new(http::StatusCode::CREATED)
        .header(http::header::CONTENT_TYPE, "application/json".parse().unwrap())
        .body(r#"{"charge":"ch_1"}"#);
    claim(&responses, "done").succeed(&created).unwrap();
    let texts: Manager<String> = engine.manager("texts").unwrap();
    claim(&texts, "done").succeed(&"it \u{1b}[31mworked".to_owned()).unwrap();
    let anything: Manager<Json> = engine.manager("anything").unwrap();
    claim(&anything, "done").succeed(&serde_json::json!({ "a": [1, null] })).unwrap();
    for key in ["a", "b", "c"] {
        drop(claim(&receipts, key));
    }
    drop(claim(&responses, "a"));
    drop(claim(&texts, "a"));
    drop(claim(&anything, "a"));
    engine.close().unwrap();
    path.to_str().unwrap().to_owned()
}

fn describers() -> Describers {
    Describers::new().manager::<Receipt, Failure>("receipts", 0, |outcome| match outcome {
        Ok(receipt) => format!("{} cents", receipt.cents),
        Err(failure) => failure.to_string(),
    })
}

fn file(dir: &Path, content: impl AsRef<[u8]>) -> String {
    let path = dir.join("file");
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn status_of(path: &str, manager: &str, key: &str) -> String {
    json(&["get", path, manager, key])["status"].as_str().unwrap().to_owned()
}

#[test]
fn get_shows_responses_failures_text_and_json_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let shown = |manager: &str, key: &str| printed(&["get", &path, manager, key]);
    let response = shown("responses", "done");
    for line in ["HTTP 201 Created\n", "content-type: application/json\n", "\"charge\": \"ch_1\""] {
        assert!(response.contains(line), "{response}");
    }
    assert!(shown("receipts", "declined").contains("failure: card declined"));
    let text = shown("texts", "done");
    assert!(text.contains("it ") && text.contains("worked") && !text.contains('\u{1b}'), "{text}");
    assert!(shown("anything", "done").contains("\"a\": ["));
    let decoded = |manager: &str| json(&["get", &path, manager, "done"])["decoded"].clone();
    assert_eq!(decoded("anything"), serde_json::json!({ "a": [1, null] }));
    assert_eq!(decoded("responses")["status"], 201);
    assert_eq!(decoded("responses")["body"]["charge"], "ch_1");
    // A type of the service's own is not known without its program.
    assert_eq!(decoded("receipts"), Json::Null);
}

#[test]
fn an_outcome_that_the_service_could_not_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let own = outcome_bytes(&path, "receipts", "done");
    let cut = &own[..own.len() - 1];
    let mut changed = own.clone();
    changed[3] ^= 1;
    for (what, content) in [("text", &b"receipt"[..]), ("cut", cut), ("changed", &changed), ("nothing", b"")] {
        let given = file(dir.path(), content);
        for (described, program) in [(true, describers()), (false, Describers::new())] {
            let (status, out, err) = oncekey_with(&program, &["resolve", &path, "receipts", "a", "--succeed", &given]);
            assert_eq!((status, out.as_str()), (2, ""), "{what} {described}: {err}");
            assert!(err.contains("no outcome of receipts"), "{what} {described}: {err}");
        }
    }
    // JSON that does not fit the type, and an outcome in the place of a failure.
    let given = file(dir.path(), r#"{"charge":"ch_1"}"#);
    let refused = ["resolve", &path, "receipts", "a", "--succeed", &given, "--as", "json"];
    let (status, _, err) = oncekey_with(&describers(), &refused);
    assert!(status == 2 && err.contains("missing field `cents`"), "{err}");
    assert_eq!(oncekey(&refused).0, 2, "nothing shows that a struct could be read from it");
    let given = file(dir.path(), &own);
    assert_eq!(oncekey_with(&describers(), &["resolve", &path, "receipts", "a", "--fail", &given]).0, 2);
    assert_eq!(oncekey(&["resolve", &path, "texts", "a", "--response", "200"]).0, 2);
    assert_eq!(status_of(&path, "receipts", "a"), "Interrupted");
    // The operator may know better; what is no encoded value at all is refused even so.
    let unchecked = |content: &[u8]| {
        oncekey(&["resolve", &path, "receipts", "c", "--succeed", &file(dir.path(), content), "--unchecked"]).0
    };
    assert_eq!((unchecked(b"receipt"), unchecked(&changed)), (2, 0));
}

/// Returns the bytes of an outcome, as they are stored.
fn outcome_bytes(path: &str, manager: &str, key: &str) -> Vec<u8> {
    let engine = Engine::open(path).unwrap();
    let record = engine.raw(manager).unwrap().get(key).unwrap().unwrap();
    record.into_outcome().unwrap().unwrap().to_vec()
}

#[test]
fn outcomes_are_given_as_bytes_json_text_or_a_response() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let own = file(dir.path(), outcome_bytes(&path, "receipts", "done"));
    printed(&["resolve", &path, "receipts", "a", "--succeed", &own]);
    let given = file(dir.path(), r#"{"charge":"ch_2","cents":5}"#);
    let resolved =
        oncekey_with(&describers(), &["resolve", &path, "receipts", "b", "--succeed", &given, "--as", "json"]);
    assert_eq!(resolved.0, 0, "{}", resolved.2);
    let given = file(dir.path(), "no funds");
    printed(&["resolve", &path, "receipts", "c", "--fail", &given, "--as", "text"]);
    printed(&["resolve", &path, "texts", "a", "--succeed", &given, "--as", "text"]);
    let given = file(dir.path(), "[1,2]");
    printed(&["resolve", &path, "anything", "a", "--succeed", &given, "--as", "json"]);
    let body = file(dir.path(), "paid");
    let header = ["--header", "Content-Type: text/plain", "--header", "x-a: 1"];
    let response = ["resolve", &path, "responses", "a", "--response", "202", &body];
    printed(&[&response[..], &header].concat());

    let engine = Engine::open(&path).unwrap();
    let receipts: Manager<Receipt> = engine.manager("receipts").unwrap();
    assert_eq!(outcome(&receipts, "a"), Some(Ok(receipt())));
    assert_eq!(outcome(&receipts, "b"), Some(Ok(Receipt { charge: "ch_2".to_owned(), cents: 5 })));
    assert_eq!(outcome(&receipts, "c"), Some(Err(Failure::new("no funds"))));
    assert_eq!(outcome(&engine.manager::<String, Failure>("texts").unwrap(), "a"), Some(Ok("no funds".to_owned())));
    assert_eq!(
        outcome(&engine.manager::<Json, Failure>("anything").unwrap(), "a"),
        Some(Ok(serde_json::json!([1, 2])))
    );
    let responses: Manager<Response, Response> = engine.manager("responses").unwrap();
    let Some(Ok(response)) = outcome(&responses, "a") else { panic!("no response") };
    assert_eq!((response.status().as_u16(), response.body_bytes()), (202, &b"paid"[..]));
    assert_eq!(
        (&response.headers()["content-type"], &response.headers()["x-a"]),
        (&"text/plain".parse().unwrap(), &"1".parse().unwrap())
    );
}

#[test]
fn a_dry_run_changes_nothing_and_several_keys_need_a_confirmation() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let dry = printed(&["resolve", &path, "receipts", "a", "--retry", "--dry-run"]);
    assert_eq!(dry, "key a of receipts would be released: the next request with this key runs the operation\n");
    let all = ["resolve", &path, "--all", "--status", "interrupted", "--manager", "receipts", "--retry"];
    let dry = printed(&[&all[..], &["--dry-run"]].concat());
    assert!(dry.lines().count() == 4 && dry.contains("3 records, nothing was changed"), "{dry}");
    // Standard input is no terminal.
    let asked = process(&all).output().unwrap();
    let err = String::from_utf8(asked.stderr).unwrap();
    assert!(
        asked.status.code() == Some(2) && err.contains("3 records would be released") && err.contains("--yes"),
        "{err}"
    );
    assert_eq!(status_of(&path, "receipts", "a"), "Interrupted");
    assert_eq!(printed(&[&all[..], &["--yes", "--older-than", "1h"]].concat()), "no record matches\n");
    let done = printed(&[&all[..], &["--yes"]].concat());
    assert!(done.contains("key b of receipts is released") && done.ends_with("\n3 records\n"), "{done}");
    for key in ["a", "b", "c"] {
        assert_eq!(status_of(&path, "receipts", key), "Released", "{key}");
    }
    assert_eq!(status_of(&path, "texts", "a"), "Interrupted");
    for wrong in [
        &["resolve", &path, "receipts", "a", "--retry", "--manager", "receipts"][..],
        &["resolve", &path, "receipts", "--retry"],
        &["resolve", &path, "--all", "receipts", "a", "--retry"],
        &["resolve", &path, "--all", "--status", "failed", "--retry"],
        &["resolve", &path, "receipts", "a", "--retry", "--yes"],
        &["resolve", &path, "receipts", "a", "--retry", "--header", "a: b"],
        &["resolve", &path, "responses", "a", "--response", "99"],
        &["resolve", &path, "responses", "a", "--response", "200", "--header", "a b"],
    ] {
        let (status, _, err) = oncekey(wrong);
        assert_eq!(status, 2, "{wrong:?}: {err}");
    }
}

#[test]
fn if_one_of_several_outcomes_is_refused_none_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let given = file(dir.path(), "fine");
    let (status, _, err) = oncekey(&["resolve", &path, "--all", "--succeed", &given, "--as", "text", "--yes"]);
    assert!(status == 2 && err.contains("no outcome of"), "{err}");
    assert_eq!(printed(&["list", &path, "--status", "interrupted", "--count"]), "6\n");
}

/// A manager's failures may be of the default type, or text.
#[test]
fn text_becomes_a_failure_of_the_type_that_the_manager_has_stored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let engine = Engine::open(&path).unwrap();
    let payments: Manager<u64, String> = engine.manager("payments").unwrap();
    claim(&payments, "a").fail(&"card declined".to_owned()).unwrap();
    drop(claim(&payments, "b"));
    engine.close().unwrap();
    let (name, why) = (path.to_str().unwrap(), file(dir.path(), "no such account"));
    let (status, _, err) = oncekey(&["resolve", name, "payments", "b", "--fail", &why]);
    assert!(status == 2 && err.contains("--as text or --as json"), "{status} {err}");
    printed(&["resolve", name, "payments", "b", "--fail", &why, "--as", "text"]);
    let engine = Engine::open(&path).unwrap();
    let payments: Manager<u64, String> = engine.manager("payments").unwrap();
    assert_eq!(payments.get("b").unwrap().unwrap().outcome(), Some(Err(&"no such account".to_owned())));
}

#[test]
fn a_resolution_is_undone_until_a_caller_is_given_the_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path());
    let own = file(dir.path(), outcome_bytes(&path, "receipts", "done"));
    printed(&["resolve", &path, "receipts", "a", "--succeed", &own]);
    printed(&["resolve", &path, "receipts", "b", "--retry"]);
    // An operator may look at it.
    assert!(printed(&["get", &path, "receipts", "a"]).contains("resolve --undo"));
    assert_eq!(json(&["get", &path, "receipts", "a"])["undoable"], true);
    for key in ["a", "b"] {
        let undone = printed(&["resolve", &path, "receipts", key, "--undo"]);
        assert!(undone.contains("is interrupted: as it was"), "{undone}");
        assert_eq!(status_of(&path, "receipts", key), "Interrupted");
        assert_eq!(oncekey(&["resolve", &path, "receipts", key, "--undo"]).0, 1);
    }
    let all = ["resolve", &path, "--all", "--manager", "receipts", "--yes"];
    printed(&[&all[..], &["--succeed", &own]].concat());
    {
        let engine = Engine::open(&path).unwrap();
        let receipts: Manager<Receipt> = engine.manager("receipts").unwrap();
        assert_eq!(answer(&receipts, "b"), "replay");
    }
    // A filter by state selects among the records that were resolved.
    let released = ["--undo", "--status", "released"];
    assert_eq!(printed(&[&all[..], &released].concat()), "no record matches\n");
    let undone = printed(&[&all[..], &["--undo", "--status", "succeeded"]].concat());
    assert!(
        undone.contains("key a of") && undone.contains("key c of") && undone.ends_with("\n2 records\n"),
        "{undone}"
    );
    let (status, _, err) = oncekey(&["resolve", &path, "receipts", "b", "--undo"]);
    assert!(status == 1 && err.contains("until a caller begins the key or gets the outcome"), "{err}");
    assert_eq!(status_of(&path, "receipts", "b"), format!("{:?}", Status::Succeeded));
}
