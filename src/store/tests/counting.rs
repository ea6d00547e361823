//! What sled holds is counted: at open where that is cheap and something to compare it with is known, otherwise behind it.

use std::thread;

use super::*;
use crate::store::expiries::Expiries;
use crate::store::verify::{Ground, Problems, Scans};

/// More than an open counts here.
const MANY: usize = 2_000;

fn fill(store: &Store) {
    let mut last = None;
    for batch in 0..MANY / 500 {
        let named = |index| key(format!("a{:06}", batch * 500 + index));
        let stored = || StoredRecord { expires: 1 << 50, ..done(b"x") };
        let changes = (0..500).map(|index| set(&named(index), stored())).collect();
        last = store.commit(changes, &[], Priority::User).unwrap();
    }
    store.wait(last.unwrap().ticket).unwrap();
    store.drain().unwrap();
}

/// Waits for the count that nobody asked for.
fn counted(store: &Store) {
    while store.inner.tables.digest().is_none() {
        thread::yield_now();
    }
}

#[test]
fn a_large_store_is_counted_after_an_unclean_stop_and_misses_what_is_lost_from_then_on() {
    let dir = temp();
    let (store, _) = open(dir.path());
    fill(&store);
    crash(store);
    let (store, report) = open(dir.path());
    assert!(!report.clean);
    counted(&store);
    let known = store.inner.tables.digest();
    assert_eq!(known, store.inner.tables.count(usize::MAX).unwrap());
    assert_eq!(known.map(|digest| digest.records), Some(MANY as u64));
    store.close().unwrap();
    let (store, report) = open(dir.path());
    assert!(report.clean && store.inner.tables.digest() == known);
    lose(&store, Name::Records, b"m\0a000007");
    store.close().unwrap();
    let report = open(dir.path()).0.verify().unwrap();
    assert!(report.compared && report.problems.len() == 1, "{report:?}");
}

#[test]
fn a_store_that_is_closed_before_it_was_counted_is_counted_behind_the_next_open() {
    let dir = temp();
    let (store, _) = open(dir.path());
    fill(&store);
    store.inner.tables.set_digest(None);
    store.close().unwrap();
    let (store, report) = open(dir.path());
    assert!(report.clean);
    counted(&store);
}

#[test]
fn what_a_count_adopts_is_not_said_to_be_compared() {
    let dir = temp();
    let (store, _) = open(dir.path());
    fill(&store);
    put(&store, &key("z"), unfinished(Status::Released));
    store.drain().unwrap();
    let tables = &store.inner.tables;
    tables.set_digest(None);
    let mut scans = Scans::new(tables);
    let (overlay, expiries) = (&store.inner.overlay, &mut Expiries::new(1));
    // What nobody knows of is gone, and what leads to expiries is to be found again on the way.
    lose_blocks(&store);
    for _ in 0..3 {
        scans.step(Ground { tables, overlay, expiries, has_room: true }, || Ok(0));
    }
    tables.remove(Name::Records, b"m\0a001000").unwrap();
    let mut ask = || {
        let (reply, report) = crossbeam_channel::bounded(1);
        scans.add(tables, Problems::default(), reply);
        while !scans.is_empty() {
            scans.step(Ground { tables, overlay, expiries, has_room: true }, || Ok(0));
        }
        report.recv().unwrap().unwrap()
    };
    let first = ask();
    assert!(!first.compared, "{first:?}");
    assert_eq!(tables.digest(), tables.count(usize::MAX).unwrap());
    assert_eq!((first.records, first.problems.len()), (MANY as u64, 0));
    let second = ask();
    assert!(second.compared && second.problems.is_empty(), "{second:?}");
    lose(&store, Name::Records, b"m\0a001001");
    assert!(ask().problems.last().unwrap().contains("it had 2000 records"));
}

#[test]
fn a_count_mends_nothing_where_there_is_no_room() {
    let dir = temp();
    let (store, _) = open(dir.path());
    fill(&store);
    let tables = &store.inner.tables;
    lose_blocks(&store);
    for (has_room, mended) in [(false, 0), (true, MANY)] {
        tables.set_digest(None);
        let (mut scans, mut expiries) = (Scans::new(tables), Expiries::new(1));
        while !scans.is_empty() {
            scans.step(Ground { tables, overlay: &store.inner.overlay, expiries: &mut expiries, has_room }, || Ok(0));
        }
        expiries.write_all(tables).unwrap();
        assert_eq!(named(&store).len(), mended);
        assert_eq!(tables.digest().is_some(), has_room, "or the next open would not mend");
    }
}

#[test]
fn what_is_replayed_is_led_to_again_however_many_records_there_are() {
    let dir = temp();
    // With so large a segment nothing makes a checkpoint by itself.
    let (store, _) = open_with(dir.path(), &options().segment_bytes(4 << 20));
    fill(&store);
    checkpoint(&store);
    put(&store, &key("z"), StoredRecord { expires: 1 << 50, ..unfinished(Status::Interrupted) });
    store.drain().unwrap();
    let tables = &store.inner.tables;
    tables.remove(Name::Unfinished, b"m\0z").unwrap();
    assert!(!named_now(&store).contains(&"z".to_owned()), "written before it has to be");
    assert!(tables.get(Name::Records, b"m\0z").unwrap().is_some());
    crash(store);
    let (store, report) = open(dir.path());
    assert_eq!((report.frames_replayed, report.interrupted), (1, 1));
    assert!(named(&store).contains(&"z".to_owned()));
}

/// Nothing was committed behind the last stamp, so that it must still fit.
#[test]
fn what_is_lost_with_a_kill_that_followed_no_commit_is_missed() {
    for first_was_clean in [true, false] {
        let dir = temp();
        let (store, _) = open(dir.path());
        put(&store, &key("k"), done(b"x"));
        put(&store, &key("free"), unfinished(Status::Released));
        if first_was_clean {
            store.close().unwrap();
        } else {
            crash(store);
        }
        for _ in 0..3 {
            let (store, _) = open(dir.path());
            assert!(store.inner.tables.digest().is_some());
            crash(store);
        }
        let (store, _) = open(dir.path());
        lose(&store, Name::Records, b"m\0k");
        crash(store);
        refused(dir.path(), ErrorKind::Corrupt, "holds 1 records");
    }
}

#[test]
fn a_large_one_stays_known_over_a_kill_that_followed_no_commit() {
    let dir = temp();
    let (store, _) = open(dir.path());
    fill(&store);
    let known = store.inner.tables.digest();
    store.close().unwrap();
    crash(open(dir.path()).0);
    let (store, report) = open(dir.path());
    assert!(!report.clean && store.inner.tables.digest() == known);
    lose(&store, Name::Records, b"m\0a000007");
    crash(store);
    let report = open(dir.path()).0.verify().unwrap();
    assert!(report.compared && report.problems.len() == 1, "{report:?}");
}

/// No frame tells of a deletion.
#[test]
fn what_was_deleted_before_a_kill_is_not_missed() {
    let delete = |store: &Store, name: &str| {
        let (_, bytes) = values::found(&store.inner.tables, &key(name)).unwrap().unwrap();
        assert_eq!(store.inner.delete(compact::Found::of(key(name), bytes)).unwrap().records, 1);
    };
    let dir = temp();
    let (store, _) = open(dir.path());
    for name in ["a", "b", "c", "d", "e"] {
        put(&store, &key(name), StoredRecord { expires: 1, ..done(b"x") });
    }
    store.close().unwrap();
    // Behind a clean open, behind one that was not, and behind a checkpoint.
    let (store, _) = open(dir.path());
    delete(&store, "a");
    assert_eq!(store.inner.tables.stamp().unwrap().unwrap().digest, None);
    crash(store);
    let (store, report) = open(dir.path());
    assert!(!report.clean && store.inner.tables.stamp().unwrap().unwrap().digest.is_some());
    delete(&store, "b");
    crash(store);
    let (store, _) = open(dir.path());
    put(&store, &key("f"), done(b"x"));
    store.drain().unwrap();
    checkpoint(&store);
    delete(&store, "c");
    crash(store);
    let (store, _) = open(dir.path());
    assert_eq!(store.inner.tables.digest().map(|digest| digest.records), Some(3));
    delete(&store, "d");
    store.close().unwrap();
    let (store, report) = open(dir.path());
    assert!(report.clean && store.verify().unwrap().problems.is_empty());
}
