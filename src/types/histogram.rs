//! Histograms of durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::types::clock::monotonic;
#[cfg(feature = "metrics")]
use crate::types::labels::ByManager;

const BUCKETS: usize = 32;

/// The number of measured durations by length, since the engine was opened.
///
/// A bucket counts the durations below its bound that no earlier bucket counts. Bounds are powers of two, from 1
/// microsecond to about 18 minutes. The last bucket has no bound.
///
/// ```
/// # use oncekey::{Engine, Manager};
/// # use std::time::Duration;
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// payments.execute("order-42", |_claim| Ok(1999)).unwrap();
/// let cycles = engine.stats().cycles;
/// assert_eq!(
///     (cycles.count(), cycles.buckets().map(|(_, count)| count).sum::<u64>()),
///     (1, 1)
/// );
/// assert!(cycles.quantile(0.99).is_some_and(|bound| bound < Duration::from_secs(60)));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Histogram {
    counts: [u64; BUCKETS],
}

impl Histogram {
    /// Returns the number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the bound and the count of each bucket, shortest first. The bound of the last one is [`Duration::MAX`].
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.counts.iter().enumerate().map(|(bucket, count)| (bound(bucket), *count))
    }

    /// Returns the smallest bound of a bucket below which at least this `share` of the durations lie. `share` is from 0
    /// to 1: 0.99 is the 99th percentile. Returns `None` if there are no durations.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank between 1 and the count, and a float is exact enough"
        )]
        let rank = ((share.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut below = 0;
        self.buckets().find_map(|(bound, count)| {
            below += count;
            (below >= rank && count > 0).then_some(bound)
        })
    }
}

fn bound(bucket: usize) -> Duration {
    if bucket + 1 >= BUCKETS { Duration::MAX } else { Duration::from_micros(1 << bucket) }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let bits = usize::try_from(u64::BITS - micros.leading_zeros()).unwrap_or(BUCKETS);
    bits.min(BUCKETS - 1)
}

/// Measures durations. Costs one addition, and with the feature `metrics` one look-up of the manager.
#[derive(Debug)]
pub(crate) struct Durations {
    counts: [AtomicU64; BUCKETS],
    #[cfg(feature = "metrics")]
    name: &'static str,
    #[cfg(feature = "metrics")]
    by_manager: ByManager<metrics::Histogram>,
}

impl Durations {
    pub(crate) fn new(name: &'static str) -> Self {
        let _ = name;
        Self {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            #[cfg(feature = "metrics")]
            name,
            #[cfg(feature = "metrics")]
            by_manager: ByManager::default(),
        }
    }

    pub(crate) fn add(&self, manager: &str, took: Duration) {
        if let Some(count) = self.counts.get(bucket(took)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        #[cfg(feature = "metrics")]
        {
            let new = |label| metrics::histogram!(self.name, "manager" => label);
            self.by_manager.with(manager, new, |histogram| histogram.record(took));
        }
        let _ = manager;
    }

    /// Measures until the returned value is dropped.
    pub(crate) fn start<'a>(&'a self, manager: &'a str) -> Measured<'a> {
        Measured { durations: self, manager, began: monotonic() }
    }

    pub(crate) fn read(&self) -> Histogram {
        let mut counts = [0; BUCKETS];
        for (count, read) in self.counts.iter().zip(&mut counts) {
            *read = count.load(Ordering::Relaxed);
        }
        Histogram { counts }
    }
}

#[must_use]
pub(crate) struct Measured<'a> {
    durations: &'a Durations,
    manager: &'a str,
    began: Instant,
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        self.durations.add(self.manager, monotonic().saturating_duration_since(self.began));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_below_its_bound() {
        for micros in [0, 1, 2, 3, 4, 1_000, 1_023, 1_024, 1 << 29, (1 << 30) - 1, 1 << 30, u64::MAX] {
            let took = Duration::from_micros(micros);
            let at = bucket(took);
            assert!(took < bound(at), "{micros}");
            assert!(at == 0 || took >= bound(at - 1), "{micros}");
        }
        assert_eq!(bound(BUCKETS - 2), Duration::from_micros(1 << 30));
    }

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        let durations = Durations::new("oncekey_test_seconds");
        assert_eq!(durations.read().quantile(0.5), None);
        for _ in 0..99 {
            durations.add("m", Duration::from_micros(100));
        }
        durations.add("m", Duration::from_millis(100));
        let read = durations.read();
        assert_eq!(read.count(), 100);
        for (share, micros) in [(0.0, 128), (0.5, 128), (0.99, 128), (0.995, 131_072), (1.0, 131_072), (7.0, 131_072)] {
            assert_eq!(read.quantile(share), Some(Duration::from_micros(micros)), "{share}");
        }
    }
}
