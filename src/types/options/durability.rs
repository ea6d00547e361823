//! The moment at which a commit is acknowledged.

use std::time::Duration;

/// The moment at which a commit is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Acknowledges a commit when it is on disk. Concurrent calls share syncs, so the cost per call falls under load.
    #[default]
    Immediate,
    /// Acknowledges a commit before it is on disk. A power cut or a killed process can undo the commits of the last
    /// `interval`, newest first.
    Eventual {
        /// The longest time from a commit to the start of its sync. Must not be zero.
        interval: Duration,
    },
}
