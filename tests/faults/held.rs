//! What a transaction has read is not durable yet: whatever it answers, nobody is told before it is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use oncekey::{Engine, PhaseError, Transaction};

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
fn a_phase_answers_only_when_what_it_has_read_is_durable() {
    for (what, phase) in PHASES {
        within(LATE, move || {
            let dir = tempfile::tempdir().unwrap();
            let engine = Engine::open(dir.path()).unwrap();
            let table = engine.table("t").unwrap();
            // Whatever the open leaves to be done is done.
            engine.sync().unwrap();
            let path = dir.path().join("store/journal").to_string_lossy().into_owned();
            // All of them: a segment may be prepared just now.
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
                assert!(!early, "a phase that {what} told of what a power cut could undo");
            });
            assert!(answered.into_inner());
        });
    }
}
