mod admission;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::*;

type Frames = CommitQueue<u32, &'static str>;

const LONG: Duration = Duration::from_secs(3600);

/// Creates a queue. A group of n bytes takes n + 10.
fn group_with(segment_space: u64, change: impl FnOnce(&mut Config)) -> Frames {
    let mut config = Config {
        sized: |len| len + 10,
        reserve: 20,
        max_unapplied: 1_000,
        max_unchecked: 10_000,
        interval: None,
        timeout: Duration::from_secs(20),
        applying: Arc::new(AtomicU64::new(0)),
        idle: LONG,
    };
    change(&mut config);
    CommitQueue::new(config, 0, 100, segment_space)
}

fn group(segment_space: u64) -> Frames {
    group_with(segment_space, |_| ())
}

fn commit(group: &Frames, len: usize, priority: Priority) -> Result<u64> {
    Ok(group.admit(len, priority)?.commit_bytes(&vec![7; len], 1))
}

fn user(group: &Frames, len: usize) -> Result<u64> {
    commit(group, len, Priority::User)
}

#[track_caller]
fn taken(group: &Frames) -> (Batch<u32>, Target<&'static str>) {
    match group.take() {
        Work::Write(batch, target) => (batch, target),
        other => panic!("not a group: {other:?}"),
    }
}

fn full() -> Error {
    Error::new(ErrorKind::Full, "no space")
}

#[track_caller]
fn is<R: std::fmt::Debug>(result: Result<R>, kind: ErrorKind) {
    assert_eq!(result.unwrap_err().kind(), kind);
}

/// Waits until `count` calls wait for a sync.
fn until_waiting(group: &Frames, count: u64) {
    while group.waits.get() < count {
        thread::yield_now();
    }
}

#[test]
fn commits_share_a_group_in_order() {
    let group = group(1_000);
    for index in 0..3 {
        let admission = group.admit(2, Priority::User).unwrap();
        assert_eq!((admission.number(), admission.ticket()), (100 + index, 1));
        assert_eq!(admission.commit_bytes(&[u8::try_from(index).unwrap(); 2], 0), 1);
    }
    assert_eq!(group.newest(), 1);
    let (batch, target) = taken(&group);
    assert!(matches!(target, Target::Current));
    assert_eq!((batch.group, batch.first_frame, batch.frames.len()), (1, 100, 3));
    assert_eq!(batch.payload, [0, 0, 1, 1, 2, 2]);
    assert_eq!(group.newest(), 1);
    assert_eq!(user(&group, 1).unwrap(), 2);
    assert_eq!(group.newest(), 2);
    assert_eq!(taken(&group).0.first_frame, 103);
}

#[test]
fn a_dropped_admission_changes_nothing() {
    let group = group(100);
    drop(group.admit(70, Priority::User).unwrap());
    let admission = group.admit(70, Priority::User).unwrap();
    assert_eq!((admission.number(), admission.ticket()), (100, 1));
}

#[test]
fn a_frame_that_is_longer_than_admitted_is_refused_and_leaves_nothing() {
    let group = group(100);
    user(&group, 1).unwrap();
    for (len, result) in [(4, Ok(())), (3, Err(full()))] {
        let mut admission = group.admit(3, Priority::User).unwrap();
        let appended = admission.append(|payload| {
            payload.resize(payload.len() + len, 1);
            result
        });
        assert!(appended.is_err(), "{len}");
    }
    user(&group, 3).unwrap();
    let (batch, _) = taken(&group);
    assert_eq!((batch.payload.as_slice(), batch.frames.len()), ([7; 4].as_slice(), 2));
}

/// Asserts that a commit waits for space and gets `Full` because no segment can be prepared.
fn is_refused(group: &Frames, len: usize, priority: Priority) {
    thread::scope(|scope| {
        let late = scope.spawn(|| commit(group, len, priority));
        assert!(group.wait_wanted().is_some());
        // Reject the request from the start and perhaps the one of the commit.
        while !late.is_finished() {
            group.provide_segment(Err(full()));
        }
        is(late.join().unwrap(), ErrorKind::Full);
    });
}

#[test]
fn each_priority_leaves_its_part_of_the_reserve() {
    let group = group(100);
    // 70 + 10 for the group; 20 are reserved.
    user(&group, 70).unwrap();
    is(commit(&group, 11, Priority::GivingUp), ErrorKind::Full);
    commit(&group, 10, Priority::GivingUp).unwrap();
    is(commit(&group, 1, Priority::GivingUp), ErrorKind::Full);
    commit(&group, 10, Priority::Store).unwrap();
    is_refused(&group, 1, Priority::Store);
    assert_eq!(taken(&group).0.payload.len(), 90);
}

#[test]
fn a_small_outcome_may_use_as_much_of_the_reserve_as_an_ending() {
    let group = group_with(420, |config| config.reserve = 320);
    user(&group, 90).unwrap();
    // Up to a sixteenth of the reserve is small. Half of the reserve is for the store.
    for priority in [Priority::User, Priority::Finishing] {
        is_refused(&group, 21, priority);
    }
    for _ in 0..8 {
        commit(&group, 20, Priority::Finishing).unwrap();
    }
    is(commit(&group, 1, Priority::GivingUp), ErrorKind::Full);
}

#[test]
fn a_refused_commit_is_full_and_works_when_there_is_room() {
    let group = group(50);
    assert_eq!(group.wait_wanted(), Some(1));
    group.provide_segment(Err(full()));
    thread::scope(|scope| {
        let refused = scope.spawn(|| user(&group, 30));
        assert_eq!(group.wait_wanted(), Some(60));
        assert!(group.provide_segment(Err(full())).is_none());
        is(refused.join().unwrap(), ErrorKind::Full);
        let accepted = scope.spawn(|| user(&group, 30));
        assert_eq!(group.wait_wanted(), Some(60));
        assert!(group.provide_segment(Ok((60, "next_segment"))).is_none());
        assert_eq!(accepted.join().unwrap().unwrap(), 1);
    });
    assert!(group.check().is_ok());
    // The space for the group is part of the reserve: it was admitted because of the next segment.
    assert!(matches!(taken(&group).1, Target::Current));
    user(&group, 30).unwrap();
    assert!(matches!(taken(&group).1, Target::Next("next_segment")));
    assert_eq!(group.wait_wanted(), Some(1));
}

#[test]
fn the_larger_segment_stays() {
    let group = group(50);
    assert_eq!(group.provide_segment(Ok((100, "a"))), None);
    assert_eq!(group.provide_segment(Ok((100, "b"))), Some("b"));
    assert_eq!(group.provide_segment(Ok((200, "c"))), Some("a"));
    user(&group, 150).unwrap();
    assert!(matches!(taken(&group).1, Target::Next("c")));
}

#[test]
fn only_users_wait_for_unapplied_bytes() {
    let group = group_with(100_000, |config| config.max_unapplied = 100);
    user(&group, 100).unwrap();
    commit(&group, 1, Priority::GivingUp).unwrap();
    let (batch, _) = taken(&group);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| user(&group, 1));
        group.publish(batch.group);
        assert_eq!((group.unapplied(), group.applied_bytes()), (101, 0));
        group.applied(batch.group, 101);
        assert_eq!(waiting.join().unwrap().unwrap(), 2);
    });
    assert_eq!((group.unapplied(), group.applied_bytes()), (1, 101));
}

#[test]
fn users_wait_for_a_checkpoint() {
    let group = group_with(100_000, |config| config.max_unchecked = 100);
    user(&group, 100).unwrap();
    group.applied(taken(&group).0.group, 100);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| user(&group, 1));
        group.checkpointed(group.applied_bytes());
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn a_sync_in_flight_never_covers_a_later_commit() {
    let group = group(1_000);
    assert_eq!(user(&group, 1).unwrap(), 1);
    let (batch, _) = taken(&group);
    assert_eq!(user(&group, 1).unwrap(), 2);
    group.publish(batch.group);
    assert!(group.is_durable(1) && !group.is_durable(2));
    group.wait(1).unwrap();
    group.publish(taken(&group).0.group);
    group.wait(2).unwrap();
}

#[test]
fn a_sync_wakes_all_its_waiters_and_no_others() {
    let group = group(1_000);
    user(&group, 1).unwrap();
    taken(&group);
    user(&group, 1).unwrap();
    taken(&group);
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..64)
            .map(|index| {
                (index, {
                    let group = &group;
                    scope.spawn(move || group.wait(1 + index % 2))
                })
            })
            .collect();
        until_waiting(&group, 64);
        group.publish(1);
        let (first, second): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(index, _)| index % 2 == 0);
        for (_, waiting) in first {
            waiting.join().unwrap().unwrap();
        }
        assert!(second.iter().all(|(_, waiting)| !waiting.is_finished()));
        group.publish(2);
        for (_, waiting) in second {
            waiting.join().unwrap().unwrap();
        }
    });
}

#[test]
fn commits_and_waits_of_many_threads_all_end() {
    let group = group_with(u64::MAX / 2, |config| config.max_unapplied = 50);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            loop {
                match group.take() {
                    Work::Write(batch, _) => {
                        group.publish(batch.group);
                        group.applied(batch.group, batch.payload.len() as u64);
                        group.checkpointed(group.applied_bytes());
                    }
                    Work::Draining => group.end(),
                    Work::Ended => return,
                    Work::Idle => unreachable!(),
                }
            }
        });
        let users: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        group.wait(user(&group, 3).unwrap()).unwrap();
                    }
                })
            })
            .collect();
        for user in users {
            user.join().unwrap();
        }
        group.close();
        writer.join().unwrap();
    });
    assert_eq!(group.applied_bytes(), 8 * 2_000 * 3);
}

#[test]
fn a_wait_without_progress_poisons_all_calls() {
    let group = group_with(1_000, |config| config.timeout = Duration::from_millis(5));
    let ticket = user(&group, 1).unwrap();
    let error = group.wait(ticket).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert!(error.to_string().contains("a commit waited for its sync"), "{error}");
    assert_eq!(user(&group, 1).unwrap_err().to_string(), error.to_string());
    is(group.wait(0), ErrorKind::Poisoned);
    is(group.wait_applied(1), ErrorKind::Poisoned);
    is(group.check(), ErrorKind::Poisoned);
    assert!(matches!(group.take(), Work::Ended));
    assert_eq!(group.wait_wanted(), None);
}

#[test]
fn waits_for_space_and_for_apply_have_a_timeout() {
    let short = |config: &mut Config| config.timeout = Duration::from_millis(5);
    let group = group_with(10, short);
    let error = user(&group, 1).unwrap_err();
    assert!(error.to_string().contains("a commit waited for space"), "{error}");
    let group = group_with(100, short);
    let ticket = user(&group, 1).unwrap();
    group.publish(ticket);
    let error = group.wait_applied(ticket).unwrap_err();
    assert!(error.to_string().contains("a group waited to be applied"), "{error}");
}

#[test]
fn poison_wakes_all_waiters() {
    let group = group(40);
    // Answer the initial request for a segment. The taken group leaves no space.
    group.provide_segment(Err(full()));
    let ticket = user(&group, 10).unwrap();
    taken(&group);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| group.wait(ticket));
        let applying = scope.spawn(|| group.wait_applied(ticket));
        let space = scope.spawn(|| user(&group, 10));
        let writer = scope.spawn(|| matches!(group.take(), Work::Ended));
        until_waiting(&group, 2);
        assert_eq!(group.wait_wanted(), Some(40));
        let preparer = scope.spawn(|| {
            while group.wait_wanted().is_some() {
                thread::yield_now();
            }
        });
        let first = group.poison(Error::new(ErrorKind::Io, "write journal: broken"));
        assert_eq!(first.to_string(), "the engine is poisoned: write journal: broken");
        let second = group.poison(Error::new(ErrorKind::Io, "another"));
        assert_eq!(second.to_string(), first.to_string());
        // Calls that waited get the error itself, later ones get `Poisoned`.
        for waited in [waiting.join().unwrap(), applying.join().unwrap()] {
            let error = waited.unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Io, "write journal: broken"));
        }
        is(group.check(), ErrorKind::Poisoned);
        is(space.join().unwrap(), ErrorKind::Poisoned);
        assert!(writer.join().unwrap());
        preparer.join().unwrap();
    });
}

#[test]
fn close_drains_once_and_admits_only_the_store() {
    let group = group(100);
    user(&group, 60).unwrap();
    thread::scope(|scope| {
        let space = scope.spawn(|| user(&group, 50));
        // The initial request is for a smaller size.
        while group.wait_wanted() != Some(80) {
            thread::yield_now();
        }
        group.close();
        is(space.join().unwrap(), ErrorKind::Closed);
    });
    is(user(&group, 1), ErrorKind::Closed);
    is(commit(&group, 1, Priority::GivingUp), ErrorKind::Closed);
    assert_eq!(taken(&group).0.payload.len(), 60);
    assert!(matches!(group.take(), Work::Draining));
    commit(&group, 1, Priority::Store).unwrap();
    assert_eq!(taken(&group).0.payload.len(), 1);
    commit(&group, 2, Priority::Store).unwrap();
    group.end();
    is(commit(&group, 1, Priority::Store), ErrorKind::Closed);
    // Admitted frames are still written.
    assert_eq!(taken(&group).0.payload.len(), 2);
    assert!(matches!(group.take(), Work::Ended));
    assert_eq!(group.wait_wanted(), None);
    is(group.wait_applied(0).and_then(|()| user(&group, 1)), ErrorKind::Closed);
}

#[test]
fn close_wakes_an_idle_writer() {
    let group = group(100);
    thread::scope(|scope| {
        let writer = scope.spawn(|| (matches!(group.take(), Work::Draining), matches!(group.take(), Work::Ended)));
        group.close();
        group.end();
        let (drained, ended) = writer.join().unwrap();
        // The end may have come before the first `take`.
        assert!(ended || !drained);
    });
}

fn eventual(segment_space: u64) -> Frames {
    group_with(segment_space, |config| config.interval = Some(LONG))
}

#[test]
fn an_interval_is_cut_short_by_a_wait() {
    let group = eventual(1_000);
    thread::scope(|scope| {
        let ticket = user(&group, 1).unwrap();
        let writer = scope.spawn(|| {
            let (batch, _) = taken(&group);
            group.publish(batch.group);
        });
        assert!(!group.is_durable(ticket));
        group.wait(ticket).unwrap();
        writer.join().unwrap();
    });
}

#[test]
fn an_interval_is_cut_short_by_a_commit_without_space() {
    let group = eventual(100);
    group.provide_segment(Ok((200, "next_segment")));
    user(&group, 150).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| matches!(taken(&group).1, Target::Next("next_segment")));
        let next = scope.spawn(|| user(&group, 150));
        assert!(writer.join().unwrap());
        while group.wait_wanted() != Some(180) {
            thread::yield_now();
        }
        group.provide_segment(Ok((180, "next")));
        next.join().unwrap().unwrap();
    });
}

#[test]
fn an_interval_is_cut_short_by_unapplied_bytes_and_by_close() {
    let group = group_with(10_000, |config| {
        config.interval = Some(LONG);
        config.max_unapplied = 400;
    });
    user(&group, 100).unwrap();
    assert_eq!(taken(&group).0.payload.len(), 100, "a quarter of what may be unapplied");
    user(&group, 1).unwrap();
    group.close();
    assert_eq!(taken(&group).0.payload.len(), 1);
}

#[test]
fn an_interval_ends() {
    let group = group_with(1_000, |config| config.interval = Some(Duration::from_millis(2)));
    user(&group, 1).unwrap();
    taken(&group);
}

#[test]
fn an_idle_writer_gets_an_empty_group() {
    let group = group_with(25, |config| config.idle = Duration::from_millis(1));
    assert!(matches!(group.take(), Work::Idle));
    let batch = group.take_empty().unwrap();
    assert_eq!((batch.group, batch.first_frame, batch.frames.len()), (1, 100, 0));
    group.publish(batch.group);
    assert_eq!(group.newest(), 1);
    group.applied(batch.group, 0);
    group.wait_applied(group.newest()).unwrap();
    assert_eq!(group.take_empty().map(|batch| batch.group), Some(2));
    assert!(group.take_empty().is_none(), "no space");
}

#[test]
fn poison_is_reported_once_with_no_lock_held() {
    let group = Arc::new(group(100));
    let reported = Arc::new(AtomicU32::new(0));
    let (weak, count) = (Arc::downgrade(&group), Arc::clone(&reported));
    group.on_poison(move |error| {
        assert_eq!(error.kind(), ErrorKind::Poisoned);
        let group = weak.upgrade().unwrap();
        assert!(group.state.try_lock().is_some());
        count.fetch_add(1, Ordering::SeqCst);
    });
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| group.poison(full()));
        }
    });
    assert_eq!(reported.load(Ordering::SeqCst), 1);
}

#[test]
fn earlier_poison_is_reported_to_a_new_listener() {
    let group = group(100);
    group.poison(full());
    let reported = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&reported);
    group.on_poison(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    group.poison(full());
    assert_eq!(reported.load(Ordering::SeqCst), 1);
}
