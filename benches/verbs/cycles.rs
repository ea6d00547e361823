//! Benchmarks of calls that commit: the cycle of begin and succeed, `execute`, a stage.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use oncekey::{Begin, Durability, Engine, EngineOptions, Manager, stage::Next};

use crate::shared::{VALUE, cycle, key, named_directory};
use crate::threads::Times;

type Payments = Manager<Vec<u8>, String>;

const THREADS: [usize; 3] = [1, 8, 64];

pub(crate) fn bench(criterion: &mut Criterion) {
    let value = VALUE.to_vec();
    let eventual = Durability::Eventual { interval: Duration::from_millis(50) };
    group(criterion, "cycle", &Engine::options(), |manager, number| cycle(manager, number, &value));
    group(criterion, "cycle-eventual", &Engine::options().durability(eventual), |manager, number| {
        cycle(manager, number, &value);
    });
    group(criterion, "execute", &Engine::options(), |manager, number| {
        manager.execute(key(number), |_| Ok(VALUE.to_vec())).unwrap();
    });
    group(criterion, "begin-stage-succeed", &Engine::options(), |manager, number| {
        let Begin::Claimed(mut claim) = manager.begin(key(number)).unwrap() else { unreachable!("a new key") };
        claim
            .work_stage(|tx| {
                tx.table("bench")?.insert(key(number), VALUE)?;
                Next::advance_encoded("charged", &number)
            })
            .unwrap();
        claim.succeed(&value).unwrap();
    });
}

fn group(criterion: &mut Criterion, name: &str, options: &EngineOptions, call: impl Fn(&Payments, u64) + Sync) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1));
    for threads in THREADS {
        let dir = tempfile::tempdir_in(named_directory()).unwrap();
        let engine = options.open(dir.path()).unwrap();
        let manager: Payments = engine.manager("bench").unwrap();
        let (next, mut times) = (AtomicU64::new(0), Times::new());
        group.bench_function(BenchmarkId::from_parameter(threads), |bencher| {
            bencher.iter_custom(|calls| times.run(threads, calls, &next, |number| call(&manager, number)));
        });
        times.print(&format!("{name}/{threads}"));
        engine.close().unwrap();
    }
    group.finish();
}
