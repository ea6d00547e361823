//! Descriptions of a service's outcomes.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Engine, Key, ManagerOptions, Result};

type Describe = dyn Fn(&Engine, &Key) -> Result<Option<String>> + Send + Sync;

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
        let name = name.into();
        let manager = name.clone();
        let read = move |engine: &Engine, key: &Key| {
            let manager = engine.manager_with::<T, E>(&manager, ManagerOptions::new().schema(schema))?;
            Ok(manager.get(key)?.and_then(|record| record.outcome().map(&describe)))
        };
        self.0.insert((name, schema), Box::new(read));
        self
    }

    /// Describes the outcome of a key. Returns `None` if there is no outcome or no description.
    pub(super) fn describe(&self, engine: &Engine, manager: &str, schema: u32, key: &Key) -> Result<Option<String>> {
        self.0.get(&(manager.to_owned(), schema)).map_or(Ok(None), |describe| describe(engine, key))
    }
}

impl fmt::Debug for Describers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
