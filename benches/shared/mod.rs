//! What the benchmarks have in common.

#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::path::PathBuf;

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

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Where to run: what the command line says, or a directory of the build's.
pub(crate) fn asked_directory() -> PathBuf {
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    asked.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
}
