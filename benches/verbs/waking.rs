//! From the ending of a claim until the last of its waiters has the answer, beside a bare condition variable.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use oncekey::{Begin, Engine, Manager, Waited};
use parking_lot::{Condvar, Mutex};

use crate::number;
use crate::shared::{VALUE, key, named_directory};

const STACK: usize = 64 << 10;
const LONG: Duration = Duration::from_secs(600);

/// Threads that all wait for one thing: how long it takes from `wake` until the last of them is back. `is_parked` says that
/// all of them wait.
fn woken(waiters: usize, wait: impl Fn() + Sync, is_parked: impl Fn() -> bool, wake: impl FnOnce()) -> Duration {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..waiters)
            .map(|_| std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, &wait).unwrap())
            .collect();
        while !is_parked() {
            std::thread::yield_now();
        }
        let began = Instant::now();
        wake();
        for thread in threads {
            thread.join().unwrap();
        }
        began.elapsed()
    })
}

fn oncekey(manager: &Manager<Vec<u8>, String>, number: u64, waiters: usize) -> Duration {
    let Begin::Claimed(claim) = manager.begin(key(number)).unwrap() else { unreachable!("a new key") };
    let wait = || assert!(matches!(manager.wait(key(number), LONG), Ok(Waited::Finished(_))));
    let is_parked = || manager.engine().stats().waiting == waiters as u64;
    woken(waiters, wait, is_parked, || drop(claim.succeed(&VALUE.to_vec()).unwrap()))
}

fn bare(waiters: usize) -> Duration {
    let (ended, condvar, parked) = (Mutex::new(false), Condvar::new(), AtomicUsize::new(0));
    let wait = || {
        let mut ended = ended.lock();
        parked.fetch_add(1, Ordering::Relaxed);
        while !*ended {
            condvar.wait(&mut ended);
        }
    };
    let is_parked = || parked.load(Ordering::Relaxed) == waiters && !ended.is_locked();
    woken(waiters, wait, is_parked, || {
        *ended.lock() = true;
        condvar.notify_all();
    })
}

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
