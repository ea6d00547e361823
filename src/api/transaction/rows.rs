//! Ranges of rows inside a transaction.

use std::collections::btree_map::{BTreeMap, IntoIter};
use std::fmt;
use std::ops::RangeBounds;

use super::TransactionTable;
use crate::protocol::{Content, Load, RowRange, Scan, StoreKey};
use crate::types::error::Result;
use crate::types::value::Value;

impl<'tx> TransactionTable<'tx> {
    /// All rows, in the order of their keys: as they are committed, with what this transaction has written. A row that another
    /// commit changes in what was gone through, removes from it or adds to it, makes the closure run again.
    ///
    /// What is inserted while it goes on may be left out. Up to 256 rows are read ahead of those that are taken, and count as
    /// read.
    ///
    /// ```
    /// # use oncekey::{Engine, Error};
    /// # let engine = Engine::temporary()?;
    /// let seat = engine.atomic_phase(|tx| {
    ///     let seats = tx.table("seats")?;
    ///     if seats.prefix("show-1/").next().transpose()?.is_some() {
    ///         return Ok::<_, Error>(false); // taken: nobody else can have taken it meanwhile
    ///     }
    ///     seats.insert("show-1/ada", "x")?;
    ///     Ok(true)
    /// })?;
    /// assert!(seat);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn iter(&self) -> TransactionRows<'tx> {
        self.range::<&[u8]>(..)
    }

    /// The rows whose keys are in the range, in order; as [`iter`](Self::iter).
    #[must_use]
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> TransactionRows<'tx> {
        self.rows(RowRange::new(&self.shared_name(), &range))
    }

    /// The rows whose keys begin so, in order; as [`iter`](Self::iter).
    #[must_use]
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> TransactionRows<'tx> {
        self.rows(RowRange::prefix(&self.shared_name(), prefix.as_ref()))
    }

    /// How many rows there are. Goes through all of them.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn len(&self) -> Result<u64> {
        self.iter().try_fold(0, |count, row| row.map(|_| count + 1))
    }

    /// Whether there is no row.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn is_empty(&self) -> Result<bool> {
        self.iter().next().transpose().map(|first| first.is_none())
    }

    fn rows(self, range: RowRange) -> TransactionRows<'tx> {
        TransactionRows { table: self, scan: range.into_scan(), batch: BTreeMap::new().into_iter() }
    }
}

impl<'tx> IntoIterator for &TransactionTable<'tx> {
    type Item = Result<(Value, Value)>;
    type IntoIter = TransactionRows<'tx>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Rows of a [`TransactionTable`], one by one, as keys and values. After an error it ends.
pub struct TransactionRows<'tx> {
    table: TransactionTable<'tx>,
    scan: Scan,
    batch: IntoIter<StoreKey, Content>,
}

impl TransactionRows<'_> {
    fn read_on(&mut self) -> Result<bool> {
        let transaction = self.table.transaction;
        let read = transaction.protocol.scan_in(&mut transaction.workspace.borrow_mut(), &mut self.scan, Load::All);
        let read = transaction.noted(read)?;
        let is_more = read.is_some();
        self.batch = read.unwrap_or_default().into_iter();
        Ok(is_more)
    }
}

impl Iterator for TransactionRows<'_> {
    type Item = Result<(Value, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((at, content)) = self.batch.next() {
                // Since the batch was read, the closure may have written there.
                let newest = self.table.transaction.workspace.borrow().newest(&at, content);
                let row = newest.and_then(Content::into_row);
                let key = at.split().map(|(_, key)| Value::from(key));
                if let Some(row) = key.zip(row) {
                    return Some(Ok(row));
                }
                continue;
            }
            match self.read_on() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl fmt::Debug for TransactionRows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionRows").field("table", &self.table).finish_non_exhaustive()
    }
}
