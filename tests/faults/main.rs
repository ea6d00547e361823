//! Tests of failures of the system: power cuts and errors. This binary replaces functions of libc.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod backup;
mod check;
mod disk;
mod errors;
mod fork;
mod full_disk;
mod held;
mod history;
mod inject;
mod interpose;
mod interposed;
mod killed;
mod power;
mod process;
mod record;
mod slow;
#[path = "../it/threads.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod threads;
mod wall;
mod workload;
