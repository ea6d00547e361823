//! Removes many records or rows as part of a transaction.

use super::{Changed, Protocol, RecordId, Workspace};
use crate::protocol::rules::{Action, Reason};
use crate::store::{Change, Content, StoreKey};
use crate::types::error::Result;

/// The result of removing many records.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Removed {
    pub(crate) removed: u64,
    /// The number of records left, because they have a live owner.
    pub(crate) owned: u64,
}

impl Protocol {
    /// Adds the removal of these records to a workspace. Records with a live owner stay.
    pub(crate) fn remove_in(&self, workspace: &mut Workspace, ids: &[RecordId]) -> Result<Removed> {
        let mut all = Removed::default();
        for id in ids {
            match self.change_in(workspace, id, &Action::Remove)? {
                Changed::Deleted => all.removed += 1,
                Changed::Kept(Reason::OwnedByClaim, _) => all.owned += 1,
                // The record was removed or has expired since it was listed.
                Changed::Kept(..) | Changed::Written(_) => {}
            }
        }
        Ok(all)
    }

    /// Adds the removal of these rows to a workspace. Returns how many of them existed.
    pub(crate) fn remove_rows_in(&self, workspace: &mut Workspace, rows: &[StoreKey]) -> Result<u64> {
        let mut count = 0;
        for at in rows {
            if self.read_in(workspace, at)?.and_then(Content::into_row).is_some() {
                workspace.write_row(Change { key: at.clone(), content: None })?;
                count += 1;
            }
        }
        Ok(count)
    }
}
