//! Compares oncekey with other engines: the same cycle, the same bytes, the same promise.
//!
//! There are three programs: `compare` (the table and the chart), `scale` (from ten thousand records to millions) and
//! `goals` (each goal and its figure). `README.md` describes how to run them.

#![allow(clippy::disallowed_methods, reason = "a benchmark measures time and starts threads")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::missing_panics_doc,
    reason = "a benchmark"
)]

mod arguments;
mod background;
mod chart;
pub mod compare;
pub mod goals;
mod group;
mod measure;
pub mod scale;
#[path = "../../shared/mod.rs"]
mod shared;
mod sustained;
mod systems;
mod table;
