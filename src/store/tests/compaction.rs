//! Deletion of expired records, leftovers of crashes, and merges of runs.

use std::thread;

use super::*;
use crate::types::context::Context;

pub(super) fn with_clock(dir: &Path) -> (Store, ManualClock, u64) {
    let clock = ManualClock::new();
    // Large segments, so that a flush happens only on request.
    let (store, _) = open_with(dir, &options().clock(clock.clone()).segment_bytes(4 << 20));
    let now = store.now().store;
    (store, clock, now)
}

/// Deletes everything that is due.
pub(super) fn compact_all(store: &Store) -> Deleted {
    pass(store, Pass::exact())
}

pub(super) fn pass(store: &Store, mut pass: Pass) -> Deleted {
    let mut all = Deleted::default();
    while let Some(deleted) = store.compact(&mut pass, 4).unwrap() {
        all += deleted;
    }
    all
}

#[test]
fn compaction_deletes_exactly_what_is_expired() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    let expires = |index: u64| if index % 3 == 0 { NEVER } else { now + index };
    for index in 0..60 {
        put(&store, &key(index.to_string()), StoredRecord { expires: expires(index), ..done(&bytes(5_000)) });
        if index % 7 == 0 {
            store.drain().unwrap();
        }
    }
    store.drain().unwrap();
    assert_eq!(compact_all(&store).records, 0, "nothing is due");
    clock.advance(Duration::from_millis(30));
    let deleted = compact_all(&store);
    let due = (0..60).filter(|index| expires(*index) <= now + 30).count() as u64;
    assert_eq!((deleted.records, deleted.bytes), (due, due * 5_000));
    for index in 0..60 {
        assert_eq!(stored(&store, &key(index.to_string())).is_some(), expires(index) > now + 30, "{index}");
    }
    assert_eq!(entries(&store), 60 - due);
    clock.advance(Duration::from_secs(3));
    assert_eq!(compact_all(&store).records, 40 - due);
    assert_eq!(entries(&store), 20);
    assert_eq!(store.next_due(), NEVER);
    assert_eq!(store.verify().unwrap().problems, Vec::<String>::new());
}

#[test]
fn a_record_that_expires_before_its_flush_is_counted_and_not_written() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    put(&store, &key("gone"), StoredRecord { expires: now + 1, ..done(b"four") });
    put(&store, &key("kept"), done(b"x"));
    clock.advance(Duration::from_millis(1));
    assert_eq!(store.next_due(), now + 1);
    let deleted = pass(&store, Pass::default());
    assert_eq!((deleted.records, deleted.bytes), (1, 4));
    assert_eq!((entries(&store), store.inner.shared.memtable.len()), (1, 0));
    assert_eq!(store.next_due(), NEVER);
}

#[test]
fn compaction_keeps_a_record_that_was_begun_again_and_continues_after_it() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for name in ["a", "b", "c"] {
        put(&store, &key(name), StoredRecord { expires: now + 1, ..done(b"old") });
    }
    store.drain().unwrap();
    clock.advance(Duration::from_millis(5));
    put(&store, &key("a"), at_work());
    put(&store, &key("b"), StoredRecord { expires: now + 100, ..done(b"new") });
    assert_eq!(compact_all(&store).records, 1);
    assert_eq!(store.verify().unwrap().problems, Vec::<String>::new());
    assert_eq!(stored(&store, &key("a")).unwrap().state, Status::InProgress);
    assert_eq!(outcome(&store, &key("b")).unwrap(), b"new");
    assert!(stored(&store, &key("c")).is_none());
    // Flush, so that the record is in a newer run than the old one.
    let (store, clock, now) = (store, clock, now + 5);
    put(&store, &key("d"), StoredRecord { expires: now + 1, ..done(b"old") });
    store.drain().unwrap();
    put(&store, &key("d"), StoredRecord { expires: now + 50_000, ..done(b"new") });
    store.drain().unwrap();
    clock.advance(Duration::from_millis(2));
    assert_eq!(compact_all(&store).records, 0);
    assert_eq!(outcome(&store, &key("d")).unwrap(), b"new");
}

#[test]
fn an_old_version_stays_hidden_when_its_replacement_has_expired() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for (name, size) in [("expired", 1), ("expired long", 9_000), ("removed", 1)] {
        put(&store, &key(name), done(&bytes(size)));
    }
    store.drain().unwrap();
    for name in ["expired", "expired long"] {
        put(&store, &key(name), StoredRecord { expires: now + 1, ..done(b"short-lived") });
    }
    remove(&store, &key("removed"));
    store.drain().unwrap();
    clock.advance(Duration::from_millis(2));
    assert_eq!(compact_all(&store).records, 2);
    let all_gone = |store: &Store| {
        for name in ["expired", "expired long", "removed"] {
            assert!(stored(store, &key(name)).is_none(), "{name}");
        }
    };
    all_gone(&store);
    store.close().unwrap();
    let (store, _) = open_with(dir.path(), &options().clock(clock.clone()));
    all_gone(&store);
    // The same when it expires in the memtable, with the old version in a run.
    put(&store, &key("removed"), StoredRecord { expires: store.now().store + 1, ..done(b"again") });
    clock.advance(Duration::from_millis(2));
    assert_eq!(compact_all(&store).records, 1);
    all_gone(&store);
}

#[test]
fn the_removal_of_an_unfinished_record_moves_its_version_counter() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    put(&store, &key("k"), StoredRecord { expires: now + 1, ..unfinished(Status::Interrupted) });
    store.drain().unwrap();
    let seen = store.read(&key("k"), Load::WithoutOutcome).unwrap().seen;
    clock.advance(Duration::from_millis(5));
    let deleted = compact_all(&store);
    assert_eq!((deleted.records, deleted.interrupted), (1, 1));
    // Otherwise both the removal and the commit would count the record.
    assert!(store.commit(vec![set(&key("k"), at_work())], &[seen], Priority::User).unwrap().is_none());
    // The run still has the record, and the next flush writes a tombstone.
    assert!(stored(&store, &key("k")).is_none());
    crash(store);
    let (store, report) = open_with(dir.path(), &options().clock(clock));
    assert_eq!(report.interrupted, 0);
    // The removal happens again if the crash has undone it.
    assert!(compact_all(&store).records <= 1);
    assert!(stored(&store, &key("k")).is_none_or(|stored| stored.seen(&store.now()).is_none()));
}

#[test]
fn an_expired_record_that_was_begun_again_is_not_removed() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for name in ["begun", "flushed"] {
        put(&store, &key(name), StoredRecord { expires: now + 1, ..unfinished(Status::Released) });
    }
    store.drain().unwrap();
    clock.advance(Duration::from_millis(5));
    put(&store, &key("flushed"), at_work());
    store.drain().unwrap();
    put(&store, &key("begun"), at_work());
    assert_eq!(compact_all(&store).records, 0);
    for name in ["begun", "flushed"] {
        assert_eq!(stored(&store, &key(name)).unwrap().state, Status::InProgress);
    }
    assert_eq!(store.next_due(), NEVER);
}

#[test]
fn a_record_that_was_flushed_again_during_a_pass_is_not_removed() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for name in ["ended", "begun", "same"] {
        put(&store, &key(name), StoredRecord { expires: now + 1, ..unfinished(Status::Released) });
    }
    store.drain().unwrap();
    clock.advance(Duration::from_millis(5));
    let found = store.inner.shared.unfinished.expired(&store.now(), 9);
    assert_eq!(found.len(), 3);
    // A flush between two steps of the pass writes newer contents, so the memtable does not have them either.
    put(&store, &key("ended"), done(b"x"));
    put(&store, &key("begun"), at_work());
    store.drain().unwrap();
    assert_eq!(store.inner.remove_expired(&found).records, 1);
    assert_eq!(outcome(&store, &key("ended")).unwrap(), b"x");
    assert_eq!(stored(&store, &key("begun")).unwrap().state, Status::InProgress);
    assert!(stored(&store, &key("same")).is_none());
    let (unfinished, _) = store.keys(Index::Unfinished, &StoreKey::first_record(), None, 9).unwrap();
    assert_eq!(unfinished, [key("begun")]);
}

#[test]
fn a_pass_ends_although_more_records_expire_meanwhile() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for index in 0..20 {
        put(&store, &key(index.to_string()), StoredRecord { expires: now + 1 + index, ..done(b"x") });
    }
    store.drain().unwrap();
    clock.advance(Duration::from_millis(1));
    let (mut pass, mut steps) = (Pass::exact(), 0);
    while store.compact(&mut pass, 4).unwrap().is_some() {
        clock.advance(Duration::from_millis(1));
        steps += 1;
    }
    assert_eq!((steps, entries(&store)), (1, 19));
}

#[test]
fn a_damaged_run_is_not_merged_and_does_not_stop_other_merges() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    // Runs that are due soon are not merged.
    let expires = now + 3_600_000;
    for round in 0..7 {
        put(&store, &key(round.to_string()), StoredRecord { expires, ..done(b"x") });
        store.drain().unwrap();
    }
    let damaged = store.inner.shared.runs.current()[3].info.id;
    store.inner.shared.tables.insert(&block::key(block::Place { run: damaged, number: 0 }), b"junk").unwrap();
    // The eighth run triggers a merge. Later runs are merged without the damaged one.
    for round in 7..20 {
        put(&store, &key(round.to_string()), StoredRecord { expires, ..done(b"x") });
        store.drain().unwrap();
    }
    while store.inner.shared.runs.current().len() > 8 + 7 || stored_runs(&store) > 8 + 7 {
        thread::yield_now();
    }
    for round in (0..20).filter(|round| *round != 3) {
        assert_eq!(outcome(&store, &key(round.to_string())).unwrap(), b"x");
    }
    assert_eq!(store.read(&key("3"), Load::All).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(store.verify().unwrap().problems.len(), 1);
    // The run is due, so a pass that wants to rewrite it gets the error.
    clock.advance(Duration::from_secs(3_600));
    let mut pass = Pass::exact();
    let error = loop {
        match store.compact(&mut pass, 4) {
            Ok(deleted) => assert!(deleted.is_some(), "a run is left"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    put(&store, &key("new"), done(b"y"));
    store.drain().unwrap();
    assert_eq!(outcome(&store, &key("new")).unwrap(), b"y");
}

#[test]
fn a_large_run_is_left_until_half_of_it_has_expired() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for index in 0..100 {
        put(&store, &key(index.to_string()), StoredRecord { expires: now + 1 + index, ..done(&bytes(5_000)) });
    }
    store.drain().unwrap();
    let half = store.next_due();
    assert!((now + 45..now + 55).contains(&half), "{half}");
    clock.advance(Duration::from_millis(40));
    assert_eq!(pass(&store, Pass::default()).records, 0);
    assert_eq!(pass(&store, Pass::exact()).records, 40);
    clock.advance(Duration::from_millis(40));
    assert_eq!(pass(&store, Pass::default()).records, 40);
    assert_eq!(entries(&store), 20);
}

#[test]
fn unfinished_records_of_dead_owners_are_deleted_when_they_expire() {
    let dir = temp();
    let (store, clock, _) = with_clock(dir.path());
    put(&store, &key("dead"), StoredRecord { interrupted_ttl: 10, ..at_work() });
    put(&store, &key("held"), at_work());
    store.close().unwrap();
    let (store, _) = open_with(dir.path(), &options().clock(clock.clone()));
    put(&store, &key("live"), StoredRecord { interrupted_ttl: 10, ..at_work() });
    clock.advance(Duration::from_millis(9));
    assert_eq!(compact_all(&store).records, 0);
    clock.advance(Duration::from_millis(1));
    assert_eq!(compact_all(&store).records, 1);
    assert_eq!(compact_all(&store).records, 0);
    assert!(stored(&store, &key("dead")).is_none());
    assert!(stored(&store, &key("held")).is_some() && stored(&store, &key("live")).is_some());
}

#[test]
fn leftovers_of_a_crash_are_deleted_after_the_next_open() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("kept"), done(&bytes(9_000)));
    let held = StoredRecord { context: Context::new().with("c", bytes(9_000)), ..unfinished(Status::Released) };
    put(&store, &key("held"), held);
    store.drain().unwrap();
    // As if the process had died while it wrote two runs.
    let tables = &store.inner.shared.tables;
    for (run, number) in [(900, 0), (900, 1), (901, 0)] {
        tables.insert(&block::key(block::Place { run, number }), b"").unwrap();
    }
    tables.flush().unwrap();
    crash(store);
    let (store, report) = open(dir.path());
    assert!(!report.clean);
    wait_for_deletions(&store);
    assert_eq!(compact_all(&store).leftovers, 2);
    assert_eq!(compact_all(&store).leftovers, 0, "counted once");
    assert_eq!(outcome(&store, &key("kept")).unwrap(), bytes(9_000));
    assert_eq!(stored(&store, &key("held")).unwrap().context.get("c").unwrap(), bytes(9_000));
    put(&store, &key("new"), done(b"x"));
    store.drain().unwrap();
    assert!(store.inner.shared.runs.current().iter().all(|run| run.info.id > 901 || run.info.id < 900));
}

#[test]
fn merges_keep_the_number_of_runs_low_and_lose_nothing() {
    let dir = temp();
    let (store, _, _) = with_clock(dir.path());
    for round in 0..100_u64 {
        put(&store, &key(format!("{:02}", round % 40)), done(&[&round.to_le_bytes(), [7; 700].as_slice()].concat()));
        put(&store, &key(format!("gone {round}")), done(b"x"));
        if round > 0 {
            remove(&store, &key(format!("gone {}", round - 1)));
        }
        store.drain().unwrap();
    }
    while store.inner.shared.runs.current().len() > 16 || stored_runs(&store) > 16 {
        thread::yield_now();
    }
    for index in 0..40_u64 {
        let newest = if index < 20 { index + 80 } else { index + 40 };
        assert_eq!(outcome(&store, &key(format!("{index:02}"))).unwrap()[..8], newest.to_le_bytes(), "{index}");
    }
    let report = store.verify().unwrap();
    assert_eq!((report.records, report.problems), (41, Vec::new()));
    store.close().unwrap();
    let (store, _) = open(dir.path());
    assert_eq!(store.verify().unwrap().records, 41);
    wait_for_deletions(&store);
    assert_eq!(compact_all(&store).leftovers, 0, "a close is no crash");
}

#[test]
fn no_block_is_deleted_while_its_run_has_a_reader() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    put(&store, &key("k"), StoredRecord { expires: now + 1, ..done(&bytes(9_000)) });
    store.drain().unwrap();
    let held = store.inner.shared.runs.current();
    clock.advance(Duration::from_millis(2));
    assert_eq!(compact_all(&store).records, 1);
    assert_eq!((store.inner.shared.runs.current().len(), stored_runs(&store)), (0, 1));
    held[0].check(&store.inner.shared.tables, &mut Err).unwrap();
    drop(held);
    put(&store, &key("other"), done(b"x"));
    store.drain().unwrap();
    while stored_runs(&store) > 1 {
        thread::yield_now();
    }
}

#[test]
fn readers_of_each_list_during_a_merge_keep_its_blocks() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for name in 0..40 {
        put(&store, &key(name.to_string()), StoredRecord { expires: now + 1 + name % 2, ..done(&bytes(5_000)) });
    }
    store.drain().unwrap();
    let runs = &store.inner.shared.runs;
    *runs.readers.lock() = Some(vec![runs.current()]);
    clock.advance(Duration::from_millis(1));
    compact_all(&store);
    let held = runs.readers.lock().take().unwrap();
    assert!(held.len() > 3, "the merge listed {} times", held.len());
    clock.advance(Duration::from_millis(1));
    compact_all(&store);
    for runs in &held {
        for run in runs.iter() {
            run.check(&store.inner.shared.tables, &mut Err).unwrap();
        }
    }
    drop(held);
    put(&store, &key("other"), super::done(b"x"));
    store.drain().unwrap();
    while stored_runs(&store) > 1 {
        thread::yield_now();
    }
}

#[test]
fn a_run_whose_records_have_all_expired_is_dropped_and_no_run_is_written() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    for name in 0..40 {
        put(&store, &key(name.to_string()), StoredRecord { expires: now + 1, ..done(&bytes(5_000)) });
    }
    store.drain().unwrap();
    let runs = &store.inner.shared.runs;
    let before: Vec<_> = runs.current().iter().map(|run| run.info.id).collect();
    *runs.readers.lock() = Some(Vec::new());
    clock.advance(Duration::from_millis(1));
    assert_eq!(compact_all(&store).records, 40);
    let lists = runs.readers.lock().take().unwrap();
    assert!(lists.last().is_some_and(|list| list.is_empty()), "{lists:?}");
    assert!(lists.iter().flat_map(|list| list.iter()).all(|run| before.contains(&run.info.id)), "{lists:?}");
}

/// Each write fails in turn. sled then has all writes before it and none after.
#[test]
fn a_flush_or_merge_that_fails_at_any_write_loses_nothing_and_leaves_nothing() {
    for step in 0.. {
        let dir = temp();
        let (store, clock, now) = with_clock(dir.path());
        put(&store, &key("gone"), StoredRecord { expires: now + 1, ..done(b"x") });
        put(&store, &key("long"), done(&bytes(9_000)));
        put(&store, &key("given up"), unfinished(Status::Released));
        store.drain().unwrap();
        clock.advance(Duration::from_secs(2));
        put(&store, &key("new"), done(&bytes(5_000)));
        let tables = &store.inner.shared.tables;
        tables.writes_left.store(step, Ordering::Relaxed);
        let drained = store.drain();
        let mut pass = Pass::exact();
        let finished = drained.is_ok()
            && loop {
                match store.compact(&mut pass, 4) {
                    Ok(Some(_)) => {}
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
        // The replaced runs are deleted afterwards.
        while finished
            && store.inner.commit_queue.check().is_ok()
            && stored_runs(&store) > store.inner.shared.runs.current().len()
        {
            thread::yield_now();
        }
        let finished = finished && store.inner.commit_queue.check().is_ok();
        tables.writes_left.store(u64::MAX, Ordering::Relaxed);
        crash(store);
        let (store, _) = open_with(dir.path(), &options().clock(clock.clone()));
        assert!(stored(&store, &key("gone")).is_none_or(|stored| stored.seen(&store.now()).is_none()), "step {step}");
        compact_all(&store);
        let report = store.verify().unwrap();
        assert_eq!((report.records, report.problems), (3, Vec::new()), "step {step}");
        assert_eq!(outcome(&store, &key("long")).unwrap(), bytes(9_000), "step {step}");
        assert_eq!(outcome(&store, &key("new")).unwrap(), bytes(5_000), "step {step}");
        store.close().unwrap();
        let (store, _) = open_with(dir.path(), &options().clock(clock.clone()));
        wait_for_deletions(&store);
        if finished {
            assert!(step > 12, "it wrote only {step} times");
            return;
        }
    }
}

#[test]
fn a_listing_returns_keys_of_memtable_and_runs_in_order() {
    let dir = temp();
    let (store, _, _) = with_clock(dir.path());
    for index in (0..50).rev() {
        put(&store, &key(format!("{index:02}")), done(&bytes(index * 200)));
        if index % 9 == 0 {
            store.drain().unwrap();
        }
    }
    for index in (0..50).step_by(5) {
        remove(&store, &key(format!("{index:02}")));
    }
    store.drain().unwrap();
    put(&store, &key("50"), unfinished(Status::Released));
    let end = StoreKey::first_record().prefix_end();
    let (mut all, mut from) = (Vec::new(), Some(StoreKey::first_record()));
    while let Some(at) = from {
        let (keys, next) = store.keys(Index::All, &at, end.as_ref(), 7).unwrap();
        assert!(keys.len() <= 7);
        all.extend(keys);
        from = next;
    }
    let wanted: Vec<_> =
        (0..51).filter(|index| index % 5 != 0 || *index == 50).map(|index| key(format!("{index:02}"))).collect();
    assert_eq!(all, wanted);
    assert_eq!(store.keys(Index::Unfinished, &StoreKey::first_record(), end.as_ref(), 7).unwrap().0, [key("50")]);
    store.drain().unwrap();
    assert_eq!(store.keys(Index::Unfinished, &StoreKey::first_record(), end.as_ref(), 7).unwrap().0, [key("50")]);
}
