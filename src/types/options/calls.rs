//! Options of one call.

use std::time::Duration;

use super::OnInterrupted;
use crate::types::context::Context;
use crate::types::fingerprint::Fingerprint;

/// The options of one call that begins an operation: [`begin_with`](crate::Manager::begin_with),
/// [`execute_with`](crate::Manager::execute_with), [`execute_many_with`](crate::Manager::execute_many_with),
/// [`drive`](crate::Manager::drive) or [`initiate_with`](crate::Manager::initiate_with).
///
/// [`wait`](Self::wait) and [`also_accept`](Self::also_accept) apply to this call. The others are stored when a
/// generation starts, and later calls do not change them.
///
/// ```
/// use oncekey::{Begin, CallOptions, Context, Engine, Fingerprint, Manager};
///
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// let options = |cents: u64| {
///     let context = Context::new().with("user", "ada");
///     Ok::<_, oncekey::Error>(
///         CallOptions::new().fingerprint(Fingerprint::of(&cents)?).context(context),
///     )
/// };
/// let claim = payments.begin_with("order-42", options(1999)?)?.into_claim().unwrap();
/// assert_eq!(claim.context().text("user"), Some("ada"));
/// assert!(matches!(payments.begin_with("order-42", options(2999)?)?, Begin::Mismatch(_)));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct CallOptions {
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) accepted: Vec<Fingerprint>,
    pub(crate) context: Option<Context>,
    pub(crate) success_ttl: Option<Duration>,
    pub(crate) failure_ttl: Option<Duration>,
    pub(crate) on_interrupted: Option<OnInterrupted>,
    /// The longest wait for another owner. `None` means the default of the call.
    pub(crate) wait: Option<Duration>,
    /// Makes `begin` fail if a stage has committed on the record.
    pub(crate) only_from_start: bool,
}

impl CallOptions {
    /// Creates options that change nothing: the manager's options apply.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the fingerprint of the request. A record with a fingerprint returns `Mismatch` to each retry that has
    /// another one, or none.
    ///
    /// Set it wherever the operation has a payload. Without it, a retry with another amount is a replay of the first
    /// request.
    ///
    /// Leave it out only if the key alone determines the operation, because the service itself makes the key: from the
    /// offset of a message in a log, the day of a report, or the identifier of an object that never changes. Then keep
    /// [`strict_fingerprint`](crate::ManagerOptions::strict_fingerprint) off.
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Accepts records with this older fingerprint too. May be called several times.
    ///
    /// Use it when a deploy changes how fingerprints are made, so that retries of older requests do not become
    /// mismatches. New records get [`fingerprint`](Self::fingerprint). Remove this call once the older records have
    /// expired.
    ///
    /// ```
    /// use oncekey::{Begin, CallOptions, Engine, Fingerprint, Manager};
    ///
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let older = Fingerprint::of(&("EUR", 1999))?;
    /// let claim = payments
    ///     .begin_with("order-42", CallOptions::new().fingerprint(older))?
    ///     .into_claim()
    ///     .unwrap();
    /// claim.succeed(&1999)?;
    /// // The next version of the service also compares the payee.
    /// let newer = Fingerprint::of(&("EUR", 1999, "ada"))?;
    /// let options = CallOptions::new().fingerprint(newer).also_accept(older);
    /// assert!(matches!(payments.begin_with("order-42", options)?, Begin::Replay(_)));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn also_accept(mut self, fingerprint: Fingerprint) -> Self {
        self.accepted.push(fingerprint);
        self
    }

    /// Stores facts with the record. They are readable without the types of the outcome.
    pub fn context(mut self, context: Context) -> Self {
        self.context = Some(context);
        self
    }

    /// Replaces [`ManagerOptions::success_ttl`](crate::ManagerOptions::success_ttl) for this record.
    pub fn success_ttl(mut self, ttl: Duration) -> Self {
        self.success_ttl = Some(ttl);
        self
    }

    /// Replaces [`ManagerOptions::failure_ttl`](crate::ManagerOptions::failure_ttl) for this record.
    pub fn failure_ttl(mut self, ttl: Duration) -> Self {
        self.failure_ttl = Some(ttl);
        self
    }

    /// Replaces [`ManagerOptions::on_interrupted`](crate::ManagerOptions::on_interrupted) for this record.
    pub fn on_interrupted(mut self, policy: OnInterrupted) -> Self {
        self.on_interrupted = Some(policy);
        self
    }

    /// Sets how long to wait for another owner. Zero means no wait; a time too long for the clock means no limit.
    /// Default: 2 s for `execute_with` and `drive`, zero for `begin_with` and `initiate_with`.
    ///
    /// `execute_many_with` never waits, and returns `InvalidOptions` for an item with a wait that is not zero. A
    /// waiting thread does nothing else. [`max_waiting`](crate::EngineOptions::max_waiting) bounds the number of
    /// waiting threads.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = Some(timeout);
        self
    }
}
