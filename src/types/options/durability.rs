//! When a commit is acknowledged.

use std::time::Duration;

/// When a commit counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Nobody is told what a power cut could undo. Calls share syncs, so the price falls with the load.
    #[default]
    Immediate,
    /// Nobody waits; a power cut may undo what was answered in the last `interval`, latest first. A killed process may lose
    /// as much.
    Eventual {
        /// The longest time from a commit to the start of its sync.
        interval: Duration,
    },
}
