//! Records that were resolved, and can be interrupted again.

use super::{RecordInfo, StoredRecord};

impl StoredRecord {
    /// Returns true if a resolution has stored an outcome that no caller has been given yet.
    pub(crate) fn holds_outcome(&self) -> bool {
        self.is_undoable && self.state.is_finished()
    }
}

impl RecordInfo {
    /// Returns true if the record was resolved and can be made interrupted again by
    /// [`RawManager::undo`](crate::admin::RawManager::undo): no caller has claimed the key again or received its
    /// outcome.
    #[must_use]
    pub fn is_undoable(&self) -> bool {
        self.0.stored.is_undoable
    }
}
