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

#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// Somebody wants to run the operation.
    Begin(&'a Start),
    /// A claim ends; its token is the fence.
    End {
        token: u64,
        ending: &'a Ending,
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
    /// The claim was ended otherwise.
    EndedOtherwise(Status),
    /// The event does not apply to this status.
    Unfit(Status),
}

/// The whole of the rules, in the order of the events.
#[expect(clippy::match_same_arms, reason = "a line for each rule")]
pub(crate) fn decide(image: Option<&Image>, event: &Event<'_>, now: &Now) -> Decision {
    use Because::{Absent, Already, EndedOtherwise, Finished, Mismatch, OwnedByClaim, Superseded, Unfit};
    use Decision::{Delete, Keep};
    use Status::{Failed, InProgress, Interrupted, Released, Succeeded};

    let seen = image.and_then(|image| image.seen(now).map(|(status, _)| (image, status)));
    let Some((record, status)) = seen else {
        return match event {
            Event::Begin(start) => write(begun(start, now)),
            Event::Import(image) => write(imported(image, now)),
            Event::End { .. }
            | Event::EndByKey { .. }
            | Event::Resolve { .. }
            | Event::Reopen
            | Event::Remove
            | Event::Extend(_) => Keep(Absent),
        };
    };
    match (status, event) {
        // A mismatch wins over everything else that a retry could be told: 422 before 409.
        (_, Event::Begin(start)) if record.fingerprint.is_some() && record.fingerprint != start.fingerprint => {
            Keep(Mismatch)
        }
        (Succeeded | Failed, Event::Begin(_)) => Keep(Finished),
        (InProgress, Event::Begin(_)) => Keep(Because::InProgress),
        (Interrupted, Event::Begin(_)) if record.policy == OnInterrupted::Hold => Keep(Because::Interrupted),
        (Interrupted | Released, Event::Begin(start)) => write(claimed_again(record, start, now)),

        (_, Event::End { token, .. }) if record.token != *token => Keep(Superseded(record.token)),
        (InProgress, Event::End { ending, .. }) => write(ended(record, ending, now)),
        (_, Event::End { ending, .. }) if is_already(record, status, ending) => Keep(Already),
        (Succeeded | Failed | Released | Interrupted, Event::End { .. }) => Keep(EndedOtherwise(status)),

        (InProgress, Event::EndByKey { ending, schema }) if record.by_key => {
            write(Image { schema: *schema, ..ended(record, ending, now) })
        }
        (InProgress, Event::EndByKey { .. } | Event::Resolve { .. } | Event::Reopen) => Keep(OwnedByClaim),
        (Succeeded | Failed | Released | Interrupted, Event::EndByKey { .. }) => Keep(Unfit(status)),

        (Interrupted, Event::Resolve { ending, schema }) => {
            write(Image { schema: schema.unwrap_or(record.schema), ..ended(record, ending, now) })
        }
        (Succeeded | Failed | Released, Event::Resolve { .. }) => Keep(Unfit(status)),

        (Succeeded | Failed, Event::Reopen) => Delete,
        (Released | Interrupted, Event::Reopen) => Keep(Unfit(status)),

        (InProgress, Event::Remove) if !record.by_key => Keep(OwnedByClaim),
        (_, Event::Remove) => Delete,

        (Succeeded | Failed, Event::Extend(ttl)) => extended(record, *ttl, now),
        (InProgress | Released | Interrupted, Event::Extend(_)) => Keep(Unfit(status)),

        (_, Event::Import(_)) => Keep(Unfit(status)),
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

/// The next attempt of the same generation: what was fixed at its start stays.
fn claimed_again(record: &Image, start: &Start, now: &Now) -> Image {
    let (_, interruption) = record.seen(now).unwrap_or((record.state, None));
    Image {
        state: Status::InProgress,
        by_key: start.by_key,
        interruption,
        schema: start.schema,
        attempt: record.attempt.saturating_add(1),
        revision: THIS_FRAME,
        token: THIS_FRAME,
        updated_at: now.wall,
        updated: now.store,
        expires: NEVER,
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

    /// One record in every state: live, live by key, owner dead, and the four endings.
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
            // begin, end, by key, resolve, reopen, remove, extend, import
            ("by key", "KWWKKDKK"),
            ("dead", "WKKWKDKK"),
            ("succeeded", "KKKKDDWK"),
            ("failed", "KKKKDDWK"),
            ("released", "WKKKKDKK"),
            ("interrupted", "WKKWKDKK"),
            ("live", "KWKKKKKK"),
        ];
        let begin = start(OnInterrupted::Resume, None);
        let ending = Ending::Fail("other".into());
        for ((name, image), (_, row)) in every_state(OnInterrupted::Resume).iter().zip(expected) {
            let token = if *name == "dead" { 6 } else { image.token };
            let events = [
                Event::Begin(&begin),
                Event::End { token, ending: &ending },
                Event::EndByKey { ending: &ending, schema: 0 },
                Event::Resolve { ending: &ending, schema: None },
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
    fn unfinished_ttl_spares_the_living_and_counts_from_the_open_for_the_dead() {
        let live = Image { unfinished_ttl: 5, ..claimed(&start(OnInterrupted::Hold, None)) };
        assert!(live.seen(&now(1_000_000)).is_some());
        let dead = Image { token: 3, ..live };
        let reopened = |store| Now { store, wall: 0, first: FIRST, opened: 500 };
        assert_eq!(dead.seen(&reopened(504)), Some((Status::Interrupted, Some(Interruption::ProcessEnded))));
        assert_eq!(dead.seen(&reopened(505)), None);
    }

    #[test]
    fn extend_never_shortens() {
        let image = end(&claimed(&start(OnInterrupted::Hold, None)), &Ending::Succeed("x".into()));
        assert_eq!(decide(Some(&image), &Event::Extend(1), &now(10)), Decision::Keep(Because::Already));
        assert_eq!(numbered(decide(Some(&image), &Event::Extend(500), &now(10)), 1).expires, 510);
        assert_eq!(numbered(decide(Some(&image), &Event::Extend(NEVER), &now(10)), 1).expires, NEVER);
    }
}
