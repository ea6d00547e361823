//! Operations of several stages, run from their recovery point to the end.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::claim::{Claim, EndError};
use crate::api::manager::Manager;
use crate::api::manager::execute::{ExecuteError, Executed, answer};
use crate::types::error::{self, Error, ErrorKind, Result};
use crate::types::failure::Failure;
use crate::types::key::IntoKey;
use crate::types::options::{CallOptions, OnInterrupted};
use crate::types::outcome::Finished;
use crate::types::record::{RecordInfo, Status};

type Run<'a, T, E, X> = Box<dyn Fn(&mut Claim<T, E>) -> Result<(), X> + Send + Sync + 'a>;

type IsCertain<'a, X> = Box<dyn Fn(&X) -> bool + Send + Sync + 'a>;

/// The stages of an operation, by recovery point.
///
/// A stage first causes its external effect, with an [`effect_id`](Claim::effect_id) so that a later attempt does not
/// repeat it. Then the stage calls [`Claim::work_stage`] once, which advances the record or ends it. A stage that keeps
/// the recovery point and stores another checkpoint is called again.
///
/// ```
/// # use oncekey::{CallOptions, Engine, Error, Fingerprint, Manager, OnInterrupted, stage::{Next, Stages, STARTED}};
/// # let engine = Engine::temporary()?;
/// # fn charge(_id: &str) -> String { "ch_1".into() }
/// let orders: Manager<String> = engine.manager("orders")?;
/// let stages = Stages::new()
///     .stage(STARTED, |claim| {
///         let charged = charge(&claim.effect_id("charge"));
///         claim.work_stage(|_tx| Ok(Next::advance_with("charged", charged.as_str())))
///     })
///     .stage("charged", |claim| {
///         let charged = claim.checkpoint().unwrap_or_default();
///         let charged = String::from_utf8_lossy(charged).into_owned();
///         claim.work_stage(|tx| {
///             tx.table("orders")?.insert("1", &charged)?;
///             Ok::<_, Error>(Next::Succeed(charged.clone()))
///         })
///     });
/// // However an attempt ends, the next one continues at its recovery point.
/// let same_cart = Fingerprint::of(&("cart-1", 1999))?;
/// let options = CallOptions::new().fingerprint(same_cart);
/// let options = options.on_interrupted(OnInterrupted::Resume);
/// let done = orders.drive("cart-1", options, &stages)?;
/// assert_eq!(done.value(), "ch_1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Stages<'a, T, E = Failure, X = Error> {
    stages: BTreeMap<String, Run<'a, T, E, X>>,
    nothing_happened: Option<IsCertain<'a, X>>,
}

impl<'a, T, E, X> Stages<'a, T, E, X> {
    /// Creates an empty set of stages.
    pub fn new() -> Self {
        Self { stages: BTreeMap::new(), nothing_happened: None }
    }

    /// Sets the stage for a recovery point. The first recovery point is [`STARTED`](crate::stage::STARTED). A second
    /// stage for the same point replaces the first.
    pub fn stage(
        mut self,
        point: impl Into<String>,
        run: impl Fn(&mut Claim<T, E>) -> Result<(), X> + Send + Sync + 'a,
    ) -> Self {
        self.stages.insert(point.into(), Box::new(run));
        self
    }

    /// Sets a function that returns true for an error of a stage if it proves that the effect of the stage has not
    /// happened, for example if a card was declined before the charge. Such an error releases the record. For all other
    /// errors see [`Claim::drive`]. Default: false for every error.
    pub fn nothing_happened(mut self, is_certain: impl Fn(&X) -> bool + Send + Sync + 'a) -> Self {
        self.nothing_happened = Some(Box::new(is_certain));
        self
    }
}

impl<T, E, X> Default for Stages<'_, T, E, X> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, E, X> fmt::Debug for Stages<'_, T, E, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stages").field(&self.stages.keys()).finish()
    }
}

/// The error of `drive`. Exhaustive on purpose.
///
/// ```
/// # use oncekey::{CallOptions, Engine, Error, ExecuteError, Manager, Status};
/// # use oncekey::stage::{DriveError, Next, STARTED, Stages};
/// # let engine = Engine::temporary()?;
/// let orders: Manager<String, String> = engine.manager("orders")?;
/// let stages = Stages::new().stage(STARTED, |claim| {
///     claim.work_stage(|_tx| Ok::<_, Error>(Next::Fail("sold out".to_owned())))
/// });
/// let status = match orders.drive("cart-1", CallOptions::new(), &stages) {
///     Ok(_) => 200,
///     // Final: every retry gets it.
///     Err(DriveError::Execute(ExecuteError::Failed { status: Status::Failed, .. })) => 402,
///     // Nothing has happened: send the request again.
///     Err(DriveError::Stage { status: Status::Released, .. }) => 503,
///     // It is not known whether the effect of the stage has happened.
///     Err(DriveError::Stage { .. }) => 500,
///     // In progress, held, another request, and others: see `ExecuteError`.
///     Err(DriveError::Execute(_)) => 409,
/// };
/// assert_eq!(status, 402);
/// # Ok::<(), Error>(())
/// ```
pub enum DriveError<T, E, X> {
    /// The error of a stage. Also an error of the engine inside a stage, an unknown recovery point, or a stage that
    /// does not advance. The rows of the stage are rolled back, and the record stays at its recovery point.
    Stage {
        /// The error that the stage returned.
        error: X,
        /// The state of the record, by the table of [`Claim::drive`]. `Released`: no effect of this stage has happened,
        /// and the next call continues at the recovery point. `Interrupted`: it is not known whether the effect has
        /// happened. Under [`Resume`](OnInterrupted::Resume) the next call continues in any case; under `Hold` the
        /// record waits until a caller resolves it.
        status: Status,
    },
    /// The errors of [`Manager::execute`]. `Failed` with the status `Failed` is final: every retry gets it.
    Execute(ExecuteError<T, E>),
}

impl<T, E, X> From<ExecuteError<T, E>> for DriveError<T, E, X> {
    fn from(error: ExecuteError<T, E>) -> Self {
        Self::Execute(error)
    }
}

impl<T, E, X> From<Error> for DriveError<T, E, X> {
    fn from(error: Error) -> Self {
        Self::Execute(error.into())
    }
}

impl<T, E: fmt::Display, X: fmt::Display> fmt::Display for DriveError<T, E, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage { error, .. } => error.fmt(f),
            Self::Execute(error) => error.fmt(f),
        }
    }
}

impl<T, E, X: fmt::Debug> fmt::Debug for DriveError<T, E, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage { error, status } => {
                f.debug_struct("Stage").field("error", error).field("status", status).finish()
            }
            Self::Execute(error) => f.debug_tuple("Execute").field(error).finish(),
        }
    }
}

impl<T, E: fmt::Display, X: fmt::Debug + fmt::Display> std::error::Error for DriveError<T, E, X> {}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Claim<T, E> {
    /// Runs the stages from the recovery point of the record to an outcome.
    ///
    /// # Errors
    ///
    /// [`DriveError::Stage`] with the error of the stage, or with an error of the engine: `UnknownRecoveryPoint` if the
    /// record's recovery point has no stage, `Stalled` if a stage has left the recovery point and the checkpoint
    /// unchanged. The record stays at its recovery point:
    ///
    /// | error | under `Resume` | under `Hold` |
    /// |---|---|---|
    /// | of a stage, or `Stalled`, after an [`effect_id`](Claim::effect_id) or a committed stage in this attempt | interrupted and resumable: kept for `interrupted_ttl` | interrupted: the effect may have happened |
    /// | of a stage, or `Stalled`, without such an effect | released: the next attempt begins at the recovery point | interrupted |
    /// | of a stage for which [`Stages::nothing_happened`] is true | released | released |
    /// | `UnknownRecoveryPoint` | released | released: no stage has run there |
    /// | a panic | interrupted and resumable | interrupted |
    pub fn drive<X: From<Error>>(self, stages: &Stages<'_, T, E, X>) -> Result<Finished<T, E>, DriveError<T, E, X>> {
        self.drive_or(stages, |claim, is_certain| {
            status(if is_certain { claim.release() } else { claim.release_bound() })
        })
    }

    /// Runs the stages as [`drive`](Claim::drive) does, for a key that no caller will send again. Removes the record
    /// instead of releasing it if nothing has happened.
    #[cfg(feature = "http")]
    pub(crate) fn drive_unkeyed<X: From<Error>>(
        self,
        stages: &Stages<'_, T, E, X>,
    ) -> Result<Finished<T, E>, DriveError<T, E, X>> {
        self.drive_or(stages, |claim, _| {
            if claim.info().stored().is_at_start() && !claim.is_touched() {
                // Removing is as good as releasing, because no caller knows the key.
                claim.discard().map_or(Status::Interrupted, |()| Status::Released)
            } else {
                status(claim.release())
            }
        })
    }

    /// Runs the stages to an outcome. `release` ends a claim that need not be interrupted, and returns the status of
    /// its record. If an ending cannot be stored, the drop of the claim records one later. The error of the stage is
    /// returned in any case.
    fn drive_or<X: From<Error>>(
        mut self,
        stages: &Stages<'_, T, E, X>,
        release: impl FnOnce(Self, bool) -> Status,
    ) -> Result<Finished<T, E>, DriveError<T, E, X>> {
        let lent = self.identity();
        while !self.is_ended() {
            let Some(stage) = stages.stages.get(self.recovery_point()) else {
                let error = X::from(self.stuck(ErrorKind::UnknownRecoveryPoint, "there is no stage for it"));
                return Err(DriveError::Stage { error, status: release(self, true) });
            };
            let before = self.info().clone();
            let ended = stage(&mut self);
            let exchanged = |error| DriveError::Stage { error: X::from(error), status: Status::Interrupted };
            self = self.returned(&lent).map_err(exchanged)?;
            let ended = match ended {
                // Do not compare revisions: an advance to the same point and checkpoint makes a new revision, but no
                // progress.
                Ok(()) if self.is_where(&before) => {
                    Err(X::from(self.stuck(ErrorKind::Stalled, "its stage has not advanced it")))
                }
                ended => ended,
            };
            match ended {
                // A stage has ended the claim. Return what every replay will, whatever the stage returned.
                _ if self.is_ended() => break,
                Ok(()) => {}
                Err(error) => {
                    let is_certain = stages.nothing_happened.as_ref().is_some_and(|is_certain| is_certain(&error));
                    let may_have_happened = self.is_touched() || self.info().policy() == OnInterrupted::Hold;
                    let status = error::handled(|| {
                        if !is_certain && may_have_happened {
                            status(self.interrupt())
                        } else {
                            release(self, is_certain)
                        }
                    });
                    return Err(DriveError::Stage { error, status });
                }
            }
        }
        self.into_finished().map_err(|error| Error::from(error).into())
    }

    fn is_where(&self, before: &RecordInfo) -> bool {
        (self.recovery_point(), self.checkpoint()) == (before.recovery_point(), before.checkpoint())
    }

    fn stuck(&self, kind: ErrorKind, why: &str) -> Error {
        Error::new(kind, format!("key {} is at the recovery point {:?}: {why}", self.key(), self.recovery_point()))
    }
}

/// Returns the status of the record after a failed stage. If the ending was refused, the drop of the claim interrupts
/// the record.
fn status<C>(ended: Result<RecordInfo, EndError<C>>) -> Status {
    ended.map_or(Status::Interrupted, |info| info.status())
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Manager<T, E> {
    /// Runs the remaining stages of an operation, or returns its outcome if it has one. Waits for another owner as
    /// [`execute`](Manager::execute) does. Suited to records that [resume](crate::OnInterrupted::Resume) after an
    /// interruption.
    ///
    /// # Errors
    ///
    /// See [`DriveError`] and [`Claim::drive`].
    pub fn drive<X: From<Error>>(
        &self,
        key: impl IntoKey,
        options: CallOptions,
        stages: &Stages<'_, T, E, X>,
    ) -> Result<Executed<T>, DriveError<T, E, X>> {
        self.claim_and_run(key, options, |claim| Ok(answer(claim.drive(stages)?, false)?))
    }
}
