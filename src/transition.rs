//! The rules: what an event makes of a record. Pure: no I/O, no clock, no lock.

use crate::clock::NEVER;
use crate::context::Context;
use crate::fingerprint::Fingerprint;
use crate::options::OnInterrupted;
use crate::record::{FINISHED, Image, Interruption, Now, STARTED, Status, THIS_FRAME};
use crate::value::Value;

/// What a generation is started with.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) by_key: bool,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) context: Context,
    pub(crate) policy: OnInterrupted,
    pub(crate) schema: u32,
    pub(crate) success_ttl: u64,
    pub(crate) failure_ttl: u64,
    pub(crate) unfinished_ttl: u64,
}

/// The four endings of a claim.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Succeed(Value),
    Fail(Value),
    Release,
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
    /// Ends the record, as a success that is encoded under this schema.
    pub(crate) success: Option<(Value, u32)>,
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
    },
    /// Somebody knows more about an operation that nobody owns.
    Patch(&'a Patch),
    /// A claim ends; its token is the fence.
    End {
        token: u64,
        ending: &'a Ending,
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
        matches!(self, Self::Patch(Patch { success: None, .. }))
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
    use Because::{Already, Elsewhere, EndedOtherwise, Finished, Mismatch, OwnedByClaim, Superseded, Unfit};
    use Decision::{Delete, Keep};
    use Status::{Failed, InProgress, Interrupted, Released, Succeeded};

    let seen = image.and_then(|image| image.seen(now).map(|(status, _)| (image, status)));
    let Some((record, status)) = seen else {
        return decide_absent(event, now);
    };
    match (status, event) {
        // A mismatch wins over everything else that a retry could be told: 422 before 409.
        (_, Event::Begin(start) | Event::Create(start))
            if record.fingerprint.is_some() && record.fingerprint != start.fingerprint =>
        {
            Keep(Mismatch)
        }
        (_, Event::Create(_)) => Keep(Already),
        (Succeeded | Failed, Event::Begin(_) | Event::Lock { .. }) => Keep(Finished),
        (InProgress, Event::Begin(_) | Event::Lock { .. }) => Keep(Because::InProgress),
        (Interrupted, Event::Begin(_) | Event::Lock { .. }) if record.policy == OnInterrupted::Hold => {
            Keep(Because::Interrupted)
        }
        (Interrupted | Released, Event::Begin(start)) => write(claimed_again(record, start.by_key, start.schema, now)),
        (Interrupted | Released, Event::Lock { schema }) => write(claimed_again(record, false, *schema, now)),

        (_, Event::End { token, .. }) if record.token != *token => Keep(Superseded(record.token)),
        (InProgress, Event::End { ending, .. }) => write(ended(record, ending, now)),
        (_, Event::End { ending, .. }) if is_already(record, status, ending) => Keep(Already),
        (Succeeded | Failed | Released | Interrupted, Event::End { .. }) => Keep(EndedOtherwise(status)),

        (_, Event::Stage { token, .. }) if record.token != *token => Keep(Superseded(record.token)),
        (InProgress, Event::Stage { point, .. }) if record.recovery_point != *point => Keep(Elsewhere),
        (InProgress, Event::Stage { step: Step::Stay, .. }) => Keep(Already),
        (InProgress, Event::Stage { step: Step::Advance { point, checkpoint }, .. }) => {
            write(advanced(record, point, checkpoint.as_ref(), now))
        }
        (InProgress, Event::Stage { step: Step::End(ending), .. }) => write(ended(record, ending, now)),
        (Succeeded | Failed | Released | Interrupted, Event::Stage { .. }) => Keep(EndedOtherwise(status)),

        (InProgress, Event::EndByKey { ending, schema }) if record.by_key => {
            write(Image { schema: *schema, ..ended(record, ending, now) })
        }
        (InProgress, Event::EndByKey { .. } | Event::Resolve { .. } | Event::Reopen) => Keep(OwnedByClaim),
        (Succeeded | Failed | Released | Interrupted, Event::EndByKey { .. }) => Keep(Unfit(status)),

        (Interrupted, Event::Resolve { ending, schema }) => {
            write(Image { schema: schema.unwrap_or(record.schema), ..ended(record, ending, now) })
        }
        (Succeeded | Failed | Released, Event::Resolve { .. }) => Keep(Unfit(status)),

        (Released | Interrupted, Event::Patch(patch)) => write(patched(record, patch, now)),
        (InProgress, Event::Patch(_)) => Keep(OwnedByClaim),
        (Succeeded | Failed, Event::Patch(_)) => Keep(Unfit(status)),

        (Succeeded | Failed, Event::Reopen) => Delete,
        (Released | Interrupted, Event::Reopen) => Keep(Unfit(status)),

        (InProgress, Event::Remove) if !record.by_key => Keep(OwnedByClaim),
        (_, Event::Remove) => Delete,

        (Succeeded | Failed, Event::Extend(ttl)) => extended(record, *ttl, now),
        (InProgress | Released | Interrupted, Event::Extend(_)) => Keep(Unfit(status)),

        (_, Event::Import(_)) => Keep(Unfit(status)),
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
        | Event::Stage { .. }
        | Event::EndByKey { .. }
        | Event::Resolve { .. }
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
        unfinished_ttl: start.unfinished_ttl,
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
    let expires = now.store.saturating_add(start.unfinished_ttl);
    Image { state: Status::Released, attempt: 0, expires, ..begun(start, now) }
}

/// The next attempt of the same generation: what was fixed at its start stays.
fn claimed_again(record: &Image, by_key: bool, schema: u32, now: &Now) -> Image {
    let (_, interruption) = record.seen(now).unwrap_or((record.state, None));
    Image {
        state: Status::InProgress,
        by_key,
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
        Ending::Release => (Status::Released, record.unfinished_ttl, seen),
        Ending::Interrupt(cause) => (Status::Interrupted, record.unfinished_ttl, Some(*cause)),
    };
    let outcome = match ending {
        Ending::Succeed(bytes) | Ending::Fail(bytes) => Some(bytes.clone()),
        Ending::Release | Ending::Interrupt(_) => None,
    };
    let mut image = Image {
        state,
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

/// Its TTL runs on from the time it got free.
fn patched(record: &Image, patch: &Patch, now: &Now) -> Image {
    if let Some((success, schema)) = &patch.success {
        return Image { schema: *schema, ..ended(record, &Ending::Succeed(success.clone()), now) };
    }
    // What the death of its process made of it is written down: an image in progress would have an owner again.
    let (state, interruption) = record.seen(now).unwrap_or((record.state, record.interruption));
    Image {
        state,
        interruption,
        revision: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        expires: record.expires_at(now),
        recovery_point: patch.recovery_point.clone().unwrap_or_else(|| record.recovery_point.clone()),
        checkpoint: patch.checkpoint.clone().or_else(|| record.checkpoint.clone()),
        ..record.clone()
    }
}

fn is_already(record: &Image, status: Status, ending: &Ending) -> bool {
    match ending {
        Ending::Succeed(bytes) => status == Status::Succeeded && record.outcome.as_ref() == Some(bytes),
        Ending::Fail(bytes) => status == Status::Failed && record.outcome.as_ref() == Some(bytes),
        Ending::Release => status == Status::Released,
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
        Status::InProgress | Status::Released | Status::Interrupted => image.unfinished_ttl,
    };
    Image {
        state,
        by_key: false,
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
mod tests {
    use super::*;

    const FIRST: u64 = 1 << 32;

    fn now(store: u64) -> Now {
        Now { store, wall: 1_000, first: FIRST, opened: 0 }
    }

    fn start(policy: OnInterrupted, fingerprint: Option<u8>) -> Start {
        Start {
            by_key: false,
            fingerprint: fingerprint.map(|byte| Fingerprint::from_bytes([byte; 32])),
            context: Context::new(),
            policy,
            schema: 0,
            success_ttl: 100,
            failure_ttl: 50,
            unfinished_ttl: NEVER,
        }
    }

    fn numbered(decision: Decision, number: u64) -> Image {
        let Decision::Write(mut image) = decision else { panic!("no write: {decision:?}") };
        for field in [&mut image.generation, &mut image.revision, &mut image.token] {
            if *field == THIS_FRAME {
                *field = number;
            }
        }
        *image
    }

    fn claimed(start: &Start) -> Image {
        numbered(decide(None, &Event::Begin(start), &now(0)), FIRST + 1)
    }

    fn end(image: &Image, ending: &Ending) -> Image {
        let event = Event::End { token: image.token, ending };
        numbered(decide(Some(image), &event, &now(10)), image.revision + 1)
    }

    /// One record in every state: live, live by key, owner dead, the four endings, and one that nobody has claimed.
    fn every_state(policy: OnInterrupted) -> Vec<(&'static str, Image)> {
        let live = claimed(&start(policy, None));
        let bytes = Value::from("x");
        vec![
            ("by key", Image { by_key: true, ..live.clone() }),
            ("dead", Image { token: 7, ..live.clone() }),
            ("succeeded", end(&live, &Ending::Succeed(bytes.clone()))),
            ("failed", end(&live, &Ending::Fail(bytes))),
            ("released", end(&live, &Ending::Release)),
            ("interrupted", end(&live, &Ending::Interrupt(Interruption::Dropped))),
            ("live", live),
            ("created", numbered(decide(None, &Event::Create(&start(policy, None)), &now(0)), FIRST + 1)),
        ]
    }

    #[test]
    fn mismatch_wins_over_every_state() {
        let with = start(OnInterrupted::Hold, Some(1));
        let live = claimed(&with);
        let states = [live.clone(), end(&live, &Ending::Release), end(&live, &Ending::Succeed("x".into()))];
        for image in states {
            for other in [start(OnInterrupted::Hold, Some(2)), start(OnInterrupted::Hold, None)] {
                let decision = decide(Some(&image), &Event::Begin(&other), &now(10));
                assert_eq!(decision, Decision::Keep(Because::Mismatch), "{:?}", image.state);
            }
        }
    }

    #[test]
    fn without_a_fingerprint_none_is_compared() {
        let image = claimed(&start(OnInterrupted::Hold, None));
        let decision = decide(Some(&image), &Event::Begin(&start(OnInterrupted::Hold, Some(9))), &now(10));
        assert_eq!(decision, Decision::Keep(Because::InProgress));
    }

    #[test]
    fn no_path_leads_out_of_a_finished_record_but_reopen_remove_and_time() {
        let ending = Ending::Succeed("other".into());
        let begin = start(OnInterrupted::Resume, None);
        for (name, image) in every_state(OnInterrupted::Resume) {
            if name != "succeeded" && name != "failed" {
                continue;
            }
            let events = [
                Event::Begin(&begin),
                Event::End { token: image.token, ending: &ending },
                Event::EndByKey { ending: &ending, schema: 0 },
                Event::Resolve { ending: &ending, schema: None },
                Event::Import(&image),
            ];
            for event in &events {
                assert!(matches!(decide(Some(&image), event, &now(10)), Decision::Keep(_)), "{name} {event:?}");
            }
            assert_eq!(decide(Some(&image), &Event::Reopen, &now(10)), Decision::Delete);
            assert_eq!(decide(Some(&image), &Event::Remove, &now(10)), Decision::Delete);
        }
    }

    #[test]
    fn expired_at_the_very_millisecond_for_every_event() {
        let image = end(&claimed(&start(OnInterrupted::Hold, None)), &Ending::Succeed("x".into()));
        assert_eq!(image.expires, 110);
        assert!(image.seen(&now(109)).is_some());
        assert!(image.seen(&now(110)).is_none());
        let begin = start(OnInterrupted::Hold, Some(3));
        assert!(matches!(
            decide(Some(&image), &Event::Begin(&begin), &now(109)),
            Decision::Keep(Because::Mismatch | Because::Finished)
        ));
        let fresh = numbered(decide(Some(&image), &Event::Begin(&begin), &now(110)), FIRST + 9);
        assert_eq!((fresh.generation, fresh.attempt), (FIRST + 9, 1));
    }

    #[test]
    fn a_claim_of_an_earlier_generation_never_ends_a_later_one() {
        let old = claimed(&start(OnInterrupted::Resume, None));
        let begin = start(OnInterrupted::Resume, None);
        let interrupted = end(&old, &Ending::Interrupt(Interruption::Dropped));
        let new = numbered(decide(Some(&interrupted), &Event::Begin(&begin), &now(20)), FIRST + 5);
        assert_eq!(new.interruption, Some(Interruption::Dropped));
        for ending in [Ending::Succeed("x".into()), Ending::Fail("x".into()), Ending::Release] {
            let decision = decide(Some(&new), &Event::End { token: old.token, ending: &ending }, &now(20));
            assert_eq!(decision, Decision::Keep(Because::Superseded(new.token)));
        }
    }

    #[test]
    fn every_state_answers_every_event() {
        // The expected answer of each pair: W writes, D deletes, K keeps.
        let expected = [
            // begin, create, lock, end, stage, by key, resolve, patch, reopen, remove, extend, import
            ("by key", "KKKWWWKKKDKK"),
            ("dead", "WKWKKKWWKDKK"),
            ("succeeded", "KKKKKKKKDDWK"),
            ("failed", "KKKKKKKKDDWK"),
            ("released", "WKWKKKKWKDKK"),
            ("interrupted", "WKWKKKWWKDKK"),
            ("live", "KKKWWKKKKKKK"),
            ("created", "WKWKKKKWKDKK"),
        ];
        let patch = Patch { recovery_point: Some("paid".to_owned()), ..Patch::default() };
        let begin = start(OnInterrupted::Resume, None);
        let ending = Ending::Fail("other".into());
        let step = Step::Advance { point: "on".to_owned(), checkpoint: None };
        for ((name, image), (_, row)) in every_state(OnInterrupted::Resume).iter().zip(expected) {
            let token = if matches!(*name, "dead" | "created") { 6 } else { image.token };
            let events = [
                Event::Begin(&begin),
                Event::Create(&begin),
                Event::Lock { schema: 0 },
                Event::End { token, ending: &ending },
                Event::Stage { token, point: &image.recovery_point, step: &step },
                Event::EndByKey { ending: &ending, schema: 0 },
                Event::Resolve { ending: &ending, schema: None },
                Event::Patch(&patch),
                Event::Reopen,
                Event::Remove,
                Event::Extend(1_000),
                Event::Import(image),
            ];
            let got: String = events
                .iter()
                .map(|event| match decide(Some(image), event, &now(10)) {
                    Decision::Write(_) => 'W',
                    Decision::Delete => 'D',
                    Decision::Keep(_) => 'K',
                })
                .collect();
            assert_eq!(got, row, "{name}");
        }
    }

    #[test]
    fn what_is_created_waits_for_its_first_claim() {
        let begin = Start { unfinished_ttl: 40, ..start(OnInterrupted::Resume, Some(1)) };
        let created = numbered(decide(None, &Event::Create(&begin), &now(0)), FIRST + 1);
        assert_eq!((created.state, created.attempt, created.expires), (Status::Released, 0, 40));
        let other = start(OnInterrupted::Resume, Some(2));
        assert_eq!(decide(Some(&created), &Event::Create(&begin), &now(39)), Decision::Keep(Because::Already));
        assert_eq!(decide(Some(&created), &Event::Create(&other), &now(39)), Decision::Keep(Because::Mismatch));
        let fresh = numbered(decide(Some(&created), &Event::Create(&other), &now(40)), FIRST + 2);
        assert_eq!((fresh.generation, fresh.fingerprint), (FIRST + 2, other.fingerprint), "it had expired");
        let claimed = numbered(decide(Some(&created), &Event::Lock { schema: 3 }, &now(39)), FIRST + 2);
        assert_eq!((claimed.attempt, claimed.schema, claimed.generation), (1, 3, FIRST + 1));
        assert_eq!((claimed.token, claimed.fingerprint), (FIRST + 2, begin.fingerprint));
        assert!(claimed.seen(&now(1_000)).is_some());
        for event in [Event::Lock { schema: 0 }, Event::Patch(&Patch::default())] {
            assert_eq!(decide(Some(&created), &event, &now(40)), Decision::Keep(Because::Absent));
            assert_eq!(decide(None, &event, &now(0)), Decision::Keep(Because::Absent));
        }
    }

    #[test]
    fn a_lock_holds_what_is_held() {
        let states = every_state(OnInterrupted::Hold);
        for name in ["dead", "interrupted"] {
            let (_, image) = states.iter().find(|(state, _)| *state == name).unwrap();
            let decision = decide(Some(image), &Event::Lock { schema: 0 }, &now(10));
            assert_eq!(decision, Decision::Keep(Because::Interrupted), "{name}");
        }
    }

    #[test]
    fn a_patch_changes_what_it_says_and_no_time() {
        let patch = Patch { recovery_point: Some("paid".to_owned()), ..Patch::default() };
        let begin = Start { unfinished_ttl: 40, ..start(OnInterrupted::Hold, Some(1)) };
        let released = end(&claimed(&begin), &Ending::Release);
        let paid = numbered(decide(Some(&released), &Event::Patch(&patch), &now(20)), FIRST + 3);
        let expected = Image {
            recovery_point: "paid".to_owned(),
            revision: FIRST + 3,
            updated: 20,
            updated_at: 1_000,
            ..released.clone()
        };
        assert_eq!(paid, expected);
        let noted = Patch { checkpoint: Some("ch_1".into()), ..Patch::default() };
        let noted = numbered(decide(Some(&paid), &Event::Patch(&noted), &now(20)), FIRST + 4);
        assert_eq!((&*noted.recovery_point, noted.checkpoint.as_deref()), ("paid", Some(&b"ch_1"[..])));

        // A dead one stays interrupted, and in no later open is it taken for one with an owner.
        let dead = Image { token: 7, ..claimed(&begin) };
        let patched = numbered(decide(Some(&dead), &Event::Patch(&patch), &now(20)), FIRST + 3);
        assert_eq!((patched.state, patched.interruption), (Status::Interrupted, Some(Interruption::ProcessEnded)));
        assert_eq!((patched.expires, patched.token), (40, 7));

        let success = Patch { success: Some(("ok".into(), 5)), ..Patch::default() };
        let done = numbered(decide(Some(&noted), &Event::Patch(&success), &now(20)), FIRST + 5);
        assert_eq!((done.state, &*done.recovery_point, done.schema), (Status::Succeeded, FINISHED, 5));
        assert_eq!((done.expires, done.checkpoint, done.outcome_len), (120, None, 2));
    }

    #[test]
    fn unfinished_ttl_spares_the_living_and_counts_from_the_open_for_the_dead() {
        let live = Image { unfinished_ttl: 5, ..claimed(&start(OnInterrupted::Hold, None)) };
        assert!(live.seen(&now(1_000_000)).is_some());
        let dead = Image { token: 3, ..live };
        let reopened = |store| Now { store, wall: 0, first: FIRST, opened: 500 };
        assert_eq!(dead.seen(&reopened(504)), Some((Status::Interrupted, Some(Interruption::ProcessEnded))));
        assert_eq!(dead.seen(&reopened(505)), None);
    }

    #[test]
    fn a_stage_is_fenced_by_token_and_recovery_point() {
        let live = claimed(&start(OnInterrupted::Hold, None));
        let advance = Step::Advance { point: "on".to_owned(), checkpoint: Some("kept".into()) };
        let stage = |image: &Image, token, point, step: &Step| {
            decide(Some(image), &Event::Stage { token, point, step }, &now(20))
        };
        let on = numbered(stage(&live, live.token, STARTED, &advance), FIRST + 2);
        assert_eq!((on.recovery_point.as_str(), on.checkpoint.as_deref()), ("on", Some(&b"kept"[..])));
        assert_eq!((on.state, on.token, on.revision), (Status::InProgress, live.token, FIRST + 2));
        for step in [Step::Stay, advance, Step::End(Ending::Succeed("x".into()))] {
            let token = live.token;
            assert_eq!(stage(&on, token, STARTED, &step), Decision::Keep(Because::Elsewhere));
            assert_eq!(stage(&on, token + 9, "on", &step), Decision::Keep(Because::Superseded(token)));
            assert_eq!(
                decide(None, &Event::Stage { token, point: "on", step: &step }, &now(20)),
                Decision::Keep(Because::Absent)
            );
        }
        assert_eq!(stage(&on, on.token, "on", &Step::Stay), Decision::Keep(Because::Already));
        let ended = numbered(stage(&on, on.token, "on", &Step::End(Ending::Fail("x".into()))), FIRST + 3);
        assert_eq!((ended.state, ended.recovery_point.as_str(), ended.expires), (Status::Failed, FINISHED, 70));
        assert_eq!(ended.checkpoint, None);
    }

    #[test]
    fn extend_never_shortens() {
        let image = end(&claimed(&start(OnInterrupted::Hold, None)), &Ending::Succeed("x".into()));
        assert_eq!(decide(Some(&image), &Event::Extend(1), &now(10)), Decision::Keep(Because::Already));
        assert_eq!(numbered(decide(Some(&image), &Event::Extend(500), &now(10)), 1).expires, 510);
        assert_eq!(numbered(decide(Some(&image), &Event::Extend(NEVER), &now(10)), 1).expires, NEVER);
    }
}
