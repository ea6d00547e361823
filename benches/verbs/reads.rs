//! Benchmarks of calls that do not commit: replays and reads of finished records, compared with sled's own `get` of values
//! of the same size.

use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, Throughput};
use oncekey::{Begin, Engine, Manager};

use crate::shared::{fill, key, named_directory, raw_sled};

type Payments = Manager<Vec<u8>, String>;

/// The hot records are read again and again. All records are read once each before any is read again.
const HOT: u64 = 1_000;
const RECORDS: u64 = 50_000;

fn replay(manager: &Payments, number: u64) {
    match manager.begin(key(number)).unwrap() {
        Begin::Replay(record) => assert_eq!(record.outcome().unwrap().len(), 256),
        other => unreachable!("a finished key: {other:?}"),
    }
}

pub(crate) fn bench(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(named_directory()).unwrap();
    fill(dir.path(), RECORDS);
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Elements(1));
    {
        let engine = Engine::open(dir.path()).unwrap();
        let manager: Payments = engine.manager("bench").unwrap();
        let next = AtomicU64::new(0);
        let hot = || next.fetch_add(1, Ordering::Relaxed) % HOT;
        group.bench_function("replay-hot", |bencher| bencher.iter(|| replay(&manager, hot())));
        group.bench_function("get-hot", |bencher| bencher.iter(|| manager.get(key(hot())).unwrap().unwrap()));
        engine.close().unwrap();
    }
    // The cache is small and no record comes twice in a row, so most reads go to the file.
    let engine = Engine::options().cache_capacity(1 << 20).open(dir.path()).unwrap();
    let manager: Payments = engine.manager("bench").unwrap();
    let next = AtomicU64::new(0);
    group.bench_function("replay-cold", |bencher| {
        bencher.iter(|| replay(&manager, next.fetch_add(1, Ordering::Relaxed) % RECORDS));
    });
    engine.close().unwrap();
    raw(&mut group);
    group.finish();
}

/// Reads from a database of sled alone.
fn raw(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>) {
    let dir = tempfile::tempdir_in(named_directory()).unwrap();
    let db = raw_sled(dir.path(), RECORDS);
    let keys: Vec<_> = (0..HOT).map(key).collect();
    let next = AtomicU64::new(0);
    group.bench_function("sled-get-hot", |bencher| {
        bencher.iter(|| {
            let number = usize::try_from(next.fetch_add(1, Ordering::Relaxed) % HOT).unwrap();
            db.get(keys[number]).unwrap().unwrap().to_vec()
        });
    });
}
