//! Stored outcomes with their types.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::types::error::{Error, ErrorKind, Result};
use crate::types::failure::Failure;
use crate::types::options::ManagerOptions;
use crate::types::options::migrate::{Migrations, Part};
use crate::types::record::{RecordInfo, Status};
use crate::types::value::Value;

/// A record that ended with an outcome.
///
/// Unlike a [`Record`], it always has an outcome. Unlike [`Executed`](crate::Executed), the outcome may be a failure.
#[derive(Clone)]
pub struct Finished<T, E = Failure> {
    outcome: Result<T, E>,
    info: RecordInfo,
}

impl<T, E> Finished<T, E> {
    pub(crate) fn new(outcome: Result<T, E>, info: RecordInfo) -> Self {
        Self { outcome, info }
    }

    /// Returns the stored success or failure.
    #[expect(clippy::missing_errors_doc, reason = "the error is the stored failure")]
    pub fn outcome(&self) -> Result<&T, &E> {
        self.outcome.as_ref()
    }

    /// Returns the stored success or failure, by value.
    pub fn into_outcome(self) -> Result<T, E> {
        self.outcome
    }

    /// Returns all but the outcome.
    pub fn info(&self) -> &RecordInfo {
        &self.info
    }

    pub(crate) fn into_parts(self) -> (Result<T, E>, RecordInfo) {
        (self.outcome, self.info)
    }
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Finished<T, E> {
    /// Decodes an outcome as a manager with these options does.
    pub(crate) fn decode(info: RecordInfo, options: &ManagerOptions) -> Result<Self> {
        Self::decode_as(info, options.schema, &options.migrations)
    }

    /// Decodes an outcome that this process has stored.
    pub(crate) fn decode_own(info: RecordInfo) -> Result<Self> {
        let schema = info.schema();
        Self::decode_as(info, schema, &Migrations::default())
    }

    fn decode_as(info: RecordInfo, schema: u32, migrations: &Migrations) -> Result<Self> {
        let outcome = decode(&info, schema, migrations)?;
        let outcome =
            outcome.ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{} has no outcome", Named(&info))))?;
        Ok(Self { outcome, info })
    }
}

impl<T, E> fmt::Debug for Finished<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finished").field("info", &self.info).finish_non_exhaustive()
    }
}

/// A record in any state, with its outcome if there is one.
///
/// A [`Finished`] record always has an outcome, and converts into this.
#[derive(Clone)]
pub struct Record<T, E = Failure> {
    outcome: Option<Result<T, E>>,
    info: RecordInfo,
}

impl<T, E> Record<T, E> {
    /// Returns the state at the time of the read.
    pub fn status(&self) -> Status {
        self.info.status()
    }

    /// Returns the stored success or failure. Returns `None` if there is no outcome yet.
    pub fn outcome(&self) -> Option<Result<&T, &E>> {
        self.outcome.as_ref().map(Result::as_ref)
    }

    /// Returns the stored success or failure, by value. Returns `None` if there is no outcome yet.
    pub fn into_outcome(self) -> Option<Result<T, E>> {
        self.outcome
    }

    /// Returns all but the outcome.
    pub fn info(&self) -> &RecordInfo {
        &self.info
    }
}

impl<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned> Record<T, E> {
    pub(crate) fn decode(info: RecordInfo, options: &ManagerOptions) -> Result<Self> {
        Ok(Self { outcome: decode(&info, options.schema, &options.migrations)?, info })
    }
}

impl Record<Value, Value> {
    /// Returns a record with its outcome still encoded. Works for outcomes of any type.
    pub(crate) fn raw(info: RecordInfo) -> Self {
        let encoded = info.stored().outcome.clone();
        let outcome = encoded.map(|bytes| if info.status() == Status::Failed { Err(bytes) } else { Ok(bytes) });
        Self { outcome, info }
    }
}

impl<T, E> From<Finished<T, E>> for Record<T, E> {
    fn from(finished: Finished<T, E>) -> Self {
        let (outcome, info) = finished.into_parts();
        Self { outcome: Some(outcome), info }
    }
}

impl<T, E> fmt::Debug for Record<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("info", &self.info).finish_non_exhaustive()
    }
}

fn decode<T: Serialize + DeserializeOwned, E: Serialize + DeserializeOwned>(
    info: &RecordInfo,
    schema: u32,
    migrations: &Migrations,
) -> Result<Option<Result<T, E>>> {
    let stored = info.stored();
    let Some(bytes) = stored.outcome.as_ref() else { return Ok(None) };
    let (what, schemas) = (Named(info), (stored.schema, schema));
    match info.status() {
        Status::Succeeded => Ok(Some(Ok(migrations.decode(&what, Part::Success, schemas, bytes)?))),
        Status::Failed => Ok(Some(Err(migrations.decode(&what, Part::Failure, schemas, bytes)?))),
        Status::InProgress | Status::Released | Status::Interrupted => Ok(None),
    }
}

/// The name of an outcome in messages.
struct Named<'a>(&'a RecordInfo);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the outcome of key {} of {}", self.0.key(), self.0.manager())
    }
}
