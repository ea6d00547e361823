//! Decisions by hand about a record that was read before: one that has changed since is refused.

use oncekey::admin::{LiveStore, Resolution};
use oncekey::http::{RequestPatch, Response};
use oncekey::{Error, ErrorKind, Interruption, Manager, ManagerOptions, RecordInfo, Status, stage::Next};

use crate::common::*;

fn seen<T: Stored, E: Stored>(manager: &Manager<T, E>, key: &str) -> RecordInfo {
    manager.get(key).unwrap().unwrap().info().clone()
}

#[test]
fn a_record_is_resolved_as_it_was_seen() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let raw = engine.raw("m").unwrap();
    for key in ["typed", "raw"] {
        drop(claim(&manager, key));
    }
    manager.resolve_if_unchanged(&seen(&manager, "typed"), Resolution::Succeed("v".to_owned())).unwrap();
    assert_eq!(outcome(&manager, "typed"), Some(Ok("v".to_owned())));
    raw.resolve_if_unchanged(&seen(&manager, "raw"), Resolution::Retry).unwrap();
    assert_eq!(status(&manager, "raw"), Some(Status::Released));
}

#[test]
fn a_change_since_the_record_was_read_is_not_overwritten() {
    let (engine, _) = engine();
    let manager = resuming(&engine);
    let raw = engine.raw("m").unwrap();
    let stale = |seen: &RecordInfo| {
        let typed = manager.resolve_if_unchanged(seen, Resolution::Fail("late".to_owned())).unwrap_err();
        let raw = raw.resolve_if_unchanged(seen, Resolution::Retry).unwrap_err();
        assert_eq!((typed.kind(), raw.kind()), (ErrorKind::Changed, ErrorKind::Changed), "{typed}");
        assert!(typed.to_string().contains("key k of m has changed since it was read"), "{typed}");
        manager.get("k").unwrap().unwrap().info().to_string()
    };
    drop(claim(&manager, "k"));
    let first = seen(&manager, "k");
    // Another attempt, which was interrupted too.
    drop(claim(&manager, "k"));
    assert_eq!(stale(&first), "m k: Interrupted (Dropped)");
    // One that runs, and one that has ended.
    let second = seen(&manager, "k");
    assert!(second.revision() > first.revision());
    let owner = claim(&manager, "k");
    assert_eq!(stale(&second), "m k: InProgress (Dropped)");
    owner.succeed(&"v".to_owned()).unwrap();
    assert_eq!(stale(&second), "m k: Succeeded");
    // Another generation of the key.
    manager.forget("k").unwrap();
    assert_eq!(manager.resolve_if_unchanged(&second, Resolution::Retry).unwrap_err().kind(), ErrorKind::NotFound);
    drop(claim(&manager, "k"));
    assert_eq!(stale(&second), "m k: Interrupted (Dropped)");
}

#[test]
fn a_patch_changes_a_record_too() {
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap();
    drop(claim(requests.manager(), "k"));
    let before = seen(requests.manager(), "k");
    requests.update("k", RequestPatch::new().recovery_point("paid")).unwrap();
    let late = requests.manager().resolve_if_unchanged(&before, Resolution::Retry).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Changed);
    let resolution = Resolution::Succeed(Response::new(http::StatusCode::CREATED));
    requests.manager().resolve_if_unchanged(&seen(requests.manager(), "k"), resolution).unwrap();
}

#[test]
fn an_owner_is_revoked_as_it_was_seen() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let mut owner = claim(&manager, "k");
    let hangs = seen(&manager, "k");
    owner.work_stage(|_tx| Ok::<_, Error>(Next::advance("paid"))).unwrap();
    // The owner has made progress since, so it does not hang.
    assert_eq!(manager.revoke_if_unchanged(&hangs).unwrap_err().kind(), ErrorKind::Changed);
    assert_eq!(engine.raw("m").unwrap().revoke_if_unchanged(&hangs).unwrap_err().kind(), ErrorKind::Changed);
    let revoked = manager.revoke_if_unchanged(&seen(&manager, "k")).unwrap();
    assert_eq!(revoked.interruption(), Some(Interruption::Revoked));
    assert_eq!(owner.succeed(&"late".to_owned()).unwrap_err().kind(), ErrorKind::ClaimLost);
    // A revocation returns the newest revision of the record.
    manager.resolve_if_unchanged(&revoked, Resolution::Retry).unwrap();
}

#[test]
fn a_record_of_another_manager_is_refused() {
    let (engine, _) = engine();
    let (manager, other) = (texts(&engine), engine.manager::<String, String>("other").unwrap());
    drop(claim(&manager, "k"));
    drop(claim(&other, "k"));
    let info = seen(&other, "k");
    let refused = [
        manager.resolve_if_unchanged(&info, Resolution::Retry).unwrap_err(),
        manager.revoke_if_unchanged(&info).unwrap_err(),
        engine.raw("m").unwrap().resolve_if_unchanged(&info, Resolution::Retry).unwrap_err(),
    ];
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::InvalidOptions), "{refused:?}");
    assert_eq!((status(&manager, "k"), status(&other, "k")), (Some(Status::Interrupted), Some(Status::Interrupted)));
}

#[test]
fn a_record_that_an_open_has_found_is_resolved_as_it_was_seen() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    let options = ManagerOptions::new().interrupted_ttl(DAY);
    let engine = open(dir.path(), &clock);
    std::mem::forget(claim(&texts_with(&engine, options.clone()), "k"));
    engine.crash();
    // The open stores when the record expires, which is a change.
    let engine = open(dir.path(), &clock);
    let manager = texts_with(&engine, options);
    for info in engine.interrupted().unwrap() {
        manager.resolve_if_unchanged(&info.unwrap(), Resolution::Retry).unwrap();
    }
    assert_eq!(status(&manager, "k"), Some(Status::Released));
}

#[test]
fn a_record_of_another_process_s_store_is_changed_as_it_was_seen() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), oncekey::clock::ManualClock::new());
    let engine = open_local(dir.path(), &clock);
    let manager = resuming(&engine);
    let store = LiveStore::connect(dir.path()).unwrap();
    let seen = || store.get("m", "k").unwrap().unwrap().info().clone();
    drop(claim(&manager, "k"));
    let first = seen();
    let owner = claim(&manager, "k");
    assert_eq!(store.resolve_if_unchanged(&first, Resolution::Retry).unwrap_err().kind(), ErrorKind::Changed);
    assert_eq!(store.revoke_if_unchanged(&first).unwrap_err().kind(), ErrorKind::Changed);
    let revoked = store.revoke_if_unchanged(&seen()).unwrap();
    store.resolve_if_unchanged(&revoked, Resolution::Retry).unwrap();
    assert_eq!(owner.release().unwrap_err().kind(), ErrorKind::ClaimLost);
    assert_eq!(status(&manager, "k"), Some(Status::Released));
}
