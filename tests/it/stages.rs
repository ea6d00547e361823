//! Tests of work stages: record and tables are committed together, fenced, and driven to their end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use oncekey::{
    CallOptions, Claim, Error, ErrorKind, ExecuteError, Interruption, Manager, ManagerOptions, OnInterrupted,
    RecordInfo, Status,
    clock::ManualClock,
    stage::{DriveError, FINISHED, Next, PhaseError, STARTED, Stages},
};

use crate::common::*;

type Done = Result<(), Error>;

type Fault = fn(&mut Claim<String, String>) -> Done;

fn advance(claim: &mut Claim<String, String>, point: &str) -> Done {
    claim.work_stage(|_| Ok(Next::advance(point)))
}

#[test]
fn a_stage_commits_record_and_tables_together_and_both_survive_a_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let engine = open(dir.path(), &clock);
    let mut first = claim(&resuming(&engine), "k");
    assert_eq!((first.recovery_point(), first.checkpoint()), (STARTED, None));
    let effect = first.effect_id("charge");
    first
        .work_stage(|tx| {
            tx.table("stock")?.insert("apple", "2")?;
            Next::advance_encoded("reserved", &(7_u32, "seven".to_owned()))
        })
        .unwrap();
    assert_eq!(first.recovery_point(), "reserved");
    assert_eq!(first.decode_checkpoint().unwrap(), Some((7_u32, "seven".to_owned())));
    // Stands for the death of the process.
    std::mem::forget(first);
    engine.crash();

    let engine = open(dir.path(), &clock);
    let mut second = claim(&resuming(&engine), "k");
    assert_eq!((second.attempt(), second.interruption()), (2, Some(Interruption::ProcessEnded)));
    assert_eq!((second.recovery_point(), second.effect_id("charge")), ("reserved", effect));
    assert_eq!(second.decode_checkpoint().unwrap(), Some((7_u32, "seven".to_owned())));
    assert_eq!(engine.table("stock").unwrap().get("apple").unwrap().as_deref(), Some(&b"2"[..]));
    second
        .work_stage(|tx| {
            assert!(tx.table("stock")?.contains("apple")?);
            tx.table("stock")?.remove("apple")?;
            Ok::<_, Error>(Next::Succeed("done".to_owned()))
        })
        .unwrap();
    assert_eq!(second.recovery_point(), FINISHED);
    let finished = second.into_finished().unwrap();
    assert_eq!(finished.info().checkpoint(), None);
    assert_eq!(finished.into_outcome().unwrap(), "done");
    assert_eq!(outcome(&resuming(&engine), "k"), Some(Ok("done".to_owned())));
    assert!(engine.table("stock").unwrap().is_empty().unwrap());
}

#[test]
fn a_stage_that_returns_stay_changes_tables_only() {
    let (engine, clock) = engine();
    let mut claim = claim(&texts(&engine), "k");
    claim.work_stage(|_| Ok::<_, Error>(Next::advance_with("a", "kept"))).unwrap();
    clock.advance(SECOND);
    claim.work_stage(|tx| tx.table("t")?.insert("row", "x").map(|()| Next::Stay)).unwrap();
    claim.work_stage(|_| Ok::<_, Error>(Next::Stay)).unwrap();
    assert_eq!((claim.recovery_point(), claim.checkpoint()), ("a", Some(&b"kept"[..])));
    assert!(engine.table("t").unwrap().contains("row").unwrap());
    advance(&mut claim, "b").unwrap();
    assert_eq!(claim.checkpoint(), None, "what an earlier stage left is gone");
    claim.release().unwrap();
}

#[test]
fn an_error_and_a_panic_roll_back_record_and_tables() {
    let (engine, _) = engine();
    let mut claim = claim(&texts(&engine), "k");
    let refused = claim.work_stage(|tx| {
        tx.table("t")?.insert("row", "x")?;
        Err(PhaseError::User("no"))
    });
    assert!(matches!(refused, Err(PhaseError::User("no"))));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        claim.work_stage::<Error>(|tx| {
            tx.table("t")?.insert("row", "x")?;
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!((claim.recovery_point(), status(&texts(&engine), "k")), (STARTED, Some(Status::InProgress)));
    assert!(engine.table("t").unwrap().is_empty().unwrap());
    advance(&mut claim, "on").unwrap();
    claim.succeed(&"ended by hand".to_owned()).unwrap();
}

#[test]
fn values_that_cannot_be_stored_are_rejected_and_nothing_changes() {
    let (engine, _) = engine();
    let mut held = claim(&texts(&engine), "k");
    let mut refused = |next: &dyn Fn() -> Next<String, String>| {
        let error = held.work_stage(|tx| tx.table("t")?.insert("row", "x").map(|()| next())).unwrap_err();
        assert_eq!(held.recovery_point(), STARTED);
        error.kind()
    };
    assert_eq!(refused(&|| Next::advance("")), ErrorKind::InvalidName);
    assert_eq!(refused(&|| Next::advance(FINISHED)), ErrorKind::InvalidName);
    assert_eq!(
        refused(&|| Next::advance("x".repeat(RecordInfo::MAX_RECOVERY_POINT_BYTES + 1))),
        ErrorKind::InvalidName
    );
    assert_eq!(refused(&|| Next::advance_with("a", vec![0; (1 << 20) + 1])), ErrorKind::TooLarge);
    assert_eq!(refused(&|| Next::Succeed("x".repeat(1 << 20))), ErrorKind::TooLarge);
    assert_eq!(refused(&|| Next::Fail("x".repeat(1 << 20))), ErrorKind::TooLarge);
    assert!(engine.table("t").unwrap().is_empty().unwrap());
    advance(&mut held, &"x".repeat(RecordInfo::MAX_RECOVERY_POINT_BYTES)).unwrap();
    held.release().unwrap();

    let holed: Manager<Holed> = engine.manager("holed").unwrap();
    let mut held = claim(&holed, "k");
    let codec = held.work_stage(|_| Ok::<_, Error>(Next::Succeed(Holed { note: None, cents: 1 }))).unwrap_err();
    assert_eq!(codec.kind(), ErrorKind::Codec);
    assert_eq!(status(&holed, "k"), Some(Status::InProgress));
}

#[test]
fn a_checkpoint_that_could_not_be_read_back_is_rejected() {
    let (engine, _) = engine();
    let mut held = claim(&texts(&engine), "k");
    let refused = held.work_stage(|tx| {
        tx.table("t")?.insert("row", "x")?;
        Next::advance_encoded("charged", &Holed { note: None, cents: 1 })
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Codec);
    let another = held.work_stage(|_| Next::advance_encoded("charged", &Ambiguous::Signed(1)));
    assert_eq!(another.unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!((held.recovery_point(), held.checkpoint()), (STARTED, None));
    assert!(engine.table("t").unwrap().is_empty().unwrap());
    held.work_stage(|_| Next::advance_encoded("charged", &Holed { note: Some("n".to_owned()), cents: 1 })).unwrap();
    assert_eq!(held.decode_checkpoint::<Holed>().unwrap().unwrap().cents, 1);
    held.release().unwrap();
}

#[test]
fn a_stage_on_an_ended_claim_returns_claim_lost_and_writes_nothing() {
    let (engine, _) = engine();
    let mut claim = claim(&texts(&engine), "k");
    claim.work_stage(|_| Ok::<_, Error>(Next::Fail("for good".to_owned()))).unwrap();
    let runs = AtomicU32::new(0);
    let lost = claim.work_stage(|tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.table("t")?.insert("row", "x").map(|()| Next::Stay)
    });
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::ClaimLost);
    assert_eq!(runs.into_inner(), 0, "the closure is not even run");
    assert!(engine.table("t").unwrap().is_empty().unwrap());
    drop(claim);
    assert_eq!(outcome(&texts(&engine), "k"), Some(Err("for good".to_owned())), "the drop does nothing");
}

#[test]
fn into_finished_before_the_end_returns_the_claim() {
    let (engine, _) = engine();
    let claim = claim(&texts(&engine), "k");
    let refused = claim.into_finished().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stalled);
    refused.claim.succeed(&"x".to_owned()).unwrap();
}

#[test]
fn execute_returns_the_outcome_that_a_stage_stored() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    for (key, answer) in [("ok", Ok("other".to_owned())), ("error", Err("other".to_owned()))] {
        let executed = manager.execute(key, |claim| {
            claim.work_stage(|_| Ok::<_, Error>(Next::Succeed("stored".to_owned()))).unwrap();
            answer.clone()
        });
        let executed = executed.unwrap();
        assert_eq!((executed.value().as_str(), executed.replayed()), ("stored", false));
        assert!(manager.execute(key, |_| unreachable!()).unwrap().replayed());
    }
    let failed = manager.execute("failed", |claim| {
        claim.work_stage(|_| Ok::<_, Error>(Next::Fail("stored".to_owned()))).unwrap();
        Ok("other".to_owned())
    });
    assert!(matches!(failed, Err(ExecuteError::Failed { error, replayed: false, .. }) if error == "stored"));
}

#[test]
fn an_engine_error_in_a_stage_is_never_stored_as_a_failure() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let faults: [(&str, Fault); 3] = [
        ("insert", |claim| claim.work_stage(|tx| tx.table("t")?.insert("", "x").map(|()| Next::Stay))),
        ("name", |claim| claim.work_stage(|tx| tx.table("No").map(|_| Next::Stay))),
        ("outcome", |claim| claim.work_stage(|_| Ok(Next::Succeed("x".repeat(2 << 20))))),
    ];
    for (key, fault) in faults {
        let failed =
            manager.execute(key, |claim| fault(claim).map_err(|error| error.to_string()).map(|()| String::new()));
        assert!(matches!(failed, Err(ExecuteError::Failed { .. })));
        assert_eq!(status(&manager, key), Some(Status::Interrupted), "{key}");
    }
}

fn resume() -> CallOptions {
    CallOptions::new().on_interrupted(OnInterrupted::Resume)
}

#[test]
fn drive_continues_at_the_recovery_point() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let (first, second) = (AtomicU32::new(0), AtomicU32::new(0));
    let broken = AtomicBool::new(true);
    let stages = Stages::new()
        .stage(STARTED, |claim| {
            first.fetch_add(1, Ordering::Relaxed);
            claim
                .work_stage(|tx| tx.table("t")?.insert("first", "x").map(|()| Next::advance_with("second", "ch_1")))?;
            Ok(())
        })
        .stage("second", |claim| {
            second.fetch_add(1, Ordering::Relaxed);
            if broken.load(Ordering::Relaxed) {
                return Err(PhaseError::User("the provider is down"));
            }
            let charge = String::from_utf8(claim.checkpoint().unwrap().to_vec()).unwrap();
            claim.work_stage(|_| Ok(Next::Succeed(charge.clone())))
        });
    let failed = manager.drive("k", resume(), &stages);
    assert!(
        matches!(failed, Err(DriveError::Stage { error: PhaseError::User("the provider is down"), .. })),
        "{failed:?}"
    );
    let record = manager.get("k").unwrap().unwrap();
    assert_eq!((record.status(), record.info().recovery_point()), (Status::Interrupted, "second"));
    broken.store(false, Ordering::Relaxed);
    let done = manager.drive("k", resume(), &stages).unwrap();
    assert_eq!((done.value().as_str(), done.replayed()), ("ch_1", false));
    assert!(manager.drive("k", resume(), &stages).unwrap().replayed());
    assert_eq!((first.load(Ordering::Relaxed), second.load(Ordering::Relaxed)), (1, 2));
}

#[test]
fn an_unknown_recovery_point_is_an_error() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let stages: Stages<'_, String, String> = Stages::new().stage(STARTED, |claim| advance(claim, "nowhere"));
    for _ in 0..2 {
        let Err(DriveError::Stage { error, .. }) = manager.drive("k", resume(), &stages) else {
            panic!("no stage for it")
        };
        assert_eq!(error.kind(), ErrorKind::UnknownRecoveryPoint);
        assert_eq!(error.to_string(), "key k is at the recovery point \"nowhere\": there is no stage for it");
        assert_eq!(status(&manager, "k"), Some(Status::Released));
    }
}

#[test]
fn a_stage_is_stalled_only_if_neither_point_nor_checkpoint_changes() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let runs = AtomicU32::new(0);
    let idle: [(&str, Fault); 5] = [
        ("stays", |claim| claim.work_stage(|_| Ok(Next::Stay))),
        ("writes rows only", |claim| claim.work_stage(|tx| tx.table("t")?.insert("row", "x").map(|()| Next::Stay))),
        ("never calls work_stage", |_| Ok(())),
        ("names its own point", |claim| advance(claim, STARTED)),
        ("names it twice", |claim| advance(claim, STARTED).and_then(|()| advance(claim, STARTED))),
    ];
    for (how, run) in idle {
        let stalled: Stages<'_, String, String> = Stages::new().stage(STARTED, |claim| {
            // The drive must end before this limit. The limit ends a drive that does not.
            if runs.fetch_add(1, Ordering::Relaxed) > 100 {
                claim.work_stage(|_| Ok(Next::Fail(how.into())))
            } else {
                run(claim)
            }
        });
        let Err(DriveError::Stage { error, .. }) = manager.drive("k", resume(), &stalled) else { panic!("{how}") };
        assert_eq!(error.kind(), ErrorKind::Stalled, "{how}");
        // A committed stage may have had effects.
        let expected = if how == "never calls work_stage" { Status::Released } else { Status::Interrupted };
        assert_eq!(status(&manager, "k"), Some(expected), "{how}");
    }
    assert_eq!(runs.into_inner(), 5, "each once");
    // The same checkpoint again is no progress either.
    let kept: Stages<'_, String, String> =
        Stages::new().stage(STARTED, |claim| claim.work_stage(|_| Ok(Next::advance_with(STARTED, "kept"))));
    let Err(DriveError::Stage { error, .. }) = manager.drive("k", resume(), &kept) else {
        panic!("it moved once, then not")
    };
    assert_eq!(error.kind(), ErrorKind::Stalled);

    let counting: Stages<'_, String, String> = Stages::new().stage(STARTED, |claim| {
        let count: u32 = claim.decode_checkpoint()?.unwrap_or(0);
        let next =
            || if count < 3 { Next::advance_encoded(STARTED, &(count + 1)) } else { Ok(Next::Succeed("3".into())) };
        claim.work_stage(|_| next())
    });
    assert_eq!(manager.drive("counted", resume(), &counting).unwrap().value(), "3");
}

#[test]
fn a_panic_in_a_stage_interrupts_and_resumes_at_its_recovery_point() {
    let (engine, _) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().on_interrupted(OnInterrupted::Resume));
    let stages: Stages<'_, String, String> =
        Stages::new().stage(STARTED, |claim| advance(claim, "on")).stage("on", |_| panic!("on purpose"));
    assert!(catch_unwind(AssertUnwindSafe(|| manager.drive("k", resume(), &stages))).is_err());
    let claim = claim(&manager, "k");
    assert_eq!((claim.interruption(), claim.recovery_point()), (Some(Interruption::Panicked), "on"));
    claim.release().unwrap();
}

#[test]
fn an_error_of_a_stage_after_its_ending_does_not_undo_the_ending() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let stages = Stages::new().stage(STARTED, |claim| {
        claim.work_stage(|_| Ok::<_, Error>(Next::Succeed("stored".to_owned())))?;
        Err(PhaseError::User("too late"))
    });
    assert_eq!(manager.drive("k", resume(), &stages).unwrap().value(), "stored");
}

// "The driver loop has no default case: a key at a point that it does not know spins for ever."
#[test]
fn medusa_4_an_unknown_recovery_point_ends_the_drive() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let mut old = claim(&manager, "k");
    advance(&mut old, "tax_lines_created").unwrap();
    old.release().unwrap();
    let runs = AtomicU32::new(0);
    let new: Stages<'_, String, String> = Stages::new().stage(STARTED, |claim| {
        runs.fetch_add(1, Ordering::Relaxed);
        advance(claim, "on")
    });
    let Err(DriveError::Stage { error, .. }) = manager.drive("k", resume(), &new) else { panic!("no stage for it") };
    assert_eq!((error.kind(), runs.load(Ordering::Relaxed)), (ErrorKind::UnknownRecoveryPoint, 0));
    // A program that knows the recovery point continues from there.
    let known: Stages<'_, String, String> =
        Stages::new().stage("tax_lines_created", |claim| claim.work_stage(|_| Ok(Next::Succeed("done".to_owned()))));
    assert_eq!(manager.drive("k", resume(), &known).unwrap().value(), "done");
}

// "Payment `requires_more` returns 200 without a recovery point, which means finished: retries replay a stale cart."
#[test]
fn medusa_5_a_stage_without_a_recovery_point_finishes_nothing() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let mut held = claim(&manager, "k");
    held.work_stage(|tx| tx.table("carts")?.insert("17", "requires more").map(|()| Next::Stay)).unwrap();
    assert_eq!((held.recovery_point(), status(&manager, "k")), (STARTED, Some(Status::InProgress)));
    held.release().unwrap();
    assert_eq!(answer(&manager, "k"), "claimed");
}

// "Isolation was dropped from `workStage`": two that read what the other writes both commit, and a rule over both breaks.
#[test]
fn medusa_7_stages_are_serializable() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    for round in 0..50 {
        // At least one of two doctors must stay on call.
        let table = engine.table("on_call").unwrap();
        for doctor in ["ada", "eve"] {
            table.insert(doctor, "yes").unwrap();
        }
        let start = Barrier::new(2);
        let leave = |me: &str, other: &str| {
            let mut claim = claim(&manager, &format!("{round}-{me}"));
            start.wait();
            let left = claim.work_stage(|tx| {
                let table = tx.table("on_call")?;
                if !table.contains(other)? {
                    return Err(PhaseError::User("nobody else is there"));
                }
                table.remove(me)?;
                Ok(Next::advance("left"))
            });
            claim.release().unwrap();
            left.is_ok()
        };
        let left = std::thread::scope(|scope| {
            let ada = scope.spawn(|| leave("ada", "eve"));
            let eve = scope.spawn(|| leave("eve", "ada"));
            [ada.join().unwrap(), eve.join().unwrap()]
        });
        assert_eq!(left.into_iter().filter(|left| *left).count(), 1, "only one of the two leaves");
        assert_eq!(table.len().unwrap(), 1);
    }
}

// "Errors were returned as `{error}`, and so committed what the stage had written."
#[test]
fn medusa_7_a_failed_stage_commits_nothing_and_returns_its_error() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let mut held = claim(&manager, "k");
    let failed: Result<(), PhaseError<String>> = held.work_stage(|tx| {
        tx.table("t")?.insert("half", "x")?;
        Err(PhaseError::User("the caller's own".to_owned()))
    });
    assert!(matches!(failed, Err(PhaseError::User(why)) if why == "the caller's own"));
    assert!(engine.table("t").unwrap().is_empty().unwrap());
    held.release().unwrap();
}

#[test]
fn a_stage_whose_outcome_expires_at_once_still_ends_the_claim() {
    let (engine, clock) = engine();
    let manager = texts_with(&engine, ManagerOptions::new().success_ttl(MS));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                clock.advance(MS);
                std::thread::yield_now();
            }
        });
        let outcomes: Vec<_> = (0..200)
            .map(|key| {
                let mut claim = claim(&manager, &key.to_string());
                claim.work_stage(|_| Ok::<_, Error>(Next::Succeed("brief".to_owned()))).unwrap();
                claim.into_finished().map(oncekey::Finished::into_outcome).ok()
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(|outcome| *outcome == Some(Ok("brief".to_owned()))));
    });
}

#[test]
fn an_engine_error_in_a_discarded_run_does_not_count() {
    let (engine, _) = local_engine();
    let (manager, table) = (texts(&engine), engine.table("t").unwrap());
    let runs = AtomicU32::new(0);
    let failed = manager.execute("k", |claim| {
        let staged = claim.work_stage(|tx| {
            let t = tx.table("t")?;
            t.get("a")?;
            if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                // The first run takes the wrong branch because of its reads, which are changed meanwhile.
                assert_eq!(t.insert("", "x").unwrap_err().kind(), ErrorKind::InvalidKey);
                std::thread::scope(|scope| scope.spawn(|| table.insert("a", "1")).join().unwrap())?;
            }
            Ok::<_, Error>(Next::Stay)
        });
        staged.unwrap();
        Err("declined".to_owned())
    });
    assert!(matches!(failed, Err(ExecuteError::Failed { .. })));
    assert_eq!(runs.into_inner(), 2);
    assert_eq!(outcome(&manager, "k"), Some(Err("declined".to_owned())));
}
