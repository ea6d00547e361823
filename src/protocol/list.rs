//! Lists records in batches.

#[cfg(feature = "http")]
use super::Scan;
use super::{Protocol, RecordId};
use crate::store::{Index, Load, StoreKey};
use crate::types::error::Result;
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
        let (ids, next) = self.list_keys(range, limit)?;
        let mut infos = Vec::new();
        for id in ids {
            infos.extend(self.get(&id, Load::WithoutOutcome)?);
        }
        Ok((infos, next))
    }

    /// Returns keys as [`list`](Self::list) does, without reading the records. Some keys may have no record.
    pub(crate) fn list_keys(&self, range: &ListRange, limit: usize) -> Result<(Vec<RecordId>, Option<ListRange>)> {
        self.check()?;
        let (keys, next) = self.store.keys(range.index, &range.from, range.end.as_ref(), limit)?;
        let next = next.map(|from| ListRange { from, end: range.end.clone(), index: range.index });
        Ok((keys.into_iter().filter_map(RecordId::from_store).collect(), next))
    }
}
