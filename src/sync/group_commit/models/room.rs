//! Waiting for room, and for those behind the writer.

use shuttle::rand::Rng;
use shuttle::sync::mpsc;

use super::*;
use crate::sync::group_commit::priority::Class;

/// The region holds one group beside the reserve; a preparer finds room for more, or none.
fn little_room(fault: Fault) {
    let store = &store(40, |_| ());
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(Fault::None).unwrap());
        scope.spawn(move || {
            while let Some(need) = store.group.wait_wanted() {
                if shuttle::rand::thread_rng().r#gen() {
                    // The larger spare stays; either would do.
                    let _ = store.group.provide_segment(Ok((need, need)));
                } else if fault == Fault::ForgetsToRefuse {
                    store.group.state.lock().wanted = 0;
                } else {
                    let _ = store.group.provide_segment(Err(Error::new(ErrorKind::Full, "no room")));
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
    // What is let in has room: otherwise the writer poisons.
    store.group.check().unwrap();
}

#[test]
fn a_commit_gets_room_or_is_refused() {
    holds(|| little_room(Fault::None));
    fails(|| little_room(Fault::ForgetsToRefuse), LEFT_BEHIND);
}

/// So little may lie unapplied that each group waits for the one before; the apply thread is one of its own.
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
fn what_is_applied_lets_the_next_in() {
    holds(|| little_unapplied(Fault::None));
    fails(|| little_unapplied(Fault::ForgetsToApply), LEFT_BEHIND);
}

/// As much may lie unapplied as one commits: the first of the queue goes, whoever gives up or comes later, and an ending before
/// what begins.
fn a_queue(fault: Fault) {
    let store = &store(1_000, |config| config.max_unapplied = 10);
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(Fault::None).unwrap());
        let gives_up = scope.spawn(move || {
            let target = store.group.state.lock().enqueue(Class::Finishing).0;
            let mut state = store.group.state.lock();
            if fault == Fault::LeavesTheQueueInSilence {
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
fn whoever_leaves_the_queue_wakes_the_next() {
    holds(|| a_queue(Fault::None));
    fails(|| a_queue(Fault::LeavesTheQueueInSilence), LEFT_BEHIND);
}

/// Users are refused from a hold on and let in from its end on; nobody waits for that.
fn a_hold() {
    let store = &store(1_000, |_| ());
    thread::scope(|scope| {
        scope.spawn(move || store.write_groups(Fault::None).unwrap());
        let users = [Priority::User, Priority::Finishing, Priority::Ending].map(|priority| {
            scope.spawn(move || match store.commit(1, priority) {
                Ok(ticket) => store.group.wait(ticket).unwrap(),
                Err(error) => assert_eq!((error.kind(), priority), (ErrorKind::Full, Priority::User)),
            })
        });
        store.group.stall(Error::new(ErrorKind::Full, "no room"), true);
        is(store.commit(2, Priority::User), ErrorKind::Full);
        store.group.resume();
        store.commit_and_wait(3, Fault::None).unwrap();
        users.into_iter().for_each(|user| user.join().unwrap());
        store.group.close();
    });
    assert!(!store.group.is_stalled());
}

#[test]
fn a_hold_refuses_users_and_keeps_nobody_waiting() {
    holds(a_hold);
}
