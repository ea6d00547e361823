//! Tests of compaction through the public API: in the background, by `compact_now`, and the records that it keeps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use oncekey::{
    Engine, EngineOptions, ManagerOptions, OnInterrupted, Status,
    admin::{Event, Events},
    clock::ManualClock,
};

const SHORT: Duration = Duration::from_millis(30);
/// The deadline of a test. Only a failing test waits this long.
const LATE: Duration = Duration::from_secs(60);

fn eager() -> EngineOptions {
    Engine::options().compaction_interval(Duration::from_millis(1))
}

/// Waits until this number of records has expired. Returns the number of passes.
fn expired(events: &Events, mut wanted: u64) {
    while wanted > 0 {
        if let Event::Expired { count } = events.next_timeout(LATE).unwrap() {
            wanted = wanted.checked_sub(count).unwrap();
        }
    }
}

#[test]
fn expired_records_are_deleted_in_the_background() {
    let engine = eager().temporary().unwrap();
    let options = ManagerOptions::new().success_ttl(SHORT);
    let manager = engine.manager_with::<u64, String>("m", options).unwrap();
    let events = engine.events();
    for key in 0..50_u64 {
        manager.execute(key.to_be_bytes(), |_| Ok(key)).unwrap();
    }
    expired(&events, 50);
    assert_eq!(engine.stats().expired, 50);
    assert_eq!(engine.records(oncekey::admin::RecordFilter::new()).unwrap().count(), 0);
    assert_eq!(engine.compact_now().unwrap().removed, 0);
}

#[test]
fn an_earlier_expiry_wakes_a_thread_that_sleeps_until_a_later_one() {
    let engine = eager().temporary().unwrap();
    let day = engine.manager::<u64, String>("day").unwrap();
    let short = engine.manager_with::<u64, String>("short", ManagerOptions::new().success_ttl(SHORT)).unwrap();
    let events = engine.events();
    day.execute("k", |_| Ok(1)).unwrap();
    short.execute("k", |_| Ok(2)).unwrap();
    expired(&events, 1);
    assert!(day.get("k").unwrap().is_some());
}

#[test]
fn records_that_expired_while_the_store_was_closed_are_deleted_after_the_next_open() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let engine = Engine::options().clock(clock.clone()).open(dir.path()).unwrap();
    let options = ManagerOptions::new().success_ttl(SHORT);
    engine.manager_with::<u64, String>("m", options.clone()).unwrap().execute("k", |_| Ok(1)).unwrap();
    engine.close().unwrap();
    clock.advance(SHORT);
    let engine = Engine::options().clock(clock).open(dir.path()).unwrap();
    assert!(engine.manager_with::<u64, String>("m", options).unwrap().get("k").unwrap().is_none());
    assert_eq!(engine.compact_now().unwrap().removed, 1);
}

#[test]
fn a_record_with_a_live_owner_never_expires() {
    let clock = ManualClock::new();
    let engine = Engine::options().clock(clock.clone()).temporary().unwrap();
    let options = ManagerOptions::new()
        .success_ttl(SHORT)
        .released_ttl(SHORT)
        .interrupted_ttl(SHORT)
        .on_interrupted(OnInterrupted::Resume);
    let manager = engine.manager_with::<u64, String>("m", options).unwrap();
    let alive = manager.begin("alive").unwrap().into_claim().unwrap();
    manager.begin("released").unwrap().into_claim().unwrap().release().unwrap();
    drop(manager.begin("dropped").unwrap());
    assert_eq!(engine.stats().interrupted, 1);
    clock.advance(SHORT * 1000);
    assert_eq!(engine.compact_now().unwrap().removed, 2);
    assert_eq!(engine.stats().interrupted, 0);
    assert_eq!(manager.get("alive").unwrap().unwrap().status(), Status::InProgress);
    alive.succeed(&1).unwrap();
    clock.advance(SHORT);
    assert_eq!(engine.compact_now().unwrap().removed, 1);
}

#[test]
fn extended_and_restarted_records_stay() {
    let clock = ManualClock::new();
    let engine = Engine::options().clock(clock.clone()).temporary().unwrap();
    let manager = engine.manager_with::<u64, String>("m", ManagerOptions::new().success_ttl(SHORT)).unwrap();
    for key in ["extended", "again", "gone"] {
        manager.execute(key, |_| Ok(1)).unwrap();
    }
    assert!(manager.extend("extended", SHORT * 2).unwrap());
    clock.advance(SHORT);
    let again = manager.begin("again").unwrap().into_claim().unwrap();
    assert_eq!(engine.compact_now().unwrap().removed, 1);
    assert_eq!(*manager.get("extended").unwrap().unwrap().outcome().unwrap().unwrap(), 1);
    assert_eq!(again.attempt(), 1);
    again.succeed(&2).unwrap();
    clock.advance(SHORT);
    assert_eq!(engine.compact_now().unwrap().removed, 2);
}

#[test]
fn an_endless_interval_leaves_deletion_to_compact_now() {
    let engine = Engine::options().compaction_interval(oncekey::FOREVER).temporary().unwrap();
    let manager =
        engine.manager_with::<u64, String>("m", ManagerOptions::new().success_ttl(Duration::from_nanos(1))).unwrap();
    let events = engine.events();
    manager.execute("k", |_| Ok(1)).unwrap();
    // One millisecond is the shortest TTL; a wait for another owner takes some milliseconds.
    let other = manager.begin("other").unwrap();
    let _ = manager.wait("other", Duration::from_millis(5)).unwrap();
    drop(other);
    assert_eq!(engine.compact_now().unwrap().removed, 1);
    let passes = events.ready().filter(|event| matches!(event, Event::Compacted(_))).count();
    assert_eq!(passes, 1, "only the one that was asked for");
}

#[test]
fn a_close_rejected_inside_a_transaction_does_not_stop_compaction() {
    let engine = eager().temporary().unwrap();
    let manager = engine.manager_with::<u64, String>("m", ManagerOptions::new().success_ttl(SHORT)).unwrap();
    let refused = engine.atomic_phase(|_| engine.clone().close());
    assert_eq!(refused.unwrap_err().kind(), oncekey::ErrorKind::InsideTransaction);
    let events = engine.events();
    manager.execute("k", |_| Ok(1)).unwrap();
    expired(&events, 1);
}

#[test]
fn compact_now_deletes_what_has_expired_while_eight_threads_commit() {
    const THREADS: u64 = 8;
    const PASSES: u64 = 10;
    let clock = ManualClock::new();
    let engine = Engine::options().clock(clock.clone()).temporary().unwrap();
    let options = ManagerOptions::new().success_ttl(SHORT);
    let manager = engine.manager_with::<u64, String>("m", options).unwrap();
    let (passes, finished) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut removed = 0;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (manager, passes, finished) = (&manager, &passes, &finished);
            scope.spawn(move || {
                // At least some records, and then until the passes are over.
                for number in 0_u64.. {
                    if number >= 100 && passes.load(Ordering::Relaxed) >= PASSES {
                        return;
                    }
                    manager.execute(format!("{thread} {number}"), |_| Ok(number)).unwrap();
                    finished.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..PASSES {
            clock.advance(SHORT);
            removed += engine.compact_now().unwrap().removed;
            passes.fetch_add(1, Ordering::Relaxed);
        }
    });
    clock.advance(SHORT);
    removed += engine.compact_now().unwrap().removed;
    assert_eq!((removed, engine.stats().expired), (finished.load(Ordering::Relaxed), removed));
    assert_eq!(engine.records(oncekey::admin::RecordFilter::new()).unwrap().count(), 0);
    assert_eq!(engine.verify().unwrap().problems, Vec::<String>::new());
}
