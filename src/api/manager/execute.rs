//! `execute`: one call that runs the operation, or returns its stored outcome.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::claim::{Claim, EndError};
use crate::api::manager::{Begin, Manager, Pending};
use crate::protocol::RecordId;
use crate::protocol::rules::Ending;
use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::failure::Failure;
use crate::types::key::IntoKey;
use crate::types::options::{CallOptions, OnError};
use crate::types::outcome::Finished;
use crate::types::record::{Interruption, RecordInfo, Status};

/// The result of `execute` for an operation that succeeded, now or before.
///
/// Failures are [`ExecuteError::Failed`], so this holds the value alone. A [`Finished`] record holds either.
#[derive(Clone)]
pub struct Executed<T> {
    value: T,
    replayed: bool,
    info: RecordInfo,
}

impl<T> Executed<T> {
    /// Returns the value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Consumes the result and returns the value.
    pub fn into_value(self) -> T {
        self.value
    }

    /// True if the operation had run before, and this is its stored value.
    pub fn replayed(&self) -> bool {
        self.replayed
    }

    /// Returns the record without the value.
    pub fn info(&self) -> &RecordInfo {
        &self.info
    }
}

impl<T> fmt::Debug for Executed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Executed");
        debug.field("replayed", &self.replayed).field("info", &self.info).finish_non_exhaustive()
    }
}

/// The error of `execute`. Exhaustive on purpose.
///
/// ```
/// # use oncekey::{Engine, ExecuteError, Manager, Status};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64, String> = engine.manager("payments")?;
/// let status = match payments.execute("order-42", |_claim| Err("declined".to_owned())) {
///     Ok(_) => 200,
///     // The answer of every retry.
///     Err(ExecuteError::Failed { error, status: Status::Failed, .. }) => {
///         assert_eq!(error, "declined");
///         402
///     }
///     // Nothing has happened: send it again.
///     Err(ExecuteError::Failed { status: Status::Released, .. }) => 503,
///     // It is not known whether it has happened.
///     Err(ExecuteError::Failed { .. }) => 500,
///     Err(ExecuteError::InProgress(_) | ExecuteError::Interrupted(_)) => 409,
///     // Released a short time ago: send it again in `info.retry_after()`.
///     Err(ExecuteError::Paused(_info)) => 503,
///     Err(ExecuteError::Mismatch(_)) => 422,
///     // The operation ran. `error` drops its claim here, which interrupts the key.
///     Err(ExecuteError::NotStored { .. }) => 500,
///     Err(ExecuteError::Engine(_)) => 503,
/// };
/// assert_eq!(status, 402);
/// # Ok::<(), oncekey::Error>(())
/// ```
pub enum ExecuteError<T, E = Failure> {
    /// The operation failed, now or before.
    Failed {
        /// The failure.
        error: E,
        /// The state of the record. `Failed`: every retry gets this failure until its TTL ends. `Released`: nothing has
        /// happened, and the next call runs the operation. `Interrupted`: it is not known whether the operation has
        /// happened.
        status: Status,
        /// True if the operation failed before, and this is the stored failure.
        replayed: bool,
    },
    /// Another owner runs the operation.
    InProgress(Pending<T, E>),
    /// An earlier owner ended without an outcome, and the record is held until a caller resolves it.
    Interrupted(RecordInfo),
    /// An earlier owner released the key: nothing has happened, and the operation can run again after
    /// [`RecordInfo::retry_after`]. Only with [`ManagerOptions::retry_pause`](crate::ManagerOptions::retry_pause).
    Paused(RecordInfo),
    /// The key belongs to another request.
    Mismatch(RecordInfo),
    /// The operation ran, but its outcome could not be stored, so it must not be reported. The claim is alive: try the
    /// ending again, or drop it to interrupt the record. To detect a type that cannot be stored before any effect, call
    /// [`Manager::encode_outcome`] with an example in a test or when the service starts.
    NotStored {
        /// The outcome that the operation returned.
        outcome: Result<T, E>,
        /// The reason, and the claim.
        error: EndError<Claim<T, E>>,
    },
    /// The engine failed. The operation did not run, with two exceptions. With `ClaimLost`, the operation ran and
    /// exchanged its claim. In [`execute_many`](Manager::execute_many), the operation may have panicked, and its ending
    /// was not stored.
    Engine(Error),
}

impl<T, E> From<Error> for ExecuteError<T, E> {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl<T, E: fmt::Display> fmt::Display for ExecuteError<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(self, Self::InProgress(_) | Self::Interrupted(_)) {
            error::count_use();
        }
        match self {
            Self::Failed { error, .. } => error.fmt(f),
            Self::InProgress(pending) => write!(f, "key {} is in progress", pending.info().key()),
            Self::Interrupted(info) => {
                write!(f, "key {} is interrupted: it is not known whether its operation happened", info.key())
            }
            Self::Paused(info) => {
                let wait = info.retry_after().unwrap_or_default();
                write!(f, "key {} was released and can be claimed in {wait:?}", info.key())
            }
            Self::Mismatch(info) => write!(f, "key {} belongs to another request", info.key()),
            Self::NotStored { error, .. } => write!(f, "the operation ran and its outcome is not stored: {error}"),
            Self::Engine(error) => error.fmt(f),
        }
    }
}

impl<T, E> fmt::Debug for ExecuteError<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { status, replayed, .. } => {
                f.debug_struct("Failed").field("status", status).field("replayed", replayed).finish_non_exhaustive()
            }
            Self::InProgress(pending) => f.debug_tuple("InProgress").field(pending).finish(),
            Self::Interrupted(info) => f.debug_tuple("Interrupted").field(info).finish(),
            Self::Paused(info) => f.debug_tuple("Paused").field(info).finish(),
            Self::Mismatch(info) => f.debug_tuple("Mismatch").field(info).finish(),
            Self::NotStored { error, .. } => f.debug_struct("NotStored").field("error", error).finish_non_exhaustive(),
            Self::Engine(error) => f.debug_tuple("Engine").field(error).finish(),
        }
    }
}

impl<T, E: fmt::Display> std::error::Error for ExecuteError<T, E> {}

/// The longest wait of `execute` and `drive` for another owner, unless the options say otherwise.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Manager<T, E> {
    /// Runs the operation if the key is new, and stores its result. Otherwise returns the stored result. Waits up to
    /// 2 s for another owner, unless [too many](crate::EngineOptions::max_waiting_per_key) callers are waiting.
    ///
    /// | the operation | the record |
    /// |---|---|
    /// | returns `Ok` | succeeded: every retry gets the value until its TTL |
    /// | returns `Err` | by [`on_error`](Manager::on_error); the default is failed: every retry gets the failure |
    /// | panics | interrupted, and the panic continues |
    /// | returns `Err` after it received, read or dropped an [`Error`] of this crate, or got `InProgress`, `Interrupted` or `Paused` from an `execute` inside it | interrupted: the failure is never stored |
    /// | is running when the process ends | interrupted |
    /// | has ended the claim by a [`work_stage`](Claim::work_stage) | as the stage stored it, whatever the operation returns |
    ///
    /// After [`OnError::Release`] a waiter takes over the key and runs the operation. An operation that always fails
    /// then runs once for each waiter. With a [`retry_pause`](crate::ManagerOptions::retry_pause) the waiters get
    /// [`ExecuteError::Paused`] instead.
    ///
    /// Returns `Deadlock` at once for a key that this thread is already executing. The operation must not exchange its
    /// claim for another one (`mem::swap`): then both records are interrupted, and the call returns `ClaimLost`.
    ///
    /// Without a fingerprint, a retry with another payload under the same key is a replay. Unless the key alone
    /// determines the operation, pass a fingerprint by [`execute_with`](Manager::execute_with).
    /// [`CallOptions::fingerprint`](crate::CallOptions::fingerprint) explains when that is the case.
    ///
    /// # Errors
    ///
    /// See [`ExecuteError`]. `UnknownRecoveryPoint` for a record on which a stage has committed: to run the operation
    /// from its start would repeat that stage. Continue such a record with [`drive`](Manager::drive).
    pub fn execute(
        &self,
        key: impl IntoKey,
        operation: impl FnOnce(&mut Claim<T, E>) -> Result<T, E>,
    ) -> Result<Executed<T>, ExecuteError<T, E>> {
        self.execute_with(key, CallOptions::new(), operation)
    }

    /// Runs the operation as [`execute`](Manager::execute) does, with options.
    ///
    /// ```
    /// # use oncekey::{CallOptions, Engine, ExecuteError, Fingerprint, Manager};
    /// # use std::time::Duration;
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// let pay = |cents: u64| {
    ///     let same = Fingerprint::of(&("EUR", cents))?;
    ///     let options = CallOptions::new().fingerprint(same).wait(Duration::from_secs(2));
    ///     payments.execute_with("order-42", options, |_claim| Ok(cents))
    /// };
    /// assert_eq!(*pay(1999).unwrap().value(), 1999);
    /// assert!(matches!(pay(2999), Err(ExecuteError::Mismatch(_))));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ExecuteError`].
    pub fn execute_with(
        &self,
        key: impl IntoKey,
        mut options: CallOptions,
        operation: impl FnOnce(&mut Claim<T, E>) -> Result<T, E>,
    ) -> Result<Executed<T>, ExecuteError<T, E>> {
        options.only_from_start = true;
        let unclassified = |error| Failed { error, on_error: None };
        self.claim_and_run(key, options, |claim| self.run(claim, |claim| operation(claim).map_err(unclassified)))
    }

    /// Calls `run` with the claim, unless the key has an answer already.
    pub(crate) fn claim_and_run<X: From<ExecuteError<T, E>>>(
        &self,
        key: impl IntoKey,
        options: CallOptions,
        run: impl FnOnce(Claim<T, E>) -> Result<Executed<T>, X>,
    ) -> Result<Executed<T>, X> {
        let wait = options.wait.unwrap_or(DEFAULT_WAIT);
        match claim_or_answer(self.begin_with(key, options.wait(wait))) {
            Ok(claim) => {
                let _running = claim.running();
                run(claim)
            }
            Err(answer) => Ok(answer?),
        }
    }

    pub(crate) fn claim(&self, id: RecordId, info: RecordInfo) -> Claim<T, E> {
        Claim::new(self.engine().share(), id, info, self.options.migrations.clone())
    }

    pub(crate) fn classify(&self, error: &E) -> OnError {
        self.on_error.as_ref().map_or(OnError::Store, |classify| classify(error))
    }

    /// Runs the operation with the claim, and ends the claim with the result.
    pub(crate) fn run(
        &self,
        mut claim: Claim<T, E>,
        operation: impl FnOnce(&mut Claim<T, E>) -> Result<T, Failed<E>>,
    ) -> Result<Executed<T>, ExecuteError<T, E>> {
        let (uses, lent) = (error::uses(), claim.identity());
        let returned = operation(&mut claim);
        let claim = claim.returned(&lent)?;
        match self.closing(claim, returned, uses) {
            Ok(Closing { claim, ending, outcome }) => outcome.answer(claim.end(&ending)),
            Err(answer) => answer,
        }
    }

    /// Returns the ending to store for the result of an operation, or the answer if there is nothing to store.
    pub(crate) fn closing(
        &self,
        claim: Claim<T, E>,
        returned: Result<T, Failed<E>>,
        uses_before: u64,
    ) -> Result<Closing<T, E>, Answer<T, E>> {
        let Failed { error: failure, on_error } = match returned {
            // A stage has ended the claim. Return what it stored, as every replay will.
            _ if claim.is_ended() => return Err(stored_by_stage(claim)),
            Ok(value) => {
                return match claim.encode_success(&value) {
                    Ok((bytes, stored)) => {
                        let outcome = Returned::Value { value, stored };
                        Ok(Closing { claim, ending: Ending::Succeed(bytes), outcome })
                    }
                    Err(error) => Err(not_stored(Ok(value), error, claim)),
                };
            }
            Err(failure) => failure,
        };
        let on_error = if claim.is_faulted() || error::uses() != uses_before {
            // The failure comes from an error of the engine, not from the operation. A later attempt may succeed.
            OnError::Interrupt
        } else {
            on_error.unwrap_or_else(|| self.classify(&failure))
        };
        let ending = match on_error {
            OnError::Store => match claim.encode_failure(&failure) {
                Ok((bytes, _)) => Ending::Fail(bytes),
                // The failure was made from an error of the engine before the operation ran.
                Err(error) if error.kind() == ErrorKind::EngineFailure => Ending::Interrupt(Interruption::Reported),
                Err(error) => return Err(not_stored(Err(failure), error, claim)),
            },
            OnError::ReleaseUnlessEffect if !claim.is_touched() => claim.releasing(),
            OnError::Release => claim.releasing(),
            OnError::Interrupt | OnError::ReleaseUnlessEffect => Ending::Interrupt(Interruption::Reported),
        };
        Ok(Closing { claim, ending, outcome: Returned::Failure(failure) })
    }
}

/// The result of `execute`.
pub(crate) type Answer<T, E> = Result<Executed<T>, ExecuteError<T, E>>;

/// A claim whose operation has returned, before its ending is stored.
pub(crate) struct Closing<T, E> {
    pub(crate) claim: Claim<T, E>,
    pub(crate) ending: Ending,
    pub(crate) outcome: Returned<T, E>,
}

/// The result of an operation.
pub(crate) enum Returned<T, E> {
    Value {
        value: T,
        /// The value as every replay will decode it. A field that is not stored is then the same for every caller.
        stored: T,
    },
    Failure(E),
    /// The operation panicked.
    Nothing,
}

impl<T, E> Returned<T, E> {
    /// Returns the result of the call, after the ending was stored or refused.
    pub(crate) fn answer(self, ended: Result<RecordInfo, EndError<Claim<T, E>>>) -> Answer<T, E> {
        Err(match (self, ended) {
            (Self::Value { stored, .. }, Ok(info)) => return Ok(Executed { value: stored, replayed: false, info }),
            (Self::Failure(error), Ok(info)) => ExecuteError::Failed { error, status: info.status(), replayed: false },
            (Self::Nothing, Ok(info)) => passing(ExecuteError::Interrupted(info)),
            (Self::Value { value, .. }, Err(error)) => ExecuteError::NotStored { outcome: Ok(value), error },
            (Self::Failure(failure), Err(error)) => ExecuteError::NotStored { outcome: Err(failure), error },
            // Dropping the claim interrupts the record, as soon as the journal has space.
            (Self::Nothing, Err(error)) => ExecuteError::Engine(error.into()),
        })
    }
}

/// Returns the outcome that a stage has stored.
pub(crate) fn stored_by_stage<T, E>(claim: Claim<T, E>) -> Answer<T, E>
where
    T: Serialize + DeserializeOwned,
    E: Serialize + DeserializeOwned,
{
    answer(claim.into_finished().map_err(Error::from)?, false)
}

fn not_stored<T, E>(outcome: Result<T, E>, error: Error, claim: Claim<T, E>) -> Answer<T, E> {
    Err(ExecuteError::NotStored { outcome, error: EndError { error, claim } })
}

/// Returns the claim, or the result of the call if there is no claim.
pub(crate) fn claim_or_answer<T, E>(begun: Result<Begin<T, E>>) -> Result<Claim<T, E>, Answer<T, E>> {
    Err(match begun {
        Ok(Begin::Claimed(claim)) => return Ok(claim),
        Ok(Begin::Replay(done)) => answer(done, true),
        Ok(Begin::InProgress(pending)) => Err(passing(ExecuteError::InProgress(pending))),
        Ok(Begin::Interrupted(info)) => Err(passing(ExecuteError::Interrupted(info))),
        Ok(Begin::Paused(info)) => Err(passing(ExecuteError::Paused(info))),
        Ok(Begin::Mismatch(info)) => Err(ExecuteError::Mismatch(info)),
        Err(error) => Err(ExecuteError::Engine(error)),
    })
}

/// A failure that the operation returned.
pub(crate) struct Failed<E> {
    pub(crate) error: E,
    /// The decision about the record, if the caller has made it already.
    pub(crate) on_error: Option<OnError>,
}

/// Counts the answer as an error of the engine. An operation that encloses this call then does not store a failure made
/// from it.
fn passing<T, E>(answer: ExecuteError<T, E>) -> ExecuteError<T, E> {
    error::count_use();
    answer
}

pub(crate) fn answer<T, E>(done: Finished<T, E>, replayed: bool) -> Answer<T, E> {
    let (outcome, info) = done.into_parts();
    match outcome {
        Ok(value) => Ok(Executed { value, replayed, info }),
        Err(error) => Err(ExecuteError::Failed { error, status: Status::Failed, replayed }),
    }
}
