//! Shared code of the benchmarks.

#![allow(dead_code, reason = "no benchmark uses all of it")]

pub(crate) mod files;
pub(crate) mod ideal;
pub(crate) mod waking;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use oncekey::{Begin, Durability, Engine, Manager};

pub(crate) const VALUE: [u8; 256] = [7; 256];

/// Returns sixteen bytes that look random, so that keys are spread.
pub(crate) fn key(number: u64) -> [u8; 16] {
    (u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)).to_be_bytes()
}

/// About the size of a record with a result of 256 bytes and its key, as one value in sled.
pub(crate) const RECORD: usize = 396;

/// Creates a database of sled alone, in which each record is one value.
pub(crate) fn raw_sled(path: &Path, records: u64) -> sled::Db {
    let db = sled::Config::new().path(path).cache_capacity(96 << 20).open().unwrap();
    for number in 0..records {
        db.insert(key(number), vec![7; RECORD]).unwrap();
    }
    db
}

/// Begins and succeeds with a new key.
pub(crate) fn cycle(manager: &Manager<Vec<u8>, String>, number: u64, value: &Vec<u8>) {
    match manager.begin(key(number)).unwrap() {
        Begin::Claimed(claim) => drop(claim.succeed(value).unwrap()),
        other => unreachable!("a key that was never used: {other:?}"),
    }
}

/// Creates a closed store with finished records, numbered from 0 to below `records`.
pub(crate) fn fill(path: &Path, records: u64) {
    fill_from(path, 0, records);
}

/// Adds records from `first` to below `records` to a store.
pub(crate) fn fill_from(path: &Path, first: u64, records: u64) {
    let durability = Durability::Eventual { interval: Duration::from_millis(50) };
    let engine = Engine::options().durability(durability).open(path).unwrap();
    let manager = engine.manager("bench").unwrap();
    fill_with(&manager, first, records);
    drop(manager);
    engine.close().unwrap();
}

/// Runs cycles with the numbers from `first` to below `records` on several threads.
pub(crate) fn fill_with(manager: &Manager<Vec<u8>, String>, first: u64, records: u64) {
    let (next, value) = (AtomicU64::new(first), VALUE.to_vec());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= records {
                        return;
                    }
                    cycle(manager, number, &value);
                }
            });
        }
    });
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the directory to use: the one on the command line, or one in the build directory.
pub(crate) fn asked_directory() -> PathBuf {
    on_disk(std::env::args().skip(1).find(|argument| !argument.starts_with("--")))
}

/// Returns the directory that `ONCEKEY_BENCH_DIR` names, or one in the build directory. For benchmarks whose command
/// line has another meaning.
pub(crate) fn named_directory() -> PathBuf {
    on_disk(std::env::var("ONCEKEY_BENCH_DIR").ok())
}

/// Returns the requested directory, or one in the build directory. Rejects a file system in memory: syncs do nothing
/// there, so a measurement would be useless.
pub(crate) fn on_disk(asked: Option<String>) -> PathBuf {
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58F6;
    // Cargo sets this variable for benchmarks, but not for programs.
    let build = option_env!("CARGO_TARGET_TMPDIR").unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/target/tmp"));
    let path = asked.map_or_else(|| PathBuf::from(build), PathBuf::from);
    std::fs::create_dir_all(&path).unwrap();
    let found = rustix::fs::statfs(&path).unwrap();
    #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "magic numbers have 32 bits")]
    let magic = found.f_type as u32;
    assert!(![TMPFS, RAMFS].contains(&magic), "{} is in memory; name a directory on a disk", path.display());
    path
}
