//! Version counters: a fixed table of counters, each shared by many keys.
//!
//! Used by changes of a single key. If the counter of the key has moved, the key is read again and the change is
//! decided again. Transactions use [`read_sets`](super::read_sets).

use super::memtable::KeyHash;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The number of counters. The models create a table for every schedule, so theirs is small.
const STRIPES: usize = if cfg!(all(test, oncekey_shuttle)) { 1 << 4 } else { 1 << 16 };

#[derive(Debug)]
pub(crate) struct Versions {
    versions: Vec<AtomicU64>,
}

/// The value of a key's counter before the key was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadVersion {
    stripe: usize,
    version: u64,
}

#[cfg(feature = "postgres")]
impl ReadVersion {
    /// The counter of a key on PostgreSQL is the revision of its record. 0: there is none.
    pub(crate) fn of_revision(revision: u64) -> Self {
        Self { stripe: 0, version: revision }
    }

    pub(crate) fn revision(self) -> u64 {
        self.version
    }
}

#[cfg(test)]
impl ReadVersion {
    pub(crate) fn stripe(self) -> usize {
        self.stripe
    }
}

impl Default for Versions {
    fn default() -> Self {
        let versions = std::iter::repeat_with(AtomicU64::default).take(STRIPES).collect();
        Self { versions }
    }
}

impl Versions {
    /// Returns the current value. Called before the key is read.
    pub(crate) fn look(&self, key: KeyHash) -> ReadVersion {
        let stripe = key.slot(STRIPES);
        ReadVersion { stripe, version: self.version(stripe) }
    }

    pub(crate) fn is_current(&self, seen: ReadVersion) -> bool {
        self.version(seen.stripe) == seen.version
    }

    /// True if none of these counters has moved.
    pub(crate) fn are_current(&self, reads: &[ReadVersion]) -> bool {
        reads.iter().all(|seen| self.is_current(*seen))
    }

    /// Moves the counter of a key that changes.
    pub(crate) fn advance(&self, key: KeyHash) {
        if let Some(version) = self.versions.get(key.slot(STRIPES)) {
            version.fetch_add(1, Ordering::Release);
        }
    }

    fn version(&self, stripe: usize) -> u64 {
        self.versions.get(stripe).map_or(0, |version| version.load(Ordering::Acquire))
    }
}
