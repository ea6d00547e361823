//! The rules: what an event makes of a record. Pure: no I/O, no clock, no lock.

use crate::types::clock::NEVER;
use crate::types::context::Context;
use crate::types::fingerprint::Fingerprint;
use crate::types::options::OnInterrupted;
use crate::types::record::{FINISHED, Image, Interruption, Now, STARTED, Status, THIS_FRAME};
use crate::types::value::Value;

/// What a generation is started with.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) by_key: bool,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// What older rules give to the same request.
    pub(crate) accepted: Vec<Fingerprint>,
    pub(crate) context: Context,
    pub(crate) policy: OnInterrupted,
    pub(crate) schema: u32,
    pub(crate) success_ttl: u64,
    pub(crate) failure_ttl: u64,
    pub(crate) released_ttl: u64,
    pub(crate) interrupted_ttl: u64,
    pub(crate) resume: Resume,
    /// Whether a fingerprint does not match a record that has none.
    pub(crate) strict_fingerprint: bool,
}

/// Limits on going on with a record that has had an owner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resume {
    /// Claims of one generation after which an interrupted record is held under either policy.
    pub(crate) max_attempts: u32,
    /// The operation has no stages: a record on which one has committed is not its own.
    pub(crate) only_from_start: bool,
}

impl Default for Resume {
    fn default() -> Self {
        Self { max_attempts: u32::MAX, only_from_start: false }
    }
}

impl Start {
    /// Whether the record belongs to another request, as far as fingerprints tell.
    fn differs(&self, record: &Image) -> bool {
        (record.fingerprint.is_some() || self.strict_fingerprint) && self.is_other_request(record)
    }

    fn is_other_request(&self, record: &Image) -> bool {
        record.fingerprint.map_or(self.fingerprint.is_some(), |recorded| !self.accepts(recorded))
    }

    /// Whether a record with this fingerprint is of the same request.
    fn accepts(&self, recorded: Fingerprint) -> bool {
        self.fingerprint == Some(recorded) || self.accepted.contains(&recorded)
    }
}

#[cfg(test)]
impl Start {
    /// Of a claim that names nothing, and whose record stays for ever.
    pub(crate) fn plain(policy: OnInterrupted) -> Self {
        Self {
            by_key: false,
            fingerprint: None,
            accepted: Vec::new(),
            context: Context::new(),
            policy,
            schema: 0,
            success_ttl: NEVER,
            failure_ttl: NEVER,
            released_ttl: NEVER,
            interrupted_ttl: NEVER,
            resume: Resume::default(),
            strict_fingerprint: false,
        }
    }
}

/// The endings of a claim.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Succeed(Value),
    Fail(Value),
    /// Nothing has happened.
    Release,
    /// Nothing has happened, and nothing can have: this attempt asked for no effect id.
    ReleaseUntouched,
    Interrupt(Interruption),
}

/// What a work stage makes of its record.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Nothing.
    Stay,
    /// It has come this far.
    Advance {
        point: String,
        checkpoint: Option<Value>,
    },
    End(Ending),
}

/// What is set in a record that nobody owns; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patch {
    pub(crate) recovery_point: Option<String>,
    pub(crate) checkpoint: Option<Value>,
    /// Without a checkpoint of its own, the one that is there goes too.
    pub(crate) forgets_checkpoint: bool,
    /// Ends the record, with an outcome that is encoded under this schema.
    pub(crate) ending: Option<(Ending, u32)>,
}

#[derive(Debug)]
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only requests are created, locked and patched"))]
pub(crate) enum Event<'a> {
    /// Somebody wants to run the operation.
    Begin(&'a Start),
    /// Somebody announces the operation, for others to run.
    Create(&'a Start),
    /// Somebody wants to run an operation that was announced or begun, whatever its request was.
    Lock {
        schema: u32,
        max_attempts: u32,
    },
    /// Somebody knows more about an operation that nobody owns.
    Patch(&'a Patch),
    /// A claim ends; its token is the fence.
    End {
        token: u64,
        ending: &'a Ending,
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
    },
    /// The process ends a record that it began by key.
    EndByKey {
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
    Reopen,
    Remove,
    /// Keep a finished record at least this many milliseconds from now.
    Extend(u64),
    /// A record from another store.
    Import(&'a Image),
}

impl Event<'_> {
    /// Whether the time of a record that this changes runs on, instead of starting again.
    pub(crate) fn keeps_expiry(&self) -> bool {
        matches!(self, Self::Patch(Patch { ending: None, .. }))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The record becomes this; numbers that are [`THIS_FRAME`] are given at the commit.
    Write(Box<Image>),
    Delete,
    /// Nothing changes, because:
    Keep(Because),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Because {
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
}

/// The whole of the rules, in the order of the events.
#[expect(clippy::match_same_arms, reason = "a line for each rule")]
pub(crate) fn decide(image: Option<&Image>, event: &Event<'_>, now: &Now) -> Decision {
    use Because::{Already, Elsewhere, Finished, Mismatch, OwnedByClaim, Superseded, Unfit};
    use Decision::{Delete, Keep};
    use Status::{Failed, InProgress, Interrupted, Released, Succeeded};

    let seen = image.and_then(|image| image.seen(now).map(|(status, _)| (image, status)));
    let Some((record, status)) = seen else {
        return decide_absent(event, now);
    };
    match (status, event) {
        // Nothing has happened under the request before, so this one starts a generation of its own.
        (Released, Event::Begin(start) | Event::Create(start)) if !record.bound && start.is_other_request(record) => {
            decide_absent(event, now)
        }
        // A mismatch wins over everything else that a retry could be told: 422 before 409.
        (_, Event::Begin(start) | Event::Create(start)) if start.differs(record) => Keep(Mismatch),
        (_, Event::Create(_)) => Keep(Already),
        (Succeeded | Failed, Event::Begin(_) | Event::Lock { .. }) => Keep(Finished),
        (InProgress, Event::Begin(_) | Event::Lock { .. }) => Keep(Because::InProgress),
        (Interrupted, Event::Begin(_) | Event::Lock { .. }) if record.policy == OnInterrupted::Hold => {
            Keep(Because::Interrupted)
        }
        (
            Interrupted,
            Event::Begin(Start { resume: Resume { max_attempts, .. }, .. }) | Event::Lock { max_attempts, .. },
        ) if record.attempt >= *max_attempts => Keep(Because::Interrupted),
        (Interrupted | Released, Event::Begin(start)) if start.resume.only_from_start && !record.is_at_start() => {
            Keep(Elsewhere)
        }
        (Interrupted | Released, Event::Begin(start)) => write(claimed_again(record, start.by_key, start.schema, now)),
        (Interrupted | Released, Event::Lock { schema, .. }) => write(claimed_again(record, false, *schema, now)),

        (_, Event::End { token, .. } | Event::Discard { token } | Event::Stage { token, .. }) => {
            if record.token == *token {
                decide_owned(record, status, event, now)
            } else {
                Keep(Superseded(record.token))
            }
        }

        (InProgress, Event::EndByKey { ending, schema }) if record.by_key => {
            write(Image { schema: *schema, ..ended(record, ending, now) })
        }
        (InProgress, Event::EndByKey { .. } | Event::Resolve { .. } | Event::Reopen | Event::Remove) => {
            Keep(OwnedByClaim)
        }
        (Succeeded | Failed | Released | Interrupted, Event::EndByKey { .. } | Event::Revoke { .. }) => {
            Keep(Unfit(status))
        }

        (Interrupted, Event::Resolve { ending, schema }) => {
            write(Image { schema: schema.unwrap_or(record.schema), ..ended(record, ending, now) })
        }
        (Succeeded | Failed | Released, Event::Resolve { .. }) => Keep(Unfit(status)),

        (Released | Interrupted, Event::Patch(patch)) => write(patched(record, patch, now)),
        (InProgress, Event::Patch(_)) => Keep(OwnedByClaim),
        (Succeeded | Failed, Event::Patch(_)) => Keep(Unfit(status)),

        (InProgress, Event::Revoke { token }) if record.token == *token => write(revoked(record, now)),
        (InProgress, Event::Revoke { .. }) => Keep(Superseded(record.token)),
        (Succeeded | Failed, Event::Reopen) => Delete,
        (Released | Interrupted, Event::Reopen) => Keep(Unfit(status)),
        (_, Event::Remove) => Delete,
        (Succeeded | Failed, Event::Extend(ttl)) => extended(record, *ttl, now),
        (InProgress | Released | Interrupted, Event::Extend(_)) => Keep(Unfit(status)),

        (_, Event::Import(_)) => Keep(Unfit(status)),
    }
}

/// The rules for a claim with the token of the record.
fn decide_owned(record: &Image, status: Status, event: &Event<'_>, now: &Now) -> Decision {
    use Because::{Already, Elsewhere, EndedOtherwise, Unfit};
    use Decision::{Delete, Keep};
    use Status::InProgress;

    match (status, event) {
        (InProgress, Event::End { ending, .. }) => write(ended(record, ending, now)),
        (_, Event::End { ending, .. }) if is_already(record, status, ending) => Keep(Already),
        (InProgress, Event::Discard { .. }) => Delete,
        (InProgress, Event::Stage { point, .. }) if record.recovery_point != *point => Keep(Elsewhere),
        (InProgress, Event::Stage { step: Step::Stay, .. }) => Keep(Already),
        (InProgress, Event::Stage { step: Step::Advance { point, checkpoint }, .. }) => {
            write(advanced(record, point, checkpoint.as_ref(), now))
        }
        (InProgress, Event::Stage { step: Step::End(ending), .. }) => write(ended(record, ending, now)),
        (_, Event::End { .. } | Event::Discard { .. } | Event::Stage { .. }) => Keep(EndedOtherwise(status)),
        _ => Keep(Unfit(status)),
    }
}

/// The rules for a key without a record, or with one that has expired.
fn decide_absent(event: &Event<'_>, now: &Now) -> Decision {
    match event {
        Event::Begin(start) => write(begun(start, now)),
        Event::Create(start) => write(created(start, now)),
        Event::Import(image) => write(imported(image, now)),
        Event::Lock { .. }
        | Event::Patch(_)
        | Event::End { .. }
        | Event::Discard { .. }
        | Event::Stage { .. }
        | Event::EndByKey { .. }
        | Event::Resolve { .. }
        | Event::Revoke { .. }
        | Event::Reopen
        | Event::Remove
        | Event::Extend(_) => Decision::Keep(Because::Absent),
    }
}

fn write(image: Image) -> Decision {
    Decision::Write(Box::new(image))
}

fn begun(start: &Start, now: &Now) -> Image {
    Image {
        state: Status::InProgress,
        by_key: start.by_key,
        bound: false,
        interruption: None,
        policy: start.policy,
        schema: start.schema,
        attempt: 1,
        generation: THIS_FRAME,
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
        fingerprint: start.fingerprint,
        context: start.context.clone(),
        recovery_point: STARTED.to_owned(),
        checkpoint: None,
        outcome_len: 0,
        outcome: None,
    }
}

/// A generation that nobody has claimed yet. Its token is nobody's, so it fences as if one had been released.
fn created(start: &Start, now: &Now) -> Image {
    let expires = now.store.saturating_add(start.released_ttl);
    Image { state: Status::Released, bound: true, attempt: 0, expires, ..begun(start, now) }
}

/// The next attempt of the same generation: what was fixed at its start stays.
fn claimed_again(record: &Image, by_key: bool, schema: u32, now: &Now) -> Image {
    let (_, interruption) = record.seen(now).unwrap_or((record.state, None));
    Image {
        state: Status::InProgress,
        by_key,
        bound: record.bound || interruption.is_some(),
        interruption,
        schema,
        attempt: record.attempt.saturating_add(1),
        revision: THIS_FRAME,
        token: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        expires: NEVER,
        ..record.clone()
    }
}

fn advanced(record: &Image, point: &str, checkpoint: Option<&Value>, now: &Now) -> Image {
    Image {
        bound: true,
        revision: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        recovery_point: point.to_owned(),
        checkpoint: checkpoint.cloned(),
        ..record.clone()
    }
}

fn ended(record: &Image, ending: &Ending, now: &Now) -> Image {
    let (_, seen) = record.seen(now).unwrap_or((record.state, None));
    let (state, ttl, interruption) = match ending {
        Ending::Succeed(_) => (Status::Succeeded, record.success_ttl, None),
        Ending::Fail(_) => (Status::Failed, record.failure_ttl, None),
        Ending::Release | Ending::ReleaseUntouched => (Status::Released, record.released_ttl, seen),
        Ending::Interrupt(cause) => (Status::Interrupted, record.interrupted_ttl, Some(*cause)),
    };
    let outcome = match ending {
        Ending::Succeed(bytes) | Ending::Fail(bytes) => Some(bytes.clone()),
        Ending::Release | Ending::ReleaseUntouched | Ending::Interrupt(_) => None,
    };
    let mut image = Image {
        state,
        bound: record.bound || !matches!(ending, Ending::ReleaseUntouched),
        interruption,
        revision: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        expires: now.store.saturating_add(ttl),
        outcome_len: outcome.as_ref().map_or(0, |bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
        ..record.clone()
    };
    if outcome.is_some() {
        FINISHED.clone_into(&mut image.recovery_point);
        image.checkpoint = None;
    }
    image.outcome = outcome;
    image
}

/// The new token is that of no claim, so the old claim can neither end the record nor write.
fn revoked(record: &Image, now: &Now) -> Image {
    Image { token: THIS_FRAME, ..ended(record, &Ending::Interrupt(Interruption::Revoked), now) }
}

/// Its TTL runs on from the time it got free.
fn patched(record: &Image, patch: &Patch, now: &Now) -> Image {
    if let Some((ending, schema)) = &patch.ending {
        return Image { schema: *schema, ..ended(record, ending, now) };
    }
    // What the death of its process made of it is written down: an image in progress would have an owner again.
    let (state, interruption) = record.seen(now).unwrap_or((record.state, record.interruption));
    Image {
        state,
        bound: true,
        interruption,
        revision: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        expires: record.expires_at(now),
        recovery_point: patch.recovery_point.clone().unwrap_or_else(|| record.recovery_point.clone()),
        checkpoint: patch
            .checkpoint
            .clone()
            .or_else(|| record.checkpoint.clone().filter(|_| !patch.forgets_checkpoint)),
        ..record.clone()
    }
}

fn is_already(record: &Image, status: Status, ending: &Ending) -> bool {
    match ending {
        Ending::Succeed(bytes) => status == Status::Succeeded && record.outcome.as_ref() == Some(bytes),
        Ending::Fail(bytes) => status == Status::Failed && record.outcome.as_ref() == Some(bytes),
        Ending::Release | Ending::ReleaseUntouched => status == Status::Released,
        Ending::Interrupt(_) => status == Status::Interrupted,
    }
}

fn extended(record: &Image, ttl: u64, now: &Now) -> Decision {
    let expires = now.store.saturating_add(ttl);
    if expires <= record.expires {
        return Decision::Keep(Because::Already);
    }
    write(Image { expires, revision: THIS_FRAME, updated_at: now.wall, updated: now.store, ..record.clone() })
}

/// A copy with numbers of this store. What was in progress elsewhere has no owner here.
fn imported(image: &Image, now: &Now) -> Image {
    let (state, interruption) = match image.state {
        Status::InProgress => (Status::Interrupted, Some(Interruption::ProcessEnded)),
        state => (state, image.interruption),
    };
    let ttl = match state {
        Status::Succeeded => image.success_ttl,
        Status::Failed => image.failure_ttl,
        Status::Released => image.released_ttl,
        Status::InProgress | Status::Interrupted => image.interrupted_ttl,
    };
    Image {
        state,
        by_key: false,
        bound: true,
        interruption,
        generation: THIS_FRAME,
        revision: THIS_FRAME,
        token: THIS_FRAME,
        updated: now.store,
        // The clocks of two stores have nothing in common, so its time starts again: late, never early.
        expires: now.store.saturating_add(ttl),
        ..image.clone()
    }
}

#[cfg(test)]
mod tests;
