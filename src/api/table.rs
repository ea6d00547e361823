//! Tables: the user's own data in the same store.

use std::collections::VecDeque;
use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;

use crate::protocol::{Protocol, RowRange};
use crate::types::error::Result;
use crate::types::key::check_name;
use crate::types::value::Value;

/// The number of rows that one batch reads.
const BATCH: usize = 256;

/// A named, ordered map from bytes to bytes, in the same store as the records. One commit can change both: see
/// [`Claim::work_stage`](crate::Claim::work_stage) and [`Engine::atomic_phase`](crate::Engine::atomic_phase).
///
/// Keys have 1 to [`Key::MAX_BYTES`](crate::Key::MAX_BYTES) bytes, values up to
/// [`max_value_bytes`](crate::EngineOptions::max_value_bytes). Rows do not expire. A table and a manager with the same
/// name are unrelated. Cheap to clone.
///
/// ```
/// # use oncekey::Engine;
/// # let engine = Engine::temporary()?;
/// let stock = engine.table("stock")?;
/// stock.insert("apple", "3")?;
/// assert_eq!(stock.get("apple")?.as_deref(), Some(&b"3"[..]));
/// for row in stock.prefix("a")? {
///     let (item, left) = row?;
///     println!("{item:?}: {left:?}");
/// }
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone)]
pub struct Table {
    protocol: Arc<Protocol>,
    name: Arc<str>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Table {
    pub(crate) fn new(protocol: Arc<Protocol>, name: &str) -> Result<Self> {
        check_name("table", name)?;
        Ok(Self { protocol, name: name.into() })
    }

    pub(crate) fn protocol(&self) -> &Arc<Protocol> {
        &self.protocol
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the value of a key.
    ///
    /// # Errors
    ///
    /// `InvalidKey`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.protocol.get_row(&Protocol::row(&self.name, key.as_ref())?)
    }

    /// Returns true if the key has a value.
    ///
    /// # Errors
    ///
    /// `InvalidKey`.
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.get(key).map(|value| value.is_some())
    }

    /// Sets the value of a key. To make the value depend on the current one, use
    /// [`Engine::atomic_phase`](crate::Engine::atomic_phase).
    ///
    /// # Errors
    ///
    /// `InvalidKey`; `TooLarge` over [`max_value_bytes`](crate::EngineOptions::max_value_bytes).
    pub fn insert(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.protocol.put_row(self.protocol.row_change(&self.name, key.as_ref(), Some(value.as_ref()))?)
    }

    /// Removes a key, if it has a value.
    ///
    /// # Errors
    ///
    /// `InvalidKey`.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.protocol.put_row(self.protocol.row_change(&self.name, key.as_ref(), None)?)
    }

    /// Iterates over all rows in key order. Rows are read in batches: this is not a snapshot.
    #[expect(clippy::iter_not_returning_iterator, reason = "a scan can fail before its first row")]
    pub fn iter(&self) -> Result<Rows> {
        self.range::<&[u8]>(..)
    }

    /// Iterates over the rows with keys in `range`, in key order. Yields no row if the start of the range is after its
    /// end.
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<Rows> {
        self.rows(RowRange::new(&self.name, &range))
    }

    /// Iterates over the rows whose keys start with `prefix`, in key order. An empty prefix means all rows.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Result<Rows> {
        self.rows(RowRange::prefix(&self.name, prefix.as_ref()))
    }

    /// Returns the number of rows, by reading all of them.
    pub fn len(&self) -> Result<u64> {
        let mut count = 0;
        for row in self.iter()? {
            row?;
            count += 1;
        }
        Ok(count)
    }

    /// Returns true if the table has no row.
    pub fn is_empty(&self) -> Result<bool> {
        self.iter()?.next().transpose().map(|first| first.is_none())
    }

    fn rows(&self, range: RowRange) -> Result<Rows> {
        self.protocol.check()?;
        Ok(Rows { table: self.clone(), rest: Some(range), batch: VecDeque::new() })
    }
}

/// An iterator over the rows of a [`Table`], as keys and values. Ends after an error.
pub struct Rows {
    table: Table,
    rest: Option<RowRange>,
    batch: VecDeque<(Value, Value)>,
}

impl Iterator for Rows {
    type Item = Result<(Value, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.batch.pop_front() {
                return Some(Ok(row));
            }
            match self.table.protocol.rows(&self.rest.take()?, BATCH) {
                Ok((rows, rest)) => {
                    self.batch = rows.into();
                    self.rest = rest;
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("table", &self.table).finish_non_exhaustive()
    }
}
