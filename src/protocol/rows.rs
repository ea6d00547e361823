//! Rows of the user's tables: single rows, and scans in key order.

use std::ops::{Bound, RangeBounds};
use std::slice;

use super::{Protocol, Scan};
use crate::store::{Change, Content, Index, Load, Priority, StoreKey};
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::check_key;
use crate::types::value::Value;

/// The rest of a scan of rows.
#[derive(Clone, Debug)]
pub(crate) struct RowRange {
    from: StoreKey,
    end: Option<StoreKey>,
}

impl RowRange {
    pub(crate) fn new<K: AsRef<[u8]>>(table: &str, keys: &impl RangeBounds<K>) -> Self {
        let row = |key: &[u8]| StoreKey::row(table, key);
        let from = match keys.start_bound() {
            Bound::Included(key) => row(key.as_ref()),
            Bound::Excluded(key) => row(key.as_ref()).successor(),
            Bound::Unbounded => row(&[]),
        };
        let end = match keys.end_bound() {
            Bound::Included(key) => Some(row(key.as_ref()).successor()),
            Bound::Excluded(key) => Some(row(key.as_ref())),
            Bound::Unbounded => row(&[]).prefix_end(),
        };
        Self { from, end }
    }

    /// Selects the rows of all tables.
    pub(crate) fn all() -> Self {
        let from = StoreKey::first_row();
        let end = from.prefix_end();
        Self { from, end }
    }

    /// Selects the rows of the tables after this one.
    pub(crate) fn after(table: &str) -> Option<Self> {
        Some(Self { from: StoreKey::row(table, &[]).prefix_end()?, ..Self::all() })
    }

    /// Converts into a scan for a transaction.
    pub(crate) fn into_scan(self) -> Scan {
        Scan::new(self.from, self.end, false)
    }

    /// Selects the rows whose keys begin with `prefix`.
    pub(crate) fn prefix(table: &str, prefix: &[u8]) -> Self {
        let from = StoreKey::row(table, prefix);
        let end = from.prefix_end();
        Self { from, end }
    }
}

/// Keys and values.
type Rows = Vec<(Value, Value)>;

impl Protocol {
    /// Returns the store key of a row.
    pub(crate) fn row(table: &str, key: &[u8]) -> Result<StoreKey> {
        check_key(key)?;
        Ok(StoreKey::row(table, key))
    }

    /// Returns the change that sets a row, or deletes it if `value` is `None`.
    pub(crate) fn row_change(&self, table: &str, key: &[u8], value: Option<&[u8]>) -> Result<Change> {
        let at = Self::row(table, key)?;
        let len = value.map_or(0, <[u8]>::len);
        if len > self.max_value_bytes {
            let (key, limit) = (key.escape_ascii(), self.max_value_bytes);
            let message = format!("the value of {key} in table {table} is {len} bytes long, the limit is {limit}");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(Change { key: at, content: value.map(|value| Content::Row(Value::from(value))) })
    }

    /// Returns the current content of a row, after it is durable.
    pub(crate) fn get_row(&self, at: &StoreKey) -> Result<Option<Value>> {
        self.while_open(|| {
            let read = self.store.read(at, Load::All)?;
            self.store.wait(read.ticket)?;
            Ok(read.content.and_then(Content::into_row))
        })
    }

    /// Commits one row over any earlier content.
    pub(crate) fn put_row(&self, mut change: Change) -> Result<()> {
        self.check()?;
        self.yield_to(&change.key);
        loop {
            // A claim may write the row after a close, and this write must not come after that.
            let seen = self.store.version(&change.key)?;
            self.check()?;
            if let Some(committed) = self.store.commit(slice::from_mut(&mut change), seen.as_slice(), Priority::User)? {
                return self.store.wait(committed.ticket);
            }
        }
    }

    /// Returns the rows in the next `limit` keys, and the rest of the scan.
    pub(crate) fn rows(&self, range: &RowRange, limit: usize) -> Result<(Rows, Option<RowRange>)> {
        let (keys, next) = self.row_keys(range, limit)?;
        let (mut rows, mut newest) = (Vec::new(), None);
        for at in keys {
            let read = self.store.read(&at, Load::All)?;
            newest = newest.max(Some(read.ticket));
            let key = at.split().map(|(_, key)| Value::from(key));
            rows.extend(key.zip(read.content.and_then(Content::into_row)));
        }
        newest.map_or(Ok(()), |newest| self.store.wait(newest))?;
        // As `while_open` does: the listing of the keys has checked before these reads.
        self.check()?;
        Ok((rows, next))
    }

    /// Returns the names of the tables that have a row.
    pub(crate) fn table_names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        let mut range = Some(RowRange::all());
        while let Some(at) = range {
            let (keys, next) = self.row_keys(&at, 1)?;
            let Some(key) = keys.into_iter().next() else { break };
            // The row may have been deleted since its key was listed.
            let is_there = self.get_row(&key)?.is_some();
            range = match key.split() {
                Some((table, _)) if is_there => {
                    names.push(table.to_owned());
                    RowRange::after(table)
                }
                _ => next,
            };
        }
        Ok(names)
    }

    /// Returns keys as [`rows`](Self::rows) does, without reading the values. Some keys may have no row.
    pub(crate) fn row_keys(&self, range: &RowRange, limit: usize) -> Result<(Vec<StoreKey>, Option<RowRange>)> {
        let keys = || self.store.keys(Index::All, &range.from, range.end.as_ref(), limit);
        let (keys, next) = self.while_open(keys)?;
        Ok((keys, next.map(|from| RowRange { from, end: range.end.clone() })))
    }
}
