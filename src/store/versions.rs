//! Version counters: a fixed table of counters, each shared by many keys.
//!
//! For changes of a single key, which is read again if its counter has moved. Transactions use
//! [`read_sets`](super::read_sets).

use std::hash::BuildHasher;

use super::format::frame::StoreKey;
use crate::sync::RandomState;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Models create a table for every schedule, so theirs is small.
const STRIPES: usize = if cfg!(all(test, oncekey_shuttle)) { 1 << 4 } else { 1 << 16 };

#[derive(Debug)]
pub(crate) struct Versions {
    /// Seeded at each open. Clients choose keys, and must not be able to choose their counters.
    hasher: RandomState,
    versions: Vec<AtomicU64>,
}

/// The value of a key's counter before the key was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadVersion {
    stripe: usize,
    version: u64,
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
        Self { hasher: RandomState::default(), versions }
    }
}

impl Versions {
    /// Returns a number that spreads keys evenly and that clients cannot predict.
    pub(crate) fn spread(&self, key: &[u8]) -> usize {
        usize::try_from(self.hasher.hash_one(key) >> 1).unwrap_or_default()
    }

    fn of(&self, key: &StoreKey) -> usize {
        self.spread(key.bytes()) % STRIPES
    }

    /// Returns the current value. Called before the key is read.
    pub(crate) fn look(&self, key: &StoreKey) -> ReadVersion {
        let stripe = self.of(key);
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
    pub(crate) fn advance(&self, key: &StoreKey) {
        if let Some(version) = self.versions.get(self.of(key)) {
            version.fetch_add(1, Ordering::Release);
        }
    }

    fn version(&self, stripe: usize) -> u64 {
        self.versions.get(stripe).map_or(0, |version| version.load(Ordering::Acquire))
    }
}

#[cfg(all(test, not(oncekey_shuttle)))]
mod tests {
    use super::*;

    // Without the seed, clients could choose keys that share the counter of a row, and starve its writers.
    #[test]
    fn the_counter_of_a_key_cannot_be_predicted() {
        let (one, other) = (Versions::default(), Versions::default());
        let keys: Vec<StoreKey> = (0..64_u8).map(|number| StoreKey::row("t", &[number])).collect();
        let of = |versions: &Versions| keys.iter().map(|key| versions.of(key)).collect::<Vec<_>>();
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), of(&other), "each open has its own seed");
    }
}
