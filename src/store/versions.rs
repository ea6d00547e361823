//! Version stripes: a fixed table that stands for all keys.
//!
//! For changes of a single key, which read it again when its stripe has moved. Transactions have [`read_sets`](super::read_sets).

use std::hash::BuildHasher;

use super::format::frame::StoreKey;
use crate::sync::RandomState;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A model makes a table for every schedule.
const STRIPES: usize = if cfg!(all(test, oncekey_shuttle)) { 1 << 4 } else { 1 << 16 };

#[derive(Debug)]
pub(crate) struct Versions {
    /// Its seed is drawn at each open: clients choose keys, and must not be able to choose their stripe.
    hasher: RandomState,
    versions: Vec<AtomicU64>,
}

/// The version of a key's stripe before it was read.
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
    /// A number that spreads keys evenly, and that nobody outside can foretell.
    pub(crate) fn spread(&self, key: &[u8]) -> usize {
        usize::try_from(self.hasher.hash_one(key) >> 1).unwrap_or_default()
    }

    fn of(&self, key: &StoreKey) -> usize {
        self.spread(key.bytes()) % STRIPES
    }

    /// To be noted before the key is read.
    pub(crate) fn look(&self, key: &StoreKey) -> ReadVersion {
        let stripe = self.of(key);
        ReadVersion { stripe, version: self.version(stripe) }
    }

    pub(crate) fn is_current(&self, seen: ReadVersion) -> bool {
        self.version(seen.stripe) == seen.version
    }

    /// Whether no stripe has moved since.
    pub(crate) fn are_current(&self, reads: &[ReadVersion]) -> bool {
        reads.iter().all(|seen| self.is_current(*seen))
    }

    /// This key has changed.
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

    // They were a plain checksum: clients could aim keys at the stripe of a row, and starve it.
    #[test]
    fn nobody_can_foretell_the_stripe_of_a_key() {
        let (one, other) = (Versions::default(), Versions::default());
        let keys: Vec<StoreKey> = (0..64_u8).map(|number| StoreKey::row("t", &[number])).collect();
        let of = |versions: &Versions| keys.iter().map(|key| versions.of(key)).collect::<Vec<_>>();
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), of(&other), "each open has its own seed");
    }
}
