//! Examples of the rules. `properties` checks all pairs of a record and an action, and random walks.

mod properties;

use super::*;
use crate::types::fingerprint::Fingerprint;
use crate::types::record::{Attempts, EndedAttempt, STARTED};

const FIRST: u64 = 1 << 32;

fn now(store: u64) -> Now {
    Now { store, wall: 1_000, first: FIRST, opened: 0, effect_seed: [1; 16] }
}

fn start(policy: OnInterrupted, fingerprint: Option<u8>) -> Start {
    let fingerprint = fingerprint.map(|byte| Fingerprint::from_bytes([byte; 32]));
    Start { fingerprint, success_ttl: 100, failure_ttl: 50, ..Start::plain(policy) }
}

fn numbered(decision: Decision, number: u64) -> StoredRecord {
    let Decision::Write(stored) = decision else { panic!("no write: {decision:?}") };
    let mut stored = StoredRecord::clone(&stored);
    stored.set_number(number);
    stored
}

fn claimed(start: &Start) -> StoredRecord {
    numbered(decide(None, &Action::Begin(start), &now(0)), FIRST + 1)
}

fn end(stored: &StoredRecord, ending: &Ending) -> StoredRecord {
    let action = Action::End { token: stored.token, ending, ttl: None };
    numbered(decide(Some(stored), &action, &now(10)), stored.revision + 1)
}

/// One record in every state: live, live by key, owner dead, the four endings, and created without an owner.
fn every_state(policy: OnInterrupted) -> Vec<(&'static str, StoredRecord)> {
    let live = claimed(&start(policy, None));
    let bytes = Value::from("x");
    vec![
        ("by key", StoredRecord { by_key: true, ..live.clone() }),
        ("dead", StoredRecord { token: 7, ..live.clone() }),
        ("succeeded", end(&live, &Ending::Succeed(bytes.clone()))),
        ("failed", end(&live, &Ending::Fail(bytes))),
        ("released", end(&live, &Ending::Release)),
        ("interrupted", end(&live, &Ending::Interrupt(Interruption::Dropped))),
        ("live", live),
        ("created", numbered(decide(None, &Action::Create(&start(policy, None)), &now(0)), FIRST + 1)),
    ]
}

#[test]
fn mismatch_wins_over_every_state() {
    let with = start(OnInterrupted::Hold, Some(1));
    let live = claimed(&with);
    let states = [live.clone(), end(&live, &Ending::Release), end(&live, &Ending::Succeed("x".into()))];
    for stored in states {
        for other in [start(OnInterrupted::Hold, Some(2)), start(OnInterrupted::Hold, None)] {
            let decision = decide(Some(&stored), &Action::Begin(&other), &now(10));
            assert_eq!(decision, Decision::Keep(Reason::Mismatch), "{:?}", stored.state);
        }
    }
}

#[test]
fn a_fingerprint_of_an_accepted_older_rule_matches_and_stays() {
    let recorded = Fingerprint::from_bytes([1; 32]);
    for (_, stored) in every_state(OnInterrupted::Resume) {
        let stored = StoredRecord { fingerprint: Some(recorded), ..stored };
        let newer = Start { accepted: vec![recorded], ..start(OnInterrupted::Resume, Some(9)) };
        match decide(Some(&stored), &Action::Begin(&newer), &now(10)) {
            Decision::Keep(reason) => assert_ne!(reason, Reason::Mismatch),
            written => assert_eq!(numbered(written, stored.revision + 1).fingerprint, Some(recorded)),
        }
        assert!(!matches!(decide(Some(&stored), &Action::Create(&newer), &now(10)), Decision::Keep(Reason::Mismatch)));
        // A fingerprint of a third rule is not accepted.
        let other = Start { accepted: vec![Fingerprint::from_bytes([8; 32])], ..newer };
        assert_eq!(decide(Some(&stored), &Action::Begin(&other), &now(10)), Decision::Keep(Reason::Mismatch));
    }
}

#[test]
fn a_record_without_a_fingerprint_matches_every_request() {
    let stored = claimed(&start(OnInterrupted::Hold, None));
    let decision = decide(Some(&stored), &Action::Begin(&start(OnInterrupted::Hold, Some(9))), &now(10));
    assert_eq!(decision, Decision::Keep(Reason::InProgress));
}

#[test]
fn only_forget_remove_and_expiry_end_a_finished_record() {
    let ending = Ending::Succeed("other".into());
    let begin = start(OnInterrupted::Resume, None);
    for (name, stored) in every_state(OnInterrupted::Resume) {
        if name != "succeeded" && name != "failed" {
            continue;
        }
        let actions = [
            Action::Begin(&begin),
            Action::End { token: stored.token, ending: &ending, ttl: None },
            Action::EndByKey { token: stored.token, ending: &ending, schema: 0 },
            Action::Resolve { ending: &ending, schema: None, seen: None },
            Action::Import(&stored),
        ];
        for action in &actions {
            assert!(matches!(decide(Some(&stored), action, &now(10)), Decision::Keep(_)), "{name} {action:?}");
        }
        assert_eq!(decide(Some(&stored), &Action::Forget, &now(10)), Decision::Delete);
        assert_eq!(decide(Some(&stored), &Action::Remove, &now(10)), Decision::Delete);
    }
}

#[test]
fn a_record_is_absent_from_the_millisecond_of_its_expiry() {
    let stored = end(&claimed(&start(OnInterrupted::Hold, None)), &Ending::Succeed("x".into()));
    assert_eq!(stored.expires, 110);
    assert!(stored.seen(&now(109)).is_some());
    assert!(stored.seen(&now(110)).is_none());
    let begin = start(OnInterrupted::Hold, Some(3));
    assert!(matches!(
        decide(Some(&stored), &Action::Begin(&begin), &now(109)),
        Decision::Keep(Reason::Mismatch | Reason::Finished)
    ));
    let fresh = numbered(decide(Some(&stored), &Action::Begin(&begin), &now(110)), FIRST + 9);
    assert_eq!((fresh.generation, fresh.attempt), (FIRST + 9, 1));
}

#[test]
fn a_claim_of_an_earlier_generation_never_ends_a_later_one() {
    let old = claimed(&start(OnInterrupted::Resume, None));
    let begin = start(OnInterrupted::Resume, None);
    let interrupted = end(&old, &Ending::Interrupt(Interruption::Dropped));
    let new = numbered(decide(Some(&interrupted), &Action::Begin(&begin), &now(20)), FIRST + 5);
    assert_eq!(new.interruption, Some(Interruption::Dropped));
    for ending in [Ending::Succeed("x".into()), Ending::Fail("x".into()), Ending::Release] {
        let decision = decide(Some(&new), &Action::End { token: old.token, ending: &ending, ttl: None }, &now(20));
        assert_eq!(decision, Decision::Keep(Reason::Superseded(new.token)));
    }
}

#[test]
fn an_ending_by_key_is_fenced_by_the_token_of_its_initiate() {
    let begin = Start { by_key: true, ..start(OnInterrupted::Resume, None) };
    let old = claimed(&begin);
    let released = end(&old, &Ending::Release);
    let new = numbered(decide(Some(&released), &Action::Begin(&begin), &now(20)), FIRST + 5);
    for ending in [Ending::Succeed("x".into()), Ending::Fail("x".into()), Ending::Release] {
        let by_key = |token| Action::EndByKey { token, ending: &ending, schema: 0 };
        let superseded = Decision::Keep(Reason::Superseded(new.token));
        assert_eq!(decide(Some(&new), &by_key(old.token), &now(20)), superseded);
        let ended = numbered(decide(Some(&new), &by_key(new.token), &now(20)), FIRST + 6);
        assert_eq!(decide(Some(&ended), &by_key(new.token), &now(21)), Decision::Keep(Reason::Already));
        assert_eq!(decide(Some(&ended), &by_key(old.token), &now(21)), superseded);
        // The token of a claim ends nothing by key.
        let of_a_claim = claimed(&start(OnInterrupted::Resume, None));
        let decision = decide(Some(&of_a_claim), &by_key(of_a_claim.token), &now(20));
        assert_eq!(decision, Decision::Keep(Reason::OwnedByClaim));
    }
}

#[test]
fn each_status_and_action_has_the_expected_decision() {
    // The expected answer of each pair: W writes, D deletes, K keeps.
    let expected = [
        // begin, create, lock, end, stage, by key, resolve, patch, forget, remove, extend, import, revoke
        ("by key", "KKKWWWKKKKKKW"),
        ("dead", "WKWKKKWWKDKKK"),
        ("succeeded", "KKKKKKKKDDWKK"),
        ("failed", "KKKKKKKKDDWKK"),
        ("released", "WKWKKKKWKDKKK"),
        ("interrupted", "WKWKKKWWKDKKK"),
        ("live", "KKKWWKKKKKKKW"),
        ("created", "WKWKKKKWKDKKK"),
    ];
    let patch = Patch { recovery_point: Some("paid".to_owned()), ..Patch::default() };
    let begin = start(OnInterrupted::Resume, None);
    let ending = Ending::Fail("other".into());
    let step = Step::Advance { point: "on".to_owned(), checkpoint: None };
    for ((name, stored), (_, row)) in every_state(OnInterrupted::Resume).iter().zip(expected) {
        let token = if matches!(*name, "dead" | "created") { 6 } else { stored.token };
        let actions = [
            Action::Begin(&begin),
            Action::Create(&begin),
            Action::Lock { schema: 0, max_attempts: u32::MAX, retry_pause: 0 },
            Action::End { token, ending: &ending, ttl: None },
            Action::Stage { token, point: &stored.recovery_point, step: &step, ttl: None },
            Action::EndByKey { token, ending: &ending, schema: 0 },
            Action::Resolve { ending: &ending, schema: None, seen: None },
            Action::Patch(&patch),
            Action::Forget,
            Action::Remove,
            Action::Extend(1_000),
            Action::Import(stored),
            Action::Revoke { token, seen: None },
        ];
        let got: String = actions
            .iter()
            .map(|action| match decide(Some(stored), action, &now(10)) {
                Decision::Write(_) => 'W',
                Decision::Delete => 'D',
                Decision::Keep(_) => 'K',
            })
            .collect();
        assert_eq!(got, row, "{name}");
    }
}

#[test]
fn a_created_record_has_no_attempt_until_its_first_claim() {
    let begin = Start { released_ttl: 40, interrupted_ttl: 40, ..start(OnInterrupted::Resume, Some(1)) };
    let created = numbered(decide(None, &Action::Create(&begin), &now(0)), FIRST + 1);
    assert_eq!((created.state, created.attempt, created.expires), (Status::Released, 0, 40));
    let other = start(OnInterrupted::Resume, Some(2));
    assert_eq!(decide(Some(&created), &Action::Create(&begin), &now(39)), Decision::Keep(Reason::Already));
    assert_eq!(decide(Some(&created), &Action::Create(&other), &now(39)), Decision::Keep(Reason::Mismatch));
    let fresh = numbered(decide(Some(&created), &Action::Create(&other), &now(40)), FIRST + 2);
    assert_eq!((fresh.generation, fresh.fingerprint), (FIRST + 2, other.fingerprint), "it had expired");
    let claimed = numbered(
        decide(Some(&created), &Action::Lock { schema: 3, max_attempts: u32::MAX, retry_pause: 0 }, &now(39)),
        FIRST + 2,
    );
    assert_eq!((claimed.attempt, claimed.schema, claimed.generation), (1, 3, FIRST + 1));
    assert_eq!((claimed.token, claimed.fingerprint), (FIRST + 2, begin.fingerprint));
    assert!(claimed.seen(&now(1_000)).is_some());
    for action in [Action::Lock { schema: 0, max_attempts: u32::MAX, retry_pause: 0 }, Action::Patch(&Patch::default())]
    {
        assert_eq!(decide(Some(&created), &action, &now(40)), Decision::Keep(Reason::Absent));
        assert_eq!(decide(None, &action, &now(0)), Decision::Keep(Reason::Absent));
    }
}

#[test]
fn a_pause_starts_at_the_release_and_has_the_length_of_the_last_claim() {
    let begin = Start { retry_pause: 30, ..start(OnInterrupted::Resume, None) };
    let released = numbered(
        decide(
            Some(&claimed(&begin)),
            &Action::End { token: FIRST + 1, ending: &Ending::Release, ttl: None },
            &now(20),
        ),
        FIRST + 2,
    );
    let lock = Action::Lock { schema: 0, max_attempts: u32::MAX, retry_pause: 5 };
    for action in [Action::Begin(&begin), Action::Lock { schema: 0, max_attempts: u32::MAX, retry_pause: 5 }] {
        assert_eq!(decide(Some(&released), &action, &now(49)), Decision::Keep(Reason::Paused));
        assert!(matches!(decide(Some(&released), &action, &now(50)), Decision::Write(_)));
    }
    let again = numbered(decide(Some(&released), &lock, &now(50)), FIRST + 3);
    let end = Action::End { token: FIRST + 3, ending: &Ending::Release, ttl: None };
    assert_eq!(numbered(decide(Some(&again), &end, &now(60)), FIRST + 4).paused_until(), 65);
    // A caller may have read the time before the release. Without a pause, the answer does not ask it to wait.
    let at_once = numbered(
        decide(
            Some(&claimed(&start(OnInterrupted::Resume, None))),
            &Action::End { token: FIRST + 1, ending: &Ending::Release, ttl: None },
            &now(20),
        ),
        FIRST + 2,
    );
    assert!(matches!(decide(Some(&at_once), &Action::Begin(&begin), &now(19)), Decision::Write(_)));
    // The commit may be later than the decision.
    let mut late = released.clone();
    late.delay(7, false);
    assert_eq!(late.paused_until(), 57);
    let patched = numbered(decide(Some(&released), &Action::Patch(&Patch::default()), &now(40)), FIRST + 5);
    assert_eq!(patched.paused_until(), 50);
}

#[test]
fn a_lock_does_not_claim_a_held_record() {
    let states = every_state(OnInterrupted::Hold);
    for name in ["dead", "interrupted"] {
        let (_, stored) = states.iter().find(|(state, _)| *state == name).unwrap();
        let decision =
            decide(Some(stored), &Action::Lock { schema: 0, max_attempts: u32::MAX, retry_pause: 0 }, &now(10));
        assert_eq!(decision, Decision::Keep(Reason::Interrupted), "{name}");
    }
}

#[test]
fn a_patch_changes_only_its_fields_and_keeps_the_expiry() {
    let patch = Patch { recovery_point: Some("paid".to_owned()), ..Patch::default() };
    let begin = Start { released_ttl: 40, interrupted_ttl: 40, ..start(OnInterrupted::Hold, Some(1)) };
    let released = end(&claimed(&begin), &Ending::Release);
    let paid = numbered(decide(Some(&released), &Action::Patch(&patch), &now(20)), FIRST + 3);
    let expected = StoredRecord {
        recovery_point: "paid".into(),
        holds_progress: true,
        revision: FIRST + 3,
        updated: 20,
        updated_at: 1_000,
        ..released.clone()
    };
    assert_eq!(paid, expected);
    // The record holds progress now, so the TTL of an interruption applies, counted from the release.
    let longer = StoredRecord { interrupted_ttl: 100, ..released.clone() };
    let longer = numbered(decide(Some(&longer), &Action::Patch(&patch), &now(20)), FIRST + 3);
    assert_eq!((released.expires, longer.expires), (50, 110));
    let again = numbered(decide(Some(&longer), &Action::Patch(&patch), &now(30)), FIRST + 4);
    assert_eq!(again.expires, 110);
    let for_ever = StoredRecord { interrupted_ttl: NEVER, ..released.clone() };
    let for_ever = numbered(decide(Some(&for_ever), &Action::Patch(&patch), &now(20)), FIRST + 3);
    assert_eq!(for_ever.expires, NEVER);
    let noted = Patch { checkpoint: Some("ch_1".into()), ..Patch::default() };
    let noted = numbered(decide(Some(&paid), &Action::Patch(&noted), &now(20)), FIRST + 4);
    assert_eq!((&*noted.recovery_point, noted.checkpoint.as_deref()), ("paid", Some(&b"ch_1"[..])));

    // The record of a dead owner stays interrupted, in every later open too.
    let dead = StoredRecord { token: 7, ..claimed(&begin) };
    let patched = numbered(decide(Some(&dead), &Action::Patch(&patch), &now(20)), FIRST + 3);
    assert_eq!((patched.state, patched.interruption), (Status::Interrupted, Some(Interruption::ProcessEnded)));
    assert_eq!((patched.expires, patched.token), (40, 7));

    let success = Patch { ending: Some((Ending::Succeed("ok".into()), 5)), ..Patch::default() };
    let done = numbered(decide(Some(&noted), &Action::Patch(&success), &now(20)), FIRST + 5);
    assert_eq!((done.state, &*done.recovery_point, done.schema), (Status::Succeeded, FINISHED, 5));
    assert_eq!((done.expires, done.checkpoint, done.outcome_len), (120, None, 2));
}

#[test]
fn interrupted_ttl_does_not_apply_to_live_owners_and_starts_at_the_open_for_dead_ones() {
    let live = StoredRecord { interrupted_ttl: 5, ..claimed(&start(OnInterrupted::Hold, None)) };
    assert!(live.seen(&now(1_000_000)).is_some());
    let dead = StoredRecord { token: 3, ..live };
    let reopened = |store| Now { store, wall: 0, first: FIRST, opened: 500, effect_seed: [1; 16] };
    assert_eq!(dead.seen(&reopened(504)), Some((Status::Interrupted, Some(Interruption::ProcessEnded))));
    assert_eq!(dead.seen(&reopened(505)), None);
}

#[test]
fn a_stage_is_fenced_by_token_and_recovery_point() {
    let live = claimed(&start(OnInterrupted::Hold, None));
    let advance = Step::Advance { point: "on".to_owned(), checkpoint: Some("kept".into()) };
    let stage = |stored: &StoredRecord, token, point, step: &Step| {
        decide(Some(stored), &Action::Stage { token, point, step, ttl: None }, &now(20))
    };
    let on = numbered(stage(&live, live.token, STARTED, &advance), FIRST + 2);
    assert_eq!((&*on.recovery_point, on.checkpoint.as_deref()), ("on", Some(&b"kept"[..])));
    assert_eq!((on.state, on.token, on.revision), (Status::InProgress, live.token, FIRST + 2));
    for step in [Step::Stay, advance, Step::End(Ending::Succeed("x".into()))] {
        let token = live.token;
        assert_eq!(stage(&on, token, STARTED, &step), Decision::Keep(Reason::Elsewhere));
        assert_eq!(stage(&on, token + 9, "on", &step), Decision::Keep(Reason::Superseded(token)));
        assert_eq!(
            decide(None, &Action::Stage { token, point: "on", step: &step, ttl: None }, &now(20)),
            Decision::Keep(Reason::Absent)
        );
    }
    assert_eq!(stage(&on, on.token, "on", &Step::Stay), Decision::Keep(Reason::Already));
    let ended = numbered(stage(&on, on.token, "on", &Step::End(Ending::Fail("x".into()))), FIRST + 3);
    assert_eq!((ended.state, &*ended.recovery_point, ended.expires), (Status::Failed, FINISHED, 70));
    assert_eq!(ended.checkpoint, None);
}

#[test]
fn extend_never_shortens() {
    let stored = end(&claimed(&start(OnInterrupted::Hold, None)), &Ending::Succeed("x".into()));
    assert_eq!(decide(Some(&stored), &Action::Extend(1), &now(10)), Decision::Keep(Reason::Already));
    assert_eq!(numbered(decide(Some(&stored), &Action::Extend(500), &now(10)), 1).expires, 510);
    assert_eq!(numbered(decide(Some(&stored), &Action::Extend(NEVER), &now(10)), 1).expires, NEVER);
}

#[test]
fn a_released_record_is_bound_to_its_fingerprint_once_an_effect_is_possible() {
    let (first, other) = (start(OnInterrupted::Hold, Some(1)), start(OnInterrupted::Hold, Some(2)));
    let live = claimed(&first);
    let stage = Step::Advance { point: "paid".to_owned(), checkpoint: None };
    let staged = Action::Stage { token: live.token, point: STARTED, step: &stage, ttl: None };
    let staged = numbered(decide(Some(&live), &staged, &now(5)), FIRST + 2);
    let interrupted = end(&live, &Ending::Interrupt(Interruption::Dropped));
    let resolved = Action::Resolve { ending: &Ending::ReleaseUntouched, schema: None, seen: None };
    let bound = [
        end(&live, &Ending::Release),
        end(&staged, &Ending::ReleaseUntouched),
        numbered(decide(Some(&interrupted), &resolved, &now(10)), FIRST + 3),
        numbered(decide(None, &Action::Create(&first), &now(0)), FIRST + 1),
    ];
    for stored in bound {
        assert_eq!(
            decide(Some(&stored), &Action::Begin(&other), &now(20)),
            Decision::Keep(Reason::Mismatch),
            "{stored:?}"
        );
    }
    let untouched = end(&live, &Ending::ReleaseUntouched);
    let fresh = numbered(decide(Some(&untouched), &Action::Begin(&other), &now(20)), FIRST + 5);
    assert_eq!((fresh.generation, fresh.attempt, fresh.fingerprint), (FIRST + 5, 1, other.fingerprint));
    let again = numbered(decide(Some(&untouched), &Action::Begin(&first), &now(20)), FIRST + 5);
    assert_eq!((again.generation, again.attempt), (live.generation, 2));
    // A later attempt keeps the record bound, although the first one was released untouched.
    let touched = numbered(decide(Some(&end(&again, &Ending::Release)), &Action::Begin(&first), &now(30)), FIRST + 7);
    let released = end(&touched, &Ending::ReleaseUntouched);
    assert_eq!(decide(Some(&released), &Action::Begin(&other), &now(40)), Decision::Keep(Reason::Mismatch));
}

#[test]
fn max_attempts_counts_only_interrupted_attempts() {
    let limited =
        Start { resume: Resume { max_attempts: 2, ..Resume::default() }, ..start(OnInterrupted::Resume, None) };
    let begin =
        |stored: &StoredRecord, number| numbered(decide(Some(stored), &Action::Begin(&limited), &now(10)), number);
    let mut live = claimed(&limited);
    for number in 3..20 {
        live = begin(&end(&live, &Ending::Release), FIRST + number);
    }
    assert_eq!((live.attempt, live.interruptions), (18, 0));
    let interrupted = end(&live, &Ending::Interrupt(Interruption::Dropped));
    // A release in between changes nothing.
    let resumed = begin(&end(&begin(&interrupted, FIRST + 20), &Ending::Release), FIRST + 21);
    assert_eq!((resumed.attempt, resumed.interruptions), (20, 1));
    let dead = StoredRecord { token: 7, ..resumed };
    for action in [Action::Begin(&limited), Action::Lock { schema: 0, max_attempts: 2, retry_pause: 0 }] {
        assert_eq!(decide(Some(&dead), &action, &now(10)), Decision::Keep(Reason::Interrupted));
    }
    // A caller has resolved the last interruption, so it is not counted.
    let retry = Action::Resolve { ending: &Ending::Release, schema: None, seen: None };
    let resolved = begin(&numbered(decide(Some(&dead), &retry, &now(10)), FIRST + 22), FIRST + 23);
    assert_eq!((resolved.attempt, resolved.interruptions), (21, 1));
    let again = end(&resolved, &Ending::Interrupt(Interruption::Panicked));
    assert_eq!(decide(Some(&again), &Action::Begin(&limited), &now(10)), Decision::Keep(Reason::Interrupted));
}

#[test]
fn a_record_remembers_its_latest_earlier_attempts() {
    let begin = |stored: Option<&StoredRecord>, wall| {
        let now = Now { wall, ..now(10) };
        numbered(decide(stored, &Action::Begin(&start(OnInterrupted::Resume, None)), &now), FIRST + wall)
    };
    let first = begin(None, 100);
    assert_eq!(first.attempts, None, "nothing is stored for the first attempt");
    let second = begin(Some(&end(&first, &Ending::Release)), 200);
    // The process of the second owner ended after a stage.
    let dead = StoredRecord { token: 7, updated_at: 250, ..second };
    let third = begin(Some(&dead), 300);
    let earlier = vec![
        EndedAttempt { attempt: 1, began: 100, changed: 1_000, interruption: None },
        EndedAttempt { attempt: 2, began: 200, changed: 250, interruption: Some(Interruption::ProcessEnded) },
    ];
    assert_eq!(third.attempts.as_deref(), Some(&Attempts { began: 300, earlier: earlier.clone() }));
    let done = end(&third, &Ending::Succeed("x".into()));
    assert_eq!(done.attempts, third.attempts);

    let last = (4..40).fold(third, |record, wall| begin(Some(&end(&record, &Ending::Release)), 100 * wall));
    let attempts = last.attempts.unwrap();
    let numbers: Vec<u32> = attempts.earlier.iter().map(|ended| ended.attempt).collect();
    assert_eq!((attempts.began, numbers), (3_900, (23..39).collect()));
}

#[test]
fn a_strict_fingerprint_does_not_match_a_record_without_one() {
    let without = start(OnInterrupted::Resume, None);
    let with = start(OnInterrupted::Resume, Some(1));
    let strict = Start { strict_fingerprint: true, ..with.clone() };
    let live = claimed(&without);
    let done = end(&live, &Ending::Succeed("x".into()));
    for stored in [&live, &done, &end(&live, &Ending::Interrupt(Interruption::Dropped))] {
        assert_eq!(decide(Some(stored), &Action::Begin(&strict), &now(10)), Decision::Keep(Reason::Mismatch));
    }
    assert_eq!(decide(Some(&done), &Action::Begin(&with), &now(10)), Decision::Keep(Reason::Finished));
    let none = Start { strict_fingerprint: true, ..without };
    assert_eq!(decide(Some(&done), &Action::Begin(&none), &now(10)), Decision::Keep(Reason::Finished));
}

#[test]
fn a_revoke_is_fenced_and_fences_the_old_owner() {
    let live = claimed(&start(OnInterrupted::Hold, None));
    let stale = Action::Revoke { token: live.token - 1, seen: None };
    assert_eq!(decide(Some(&live), &stale, &now(10)), Decision::Keep(Reason::Superseded(live.token)));
    let revoked = numbered(decide(Some(&live), &Action::Revoke { token: live.token, seen: None }, &now(10)), FIRST + 4);
    assert_eq!(revoked.seen(&now(10)), Some((Status::Interrupted, Some(Interruption::Revoked))));
    for ending in [Ending::Succeed("x".into()), Ending::Release, Ending::Interrupt(Interruption::Dropped)] {
        let decision = decide(Some(&revoked), &Action::End { token: live.token, ending: &ending, ttl: None }, &now(20));
        assert_eq!(decision, Decision::Keep(Reason::Superseded(FIRST + 4)));
    }
}

#[test]
fn a_remembered_key_returns_expired_until_it_is_forgotten() {
    let begin = Start { success_ttl: 10, remember: 20, ..start(OnInterrupted::Hold, Some(1)) };
    let done = end(&claimed(&begin), &Ending::Succeed(Value::from("v")));
    let over = done.expires;
    let ask = |stored: &StoredRecord, action: &Action<'_>, at: u64| decide(Some(stored), action, &now(at));
    for stored in [done.clone(), done.remembered(&now(over)).unwrap()] {
        for at in [over, over + 19] {
            let lock = Action::Lock { schema: 0, max_attempts: 1, retry_pause: 0 };
            for action in [Action::Begin(&begin), Action::Create(&begin), lock, Action::Import(&done)] {
                assert_eq!(ask(&stored, &action, at), Decision::Keep(Reason::Expired), "{action:?}");
            }
            assert_eq!(ask(&stored, &Action::Forget, at), Decision::Delete);
            assert_eq!(ask(&stored, &Action::Remove, at), Decision::Delete);
            assert_eq!(ask(&stored, &Action::Extend(5), at), Decision::Keep(Reason::Absent));
        }
        assert!(matches!(ask(&stored, &Action::Begin(&begin), over + 20), Decision::Write(_)));
        assert_eq!(ask(&stored, &Action::Forget, over + 20), Decision::Keep(Reason::Absent));
    }
    assert_eq!(done.remembered(&now(over - 1)), None);
    assert_eq!(done.remembered(&now(over + 20)), None);
}
