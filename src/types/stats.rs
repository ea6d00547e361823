//! Counters and gauges of an engine.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::types::histogram::Histogram;
#[cfg(feature = "metrics")]
use crate::types::labels::ByManager;

/// The counters and gauges of an engine. Counters start at 0 when the engine is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Commits.
    pub commits: u64,
    /// Commits rejected because the key had changed since it was read. The engine then read the key and decided again.
    pub conflicts: u64,
    /// Groups written to the journal. A group holds the commits that share one sync.
    pub groups: u64,
    /// Syncs of the journal.
    pub syncs: u64,
    /// Bytes written to the journal, including headers and padding.
    pub journal_bytes: u64,
    /// Calls that waited for a sync.
    pub sync_waits: u64,
    /// Journal segments in use or ready for use.
    pub segments: u64,
    /// Bytes committed but not yet applied to sled.
    pub unapplied_bytes: u64,
    /// Completed store checkpoints.
    pub store_checkpoints: u64,
    /// Records in progress with a live owner.
    pub in_progress: u64,
    /// Interrupted records.
    pub interrupted: u64,
    /// Calls that now wait for another owner.
    pub waiting: u64,
    /// Replayed outcomes.
    pub replays: u64,
    /// Events that subscribers missed because their queue was full.
    pub events_dropped: u64,
    /// Runs of a transaction's closure that were repeated because of a conflict.
    pub transaction_reruns: u64,
    /// Dropped claims that could not be recorded immediately. If the journal was full they are recorded later; if the
    /// engine was closed or poisoned, the next open finds them interrupted.
    pub drops_not_recorded: u64,
    /// Records deleted after their expiry. May include records that had been replaced or removed before.
    pub expired: u64,
    /// Errors of the background compaction. After [`Corrupt`](crate::ErrorKind::Corrupt) it continues without the
    /// damaged records. After any other error it has stopped, and only [`compact_now`](crate::Engine::compact_now)
    /// deletes expired records.
    pub compaction_failures: u64,
    /// The times from the begin of a claim to its ending, both durable. Dropped claims are not counted.
    pub cycles: Histogram,
    /// The times that calls waited for another owner.
    pub waits: Histogram,
    /// True if the file system makes each write of sled's files synchronous. If false, a write barrier syncs the files
    /// after every few changes.
    pub sled_sync_flag: bool,
}

/// A counter that only grows. With the feature `metrics`, it also increments the metric of this name.
#[derive(Debug)]
pub(crate) struct Counter {
    value: AtomicU64,
    #[cfg(feature = "metrics")]
    metric: metrics::Counter,
}

impl Counter {
    pub(crate) fn new(name: &'static str) -> Self {
        let _ = name;
        Self {
            value: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            metric: metrics::counter!(name),
        }
    }

    pub(crate) fn add(&self, n: u64) {
        self.value.fetch_add(n, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.metric.increment(n);
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// A counter of all managers. With the feature `metrics`, it also increments the metric of this name and of the
/// manager.
#[derive(Debug)]
pub(crate) struct ManagerCounter {
    value: AtomicU64,
    #[cfg(feature = "metrics")]
    name: &'static str,
    #[cfg(feature = "metrics")]
    by_manager: ByManager<metrics::Counter>,
}

impl ManagerCounter {
    pub(crate) fn new(name: &'static str) -> Self {
        let _ = name;
        Self {
            value: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            name,
            #[cfg(feature = "metrics")]
            by_manager: ByManager::default(),
        }
    }

    pub(crate) fn add(&self, manager: &str, n: u64) {
        self.value.fetch_add(n, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        {
            let new = |label| metrics::counter!(self.name, "manager" => label);
            self.by_manager.with(manager, new, |counter| counter.increment(n));
        }
        let _ = manager;
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// A value that rises and falls. With the feature `metrics`, it is also part of the metric of this name, which is the
/// sum over all engines.
///
/// The value is signed, so that a reading in the middle of a change cannot wrap.
#[derive(Debug)]
pub(crate) struct Gauge {
    value: AtomicI64,
    #[cfg(feature = "metrics")]
    metric: metrics::Gauge,
}

impl Gauge {
    pub(crate) fn new(name: &'static str) -> Self {
        let _ = name;
        Self {
            value: AtomicI64::new(0),
            #[cfg(feature = "metrics")]
            metric: metrics::gauge!(name),
        }
    }

    /// Creates a gauge of a manager and a status.
    #[cfg(feature = "metrics")]
    pub(crate) fn of(name: &'static str, manager: &str, status: &'static str) -> Self {
        let metric = metrics::gauge!(name, "manager" => manager.to_owned(), "status" => status);
        Self { value: AtomicI64::new(0), metric }
    }

    pub(crate) fn add(&self, n: i64) {
        self.value.fetch_add(n, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.metric.increment(level(n));
    }

    /// Sets the value. No other thread may change the gauge meanwhile.
    #[cfg(feature = "metrics")]
    pub(crate) fn set(&self, value: u64) {
        self.add(i64::try_from(value).unwrap_or(i64::MAX) - self.value.load(Ordering::Relaxed));
    }

    pub(crate) fn get(&self) -> u64 {
        u64::try_from(self.value.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// Subtracts the value of a dropped engine from the metric.
#[cfg(feature = "metrics")]
impl Drop for Gauge {
    fn drop(&mut self) {
        self.metric.decrement(level(*self.value.get_mut()));
    }
}

#[cfg(feature = "metrics")]
#[expect(clippy::cast_precision_loss, reason = "gauges are floating-point")]
fn level(n: i64) -> f64 {
    n as f64
}

/// Measures durations. With the feature `metrics`, they go into the histogram of this name. Without it, nothing is
/// measured and no clock is read.
#[derive(Debug)]
pub(crate) struct Timing {
    #[cfg(feature = "metrics")]
    metric: metrics::Histogram,
}

impl Timing {
    pub(crate) fn new(name: &'static str) -> Self {
        let _ = name;
        Self {
            #[cfg(feature = "metrics")]
            metric: metrics::histogram!(name),
        }
    }

    /// Starts a measurement, which ends when the returned value is dropped.
    #[cfg_attr(
        not(feature = "metrics"),
        expect(clippy::unused_self, reason = "without the feature nothing is measured")
    )]
    pub(crate) fn start(&self) -> Timed {
        Timed {
            #[cfg(feature = "metrics")]
            began: crate::types::clock::monotonic(),
            #[cfg(feature = "metrics")]
            metric: self.metric.clone(),
        }
    }
}

#[must_use]
pub(crate) struct Timed {
    #[cfg(feature = "metrics")]
    began: std::time::Instant,
    #[cfg(feature = "metrics")]
    metric: metrics::Histogram,
}

impl Drop for Timed {
    fn drop(&mut self) {
        #[cfg(feature = "metrics")]
        self.metric.record(crate::types::clock::monotonic().saturating_duration_since(self.began));
    }
}
