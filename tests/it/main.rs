//! Everything that can be seen from outside the crate.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod closing;
mod idle;
mod kill;
mod programs;
mod races;
mod threads;
mod tidy;
mod waiters;
