//! Changes of records inside transactions of the user, in sessions that the engine does not know.
//!
//! The change is a statement. The statement and its transaction fail unless the row still has the revision that was
//! read. The engine draws the next revision before the statement runs. So afterwards the row shows whether the
//! transaction was committed, even if the session was lost during the commit. While the transaction lasts, the row is
//! locked.

use std::fmt;
use std::sync::Arc;

use ::postgres::Transaction;
use tokio_postgres::Row;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::row::{self, Columns, Numbers, signed, unsigned};
use super::session::{Fault, get};
use super::sql::{Query, fence};
use super::{Inner, Store, commit};
use crate::store::StoreKey;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::record::{Now, Status, StoredRecord};

/// The value of a parameter, of a type that every client of PostgreSQL can send. `None` is `NULL`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SqlValue {
    /// A `text`.
    Text(String),
    /// A `bigint`.
    Integer(Option<i64>),
    /// A `boolean`.
    Boolean(bool),
    /// A `bytea`.
    Bytes(Option<Vec<u8>>),
}

impl SqlValue {
    /// Returns the value as a parameter for `postgres` and `tokio_postgres`.
    #[must_use]
    pub fn as_sql(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Text(value) => value,
            Self::Integer(value) => value,
            Self::Boolean(value) => value,
            Self::Bytes(value) => value,
        }
    }

    fn kind(&self) -> Type {
        match self {
            Self::Text(_) => Type::TEXT,
            Self::Integer(_) => Type::INT8,
            Self::Boolean(_) => Type::BOOL,
            Self::Bytes(_) => Type::BYTEA,
        }
    }
}

/// Prints the value as a literal of SQL.
impl fmt::Display for SqlValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(value) => write!(f, "'{}'", value.replace('\'', "''")),
            Self::Integer(Some(value)) => value.fmt(f),
            Self::Boolean(value) => value.fmt(f),
            Self::Bytes(Some(value)) => {
                f.write_str("decode('")?;
                value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str("', 'hex')")
            }
            Self::Integer(None) | Self::Bytes(None) => f.write_str("NULL"),
        }
    }
}

/// The reason why a transaction of the user is rolled back.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Another transaction was in the way: run it again.
    Again,
    Fault(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fault(error)
    }
}

impl Stop {
    /// Converts an error of the user's client, in a transaction that is not committed.
    pub(crate) fn new(cause: &tokio_postgres::Error) -> Self {
        let code = cause.as_db_error().map(|answer| answer.code().code());
        let (kind, why) = match code {
            Some("OK001") => (ErrorKind::ClaimLost, "the record has changed"),
            Some("OK002" | "3F000" | "42P01" | "42883") => {
                (ErrorKind::InvalidOptions, "the client is connected to another database than the engine")
            }
            Some("OK003") => (ErrorKind::InvalidOptions, "the closure has ended the transaction that it was given"),
            Some("25P02") => {
                (ErrorKind::InvalidOptions, "a statement of the closure has failed, and the closure returned no error")
            }
            Some("25006") => (ErrorKind::InvalidOptions, "the client's transactions are read only"),
            _ => {
                return match Fault::new(cause) {
                    Fault::Again => Self::Again,
                    Fault::Refused(error) => Self::Fault(error),
                    Fault::Lost(why) => {
                        let message = format!("the client has lost its connection: {why}");
                        Self::Fault(Error::new(ErrorKind::Unavailable, message))
                    }
                };
            }
        };
        let cause = cause.as_db_error().map_or_else(|| cause.to_string(), DbError::to_string);
        Self::Fault(Error::new(kind, format!("{why}: {cause}")))
    }
}

/// Returns true if an error of a commit leaves open whether the commit was made.
pub(crate) fn is_unknown(cause: &tokio_postgres::Error) -> bool {
    cause.as_db_error().is_none_or(|answer| answer.parsed_severity() != Some(Severity::Error))
}

/// A record at the beginning of a stage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fenced {
    pub(crate) stored: Option<Arc<StoredRecord>>,
    /// The number of the last stage of this key.
    before: i64,
    /// The transaction that has locked the row.
    transaction: Option<i64>,
}

impl Fenced {
    fn read(row: &Row) -> Result<Self, Fault> {
        if get::<Option<i64>>(row, 0)?.is_none() {
            return Err(Fault::Refused(another_store()));
        }
        // A removed record has a row too.
        let is_there = get::<i16>(row, 1)? != 0;
        let stored = || row::record(Numbers::read(row, 2)?, get(row, 7)?, get(row, 8)?, None);
        let stored = is_there.then(stored).transpose()?;
        Ok(Self { stored, before: get(row, 9)?, transaction: get(row, 10)? })
    }
}

fn another_store() -> Error {
    let message = "the client is connected to another database than the engine: the schema holds another store";
    Error::new(ErrorKind::InvalidOptions, message)
}

/// The decided change of a record, for a transaction of the user.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    key: StoreKey,
    text: Arc<str>,
    values: Vec<SqlValue>,
    /// The revision that the change gives the row, which is also the number of the stage.
    number: i64,
    /// The number of the last stage before this one.
    before: i64,
    /// The revision that the row must have.
    seen: i64,
    /// The record after the change. Its times are those of the decision until the statement has run.
    pub(crate) after: Arc<StoredRecord>,
}

impl Staged {
    /// Returns the statement, with `$1` and so on for the values.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn values(&self) -> &[SqlValue] {
        &self.values
    }

    /// Makes the change in the user's transaction.
    pub(crate) fn run_in(&mut self, user: &mut Transaction<'_>) -> Result<(), Stop> {
        let values: Vec<_> = self.values.iter().map(|value| (value.as_sql(), value.kind())).collect();
        let row = user.query_typed_one(&self.text, &values).map_err(|cause| Stop::new(&cause))?;
        let times = || Ok((get(&row, 0)?, get(&row, 1)?));
        let (updated, expires) = times().map_err(|fault: Fault| fault.unchanged())?;
        self.note(Numbers::changed(&self.after, self.number, updated, expires));
        Ok(())
    }

    fn note(&mut self, numbers: Numbers) {
        numbers.set(Arc::make_mut(&mut self.after));
    }
}

/// The findings about a transaction that may have been committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Committed,
    /// The transaction was not committed, and never will be.
    RolledBack,
    /// The record has changed so often since that it no longer shows this.
    Overtaken,
}

/// The parts of a decision that are not in the record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageTerms {
    /// True if a claim of this engine makes the change.
    pub(crate) is_owned: bool,
    pub(crate) keeps_expiry: bool,
    /// The store time from which the change is refused.
    pub(crate) until: u64,
}

impl Store {
    /// Locks the row of a record until the end of the user's transaction, and reads it.
    pub(crate) fn fence_in(&self, user: &mut Transaction<'_>, key: &StoreKey) -> Result<Fenced, Stop> {
        self.inner.check_writable()?;
        let Some((name, bytes)) = key.split() else { return Ok(Fenced::default()) };
        let id = Uuid::from_bytes(self.inner.id).to_string();
        let text = fence(&self.inner.schema, true);
        let row = user.query_typed_opt(&text, &[(&name, Type::TEXT), (&bytes, Type::BYTEA), (&id, Type::TEXT)]);
        if let Some(row) = row.map_err(|cause| Stop::new(&cause))? {
            return Fenced::read(&row).map_err(|fault| Stop::Fault(fault.unchanged()));
        }
        let is_here = format!("SELECT FROM {}.store WHERE id = $1::text::uuid", self.inner.schema);
        let row = user.query_typed_opt(&is_here, &[(&id, Type::TEXT)]).map_err(|cause| Stop::new(&cause))?;
        if row.is_none() { Err(Stop::Fault(another_store())) } else { Ok(Fenced::default()) }
    }

    /// Reads a record as [`fence_in`](Self::fence_in) does, in a session of the engine and without a lock.
    pub(crate) fn fence_here(&self, key: &StoreKey) -> Result<Fenced> {
        self.inner.check_writable()?;
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        let fenced = self.inner.answer(self.inner.deadline(true), async move { read_fence(&inner, &key).await });
        fenced.unwrap_or_else(|| Err(self.inner.unreachable()))
    }

    /// Draws the number of a stage. Returns it with the store time.
    pub(crate) fn draw(&self) -> Result<(u64, u64)> {
        self.inner.check_writable()?;
        let inner = Arc::clone(&self.inner);
        let drawn = self.inner.answer(self.inner.deadline(true), async move { draw(&inner).await });
        let (number, time) = drawn.unwrap_or_else(|| Err(self.inner.unreachable()))?;
        self.inner.time.saw(time);
        Ok((number, time))
    }

    /// Returns the change of a record to `after`, which was decided at `now` and has the number of the stage as its
    /// revision.
    pub(crate) fn stage(
        &self,
        key: &StoreKey,
        fenced: &Fenced,
        after: Arc<StoredRecord>,
        now: &Now,
        terms: StageTerms,
    ) -> Result<Staged> {
        let Some((name, bytes)) = key.split() else {
            return Err(Error::new(ErrorKind::Corrupt, "a key has no name"));
        };
        let (inner, columns) = (&self.inner, Columns::new(&after)?);
        let number = signed(after.revision);
        let seen = fenced.stored.as_ref().map_or(0, |stored| signed(stored.revision));
        let owner = if terms.is_owned { inner.keeper.last() } else { 0 };
        let values = vec![
            SqlValue::Text(Uuid::from_bytes(inner.id).to_string()),
            SqlValue::Text(name.to_owned()),
            SqlValue::Bytes(Some(bytes.to_vec())),
            SqlValue::Integer(Some(seen)),
            SqlValue::Integer(Some(number)),
            SqlValue::Integer(Some(owner.into())),
            SqlValue::Integer(fenced.transaction),
            SqlValue::Integer(Some(columns.state.into())),
            SqlValue::Integer(Some(signed(now.store))),
            SqlValue::Integer(Some(inner.slack())),
            SqlValue::Integer(row::time(terms.until)),
            SqlValue::Integer(Some(columns.updated)),
            SqlValue::Integer(columns.expires),
            SqlValue::Boolean(terms.keeps_expiry),
            SqlValue::Bytes(Some(columns.body)),
            SqlValue::Bytes(columns.outcome),
        ];
        let places: Vec<String> = (1..=values.len()).map(|place| format!("${place}")).collect();
        let text = format!("SELECT updated, expires FROM {}.stage({})", inner.schema, places.join(", "));
        Ok(Staged { key: key.clone(), text: text.into(), values, number, before: fenced.before, seen, after })
    }

    /// Finds out whether the transaction of the user was committed. If `is_over` is false, this waits for the end of
    /// the transaction, and makes sure that it cannot be committed later.
    pub(crate) fn settle(&self, staged: &mut Staged, is_over: bool) -> Result<Settled> {
        let inner = Arc::clone(&self.inner);
        let its = staged.clone();
        let settled = self.inner.answer(self.inner.deadline(true), async move { its.settle(&inner, is_over).await });
        let settled = settled.unwrap_or_else(|| Err(self.inner.unreachable()));
        let (settled, numbers) = settled.map_err(|error| commit::unsettled(&error))?;
        if let Some(numbers) = numbers {
            staged.note(numbers);
        }
        Ok(settled)
    }

    /// Counts a committed stage, and notifies the waiters of other engines if the record has no owner.
    pub(crate) fn staged(&self, staged: &Staged) {
        self.inner.commits.add(1);
        if staged.after.state != Status::InProgress {
            self.inner.notify_waiters(&staged.key);
        }
    }
}

async fn read_fence(inner: &Arc<Inner>, key: &StoreKey) -> Result<Fenced> {
    let Some((name, bytes)) = key.split() else { return Ok(Fenced::default()) };
    let id = Uuid::from_bytes(inner.id).to_string();
    let attempt = || async {
        let mut taken = inner.pool.take().await?;
        let row = taken.session.row(Query::Claimed, &[&name, &bytes, &id]).await?;
        inner.pool.give_back(taken);
        row.map_or_else(|| Ok(Fenced::default()), |row| Fenced::read(&row))
    };
    inner.retried(attempt).await
}

async fn draw(inner: &Arc<Inner>) -> Result<(u64, u64)> {
    let attempt = || async {
        inner.tick_if_manual().await?;
        let mut taken = inner.pool.take().await?;
        let row = taken.session.row(Query::Draw, &[]).await?;
        inner.pool.give_back(taken);
        let row = row.ok_or_else(|| Fault::Refused(another_store()))?;
        Ok((unsigned(get(&row, 0)?), unsigned(get(&row, 1)?)))
    };
    inner.retried(attempt).await
}

impl Staged {
    async fn settle(&self, inner: &Arc<Inner>, is_over: bool) -> Result<(Settled, Option<Numbers>)> {
        let change = super::random();
        loop {
            match self.look(inner, change, is_over).await {
                Ok(settled) => return Ok(settled),
                // The row is still locked: wait again.
                Err(Fault::Refused(error)) if error.kind() == ErrorKind::Busy => {}
                Err(fault) => inner.pause_after(fault).await?,
            }
        }
    }

    async fn look(&self, inner: &Inner, change: i64, is_over: bool) -> Result<(Settled, Option<Numbers>), Fault> {
        let Some((name, key)) = self.key.split() else { return Ok((Settled::Overtaken, None)) };
        let mut taken = inner.pool.take().await?;
        if !is_over {
            taken.session.rows(Query::Withdraw, &[&name, &key, &self.seen, &change]).await?;
        }
        let row = taken.session.row(Query::Staged, &[&name, &key]).await?;
        inner.pool.give_back(taken);
        let Some(row) = row else { return Ok((Settled::Overtaken, None)) };
        let numbers = Numbers::read(&row, 0)?;
        let (generation, last, by): (i64, i64, i64) = (get(&row, 0)?, get(&row, 5)?, get(&row, 6)?);
        if last == self.number {
            // The times are those of the stage unless the record has changed since.
            let is_last = signed(numbers.revision()) == self.number;
            return Ok((Settled::Committed, is_last.then_some(numbers)));
        }
        let is_unstaged = last == self.before && generation == signed(self.after.generation);
        let settled = if by == change || is_unstaged { Settled::RolledBack } else { Settled::Overtaken };
        Ok((settled, None))
    }
}
