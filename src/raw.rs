//! Records for tools that do not know their types.

#[cfg(feature = "cli")]
mod portable;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::millis;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, check_name};
use crate::manager::Resolution;
use crate::options::check_ttl;
use crate::outcome::Record;
use crate::protocol::{Depth, Place};
use crate::transition::Ending;
use crate::value::Value;

/// A manager for tools that do not know the types: outcomes are bytes.
///
/// ```
/// # use oncekey::{Engine, Manager};
/// # let engine = Engine::temporary()?;
/// let payments: Manager<u64> = engine.manager("payments")?;
/// payments.begin("order-42")?.into_claim().unwrap().succeed(&1999)?;
/// for name in engine.managers()? {
///     let raw = engine.raw(&name)?;
///     let bytes = raw.get("order-42")?.and_then(|record| record.into_outcome()).unwrap().unwrap();
///     assert_eq!(bytes.as_ref(), 1999_u64.to_le_bytes());
/// }
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RawManager {
    engine: Engine,
    name: Arc<str>,
}

impl Engine {
    /// The manager of that name for tools that do not know its types.
    ///
    /// # Errors
    ///
    /// `InvalidName`.
    pub fn raw(&self, name: &str) -> Result<RawManager> {
        check_name("manager", name)?;
        Ok(RawManager { engine: self.clone(), name: name.into() })
    }
}

impl RawManager {
    fn place(&self, key: impl AsRef<[u8]>) -> Result<Place> {
        Ok(Place::new(&self.name, Key::new(key)?))
    }

    /// The record of a whole key, with its outcome as it is encoded.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Record<Value, Value>>> {
        Ok(self.engine.protocol().get(&self.place(key)?, Depth::Whole)?.map(Record::raw))
    }

    /// As [`Manager::resolve`](crate::Manager::resolve), with an outcome that is encoded already. The record keeps its schema.
    pub fn resolve(&self, key: impl AsRef<[u8]>, resolution: Resolution<Value, Value>) -> Result<()> {
        let place = self.place(key)?;
        let ending = match resolution {
            Resolution::Retry => Ending::Release,
            Resolution::Succeed(bytes) => Ending::Succeed(self.checked(bytes)?),
            Resolution::Fail(bytes) => Ending::Fail(self.checked(bytes)?),
        };
        self.engine.protocol().resolve(&place, &ending, None)
    }

    fn checked(&self, bytes: Value) -> Result<Value> {
        let limit = self.engine.protocol().max_value_bytes();
        if bytes.len() as u64 > limit {
            let message = format!("an outcome is {} bytes long, the limit is {limit}", bytes.len());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(bytes)
    }

    /// As [`Manager::reopen`](crate::Manager::reopen).
    pub fn reopen(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.engine.protocol().reopen(&self.place(key)?)
    }

    /// As [`Manager::remove`](crate::Manager::remove).
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.engine.protocol().remove(&self.place(key)?)
    }

    /// As [`Manager::extend`](crate::Manager::extend).
    pub fn extend(&self, key: impl AsRef<[u8]>, ttl: Duration) -> Result<bool> {
        check_ttl("ttl", ttl)?;
        self.engine.protocol().extend(&self.place(key)?, millis(ttl))
    }

    /// Takes over a record that another store's [`get`](RawManager::get) gave, under the same key, unless that key has a
    /// record here: then false. Its TTL starts again; one in progress there is interrupted here.
    pub fn import(&self, record: &Record<Value, Value>) -> Result<bool> {
        let info = record.info();
        let place = Place::new(&self.name, info.key().clone());
        if let Some(bytes) = info.image().outcome.clone() {
            self.checked(bytes)?;
        }
        self.engine.protocol().import(&place, info.image())
    }
}
