//! Options of a manager.

use std::num::NonZeroU32;
use std::time::Duration;

use super::migrate::Migrations;
use super::{OnInterrupted, check_ttl};
use crate::types::clock::FOREVER;
use crate::types::error::Result;

const HOUR: Duration = Duration::from_secs(3600);

/// The options of a manager.
///
/// ```
/// use oncekey::{Engine, FOREVER, Manager, ManagerOptions, OnInterrupted};
/// use std::time::Duration;
///
/// # let engine = Engine::temporary()?;
/// let options = ManagerOptions::new()
///     .success_ttl(FOREVER)
///     .failure_ttl(Duration::from_secs(600))
///     .on_interrupted(OnInterrupted::Resume);
/// let mails: Manager<()> = engine.manager_with("mails", options)?;
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ManagerOptions {
    pub(crate) success_ttl: Duration,
    pub(crate) failure_ttl: Duration,
    pub(crate) released_ttl: Duration,
    pub(crate) interrupted_ttl: Duration,
    /// `None` if not set. The default for requests is not the same as for other calls.
    pub(crate) on_interrupted: Option<OnInterrupted>,
    pub(crate) max_attempts: NonZeroU32,
    pub(crate) retry_pause: Duration,
    pub(crate) schema: u32,
    pub(crate) migrations: Migrations,
    pub(crate) remember_expired: Duration,
    pub(crate) strict_fingerprint: bool,
}

impl Default for ManagerOptions {
    fn default() -> Self {
        Self {
            success_ttl: 24 * HOUR,
            failure_ttl: 24 * HOUR,
            released_ttl: 24 * HOUR,
            interrupted_ttl: FOREVER,
            on_interrupted: None,
            max_attempts: NonZeroU32::MAX,
            retry_pause: Duration::ZERO,
            schema: 0,
            migrations: Migrations::default(),
            remember_expired: Duration::ZERO,
            strict_fingerprint: false,
        }
    }
}

impl ManagerOptions {
    /// Creates the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a success is replayed, counted from its end. [`FOREVER`] never expires. Default: 24 h.
    pub fn success_ttl(mut self, ttl: Duration) -> Self {
        self.success_ttl = ttl;
        self
    }

    /// Sets how long a stored failure is replayed, counted from its end. Default: 24 h.
    pub fn failure_ttl(mut self, ttl: Duration) -> Self {
        self.failure_ttl = ttl;
        self
    }

    /// Sets how long a released record is kept, counted from its release or from its creation by `Requests::create`.
    /// Default: 24 h.
    ///
    /// A released record that holds progress is kept for [`interrupted_ttl`](Self::interrupted_ttl) if that is longer.
    /// A record holds progress if an attempt asked for an effect id, committed a stage, or was interrupted and resumed.
    /// A recovery point or checkpoint set by a patch is progress too.
    pub fn released_ttl(mut self, ttl: Duration) -> Self {
        self.released_ttl = ttl;
        self
    }

    /// Sets how long an interrupted record is kept, counted from its interruption. If its process died, the time starts
    /// at the open that finds it.
    ///
    /// After that, the next `begin` runs the operation again, although it may have happened. A record with a live owner
    /// never expires. Default: [`FOREVER`].
    pub fn interrupted_ttl(mut self, ttl: Duration) -> Self {
        self.interrupted_ttl = ttl;
        self
    }

    /// Sets the policy for a record whose owner ended without an outcome. Default: [`OnInterrupted::Hold`], but
    /// [`OnInterrupted::Resume`] for `Requests::drive`.
    pub fn on_interrupted(mut self, policy: OnInterrupted) -> Self {
        self.on_interrupted = Some(policy);
        self
    }

    /// Sets the number of interrupted attempts of one generation after which the record is held, even under
    /// [`OnInterrupted::Resume`]. This stops an operation that kills its process in each attempt. Released attempts do
    /// not count.
    ///
    /// A held record is [resolved](crate::Manager::resolve) as under `Hold`; `Retry` allows one more attempt. The limit
    /// is read by each `begin` and not stored in the record. Default: no limit.
    pub fn max_attempts(mut self, attempts: NonZeroU32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets how long a key cannot be claimed after its owner released it. Until then the answer is
    /// [`Begin::Paused`](crate::Begin::Paused), for waiters too, with the time that is left. Default: zero.
    ///
    /// Without a pause, if an operation fails at once, the waiters for its key run it one after the other. Each `begin`
    /// stores the pause in the record, so that the pause also holds after a restart. An operator's
    /// [`resolve`](crate::Manager::resolve) starts no pause.
    pub fn retry_pause(mut self, pause: Duration) -> Self {
        self.retry_pause = pause;
        self
    }

    /// Sets a number that is stored in each record. Reading an outcome with another number [migrates](Self::migrate)
    /// it, or returns `TypeMismatch`.
    ///
    /// Raise it when the same fields change their meaning. Changes of the types are detected without it: see the guide
    /// on [limits](crate::guides::limits). Default: 0.
    pub fn schema(mut self, schema: u32) -> Self {
        self.schema = schema;
        self
    }

    /// Sets whether a record without a fingerprint rejects retries that have one. If true, such a retry gets
    /// `Mismatch`. If false, it gets the record's answer. Default: false.
    ///
    /// With either value, a key that was released before any effect accepts a request with another fingerprint.
    pub fn strict_fingerprint(mut self, strict: bool) -> Self {
        self.strict_fingerprint = strict;
        self
    }

    /// Checks the options for a manager of these types.
    pub(crate) fn check<T, E>(&self) -> Result<()> {
        self.migrations.check::<T, E>(self.schema)?;
        check_ttl("success_ttl", self.success_ttl)?;
        check_ttl("failure_ttl", self.failure_ttl)?;
        check_ttl("released_ttl", self.released_ttl)?;
        check_ttl("interrupted_ttl", self.interrupted_ttl)
    }
}
