//! The rules: what an event makes of a record. Pure: no I/O, no clock, no lock.

mod start;
mod step;

use std::borrow::Cow;

use crate::types::clock::NEVER;
use crate::types::options::OnInterrupted;
use crate::types::record::{FINISHED, Interruption, Now, STARTED, Status, StoredRecord, THIS_FRAME};
use crate::types::value::Value;
pub(crate) use start::{Resume, Start};
pub(crate) use step::{Ending, Patch, Step};

#[derive(Debug)]
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only requests are created, locked and patched"))]
pub(crate) enum Action<'a> {
    /// Somebody wants to run the operation.
    Begin(&'a Start),
    /// Somebody announces the operation, for others to run.
    Create(&'a Start),
    /// Somebody wants to run an operation that was announced or begun, whatever its request was.
    Lock {
        schema: u32,
        max_attempts: u32,
        retry_pause: u64,
    },
    /// Somebody knows more about an operation that nobody owns.
    Patch(&'a Patch),
    /// A claim ends; its token is the fence.
    End {
        token: u64,
        ending: &'a Ending,
        /// How long an outcome is kept, if its claim says so.
        ttl: Option<u64>,
    },
    /// A claim takes back that its operation was ever begun.
    Discard {
        token: u64,
    },
    /// A work stage of a claim ends, which began at this recovery point; token and point are the fence.
    Stage {
        token: u64,
        point: &'a str,
        step: &'a Step,
        /// As in `End`.
        ttl: Option<u64>,
    },
    /// The process ends a record that it began by key; the token is the fence.
    EndByKey {
        token: u64,
        ending: &'a Ending,
        schema: u32,
    },
    /// Somebody found out what became of an interrupted operation. Without a schema the record keeps its own.
    Resolve {
        ending: &'a Ending,
        schema: Option<u32>,
    },
    /// An operator takes the record away from its live owner, who has this token.
    Revoke {
        token: u64,
    },
    Forget,
    Remove,
    /// Keep a finished record at least this many milliseconds from now.
    Extend(u64),
    /// A record from another store.
    Import(&'a StoredRecord),
}

impl Action<'_> {
    /// Whether the time of a record that this changes runs on, instead of starting again.
    pub(crate) fn keeps_expiry(&self) -> bool {
        matches!(self, Self::Patch(Patch { ending: None, .. }))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The record becomes this; numbers that are [`THIS_FRAME`] are given at the commit.
    Write(Box<StoredRecord>),
    Delete,
    /// Nothing changes, because:
    Keep(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It is so already: the same ending by the same claim.
    Already,
    Absent,
    Finished,
    /// A live owner is at work.
    InProgress,
    /// A live claim owns it, and only it may end the record.
    OwnedByClaim,
    /// It is held until someone resolves it.
    Interrupted,
    /// It was released a short time ago.
    Paused,
    /// It belongs to another request.
    Mismatch,
    /// Another claim has this token.
    Superseded(u64),
    /// The claim is at another recovery point.
    Elsewhere,
    /// The claim was ended otherwise.
    EndedOtherwise(Status),
    /// The event does not apply to this status.
    Unfit(Status),
    /// The record has expired, and its key is remembered.
    Expired,
}

/// The whole of the rules, in the order of the events.
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
        // Nothing has happened under the request before, so this one starts a generation of its own.
        (Released, Action::Begin(start) | Action::Create(start)) if !record.bound && start.is_other_request(record) => {
            decide_absent(action, now)
        }
        // A mismatch wins over everything else that a retry could be told: 422 before 409.
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

        (InProgress, Action::Resolve { .. } | Action::Forget | Action::Remove) => Keep(OwnedByClaim),
        (Succeeded | Failed | Released | Interrupted, Action::Revoke { .. }) => Keep(Unfit(status)),

        (Interrupted, Action::Resolve { ending, schema }) => {
            // An operator who says that nothing happened wants it to run.
            let schema = schema.unwrap_or(record.schema);
            write(StoredRecord { schema, retry_pause: 0, ..ended(record, ending, now) })
        }
        (Succeeded | Failed | Released, Action::Resolve { .. }) => Keep(Unfit(status)),

        (Released | Interrupted, Action::Patch(patch)) => write(patched(record, patch, now)),
        (InProgress, Action::Patch(_)) => Keep(OwnedByClaim),
        (Succeeded | Failed, Action::Patch(_)) => Keep(Unfit(status)),

        (InProgress, Action::Revoke { token }) if record.token == *token => write(revoked(record, now)),
        (InProgress, Action::Revoke { .. }) => Keep(Superseded(record.token)),
        (Succeeded | Failed, Action::Forget) => Delete,
        (Released | Interrupted, Action::Forget) => Keep(Unfit(status)),
        (_, Action::Remove) => Delete,
        (Succeeded | Failed, Action::Extend(ttl)) => extended(record, *ttl, now),
        (InProgress | Released | Interrupted, Action::Extend(_)) => Keep(Unfit(status)),

        (_, Action::Import(_)) => Keep(Unfit(status)),
    }
}

/// The rules for a claim of a record of the same request.
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

/// The rules for an owner with the token of the record.
fn decide_owned(record: &StoredRecord, status: Status, action: &Action<'_>, now: &Now) -> Decision {
    use Decision::{Delete, Keep};
    use Reason::{Already, Elsewhere, EndedOtherwise, OwnedByClaim, Unfit};
    use Status::InProgress;

    match (status, action) {
        (InProgress, Action::End { ending, ttl, .. }) => write(ended(&kept_for(record, ending, *ttl), ending, now)),
        // The token of a claim is no token of an `initiate`.
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

/// The rules for a key without a record, or with one that has expired and may be remembered.
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

/// The rules for a key of which nothing is known.
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
        | Action::Revoke { .. }
        | Action::Forget
        | Action::Remove
        | Action::Extend(_) => Decision::Keep(Reason::Absent),
    }
}

fn write(stored: StoredRecord) -> Decision {
    Decision::Write(Box::new(stored))
}

fn begun(start: &Start, now: &Now) -> StoredRecord {
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
        fingerprint: start.fingerprint,
        context: start.context.clone(),
        recovery_point: STARTED.to_owned(),
        checkpoint: None,
        outcome_len: 0,
        outcome: None,
    }
}

/// A generation that nobody has claimed yet. Its token is nobody's, so it fences as if one had been released.
fn created(start: &Start, now: &Now) -> StoredRecord {
    let expires = now.store.saturating_add(start.released_ttl);
    StoredRecord { state: Status::Released, bound: true, attempt: 0, expires, retry_pause: 0, ..begun(start, now) }
}

/// The next attempt of the same generation: what was fixed at its start stays.
fn claimed_again(record: &StoredRecord, by_key: bool, schema: u32, retry_pause: u64, now: &Now) -> StoredRecord {
    let (status, interruption) = record.seen(now).unwrap_or((record.state, None));
    // An interruption that somebody has resolved is neither counted nor kept.
    let was_interrupted = status == Status::Interrupted;
    StoredRecord {
        state: Status::InProgress,
        by_key,
        bound: record.bound || interruption.is_some(),
        holds_progress: record.holds_progress || was_interrupted,
        interruptions: record.interruptions.saturating_add(u32::from(was_interrupted)),
        interruption,
        schema,
        attempt: record.attempt.saturating_add(1),
        revision: THIS_FRAME,
        token: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        expires: NEVER,
        retry_pause,
        ..record.clone()
    }
}

fn advanced(record: &StoredRecord, point: &str, checkpoint: Option<&Value>, now: &Now) -> StoredRecord {
    StoredRecord {
        bound: true,
        holds_progress: true,
        revision: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        recovery_point: point.to_owned(),
        checkpoint: checkpoint.cloned(),
        ..record.clone()
    }
}

/// The record, whose outcome is to be kept this long. An ending without an outcome leaves the times of the next attempt alone.
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
        ..record.clone()
    };
    if outcome.is_some() {
        FINISHED.clone_into(&mut stored.recovery_point);
        stored.checkpoint = None;
    }
    stored.outcome = outcome;
    stored.expires = now.store.saturating_add(ttl(&stored));
    stored
}

/// How long a record is kept that nobody owns.
fn ttl(record: &StoredRecord) -> u64 {
    match record.state {
        Status::Succeeded => record.success_ttl,
        Status::Failed => record.failure_ttl,
        Status::Released => record.ttl_of_release(),
        Status::InProgress | Status::Interrupted => record.interrupted_ttl,
    }
}

/// The new token is that of no claim, so the old claim can neither end the record nor write.
fn revoked(record: &StoredRecord, now: &Now) -> StoredRecord {
    StoredRecord { token: THIS_FRAME, ..ended(record, &Ending::Interrupt(Interruption::Revoked), now) }
}

/// Its TTL runs on from the time it got free, and is another one if only now it holds what must not be forgotten.
fn patched(record: &StoredRecord, patch: &Patch, now: &Now) -> StoredRecord {
    if let Some((ending, schema)) = &patch.ending {
        return StoredRecord { schema: *schema, ..ended(record, ending, now) };
    }
    // What the death of its process made of it is written down: a stored record in progress would have an owner again.
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
        // So does its pause.
        retry_pause: record.paused_until().saturating_sub(now.store),
        recovery_point: patch.recovery_point.clone().unwrap_or_else(|| record.recovery_point.clone()),
        checkpoint: patch
            .checkpoint
            .clone()
            .or_else(|| record.checkpoint.clone().filter(|_| !patch.forgets_checkpoint)),
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

/// A copy with numbers of this store, but with the effect ids that it had. What was in progress elsewhere has no owner here.
fn imported(stored: &StoredRecord, now: &Now) -> StoredRecord {
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
    // The clocks of two stores have nothing in common, so its time starts again: late, never early.
    imported.expires = now.store.saturating_add(ttl(&imported));
    imported
}

#[cfg(test)]
mod tests;
