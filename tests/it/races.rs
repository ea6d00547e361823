//! Races of many threads for few keys: one owner at a time, and one outcome that never changes.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use oncekey::{
    Begin, CallOptions, Claim, Engine, ErrorKind, ExecuteError, Manager, ManagerOptions, OnError, OnInterrupted,
    RecordInfo, Status, Waited, admin::Resolution,
};

use crate::threads::{LATE, Rng, patient, within};

/// Runs one round: all threads begin the same key, exactly one gets a claim. In every second round the owner holds the
/// key until all have begun.
fn begin_round(ops: &Manager<u64, u64>, key: &str, round: u64, me: u64, line: &Barrier, claims: &AtomicUsize) -> u64 {
    line.wait();
    let begun = ops.begin(key).unwrap();
    let holds = round % 2 == 0;
    if holds {
        line.wait();
    }
    match begun {
        Begin::Claimed(claim) => {
            claims.fetch_add(1, SeqCst);
            let value = round * 1_000 + me;
            let ended = if round % 3 == 0 { claim.fail(&value) } else { claim.succeed(&value) };
            ended.unwrap();
        }
        Begin::InProgress(pending) => assert_eq!(pending.info().attempt(), 1),
        Begin::Replay(_) if !holds => {}
        other => panic!("round {round}: {other:?}"),
    }
    line.wait();
    assert_eq!(claims.load(SeqCst), 1, "round {round}");
    match ops.begin(key).unwrap() {
        Begin::Replay(done) => match done.into_outcome() {
            Ok(value) if round % 3 != 0 => value,
            Err(value) if round % 3 == 0 => value,
            other => panic!("round {round} replays {other:?}"),
        },
        other => panic!("round {round} does not replay: {other:?}"),
    }
}

#[test]
fn one_of_64_threads_claims_and_all_others_replay_its_outcome() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops: Manager<u64, u64> = engine.manager("ops").unwrap();
        for round in 0..50 {
            let (line, claims) = (&Barrier::new(64), &AtomicUsize::new(0));
            let key = &format!("key-{round}");
            let values: Vec<u64> = thread::scope(|scope| {
                let ops = &ops;
                let all = (0..64).map(|me| scope.spawn(move || begin_round(ops, key, round, me, line, claims)));
                let all: Vec<_> = all.collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert!(values.iter().all(|value| Some(value) == values.first() && value / 1_000 == round), "{values:?}");
        }
        let stats = engine.stats();
        assert_eq!((stats.in_progress, stats.waiting, stats.interrupted), (0, 0, 0));
    });
}

/// Each thread visits all keys in an order of its own, so that each key is raced for at some time.
#[test]
fn ten_thousand_keys_run_once_each_under_64_threads() {
    const KEYS: usize = 10_000;
    const THREADS: usize = 64;
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops: Manager<u64, u64> = engine.manager("ops").unwrap();
        let runs: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let values: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let (ops, runs, values) = (&ops, &runs, &values);
        // Coprime to the number of keys, so that a thread visits each key once.
        let strides = [1, 3, 7, 9, KEYS - 1, KEYS - 3, 4_999, 3_001];
        thread::scope(|scope| {
            for me in 0..THREADS {
                // Threads with the same stride start together, and race for every key.
                let (start, stride) = (me % 16 * (KEYS / 16), strides[me % strides.len()]);
                scope.spawn(move || {
                    for key in (0..KEYS).map(|step| (start + step * stride) % KEYS) {
                        let mine = (me * KEYS + key + 1) as u64;
                        let done = ops.execute_with(key.to_be_bytes(), patient(), |_| {
                            runs[key].fetch_add(1, SeqCst);
                            Ok(mine)
                        });
                        let done = done.unwrap();
                        assert!(done.replayed() || *done.value() == mine);
                        // The first thread sets the value that the others must see.
                        let seen = values[key].compare_exchange(0, *done.value(), SeqCst, SeqCst);
                        assert!(seen.is_ok() || seen == Err(*done.value()), "key {key}: {seen:?}");
                    }
                });
            }
        });
        for (key, (runs, value)) in runs.iter().zip(values).enumerate() {
            assert_eq!(runs.load(SeqCst), 1, "key {key}");
            let record = ops.get(key.to_be_bytes()).unwrap().unwrap();
            assert_eq!(record.outcome(), Some(Ok(&value.load(SeqCst))), "key {key}");
        }
        let stats = engine.stats();
        assert_eq!((stats.in_progress, stats.waiting, stats.replays), (0, 0, (KEYS * (THREADS - 1)) as u64));
    });
}

/// The test's own knowledge of one key.
#[derive(Debug, Default)]
struct Model {
    /// True while an operation runs.
    owned: AtomicBool,
    /// The token of the last operation that ran.
    token: AtomicU64,
    outcome: Mutex<Option<Result<u64, u64>>>,
}

impl Model {
    fn run<T, E>(&self, claim: &Claim<T, E>) {
        assert!(!self.owned.swap(true, SeqCst), "two owners of {}", claim.key());
        let before = self.token.swap(claim.token(), SeqCst);
        assert!(claim.token() > before, "token {} behind {before}", claim.token());
        assert!(self.outcome.lock().unwrap().is_none(), "{} runs although it has an outcome", claim.key());
        thread::yield_now();
        // Clear this before the ending, because the ending admits the next owner.
        assert!(self.owned.swap(false, SeqCst));
    }

    fn answered(&self, outcome: Result<u64, u64>) {
        let mut known = self.outcome.lock().unwrap();
        assert_eq!(*known.get_or_insert(outcome), outcome, "a stored outcome changed");
    }
}

/// Returns the action for an error, from its value.
fn classify(error: u64) -> OnError {
    match error % 4 {
        0 => OnError::Store,
        1 => OnError::Release,
        _ => OnError::Interrupt,
    }
}

fn execute_at_random(ops: &Manager<u64, u64>, key: u64, model: &Model, rng: &mut Rng) {
    let (fate, value) = (rng.below(8), rng.next());
    let executed = catch_unwind(AssertUnwindSafe(|| {
        ops.execute_with(key.to_be_bytes(), patient(), |claim| {
            model.run(claim);
            match fate {
                0 => Ok(value),
                // Skip the panic hook, which would print the message.
                1 | 2 => resume_unwind(Box::new("the operation panics")),
                _ => Err(value),
            }
        })
    }));
    match executed {
        Ok(Ok(done)) => model.answered(Ok(*done.value())),
        Ok(Err(ExecuteError::Failed { error, replayed, .. })) => {
            if classify(error) == OnError::Store {
                model.answered(Err(error));
            }
            assert!(!replayed || classify(error) == OnError::Store, "{error} was not to be stored");
        }
        Ok(Err(other)) => panic!("{other:?}"),
        Err(panic) => assert_eq!(panic.downcast_ref(), Some(&"the operation panics"), "an assertion failed in it"),
    }
}

#[test]
fn failing_and_panicking_operations_have_one_owner_and_one_outcome() {
    const KEYS: u64 = 600;
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let options = ManagerOptions::new().on_interrupted(OnInterrupted::Resume);
        let ops: Manager<u64, u64> = engine.manager_with("ops", options).unwrap();
        let ops = &ops.on_error(|error| classify(*error));
        let models: Vec<Model> = (0..KEYS).map(|_| Model::default()).collect();
        let models = &models;
        thread::scope(|scope| {
            for me in 0..8 {
                scope.spawn(move || {
                    let mut rng = Rng::new(me);
                    // All threads visit the keys in the same order, so that they meet on a few at a time.
                    for key in (0..KEYS).flat_map(|key| [key; 4]) {
                        let key = (key + rng.below(4)) % KEYS;
                        execute_at_random(ops, key, &models[usize::try_from(key).unwrap()], &mut rng);
                    }
                });
            }
        });
        let mut finished = 0;
        for (key, model) in (0..KEYS).zip(models) {
            let record = ops.get(key.to_be_bytes()).unwrap().unwrap();
            assert_eq!(record.clone().into_outcome(), *model.outcome.lock().unwrap(), "key {key}: {record:?}");
            finished += usize::from(record.outcome().is_some());
        }
        assert!(finished > 300, "{finished}: they did not meet finished keys");
        let stats = engine.stats();
        assert_eq!((stats.in_progress, stats.waiting), (0, 0));
    });
}

/// One key under all calls. Each call takes effect at one moment, so these must hold:
///
/// - generation, attempt and stage only grow: no call returns less than an earlier call had returned before it began;
/// - a generation has at most one outcome;
/// - a generation begins once and is deleted at most once: `begun - deleted` is 0 while the key is absent, and 1
///   otherwise.
#[derive(Debug, Default)]
struct Life {
    mark: Mutex<(u64, u32, u8)>,
    outcomes: Mutex<HashMap<u64, Result<u64, u64>>>,
    owned: AtomicBool,
    begun: AtomicU64,
    /// Deletions that were answered, and those that may have taken effect.
    deleted: AtomicU64,
    deleting: AtomicU64,
}

/// The knowledge before a call.
struct Before((u64, u32, u8), u64);

impl Life {
    fn before(&self) -> Before {
        Before(*self.mark.lock().unwrap(), self.begun.load(SeqCst))
    }

    fn at(&self, before: &Before, generation: u64, attempt: u32, status: Status) {
        let stage = match status {
            Status::InProgress => 0,
            Status::Interrupted => 1,
            // `resolve` may release an interrupted record.
            Status::Released => 2,
            Status::Succeeded | Status::Failed => 3,
        };
        let now = (generation, attempt, stage);
        assert!(now >= before.0, "{now:?} is shown although {:?} was", before.0);
        let mut mark = self.mark.lock().unwrap();
        *mark = now.max(*mark);
    }

    fn shown(&self, before: &Before, info: &RecordInfo) {
        self.at(before, info.generation(), info.attempt(), info.status());
    }

    fn ended(&self, before: &Before, info: &RecordInfo, outcome: Result<&u64, &u64>) {
        self.shown(before, info);
        let outcome = outcome.copied().map_err(|error| *error);
        let known = *self.outcomes.lock().unwrap().entry(info.generation()).or_insert(outcome);
        assert_eq!(known, outcome, "generation {}", info.generation());
    }

    fn absent(&self, before: &Before) {
        assert!(before.1 <= self.deleting.load(SeqCst), "absent, but never deleted");
    }

    fn deletes(&self, delete: impl FnOnce() -> oncekey::Result<bool>) {
        self.deleting.fetch_add(1, SeqCst);
        match delete() {
            Ok(true) => {
                self.deleted.fetch_add(1, SeqCst);
                return;
            }
            Ok(false) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::OwnedByClaim),
        }
        self.deleting.fetch_sub(1, SeqCst);
    }

    fn begun(&self, before: &Before, begun: Begin<u64, u64>, ops: &Manager<u64, u64>, key: &str, rng: &mut Rng) {
        match begun {
            Begin::Claimed(claim) => {
                assert!(!self.owned.swap(true, SeqCst), "two owners of {key}");
                self.at(before, claim.generation(), claim.attempt(), Status::InProgress);
                self.begun.fetch_add(u64::from(claim.attempt() == 1), SeqCst);
                self.own(claim, ops, key, rng);
            }
            Begin::Replay(done) => self.ended(before, done.info(), done.outcome()),
            Begin::InProgress(pending) => self.shown(before, pending.info()),
            Begin::Interrupted(info) => self.shown(before, &info),
            Begin::Paused(info) | Begin::Mismatch(info) => panic!("{info:?}"),
        }
    }

    /// Calls the engine while this thread owns the key. Every answer is known.
    fn own(&self, claim: Claim<u64, u64>, ops: &Manager<u64, u64>, key: &str, rng: &mut Rng) {
        let owned = |result: oncekey::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::OwnedByClaim);
        match rng.below(6) {
            0 => owned(ops.remove(key).map(|_| ())),
            1 => owned(ops.forget(key).map(|_| ())),
            2 => owned(ops.resolve(key, Resolution::Retry)),
            3 => assert!(!ops.extend(key, LATE).unwrap()),
            4 => {
                let info = ops.get(key).unwrap().unwrap().info().clone();
                let seen = (info.status(), info.generation(), info.attempt());
                assert_eq!(seen, (Status::InProgress, claim.generation(), claim.attempt()));
            }
            _ => thread::yield_now(),
        }
        let (before, value) = (self.before(), rng.next());
        assert!(self.owned.swap(false, SeqCst));
        match rng.below(8) {
            0..=2 => {
                let done = claim.succeed(&value).unwrap();
                self.ended(&before, done.info(), Ok(&value));
            }
            3 => {
                let done = claim.fail(&value).unwrap();
                self.ended(&before, done.info(), Err(&value));
            }
            4 | 5 => self.shown(&before, &claim.release().unwrap()),
            6 => self.shown(&before, &claim.interrupt().unwrap()),
            _ => drop(claim),
        }
    }

    fn verb(&self, ops: &Manager<u64, u64>, key: &str, rng: &mut Rng) {
        let before = self.before();
        let short = Duration::from_micros(rng.below(2_000));
        let policy = if rng.below(2) == 0 { OnInterrupted::Resume } else { OnInterrupted::Hold };
        let options = CallOptions::new().on_interrupted(policy);
        match rng.below(12) {
            0..=2 => self.begun(&before, ops.begin_with(key, options).unwrap(), ops, key, rng),
            3 | 4 => self.begun(&before, ops.begin_with(key, options.wait(short)).unwrap(), ops, key, rng),
            5 => self.deletes(|| ops.remove(key)),
            6 => self.deletes(|| ops.forget(key)),
            7 => {
                let resolution = match rng.below(3) {
                    0 => Resolution::Retry,
                    1 => Resolution::Succeed(rng.next()),
                    _ => Resolution::Fail(rng.next()),
                };
                let unfit = [ErrorKind::NotFound, ErrorKind::OwnedByClaim, ErrorKind::NotInterrupted];
                if let Err(error) = ops.resolve(key, resolution) {
                    assert!(unfit.contains(&error.kind()), "{error}");
                }
            }
            8 => drop(ops.extend(key, LATE).unwrap()),
            9 | 10 => match ops.get(key).unwrap() {
                None => self.absent(&before),
                Some(record) => match record.outcome() {
                    Some(outcome) => self.ended(&before, record.info(), outcome),
                    None => self.shown(&before, record.info()),
                },
            },
            _ => match ops.wait(key, short).unwrap() {
                Waited::Finished(done) => self.ended(&before, done.info(), done.outcome()),
                Waited::Absent => self.absent(&before),
                Waited::Closed => panic!("no thread closes it"),
                Waited::Released | Waited::Interrupted | Waited::TimedOut => {}
            },
        }
    }
}

#[test]
fn concurrent_calls_on_one_key_are_consistent() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops: &Manager<u64, u64> = &engine.manager("ops").unwrap();
        let lives: [Life; 3] = Default::default();
        let lives = &lives;
        thread::scope(|scope| {
            for me in 0..8 {
                scope.spawn(move || {
                    let mut rng = Rng::new(100 + me);
                    for _ in 0..1_200 {
                        let which = usize::try_from(rng.below(3)).unwrap();
                        lives[which].verb(ops, &format!("key-{which}"), &mut rng);
                    }
                });
            }
        });
        for (which, life) in lives.iter().enumerate() {
            let present = u64::from(ops.get(format!("key-{which}")).unwrap().is_some());
            let (begun, deleted) = (life.begun.load(SeqCst), life.deleted.load(SeqCst));
            assert_eq!(begun, deleted + present, "key {which}");
            assert!(deleted > 30, "key {which} had only {deleted} lives");
        }
        let stats = engine.stats();
        assert_eq!((stats.in_progress, stats.waiting), (0, 0));
    });
}

/// With many threads, one sync covers many commits.
#[test]
fn sixty_four_threads_share_syncs() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let ops: &Manager<u64, u64> = &engine.manager("ops").unwrap();
        let before = engine.stats();
        let line = &Barrier::new(64);
        thread::scope(|scope| {
            for me in 0..64 {
                scope.spawn(move || {
                    line.wait();
                    for n in 0..100 {
                        let claim = ops.begin(format!("{me}-{n}")).unwrap().into_claim().unwrap();
                        claim.succeed(&n).unwrap();
                    }
                });
            }
        });
        let after = engine.stats();
        let commits = after.commits - before.commits;
        let (groups, syncs) = (after.groups - before.groups, after.syncs - before.syncs);
        println!("{commits} commits, {groups} groups, {syncs} syncs, {} waits", after.sync_waits - before.sync_waits);
        assert_eq!(commits, 64 * 100 * 2);
        assert!(groups < commits / 4, "{groups} groups for {commits} commits");
        // Each group has one sync. New segments and store checkpoints add a few.
        assert!(syncs >= groups && syncs <= groups + groups / 4 + 16, "{syncs} syncs for {groups} groups");
    });
}
