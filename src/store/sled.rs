//! The one place that knows sled.

pub(crate) mod blobs;
pub(crate) mod disk_space;
pub(crate) mod open_on_copy;
pub(crate) mod snapshots;
pub(crate) mod tables;
pub(crate) mod write_barrier;
