//! Models of poison, timeouts, the exits of the writer, and the close.

use std::panic::resume_unwind;

use shuttle::rand::Rng;

use super::*;
use crate::sync::worker::Worker;

/// Poisons the queue. With the fault, a copy of [`CommitQueue::poison`] wakes without changing the event counts.
fn poison(group: &Frames, fault: Fault) {
    if fault == Fault::PoisonsWithoutASignal {
        group.poison.set(broken());
        group.notify_everything(&group.state.lock());
        group.synced.iter().for_each(crate::sync::event_count::EventCount::wake_all);
    } else {
        group.poison(broken());
    }
}

/// Returns true if the error ends a wait: a thread that waited gets the failure itself, a later call gets `Poisoned`.
fn ends_a_wait(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned)
}

fn prepare_nothing(store: &Store) {
    while store.group.wait_wanted().is_some() {
        thread::yield_now();
    }
}

/// Threads wait for a sync, for an apply, for space, for work and for a request when the queue is poisoned, or come
/// later.
fn waits_of_all_kinds(fault: Fault) {
    let store = &store(42, |_| ());
    let reported = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&reported);
    store.group.provide_segment(Err(broken()));
    let ticket = store.commit(1, Priority::User).unwrap();
    assert!(matches!(store.group.take(), Work::Write(..)));
    thread::scope(|scope| {
        scope.spawn(|| assert!(ends_a_wait(&store.group.wait(ticket).unwrap_err())));
        scope.spawn(|| assert!(ends_a_wait(&store.group.wait_applied(ticket).unwrap_err())));
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
    assert_eq!(reported.load(SeqCst), 1, "times reported");
}

#[test]
fn poison_wakes_all_waiters() {
    holds(|| waits_of_all_kinds(Fault::None));
    fails(|| waits_of_all_kinds(Fault::PoisonsWithoutASignal), DEADLOCK);
}

#[test]
fn poison_is_reported_once_in_every_order() {
    holds(|| reported_once(Fault::None));
    fails(|| reported_once(Fault::ListensOnly), "times reported");
}

fn reported_once(fault: Fault) {
    let store = &store(100, |_| ());
    let reported = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&reported);
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
    assert_eq!(reported.load(SeqCst), 1, "times reported");
}

/// Deadlines pass at any moment. An answered call has its sync; a `Busy` call has changed nothing; after a failed wait,
/// no call is answered.
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
fn a_passed_deadline_returns_an_error_and_poisons() {
    holds(|| deadlines(Fault::None));
    fails(|| deadlines(Fault::AnswersOnATimeOut), "an answer before its sync");
}

/// The life of the store's writer, which ends at any of its steps.
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
                Err(error) => assert!(ends_a_wait(&error)),
            });
        }
    });
    store.group.close();
    writer.join();
}

#[test]
fn a_writer_that_ends_at_any_step_wakes_all_waiters() {
    holds(|| dying_writer(Fault::None));
    fails(|| dying_writer(Fault::EndsWithoutPoison), DEADLOCK);
}

/// Users commit while the store closes. All admitted frames are written before the writer learns that no more users
/// commit.
fn a_close(fault: Fault) {
    let store = &store(1_000, |_| ());
    thread::scope(|scope| {
        scope.spawn(move || {
            store.write_groups(Fault::None).unwrap();
            // No commit is admitted after the end.
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
fn a_close_writes_all_admitted_frames_and_drains_once() {
    holds(|| a_close(Fault::None));
    fails(|| a_close(Fault::EndsAtOnce), "times drained");
}
