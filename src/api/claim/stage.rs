//! Stages: the changes to tables and to the claim's record are one commit.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::claim::{Claim, EndError};
use crate::api::transaction::{self, Transaction};
use crate::protocol::rules::{Ending, Step};
use crate::types::codec;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::failure::Failure;
use crate::types::outcome::Finished;
use crate::types::record::{check_checkpoint, check_recovery_point};
use crate::types::value::Value;

/// The effect of a work stage on its record.
pub enum Next<T, E = Failure> {
    /// The record stays as it is: only the tables change.
    Stay,
    /// The record moves to another recovery point.
    Advance {
        /// The recovery point at which the next attempt continues.
        point: String,
        /// Data for the next stage, instead of the checkpoint of an earlier stage.
        checkpoint: Option<Vec<u8>>,
    },
    /// The operation succeeds with this value.
    Succeed(T),
    /// The operation fails for good.
    Fail(E),
}

impl<T, E> Next<T, E> {
    /// Advances to this recovery point, without a checkpoint.
    #[must_use]
    pub fn advance(point: impl Into<String>) -> Self {
        Self::Advance { point: point.into(), checkpoint: None }
    }

    /// Advances to this recovery point, with a checkpoint for the next stage.
    #[must_use]
    pub fn advance_with(point: impl Into<String>, checkpoint: impl Into<Vec<u8>>) -> Self {
        Self::Advance { point: point.into(), checkpoint: Some(checkpoint.into()) }
    }

    /// Advances to this recovery point, with a checkpoint that [`Claim::decode_checkpoint`] can read.
    ///
    /// # Errors
    ///
    /// `Codec` if the checkpoint could not be decoded again: the next attempt could not continue with it.
    ///
    /// ```
    /// use oncekey::stage::Next;
    ///
    /// let next = Next::<u64>::advance_encoded("charged", &("ch_1".to_owned(), 1999))?;
    /// let charge = serde_json::json!({ "charge": "ch_1" });
    /// let also = Next::<u64>::advance_encoded("charged", &charge)?;
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn advance_encoded<C: Serialize + DeserializeOwned>(point: impl Into<String>, checkpoint: &C) -> Result<Self> {
        let (bytes, _) = codec::encode_checked("a checkpoint", checkpoint, u64::MAX)?;
        Ok(Self::advance_with(point, bytes))
    }
}

impl<T, E> Next<T, E> {
    /// Checks and encodes the change of the record. A checkpoint has at most `limit` bytes.
    pub(crate) fn into_step(
        self,
        limit: u64,
        success: impl FnOnce(&T) -> Result<Value>,
        failure: impl FnOnce(&E) -> Result<Value>,
    ) -> Result<Step> {
        Ok(match self {
            Self::Stay => Step::Stay,
            Self::Advance { point, checkpoint } => {
                check_recovery_point(&point)?;
                check_checkpoint(checkpoint.as_ref().map_or(0, Vec::len), limit)?;
                Step::Advance { point, checkpoint: checkpoint.map(Value::from) }
            }
            Self::Succeed(value) => Step::End(Ending::Succeed(success(&value)?)),
            Self::Fail(error) => Step::End(Ending::Fail(failure(&error)?)),
        })
    }
}

impl<T, E> fmt::Debug for Next<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stay => f.write_str("Stay"),
            Self::Advance { point, .. } => f.debug_struct("Advance").field("point", point).finish_non_exhaustive(),
            Self::Succeed(_) => f.write_str("Succeed(..)"),
            Self::Fail(_) => f.write_str("Fail(..)"),
        }
    }
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Claim<T, E> {
    /// Runs a stage. The closure's changes to tables and its change of the record are committed together or not at all.
    /// The commit succeeds only if this claim still owns the record, at the same recovery point.
    ///
    /// The closure runs again when another commit has changed data that it read. So an effect that cannot be undone
    /// must not be inside: cause it before the stage, with an [`effect_id`](Claim::effect_id). `Err` and panics roll
    /// back. The limits and rules of a [`Transaction`] apply.
    ///
    /// A stage that returns [`Next::Succeed`] or [`Next::Fail`] ends the claim. Dropping the claim then does nothing,
    /// and [`into_finished`](Claim::into_finished) returns the stored outcome.
    ///
    /// ```
    /// # use oncekey::{Engine, Error, Manager, stage::Next};
    /// # let engine = Engine::temporary()?;
    /// let orders: Manager<u64> = engine.manager("orders")?;
    /// let Ok(mut claim) = orders.begin("cart-1")?.into_claim() else { panic!("new") };
    /// claim.work_stage(|tx| {
    ///     tx.table("stock")?.insert("apple", "2")?;
    ///     Ok::<_, Error>(Next::advance("reserved"))
    /// })?;
    /// assert_eq!(claim.recovery_point(), "reserved");
    /// claim.work_stage(|_tx| Ok::<_, Error>(Next::Succeed(7)))?;
    /// assert_eq!(claim.into_finished()?.into_outcome()?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of the closure, with everything rolled back. From the engine: `ClaimLost` if the claim no longer owns
    /// the record or the record has ended; `Codec` or `TooLarge` if a value cannot be stored; `InvalidName` for a
    /// malformed name of a recovery point; `Conflict` after [`Transaction::MAX_RUNS`](crate::Transaction::MAX_RUNS)
    /// runs.
    pub fn work_stage<X: From<Error>>(
        &mut self,
        work: impl Fn(&Transaction) -> Result<Next<T, E>, X>,
    ) -> Result<(), X> {
        let (fence, faulted) = (Some(self.fence()), Some(self.fault_flag()));
        let setting = transaction::Setting { fence, faulted, should_retry: None };
        let stage = |tx: &Transaction| {
            let next = work(tx)?;
            Ok(((), self.encode_step(next).map_err(transaction::Stop::Fault)?))
        };
        let ((), written) = transaction::run::<_, X>(self.protocol(), &setting, stage)?;
        self.touch();
        if let Some(info) = written.into_iter().find(|info| self.fence().id.is_of(info)) {
            self.moved(info);
        }
        Ok(())
    }

    pub(super) fn encode_step(&self, next: Next<T, E>) -> Result<Step> {
        let success = |value: &T| self.encode_success(value).map(|(bytes, _)| bytes);
        let failure = |error: &E| self.encode_failure(error).map(|(bytes, _)| bytes);
        next.into_step(self.protocol().max_value_bytes(), success, failure)
    }

    /// Returns the outcome that a stage has stored when it ended the claim.
    ///
    /// # Errors
    ///
    /// `Stalled` if no stage has ended the claim: the error holds the claim, which is still alive. `TypeMismatch` and
    /// `Codec` as for every replay.
    pub fn into_finished(self) -> Result<Finished<T, E>, EndError<Self>> {
        if !self.is_ended() {
            let message =
                format!("no stage has ended the claim on key {}, it is at {}", self.key(), self.recovery_point());
            return Err(EndError { error: Error::new(ErrorKind::Stalled, message), claim: self });
        }
        let info = self.info().clone();
        Finished::decode_own(info).map_err(|error| EndError { error, claim: self })
    }
}
