//! Tests of nested phases, and of phases with options.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use oncekey::{
    Engine, Error, ErrorKind, Status, Transaction,
    stage::{Next, PhaseError},
    table::{Isolation, PhaseOptions},
};

use crate::common::*;

fn put(tx: &Transaction, key: &str) -> oncekey::Result<()> {
    tx.table("t")?.insert(key, "x")
}

fn keys(engine: &Engine) -> Vec<String> {
    let rows = engine.table("t").unwrap().iter().unwrap();
    rows.map(|row| String::from_utf8(row.unwrap().0.to_vec()).unwrap()).collect()
}

/// A function with a phase, which may be called inside another phase.
fn phase(engine: &Engine, key: &str) -> oncekey::Result<()> {
    engine.atomic_phase(|tx| put(tx, key))
}

// Nested phases were once rejected. Then such a function could not be called by another one.
#[test]
fn a_nested_phase_is_a_part_of_the_outer_one() {
    let (engine, _) = engine();
    engine
        .atomic_phase(|tx| {
            put(tx, "outer")?;
            phase(&engine, "inner")?;
            engine.atomic_phase(|inner| {
                assert!(inner.table("t")?.contains("outer")?, "it sees what was written before");
                phase(&engine, "innermost")
            })?;
            assert_eq!(tx.table("t")?.len()?, 3);
            let elsewhere = || engine.table("t").unwrap().len();
            assert_eq!(
                std::thread::scope(|scope| scope.spawn(elsewhere).join().unwrap())?,
                0,
                "committed with the rest"
            );
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(keys(&engine), ["inner", "innermost", "outer"]);
    let commits = engine.stats().commits;
    let rolled_back: Result<(), _> = engine.atomic_phase(|_tx| {
        phase(&engine, "no")?;
        Err(PhaseError::User("no"))
    });
    assert!(rolled_back.is_err());
    assert_eq!((keys(&engine).len(), engine.stats().commits), (3, commits));
}

#[test]
fn a_nested_phase_that_fails_or_panics_writes_nothing() {
    let (engine, _) = engine();
    engine
        .atomic_phase(|tx| {
            put(tx, "before")?;
            let failed: Result<(), _> = engine.atomic_phase(|inner| {
                put(inner, "failed")?;
                inner.table("t")?.remove("before")?;
                Err(PhaseError::User("no"))
            });
            assert!(matches!(failed, Err(PhaseError::User("no"))));
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                engine.atomic_phase::<(), Error>(|inner| {
                    put(inner, "panicked")?;
                    panic!("on purpose")
                })
            }));
            assert!(panicked.is_err());
            assert_eq!(tx.table("t")?.len()?, 1);
            put(tx, "behind")
        })
        .unwrap();
    assert_eq!(keys(&engine), ["before", "behind"]);
}

#[test]
fn a_conflict_in_a_nested_phase_runs_the_outer_one_again() {
    let (engine, _) = local_engine();
    let (outer, inner) = (Cell::new(0), Cell::new(0));
    engine
        .atomic_phase(|tx| {
            outer.set(outer.get() + 1);
            put(tx, "outer")?;
            engine.atomic_phase(|part| {
                inner.set(inner.get() + 1);
                part.table("t")?.get("hot")?;
                if inner.get() == 1 {
                    std::thread::scope(|scope| scope.spawn(|| phase(&engine, "hot")).join().unwrap())?;
                }
                part.table("t")?.get("other")?;
                put(part, "inner")
            })
        })
        .unwrap();
    assert_eq!((outer.get(), inner.get()), (2, 2));
    assert_eq!(keys(&engine), ["hot", "inner", "outer"]);
}

#[test]
fn a_phase_inside_a_stage_is_a_part_of_the_stage_and_one_of_another_engine_is_not() {
    let (engine, _) = engine();
    let other = Engine::options().temporary_store().unwrap();
    let manager = texts(&engine);
    let mut held = claim(&manager, "k");
    let refused = held.work_stage(|_tx| {
        phase(&engine, "rolled back")?;
        phase(&other, "its own")?;
        Err(PhaseError::User("no"))
    });
    assert!(matches!(refused, Err(PhaseError::User("no"))));
    assert_eq!((keys(&engine).len(), keys(&other)), (0, vec!["its own".to_owned()]));
    held.work_stage(|_tx| {
        phase(&engine, "row")?;
        Ok::<_, Error>(Next::Succeed("done".to_owned()))
    })
    .unwrap();
    assert_eq!((keys(&engine), status(&manager, "k")), (vec!["row".to_owned()], Some(Status::Succeeded)));
    // A stage commits its own claim's record, so it cannot be a part of another phase.
    let mut held = claim(&manager, "l");
    let work = RefCell::new(&mut held);
    let refused = engine.atomic_phase(|_tx| work.borrow_mut().work_stage(|_tx| Ok::<_, Error>(Next::Stay)));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InsideTransaction);
}

#[test]
fn an_error_that_the_options_retry_runs_the_closure_again() {
    let (engine, _) = engine();
    let runs = Cell::new(0);
    let options = PhaseOptions::new().should_retry(|error| matches!(error, PhaseError::User("busy")));
    let ended = engine.atomic_phase_with(&options, |tx| {
        runs.set(runs.get() + 1);
        put(tx, &format!("run-{}", runs.get()))?;
        if runs.get() < 3 { Err(PhaseError::User("busy")) } else { Ok(runs.get()) }
    });
    assert_eq!((ended.unwrap(), keys(&engine)), (3, vec!["run-3".to_owned()]));
    runs.set(0);
    let ended: Result<(), _> = engine.atomic_phase_with(&options, |_tx| {
        runs.set(runs.get() + 1);
        Err(PhaseError::User("busy"))
    });
    assert!(matches!(ended, Err(PhaseError::User("busy"))), "its own error in the end");
    assert_eq!(runs.get(), Transaction::MAX_RUNS);
    // For a nested phase, the outer one's options decide.
    runs.set(0);
    let ended = engine.atomic_phase(|_tx| {
        engine.atomic_phase_with(&options, |_tx| {
            runs.set(runs.get() + 1);
            Err::<(), _>(PhaseError::User("busy"))
        })
    });
    assert!(ended.is_err() && runs.get() == 1);
}

#[test]
fn the_error_handler_runs_once_after_the_rollback() {
    let (engine, _) = engine();
    let told = RefCell::new(Vec::new());
    let options = || {
        PhaseOptions::new().isolation(Isolation::ReadCommitted).on_error(|error: &PhaseError<&str>| {
            told.borrow_mut().push(error.to_string());
            // The handler runs outside the transaction, so its own changes stay.
            engine.table("log").unwrap().insert(error.to_string(), "x").unwrap();
        })
    };
    engine.atomic_phase_with(&options(), |tx| Ok(put(tx, "a")?)).unwrap();
    assert!(told.borrow().is_empty());
    let failed: Result<(), _> = engine.atomic_phase_with(&options(), |tx| {
        put(tx, "b")?;
        Err(PhaseError::User("no"))
    });
    assert!(matches!(failed, Err(PhaseError::User("no"))));
    let refused = engine.atomic_phase_with(&options(), |tx| Ok(tx.table("No").map(drop)?));
    assert!(matches!(refused, Err(PhaseError::Engine(_))));
    assert_eq!(told.borrow().len(), 2);
    assert_eq!((keys(&engine), engine.table("log").unwrap().len().unwrap()), (vec!["a".to_owned()], 2));
}
