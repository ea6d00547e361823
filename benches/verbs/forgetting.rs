//! Benchmark of one compaction pass over expired records.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use oncekey::{Engine, FOREVER, ManagerOptions, clock::ManualClock};

use crate::shared::{VALUE, cycle, named_directory};

const RECORDS: u64 = 2_000;
const TTL: Duration = Duration::from_secs(3600);

pub(crate) fn bench(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(named_directory()).unwrap();
    let clock = ManualClock::new();
    // Delete only on request.
    let engine = Engine::options().clock(clock.clone()).compaction_interval(FOREVER).open(dir.path()).unwrap();
    let manager = engine.manager_with("bench", ManagerOptions::new().success_ttl(TTL)).unwrap();
    let (mut number, value) = (0, VALUE.to_vec());
    let mut group = criterion.benchmark_group("compaction");
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function(RECORDS.to_string(), |bencher| {
        bencher.iter_custom(|calls| {
            (0..calls)
                .map(|_| {
                    for _ in 0..RECORDS {
                        cycle(&manager, number, &value);
                        number += 1;
                    }
                    clock.advance(TTL);
                    let done = engine.compact_now().unwrap();
                    assert_eq!(done.removed, RECORDS);
                    done.took
                })
                .sum()
        });
    });
    group.finish();
    drop(manager);
    engine.close().unwrap();
}
