//! Tests of listings, events and gauges, and of the report of an open.

use oncekey::{
    Context, Interruption, Manager, ManagerOptions, Status,
    admin::{Event, Events, RecordFilter, Resolution},
    clock::ManualClock,
};

use crate::common::*;

fn listed(engine: &oncekey::Engine, filter: RecordFilter) -> Vec<String> {
    keys(engine.records(filter).unwrap())
}

/// Checks each listing twice: with records in memory only, and after reopening from disk.
fn before_and_after_reopen(make: impl Fn(&oncekey::Engine, &ManualClock), check: impl Fn(&oncekey::Engine)) {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    make(&first, &clock);
    check(&first);
    first.close().unwrap();
    check(&open(dir.path(), &clock));
}

#[test]
fn records_are_listed_by_manager_and_key() {
    before_and_after_reopen(
        |engine, _| {
            for (name, key) in [("b", "2"), ("a-b", "1"), ("b", "1"), ("a", "z"), ("a", "\u{e9}")] {
                let manager: Manager<String, String> = engine.manager(name).unwrap();
                claim(&manager, key).succeed(&"v".to_owned()).unwrap();
            }
        },
        |engine| {
            let all = engine.records(RecordFilter::new()).unwrap().map(|info| {
                let info = info.unwrap();
                (info.manager().to_owned(), info.key().as_str().unwrap().to_owned())
            });
            let expected = [("a", "z"), ("a", "\u{e9}"), ("a-b", "1"), ("b", "1"), ("b", "2")];
            assert_eq!(all.collect::<Vec<_>>(), expected.map(|(name, key)| (name.to_owned(), key.to_owned())));
            assert_eq!(engine.managers().unwrap(), ["a", "a-b", "b"]);
            assert_eq!(listed(engine, RecordFilter::new().manager("a")), ["z", "\u{e9}"]);
            assert_eq!(listed(engine, RecordFilter::new().manager("none")), Vec::<String>::new());
        },
    );
}

#[test]
fn each_condition_of_a_filter_is_applied() {
    before_and_after_reopen(
        |engine, clock| {
            let manager = texts(engine);
            let begin = |key: &str, context: Context| {
                let options = oncekey::CallOptions::new().context(context);
                claimed(manager.begin_with(key, options).unwrap())
            };
            begin("a1", about("user", "ada")).succeed(&"v".to_owned()).unwrap();
            begin("a2", about("user", "ada").with("city", "bonn")).fail(&"e".to_owned()).unwrap();
            clock.advance(SECOND);
            begin("b1", about("user", "eve").with("city", "bonn")).release().unwrap();
            drop(begin("b2", Context::new()));
            begin("\u{ff}", about("user", "")).succeed(&"v".to_owned()).unwrap();
        },
        |engine| {
            let is = |filter: RecordFilter, expected: &[&str]| {
                assert_eq!(listed(engine, filter.clone()), expected, "{filter:?}");
            };
            let all = RecordFilter::new;
            is(all().key_prefix("a"), &["a1", "a2"]);
            is(all().key_prefix("a1").manager("m"), &["a1"]);
            is(all().key_prefix([0xc3]).manager("m"), &["\u{ff}"]);
            is(all().status(Status::Succeeded), &["a1", "\u{ff}"]);
            is(all().status(Status::Failed).manager("m"), &["a2"]);
            is(all().status(Status::Released), &["b1"]);
            is(all().status(Status::Interrupted).key_prefix("b"), &["b2"]);
            is(all().status(Status::InProgress), &[]);
            is(all().recovery_point("finished"), &["a1", "a2", "\u{ff}"]);
            is(all().recovery_point("started"), &["b1", "b2"]);
            is(all().context("user", "ada"), &["a1", "a2"]);
            is(all().context("user", ""), &["\u{ff}"]);
            is(all().context("city", "bonn").context("user", "ada"), &["a2"]);
            is(all().context("city", "bonn").key_prefix("b").status(Status::Released), &["b1"]);
            let later = engine.raw("m").unwrap().get("b1").unwrap().unwrap().info().updated_at();
            is(all().updated_before(later), &["a1", "a2"]);
            is(all().updated_before(later + MS), &["a1", "a2", "b1", "b2", "\u{ff}"]);
        },
    );
}

#[test]
fn a_listing_longer_than_a_batch_contains_each_record_once() {
    before_and_after_reopen(
        |engine, _| {
            let manager: Manager<u64, String> = engine.manager("m").unwrap();
            // Half of them are begun by key and stay in progress, so that both places of records are listed.
            for n in 0..600_u64 {
                if n % 2 == 0 {
                    assert!(manager.initiate(format!("{n:04}")).unwrap().is_some());
                } else {
                    claim(&manager, &format!("{n:04}")).succeed(&n).unwrap();
                }
            }
        },
        |engine| {
            let all: Vec<String> = (0..600).map(|n| format!("{n:04}")).collect();
            assert_eq!(listed(engine, RecordFilter::new()), all);
            assert_eq!(listed(engine, RecordFilter::new().recovery_point("started")).len(), 300);
        },
    );
}

#[test]
fn interrupted_after_reopen_lists_exactly_the_live_claims() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open(dir.path(), &clock);
    let (manager, other): (Texts, Manager<u64, u64>) = (texts(&first), first.manager("other").unwrap());
    let _live = [claim(&manager, "b"), claim(&manager, "a"), claim(&manager.scoped("s").unwrap(), "a")];
    let _other = claim(&other, "z");
    assert!(other.initiate("by key").unwrap().is_some());
    claim(&manager, "won").succeed(&"v".to_owned()).unwrap();
    claim(&manager, "lost").fail(&"e".to_owned()).unwrap();
    claim(&manager, "released").release().unwrap();
    assert_eq!(first.interrupted().unwrap().count(), 0);
    first.crash();

    let second = open(dir.path(), &clock);
    let found: Vec<_> = second.interrupted().unwrap().map(|info| info.unwrap()).collect();
    let named: Vec<_> = found.iter().map(|info| format!("{}:{}", info.manager(), info.key())).collect();
    assert_eq!(named, ["m:a", "m:b", "m:/s/a", "other:by%20key", "other:z"]);
    assert!(found.iter().all(|info| info.interruption() == Some(Interruption::ProcessEnded)));
    assert_eq!((second.opened().interrupted, second.stats().interrupted, second.stats().in_progress), (5, 5, 0));
    // Once resolved, they are no longer listed, not even after a reopen.
    for info in &found {
        second.raw(info.manager()).unwrap().resolve(info.key(), Resolution::Retry).unwrap();
    }
    assert_eq!((second.interrupted().unwrap().count(), second.stats().interrupted), (0, 0));
    second.close().unwrap();
    let third = open(dir.path(), &clock);
    assert_eq!((third.opened().interrupted, third.interrupted().unwrap().count()), (0, 0));
}

#[test]
fn an_open_reports_what_it_found() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let first = open_local(dir.path(), &clock);
    assert!(first.opened().created && first.path() == dir.path());
    assert_eq!((first.opened().interrupted, first.opened().frames_replayed, first.opened().torn_bytes), (0, 0, 0));
    claim(&texts(&first), "k").succeed(&"v".to_owned()).unwrap();
    first.close().unwrap();
    let second = open_local(dir.path(), &clock);
    assert!(!second.opened().created && second.opened().clean);
    assert_eq!((second.opened().interrupted, second.opened().torn_bytes), (0, 0));
}

#[test]
fn a_temporary_store_is_removed_with_its_last_handle() {
    let (engine, _) = local_engine();
    let path = engine.path().to_owned();
    let claim = claim(&texts(&engine), "k");
    drop(engine);
    assert!(path.exists(), "the claim is a handle");
    drop(claim);
    assert!(!path.exists());
}

fn shown(event: &Event) -> String {
    match event {
        Event::Began(info) => format!("began {}", info.key()),
        Event::Replayed(info) => format!("replayed {}", info.key()),
        Event::Ended(info) => format!("ended {} {:?}", info.key(), info.status()),
        Event::Expired { count } => format!("expired {count}"),
        Event::Compacted(done) => format!("compacted {}", done.removed),
        other => format!("{other:?}"),
    }
}

#[test]
fn every_subscriber_gets_all_events() {
    let (engine, clock) = engine();
    let manager = texts(&engine);
    let (one, two) = (engine.events(), engine.events());
    claim(&manager, "a").succeed(&"v".to_owned()).unwrap();
    assert_eq!(answer(&manager, "a"), "replay");
    drop(claim(&manager, "b"));
    assert_eq!(answer(&manager, "b"), "interrupted");
    manager.resolve("b", Resolution::Fail("e".to_owned())).unwrap();
    let token = manager.initiate("c").unwrap().unwrap();
    manager.release("c", token).unwrap();
    clock.advance(DAY);
    engine.compact_now().unwrap();
    let expected = [
        "began a",
        "ended a Succeeded",
        "replayed a",
        "began b",
        "ended b Interrupted",
        "ended b Failed",
        "began c",
        "ended c Released",
        "expired 3",
        "compacted 3",
    ];
    for subscriber in [one, two] {
        assert_eq!(subscriber.ready().map(|event| shown(&event)).collect::<Vec<_>>(), expected);
    }
    // A late subscriber gets later events only, and the end when the engine closes.
    let late = engine.events();
    claim(&manager, "d").release().unwrap();
    engine.close().unwrap();
    assert_eq!(late.map(|event| shown(&event)).collect::<Vec<_>>(), ["began d", "ended d Released"]);
}

#[test]
fn a_full_queue_drops_and_counts_events_of_that_subscriber_only() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let (slow, fast) = (engine.events(), engine.events());
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    for _ in 0..Events::CAPACITY {
        assert_eq!(answer(&manager, "k"), "replay");
        assert!(fast.try_next().is_some());
    }
    assert_eq!(fast.ready().count(), 2);
    // One more, which says that two were dropped.
    assert_eq!((engine.stats().events_dropped, slow.ready().count()), (2, Events::CAPACITY + 1));
    drop(fast);
    for _ in 0..=Events::CAPACITY {
        assert_eq!(answer(&manager, "k"), "replay");
    }
    assert_eq!(engine.stats().events_dropped, 3);
    drop(slow);
    assert_eq!(answer(&manager, "k"), "replay");
    assert_eq!(engine.stats().events_dropped, 3, "without a reader no event is missed");
}

#[test]
fn a_subscriber_that_falls_behind_gets_the_number_of_missed_events() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    claim(&manager, "k").succeed(&"v".to_owned()).unwrap();
    let slow = engine.events();
    let replays = |count| (0..count).for_each(|_| assert_eq!(answer(&manager, "k"), "replay"));
    let missed = |event| match event {
        Event::Replayed(_) => 0,
        Event::Missed { count } => count,
        other => panic!("{other:?}"),
    };
    let read = |count| slow.ready().take(count).map(missed).collect::<Vec<_>>();
    replays(Events::CAPACITY + 3);
    // The gap is in the place of the dropped events, even if later events find a place after it.
    assert_eq!(read(Events::CAPACITY), vec![0; Events::CAPACITY]);
    replays(2);
    assert_eq!(read(9), [3, 0, 0]);
    // There can be several gaps, and the last one is reported although no event follows.
    replays(Events::CAPACITY + 1);
    assert_eq!(read(2), [0, 0]);
    replays(3);
    engine.close().unwrap();
    let rest: Vec<_> = slow.map(missed).collect();
    let (first, last) = rest.split_at(Events::CAPACITY - 2);
    assert!(first.iter().all(|missed| *missed == 0));
    assert_eq!(last, [1, 0, 2]);
}

#[test]
fn gauges_match_the_records() {
    let (engine, _) = engine();
    let manager = texts(&engine);
    let gauges = || (engine.stats().in_progress, engine.stats().interrupted);
    assert_eq!(gauges(), (0, 0));
    let first = claim(&manager, "a");
    let second = claim(&manager, "b");
    let token = manager.initiate("c").unwrap().unwrap();
    assert_eq!(gauges(), (3, 0));
    first.succeed(&"v".to_owned()).unwrap();
    drop(second);
    assert_eq!(gauges(), (1, 1));
    manager.release("c", token).unwrap();
    assert!(manager.remove("c").unwrap());
    assert_eq!(gauges(), (0, 1));
    manager.resolve("b", Resolution::Retry).unwrap();
    assert_eq!(gauges(), (0, 0));
    claim(&manager, "b").interrupt().unwrap();
    assert!(manager.remove("b").unwrap());
    assert_eq!(gauges(), (0, 0));
    assert_eq!(answer(&manager, "a"), "replay");
    assert_eq!(engine.stats().replays, 1);
}

#[test]
fn the_gauge_of_interrupted_records_is_right_after_a_compaction() {
    let (engine, clock) = engine();
    let (lapsing, lasting) =
        (ManagerOptions::new().released_ttl(SECOND).interrupted_ttl(SECOND), ManagerOptions::new());
    let (lapsing, lasting) = (texts_with(&engine, lapsing), texts_with(&engine, lasting));
    claim(&lapsing, "released").release().unwrap();
    drop(claim(&lapsing, "dropped"));
    drop(claim(&lasting, "held"));
    assert_eq!(engine.stats().interrupted, 2);
    clock.advance(SECOND);
    assert_eq!(engine.compact_now().unwrap().removed, 2);
    assert_eq!((engine.interrupted().unwrap().count(), engine.stats().interrupted), (1, 1));
}

#[test]
fn compaction_of_released_records_does_not_change_the_gauge_of_interrupted_ones() {
    let (engine, clock) = engine();
    claim(&texts_with(&engine, ManagerOptions::new().released_ttl(SECOND).interrupted_ttl(SECOND)), "released")
        .release()
        .unwrap();
    drop(claim(&texts(&engine), "held"));
    clock.advance(SECOND);
    assert_eq!(engine.compact_now().unwrap().removed, 1);
    assert_eq!((engine.interrupted().unwrap().count(), engine.stats().interrupted), (1, 1));
}

#[test]
fn a_store_can_be_opened_and_closed_repeatedly() {
    let (idle, used, clock) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), ManualClock::new());
    for n in 0..40_usize {
        let reopened =
            options(&clock).open_store(idle.path()).unwrap_or_else(|error| panic!("idle, open {n}: {error}"));
        reopened.close().unwrap();
        let reopened =
            options(&clock).open_store(used.path()).unwrap_or_else(|error| panic!("used, open {n}: {error}"));
        // Drop instead of close: the last handle does the same.
        texts(&reopened).execute(format!("{n:02}"), |_| Ok("v".to_owned())).unwrap();
    }
    assert_eq!(listed(&open(used.path(), &clock), RecordFilter::new()).len(), 40);
}

// Between fork and exec, a child has copies of all descriptors, including that of the lock. Closing our copy does not
// free that lock.
#[test]
fn a_closed_store_is_free_while_another_thread_starts_processes() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (done, mut refused) = (AtomicBool::new(false), Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::process::Command::new("true").status().unwrap();
                }
            });
        }
        for _ in 0..8 {
            let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
            open(dir.path(), &clock).close().unwrap();
            refused.extend(options(&clock).open(dir.path()).err());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(refused.is_empty(), "{refused:?}");
}
