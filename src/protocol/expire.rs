//! Compaction: when the next record is due, and a pass that deletes the expired records.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Protocol;
use crate::protocol::event::{Compacted, Event};
use crate::store::{Deleted, Pass};
use crate::types::clock::{NEVER, monotonic};
use crate::types::error::{Error, Result};
use crate::types::stats::Counter;
use crate::types::telemetry::{self, Work};

/// The earliest known expiry, in store time.
pub(super) struct Due {
    earliest: AtomicU64,
    /// Wakes the thread that sleeps until the earliest expiry.
    on_lower: OnceLock<Box<dyn Fn() + Send + Sync>>,
    expired: Counter,
    failures: Counter,
}

impl Default for Due {
    fn default() -> Self {
        let (expired, failures) =
            (Counter::new("oncekey_expired_total"), Counter::new("oncekey_compaction_failures_total"));
        Self { earliest: AtomicU64::new(NEVER), on_lower: OnceLock::new(), expired, failures }
    }
}

impl fmt::Debug for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Due").field("earliest", &self.earliest).finish_non_exhaustive()
    }
}

impl Due {
    /// Records that something expires at this time. In most calls this costs one comparison, because the time is not
    /// the earliest.
    pub(super) fn lower(&self, expires: u64) {
        if expires < self.earliest.load(Ordering::Relaxed)
            && expires < self.earliest.fetch_min(expires, Ordering::AcqRel)
        {
            if let Some(wake) = self.on_lower.get() {
                wake();
            }
        }
    }

    pub(super) fn expired(&self) -> u64 {
        self.expired.get()
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.get()
    }
}

impl Protocol {
    /// Sets the function that is called when an earlier expiry becomes known. No lock is held during the call.
    pub(crate) fn on_due(&self, wake: impl Fn() + Send + Sync + 'static) {
        // This fails only if a function was set before, and the compaction is started once.
        let _ = self.due.on_lower.set(Box::new(wake));
    }

    /// Returns the time until the next pass is due, or `None` if no expiry is known.
    pub(crate) fn compaction_due(&self) -> Option<Duration> {
        self.store.time_until(self.due.earliest.load(Ordering::Acquire))
    }

    /// Runs one pass over everything that is expired and committed now, until `goes_on` returns false. Removes about
    /// `batch` unfinished records in each step.
    pub(crate) fn compact_now(&self, batch: usize, goes_on: &dyn Fn() -> bool) -> Result<Compacted> {
        self.check()?;
        self.store.check_writable()?;
        self.store.drain()?;
        self.pass_over(Pass::exact(), batch, goes_on)
    }

    /// Runs one pass over everything that is due, until `goes_on` returns false.
    pub(crate) fn compact(&self, batch: usize, goes_on: &dyn Fn() -> bool) -> Result<Compacted> {
        self.pass_over(Pass::default(), batch, goes_on)
    }

    fn pass_over(&self, pass: Pass, batch: usize, goes_on: &dyn Fn() -> bool) -> Result<Compacted> {
        let _working = telemetry::enter(Work::Compact, self.path());
        let began = monotonic();
        // Reset the time before the pass: each ending from here on lowers it again.
        self.due.earliest.store(NEVER, Ordering::Release);
        self.record_drops();
        let done = self.pass(pass, batch, goes_on);
        let next = match &done {
            Ok(_) if self.abandoned.is_empty() => self.store.next_due(),
            _ => 0,
        };
        self.due.lower(next);
        let mut done = done?;
        done.took = monotonic().saturating_duration_since(began);
        if done.removed > 0 {
            self.subscribers.notify(|| Event::Expired { count: done.removed });
        }
        telemetry::compacted(done.removed, done.bytes, done.leftovers);
        self.subscribers.notify(|| Event::Compacted(done));
        Ok(done)
    }

    fn pass(&self, mut pass: Pass, batch: usize, goes_on: &dyn Fn() -> bool) -> Result<Compacted> {
        let mut done = Compacted::default();
        while goes_on() {
            self.check()?;
            let Some(deleted) = self.store.compact(&mut pass, batch)? else { break };
            self.count_deleted(deleted, &mut done);
        }
        Ok(done)
    }

    fn count_deleted(&self, deleted: Deleted, done: &mut Compacted) {
        self.interrupted.add(-i64::try_from(deleted.interrupted).unwrap_or(0));
        self.due.expired.add(deleted.records);
        done.removed += deleted.records;
        done.bytes += deleted.bytes;
        done.leftovers += deleted.leftovers;
    }

    /// Counts and reports an error of the background compaction.
    pub(crate) fn compaction_failed(&self, what: &str, why: &Error) {
        self.due.failures.add(1);
        telemetry::compaction_failed(why);
        let error = why.wrap(why.kind(), what);
        self.subscribers.notify(|| Event::CompactionFailed(error));
    }
}
