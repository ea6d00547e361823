//! The records of new claims.

use super::Start;
use crate::types::clock::NEVER;
use crate::types::record::{Now, STARTED, Status, StoredRecord, THIS_FRAME};

pub(super) fn begun(start: &Start, now: &Now) -> StoredRecord {
    StoredRecord {
        state: Status::InProgress,
        by_key: start.by_key,
        bound: false,
        holds_progress: false,
        interruption: None,
        policy: start.policy,
        schema: start.schema,
        attempt: 1,
        interruptions: 0,
        attempts: None,
        generation: THIS_FRAME,
        effect_seed: now.effect_seed,
        revision: THIS_FRAME,
        token: THIS_FRAME,
        created_at: now.wall,
        updated_at: now.wall,
        updated: now.store,
        expires: NEVER,
        success_ttl: start.success_ttl,
        failure_ttl: start.failure_ttl,
        released_ttl: start.released_ttl,
        interrupted_ttl: start.interrupted_ttl,
        retry_pause: start.retry_pause,
        remember: start.remember,
        is_forgotten: false,
        is_undoable: false,
        fingerprint: start.fingerprint,
        context: start.context.clone(),
        recovery_point: STARTED.into(),
        checkpoint: None,
        outcome_len: 0,
        outcome: None,
    }
}

/// Returns a record that has no owner yet. Its token belongs to no claim.
pub(super) fn created(start: &Start, now: &Now) -> StoredRecord {
    let expires = now.store.saturating_add(start.released_ttl);
    StoredRecord { state: Status::Released, bound: true, attempt: 0, expires, retry_pause: 0, ..begun(start, now) }
}

/// Returns the record for the next attempt of the same generation. The values fixed at the start of the generation
/// stay.
pub(super) fn claimed_again(
    record: &StoredRecord,
    by_key: bool,
    schema: u32,
    retry_pause: u64,
    now: &Now,
) -> StoredRecord {
    let (status, interruption) = record.seen(now).unwrap_or((record.state, None));
    // An interruption that a caller has resolved is not counted.
    let was_interrupted = status == Status::Interrupted;
    StoredRecord {
        state: Status::InProgress,
        by_key,
        bound: record.bound || interruption.is_some(),
        holds_progress: record.holds_progress || was_interrupted,
        interruptions: record.interruptions.saturating_add(u32::from(was_interrupted)),
        attempts: Some(Box::new(record.attempts_before(now.wall, interruption.filter(|_| was_interrupted)))),
        interruption,
        schema,
        attempt: record.attempt.saturating_add(1),
        revision: THIS_FRAME,
        token: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        expires: NEVER,
        retry_pause,
        is_undoable: false,
        ..record.clone()
    }
}
