//! The types of a service's outcomes, as far as they are known.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::{Record, RecordInfo, Result, Value, admin::RawManager};

/// An outcome as it is stored: of a success, or of a failure.
pub(super) type Stored<'a> = std::result::Result<&'a Value, &'a Value>;

/// The functions for the outcome types of a manager.
struct Types {
    describe: Box<dyn Fn(Stored<'_>) -> Result<String> + Send + Sync>,
    check: fn(Stored<'_>) -> Result<()>,
    /// Encodes a success, or a failure if the flag says so.
    encode: fn(bool, Json) -> Result<Value, String>,
}

/// Functions that describe outcomes of managers whose types are known. See [`cli`](super).
#[derive(Default)]
#[must_use]
pub struct Describers(BTreeMap<(String, u32), Types>);

impl Describers {
    /// Creates an empty set: outcomes are shown as bytes, unless they are of a type of this crate, text or JSON.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the description for outcomes of this manager that were stored with this schema. Each schema of a manager
    /// can have its own. `resolve` checks outcomes by these types, and reads them from JSON.
    pub fn manager<T, E>(
        mut self,
        name: impl Into<String>,
        schema: u32,
        describe: impl Fn(Result<&T, &E>) -> String + Send + Sync + 'static,
    ) -> Self
    where
        T: Serialize + DeserializeOwned + 'static,
        E: Serialize + DeserializeOwned + 'static,
    {
        let describe = move |outcome: Stored<'_>| match outcome {
            Ok(bytes) => RawManager::decode::<T>(bytes).map(|value| describe(Ok(&value))),
            Err(bytes) => RawManager::decode::<E>(bytes).map(|failure| describe(Err(&failure))),
        };
        let check = |outcome: Stored<'_>| match outcome {
            Ok(bytes) => RawManager::decode::<T>(bytes).map(drop),
            Err(bytes) => RawManager::decode::<E>(bytes).map(drop),
        };
        let encode = |is_failure, json| if is_failure { from_json::<E>(json) } else { from_json::<T>(json) };
        self.0.insert((name.into(), schema), Types { describe: Box::new(describe), check, encode });
        self
    }

    fn types(&self, info: &RecordInfo) -> Option<&Types> {
        self.0.get(&(info.manager().to_owned(), info.schema()))
    }

    /// Describes the outcome of a record. Returns `None` if there is no outcome or no description.
    pub(super) fn describe(&self, record: &Record<Value, Value>) -> Result<Option<String>> {
        record.outcome().and_then(|outcome| self.describe_outcome(record.info(), outcome)).transpose()
    }

    /// Describes an outcome of the record's manager. Returns `None` if its types are not known.
    pub(super) fn describe_outcome(&self, info: &RecordInfo, outcome: Stored<'_>) -> Option<Result<String>> {
        Some((self.types(info)?.describe)(outcome))
    }

    /// Checks that the record's manager can read this outcome. Returns `None` if its types are not known.
    pub(super) fn check(&self, info: &RecordInfo, outcome: Stored<'_>) -> Option<Result<()>> {
        Some((self.types(info)?.check)(outcome))
    }

    /// Encodes an outcome of the record's manager. Returns `None` if its types are not known.
    pub(super) fn encode(&self, info: &RecordInfo, is_failure: bool, json: Json) -> Option<Result<Value, String>> {
        Some((self.types(info)?.encode)(is_failure, json))
    }
}

fn from_json<S: Serialize + DeserializeOwned>(json: Json) -> Result<Value, String> {
    let value: S = serde_json::from_value(json).map_err(|cause| cause.to_string())?;
    RawManager::encode(&value).map_err(|error| error.to_string())
}

impl fmt::Debug for Describers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
