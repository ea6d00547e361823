//! Measures work stages and plain endings. Each is one durable commit; a stage also writes a row. Then measures how
//! much a sleeping closure slows down transactions that do not conflict with it. All run in turns in one process, on
//! one disk.
//!
//! `cargo bench --bench stages [-- DIRECTORY]`. The directory must be on a real disk. `ONCEKEY_BENCH_SLEEPERS=1` runs
//! only the last part.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time and starts threads")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a benchmark"
)]

mod shared;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oncekey::{Begin, Claim, Engine, Error, Manager, stage::Next};
use shared::{VALUE, asked_directory, key, median};

const THREADS: [usize; 3] = [1, 8, 64];
const ROUNDS: usize = 5;
/// The number of commits in a round, over all threads.
const COMMITS: usize = 6400;
const SLEEP: Duration = Duration::from_secs(1);
/// Longer than the runs that the closure repeats because of conflicts.
const SLEEPERS_ROUND: Duration = Duration::from_secs(6);

type Payments = Manager<Vec<u8>, String>;

fn claim(manager: &Payments, next: &AtomicU64) -> Claim<Vec<u8>, String> {
    match manager.begin(key(next.fetch_add(1, Ordering::Relaxed))).unwrap() {
        Begin::Claimed(claim) => claim,
        other => unreachable!("a key that was never used: {other:?}"),
    }
}

/// Returns the commits per second with this number of threads. Each commit uses a value that was prepared before.
fn measure<C>(threads: usize, prepare: impl Fn(usize) -> C + Sync, run: impl Fn(C) + Sync) -> f64 {
    let start = Barrier::new(threads + 1);
    let took = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let (start, prepare, run) = (&start, &prepare, &run);
                scope.spawn(move || {
                    let prepared = prepare(thread);
                    start.wait();
                    run(prepared);
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        for worker in workers {
            worker.join().unwrap();
        }
        began.elapsed()
    });
    (COMMITS / threads * threads) as f64 / took.as_secs_f64()
}

fn endings(manager: &Payments, next: &AtomicU64, threads: usize) -> f64 {
    let prepare = |_| (0..COMMITS / threads).map(|_| claim(manager, next)).collect::<Vec<_>>();
    let value = VALUE.to_vec();
    measure(threads, prepare, |claims| {
        for claim in claims {
            claim.succeed(&value).unwrap();
        }
    })
}

/// Each stage reads and writes a row of 256 bytes, and leaves a checkpoint.
fn stages(manager: &Payments, next: &AtomicU64, threads: usize) -> f64 {
    measure(
        threads,
        |thread| (claim(manager, next), format!("row-{thread}")),
        |(mut claim, row)| {
            for step in 0..COMMITS / threads {
                claim
                    .work_stage(|tx| {
                        let table = tx.table("bench")?;
                        assert_eq!(table.contains(&row)?, step > 0);
                        table.insert(&row, VALUE)?;
                        Next::advance_encoded("on", &step)
                    })
                    .unwrap();
            }
            claim.work_stage(|tx| tx.table("bench")?.remove(&row).map(|()| Next::Succeed(Vec::new()))).unwrap();
        },
    )
}

/// The background work during the measured phases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// A closure that reads a hundred rows and sleeps.
    Sleeper,
    /// The same, and a thread that writes one of these rows. After three failed runs the closure locks that row.
    Overtaken,
}

fn sleep(engine: &Engine, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let slow = engine.atomic_phase(|tx| {
            let table = tx.table("bench")?;
            table.get("slow")?;
            (0..100).try_for_each(|row| table.get(format!("other-{row}")).map(drop))?;
            std::thread::sleep(SLEEP);
            table.insert("slow", "x")
        });
        slow.unwrap();
    }
}

fn overtake(engine: &Engine, done: &AtomicBool) {
    let table = engine.table("bench").unwrap();
    while !done.load(Ordering::Relaxed) {
        table.insert("slow", "y").unwrap();
        std::thread::sleep(SLEEP / 20);
    }
}

/// Returns the 99th percentile and the maximum of durable phases on 8 threads. Each thread has its own rows.
fn percentile_and_max(engine: &Engine, beside: Beside) -> [f64; 2] {
    let done = AtomicBool::new(false);
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        if beside != Beside::Nothing {
            scope.spawn(|| sleep(engine, &done));
        }
        if beside == Beside::Overtaken {
            scope.spawn(|| overtake(engine, &done));
        }
        let workers: Vec<_> = (0..8)
            .map(|thread| {
                scope.spawn(move || {
                    let (began, mut times) = (Instant::now(), Vec::new());
                    while began.elapsed() < SLEEPERS_ROUND {
                        let row = format!("fast-{thread}-{}", times.len() % 64);
                        let at = Instant::now();
                        let fast = engine.atomic_phase(|tx| {
                            let table = tx.table("bench")?;
                            table.get(&row)?;
                            table.insert(&row, VALUE)?;
                            Ok::<_, Error>(())
                        });
                        fast.unwrap();
                        times.push(at.elapsed());
                    }
                    times
                })
            })
            .collect();
        let times = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        times
    });
    times.sort();
    [times[times.len() * 99 / 100], times[times.len() - 1]].map(|time| time.as_secs_f64() * 1e3)
}

fn sleepers(engine: &Engine) {
    let kinds = [Beside::Nothing, Beside::Sleeper, Beside::Overtaken];
    let mut rounds: Vec<[[f64; 2]; 3]> = Vec::new();
    for _ in 0..3 {
        rounds.push(kinds.map(|beside| percentile_and_max(engine, beside)));
    }
    let of = |kind: usize, what: usize| median(rounds.iter().map(|round| round[kind][what]).collect());
    println!("\nphases of 8 threads in ms, medians of 3 rounds in turns; the closure sleeps {SLEEP:?}");
    println!("| beside | p99 | times | longest |");
    println!("|---|---|---|---|");
    for (kind, name) in ["nothing", "a closure that sleeps", "one that is overtaken"].into_iter().enumerate() {
        println!("| {name} | {:.2} | {:.2} | {:.1} |", of(kind, 0), of(kind, 0) / of(0, 0), of(kind, 1));
    }
}

fn main() {
    let base = asked_directory();
    let dir = tempfile::tempdir_in(&base).unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    let manager: Payments = engine.manager("bench").unwrap();
    let next = AtomicU64::new(0);
    if std::env::var_os("ONCEKEY_BENCH_SLEEPERS").is_some() {
        sleepers(&engine);
        return;
    }
    println!("durable commits per second, medians of {ROUNDS} rounds of {COMMITS} in turns, in {}", base.display());
    println!("| threads | endings | stages | ratio |");
    println!("|---|---|---|---|");
    for threads in THREADS {
        let (mut plain, mut staged) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            plain.push(endings(&manager, &next, threads));
            staged.push(stages(&manager, &next, threads));
        }
        let (plain, staged) = (median(plain), median(staged));
        println!("| {threads} | {plain:.0} | {staged:.0} | {:.2} |", staged / plain);
    }
    sleepers(&engine);
    engine.close().unwrap();
}
