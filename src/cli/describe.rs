//! The types of a service's outcomes, as far as they are known.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Record, Result, Value, admin::RawManager};

/// An outcome as it is stored: of a success, or of a failure.
pub(super) type Stored<'a> = std::result::Result<&'a Value, &'a Value>;

type Describe = dyn Fn(Stored<'_>) -> Result<String> + Send + Sync;

/// Functions that describe outcomes of managers whose types are known. See [`cli`](super).
#[derive(Default)]
#[must_use]
pub struct Describers(BTreeMap<(String, u32), Box<Describe>>);

impl Describers {
    /// Creates an empty set: outcomes are shown as bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the description for outcomes of this manager that were stored with this schema. Each schema of a manager
    /// can have its own.
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
        let read = move |outcome: Stored<'_>| match outcome {
            Ok(bytes) => RawManager::decode::<T>(bytes).map(|value| describe(Ok(&value))),
            Err(bytes) => RawManager::decode::<E>(bytes).map(|failure| describe(Err(&failure))),
        };
        self.0.insert((name.into(), schema), Box::new(read));
        self
    }

    /// Describes the outcome of a record. Returns `None` if there is no outcome or no description.
    pub(super) fn describe(&self, record: &Record<Value, Value>) -> Result<Option<String>> {
        let info = record.info();
        let describe = self.0.get(&(info.manager().to_owned(), info.schema()));
        describe.zip(record.outcome()).map(|(describe, outcome)| describe(outcome)).transpose()
    }
}

impl fmt::Debug for Describers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
