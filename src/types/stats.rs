//! What an engine counts.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A reading of an engine's counters and gauges, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Frames committed.
    pub commits: u64,
    /// Commits refused because a key had changed since it was read; each was decided anew.
    pub conflicts: u64,
    /// Groups written to the journal: each holds the commits that shared one sync.
    pub groups: u64,
    /// Syncs of the journal.
    pub syncs: u64,
    /// Bytes written to the journal, headers and padding included.
    pub journal_bytes: u64,
    /// Calls that had to wait for a sync.
    pub sync_waits: u64,
    /// Journal segments in use or ready for use.
    pub segments: u64,
    /// Bytes committed that sled does not have yet.
    pub unapplied_bytes: u64,
    /// Store checkpoints completed.
    pub store_checkpoints: u64,
    /// Records in progress with a live owner.
    pub in_progress: u64,
    /// Interrupted records.
    pub interrupted: u64,
    /// Calls that wait for another owner now.
    pub waiting: u64,
    /// Answers replayed.
    pub replays: u64,
    /// Events that a subscriber missed because its queue was full.
    pub events_dropped: u64,
    /// Runs of a transaction's closure that another commit made stale, and that were followed by another run.
    pub transaction_reruns: u64,
    /// Claims whose drop could not be recorded at once. If the engine was closed or poisoned, the next open finds the record
    /// interrupted; after any other error, such as a journal without room, the drop is recorded later.
    pub drops_not_recorded: u64,
    /// Records deleted because they had expired.
    pub expired: u64,
    /// Times that the background compaction gave up: it has ended, and only
    /// [`compact_now`](crate::Engine::compact_now) deletes what expires.
    pub compaction_failures: u64,
    /// Whether sled's files are synced write by write; elsewhere, by a barrier every few changes.
    pub sled_sync_flag: bool,
}

/// A counter that only grows; with feature `metrics` also a counter of that name there.
#[derive(Debug)]
pub(crate) struct Counter {
    value: AtomicU64,
    #[cfg(feature = "metrics")]
    told: metrics::Counter,
}

impl Counter {
    pub(crate) fn new(name: &'static str) -> Self {
        let _ = name;
        Self {
            value: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            told: metrics::counter!(name),
        }
    }

    pub(crate) fn add(&self, n: u64) {
        self.value.fetch_add(n, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.told.increment(n);
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// A level. Signed inside, so that a reading between two halves of a change cannot wrap. With feature `metrics` also a part of
/// the gauge of that name there, which is the sum of those of all engines.
#[derive(Debug)]
pub(crate) struct Gauge {
    value: AtomicI64,
    #[cfg(feature = "metrics")]
    told: metrics::Gauge,
}

impl Gauge {
    pub(crate) fn new(name: &'static str) -> Self {
        let _ = name;
        Self {
            value: AtomicI64::new(0),
            #[cfg(feature = "metrics")]
            told: metrics::gauge!(name),
        }
    }

    pub(crate) fn add(&self, n: i64) {
        self.value.fetch_add(n, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.told.increment(level(n));
    }

    pub(crate) fn get(&self) -> u64 {
        u64::try_from(self.value.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// An engine that is gone has nothing in progress.
#[cfg(feature = "metrics")]
impl Drop for Gauge {
    fn drop(&mut self) {
        self.told.decrement(level(*self.value.get_mut()));
    }
}

#[cfg(feature = "metrics")]
#[expect(clippy::cast_precision_loss, reason = "gauges are floating-point")]
fn level(n: i64) -> f64 {
    n as f64
}

/// How long something takes: with feature `metrics` a histogram of that name, else nothing, and no clock is read.
#[derive(Debug)]
pub(crate) struct Timing {
    #[cfg(feature = "metrics")]
    told: metrics::Histogram,
}

impl Timing {
    pub(crate) fn new(name: &'static str) -> Self {
        let _ = name;
        Self {
            #[cfg(feature = "metrics")]
            told: metrics::histogram!(name),
        }
    }

    /// From now until it is dropped.
    #[cfg_attr(not(feature = "metrics"), expect(clippy::unused_self, reason = "it has nothing to tell then"))]
    pub(crate) fn start(&self) -> Timed {
        Timed {
            #[cfg(feature = "metrics")]
            began: crate::types::clock::monotonic(),
            #[cfg(feature = "metrics")]
            told: self.told.clone(),
        }
    }
}

#[must_use]
pub(crate) struct Timed {
    #[cfg(feature = "metrics")]
    began: std::time::Instant,
    #[cfg(feature = "metrics")]
    told: metrics::Histogram,
}

impl Drop for Timed {
    fn drop(&mut self) {
        #[cfg(feature = "metrics")]
        self.told.record(crate::types::clock::monotonic().saturating_duration_since(self.began));
    }
}
