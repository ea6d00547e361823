//! Numbers of runs, damaged runs, what is counted at an open, and how much merges write.

use super::compaction::{compact_all, pass, with_clock};
use super::*;

#[test]
fn the_number_of_a_run_is_not_given_twice() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    let first_id = |store: &Store| store.inner.shared.runs.now()[0].info.id;
    put(&store, &key("a"), StoredRecord { expires: now + 1, ..done(b"old") });
    store.drain().unwrap();
    let before = first_id(&store);
    clock.advance(Duration::from_millis(5));
    assert_eq!(compact_all(&store).records, 1);
    wait_for_deletions(&store);
    assert_eq!(store.inner.shared.runs.now().len(), 0);
    store.close().unwrap();
    let (store, _) = open_with(dir.path(), &options().clock(clock));
    put(&store, &key("b"), done(b"new"));
    store.drain().unwrap();
    assert!(first_id(&store) > before);
}

#[test]
fn a_damaged_run_does_not_end_all_forgetting() {
    let dir = temp();
    let (store, clock, now) = with_clock(dir.path());
    put(&store, &key("a"), StoredRecord { expires: now + 1, ..done(b"old") });
    store.drain().unwrap();
    put(&store, &key("b"), StoredRecord { expires: now + 1, ..done(b"old") });
    put(&store, &key("c"), StoredRecord { expires: now + 1, ..unfinished(Status::Interrupted) });
    store.drain().unwrap();
    lose(&store, store.inner.shared.runs.now()[0].info.id, 0);
    clock.advance(Duration::from_millis(5));
    let deleted = pass(&store, Pass::default());
    assert_eq!((deleted.records, deleted.interrupted), (2, 1));
}

#[test]
fn interrupted_records_that_expired_while_the_store_was_closed_are_counted_neither_on_nor_off() {
    let dir = temp();
    let clock = ManualClock::new();
    let open = || crate::Engine::options().clock(clock.clone()).open(dir.path()).unwrap();
    let options = crate::ManagerOptions::new().interrupted_ttl(Duration::from_millis(30));
    let engine = open();
    drop(engine.manager_with::<u64, String>("m", options.clone()).unwrap().begin("dropped").unwrap());
    assert_eq!(engine.stats().interrupted, 1);
    engine.close().unwrap();
    clock.advance(Duration::from_millis(50));
    let engine = open();
    assert_eq!(engine.stats().interrupted, 0);
    assert_eq!(engine.compact_now().unwrap().removed, 1);
    drop(engine.manager_with::<u64, String>("m", options).unwrap().begin("another").unwrap());
    assert_eq!(engine.stats().interrupted, 1);
}

#[test]
fn what_merges_write_grows_with_the_logarithm_of_what_is_flushed() {
    use crate::store::format::block::{FirstKeys, Index};
    use crate::store::format::filter::Filter;
    use crate::store::format::list::RunInfo;
    use crate::store::runs::{Run, merge};
    let run = |id, blocks| {
        let info = RunInfo { id, blocks, index_blocks: 1, entries: 1, earliest: NEVER, half: NEVER };
        let index = Index { first_keys: FirstKeys::default(), unfinished: Vec::new(), filter: Filter::new(1) };
        Arc::new(Run { info, index })
    };
    // A flush of one block beside a large run, and of 4 MB from nothing.
    for (stored, flush) in [(175_000_u32, 1_u32), (0, 1_000)] {
        let mut runs = if stored > 0 { vec![run(0, stored)] } else { Vec::new() };
        let (mut merged, mut most) = (0_u64, 0);
        for nth in 1..=1_000_u64 {
            runs.push(run(nth, flush));
            while let Some(range) = merge::plan(&runs, &[]) {
                let blocks: u32 = runs[range.clone()].iter().map(|run| run.info.blocks).sum();
                merged += u64::from(blocks);
                let id = runs[range.start].info.id;
                runs.splice(range, [run(id, blocks)]);
            }
            most = most.max(runs.len());
        }
        let flushed = 1_000 * u64::from(flush);
        assert!(merged <= 4 * flushed, "{merged} of {flushed}");
        assert!(most <= 40, "{most} runs");
    }
}
