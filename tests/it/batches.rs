//! Tests of `execute_many`: many keys in one call, two commits, and an answer for each key.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::thread;

use oncekey::{
    CallOptions, Context, Engine, ErrorKind, ExecuteError, Executed, Fingerprint, Interruption, Manager, OnError,
    Status, admin::Event, stage::Next,
};

use crate::common::*;
use crate::threads::{LATE, within};

type Answer = Result<Executed<String>, ExecuteError<String, String>>;

/// Returns an answer as one word, with the value or the failure.
fn shown(answer: &Answer) -> String {
    match answer {
        Ok(done) => format!("{}{}", if done.replayed() { "replay " } else { "" }, done.value()),
        Err(ExecuteError::Failed { error, status, replayed }) => {
            format!("{}{status:?} {error}", if *replayed { "replay " } else { "" })
        }
        Err(ExecuteError::InProgress(_)) => "in progress".to_owned(),
        Err(ExecuteError::Interrupted(info)) => format!("{:?} {:?}", info.status(), info.interruption()),
        Err(ExecuteError::Paused(_)) => "paused".to_owned(),
        Err(ExecuteError::Mismatch(_)) => "mismatch".to_owned(),
        Err(ExecuteError::NotStored { outcome, error }) => format!("not stored {outcome:?} {:?}", error.kind()),
        Err(ExecuteError::Engine(error)) => format!("{:?}", error.kind()),
    }
}

fn shown_all(answers: &[Answer]) -> Vec<String> {
    answers.iter().map(shown).collect()
}

#[test]
fn five_hundred_messages_take_two_commits_and_two_syncs() {
    let (engine, _) = local_engine();
    let manager = texts(&engine);
    let keys: Vec<String> = (0..500).map(|n| format!("topic/7/{n}")).collect();
    let before = engine.stats();
    let answers = manager.execute_many(keys.iter().map(|key| (key, key)), |claim, message| {
        assert_eq!(claim.key().as_bytes(), message.as_bytes());
        Ok(message.clone())
    });
    let after = engine.stats();
    assert_eq!(shown_all(&answers), keys);
    assert_eq!((after.commits - before.commits, after.groups - before.groups), (2, 2));
    assert!(after.syncs - before.syncs <= 2, "{before:?} {after:?}");
    assert_eq!((after.in_progress, after.waiting, after.transaction_reruns), (0, 0, 0));
    // The next poll delivers all messages again. Nothing is written.
    let answers = manager.execute_many(keys.iter().map(|key| (key, ())), |_, ()| unreachable!("it has run"));
    assert_eq!(shown_all(&answers), keys.iter().map(|key| format!("replay {key}")).collect::<Vec<_>>());
    assert_eq!((engine.stats().commits, engine.stats().replays), (after.commits, 500));
}

#[test]
fn answers_of_all_kinds_have_the_order_of_the_items() {
    let (engine, _) = engine();
    let manager = texts(&engine).on_error(|why| match why.as_str() {
        "later" => OnError::Release,
        "unknown" => OnError::Interrupt,
        _ => OnError::Store,
    });
    let same = |text: &str| CallOptions::new().fingerprint(Fingerprint::of(text).unwrap());
    claimed(manager.begin_with("other", same("one")).unwrap()).succeed(&"one".to_owned()).unwrap();
    let _elsewhere = claim(&manager, "busy");
    drop(claim(&manager, "held"));
    claim(&manager, "no").fail(&"declined".to_owned()).unwrap();
    let items = ["new", "", "other", "busy", "held", "no", "later", "unknown", "declined", "last"];
    let answers = manager.execute_many_with(items.map(|key| (key, same("two"), key)), |_, message| match message {
        "later" | "unknown" | "declined" => Err(message.to_owned()),
        _ => Ok(format!("{message}!")),
    });
    let expected = [
        "new!",
        "InvalidKey",
        "mismatch",
        "in progress",
        "Interrupted Some(Dropped)",
        "replay Failed declined",
        "Released later",
        "Interrupted unknown",
        "Failed declined",
        "last!",
    ];
    assert_eq!(shown_all(&answers), expected);
    assert_eq!(status(&manager, "later"), Some(Status::Released));
    assert_eq!(outcome(&manager, "last"), Some(Ok("last!".to_owned())));
}

#[test]
fn a_panic_interrupts_only_its_own_record() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let answers = manager.execute_many(["a", "b", "c", "d"].map(|key| (key, key)), |claim, message| {
        claim.release_on_drop(message == "b");
        assert!(!matches!(message, "b" | "c"), "{message} panics");
        Ok(message.to_owned())
    });
    assert_eq!(shown_all(&answers), ["a", "Released None", "Interrupted Some(Panicked)", "d"]);
    let info = |key: &str| manager.get(key).unwrap().unwrap().info().clone();
    assert_eq!(info("b").status(), Status::Released);
    assert_eq!(info("c").interruption(), Some(Interruption::Panicked));
    assert_eq!(engine.stats().in_progress, 0);
}

#[test]
fn a_key_that_occurs_twice_runs_once() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let before = engine.stats().commits;
    let mut runs = Vec::new();
    let items = ["a", "b", "a", "c", "a", "b"].into_iter().enumerate();
    let answers = manager.execute_many(items.map(|(n, key)| (key, n)), |_, n| {
        runs.push(n);
        Ok(n.to_string())
    });
    assert_eq!(runs, [0, 1, 3]);
    assert_eq!(shown_all(&answers), ["0", "1", "replay 0", "3", "replay 0", "replay 1"]);
    assert_eq!(engine.stats().commits - before, 2);
    // Another request under the key of an item of the batch.
    let same = |text: &str| CallOptions::new().fingerprint(Fingerprint::of(text).unwrap());
    let answers = manager.execute_many_with([("x", same("one"), 1), ("x", same("two"), 2)], |_, n| Ok(n.to_string()));
    assert_eq!(shown_all(&answers), ["1", "mismatch"]);
}

#[test]
fn a_second_occurrence_runs_if_the_first_was_released() {
    let (engine, _) = engine();
    let manager = texts(&engine).on_error(|_| OnError::Release);
    let mut runs = Vec::new();
    let items = [("a", 0), ("b", 1), ("a", 2), ("a", 3), ("a", 4)];
    let answers = manager.execute_many(items, |claim, n| {
        runs.push((n, claim.attempt()));
        if n < 3 && n != 1 { Err(n.to_string()) } else { Ok(n.to_string()) }
    });
    // The operations run in the order of the items.
    assert_eq!(runs, [(0, 1), (1, 1), (2, 2), (3, 3)]);
    assert_eq!(shown_all(&answers), ["Released 0", "1", "Released 2", "3", "replay 3"]);
}

#[test]
fn a_long_batch_runs_in_parts() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let before = engine.stats().commits;
    let count = Manager::<String, String>::MAX_BATCH * 2 + 1;
    let most = std::cell::Cell::new(0);
    // An iterator of unknown length.
    let keys = (0..count).filter(|_| true).map(|n| (n.to_be_bytes(), n));
    let answers = manager.execute_many(keys, |_, n| {
        most.set(engine.stats().in_progress.max(most.get()));
        Ok(n.to_string())
    });
    assert_eq!(answers.len(), count);
    assert!(answers.iter().enumerate().all(|(n, answer)| shown(answer) == n.to_string()));
    assert_eq!(usize::try_from(most.get()).unwrap(), Manager::<String, String>::MAX_BATCH);
    assert_eq!(engine.stats().commits - before, 6);
    assert!(manager.execute_many(Vec::<(&str, ())>::new(), |_, ()| unreachable!("there is none")).is_empty());
}

#[test]
fn large_outcomes_take_more_commits() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let before = engine.stats().commits;
    let large = |n: i32| n.to_string().repeat(1 << 20).split_off(1000);
    let answers = manager.execute_many((0..10).map(|n| (n.to_string(), n)), |_, n| Ok(large(n)));
    for (answer, n) in answers.iter().zip(0..) {
        assert_eq!(*answer.as_ref().unwrap().value(), large(n));
    }
    assert_eq!(engine.stats().commits - before, 3, "one for all that begin, two for 10 MB of outcomes");
}

#[test]
fn large_contexts_take_more_commits() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let before = engine.stats();
    let context = Context::new().with("payload", vec![b'x'; 16_000]);
    let items = (0..600).map(|n| (n.to_string(), CallOptions::new().context(context.clone()), n));
    let answers = manager.execute_many_with(items, |_, n| Ok(n.to_string()));
    assert!(answers.iter().enumerate().all(|(n, answer)| shown(answer) == n.to_string()));
    assert_eq!(engine.stats().commits - before.commits, 4, "9.6 MB of contexts begin, and 9.6 MB end");
}

#[test]
fn revoking_a_key_of_a_batch_affects_only_that_key() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let answers = manager.execute_many(["a", "b", "c"].map(|key| (key, key)), |_, key| {
        if key == "a" {
            manager.revoke("b").unwrap();
        }
        Ok(key.to_owned())
    });
    assert_eq!(shown_all(&answers), ["a", "not stored Ok(\"b\") ClaimLost", "c"]);
    assert_eq!(status(&manager, "b"), Some(Status::Interrupted));
    assert_eq!(engine.stats().in_progress, 0);
}

#[test]
fn only_the_item_whose_value_cannot_be_stored_fails() {
    let engine = Engine::options().max_value_bytes(100).temporary_store().unwrap();
    let manager = texts(&engine);
    let answers = manager.execute_many([("a", 5), ("b", 500), ("c", 6)], |_, n| Ok("x".repeat(n)));
    assert_eq!(shown(&answers[0]), "xxxxx");
    assert_eq!(shown(&answers[2]), "xxxxxx");
    let Some(Err(ExecuteError::NotStored { error, .. })) = answers.into_iter().nth(1) else { panic!("it is too long") };
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    error.claim.succeed(&"short".to_owned()).unwrap();
    assert_eq!(outcome(&manager, "b"), Some(Ok("short".to_owned())));
}

#[test]
fn an_interrupted_key_of_a_batch_is_resumed_under_resume() {
    let (engine, _) = engine();
    let manager = resuming(&engine);
    drop(claim(&manager, "b"));
    let answers =
        manager.execute_many(["a", "b"].map(|key| (key, key)), |claim, key| Ok(format!("{key}{}", claim.attempt())));
    assert_eq!(shown_all(&answers), ["a1", "b2"]);
}

#[test]
fn a_stage_that_ends_a_claim_is_the_answer() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let answers = manager.execute_many(["a", "b", "c"].map(|key| (key, key)), |claim, key| {
        if key == "a" {
            return Ok("a".to_owned());
        }
        claim.work_stage(|_| Ok::<_, oncekey::Error>(Next::Succeed("stage".to_owned()))).map_err(|e| e.to_string())?;
        assert!(key != "c", "after the stage");
        Err("thrown away".to_owned())
    });
    assert_eq!(shown_all(&answers), ["a", "stage", "stage"]);
}

#[test]
fn an_operation_that_executes_another_key_of_its_batch_gets_an_answer_at_once() {
    within(LATE, || {
        let (engine, _) = engine();
        let manager = texts(&engine);
        let answers = manager.execute_many([("a", "b"), ("b", "a")], |_, other| {
            let Err(ExecuteError::Engine(error)) = manager.execute(other, |_| unreachable!("its claim is ours")) else {
                panic!("it is in progress");
            };
            Ok(format!("{:?}", error.kind()))
        });
        // An engine error that the operation has handled does not count for its value.
        assert_eq!(shown_all(&answers), ["Deadlock", "Deadlock"]);
        // After the batch has ended, a call for the same key gets its outcome.
        assert_eq!(manager.execute("a", |_| unreachable!("it has run")).unwrap().value(), "Deadlock");
    });
}

#[test]
fn exchanged_claims_of_a_batch_are_both_interrupted() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let mut other = claim(&manager, "z");
    let answers = manager.execute_many([("a", 1), ("b", 2)], |claim, n| {
        if n == 1 {
            std::mem::swap(claim, &mut other);
        }
        Ok("v".to_owned())
    });
    assert_eq!(shown_all(&answers), ["ClaimLost", "v"]);
    drop(other);
    let statuses = ["a", "b", "z"].map(|key| status(&manager, key));
    assert_eq!(statuses, [Some(Status::Interrupted), Some(Status::Succeeded), Some(Status::Interrupted)]);
}

#[test]
fn a_failure_made_from_an_engine_error_is_not_stored() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let rows = engine.table("rows").unwrap();
    let answers = manager.execute_many(["a", "b"].map(|key| (key, key)), |_, key| {
        if key == "a" {
            rows.get("").map_err(|error| error.to_string())?
        } else {
            None::<oncekey::Value>
        };
        Err("its own".to_owned())
    });
    assert!(shown(&answers[0]).starts_with("Interrupted"), "{answers:?}");
    assert_eq!(shown(&answers[1]), "Failed its own");
}

#[test]
fn two_batches_that_share_all_keys_run_each_once_and_never_wait() {
    const BATCHES: usize = 8;
    within(LATE, || {
        let (engine, _) = engine();
        let manager = texts(&engine);
        for round in 0..10 {
            let line = Barrier::new(BATCHES);
            let (manager, line) = (&manager, &line);
            let runs: usize = thread::scope(|scope| {
                let batches: Vec<_> = (0..BATCHES)
                    .map(|me| {
                        scope.spawn(move || {
                            // Half of the batches visit the keys in reverse order.
                            let order = |n: usize| if me % 2 == 0 { n } else { 99 - n };
                            line.wait();
                            let mut runs = 0;
                            let items = (0..100).map(|n| (format!("{round}-{}", order(n)), ()));
                            let answers = manager.execute_many(items, |_, ()| {
                                runs += 1;
                                Ok(String::new())
                            });
                            for answer in answers {
                                let answer = shown(&answer);
                                assert!(["", "replay ", "in progress"].contains(&answer.as_str()), "{answer}");
                            }
                            runs
                        })
                    })
                    .collect();
                batches.into_iter().map(|batch| batch.join().unwrap()).sum()
            });
            assert_eq!(runs, 100, "round {round}");
        }
        assert_eq!((engine.stats().in_progress, engine.stats().waiting), (0, 0));
    });
}

#[test]
fn a_waiter_for_a_key_of_a_batch_gets_its_outcome() {
    within(LATE, || {
        let (engine, _) = engine();
        let manager = &texts(&engine);
        thread::scope(|scope| {
            let mut waiter = None;
            let answers = manager.execute_many([("a", 1), ("b", 2)], |_, n| {
                if n == 1 {
                    let options = CallOptions::new().wait(oncekey::FOREVER);
                    waiter = Some(scope.spawn(move || manager.execute_with("b", options, |_| unreachable!("it runs"))));
                    crate::threads::until("the waiter waits", || engine.stats().waiting == 1);
                }
                Ok(n.to_string())
            });
            assert_eq!(shown_all(&answers), ["1", "2"]);
            assert_eq!(shown(&waiter.unwrap().join().unwrap()), "replay 2");
        });
    });
}

#[test]
fn subscribers_get_an_event_for_each_item() {
    let (engine, _) = engine();
    let manager = texts(&engine).on_error(|_| OnError::Release);
    let events = engine.events();
    drop(
        manager
            .execute_many([("a", true), ("b", false)], |_, ok| if ok { Ok("v".to_owned()) } else { Err("e".into()) }),
    );
    let told: Vec<_> = events
        .ready()
        .map(|event| match event {
            Event::Began(info) => format!("began {}", info.key()),
            Event::Ended(info) => format!("{:?} {}", info.status(), info.key()),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(told, ["began a", "began b", "Succeeded a", "Released b"]);
}

#[test]
fn a_batch_in_a_transaction_or_after_a_close_runs_nothing() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let asked = || manager.execute_many([("a", ()), ("b", ())], |_, ()| unreachable!("it may not"));
    let inside = engine.atomic_phase(|_| Ok::<_, oncekey::Error>(shown_all(&asked()))).unwrap();
    assert_eq!(inside, ["InsideTransaction"; 2]);
    engine.close().unwrap();
    assert_eq!(shown_all(&asked()), ["Closed"; 2]);
}

#[test]
fn a_close_during_a_batch_loses_no_ending() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let manager = texts(&engine);
    let mut engine = Some(engine);
    let answers = manager.execute_many([("a", ()), ("b", ())], |_, ()| {
        if let Some(engine) = engine.take() {
            assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
        }
        Ok("v".to_owned())
    });
    assert_eq!(shown_all(&answers), ["v", "v"]);
    drop(manager);
    let manager = texts(&Engine::open(dir.path()).unwrap());
    assert_eq!(["a", "b"].map(|key| outcome(&manager, key)), [Some(Ok("v".to_owned())), Some(Ok("v".to_owned()))]);
}

#[test]
fn a_panic_of_the_items_iterator_begins_nothing() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let items = (0..3).map(|n| {
        assert!(n < 2, "the source of the items fails");
        (n.to_string(), ())
    });
    let run = AssertUnwindSafe(|| manager.execute_many(items, |_, ()| Ok(String::new())));
    assert!(catch_unwind(run).is_err());
    assert_eq!(status(&manager, "0"), None);
    assert_eq!(manager.execute_many([("0", ())], |_, ()| Ok("v".to_owned())).len(), 1);
}
