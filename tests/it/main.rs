//! Everything that can be seen from outside the crate.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::wildcard_imports,
    reason = "tests"
)]

mod bad_input;
mod closing;
mod common;
mod endings;
mod forgetting;
mod hard_endings;
mod idle;
mod kill;
mod listings;
mod litert;
mod medusa;
mod programs;
mod races;
mod raw;
mod rules;
mod shapes;
mod surface;
mod threads;
mod tidy;
mod waiters;
