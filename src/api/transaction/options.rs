//! Options of an atomic phase.

use std::fmt;

/// Isolation levels by their SQL names. Every transaction runs as [`Serializable`](Isolation::Serializable), which
/// includes the guarantees of the other levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Runs as `Serializable`.
    ReadUncommitted,
    /// Runs as `Serializable`.
    ReadCommitted,
    /// Runs as `Serializable`.
    RepeatableRead,
    /// The effect of all transactions is as if they had run one after the other. The default.
    #[default]
    Serializable,
}

type OfError<'a, X, R> = Box<dyn Fn(&X) -> R + 'a>;

/// The options of [`Engine::atomic_phase_with`](crate::Engine::atomic_phase_with), whose closure has the error type
/// `X`.
///
/// ```
/// use oncekey::{
///     Engine, Error,
///     stage::PhaseError,
///     table::{Isolation, PhaseOptions},
/// };
/// use std::cell::Cell;
///
/// let engine = Engine::temporary()?;
/// let (runs, handled) = (Cell::new(0), Cell::new(0));
/// let options = PhaseOptions::new()
///     .isolation(Isolation::Serializable)
///     .should_retry(|error| matches!(error, PhaseError::User("busy")))
///     .on_error(|_| handled.set(handled.get() + 1));
/// let ended = engine.atomic_phase_with(&options, |tx| {
///     runs.set(runs.get() + 1);
///     tx.table("t")?.insert("k", "v")?;
///     Err::<(), _>(PhaseError::User(if runs.get() < 3 { "busy" } else { "no" }))
/// });
/// assert!(matches!(ended, Err(PhaseError::User("no"))));
/// assert_eq!((runs.get(), handled.get()), (3, 1));
/// # Ok::<(), Error>(())
/// ```
#[must_use]
pub struct PhaseOptions<'a, X> {
    isolation: Isolation,
    on_error: Option<OfError<'a, X, ()>>,
    pub(crate) should_retry: Option<OfError<'a, X, bool>>,
}

impl<'a, X> PhaseOptions<'a, X> {
    /// Creates the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the weakest acceptable isolation. Default: [`Isolation::Serializable`], which every transaction has in any
    /// case.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Sets a function that is called once with the error that the phase returns, the closure's own or the engine's,
    /// after the rollback. The function may use the engine, unless the phase is part of another one. Default: none. To
    /// continue without an error, use [`Result::or_else`] on the result of the phase.
    pub fn on_error(mut self, handle: impl Fn(&X) + 'a) -> Self {
        self.on_error = Some(Box::new(handle));
        self
    }

    /// Sets a function that decides whether the closure runs again after an error of its own. A closure runs at most
    /// [`Transaction::MAX_RUNS`](crate::Transaction::MAX_RUNS) times in all. The function is called after the rollback,
    /// but not in a phase that is part of another one, which runs again as a whole. Default: never. After a conflict
    /// the engine runs the closure again without this function.
    pub fn should_retry(mut self, judge: impl Fn(&X) -> bool + 'a) -> Self {
        self.should_retry = Some(Box::new(judge));
        self
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn weakest(&self) -> Isolation {
        self.isolation
    }

    pub(crate) fn failed(&self, error: X) -> X {
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
