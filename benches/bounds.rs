//! Measures the memory, the disk space, the time of an open and the processor time of the compaction thread, by the
//! number of unfinished records and the size of values.
//!
//! `cargo bench --bench bounds [-- RECORDS [DIRECTORY]]`. The defaults are 200,000 records and a directory below
//! `target`. The directory must be on a real disk. Two measurements use 1.5 and 2 times that number of records.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time and starts threads")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]
#![allow(clippy::cast_precision_loss, reason = "figures to look at")]

mod shared;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oncekey::clock::ManualClock;
use oncekey::stage::Next;
use oncekey::{Durability, Engine, EngineOptions, Manager, ManagerOptions};
use shared::files::{disk, rss};
use shared::key;

type Bytes = Manager<Vec<u8>, String>;

const MIB: f64 = 1_048_576.0;
const CLAIMS: u64 = 200;
const TTL: Duration = Duration::from_secs(3600);

fn options() -> EngineOptions {
    Engine::options().durability(Durability::Eventual { interval: Duration::from_millis(20) })
}

/// Prints the memory of records in progress, without and with checkpoints of 1 MiB.
fn memory(path: &Path, records: u64) {
    let engine = options().open(path).unwrap();
    let manager: Bytes = engine.manager("bench").unwrap();
    engine.compact_now().unwrap();
    let empty = rss();
    (0..records).for_each(|number| assert!(manager.initiate(key(number)).unwrap().is_some()));
    engine.compact_now().unwrap();
    let in_progress = rss();
    println!(
        "{records} records in progress: {:.0} MiB of memory more, {:.0} bytes each",
        in_progress - empty,
        (in_progress - empty) * MIB / records as f64
    );
    let mut claims = Vec::new();
    for number in 0..CLAIMS {
        let mut claim = manager.begin(key(records + number)).unwrap().into_claim().expect("a new key");
        claim.work_stage(|_| Ok::<_, oncekey::Error>(Next::advance_with("half", vec![7; (1 << 20) - 256]))).unwrap();
        claims.push(claim);
    }
    engine.compact_now().unwrap();
    println!(
        "{CLAIMS} claims with a checkpoint of 1 MiB: {:.0} MiB of memory more, {:.0} KiB each",
        rss() - in_progress,
        (rss() - in_progress) * 1024.0 / CLAIMS as f64
    );
    drop(claims);
    drop(manager);
    engine.close().unwrap();
}

/// Prints the disk and memory after rounds of values that all expire before the next round.
fn values(path: &Path, bytes: usize) {
    let clock = ManualClock::new();
    let engine = options().clock(clock.clone()).max_value_bytes(4 << 20).open(path).unwrap();
    let manager: Bytes = engine.manager_with("bench", ManagerOptions::new().success_ttl(TTL)).unwrap();
    let (value, records) = (vec![7; bytes - 64], (64 << 20) / bytes as u64);
    let (mut most, mut memory) = (0_f64, 0_f64);
    for round in 0..10 {
        for number in 0..records {
            shared::cycle(&manager, round * records + number, &value);
            if number % (records / 16).max(1) == 0 {
                (most, memory) = (most.max(disk(path)), memory.max(rss()));
            }
        }
        clock.advance(TTL);
        engine.compact_now().unwrap();
    }
    println!(
        "values of {bytes} bytes, 10 rounds of 64 MiB: {most:.0} MiB of disk at most, {:.0} MiB when all have expired, \
         {memory:.0} MiB of memory at most",
        disk(path)
    );
    drop(manager);
    engine.close().unwrap();
}

/// Prints the durations of an open, and of a listing of all interrupted records, for this number of them.
fn interrupted(path: &Path, records: u64) {
    let engine = options().open(path).unwrap();
    let manager: Bytes = engine.manager("bench").unwrap();
    (0..records).for_each(|number| drop(manager.begin(key(number)).unwrap()));
    drop(manager);
    engine.close().unwrap();
    let began = Instant::now();
    let engine = Engine::open(path).unwrap();
    let opened = began.elapsed();
    let began = Instant::now();
    let listed = engine.interrupted().unwrap().count();
    println!("{listed} interrupted records: open {opened:.2?}, listing of all {:.2?}", began.elapsed());
    engine.close().unwrap();
}

/// Returns the processor time of the compaction thread.
fn compaction_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let compaction = tasks
        .filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "oncekey-compact"));
    let nanos = compaction.map(|task| {
        let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanos.sum())
}

/// Prints the processor time of the compaction thread while released records with a TTL wait to expire, and while they
/// expire.
fn due(path: &Path, records: u64) {
    let clock = ManualClock::new();
    let engine = options().clock(clock.clone()).open(path).unwrap();
    let manager: Bytes = engine.manager_with("bench", ManagerOptions::new().released_ttl(TTL)).unwrap();
    for number in 0..records {
        manager.begin(key(number)).unwrap().into_claim().expect("a new key").release().unwrap();
    }
    engine.compact_now().unwrap();
    let before = compaction_time();
    std::thread::sleep(Duration::from_secs(10));
    let took = compaction_time().saturating_sub(before);
    println!("{records} released records, none due: compaction thread {took:.0?} in 10 s");
    clock.advance(TTL + Duration::from_secs(1));
    let compacted = engine.compact_now().unwrap();
    println!("{} of them expired: deleted in {:.2?}", compacted.removed, compacted.took);
    drop(manager);
    engine.close().unwrap();
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let records: u64 = arguments.next().map_or(200_000, |records| records.parse().expect("a number of records"));
    let base = arguments.next().map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let dir = tempfile::tempdir_in(&base).unwrap();
    memory(&dir.path().join("memory"), records);
    for bytes in [256, 4 << 10, 64 << 10, 1 << 20, 4 << 20] {
        values(&dir.path().join(format!("values-{bytes}")), bytes);
    }
    interrupted(&dir.path().join("interrupted"), records + records / 2);
    due(&dir.path().join("due"), 2 * records);
}
