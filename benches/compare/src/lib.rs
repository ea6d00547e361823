//! oncekey beside the engines that its users would otherwise take: the same cycle, the same bytes, the same promise.
//!
//! Three programs: `compare` (the table and the chart), `scale` (from ten thousand records to millions) and `goals` (each goal
//! and what was reached). How to run them: `README.md`.

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
