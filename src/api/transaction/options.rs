//! How an atomic phase runs.

use std::fmt;

/// How strictly transactions are kept apart, by the names of SQL. Here they are always as strict as can be: whatever is asked for,
/// a transaction is [`Serializable`](Isolation::Serializable), which keeps the promise of each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Runs as `Serializable`.
    ReadUncommitted,
    /// Runs as `Serializable`.
    ReadCommitted,
    /// Runs as `Serializable`.
    RepeatableRead,
    /// What all transactions together have done is what they would have done one after the other. The default.
    #[default]
    Serializable,
}

type OfError<'a, X, R> = Box<dyn Fn(&X) -> R + 'a>;

/// How [`Engine::atomic_phase_with`](crate::Engine::atomic_phase_with) runs its closure, whose error is `X`.
///
/// ```
/// use oncekey::{Engine, Error, PhaseError, table::{Isolation, PhaseOptions}};
/// use std::cell::Cell;
///
/// let engine = Engine::temporary()?;
/// let (runs, told) = (Cell::new(0), Cell::new(0));
/// let options = PhaseOptions::new()
///     .isolation(Isolation::Serializable)
///     .should_retry(|error| matches!(error, PhaseError::User("busy")))
///     .on_error(|_| told.set(told.get() + 1));
/// let ended = engine.atomic_phase_with(&options, |tx| {
///     runs.set(runs.get() + 1);
///     tx.table("t")?.insert("k", "v")?;
///     Err::<(), _>(PhaseError::User(if runs.get() < 3 { "busy" } else { "no" }))
/// });
/// assert!(matches!(ended, Err(PhaseError::User("no"))));
/// assert_eq!((runs.get(), told.get()), (3, 1));
/// # Ok::<(), Error>(())
/// ```
#[must_use]
pub struct PhaseOptions<'a, X> {
    isolation: Isolation,
    on_error: Option<OfError<'a, X, ()>>,
    pub(super) should_retry: Option<OfError<'a, X, bool>>,
}

impl<'a, X> PhaseOptions<'a, X> {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The least that the transaction asks for. Defaults to [`Isolation::Serializable`], and every transaction has that.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Is called once with the error that is returned, the closure's own or the engine's, after everything was rolled back. It may
    /// use the engine, unless the phase is part of another one. Defaults to nothing. To go on without the error, use
    /// [`Result::or_else`] on what is returned.
    pub fn on_error(mut self, handle: impl Fn(&X) + 'a) -> Self {
        self.on_error = Some(Box::new(handle));
        self
    }

    /// Whether the closure runs again after this error of its own, at most
    /// [`Transaction::MAX_RUNS`](crate::Transaction::MAX_RUNS) times in all. Is asked after a rollback, and not in a phase that is part
    /// of another one, which runs again as a whole. Defaults to never. A conflict is no error of the closure's: the engine runs it
    /// again without asking.
    pub fn should_retry(mut self, judge: impl Fn(&X) -> bool + 'a) -> Self {
        self.should_retry = Some(Box::new(judge));
        self
    }

    pub(super) fn failed(&self, error: X) -> X {
        if let Some(handle) = &self.on_error {
            handle(&error);
        }
        error
    }
}

impl<X> Default for PhaseOptions<'_, X> {
    fn default() -> Self {
        Self { isolation: Isolation::default(), on_error: None, should_retry: None }
    }
}

impl<X> fmt::Debug for PhaseOptions<'_, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhaseOptions")
            .field("isolation", &self.isolation)
            .field("on_error", &self.on_error.is_some())
            .field("should_retry", &self.should_retry.is_some())
            .finish()
    }
}
