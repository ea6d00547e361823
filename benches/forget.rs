//! Measures how fast expired records are deleted, alone and during durable cycles, and how much it slows down those
//! cycles.
//!
//! `cargo bench --bench forget [-- RECORDS [DIRECTORY]]`. The default is 1,000,000 records on a real disk.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time and starts threads")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]
#![allow(clippy::cast_precision_loss, reason = "rates")]

mod shared;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oncekey::{Durability, Engine, Manager, ManagerOptions, admin::Compacted, clock::ManualClock};
use shared::{VALUE, cycle};

const THREADS: u64 = 8;
const BASELINE: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(3600);

/// Fills a store with this number of finished records, all applied to sled.
fn fill(path: &Path, clock: &ManualClock, records: u64) {
    let durability = Durability::Eventual { interval: Duration::from_millis(50) };
    let engine = Engine::options().clock(clock.clone()).durability(durability).open(path).unwrap();
    let manager = engine.manager_with("bench", ManagerOptions::new().success_ttl(TTL)).unwrap();
    let (next, value) = (AtomicU64::new(0), VALUE.to_vec());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= records {
                        return;
                    }
                    cycle(&manager, number, &value);
                }
            });
        }
    });
    engine.close().unwrap();
}

/// Runs durable cycles until `stop`. Returns their number and the 99th percentile of their durations.
fn load(manager: &Manager<Vec<u8>, String>, first: u64, stop: &AtomicBool) -> (f64, Duration) {
    let (next, value) = (AtomicU64::new(first), VALUE.to_vec());
    let began = Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut times = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        cycle(manager, next.fetch_add(1, Ordering::Relaxed), &value);
                        times.push(began.elapsed());
                    }
                    times
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    times.sort_unstable();
    (times.len() as f64 / began.elapsed().as_secs_f64(), times[times.len() * 99 / 100])
}

fn rate(done: &Compacted) -> f64 {
    done.removed as f64 / done.took.as_secs_f64()
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let records: u64 = arguments.next().map_or(1_000_000, |records| records.parse().expect("a number of records"));
    let base = arguments.next().map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = tempfile::tempdir_in(&base).unwrap();
    let clock = ManualClock::new();

    fill(&dir.path().join("alone"), &clock, records);
    clock.advance(TTL);
    let engine = Engine::options().clock(clock.clone()).open(dir.path().join("alone")).unwrap();
    let alone = engine.compact_now().unwrap();
    println!("alone: {} records in {:.1?}, {:.0} a second", alone.removed, alone.took, rate(&alone));
    engine.close().unwrap();

    let path = dir.path().join("beside");
    fill(&path, &clock, records);
    let engine = Engine::options().clock(clock.clone()).open(&path).unwrap();
    let manager = engine.manager_with("bench", ManagerOptions::new().success_ttl(TTL)).unwrap();
    let stop = AtomicBool::new(false);
    let (before, p99_before) = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&manager, records, &stop));
        std::thread::sleep(BASELINE);
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    clock.advance(TTL);
    stop.store(false, Ordering::Relaxed);
    let (beside, (during, p99_during)) = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&manager, 1 << 40, &stop));
        let beside = engine.compact_now().unwrap();
        stop.store(true, Ordering::Relaxed);
        (beside, load.join().unwrap())
    });
    println!("beside {THREADS} threads: {} records, {:.0} a second", beside.removed, rate(&beside));
    println!("durable cycles a second: {before:.0} without, {during:.0} with");
    println!(
        "their p99: {p99_before:.2?} without, {p99_during:.2?} with: {:.2} times",
        p99_during.as_secs_f64() / p99_before.as_secs_f64()
    );
    println!("sled synced write by write: {}", engine.stats().sled_sync_flag);
}
