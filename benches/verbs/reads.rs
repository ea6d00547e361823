//! What answers without a commit: replays and looks at finished records, beside sled's own `get` of the same records.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{Criterion, Throughput};
use oncekey::{Begin, Engine, Manager};

use crate::shared::{fill, key, named_directory, stored_key};

type Payments = Manager<Vec<u8>, String>;

/// Those that are asked for again and again; and all, each asked for once before any is asked for again.
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
    // A small cache, and no record twice in a row: most come from the file.
    let engine = Engine::options().cache_capacity(1 << 20).open(dir.path()).unwrap();
    let manager: Payments = engine.manager("bench").unwrap();
    let next = AtomicU64::new(0);
    group.bench_function("replay-cold", |bencher| {
        bencher.iter(|| replay(&manager, next.fetch_add(1, Ordering::Relaxed) % RECORDS));
    });
    engine.close().unwrap();
    raw(&mut group, dir.path());
    group.finish();
}

/// sled, opened as it is, asked for the same records.
fn raw(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>, path: &Path) {
    let db = sled::open(path.join("store").join("sled")).unwrap();
    let tree = db.open_tree("records").unwrap();
    let keys: Vec<_> = (0..HOT).map(stored_key).collect();
    let next = AtomicU64::new(0);
    group.bench_function("sled-get-hot", |bencher| {
        bencher.iter(|| {
            let number = usize::try_from(next.fetch_add(1, Ordering::Relaxed) % HOT).unwrap();
            tree.get(&keys[number]).unwrap().unwrap().to_vec()
        });
    });
}
