//! The part of an expired record that is kept to remember its key.

use super::{Now, StoredRecord};
use crate::types::context::Context;

/// Returns the store time until which a finished record or its key is kept.
pub(crate) fn kept_until(expires: u64, remember: u64, is_forgotten: bool) -> u64 {
    if is_forgotten { expires } else { expires.saturating_add(remember) }
}

impl StoredRecord {
    /// Returns true if the record has expired and its key is still remembered.
    pub(crate) fn is_remembered(&self, now: &Now) -> bool {
        let until = kept_until(self.expires, self.remember, self.is_forgotten);
        self.seen(now).is_none() && self.state.is_finished() && now.store < until
    }

    /// Returns the part of an expired record that is kept, if its key is remembered. The part contains nothing that a
    /// request or an operation has supplied.
    pub(crate) fn remembered(&self, now: &Now) -> Option<Self> {
        let is_over = !self.is_forgotten && self.is_remembered(now);
        is_over.then(|| Self {
            is_forgotten: true,
            is_undoable: false,
            attempts: None,
            expires: self.expires.saturating_add(self.remember),
            fingerprint: None,
            context: Context::new(),
            checkpoint: None,
            outcome_len: 0,
            outcome: None,
            ..self.clone()
        })
    }
}
