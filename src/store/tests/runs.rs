//! Runs over many opens, and next to damaged runs.

use std::collections::BTreeMap;
use std::thread;

use super::compaction::{compact_all, with_clock};
use super::*;
use crate::store::format::list::Start;
use crate::store::journal;
use crate::store::open::{flush, open_runs, replay};
use crate::store::runs::Run;
use crate::store::runs::flush::Flusher;
use crate::store::sled::disk_space::DiskSpace;
use crate::store::sled::tables::Access;
use crate::types::context::Context;

fn ids(store: &Store) -> Vec<u64> {
    store.inner.shared.runs.current().iter().map(|run| run.info.id).collect()
}

#[test]
fn the_number_of_a_deleted_run_is_not_reused() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    let expires = now + 1;
    put(&store, &key("a"), StoredRecord { expires, ..done(b"old") });
    store.drain().unwrap();
    let [first] = ids(&store)[..] else { panic!("{:?}", ids(&store)) };
    clock.advance(Duration::from_millis(5));
    compact_all(&store);
    wait_for_deletions(&store);
    assert!(ids(&store).is_empty());
    store.close().unwrap();
    let (store, _) = open_with(dir.path(), &options().clock(clock));
    put(&store, &key("b"), done(b"new"));
    store.drain().unwrap();
    assert!(ids(&store)[0] > first, "{:?} after {first}", ids(&store));
}

fn blocks(shared: &Shared) -> u64 {
    shared.runs.current().iter().map(|run| u64::from(run.info.blocks)).sum()
}

/// Replays as an open does, and ends before the journal records it. Returns the number of blocks in runs before and
/// after.
fn replay_and_die(dir: &Path, segment_bytes: u64) -> (u64, u64) {
    let sled = dir.join("store/sled");
    let recovered = journal::recover(&dir.join("store/journal"), segment_bytes).unwrap();
    let access = Access { cache_capacity: 1 << 24, sync_flag: true };
    let (tables, list, _) = crate::store::sled::open::open(&sled, access, &recovered.summary()).unwrap();
    let now = Now { store: 0, wall: 0, first: u64::MAX / 2, opened: 0, effect_seed: [0; 16] };
    let shared = Arc::new(open_runs(dir, tables, &list, &now).unwrap());
    let before = blocks(&shared);
    let (mut flusher, _) = Flusher::open(Arc::clone(&shared), &list).unwrap();
    let (space, _wakeups) = DiskSpace::new(&sled);
    replay(&recovered, list.complete, &mut flusher, &space, &now).unwrap();
    flush(&mut flusher, &space, recovered.last_frame, &now).unwrap();
    (before, blocks(&shared))
}

#[test]
fn a_replay_continues_where_the_last_one_was_killed() {
    const SEGMENT: u64 = 64 << 20;
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(SEGMENT));
    for nth in 0..14_u32 {
        put(&store, &key(nth.to_string()), done(&bytes(1_000_000)));
    }
    let copied = copy(&store);
    crash(store);
    let (before, after) = replay_and_die(copied.path(), SEGMENT);
    assert!(after > before, "{before} blocks before, {after} after");
    assert_eq!(replay_and_die(copied.path(), SEGMENT), (after, after));
    let (store, report) = open_with(copied.path(), &options().segment_bytes(SEGMENT));
    assert_eq!(report.frames_replayed, 0);
    for nth in 0..14_u32 {
        let read = store.read(&key(nth.to_string()), Load::All).unwrap();
        assert_eq!(read.record().unwrap().outcome.as_deref(), Some(&*bytes(1_000_000)), "{nth}");
    }
}

/// Returns the number of blocks in sled that the list does not name.
fn unlisted_blocks(store: &Store) -> usize {
    let (tables, runs) = (&store.inner.shared.tables, store.inner.shared.runs.current());
    let of = |id: u64, blocks: std::ops::Range<u32>| tables.blocks_of(id, &blocks, usize::MAX).unwrap().len();
    let unlisted = tables.run_ids().unwrap().into_iter().map(|id| {
        let Some(run) = runs.iter().find(|run| run.info.id == id) else { return of(id, 0..u32::MAX) };
        run.info.unlisted().into_iter().map(|blocks| of(id, blocks)).sum()
    });
    unlisted.sum()
}

/// Makes the apply thread look again for runs without a reader. A test that looks at the runs is a reader too.
fn look_again(store: &Store) -> bool {
    while !store.inner.apply.messages.is_empty() && store.inner.commit_queue.check().is_ok() {
        thread::yield_now();
    }
    store.inner.send(apply::Message::Flush { group: 0 }).is_ok()
}

/// The outcomes of records, by the names of their keys.
type Outcomes = BTreeMap<String, Vec<u8>>;

/// Writes runs, the last of which makes a merge due. Every record is in several of them.
fn fill(store: &Store) -> Outcomes {
    let mut outcomes = BTreeMap::new();
    let context = Context::new().with("c", bytes(2_000));
    let released = StoredRecord { context, ..unfinished(Status::Released) };
    put_all(store, (0..20).map(|name| set(&key(format!("{name:02}")), released.clone())).collect());
    store.drain().unwrap();
    for round in 0..7 {
        let written = (0..6).map(|nth| (format!("{:02}", (round * 3 + nth) % 20), bytes(5_000 + round)));
        let written: Vec<_> = written.collect();
        put_all(store, written.iter().map(|(name, value)| set(&key(name), done(value))).collect());
        outcomes.extend(written);
        let gone = format!("{:02}", round * 2);
        remove(store, &key(&gone));
        outcomes.remove(&gone);
        if round < 6 {
            store.drain().unwrap();
        }
    }
    outcomes
}

/// Checks that the store has these outcomes, and no other record.
fn check(store: &Store, outcomes: &Outcomes, step: u64) {
    for name in 0..20 {
        let name = format!("{name:02}");
        assert_eq!(outcome(store, &key(&name)), outcomes.get(&name).cloned(), "step {step}, key {name}");
    }
    let (listed, _) = store.keys(Index::Unfinished, &StoreKey::first_record(), None, 9).unwrap();
    assert_eq!(listed, [], "step {step}: all have ended");
    let report = store.verify().unwrap();
    assert_eq!((report.records, report.problems), (outcomes.len() as u64, Vec::new()), "step {step}");
}

/// Checks the other ways to read a store: without sled, by a salvage, by a backup, and in a new sled.
fn check_copies(dir: &Path, outcomes: &Outcomes, step: u64) {
    let (read_only, _) = Store::open_read_only(dir, &options().read_only(true)).unwrap();
    check(&read_only, outcomes, step);
    read_only.close().unwrap();
    let salvaged = temp();
    let report = Store::salvage(dir, salvaged.path(), &options(), &mut |_, _| ()).unwrap();
    assert!(report.is_complete(), "step {step}: {report:?}");
    check(&open(salvaged.path()).0, outcomes, step);
    let rebuilt = temp();
    copy_tree(&dir.join("store"), &rebuilt.path().join("store")).unwrap();
    std::fs::remove_file(rebuilt.path().join("store/sled/conf")).unwrap();
    let (store, report) = open(rebuilt.path());
    assert!(report.rebuilt, "step {step}");
    check(&store, outcomes, step);
    let copied = temp();
    let copy = copied.path().join("copy");
    store.back_up(&copy, &|| Ok(())).unwrap();
    check(&open(&copy).0, outcomes, step);
}

#[test]
fn a_merge_that_ends_at_any_write_keeps_what_it_has_listed_and_loses_nothing() {
    let mut half_listed = 0;
    for step in (0..).step_by(13) {
        let dir = temp();
        let (store, _, _) = with_clock(dir.path());
        let outcomes = fill(&store);
        let tables = &store.inner.shared.tables;
        tables.writes_left.store(step, Ordering::Relaxed);
        let mut is_writing = store.drain().is_ok();
        while is_writing && (store.inner.shared.runs.len() > 1 || unlisted_blocks(&store) > 0) {
            is_writing = store.inner.commit_queue.check().is_ok() && look_again(&store);
        }
        tables.writes_left.store(u64::MAX, Ordering::Relaxed);
        let is_trimmed = |run: &Arc<Run>| run.info.start != Start::default();
        let is_half_listed = store.inner.shared.runs.current().iter().any(is_trimmed);
        crash(store);
        if is_half_listed {
            half_listed += 1;
            check_copies(dir.path(), &outcomes, step);
        }
        let (store, _) = open(dir.path());
        check(&store, &outcomes, step);
        while unlisted_blocks(&store) > 0 {
            assert!(look_again(&store));
        }
        if is_writing {
            assert!(half_listed > 3, "{half_listed} crashes left a merge half listed");
            return;
        }
    }
}

#[test]
fn a_damaged_run_is_left_out_of_a_pass_which_fails_at_its_end() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    let expires = now + 1;
    put(&store, &key("a"), StoredRecord { expires, ..done(b"old") });
    store.drain().unwrap();
    put(&store, &key("b"), StoredRecord { expires, ..done(b"old") });
    put(&store, &key("c"), StoredRecord { expires, ..unfinished(Status::Interrupted) });
    store.drain().unwrap();
    lose(&store, ids(&store)[0], 0);
    clock.advance(Duration::from_millis(5));
    let pass = || {
        let (mut pass, mut deleted) = (Pass::default(), 0);
        loop {
            match store.compact(&mut pass, 4) {
                Ok(Some(some)) => deleted += some.records,
                Ok(None) => return (deleted, None),
                Err(error) => return (deleted, Some(error.kind())),
            }
        }
    };
    assert_eq!(pass(), (2, Some(ErrorKind::Corrupt)));
    assert_eq!(pass(), (0, None), "the damaged run is not due any more");
    let mut exact = Pass::exact();
    let failed = std::iter::repeat_with(|| store.compact(&mut exact, 4)).find(|step| !matches!(step, Ok(Some(_))));
    assert_eq!(failed.unwrap().unwrap_err().kind(), ErrorKind::Corrupt, "each caller that waits for all gets it");
    assert_eq!(store.next_due(), NEVER);
}

#[test]
fn commits_that_come_during_a_merge_are_taken_before_its_next_step() {
    let dir = temp();
    let (store, _) = open_with(dir.path(), &options().segment_bytes(64 << 20));
    for nth in 0..8_u32 {
        for part in 0..3 {
            put(&store, &key(format!("{part}-{nth}")), done(&bytes(400_000)));
        }
        if nth < 7 {
            store.drain().unwrap();
        }
    }
    // The eighth run starts a merge, whose first step waits for the test.
    let held = store.inner.shared.waiting_at_steps.lock();
    store.drain().unwrap();
    for nth in 0..200 {
        put(&store, &key(format!("small-{nth}")), done(b"x"));
    }
    let steps = held.len();
    drop(held);
    // A pass waits for the merge under way.
    compact_all(&store);
    // The held step counts what waits once the test lets it go.
    let waiting = store.inner.shared.waiting_at_steps.lock().split_off(steps);
    assert!(waiting.len() > 1 && waiting[0] > 100, "there was no merge: {waiting:?}");
    assert!(waiting[1..].iter().all(|waiting| *waiting < 100), "messages that wait at each step: {waiting:?}");
}
