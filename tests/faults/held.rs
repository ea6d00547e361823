//! Tests that a transaction returns no answer that depends on data that is not durable yet.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use oncekey::{Engine, Transaction, stage::PhaseError};

use crate::inject::{Call, Effect, Rule};
use crate::threads::{LATE, until, within};

type Phase = fn(&Transaction) -> Result<(), PhaseError<&'static str>>;

const PHASES: [(&str, Phase); 4] = [
    ("reads", |tx| {
        assert!(tx.table("t")?.contains("new")?, "it is committed already");
        Ok(())
    }),
    ("writes", |tx| {
        assert!(tx.table("t")?.contains("new")?);
        Ok(tx.table("t")?.insert("other", "x")?)
    }),
    ("refuses", |tx| {
        assert!(tx.table("t")?.contains("new")?);
        Err(PhaseError::User("it is there"))
    }),
    ("panics", |tx| {
        assert!(tx.table("t")?.contains("new")?);
        panic!("it is there")
    }),
];

#[test]
fn a_phase_returns_only_after_its_reads_are_durable() {
    for (what, phase) in PHASES {
        within(LATE, move || {
            let dir = tempfile::tempdir().unwrap();
            let engine = Engine::open(dir.path()).unwrap();
            let table = engine.table("t").unwrap();
            // Finish all background work of the open.
            engine.sync().unwrap();
            let path = dir.path().join("store/journal").to_string_lossy().into_owned();
            // Hang all syncs, because a segment may be in preparation.
            let held = Rule { path, call: Call::Sync, nth: 1, times: u64::MAX, effect: Effect::Hang }.inject();
            let (waits, answered) = (engine.stats().sync_waits, AtomicBool::new(false));
            let waiting = |count| engine.stats().sync_waits >= waits + count;
            std::thread::scope(|scope| {
                scope.spawn(|| table.insert("new", "x").unwrap());
                until("its writer waits", || waiting(1));
                scope.spawn(|| {
                    let _ = catch_unwind(AssertUnwindSafe(|| engine.atomic_phase(phase)));
                    answered.store(true, Ordering::SeqCst);
                });
                until("it waits too, or has answered", || waiting(2) || answered.load(Ordering::SeqCst));
                let early = answered.load(Ordering::SeqCst);
                held.release();
                assert!(!early, "a phase that {what} returned before its reads were durable");
            });
            assert!(answered.into_inner());
        });
    }
}
