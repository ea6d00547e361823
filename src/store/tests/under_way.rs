//! The bytes that sled has under way are limited, because sled deadlocks when all of its threads are busy.

use super::*;
use crate::store::sled::write_barrier::UNDER_WAY;

/// The most bytes of one change: its old value and the key.
const ONE: usize = 16 << 10;

#[track_caller]
fn is_bounded(store: &Store) {
    let most = store.inner.shared.tables.barriers.most_under_way.load(Ordering::SeqCst);
    assert!(most > UNDER_WAY / 64 && most <= UNDER_WAY + ONE, "{most}");
}

fn row(size: usize) -> Change {
    Change { key: StoreKey::row("t", b"big"), content: Some(Content::Row(Value::from(bytes(size)))) }
}

#[test]
fn bytes_under_way_in_sled_are_bounded_in_apply_checkpoints_deletions_and_replay() {
    for sync_flag in [true, false] {
        let dir = temp();
        let clock = ManualClock::new();
        let options = options().sync_flag(sync_flag).segment_bytes(64 << 20).clock(clock.clone());
        let (store, _) = open_with(dir.path(), &options);
        for _ in 0..4 {
            let committed = store.commit(vec![row(1_000_000)], &[], Priority::User).unwrap().unwrap();
            store.wait(committed.ticket).unwrap();
        }
        let until = store.now().store + 1;
        for index in 0..4 {
            put(&store, &key(index.to_string()), StoredRecord { expires: until, ..done(&bytes(500_000)) });
        }
        // All records in progress come into sled with one checkpoint.
        let changes: Vec<_> = (0..1_000).map(|index| set(&key(format!("at work {index}")), at_work())).collect();
        store.commit(changes, &[], Priority::User).unwrap().unwrap();
        checkpoint(&store);
        is_bounded(&store);
        clock.advance(Duration::from_secs(2));
        let (mut pass, mut deleted) = (Pass::exact(), 0);
        while let Some(more) = store.compact(&mut pass, 10).unwrap() {
            deleted += more.records;
        }
        assert_eq!(deleted, 4);
        is_bounded(&store);
        for index in 0..4 {
            put(&store, &key(index.to_string()), done(&bytes(700_000)));
        }
        crash(store);
        let (store, report) = open_with(dir.path(), &options);
        assert!(report.frames_replayed >= 4);
        assert_eq!(outcome(&store, &key("3")).unwrap(), bytes(700_000));
        is_bounded(&store);
    }
}
