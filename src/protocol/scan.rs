//! Scans of ranges inside a transaction.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{Protocol, Workspace};
use crate::store::{Content, Index, Load, StoreKey};
use crate::types::error::Result;

/// The largest number of entries read at once.
const BATCH: usize = 256;

/// The rest of a scan inside a transaction.
#[derive(Debug)]
pub(crate) struct Scan {
    rest: Option<StoreKey>,
    end: Option<StoreKey>,
    /// True if only unfinished records are read.
    unfinished: bool,
    /// The number of the range in the read set. Set by the first batch.
    id: Option<usize>,
    batch: usize,
}

/// Contents by key, in key order.
pub(crate) type Scanned = BTreeMap<StoreKey, Content>;

impl Scan {
    /// Creates a scan from `from` up to but without `end`. `from` also names the table or manager.
    pub(crate) fn new(from: StoreKey, end: Option<StoreKey>, unfinished: bool) -> Self {
        let rest = end.as_ref().is_none_or(|end| from < *end).then_some(from);
        // Start with a batch of one: a transaction that reads only the first row then conflicts with no change of later
        // rows.
        Self { rest, end, unfinished, id: None, batch: 1 }
    }

    fn index(&self) -> Index {
        if self.unfinished { Index::Unfinished } else { Index::All }
    }
}

impl Protocol {
    /// Reads the next entries of the scan. They are consistent with everything that the workspace has read, and include
    /// its own writes. Returns `None` at the end.
    pub(crate) fn scan_in(&self, workspace: &mut Workspace, scan: &mut Scan, load: Load) -> Result<Option<Scanned>> {
        workspace.check()?;
        let Some(from) = scan.rest.take() else { return Ok(None) };
        let end = scan.end.as_ref();
        // Add the range to the read set before reading it, so that a commit in between marks the set. Afterwards
        // shorten the range to the part that was read.
        let id = match scan.id {
            Some(id) => id,
            None => workspace.reads.add_range(&from, end),
        };
        scan.id = Some(id);
        workspace.reads.end_range_at(id, end);
        let (keys, next) = self.store.keys_in(&workspace.reads, scan.index(), &from, end, scan.batch)?;
        let stop = next.as_ref().or(end);
        workspace.reads.end_range_at(id, stop);
        let mut found = Scanned::new();
        for at in keys {
            let content = self.fetch_in(workspace, &at, load)?;
            found.extend(content.map(|content| (at, content)));
        }
        workspace.stale = !self.holds(workspace);
        workspace.check()?;
        let written = (Bound::Included(&from), stop.map_or(Bound::Unbounded, Bound::Excluded));
        for (at, content) in workspace.writes.range(written) {
            match content {
                Some(content) => found.insert(at.clone(), content.clone()),
                None => found.remove(at),
            };
        }
        scan.batch = scan.batch.saturating_mul(4).min(BATCH);
        scan.rest = next;
        Ok(Some(found))
    }
}
