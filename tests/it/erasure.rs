//! Tests of the erasure of one user's data.

use std::thread;

use oncekey::{Engine, ErrorKind, Key, Manager, OnInterrupted, Status, stage::Next};

use crate::common::*;
use crate::threads::{LATE, within};

fn keys(engine: &Engine) -> Vec<String> {
    let all = engine.records(oncekey::admin::RecordFilter::new()).unwrap();
    all.map(|info| info.unwrap().key().to_string()).collect()
}

#[test]
fn erase_removes_the_whole_scope_and_nothing_else() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let (ada, adam) = (manager.scoped("ada").unwrap(), manager.scoped("adam").unwrap());
    let inner = ada.scoped("phone").unwrap();
    for handle in [&manager, &ada, &adam, &inner] {
        claim(handle, "won").succeed(&"v".to_owned()).unwrap();
        claim(handle, "lost").fail(&"e".to_owned()).unwrap();
        claim(handle, "released").release().unwrap();
        drop(claim(handle, "held"));
    }
    let other: Manager<u64> = engine.manager_with("other", oncekey::ManagerOptions::new()).unwrap();
    claim(&other.scoped("ada").unwrap(), "won").succeed(&1).unwrap();
    // A key made of the same parts as the scope is not in the scope.
    let alone = Key::from_parts(["ada"]).unwrap();
    claimed(manager.begin(&alone).unwrap()).succeed(&"v".to_owned()).unwrap();

    let before = engine.stats();
    let erased = ada.erase().unwrap();
    assert_eq!((erased.removed, erased.in_progress), (8, 0));
    assert_eq!(engine.stats().commits - before.commits, 1);
    assert_eq!(before.interrupted - engine.stats().interrupted, 2);
    let mut left = keys(&engine);
    left.sort();
    let expected = [
        "/ada",
        "/ada/won",
        "/adam/held",
        "/adam/lost",
        "/adam/released",
        "/adam/won",
        "held",
        "lost",
        "released",
        "won",
    ];
    assert_eq!(left, expected);
    // The erasure is durable, and the operation runs again.
    assert_eq!(answer(&ada, "won"), "claimed");
    assert_eq!(ada.erase().unwrap().removed, 1);
    assert_eq!(ada.erase().unwrap(), oncekey::admin::Erased::default());
    // Only a manager with a scope can be erased.
    assert_eq!(manager.erase().unwrap_err().kind(), ErrorKind::InvalidOptions);
}

#[test]
fn erased_records_stay_erased_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let ada = texts(&engine).scoped("ada").unwrap();
    claim(&ada, "k").succeed(&"v".to_owned()).unwrap();
    engine.table("rows").unwrap().insert("ada/1", "x").unwrap();
    assert_eq!(ada.erase().unwrap().removed, 1);
    assert_eq!(engine.table("rows").unwrap().remove_prefix("ada/").unwrap(), 1);
    engine.crash();
    let engine = Engine::open(dir.path()).unwrap();
    assert!(keys(&engine).is_empty() && engine.table("rows").unwrap().is_empty().unwrap());
    assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new());
}

#[test]
fn live_owners_are_counted_and_keep_their_records() {
    let (engine, _) = engine();
    let ada = texts(&engine).scoped("ada").unwrap();
    let owner = claim(&ada, "claimed");
    assert!(ada.initiate("by key").unwrap().is_some());
    claim(&ada, "done").succeed(&"v".to_owned()).unwrap();
    let mut staged = claim(&ada, "staged");
    staged.work_stage(|_| Ok::<_, oncekey::Error>(Next::advance_with("half", b"secret".to_vec()))).unwrap();
    let erased = ada.erase().unwrap();
    assert_eq!((erased.removed, erased.in_progress), (1, 3));
    owner.succeed(&"v".to_owned()).unwrap();
    drop(staged);
    ada.revoke("by key").unwrap();
    assert_eq!(ada.erase().unwrap().removed, 3);
    assert!(keys(&engine).is_empty());
}

#[test]
fn many_records_and_rows_are_erased_in_steps() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let (ada, bob) = (manager.scoped("ada").unwrap(), manager.scoped("bob").unwrap());
    for user in [&ada, &bob] {
        assert_eq!(user.execute_many((0..600).map(|n| (format!("{n}"), ())), |_, ()| Ok("v".into())).len(), 600);
    }
    let rows = engine.table("rows").unwrap();
    for user in ["ada", "bob"] {
        let fill = |tx: &oncekey::Transaction| {
            let rows = tx.table("rows")?;
            (0..300).try_for_each(|n| rows.insert(format!("{user}/{n}"), "x"))
        };
        engine.atomic_phase::<_, oncekey::Error>(fill).unwrap();
    }
    let before = engine.stats().commits;
    assert_eq!(ada.erase().unwrap().removed, 600);
    assert_eq!(rows.remove_prefix("ada/").unwrap(), 300);
    assert_eq!(engine.stats().commits - before, 3 + 2);
    assert_eq!(keys(&engine).len(), 600);
    assert_eq!((rows.len().unwrap(), rows.remove_prefix("ada").unwrap()), (300, 0));
    assert_eq!(rows.remove_prefix("").unwrap(), 300);
}

#[test]
fn an_erased_key_starts_a_new_generation() {
    within(LATE, || {
        let (engine, _) = engine();
        let holding = oncekey::ManagerOptions::new().on_interrupted(OnInterrupted::Hold);
        let ada = texts_with(&engine, holding).scoped("ada").unwrap();
        drop(claim(&ada, "k"));
        assert_eq!(status(&ada, "k"), Some(Status::Interrupted));
        assert_eq!(ada.erase().unwrap().removed, 1);
        assert_eq!(claim(&ada, "k").attempt(), 1);
    });
}

#[test]
fn an_erasure_during_the_user_s_own_calls_ends() {
    within(LATE, || {
        let (engine, _) = engine();
        let ada = texts(&engine).scoped("ada").unwrap();
        thread::scope(|scope| {
            let ada = &ada;
            for me in 0..4 {
                scope.spawn(move || {
                    for n in 0..200 {
                        drop(ada.execute(((n * 7 + me) % 40).to_string(), |_| Ok("v".into())));
                    }
                });
            }
            for _ in 0..10 {
                let _ = ada.erase().unwrap();
            }
        });
        let _ = ada.erase().unwrap();
        assert!(keys(&engine).is_empty());
        assert_eq!(engine.stats().in_progress, 0);
    });
}

#[test]
fn erase_is_rejected_inside_a_transaction_and_after_a_close() {
    let (engine, _) = engine();
    let (ada, rows) = (texts(&engine).scoped("ada").unwrap(), engine.table("rows").unwrap());
    let asked = || (ada.erase().map(|_| ()).unwrap_err().kind(), rows.remove_prefix("").unwrap_err().kind());
    let inside = engine.atomic_phase(|_| Ok::<_, oncekey::Error>(asked())).unwrap();
    assert_eq!(inside, (ErrorKind::InsideTransaction, ErrorKind::InsideTransaction));
    engine.close().unwrap();
    assert_eq!(asked(), (ErrorKind::Closed, ErrorKind::Closed));
}
