//! Segments that fill, wait for a checkpoint, and are reused.

use std::collections::BTreeMap;
use std::thread;

use super::*;

/// A small, fast and repeatable generator.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

type Model = BTreeMap<StoreKey, Option<Vec<u8>>>;

/// Commits one to three changes. The model learns of them once they are durable.
fn step(store: &Store, model: &mut Model, random: &mut Random) {
    let mut changes = Vec::new();
    for _ in 0..=random.below(3) {
        let key = key(random.below(40).to_string());
        let len = if random.below(20) == 0 { 9_000 } else { random.below(600) };
        let value: Vec<u8> = (0..len).map(|index| u8::try_from((index + len) % 256).unwrap()).collect();
        let change = match random.below(10) {
            0 => Change { key: key.clone(), content: None },
            1 | 2 => set(&key, at_work()),
            _ => set(&key, done(&value)),
        };
        if changes.iter().all(|other: &Change| other.key != change.key) {
            changes.push(change);
        }
    }
    for change in put_all(store, changes) {
        let outcome = change.content.map(|content| match content {
            Content::Record(stored) => stored.outcome.as_deref().map(<[u8]>::to_vec).unwrap_or_default(),
            Content::Row(_) => unreachable!(),
        });
        model.insert(change.key, outcome);
    }
}

fn check(store: &Store, model: &Model) {
    for (key, expected) in model {
        assert!(outcome(store, key) == *expected, "{key:?}");
    }
}

/// Runs rounds that end in a crash, a close or a copy. Checks that there are few files. Returns how many rounds led to
/// a checkpoint.
fn model_run(seed: u64, rounds: u64, options: &EngineOptions) -> u64 {
    let mut random = Random(seed);
    let (mut dir, mut model, mut checkpoints) = (temp(), Model::new(), 0);
    for round in 0..rounds {
        let (store, report) = open_with(dir.path(), options);
        assert_eq!(report.torn_bytes, 0);
        check(&store, &model);
        for _ in 0..random.below(2 * 2_000 / rounds) {
            step(&store, &mut model, &mut random);
        }
        check(&store, &model);
        store.drain().unwrap();
        // Each segment that is left costs one more sync than there are groups. The open has left one.
        let stats = store.stats();
        if stats.syncs - stats.groups > 1 {
            // A checkpoint follows, however slow the disk is. Waiting checkpoints become one.
            let late = crate::types::clock::deadline(Duration::from_secs(120)).unwrap();
            while store.stats().store_checkpoints == 0 {
                assert!(crate::types::clock::monotonic() < late, "round {round}: no checkpoint");
                thread::yield_now();
            }
            checkpoints += 1;
        }
        // The current file, the next one, two free ones, and those that wait for a checkpoint.
        assert!(journal_files(dir.path()) <= 12, "round {round}: {}", journal_files(dir.path()));
        match random.below(3) {
            0 => crash(store),
            1 => {
                store.close().unwrap();
                assert_eq!(store.inner.pool.files(), journal_files(dir.path()) as u64);
            }
            _ => {
                let copy = copy(&store);
                crash(store);
                dir = copy;
            }
        }
    }
    let (store, _) = open_with(dir.path(), options);
    check(&store, &model);
    checkpoints
}

#[test]
fn thousands_of_commits_over_many_segments_equal_a_model() {
    // The number of filled segments depends on how many commits share a group, and so on the load of the disk. Without
    // load it is about twenty.
    assert!(model_run(1, 25, &options()) > 0, "no round filled a segment");
}

#[test]
fn the_model_holds_without_the_sync_flag() {
    model_run(2, 10, &options().sync_flag(false));
}

#[test]
fn a_group_larger_than_a_segment_gets_one_of_its_size() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for index in 0..4 {
        put(&store, &key("k"), done(&vec![index; 200_000]));
    }
    crash(store);
    let (store, _) = open(dir.path());
    assert_eq!(outcome(&store, &key("k")).unwrap(), vec![3; 200_000]);
}

#[test]
fn free_segments_are_reused() {
    let dir = temp();
    let (store, _) = open(dir.path());
    for _ in 0..300 {
        put(&store, &key("k"), done(&[7; 1_000]));
    }
    store.close().unwrap();
    let files: Vec<_> = files::entries(&journal_dir(dir.path())).unwrap();
    let (store, _) = open(dir.path());
    put(&store, &key("k"), done(b"x"));
    crash(store);
    let after = files::entries(&journal_dir(dir.path())).unwrap();
    let known = after.iter().filter(|file| files.contains(file)).count();
    assert!(known >= 2, "{known} of {} files are from before", after.len());
}

#[test]
fn commits_go_on_while_a_checkpoint_takes_long() {
    let dir = temp();
    let options = options().sync_timeout(Duration::from_secs(20));
    let (store, _) = open_with(dir.path(), &options);
    let gate = store.inner.shared.tables.flush_gate.lock();
    // Fill many segments.
    for index in 0..1_400_u64 {
        put(&store, &key("k"), done(&[&index.to_le_bytes(), [7; 700].as_slice()].concat()));
    }
    assert_eq!(store.stats().store_checkpoints, 0);
    drop(gate);
    checkpoint(&store);
    // The checkpoint that was held, that of the drain, which may miss the last group, and the requested one.
    assert!(store.stats().store_checkpoints <= 4, "those that waited are one");
    assert!(journal_files(dir.path()) <= 6, "{}", journal_files(dir.path()));
    store.close().unwrap();
    assert_eq!(&outcome(&open(dir.path()).0, &key("k")).unwrap()[..8], 1_399_u64.to_le_bytes());
}
