//! Concurrent commits: version counters, conflicts, and what a reader sees.

use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;

fn counter(store: &Store, key: &StoreKey) -> u64 {
    outcome(store, key).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// Returns two keys with different version counters.
fn apart(store: &Store) -> (StoreKey, StoreKey) {
    let look = |key: &StoreKey| store.inner.versions.look(store.inner.shared.memtable.hash(key.bytes()));
    let first = key("0");
    let mut others = (1..99).map(|index| key(index.to_string()));
    let other = others.find(|other| look(other).stripe() != look(&first).stripe());
    (first, other.unwrap())
}

#[test]
fn a_commit_whose_reads_are_stale_is_refused() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let (a, b) = apart(&store);
    let seen = store.read(&a, Load::WithoutOutcome).unwrap().seen;
    assert!(store.commit(vec![set(&a, done(b"1"))], &[seen], Priority::User).unwrap().is_some());
    assert!(store.commit(vec![set(&a, done(b"2"))], &[seen], Priority::User).unwrap().is_none());
    assert!(store.commit(vec![set(&b, done(b"2"))], &[seen], Priority::User).unwrap().is_none(), "whatever it writes");
    assert_eq!(outcome(&store, &a).unwrap(), b"1");
    let seen = store.read(&a, Load::WithoutOutcome).unwrap().seen;
    put(&store, &b, done(b"3"));
    assert!(
        store.commit(vec![set(&a, done(b"4"))], &[seen], Priority::User).unwrap().is_some(),
        "another key has moved"
    );
    assert_eq!((store.stats().commits, store.stats().conflicts), (3, 2));
}

#[test]
fn a_commit_over_many_keys_is_one_frame() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let row = StoreKey::row("stock", b"apple");
    let changes = vec![
        set(&key("a"), at_work()),
        set(&key("b"), done(b"b")),
        Change { key: row.clone(), content: Some(Content::Row(Value::from("7"))) },
    ];
    put_all(&store, changes);
    let revision = stored(&store, &key("a")).unwrap().revision;
    assert_eq!(stored(&store, &key("b")).unwrap().revision, revision);
    crash(store);
    let (store, report) = open(dir.path());
    assert_eq!(report.frames_replayed, 1);
    assert_eq!(stored(&store, &key("a")).unwrap().token, revision);
    assert_eq!(outcome(&store, &key("b")).unwrap(), b"b");
    let read = store.read(&row, Load::All).unwrap();
    assert_eq!(read.content, Some(Content::Row(Value::from("7"))));
}

#[test]
fn a_read_of_a_commit_that_is_not_durable_has_its_ticket() {
    let dir = temp();
    let (store, _) = open(dir.path());
    let committed = store.commit(vec![set(&key("k"), at_work())], &[], Priority::User).unwrap().unwrap();
    let read = store.read(&key("k"), Load::All).unwrap();
    assert_eq!(read.ticket, committed.ticket);
    store.wait(read.ticket).unwrap();
    put(&store, &key("k"), done(b"x"));
    store.drain().unwrap();
    let read = store.read(&key("k"), Load::All).unwrap();
    assert_eq!(read.ticket, Ticket(0));
    store.wait(read.ticket).unwrap();
}

#[test]
fn eight_threads_that_increment_one_record_lose_nothing() {
    const EACH: u64 = 100;
    let dir = temp();
    let (store, _) = open(dir.path());
    let k = key("counter");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    loop {
                        let read = store.read(&k, Load::All).unwrap();
                        let value = read.record().and_then(|stored| stored.outcome.clone());
                        let value = value.map_or(0, |value| u64::from_le_bytes(value.as_ref().try_into().unwrap())) + 1;
                        let change = set(&k, done(&value.to_le_bytes()));
                        if let Some(committed) = store.commit(vec![change], &[read.seen], Priority::User).unwrap() {
                            store.wait(committed.ticket).unwrap();
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(counter(&store, &k), 8 * EACH);
    crash(store);
    assert_eq!(counter(&open(dir.path()).0, &k), 8 * EACH);
}

#[test]
fn a_reader_never_sees_an_older_value_than_before() {
    let dir = temp();
    // Long values, so that the apply thread replaces blocks during the reads.
    let value = |index: u64| [index.to_le_bytes().as_slice(), &[7; 9_000]].concat();
    let (store, _) = open(dir.path());
    let k = key("k");
    put(&store, &k, done(&value(0)));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in 1..300 {
                let committed = store.commit(vec![set(&k, done(&value(index)))], &[], Priority::User).unwrap().unwrap();
                if index % 8 == 0 {
                    store.wait(committed.ticket).unwrap();
                    store.drain().unwrap();
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let bytes = outcome(&store, &k).unwrap();
                    let index = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    assert!(bytes == value(index) && index >= last, "{index} after {last}");
                    last = index;
                }
            });
        }
    });
    store.drain().unwrap();
    assert_eq!(store.verify().unwrap().records, 1);
}

#[test]
fn eventual_commits_are_durable_after_a_sync_and_after_close() {
    let dir = temp();
    let options =
        options().durability(crate::types::options::Durability::Eventual { interval: Duration::from_secs(3600) });
    let (store, _) = open_with(dir.path(), &options);
    let syncs = store.stats().syncs;
    put(&store, &key("a"), done(b"a"));
    assert_eq!(store.stats().syncs, syncs, "no call waited");
    store.sync().unwrap();
    put(&store, &key("b"), done(b"b"));
    store.drain().unwrap();
    put(&store, &key("c"), done(b"c"));
    store.close().unwrap();
    let (store, report) = open_with(dir.path(), &options);
    assert!(report.clean);
    // More than a segment holds, so that commits without space are written at once.
    for index in 0..200 {
        put(&store, &key(format!("{index}")), done(&[7; 1_000]));
    }
    crash(store);
    let (store, _) = open_with(dir.path(), &options);
    for name in ["a", "b", "c", "0"] {
        assert!(stored(&store, &key(name)).is_some());
    }
}

/// A commit may wait for space after its times were decided. A TTL starts at the commit, not before the wait.
#[test]
fn times_count_from_the_commit_and_not_from_the_decision() {
    let dir = temp();
    let clock = ManualClock::new();
    let (store, _) = open_with(dir.path(), &options().clock(clock.clone()));
    let decided = store.now().store;
    clock.advance(Duration::from_millis(400));
    let change = set(&key("k"), StoredRecord { updated: decided, expires: decided + 100, ..done(b"x") });
    let ever = set(&key("ever"), StoredRecord { updated: decided, ..done(&[7; 9_000]) });
    let commit_options =
        CommitOptions { priority: Priority::User, decided: Some(decided), kept: &[], until: NEVER, read_set: None };
    let committed = store.commit(vec![change, ever], &[], commit_options).unwrap().unwrap();
    store.wait(committed.ticket).unwrap();
    let check = |store: &Store| {
        let found = stored(store, &key("k")).unwrap();
        assert_eq!((found.updated, found.expires), (decided + 400, decided + 500));
        assert_eq!(outcome(store, &key("k")).unwrap(), b"x");
        let found = stored(store, &key("ever")).unwrap();
        assert_eq!((found.updated, found.expires), (decided + 400, NEVER));
        assert_eq!(outcome(store, &key("ever")).unwrap(), [7; 9_000]);
    };
    check(&store);
    // A replay of the journal gives the same.
    crash(store);
    check(&open_with(dir.path(), &options().clock(clock)).0);
}

#[test]
fn the_apply_thread_gives_way_to_callers_as_long_as_it_keeps_up() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(64 << 20));
    let give_way = &store.inner.shared.tables.give_way;
    for index in 0..100 {
        put(&store, &key(index.to_string()), done(b""));
    }
    checkpoint(&store);
    let turns = give_way.turns.load(Ordering::Relaxed);
    assert!(turns >= 10, "{turns}");
    // One commit with more than two flushes, in about 2,400 blocks.
    let change = |index| Change {
        key: StoreKey::row("t", &[index]),
        content: Some(Content::Row(Value::from(bytes(1_000_000)))),
    };
    let changes: Vec<_> = (0..9).map(change).collect();
    put_all(&store, changes);
    checkpoint(&store);
    let more = give_way.turns.load(Ordering::Relaxed) - turns;
    assert!(more < 100, "{more}");
}
