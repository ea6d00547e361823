//! A quick measurement of a disk: durable cycles per second, compared with the ideal log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use super::ideal::IdealLog;
use super::out::{Done, Out, Stop, Table};
use super::progress::Progress;
use crate::{Begin, Engine, Manager};

const THREADS: [usize; 3] = [1, 8, 64];
const VALUE: [u8; 256] = [7; 256];

/// The settings of a measurement.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) directory: PathBuf,
    /// The number of threads. `None` measures with several numbers.
    pub(super) threads: Option<usize>,
    /// The duration of each of the two measurements.
    pub(super) round: Duration,
}

pub(super) fn run(how: &Bench, out: &mut Out<'_>) -> Done {
    let failed = |cause| Stop::Io(format!("work in {}", how.directory.display()), cause);
    if is_in_memory(&how.directory).map_err(failed)? {
        let shown = how.directory.display();
        return Err(Stop::Usage(format!(
            "{shown} is in memory, where nothing is ever synced: name a directory on a disk"
        )));
    }
    let own = tempfile::Builder::new().prefix("oncekey-bench-").tempdir_in(&how.directory).map_err(failed)?;
    let mut table = Table::new(["THREADS", "IDEAL LOG", "ONCEKEY", "RATIO", "COMMITS PER SYNC"]);
    let mut measured = Vec::new();
    let chosen = how.threads.map_or_else(|| THREADS.to_vec(), |threads| vec![threads]);
    for threads in chosen {
        let progress = Progress::spinner(out, format!("{threads} threads"));
        let ideal = ideal(&own.path().join(format!("log-{threads}")), threads, how.round).map_err(failed)?;
        let (ours, per_sync) = ours(&own.path().join(format!("store-{threads}")), threads, how.round)?;
        drop(progress);
        if out.json {
            measured.push(json!({
                "threads": threads, "ideal_per_second": ideal, "cycles_per_second": ours, "commits_per_sync": per_sync,
            }));
            continue;
        }
        let cells = [
            threads.to_string(),
            format!("{ideal:.0}"),
            format!("{ours:.0}"),
            format!("{:.2}", ours / ideal),
            format!("{per_sync:.1}"),
        ];
        table.row(cells.map(|cell| (cell, console::Style::new())).to_vec(), out)?;
    }
    if out.json {
        return out.json(&measured);
    }
    out.line(format_args!("durable cycles a second, begin and succeed with 256 bytes, {:?} each", how.round))?;
    table.end(out)
}

fn ideal(path: &Path, threads: usize, round: Duration) -> io::Result<f64> {
    let log = IdealLog::new();
    std::thread::scope(|scope| {
        scope.spawn(|| log.write(path));
        let measured = measure(threads, round, |number| {
            log.put(&number.to_be_bytes(), b"begun").and_then(|()| log.put(&number.to_be_bytes(), &VALUE))
        });
        log.end();
        measured
    })
}

/// Measures this engine. Returns cycles per second and commits per sync.
fn ours(path: &Path, threads: usize, round: Duration) -> Done<(f64, f64)> {
    let engine = Engine::open(path)?;
    let manager: Manager<Vec<u8>, String> = engine.manager("bench")?;
    let value = VALUE.to_vec();
    let cycles = measure(threads, round, |number| match manager.begin(spread(number))? {
        Begin::Claimed(claim) => claim.succeed(&value).map(drop).map_err(crate::Error::from),
        // Not reached: each key is new.
        Begin::Replay(_) | Begin::InProgress(_) | Begin::Interrupted(_) | Begin::Paused(_) | Begin::Mismatch(_) => {
            Ok(())
        }
    })?;
    let stats = engine.stats();
    drop(manager);
    engine.close()?;
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let per_sync = stats.commits as f64 / stats.syncs.max(1) as f64;
    Ok((cycles, per_sync))
}

/// Returns sixteen bytes that look random, so that keys are spread.
fn spread(number: u64) -> [u8; 16] {
    u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes()
}

/// Measures cycles per second with this number of threads. `cycle` gets a new number each time.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn measure<X: Send>(threads: usize, round: Duration, cycle: impl Fn(u64) -> Result<(), X> + Sync) -> Result<f64, X> {
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(None));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while began.elapsed() < round {
                    if let Err(error) = cycle(next.fetch_add(1, Ordering::Relaxed)) {
                        *failed.lock() = Some(error);
                        return;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let done = done.into_inner() as f64;
    failed.into_inner().map_or(Ok(done / began.elapsed().as_secs_f64()), Err)
}

#[cfg(target_os = "linux")]
fn is_in_memory(directory: &Path) -> io::Result<bool> {
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58F6;
    let found = rustix::fs::statfs(directory)?;
    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "magic numbers have 32 bits")]
    let magic = found.f_type as u32;
    Ok([TMPFS, RAMFS].contains(&magic))
}

#[cfg(not(target_os = "linux"))]
fn is_in_memory(_directory: &Path) -> io::Result<bool> {
    Ok(false)
}
