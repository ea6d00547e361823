//! Decisions of an operator about a record: resolving an interrupted one, and revoking an owner that hangs.

use std::fmt::Display;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Manager;
use crate::api::resolution::Resolution;
use crate::protocol::RecordId;
use crate::protocol::rules::Ending;
use crate::types::codec;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::IntoKey;
use crate::types::record::RecordInfo;
use crate::types::value::Value;

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Manager<T, E> {
    /// Resolves an interrupted record, after the caller has found out whether the operation happened. Does not notice
    /// if the record has changed since the caller read it: [`resolve_if_unchanged`](Self::resolve_if_unchanged) does.
    ///
    /// ```
    /// # use oncekey::{Engine, Manager, admin::Resolution};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// drop(payments.begin("order-42")?); // the operation may have happened
    /// payments.resolve("order-42", Resolution::Succeed(1999))?;
    /// assert_eq!(payments.get("order-42")?.unwrap().into_outcome(), Some(Ok(1999)));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `NotFound`; `OwnedByClaim` while the operation is in progress; `NotInterrupted` in any other state.
    pub fn resolve(&self, key: impl IntoKey, resolution: Resolution<T, E>) -> Result<()> {
        self.resolve_at(&self.id(key)?, resolution, None)
    }

    /// Resolves the interrupted record that was read as `seen`, unless it has changed since. So a decision about one
    /// attempt is never applied to a later one.
    ///
    /// ```
    /// # use oncekey::{Engine, ErrorKind, Manager, OnInterrupted, ManagerOptions, admin::Resolution};
    /// # let engine = Engine::temporary()?;
    /// let options = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
    /// let payments: Manager<u64> = engine.manager_with("payments", options)?;
    /// drop(payments.begin("order-42")?);
    /// let seen = payments.get("order-42")?.unwrap();
    /// drop(payments.begin("order-42")?); // meanwhile, another attempt
    /// let late = payments.resolve_if_unchanged(seen.info(), Resolution::Retry).unwrap_err();
    /// assert_eq!(late.kind(), ErrorKind::Changed);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `Changed` if the record has another [revision](RecordInfo::revision); `NotFound`; `InvalidOptions` for a record
    /// of another manager; otherwise as [`resolve`](Self::resolve).
    pub fn resolve_if_unchanged(&self, seen: &RecordInfo, resolution: Resolution<T, E>) -> Result<()> {
        self.resolve_at(&self.id_seen(seen)?, resolution, Some(seen.revision()))
    }

    #[expect(clippy::needless_pass_by_value, reason = "a caller has no more use for it")]
    fn resolve_at(&self, id: &RecordId, resolution: Resolution<T, E>, seen: Option<u64>) -> Result<()> {
        let ending = match &resolution {
            Resolution::Retry => Ending::Release,
            Resolution::Succeed(value) => Ending::Succeed(self.encode(id, value)?),
            Resolution::Fail(error) => self.failing(id, error)?,
        };
        self.engine().protocol().resolve(id, &ending, Some(self.options.schema), seen)
    }

    /// Encodes an outcome as it would be stored, decodes the bytes again, and compares. Stores nothing.
    ///
    /// Use it before an effect, or in a test, to find out whether outcomes of these types can be stored: `execute`
    /// finds out only after the operation has run. [`RawManager::resolve`](crate::admin::RawManager::resolve) and the
    /// `resolve` command take these bytes.
    ///
    /// # Errors
    ///
    /// `EngineFailure` if it contains a [`Failure`](crate::Failure) that was made from an error of this crate; `Codec`
    /// if the value could not be decoded again; `TooLarge` over
    /// [`max_value_bytes`](crate::EngineOptions::max_value_bytes).
    ///
    /// ```
    /// # use oncekey::{Engine, ErrorKind, Manager};
    /// # let engine = Engine::temporary()?;
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Receipt {
    ///     #[serde(skip_serializing)] // so it cannot be read back
    ///     charge: String,
    /// }
    /// let payments: Manager<Receipt> = engine.manager("payments")?;
    /// let error =
    ///     payments.encode_outcome(Ok(&Receipt { charge: "ch_1".into() })).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Codec);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn encode_outcome(&self, outcome: std::result::Result<&T, &E>) -> Result<Value> {
        let what = format!("an outcome of {}", self.name());
        outcome.map_or_else(|failure| self.encode_as(&what, failure), |value| self.encode_as(&what, value))
    }

    pub(crate) fn encode<S: Serialize + DeserializeOwned>(&self, id: &RecordId, value: &S) -> Result<Value> {
        self.encode_as(format_args!("the outcome of key {} of {}", id.key, id.manager), value)
    }

    /// Encodes a failure into an ending for the record.
    pub(crate) fn failing(&self, id: &RecordId, failure: &E) -> Result<Ending> {
        self.encode_as(format_args!("the failure of key {} of {}", id.key, id.manager), failure).map(Ending::Fail)
    }

    fn encode_as<S: Serialize + DeserializeOwned>(&self, what: impl Display, value: &S) -> Result<Value> {
        let (bytes, _) = codec::encode_outcome(what, value, self.engine().protocol().max_value_bytes())?;
        Ok(Value::from(bytes))
    }
}

impl<T, E> Manager<T, E> {
    /// Takes a key in progress away from its owner, for example from a thread that hangs. The record becomes
    /// interrupted. The old claim is lost: it can no longer end the record or write. The operation itself is not
    /// stopped, nor are its effects outside the store.
    ///
    /// # Errors
    ///
    /// `NotFound`; `NotInProgress` if the record has no live owner. After [`Engine::close`](crate::Engine::close),
    /// `Closed` if no claim is alive any more.
    pub fn revoke(&self, key: impl IntoKey) -> Result<RecordInfo> {
        self.engine().protocol().revoke(&self.id(key)?, None)
    }

    /// Takes the key away from its owner as [`revoke`](Self::revoke) does, unless its record has changed since it was
    /// read as `seen`. A changed record means that the owner has ended or made progress.
    ///
    /// # Errors
    ///
    /// `Changed`; otherwise as [`revoke`](Self::revoke), and `InvalidOptions` for a record of another manager.
    pub fn revoke_if_unchanged(&self, seen: &RecordInfo) -> Result<RecordInfo> {
        self.engine().protocol().revoke(&self.id_seen(seen)?, Some(seen.revision()))
    }

    fn id_seen(&self, seen: &RecordInfo) -> Result<RecordId> {
        check_manager(seen, self.name())?;
        self.id(seen.key())
    }
}

/// Checks that a record is one of this manager.
pub(crate) fn check_manager(seen: &RecordInfo, name: &str) -> Result<()> {
    if seen.manager() == name {
        return Ok(());
    }
    let message = format!("the record of key {} is of manager {}, not of {name}", seen.key(), seen.manager());
    Err(Error::new(ErrorKind::InvalidOptions, message))
}
