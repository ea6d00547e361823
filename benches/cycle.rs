//! Measures the durable cycle (begin and succeed with a value of 256 bytes), compared with the ideal log: a hash map
//! and an appended file with one `fdatasync` for each group. Both answer after the sync. They run in turns in one
//! process, on one disk.
//!
//! `cargo bench --bench cycle [-- DIRECTORY]`. The directory must be on a real disk.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time and starts threads")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

mod shared;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oncekey::{Engine, Manager};
use shared::ideal::{Ideal, IdealLog};
use shared::{VALUE, asked_directory, cycle, key, median};

const THREADS: [usize; 3] = [1, 8, 64];
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);

/// Returns the cycles per second with this number of threads. `cycle` gets a new number each time.
fn measure(threads: usize, next: &AtomicU64, cycle: impl Fn(u64) + Sync) -> f64 {
    let done = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while began.elapsed() < ROUND {
                    cycle(next.fetch_add(1, Ordering::Relaxed));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let done = done.into_inner() as f64;
    done / began.elapsed().as_secs_f64()
}

fn main() {
    let base = asked_directory();
    let dir = tempfile::tempdir_in(&base).unwrap();
    println!("durable cycles per second, medians of {ROUNDS} rounds of {ROUND:?} in turns, in {}", base.display());
    println!("| threads | ideal log | oncekey | ratio | commits per sync |");
    println!("|---|---|---|---|---|");
    let next = AtomicU64::new(0);
    for threads in THREADS {
        let (mut ideal, mut ours) = (Vec::new(), Vec::new());
        let path = dir.path().join(format!("oncekey-{threads}"));
        let engine = Engine::open(&path).unwrap();
        let manager: Manager<Vec<u8>, String> = engine.manager("bench").unwrap();
        let value = VALUE.to_vec();
        for round in 0..ROUNDS {
            let log = IdealLog::start(&dir.path().join(format!("log-{threads}-{round}")), Ideal::Appended);
            ideal.push(measure(threads, &next, |number| {
                log.put(&key(number), b"begun");
                log.put(&key(number), &VALUE);
            }));
            drop(log);
            ours.push(measure(threads, &next, |number| cycle(&manager, number, &value)));
        }
        let stats = engine.stats();
        let (ideal, ours) = (median(ideal), median(ours));
        #[allow(clippy::cast_precision_loss, reason = "a ratio")]
        let shared = stats.commits as f64 / stats.syncs as f64;
        println!("| {threads} | {ideal:.0} | {ours:.0} | {:.2} | {shared:.1} |", ours / ideal);
        engine.close().unwrap();
    }
}
