//! Benchmarks of an open, by size of the store: after a clean close and after a kill.

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use oncekey::{Engine, Manager};

use crate::number;
use crate::shared::files::copy;
use crate::shared::{VALUE, cycle, fill, named_directory};

/// The number of cycles between the last close and the kill.
const UNCLOSED: u64 = 2_000;

fn opened(path: &Path) -> Duration {
    let began = Instant::now();
    let engine = Engine::open(path).unwrap();
    let took = began.elapsed();
    engine.close().unwrap();
    took
}

pub(crate) fn bench(criterion: &mut Criterion) {
    let base = named_directory();
    let mut group = criterion.benchmark_group("open");
    let most = number("ONCEKEY_RECORDS", 100_000);
    for records in [0, 100_000, 1_000_000].into_iter().filter(|records| *records <= most) {
        let dir = tempfile::tempdir_in(&base).unwrap();
        let path = dir.path().join("closed");
        fill(&path, records);
        group.bench_function(BenchmarkId::new("closed", records), |bencher| {
            bencher.iter_custom(|calls| (0..calls).map(|_| opened(&path)).sum());
        });
        group.bench_function(BenchmarkId::new("sled-alone", records), |bencher| {
            let sled = path.join("store").join("sled");
            bencher.iter_custom(|calls| {
                let open = |_| {
                    let began = Instant::now();
                    let db = sled::open(&sled).unwrap();
                    let took = began.elapsed();
                    drop(db);
                    took
                };
                (0..calls).map(open).sum()
            });
        });
        let engine = Engine::open(&path).unwrap();
        let manager: Manager<Vec<u8>, String> = engine.manager("bench").unwrap();
        let value = VALUE.to_vec();
        (0..UNCLOSED).for_each(|number| cycle(&manager, (1 << 40) + number, &value));
        drop(manager);
        engine.crash();
        group.bench_function(BenchmarkId::new("killed", records), |bencher| {
            bencher.iter_custom(|calls| {
                let open = |_| {
                    let again = tempfile::tempdir_in(&base).unwrap();
                    let copied = again.path().join("store");
                    copy(&path, &copied);
                    opened(&copied)
                };
                (0..calls).map(open).sum()
            });
        });
    }
    group.finish();
}
