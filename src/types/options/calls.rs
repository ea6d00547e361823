//! Options of one call.

use std::time::Duration;

use super::OnInterrupted;
use crate::types::context::Context;
use crate::types::fingerprint::Fingerprint;

/// The options of one `begin`. All are fixed when a generation starts.
///
/// ```
/// use oncekey::{Begin, BeginOptions, Context, Engine, Fingerprint, Manager};
///
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// let options = |cents: u64| {
///     let context = Context::new().with("user", "ada");
///     Ok::<_, oncekey::Error>(BeginOptions::new().fingerprint(Fingerprint::of(&cents)?).context(context))
/// };
/// let claim = payments.begin_with("order-42", options(1999)?)?.into_claim().unwrap();
/// assert_eq!(claim.context().text("user"), Some("ada"));
/// assert!(matches!(payments.begin_with("order-42", options(2999)?)?, Begin::Mismatch(_)));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct BeginOptions {
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) accepted: Vec<Fingerprint>,
    pub(crate) context: Option<Context>,
    pub(crate) success_ttl: Option<Duration>,
    pub(crate) failure_ttl: Option<Duration>,
    pub(crate) on_interrupted: Option<OnInterrupted>,
    /// Makes `begin` fail if a stage has committed on the record.
    pub(crate) only_from_start: bool,
}

impl BeginOptions {
    /// Creates options that change nothing: the manager's options apply.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the fingerprint of the request. A record with a fingerprint returns `Mismatch` to each retry that has
    /// another one, or none.
    ///
    /// Give one wherever the operation has a payload: without one, a retry with another amount is a replay of the first. Leave it
    /// out only where the key alone says what is to be done, because the service itself makes the key of it: the offset of a message
    /// in a log, the day of a report, an identifier of an object that never changes. Then
    /// [`strict_fingerprint`](crate::ManagerOptions::strict_fingerprint) stays off.
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
    /// use oncekey::{Begin, BeginOptions, Engine, Fingerprint, Manager};
    ///
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let older = Fingerprint::of(&("EUR", 1999))?;
    /// let claim = payments.begin_with("order-42", BeginOptions::new().fingerprint(older))?.into_claim().unwrap();
    /// claim.succeed(&1999)?;
    /// // The next version of the service also compares the payee.
    /// let newer = Fingerprint::of(&("EUR", 1999, "ada"))?;
    /// let options = BeginOptions::new().fingerprint(newer).also_accept(older);
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
}

/// The options of one `execute`.
#[derive(Clone, Debug)]
#[must_use]
pub struct ExecuteOptions {
    pub(crate) begin: BeginOptions,
    pub(crate) wait: Duration,
}

impl Default for ExecuteOptions {
    fn default() -> Self {
        Self { begin: BeginOptions::default(), wait: Duration::from_secs(2) }
    }
}

impl ExecuteOptions {
    /// Creates options with a wait of 2 s. In all else the manager's options apply.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the fingerprint of the request. See [`BeginOptions::fingerprint`].
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.begin.fingerprint = Some(fingerprint);
        self
    }

    /// Accepts records with this older fingerprint too. See [`BeginOptions::also_accept`].
    pub fn also_accept(mut self, fingerprint: Fingerprint) -> Self {
        self.begin = self.begin.also_accept(fingerprint);
        self
    }

    /// Stores facts with the record. See [`BeginOptions::context`].
    pub fn context(mut self, context: Context) -> Self {
        self.begin.context = Some(context);
        self
    }

    /// Replaces [`ManagerOptions::success_ttl`](crate::ManagerOptions::success_ttl) for this record.
    pub fn success_ttl(mut self, ttl: Duration) -> Self {
        self.begin.success_ttl = Some(ttl);
        self
    }

    /// Replaces [`ManagerOptions::failure_ttl`](crate::ManagerOptions::failure_ttl) for this record.
    pub fn failure_ttl(mut self, ttl: Duration) -> Self {
        self.begin.failure_ttl = Some(ttl);
        self
    }

    /// Replaces [`ManagerOptions::on_interrupted`](crate::ManagerOptions::on_interrupted) for this record.
    pub fn on_interrupted(mut self, policy: OnInterrupted) -> Self {
        self.begin.on_interrupted = Some(policy);
        self
    }

    /// Sets how long to wait for another owner. Zero means no wait; a time too long for the clock means no limit.
    /// Default: 2 s.
    ///
    /// A waiting thread does nothing else. [`max_waiting`](crate::EngineOptions::max_waiting) bounds the number of waiting
    /// threads.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = timeout;
        self
    }
}

impl From<BeginOptions> for ExecuteOptions {
    fn from(begin: BeginOptions) -> Self {
        Self { begin, ..Self::default() }
    }
}
