//! The journal: a write-ahead log of commits. An answer is returned only after its commit is durable here, except
//! under `Durability::Eventual`.

mod check;
mod pool;
mod recover;
mod remains;
mod scan;
mod segment;
mod writer;

pub(crate) use check::check;
pub(crate) use pool::{Pool, Spare};
pub(crate) use recover::{Recovered, recover, recover_read_only};
pub(crate) use remains::{Remains, remains};
#[cfg(feature = "fuzzing")]
pub use segment::SYNCS_LEFT;
pub(crate) use writer::{JournalStats, Writer, create, segment_for, usable};
