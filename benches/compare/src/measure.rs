//! Measures one system with a number of threads, and many systems in turns.

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::shared::{key, median};
use crate::systems::{Candidate, Key, Kind, Mode, Session, Step, System};

/// The keys of the cycles. Each is new.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    Random,
    /// UUIDs of version 7. They are ordered by time, so neighbours are written together.
    Ordered,
}

impl Keys {
    fn next(self, next: &AtomicU64) -> Key {
        match self {
            Self::Random => key(next.fetch_add(1, Ordering::Relaxed)),
            Self::Ordered => uuid::Uuid::now_v7().into_bytes(),
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) threads: usize,
    pub(crate) keys: Keys,
    /// Time before the measurement, in which files are created, pages fetched and buffers grown.
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

/// The result of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Cycles per second.
    pub(crate) rate: f64,
    /// The 99th percentile of the duration of a cycle, in milliseconds.
    pub(crate) p99: f64,
}

pub(crate) fn cycle(session: &mut dyn Session, key: Key) {
    assert!(session.step(Step::Begin(key)), "a key that was never used");
    assert!(session.step(Step::Succeed(key)), "a key that has begun");
}

/// Runs cycles until the time is over. `next` numbers the keys, so that no key is used twice.
pub(crate) fn run(system: &dyn System, load: Load, next: &AtomicU64) -> Reading {
    let start = Barrier::new(load.threads);
    let histograms: Vec<Histogram<u64>> = std::thread::scope(|scope| {
        let work = || {
            let mut session = system.session();
            let mut times = Histogram::<u64>::new(3).unwrap();
            start.wait();
            let began = Instant::now();
            loop {
                let before = began.elapsed();
                cycle(&mut *session, load.keys.next(next));
                let after = began.elapsed();
                if after > load.warm_up + load.time {
                    return times;
                }
                if after > load.warm_up {
                    times.record(u64::try_from(after.saturating_sub(before).as_nanos()).unwrap()).unwrap();
                }
            }
        };
        let threads: Vec<_> = (0..load.threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut all = Histogram::<u64>::new(3).unwrap();
    for times in histograms {
        all.add(times).unwrap();
    }
    Reading { rate: all.len() as f64 / load.time.as_secs_f64(), p99: p99(&all) }
}

/// Returns the 99th percentile of times in nanoseconds, in milliseconds.
pub(crate) fn p99(times: &Histogram<u64>) -> f64 {
    times.value_at_quantile(0.99) as f64 / 1e6
}

/// Writes out the page cache, so that the next system's syncs do not pay for earlier writes.
pub(crate) fn settle(base: &Path) -> Result<()> {
    let dir = std::fs::File::open(base)?;
    rustix::fs::syncfs(&dir).with_context(|| base.display().to_string())
}

/// All readings of a candidate: a list for each column, an entry for each round. Or the reason why there are none.
pub(crate) struct Row {
    pub(crate) candidate: Candidate,
    pub(crate) readings: Vec<Vec<Reading>>,
    pub(crate) absent: Option<String>,
}

impl Row {
    pub(crate) fn rate(&self, column: usize) -> Option<f64> {
        self.middle(column, |reading| reading.rate)
    }

    pub(crate) fn p99(&self, column: usize) -> Option<f64> {
        self.middle(column, |reading| reading.p99)
    }

    /// Returns the median over all rounds of this rate divided by the other's. A disturbance longer than a round
    /// affects both.
    pub(crate) fn over(&self, other: &Self, column: usize) -> Option<f64> {
        let (ours, theirs) = (self.readings.get(column)?, other.readings.get(column)?);
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours.rate / theirs.rate).collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    fn middle(&self, column: usize, of: fn(&Reading) -> f64) -> Option<f64> {
        let readings = self.readings.get(column).filter(|readings| !readings.is_empty())?;
        Some(median(readings.iter().map(of).collect()))
    }
}

/// A load that is the same for each candidate.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) load: Load,
    pub(crate) rounds: usize,
}

/// Runs every candidate under every load in turns. Each has a directory for each column, and opens it again in each
/// round, so that its background work does not disturb others. The order changes from round to round. After `limit` no
/// round starts, except the first.
pub(crate) fn in_turns(
    base: &Path,
    mode: Mode,
    candidates: &[Candidate],
    columns: &[Column],
    next: &AtomicU64,
    limit: Duration,
) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = candidates
        .iter()
        .map(|candidate| Row { candidate: *candidate, readings: vec![Vec::new(); columns.len()], absent: None })
        .collect();
    let began = Instant::now();
    for round in 0..columns.iter().map(|column| column.rounds).max().unwrap_or(0) {
        let so_far = u32::try_from(round)?;
        if so_far > 0 && began.elapsed() / so_far * (so_far + 1) > limit {
            eprintln!("no time for round {round}");
            break;
        }
        for (number, column) in columns.iter().enumerate().filter(|(_, column)| round < column.rounds) {
            for row_number in order(rows.len(), round) {
                let row = &mut rows[row_number];
                if row.absent.is_some() {
                    continue;
                }
                let path = base.join(format!("{mode:?}-{number}-{row_number}"));
                eprintln!("round {round}, {mode:?}, {} threads: {}", column.load.threads, row.candidate.name);
                match (row.candidate.open)(&path, mode) {
                    Ok(system) => row.readings[number].push(run(&*system, column.load, next)),
                    Err(cause) if row.candidate.kind == Kind::Server => row.absent = Some(format!("{cause:#}")),
                    Err(cause) => return Err(cause.context(row.candidate.name)),
                }
                settle(base)?;
            }
        }
    }
    Ok(rows)
}

/// Returns the order of a round: backwards every other time, with another start each time. So no candidate always runs
/// after the same one.
fn order(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.rotate_left(round * 5 % count);
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Returns the fastest of the rows that `which` accepts.
pub(crate) fn best(rows: &[Row], column: usize, which: impl Fn(&Candidate) -> bool) -> Option<&Row> {
    let rows = rows.iter().filter(|row| which(&row.candidate) && row.rate(column).is_some());
    rows.max_by(|one, other| one.rate(column).unwrap_or(0.0).total_cmp(&other.rate(column).unwrap_or(0.0)))
}

pub(crate) fn ours(rows: &[Row]) -> Option<&Row> {
    rows.iter().find(|row| row.candidate.kind == Kind::Ours)
}
