//! Version stripes: a fixed table that stands for all keys.

use super::format::frame::StoreKey;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A model makes a table for every schedule.
const STRIPES: usize = if cfg!(all(test, oncekey_shuttle)) { 1 << 4 } else { 1 << 16 };

#[derive(Debug)]
pub(crate) struct Stripes(Vec<AtomicU64>);

/// The version of a key's stripe before it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    stripe: usize,
    version: u64,
}

impl Default for Stripes {
    fn default() -> Self {
        Self(std::iter::repeat_with(AtomicU64::default).take(STRIPES).collect())
    }
}

impl Stripes {
    /// A number that spreads keys evenly.
    pub(crate) fn of(key: &StoreKey) -> usize {
        usize::try_from(crc32fast::hash(key.bytes())).unwrap_or_default() % STRIPES
    }

    /// To be noted before the key is read.
    pub(crate) fn look(&self, key: &StoreKey) -> Seen {
        let stripe = Self::of(key);
        Seen { stripe, version: self.version(stripe) }
    }

    /// Whether no stripe has moved since.
    pub(crate) fn are_current(&self, reads: &[Seen]) -> bool {
        reads.iter().all(|seen| self.version(seen.stripe) == seen.version)
    }

    /// The key has changed.
    pub(crate) fn advance(&self, key: &StoreKey) {
        if let Some(version) = self.0.get(Self::of(key)) {
            version.fetch_add(1, Ordering::Release);
        }
    }

    fn version(&self, stripe: usize) -> u64 {
        self.0.get(stripe).map_or(0, |version| version.load(Ordering::Acquire))
    }
}
