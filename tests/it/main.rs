//! Tests of the public API.
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

mod backups;
mod bad_input;
mod batches;
mod browser;
mod call_options;
mod changed_types;
mod cli;
mod cli_conditions;
mod cli_doctor;
mod cli_lists;
mod cli_resolve;
mod closing;
mod common;
mod crashes;
mod driven;
mod endings;
mod engine_errors;
mod erasure;
mod forgetting;
mod handling;
mod hard_endings;
mod held;
mod hostile;
mod http;
mod idle;
mod inside;
mod inside_stages;
mod kept_for;
mod key_syntax;
mod kill;
mod listings;
mod litert;
mod live;
mod live_ends;
mod locking;
mod medusa;
mod migrations;
mod operator;
mod overload;
mod owners;
mod pages;
mod pauses;
mod phases;
mod programs;
mod progress;
mod races;
mod raw;
mod read_only;
mod reading;
mod remembered;
mod requests;
mod rules;
mod scans;
#[cfg(feature = "postgres")]
#[path = "../postgres/server.rs"]
#[allow(dead_code, reason = "the tests of tests/postgres use more of it")]
mod server;
mod shapes;
mod stages;
mod surface;
mod tables;
mod threads;
mod tidy;
mod transactions;
mod unchanged;
mod undo;
mod updates;
mod waiters;
mod waits;
mod web;
mod wire;
