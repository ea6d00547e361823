//! Scans of rows inside a transaction.

use std::collections::btree_map::{BTreeMap, IntoIter};
use std::fmt;
use std::ops::RangeBounds;

use super::TransactionTable;
use crate::protocol::{Content, Load, RowRange, Scan, StoreKey};
use crate::types::error::Result;
use crate::types::value::Value;

impl<'tx> TransactionTable<'tx> {
    /// Iterates over all rows in key order: committed rows and those that this transaction has written. If another
    /// commit changes, removes or adds a row in the part that was read, the closure runs again.
    ///
    /// Rows that the closure inserts during the iteration may be left out. Up to 256 rows are read ahead, and count as
    /// read.
    ///
    /// ```
    /// # use oncekey::{Engine, Error};
    /// # let engine = Engine::temporary()?;
    /// let seat = engine.atomic_phase(|tx| {
    ///     let seats = tx.table("seats")?;
    ///     if seats.prefix("show-1/").next().transpose()?.is_some() {
    ///         return Ok::<_, Error>(false); // the seat is taken
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

    /// Iterates over the rows with keys in `range`, in key order, as [`iter`](Self::iter) does.
    #[must_use]
    pub fn range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> TransactionRows<'tx> {
        self.rows(RowRange::new(&self.shared_name(), &range))
    }

    /// Iterates over the rows whose keys start with `prefix`, in key order, as [`iter`](Self::iter) does.
    #[must_use]
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> TransactionRows<'tx> {
        self.rows(RowRange::prefix(&self.shared_name(), prefix.as_ref()))
    }

    /// Returns the number of rows, by reading all of them.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn len(&self) -> Result<u64> {
        self.iter().try_fold(0, |count, row| row.map(|_| count + 1))
    }

    /// Returns true if the table has no row.
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

/// An iterator over the rows of a [`TransactionTable`], as keys and values. Ends after an error.
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
                // The closure may have written this key since the batch was read.
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
