//! The time of a cycle while the engine writes its record store, compared with the rest of the time.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::measure::{cycle, p99};
use crate::shared::key;
use crate::systems::System;

const THREADS: usize = 8;
/// The time between two looks at sled's file.
const LOOK: Duration = Duration::from_millis(2);
/// Writes with less time in between are of one flush or merge, which sorts and encodes blocks between its writes.
const GAP: Duration = Duration::from_millis(50);

/// The 99th percentiles of the durations of cycles, in milliseconds.
pub(crate) struct Background {
    pub(crate) beside: f64,
    pub(crate) without: f64,
    /// The part of all cycles that ran beside a flush or a merge.
    pub(crate) share: f64,
}

/// Runs cycles for this time on the store in this directory.
///
/// # Errors
///
/// Fails if the directory has no file of sled.
pub(crate) fn background(system: &dyn System, store: &Path, time: Duration) -> Result<Background> {
    let file = file_of_sled(store).with_context(|| format!("{} has no file of sled", store.display()))?;
    let (next, ended, began) = (AtomicU64::new(0), AtomicBool::new(false), Instant::now());
    let work = || {
        let (mut session, mut times) = (system.session(), Vec::new());
        while began.elapsed() < time {
            let start = began.elapsed();
            cycle(&mut *session, key(next.fetch_add(1, Ordering::Relaxed)));
            times.push((start, began.elapsed()));
        }
        times
    };
    let (cycles, writes) = thread::scope(|scope| {
        let looks = scope.spawn(|| writes(&file, began, &ended));
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let cycles: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        ended.store(true, Ordering::Relaxed);
        (cycles, looks.join().unwrap())
    });
    let (mut beside, mut without) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    for (start, end) in cycles {
        let first_later = writes.partition_point(|(_, to)| *to < start);
        let overlaps = writes.get(first_later).is_some_and(|(from, _)| *from <= end);
        let times = if overlaps { &mut beside } else { &mut without };
        times.record(u64::try_from((end - start).as_nanos())?)?;
    }
    let share = beside.len() as f64 / (beside.len() + without.len()) as f64;
    Ok(Background { beside: p99(&beside), without: p99(&without), share })
}

fn file_of_sled(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .find_map(|path| if path.is_dir() { file_of_sled(&path) } else { (path.file_name()? == "db").then_some(path) })
}

/// Returns the times in which the file was written.
fn writes(file: &Path, began: Instant, ended: &AtomicBool) -> Vec<(Duration, Duration)> {
    let stamp = || std::fs::metadata(file).map_or((0, 0), |metadata| (metadata.mtime(), metadata.mtime_nsec()));
    let mut writes: Vec<(Duration, Duration)> = Vec::new();
    let (mut before, mut looked) = (stamp(), began.elapsed());
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(LOOK);
        let (now, at) = (stamp(), began.elapsed());
        if now != before {
            match writes.last_mut() {
                Some((_, to)) if looked.saturating_sub(*to) < GAP => *to = at,
                _ => writes.push((looked, at)),
            }
        }
        (before, looked) = (now, at);
    }
    writes
}
