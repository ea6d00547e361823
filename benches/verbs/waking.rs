//! Benchmark of the time from the ending of a claim until its last waiter has the answer, compared with a bare
//! condition variable.

use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{BenchmarkId, Criterion};
use oncekey::Engine;

use crate::number;
use crate::shared::named_directory;
use crate::shared::waking::{bare, oncekey};

pub(crate) fn bench(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(named_directory()).unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let manager = engine.manager("bench").unwrap();
    let next = AtomicU64::new(0);
    let mut group = criterion.benchmark_group("wake");
    let most = number("ONCEKEY_WAITERS", 1_000);
    for waiters in [1, 100, 1_000, 10_000].into_iter().filter(|waiters| *waiters as u64 <= most) {
        group.bench_function(BenchmarkId::new("oncekey", waiters), |bencher| {
            bencher.iter_custom(|calls| {
                (0..calls).map(|_| oncekey(&manager, next.fetch_add(1, Ordering::Relaxed), waiters)).sum()
            });
        });
        group.bench_function(BenchmarkId::new("condition-variable", waiters), |bencher| {
            bencher.iter_custom(|calls| (0..calls).map(|_| bare(waiters)).sum());
        });
    }
    group.finish();
    drop(manager);
    engine.close().unwrap();
}
