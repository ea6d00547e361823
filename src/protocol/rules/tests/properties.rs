//! Compares `decide` with a second formulation of the rules, for every pair of a record and an action, and on random
//! walks.

use proptest::prelude::*;

use super::*;

const NOW: Now = Now { store: 1_000, wall: 77, first: FIRST, opened: 500, effect_seed: [1; 16] };
const OTHER_POINT: &str = "elsewhere";

/// The fields of a record that the rules distinguish.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "every combination of them is a case")]
struct Case {
    state: Status,
    by_key: bool,
    /// True if an effect may have happened for the record's request.
    bound: bool,
    owner_is_dead: bool,
    /// True if the record expires in this millisecond, false if in the next.
    is_expired: bool,
    /// True if it was resolved, and no caller has been given its outcome.
    undoable: bool,
    policy: OnInterrupted,
    fingerprint: Option<u8>,
}

impl Case {
    fn all() -> Vec<Self> {
        use Status::{Failed, InProgress, Interrupted, Released, Succeeded};
        let mut all = Vec::new();
        for state in [InProgress, Succeeded, Failed, Released, Interrupted] {
            let resolvable = matches!(state, Succeeded | Failed | Released);
            for bits in 0..if resolvable { 128_u8 } else { 64 } {
                let bit = |id: u8| bits & (1 << id) != 0;
                let policy = if bit(3) { OnInterrupted::Hold } else { OnInterrupted::Resume };
                let fingerprint = bit(4).then_some(1);
                let (by_key, owner_is_dead, is_expired, bound) = (bit(0), bit(1), bit(2), bit(5));
                let undoable = bit(6);
                all.push(Self { state, by_key, bound, owner_is_dead, is_expired, undoable, policy, fingerprint });
            }
        }
        all
    }

    fn is_finished(self) -> bool {
        matches!(self.state, Status::Succeeded | Status::Failed)
    }

    fn stored(self) -> StoredRecord {
        let left = u64::from(!self.is_expired);
        let outcome = self.is_finished().then(|| Value::from("x"));
        // A record whose resolution can be undone keeps the fields of its interruption.
        let shows_finished = self.is_finished() && !self.undoable;
        StoredRecord {
            state: self.state,
            by_key: self.by_key,
            bound: self.bound,
            interruption: (self.state == Status::Interrupted || self.undoable).then_some(Interruption::Dropped),
            is_undoable: self.undoable,
            attempt: 3,
            generation: 5,
            revision: FIRST + 9,
            token: if self.owner_is_dead { 7 } else { FIRST + 7 },
            updated: 200,
            expires: if self.state == Status::InProgress { NEVER } else { NOW.store + left },
            interrupted_ttl: NOW.store - NOW.opened + left,
            recovery_point: if shows_finished { FINISHED.into() } else { "paid".into() },
            checkpoint: (!shows_finished).then(|| Value::from("kept")),
            outcome_len: u32::from(outcome.is_some()),
            outcome,
            ..begun(&start(self.policy, self.fingerprint), &NOW)
        }
    }

    /// Returns the status that readers see. `None`: absent.
    fn status(self) -> Option<Status> {
        match self.state {
            Status::InProgress if !self.owner_is_dead => Some(Status::InProgress),
            _ if self.is_expired => None,
            Status::InProgress => Some(Status::Interrupted),
            state => Some(state),
        }
    }

    /// The second formulation of the rules, by action: W writes, D deletes, K keeps.
    fn verdict(self, stored: &StoredRecord, action: &Action<'_>) -> char {
        let Some(status) = self.status() else {
            return if matches!(action, Action::Begin(_) | Action::Create(_) | Action::Import(_)) { 'W' } else { 'K' };
        };
        let (running, finished) = (status == Status::InProgress, self.is_finished());
        let idle = !running && !finished;
        let resumes = status != Status::Interrupted || self.policy == OnInterrupted::Resume;
        let mine = |token: u64| running && token == stored.token;
        let yes = match action {
            Action::Begin(start) => self.starts_a_generation(start) || idle && resumes && !self.is_other_request(start),
            Action::Lock { .. } => idle && resumes,
            Action::Create(start) => self.starts_a_generation(start),
            Action::Import(_) => false,
            Action::Patch(_) => idle,
            Action::End { token, .. } => mine(*token),
            Action::Revoke { token, seen } => mine(*token) && seen.is_none_or(|seen| seen == stored.revision),
            Action::Stage { token, point, step, .. } => {
                mine(*token) && *point != OTHER_POINT && !matches!(step, Step::Stay)
            }
            Action::EndByKey { token, .. } => mine(*token) && self.by_key,
            Action::Resolve { seen, .. } => {
                status == Status::Interrupted && seen.is_none_or(|seen| seen == stored.revision)
            }
            Action::Undo { seen } => self.undoable && seen.is_none_or(|seen| seen == stored.revision),
            Action::Give => self.undoable && finished,
            Action::Extend(ttl) => finished && *ttl > 1,
            Action::Forget => return if finished { 'D' } else { 'K' },
            Action::Discard { token } => return if mine(*token) { 'D' } else { 'K' },
            Action::Remove => return if running { 'K' } else { 'D' },
        };
        if yes { 'W' } else { 'K' }
    }

    fn is_other_request(self, start: &Start) -> bool {
        (self.fingerprint.is_some() || start.strict_fingerprint) && self.is_other_payload(start)
    }

    fn is_other_payload(self, start: &Start) -> bool {
        start.fingerprint != self.fingerprint.map(|byte| Fingerprint::from_bytes([byte; 32]))
    }

    /// True if nothing has happened under the record's request, so another request may have the key.
    fn starts_a_generation(self, start: &Start) -> bool {
        self.status() == Some(Status::Released) && !self.bound && self.is_other_payload(start)
    }
}

/// The parameters of which the actions are made.
struct Parts {
    starts: Vec<Start>,
    endings: Vec<Ending>,
    steps: Vec<Step>,
    patches: Vec<Patch>,
    images: Vec<StoredRecord>,
}

impl Parts {
    fn new() -> Self {
        let mut starts = Vec::new();
        for fingerprint in [None, Some(1), Some(2)] {
            for (by_key, policy) in [(false, OnInterrupted::Hold), (true, OnInterrupted::Resume)] {
                let strict_fingerprint = by_key;
                starts.push(Start { by_key, strict_fingerprint, ..start(policy, fingerprint) });
            }
        }
        let endings = vec![
            Ending::Succeed("x".into()),
            Ending::Succeed("other".into()),
            Ending::Fail("x".into()),
            Ending::Release,
            Ending::ReleaseUntouched,
            Ending::Interrupt(Interruption::Reported),
        ];
        let mut steps: Vec<_> = endings.iter().cloned().map(Step::End).collect();
        steps.extend([Step::Stay, Step::Advance { point: "sent".to_owned(), checkpoint: Some("new".into()) }]);
        let patches = vec![
            Patch::default(),
            Patch { recovery_point: Some("sent".to_owned()), ..Patch::default() },
            Patch {
                checkpoint: Some("new".into()),
                ending: Some((Ending::Succeed("x".into()), 1)),
                ..Patch::default()
            },
        ];
        Self { starts, endings, steps, patches, images: Case::all().into_iter().map(Case::stored).collect() }
    }

    /// Returns every action, with and without the current token, revision and recovery point of the record.
    fn actions(&self, (token, revision): (u64, u64), point: &str) -> Vec<Action<'_>> {
        let own = if point == "paid" { "paid" } else { STARTED };
        let mut all =
            vec![Action::Forget, Action::Remove, Action::Lock { schema: 1, max_attempts: u32::MAX, retry_pause: 0 }];
        all.extend([None, Some(revision), Some(revision - 1)].map(|seen| Action::Undo { seen }));
        all.push(Action::Give);
        all.extend([0, 1, 2, 500, NEVER].map(Action::Extend));
        all.extend(self.starts.iter().flat_map(|start| [Action::Begin(start), Action::Create(start)]));
        all.extend(self.patches.iter().map(Action::Patch));
        all.extend(self.images.iter().map(Action::Import));
        for ending in &self.endings {
            all.extend([token, token - 1, 0].map(|token| Action::EndByKey { token, ending, schema: 1 }));
            all.extend([None, Some(1)].map(|schema| Action::Resolve { ending, schema, seen: None }));
            all.extend([0, 1].map(|off| Action::Resolve { ending, schema: None, seen: Some(revision + off) }));
            all.extend([token, token - 1, 0].map(|token| Action::End { token, ending, ttl: None }));
        }
        all.extend([token, token - 1].map(|token| Action::Revoke { token, seen: None }));
        all.extend([0, 1].map(|off| Action::Revoke { token, seen: Some(revision + off) }));
        for step in &self.steps {
            for token in [token, token - 1] {
                all.extend([own, OTHER_POINT].map(|point| Action::Stage { token, point, step, ttl: None }));
            }
        }
        all
    }
}

fn letter(decision: &Decision) -> char {
    match decision {
        Decision::Write(_) => 'W',
        Decision::Delete => 'D',
        Decision::Keep(_) => 'K',
    }
}

/// Checks the invariants of every record that is written.
fn check_written(before: Option<&StoredRecord>, action: &Action<'_>, after: &StoredRecord, now: &Now) {
    assert_eq!(after.revision, THIS_FRAME);
    assert!(after.seen(now).is_some() || after.expires <= now.store, "{after:?}");
    let finished = matches!(after.state, Status::Succeeded | Status::Failed);
    assert_eq!(finished, after.outcome.is_some());
    assert_eq!(after.outcome.as_ref().map_or(0, |value| value.len()), after.outcome_len as usize);
    let Some(before) = before else {
        assert_eq!((after.generation, after.token), (THIS_FRAME, THIS_FRAME), "a new life");
        return;
    };
    let claims = matches!(action, Action::Begin(_) | Action::Lock { .. });
    if after.generation == THIS_FRAME {
        assert_eq!((before.state, before.bound, after.token), (Status::Released, false, THIS_FRAME), "a new life");
        return;
    }
    let revokes = matches!(action, Action::Revoke { .. });
    assert_eq!(after.token == THIS_FRAME, claims || revokes, "a token for a claim, or to end one");
    assert_eq!(after.attempt, before.attempt + u32::from(claims));
    assert!(after.holds_progress || !before.holds_progress, "progress is never lost");
    assert!((before.interruptions..=before.interruptions + u32::from(claims)).contains(&after.interruptions));
    // The fields that are fixed when a generation starts.
    let fixed = |stored: &StoredRecord| {
        let ttls = (stored.success_ttl, stored.failure_ttl, stored.released_ttl, stored.interrupted_ttl);
        (stored.generation, stored.fingerprint, stored.context.clone(), stored.policy, ttls, stored.created_at)
    };
    assert_eq!(fixed(after), fixed(before));
    if after.is_undoable {
        assert!(matches!(action, Action::Resolve { .. } | Action::Extend(_)), "{action:?} of {before:?}");
        let kept = |stored: &StoredRecord| (stored.recovery_point.clone(), stored.checkpoint.clone());
        assert_eq!(kept(after), kept(before));
    } else if finished {
        assert_eq!((&*after.recovery_point, &after.checkpoint), (FINISHED, &None));
    }
    if after.state == Status::InProgress {
        assert_eq!(after.expires, NEVER, "a record in progress has no expiry");
    }
}

#[test]
fn decide_agrees_with_the_second_formulation_for_every_record_and_action() {
    let parts = Parts::new();
    let mut pairs = 0;
    for case in Case::all() {
        let stored = case.stored();
        for action in parts.actions((stored.token, stored.revision), &stored.recovery_point) {
            let decision = decide(Some(&stored), &action, &NOW);
            assert_eq!(letter(&decision), case.verdict(&stored, &action), "{case:?} {action:?}: {decision:?}");
            let there = case.status().map(|_| &stored);
            match (&decision, &action) {
                _ if there.is_none() => assert_eq!(decision, decide(None, &action, &NOW), "expired is absent"),
                (Decision::Write(_), Action::Begin(start) | Action::Create(start))
                    if case.starts_a_generation(start) => {}
                (_, Action::Begin(start) | Action::Create(start)) if case.is_other_request(start) => {
                    assert_eq!(decision, Decision::Keep(Reason::Mismatch));
                }
                (Decision::Keep(reason), Action::End { token, .. } | Action::Stage { token, .. })
                    if *token != stored.token =>
                {
                    assert_eq!(*reason, Reason::Superseded(stored.token));
                }
                _ => (),
            }
            if let Decision::Write(after) = &decision {
                check_written(there, &action, after, &NOW);
            }
            pairs += 1;
        }
    }
    assert!(pairs > 70_000, "{pairs}");
    println!("{pairs} pairs");
}

/// A finished record changes only its expiry, and only to a later one. A resolved record can also be undone, or its
/// outcome given to a caller.
#[test]
fn no_action_changes_a_finished_record_but_its_expiry() {
    let parts = Parts::new();
    for case in Case::all().into_iter().filter(|case| case.is_finished() && !case.is_expired) {
        let stored = case.stored();
        for action in parts.actions((stored.token, stored.revision), &stored.recovery_point) {
            match decide(Some(&stored), &action, &NOW) {
                Decision::Write(after) if case.undoable && matches!(action, Action::Undo { .. }) => {
                    assert_eq!((after.state, &after.outcome), (Status::Interrupted, &None));
                    let kept = |stored: &StoredRecord| {
                        (stored.interruption, stored.recovery_point.clone(), stored.checkpoint.clone())
                    };
                    assert_eq!(kept(&after), kept(&stored));
                }
                Decision::Write(after) if case.undoable && matches!(action, Action::Give) => {
                    assert_eq!((after.state, &after.outcome), (stored.state, &stored.outcome));
                    assert_eq!((after.expires, after.is_undoable), (stored.expires, false));
                }
                Decision::Write(after) => {
                    let (expires, updated, updated_at) = (after.expires, after.updated, after.updated_at);
                    assert!(expires > stored.expires, "{action:?}");
                    assert_eq!(
                        *after,
                        StoredRecord { expires, updated, updated_at, revision: THIS_FRAME, ..stored.clone() }
                    );
                }
                Decision::Delete => assert!(matches!(action, Action::Forget | Action::Remove), "{action:?}"),
                Decision::Keep(_) => (),
            }
        }
    }
}

/// The history of one key. Each write gets the next frame number, as in the store.
struct Life {
    stored: Option<StoredRecord>,
    now: Now,
    next: u64,
    /// The highest token, generation and revision so far.
    highest: [u64; 3],
}

impl Life {
    /// Another process opens the store.
    fn reopen(&mut self) {
        self.now.first = (self.next >> 32 << 32) + FIRST;
        self.now.opened = self.now.store;
        self.next = self.now.first + 1;
    }

    fn apply(&mut self, action: &Action<'_>) {
        let before = self.stored.clone();
        let seen = before.as_ref().filter(|stored| stored.seen(&self.now).is_some());
        let finished = seen.filter(|stored| stored.outcome.is_some());
        match decide(before.as_ref(), action, &self.now) {
            Decision::Keep(_) => (),
            Decision::Delete => {
                let ends = matches!(action, Action::Forget | Action::Remove);
                assert!(ends && seen.is_some(), "{action:?} deleted {before:?}");
                self.stored = None;
            }
            Decision::Write(after) => {
                check_written(seen, action, &after, &self.now);
                let after = numbered(Decision::Write(after), self.next);
                let is_undone = matches!(action, Action::Undo { .. });
                if let Some(finished) = finished.filter(|finished| !(finished.is_undoable && is_undone)) {
                    assert_eq!((&after.outcome, after.state), (&finished.outcome, finished.state), "{action:?}");
                }
                self.grow(before.as_ref(), &after);
                self.next += 1;
                self.stored = Some(after);
            }
        }
    }

    /// Checks that each number stays, or is higher than every earlier one, those of deleted records included.
    fn grow(&mut self, before: Option<&StoredRecord>, after: &StoredRecord) {
        let numbers = |stored: &StoredRecord| [stored.token, stored.generation, stored.revision];
        let old = before.map_or([0; 3], numbers);
        for ((highest, old), new) in self.highest.iter_mut().zip(old).zip(numbers(after)) {
            assert!(new == old || new > *highest, "{new} after {highest}");
            *highest = new.max(*highest);
        }
        assert_eq!(after.revision, self.next);
        assert!(after.revision >= after.token && after.token >= after.generation);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn on_random_walks_a_finished_record_stays_and_numbers_only_grow(
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0..60_u64, 0..20_u8), 1..80),
    ) {
        let parts = Parts::new();
        let mut life = Life { stored: None, now: Now { opened: 0, store: 0, ..NOW }, next: FIRST + 1, highest: [0; 3] };
        for (which, passed, chance) in steps {
            life.now.store += passed;
            if chance == 0 {
                life.reopen();
            }
            let (numbers, point) = life.stored.as_ref().map_or(((1, 1), STARTED.into()), |stored| {
                ((stored.token, stored.revision), stored.recovery_point.clone())
            });
            // Keep the imports in a quarter of the steps. Otherwise they would be as many as all other actions.
            let actions = parts.actions(numbers, &point);
            let others = |action: &Action<'_>| chance % 4 == 1 || !matches!(action, Action::Import(_));
            let actions: Vec<_> = actions.into_iter().filter(others).collect();
            life.apply(which.get(&actions));
        }
    }
}
