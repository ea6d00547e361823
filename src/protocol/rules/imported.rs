//! Records from another store.

use super::{resolved, ttl};
use crate::types::record::{Interruption, Now, Status, StoredRecord, THIS_FRAME};

/// Returns a copy with numbers of this store and the effect ids of the old one. A record in progress has no owner here,
/// so it is interrupted.
pub(super) fn imported(stored: &StoredRecord, now: &Now) -> StoredRecord {
    let (state, interruption) = match stored.state {
        Status::InProgress => (Status::Interrupted, Some(Interruption::ProcessEnded)),
        state => (state, stored.interruption),
    };
    let mut imported = StoredRecord {
        state,
        by_key: false,
        bound: true,
        interruption,
        generation: THIS_FRAME,
        revision: THIS_FRAME,
        token: THIS_FRAME,
        updated: now.store,
        retry_pause: 0,
        ..stored.clone()
    };
    resolved::forget(&mut imported);
    // The times of two stores cannot be compared, so the TTL starts again. The record expires late, never early.
    imported.expires = now.store.saturating_add(ttl(&imported));
    imported
}
