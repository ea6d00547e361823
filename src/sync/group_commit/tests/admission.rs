//! Tests of the order of admission, and of the end of waits that take too long.

use std::sync::Mutex;

use super::*;

/// Starts a thread that commits. Returns when its commit is in the queue.
fn queued<'a>(
    scope: &'a thread::Scope<'a, '_>,
    group: &'a Frames,
    priority: Priority,
    admitted: &'a Mutex<Vec<(Priority, u8)>>,
    name: u8,
) {
    let before = group.state.lock().queue.len();
    scope.spawn(move || {
        let admission = group.admit(10, priority).unwrap();
        admitted.lock().unwrap().push((priority, name));
        admission.commit_bytes(&[0; 10], 1);
    });
    while group.state.lock().queue.len() == before {
        thread::yield_now();
    }
}

#[test]
fn a_frame_counts_with_its_own_length_not_the_admitted_one() {
    let group = group(100);
    let short = |expected| {
        let admission = group.admit(50, Priority::User).unwrap();
        admission.commit_bytes(&[7], 1);
        let state = group.state.lock();
        assert_eq!(
            (state.payload.len(), state.committed, state.unapplied),
            (expected, expected as u64, expected as u64)
        );
    };
    (1..=5).for_each(short);
}

#[test]
fn admission_is_first_come_first_served_and_endings_go_before_begins() {
    let group = group_with(100_000, |config| config.max_unapplied = 10);
    user(&group, 10).unwrap();
    let admitted = Mutex::default();
    let (group, admitted) = (&group, &admitted);
    thread::scope(|scope| {
        for name in 0..5 {
            queued(scope, group, Priority::User, admitted, name);
        }
        for name in 0..5 {
            queued(scope, group, Priority::Finishing, admitted, name);
        }
        // A commit that needs no credit does not wait for those that do.
        commit(group, 1, Priority::Ending).unwrap();
        // There is credit for one commit at a time.
        for count in 1..=10 {
            let (batch, _) = taken(group);
            group.publish(batch.group);
            group.applied(batch.group, batch.payload.len() as u64);
            while admitted.lock().unwrap().len() < count || group.state.lock().queue.len() > 10 - count {
                thread::yield_now();
            }
        }
    });
    let finishing = (0..5).map(|name| (Priority::Finishing, name));
    let users = (0..5).map(|name| (Priority::User, name));
    assert_eq!(*admitted.lock().unwrap(), finishing.chain(users).collect::<Vec<_>>());
}

#[test]
fn a_small_commit_does_not_overtake_a_large_one() {
    let group = group(100);
    group.provide_segment(Err(full()));
    thread::scope(|scope| {
        let large = scope.spawn(|| user(&group, 200));
        assert_eq!(group.wait_wanted(), Some(230));
        let small = scope.spawn(|| user(&group, 1));
        while group.state.lock().queue.len() < 2 {
            thread::yield_now();
        }
        assert!(!small.is_finished() && group.newest() == 0, "it would fit, and waits for its turn");
        group.provide_segment(Ok((1_000, "next_segment")));
        assert_eq!((large.join().unwrap().unwrap(), small.join().unwrap().unwrap()), (1, 1));
    });
    assert_eq!(taken(&group).0.payload.len(), 201);
}

#[test]
fn the_order_does_not_matter_if_there_is_enough_for_all_that_wait() {
    let group = group_with(100_000, |config| {
        config.timeout = Duration::from_millis(100);
        config.max_unapplied = 30;
    });
    always_progresses(&group, true);
    // A waiting commit of 10 bytes that was woken and has not run yet.
    let (position, _) = group.state.lock().enqueue(super::super::priority::Class::User, 10);
    assert_eq!(user(&group, 10).unwrap(), 1);
    assert_eq!(
        user(&group, 10).unwrap_err().kind(),
        ErrorKind::Busy,
        "there is credit for one commit, and the waiting one goes first"
    );
    group.state.lock().leave(position);
    assert_eq!(user(&group, 10).unwrap(), 1);
    assert_eq!(group.state.lock().queued, 0);
}

/// Sets whether each call of `progress` reports progress.
fn always_progresses(group: &Frames, is_on: bool) {
    group.always_progresses.store(is_on, Ordering::Relaxed);
}

#[test]
fn a_begin_times_out_as_busy_and_changes_nothing() {
    let group = group_with(100_000, |config| {
        config.timeout = Duration::from_millis(100);
        config.max_unapplied = 10;
    });
    let ticket = user(&group, 10).unwrap();
    group.publish(ticket);
    always_progresses(&group, true);
    for _ in 0..2 {
        let error = user(&group, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("waited for its turn for 100ms"), "{error}");
    }
    is(group.wait_applied(ticket), ErrorKind::Busy);
    assert_eq!((group.unapplied(), group.state.lock().queue.len()), (10, 0));
    group.check().unwrap();
    group.applied(taken(&group).0.group, 10);
    assert_eq!(user(&group, 1).unwrap(), 2);
}

#[test]
fn an_ending_waits_as_long_as_there_is_progress() {
    let group = group_with(100_000, |config| {
        config.timeout = Duration::from_millis(20);
        config.max_unapplied = 10;
    });
    user(&group, 10).unwrap();
    always_progresses(&group, true);
    thread::scope(|scope| {
        let ending = scope.spawn(|| commit(&group, 1, Priority::Finishing));
        // Other calls run into several timeouts meanwhile.
        for _ in 0..5 {
            is(user(&group, 1), ErrorKind::Busy);
        }
        assert!(!ending.is_finished());
        group.applied(taken(&group).0.group, 10);
        ending.join().unwrap().unwrap();
    });
}

#[test]
fn a_wait_for_a_sync_goes_on_as_long_as_groups_are_written() {
    let group = group_with(1_000, |config| config.timeout = Duration::from_millis(20));
    let ticket = user(&group, 1).unwrap();
    always_progresses(&group, true);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| group.wait(ticket));
        until_waiting(&group, 1);
        let begun = clock::deadline(Duration::from_millis(200)).unwrap();
        while clock::monotonic() < begun {
            assert!(!waiting.is_finished());
            thread::yield_now();
        }
        always_progresses(&group, false);
        let error = waiting.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("waited for its sync"), "{error}");
    });
}

#[test]
fn after_a_wait_read_again_is_called_without_a_lock_and_the_position_stays() {
    let group = &group_with(100_000, |config| config.max_unapplied = 10);
    user(group, 10).unwrap();
    let looked = &AtomicU32::new(0);
    group.admit_after(1, Priority::GivingUp, || unreachable!("it did not wait")).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(move || {
            let admission = group.admit_after(10, Priority::User, || {
                assert!(group.state.try_lock().is_some_and(|state| state.queue.len() == 2), "it is in the queue");
                looked.fetch_add(1, Ordering::SeqCst);
            });
            admission.unwrap().commit_bytes(&[0; 10], 1)
        });
        while group.state.lock().queue.is_empty() {
            thread::yield_now();
        }
        let panics = scope.spawn(|| group.admit_after(10, Priority::User, || panic!("on purpose")).map(drop));
        while group.state.lock().queue.len() < 2 {
            thread::yield_now();
        }
        group.applied(taken(group).0.group, 10);
        assert_eq!(first.join().unwrap(), 2);
        group.applied(taken(group).0.group, 10);
        assert!(panics.join().is_err());
    });
    assert_eq!(looked.load(Ordering::SeqCst), 1);
    assert!(group.state.lock().queue.is_empty(), "a commit whose callback panics leaves the queue");
    user(group, 1).unwrap();
}
