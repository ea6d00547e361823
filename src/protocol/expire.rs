//! Forgetting: when something is due, and a pass over it.

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

/// The earliest expiry that is known of, in store time.
pub(super) struct Due {
    earliest: AtomicU64,
    /// Tells whoever sleeps until then that it is earlier now.
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
    /// Something expires then. Most endings expire later than one before, and cost a comparison.
    pub(super) fn lower(&self, expires: u64) {
        if expires < self.earliest.load(Ordering::Relaxed)
            && expires < self.earliest.fetch_min(expires, Ordering::AcqRel)
        {
            if let Some(tell) = self.on_lower.get() {
                tell();
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
    /// Called, with no lock held, when something expires earlier than all that was known of.
    pub(crate) fn on_due(&self, tell: impl Fn() + Send + Sync + 'static) {
        // Set once, when the compaction starts.
        let _ = self.due.on_lower.set(Box::new(tell));
    }

    /// How long until the next pass has something to do; `None` if nothing is known of.
    pub(crate) fn compaction_due(&self) -> Option<Duration> {
        self.store.time_until(self.due.earliest.load(Ordering::Acquire))
    }

    /// One full pass over what is expired and committed now. `batch` records are deleted at a time.
    pub(crate) fn compact_now(&self, batch: usize) -> Result<Compacted> {
        self.check()?;
        self.store.drain()?;
        self.pass_over(Pass::exact(), batch, &|| true)
    }

    /// One pass over what has been expired for a second and is in sled, unless it is to stop.
    pub(crate) fn compact(&self, batch: usize, goes_on: &dyn Fn() -> bool) -> Result<Compacted> {
        self.pass_over(Pass::default(), batch, goes_on)
    }

    fn pass_over(&self, pass: Pass, batch: usize, goes_on: &dyn Fn() -> bool) -> Result<Compacted> {
        let _working = telemetry::enter(Work::Compact, self.path());
        let began = monotonic();
        // Whatever ends from here on says so itself.
        self.due.earliest.store(NEVER, Ordering::Release);
        self.settle_abandoned();
        let done = self.pass(pass, batch, goes_on);
        let next = match &done {
            Ok(_) if self.abandoned.lock().is_empty() => self.store.next_due(),
            _ => 0,
        };
        self.due.lower(next);
        let mut done = done?;
        done.took = monotonic().saturating_duration_since(began);
        if done.removed > 0 {
            self.subscribers.tell(|| Event::Expired { count: done.removed });
        }
        telemetry::compacted(done.removed, done.bytes, done.leftovers);
        self.subscribers.tell(|| Event::Compacted(done));
        Ok(done)
    }

    fn pass(&self, mut pass: Pass, batch: usize, goes_on: &dyn Fn() -> bool) -> Result<Compacted> {
        let mut done = Compacted::default();
        while goes_on() {
            self.check()?;
            let Some(deleted) = self.store.compact(&mut pass, batch)? else { break };
            self.forgot(deleted, &mut done);
        }
        Ok(done)
    }

    fn forgot(&self, deleted: Deleted, done: &mut Compacted) {
        self.interrupted.add(-i64::try_from(deleted.interrupted).unwrap_or(0));
        self.due.expired.add(deleted.records);
        done.removed += deleted.records;
        done.bytes += deleted.bytes;
        done.leftovers += deleted.strays;
    }

    /// The background compaction has ended, or has left something out, and not because the engine was closed.
    pub(crate) fn compaction_failed(&self, what: &str, why: &Error) {
        self.due.failures.add(1);
        telemetry::compaction_failed(why);
        let error = why.wrap(why.kind(), what);
        self.subscribers.tell(|| Event::CompactionFailed(error));
    }
}
