//! Tests of undoing a resolution: what is put back, and what ends the time in which that is possible.

use oncekey::{
    Begin, Engine, ErrorKind, Interruption, Manager, Status, Waited,
    admin::{RawManager, Resolution},
    clock::ManualClock,
    stage::Next,
};

use crate::common::*;
use crate::requests::ok;

/// A way to an outcome.
type Read = fn(&Engine, &Manager<String, String>);

fn held(engine: &Engine, key: &str) -> (Manager<String, String>, RawManager) {
    let manager = texts(engine);
    drop(claim(&manager, key));
    (manager, engine.raw("m").unwrap())
}

#[track_caller]
fn assert_given(raw: &RawManager, key: &str) {
    assert_eq!(raw.undo(key).unwrap_err().kind(), ErrorKind::NotResolved);
    assert!(!raw.get(key).unwrap().unwrap().info().is_undoable());
}

#[test]
fn an_undone_resolution_leaves_the_record_as_it_was() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let engine = open(dir.path(), &clock);
    let (manager, raw) = held(&engine, "plain");
    manager.resolve("plain", Resolution::Fail("no".to_owned())).unwrap();
    let resolved = raw.get("plain").unwrap().unwrap();
    assert_eq!((resolved.status(), resolved.info().interruption()), (Status::Failed, None));
    let mut staged = claim(&manager, "staged");
    staged.work_stage(|_| Ok::<_, oncekey::Error>(Next::advance_with("half", vec![1, 2]))).unwrap();
    staged.interrupt().unwrap();
    for resolution in [Resolution::Retry, Resolution::Succeed("done".to_owned())] {
        manager.resolve("staged", resolution).unwrap();
        raw.undo("staged").unwrap();
    }
    manager.resolve("staged", Resolution::Succeed("done".to_owned())).unwrap();
    let info = raw.get("staged").unwrap().unwrap().info().clone();
    assert_eq!((info.recovery_point(), info.checkpoint(), info.is_undoable()), ("finished", None, true));
    drop((manager, raw));
    engine.close().unwrap();

    // It can be undone by a later process too.
    let engine = open(dir.path(), &clock);
    let raw = engine.raw("m").unwrap();
    for key in ["plain", "staged"] {
        raw.undo(key).unwrap();
        assert_eq!(raw.undo(key).unwrap_err().kind(), ErrorKind::NotResolved, "{key}");
    }
    let info = |key: &str| raw.get(key).unwrap().unwrap().info().clone();
    let plain = info("plain");
    assert_eq!((plain.status(), plain.interruption()), (Status::Interrupted, Some(Interruption::Dropped)));
    let staged = info("staged");
    assert_eq!((staged.status(), staged.interruption()), (Status::Interrupted, Some(Interruption::Reported)));
    assert_eq!((staged.recovery_point(), staged.checkpoint()), ("half", Some(&[1, 2][..])));
    assert_eq!((staged.outcome_bytes(), engine.stats().interrupted), (0, 2));
}

#[test]
fn a_transaction_that_reads_the_outcome_ends_the_undo_even_if_it_fails() {
    let (engine, _) = engine();
    let requests = engine.requests("r").unwrap();
    drop(requests.manager().begin("k").unwrap());
    requests.manager().resolve("k", Resolution::Succeed(ok("done"))).unwrap();
    let failed = engine.atomic_phase(|tx| {
        let record = requests.with_transaction(tx).retrieve("k")?.unwrap();
        assert_eq!(record.outcome(), Some(Ok(&ok("done"))));
        Err::<(), _>(oncekey::stage::PhaseError::User("rolled back"))
    });
    assert!(failed.is_err());
    assert_given(&engine.raw("r").unwrap(), "k");
}

#[test]
fn every_way_to_the_outcome_ends_the_undo() {
    let (engine, _) = engine();
    let ways: [(&str, Read); 5] = [
        ("begin", |_, manager| assert_eq!(answer(manager, "begin"), "replay")),
        ("get", |_, manager| assert!(manager.get("get").unwrap().unwrap().outcome().is_some())),
        ("wait", |_, manager| {
            let waited = manager.wait("wait", SECOND).unwrap();
            assert!(matches!(waited, Waited::Finished(_)));
        }),
        ("execute", |_, manager| assert!(manager.execute("execute", |_| panic!("it is done")).unwrap().replayed())),
        ("many", |_, manager| {
            let answers = manager.execute_many([("many", ())], |_, ()| panic!("it is done"));
            assert!(answers.iter().all(|answer| answer.as_ref().unwrap().replayed()) && answers.len() == 1);
        }),
    ];
    for (key, read) in ways {
        let (manager, raw) = held(&engine, key);
        manager.resolve(key, Resolution::Succeed("done".to_owned())).unwrap();
        // Lists and an operator's look give nothing to a caller.
        assert!(engine.records(oncekey::admin::RecordFilter::new()).unwrap().all(|info| info.is_ok()));
        assert!(raw.get(key).unwrap().unwrap().info().is_undoable(), "{key}");
        read(&engine, &manager);
        assert_given(&raw, key);
        assert_eq!(outcome(&manager, key), Some(Ok("done".to_owned())), "{key}");
    }
}

#[test]
fn a_read_only_engine_shows_the_outcome_and_leaves_the_undo_possible() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_local(dir.path(), &ManualClock::new());
    let (manager, raw) = held(&engine, "k");
    manager.resolve("k", Resolution::Succeed("done".to_owned())).unwrap();
    drop((manager, raw));
    engine.close().unwrap();

    let reader = Engine::options().read_only(true).open(dir.path()).unwrap();
    let manager = texts(&reader);
    assert_eq!(manager.get("k").unwrap().unwrap().outcome(), Some(Ok(&"done".to_owned())));
    assert!(matches!(manager.wait("k", std::time::Duration::ZERO).unwrap(), Waited::Finished(_)));
    assert!(matches!(manager.begin("k").unwrap(), Begin::Replay(_)));
    drop(manager);
    reader.close().unwrap();

    let engine = open_local(dir.path(), &ManualClock::new());
    engine.raw("m").unwrap().undo("k").unwrap();
}

#[test]
fn a_begun_or_expired_record_is_not_put_back() {
    let (engine, clock) = engine();
    let (manager, raw) = held(&engine, "k");
    assert_eq!(raw.undo("absent").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(raw.undo("k").unwrap_err().kind(), ErrorKind::NotResolved);
    manager.resolve("k", Resolution::Retry).unwrap();
    let again = claim(&manager, "k");
    assert_eq!(raw.undo("k").unwrap_err().kind(), ErrorKind::NotResolved);
    again.release().unwrap();
    assert_given(&raw, "k");
    let (manager, raw) = held(&engine, "old");
    manager.resolve("old", Resolution::Succeed("done".to_owned())).unwrap();
    clock.advance(2 * DAY);
    assert_eq!(raw.undo("old").unwrap_err().kind(), ErrorKind::NotFound);
}

/// Two operators look at the same record, and each corrects the other unseen.
#[test]
fn an_undo_of_a_state_that_was_not_seen_is_refused() {
    let (engine, _) = engine();
    let (manager, raw) = held(&engine, "k");
    let outcome = |text: &str| manager.encode_outcome(Ok(&text.to_owned())).unwrap();
    raw.resolve("k", Resolution::Succeed(outcome("first"))).unwrap();
    let seen = raw.get("k").unwrap().unwrap();
    // The other operator undoes it, and resolves it otherwise.
    raw.undo_if_unchanged(raw.get("k").unwrap().unwrap().info()).unwrap();
    assert_eq!(raw.undo_if_unchanged(seen.info()).unwrap_err().kind(), ErrorKind::Changed);
    raw.resolve("k", Resolution::Succeed(outcome("second"))).unwrap();
    assert_eq!(raw.undo_if_unchanged(seen.info()).unwrap_err().kind(), ErrorKind::Changed);
    let now = raw.get("k").unwrap().unwrap();
    assert!(now.info().is_undoable() && now.outcome() == Some(Ok(&outcome("second"))));
    raw.undo_if_unchanged(now.info()).unwrap();
    let other = engine.manager::<String, String>("other").unwrap();
    drop(claim(&other, "k"));
    let foreign = engine.raw("other").unwrap().get("k").unwrap().unwrap();
    assert_eq!(raw.undo_if_unchanged(foreign.info()).unwrap_err().kind(), ErrorKind::InvalidOptions);
    assert_eq!(manager.get("k").unwrap().unwrap().info().status(), Status::Interrupted);
}

#[test]
fn a_caller_and_an_undo_at_once_agree() {
    let (engine, _) = engine();
    for round in 0..200 {
        let key = format!("k{round}");
        let (manager, raw) = held(&engine, &key);
        manager.resolve(&key, Resolution::Succeed("done".to_owned())).unwrap();
        let (replayed, undone) = std::thread::scope(|scope| {
            let caller = scope.spawn(|| answer(&manager, &key) == "replay");
            let undone = raw.undo(&key).is_ok();
            (caller.join().unwrap(), undone)
        });
        assert_ne!(replayed, undone, "round {round}");
        let expected = if undone { Status::Interrupted } else { Status::Succeeded };
        assert_eq!(status(&manager, &key), Some(expected), "round {round}");
    }
}
