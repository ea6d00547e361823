//! Values of every length, and what belongs to them in sled.

use super::*;
use crate::store::expiries::Expiries;

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
    assert_eq!(store.inner.tables.blobs.count().unwrap(), 0);
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
    assert_eq!(store.inner.overlay.len(), 0);
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
    // The last rows were waited for by nobody.
    assert!(report.frames_replayed > 0);
    for size in SIZES {
        assert!(stored(&store, &key(size.to_string())).is_none());
        remove(&store, &key(size.to_string()));
        let change = Change { key: row(size), content: None };
        store.commit(vec![change], &[], Priority::User).unwrap().unwrap();
    }
    store.drain().unwrap();
    for name in [Name::Records, Name::Chunks, Name::Expiry, Name::Unfinished, Name::Table("stock")] {
        assert_eq!(count(&store, name), 0, "{name:?}");
    }
}

#[test]
fn values_of_every_length_come_back() {
    round_trip(&options());
}

#[test]
fn values_of_every_length_come_back_without_the_sync_flag() {
    round_trip(&options().sync_flag(false));
}

#[test]
fn what_is_too_large_is_refused_before_anything_changes() {
    let dir = temp();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"before"));
    let error = store.commit(vec![set(&key("k"), done(&bytes(33 << 20)))], &[], Priority::User).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(outcome(&store, &key("k")).unwrap(), b"before");
    put(&store, &key("k"), done(b"after"));
}

#[test]
fn what_belongs_to_a_record_goes_with_it() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let counts = |store: &Store| {
        store.drain().unwrap();
        [Name::Chunks, Name::Unfinished].map(|name| count(store, name))
    };
    let k = key("k");
    put(&store, &k, StoredRecord { expires: 50_000, ..done(&bytes(10_000)) });
    let pieces = counts(&store)[0];
    assert!(pieces >= 3);
    assert_eq!((counts(&store), named(&store).len()), ([pieces, 0], 1));
    put(&store, &k, StoredRecord { expires: 60_000, ..done(&bytes(10_000)) });
    assert_eq!((counts(&store), named(&store).len()), ([pieces, 0], 2));
    put(&store, &k, StoredRecord { expires: 60_000, ..unfinished(Status::Released) });
    assert_eq!(counts(&store), [0, 1]);
    put(&store, &k, unfinished(Status::Interrupted));
    assert_eq!(counts(&store), [0, 1]);
    put(&store, &k, at_work());
    checkpoint(&store);
    assert_eq!(counts(&store), [0, 1]);
    put(&store, &k, StoredRecord { checkpoint: Some(Value::from(bytes(9_000))), ..at_work() });
    checkpoint(&store);
    assert_eq!(counts(&store)[1], 1);
    put(&store, &k, done(b"short"));
    assert_eq!(counts(&store), [0, 0]);
    put(&store, &k, done(&bytes(10_000)));
    remove(&store, &k);
    assert_eq!(counts(&store), [0, 0]);
    crash(store);
    assert_eq!(counts(&open(dir.path()).0), [0, 0]);
}

#[test]
fn keys_are_listed_in_order_from_both_sides() {
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
    let end = StoreKey::first_record().behind_prefix();
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
fn hints_that_are_made_anew_count_for_the_barriers() {
    let dir = temp();
    let options = options().sync_flag(false);
    let (store, _) = open_with(dir.path(), &options);
    let keys: Vec<_> = (0..200).map(|index| key(index.to_string())).collect();
    for key in &keys {
        put(&store, key, StoredRecord { expires: 1 << 50, ..done(b"x") });
    }
    store.drain().unwrap();
    let tables = &store.inner.tables;
    lose_blocks(&store);
    tables.flush().unwrap();
    let mut expiries = Expiries::new(1);
    expiries.begin_list();
    for (raw, found) in tables.range(Name::Records, &[], None, usize::MAX).unwrap() {
        values::mend_hints(tables, &mut expiries, &raw, &found).unwrap();
    }
    expiries.write_all(tables).unwrap();
    assert_eq!(named(&store).len(), keys.len());
    assert!(!tables.barriers.is_due());
}
