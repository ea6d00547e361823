//! What the benchmarks have in common.

use oncekey::{Begin, Manager};

pub(crate) const VALUE: [u8; 256] = [7; 256];

/// Sixteen bytes that are spread like random ones.
pub(crate) fn key(number: u64) -> [u8; 16] {
    (u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)).to_be_bytes()
}

/// Begins and succeeds under a key that was never used.
pub(crate) fn cycle(manager: &Manager<Vec<u8>, String>, number: u64, value: &Vec<u8>) {
    match manager.begin(key(number)).unwrap() {
        Begin::Claimed(claim) => drop(claim.succeed(value).unwrap()),
        other => unreachable!("a key that was never used: {other:?}"),
    }
}
