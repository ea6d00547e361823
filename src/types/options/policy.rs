//! Policies for operations that fail, and for owners that end without an outcome.

use serde::{Deserialize, Serialize};

/// The policy for a record whose owner ended without an outcome.
///
/// The policy is fixed when a generation starts. A change in the program does not affect records that are already held.
/// To free these, list them with [`Engine::interrupted`](crate::Engine::interrupted) and resolve each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum OnInterrupted {
    /// Holds the record until a caller resolves it, because the operation may have happened.
    #[default]
    Hold,
    /// Lets the next `begin` take over the record, at its recovery point. Use it for operations that are safe to
    /// repeat, such as those that pass [`effect_id`](crate::Claim::effect_id) to the other system.
    Resume,
}

/// The policy of `execute` for an operation that returns `Err`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnError {
    /// Stores the failure: every retry gets it until its TTL ends. This is the default, because it never runs an
    /// operation twice.
    #[default]
    Store,
    /// Releases the key, for errors that prove that nothing happened. A waiter may take over the key at once.
    Release,
    /// Interrupts the record, for errors that leave open whether anything happened. Its [`OnInterrupted`] policy then
    /// applies.
    Interrupt,
    /// Interrupts the record if this attempt asked for an [`effect_id`](crate::Claim::effect_id) or committed a
    /// [`work_stage`](crate::Claim::work_stage). Releases it otherwise.
    ///
    /// Use it for operations that ask for an effect id before each outside effect, and write rows only in stages. An
    /// error before the first of these proves that nothing happened.
    ReleaseUnlessEffect,
}
