//! Ranges read inside a transaction.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{Protocol, Workspace};
use crate::store::{Content, Index, Load, StoreKey};
use crate::types::error::Result;

/// Entries read at once, after the first few.
const BATCH: usize = 256;

/// What a scan of a transaction still has to go through.
#[derive(Debug)]
pub(crate) struct Scan {
    rest: Option<StoreKey>,
    end: Option<StoreKey>,
    /// Only records that may be unfinished.
    unfinished: bool,
    /// In the read set, from the first batch on.
    id: Option<usize>,
    batch: usize,
}

/// What was found under some keys, in their order.
pub(crate) type Found = BTreeMap<StoreKey, Content>;

impl Scan {
    /// From `from` on, which says of which table or manager, and before `end`.
    pub(crate) fn new(from: StoreKey, end: Option<StoreKey>, unfinished: bool) -> Self {
        let rest = end.as_ref().is_none_or(|end| from < *end).then_some(from);
        // A small first batch: a transaction that wants only the first row conflicts with no later one.
        Self { rest, end, unfinished, id: None, batch: 1 }
    }

    fn index<'a>(&self, from: &'a StoreKey) -> Index<'a> {
        match from.split() {
            Some((table, _)) if !from.is_record() => Index::Rows(table),
            _ if self.unfinished => Index::Unfinished,
            _ => Index::All,
        }
    }
}

impl Protocol {
    /// The next entries of a range, as of the same moment as everything else that the workspace has read, with what it has written;
    /// `None` behind the last.
    pub(crate) fn scan_in(&self, workspace: &mut Workspace, scan: &mut Scan, load: Load) -> Result<Option<Found>> {
        workspace.check()?;
        let Some(from) = scan.rest.take() else { return Ok(None) };
        let end = scan.end.as_ref();
        // Before it is read: a commit in between marks it. Then only as far as it was read.
        let id = match scan.id {
            Some(id) => id,
            None => workspace.reads.add_range(&from, end),
        };
        scan.id = Some(id);
        workspace.reads.end_range_at(id, end);
        let (keys, next) = self.store.keys(scan.index(&from), &from, end, scan.batch)?;
        let stop = next.as_ref().or(end);
        workspace.reads.end_range_at(id, stop);
        let mut found = Found::new();
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
