//! Poison, time-outs, the writer's exits and the close.

use std::panic::resume_unwind;

use shuttle::rand::Rng;

use super::*;
use crate::sync::worker::Worker;

/// A copy of [`Group::poison`] that notifies without the locks.
fn poison(group: &Frames, fault: Fault) {
    if fault == Fault::PoisonsPastTheLock {
        group.poison.set(broken());
        group.notify_everything(&group.state.lock());
        group.synced.iter().for_each(super::super::StdCondvar::notify_all);
    } else {
        group.poison(broken());
    }
}

/// Who waited gets the failure itself, and who comes later what it means.
fn ends_one_who_waits(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned)
}

fn prepare_nothing(store: &Store) {
    while store.group.wait_wanted().is_some() {
        thread::yield_now();
    }
}

/// One waits for a sync, one for apply, one for room, one for work and one for a wish when the poison comes, or come after.
fn waits_of_all_kinds(fault: Fault) {
    let store = &store(40, |_| ());
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    store.group.provide_segment(Err(broken()));
    let ticket = store.commit(1, Priority::User).unwrap();
    assert!(matches!(store.group.take(), Work::Write(..)));
    thread::scope(|scope| {
        scope.spawn(|| assert!(ends_one_who_waits(&store.group.wait(ticket).unwrap_err())));
        scope.spawn(|| assert!(ends_one_who_waits(&store.group.wait_applied(ticket).unwrap_err())));
        scope.spawn(|| is(store.commit(2, Priority::User), ErrorKind::Poisoned));
        scope.spawn(|| assert!(matches!(store.group.take(), Work::Ended)));
        scope.spawn(|| prepare_nothing(store));
        scope.spawn(move || {
            let listener = move |error: &Error| {
                assert_eq!(error.kind(), ErrorKind::Poisoned);
                count.fetch_add(1, SeqCst);
            };
            if fault == Fault::ListensOnly {
                store.group.poison.listen(listener)
            } else {
                store.group.on_poison(listener)
            }
        });
        poison(&store.group, fault);
    });
    let first = store.group.poison(Error::new(ErrorKind::Io, "another"));
    assert_eq!(first.to_string(), "the engine is poisoned: write journal: broken");
    assert_eq!(told.load(SeqCst), 1, "times told");
}

#[test]
fn poison_leaves_nobody_waiting() {
    holds(|| waits_of_all_kinds(Fault::None));
    fails(|| waits_of_all_kinds(Fault::PoisonsPastTheLock), LEFT_BEHIND);
}

#[test]
fn poison_is_told_once_whoever_comes_first() {
    holds(|| told_once(Fault::None));
    fails(|| told_once(Fault::ListensOnly), "times told");
}

fn told_once(fault: Fault) {
    let store = &store(100, |_| ());
    let told = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&told);
    thread::scope(|scope| {
        scope.spawn(|| store.group.poison(broken()));
        if fault == Fault::None {
            scope.spawn(|| store.group.poison(broken()));
        }
        let listener = move |_: &Error| {
            count.fetch_add(1, SeqCst);
        };
        if fault == Fault::ListensOnly { store.group.poison.listen(listener) } else { store.group.on_poison(listener) }
    });
    assert_eq!(told.load(SeqCst), 1, "times told");
}

/// Deadlines pass when they like: whoever is answered has its sync, who is refused as busy has changed nothing, and once
/// somebody was not answered, nobody is.
fn deadlines(fault: Fault) {
    let store = &store(60, |config| (config.timeout, config.max_unapplied) = (ANY_TIME, 15));
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(Fault::None).unwrap());
        let users = [1, 2, 3].map(|frame| {
            scope.spawn(move || {
                let Err(error) = store.commit_and_wait(frame, fault) else { return };
                if error.kind() == ErrorKind::Busy {
                    assert!(!store.disk.has(frame), "a change of a call that was refused");
                } else {
                    assert_eq!(error.kind(), ErrorKind::Poisoned);
                    is(store.group.check(), ErrorKind::Poisoned);
                    is(store.commit(frame, Priority::User), ErrorKind::Poisoned);
                }
            })
        });
        users.into_iter().for_each(|user| user.join().unwrap());
        store.group.close();
    });
}

#[test]
fn a_deadline_that_passes_is_no_answer_and_poisons() {
    holds(|| deadlines(Fault::None));
    fails(|| deadlines(Fault::AnswersOnATimeOut), "an answer before its sync");
}

/// The writer's life as the store gives it one, with an end at any of its steps.
fn dying_writer(fault: Fault) {
    let store = Arc::new(store(1_000, |_| ()));
    let (mine, for_panic) = (Arc::clone(&store), Arc::clone(&store));
    let body = move || {
        let mut steps = shuttle::rand::thread_rng().gen_range(0..6);
        let panics = shuttle::rand::thread_rng().r#gen();
        let mut step = || {
            if steps > 0 {
                steps -= 1;
                return Ok(());
            }
            if panics { resume_unwind(Box::new("on purpose")) } else { Err(broken()) }
        };
        let mut write_groups = || -> Result<()> {
            loop {
                match mine.group.take() {
                    Work::Write(batch, _) => {
                        step()?;
                        mine.disk.sync(&batch);
                        step()?;
                        mine.group.publish(batch.group);
                    }
                    Work::Draining => mine.group.end(),
                    Work::Ended => return Ok(()),
                    Work::Idle => unreachable!(),
                }
            }
        };
        if let Err(error) = write_groups() {
            if fault != Fault::EndsWithoutPoison {
                mine.group.poison(error);
            }
        }
    };
    let on_panic = move |why| {
        for_panic.group.poison(Error::new(ErrorKind::Poisoned, why));
    };
    let mut writer = Worker::spawn("writer", body, on_panic).unwrap();
    thread::scope(|scope| {
        for frame in [1, 2, 3] {
            let store = &store;
            scope.spawn(move || match store.commit_and_wait(frame, Fault::None) {
                Ok(()) => (),
                Err(error) => assert!(ends_one_who_waits(&error)),
            });
        }
    });
    store.group.close();
    writer.join();
}

#[test]
fn a_writer_that_ends_anywhere_leaves_nobody_waiting() {
    holds(|| dying_writer(Fault::None));
    fails(|| dying_writer(Fault::EndsWithoutPoison), LEFT_BEHIND);
}

/// Users commit while the store closes: who is let in is written before the writer is told that nobody comes any more.
fn a_close(fault: Fault) {
    let store = &store(1_000, |_| ());
    thread::scope(|scope| {
        scope.spawn(move || {
            store.write_groups(Fault::None).unwrap();
            // The end was the last word.
            is(store.commit(20, Priority::Store), ErrorKind::Closed);
        });
        for frame in [1, 2, 3] {
            scope.spawn(move || match store.commit_and_wait(frame, Fault::None) {
                Ok(()) => assert!(store.disk.has(frame)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Closed),
            });
        }
        scope.spawn(|| prepare_nothing(store));
        if fault == Fault::EndsAtOnce { store.group.end() } else { store.group.close() }
    });
    assert_eq!(store.drained.load(SeqCst), 1, "times drained");
    assert_eq!(store.group.newest(), store.group.durable());
}

#[test]
fn a_close_writes_what_was_let_in_and_drains_once() {
    holds(|| a_close(Fault::None));
    fails(|| a_close(Fault::EndsAtOnce), "times drained");
}
