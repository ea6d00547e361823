//! Version stripes: a fixed table that stands for all keys.

use super::format::frame::StoreKey;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A model makes a table for every schedule.
const STRIPES: usize = if cfg!(all(test, oncekey_shuttle)) { 1 << 4 } else { 1 << 16 };

#[derive(Debug)]
pub(crate) struct Stripes {
    versions: Vec<AtomicU64>,
    /// How often any of them has moved.
    moves: AtomicU64,
}

/// The version of a key's stripe before it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    stripe: usize,
    version: u64,
}

impl Seen {
    pub(crate) fn stripe(self) -> usize {
        self.stripe
    }
}

impl Default for Stripes {
    fn default() -> Self {
        let versions = std::iter::repeat_with(AtomicU64::default).take(STRIPES).collect();
        Self { versions, moves: AtomicU64::default() }
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

    pub(crate) fn is_current(&self, seen: Seen) -> bool {
        self.version(seen.stripe) == seen.version
    }

    /// Whether no stripe has moved since.
    pub(crate) fn are_current(&self, reads: &[Seen]) -> bool {
        reads.iter().all(|seen| self.is_current(*seen))
    }

    /// While it answers the same, nothing that was current has changed. To be asked before looking whether it is.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    /// These keys have changed.
    pub(crate) fn advance<'a>(&self, keys: impl Iterator<Item = &'a StoreKey>) {
        for version in keys.filter_map(|key| self.versions.get(Self::of(key))) {
            version.fetch_add(1, Ordering::Release);
        }
        // Behind them: who has seen this has seen them.
        self.moves.fetch_add(1, Ordering::Release);
    }

    fn version(&self, stripe: usize) -> u64 {
        self.versions.get(stripe).map_or(0, |version| version.load(Ordering::Acquire))
    }
}
