//! Values of every length, and their blocks in sled.

use super::*;

const SIZES: [usize; 7] = [0, 300, 4_000, 4 << 10, 100 << 10, 1 << 20, 16 << 20];

fn row(size: usize) -> StoreKey {
    StoreKey::row("stock", &size.to_be_bytes())
}

fn check_all(store: &Store) {
    for size in SIZES {
        assert!(outcome(store, &key(size.to_string())).unwrap() == bytes(size), "{size}");
        let head = store.read(&key(size.to_string()), Load::WithoutOutcome).unwrap();
        assert_eq!(head.record().unwrap().outcome_len as usize, size);
        let read = store.read(&row(size), Load::All).unwrap();
        assert!(matches!(read.content, Some(Content::Row(value)) if *value == bytes(size)), "{size}");
    }
    store.inner.shared.tables.check_blobs().unwrap();
}

fn round_trip(options: &EngineOptions) {
    let dir = temp();
    let (store, _) = open_with(dir.path(), options);
    for size in SIZES {
        put(&store, &key(size.to_string()), done(&bytes(size)));
        let content = Some(Content::Row(Value::from(bytes(size))));
        store.commit(vec![Change { key: row(size), content }], &[], Priority::User).unwrap().unwrap();
    }
    check_all(&store);
    store.drain().unwrap();
    assert_eq!(store.inner.shared.memtable.len(), 0);
    check_all(&store);
    store.close().unwrap();
    let (store, _) = open_with(dir.path(), options);
    check_all(&store);
    for size in SIZES {
        remove(&store, &key(size.to_string()));
        let change = Change { key: row(size), content: None };
        store.commit(vec![change], &[], Priority::User).unwrap().unwrap();
    }
    crash(store);
    let (store, report) = open_with(dir.path(), options);
    // The last rows were not waited for.
    assert!(report.frames_replayed > 0);
    for size in SIZES {
        assert!(stored(&store, &key(size.to_string())).is_none());
        remove(&store, &key(size.to_string()));
        let change = Change { key: row(size), content: None };
        store.commit(vec![change], &[], Priority::User).unwrap().unwrap();
    }
    store.drain().unwrap();
    let report = store.verify().unwrap();
    assert_eq!((report.records, report.rows, report.problems), (0, 0, Vec::new()));
}

#[test]
fn values_of_every_length_are_read_back() {
    round_trip(&options());
}

#[test]
fn values_of_every_length_are_read_back_without_the_sync_flag() {
    round_trip(&options().sync_flag(false));
}

#[test]
fn a_value_that_is_too_large_is_refused_before_anything_changes() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"before"));
    let error = store.commit(vec![set(&key("k"), done(&bytes(33 << 20)))], &[], Priority::User).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(outcome(&store, &key("k")).unwrap(), b"before");
    put(&store, &key("k"), done(b"after"));
}

#[test]
fn the_index_of_unfinished_records_follows_their_newest_content() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let unfinished_now = |store: &Store| {
        store.drain().unwrap();
        let end = StoreKey::first_record().prefix_end();
        store.keys(Index::Unfinished, &StoreKey::first_record(), end.as_ref(), 10).unwrap().0.len()
    };
    let k = key("k");
    put(&store, &k, StoredRecord { expires: 50_000, ..done(&bytes(10_000)) });
    assert_eq!(unfinished_now(&store), 0);
    put(&store, &k, StoredRecord { expires: 60_000, ..unfinished(Status::Released) });
    assert_eq!((unfinished_now(&store), store.next_due()), (1, 60_000));
    put(&store, &k, unfinished(Status::Interrupted));
    assert_eq!(unfinished_now(&store), 1);
    put(&store, &k, StoredRecord { checkpoint: Some(Value::from(bytes(9_000))), ..at_work() });
    assert_eq!(unfinished_now(&store), 1);
    put(&store, &k, done(b"short"));
    assert_eq!(unfinished_now(&store), 0);
    put(&store, &k, at_work());
    remove(&store, &k);
    assert_eq!(unfinished_now(&store), 0);
    crash(store);
    assert_eq!(unfinished_now(&open(dir.path()).0), 0);
}

#[test]
fn keys_of_memtable_and_runs_are_listed_in_order() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let all: Vec<_> = (0..20).map(|index| key(format!("{index:02}"))).collect();
    for (index, key) in all.iter().enumerate() {
        put(&store, key, if index % 2 == 0 { done(b"x") } else { at_work() });
    }
    store
        .commit(vec![Change { key: row(1), content: Some(Content::Row(Value::from("x"))) }], &[], Priority::User)
        .unwrap();
    store.drain().unwrap();
    let (mut from, mut found) = (Some(StoreKey::first_record()), Vec::new());
    let end = StoreKey::first_record().prefix_end();
    while let Some(at) = from {
        let (keys, next) = store.keys(Index::All, &at, end.as_ref(), 3).unwrap();
        assert!(keys.len() <= 3);
        found.extend(keys);
        from = next;
    }
    assert_eq!(found, all);
    assert_eq!(listed(&store, 3), all);
    let (unfinished, _) = store.keys(Index::Unfinished, &StoreKey::first_record(), end.as_ref(), 100).unwrap();
    assert_eq!(unfinished.len(), 10);
}

/// Returns the keys of all records, read in pages of this many keys. Compares each record with what its key has.
fn listed(store: &Store, limit: usize) -> Vec<StoreKey> {
    let (mut from, mut found) = (Some(StoreKey::first_record()), Vec::new());
    let end = StoreKey::first_record().prefix_end();
    while let Some(at) = from {
        let page = store.records(&at, end.as_ref(), limit).unwrap();
        assert!(page.records.len() <= limit);
        for (key, stored) in page.records {
            let read = store.read(&key, Load::WithoutOutcome).unwrap();
            // A record in memory has its outcome at hand.
            let without = |stored: &StoredRecord| StoredRecord { outcome: None, ..stored.clone() };
            assert_eq!(Some(without(&stored)), read.record().map(|stored| without(stored)));
            assert!(read.ticket <= page.newest);
            found.push(key);
        }
        from = page.next;
    }
    found
}

/// Keys are in several runs, in the memtable, in both, and removed from either.
#[test]
fn a_page_has_the_newest_record_of_each_key() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let mut expected = std::collections::BTreeMap::new();
    for round in 0..6_u32 {
        for index in 0..120_u32 {
            let at = key(format!("{index:03}"));
            match (index * 7 + round * 13) % 11 {
                0..3 => {
                    let long = bytes(usize::try_from(index * 97 % 9_000).unwrap());
                    let at_point = StoredRecord { attempt: round + 1, ..done(&long) };
                    put(&store, &at, at_point);
                    expected.insert(at, round + 1);
                }
                3 if expected.remove(&at).is_some() => remove(&store, &at),
                _ => {}
            }
        }
        if round < 5 {
            store.drain().unwrap();
        }
        for limit in [1, 2, 7, 64, 1_000] {
            let keys: Vec<_> = expected.keys().cloned().collect();
            assert_eq!(listed(&store, limit), keys, "round {round}, limit {limit}");
        }
    }
    let page = store.records(&key("050"), Some(&key("060")), 1_000).unwrap();
    let attempts: Vec<_> = page.records.iter().map(|(at, stored)| (at.clone(), stored.attempt)).collect();
    let range = expected.range(key("050")..key("060")).map(|(at, attempt)| (at.clone(), *attempt));
    assert_eq!(attempts, range.collect::<Vec<_>>());
    assert!(page.next.is_none());
}

#[test]
fn a_page_of_large_records_ends_early() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &EngineOptions::default());
    for index in 0..8 {
        let checkpoint = Some(Value::from(bytes(500_000)));
        put(&store, &key(format!("{index}")), StoredRecord { checkpoint, ..at_work() });
    }
    for is_flushed in [false, true] {
        let page = store.records(&StoreKey::first_record(), None, 100).unwrap();
        assert_eq!((page.records.len(), page.next), (3, Some(key("2").successor())), "{is_flushed}");
        store.drain().unwrap();
    }
}

/// While changes are flushed, each page has every key that is there all the time.
#[test]
fn a_page_misses_no_record_that_is_flushed_meanwhile() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let keys: Vec<_> = (0..200).map(|index| key(format!("{index:03}"))).collect();
    for key in &keys {
        put(&store, key, done(b"x"));
    }
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..20 {
                for key in keys.iter().skip(round % 7).step_by(7) {
                    put(&store, key, done(b"y"));
                }
                store.drain().unwrap();
            }
            ended.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let mut last = false;
        while !last {
            last = ended.load(std::sync::atomic::Ordering::SeqCst);
            for limit in [9, 64] {
                let (mut from, mut found) = (Some(StoreKey::first_record()), Vec::new());
                while let Some(at) = from {
                    let page = store.records(&at, StoreKey::first_record().prefix_end().as_ref(), limit).unwrap();
                    found.extend(page.records.into_iter().map(|(key, _)| key));
                    from = page.next;
                }
                assert_eq!(found, keys);
            }
        }
    });
}

#[test]
fn a_closed_store_returns_closed_and_never_absent() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), unfinished(Status::Released));
    store.close().unwrap();
    let closed = |answer: Result<()>| assert_eq!(answer.unwrap_err().kind(), ErrorKind::Closed);
    for name in ["k", "other"] {
        closed(store.read(&key(name), Load::All).map(drop));
    }
    for index in [Index::All, Index::Unfinished] {
        closed(store.keys(index, &key("other"), None, 9).map(drop));
    }
    closed(store.records(&key("other"), None, 9).map(drop));
    closed(store.verify().map(drop));
}

#[test]
fn a_replayed_record_is_cached_until_it_changes() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for name in ["hot", "cold", "changed"] {
        put(&store, &key(name), done(b"before"));
    }
    store.drain().unwrap();
    for name in ["hot", "changed"] {
        assert_eq!(outcome(&store, &key(name)).unwrap(), b"before");
    }
    let run = store.inner.shared.runs.current()[0].info.id;
    lose(&store, run, 0);
    put(&store, &key("changed"), done(b"after"));
    store.drain().unwrap();
    // Only a record that was read before its block was lost is found without the block.
    assert_eq!(outcome(&store, &key("hot")).unwrap(), b"before");
    assert_eq!(store.read(&key("cold"), Load::All).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(outcome(&store, &key("changed")).unwrap(), b"after");
    assert_eq!(outcome(&store, &key("changed")).unwrap(), b"after");
    store.close().unwrap();
    assert_eq!(store.read(&key("hot"), Load::All).unwrap_err().kind(), ErrorKind::Closed);
}
