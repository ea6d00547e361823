//! Records that were resolved, and can be interrupted again until a caller is given their outcome.

use super::{Ending, ended, ttl};
use crate::types::record::{FINISHED, Now, Status, StoredRecord, THIS_FRAME};
use crate::types::value::Value;

/// Returns an interrupted record with the ending that a caller reports.
pub(super) fn resolved(record: &StoredRecord, ending: &Ending, schema: u32, now: &Now) -> StoredRecord {
    let (_, interruption) = record.seen(now).unwrap_or((record.state, record.interruption));
    // An operator who releases the record wants the operation to run, so the pause ends too.
    let resolved = StoredRecord { schema, retry_pause: 0, ..ended(record, ending, now) };
    let values = [&record.checkpoint, &resolved.outcome].into_iter().flatten();
    if values.map(|value| value.len()).sum::<usize>() > Value::MAX_BYTES {
        // One record with both may be too large for a frame.
        return resolved;
    }
    let (recovery_point, checkpoint) = (record.recovery_point.clone(), record.checkpoint.clone());
    StoredRecord { is_undoable: true, interruption, recovery_point, checkpoint, ..resolved }
}

/// Returns the record as it was before it was resolved. Its TTL starts again.
pub(super) fn undone(record: &StoredRecord, now: &Now) -> StoredRecord {
    let mut undone = StoredRecord {
        state: Status::Interrupted,
        is_undoable: false,
        revision: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        outcome_len: 0,
        outcome: None,
        ..record.clone()
    };
    undone.expires = now.store.saturating_add(ttl(&undone));
    undone
}

/// Returns the record with the same outcome, which can no longer be undone.
pub(super) fn given(record: &StoredRecord) -> StoredRecord {
    let mut given = StoredRecord { revision: THIS_FRAME, ..record.clone() };
    forget(&mut given);
    given
}

/// Removes what is only kept for an undo.
pub(super) fn forget(record: &mut StoredRecord) {
    if record.holds_outcome() {
        (record.interruption, record.checkpoint) = (None, None);
        record.recovery_point = FINISHED.into();
    }
    record.is_undoable = false;
}
