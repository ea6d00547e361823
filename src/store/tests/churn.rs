//! Sustained commits of records that soon expire: what is stored stays within a factor of what lives.

use super::compaction::with_clock;
use super::*;

/// The records of a round, about 100 blocks.
const RECORDS: u64 = 10;
const LEN: usize = 39_000;
const ROUND: u64 = 100;

/// The contents of the record store after a flush.
#[derive(Debug)]
struct Stored {
    records: u64,
    runs: usize,
    /// The number of blocks in sled, listed or not.
    blocks: u64,
}

fn look(store: &Store) -> Stored {
    let (tables, runs) = (&store.inner.shared.tables, store.inner.shared.runs.len());
    let of = |id| tables.blocks_of(id, &(0..u32::MAX), usize::MAX).unwrap().len() as u64;
    Stored { records: entries(store), runs, blocks: tables.run_ids().unwrap().into_iter().map(of).sum() }
}

/// Commits and flushes the records of a round, which expire at this time. With `lives`, also a record that lives on: then
/// the run is rewritten, and not deleted as a whole.
fn flush_round(store: &Store, round: u64, expires: u64, lives: bool) {
    let record = |nth| set(&key(format!("{nth} {round}")), StoredRecord { expires, ..done(&bytes(LEN)) });
    let lives = lives.then(|| set(&key(format!("lives {round}")), done(b"x")));
    put_all(store, (0..RECORDS).map(record).chain(lives).collect());
    store.drain().unwrap();
}

/// Commits and flushes records in rounds, each of which expires `rounds` rounds later. No pass runs: the compaction
/// thread may get no time under load. Returns the most that was stored once the first have expired.
fn churn(rounds: u64, lives: bool) -> Stored {
    let dir = temp();
    let (store, clock, _) = with_clock(dir.path());
    let mut most = Stored { records: 0, runs: 0, blocks: 0 };
    for round in 0..3 * rounds + 40 {
        // The steps after the flush before have ended when this flush is done.
        flush_round(&store, round, store.now().store + rounds * ROUND, lives);
        if round > rounds {
            let Stored { records, runs, blocks } = look(&store);
            most = Stored {
                records: most.records.max(records),
                runs: most.runs.max(runs),
                blocks: most.blocks.max(blocks),
            };
        }
        clock.advance(Duration::from_millis(ROUND));
    }
    most
}

#[test]
fn under_sustained_load_expired_records_take_no_more_than_twice_the_space_of_live_ones() {
    for (rounds, lives) in [(3, false), (12, false), (60, false), (3, true), (12, true), (60, true)] {
        let most = churn(rounds, lives);
        println!("{rounds} rounds live, {lives}: {most:?}");
        // The last flush, and what has expired since the last look, come on top.
        let live = rounds + 3;
        assert!(most.records <= 3 * live * RECORDS, "{rounds} rounds live: {most:?}");
        assert!(most.blocks <= 3 * live * 103, "{rounds} rounds live: {most:?}");
        // What lives of rewritten runs is in small runs, of which up to 16 are merged at a time.
        let small = if lives { 16 } else { 0 };
        assert!(most.runs as u64 <= 3 * live + small, "{rounds} rounds live: {most:?}");
    }
}

#[test]
fn commits_wait_for_few_steps_even_if_very_much_has_expired() {
    let (dir, clock) = (temp(), ManualClock::new());
    let (store, _) = open_with(dir.path(), &options().clock(clock.clone()).segment_bytes(64 << 20));
    let now = store.now().store;
    for round in 0..40 {
        flush_round(&store, round, now + 1, true);
    }
    clock.advance(Duration::from_millis(1));
    let held = store.inner.shared.waiting_at_steps.lock();
    // More than two flushes take: the steps after the first one wait for the test, and the rest waits for its flush.
    for nth in 0..30 {
        put(&store, &key(format!("large {nth}")), done(&bytes(400_000)));
    }
    let before = held.len();
    drop(held);
    store.drain().unwrap();
    let waiting = store.inner.shared.waiting_at_steps.lock().split_off(before);
    // Between two flushes the same messages wait at each step, and perhaps that of the drain.
    let is_same = |one: &usize, next: &usize| *one > 0 && (*one..=one + 1).contains(next);
    let most = waiting.chunk_by(is_same).map(<[_]>::len).max().unwrap();
    assert!((40..80).contains(&most), "{most} steps, {waiting:?}");
    assert_eq!(store.verify().unwrap().problems, Vec::<String>::new());
}
