//! Access to records for tools that do not know their types.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::engine::Engine;
use crate::api::manager::resolve::check_manager;
use crate::api::resolution::Resolution;
use crate::protocol::{Load, RecordId};
use crate::types::clock::millis;
use crate::types::codec;
use crate::types::error::Result;
use crate::types::key::{IntoKey, check_name};
use crate::types::options::check_ttl;
use crate::types::outcome::Record;
use crate::types::record::RecordInfo;
use crate::types::value::Value;

/// A manager for tools that do not know the types of its outcomes. Its calls take and return outcomes as stored bytes,
/// which [limits](crate::guides::limits) describes.
///
/// ```
/// # use oncekey::{Engine, Manager};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// payments.begin("order-42")?.into_claim().unwrap().succeed(&1999)?;
/// for name in engine.managers()? {
///     let raw = engine.raw(&name)?;
///     let bytes =
///         raw.get("order-42")?.and_then(|record| record.into_outcome()).unwrap().unwrap();
///     // Before the value: the codec (1 byte) and the digest of the value's shape (8 bytes).
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

impl RawManager {
    fn id(&self, key: impl IntoKey) -> Result<RecordId> {
        Ok(RecordId::new(&self.name, key.into_key()?))
    }

    /// Encodes an outcome as [`Manager::encode_outcome`](crate::Manager::encode_outcome) does, for tools that know the
    /// type but have no manager of it.
    ///
    /// # Errors
    ///
    /// As [`Manager::encode_outcome`](crate::Manager::encode_outcome). The limit is [`Value::MAX_BYTES`].
    pub fn encode<S: Serialize + DeserializeOwned>(value: &S) -> Result<Value> {
        let (bytes, _) = codec::encode_outcome("an outcome", value, Value::MAX_BYTES as u64)?;
        Ok(Value::from(bytes))
    }

    /// Decodes the bytes of an outcome.
    ///
    /// ```
    /// # use oncekey::{ErrorKind, admin::RawManager};
    /// let bytes = RawManager::encode(&1999_u64)?;
    /// assert_eq!(RawManager::decode::<u64>(&bytes)?, 1999);
    /// assert_eq!(
    ///     RawManager::decode::<String>(&bytes).unwrap_err().kind(),
    ///     ErrorKind::TypeMismatch
    /// );
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `TypeMismatch` if the outcome was stored as another type. A value without items, such as `None`, does not show
    /// their type. `Codec` if the bytes are not an encoded value.
    pub fn decode<S: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<S> {
        codec::decode("the outcome", bytes)
    }

    fn id_seen(&self, seen: &RecordInfo) -> Result<RecordId> {
        check_manager(seen, &self.name)?;
        self.id(seen.key())
    }

    /// Returns the JSON text of an outcome that is stored as JSON. Feature `cli`.
    #[cfg(feature = "cli")]
    #[must_use]
    pub fn json(bytes: &[u8]) -> Option<&[u8]> {
        codec::json(bytes)
    }

    /// Checks that bytes are an encoded value, as far as that can be seen without its type. Feature `cli`.
    ///
    /// # Errors
    ///
    /// `Codec`.
    #[cfg(feature = "cli")]
    pub fn check_encoded(bytes: &[u8]) -> Result<()> {
        codec::check_encoded(bytes)
    }

    /// Returns the record of a whole key, with its encoded outcome. The outcome does not count as given to a caller: a
    /// resolution can still be [undone](Self::undo).
    pub fn get(&self, key: impl IntoKey) -> Result<Option<Record<Value, Value>>> {
        Ok(self.engine.protocol().peek(&self.id(key)?, Load::All)?.map(Record::raw))
    }

    /// Resolves a record as [`Manager::resolve`](crate::Manager::resolve) does, with an outcome from
    /// [`Manager::encode_outcome`](crate::Manager::encode_outcome). The record keeps its schema.
    pub fn resolve(&self, key: impl IntoKey, resolution: Resolution<Value, Value>) -> Result<()> {
        self.resolve_at(&self.id(key)?, resolution, None)
    }

    /// Resolves a record as [`Manager::resolve_if_unchanged`](crate::Manager::resolve_if_unchanged) does, with an
    /// encoded outcome.
    pub fn resolve_if_unchanged(&self, seen: &RecordInfo, resolution: Resolution<Value, Value>) -> Result<()> {
        self.resolve_at(&self.id_seen(seen)?, resolution, Some(seen.revision()))
    }

    fn resolve_at(&self, id: &RecordId, resolution: Resolution<Value, Value>, seen: Option<u64>) -> Result<()> {
        self.engine.protocol().resolve(id, &resolution.into(), None, seen)
    }

    /// Makes a resolved record interrupted again, with the recovery point and checkpoint that it had. Its TTL starts
    /// again. Refused after a caller has claimed the key again or has received its outcome: see
    /// [`RecordInfo::is_undoable`].
    ///
    /// A caller receives the outcome by a replay, by [`Manager::get`](crate::Manager::get) or
    /// [`Manager::wait`](crate::Manager::wait), or in a transaction. The first of these calls commits that the outcome
    /// is given out, which takes one more sync.
    ///
    /// ```
    /// # use oncekey::{Engine, ErrorKind, Manager, admin::Resolution};
    /// # let engine = Engine::temporary()?;
    /// let payments: Manager<u64> = engine.manager("payments")?;
    /// drop(payments.begin("order-42")?); // the operation may have happened
    /// payments.resolve("order-42", Resolution::Succeed(1999))?;
    /// let raw = engine.raw("payments")?;
    /// raw.undo("order-42")?;
    /// payments.resolve("order-42", Resolution::Succeed(2999))?;
    /// assert_eq!(payments.get("order-42")?.unwrap().into_outcome(), Some(Ok(2999)));
    /// assert_eq!(raw.undo("order-42").unwrap_err().kind(), ErrorKind::NotResolved);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `NotFound`, `NotResolved`.
    pub fn undo(&self, key: impl IntoKey) -> Result<()> {
        self.engine.protocol().undo(&self.id(key)?, None)
    }

    /// Makes a resolved record interrupted again as [`undo`](Self::undo) does, unless it has changed since it was read
    /// as `seen`. So an operator never takes back what another one has done since.
    ///
    /// ```
    /// # use oncekey::{Engine, ErrorKind, Manager, admin::Resolution};
    /// # let engine = Engine::temporary()?;
    /// # let payments: Manager<u64> = engine.manager("payments")?;
    /// # drop(payments.begin("order-42")?);
    /// payments.resolve("order-42", Resolution::Succeed(1999))?;
    /// let raw = engine.raw("payments")?;
    /// let seen = raw.get("order-42")?.unwrap();
    /// // Meanwhile another operator corrects the outcome.
    /// raw.undo("order-42")?;
    /// payments.resolve("order-42", Resolution::Succeed(2999))?;
    /// let error = raw.undo_if_unchanged(seen.info()).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Changed);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`undo`](Self::undo), and `Changed`.
    pub fn undo_if_unchanged(&self, seen: &RecordInfo) -> Result<()> {
        self.engine.protocol().undo(&self.id_seen(seen)?, Some(seen.revision()))
    }

    /// Deletes a finished record as [`Manager::forget`](crate::Manager::forget) does.
    pub fn forget(&self, key: impl IntoKey) -> Result<bool> {
        self.engine.protocol().forget(&self.id(key)?)
    }

    /// Deletes a record without a live owner as [`Manager::remove`](crate::Manager::remove) does.
    pub fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.engine.protocol().remove(&self.id(key)?)
    }

    /// Takes a key away from its owner as [`Manager::revoke`](crate::Manager::revoke) does.
    pub fn revoke(&self, key: impl IntoKey) -> Result<RecordInfo> {
        self.engine.protocol().revoke(&self.id(key)?, None)
    }

    /// Takes a key away from its owner as [`Manager::revoke_if_unchanged`](crate::Manager::revoke_if_unchanged) does.
    pub fn revoke_if_unchanged(&self, seen: &RecordInfo) -> Result<RecordInfo> {
        self.engine.protocol().revoke(&self.id_seen(seen)?, Some(seen.revision()))
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
        self.engine.protocol().import(&id, info.stored())
    }
}
