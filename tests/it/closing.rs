//! Tests of a close during other calls: every call returns, and every answer stays true.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use oncekey::{
    Begin, CallOptions, Claim, Engine, Error, ErrorKind, ExecuteError, Interruption, Key, Manager, Status, Waited,
    admin::Resolution,
};

use crate::threads::{LATE, Rng, patient, until, within};

const FOR_EVER: Duration = Duration::MAX;

type Ops = Manager<u64, u64>;

/// The answers of one thread, and the claims that it could not end.
#[derive(Default)]
struct Answers {
    outcomes: Vec<(String, Result<u64, u64>)>,
    kept: Vec<Claim<u64, u64>>,
}

impl Answers {
    /// Keeps the claim if the ending was rejected.
    fn ended<R>(&mut self, ended: Result<R, oncekey::EndError<Claim<u64, u64>>>) -> Result<(), Error> {
        ended.map(|_| ()).map_err(|refused| {
            self.kept.push(refused.claim);
            refused.error
        })
    }

    fn execute(&mut self, ops: &Ops, key: &str, value: u64) -> Result<(), Error> {
        let outcome = if value % 2 == 0 { Ok(value) } else { Err(value) };
        match ops.execute_with(key, patient(), |_| outcome) {
            Ok(done) => self.outcomes.push((key.to_owned(), Ok(*done.value()))),
            Err(ExecuteError::Failed { error, .. }) => self.outcomes.push((key.to_owned(), Err(error))),
            // Another thread's claim was closed or dropped.
            Err(ExecuteError::Interrupted(_)) => {}
            Err(ExecuteError::NotStored { outcome: back, error }) => {
                assert_eq!(back, outcome, "another value came back");
                return self.ended::<()>(Err(error));
            }
            Err(ExecuteError::Engine(error)) => return Err(error),
            Err(other) => panic!("{other:?}"),
        }
        Ok(())
    }

    fn begin(&mut self, begun: Begin<u64, u64>, key: &str, value: u64) -> Result<(), Error> {
        match begun {
            Begin::Claimed(claim) => match value % 5 {
                0 | 1 => {
                    let ended = claim.succeed(&value);
                    self.ended(ended)?;
                    self.outcomes.push((key.to_owned(), Ok(value)));
                }
                2 => {
                    let ended = claim.fail(&value);
                    self.ended(ended)?;
                    self.outcomes.push((key.to_owned(), Err(value)));
                }
                3 => {
                    let ended = claim.release();
                    self.ended(ended)?;
                }
                _ => drop(claim),
            },
            Begin::Replay(done) => self.outcomes.push((key.to_owned(), done.into_outcome())),
            Begin::InProgress(_) | Begin::Interrupted(_) => {}
            Begin::Paused(info) | Begin::Mismatch(info) => panic!("{info:?}"),
        }
        Ok(())
    }

    fn by_key(&mut self, ops: &Ops, key: &str, value: u64) -> Result<(), Error> {
        if let Some(token) = ops.initiate(key)? {
            ops.success(key, token, &value)?;
            self.outcomes.push((key.to_owned(), Ok(value)));
        }
        Ok(())
    }

    fn verb(&mut self, ops: &Ops, held: &str, rng: &mut Rng) -> Result<(), Error> {
        let (key, value) = (&format!("key-{}", rng.below(2_000)), rng.next());
        // These keys are deleted again, so there is no outcome to remember.
        let brief = &format!("brief-{}", rng.below(50));
        let short = Duration::from_micros(value % 1_000);
        match rng.below(16) {
            0..=2 => self.execute(ops, key, value),
            3 | 4 => self.begin(ops.begin(key)?, key, value),
            5 => self.begin(ops.begin_with(key, CallOptions::new().wait(short))?, key, value),
            6 => self.by_key(ops, key, value),
            7 => ops.get(key).map(|record| {
                let outcome = record.and_then(oncekey::Record::into_outcome);
                self.outcomes.extend(outcome.map(|outcome| (key.clone(), outcome)));
            }),
            8 => match ops.wait(held, short)? {
                Waited::TimedOut => Ok(()),
                Waited::Closed => Err(ops.begin(held).unwrap_err()),
                other => panic!("{other:?}"),
            },
            9 => self.begin(ops.begin(brief)?, brief, 3 + value % 2).inspect_err(|_| drop(self.kept.pop())),
            10 => ops.remove(brief).map(|_| ()),
            11 => ops.resolve(brief, Resolution::Succeed(value)),
            12 => ops.forget(brief).map(|_| ()),
            13 => ops.extend(key, FOR_EVER).map(|_| ()),
            14 => ops.engine().interrupted()?.take(3).try_for_each(|info| info.map(|_| ())),
            _ if value % 8 == 0 => ops.engine().compact_now().map(|_| ()),
            _ => ops.engine().sync(),
        }
    }

    /// Calls the engine until it is closed.
    fn work(mut self, ops: &Ops, held: &str, mut rng: Rng, answers: &AtomicU64) -> Self {
        let unfit = [ErrorKind::NotFound, ErrorKind::OwnedByClaim, ErrorKind::NotInterrupted];
        loop {
            match self.verb(ops, held, &mut rng) {
                Err(error) if error.kind() == ErrorKind::Closed => return self,
                Err(error) => assert!(unfit.contains(&error.kind()), "{error:?}"),
                Ok(()) => drop(answers.fetch_add(1, SeqCst)),
            }
        }
    }
}

fn close_under_load(path: &Path, round: u64, known: &mut HashMap<String, Result<u64, u64>>) {
    let engine = Engine::open(path).unwrap();
    let ops: &Ops = &engine.manager("ops").unwrap();
    let (held, answers) = (&format!("held-{round}"), &AtomicU64::new(0));
    let owner = ops.begin(held).unwrap().into_claim().unwrap();
    let mut kept = vec![owner];
    thread::scope(|scope| {
        let successor = scope.spawn(move || ops.begin_with(held, CallOptions::new().wait(FOR_EVER)));
        let observer = scope.spawn(move || ops.wait(held, FOR_EVER));
        let start = |me| scope.spawn(move || Answers::default().work(ops, held, Rng::new(round * 100 + me), answers));
        let threads: Vec<_> = (0..32).map(start).collect();
        let enough = 200 + Rng::new(round).below(1_000);
        until("they work", || answers.load(SeqCst) >= enough && engine.stats().waiting >= 2);
        assert_eq!(engine.clone().close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
        assert_eq!(successor.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
        assert!(matches!(observer.join().unwrap().unwrap(), Waited::Closed));
        for told in threads.into_iter().map(|thread| thread.join().unwrap()) {
            kept.extend(told.kept);
            for (key, outcome) in told.outcomes.into_iter().filter(|(key, _)| key.starts_with("key-")) {
                assert_eq!(*known.entry(key.clone()).or_insert(outcome), outcome, "{key} was answered in two ways");
            }
        }
    });
    assert_eq!(engine.stats().waiting, 0);
    // The claims keep the store locked. Their drops are recorded.
    assert_eq!(Engine::open(path).unwrap_err().kind(), ErrorKind::StoreInUse);
    let keys: Vec<_> = kept.iter().map(|claim| (claim.key().clone(), claim.generation())).collect();
    drop(kept);
    reopened(path, known, &keys);
}

/// Opens the store again. Every answered outcome is there, and every claim that could not be ended is interrupted.
fn reopened(path: &Path, known: &HashMap<String, Result<u64, u64>>, kept: &[(Key, u64)]) {
    let engine = Engine::open(path).unwrap();
    let ops: &Ops = &engine.manager("ops").unwrap();
    for (key, outcome) in known {
        let record = ops.get(key).unwrap().unwrap();
        assert_eq!(record.into_outcome(), Some(*outcome), "{key}");
    }
    for (key, generation) in kept {
        let record = ops.get(key).unwrap().unwrap();
        let seen = (record.status(), record.info().interruption(), record.info().generation());
        let ended = (Status::Interrupted, Some(Interruption::Dropped), *generation);
        assert_eq!(seen, ended, "{key}");
    }
    engine.close().unwrap();
}

#[test]
fn close_during_other_calls_ends_all_calls_and_keeps_every_answer() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let mut known = HashMap::new();
        for round in 0..8 {
            close_under_load(dir.path(), round, &mut known);
        }
        assert!(known.len() > 500, "{}", known.len());
    });
}

/// `close` returns when the engine is closed, even if another thread called it first.
#[test]
fn after_close_returns_the_directory_is_free() {
    within(LATE, || {
        for round in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let engine = Engine::open(dir.path()).unwrap();
            let ops: Ops = engine.manager("ops").unwrap();
            ops.execute("key", |_| Ok(1)).unwrap();
            let line = &Barrier::new(2);
            let opened = thread::scope(|scope| {
                let both = [engine.clone(), engine].map(|engine| {
                    let path = dir.path();
                    scope.spawn(move || {
                        line.wait();
                        engine.close().unwrap();
                        Engine::open(path).map(drop).map_err(|error| error.kind())
                    })
                });
                both.map(|one| one.join().unwrap())
            });
            // One open may find the new engine of the other thread. If both find the store in use, neither close freed
            // it.
            assert!(opened.contains(&Ok(())), "round {round}: {opened:?}");
            drop(ops);
        }
    });
}

/// The same without a second open.
#[test]
fn a_second_close_waits_for_the_first() {
    for round in 0..20 {
        within(LATE, move || {
            let dir = tempfile::tempdir().unwrap();
            let engine = Engine::open(dir.path()).unwrap();
            let ops: Ops = engine.manager("ops").unwrap();
            ops.execute("key", |_| Ok(1)).unwrap();
            let second = engine.clone();
            thread::scope(|scope| {
                let first = scope.spawn(move || engine.close());
                // The first close has begun once calls return `Closed`.
                until("it closes", || ops.get("key").is_err());
                second.close().unwrap();
                if let Err(error) = Engine::open(dir.path()) {
                    panic!("round {round}: close has returned, and {error}");
                }
                first.join().unwrap().unwrap();
            });
        });
    }
}

/// The entries that an open and a close write by themselves must not make the next open fail.
#[test]
fn a_store_can_be_opened_and_closed_many_times() {
    for seed in 0..4 {
        let (dir, mut rng) = (tempfile::tempdir().unwrap(), Rng::new(seed));
        for round in 0..20 {
            let path = dir.path().to_owned();
            // The first store gets no call between open and close.
            let operations = rng.below(seed + 1);
            within(LATE, move || {
                let engine = Engine::open(path).unwrap_or_else(|error| panic!("open {round}: {error}"));
                assert!(engine.opened().clean);
                let ops: Ops = engine.manager("ops").unwrap();
                for n in 0..operations {
                    ops.execute(format!("{round}-{n}"), |_| Ok(n)).unwrap();
                }
                engine.close().unwrap();
            });
        }
    }
}

/// The list is exact right after an open: it is read from disk, before any call of this process.
#[test]
fn the_next_open_lists_all_claims_that_were_alive_at_close() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let mut left = Vec::new();
        for round in 0..4 {
            let engine = Engine::open(dir.path()).unwrap();
            assert_eq!(engine.opened().interrupted, left.len() as u64);
            let keys = engine.interrupted().unwrap().map(|info| info.unwrap().key().as_str().unwrap().to_owned());
            assert_eq!(keys.collect::<Vec<_>>(), left);
            let ops: Ops = engine.manager("ops").unwrap();
            let key = format!("key-{round}");
            let claim = ops.begin(&key).unwrap().into_claim().unwrap();
            ops.execute(format!("other-{round}"), |_| Ok(1)).unwrap();
            left.push(key);
            assert_eq!(engine.close().unwrap_err().kind(), ErrorKind::ClaimsAlive);
            drop(claim);
        }
    });
}

#[test]
fn the_last_handle_can_be_a_claim_in_another_thread() {
    within(LATE, || {
        for (key, releases) in [("dropped", false), ("released", true)] {
            let dir = tempfile::tempdir().unwrap();
            let engine = Engine::open(dir.path()).unwrap();
            let ops: Ops = engine.manager("ops").unwrap();
            let mut claim = ops.begin(key).unwrap().into_claim().unwrap();
            drop((ops, engine));
            // The claim keeps the engine open.
            assert_eq!(Engine::open(dir.path()).unwrap_err().kind(), ErrorKind::StoreInUse);
            claim.release_on_drop(releases);
            thread::spawn(move || drop(claim)).join().unwrap();
            let engine = Engine::open(dir.path()).unwrap();
            assert!(engine.opened().clean);
            let ops: Ops = engine.manager("ops").unwrap();
            let record = ops.get(key).unwrap().unwrap();
            let seen = (record.status(), record.info().interruption());
            let interrupted = (Status::Interrupted, Some(Interruption::Dropped));
            assert_eq!(seen, if releases { (Status::Released, None) } else { interrupted });
        }
    });
}

#[test]
fn a_claim_that_is_the_last_handle_still_succeeds() {
    within(LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let ops: Ops = engine.manager("ops").unwrap();
        let claim = ops.begin("key").unwrap().into_claim().unwrap();
        drop((ops, engine));
        let done = thread::spawn(move || claim.succeed(&5).unwrap()).join().unwrap();
        // The stored record is not a handle.
        let engine = Engine::open(dir.path()).unwrap();
        let ops: Ops = engine.manager("ops").unwrap();
        assert_eq!(ops.get("key").unwrap().unwrap().outcome(), Some(done.outcome()));
    });
}

#[test]
fn a_temporary_directory_is_removed_with_the_last_handle() {
    within(LATE, || {
        let engine = Engine::temporary().unwrap();
        let path = engine.path().to_owned();
        let ops: Ops = engine.manager("ops").unwrap();
        let claim = ops.begin("key").unwrap().into_claim().unwrap();
        drop((ops, engine));
        assert!(path.exists());
        thread::spawn(move || drop(claim)).join().unwrap();
        assert!(!path.exists());
    });
}
