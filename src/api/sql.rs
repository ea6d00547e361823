//! Stages in transactions of the user's own client of PostgreSQL.

use std::any::Any;
use std::error::Error as AnyError;

use ::postgres::error::SqlState;
use ::postgres::{Client, IsolationLevel, Transaction};

use crate::api::transaction::{self, Isolation, PhaseError, PhaseOptions};
use crate::postgres::{Settled, Stop, is_unknown};
use crate::protocol::Protocol;
use crate::protocol::staged::{Effect, Stage, StageOf};
use crate::types::error::{Error, ErrorKind};
use crate::types::record::RecordInfo;

/// Returns true if this error or one of its causes shows that a transaction has failed because another one was in the
/// way (SQLSTATE 40001 or 40P01).
///
/// A stage runs again by itself if its closure returns such an error as a [`postgres::Error`](::postgres::Error), as a
/// boxed error, or in a [`PhaseError`]. For other types, call this function in [`PhaseOptions::should_retry`].
///
/// ```no_run
/// use oncekey::sql::{is_conflict, postgres::{Client, NoTls}};
///
/// let mut client = Client::connect("postgres://app@db/shop", NoTls)?;
/// let done = client.batch_execute("UPDATE stock SET left_over = left_over - 1");
/// let again = done.is_err_and(|error| is_conflict(&error));
/// # Ok::<(), oncekey::sql::postgres::Error>(())
/// ```
#[must_use]
pub fn is_conflict(error: &(dyn AnyError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error.downcast_ref::<::postgres::Error>().and_then(::postgres::Error::code) {
            return [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code);
        }
        next = error.source();
    }
    false
}

/// Returns true if an error of a closure is a conflict, as far as its type shows it.
fn shows_conflict(error: &dyn Any) -> bool {
    if let Some(error) = error.downcast_ref::<::postgres::Error>() {
        return is_conflict(error);
    }
    if let Some(PhaseError::User(error)) = error.downcast_ref::<PhaseError<::postgres::Error>>() {
        return is_conflict(error);
    }
    if let Some(error) = error.downcast_ref::<Box<dyn AnyError + Send + Sync>>() {
        return is_conflict(&**error);
    }
    error.downcast_ref::<Box<dyn AnyError>>().is_some_and(|error| is_conflict(&**error))
}

/// The end of one run.
enum Ended<X> {
    Committed(Box<Stage>),
    /// Another transaction was in the way. Nothing was changed.
    Again,
    Failed(Failed<X>),
    /// The connection was lost in the commit.
    Unknown(Box<Stage>, Error),
}

/// The reason why a stage was not committed.
pub(crate) enum Failed<X> {
    /// The closure returned this error.
    Closure(X),
    Engine(Error),
    /// It is not known whether the stage was committed.
    Unsettled(Box<Stage>, Error),
}

impl<X> From<Stop> for Ended<X> {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Again => Self::Again,
            Stop::Fault(error) => Self::Failed(Failed::Engine(error)),
        }
    }
}

/// A closure that runs inside the transaction, with the record.
pub(crate) type Work<'w, X> = dyn FnMut(&mut Transaction<'_>, &RecordInfo) -> Result<Effect, Failed<X>> + 'w;

/// Runs a stage in transactions of the client, until one is committed. Returns the record.
pub(crate) fn run<X: 'static>(
    protocol: &Protocol,
    client: &mut Client,
    options: &PhaseOptions<'_, X>,
    of: &StageOf<'_>,
    work: &mut Work<'_, X>,
) -> Result<RecordInfo, Failed<X>> {
    let should_retry =
        |error: &X| shows_conflict(error) || options.should_retry.as_ref().is_some_and(|judge| judge(error));
    for nth in 1..=transaction::Transaction::MAX_RUNS {
        protocol.prepare_stage(of).map_err(Failed::Engine)?;
        match run_once(protocol, client, options.weakest(), of, work) {
            Ended::Committed(stage) => return protocol.staged(&stage).map_err(Failed::Engine),
            Ended::Again => protocol.rerun(),
            Ended::Failed(Failed::Closure(error))
                if nth < transaction::Transaction::MAX_RUNS && should_retry(&error) =>
            {
                protocol.rerun();
            }
            Ended::Failed(failed) => return Err(failed),
            Ended::Unknown(mut stage, why) => match protocol.settle_stage(&mut stage, false) {
                Ok(Settled::Committed) => return protocol.staged(&stage).map_err(Failed::Engine),
                // If the client has lost its connection, the next run returns that error at its beginning.
                Ok(Settled::RolledBack) => {}
                Ok(Settled::Overtaken) => {
                    let error = stage.overtaken(&why);
                    return Err(Failed::Engine(error));
                }
                Err(error) => return Err(Failed::Unsettled(stage, error)),
            },
        }
    }
    let message = format!(
        "a stage ran {} times, and each time another transaction was in the way",
        transaction::Transaction::MAX_RUNS
    );
    Err(Failed::Engine(Error::new(ErrorKind::Conflict, message)))
}

fn run_once<X>(
    protocol: &Protocol,
    client: &mut Client,
    isolation: Isolation,
    of: &StageOf<'_>,
    work: &mut Work<'_, X>,
) -> Ended<X> {
    let level = match isolation {
        Isolation::ReadUncommitted => IsolationLevel::ReadUncommitted,
        Isolation::ReadCommitted => IsolationLevel::ReadCommitted,
        Isolation::RepeatableRead => IsolationLevel::RepeatableRead,
        Isolation::Serializable => IsolationLevel::Serializable,
    };
    // The drop of `user` rolls back, also in a panic.
    let mut user = match client.build_transaction().isolation_level(level).start() {
        Ok(user) => user,
        Err(cause) => return Stop::new(&cause).into(),
    };
    let mut change = || {
        let (fenced, info) = protocol.fence_in(&mut user, of)?;
        let effect = protocol.inside(|| work(&mut user, &info)).map_err(Ended::Failed)?;
        let mut stage = protocol.stage(of, &fenced, &effect).map_err(Stop::Fault)?;
        stage.run_in(&mut user)?;
        Ok(stage)
    };
    let stage = match change() {
        Ok(stage) => stage,
        Err(ended) => return ended,
    };
    match user.commit() {
        Ok(()) => Ended::Committed(stage),
        Err(cause) if is_unknown(&cause) => {
            let message = format!("the client has lost its connection in a commit: {cause}");
            Ended::Unknown(stage, Error::new(ErrorKind::Unsettled, message))
        }
        Err(cause) => Stop::new(&cause).into(),
    }
}
