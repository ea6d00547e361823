//! Access to records for tools that do not know their types.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::engine::Engine;
use crate::api::manager::{Manager, Resolution};
use crate::protocol::rules::Ending;
use crate::protocol::{Load, RecordId};
use crate::types::clock::millis;
use crate::types::codec;
use crate::types::error::Result;
use crate::types::key::{IntoKey, check_name};
use crate::types::options::check_ttl;
use crate::types::outcome::Record;
use crate::types::record::RecordInfo;
use crate::types::value::Value;

/// A manager for tools that do not know the types of its outcomes. Outcomes are their stored bytes, described in
/// [limits](crate::guides::limits).
///
/// ```
/// # use oncekey::{Engine, Manager};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// payments.begin("order-42")?.into_claim().unwrap().succeed(&1999)?;
/// for name in engine.managers()? {
///     let raw = engine.raw(&name)?;
///     let bytes = raw.get("order-42")?.and_then(|record| record.into_outcome()).unwrap().unwrap();
///     // Before the value: the codec (1 byte) and the hash of the value's type (8 bytes).
///     assert_eq!(bytes.get(9..), Some(&1999_u64.to_le_bytes()[..]));
/// }
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RawManager {
    engine: Engine,
    name: Arc<str>,
}

impl Engine {
    /// Returns the manager with this name, for tools that do not know its types.
    ///
    /// # Errors
    ///
    /// `InvalidName` unless the name is 1 to 64 of `a-z 0-9 . _ -`.
    pub fn raw(&self, name: &str) -> Result<RawManager> {
        check_name("manager", name)?;
        Ok(RawManager { engine: self.clone(), name: name.into() })
    }
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Manager<T, E> {
    /// Returns the bytes as which this outcome would be stored. Decodes them again and compares. Stores nothing.
    ///
    /// Use it before an effect, or in a test, to find out whether outcomes of these types can be stored: `execute`
    /// finds out only after the operation has run. [`RawManager::resolve`] and the `resolve` command take these bytes.
    ///
    /// # Errors
    ///
    /// `EngineFailure` for a [`Failure`](crate::Failure) that was made from an error of this crate; `Codec` if the
    /// value could not be decoded again; `TooLarge` over [`max_value_bytes`](crate::EngineOptions::max_value_bytes).
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
    /// let error = payments.encode_outcome(Ok(&Receipt { charge: "ch_1".into() })).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Codec);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn encode_outcome(&self, outcome: std::result::Result<&T, &E>) -> Result<Value> {
        let what = format!("an outcome of {}", self.name());
        outcome.map_or_else(|failure| self.encode_failure(&what, failure), |value| self.encode_as(&what, value))
    }

    pub(crate) fn encode<S: Serialize + DeserializeOwned>(&self, id: &RecordId, value: &S) -> Result<Value> {
        self.encode_as(format_args!("the outcome of key {} of {}", id.key, id.manager), value)
    }

    /// Encodes a failure into an ending for the record.
    pub(crate) fn failing(&self, id: &RecordId, failure: &E) -> Result<Ending> {
        self.encode_failure(format_args!("the failure of key {} of {}", id.key, id.manager), failure).map(Ending::Fail)
    }

    fn encode_as<S: Serialize + DeserializeOwned>(&self, what: impl Display, value: &S) -> Result<Value> {
        let (bytes, _) = codec::encode_checked(what, value, self.engine().protocol().max_value_bytes())?;
        Ok(Value::from(bytes))
    }

    fn encode_failure(&self, what: impl Display, failure: &E) -> Result<Value> {
        let (bytes, _) = codec::encode_failure(what, failure, self.engine().protocol().max_value_bytes())?;
        Ok(Value::from(bytes))
    }
}

impl<T, E> Manager<T, E> {
    /// Takes a key in progress away from its owner, for example from a thread that hangs. The record becomes
    /// interrupted. The old claim is lost: it can no longer end the record or write. Effects of its operation outside
    /// the store continue.
    ///
    /// # Errors
    ///
    /// `NotFound`; `NotInProgress` if the record has no live owner. After [`Engine::close`] this works while claims are
    /// alive, and then returns `Closed`.
    pub fn revoke(&self, key: impl IntoKey) -> Result<RecordInfo> {
        self.engine().protocol().revoke(&self.id(key)?)
    }
}

impl RawManager {
    fn id(&self, key: impl IntoKey) -> Result<RecordId> {
        Ok(RecordId::new(&self.name, key.into_key()?))
    }

    /// Encodes an outcome as [`Manager::encode_outcome`] does, for tools that know the type but have no manager of it.
    ///
    /// # Errors
    ///
    /// As [`Manager::encode_outcome`]. The limit is [`Value::MAX_BYTES`].
    pub fn encode<S: Serialize + DeserializeOwned>(value: &S) -> Result<Value> {
        let (bytes, _) = codec::encode_checked("an outcome", value, Value::MAX_BYTES as u64)?;
        Ok(Value::from(bytes))
    }

    /// Decodes the bytes of an outcome.
    ///
    /// ```
    /// # use oncekey::{ErrorKind, admin::RawManager};
    /// let bytes = RawManager::encode(&1999_u64)?;
    /// assert_eq!(RawManager::decode::<u64>(&bytes)?, 1999);
    /// assert_eq!(RawManager::decode::<String>(&bytes).unwrap_err().kind(), ErrorKind::TypeMismatch);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `TypeMismatch` if the outcome was stored as another type, as far as its value shows; `Codec` if the bytes are
    /// not an encoded value.
    pub fn decode<S: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<S> {
        codec::decode("the outcome", bytes)
    }

    /// Returns the record of a whole key, with its encoded outcome.
    pub fn get(&self, key: impl IntoKey) -> Result<Option<Record<Value, Value>>> {
        Ok(self.engine.protocol().get(&self.id(key)?, Load::All)?.map(Record::raw))
    }

    /// Resolves a record as [`Manager::resolve`] does, with an outcome from [`Manager::encode_outcome`]. The record
    /// keeps its schema.
    pub fn resolve(&self, key: impl IntoKey, resolution: Resolution<Value, Value>) -> Result<()> {
        let id = self.id(key)?;
        let ending = match resolution {
            Resolution::Retry => Ending::Release,
            Resolution::Succeed(bytes) => Ending::Succeed(self.checked(bytes)?),
            Resolution::Fail(bytes) => Ending::Fail(self.checked(bytes)?),
        };
        self.engine.protocol().resolve(&id, &ending, None)
    }

    fn checked(&self, bytes: Value) -> Result<Value> {
        self.engine.protocol().check_outcome(&bytes).map(|()| bytes)
    }

    /// Deletes a finished record as [`Manager::forget`] does.
    pub fn forget(&self, key: impl IntoKey) -> Result<bool> {
        self.engine.protocol().forget(&self.id(key)?)
    }

    /// Deletes a record without a live owner as [`Manager::remove`] does.
    pub fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.engine.protocol().remove(&self.id(key)?)
    }

    /// Takes a key away from its owner as [`Manager::revoke`](crate::Manager::revoke) does.
    pub fn revoke(&self, key: impl IntoKey) -> Result<RecordInfo> {
        self.engine.protocol().revoke(&self.id(key)?)
    }

    /// Keeps a finished record for longer as [`Manager::extend`](crate::Manager::extend) does.
    pub fn extend(&self, key: impl IntoKey, ttl: Duration) -> Result<bool> {
        check_ttl("ttl", ttl)?;
        self.engine.protocol().extend(&self.id(key)?, millis(ttl))
    }

    /// Stores a record that [`get`](RawManager::get) of another store returned, under the same key. Returns false if
    /// the key has a record here. The copy gets a new generation and token, and keeps its effect ids. Its TTL starts
    /// again. A record in progress there is interrupted here.
    pub fn import(&self, record: &Record<Value, Value>) -> Result<bool> {
        let info = record.info();
        let id = RecordId::new(&self.name, info.key().clone());
        if let Some(bytes) = info.stored().outcome.clone() {
            self.checked(bytes)?;
        }
        self.engine.protocol().import(&id, info.stored())
    }
}
