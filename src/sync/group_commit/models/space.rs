//! Models of waits for space, for the apply thread and for a stall.

use shuttle::rand::Rng;
use shuttle::sync::mpsc;

use super::*;
use crate::sync::group_commit::priority::Class;

/// The segment has space for one group besides the reserve. A preparer provides a new segment or an error.
fn little_space(fault: Fault) {
    let store = &store(40, |_| ());
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(Fault::None).unwrap());
        scope.spawn(move || {
            while let Some(need) = store.group.wait_wanted() {
                if shuttle::rand::thread_rng().r#gen() {
                    // The larger segment stays. Either would do.
                    let _ = store.group.provide_segment(Ok((need, need)));
                } else if fault == Fault::ForgetsToRefuse {
                    store.group.state.lock().wanted = 0;
                } else {
                    let _ = store.group.provide_segment(Err(Error::new(ErrorKind::Full, "no space")));
                }
            }
        });
        let users = [1, 2, 3].map(|frame| {
            scope.spawn(move || {
                if let Err(error) = store.commit_and_wait(frame, fault) {
                    assert_eq!(error.kind(), ErrorKind::Full);
                }
                if let Err(error) = store.commit(frame + 10, Priority::GivingUp) {
                    assert_eq!(error.kind(), ErrorKind::Full);
                }
            })
        });
        users.into_iter().for_each(|user| user.join().unwrap());
        store.group.close();
    });
    // An admitted frame always has space; otherwise the writer poisons.
    store.group.check().unwrap();
}

#[test]
fn a_commit_gets_space_or_an_error() {
    holds(|| little_space(Fault::None));
    fails(|| little_space(Fault::ForgetsToRefuse), DEADLOCK);
}

/// Each group waits for the one before, because only a few bytes may be unapplied. A separate thread applies.
fn little_unapplied(fault: Fault) {
    let store = &store(1_000, |config| (config.max_unapplied, config.max_unchecked) = (10, 20));
    let (groups, to_apply) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                match store.group.take() {
                    Work::Write(batch, _) => {
                        store.written(&batch, Fault::None);
                        groups.send(batch).unwrap();
                    }
                    Work::Draining => store.group.end(),
                    Work::Ended => return,
                    Work::Idle => unreachable!(),
                }
            }
        });
        scope.spawn(move || {
            let mut forgotten = fault == Fault::ForgetsToApply;
            while let Ok(batch) = to_apply.recv() {
                if !std::mem::take(&mut forgotten) {
                    store.applied(&batch);
                }
            }
        });
        let users = [1, 2, 3].map(|frame| {
            scope.spawn(move || {
                store.commit_and_wait(frame, fault).unwrap();
                store.group.wait_applied(store.group.newest()).unwrap();
            })
        });
        users.into_iter().for_each(|user| user.join().unwrap());
        store.group.close();
    });
    assert_eq!((store.group.unapplied(), store.group.applied_bytes()), (0, 30));
}

#[test]
fn an_applied_group_admits_the_next_commit() {
    holds(|| little_unapplied(Fault::None));
    fails(|| little_unapplied(Fault::ForgetsToApply), DEADLOCK);
}

/// Only one commit's bytes may be unapplied. The first in the queue goes, even if others leave or arrive. An ending
/// goes before begins.
fn a_queue(fault: Fault) {
    let store = &store(1_000, |config| config.max_unapplied = 10);
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(Fault::None).unwrap());
        let gives_up = scope.spawn(move || {
            let target = store.group.state.lock().enqueue(Class::Finishing, 0).0;
            let mut state = store.group.state.lock();
            if fault == Fault::LeavesTheQueueWithoutWaking {
                state.queue.remove(&target);
            } else {
                state.leave(target);
            }
        });
        let users = [(1, Priority::User), (2, Priority::User), (3, Priority::Finishing)].map(|(frame, priority)| {
            scope.spawn(move || {
                let ticket = store.commit(frame, priority).unwrap();
                store.group.wait(ticket).unwrap();
            })
        });
        users.into_iter().for_each(|user| user.join().unwrap());
        gives_up.join().unwrap();
        store.group.close();
    });
    assert!(store.group.state.lock().queue.is_empty());
}

#[test]
fn leaving_the_queue_wakes_the_next() {
    holds(|| a_queue(Fault::None));
    fails(|| a_queue(Fault::LeavesTheQueueWithoutWaking), DEADLOCK);
}

/// Users are rejected during a stall and admitted after it. No thread waits for its end.
fn a_stall() {
    let store = &store(1_000, |_| ());
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(Fault::None).unwrap());
        let users = [Priority::User, Priority::Finishing, Priority::Ending].map(|priority| {
            scope.spawn(move || match store.commit(1, priority) {
                Ok(ticket) => store.group.wait(ticket).unwrap(),
                Err(error) => assert_eq!((error.kind(), priority), (ErrorKind::Full, Priority::User)),
            })
        });
        store.group.stall(Error::new(ErrorKind::Full, "no space"), true);
        is(store.commit(2, Priority::User), ErrorKind::Full);
        store.group.resume();
        store.commit_and_wait(3, Fault::None).unwrap();
        users.into_iter().for_each(|user| user.join().unwrap());
        store.group.close();
    });
    assert!(!store.group.is_stalled());
}

#[test]
fn a_stall_rejects_users_and_delays_no_other_commit() {
    holds(a_stall);
}
