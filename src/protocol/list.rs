//! Lists records in batches.

use std::sync::Arc;

#[cfg(feature = "http")]
use super::Scan;
use super::{Protocol, RecordId};
use crate::store::{Index, Load, Page, StoreKey};
use crate::types::error::Result;
use crate::types::key::Key;
use crate::types::record::RecordInfo;

/// The rest of a listing.
#[derive(Clone, Debug)]
pub(crate) struct ListRange {
    from: StoreKey,
    end: Option<StoreKey>,
    index: Index,
}

impl ListRange {
    /// Lists the records of one manager, or of all, whose keys begin with `prefix`.
    pub(crate) fn new(manager: Option<&str>, prefix: &[u8], unfinished: bool) -> Self {
        let from = manager.map_or_else(StoreKey::first_record, |manager| StoreKey::record(manager, prefix));
        let end = from.prefix_end();
        Self { from, end, index: if unfinished { Index::Unfinished } else { Index::All } }
    }

    fn rest(&self, next: Option<StoreKey>) -> Option<Self> {
        next.map(|from| Self { from, end: self.end.clone(), index: self.index })
    }

    /// Converts into a scan for a transaction.
    #[cfg(feature = "http")]
    pub(crate) fn into_scan(self) -> Scan {
        Scan::new(self.from, self.end, self.index == Index::Unfinished)
    }

    /// Lists the managers after this one, in name order.
    pub(crate) fn after(manager: &str) -> Option<Self> {
        let end = StoreKey::first_record().prefix_end();
        Some(Self { from: StoreKey::record(manager, &[]).prefix_end()?, end, index: Index::All })
    }
}

impl Protocol {
    /// Returns the records of the next `limit` keys, and the rest of the listing. A batch may have fewer records than
    /// keys, because a key may have lost its record.
    pub(crate) fn list(&self, range: &ListRange, limit: usize) -> Result<(Vec<RecordInfo>, Option<ListRange>)> {
        self.while_open(|| self.inspect_all(range, limit))
    }

    /// Returns records as [`list`](Self::list) does, for the operator of a store that may be closed, and has live
    /// claims.
    pub(crate) fn inspect_all(&self, range: &ListRange, limit: usize) -> Result<(Vec<RecordInfo>, Option<ListRange>)> {
        self.check_owned()?;
        let (now, page) = (self.store.now(), self.store.records(range.index, &range.from, range.end.as_ref(), limit)?);
        let Some(Page { records, newest, next }) = page else { return self.inspect_each(range, limit) };
        self.store.wait(newest)?;
        let (mut infos, mut manager): (Vec<RecordInfo>, Arc<str>) = (Vec::new(), "".into());
        for (at, stored) in records {
            let Some((name, key)) = at.split() else { continue };
            if *manager != *name {
                manager = name.into();
            }
            let Ok(key) = Key::from_bytes(key) else { continue };
            infos.extend(RecordInfo::new(self.store.id(), &manager, &key, &stored, &now));
        }
        Ok((infos, range.rest(next)))
    }

    /// Reads each record by its key.
    fn inspect_each(&self, range: &ListRange, limit: usize) -> Result<(Vec<RecordInfo>, Option<ListRange>)> {
        let (keys, next) = self.store.keys(range.index, &range.from, range.end.as_ref(), limit)?;
        let mut infos = Vec::new();
        for id in keys.into_iter().filter_map(RecordId::from_store) {
            infos.extend(self.inspect(&id, Load::WithoutOutcome)?);
        }
        Ok((infos, range.rest(next)))
    }

    /// Returns keys as [`list`](Self::list) does, without reading the records. Some keys may have no record.
    pub(crate) fn list_keys(&self, range: &ListRange, limit: usize) -> Result<(Vec<RecordId>, Option<ListRange>)> {
        let keys = || self.store.keys(range.index, &range.from, range.end.as_ref(), limit);
        let (keys, next) = self.while_open(keys)?;
        Ok((keys.into_iter().filter_map(RecordId::from_store).collect(), range.rest(next)))
    }
}
