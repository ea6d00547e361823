//! The seeds of effect ids.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::key;

/// The seed of a generation. Effect ids are computed from the seed and the key. The seed never changes, neither across
/// opens nor by an import into another store.
pub(crate) type EffectSeed = [u8; 16];

/// Draws the seeds of one open.
///
/// The first seed is random. A restored copy of a store numbers its frames like the original. Its seeds still differ,
/// so operations in the copy never have the effect ids of operations in the original.
#[derive(Debug)]
pub(crate) struct EffectSeeds {
    first: u128,
    drawn: AtomicU64,
}

impl EffectSeeds {
    pub(crate) fn of_this_open() -> Self {
        Self { first: u128::from_le_bytes(key::random()), drawn: AtomicU64::new(0) }
    }

    /// Returns a seed that was not drawn before.
    pub(crate) fn draw(&self) -> EffectSeed {
        let drawn = self.drawn.fetch_add(1, Ordering::Relaxed);
        self.first.wrapping_add(u128::from(drawn)).to_le_bytes()
    }
}
