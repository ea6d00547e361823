//! Tests of managers whose types are not known, and of wrong types.

use oncekey::admin::Resolution;
use oncekey::clock::ManualClock;
use oncekey::{Begin, ErrorKind, Interruption, Manager, ManagerOptions, OnInterrupted, Record, Status, Value};

use crate::common::*;

#[test]
fn the_same_name_with_other_types_is_a_type_mismatch() {
    let (engine, _) = engine();
    let _known: Manager<u64, String> = engine.manager("m").unwrap();
    let error = engine.manager::<u32, String>("m").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TypeMismatch);
    assert!(error.to_string().contains("manager m has the types u64"), "{error}");
    assert!(engine.manager::<u64, u8>("m").is_err() && engine.manager::<u64, String>("m").is_ok());
    assert!(engine.manager_with::<u32, String>("m", ManagerOptions::new().schema(1)).is_ok());
    assert!(engine.manager::<u32, String>("n").is_ok());
}

#[test]
fn raw_shows_and_resolves_records_without_their_types() {
    let (engine, _) = engine();
    let manager: Manager<u64, u8> = engine.manager_with("m", ManagerOptions::new().schema(7)).unwrap();
    let raw = engine.raw("m").unwrap();
    claim(&manager, "won").succeed(&258).unwrap();
    claim(&manager, "lost").fail(&3).unwrap();
    assert_eq!(raw.get("won").unwrap().unwrap().into_outcome(), Some(Ok(manager.encode_outcome(Ok(&258)).unwrap())));
    assert_eq!(raw.get("lost").unwrap().unwrap().into_outcome(), Some(Err(manager.encode_outcome(Err(&3)).unwrap())));
    for key in ["a", "b", "c"] {
        drop(claim(&manager, key));
    }
    assert!(raw.get("a").unwrap().unwrap().outcome().is_none());
    raw.resolve("a", Resolution::Retry).unwrap();
    raw.resolve("b", Resolution::Succeed(manager.encode_outcome(Ok(&1)).unwrap())).unwrap();
    raw.resolve("c", Resolution::Fail(manager.encode_outcome(Err(&9)).unwrap())).unwrap();
    // The record keeps its schema, so its own manager can read it.
    assert_eq!(
        (status(&manager, "a"), outcome(&manager, "b"), outcome(&manager, "c")),
        (Some(Status::Released), Some(Ok(1)), Some(Err(9)))
    );
    assert_eq!(raw.resolve("b", Resolution::Retry).unwrap_err().kind(), ErrorKind::NotInterrupted);
    assert!(raw.extend("b", 2 * DAY).unwrap() && raw.forget("b").unwrap() && raw.remove("c").unwrap());
    assert_eq!((status(&manager, "b"), status(&manager, "c")), (None, None));
}

#[test]
fn import_copies_records_into_another_store() {
    let ((here, _), (there, clock)) = (engine(), engine());
    let (source, target) = (texts_with(&here, ManagerOptions::new().success_ttl(MINUTE)), resuming(&there));
    let begin = same("a").context(about("user", "ada"));
    claimed(source.begin_with("won", begin).unwrap()).succeed(&"v".repeat(9000)).unwrap();
    claim(&source, "lost").fail(&"e".to_owned()).unwrap();
    drop(claim(&source, "dropped"));
    claim(&source, "released").release().unwrap();
    let _live = claim(&source, "live");
    let keys = ["won", "lost", "dropped", "released", "live"];
    for key in keys {
        let record = here.raw("m").unwrap().get(key).unwrap().unwrap();
        assert!(there.raw("m").unwrap().import(&record).unwrap(), "{key}");
        assert!(!there.raw("m").unwrap().import(&record).unwrap(), "{key} is there already");
    }
    let won = claimed_replay(target.begin_with("won", same("a")).unwrap());
    assert_eq!((won.outcome(), won.info().context().text("user")), (Ok(&"v".repeat(9000)), Some("ada")));
    assert_eq!(answer(&target, "won"), "mismatch");
    assert_eq!(outcome(&target, "lost"), Some(Err("e".to_owned())));
    assert_eq!(status(&target, "released"), Some(Status::Released));
    for (key, interruption) in [("dropped", Interruption::Dropped), ("live", Interruption::ProcessEnded)] {
        let info = target.get(key).unwrap().unwrap().info().clone();
        assert_eq!((info.status(), info.interruption()), (Status::Interrupted, Some(interruption)), "{key}");
        // The policy is imported too: the record is still held.
        assert_eq!((info.policy(), answer(&target, key)), (OnInterrupted::Hold, "interrupted"), "{key}");
    }
    // The TTL starts again.
    clock.advance(just_before(MINUTE));
    assert!(status(&target, "won").is_some());
    clock.advance(MS);
    assert!(status(&target, "won").is_none());
}

fn claimed_replay<T, E>(begin: Begin<T, E>) -> oncekey::Finished<T, E> {
    let Begin::Replay(done) = begin else { panic!("expected a replay, got {}", arm(&begin)) };
    done
}

/// Effects keep their ids wherever the record is imported, because an attempt may repeat them.
#[test]
fn an_imported_record_keeps_its_effect_ids_under_any_manager_and_in_every_open() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let ((here, _), there) = (engine(), open(dir.path(), &clock));
    let source = resuming(&here);
    let first = claim(&source, "k");
    let (charge, mail) = (first.effect_id("charge"), first.effect_id("mail"));
    drop(first);
    let info = source.get("k").unwrap().unwrap().info().clone();
    assert_eq!((info.effect_id("charge"), info.effect_id("mail")), (charge.clone(), mail));
    // Import by the API, by the lines of an export, and from the second store again.
    let record = here.raw("m").unwrap().get("k").unwrap().unwrap();
    let line = serde_json::to_string(&record).unwrap();
    let read: Record<Value, Value> = serde_json::from_str(&line).unwrap();
    assert_eq!(read.info().effect_id("charge"), charge);
    assert!(there.raw("m").unwrap().import(&read).unwrap() && there.raw("other").unwrap().import(&record).unwrap());
    let again = there.raw("other").unwrap().get("k").unwrap().unwrap();
    assert!(there.raw("third").unwrap().import(&again).unwrap());
    there.close().unwrap();
    let there = open(dir.path(), &clock);
    for name in ["m", "other", "third"] {
        let resume = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
        let target: Manager<String, String> = there.manager_with(name, resume).unwrap();
        let second = claim(&target, "k");
        assert_eq!((second.attempt(), second.effect_id("charge")), (2, charge.clone()), "{name}");
        second.release().unwrap();
        // A record that starts here later has another effect id.
        assert!(target.remove("k").unwrap());
        assert_ne!(claim(&target, "k").effect_id("charge"), charge);
    }
}

#[test]
fn operations_in_a_restored_copy_have_other_tokens_and_effect_ids() {
    let dir = tempfile::tempdir().unwrap();
    let (live, backup) = (dir.path().join("live"), dir.path().join("backup"));
    let (store, clock) = (open_local(&live, &ManualClock::new()), ManualClock::new());
    let unfinished = claim(&resuming(&store), "unfinished").effect_id("charge");
    store.close().unwrap();
    copy(&live, &backup);
    let run = |path: &std::path::Path| {
        let engine = open_local(path, &clock);
        let manager = resuming(&engine);
        // An operation that began before the copy is the same operation in both stores.
        assert_eq!(manager.get("unfinished").unwrap().unwrap().info().effect_id("charge"), unfinished);
        let claim = claim(&manager, "k");
        let said = (claim.token(), claim.effect_id("charge"));
        claim.succeed(&"v".to_owned()).unwrap();
        drop(manager);
        engine.close().unwrap();
        said
    };
    let ((first, first_effect), (second, second_effect)) = (run(&live), run(&backup));
    assert!(first != second && first_effect != second_effect);
    // Tokens grow in each store.
    assert!(claim(&texts(&open_local(&live, &clock)), "later").token() > first);
}

#[test]
fn an_exported_record_has_its_earlier_attempts() {
    let (engine, clock) = engine();
    let manager = resuming(&engine);
    let at = |ms: u64| std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    for (ms, key) in [(1_000, "k"), (2_000, "k")] {
        clock.set_wall(at(ms));
        let claim = claim(&manager, key);
        clock.set_wall(at(ms + 500));
        if ms == 1_000 { drop(claim) } else { drop(claim.release().unwrap()) }
    }
    clock.set_wall(at(3_000));
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    let record = engine.raw("m").unwrap().get("k").unwrap().unwrap();
    let mut json = serde_json::to_value(&record).unwrap();
    assert_eq!(json["claimed_at_ms"], 3_000);
    let earlier = serde_json::json!([
        { "attempt": 1, "claimed_at_ms": 1_000, "updated_at_ms": 1_500, "interruption": "Dropped" },
        { "attempt": 2, "claimed_at_ms": 2_000, "updated_at_ms": 2_500, "interruption": null },
    ]);
    assert_eq!(json["earlier_attempts"], earlier);
    let read: Record<Value, Value> = serde_json::from_value(json.clone()).unwrap();
    let there = engine.raw("other").unwrap();
    assert!(there.import(&read).unwrap());
    let imported = there.get("k").unwrap().unwrap();
    assert_eq!(imported.info().claimed_at(), Some(at(3_000)));
    assert!(imported.info().earlier_attempts().eq(record.info().earlier_attempts()));

    let one = earlier[0].clone();
    json["earlier_attempts"] = vec![one; oncekey::RecordInfo::MAX_EARLIER_ATTEMPTS + 1].into();
    let error = serde_json::from_value::<Record<Value, Value>>(json).unwrap_err();
    assert!(error.to_string().contains("more than 16 earlier attempts"), "{error}");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn a_record_as_json_has_these_fields() {
    let (engine, clock) = engine();
    clock.set_wall(std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_123));
    let options = ManagerOptions::new().success_ttl(MINUTE).failure_ttl(oncekey::FOREVER).schema(7);
    let manager = texts_with(&engine, options);
    let begin = same("a").context(about("user", "ada").with("raw", vec![0xff]));
    let done = claimed(manager.begin_with("k", begin).unwrap()).succeed(&"v".to_owned()).unwrap();
    let info = serde_json::to_value(done.info()).unwrap();
    // Other in each store.
    let text = |field: &str| info[field].as_str().unwrap();
    let number = |field: &str| info[field].as_u64().unwrap();
    for field in ["store", "effect_seed"] {
        assert!(uuid::Uuid::parse_str(text(field)).is_ok(), "{info}");
    }
    assert_eq!(number("generation"), done.info().generation());
    assert_eq!(number("token"), done.info().generation(), "the first claim is made by the frame that began it");
    let expected = serde_json::json!({
        "version": 1, "store": text("store"), "effect_seed": text("effect_seed"),
        "manager": "m", "key": "k", "status": "Succeeded", "interruption": null, "policy": "Hold",
        "schema": 7, "attempt": 1, "interruptions": 0, "claimed_at_ms": 1_700_000_000_123_u64, "holds_progress": false,
        "generation": number("generation"), "revision": done.info().revision(), "token": number("token"),
        "created_at_ms": 1_700_000_000_123_u64, "updated_at_ms": 1_700_000_000_123_u64,
        "expires_at_ms": 1_700_000_060_123_u64,
        "success_ttl_ms": 60_000, "failure_ttl_ms": null, "released_ttl_ms": 86_400_000, "interrupted_ttl_ms": null,
        "fingerprint": oncekey::Fingerprint::of("a").unwrap().to_string(),
        "context": { "user": "ada", "raw": { "base64": "/w==" } },
        "recovery_point": "finished", "checkpoint": null,
        "outcome_bytes": done.info().outcome_bytes(), "outcome": null,
    });
    assert_eq!(info, expected);
    // A raw record has the outcome too, and is read back.
    let record = engine.raw("m").unwrap().get("k").unwrap().unwrap();
    let json = serde_json::to_string(&record).unwrap();
    let read: Record<Value, Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(read.outcome(), record.outcome());
    assert_eq!(serde_json::to_string(&read).unwrap(), json);
    assert_eq!(
        (read.info().to_string(), read.info().effect_id("e")),
        ("m k: Succeeded".to_owned(), record.info().effect_id("e"))
    );
}
