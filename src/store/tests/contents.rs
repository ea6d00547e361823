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
    let (unfinished, _) = store.keys(Index::Unfinished, &StoreKey::first_record(), end.as_ref(), 100).unwrap();
    assert_eq!(unfinished.len(), 10);
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
    let run = store.inner.shared.runs.now()[0].info.id;
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
