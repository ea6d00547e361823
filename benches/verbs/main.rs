//! Benchmarks of each call with criterion, on a real disk.
//!
//! `cargo bench --bench verbs [-- FILTER]`. The directory is that of the build, or the one in `ONCEKEY_BENCH_DIR`. A
//! file system in memory is rejected, because syncs do nothing there. `ONCEKEY_RECORDS` is the size of the largest
//! store, 100,000 by default. `ONCEKEY_WAITERS` is the largest number of waiters, 1,000 by default.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time and starts threads")]
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark"
)]

mod cycles;
mod forgetting;
mod opening;
mod reads;
#[path = "../shared/mod.rs"]
mod shared;
mod threads;
mod waking;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// Returns the number in the environment, or the default.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
}

fn criterion() -> Criterion {
    Criterion::default().sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5))
}

criterion_group! {
    name = verbs;
    config = criterion();
    targets = cycles::bench, reads::bench, waking::bench, forgetting::bench, opening::bench
}
criterion_main!(verbs);
