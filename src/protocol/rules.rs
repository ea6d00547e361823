//! The rules: a pure function from a record, an action and a time to a decision. No I/O, no clock, no lock.

mod claimed;
mod imported;
mod resolved;
mod start;
mod step;

use std::borrow::Cow;
use std::sync::Arc;

use crate::types::clock::NEVER;
use crate::types::options::OnInterrupted;
use crate::types::record::{FINISHED, Interruption, Now, Status, StoredRecord, THIS_FRAME};
use crate::types::value::Value;
use claimed::{begun, claimed_again, created};
use imported::imported;
use resolved::{given, resolved, undone};
pub(crate) use start::{Resume, Start};
pub(crate) use step::{Ending, Patch, Step};

#[derive(Debug)]
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only requests are created, locked and patched"))]
pub(crate) enum Action<'a> {
    /// A caller asks to run the operation.
    Begin(&'a Start),
    /// A caller announces the operation. Another caller is to run it.
    Create(&'a Start),
    /// A caller asks to run an operation that was created or started before. Fingerprints are not compared.
    Lock {
        schema: u32,
        max_attempts: u32,
        retry_pause: u64,
    },
    /// A caller adds to the record of an operation without a live owner.
    Patch(&'a Patch),
    /// A claim ends. Fenced by its token.
    End {
        token: u64,
        ending: &'a Ending,
        /// The TTL of the outcome in milliseconds. `None` means the TTL in the record.
        ttl: Option<u64>,
    },
    /// A claim removes its record, as if the operation had never started. Fenced by its token.
    Discard {
        token: u64,
    },
    /// A work stage of a claim ends. Fenced by the claim's token and by the recovery point at which the stage began.
    Stage {
        token: u64,
        point: &'a str,
        step: &'a Step,
        /// As in `End`.
        ttl: Option<u64>,
    },
    /// The process ends a record that it began by key. Fenced by the token.
    EndByKey {
        token: u64,
        ending: &'a Ending,
        schema: u32,
    },
    /// A caller reports the result of an interrupted operation. Without a schema, the record keeps its own.
    Resolve {
        ending: &'a Ending,
        schema: Option<u32>,
        /// The revision that the caller has seen, if only that one may be resolved.
        seen: Option<u64>,
    },
    /// A caller takes back the result of an interrupted operation.
    Undo {
        /// The revision that the caller has seen, as in `Resolve`.
        seen: Option<u64>,
    },
    /// A caller is about to be given the outcome, which cannot be taken back after that.
    Give,
    /// An operator takes the record away from its live owner. Fenced by the owner's token.
    Revoke {
        token: u64,
        /// The revision that the caller has seen, as in `Resolve`.
        seen: Option<u64>,
    },
    Forget,
    Remove,
    /// Keeps a finished record for at least this many milliseconds from now.
    Extend(u64),
    /// Stores a record that another store exported.
    Import(&'a StoredRecord),
}

impl Action<'_> {
    /// True if the record keeps its time of expiry. Every other action computes a new one.
    pub(crate) fn keeps_expiry(&self) -> bool {
        matches!(self, Self::Patch(Patch { ending: None, .. }) | Self::Give)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Write this record. The commit replaces each number that is [`THIS_FRAME`].
    Write(Arc<StoredRecord>),
    Delete,
    /// Change nothing, for this reason.
    Keep(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The same claim has already ended the record in the same way.
    Already,
    Absent,
    Finished,
    /// The record has a live owner.
    InProgress,
    /// The record has a live owner, and only that owner may end it.
    OwnedByClaim,
    /// The record is held until a caller resolves it.
    Interrupted,
    /// The record was released, and its pause is not over.
    Paused,
    /// The record belongs to another request.
    Mismatch,
    /// The record has this token, and the caller has another one.
    Superseded(u64),
    /// The record is at another recovery point.
    Elsewhere,
    /// The record was ended in another way, and has this status.
    EndedOtherwise(Status),
    /// The action does not apply to this status.
    Unfit(Status),
    /// The record has expired, but its key is remembered.
    Expired,
    /// The record has another revision than the caller has seen.
    Changed,
}

/// Applies the rules: the first arm that matches decides.
#[expect(clippy::match_same_arms, reason = "a line for each rule")]
pub(crate) fn decide(stored: Option<&StoredRecord>, action: &Action<'_>, now: &Now) -> Decision {
    use Decision::{Delete, Keep};
    use Reason::{Already, Mismatch, OwnedByClaim, Superseded, Unfit};
    use Status::{Failed, InProgress, Interrupted, Released, Succeeded};

    let seen = stored.and_then(|stored| stored.seen(now).map(|(status, _)| (stored, status)));
    let Some((record, status)) = seen else {
        return decide_unseen(stored, action, now);
    };
    match (status, action) {
        // Nothing can have happened under the earlier request, so the new request starts its own generation.
        (Released, Action::Begin(start) | Action::Create(start)) if !record.bound && start.is_other_request(record) => {
            decide_absent(action, now)
        }
        // Checked before every other rule, so that a retry with another payload gets 422 and not 409.
        (_, Action::Begin(start) | Action::Create(start)) if start.differs(record) => Keep(Mismatch),
        (_, Action::Create(_)) => Keep(Already),
        (_, Action::Begin(_) | Action::Lock { .. }) => decide_claim(record, status, action, now),

        (
            _,
            Action::End { token, .. }
            | Action::Discard { token }
            | Action::Stage { token, .. }
            | Action::EndByKey { token, .. },
        ) => {
            if record.token == *token {
                decide_owned(record, status, action, now)
            } else {
                Keep(Superseded(record.token))
            }
        }

        (
            _,
            Action::Resolve { seen: Some(seen), .. }
            | Action::Revoke { seen: Some(seen), .. }
            | Action::Undo { seen: Some(seen) },
        ) if record.revision != *seen => Keep(Reason::Changed),
        (InProgress, Action::Resolve { .. } | Action::Forget | Action::Remove) => Keep(OwnedByClaim),
        (Succeeded | Failed | Released | Interrupted, Action::Revoke { .. }) => Keep(Unfit(status)),

        (Interrupted, Action::Resolve { ending, schema, .. }) => {
            write(resolved(record, ending, schema.unwrap_or(record.schema), now))
        }
        (Succeeded | Failed | Released, Action::Resolve { .. }) => Keep(Unfit(status)),

        (Succeeded | Failed | Released, Action::Undo { .. }) if record.is_undoable => write(undone(record, now)),
        (_, Action::Undo { .. }) => Keep(Unfit(status)),
        (Succeeded | Failed, Action::Give) if record.is_undoable => write(given(record)),
        (_, Action::Give) => Keep(Already),

        (Released | Interrupted, Action::Patch(patch)) => write(patched(record, patch, now)),
        (InProgress, Action::Patch(_)) => Keep(OwnedByClaim),
        (Succeeded | Failed, Action::Patch(_)) => Keep(Unfit(status)),

        (InProgress, Action::Revoke { token, .. }) if record.token == *token => write(revoked(record, now)),
        (InProgress, Action::Revoke { .. }) => Keep(Superseded(record.token)),
        (Succeeded | Failed, Action::Forget) => Delete,
        (Released | Interrupted, Action::Forget) => Keep(Unfit(status)),
        (_, Action::Remove) => Delete,
        (Succeeded | Failed, Action::Extend(ttl)) => extended(record, *ttl, now),
        (InProgress | Released | Interrupted, Action::Extend(_)) => Keep(Unfit(status)),

        (_, Action::Import(_)) => Keep(Unfit(status)),
    }
}

/// Applies the rules for a claim on an existing record of the same request.
fn decide_claim(record: &StoredRecord, status: Status, action: &Action<'_>, now: &Now) -> Decision {
    use Decision::Keep;
    use Reason::{Elsewhere, Finished, Unfit};
    use Status::{Failed, InProgress, Interrupted, Released, Succeeded};

    match (status, action) {
        (Succeeded | Failed, Action::Begin(_) | Action::Lock { .. }) => Keep(Finished),
        (InProgress, Action::Begin(_) | Action::Lock { .. }) => Keep(Reason::InProgress),
        (Interrupted, Action::Begin(_) | Action::Lock { .. }) if record.policy == OnInterrupted::Hold => {
            Keep(Reason::Interrupted)
        }
        (
            Interrupted,
            Action::Begin(Start { resume: Resume { max_attempts, .. }, .. }) | Action::Lock { max_attempts, .. },
        ) if record.interruptions.saturating_add(1) >= *max_attempts => Keep(Reason::Interrupted),
        (Released, Action::Begin(_) | Action::Lock { .. }) if now.store < record.paused_until() => Keep(Reason::Paused),
        (Interrupted | Released, Action::Begin(start)) if start.resume.only_from_start && !record.is_at_start() => {
            Keep(Elsewhere)
        }
        (Interrupted | Released, Action::Begin(start)) => {
            write(claimed_again(record, start.by_key, start.schema, start.retry_pause, now))
        }
        (Interrupted | Released, Action::Lock { schema, retry_pause, .. }) => {
            write(claimed_again(record, false, *schema, *retry_pause, now))
        }
        _ => Keep(Unfit(status)),
    }
}

/// Applies the rules for an action that names the record's own token.
fn decide_owned(record: &StoredRecord, status: Status, action: &Action<'_>, now: &Now) -> Decision {
    use Decision::{Delete, Keep};
    use Reason::{Already, Elsewhere, EndedOtherwise, OwnedByClaim, Unfit};
    use Status::InProgress;

    match (status, action) {
        (InProgress, Action::End { ending, ttl, .. }) => write(ended(&kept_for(record, ending, *ttl), ending, now)),
        // A claim's token is no fence for `end_by_key`: only its claim may end the record.
        (InProgress, Action::EndByKey { .. }) if !record.by_key => Keep(OwnedByClaim),
        (InProgress, Action::EndByKey { ending, schema, .. }) => {
            write(StoredRecord { schema: *schema, ..ended(record, ending, now) })
        }
        (_, Action::End { ending, .. } | Action::EndByKey { ending, .. }) if is_already(record, status, ending) => {
            Keep(Already)
        }
        (InProgress, Action::Discard { .. }) => Delete,
        (InProgress, Action::Stage { point, .. }) if record.recovery_point != *point => Keep(Elsewhere),
        (InProgress, Action::Stage { step: Step::Stay, .. }) => Keep(Already),
        (InProgress, Action::Stage { step: Step::Advance { point, checkpoint }, .. }) => {
            write(advanced(record, point, checkpoint.as_ref(), now))
        }
        (InProgress, Action::Stage { step: Step::End(ending), ttl, .. }) => {
            write(ended(&kept_for(record, ending, *ttl), ending, now))
        }
        (_, Action::End { .. } | Action::EndByKey { .. } | Action::Discard { .. } | Action::Stage { .. }) => {
            Keep(EndedOtherwise(status))
        }
        _ => Keep(Unfit(status)),
    }
}

/// Applies the rules for a key whose record is absent, or has expired but may be remembered.
fn decide_unseen(stored: Option<&StoredRecord>, action: &Action<'_>, now: &Now) -> Decision {
    let is_remembered = stored.is_some_and(|record| record.is_remembered(now));
    match action {
        Action::Begin(_) | Action::Create(_) | Action::Lock { .. } | Action::Import(_) if is_remembered => {
            Decision::Keep(Reason::Expired)
        }
        Action::Forget | Action::Remove if is_remembered => Decision::Delete,
        action => decide_absent(action, now),
    }
}

/// Applies the rules for a key that has never been used, or is no longer remembered.
fn decide_absent(action: &Action<'_>, now: &Now) -> Decision {
    match action {
        Action::Begin(start) => write(begun(start, now)),
        Action::Create(start) => write(created(start, now)),
        Action::Import(stored) => write(imported(stored, now)),
        Action::Lock { .. }
        | Action::Patch(_)
        | Action::End { .. }
        | Action::Discard { .. }
        | Action::Stage { .. }
        | Action::EndByKey { .. }
        | Action::Resolve { .. }
        | Action::Undo { .. }
        | Action::Give
        | Action::Revoke { .. }
        | Action::Forget
        | Action::Remove
        | Action::Extend(_) => Decision::Keep(Reason::Absent),
    }
}

fn write(stored: StoredRecord) -> Decision {
    Decision::Write(Arc::new(stored))
}

fn advanced(record: &StoredRecord, point: &str, checkpoint: Option<&Value>, now: &Now) -> StoredRecord {
    StoredRecord {
        bound: true,
        holds_progress: true,
        revision: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        recovery_point: point.to_owned().into(),
        checkpoint: checkpoint.cloned(),
        ..record.clone()
    }
}

/// Returns the record with the TTL of its claim for this outcome. An ending without an outcome leaves the TTLs alone,
/// because they apply to the next attempt.
fn kept_for<'a>(record: &'a StoredRecord, ending: &Ending, ttl: Option<u64>) -> Cow<'a, StoredRecord> {
    let mut record = Cow::Borrowed(record);
    match (ending, ttl) {
        (Ending::Succeed(_), Some(ttl)) => record.to_mut().success_ttl = ttl,
        (Ending::Fail(_), Some(ttl)) => record.to_mut().failure_ttl = ttl,
        _ => {}
    }
    record
}

fn ended(record: &StoredRecord, ending: &Ending, now: &Now) -> StoredRecord {
    let (_, seen) = record.seen(now).unwrap_or((record.state, None));
    let (state, interruption) = match ending {
        Ending::Succeed(_) => (Status::Succeeded, None),
        Ending::Fail(_) => (Status::Failed, None),
        Ending::Release | Ending::ReleaseUntouched | Ending::ReleaseTouched => (Status::Released, seen),
        Ending::Interrupt(cause) => (Status::Interrupted, Some(*cause)),
    };
    let outcome = match ending {
        Ending::Succeed(bytes) | Ending::Fail(bytes) => Some(bytes.clone()),
        _ => None,
    };
    let mut stored = StoredRecord {
        state,
        bound: record.bound || !matches!(ending, Ending::ReleaseUntouched),
        holds_progress: record.holds_progress || matches!(ending, Ending::ReleaseTouched),
        interruption,
        revision: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        outcome_len: outcome.as_ref().map_or(0, |bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
        is_undoable: false,
        ..record.clone()
    };
    if outcome.is_some() {
        stored.recovery_point = FINISHED.into();
        stored.checkpoint = None;
    }
    stored.outcome = outcome;
    stored.expires = now.store.saturating_add(ttl(&stored));
    stored
}

/// Returns how long a record without a live owner is kept, in milliseconds.
fn ttl(record: &StoredRecord) -> u64 {
    match record.state {
        Status::Succeeded => record.success_ttl,
        Status::Failed => record.failure_ttl,
        Status::Released => record.ttl_of_release(),
        Status::InProgress | Status::Interrupted => record.interrupted_ttl,
    }
}

/// Returns the interrupted record with a new token. The token belongs to no claim, so the old claim can no longer end
/// the record or write.
fn revoked(record: &StoredRecord, now: &Now) -> StoredRecord {
    StoredRecord { token: THIS_FRAME, ..ended(record, &Ending::Interrupt(Interruption::Revoked), now) }
}

/// Returns the changed record. The TTL still counts from the time when the record lost its owner. The TTL grows if the
/// patch adds progress that must be kept longer.
fn patched(record: &StoredRecord, patch: &Patch, now: &Now) -> StoredRecord {
    if let Some((ending, schema)) = &patch.ending {
        return StoredRecord { schema: *schema, ..ended(record, ending, now) };
    }
    // If the process of the record died, store the record as interrupted. A stored record in progress expires a time
    // after its last update, so the patch would move its expiry.
    let (state, interruption) = record.seen(now).unwrap_or((record.state, record.interruption));
    let mut patched = StoredRecord {
        state,
        bound: true,
        holds_progress: record.holds_progress || patch.recovery_point.is_some() || patch.checkpoint.is_some(),
        interruption,
        revision: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        expires: record.expires_at(now),
        // The pause keeps its end too.
        retry_pause: record.paused_until().saturating_sub(now.store),
        recovery_point: patch.recovery_point.clone().map_or_else(|| record.recovery_point.clone(), Cow::Owned),
        checkpoint: patch
            .checkpoint
            .clone()
            .or_else(|| record.checkpoint.clone().filter(|_| !patch.forgets_checkpoint)),
        is_undoable: false,
        ..record.clone()
    };
    if state == Status::Released && patched.expires != NEVER {
        let longer = patched.ttl_of_release().saturating_sub(record.ttl_of_release());
        patched.expires = patched.expires.saturating_add(longer);
    }
    patched
}

fn is_already(record: &StoredRecord, status: Status, ending: &Ending) -> bool {
    match ending {
        Ending::Succeed(bytes) => status == Status::Succeeded && record.outcome.as_ref() == Some(bytes),
        Ending::Fail(bytes) => status == Status::Failed && record.outcome.as_ref() == Some(bytes),
        Ending::Release | Ending::ReleaseUntouched | Ending::ReleaseTouched => status == Status::Released,
        Ending::Interrupt(_) => status == Status::Interrupted,
    }
}

fn extended(record: &StoredRecord, ttl: u64, now: &Now) -> Decision {
    let expires = now.store.saturating_add(ttl);
    if expires <= record.expires {
        return Decision::Keep(Reason::Already);
    }
    write(StoredRecord { expires, revision: THIS_FRAME, updated_at: now.wall, updated: now.store, ..record.clone() })
}

#[cfg(test)]
mod tests;
